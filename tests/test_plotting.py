"""Figures: their size, their words, their colours, what they leave behind, and that they show what they are given."""

import inspect
import io
from functools import cache

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Annotation
from scipy.spatial.distance import cdist

from fetalseg_helpers import plotting

LARGEST = (700, 450)  # px at 100 dpi
ID = "phantom 0123_2HC"
TITLE = "Something of 10 test phantoms"
DICE = np.clip(1 - np.random.default_rng(0).gamma(1.2, 0.03, 40), 0, 1)
PROBABILITY = np.random.default_rng(1).random((54, 80))


def ellipse(shift=0, height=54, width=80):
    mask = np.zeros((height, width), np.uint8)
    return cv2.ellipse(mask, ((width * 0.5 + shift, height / 2), (width * 0.5, height * 0.4), 20.0), 1, -1)


def image(height=54, width=80):
    return np.random.default_rng(0).integers(0, 200, (height, width), dtype=np.uint8)


def history(epochs=6):
    epoch = np.arange(1, epochs + 1)
    return pd.DataFrame(
        {"epoch": epoch, "train_loss": 1 / epoch, "valid_loss": 1.2 / epoch, "valid_dice": 1 - 0.6 / epoch}
    )


def centroids():
    xy = np.random.default_rng(0).random((20, 2))
    return pd.DataFrame(xy, columns=["centroid_x", "centroid_y"])


