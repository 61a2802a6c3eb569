"""Score a folder of predicted masks, whoever made them, against a folder of true ones."""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from fetalseg_helpers import biometry, evaluation, loading, preprocessing, summaries
from fetalseg_helpers.workspace import FetalsegError, shown, write_json, write_table

ENDINGS = (
    r"_(?:pred|prediction|predicted|mask|seg|segmentation|annotation)$"  # of a file's stem, beyond the image's name
)
PROBLEM_COLUMNS = ["image_id", "problem", "file", "detail"]
UNSCORED = ("missing", "twice", "misshapen", "unreadable")  # a mask with one of these has no score


def list_predictions(folder):
    """Files below a folder by the name of their image; one named `*_pred` or the like goes before the image itself.

    Returns
    -------
    dict of str to list of Path
    """
    named, bare = {}, {}
    for path in loading.find_files(folder).path:
        name = re.sub(ENDINGS, "", path.stem, flags=re.IGNORECASE)
        (bare if name == path.stem else named).setdefault(name, []).append(path)
    return bare | named


def list_truths(folder):
    """Mask files below a folder by the name of their image.

    Where there are outlines (`*_Annotation`), they are the masks, as the course pairs them; else files named `*_mask`
    or the like; else all.
    """
    files = loading.find_files(folder)
    if (files.kind == "outline").any():
        pairs = loading.match_pairs(files).dropna(subset="mask_path")
        return {pair.image_id: [pair.mask_path] for pair in pairs.itertuples()}
    if files.stem.str.contains(ENDINGS, case=False, regex=True).any():
        named = [path for path in files.path if re.search(ENDINGS, path.stem, re.IGNORECASE)]
    else:
        named = list(files.path)
    found = {}
    for path in named:
        found.setdefault(re.sub(ENDINGS, "", path.stem, flags=re.IGNORECASE), []).append(path)
    return found


def read_mask(path):
    """A mask file as 0 and 1, and whether it had grey values in between, which are cut at 128.

    A file of two values is background and mask, whatever they are: 0 and 255, 0 and 1, 0 and 7. One value above 0
    alone covers the frame.
    """
    image = loading.read_grey(path)
    values = np.flatnonzero(np.bincount(image.ravel(), minlength=256))
    if len(values) > 2:
        return preprocessing.binarise(image), True
    return (image == values[-1]).astype(np.uint8) * (values[-1] > 0), False


def read_truth(path):
    """A true mask, filled where it is drawn as an outline; one without any pixel is an empty mask, not an error."""
    mask, _ = read_mask(path)
    return preprocessing.fill_outline(mask * np.uint8(255)) if mask.any() else mask


def pair_up(predictions, masks):
    """Match predictions and masks by name; those that have no partner, or two, are problems.

    Returns
    -------
    (list of (str, Path, Path), list of tuple)
        Name, prediction and mask; and a row of `PROBLEM_COLUMNS` for each file that cannot be matched.
    """
    found, truths, problems, matched = list_predictions(predictions), list_truths(masks), [], []
    for name in sorted(set(found) | set(truths), key=lambda name: (loading.natural_order(name), name)):
        mine, theirs = found.get(name, []), truths.get(name, [])
        if not mine:
            problems.append((name, "missing", shown(theirs[0]), "has no prediction"))
        elif not theirs:
            problems += [(name, "extra", shown(path), "has no mask to be scored against") for path in mine]
        elif len(mine) + len(theirs) > 2:
            others = ", ".join(shown(path) for path in (mine if len(mine) > 1 else theirs)[1:])
            problems.append((name, "twice", shown((mine if len(mine) > 1 else theirs)[0]), f"is there again: {others}"))
        else:
            matched.append((name, mine[0], theirs[0]))
    return matched, problems


