"""Masks for a folder of images."""

from pathlib import Path

import numpy as np
from tqdm import tqdm

from fetalseg_helpers import loading
from fetalseg_helpers.workspace import FetalsegError, write_png


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
