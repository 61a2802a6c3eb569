"""Masks for a folder of images, the head's ellipse in each, and how far the network doubts it."""

from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from fetalseg_helpers import evaluation, loading
from fetalseg_helpers.ellipses import LINE_HALF_WIDTH, border_ellipse, ellipse_perimeter
from fetalseg_helpers.training import PRETRAINED
from fetalseg_helpers.workspace import FetalsegError, cv2, read_json, write_png

ELLIPSE = ("x_px", "y_px", "a_px", "b_px", "angle", "circumference_px")
DOUBTFUL = 0.08  # more doubt than this is told
ORANGE = (26, 140, 255)  # blue, green, red: that of predictions in every figure


def frozen_cut(checkpoint, state):
    """Threshold, region and flip of a run's evaluation, as keywords for `make_predictor`; the usual ones without it.

    The evaluation is the `metrics.json` beside the file `checkpoint`; it counts if it is of the very weights in
    `state`, which was loaded from there. The network that ships has its own.
    """
    if Path(checkpoint).resolve() == PRETRAINED.resolve():
        return {"threshold": 0.5, "region": "ellipse", "flip": True}
    metrics = read_json(Path(checkpoint).parent / "metrics.json")
    if metrics.get("checkpoint_sha256") != state["sha256"]:
        return {"threshold": 0.5, "region": "largest", "flip": False}
    return {"threshold": metrics["threshold"], "region": metrics["region"], "flip": metrics["parameters"]["flip"]}


def doubt(probability, mask):
    """How far a network doubts its own mask, 0 to 1: 1 minus the Dice that its probability map expects of it.

    Of the pixels inside, that of each is right with its probability; 1 where nothing is found, and nothing was likely.
    """
    return 1 - 2 * float(probability[mask > 0].sum()) / max(float(probability.sum() + mask.sum()), 1e-6)


def measure_head(mask):
    """The ellipse along the middle of the line around a 0/1 mask; nan where none can be fitted.

    Centre, the longer and the shorter half axis and the circumference in px; the angle of the longer axis in degrees
    from +x to +y (down), 0 to 180.
    """
    if (ellipse := border_ellipse(mask)) is None:
        return dict.fromkeys(ELLIPSE, np.nan)
    b, a = (max(half - LINE_HALF_WIDTH, 0.5) for half in sorted(ellipse[2:4]))
    angle = (ellipse.angle + (0 if ellipse.a >= ellipse.b else 90)) % 180
    return dict(zip(ELLIPSE, (ellipse.x, ellipse.y, a, b, angle, ellipse_perimeter(a, b)), strict=True))


def predict_folder(make_map, images, out, cut=evaluation.cut, overlay=False):
    """Predict a file, or every image below a folder, and write `<stem>_pred.png` into `out`.

    `make_map` makes the probability map of an image, `cut` its mask; `overlay` adds `<stem>_overlay.png`, the image and
    the mask's border in orange. Outlines, predictions of before and files of other formats are passed over. Returns a
    table with a row for each prediction (`image_id`, what `measure_head` and `doubt` give), a sentence for each file
    that could not be read, and one for each kind of files that was passed over. A FetalsegError says that there is
    nothing to predict, or that two images would write the same file.
    """
    paths, passed = [images], []
    if not images.is_file():
        files = loading.find_files(images)
        paths = list(files.path[files.kind == "image"])
        counts = files.kind.value_counts()
        reasons = {"outline": "masks, by their names"} | loading.ASIDE
        passed = [f"{counts[kind]} files passed over: {why}." for kind, why in reasons.items() if kind in counts]
    if not paths:
        raise FetalsegError(f"{images} holds no image to predict: give a file or a folder of images.")
    seen = {}
    for path in paths:
        one = seen.setdefault(path.stem, path)
        if one is not path:
            raise FetalsegError(f"{path} and {one} would both write {path.stem}_pred.png: predict their folders apart.")
    rows, problems = [], []
    for path in tqdm(paths, desc="predict", disable=None):  # a bar on a terminal only
        try:
            image = loading.read_grey(path)
        except FetalsegError as error:
            problems.append(str(error))
            continue
        probability = make_map(image)
        mask = cut(probability)
        write_png(out / f"{path.stem}_pred.png", mask * np.uint8(255))
        if overlay:
            contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
            drawn = cv2.drawContours(cv2.cvtColor(image, cv2.COLOR_GRAY2BGR), contours, -1, ORANGE, 2)
            write_png(out / f"{path.stem}_overlay.png", drawn)
        rows.append({"image_id": path.stem} | measure_head(mask) | {"doubt": doubt(probability, mask)})
    return pd.DataFrame(rows, columns=["image_id", *ELLIPSE, "doubt"]), problems, passed


def describe(table):
    """Lines about what `predict_folder` found: images without a head, and those whose head is in doubt."""
    empty = table.doubt == 1  # as for no other mask
    doubtful = ~empty & ((table.doubt > DOUBTFUL) | table.x_px.isna())
    for some, said in ((empty, "without a head"), (doubtful, "in doubt, look at them")):
        if some.any():
            names = ", ".join(table.image_id[some][:10])
            yield f"{some.sum()} images {said}: {names}{' ...' if some.sum() > 10 else ''}"
