"""Scores beyond Dice and IoU, each as `evaluation.score_pairs` takes it: (prediction, truth, pixel_mm) -> dict.

Masks are arrays of bool or {0, 1}, shape (height, width); `pixel_mm` is the size of a pixel in mm, nan where unknown.
Two empty masks agree in everything. Where one is empty, overlap is 0, distances are the frame's diagonal, and what
should not be there is 100 % too large. As in MONAI's metrics, a mask's border are those of its pixels that have a
neighbour (left, right, above, below) outside of it, or lie at the frame's edge; distances run both ways, from the
centre of each border pixel to the nearest.
"""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage

from fetalseg_helpers.beyond_dice.circumference import head_circumference
from fetalseg_helpers.evaluation import overlap_counts, overlap_scores
from fetalseg_helpers.workspace import FetalsegError

TOLERANCE_MM = 1.0  # of the surface Dice where the pixel size is known
LARGEST_DISAGREEMENT = 0.03  # of published circumferences with the masks' own; HC18's is 0.001 at the median
# Of each score: `label`, how it is called, with its unit, and `best`, which value of it is the best
METRICS = dict(pd.read_csv(Path(__file__).with_name("metrics.csv"), index_col="score").iterrows())


def precision_recall(prediction, truth, pixel_mm=np.nan):
    """`precision`, how much of the prediction is tumor, and `recall`, how much of the tumor is predicted; 0 to 1."""
    both, predicted, true = overlap_counts(prediction, truth)
    agree = float(predicted == true)  # where a score would be 0 / 0
    return {"precision": both / predicted if predicted else agree, "recall": both / true if true else agree}


def border_of(mask):
    """The pixels of a mask, shape (height, width), that lie at its border; bool, same shape."""
    mask = np.asarray(mask, dtype=bool)
    return mask & ~ndimage.binary_erosion(mask)


def border_distances(prediction, truth):
    """Distances, in px, of each border pixel of the prediction from the truth's border, and the other way round.

    Prediction and truth are arrays of bool or {0, 1} of shape (height, width), neither empty; gives two numpy arrays.

    >>> border_distances([[1, 0, 0, 0]], [[0, 0, 1, 1]])
    (array([2.]), array([2., 3.]))
    """
    masks = np.asarray([prediction, truth], dtype=bool)
    (window,) = ndimage.find_objects(masks.any(axis=0).astype(int))  # all borders lie in here
    predicted, true = (border_of(mask[window]) for mask in masks)
    from_truth = ndimage.distance_transform_edt(~true)
    from_prediction = ndimage.distance_transform_edt(~predicted)
    return from_truth[predicted], from_prediction[true]


def border_scores(prediction, truth, pixel_mm=np.nan, tolerance=5.0):
    """Distances between the borders of two masks, summed up in a dictionary.

    It has `nsd` (the share of both borders that lies within the `tolerance`, in px, of the other, 0 to 1; Nikolov et
    al. 2018), `hd95_px` (the 95th percentile of the distances, of the two directions the larger; Huttenlocher et al.
    1993) and `assd_px` (their mean over both); the same in mm where the size of a pixel is known.
    """
    hd95 = assd = distance_of_empty(prediction, truth)
    distances = np.array([np.inf if assd else 0.0])  # no tolerance is as wide as from a border to none
    if np.any(prediction) and np.any(truth):
        there, back = border_distances(prediction, truth)
        distances = np.concatenate([there, back])
        hd95 = max(np.percentile(there, 95), np.percentile(back, 95))
        assd = distances.mean()
    scores = {"nsd": float((distances <= tolerance).mean())}
    if not np.isnan(pixel_mm):
        scores["nsd_mm"] = float((distances <= TOLERANCE_MM / pixel_mm).mean())
    return scores | lengths(pixel_mm, hd95=hd95, assd=assd)


def centroid_error(prediction, truth, pixel_mm=np.nan):
    """`centroid_error_px`, how far the centre of gravity is off; in mm too where the size of a pixel is known."""
    off = distance_of_empty(prediction, truth)
    if np.any(prediction) and np.any(truth):
        centres = [ndimage.center_of_mass(np.asarray(mask)) for mask in (prediction, truth)]
        off = np.hypot(*np.subtract(*centres))
    return lengths(pixel_mm, centroid_error=off)


def distance_of_empty(prediction, truth):
    """What counts as a distance where a mask is empty: 0 if both are, otherwise the frame's diagonal."""
    return np.hypot(*np.shape(truth)) if np.any(prediction) or np.any(truth) else 0.0


def lengths(pixel_mm, **in_px):
    """Lengths as scores: under their names in px, and in mm where the size of a pixel is known."""
    scores = {f"{name}_px": float(value) for name, value in in_px.items()}
    if not np.isnan(pixel_mm):
        scores |= {f"{name}_mm": float(value) * pixel_mm for name, value in in_px.items()}
    return scores


def area_error(prediction, truth, pixel_mm=np.nan):
    """`area_error_percent`, how much too large (+) or small (-) the area is, in % of the truth's."""
    _, predicted, true = overlap_counts(prediction, truth)
    return {"area_error_percent": relative_error(predicted, true)}


def circumference_error(prediction, truth, pixel_mm=np.nan):
    """`circumference_error_percent`, in % of the truth's as `area_error`; and both circumferences, in px."""
    measured = head_circumference(np.asarray(prediction, np.uint8))
    true = head_circumference(np.asarray(truth, np.uint8))
    scores = {"circumference_error_percent": relative_error(measured, true)}
    return scores | {"circumference_px": measured, "truth_circumference_px": true}


def relative_error(measured, truth):
    """How much `measured` is above (+) or below (-) `truth`, in % of it; of a truth of 0, 0 if both are, else 100."""
    return 100 * (measured - truth) / truth if truth else 100.0 * (measured > 0)


def every_score(tolerance=5.0):
    """The list of all scores of `METRICS`, for `evaluation.score_pairs`; `tolerance` as for `border_scores`."""
    borders = partial(border_scores, tolerance=tolerance)
    return [overlap_scores, precision_recall, borders, centroid_error, area_error, circumference_error]


def complete(table, sizes=None):
    """A table of scores, its columns in the order of `METRICS`, with the circumference in mm where it can be had.

    `table` is as `evaluation.score_pairs` gives it, `sizes` as `circumference.find_pixel_sizes`. Unless empty, they add
    `circumference_error_mm`, `pixel_mm`, `circumference_mm` and `truth_circumference_mm`, the published one or that of
    the true mask; nan for an image not among them. A FetalsegError says if the published
    circumferences do not belong to these masks.
    """
    if sizes is not None and not sizes.empty and "circumference_px" in table:
        pixel_mm = table.image_id.map(sizes.pixel_mm)
        published = table.image_id.map(sizes.head_circumference_mm)
        own = table.truth_circumference_px * pixel_mm
        apart = (own / published - 1).abs()[own > 0].median()  # an empty mask has no circumference to compare
        if apart > LARGEST_DISAGREEMENT:
            differ = f"differ from those of the masks by {apart:.0%} at the median: is it the table of these images"
            raise FetalsegError(f"the circumferences in the table of pixel sizes {differ}?")
        table = table.assign(pixel_mm=pixel_mm, circumference_mm=table.circumference_px * pixel_mm)
        table["truth_circumference_mm"] = published.fillna(own)
        table["circumference_error_mm"] = table.circumference_mm - table.truth_circumference_mm
    first = [name for name in ("image_id", "examination", *METRICS) if name in table.columns]
    return table[[*first, *table.columns.difference(first, sort=False)]]