def read_both(name, mine, theirs):
    """Prediction and truth of one image; or None and why not; and what should be known about the prediction."""
    problems = []
    try:
        path = mine
        prediction, grey = read_mask(mine)
        path = theirs
        truth = read_truth(theirs)
    except FetalsegError as error:
        return None, [(name, "unreadable", shown(path), str(error))]
    if prediction.shape != truth.shape:
        sizes = " but the mask ".join(f"{width} × {height}" for height, width in (prediction.shape, truth.shape))
        return None, [(name, "misshapen", shown(mine), f"is {sizes}")]
    if grey:
        problems.append((name, "grey values", shown(mine), "has more than two values, and was cut at 128"))
    if prediction.any() and preprocessing.fill_outline(prediction * np.uint8(255)).sum() > 3 * prediction.sum():
        problems.append((name, "outline", shown(mine), "looks like an outline, and was scored as it is: fill it"))
    return (prediction, truth), problems


def score_folder(predictions, masks, sizes=None, tolerance=5.0):
    """Score every prediction that has a mask.

    Parameters
    ----------
    predictions, masks : Path
        Folders, searched at any depth. A prediction has its image's name, or that and `_pred`, `_mask` or the like.
        Masks may be filled, or outlines as the data set has them.
    sizes : pandas.DataFrame, optional
        Pixel sizes, as `biometry.read_pixel_sizes`.
    tolerance : float
        Of the normalised surface Dice, in px.

    Returns
    -------
    (pandas.DataFrame, pandas.DataFrame)
        Scores as `evaluation.score_table`; and the problems: `image_id, problem, file, detail`, where `problem` is
        missing, extra, twice, misshapen, unreadable, grey values or outline.

    Raises
    ------
    FetalsegError
        If a folder is missing or empty, or no prediction can be scored.
    """
    matched, problems = pair_up(Path(predictions), Path(masks))
    examinations = loading.find_examinations([name for name, _, _ in matched])

    def read(item):
        both, noticed = read_both(*item)
        problems.extend(noticed)
        return both

    items = [(item[0], examinations[item[0]], lambda item=item: read(item)) for item in matched]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # reading and distances run outside of Python's lock
        scores = evaluation.score_table(items, sizes, tolerance, over=pool.map)
    if scores.empty:
        first = f": {problems[0][2]} {problems[0][3]}" if problems else ""
        raise FetalsegError(f"no prediction in {predictions} can be scored against {masks}{first}.")
    problems.sort(key=lambda row: loading.natural_order(row[0]))
    return scores, pd.DataFrame(problems, columns=PROBLEM_COLUMNS)


def write_scores(out, scores, problems, tolerance):
    """Write `metrics.csv`, `metrics.json` and `problems.csv`; returns the summary."""
    summary = summaries.summarise(scores)
    unscored = int(problems.problem.isin(UNSCORED).sum())
    summary |= {"masks": len(scores) + unscored, "unscored": unscored, "tolerance_px": tolerance}
    if unscored:
        summary["mean_dice_unscored_as_0"] = round(scores.dice.sum() / (len(scores) + unscored), 4)
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FetalsegError(f"{out} cannot be made a folder ({error.strerror}): choose another --out.") from error
    write_table(Path(out) / "metrics.csv", scores)
    write_table(Path(out) / "problems.csv", problems)
    write_json(Path(out) / "metrics.json", summary)
    return summary


def report(scores, problems, summary):
    """Lines for a terminal: the problems, the summary, the circumference in mm where it is known."""
    for problem in problems.itertuples():
        yield f"{problem.problem:<12}{problem.file} {problem.detail}"
    yield summaries.summary_table(summary).to_string()
    yield (
        f"{summary['images']} images of {summary['examinations']} examinations; all pixels pooled: "
        f"Dice {summary['pooled_dice']:.4f}, IoU {summary['pooled_iou']:.4f}"
    )
    if "circumference_mm" in scores and len(known := scores.dropna(subset="circumference_mm")):
        numbers = biometry.agreement(known.circumference_mm, known.truth_circumference_mm)
        yield (
            f"head circumference of {len(known)} images: ADF {numbers['adf']:.2f} ± {numbers['adf_sd']:.2f} mm, "
            f"DF {numbers['df']:.2f} ± {numbers['df_sd']:.2f} mm"
        )
