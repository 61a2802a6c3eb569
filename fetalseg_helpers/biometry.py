"""The head circumference, for which these outlines were drawn: an ellipse, a pixel size, millimetres."""

import re
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd

from fetalseg_helpers import anatomy, loading, phantom, phantom_set
from fetalseg_helpers.workspace import FetalsegError, project_root, read_json, run_folder

# Columns of a table of pixel sizes: ours, and those of HC18's training_set_pixel_size_and_HC.csv.
HC18_COLUMNS = ("filename", "pixel size(mm)", "head circumference (mm)")
COLUMNS = dict(zip(phantom_set.PIXEL_SIZE_COLUMNS, HC18_COLUMNS, strict=True))
LARGEST_DISAGREEMENT = 0.03  # of a table with the masks that it should belong to; HC18's is 0.001 at the median


class Ellipse(NamedTuple):
    """Centre and half axes in px, the angle of the first axis in degrees from +x towards +y (down)."""

    x: float
    y: float
    a: float
    b: float
    angle: float


def border_ellipse(mask):
    """The ellipse that fits the border of a mask's largest region best, in the sense of least squares.

    Where the frame cuts the region off, its edge is no border and does not count.

    Parameters
    ----------
    mask : array of uint8 {0, 1}, shape (height, width)

    Returns
    -------
    Ellipse or None
        None where fewer than five pixels of border lie inside the frame, or where what fits is more than three times as
        long as the border reaches.
    """
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    height, width = mask.shape
    regions = (contour[:, 0] for contour in contours)
    border = max(regions, key=cv2.contourArea, default=np.zeros((0, 2), np.int32))  # (points, x y)
    inner = ((border > 0) & (border < (width - 1, height - 1))).all(axis=1)
    if inner.sum() < 5:  # an ellipse has five degrees of freedom
        return None
    (x, y), diameters, angle = cv2.fitEllipse(border[inner].astype(np.float32))
    reach = np.hypot(*np.ptp(border[inner], axis=0))
    if not (np.isfinite([x, y]).all() and max(diameters) <= 3 * reach):
        return None
    return Ellipse(x, y, *(diameter / 2 + 0.5 for diameter in diameters), angle)  # pixels reach beyond their centres


def draw_ellipse(ellipse, width, height):
    """Pixels whose centres lie in an ellipse: uint8 (height, width), 0 and 1, cut off by the frame."""
    reach = max(ellipse.a, ellipse.b) + 1
    left, right = (int(np.clip(x, 0, width)) for x in (ellipse.x - reach, ellipse.x + reach + 1))
    top, bottom = (int(np.clip(y, 0, height)) for y in (ellipse.y - reach, ellipse.y + reach + 1))
    u, v = anatomy.ellipse_coordinates(ellipse, np.arange(left, right), np.arange(top, bottom)[:, None])
    mask = np.zeros((height, width), np.uint8)
    mask[top:bottom, left:right] = u * u + v * v <= 1
    return mask


def head_circumference(mask, line_half_width=phantom.LINE_HALF_WIDTH):
    """Circumference of the head that a mask covers.

    Parameters
    ----------
    mask : array of uint8 {0, 1}, shape (height, width)
    line_half_width : float
        In px. These masks hold the drawn line; the ellipse that was measured runs along its middle, so that the mask's
        border lies outside of it by this much.

    Returns
    -------
    float
        In px; 0 for an empty mask, and for one to which no ellipse can be fitted.
    """
    ellipse = border_ellipse(mask)
    if ellipse is None:
        return 0.0
    return anatomy.ellipse_perimeter(*(max(half - line_half_width, 0.5) for half in (ellipse.a, ellipse.b)))


def read_pixel_sizes(path):
    """The size of the pixels of each image, and its circumference where the table has one.

    Parameters
    ----------
    path : Path
        CSV with the columns `image_id, pixel_mm[, head_circumference_mm]`, or those of HC18's own table.

    Returns
    -------
    pandas.DataFrame
        `pixel_mm` and `head_circumference_mm` (nan where unknown), both in mm, by `image_id`.

    Raises
    ------
    FetalsegError
        If it is no such table, has a name twice, or a size that is not above 0.
    """
    try:
        table = pd.read_csv(path, dtype={name: str for name in ("image_id", "filename")})
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FetalsegError(f"{path} cannot be read as a table of pixel sizes: {reason}.") from error
    table = table.rename(columns={theirs: ours for ours, theirs in COLUMNS.items() if ours not in table.columns})
    if missing := [name for name in list(COLUMNS)[:2] if name not in table.columns]:
        wanted = " or ".join(f"'{name}'" for name in (missing[0], COLUMNS[missing[0]]))
        raise FetalsegError(f"{path} has no column {wanted}: give a row per image with its name and pixel size in mm.")
    endings = "|".join(map(re.escape, loading.SUFFIXES))
    table["image_id"] = table.image_id.str.replace(rf"(?i)({endings})$", "", regex=True)
    if table.image_id.duplicated().any():
        raise FetalsegError(f"{path} has {table.image_id[table.image_id.duplicated()].iloc[0]} twice: keep one row.")
    sizes = table.reindex(columns=list(COLUMNS)).set_index("image_id").apply(pd.to_numeric, errors="coerce")
    if not (wrong := sizes.index[~(sizes.pixel_mm.between(0, 100, inclusive="neither"))]).empty:
        raise FetalsegError(f"{path}: the pixel size of {wrong[0]} is no number between 0 and 100 mm.")
    return sizes


