"""The figures of evaluation: their size, their words, their colours, and that they show the numbers they are given."""

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

from fetalseg_helpers import biometry, calibration, plotting, robustness, score_plots, surface

LARGEST = (700, 450)  # px at 100 dpi
TITLE = "Something of 10 test phantoms"
RNG = np.random.default_rng(0)
DICE = np.clip(1 - RNG.gamma(1.2, 0.03, 40), 0, 1)
MEASURED, TRUE = np.array([100.0, 210.0, 296.0]), np.array([98.0, 212.0, 300.0])
UNITS = {name: ways.unit for name, ways in robustness.CORRUPTIONS.items()}


def ellipse(shift=0, height=54, width=80):
    mask = np.zeros((height, width), np.uint8)
    return cv2.ellipse(mask, ((width * 0.5 + shift, height / 2), (width * 0.5, height * 0.4), 20.0), 1, -1)


def image(height=54, width=80):
    return np.random.default_rng(0).integers(0, 200, (height, width), dtype=np.uint8)


def cuts():
    thresholds = np.round(np.arange(0.1, 0.91, 0.05), 2)
    columns = {name: 0.9 + 0.01 * n - 0.1 * (thresholds - 0.4) ** 2 for n, name in enumerate(("every", "largest"))}
    columns |= {"filled": columns["largest"] + 0.001, "ellipse": columns["largest"] + 0.01}
    return pd.DataFrame(columns, index=pd.Index(thresholds, name="threshold"))


def border():
    prediction, truth = ellipse(3), ellipse()
    distances = surface.border_distances(prediction, truth)[0]
    return image(), prediction, surface.border_of(prediction), distances, TITLE


def reliabilities():
    probability = cv2.GaussianBlur(ellipse(2).astype(np.float32), (0, 0), 4)
    widths = {"all pixels": None, "within 5 px of the border": 5}
    return {name: calibration.reliability([probability], [ellipse()], width=width) for name, width in widths.items()}


def robustness_rows():
    rows = []
    for name, (_, strengths, _) in robustness.CORRUPTIONS.items():
        rows += [(name, strength, 0.95 - 0.1 * step, 0) for step, strength in enumerate((0, *strengths))]
    return pd.DataFrame(rows, columns=["corruption", "strength", "dice", "lost"])


def leaks():
    rows = [("examination", False, 0.93, 12), ("image", False, 0.92, 5), ("image", True, 0.95, 7)]
    rows += [("folder", False, 0.91, 3), ("folder", True, 0.96, 9)]
    return pd.DataFrame(rows, columns=["split_by", "seen", "dice", "images"])


def doubt(spread=0.2):
    mean = cv2.GaussianBlur(ellipse(1).astype(np.float32), (0, 0), 3)
    return image(), ellipse(), mean, spread * mean * (1 - mean), TITLE


