"""Figures: their size, what they leave behind, and outlines that follow the mask."""

import ast
import inspect
import io

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from scipy.spatial.distance import cdist

from fetalseg_helpers import plotting, training, unet

LARGEST = (700, 450)  # px at 100 dpi
ID = "phantom 0123_2HC"
SHAPES = unet.trace_shapes(unet.UNet(2, 4), 96, 128)


def ellipse(height=54, width=80):
    mask = np.zeros((height, width), np.uint8)
    return cv2.ellipse(mask, ((width * 0.55, height / 2), (width * 0.5, height * 0.4), 20.0), 1, -1)


def image(height=54, width=80):
    return np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8)


def history(epochs=6):
    epoch = np.arange(1, epochs + 1)
    return pd.DataFrame(
        {"epoch": epoch, "train_loss": 1 / epoch, "valid_loss": 1.2 / epoch, "valid_dice": 1 - 0.6 / epoch}
    )


def centroids():
    xy = np.random.default_rng(0).random((20, 2))
    return pd.DataFrame(xy, columns=["centroid_x", "centroid_y"])


def split_table():
    rows = {"test": [16, 16, 15], "test images seen": [0, 5, 4]}
    return pd.DataFrame(rows, index=["examination", "image", "folder"])


def pictures(count, **options):
    masks = [ellipse()] * (count - 1) + [None]
    return plotting.show_images([image()] * count, [ID] * count, masks=masks, suptitle="Six of them", **options)


PROBABILITY = np.random.default_rng(1).random((54, 80))
TRANSFER = pd.DataFrame({"pairs": [0, 16, 64], "a": [np.nan, 0.9, 0.95], "b": [0.8, 0.95, 0.96]})
SWEPT = pd.DataFrame(
    [
        {"run": f"{rate}{schedule}{seed}", "learning_rate": rate, "schedule": schedule, "seed": seed, "valid_dice": 0.9}
        for rate in (0.0001, 0.00025, 0.0005, 0.00075, 0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.008)
        for schedule in ("one-cycle", "constant")
        for seed in range(2)
    ]
)
CASES = {
    "show_images one": lambda: pictures(1),
    "show_images six": lambda: pictures(6, pixels=True),
    "show_images ten": lambda: pictures(10),
    "show_images upright": lambda: plotting.show_images([image(80, 54)] * 4, [ID] * 4, columns=4),
    "show_overlay": lambda: plotting.show_overlay(image(), ellipse(), ellipse(), f"Test {ID}, at its own size"),
    "show_overlay upright": lambda: plotting.show_overlay(image(80, 54), ellipse(80, 54), None, ID),
    "show_overlay bare": lambda: plotting.show_overlay(image()),
    "show_overlays one": lambda: plotting.show_overlays([image()], [ellipse()], [ellipse()], [ID]),
    "show_overlays three": lambda: plotting.show_overlays(
        [image()] * 3, [ellipse()] * 3, [ellipse()] * 3, ["worst: Dice 0.812", "median: 0.934", "best: 0.971"], "Test"
    ),
    "show_histogram": lambda: plotting.show_histogram([1, 2, 2, 3], "area (% of the frame)", ID, marks={"mean": 2}),
    "show_intensities": lambda: plotting.show_intensities({"inside": PROBABILITY, "outside": PROBABILITY**2}, ID),
    "show_split": lambda: plotting.show_split(split_table(), "Test images with a sibling in training (phantoms)"),
    "show_centroids": lambda: plotting.show_centroids(centroids(), centroids().centroid_x < 0.1, 0.1, ID),
    "draw_unet": lambda: plotting.draw_unet(SHAPES, "The U-Net of 2015, every box as traced"),
    "draw_unet shallow": lambda: plotting.draw_unet(unet.trace_shapes(unet.UNet(2, 1), 16, 16), "shallow"),
    "show_history": lambda: plotting.show_history(history(), 3, "Training on phantoms: 6 epochs"),
    "show_history with a baseline": lambda: plotting.show_history(history(), 3, ID, 0.41),
    "show_history one epoch": lambda: plotting.show_history(history(1)),
    "show_curve": lambda: plotting.show_curve([0, 1], [0, 1], "threshold", "mean Dice", ID, {"used: 0.5": 0.5}),
    "show_heat_map": lambda: plotting.show_heat_map(image(), PROBABILITY, ellipse(), 0.5, f"{ID}: Dice 0.912"),
    "show_pipeline": lambda: plotting.show_pipeline(image(), ellipse(), PROBABILITY, ellipse(), ID),
    "show_maps three": lambda: plotting.show_maps([PROBABILITY] * 3, ["a", "b", ID], ["dB"] * 3, suptitle="phantom"),
    "show_maps one": lambda: plotting.show_maps([PROBABILITY], [ID], ["dB/cm/MHz"]),
    "show_transfer": lambda: plotting.show_transfer(
        TRANSFER, "pairs", {"a": "from nothing", "b": "tuned"}, "pairs", ID
    ),
    "show_sweep": lambda: plotting.show_sweep(SWEPT, ["learning_rate", "schedule", "seed"]),
    "new_figure": lambda: plotting.new_figure(2, 2, height=99)[0],
}


