"""The figures of evaluation, one per question, in the colours of `plotting`."""

import numpy as np
from matplotlib.colors import to_rgb

from fetalseg_helpers.plotting import (
    ACCENT,
    BACKGROUND,
    PREDICTION,
    TRUTH,
    WIDTH,
    draw_outline,
    new_figure,
    plt,
)

OTHER, THIRD = "#7048a8", "#b5366f"  # for lines that are neither truth nor prediction
LINES = list(zip((BACKGROUND, ACCENT, OTHER, THIRD), ("dotted", "solid", "dashdot", "dashed"), strict=True))


def show_score_spread(scores, interval, title):
    """Dice of each image, in rising order, with the mean and its interval."""
    figure, axis = new_figure()
    ordered = np.sort(scores)
    axis.plot(np.arange(1, len(ordered) + 1), ordered, "o", markersize=3, color=ACCENT, label="one image")
    axis.axhline(ordered.mean(), color="black", linewidth=1, label=f"mean {ordered.mean():.3f}")
    axis.axhspan(*interval, color=ACCENT, alpha=0.2, label="95 % interval of the mean")
    axis.set(xlabel="image, from worst to best", ylabel="Dice", title=title)
    axis.legend(fontsize=8, loc="lower right")
    return figure


def show_cuts(table, threshold, title):
    """Mean Dice over thresholds, a line per step of post-processing; 0.5 and the chosen threshold marked."""
    figure, axis = new_figure(height=2.9)
    for order, (column, (color, style)) in enumerate(zip(table.columns, LINES, strict=True)):
        axis.plot(table.index, table[column], color=color, linestyle=style, label=column, zorder=3 - order / 10)
    axis.axvline(0.5, color="black", linestyle=(0, (1, 3)), linewidth=1, label="0.5, as usual")
    axis.axvline(threshold, color="black", linewidth=1, label=f"chosen: {threshold:.2f}")
    lowest = table.loc[table.index.to_series().between(0.2, 0.8)].to_numpy().min()
    axis.set(
        xlabel="threshold (probability)",
        ylabel="mean Dice",
        title=title,
        ylim=(lowest - 0.005, table.to_numpy().max() + 0.003),
    )
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def show_errors(images, truths, predictions, titles, suptitle=None):
    """What is predicted but not true (orange) and true but not predicted (green), on each image.

    Parameters
    ----------
    images, truths, predictions : list of array, shape (height, width)
    titles : list of str
    """
    figure, axes = new_figure(1, len(images), height=WIDTH / len(images) * 0.68 + 0.9, squeeze=False)
    for axis, image, truth, prediction, title in zip(axes.flat, images, truths, predictions, titles, strict=True):
        truth, prediction = np.asarray(truth, bool), np.asarray(prediction, bool)
        picture = np.repeat(image[:, :, None] / 255, 3, axis=2)
        for where, color in ((prediction & ~truth, PREDICTION), (truth & ~prediction, TRUTH)):
            picture[where] = 0.25 * picture[where] + 0.75 * np.array(to_rgb(color))
        axis.imshow(picture)
        draw_outline(axis, truth, TRUTH)
        axis.set_title(title)
        axis.axis("off")
    handles = [plt.Rectangle((0, 0), 1, 1, color=color) for color in (PREDICTION, TRUTH)]
    handles.append(plt.Line2D([], [], color=TRUTH))
    names = ["predicted, not true", "true, not predicted", "truth"]
    figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=8)
    if suptitle:
        figure.suptitle(suptitle)
    return figure


