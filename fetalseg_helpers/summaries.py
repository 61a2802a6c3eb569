"""What a table of scores says: means and how sure they are, the worst, two runs side by side."""

import numpy as np
import pandas as pd

from fetalseg_helpers import loading
from fetalseg_helpers.evaluation import METRICS
from fetalseg_helpers.workspace import FetalsegError, run_folder, write_json, write_table


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
    """What a table of scores says in a few numbers.

    Returns
    -------
    dict
        For each score of `METRICS` in the table, under `scores`: `mean`, `sd`, `median`, `worst`, what 95 % of the
        images are at least as good as (`percentile_5`; of errors, which are better the smaller, `percentile_95` of
        their size), and `interval_95` of the mean, from a bootstrap over examinations. Beside them, by their short
        names, what is asked for most; how many images and examinations; in how many images a mask was empty; and Dice
        and IoU of all pixels pooled, in which large heads weigh more than small ones.
    """
    table = {}
    for name in (name for name in METRICS if name in scores.columns):
        known = scores.dropna(subset=name)
        if known.empty:
            continue
        values, best = known[name], METRICS[name].best
        off = (values - best).abs()
        tail = ("percentile_5", values.quantile(0.05)) if best else ("percentile_95", values.abs().quantile(0.95))
        interval = bootstrap_interval(values, known.examination, draws, seed)
        numbers = {"mean": values.mean(), "sd": values.std(ddof=1) if len(values) > 1 else 0.0}
        numbers |= {"median": values.median(), tail[0]: tail[1], "worst": values[off.idxmax()]}
        table[name] = {key: round(float(value), 4) for key, value in numbers.items()}
        table[name] |= {"interval_95": [round(end, 4) for end in interval], "images": len(known)}
    both = (scores.dice * (scores.truth_pixels + scores.predicted_pixels) / 2).sum()
    pixels = (scores.truth_pixels + scores.predicted_pixels).sum()
    summary = {}
    for name in ("dice", "iou"):
        summary |= {f"mean_{name}": table[name]["mean"], f"{name}_interval_95": table[name]["interval_95"]}
    worst = scores.loc[scores.dice.idxmin()]
    summary |= {"median_dice": table["dice"]["median"], "worst_dice": table["dice"]["worst"]}
    summary |= {"worst_image": worst.image_id, "images": len(scores), "examinations": scores.examination.nunique()}
    empty = scores.predicted_pixels == 0, scores.truth_pixels == 0
    summary |= {"empty_predictions": int(empty[0].sum()), "empty_truths": int(empty[1].sum())}
    summary["pooled_dice"] = round(float(2 * both / pixels), 4) if pixels else 1.0
    summary["pooled_iou"] = round(float(both / (pixels - both)), 4) if pixels else 1.0
    return summary | {"scores": table}


def summary_table(summary):
    """The numbers under `scores` of a summary as a table, a row per score, under names for reading."""
    rows = {}
    for name, numbers in summary["scores"].items():
        label, unit, best = METRICS[name]
        low, high = numbers["interval_95"]
        digits = 3 if best else 2
        row = {"mean": numbers["mean"], "95 % interval": f"{low:.{digits}f} to {high:.{digits}f}", "SD": numbers["sd"]}
        row |= {"median": numbers["median"], "5 % are beyond": numbers["percentile_5" if best else "percentile_95"]}
        row |= {"worst": numbers["worst"]}
        row = {key: f"{value:.{digits}f}" if key != "95 % interval" else value for key, value in row.items()}
        rows[f"{label} ({unit})" if unit else label] = row
    return pd.DataFrame(rows).T


def compare(first, second, metrics=("dice", "iou", "hd95_px", "assd_px"), draws=2000, seed=0):
    """Paired comparison of two tables of scores of the same images.

    Both see the same hard and easy images, so the differences scatter far less than the scores: that is why they are
    taken image by image.

    Parameters
    ----------
    first, second : pandas.DataFrame
        As `score_table`.
    metrics : sequence of str

    Returns
    -------
    pandas.DataFrame
        A row per score: the mean of both, their `difference` (second - first), its 95 % interval from a bootstrap over
        examinations (`low`, `high`), and for how many images the second is better or worse.

    Raises
    ------
    FetalsegError
        If the tables are not of the same images, each once.
    """
    differing = sorted(set(first.image_id) ^ set(second.image_id), key=loading.natural_order)
    if differing or not (first.image_id.is_unique and second.image_id.is_unique):
        why = f"only one has {differing[0]}" if differing else "one has an image more often than once"
        raise FetalsegError(f"the two tables are not of the same images: {why}. Score the same split.")
    second = second.set_index("image_id").loc[first.image_id].reset_index()
    first = first.reset_index(drop=True)
    rows = {}
    for name in metrics:
        known = first[name].notna() & second[name].notna()  # in mm, an image may lack a pixel size
        one, other, examinations = first[name][known], second[name][known], first.examination[known]
        gain = (one - METRICS[name].best).abs() - (other - METRICS[name].best).abs()
        row = {"first": one.mean(), "second": other.mean(), "difference": (other - one).mean()}
        interval = bootstrap_interval(other - one, examinations, draws, seed) if len(one) else (np.nan, np.nan)
        row["low"], row["high"] = interval
        rows[name] = row | {"better": int((gain > 0).sum()), "worse": int((gain < 0).sum()), "images": len(one)}
    return pd.DataFrame(rows).T.astype({"better": int, "worse": int, "images": int})


def write_metrics(run_dir, scores, summary):
    """Write `metrics.csv`, a row per image, and `metrics.json`, the summary."""
    folder = run_folder(run_dir)
    write_table(folder / "metrics.csv", scores)
    write_json(folder / "metrics.json", summary)
