"""Every check on images, masks, pairs and splits, each with what it decides."""

import hashlib
from typing import NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from fetalseg_helpers import loading, preprocessing
from fetalseg_helpers.workspace import FetalsegError, project_root, read_json, run_folder, shown, write_table

FINDING_COLUMNS = ["image_id", "check", "severity", "detail"]


class Check(NamedTuple):
    """What a check asks, how grave a finding is, and what happens to the pair."""

    question: str
    severity: str  # 'error', 'warning' or 'note'
    decision: str  # 'left out', 'repaired' or 'kept'


CHECKS = {
    "unreadable": Check("Can both files be decoded?", "error", "left out"),
    "missing_mask": Check("Has every image an outline?", "error", "left out"),
    "orphan_mask": Check("Has every outline an image?", "error", "left out"),
    "empty_mask": Check("Is anything drawn?", "error", "left out"),
    "size_mismatch": Check("Have image and outline one size?", "error", "left out"),
    "duplicate_image": Check("Is every image in one examination only?", "error", "left out"),
    "mask_values": Check("Are all values 0 or 255?", "warning", "repaired"),
    "open_outline": Check("Does the outline close?", "warning", "repaired"),
    "split_folders_differ": Check("Do both files lie in one split folder?", "warning", "repaired"),
    "examination_across_splits": Check("Is every examination in one split?", "warning", "kept"),
    "near_border": Check("Is the centroid away from the border?", "note", "kept"),
    "touches_frame": Check("Does the region end inside the frame?", "note", "kept"),
    "intensity_difference": Check("Is the region's contrast as usual?", "note", "kept"),
    "repeated_frame": Check("Is every frame of an examination new?", "note", "kept"),
    "area_outlier": Check("Has the region a usual size?", "note", "kept"),
}
MEASURES = ["area_fraction", "centroid_x", "centroid_y", "mean_inside", "mean_outside", "difference"]


def measure_region(image, mask):
    """Size, place and brightness of a region.

    Parameters
    ----------
    image : array of uint8, shape (height, width)
    mask : array of {0, 1}, same shape, not empty

    Returns
    -------
    dict
        `area_fraction` (0 to 1 of the frame), `centroid_x` and `centroid_y` (0 left or top, 1 right or bottom),
        `mean_inside`, `mean_outside` (grey levels, 0 to 255; outside is nan for a mask that fills the frame) and
        their `difference`.
    """
    inside = np.asarray(mask, dtype=bool)
    rows, columns = np.nonzero(inside)
    mean_inside = float(image[inside].mean())
    mean_outside = float(image[~inside].mean()) if not inside.all() else float("nan")
    return {
        "area_fraction": float(inside.mean()),
        "centroid_x": float((columns.mean() + 0.5) / inside.shape[1]),
        "centroid_y": float((rows.mean() + 0.5) / inside.shape[0]),
        "mean_inside": mean_inside,
        "mean_outside": mean_outside,
        "difference": mean_inside - mean_outside,
    }


def is_near_border(centroid_x, centroid_y, fraction=0.05):
    """True where the centroid, in fractions of the frame, lies within `fraction` of an edge.

    Examples
    --------
    >>> is_near_border(0.5, 0.04), is_near_border(0.5, 0.5)
    (True, False)
    """
    return min(centroid_x, 1 - centroid_x, centroid_y, 1 - centroid_y) < fraction


def touched_edges(mask):
    """Names of the frame's edges that a mask reaches: 'left', 'right', 'top', 'bottom'."""
    edges = {"left": mask[:, 0], "right": mask[:, -1], "top": mask[0], "bottom": mask[-1]}
    return [name for name, pixels in edges.items() if np.any(pixels)]


def outliers(values, limit=3.5):
    """True where a value lies more than `limit` robust standard deviations (1.4826 × MAD) from the median.

    Nothing is an outlier among fewer than ten values, or where most values are equal.
    """
    values = np.asarray(values, dtype=float)
    if len(values) < 10:
        return np.zeros(len(values), dtype=bool)
    distance = np.abs(values - np.nanmedian(values))
    spread = 1.4826 * np.nanmedian(distance)
    return distance > limit * spread if spread > 0 else np.zeros(len(values), dtype=bool)


def inspect_pair(pair, border=0.05):
    """All checks that need one pair alone.

    Parameters
    ----------
    pair : row of `loading.load_pairs`
    border : float
        Fraction of the frame for the check `near_border`.

    Returns
    -------
    (dict, list of (str, str))
        Measurements, empty for a pair that cannot be used, and (check, detail) for each finding.
    """
    if pair.mask_path is None:
        return {}, [("missing_mask", f"{pair.image_path.name} has no outline anywhere below the data folder.")]
    if pair.image_path is None:
        return {}, [("orphan_mask", f"{pair.mask_path.name} has no image anywhere below the data folder.")]
    findings = []
    if pair.folder != pair.mask_folder:
        findings.append(("split_folders_differ", f"image in '{pair.folder}', outline in '{pair.mask_folder}'."))
    try:
        image, outline = loading.read_grey(pair.image_path), loading.read_grey(pair.mask_path)
    except FetalsegError as error:
        return {}, [*findings, ("unreadable", str(error))]
    strange = np.setdiff1d(outline, (0, 255))
    if len(strange):
        findings.append(("mask_values", f"{len(strange)} other values, such as {strange[0]}: cut at 128."))
    try:
        mask = preprocessing.fill_pair(image, outline, pair.mask_path.name)
    except FetalsegError as error:
        return {}, [*findings, ("size_mismatch" if image.shape != outline.shape else "empty_mask", str(error))]
    measured = measure_region(image, mask) | {"pixels": hashlib.sha256(image.tobytes()).hexdigest()}
    if preprocessing.is_open(outline):
        findings.append(("open_outline", "the line encloses nothing: filled by its convex hull."))
    if is_near_border(measured["centroid_x"], measured["centroid_y"], border):
        place = f"({measured['centroid_x']:.0%}, {measured['centroid_y']:.0%})"
        findings.append(("near_border", f"centroid at {place} of the frame."))
    if edges := touched_edges(mask):
        findings.append(("touches_frame", f"the region reaches the frame: {', '.join(edges)}."))
    return measured, findings


