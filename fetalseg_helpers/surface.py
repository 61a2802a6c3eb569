"""How far apart two borders lie: HD95, ASSD and normalised surface Dice.

A mask's border are those of its pixels that have a neighbour (left, right, above, below) outside of it, or lie at the
frame's edge. Distances run from the centre of each pixel of one border to the nearest of the other; both ways count.
These are the definitions of MONAI's metrics.
"""

import numpy as np
from scipy import ndimage


def border_of(mask):
    """The pixels of a mask, shape (height, width), that lie at its border; bool, same shape."""
    mask = np.asarray(mask, dtype=bool)
    return mask & ~ndimage.binary_erosion(mask)


def border_distances(prediction, truth):
    """Distances between two borders.

    Parameters
    ----------
    prediction, truth : array of bool or {0, 1}, shape (height, width), neither empty

    Returns
    -------
    (numpy.ndarray, numpy.ndarray)
        In px: of each border pixel of the prediction from the truth's border, and the other way round.

    Examples
    --------
    >>> border_distances([[1, 0, 0, 0]], [[0, 0, 1, 1]])
    (array([2.]), array([2., 3.]))
    """
    masks = [np.asarray(mask, dtype=bool) for mask in (prediction, truth)]
    both = masks[0] | masks[1]
    rows, columns = (np.flatnonzero(both.any(axis=axis)) for axis in (1, 0))
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)  # all borders lie in here
    borders = [border_of(mask[window]) for mask in masks]
    to_prediction, to_truth = (ndimage.distance_transform_edt(~border) for border in borders)
    return to_truth[borders[0]], to_prediction[borders[1]]


def surface_scores(prediction, truth, tolerances=(5.0,)):
    """Distances between the borders of two masks, summed up.

    Parameters
    ----------
    prediction, truth : array of bool or {0, 1}, shape (height, width)
    tolerances : sequence of float
        In px; how far off a border may be and still count as right.

    Returns
    -------
    dict
        `hd95` (px; the 95th percentile of the distances, of the two directions the larger; Huttenlocher et al. 1993),
        `assd` (px; their mean over both), `nsd` (a list, for each tolerance the share of both borders that lies within
        it of the other, 0 to 1; Nikolov et al. 2018). Two empty masks agree: 0, 0 and 1. Where one is empty there is
        no distance; the case counts as the worst there can be, the frame's diagonal, and an `nsd` of 0.
    """
    prediction, truth = np.asarray(prediction, dtype=bool), np.asarray(truth, dtype=bool)
    if not (prediction.any() and truth.any()):
        right = prediction.any() == truth.any()
        distance = 0.0 if right else float(np.hypot(*truth.shape))
        return {"hd95": distance, "assd": distance, "nsd": [float(right)] * len(tolerances)}
    ways = border_distances(prediction, truth)
    every = np.concatenate(ways)
    return {
        "hd95": float(max(np.percentile(way, 95) for way in ways)),
        "assd": float(every.mean()),
        "nsd": [float((every <= tolerance).mean()) for tolerance in tolerances],
    }
