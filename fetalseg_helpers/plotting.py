"""One figure per question. Truth is green and solid, prediction orange and dashed, everywhere."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyArrowPatch, Rectangle

TRUTH, PREDICTION, BACKGROUND, ACCENT = "#2fb344", "#ff8c1a", "#5b6770", "#2b6cb0"
WIDTH, LARGEST_HEIGHT = 6.8, 4.3  # inches
STABLE = 0.01  # Dice: the tolerance of `training.stable_epoch`
STYLE = {"figure.dpi": 100, "savefig.dpi": 100, "font.size": 9, "axes.titlesize": 9, "figure.titlesize": 10}
plt.rcParams.update(STYLE | {"figure.constrained_layout.use": True})


def new_figure(rows=1, columns=1, height=2.6, **options):
    """An empty figure in the course's size, and its axes; shown once, by being the value of a cell."""
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, min(height, LARGEST_HEIGHT)), **options)
    plt.close(figure)
    return figure, axes


def save(figure, path):
    """Save a figure as PNG and make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, metadata={"Software": None})


def draw_outline(axis, mask, color, style="solid", label=None):
    """Draw the border of a 0/1 mask of shape (height, width); nothing for an empty one."""
    mask = np.asarray(mask)
    if mask.any():
        padded = np.pad(mask.astype(float), 1)
        rows, columns = np.arange(-1, mask.shape[0] + 1), np.arange(-1, mask.shape[1] + 1)
        axis.contour(columns, rows, padded, levels=[0.5], colors=color, linestyles=style, linewidths=1.3)
    axis.plot([], [], color=color, linestyle=style, label=label)
    axis.set_xlim(-0.5, mask.shape[1] - 0.5)
    axis.set_ylim(mask.shape[0] - 0.5, -0.5)


def show_images(images, titles, columns=3, masks=None, suptitle=None, color_range=(0, 255), pixels=False):
    """Grey images side by side, with the truth's border where masks are given.

    Parameters
    ----------
    images : list of array, shape (height, width)
    titles : list of str
    columns : int
    masks : list of array or None, optional
    suptitle : str, optional
    color_range : (float, float)
        Values shown black and white.
    pixels : bool
        Show axes in pixels.
    """
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure, axes = new_figure(rows, columns, height=0.35 + rows * (WIDTH / columns * 0.68 + 0.3), squeeze=False)
    for axis in axes.flat:
        axis.axis("on" if pixels else "off")
    for axis in axes.flat[len(images) :]:
        axis.axis("off")
    for number, (axis, image, title) in enumerate(zip(axes.flat, images, titles, strict=False)):
        axis.imshow(image, cmap="gray", vmin=color_range[0], vmax=color_range[1])
        if masks is not None and masks[number] is not None:
            draw_outline(axis, masks[number], TRUTH)
        axis.set_title(title)
        if pixels:
            axis.set_xlabel("x (px)")
            axis.set_ylabel("y (px)")
    if suptitle:
        figure.suptitle(suptitle)
    return figure


def show_overlay(image, truth=None, prediction=None, title=""):
    """One image with the borders of truth and prediction."""
    figure, axis = new_figure(height=4.2)
    overlay(axis, image, truth, prediction, title)
    if truth is not None or prediction is not None:
        axis.legend(loc="lower left", fontsize=8, framealpha=0.8)
    return figure


def overlay(axis, image, truth, prediction, title):
    axis.imshow(image, cmap="gray", vmin=0, vmax=255)
    if truth is not None:
        draw_outline(axis, truth, TRUTH, "solid", "truth")
    if prediction is not None:
        draw_outline(axis, prediction, PREDICTION, "dashed", "prediction")
    axis.set_title(title)
    axis.axis("off")


def show_overlays(images, truths, predictions, titles, suptitle=None):
    """A row of overlays under one legend."""
    figure, axes = new_figure(1, len(images), height=WIDTH / len(images) * 0.68 + 0.9, squeeze=False)
    for axis, *content in zip(axes.flat, images, truths, predictions, titles, strict=True):
        overlay(axis, *content)
    handles = [plt.Line2D([], [], color=TRUTH), plt.Line2D([], [], color=PREDICTION, linestyle="dashed")]
    figure.legend(handles, ["truth", "prediction"], loc="outside lower center", ncols=2, fontsize=8)
    if suptitle:
        figure.suptitle(suptitle)
    return figure


def show_histogram(values, label, title, color=ACCENT, marks=None, bins=30):
    """How often values occur; `marks` maps a label to a value drawn as a vertical line."""
    figure, axis = new_figure()
    axis.hist(values, bins=bins, color=color, alpha=0.8)
    for (name, value), style in zip((marks or {}).items(), ("dashed", "dotted", "dashdot"), strict=False):
        axis.axvline(value, color="black", linestyle=style, linewidth=1, label=name)
    if marks:
        axis.legend(fontsize=8)
    axis.set(xlabel=label, ylabel="number", title=title)
    return figure


def show_intensities(groups, title):
    """Grey-level distributions of several groups of pixels, as densities; `groups` maps a label to values."""
    figure, axis = new_figure()
    for (label, values), color in zip(groups.items(), (TRUTH, BACKGROUND, ACCENT), strict=False):
        axis.hist(np.ravel(values), bins=64, density=True, histtype="step", linewidth=1.5, color=color, label=label)
    axis.set(xlabel="intensity", ylabel="density", title=title)
    axis.legend(fontsize=8)
    return figure


def show_split(table, title):
    """Horizontal bars of train, valid and test, and how many test images were seen in training, per way to split."""
    figure, axis = new_figure(height=2.2)
    axis.barh(table.index, table["test"], color=BACKGROUND, label="test images")
    axis.barh(table.index, table["test images seen"], color=PREDICTION, height=0.45, label="with a sibling in training")
    axis.set(xlabel="images", title=title)
    axis.legend(fontsize=8)
    axis.invert_yaxis()
    return figure


def show_centroids(measurements, near, border, title):
    """Where the regions' centroids lie in the frame, the border strip shaded."""
    figure, axis = new_figure(height=3.4)
    axis.add_patch(Rectangle((0, 0), 1, 1, color=PREDICTION, alpha=0.25, label=f"{border:.0%} border strip"))
    axis.add_patch(Rectangle((border, border), 1 - 2 * border, 1 - 2 * border, color="white"))
    axis.scatter(measurements.centroid_x, measurements.centroid_y, s=12, color=ACCENT, label="centroid")
    axis.scatter(
        measurements.centroid_x[near],
        measurements.centroid_y[near],
        s=60,
        facecolors="none",
        edgecolors="black",
        label="near the border",
    )
    axis.set(
        xlim=(0, 1), ylim=(1, 0), xlabel="x (fraction of the width)", ylabel="y (fraction of the height)", title=title
    )
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def draw_unet(shapes, title):
    """The network as a U, every box as traced: height by pixels, width by channels, both on a log scale.

    Parameters
    ----------
    shapes : list of (str, (channels, height, width))
        As `unet.trace_shapes` gives them.
    title : str
    """
    depth = sum(name.startswith("downs") for name, _ in shapes)
    levels = [*range(depth + 1), *range(depth - 1, -1, -1), 0]
    figure, axis = new_figure(height=4.3)
    centres, tops, bottoms = [], [], []
    x, largest = 0.0, np.log2(shapes[0][1][1])
    for (_, (channels, rows, columns)), level in zip(shapes, levels, strict=True):
        box_height = 0.3 + 0.9 * np.log2(max(rows, 1)) / largest
        box_width = 0.12 + 0.08 * np.log2(channels + 1)
        y = -1.75 * level
        color = PREDICTION if len(centres) == len(shapes) - 1 else TRUTH if len(centres) > depth else ACCENT
        axis.add_patch(Rectangle((x, y - box_height / 2), box_width, box_height, color=color, alpha=0.8))
        axis.text(
            x + box_width / 2, y - box_height / 2 - 0.08, f"{columns} × {rows}", ha="center", va="top", fontsize=7
        )
        axis.text(x + box_width / 2, y + box_height / 2 + 0.05, str(channels), ha="center", va="bottom", fontsize=8)
        centres.append((x, x + box_width, y))
        tops.append(y + box_height / 2)
        bottoms.append(y - box_height / 2)
        x += box_width + 0.75
    for number in range(len(shapes) - 1):
        (_, right, y), (left, _, next_y) = centres[number], centres[number + 1]
        arrow(axis, (right + 0.05, y), (left - 0.05, next_y), "black", "solid")
    for level in range(depth):
        (_, right, y), (left, _, _) = centres[level], centres[2 * depth - level]
        arrow(axis, (right + 0.08, y + 0.15), (left - 0.08, y + 0.15), BACKGROUND, "dashed")
    axis.set(xlim=(-0.4, x - 0.3), ylim=(min(bottoms) - 0.6, max(tops) + 0.5), title=title)
    axis.axis("off")
    key = {"channels above, width × height below": "none", "down": ACCENT, "up": TRUTH, "1 × 1 convolution": PREDICTION}
    handles = [Rectangle((0, 0), 1, 1, color=color) for color in key.values()]
    handles.append(plt.Line2D([], [], color=BACKGROUND, linestyle="dashed"))
    figure.legend(handles, [*key, "skip connection"], loc="outside lower center", ncols=5, fontsize=7, frameon=False)
    return figure