def png_size(data):
    height, width = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape[:2]
    return width, height


def contour_points(mask):
    """Vertices (x, y) of what draw_outline draws, and the axis."""
    figure, axis = plotting.new_figure()
    plotting.draw_outline(axis, mask, "red")
    figure.canvas.draw()
    points = [path.vertices for drawn in axis.collections for path in drawn.get_paths()]
    return np.concatenate(points) if points else np.empty((0, 2)), axis


def test_every_function_that_makes_a_figure_is_tried_here():
    made = {name for name, _ in inspect.getmembers(plotting, inspect.isfunction) if name.startswith("show_")}
    assert made | {"draw_unet", "new_figure"} == {name.split()[0] for name in CASES}


@pytest.mark.parametrize("name", CASES)
def test_a_figure_is_at_most_700_by_450_px_and_leaves_nothing_open(name):
    open_before = plt.get_fignums()
    figure = CASES[name]()
    assert isinstance(figure, Figure)
    assert plt.get_fignums() == open_before
    assert tuple(figure.get_size_inches() * 100) <= LARGEST
    for options in ({}, {"bbox_inches": "tight"}):  # Jupyter's inline backend saves tight
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=100, **options)
        width, height = png_size(buffer.getvalue())
        assert width <= LARGEST[0] and height <= LARGEST[1], (width, height, options)


def test_plotting_imports_nothing_of_ours():
    for node in ast.walk(ast.parse(inspect.getsource(plotting))):
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith("fetalseg_helpers") for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0 and not node.module.startswith("fetalseg_helpers")


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
    truth = ellipse(20, 30)
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
    tolerance = inspect.signature(training.stable_epoch).parameters["tolerance"].default
    (band,) = axis.patches
    assert (band.get_y(), band.get_y() + band.get_height()) == pytest.approx((0.98 - tolerance, 0.98))
    assert str(tolerance) in band.get_label()
    assert not dice_axis([0.5, 0.9]).patches


def test_maps_share_a_scale_where_one_is_given():
    def scales(**options):
        figure = plotting.show_maps([PROBABILITY, 9 * PROBABILITY], ["a", "b"], ["", ""], **options)
        return [image.get_clim() for axis in figure.axes for image in axis.images]

    assert scales(color_range=(0, 2)) == [(0, 2), (0, 2)]
    own = scales()
    assert own[1] == pytest.approx((9 * PROBABILITY.min(), 9 * PROBABILITY.max())) and own[0] != own[1]


def test_a_saved_figure_is_a_png_in_a_folder_that_is_made(tmp_path):
    plotting.save(plotting.show_curve([0, 1], [1, 0], "x", "y", ""), tmp_path / "new" / "curve.png")
    assert png_size((tmp_path / "new" / "curve.png").read_bytes()) == (680, 260)
