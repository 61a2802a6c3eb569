"""Does 0.9 mean nine in ten? Reliability of probability maps, and whether a network doubts where it errs."""

import numpy as np
import pandas as pd
from scipy import ndimage

from fetalseg_helpers import prediction, preprocessing, surface


def near_border(truth, width):
    """Pixels within `width` px of a mask's border, inside and outside; bool, same shape. An empty mask has none."""
    border = surface.border_of(truth)
    return ndimage.distance_transform_edt(~border) <= width if border.any() else np.zeros(border.shape, bool)


def reliability(maps, truths, bins=10, width=None):
    """How often pixels are tumor that are called tumor with a certain probability.

    Parameters
    ----------
    maps : iterable of array of float, shape (height, width), 0 to 1
    truths : iterable of array of {0, 1}, same shapes
    bins : int
        Of equal width, from 0 to 1.
    width : float, optional
        Look only at pixels within so many px of the truth's border. Far from it nearly all is certain and right, and
        hides what happens where it matters.

    Returns
    -------
    pandas.DataFrame
        A row per bin that has pixels: `probability`, their mean; `share`, how many of them are tumor, 0 to 1; `pixels`.
    """
    sums = np.zeros((3, bins))
    for probability, truth in zip(maps, truths, strict=True):
        probability, truth = np.asarray(probability, dtype=float), np.asarray(truth, dtype=bool)
        chosen = near_border(truth, width) if width is not None else np.ones(truth.shape, bool)
        p, t = probability[chosen], truth[chosen]
        number = np.minimum((p * bins).astype(int), bins - 1)
        sums += [np.bincount(number, weights, bins) for weights in (p, t, None)]
    table = pd.DataFrame({"probability": sums[0], "share": sums[1], "pixels": sums[2].astype(int)})
    table = table[table.pixels > 0].reset_index(drop=True)
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
    """Probability maps of an image and of its mirror, turned back, from each network.

    Returns
    -------
    numpy.ndarray of float32, shape (2 × networks, height, width), 0 to 1
    """
    mirrored = np.ascontiguousarray(image[:, ::-1])
    views = []
    for network in networks:
        views.append(prediction.predict_image(network, image, canvas))
        views.append(prediction.predict_image(network, mirrored, canvas)[:, ::-1])
    return np.stack(views)


def disagreement(views, threshold=0.5):
    """How little the masks cut out of several views of one image agree: 1 - their mean Dice with the mean view's mask.

    Parameters
    ----------
    views : array of float, shape (views, height, width), 0 to 1
    threshold : float

    Returns
    -------
    float
        0 if all are alike, 1 if none shares a pixel with the mean.
    """
    mean = views.mean(axis=0) >= threshold
    masks = views >= threshold
    both = (masks & mean).sum(axis=(1, 2))
    sizes = masks.sum(axis=(1, 2)) + mean.sum()
    return float(1 - np.where(sizes > 0, 2 * both / np.maximum(sizes, 1), 1.0).mean())


def doubt_table(networks, pairs, canvas, scores, threshold=0.5):
    """Doubt and error of each image: `image_id, doubt, error` (1 - Dice of the scored prediction).

    Parameters
    ----------
    networks : list of torch.nn.Module
    pairs : pandas.DataFrame
        Rows of the manifest.
    canvas : dict
    scores : pandas.DataFrame
        As `evaluation.score_table`, of the same images.
    threshold : float
    """
    rows = []
    for pair in pairs.itertuples():
        image, _ = preprocessing.read_pair(pair.image_path, pair.mask_path)
        rows.append((pair.image_id, disagreement(predict_views(networks, image, canvas), threshold)))
    table = pd.DataFrame(rows, columns=["image_id", "doubt"]).merge(scores[["image_id", "dice"]], on="image_id")
    return table.assign(error=1 - table.dice).drop(columns="dice")


def risk_coverage(doubt, error):
    """The mean error that is left if only the images of least doubt are kept (Geifman and El-Yaniv 2017).

    Parameters
    ----------
    doubt, error : sequence of float
        Of each image.

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
    order = np.argsort(doubt, kind="stable")
    columns = {"risk": error[order].cumsum() / kept, "best": np.sort(error).cumsum() / kept}
    return pd.DataFrame({"coverage": kept / len(error)} | columns)