def verify_pairs(pairs, split=None, border=0.05):
    """Run every check.

    Parameters
    ----------
    pairs : pandas.DataFrame
        As `loading.load_pairs` gives them.
    split : pandas.Series, optional
        Split of each image, indexed by `image_id`, for the check on examinations.
    border : float
        Fraction of the frame for the check `near_border`.

    Returns
    -------
    findings : pandas.DataFrame
        `image_id, check, severity, detail`, the gravest checks first.
    measurements : pandas.DataFrame
        A row per usable pair, indexed by `image_id`.
    """
    found, measured = [], {}
    rows = pairs.astype(object).where(pairs.notna(), None).itertuples()
    for pair in tqdm(rows, total=len(pairs), desc="verify", disable=None):  # a bar on a terminal only
        values, findings = inspect_pair(pair, border)
        found += [(pair.image_id, *finding) for finding in findings]
        if values:
            measured[pair.image_id] = values
    measurements = pd.DataFrame.from_dict(measured, orient="index", columns=[*MEASURES, "pixels"])
    found += compare_pairs(measurements, pairs.set_index("image_id").examination)
    if split is not None:
        found += compare_splits(pairs, split)
    order = list(CHECKS)
    found.sort(key=lambda finding: (order.index(finding[1]), loading.natural_order(finding[0])))
    rows = [(image_id, check, CHECKS[check].severity, detail) for image_id, check, detail in found]
    return pd.DataFrame(rows, columns=FINDING_COLUMNS), measurements


def compare_pairs(measurements, examinations):
    """Findings that need all pairs: unusual area, unusual contrast, images that occur twice.

    A frame that is repeated inside an examination stays on one side of a split and is kept; one that occurs in two
    examinations could be in training and test at once. `examinations` maps names to examinations.
    """
    found = []
    for check, column, unit in (
        ("area_outlier", "area_fraction", "{:.1%} of the frame"),
        ("intensity_difference", "difference", "{:.1f} grey levels"),
    ):
        values = measurements[column]
        for image_id in measurements.index[outliers(values)]:
            usual = unit.format(values.median())
            found.append((image_id, check, f"{unit.format(values[image_id])}, the median is {usual}."))
    for _, same in measurements.groupby("pixels"):
        for name in same.index[1:]:
            check = "repeated_frame" if examinations[name] == examinations[same.index[0]] else "duplicate_image"
            found.append((name, check, f"the same pixels as {same.index[0]}."))
    return found


def compare_splits(pairs, split):
    """A finding for each examination with frames in more than one split, at its first frame."""
    placed = pairs.assign(split=pairs.image_id.map(split)).dropna(subset="split")
    found = []
    for _, frames in placed.groupby("examination"):
        if frames.split.nunique() > 1:
            where = ", ".join(f"{frame.image_id} in {frame.split}" for frame in frames.itertuples())
            found.append(
                (frames.image_id.iloc[0], "examination_across_splits", f"{where}: use split_by = 'examination'.")
            )
    return found


def count_findings(findings):
    """Table of all checks: the question, how many findings, how grave, what was decided."""
    counts = findings.check.value_counts()
    rows = [
        (name, check.question, int(counts.get(name, 0)), check.severity, check.decision)
        for name, check in CHECKS.items()
    ]
    return pd.DataFrame(rows, columns=["check", "question", "found", "severity", "decision"]).set_index("check")


def write_verification(run_dir, border=0.05):
    """Check the data of a run folder, write `verification.csv`; returns findings, measurements and pairs."""
    folder = run_folder(run_dir)
    manifest = loading.read_manifest(run_dir)
    pairs = loading.load_pairs(project_root() / read_json(folder / "data.json")["root"])
    findings, measurements = verify_pairs(pairs, manifest.set_index("image_id").split, border)
    write_table(folder / "verification.csv", findings)
    (folder / "verification.csv").touch()  # newer than the manifest, also where the findings are the same
    return findings, measurements, pairs


def ensure_verified(run_dir, width=None, height=None, fit=None, **data):
    """Manifest, prepared arrays and findings of a run folder; whatever is missing is made, and said so.

    Returns
    -------
    pandas.DataFrame
        The rows of the index that training and evaluation use.
    """
    preprocessing.ensure_prepared(run_dir, width, height, fit, **data)
    folder = run_folder(run_dir)
    written, manifest = folder / "verification.csv", folder / "manifest.csv"
    if not written.exists() or written.stat().st_mtime <= manifest.stat().st_mtime:  # clocks may tick in seconds
        write_verification(run_dir)
        print(f"{shown(written)} made (notebook 03 explains it).")
    return preprocessing.usable(run_dir)