CASES = {
    "show_score_spread": lambda: score_plots.show_score_spread(DICE, (0.95, 0.97), TITLE),
    "show_score_spread one": lambda: score_plots.show_score_spread([0.9], (0.9, 0.9), TITLE),
    "show_cuts": lambda: score_plots.show_cuts(cuts(), 0.4, TITLE),
    "show_errors": lambda: score_plots.show_errors([image()], [ellipse()], [ellipse(4)], ["1_HC: Dice 0.912"], TITLE),
    "show_errors three": lambda: score_plots.show_errors(
        [image()] * 3, [ellipse()] * 3, [ellipse(4), 0 * ellipse(), ellipse()], ["worst: 0.5", "empty", "best"], TITLE
    ),
    "show_errors upright": lambda: score_plots.show_errors(
        [image(80, 54)], [ellipse(0, 80, 54)], [0 * ellipse(0, 80, 54)], ["1_HC"]
    ),
    "show_border_distances": lambda: score_plots.show_border_distances(*border()),
    "show_reliability": lambda: score_plots.show_reliability(reliabilities(), TITLE),
    "show_reliability one bin": lambda: score_plots.show_reliability(
        {"all pixels": calibration.reliability([np.full((5, 5), 0.3)], [np.eye(5)])}, TITLE
    ),
    "show_doubt": lambda: score_plots.show_doubt(*doubt()),
    "show_doubt without any": lambda: score_plots.show_doubt(*doubt(0)),
    "show_risk_coverage": lambda: score_plots.show_risk_coverage(calibration.risk_coverage(DICE[::-1], DICE), TITLE),
    "show_risk_coverage perfect": lambda: score_plots.show_risk_coverage(
        calibration.risk_coverage([1, 2], [0, 0]), TITLE
    ),
    "show_robustness": lambda: score_plots.show_robustness(robustness_rows(), UNITS, TITLE),
    "show_bland_altman": lambda: score_plots.show_bland_altman(
        MEASURED, TRUE, biometry.agreement(MEASURED, TRUE), "mm", TITLE
    ),
    "show_leak": lambda: score_plots.show_leak(leaks(), TITLE),
    "show_differences": lambda: score_plots.show_differences(
        DICE[:20] - DICE[20:], "Dice, with the mirror - without", (-0.01, 0.02), TITLE
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


def line_at(axis, y):
    return next(line for line in axis.lines if np.allclose(line.get_ydata(), y))


# All of them


def test_every_function_that_makes_a_figure_is_tried_here():
    members = inspect.getmembers(score_plots, inspect.isfunction)
    assert {name for name, _ in members if name.startswith("show_")} == {name.split()[0] for name in CASES}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", CASES)
def test_a_figure_fits_700_by_450_px_leaves_nothing_open_and_warns_of_nothing(name):
    open_before = plt.get_fignums()
    figure = CASES[name]()
    assert isinstance(figure, Figure) and plt.get_fignums() == open_before
    for options in ({}, {"bbox_inches": "tight"}):  # Jupyter's inline backend saves tight
        width, height = size_of(figure, **options)
        assert width <= LARGEST[0] and height <= LARGEST[1], (width, height, options)


@pytest.mark.parametrize("name", CASES)
def test_nothing_that_is_written_on_a_figure_is_cut_off(name):
    figure, (width, height) = drawn(name)
    words = [axis.get_legend() for axis in figure.axes] + figure.legends + figure.texts
    words += [part for axis in figure.axes if axis.axison for part in (axis.xaxis.label, axis.yaxis.label)]
    words += [axis.title for axis in figure.axes]
    for part in (part for part in words if part and (not isinstance(part, plt.Text) or part.get_text())):
        box = part.get_window_extent()
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1, part


@pytest.mark.parametrize("name", CASES)
def test_a_figure_has_its_title_and_every_axis_with_data_says_what_it_shows(name):
    figure, _ = drawn(name)
    assert TITLE in texts_of(figure) or "upright" in name
    axes = with_data(figure)
    pictures = ("show_errors", "show_doubt")
    assert axes or name.startswith(pictures)
    for axis in axes:
        assert axis.get_xlabel(), name
        shared = name == "show_robustness" and axis not in (figure.axes[0], figure.axes[4])
        assert axis.get_ylabel() or shared, name


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("show_border_distances", "distance from the truth (px)"),
        ("show_border_distances", "distance (px)"),
        ("show_bland_altman", "mean of both (mm)"),
        ("show_bland_altman", "predicted - true (mm)"),
        *(("show_robustness", unit) for unit in UNITS.values()),
    ],
)
def test_what_has_a_unit_says_it(name, label):
    assert label in texts_of(drawn(name)[0])


def test_truth_is_green_and_prediction_orange_and_they_differ_on_what_is_painted():
    assert (score_plots.TRUTH, score_plots.PREDICTION) == (plotting.TRUTH, plotting.PREDICTION)
    truth, prediction = ellipse(), ellipse(6)
    figure = score_plots.show_errors([image()], [truth], [prediction], [""])
    painted = figure.axes[0].images[0].get_array()
    for where, color in (((prediction == 1) & (truth == 0), "PREDICTION"), ((truth == 1) & (prediction == 0), "TRUTH")):
        expected = 0.25 * image()[where, None] / 255 + 0.75 * np.array(to_rgb(getattr(plotting, color)))
        np.testing.assert_allclose(painted[where], expected)
    same = truth == prediction
    np.testing.assert_allclose(painted[same], np.repeat(image()[same, None] / 255, 3, axis=1))
    (contour,) = figure.axes[0].collections
    assert np.allclose(contour.get_edgecolor(), to_rgba(plotting.TRUTH))
    patches = {
        t.get_text(): p for t, p in zip(figure.legends[0].get_texts(), figure.legends[0].legend_handles, strict=True)
    }
    assert np.allclose(patches["predicted, not true"].get_facecolor(), to_rgba(plotting.PREDICTION))
    assert np.allclose(patches["true, not predicted"].get_facecolor(), to_rgba(plotting.TRUTH))