def shapes(base, depth, height, width):
    """The outputs of a U-Net's parts in the order of a pass, as notebook 04 traces them."""
    levels = [(base * 2**level, height // 2**level, width // 2**level) for level in range(depth + 1)]
    down = [("first", levels[0]), *((f"downs.{number}", level) for number, level in enumerate(levels[1:]))]
    up = [(f"ups.{number}", level) for number, level in enumerate(reversed(levels[:-1]))]
    return [*down, *up, ("last", (1, height, width))]


def cuts():
    thresholds = np.round(np.arange(0.1, 0.91, 0.05), 2)
    columns = {name: 0.9 + 0.01 * n - 0.1 * (thresholds - 0.4) ** 2 for n, name in enumerate(("every", "largest"))}
    columns |= {"filled": columns["largest"] + 0.001, "ellipse": columns["largest"] + 0.01}
    return pd.DataFrame(columns, index=pd.Index(thresholds, name="threshold"))


def pictures(count, **options):
    masks = [ellipse()] * (count - 1) + [None]
    return plotting.show_images([image()] * count, [ID] * count, masks=masks, suptitle=TITLE, **options)


CASES = {
    "show_images one": lambda: pictures(1),
    "show_images six": lambda: pictures(6, pixels=True),
    "show_images ten": lambda: pictures(10),
    "show_images upright": lambda: plotting.show_images([image(80, 54)] * 4, [ID] * 4, columns=4, suptitle=TITLE),
    "show_overlay": lambda: plotting.show_overlay(image(), ellipse(), ellipse(), TITLE),
    "show_overlay upright": lambda: plotting.show_overlay(image(80, 54), ellipse(0, 80, 54), None, TITLE),
    "show_overlay bare": lambda: plotting.show_overlay(image(), title=TITLE),
    "show_overlays one": lambda: plotting.show_overlays([image()], [ellipse()], [ellipse()], [TITLE]),
    "show_overlays three": lambda: plotting.show_overlays(
        [image()] * 3, [ellipse()] * 3, [ellipse()] * 3, ["worst: Dice 0.812", "median: 0.934", "best: 0.971"], TITLE
    ),
    "show_centroids": lambda: plotting.show_centroids(centroids(), centroids().centroid_x < 0.1, 0.1, TITLE),
    "draw_unet": lambda: plotting.draw_unet(shapes(64, 4, 96, 128), TITLE),
    "draw_unet shallow": lambda: plotting.draw_unet(shapes(2, 1, 16, 16), TITLE),
    "show_history": lambda: plotting.show_history(history(), 3, TITLE),
    "show_history with a baseline": lambda: plotting.show_history(history(), 3, TITLE, 0.41),
    "show_history one epoch": lambda: plotting.show_history(history(1), title=TITLE),
    "show_heat_map": lambda: plotting.show_heat_map(image(), PROBABILITY, ellipse(), 0.5, TITLE),
    "show_pipeline": lambda: plotting.show_pipeline(image(), ellipse(), PROBABILITY, ellipse(), TITLE),
    "show_score_spread": lambda: plotting.show_score_spread(DICE, (0.95, 0.97), TITLE),
    "show_score_spread one": lambda: plotting.show_score_spread([0.9], (0.9, 0.9), TITLE),
    "show_cuts": lambda: plotting.show_cuts(cuts(), 0.4, TITLE),
    "show_errors": lambda: plotting.show_errors([image()], [ellipse()], [ellipse(4)], [TITLE]),
    "show_errors three": lambda: plotting.show_errors(
        [image()] * 3, [ellipse()] * 3, [ellipse(4), 0 * ellipse(), ellipse()], [TITLE, "empty", "best"]
    ),
    "show_errors upright": lambda: plotting.show_errors(
        [image(80, 54)], [ellipse(0, 80, 54)], [0 * ellipse(0, 80, 54)], [TITLE]
    ),
}


@cache
def drawn(name):
    """The figure of a case, for tests that only look at it; laid out as it is saved."""
    figure = CASES[name]()
    return figure, size_of(figure)


def texts_of(figure):
    """All that stands on a figure."""
    found = [text.get_text() for text in figure.findobj(plt.Text)]
    return [text for text in found if text.strip()]


def with_data(figure):
    return [axis for axis in figure.axes if axis.axison and axis.get_label() != "<colorbar>"]


def size_of(figure, **options):
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100, **options)
    picture = cv2.imdecode(np.frombuffer(buffer.getvalue(), np.uint8), cv2.IMREAD_COLOR)
    return picture.shape[1::-1]


# All of them


def test_every_function_that_makes_a_figure_is_tried_here():
    made = {name for name, _ in inspect.getmembers(plotting, inspect.isfunction) if name.startswith("show_")}
    assert made | {"draw_unet"} == {name.split()[0] for name in CASES}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", CASES)
def test_a_figure_fits_700_by_450_px_leaves_nothing_open_and_warns_of_nothing(name):
    open_before = plt.get_fignums()
    figure, size = drawn(name)
    assert isinstance(figure, Figure) and plt.get_fignums() == open_before
    tight = size_of(figure, bbox_inches="tight")  # as Jupyter's inline backend saves
    for width, height in (size, tight):
        assert width <= LARGEST[0] and height <= LARGEST[1]


@pytest.mark.parametrize("name", CASES)
def test_nothing_that_is_written_on_a_figure_is_cut_off(name):
    figure, (width, height) = drawn(name)
    words = [axis.get_legend() for axis in figure.axes] + figure.legends + figure.texts
    words += [part for axis in figure.axes if axis.axison for part in (axis.xaxis.label, axis.yaxis.label)]
    words += [axis.title for axis in figure.axes]
    for part in (part for part in words if part and (not isinstance(part, plt.Text) or part.get_text())):
        box = part.get_window_extent()
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1, part


PICTURES = {
    "show_images",
    "show_overlay",
    "show_overlays",
    "draw_unet",
    "show_heat_map",
    "show_pipeline",
    "show_errors",
}


@pytest.mark.parametrize("name", CASES)
def test_a_figure_has_its_title_and_every_axis_with_data_says_what_it_shows(name):
    figure, _ = drawn(name)
    assert TITLE in texts_of(figure)
    axes = with_data(figure)
    assert axes or name.split()[0] in PICTURES
    for axis in axes:
        assert axis.get_xlabel() and axis.get_ylabel()


def test_a_figure_is_never_higher_than_the_page_allows():
    figure, axes = plotting.new_figure(2, 2, height=99)
    assert size_of(figure) <= LARGEST and axes.shape == (2, 2)


# One by one


def contour_points(mask):
    """Vertices (x, y) of what draw_outline draws, and the axis."""
    figure, axis = plotting.new_figure()
    plotting.draw_outline(axis, mask, "red")
    figure.canvas.draw()
    points = [path.vertices for drawn in axis.collections for path in drawn.get_paths()]
    return np.concatenate(points) if points else np.empty((0, 2)), axis


def cut_by_the_frame():
    return ellipse()[:, :60]


def single_pixel():
    mask = np.zeros((7, 9), np.uint8)
    mask[3, 4] = 1
    return mask


@pytest.mark.parametrize("make", [ellipse, cut_by_the_frame, single_pixel])
def test_an_outline_follows_the_border_within_half_a_pixel(make):
    mask = make()
    points, _ = contour_points(mask)
    padded = np.pad(mask, 1)  # beyond the frame is outside
    inside, outside = (np.argwhere(padded == value)[:, ::-1] - 1 for value in (1, 0))
    assert len(points) > 3
    assert cdist(points, inside).min(axis=1).max() <= 0.5 + 1e-6
    assert cdist(points, outside).min(axis=1).max() <= 0.5 + 1e-6
    border = inside[cdist(inside, outside).min(axis=1) < 1.1]  # pixels with a neighbour outside
    assert cdist(border, points).min(axis=1).max() <= 0.5 + 1e-6


def test_an_empty_mask_has_no_outline_and_the_view_is_the_image():
    points, axis = contour_points(np.zeros((10, 20), np.uint8))
    assert len(points) == 0
    assert axis.get_xlim() == (-0.5, 19.5) and axis.get_ylim() == (9.5, -0.5)


def test_truth_and_prediction_differ_in_color_and_line_style():
    figure = plotting.show_overlay(image(), ellipse(), ellipse(), "")
    lines = figure.axes[0].get_legend().get_lines()
    assert [line.get_color() for line in lines] == [plotting.TRUTH, plotting.PREDICTION]
    assert lines[0].get_linestyle() != lines[1].get_linestyle()


def test_the_heat_map_is_cut_where_the_threshold_says():
    probability = np.zeros((20, 30))
    probability[5:15, 5:20] = 0.6
    truth = ellipse(0, 20, 30)
    figures = [plotting.show_heat_map(image(20, 30), probability, truth, at, "") for at in (0.5, 0.7)]
    assert [len(figure.axes[0].collections) for figure in figures] == [2, 1]  # the truth's border always


def dice_axis(scores, **options):
    """The axis with the validation Dice of a history with these scores."""
    return plotting.show_history(history(len(scores)).assign(valid_dice=scores), **options).axes[1]


def test_one_bad_first_epoch_does_not_flatten_the_last_ones():
    scores = [0.05, *np.linspace(0.94, 0.98, 34)]
    axis = dice_axis(scores)
    lowest, highest = axis.get_ylim()
    assert 0.05 < lowest < 0.94 and highest == 1
    assert axis.get_title() == "validation Dice (1 of 35 epochs below)"
    assert list(axis.lines[0].get_ydata()) == scores


@pytest.mark.parametrize(
    "scores", [[0.7], [0.1, 0.9], [0.9, 0.95, 0.96, 0.5, 0.2, 0.1], [0.0, 0.0], [1.0, 1.0], [0.3, 0.5, 0.7, 0.9, 0.95]]
)
@pytest.mark.parametrize("baseline", [None, 0.4, 0.99])
def test_the_later_half_of_the_epochs_and_the_baseline_are_in_the_picture(scores, baseline):
    axis = dice_axis(scores, baseline=baseline)
    lowest, highest = axis.get_ylim()
    shown = [*scores[len(scores) // 2 :], *([] if baseline is None else [baseline])]
    assert 0 <= lowest <= min(shown) and max(shown) <= highest and lowest < highest
    assert ("below" in axis.get_title()) == (min(scores) < lowest)


def test_a_history_without_an_epoch_has_an_empty_picture():
    assert dice_axis([]).get_ylim() == pytest.approx((0.45, 1))


def test_the_shaded_band_is_what_stable_means():
    axis = dice_axis([0.5, 0.9, 0.975, 0.98, 0.97], stable=3)
    (band,) = axis.patches
    assert (band.get_y(), band.get_y() + band.get_height()) == pytest.approx((0.98 - plotting.STABLE, 0.98))
    assert str(plotting.STABLE) in band.get_label()
    assert not dice_axis([0.5, 0.9]).patches


def test_the_u_shows_a_box_per_part_an_arrow_per_step_and_one_per_skip():
    figure = plotting.draw_unet(shapes(8, 3, 32, 48), "")
    axis = figure.axes[0]
    boxes = [patch for patch in axis.patches if isinstance(patch, Rectangle)]
    arrows = [text for text in axis.texts if isinstance(text, Annotation)]
    assert len(boxes) == 8 and len(arrows) == 7 + 3
    written = [text.get_text() for text in axis.texts if text not in arrows]
    assert written[0::2] == ["48 × 32", "24 × 16", "12 × 8", "6 × 4", "12 × 8", "24 × 16", "48 × 32", "48 × 32"]
    assert written[1::2] == ["8", "16", "32", "64", "32", "16", "8", "1"]
    middles = [box.get_y() + box.get_height() / 2 for box in boxes]
    assert np.argmin(middles) == 3 and np.allclose(middles[:3], middles[6:3:-1])  # a U


def test_centroids_near_the_border_are_those_that_are_ringed():
    table = pd.DataFrame({"centroid_x": [0.5, 0.04, 0.7], "centroid_y": [0.5, 0.5, 0.97]})
    near = pd.Series([False, True, True])
    every, ringed = plotting.show_centroids(table, near, 0.05, "").axes[0].collections
    np.testing.assert_allclose(every.get_offsets(), table)
    np.testing.assert_allclose(ringed.get_offsets(), table[near])


def test_truth_is_green_and_prediction_orange_and_they_differ_on_what_is_painted():
    truth, prediction = ellipse(), ellipse(6)
    figure = plotting.show_errors([image()], [truth], [prediction], [""])
    painted = figure.axes[0].images[0].get_array()
    for where, color in (((prediction == 1) & (truth == 0), "PREDICTION"), ((truth == 1) & (prediction == 0), "TRUTH")):
        expected = 0.25 * image()[where, None] / 255 + 0.75 * np.array(to_rgb(getattr(plotting, color)))
        np.testing.assert_allclose(painted[where], expected)
    same = truth == prediction
    np.testing.assert_allclose(painted[same], np.repeat(image()[same, None] / 255, 3, axis=1))
    (contour,) = figure.axes[0].collections
    assert np.allclose(contour.get_edgecolor(), to_rgba(plotting.TRUTH))
    texts, handles = figure.legends[0].get_texts(), figure.legends[0].legend_handles
    colors = {text.get_text(): handle.get_color() for text, handle in zip(texts, handles, strict=True)}
    assert colors["predicted, not true"] == plotting.PREDICTION
    assert colors["true, not predicted"] == colors["truth"] == plotting.TRUTH


def test_the_score_spread_shows_every_score_the_mean_and_the_interval():
    axis = plotting.show_score_spread([0.9, 0.7, 0.8], (0.75, 0.85), "").axes[0]
    dots, mean = axis.lines
    assert list(dots.get_xdata()) == [1, 2, 3] and list(dots.get_ydata()) == [0.7, 0.8, 0.9]
    assert np.allclose(mean.get_ydata(), 0.8) and mean.get_label() == "mean 0.800"
    assert np.allclose(sorted({round(y, 6) for y in axis.patches[0].get_corners()[:, 1]}), [0.75, 0.85])


def test_the_cuts_show_a_line_per_step_and_mark_the_choice():
    axis = plotting.show_cuts(cuts(), 0.35, "").axes[0]
    lines = {line.get_label(): line for line in axis.lines}
    for name, column in cuts().items():
        np.testing.assert_allclose(lines[name].get_xydata(), np.column_stack([column.index, column]))
    assert set(lines["chosen: 0.35"].get_xdata()) == {0.35} and set(lines["0.5, as usual"].get_xdata()) == {0.5}
    assert len({(line.get_color(), line.get_linestyle()) for line in axis.lines[:4]}) == 4
    low, high = axis.get_ylim()
    middle = cuts().loc[0.2:0.8]
    assert low < middle.to_numpy().min() and middle.to_numpy().max() < high


def test_a_saved_figure_is_a_png_in_a_folder_that_is_made(tmp_path):
    plotting.save(plotting.new_figure()[0], tmp_path / "new" / "curve.png")
    assert cv2.imread(str(tmp_path / "new" / "curve.png")).shape == (260, 680, 3)
