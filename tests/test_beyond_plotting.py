"""The figure beyond Dice that the package draws: its size, its words, and that it shows the numbers it is given."""

import io

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pytest

from fetalseg_helpers.beyond_dice import borders, plotting

TITLE = "phantom 12_HC: Dice 0.912"
SIZE = (54, 80)
PREDICTION, TRUTH = np.zeros(SIZE, np.uint8), np.zeros(SIZE, np.uint8)
cv2.ellipse(PREDICTION, ((43, 27), (40, 22), 20.0), 1, -1)
cv2.ellipse(TRUTH, ((40, 27), (40, 22), 20.0), 1, -1)
EDGE, DISTANCES = borders.border_of(PREDICTION), borders.border_distances(PREDICTION, TRUTH)[0]


def figure_of_distances():
    image = np.random.default_rng(0).integers(0, 200, SIZE, dtype=np.uint8)
    return plotting.show_border_distances(image, PREDICTION, EDGE, DISTANCES, TITLE)


def size_of(figure, **options):
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100, **options)
    picture = cv2.imdecode(np.frombuffer(buffer.getvalue(), np.uint8), cv2.IMREAD_COLOR)
    return picture.shape[1::-1]


@pytest.mark.filterwarnings("error")
def test_the_figure_fits_700_by_450_px_leaves_nothing_open_and_warns_of_nothing():
    open_before = plt.get_fignums()
    figure = figure_of_distances()
    assert plt.get_fignums() == open_before
    for options in ({}, {"bbox_inches": "tight"}):  # Jupyter's inline backend saves tight
        width, height = size_of(figure, **options)
        assert width <= 700 and height <= 450, (width, height, options)


def test_nothing_that_is_written_is_cut_off_and_what_has_a_unit_says_it():
    figure = figure_of_distances()
    width, height = size_of(figure)
    said = [text for text in figure.findobj(plt.Text) if text.get_text()]
    words = {text.get_text() for text in said}
    assert words >= {TITLE, "distance (px)", "distance from the truth (px)", "border pixels"}
    for text in said:
        if len(text.get_text()) > 5:  # ticks beyond the axes are never drawn
            box = text.get_window_extent()
            assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1, text


def test_border_distances_lie_on_the_border_and_are_all_counted():
    left, right = figure_of_distances().axes[:2]
    (dots,) = left.collections
    assert np.array_equal(dots.get_offsets(), np.argwhere(EDGE)[:, ::-1]) and len(DISTANCES) == EDGE.sum()
    np.testing.assert_allclose(dots.get_array(), DISTANCES)
    assert sum(bar.get_height() for bar in right.patches) == len(DISTANCES)
    (mark,) = set(right.lines[0].get_xdata())
    assert mark == pytest.approx(np.percentile(DISTANCES, 95))
    assert right.lines[0].get_label() == f"95 % are within {mark:.1f} px"
    assert right.get_ylim()[1] >= 1.15 * max(bar.get_height() for bar in right.patches)  # room for the legend
