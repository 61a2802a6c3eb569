"""One figure per question. Truth is green and solid, prediction orange and dashed, everywhere."""

from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

TRUTH, PREDICTION, BACKGROUND, ACCENT = "#2fb344", "#ff8c1a", "#5b6770", "#2b6cb0"
OTHER, THIRD = "#7048a8", "#b5366f"  # for lines that are neither truth nor prediction
LINES = list(zip((BACKGROUND, ACCENT, OTHER, THIRD), ("dotted", "solid", "dashdot", "dashed"), strict=True))
WIDTH, LARGEST_HEIGHT = 6.8, 4.3  # inches
STABLE = 0.01  # Dice: the tolerance of notebook 5's `stable_epoch`
SIZES = {"font.size": 9, "axes.titlesize": 9, "figure.titlesize": 10, "legend.fontsize": 8}
plt.rcParams.update(SIZES | {"figure.dpi": 100, "savefig.dpi": 100, "figure.constrained_layout.use": True})


def new_figure(rows=1, columns=1, height=2.6, suptitle=None, **options):
    """An empty figure in the course's size, and its axes; shown once, by being the value of a cell."""
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, min(height, LARGEST_HEIGHT)), **options)
    if suptitle:
        figure.suptitle(suptitle)
    plt.close(figure)
    return figure, axes


def save(figure, path):
    """Save a figure as PNG and make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, metadata={"Software": None})


def legend_below(figure, fontsize=8):
    """What is labelled in a figure's first axes, in one row under all of them."""
    labelled = figure.axes[0].get_legend_handles_labels()
    figure.legend(*labelled, loc="outside lower center", ncols=len(labelled[1]), fontsize=fontsize)


def draw_outline(axis, mask, color, style="solid", label=None):
    """Draw the border of a 0/1 mask of shape (height, width); nothing for an empty one."""
    mask = np.asarray(mask)
    if mask.any():
        padded = np.pad(mask.astype(float), 1)
        rows, columns = np.arange(-1, mask.shape[0] + 1), np.arange(-1, mask.shape[1] + 1)
        axis.contour(columns, rows, padded, levels=[0.5], colors=color, linestyles=style, linewidths=1.3)
    axis.plot([], [], color=color, linestyle=style, label=label)
    axis.set(xlim=(-0.5, mask.shape[1] - 0.5), ylim=(mask.shape[0] - 0.5, -0.5))


def draw_image(axis, image, title, truth=None, prediction=None, cmap="gray", white=255):
    """Draw an image without axes, and the borders of what is known of truth and prediction."""
    drawn = axis.imshow(image, cmap=cmap, vmin=0, vmax=white)
    if truth is not None:
        draw_outline(axis, truth, TRUTH, "solid", "truth")
    if prediction is not None:
        draw_outline(axis, prediction, PREDICTION, "dashed", "prediction")
    axis.set_title(title)
    axis.axis("off")
    return drawn


def show_images(images, titles, columns=3, masks=None, suptitle=None, pixels=False):
    """Grey images side by side, `columns` in a row, with the truth's border where masks are given.

    Parameters
    ----------
    images, masks : list of array, shape (height, width), 0 to 255, and of mask or None
    pixels : bool
        Show axes in pixels.
    """
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    height = 0.35 + rows * (WIDTH / columns * 0.68 + 0.3)
    figure, axes = new_figure(rows, columns, height, suptitle, squeeze=False)
    for axis in axes.flat[len(images) :]:
        axis.axis("off")
    masks = [None] * len(images) if masks is None else masks
    for axis, image, title, mask in zip(axes.flat, images, titles, masks, strict=False):
        draw_image(axis, image, title, mask)
        if pixels:
            axis.axis("on")
            axis.set(xlabel="x (px)", ylabel="y (px)")
    return figure


def show_overlay(image, truth=None, prediction=None, title=""):
    """One image (height, width), 0 to 255, with the borders of truth and prediction."""
    figure, axis = new_figure(height=4.2)
    draw_image(axis, image, title, truth, prediction)
    if truth is not None or prediction is not None:
        axis.legend(loc="lower left", framealpha=0.8)
    return figure


