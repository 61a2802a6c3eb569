"""What a table of scores says: how sure the means are, the worst, two runs side by side."""

import numpy as np
import pandas as pd

from fetalseg_helpers import evaluation, loading
from fetalseg_helpers.beyond_dice.scores import METRICS
from fetalseg_helpers.workspace import FetalsegError


def summarise(scores, draws=2000, seed=0):
    """What a table of scores says in a few numbers, a dictionary.

    Mean Dice and IoU with intervals from a bootstrap over examinations; median and worst Dice, and whose it is; how
    many images, examinations and empty masks; Dice and IoU of all pixels pooled, in which large heads weigh more; and
    under `scores`, for each of `METRICS` in the table: `mean`, `sd`, `median`, `worst`, `percentile_5`, what 95 % of
    the images are at least as good as (of errors, `percentile_95` of their size), `interval_95` of the mean, and the
    number of `images` that have it.
    """
    table = {}
    for name, metric in METRICS.items():
        if name not in scores or scores[name].isna().all():
            continue
        known = scores.dropna(subset=name)
        values = known[name]
        numbers = {"mean": values.mean(), "sd": values.std(ddof=min(1, len(values) - 1)), "median": values.median()}
        beyond = "percentile_5" if metric.best else "percentile_95"
        numbers[beyond] = values.quantile(0.05) if metric.best else values.abs().quantile(0.95)
        numbers["worst"] = values[(values - metric.best).abs().idxmax()]
        table[name] = {key: round(float(value), 4) for key, value in numbers.items()}
        interval = evaluation.bootstrap_interval(values, known.examination, draws, seed)
        table[name] |= {"interval_95": [round(end, 4) for end in interval], "images": len(known)}
    pixels = scores.truth_pixels + scores.predicted_pixels
    total, both = float(pixels.sum()), float((scores.dice * pixels / 2).sum())
    means = {}
    for name in ("dice", "iou"):
        means |= {f"mean_{name}": table[name]["mean"], f"{name}_interval_95": table[name]["interval_95"]}
    return means | {
        "median_dice": table["dice"]["median"],
        "worst_dice": table["dice"]["worst"],
        "worst_image": scores.image_id[scores.dice.idxmin()],
        "images": len(scores),
        "examinations": scores.examination.nunique(),
        "empty_predictions": int((scores.predicted_pixels == 0).sum()),
        "empty_truths": int((scores.truth_pixels == 0).sum()),
        "pooled_dice": round(2 * both / total, 4) if total else 1.0,
        "pooled_iou": round(both / (total - both), 4) if total else 1.0,
        "scores": table,
    }


def summary_table(summary):
    """The numbers under `scores` of a summary as a table, a row per score, under names for reading."""
    rows = {}
    for name, numbers in summary["scores"].items():
        label, best = METRICS[name]
        form = "{:.3f}".format if best else "{:.2f}".format
        rows[label] = {
            "mean": form(numbers["mean"]),
            "95 % interval": " to ".join(map(form, numbers["interval_95"])),
            "SD": form(numbers["sd"]),
            "median": form(numbers["median"]),
            "5 % are beyond": form(numbers["percentile_5" if best else "percentile_95"]),
            "worst": form(numbers["worst"]),
        }
    return pd.DataFrame(rows).T


def compare(first, second, metrics=("dice", "iou", "hd95_px", "assd_px"), draws=2000, seed=0):
    """Compare two tables of scores image by image: the differences scatter far less than the scores.

    `first` and `second` are as `evaluation.score_pairs` gives them; a FetalsegError says if they are not of the same
    images, each once. Gives a row for each of the `metrics`: both means, their `difference` (second - first), its 95 %
    interval (`low`, `high`) from a bootstrap over examinations, for how many images the second is better or worse.
    """
    differing = sorted(set(first.image_id) ^ set(second.image_id), key=loading.natural_order)
    if differing or not (first.image_id.is_unique and second.image_id.is_unique):
        why = f"only one has {differing[0]}" if differing else "one has an image more often than once"
        raise FetalsegError(f"the two tables are not of the same images: {why}. Score the same split.")
    both = first.merge(second, on="image_id", suffixes=("", "_second"))  # in the order of the first
    rows = []
    for name in metrics:
        known = both.dropna(subset=[name, f"{name}_second"])  # in mm, an image may lack a pixel size
        one, two = known[name], known[f"{name}_second"]
        ends = evaluation.bootstrap_interval(two - one, known.examination, draws, seed) if len(known) else [np.nan] * 2
        gain = (one - METRICS[name].best).abs() - (two - METRICS[name].best).abs()
        means = one.mean(), two.mean(), (two - one).mean()
        rows.append((*means, *ends, (gain > 0).sum(), (gain < 0).sum(), len(known)))
    columns = ["first", "second", "difference", "low", "high", "better", "worse", "images"]
    return pd.DataFrame(rows, index=list(metrics), columns=columns)
