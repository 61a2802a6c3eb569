"""Score a folder of predicted masks, whoever made them, against a folder of true ones.

Folders are searched at any depth. A prediction has its image's name, or that and `_pred`, `_mask` or the like; true
masks may be filled, or outlines as the data set has them. What is wrong is listed: missing, extra, twice, misshapen,
unreadable, values other than 0 and 255, outline or passed over.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import joblib
import numpy as np
import pandas as pd

from fetalseg_helpers import evaluation, loading, preprocessing
from fetalseg_helpers.beyond_dice import circumference, summaries
from fetalseg_helpers.beyond_dice.scores import complete, every_score
from fetalseg_helpers.workspace import FetalsegError, shown, write_json, write_table

PROBLEM_COLUMNS = ["image_id", "problem", "file", "detail"]
NO_MASKS = ["unread", "hidden", "other"]  # kinds of files
UNSCORED = ("missing", "twice", "misshapen", "unreadable")  # a mask with one of these has no score


def shown_as_named(path):
    """As `shown`, but a link by its own name, not by that of the file to which it leads."""
    return f"{shown(path.parent)}/{path.name}"


def pair_up(predictions, masks):
    """Match predictions and masks: (name, prediction, mask) each, and problems as rows of `PROBLEM_COLUMNS`.

    Of the folder of masks, all outlines are taken, or all files where none is one; copies count once.
    """
    truths, found, matched, problems = {}, {}, [], []
    files = loading.find_files(masks)
    files = files[~files.kind.isin(NO_MASKS)]
    chosen = files[files.kind == "outline"] if files.kind.eq("outline").any() else files
    for file in chosen.itertuples():
        same = truths.setdefault(file.stem, [])
        if not any(loading.fingerprint(file.path) == loading.fingerprint(other.path) for other in same):
            same.append(file)
    taken = {shown_as_named(file.path) for same in truths.values() for file in same}
    for file in loading.find_files(predictions).itertuples():
        if file.kind in NO_MASKS:
            problems.append((file.stem, "passed over", file.path, loading.ASIDE[file.kind]))
        elif shown_as_named(file.path) not in taken:
            found.setdefault(file.stem, []).append(file)
    alone = files[(files.kind == "image") & ~files.stem.isin([*truths, *found])]
    problems += [(file.stem, "passed over", file.path, "images without a mask") for file in alone.itertuples()]
    for stem in sorted({*found, *truths}, key=lambda stem: (loading.natural_order(stem), stem)):
        both = found.get(stem, []), truths.get(stem, [])
        patients = {loading.patient(file.place) for files in both for file in files}
        for patient in [""] if "" in patients else sorted(patients):  # where all are known, each is matched alone
            name = f"{patient}/{stem}" if patient else stem
            here = [[file for file in files if patient in file.place.split("/") or not patient] for files in both]
            match_name(name, *here, matched, problems)
    return matched, problems


def match_name(name, mine, theirs, matched, problems):
    """Add the predictions and masks of a name, rows of `loading.find_files`, to what is matched, or to the problems."""
    named = [file for file in mine if file.kind != "image"]
    if named:  # then a file of the bare name is the image
        detail = "taken for the images themselves, since each has a prediction by another name"
        problems += [(name, "passed over", file.path, detail) for file in mine if file.kind == "image"]
    mine, theirs = ([file.path for file in files] for files in (named or mine, theirs))
    if len(mine) == len(theirs) == 1:
        matched.append((name, mine[0], theirs[0]))
    elif not mine:
        problems.append((name, "missing", theirs[0], "has no prediction"))
    elif not theirs:
        problems += [(name, "extra", path, "has no mask to be scored against") for path in mine]
    else:
        first, *others = [path for paths in (mine, theirs) if len(paths) > 1 for path in paths]
        problems.append((name, "twice", first, f"is there again: {', '.join(map(shown_as_named, others))}"))


def score_one(name, mine, theirs, scores, pixel_mm):
    """The scores of one prediction, {} where it has none; and problems as rows of `PROBLEM_COLUMNS`."""
    masks, problems = [], []
    try:
        for path in (mine, theirs):
            mask, values = loading.read_mask(path)
            if values:
                problems.append((name, "values", path, f"has the values {values}"))
            masks.append(mask)
        prediction, truth = masks
        if prediction.shape != truth.shape:
            sizes = [f"{width} × {height}" for height, width in (prediction.shape, truth.shape)]
            return {}, [(name, "misshapen", mine, f"is {sizes[0]} but the mask {sizes[1]}")]
        truth = preprocessing.fill_pair(prediction, truth, shown(theirs))
    except FetalsegError as error:
        return {}, [(name, "unreadable", path, str(error).removeprefix(shown(path)).strip(" ."))]
    prediction = preprocessing.binarise(prediction)
    if preprocessing.is_line(evaluation.cut(prediction, 1, "largest")):
        problems.append((name, "outline", mine, "looks like an outline, and was scored as it is: fill it"))
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
    with ThreadPoolExecutor(joblib.cpu_count()) as pool:  # reading and distances run outside of Python's lock
        scored = list(pool.map(lambda match: score_one(*match, scores, pixel_mm), matched))
    rows = [row for row, _ in scored if row]
    problems += [problem for _, noticed in scored for problem in noticed]
    problems.sort(key=lambda problem: loading.natural_order(problem[0]))
    problems = pd.DataFrame(problems, columns=PROBLEM_COLUMNS)
    problems["file"] = problems.file.map(shown_as_named)
    if not rows:
        first = f"{problems.file[0]} {problems.detail[0]}"
        raise FetalsegError(f"no prediction in {predictions} can be scored against {masks}: {first}.")
    table = pd.DataFrame(rows)
    names = {*problems.image_id, *(name for name, _, _ in matched)}  # frames not scored tell who follows whom
    table["examination"] = table.image_id.map(loading.find_examinations(sorted(names)))
    return complete(table, sizes), problems


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
    quiet = problems.problem.isin(["passed over", "values"])
    for problem in problems[~quiet].itertuples():
        yield f"{problem.problem:<12}{problem.file} {problem.detail}"
    for (problem, detail), some in problems[quiet].groupby(["problem", "detail"]):
        which = " passed over" if problem == "passed over" else f", such as {some.file.iloc[0]}"
        yield f"{len(some)} files{which}: {detail}."
    yield summaries.summary_table(summary).to_string()
    pooled = f"Dice {summary['pooled_dice']:.4f}, IoU {summary['pooled_iou']:.4f}"
    yield f"{summary['images']} images of {summary['examinations']} examinations; all pixels pooled: {pooled}"
    if "circumference_mm" in scores and (unknown := int(scores.circumference_mm.isna().sum())):
        yield f"{unknown} images have no pixel size in the table, and no scores in mm."
    if sentence := circumference.describe_agreement(scores):
        yield sentence