def arrow(axis, start, end, color, style):
    axis.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=8, color=color, linestyle=style, linewidth=1)
    )


def show_history(history, stable=None, title="", baseline=None):
    """Losses and validation Dice over the epochs; the point of stabilisation and a baseline's Dice marked.

    The Dice axis shows the later half of the epochs wholly. Early ones far below the rest run out of the picture, so
    that the last ones can be told apart; the title counts them.

    Parameters
    ----------
    history : pandas.DataFrame
        Columns `epoch`, `train_loss`, `valid_loss` and `valid_dice`.
    stable : int, optional
        Epoch from which the validation Dice stays within `STABLE` of its best.
    title : str
    baseline : float, optional
        Dice of the mean mask.
    """
    figure, (left, right) = new_figure(1, 2, height=2.8)
    left.plot(history.epoch, history.train_loss, color=BACKGROUND, label="train")
    left.plot(history.epoch, history.valid_loss, color=ACCENT, linestyle="dashed", label="valid")
    left.set(xlabel="epoch", ylabel="loss", title="loss")
    dice = history.valid_dice
    right.plot(history.epoch, dice, color=ACCENT, linestyle="dashed", label="valid")
    later = [*dice[len(dice) // 2 :], *([] if baseline is None else [baseline])]
    lowest = min([dice.quantile(0.1), *later]) if len(dice) else 0.5
    bottom = max(0.0, lowest - max(0.01, 0.1 * (1 - lowest)))
    below = int((dice < bottom).sum())
    name = "validation Dice" + (f" ({below} of {len(dice)} epochs below)" if below else "")
    right.set(xlabel="epoch", ylabel="Dice", title=name, ylim=(bottom, 1))
    if baseline is not None:
        right.axhline(baseline, color=BACKGROUND, label=f"mean mask {baseline:.2f}")
    if stable is not None:
        right.axvline(stable, color=PREDICTION, linestyle="dotted", label=f"stable from epoch {stable}")
        label = f"within {STABLE} of the best"
        right.axhspan(dice.max() - STABLE, dice.max(), color=PREDICTION, alpha=0.25, linewidth=0, label=label)
    left.legend(fontsize=8)
    right.legend(fontsize=8)
    figure.suptitle(title)
    return figure


def show_curve(x, y, xlabel, ylabel, title, marks=None):
    """One line; `marks` maps a label to an x value drawn as a vertical line."""
    figure, axis = new_figure()
    axis.plot(x, y, color=ACCENT)
    for (name, value), style in zip((marks or {}).items(), ("dashed", "dotted", "dashdot"), strict=False):
        axis.axvline(value, color="black", linestyle=style, linewidth=1, label=name)
    if marks:
        axis.legend(fontsize=8)
    axis.set(xlabel=xlabel, ylabel=ylabel, title=title)
    return figure


def show_heat_map(image, probability, truth, threshold, title):
    """The image, the probability map, and the border that a threshold cuts out of it."""
    figure, (left, right) = new_figure(1, 2, height=2.9)
    overlay(left, image, truth, np.asarray(probability) >= threshold, f"cut at {threshold:.2f}")
    left.legend(loc="lower left", fontsize=7)
    shown = right.imshow(probability, cmap="magma", vmin=0, vmax=1)
    right.set_title("probability of tumor")
    right.axis("off")
    figure.colorbar(shown, ax=right, fraction=0.035)
    figure.suptitle(title)
    return figure


def show_pipeline(image, truth, probability, prediction, title):
    """Four steps of one image: what comes in, the truth, the probability map, the prediction on the image."""
    figure, axes = new_figure(1, 4, height=1.9)
    axes[0].imshow(image, cmap="gray", vmin=0, vmax=255)
    axes[1].imshow(truth, cmap="gray", vmin=0, vmax=1)
    axes[2].imshow(probability, cmap="magma", vmin=0, vmax=1)
    overlay(axes[3], image, truth, prediction, "")
    for axis, name in zip(axes, ("image", "mask (truth)", "probability map", "prediction"), strict=True):
        axis.set_title(name)
        axis.axis("off")
    figure.suptitle(title)
    return figure


def show_maps(maps, titles, labels, columns=3, cmap="gray", suptitle=None, color_range=(None, None)):
    """Arrays on the polar grid (samples, beams) side by side, the probe at the top, each with its scale.

    Parameters
    ----------
    maps : list of array, shape (samples, beams)
    titles, labels : list of str
        Of each map, and of its scale with the unit.
    color_range : (float, float)
        Values shown black and white; by default each map's own least and greatest.
    """
    columns = min(columns, len(maps))
    rows = -(-len(maps) // columns)
    figure, axes = new_figure(rows, columns, height=0.4 + rows * 2.7, squeeze=False, sharey=True)
    for axis, values, title, label in zip(axes.flat, maps, titles, labels, strict=True):
        low, high = color_range
        picture = axis.imshow(values, cmap=cmap, aspect="auto", interpolation="nearest", vmin=low, vmax=high)
        axis.set(title=title, xlabel="beam")
        figure.colorbar(picture, ax=axis, label=label, location="bottom", aspect=30)
    for axis in axes[:, 0]:
        axis.set_ylabel("sample in depth")
    if suptitle:
        figure.suptitle(suptitle)
    return figure


def show_transfer(table, x, lines, xlabel, title):
    """Mean Dice against how many pairs were learnt from; `lines` maps a column to its label."""
    figure, axis = new_figure(height=2.8)
    styles = zip((ACCENT, PREDICTION, BACKGROUND), ("solid", "dashed", "dotted"), strict=True)
    for (column, label), (color, style) in zip(lines.items(), styles, strict=False):
        axis.plot(table[x], table[column], color=color, linestyle=style, marker="o", label=label)
    axis.set(xlabel=xlabel, ylabel="mean Dice", title=title, xticks=table[x])
    axis.legend(fontsize=8)
    return figure


def show_sweep(table, varied, largest=20):
    """Best validation Dice of the runs of a sweep, best on top: a dot per seed and a line at their mean.

    The validation Dice, because a setting that is chosen by its test scores has been trained on the test images.

    Parameters
    ----------
    table : pandas.DataFrame
        As `sweep.sweep` gives it: `valid_dice` and the columns that vary.
    varied : list of str
        Names of the columns that vary; runs that differ in nothing but `seed` share a line.
    largest : int
        Lines that are drawn at most.
    """
    table = table.dropna(subset="valid_dice")
    names = [name for name in varied if name != "seed"]
    labels = table[names].astype(str).agg(", ".join, axis=1) if names else table.run.map(lambda _: "all seeds")
    means = table.valid_dice.groupby(labels).mean().sort_values()[-largest:]
    figure, axis = new_figure(height=1.2 + 0.25 * len(means))
    for height, (label, mean) in enumerate(means.items()):
        scores = table.valid_dice[labels == label]
        axis.plot(
            scores, [height] * len(scores), "o", color=ACCENT, markersize=4, label="one run" if not height else None
        )
        axis.plot([mean, mean], [height - 0.3, height + 0.3], color="black", label="mean" if not height else None)
    axis.set_yticks(range(len(means)), means.index, fontsize=7)
    axis.set(xlabel="best validation Dice", ylabel=", ".join(names), title=f"{len(table)} runs, best on top")
    axis.legend(fontsize=8, loc="lower right")
    return figure
