"""From a network to masks: the probability map at the image's own size, and how it is cut."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import ndimage
from tqdm import tqdm

from fetalseg_helpers import biometry, loading, preprocessing
from fetalseg_helpers.workspace import FetalsegError, bfloat16_pays, read_json, write_png


def largest_component(mask):
    """Keep the largest connected region (8 neighbours) of a mask; an empty mask stays empty.

    Parameters
    ----------
    mask : array of {0, 1}, shape (height, width)

    Returns
    -------
    numpy.ndarray of uint8, same shape
    """
    labels, sizes = preprocessing.label_regions(mask)
    return (labels == sizes.argmax() + 1 if len(sizes) else labels > 0).astype(np.uint8)


def fill_holes(mask):
    """Keep the largest region and fill what it encloses; uint8, 0 and 1."""
    return ndimage.binary_fill_holes(largest_component(mask)).astype(np.uint8)


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
    labels, sizes = preprocessing.label_regions(mask)
    best, overlap = mask, least_overlap
    for number in np.flatnonzero(sizes >= least_share * sizes.max(initial=0)) + 1:
        region = (labels == number).astype(np.uint8)
        ellipse = biometry.border_ellipse(region)
        if ellipse is None:
            continue
        drawn = biometry.draw_ellipse(ellipse, *mask.shape[::-1])
        likeness = 2 * np.count_nonzero(drawn & region) / max(1, np.count_nonzero(drawn) + np.count_nonzero(region))
        if likeness >= overlap:
            best, overlap = drawn, likeness
    return best


def one_ellipse(mask):
    """`fit_ellipse`; where no region is an ellipse, the largest as it is."""
    return largest_component(fit_ellipse(mask))


THRESHOLDS = tuple(round(0.1 + 0.05 * step, 2) for step in range(17))  # 0.1 to 0.9
# What becomes of the regions of a mask, in words: each step knows more about heads than the one before.
REGIONS = {
    "every": lambda mask: mask,
    "largest": largest_component,
    "filled": fill_holes,
    "ellipse": one_ellipse,
}


def cut(probability, threshold=0.5, region="largest"):
    """Cut a probability map at a threshold, and tidy the mask.

    Parameters
    ----------
    probability : array of float, shape (height, width)
    threshold : float
        The least probability that counts as tumor.
    region : {'every', 'largest', 'filled', 'ellipse'}
        Leave all regions as they are; keep the largest; fill its holes too; or put one ellipse in the mask's place.

    Returns
    -------
    numpy.ndarray of uint8, same shape, values 0 and 1
    """
    return REGIONS[region]((np.asarray(probability) >= threshold).astype(np.uint8))


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


def predict_image(network, image, canvas, flip=False):
    """Probability map of one image at its own size.

    Parameters
    ----------
    network : torch.nn.Module
    image : array of uint8, shape (height, width)
    canvas : dict
        `width`, `height` and `fit` of the canvas that the network was trained on.

    Returns
    -------
    numpy.ndarray of float32, shape (height, width), 0 to 1
    """
    small = preprocessing.to_canvas(image, canvas["width"], canvas["height"], canvas["fit"])
    probability = predict_canvases(network, small[None], flip)[0]
    return preprocessing.from_canvas(probability, image.shape[1], image.shape[0], canvas["fit"])


def make_predictor(network, canvas, threshold=0.5, region="largest", flip=False):
    """A function that makes the mask of an image (height, width), both uint8, at the image's own size."""
    return lambda image: cut(predict_image(network, image, canvas, flip), threshold, region)


def score_cuts(network, pairs, canvas, flip=False, thresholds=THRESHOLDS):
    """Mean Dice of every threshold with every step of `REGIONS`, at the images' own size.

    To choose among them is a part of training: give validation images, and score the test images once, afterwards.

    Parameters
    ----------
    pairs : pandas.DataFrame
        Rows of the manifest.

    Returns
    -------
    pandas.DataFrame
        A row per threshold, a column per step.
    """
    total = np.zeros((len(thresholds), len(REGIONS)))
    for pair in pairs.itertuples():
        image, truth = preprocessing.read_pair(pair.image_path, pair.mask_path)
        probability = predict_image(network, image, canvas, flip)
        for row, threshold in enumerate(thresholds):
            for column, region in enumerate(REGIONS):
                mask = cut(probability, threshold, region)
                both = np.count_nonzero(mask & truth)
                total[row, column] += 2 * both / (np.count_nonzero(mask) + np.count_nonzero(truth))
    return pd.DataFrame(total / len(pairs), index=pd.Index(thresholds, name="threshold"), columns=list(REGIONS))


def choose_cut(table, threshold=0.0, region="chosen"):
    """The threshold and the step of the highest mean Dice; what is given is kept.

    Differences below 0.0001 are none: then the threshold nearest to 0.5 is taken, and the simpler step.

    Parameters
    ----------
    table : pandas.DataFrame
        As `score_cuts`.
    threshold : float
        0 leaves the choice to the table.
    region : str
        'chosen' leaves the choice to the table.

    Returns
    -------
    (float, str)
    """
    regions = list(table.columns) if region == "chosen" else [region]
    near = table.index if not threshold else [min(table.index, key=lambda value: abs(value - threshold))]
    dice = {(value, step): table.loc[value, step] for value in near for step in regions}
    even = [cut for cut in dice if dice[cut] > max(dice.values()) - 0.0001]
    best, step = min(even, key=lambda cut: (abs(cut[0] - 0.5), regions.index(cut[1])))
    return float(threshold or best), step


def frozen_cut(checkpoint, state):
    """How the evaluation of a run cut its maps, as arguments for `make_predictor`; what is usual where there is none.

    Parameters
    ----------
    checkpoint : str or Path
        Beside it lies the run's `metrics.json`, which counts if it is of these very weights.
    state : dict
        What was loaded from there.

    Returns
    -------
    dict
        `threshold`, `region`, `flip`.
    """
    metrics = read_json(Path(checkpoint).parent / "metrics.json")
    if metrics.get("checkpoint_sha256") != state["sha256"]:
        return {"threshold": 0.5, "region": "largest", "flip": False}
    return {"threshold": metrics["threshold"], "region": metrics["region"], "flip": metrics["parameters"]["flip"]}


def predict_folder(predict, images, out):
    """Predict a file, or every image below a folder, and write `<stem>_pred.png` into `out`.

    Files named `*_Annotation.png` are skipped. An image that cannot be read is reported and the rest goes on.

    Parameters
    ----------
    predict : callable
        As `make_predictor` gives it.
    images, out : str or Path

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
        write_png(out / f"{path.stem}_pred.png", predict(image) * np.uint8(255))
    return len(paths) - len(problems), problems