# One by one


def test_the_score_spread_shows_every_score_the_mean_and_the_interval():
    axis = score_plots.show_score_spread([0.9, 0.7, 0.8], (0.75, 0.85), "").axes[0]
    dots, mean = axis.lines
    assert list(dots.get_xdata()) == [1, 2, 3] and list(dots.get_ydata()) == [0.7, 0.8, 0.9]
    assert np.allclose(mean.get_ydata(), 0.8) and mean.get_label() == "mean 0.800"
    assert np.allclose(sorted({round(y, 6) for y in axis.patches[0].get_corners()[:, 1]}), [0.75, 0.85])


def test_the_cuts_show_a_line_per_step_and_mark_the_choice():
    axis = score_plots.show_cuts(cuts(), 0.35, "").axes[0]
    lines = {line.get_label(): line for line in axis.lines}
    for name, column in cuts().items():
        np.testing.assert_allclose(lines[name].get_xydata(), np.column_stack([column.index, column]))
    assert set(lines["chosen: 0.35"].get_xdata()) == {0.35} and set(lines["0.5, as usual"].get_xdata()) == {0.5}
    assert len({(line.get_color(), line.get_linestyle()) for line in axis.lines[:4]}) == 4
    low, high = axis.get_ylim()
    middle = cuts().loc[0.2:0.8]
    assert low < middle.to_numpy().min() and middle.to_numpy().max() < high


def test_border_distances_lie_on_the_border_and_are_all_counted():
    _, _, edge, distances, _ = border()
    figure = score_plots.show_border_distances(*border())
    left, right = figure.axes[:2]
    (dots,) = left.collections
    assert np.array_equal(dots.get_offsets(), np.argwhere(edge)[:, ::-1]) and len(distances) == edge.sum()
    np.testing.assert_allclose(dots.get_array(), distances)
    assert sum(bar.get_height() for bar in right.patches) == len(distances)
    (mark,) = set(right.lines[0].get_xdata())
    assert mark == pytest.approx(np.percentile(distances, 95))
    assert right.lines[0].get_label() == f"95 % are within {mark:.1f} px"


def test_reliability_shows_its_table_beside_the_diagonal_and_shares_that_add_up():
    tables = reliabilities()
    left, right = score_plots.show_reliability(tables, "").axes
    assert np.array_equal(left.lines[0].get_xydata(), [[0, 0], [1, 1]])
    for table, line, shares in zip(tables.values(), left.lines[1:], right.lines, strict=True):
        np.testing.assert_allclose(line.get_xydata(), table[["probability", "share"]])
        assert sum(shares.get_ydata()) == pytest.approx(1)
    assert len({line.get_linestyle() for line in left.lines}) == 3
    low, high = right.get_ylim()
    assert np.log10(low) == round(np.log10(low)) and high > 1  # a labelled decade at each end


def test_of_a_narrow_range_of_shares_only_decades_are_labelled():
    for name in ("show_reliability", "show_reliability one bin"):
        axis = drawn(name)[0].axes[1]
        assert not any(label.get_text() for label in axis.yaxis.get_minorticklabels())
        low, high = axis.get_ylim()
        assert sum(low <= tick <= high for tick in axis.get_yticks()) >= 2


