"""Predictions at the image's own size, Dice and IoU, and how sure a mean over few examinations is."""

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from scipy import ndimage
from tqdm import tqdm

from fetalseg_helpers import anatomy, loading, preprocessing
from fetalseg_helpers.workspace import FetalsegError, bfloat16_pays, run_folder, write_json, write_png, write_table

SCORE_COLUMNS = ["image_id", "examination", "dice", "iou", "truth_pixels", "predicted_pixels"]


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


def label_regions(mask):
    """Connected regions (8 neighbours) of a mask, numbered from 1, and the number of pixels of each."""
    labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    return labels, np.bincount(labels.ravel())[1:]


def largest_component(mask):
    """Keep the largest connected region (8 neighbours) of a mask; an empty mask stays empty.

    Parameters
    ----------
    mask : array of {0, 1}, shape (height, width)

    Returns
    -------
    numpy.ndarray of uint8, same shape
    """
    labels, sizes = label_regions(mask)
    return (labels == sizes.argmax() + 1 if len(sizes) else labels > 0).astype(np.uint8)


def border_ellipse(mask):
    """The ellipse that fits the border of a region best, in the sense of least squares, as a mask; None if none does.

    Where the frame cuts the region off, its edge is no border and does not count; the ellipse is cut off there too.
    """
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    height, width = mask.shape
    border = np.concatenate([contour[:, 0] for contour in contours] or [np.zeros((0, 2), np.int32)])  # (points, x y)
    inner = ((border > 0) & (border < (width - 1, height - 1))).all(axis=1)
    if inner.sum() < 5:  # an ellipse has five degrees of freedom
        return None
    (x, y), diameters, angle = cv2.fitEllipse(border[inner].astype(np.float32))
    if not np.isfinite([x, y, *diameters]).all():
        return None
    half_axes = (diameter / 2 + 0.5 for diameter in diameters)  # pixels reach half beyond their centres
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    u, v = anatomy.ellipse_coordinates((x, y, *half_axes, angle), columns, rows)
    return (u * u + v * v <= 1).astype(np.uint8)


def fit_ellipse(mask, least_overlap=0.8, least_share=0.2):
    """Replace a mask by one ellipse: that of the region which is most like its ellipse.

    Outlines of heads are drawn as ellipses, so this smooths away what the network is unsure of along the border; and
    beside an early head there may lie a body as large as it: of the two, the head is the ellipse.

    Parameters
    ----------
    mask : array of {0, 1}, shape (height, width)
    least_overlap : float
        Dice of a region with its ellipse; where none reaches it, no region is an ellipse and the mask is kept.
    least_share : float
        Of the largest region's pixels; smaller regions are specks, and a speck is always round.

    Returns
    -------
    numpy.ndarray of uint8, same shape
    """
    mask = (np.asarray(mask) > 0).astype(np.uint8)
    labels, sizes = label_regions(mask)
    best, overlap = mask, least_overlap
    for number in np.flatnonzero(sizes >= least_share * sizes.max(initial=0)) + 1:
        region = (labels == number).astype(np.uint8)
        ellipse = border_ellipse(region)
        likeness = -1.0 if ellipse is None else dice_score(ellipse, region)
        if likeness >= overlap:
            best, overlap = ellipse, likeness
    return best


def cut(probability, threshold=0.5, keep_largest=True, ellipse=False):
    """Cut a probability map at a threshold; uint8, 0 and 1.

    With `ellipse`, one ellipse takes the mask's place (`fit_ellipse`). Else, or where no region is an ellipse, and with
    `keep_largest`, the largest region is kept.
    """
    mask = (np.asarray(probability) >= threshold).astype(np.uint8)
    fitted = fit_ellipse(mask) if ellipse else mask
    return largest_component(fitted) if keep_largest else fitted


@torch.inference_mode()
def predict_canvases(network, canvases, flip=False, batch_size=8):
    """Probability maps of images at training size.

    Parameters
    ----------
    network : torch.nn.Module
    canvases : array of uint8, shape (images, height, width)
    flip : bool
        Average over the image and its left-right mirror.
    batch_size : int

    Returns
    -------
    numpy.ndarray of float32, shape (images, height, width), 0 to 1
    """
    network.eval()
    device = next(network.parameters()).device
    maps = []
    for start in range(0, len(canvases), batch_size):
        x = torch.from_numpy(preprocessing.normalise(canvases[start : start + batch_size]))[:, None].to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16_pays(device)):
            views = [network(x), network(x.flip(-1)).flip(-1)] if flip else [network(x)]
        probability = sum(torch.sigmoid(view.float()) for view in views) / len(views)  # (batch, 1, height, width)
        maps.append(probability[:, 0].cpu().numpy())
    return np.concatenate(maps)


def predict_image(network, image, settings, flip=False):
    """Probability map of one image at its own size.

    Parameters
    ----------
    network : torch.nn.Module
    image : array of uint8, shape (height, width)
    settings : dict
        `width`, `height` and `fit` of the canvas that the network was trained on.

    Returns
    -------
    numpy.ndarray of float32, shape (height, width), 0 to 1
    """
    canvas = preprocessing.to_canvas(image, settings["width"], settings["height"], settings["fit"])
    probability = predict_canvases(network, canvas[None], flip)[0]
    return preprocessing.from_canvas(probability, image.shape[1], image.shape[0], settings["fit"])


