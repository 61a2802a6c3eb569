"""Score a folder of predicted masks, whoever made them, against a folder of true ones.

Folders are searched at any depth. A prediction has its image's name, or that and `_pred`, `_mask` or the like; true
masks may be filled, or outlines as the data set has them. What is wrong is listed: missing, extra, twice, misshapen,
unreadable, grey values, outline or passed over.
"""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import joblib
import numpy as np
import pandas as pd

from fetalseg_helpers import evaluation, loading, preprocessing
from fetalseg_helpers.beyond_dice import circumference, summaries
from fetalseg_helpers.beyond_dice.scores import complete, every_score
from fetalseg_helpers.workspace import FetalsegError, shown, write_json, write_table

ENDINGS = r"_(?:pred|prediction|predicted|mask|seg|segmentation|annotation)$"  # of a stem, beyond the image's name
MASKED = r"_(?:mask|seg|segmentation)$"  # endings that only true masks have, where masks and predictions lie together
PROBLEM_COLUMNS = ["image_id", "problem", "file", "detail"]
UNSCORED = ("missing", "twice", "misshapen", "unreadable")  # a mask with one of these has no score


def shown_as_named(path):
    """As `shown`, but a link by its own name, not by that of the file to which it leads."""
    return f"{shown(path.parent)}/{path.name}"


def by_image(paths):
    """Files by the name of the image that they belong to."""
    found = {}
    for path in paths:
        found.setdefault(re.sub(ENDINGS, "", path.stem, flags=re.IGNORECASE), []).append(path)
    return found


def list_masks(folder):
    """Mask files below a folder by the name of their image: outlines (`*_Annotation`), and `*_mask` or the like."""
    files = loading.find_files(folder)
    images = files.path[files.kind == "image"]
    found = by_image(path for path in images if re.search(MASKED, path.stem, flags=re.IGNORECASE))
    for name, paths in by_image(files.path[files.kind == "outline"]).items():
        copies = len(paths) > 1 and len({loading.fingerprint(path) for path in paths}) == 1  # which are no problem
        found[name] = paths[:1] if copies else paths
    return found or by_image(images)  # where there are neither, every file is a mask


def pair_up(predictions, masks):
    """Match predictions and masks: (name, prediction, mask) each, and problems as rows of `PROBLEM_COLUMNS`."""
    truths = list_masks(masks)
    taken = {shown_as_named(path) for paths in truths.values() for path in paths}
    found = by_image(path for path in loading.find_files(predictions).path if shown_as_named(path) not in taken)
    matched, problems = [], []
    for name in sorted({*found, *truths}, key=lambda name: (loading.natural_order(name), name)):
        mine, theirs = found.get(name, []), truths.get(name, [])
        named = [path for path in mine if path.stem != name]
        if named:  # then a file of the bare name is the image
            detail = f"is taken for the image, since there is {named[0].name}"
            problems += [(name, "passed over", shown_as_named(path), detail) for path in mine if path not in named]
            mine = named
        if not mine:
            problems.append((name, "missing", shown_as_named(theirs[0]), "has no prediction"))
        elif not theirs:
            problems += [(name, "extra", shown_as_named(path), "has no mask to be scored against") for path in mine]
        elif len(mine) == len(theirs) == 1:
            matched.append((name, mine[0], theirs[0]))
        else:
            first, *others = [shown_as_named(path) for paths in (mine, theirs) if len(paths) > 1 for path in paths]
            problems.append((name, "twice", first, f"is there again: {', '.join(others)}"))
    return matched, problems


def read_mask(path):
    """A mask file as 0 and 1, and whether it had grey values in between, which are cut at 128."""
    image = loading.read_grey(path)
    values = np.unique(image)
    if len(values) > 2:
        return preprocessing.binarise(image), True
    return np.uint8((image == values[-1]) & (image > 0)), False  # of 0 and 255, 0 and 7, 100 and 200 the larger


def score_one(name, mine, theirs, scores, pixel_mm):
    """The scores of one prediction, {} where it has none; and problems as rows of `PROBLEM_COLUMNS`."""
    masks = []
    for path in (mine, theirs):
        try:
            masks.append(read_mask(path))
        except FetalsegError as error:
            reason = str(error).removeprefix(shown(path)).strip(" .")
            return {}, [(name, "unreadable", shown_as_named(path), reason)]
    (prediction, grey), (truth, _) = masks
    file = shown_as_named(mine)
    if prediction.shape != truth.shape:
        sizes = [f"{width} × {height}" for height, width in (prediction.shape, truth.shape)]
        return {}, [(name, "misshapen", file, f"is {sizes[0]} but the mask {sizes[1]}")]
    if preprocessing.is_line(truth):
        truth = preprocessing.fill_outline(truth * np.uint8(255))
    problems = []
    if grey:
        left = "" if prediction.any() else ": nothing is left. Write labels as 0 and 255"
        problems.append((name, "grey values", file, f"has more than two values, and was cut at 128{left}"))
    if preprocessing.is_line(evaluation.cut(prediction, 1, "largest")):
        problems.append((name, "outline", file, "looks like an outline, and was scored as it is: fill it"))
    row = {"image_id": name}
    for score in scores:
        row |= score(prediction, truth, pixel_mm.get(name, np.nan))
    return row, problems


def score_folder(predictions, masks, sizes=None, tolerance=5.0):
    """Score every prediction that has a mask: a table as `scores.complete` gives it, and one of problems.

    `sizes` are those of `circumference.read_pixel_sizes`, `tolerance` is in px. A FetalsegError says if none has one.
    """
    matched, problems = pair_up(Path(predictions), Path(masks))
    scores = every_score(tolerance)
    pixel_mm = {} if sizes is None else sizes.pixel_mm
    rows = []
    with ThreadPoolExecutor(joblib.cpu_count()) as pool:  # reading and distances run outside of Python's lock
        for row, noticed in pool.map(lambda match: score_one(*match, scores, pixel_mm), matched):
            if row:
                rows.append(row)
            problems += noticed
    problems.sort(key=lambda problem: loading.natural_order(problem[0]))
    if not rows:
        _, _, file, detail = problems[0]
        raise FetalsegError(f"no prediction in {predictions} can be scored against {masks}: {file} {detail}.")
    table = pd.DataFrame(rows)
    names = {row[0] for row in [*matched, *problems]}  # frames that are not scored tell who follows whom
    table["examination"] = table.image_id.map(loading.find_examinations(sorted(names)))
    return writable(complete(table, sizes)), writable(pd.DataFrame(problems, columns=PROBLEM_COLUMNS))


def writable(table):
    """A table whose text is valid Unicode: names from foreign archives may not be, and could not be written."""
    text = table.select_dtypes(["object", "string"])
    return table.assign(**text.map(lambda cell: cell.encode("utf-8", "replace").decode("utf-8")))


def write_scores(out, scores, problems, tolerance):
    """Write `metrics.csv`, `metrics.json` and `problems.csv`; returns the summary."""
    unscored = int(problems.problem.isin(UNSCORED).sum())
    masks = len(scores) + unscored
    summary = summaries.summarise(scores) | {"masks": masks, "unscored": unscored, "tolerance_px": tolerance}
    if unscored:
        summary["mean_dice_unscored_as_0"] = round(scores.dice.sum() / masks, 4)
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
    if sentence := circumference.describe_agreement(scores):
        yield sentence
