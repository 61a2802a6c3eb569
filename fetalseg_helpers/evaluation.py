"""Scores of masks at the image's own size: overlap, borders, centroid, area and circumference."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import ndimage

from fetalseg_helpers import biometry, loading, preprocessing, surface
from fetalseg_helpers.workspace import write_png

TOLERANCE_MM = 1.0  # of the surface Dice where the pixel size is known


class Metric(NamedTuple):
    """How a score is called, its unit, and which value of it is the best."""

    label: str
    unit: str
    best: float


METRICS = {
    "dice": Metric("Dice", "", 1),
    "iou": Metric("IoU", "", 1),
    "precision": Metric("precision", "", 1),
    "recall": Metric("recall", "", 1),
    "nsd": Metric("normalised surface Dice", "", 1),
    "hd95_px": Metric("HD95", "px", 0),
    "assd_px": Metric("ASSD", "px", 0),
    "centroid_error_px": Metric("centroid error", "px", 0),
    "area_error_percent": Metric("area error", "%", 0),
    "circumference_error_percent": Metric("circumference error", "%", 0),
    "nsd_mm": Metric(f"normalised surface Dice at {TOLERANCE_MM:g} mm", "", 1),
    "hd95_mm": Metric("HD95", "mm", 0),
    "assd_mm": Metric("ASSD", "mm", 0),
    "centroid_error_mm": Metric("centroid error", "mm", 0),
    "circumference_error_mm": Metric("circumference error", "mm", 0),
}
SIZES = ("truth_pixels", "predicted_pixels", "circumference_px", "truth_circumference_px")


def overlap_counts(prediction, truth):
    """|P∩T|, |P| and |T| of two masks; raises ValueError as `dice_score` says."""
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    if prediction.shape != truth.shape:
        raise ValueError(
            f"the prediction has shape {prediction.shape}, the truth {truth.shape}: bring both to one size."
        )
    for name, mask in (("prediction", prediction), ("truth", truth)):
        if mask.dtype != bool and not np.isin(mask, (0, 1)).all():
            raise ValueError(f"the {name} has values other than 0 and 1: cut it at a threshold first.")
    prediction, truth = prediction.astype(bool), truth.astype(bool)
    return int((prediction & truth).sum()), int(prediction.sum()), int(truth.sum())


def dice_score(prediction, truth):
    """Overlap of two masks, 2|P∩T| / (|P| + |T|) (Dice 1945).

    Parameters
    ----------
    prediction, truth : array of bool or {0, 1}, shape (height, width)

    Returns
    -------
    float
        1.0 for identical masks, 0.0 for none in common. Two empty masks score 1.0.

    Raises
    ------
    ValueError
        If the shapes differ, or a value is neither 0 nor 1.

    Examples
    --------
    >>> dice_score([[0, 1, 1, 0]], [[0, 1, 0, 1]])
    0.5
    """
    both, predicted, true = overlap_counts(prediction, truth)
    return 2 * both / (predicted + true) if predicted + true else 1.0


def iou_score(prediction, truth):
    """Intersection over union, |P∩T| / |P∪T| (Jaccard 1912); Dice / (2 - Dice).

    Parameters, empty case and errors are those of `dice_score`.

    Examples
    --------
    >>> round(iou_score([[0, 1, 1, 0]], [[0, 1, 0, 1]]), 4)
    0.3333
    """
    both, predicted, true = overlap_counts(prediction, truth)
    union = predicted + true - both
    return both / union if union else 1.0


def score_masks(prediction, truth, tolerance=5.0, pixel_mm=np.nan):
    """Every score of one prediction.

    Parameters
    ----------
    prediction, truth : array of bool or {0, 1}, shape (height, width)
    tolerance : float
        Of the normalised surface Dice, in px.
    pixel_mm : float
        Size of a pixel in mm, where it is known; adds the scores in mm.

    Returns
    -------
    dict
        The scores of `METRICS`: Dice, IoU, precision (how much of the prediction is tumor) and recall (how much of the
        tumor is predicted), 0 to 1; those of `surface.surface_scores`; how far the centroid is off; how much too
        large (+) or small (-) area and circumference are, in % of the truth's. Then the sizes of both masks. Two empty
        masks agree in everything. Where one is empty, overlap is 0, distances are the frame's diagonal, and an area
        that should not be there is 100 % too large.

    Raises
    ------
    ValueError
        As `dice_score`.

    Examples
    --------
    >>> scores = score_masks([[0, 1, 1, 1]], [[0, 1, 1, 0]])
    >>> scores["precision"], scores["recall"], scores["area_error_percent"]
    (0.6666666666666666, 1.0, 50.0)
    """
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    both, predicted, true = overlap_counts(prediction, truth)
    agree = float(predicted == true)  # where a score would be 0 / 0
    known = [] if np.isnan(pixel_mm) else [TOLERANCE_MM / pixel_mm]
    distances = surface.surface_scores(prediction, truth, [tolerance, *known])
    sizes = {"truth_pixels": true, "predicted_pixels": predicted}
    for name, mask in (("circumference_px", prediction), ("truth_circumference_px", truth)):
        sizes[name] = biometry.head_circumference(mask.astype(np.uint8))
    off = float(np.hypot(*truth.shape)) * (1 - agree)
    if predicted and true:
        off = float(np.hypot(*np.subtract(*map(ndimage.center_of_mass, (prediction, truth)))))
    scores = {
        "dice": 2 * both / (predicted + true) if predicted + true else 1.0,
        "iou": both / (predicted + true - both) if predicted + true else 1.0,
        "precision": both / predicted if predicted else agree,
        "recall": both / true if true else agree,
        "nsd": distances["nsd"][0],
        "hd95_px": distances["hd95"],
        "assd_px": distances["assd"],
        "centroid_error_px": off,
        "area_error_percent": relative_error(predicted, true),
        "circumference_error_percent": relative_error(sizes["circumference_px"], sizes["truth_circumference_px"]),
    }
    if known:
        scores["nsd_mm"] = distances["nsd"][1]
        scores |= {f"{name}_mm": scores[f"{name}_px"] * pixel_mm for name in ("hd95", "assd", "centroid_error")}
    return scores | sizes


def relative_error(measured, truth):
    """How much `measured` is above (+) or below (-) `truth`, in % of it; 0 if both are 0, 100 if only the truth is."""
    return 100 * (measured - truth) / truth if truth else 100.0 * (measured > 0)


def score_table(masks, sizes=None, tolerance=5.0, over=map):
    """Score many predictions.

    Parameters
    ----------
    masks : iterable of (str, str, callable)
        Name, examination, and a function that gives (prediction, truth), both {0, 1} and of one shape; or None, and
        the image has no row.
    sizes : pandas.DataFrame, optional
        Pixel sizes, as `biometry.read_pixel_sizes`; an image that it does not have gets nan in the columns in mm.
    tolerance : float
        As for `score_masks`.
    over : callable
        `map`, or that of a pool of threads.

    Returns
    -------
    pandas.DataFrame
        A row per image: `image_id, examination`, the scores of `METRICS`, and the sizes of both masks; empty if no
        image has a row.
    """

    def score(item):
        image_id, examination, read = item
        if (both := read()) is None:
            return None
        pixel_mm = sizes.pixel_mm.get(image_id, np.nan) if sizes is not None else np.nan
        return {"image_id": image_id, "examination": examination} | score_masks(*both, tolerance, pixel_mm)

    table = pd.DataFrame([row for row in over(score, masks) if row is not None])
    if table.empty:
        return pd.DataFrame(columns=["image_id", "examination"])
    if sizes is not None:
        table = table.merge(biometry.in_millimetres(table, sizes), on="image_id", how="left")
        table["circumference_error_mm"] = table.circumference_mm - table.truth_circumference_mm
    order = ["image_id", "examination", *(name for name in METRICS if name in table.columns)]
    return table[[*order, *(name for name in table.columns if name not in order)]]


def score_pairs(predict, pairs, sizes=None, tolerance=5.0, save_to=None):
    """Predict and score every pair at its own size, one at a time.

    Parameters
    ----------
    predict : callable
        Makes the mask of an image, as `prediction.make_predictor` or `baselines.make_baselines` give it.
    pairs : pandas.DataFrame
        Rows of the manifest.
    sizes, tolerance
        As for `score_table`.
    save_to : Path, optional
        Folder for `<image_id>_pred.png`, 0/255; those of other images are deleted there.

    Returns
    -------
    pandas.DataFrame
        As `score_table`.
    """

    def masks(pair):
        image, truth = preprocessing.read_pair(pair.image_path, pair.mask_path)
        prediction = predict(image)
        if save_to is not None:
            write_png(Path(save_to) / f"{pair.image_id}_pred.png", prediction * np.uint8(255))
        return prediction, truth

    if save_to is not None:
        names = {f"{image_id}_pred.png" for image_id in pairs.image_id}
        for path in Path(save_to).glob("*_pred.png"):
            if path.name not in names:
                path.unlink()
    rows = ((pair.image_id, pair.examination, lambda pair=pair: masks(pair)) for pair in pairs.itertuples())
    return score_table(rows, sizes, tolerance)


def usable_pairs(run_dir, split="test"):
    """Rows of the manifest, with paths, that evaluation uses; in the manifest's order."""
    manifest = loading.read_manifest(run_dir)
    return manifest[manifest.image_id.isin(preprocessing.usable(run_dir, split).image_id)]