def show_border_distances(image, prediction, border, distances, title):
    """The prediction's border, coloured by how far each of its pixels is from the truth's, and how often which.

    Parameters
    ----------
    image, prediction : array, shape (height, width)
    border : array of bool, shape (height, width)
        Where the distances belong, in the order of the rows.
    distances : array of float
        In px.
    """
    figure, (left, right) = new_figure(1, 2, height=2.7, width_ratios=(1.5, 1))
    left.imshow(image, cmap="gray", vmin=0, vmax=255)
    rows, columns = np.nonzero(border)
    dots = left.scatter(columns, rows, c=distances, s=3, cmap="plasma", vmin=0)
    left.axis("off")
    figure.colorbar(dots, ax=left, label="distance (px)", fraction=0.04)
    right.hist(distances, bins=20, color=ACCENT, alpha=0.8)
    mark = np.percentile(distances, 95)
    right.axvline(mark, color="black", linestyle="dashed", linewidth=1, label=f"95 % are within {mark:.1f} px")
    right.set(xlabel="distance from the truth (px)", ylabel="border pixels")
    right.set_ylim(0, right.get_ylim()[1] * 1.2)  # room for the legend
    right.legend(fontsize=8)
    figure.suptitle(title)
    return figure


def show_reliability(tables, title):
    """How often pixels of a probability are tumor; on the dotted line a probability means what it says.

    Parameters
    ----------
    tables : dict of str to pandas.DataFrame
        Label and table of `calibration.reliability`.
    """
    figure, (left, right) = new_figure(1, 2, height=3.1)
    left.plot([0, 1], [0, 1], color="black", linestyle="dotted", linewidth=1, label="as it says")
    for (label, table), (color, style) in zip(tables.items(), (LINES[1], LINES[3]), strict=False):
        left.plot(
            table.probability, table["share"], color=color, linestyle=style, marker="o", markersize=3, label=label
        )
        part = table.pixels / table.pixels.sum()
        right.plot(table.probability, part, color=color, linestyle=style, marker="o", markersize=3, label=label)
    left.set(xlabel="probability given", ylabel="share that is tumor", xlim=(0, 1), ylim=(0, 1))
    right.set(xlabel="probability given", ylabel="share of the pixels", yscale="log")
    right.set_ylim(10 ** np.floor(np.log10(right.get_ylim()[0])), 1.5)  # whole decades
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    figure.suptitle(title)
    return figure


def show_doubt(image, truth, mean, spread, title):
    """An image with the truth, the mean probability of several views, their spread, and where the mean errs."""
    figure, axes = new_figure(2, 2, height=4.3)
    wrong = np.abs(np.asarray(mean) - np.asarray(truth))
    panels = (("image, truth in green", image, "gray", 255), ("mean of the views", mean, "magma", 1))
    panels += (("spread of the views (SD)", spread, "viridis", max(0.05, float(np.max(spread)))),)
    panels += (("error, |P - truth|", wrong, "viridis", 1),)
    for axis, (name, values, cmap, top) in zip(axes.flat, panels, strict=True):
        shown = axis.imshow(values, cmap=cmap, vmin=0, vmax=top)
        axis.set_title(name)
        axis.axis("off")
        bar = figure.colorbar(shown, ax=axis, fraction=0.035)
        if values is image:
            draw_outline(axis, truth, TRUTH)
            bar.set_label("grey level")
    figure.suptitle(title)
    return figure


def show_risk_coverage(table, title):
    """Mean error of the images that are kept, the surest first; beside the best and the blindest order."""
    figure, axis = new_figure(height=2.7)
    everything = table.risk.iloc[-1]
    axis.plot(table.coverage, table.risk, color=ACCENT, label="surest first")
    axis.plot(table.coverage, table.best, color=OTHER, linestyle="dashdot", label="best first (needs the truth)")
    axis.axhline(everything, color=BACKGROUND, linestyle="dotted", label="any order, on average")
    axis.set(xlabel="share of the images that is kept", ylabel="mean of 1 - Dice", title=title, ylim=(0, None))
    axis.legend(fontsize=8)
    return figure


