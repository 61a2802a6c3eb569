"""From a network to masks and scores at the image's own size: predict, cut, Dice and IoU, the mean and its interval."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fetalseg_helpers import preprocessing, workspace
from fetalseg_helpers.ellipses import border_ellipse, draw_ellipse

REGIONS = ("every", "largest", "filled", "ellipse")


def overlap_counts(prediction, truth):
    """|P∩T|, |P| and |T| of two masks; raises ValueError as `dice_score` says."""
    masks = {"prediction": np.asarray(prediction), "truth": np.asarray(truth)}
    predicted, true = (mask.astype(bool) for mask in masks.values())
    if predicted.shape != true.shape:
        raise ValueError(f"the prediction has shape {predicted.shape}, the truth {true.shape}: bring both to one size.")
    for (name, mask), binary in zip(masks.items(), (predicted, true), strict=True):
        if (mask != binary).any():
            raise ValueError(f"the {name} has values other than 0 and 1: cut it at a threshold first.")
    return tuple(int(np.count_nonzero(mask)) for mask in (predicted & true, predicted, true))


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


def overlap_scores(prediction, truth, pixel_mm):
    """Dice, IoU and the pixels of both masks: a score as `score_pairs` takes it, whose names become columns."""
    _, predicted, true = overlap_counts(prediction, truth)
    dice, iou = dice_score(prediction, truth), iou_score(prediction, truth)
    return {"dice": dice, "iou": iou, "truth_pixels": true, "predicted_pixels": predicted}


def likest_ellipse(regions):
    """Of several regions, the largest first, the ellipse of the one that is most like its own: specks always are.

    Beside an early head there may lie a body as large as it. Where no region has a Dice of 0.8, the largest stays.
    """
    best, overlap = regions[0], 0.8
    for region in regions:
        ellipse = border_ellipse(region)
        if ellipse is not None:
            drawn = draw_ellipse(ellipse, *region.shape[::-1])
            likeness = dice_score(drawn, region)
            if likeness >= overlap:
                best, overlap = drawn, likeness
    return best


def tidied(mask):
    """Name and outcome (0 and 1) of each step of `REGIONS` for a mask, one after the other.

    Each knows more about heads than the one before: take all, the largest region (8 neighbours), that without holes,
    or an ellipse. Regions with less than a fifth of the largest one's pixels are specks.
    """
    yield "every", mask
    labels, sizes = preprocessing.label_regions(mask)
    order = np.argsort(-sizes, kind="stable")
    large = order[sizes[order] >= 0.2 * sizes.max(initial=0)]
    regions = [np.uint8(labels == number + 1) for number in large] or [np.uint8(labels)]
    yield "largest", regions[0]
    yield "filled", preprocessing.fill_holes(regions[0])
    yield "ellipse", likest_ellipse(regions)


def cut(probability, threshold=0.5, region="largest"):
    """Cut a probability map at a threshold, and tidy the mask.

    Parameters
    ----------
    probability : array of float, shape (height, width)
    threshold : float
        The least probability that counts as tumor.
    region : {'every', 'largest', 'filled', 'ellipse'}
        Keep all regions; keep the largest; fill its holes too; or put one ellipse in its place.

    Returns
    -------
    numpy.ndarray of uint8, same shape, values 0 and 1
    """
    if region not in REGIONS:
        raise ValueError(f"region '{region}' is none of {', '.join(REGIONS)}.")
    steps = tidied(np.uint8(np.asarray(probability) >= threshold))
    return next(mask for name, mask in steps if name == region)


@torch.inference_mode()
def predict_image(network, image, canvas, flip=False):
    """Probability map of one image at its own size.

    Parameters
    ----------
    network : torch.nn.Module
    image : array of uint8, shape (height, width)
    canvas : dict
        `width`, `height` and `fit` of the canvas that the network was trained on.
    flip : bool
        Average over the image and its left-right mirror.

    Returns
    -------
    numpy.ndarray of float32, shape (height, width), 0 to 1
    """
    network.eval()
    workspace.spare_threads()  # another process may keep a core busy
    device = next(network.parameters()).device
    small = preprocessing.to_canvas(image, canvas["width"], canvas["height"], canvas["fit"])
    x = torch.from_numpy(preprocessing.normalise(small))[None, None].to(device)  # (1, 1, height, width)
    with torch.autocast(device.type, torch.bfloat16, enabled=workspace.bfloat16_pays(device)):
        views = [network(x), network(x.flip(-1)).flip(-1)] if flip else [network(x)]
    probability = sum(torch.sigmoid(view.float()) for view in views) / len(views)
    return preprocessing.from_canvas(probability[0, 0].cpu().numpy(), image.shape[1], image.shape[0], canvas["fit"])


def make_predictor(network, canvas, threshold=0.5, region="largest", flip=False):
    """A function that makes the mask of an image, both uint8 (height, width): `predict_image`, then `cut`."""
    return lambda image: cut(predict_image(network, image, canvas, flip), threshold, region)


def score_pairs(predict, pairs, scores=(overlap_scores,), pixel_mm=None, save_to=None):
    """Predict and score every pair at its own size, one at a time: a pandas.DataFrame with a row per image.

    Parameters
    ----------
    predict : callable
        Makes the mask of an image, as `make_predictor` gives it.
    pairs : pandas.DataFrame
        Rows of the manifest; `image_id` and `examination` are copied.
    scores : sequence of callable
        Each takes prediction, truth and the size of a pixel in mm, and gives a dictionary, as `overlap_scores`.
    pixel_mm : pandas.Series, optional
        Size of the pixels in mm by `image_id`; nan where an image is missing.
    save_to : Path, optional
        Folder for `<image_id>_pred.png`, 0/255.
    """
    rows = []
    for pair in pairs.itertuples():
        image, truth = preprocessing.read_pair(pair.image_path, pair.mask_path)
        prediction = predict(image)
        row = {"image_id": pair.image_id, "examination": pair.examination}
        for score in scores:
            row |= score(prediction, truth, np.nan if pixel_mm is None else pixel_mm.get(pair.image_id, np.nan))
        rows.append(row)
        if save_to is not None:
            workspace.write_png(Path(save_to) / f"{pair.image_id}_pred.png", np.uint8(prediction) * np.uint8(255))
    return pd.DataFrame(rows)


def bootstrap_interval(scores, examinations, draws=2000, seed=0, level=0.95):
    """Interval (low, high) of the mean by drawing whole examinations with replacement: cluster bootstrap, percentiles.

    Frames of one examination resemble each other; drawing images one by one would make the interval too narrow (Field
    and Welsh, J. R. Statist. Soc. B 2007;69:369-390). For a single examination both ends are its mean.

    Parameters
    ----------
    scores, examinations : sequence of float and of str
        Of each image. None at all, or lengths that differ, raise ValueError.
    draws, seed : int
    level : float
        Coverage, 0 to 1.
    """
    if len(scores) == 0 or len(scores) != len(examinations):
        raise ValueError(f"{len(scores)} scores for {len(examinations)} examinations: one each, at least one.")
    grouped = pd.Series(np.asarray(scores, dtype=float)).groupby(np.asarray(examinations))
    sums, counts = grouped.sum().to_numpy(), grouped.count().to_numpy()
    chosen = np.random.default_rng(seed).integers(len(sums), size=(draws, len(sums)))
    means = sums[chosen].sum(axis=1) / counts[chosen].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