def show_overlays(images, truths, predictions, titles, suptitle=None):
    """A row of overlays under one legend."""
    figure, axes = new_figure(1, len(images), WIDTH / len(images) * 0.68 + 0.9, suptitle, squeeze=False)
    for axis, image, truth, prediction, title in zip(axes.flat, images, truths, predictions, titles, strict=True):
        draw_image(axis, image, title, truth, prediction)
    legend_below(figure)
    return figure


def show_centroids(measurements, near, border, title):
    """Where the regions' centroids lie in the frame, the border strip shaded, those `near` it (bool) ringed."""
    figure, axis = new_figure(height=3.4)
    axis.add_patch(Rectangle((0, 0), 1, 1, color=PREDICTION, alpha=0.25, label=f"{border:.0%} border strip"))
    axis.add_patch(Rectangle((border, border), 1 - 2 * border, 1 - 2 * border, color="white"))
    x, y = measurements.centroid_x, measurements.centroid_y
    axis.scatter(x, y, s=12, color=ACCENT, label="centroid")
    axis.scatter(x[near], y[near], s=60, facecolors="none", edgecolors="black", label="near the border")
    axis.set(xlim=(0, 1), xlabel="x (fraction of the width)", title=title)
    axis.set(ylim=(1, 0), ylabel="y (fraction of the height)")
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def draw_unet(shapes, title):
    """The network as a U, every box as traced: height by pixels, width by channels, both on a log scale.

    `shapes` lists (name, (channels, height, width)) of what the first block, each down, each up and the last give.
    """
    depth = len(shapes) // 2 - 1
    levels = [*range(depth + 1), *range(depth - 1, -1, -1), 0]
    colors = [ACCENT] * (depth + 1) + [TRUTH] * depth + [PREDICTION]
    figure, axis = new_figure(height=4.3)
    boxes, x = [], 0.0
    for (_, (channels, rows, columns)), level, color in zip(shapes, levels, colors, strict=True):
        height = 0.3 + 0.9 * np.log2(rows) / np.log2(shapes[0][1][1])
        width = 0.12 + 0.08 * np.log2(channels + 1)
        y, middle = -1.75 * level, x + width / 2
        axis.add_patch(Rectangle((x, y - height / 2), width, height, color=color, alpha=0.8))
        axis.text(middle, y - height / 2 - 0.08, f"{columns} × {rows}", ha="center", va="top", fontsize=7)
        axis.text(middle, y + height / 2 + 0.05, channels, ha="center", va="bottom", fontsize=8)
        boxes.append((x - 0.05, x + width + 0.05, y))
        x += width + 0.75
    look = {"arrowstyle": "-|>", "mutation_scale": 8}
    for (_, start, y), (end, _, next_y) in pairwise(boxes):
        axis.annotate("", (end, next_y), (start, y), arrowprops=look | {"color": "black"})
    for (_, start, y), (end, _, _) in zip(boxes[:depth], boxes[2 * depth : depth : -1], strict=True):
        dashed = look | {"color": BACKGROUND, "linestyle": "dashed"}
        axis.annotate("", (end, y + 0.15), (start, y + 0.15), arrowprops=dashed)
    axis.set(xlim=(-0.4, x - 0.3), ylim=(-1.75 * depth - 1.1, 1.1), title=title)
    axis.axis("off")
    key = {"channels above, width × height below": "none", "down": ACCENT, "up": TRUTH, "1 × 1 convolution": PREDICTION}
    for label, color in key.items():
        axis.plot([], [], "s", markersize=8, color=color, label=label)
    axis.plot([], [], color=BACKGROUND, linestyle="dashed", label="skip connection")
    legend_below(figure, fontsize=7)
    return figure


