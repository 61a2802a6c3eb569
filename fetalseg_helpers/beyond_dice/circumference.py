"""The head circumference, for which these outlines were drawn: an ellipse, a pixel size, millimetres."""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from fetalseg_helpers import loading
from fetalseg_helpers.ellipses import LINE_HALF_WIDTH, border_ellipse, ellipse_perimeter
from fetalseg_helpers.workspace import FetalsegError, project_root, read_json, run_folder

# The columns of training_set_pixel_size_and_HC.csv, and their names here
HC18_NAMES = {"filename": "image_id", "pixel size(mm)": "pixel_mm", "head circumference (mm)": "head_circumference_mm"}


def head_circumference(mask):
    """Circumference in px of the head that a mask, uint8 {0, 1} of shape (height, width), covers.

    These masks hold the drawn line; the ellipse that was measured runs along its middle, so that the mask's border lies
    outside of it by half the line's width. An empty mask, and one to which no ellipse can be fitted, have 0.
    """
    if (ellipse := border_ellipse(mask)) is None:
        return 0.0
    return ellipse_perimeter(max(ellipse.a - LINE_HALF_WIDTH, 0.5), max(ellipse.b - LINE_HALF_WIDTH, 0.5))


def read_pixel_sizes(path):
    """A table of `pixel_mm` and `head_circumference_mm` (nan where unknown), both in mm, by `image_id`.

    The CSV has the columns `image_id, pixel_mm[, head_circumference_mm]`, or those of HC18's own table. A FetalsegError
    says if it is no such table, has a name twice, or a size that is not between 0 and 100.
    """
    try:
        table = pd.read_csv(path, dtype={"image_id": str, "filename": str})
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FetalsegError(f"{path} cannot be read as a table of pixel sizes: {reason}.") from error
    table = table.rename(columns={theirs: ours for theirs, ours in HC18_NAMES.items() if ours not in table.columns})
    for theirs, ours in list(HC18_NAMES.items())[:2]:  # the third need not be there
        if ours not in table.columns:
            raise FetalsegError(f"{path} has no column '{ours}' or '{theirs}': give names and pixel sizes in mm.")
    endings = "|".join(map(re.escape, loading.SUFFIXES))
    table["image_id"] = table.image_id.str.replace(rf"(?i)({endings})$", "", regex=True)
    if len(repeated := table.image_id[table.image_id.duplicated()]):
        raise FetalsegError(f"{path} has {repeated.iloc[0]} twice: keep one row.")
    sizes = table.set_index("image_id").reindex(columns=loading.PIXEL_SIZE_COLUMNS[1:])
    sizes = sizes.apply(pd.to_numeric, errors="coerce")
    if len(wrong := sizes.index[~sizes.pixel_mm.between(0, 100, inclusive="neither")]):
        raise FetalsegError(f"{path}: the pixel size of {wrong[0]} is no number between 0 and 100 mm.")
    return sizes


def find_pixel_sizes(run_dir, given="auto"):
    """As `read_pixel_sizes`, of a given file or ('auto') of `*pixel_size*.csv` in a run's data; without one, empty."""
    if given != "auto":
        return read_pixel_sizes(project_root() / Path(given).expanduser())
    root = project_root() / read_json(run_folder(run_dir) / "data.json")["root"]
    found = sorted(root.glob("*pixel_size*.csv"))
    return read_pixel_sizes(found[0]) if found else pd.DataFrame(columns=loading.PIXEL_SIZE_COLUMNS[1:], dtype=float)


def agreement(measured, truth):
    """How far measurements are off, as HC18 reports it and as Bland and Altman (Lancet 1986;327:307-310) draw it.

    Of two sequences of float: `adf` and `adf_sd`, mean and SD of the absolute difference; `df` and `df_sd`, those of
    measured less truth; `low` and `high`, df ± 1.96 SD, between which 95 % of normal differences lie.
    """
    difference = np.asarray(measured, float) - np.asarray(truth, float)
    both = np.array([np.abs(difference), difference])
    adf, df = both.mean(axis=1).tolist()
    adf_sd, df_sd = both.std(axis=1, ddof=min(1, len(difference) - 1)).tolist()  # of a single difference, 0
    limits = {"low": df - 1.96 * df_sd, "high": df + 1.96 * df_sd}
    return {"adf": adf, "adf_sd": adf_sd, "df": df, "df_sd": df_sd} | limits


def describe_agreement(scores):
    """ADF and DF of the images whose pixel size is known, in words; None where a table of scores has no such image."""
    if "circumference_mm" not in scores or scores.circumference_mm.isna().all():
        return None
    known = scores.dropna(subset="circumference_mm")
    numbers = agreement(known.circumference_mm, known.truth_circumference_mm)
    adf, df = (f"{numbers[name]:.2f} ± {numbers[f'{name}_sd']:.2f} mm" for name in ("adf", "df"))
    return f"head circumference of {len(known)} images: ADF {adf}, DF {df}"
