"""Does 0.9 mean nine in ten? Reliability of probability maps, and whether a network doubts where it errs."""

import numpy as np
import pandas as pd
from scipy import ndimage

from fetalseg_helpers import evaluation
from fetalseg_helpers.beyond_dice.borders import border_of

BINS = 10  # of equal width, from 0 to 1


def near_border(truth, width):
    """Pixels within `width` px of a mask's border, inside and outside; bool, same shape. An empty mask has none."""
    border = border_of(truth)
    return ndimage.distance_transform_edt(~border) <= width if border.any() else border


def reliability(maps, truths, width=None):
    """How often pixels are tumor that are called tumor with a certain probability.

    Parameters
    ----------
    maps, truths : iterable of array of float, 0 to 1, and of {0, 1}, of shape (height, width)
    width : float, optional
        Look only at pixels within so many px of the truth's border. Far from it nearly all is certain and right, and
        hides what happens where it matters.

    Returns
    -------
    pandas.DataFrame
        A row per bin that has pixels: `probability`, their mean; `share`, how many of them are tumor, 0 to 1; `pixels`.
    """
    probabilities, tumor, pixels = np.zeros((3, BINS))  # sums over each bin
    for probability, truth in zip(maps, truths, strict=True):
        probability, truth = np.asarray(probability, dtype=float), np.asarray(truth, dtype=bool)
        chosen = np.ones(truth.shape, dtype=bool) if width is None else near_border(truth, width)
        number = np.minimum((probability[chosen] * BINS).astype(int), BINS - 1)
        probabilities += np.bincount(number, probability[chosen], BINS)
        tumor += np.bincount(number, truth[chosen], BINS)
        pixels += np.bincount(number, minlength=BINS)
    table = pd.DataFrame({"probability": probabilities, "share": tumor, "pixels": pixels.astype(int)})
    table = table[pixels > 0].reset_index(drop=True)
    return table.assign(probability=table.probability / table.pixels, share=table.share / table.pixels)


def calibration_error(table):
    """Expected calibration error: the mean distance of `probability` from `share`, weighted by pixels (Guo 2017).

    Examples
    --------
    >>> calibration_error(pd.DataFrame({"probability": [0.2, 0.9], "share": [0.2, 0.7], "pixels": [100, 100]}))
    0.1
    """
    return round(float(np.average((table.probability - table.share).abs(), weights=table.pixels)), 6)


def predict_views(networks, image, canvas):
    """Probability maps of an image (height, width) and of its mirror, turned back, from each network.

    They are float32, 0 to 1, of shape (2 × networks, height, width); `canvas` is as for `evaluation.predict_image`.
    """
    mirrored = np.ascontiguousarray(image[:, ::-1])
    views = []
    for network in networks:
        views.append(evaluation.predict_image(network, image, canvas))
        views.append(evaluation.predict_image(network, mirrored, canvas)[:, ::-1])
    return np.stack(views)


def disagreement(views, threshold=0.5):
    """How little the masks cut out of several views of one image agree: 1 - their mean Dice with the mean view's mask.

    `views` are floats of shape (views, height, width), 0 to 1. If all are alike, it is 0; if none shares a pixel with
    the mean, 1.
    """
    mean = views.mean(axis=0) >= threshold
    return 1 - float(np.mean([evaluation.dice_score(view >= threshold, mean) for view in views]))


def risk_coverage(doubt, error):
    """The mean error that is left if only the images of least doubt are kept (Geifman and El-Yaniv 2017).

    Parameters
    ----------
    doubt, error : sequence of float, of each image

    Returns
    -------
    pandas.DataFrame
        A row per number of images kept: `coverage`, their share, `risk`, their mean error, and `best`, the risk if
        doubt were in the order of the errors themselves.

    Examples
    --------
    >>> risk_coverage([0.3, 0.1], [0.4, 0.2]).risk.round(2).tolist()
    [0.2, 0.3]
    """
    error = np.asarray(error, dtype=float)
    kept = np.arange(1, len(error) + 1)
    surest_first = np.argsort(doubt, kind="stable")
    risk = error[surest_first].cumsum() / kept
    best = np.sort(error).cumsum() / kept
    return pd.DataFrame({"coverage": kept / len(error), "risk": risk, "best": best})
