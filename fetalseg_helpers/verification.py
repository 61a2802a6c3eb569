"""Every check on images, masks, pairs and splits, each with what it decides."""

import hashlib
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
from tqdm import tqdm

from fetalseg_helpers import loading, preprocessing, workspace
from fetalseg_helpers.workspace import FetalsegError, cv2, project_root, read_json, run_folder

FINDING_COLUMNS = ["image_id", "check", "severity", "detail"]
MEASURES = ["area_fraction", "centroid_x", "centroid_y", "mean_inside", "mean_outside", "difference"]
OF_FILES = ["pixels", "mask", "filled", "size"]  # hashes of both, whether the mask was filled, width and height
Check = namedtuple("Check", "question severity decision remedy")  # error, warning, note; left out, repaired, kept
TABLE = pd.read_csv(Path(__file__).with_name("checks.csv"), index_col="check")  # the gravest first
CHECKS = {check: Check(*row) for check, *row in TABLE.itertuples()}


def measure_region(image, mask):
    """Size, place and brightness of a region: uint8 `image` and 0/1 `mask`, which is not empty, both (height, width).

    Gives `area_fraction` (0 to 1 of the frame), `centroid_x`, `centroid_y` (0 left or top, 1 right or bottom),
    `mean_inside`, `mean_outside` (grey levels, 0 to 255; outside is nan for a mask that fills the frame) and their
    `difference` as a dictionary.
    """
    moments = cv2.moments(mask, binaryImage=True)  # m00 the area, m10 and m01 the sums of x and y, in pixels
    area, total, inside = moments["m00"], cv2.sumElems(image)[0], cv2.sumElems(image * mask)[0]
    centroid = (moments["m10"] / area + 0.5) / mask.shape[1], (moments["m01"] / area + 0.5) / mask.shape[0]
    mean_inside = inside / area
    mean_outside = (total - inside) / (mask.size - area) if area < mask.size else np.nan
    values = [area / mask.size, *centroid, mean_inside, mean_outside, mean_inside - mean_outside]
    return dict(zip(MEASURES, map(float, values), strict=True))


def touched_edges(mask):
    """Names of the frame's edges that a mask reaches: 'left', 'right', 'top', 'bottom'."""
    edges = {"left": mask[:, 0], "right": mask[:, -1], "top": mask[0], "bottom": mask[-1]}
    return [name for name, pixels in edges.items() if np.any(pixels)]


def outliers(values):
    """True where a value lies more than 3.5 robust standard deviations (1.4826 × MAD) from the median.

    Nothing is an outlier among fewer than ten values, or where most values are equal.
    """
    values = pd.Series(values, dtype=float)
    distance = (values - values.median()).abs()
    spread = 1.4826 * distance.median()
    return ((distance > 3.5 * spread) & (spread > 0) & (len(values) >= 10)).to_numpy()


def inspect_pair(pair, border=0.05, negatives=False):
    """Findings (check, detail) about one row of `loading.load_pairs` alone; before them its measurements, if usable."""
    if pair.problem:
        return {}, [(pair.check, pair.problem)]
    if pair.mask_path is None:
        return {}, [("missing_mask", f"{pair.image_path.name} has no outline anywhere below the data folder.")]
    if pair.image_path is None:
        return {}, [("orphan_mask", f"{pair.mask_path.name} has no image anywhere below the data folder.")]
    findings = []
    if pair.origin:
        findings.append(("repeated_name", "other images have this name in other folders: told apart by the folder's."))
    if pair.folder != pair.mask_folder:
        findings.append(("split_folders_differ", f"image in '{pair.folder}', outline in '{pair.mask_folder}'."))
    if len(pair.files) > 2:
        findings.append(("copies", f"{len(pair.files) - 2} more files have the same content: {pair.files[-1]}."))
    try:
        image, (outline, values) = loading.read_grey(pair.image_path), loading.read_mask(pair.mask_path)
    except FetalsegError as error:
        return {}, [*findings, ("unreadable", str(error))]
    if values:
        findings.append(("mask_values", f"{values}."))
    try:
        mask = preprocessing.fill_pair(image, outline, pair.mask_path.name)
    except FetalsegError as error:
        check = "inverted_mask" if image.shape == outline.shape else "size_mismatch"
        return {}, [*findings, (check, str(error))]
    pixels, drawn = (hashlib.sha256(array).hexdigest() for array in (image.tobytes(), np.packbits(mask)))
    measured = {"pixels": pixels, "mask": drawn, "size": image.shape[::-1]}
    if not mask.any():
        empty = ("negative" if negatives else "empty_mask"), f"{pair.mask_path.name} is empty."
        return measured if negatives else {}, [*findings, empty]
    filled = np.count_nonzero(mask) == np.count_nonzero(outline)
    measured |= measure_region(image, mask) | {"filled": filled}
    if preprocessing.is_open(outline, mask):
        findings.append(("open_outline", "the line encloses nothing: filled by its convex hull."))
    if filled and mask.sum() < 0.5 * cv2.contourArea(preprocessing.convex_hull(mask)):
        findings.append(("sparse_mask", "less than half of its convex hull: a drawing that is to be filled first?"))
    x, y = measured["centroid_x"], measured["centroid_y"]
    if min(x, 1 - x, y, 1 - y) < border:
        findings.append(("near_border", f"centroid at ({x:.0%}, {y:.0%}) of the frame."))
    if edges := touched_edges(mask):
        findings.append(("touches_frame", f"the region reaches the frame: {', '.join(edges)}."))
    return measured, findings