def show_history(history, stable=None, title="", baseline=None):
    """Losses and validation Dice over the epochs; early ones far below the rest are only counted, in the title.

    Parameters
    ----------
    history : pandas.DataFrame
        Columns `epoch`, `train_loss`, `valid_loss` and `valid_dice`.
    stable, baseline : int and float, optional
        Epoch from which the Dice stays within `STABLE` of its best, and Dice of the mean mask; both are marked.
    """
    figure, (left, right) = new_figure(1, 2, 2.8, title)
    left.plot(history.epoch, history.train_loss, color=BACKGROUND, label="train")
    left.plot(history.epoch, history.valid_loss, color=ACCENT, linestyle="dashed", label="valid")
    left.set(xlabel="epoch", ylabel="loss", title="loss")
    dice = history.valid_dice
    right.plot(history.epoch, dice, color=ACCENT, linestyle="dashed", label="valid")
    shown = [dice.quantile(0.1), *dice[len(dice) // 2 :]] if len(dice) else [0.5]
    if baseline is not None:
        shown.append(baseline)
        right.axhline(baseline, color=BACKGROUND, label=f"mean mask {baseline:.2f}")
    if stable is not None:
        right.axvline(stable, color=PREDICTION, linestyle="dotted", label=f"stable from epoch {stable}")
        band = {"color": PREDICTION, "alpha": 0.25, "linewidth": 0, "label": f"within {STABLE} of the best"}
        right.axhspan(dice.max() - STABLE, dice.max(), **band)
    bottom = max(0.0, min(shown) - max(0.01, 0.1 * (1 - min(shown))))
    below = int((dice < bottom).sum())
    name = "validation Dice" + (f" ({below} of {len(dice)} epochs below)" if below else "")
    right.set(xlabel="epoch", ylabel="Dice", title=name, ylim=(bottom, 1))
    left.legend()
    right.legend()
    return figure


def show_heat_map(image, probability, truth, threshold, title):
    """The image, the probability map (0 to 1), and the border that a threshold cuts out of it."""
    figure, (left, right) = new_figure(1, 2, 2.9, title)
    draw_image(left, image, f"cut at {threshold:.2f}", truth, np.asarray(probability) >= threshold)
    left.legend(loc="lower left", fontsize=7)
    shown = draw_image(right, probability, "probability of tumor", cmap="magma", white=1)
    figure.colorbar(shown, ax=right, fraction=0.035)
    return figure


def show_pipeline(image, truth, probability, prediction, title):
    """Four steps of one image: what comes in, the truth, the probability map, the prediction on the image."""
    figure, axes = new_figure(1, 4, 1.9, title)
    draw_image(axes[0], image, "image")
    draw_image(axes[1], truth, "mask (truth)", white=1)
    draw_image(axes[2], probability, "probability map", cmap="magma", white=1)
    draw_image(axes[3], image, "prediction", truth, prediction)
    return figure


def show_score_spread(scores, interval, title):
    """Dice of each image, in rising order, with the mean and its interval (low, high)."""
    figure, axis = new_figure()
    ordered = np.sort(scores)
    axis.plot(np.arange(1, len(ordered) + 1), ordered, "o", markersize=3, color=ACCENT, label="one image")
    axis.axhline(ordered.mean(), color="black", linewidth=1, label=f"mean {ordered.mean():.3f}")
    axis.axhspan(*interval, color=ACCENT, alpha=0.2, label="95 % interval of the mean")
    axis.set(xlabel="image, from worst to best", ylabel="Dice", title=title)
    axis.legend(loc="lower right")
    return figure


def show_cuts(table, threshold, title):
    """Mean Dice over thresholds, a line per step of post-processing; 0.5 and the chosen threshold marked."""
    figure, axis = new_figure(height=2.9)
    for order, (column, (color, style)) in enumerate(zip(table.columns, LINES, strict=True)):
        axis.plot(table.index, table[column], color=color, linestyle=style, label=column, zorder=3 - order / 10)
    axis.axvline(0.5, color="black", linestyle=(0, (1, 3)), linewidth=1, label="0.5, as usual")
    axis.axvline(threshold, color="black", linewidth=1, label=f"chosen: {threshold:.2f}")
    axis.set(xlabel="threshold (probability)", ylabel="mean Dice", title=title)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def show_errors(images, truths, predictions, titles, suptitle=None):
    """What is predicted but not true (orange) and true but not predicted (green), on each image (height, width)."""
    figure, axes = new_figure(1, len(images), WIDTH / len(images) * 0.68 + 0.9, suptitle, squeeze=False)
    for axis, image, truth, prediction, title in zip(axes.flat, images, truths, predictions, titles, strict=True):
        picture = np.repeat(image[:, :, None] / 255, 3, axis=2)
        for where, color, label in (
            (prediction > truth, PREDICTION, "predicted, not true"),
            (truth > prediction, TRUTH, "true, not predicted"),
        ):
            picture[where] = 0.25 * picture[where] + 0.75 * np.array(to_rgb(color))
            axis.plot([], [], "s", color=color, label=label)
        draw_image(axis, picture, title, truth)
    legend_below(figure)
    return figure