def find_pixel_sizes(run_dir, given="auto"):
    """A given table of pixel sizes; 'auto': the one that lies with the data of a run folder (`*pixel_size*.csv`).

    Returns
    -------
    pandas.DataFrame or None
        As `read_pixel_sizes`; None where there is no table.
    """
    if given != "auto":
        return read_pixel_sizes(project_root() / given)
    root = project_root() / read_json(run_folder(run_dir) / "data.json")["root"]
    found = sorted(root.glob("*pixel_size*.csv"))
    return read_pixel_sizes(found[0]) if found else None


def in_millimetres(table, sizes):
    """Pixel sizes and circumferences of scored images, in mm.

    Parameters
    ----------
    table : pandas.DataFrame
        With `image_id`, `circumference_px` and `truth_circumference_px`.
    sizes : pandas.DataFrame
        As `read_pixel_sizes`.

    Returns
    -------
    pandas.DataFrame
        `image_id, pixel_mm, circumference_mm, truth_circumference_mm`, a row per image that has a pixel size. The truth
        is the published circumference where the table has one, else that of the true mask.

    Raises
    ------
    FetalsegError
        If the published circumferences do not belong to the masks: the table is of other images of the same names.
    """
    known = table[table.image_id.isin(sizes.index)]
    pixel, published = (sizes.loc[known.image_id, name].to_numpy() for name in list(COLUMNS)[1:])
    own = known.truth_circumference_px.to_numpy() * pixel
    apart = np.abs(own[own > 0] / published[own > 0] - 1)  # an empty mask has no circumference to compare
    if np.isfinite(apart).any() and (median := np.nanmedian(apart)) > LARGEST_DISAGREEMENT:
        raise FetalsegError(
            f"the circumferences in the table of pixel sizes differ from those of the masks by {median:.0%} at the "
            "median: is it the table of these images, under these names?"
        )
    truth = np.where(np.isfinite(published), published, own)
    columns = {"image_id": known.image_id, "pixel_mm": pixel}
    columns |= {"circumference_mm": known.circumference_px * pixel, "truth_circumference_mm": truth}
    return pd.DataFrame(columns)


def agreement(measured, truth):
    """How far measurements are off, as HC18 reports it and as Bland and Altman (Lancet 1986;327:307-310) draw it.

    Parameters
    ----------
    measured, truth : sequence of float

    Returns
    -------
    dict
        `adf` and `adf_sd`, mean and SD of the absolute difference; `df` and `df_sd`, of the signed one, measured less
        truth; `low` and `high`, df ± 1.96 SD, between which 95 % of differences lie if they are normal.
    """
    difference = np.asarray(measured, float) - np.asarray(truth, float)
    deviation = float(difference.std(ddof=1)) if len(difference) > 1 else 0.0
    mean, absolute = float(difference.mean()), np.abs(difference)
    return {
        "adf": float(absolute.mean()),
        "adf_sd": float(absolute.std(ddof=1)) if len(difference) > 1 else 0.0,
        "df": mean,
        "df_sd": deviation,
        "low": mean - 1.96 * deviation,
        "high": mean + 1.96 * deviation,
    }


def describe_agreement(scores):
    """ADF and DF of the images whose pixel size is known, in words; None where a table of scores has no such image."""
    known = scores.dropna(subset="circumference_mm") if "circumference_mm" in scores else scores[:0]
    if known.empty:
        return None
    numbers = agreement(known.circumference_mm, known.truth_circumference_mm)
    return (
        f"head circumference of {len(known)} images: ADF {numbers['adf']:.2f} ± {numbers['adf_sd']:.2f} mm, "
        f"DF {numbers['df']:.2f} ± {numbers['df_sd']:.2f} mm"
    )