def test_doubt_shows_mean_spread_and_error_on_scales_of_their_own():
    picture, truth, mean, spread, _ = doubt()
    figure = score_plots.show_doubt(*doubt())
    panels = {axis.get_title(): axis.images[0] for axis in figure.axes if axis.get_title()}
    assert list(panels) == [
        "image, truth in green",
        "mean of the views",
        "spread of the views (SD)",
        "error, |P - truth|",
    ]
    shown = [panel.get_array() for panel in panels.values()]
    for values, expected in zip(shown, (picture, mean, spread, np.abs(mean - truth)), strict=True):
        np.testing.assert_allclose(values, expected)
    assert [panel.get_clim()[1] for panel in panels.values()] == pytest.approx([255, 1, 0.05, 1])
    size_of(figure)
    places = [axis.get_position() for axis in figure.axes[:4]]
    assert places[0].x0 == pytest.approx(places[2].x0, abs=0.005)  # one column stands under the other
    assert places[1].x0 == pytest.approx(places[3].x0, abs=0.005)


def test_risk_and_coverage_are_those_of_the_table_and_end_together():
    table = calibration.risk_coverage([0.3, 0.1, 0.2], [0.4, 0.1, 0.3])
    axis = score_plots.show_risk_coverage(table, "").axes[0]
    np.testing.assert_allclose(axis.lines[0].get_xydata(), table[["coverage", "risk"]])
    np.testing.assert_allclose(axis.lines[1].get_xydata(), table[["coverage", "best"]])
    assert np.allclose(axis.lines[2].get_ydata(), 0.8 / 3) and axis.get_ylim()[0] == 0


def test_robustness_shows_each_way_from_its_first_strength_beside_the_image_as_it_is():
    table = robustness_rows()
    figure = score_plots.show_robustness(table, UNITS, "")
    for axis, (name, rows) in zip(figure.axes, table.groupby("corruption", sort=False), strict=False):
        assert axis.get_title() == name and axis.get_xlabel() == UNITS[name]
        np.testing.assert_allclose(axis.lines[0].get_xydata(), rows[["strength", "dice"]][1:])
        assert np.allclose(axis.lines[1].get_ydata(), 0.95)
    assert len({axis.get_ylim() for axis in figure.axes[:7]}) == 1  # one scale
    low, high = figure.axes[0].get_ylim()
    assert low < table.dice.min() and high == 1


def test_bland_and_altman_draw_difference_against_mean_and_the_limits():
    numbers = biometry.agreement(MEASURED, TRUE)
    axis = score_plots.show_bland_altman(MEASURED, TRUE, numbers, "mm", "").axes[0]
    np.testing.assert_allclose(axis.lines[0].get_xydata(), [(99, 2), (211, -2), (298, -4)])
    labels = [line_at(axis, numbers[name]).get_label() for name in ("df", "low")]
    assert labels[0] == "mean -1.33 mm" and labels[1].startswith("± 1.96 SD: ")
    assert line_at(axis, numbers["high"]).get_linestyle() == line_at(axis, numbers["low"]).get_linestyle() == "--"
    low, high = axis.get_ylim()
    assert low < numbers["low"] and numbers["high"] < high


def test_a_leak_shows_both_groups_of_each_way_to_split_apart_in_order():
    axis = score_plots.show_leak(leaks(), "").axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["examination", "image", "folder"]
    alone, seen = (group.get_offsets() for group in axis.collections)
    np.testing.assert_allclose(alone, [(0.93, -0.12), (0.92, 0.88), (0.91, 1.88)])
    np.testing.assert_allclose(seen, [(0.95, 1.12), (0.96, 2.12)])
    assert axis.yaxis_inverted()
    sizes = np.concatenate([group.get_sizes() for group in axis.collections])
    assert list(np.argsort(sizes)) == list(np.argsort([12, 5, 3, 7, 9]))  # the more images, the larger


def test_differences_are_shown_in_order_around_the_line_of_none():
    axis = score_plots.show_differences([0.2, -0.1, 0.05], "Dice", (-0.02, 0.1), "").axes[0]
    none, mean, dots = axis.lines
    assert np.allclose(none.get_ydata(), 0) and np.allclose(mean.get_ydata(), 0.05)
    assert list(dots.get_ydata()) == [-0.1, 0.05, 0.2] and axis.get_ylabel() == "Dice"
    assert np.allclose(sorted({round(y, 6) for y in axis.patches[0].get_corners()[:, 1]}), [-0.02, 0.1])