def show_robustness(table, units, title):
    """Mean Dice against the strength of each corruption, on one scale, beside that of the images as they are.

    Parameters
    ----------
    table : pandas.DataFrame
        As `robustness.robustness_table`.
    units : dict of str to str
        Of each corruption's strength.
    """
    figure, axes = new_figure(2, 4, height=3.6, sharey=True)
    for axis, (name, rows) in zip(axes.flat, table.groupby("corruption", sort=False), strict=False):
        worse = rows[rows.strength > 0]  # as it is, an exponent would be 1 and a speckle 0: the line says it for all
        axis.plot(worse.strength, worse.dice, color=ACCENT, marker="o", markersize=3)
        axis.axhline(rows.dice.iloc[0], color=BACKGROUND, linestyle="dotted", linewidth=1)
        axis.set_title(name)
        axis.set_xlabel(units[name], fontsize=7)
    for axis in axes[:, 0]:
        axis.set_ylabel("mean Dice")
    axes.flat[0].set_ylim(max(0.0, table.dice.min() - 0.05), 1)
    axes.flat[-1].axis("off")
    handles = [plt.Line2D([], [], color=ACCENT, marker="o", markersize=3)]
    handles.append(plt.Line2D([], [], color=BACKGROUND, linestyle="dotted"))
    axes.flat[-1].legend(handles, ["made worse", "as it is"], loc="center", fontsize=8)
    figure.suptitle(title)
    return figure


def show_bland_altman(measured, truth, numbers, unit, title):
    """Difference of two measurements against their mean, with the mean difference and the limits of agreement."""
    measured, truth = np.asarray(measured, float), np.asarray(truth, float)
    figure, axis = new_figure(height=2.9)
    axis.plot((measured + truth) / 2, measured - truth, "o", markersize=4, color=ACCENT, alpha=0.7, label="one image")
    axis.axhline(0, color=BACKGROUND, linestyle="dotted", linewidth=1)
    axis.axhline(numbers["df"], color="black", linewidth=1, label=f"mean {numbers['df']:+.2f} {unit}")
    for end in ("low", "high"):
        label = f"± 1.96 SD: {numbers['low']:+.2f} to {numbers['high']:+.2f}" if end == "low" else None
        axis.axhline(numbers[end], color=THIRD, linestyle="dashed", linewidth=1, label=label)
    axis.set(xlabel=f"mean of both ({unit})", ylabel=f"predicted - true ({unit})", title=title)
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def show_leak(table, title):
    """Mean Dice of each way to split; test images with and without a sibling in training apart.

    Parameters
    ----------
    table : pandas.DataFrame
        `split_by`, `seen` (bool), `dice` (a mean) and `images`, a row per way, seed and group.
    """
    figure, axis = new_figure(height=2.6)
    ways = list(dict.fromkeys(table.split_by))
    groups = ((False, ACCENT, "o", "no sibling in training"), (True, THIRD, "s", "a sibling in training"))
    for seen, color, marker, label in groups:
        rows = table[table.seen == seen]
        heights = [ways.index(way) + (0.12 if seen else -0.12) for way in rows.split_by]
        axis.scatter(rows.dice, heights, s=6 + 2 * rows.images, color=color, marker=marker, alpha=0.7, label=label)
    axis.set(yticks=range(len(ways)), yticklabels=ways, xlabel="mean Dice of the test images", title=title)
    axis.set_ylabel("split by")
    axis.set_ylim(len(ways) - 0.5, -0.5)
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), title="dot's size: images")
    return figure


def show_differences(differences, label, interval, title):
    """Differences of paired scores, in rising order, with their mean's interval and the line of no difference."""
    figure, axis = new_figure()
    ordered = np.sort(differences)
    axis.axhline(0, color="black", linestyle="dotted", linewidth=1, label="no difference")
    axis.axhspan(*interval, color=ACCENT, alpha=0.2, label="95 % interval of the mean")
    axis.axhline(ordered.mean(), color="black", linewidth=1, label=f"mean {ordered.mean():+.4f}")
    axis.plot(np.arange(1, len(ordered) + 1), ordered, "o", markersize=3, color=ACCENT, label="one image")
    axis.set(xlabel="image, in the order of its difference", ylabel=label, title=title)
    axis.legend(fontsize=8)
    return figure
