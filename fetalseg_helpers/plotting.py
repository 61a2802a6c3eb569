"""One figure per question. Truth is green and solid, prediction orange and dashed, everywhere."""

import matplotlib.pyplot as plt
import numpy as np

TRUTH, PREDICTION, BACKGROUND, ACCENT = "#2fb344", "#ff8c1a", "#5b6770", "#2b6cb0"
OTHER, THIRD = "#7048a8", "#b5366f"  # for lines that are neither truth nor prediction
WIDTH, LARGEST_HEIGHT = 6.8, 4.3  # inches
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
    figure.savefig(path, dpi=200, metadata={"Software": None})


def legend_below(figure):
    """What is labelled in a figure's first axes, in one row under all of them."""
    labelled = figure.axes[0].get_legend_handles_labels()
    figure.legend(*labelled, loc="outside lower center", ncols=len(labelled[1]))


def draw_outline(axis, mask, color, style="solid", label=None):
    """Draw the border of a 0/1 mask of shape (height, width); nothing for an empty one."""
    height, width = np.shape(mask)
    padded = np.pad(np.asarray(mask, dtype=float), 1)
    if padded.any():
        axis.contour(padded, [0.5], extent=(-1, width, -1, height), colors=color, linestyles=style, linewidths=1.3)
    axis.plot([], [], color=color, linestyle=style, label=label)
    axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


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


def show_images(images, titles, columns=3, masks=None, predictions=None, suptitle=None):
    """Images (height, width) of 0 to 255, `columns` in a row, with borders of 0/1 masks and predictions, or None."""
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    height = 0.35 + rows * (WIDTH / columns * 0.68 + 0.3) + (0.25 if predictions else 0)
    figure, axes = new_figure(rows, columns, height, suptitle, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    nothing = [None] * len(images)
    for axis, *shown in zip(axes.flat, images, titles, masks or nothing, predictions or nothing, strict=False):
        draw_image(axis, *shown)
    if predictions:
        legend_below(figure)
    return figure
