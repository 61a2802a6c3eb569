"""Score a folder of predicted masks, whoever made them, against a folder of true ones."""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from fetalseg_helpers import biometry, evaluation, loading, preprocessing, summaries
from fetalseg_helpers.prediction import largest_component
from fetalseg_helpers.workspace import FetalsegError, shown, write_json, write_table

PREDICTED = r"_(?:pred|prediction|predicted)$"  # endings of a file's stem, beyond the image's name
ENDINGS = r"_(?:pred|prediction|predicted|mask|seg|segmentation|annotation)$"
PROBLEM_COLUMNS = ["image_id", "problem", "file", "detail"]
UNSCORED = ("missing", "twice", "misshapen", "unreadable")  # a mask with one of these has no score


def image_name(path):
    """The name of the image that a mask or prediction belongs to."""
    return re.sub(ENDINGS, "", path.stem, flags=re.IGNORECASE)


def place_of(path):
    """Where a file lies, however its folder was named; a link stays a file of its own."""
    return path.parent.resolve() / path.name


def shown_as_named(path):
    """As `shown`, but a link by its own name, not by that of the file to which it leads."""
    return f"{shown(path.parent)}/{path.name}"


def list_predictions(folder, truths=()):
    """Files below a folder by the name of their image; one named `*_pred` or the like goes before the image itself.

    Parameters
    ----------
    folder : Path
    truths : iterable of Path
        Files that are true masks, and so no predictions.

    Returns
    -------
    (dict of str to list of Path, list of tuple)
        The predictions; and a row of `PROBLEM_COLUMNS` for each file that was passed over.
    """
    named, bare, taken = {}, {}, {place_of(path) for path in truths}
    for path in loading.find_files(folder).path:
        if place_of(path) not in taken:
            name = image_name(path)
            (bare if name == path.stem else named).setdefault(name, []).append(path)
    passed = [
        (name, "passed over", shown_as_named(path), f"is taken for the image, since there is {named[name][0].name}")
        for name in bare.keys() & named.keys()
        for path in bare[name]
    ]
    return bare | named, passed


def list_truths(folder):
    """Mask files below a folder by the name of their image.

    Outlines (`*_Annotation`) are masks, as the course pairs them; so are files named `*_mask` or the like of other
    images. Only where there are neither, every file is a mask.
    """
    files = loading.find_files(folder)
    pairs = loading.match_pairs(files).dropna(subset="mask_path")
    outlines = {pair.image_id: [pair.mask_path] for pair in pairs.itertuples()}
    for name, paths in files[(files.kind == "outline") & files.stem.isin(list(outlines))].groupby("stem").path:
        if len(paths) > 1 and len({loading.fingerprint(path) for path in paths}) > 1:  # a copy would be no problem
            outlines[name] = list(paths)
    named, every = {}, {}
    for path in files.path[files.kind == "image"]:
        name = image_name(path)
        every.setdefault(name, []).append(path)
        if name != path.stem and not re.search(PREDICTED, path.stem, re.IGNORECASE):
            named.setdefault(name, []).append(path)
    return named | outlines if named or (files.kind == "outline").any() else every


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
    return preprocessing.fill_outline(mask * np.uint8(255)) if preprocessing.is_line(mask) else mask


def pair_up(predictions, masks):
    """Match predictions and masks by name; those that have no partner, or two, are problems.

    Returns
    -------
    (list of (str, Path, Path), list of tuple)
        Name, prediction and mask; and a row of `PROBLEM_COLUMNS` for each file that cannot be matched.
    """
    truths, matched, problems = list_truths(masks), [], []
    found, passed = list_predictions(predictions, [path for paths in truths.values() for path in paths])
    for name in sorted(set(found) | set(truths), key=lambda name: (loading.natural_order(name), name)):
        mine, theirs = found.get(name, []), truths.get(name, [])
        if not mine:
            problems.append((name, "missing", shown_as_named(theirs[0]), "has no prediction"))
        elif not theirs:
            problems += [(name, "extra", shown_as_named(path), "has no mask to be scored against") for path in mine]
        elif len(mine) + len(theirs) > 2:
            first, *others = [shown_as_named(path) for paths in (mine, theirs) if len(paths) > 1 for path in paths]
            problems.append((name, "twice", first, f"is there again: {', '.join(others)}"))
        else:
            matched.append((name, mine[0], theirs[0]))
    return matched, problems + passed


def read_both(name, mine, theirs):
    """Prediction and truth of one image; or None and why not; and what should be known about the prediction."""
    problems, file = [], shown_as_named(mine)
    try:
        path = mine
        prediction, grey = read_mask(mine)
        path = theirs
        truth = read_truth(theirs)
    except FetalsegError as error:
        reason = str(error).removeprefix(shown(path)).strip(" .")
        return None, [(name, "unreadable", shown_as_named(path), reason)]
    if prediction.shape != truth.shape:
        sizes = " but the mask ".join(f"{width} × {height}" for height, width in (prediction.shape, truth.shape))
        return None, [(name, "misshapen", file, f"is {sizes}")]
    if grey:
        left = "" if prediction.any() else ": nothing is left. Write labels as 0 and 255"
        problems.append((name, "grey values", file, f"has more than two values, and was cut at 128{left}"))
    if preprocessing.is_line(largest_component(prediction)):
        problems.append((name, "outline", file, "looks like an outline, and was scored as it is: fill it"))
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
        missing, extra, twice, misshapen, unreadable, grey values, outline or passed over.

    Raises
    ------
    FetalsegError
        If a folder is missing or empty, or no prediction can be scored.
    """
    matched, problems = pair_up(Path(predictions), Path(masks))
    names = {row[0] for row in [*matched, *problems]}  # frames that are not scored tell who follows whom
    examinations = loading.find_examinations(sorted(names))

    def read(item):
        both, noticed = read_both(*item)
        problems.extend(noticed)
        return both

    items = [(item[0], examinations[item[0]], lambda item=item: read(item)) for item in matched]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # reading and distances run outside of Python's lock
        scores = evaluation.score_table(items, sizes, tolerance, over=pool.map)
    problems.sort(key=lambda row: (loading.natural_order(row[0]), row[0]))  # threads finish in any order
    if scores.empty:
        first = f": {problems[0][2]} {problems[0][3]}" if problems else ""
        raise FetalsegError(f"no prediction in {predictions} can be scored against {masks}{first}.")
    return writable(scores), writable(pd.DataFrame(problems, columns=PROBLEM_COLUMNS))


def writable(table):
    """A table whose text is valid Unicode: names from foreign archives may not be, and could not be written."""
    text = table.select_dtypes(["object", "string"])
    return table.assign(**text.map(lambda cell: cell.encode("utf-8", "replace").decode("utf-8")))


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
    passed = problems.problem == "passed over"
    for problem in problems[~passed].itertuples():
        yield f"{problem.problem:<12}{problem.file} {problem.detail}"
    if passed.any():
        yield f"{passed.sum()} files taken for the images themselves, since each has a prediction by another name."
    yield summaries.summary_table(summary).to_string()
    yield (
        f"{summary['images']} images of {summary['examinations']} examinations; all pixels pooled: "
        f"Dice {summary['pooled_dice']:.4f}, IoU {summary['pooled_iou']:.4f}"
    )
    if "circumference_mm" in scores and (unknown := int(scores.circumference_mm.isna().sum())):
        yield f"{unknown} images have no pixel size in the table, and no scores in mm."
    if sentence := biometry.describe_agreement(scores):
        yield sentence
