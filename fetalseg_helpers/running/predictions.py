"""Masks for a folder of images."""

from pathlib import Path

import numpy as np
from tqdm import tqdm

from fetalseg_helpers import loading
from fetalseg_helpers.workspace import FetalsegError, read_json, write_png


def frozen_cut(checkpoint, state):
    """Threshold, region and flip of a run's evaluation, as keywords for `make_predictor`; the usual ones without it.

    The evaluation is the `metrics.json` beside the file `checkpoint`; it counts if it is of the very weights in
    `state`, which was loaded from there.
    """
    metrics = read_json(Path(checkpoint).parent / "metrics.json")
    if metrics.get("checkpoint_sha256") != state["sha256"]:
        return {"threshold": 0.5, "region": "largest", "flip": False}
    return {"threshold": metrics["threshold"], "region": metrics["region"], "flip": metrics["parameters"]["flip"]}


def predict_folder(predict, images, out):
    """Predict a file, or every image below a folder, and write `<stem>_pred.png` into `out`.

    `predict` is as `make_predictor` gives it. Outlines, predictions of before and files of other formats are passed
    over. Returns the number of predictions written, a sentence for each file that could not be read, and one for each
    kind of files that was passed over. A FetalsegError says that there is nothing to predict, or that two images would
    write the same file.
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
    problems = []
    for path in tqdm(paths, desc="predict", disable=None):  # a bar on a terminal only
        try:
            image = loading.read_grey(path)
        except FetalsegError as error:
            problems.append(str(error))
        else:
            write_png(out / f"{path.stem}_pred.png", predict(image) * np.uint8(255))
    return len(paths) - len(problems), problems, passed