def verify_pairs(pairs, split=None, border=0.05, negatives=False):
    """Run every check on `pairs`, as `loading.load_pairs` gives them; returns findings and measurements.

    `split`, a Series indexed by `image_id`, is for the check on examinations; `border` is the fraction of the frame for
    `near_border`; with `negatives`, empty masks are kept. Findings have the columns `image_id, check, severity,
    detail`, the gravest checks first; measurements a row per usable pair with a region, indexed by `image_id`.
    """
    found, measured = [], {}
    with ThreadPoolExecutor(joblib.cpu_count()) as pool:  # decoding runs outside of Python's lock
        inspected = pool.map(partial(inspect_pair, border=border, negatives=negatives), pairs.itertuples())
        inspected = tqdm(inspected, total=len(pairs), desc="verify", disable=None)  # a bar on a terminal only
        for image_id, (values, findings) in zip(pairs.image_id, inspected, strict=True):
            found += [(image_id, *finding) for finding in findings]
            if values:
                measured[image_id] = values
    measurements = pd.DataFrame.from_dict(measured, orient="index", columns=[*MEASURES, *OF_FILES])
    found += compare_pairs(pairs, split, measurements)
    order = list(CHECKS)
    found.sort(key=lambda finding: (order.index(finding[1]), loading.natural_order(finding[0])))
    rows = [(image_id, check, CHECKS[check].severity, detail) for image_id, check, detail in found]
    return pd.DataFrame(rows, columns=FINDING_COLUMNS), measurements.dropna(subset="area_fraction")


def compare_pairs(pairs, split, measurements):
    """Findings that need all pairs: unusual area or contrast, images that occur twice, examinations in two splits.

    A frame repeated inside an examination stays on one side of a split; in two, it could be in training and test.
    """
    found = []
    for check, column, form in (
        ("area_outlier", "area_fraction", "{:.1%} of the frame"),
        ("intensity_difference", "difference", "{:.1f} grey levels"),
    ):
        values = measurements[column]
        usual = form.format(values.median())
        for image_id, value in values[outliers(values)].items():
            found.append((image_id, check, f"{form.format(value)}, the median is {usual}."))
    filled = measurements.filled.dropna().astype(bool)
    usual = filled.mean() > 0.5
    check, detail = ("line_among_filled", "drawn as a line") if usual else ("filled_among_lines", "filled already")
    found += [(image_id, check, f"{detail}, unlike most masks here.") for image_id in filled[filled != usual].index]
    examinations = pairs.set_index("image_id").examination
    for first, *others in measurements.groupby("pixels").groups.values():
        for image_id in others:
            check = "repeated_frame" if examinations[image_id] == examinations[first] else "duplicate_image"
            same = measurements["mask"][image_id] == measurements["mask"][first]
            found.append((image_id, check, f"the same pixels as {first}{'.' if same else ', but another mask.'}"))
            if not same and check == "duplicate_image":  # nobody knows which is right
                found.append((first, check, f"the same pixels as {image_id}, but another mask."))
    placed = pairs.assign(split=pairs.image_id.map({} if split is None else split)).dropna(subset="split")
    for _, frames in placed.groupby("examination"):
        if frames.split.nunique() > 1:
            where = ", ".join(frames.image_id + " in " + frames.split)
            detail = f"{where}: use split_by = 'examination'."
            found.append((frames.image_id.iloc[0], "examination_across_splits", detail))
    return found


def write_verification(run_dir, border=0.05):
    """Check the data of a run folder, write `verification.csv`; returns findings, measurements and pairs."""
    with workspace.locked(run_dir) as folder:
        manifest = loading.read_manifest(run_dir)
        data = read_json(folder / "data.json")
        pairs = loading.load_pairs(project_root() / data["root"], data["examinations"])
        split, negatives = manifest.set_index("image_id").split, data.get("negatives", False)
        findings, measurements = verify_pairs(pairs, split, border, negatives)
        (folder / "verification.json").unlink(missing_ok=True)  # written last, it vouches for the findings
        workspace.write_table(folder / "verification.csv", findings)
        made = {"border": border, "source": loading.source(run_dir), "files": int(pairs.files.map(len).sum())}
        workspace.write_json(folder / "verification.json", made)
    return findings, measurements, pairs


def usable_pairs(run_dir, split=None):
    """The pairs that training and evaluation use: all, or those of a split ('train', 'valid' or 'test').

    Rows of the manifest, paths absolute, with `row`, the position in the prepared arrays. Left out are those that could
    not be prepared and those with a finding of severity `error` in `verification.csv`. If none is left, a FetalsegError
    says so.
    """
    pairs = loading.read_manifest(run_dir)
    pairs["row"] = range(len(pairs))
    folder = run_folder(run_dir)
    prepared = read_json(folder / "prepared" / "settings.json")
    pairs = pairs[~pairs.image_id.isin(prepared.get("problems", {}))]
    if (folder / "verification.csv").exists():
        findings = pd.read_csv(folder / "verification.csv", **loading.AS_TEXT)
        pairs = pairs[~pairs.image_id.isin(findings.image_id[findings.severity == "error"])]
    if split is not None:
        pairs = pairs[pairs.split == split]
    if pairs.empty:
        where = f" is in the split '{split}'" if split else ""
        raise FetalsegError(f"no usable image{where}: give more data or another seed.")
    return pairs
