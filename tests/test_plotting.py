"""Figures: their size, their words, their colours, what they leave behind, and that they show what they are given."""

import inspect
import io
from functools import cache

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure
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


def pictures(count, **options):
    masks = [ellipse()] * (count - 1) + [None]
    return plotting.show_images([image()] * count, [ID] * count, masks=masks, suptitle=TITLE, **options)


CASES = {
    "show_images one": lambda: pictures(1),
    "show_images six": lambda: pictures(6),
    "show_images ten": lambda: pictures(10),
    "show_images upright": lambda: plotting.show_images([image(80, 54)] * 4, [ID] * 4, columns=4, suptitle=TITLE),
    "show_images with predictions": lambda: pictures(3, predictions=[ellipse()] * 3),
    "show_images with one prediction": lambda: plotting.show_images(
        [image()], [ID], masks=[ellipse()], predictions=[ellipse()], suptitle=TITLE
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
    assert made == {name.split()[0] for name in CASES}


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
    figure = plotting.show_images([image()], [""], masks=[ellipse()], predictions=[ellipse()])
    lines = figure.legends[0].get_lines()
    assert [line.get_color() for line in lines] == [plotting.TRUTH, plotting.PREDICTION]
    assert lines[0].get_linestyle() != lines[1].get_linestyle()


def test_a_saved_figure_is_a_png_in_a_folder_that_is_made(tmp_path):
    plotting.save(plotting.new_figure()[0], tmp_path / "new" / "curve.png")
    assert cv2.imread(str(tmp_path / "new" / "curve.png")).shape == (520, 1360, 3)
