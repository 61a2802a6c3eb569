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
    """Overlap of two masks, 2|P∩T| / (|P| + |T|) (Dice 1945): 1.0 for identical masks, 0.0 for none in common.

    Both are arrays of bool or {0, 1}, shape (height, width). Two empty masks score 1.0. Shapes that differ, or a value
    that is neither 0 nor 1, raise ValueError.

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


def tidied(mask):
    """Name and outcome (0 and 1) of each step of `REGIONS` for a mask, one after the other.

    Each knows more about heads than the one before: take all, the largest region (8 neighbours), that without holes,
    or the ellipse of the region that is most like its own: beside an early head there may lie a body as large as it.
    Regions with less than a fifth of the largest one's pixels are specks, which are always like an ellipse.
    """
    yield "every", mask
    labels, sizes = preprocessing.label_regions(mask)
    order = np.argsort(-sizes, kind="stable")
    large = order[sizes[order] >= 0.2 * sizes.max(initial=0)]
    regions = [np.uint8(labels == number + 1) for number in large] or [np.uint8(labels)]
    yield "largest", regions[0]
    yield "filled", preprocessing.fill_holes(regions[0])
    best, overlap = regions[0], 0.8  # the largest stays, where no region has this Dice with its ellipse
    for region in regions:
        ellipse = border_ellipse(region)
        if ellipse is not None:
            drawn = draw_ellipse(ellipse, *region.shape[::-1])
            likeness = dice_score(drawn, region)
            if likeness >= overlap:
                best, overlap = drawn, likeness
    yield "ellipse", best


def cut(probability, threshold=0.5, region="largest"):
    """Cut a probability map, float of shape (height, width), at a threshold, and tidy the mask: uint8, 0 and 1.

    `threshold` is the least probability that counts as tumor. `region` 'every' keeps all regions, 'largest' the largest
    one, 'filled' fills its holes too, and 'ellipse' puts one ellipse in its place; any other raises ValueError.
    """
    if region not in REGIONS:
        raise ValueError(f"region '{region}' is none of {', '.join(REGIONS)}.")
    steps = tidied(np.uint8(np.asarray(probability) >= threshold))
    return next(mask for name, mask in steps if name == region)


@torch.inference_mode()
def predict_image(network, image, canvas, flip=False):
    """Probability map of one image, uint8 of shape (height, width), at its own size: float32, 0 to 1.

    `canvas` is a dictionary with the `width`, `height` and `fit` of the canvas that the network, a torch.nn.Module, was
    trained on. With `flip`, the map is the average over the image and its left-right mirror.
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

    `predict` makes the mask of an image, as `make_predictor` gives it. `pairs` are rows of the manifest, whose
    `image_id` and `examination` are copied. Each of the `scores` takes prediction, truth and the size of a pixel in mm,
    and gives a dictionary, as `overlap_scores`. `pixel_mm`, a pandas.Series, has that size by `image_id`; it is nan
    for an image that is missing there. Predictions are saved into the folder `save_to` as `<image_id>_pred.png`, 0/255.
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
    and Welsh, J. R. Statist. Soc. B 2007;69:369-390). For a single examination both ends are its mean. `scores` and
    `examinations` (float and str) are those of each image: none at all, or lengths that differ, raise ValueError.
    `level` is the coverage, 0 to 1.
    """
    if len(scores) == 0 or len(scores) != len(examinations):
        raise ValueError(f"{len(scores)} scores for {len(examinations)} examinations: one each, at least one.")
    grouped = pd.Series(np.asarray(scores, dtype=float)).groupby(np.asarray(examinations))
    sums, counts = grouped.sum().to_numpy(), grouped.count().to_numpy()
    chosen = np.random.default_rng(seed).integers(len(sums), size=(draws, len(sums)))
    means = sums[chosen].sum(axis=1) / counts[chosen].sum(axis=1)
    return tuple(np.quantile(means, [(1 - level) / 2, (1 + level) / 2]).tolist())