def usable_pairs(run_dir, split="test"):
    """Rows of the manifest, with paths, that evaluation uses; in the manifest's order."""
    manifest = loading.read_manifest(run_dir)
    return manifest[manifest.image_id.isin(preprocessing.usable(run_dir, split).image_id)]


def score_pairs(network, pairs, settings, threshold=0.5, keep_largest=True, flip=False, ellipse=False, save_to=None):
    """Predict, cut and score every pair at its own size, one at a time.

    Parameters
    ----------
    pairs : pandas.DataFrame
        Rows of the manifest.
    save_to : Path, optional
        Folder for `<image_id>_pred.png`, 0/255.

    Returns
    -------
    pandas.DataFrame
        `image_id, examination, dice, iou, truth_pixels, predicted_pixels`, a row per image.
    """
    rows = []
    for pair in pairs.itertuples():
        image, truth = preprocessing.read_pair(pair.image_path, pair.mask_path)
        prediction = cut(predict_image(network, image, settings, flip), threshold, keep_largest, ellipse)
        if save_to is not None:
            write_png(Path(save_to) / f"{pair.image_id}_pred.png", prediction * np.uint8(255))
        scores = dice_score(prediction, truth), iou_score(prediction, truth)
        rows.append((pair.image_id, pair.examination, *scores, int(truth.sum()), int(prediction.sum())))
    return pd.DataFrame(rows, columns=SCORE_COLUMNS)


def bootstrap_interval(scores, examinations, draws=2000, seed=0, level=0.95):
    """Interval of the mean by drawing whole examinations with replacement (cluster bootstrap, percentiles).

    Frames of one examination resemble each other; drawing images one by one would make the interval too
    narrow (Field and Welsh, J. R. Statist. Soc. B 2007;69:369-390).

    Parameters
    ----------
    scores : sequence of float
    examinations : sequence of str
        The examination of each score.
    draws : int
    seed : int
    level : float
        Coverage, 0 to 1.

    Returns
    -------
    (float, float)
        Lower and upper end. For a single examination both are its mean.

    Raises
    ------
    ValueError
        If there is no score, or the two sequences differ in length.
    """
    if len(scores) == 0 or len(scores) != len(examinations):
        raise ValueError(f"{len(scores)} scores for {len(examinations)} examinations: one each, at least one.")
    grouped = pd.Series(np.asarray(scores, dtype=float)).groupby(np.asarray(examinations))
    sums, counts = grouped.sum().to_numpy(), grouped.count().to_numpy()
    chosen = np.random.default_rng(seed).integers(len(sums), size=(draws, len(sums)))
    means = sums[chosen].sum(axis=1) / counts[chosen].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def summarise(scores, draws=2000, seed=0):
    """Mean Dice and IoU with their 95 % intervals, and on how many images and examinations they rest."""
    summary = {}
    for name in ("dice", "iou"):
        summary[f"mean_{name}"] = round(float(scores[name].mean()), 4)
        interval = bootstrap_interval(scores[name], scores.examination, draws, seed)
        summary[f"{name}_interval_95"] = [round(end, 4) for end in interval]
    worst = scores.loc[scores.dice.idxmin()]
    summary |= {"median_dice": round(float(scores.dice.median()), 4), "worst_dice": round(float(worst.dice), 4)}
    summary |= {"worst_image": worst.image_id, "images": len(scores), "examinations": scores.examination.nunique()}
    return summary


def write_metrics(run_dir, scores, summary):
    """Write `metrics.csv`, a row per image, and `metrics.json`, the summary."""
    folder = run_folder(run_dir)
    write_table(folder / "metrics.csv", scores)
    write_json(folder / "metrics.json", json.loads(json.dumps(summary)))


def predict_folder(network, settings, images, out, threshold=0.5, keep_largest=True, flip=False, ellipse=False):
    """Predict a file, or every image below a folder, and write `<stem>_pred.png` into `out`.

    Files named `*_Annotation.png` are skipped. An image that cannot be read is reported and the rest goes on.

    Returns
    -------
    (int, list of str)
        Number of predictions written, and a sentence for each file that could not be read.

    Raises
    ------
    FetalsegError
        If there is nothing to predict, or two images would write the same file.
    """
    images, out = Path(images), Path(out)
    if images.is_file():
        paths = [images]
    else:
        files = loading.find_files(images)
        paths = list(files.path[files.kind == "image"])
        paths = [path for path in paths if not (path.parent.resolve() == out.resolve() and path.stem.endswith("_pred"))]
    if not paths:
        raise FetalsegError(f"{images} holds no image to predict: give a file or a folder of images.")
    seen = {}
    for path in paths:
        if path.stem in seen:
            twins = f"{path} and {seen[path.stem]}"
            raise FetalsegError(f"{twins} would both write {path.stem}_pred.png: predict their folders apart.")
        seen[path.stem] = path
    problems = []
    for path in tqdm(paths, desc="predict", disable=None):  # a bar on a terminal only
        try:
            image = loading.read_grey(path)
        except FetalsegError as error:
            problems.append(str(error))
            continue
        prediction = cut(predict_image(network, image, settings, flip), threshold, keep_largest, ellipse)
        write_png(out / f"{path.stem}_pred.png", prediction * np.uint8(255))
    return len(paths) - len(problems), problems
