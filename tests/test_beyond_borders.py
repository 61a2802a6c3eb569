"""Distances between borders, against hand, a search over all pairs of points, and MONAI."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.metrics import HausdorffDistanceMetric, SurfaceDiceMetric, SurfaceDistanceMetric
from shapes import ellipse_mask

from fetalseg_helpers.beyond_dice import scores as borders
from fetalseg_helpers.beyond_dice.scores import border_scores

few = settings(max_examples=40)
masks_of_one_shape = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda shape: st.tuples(*[arrays(bool, shape, elements=st.booleans()).filter(np.any)] * 2)
)


def border_points(mask):
    """(row, column) of the pixels with a neighbour outside the mask or the frame, one pixel after the other."""
    inside = {(int(row), int(column)) for row, column in np.argwhere(mask)}
    around = ((-1, 0), (1, 0), (0, -1), (0, 1))
    return [(y, x) for y, x in sorted(inside) if any((y + down, x + right) not in inside for down, right in around)]


def nearest(points, others):
    """Distance of each point from the nearest of the others, by trying all."""
    return sorted(min(((y - v) ** 2 + (x - u) ** 2) ** 0.5 for v, u in others) for y, x in points)


def percentile_95(values):
    """Between the two neighbours in rank, in proportion."""
    place = 0.95 * (len(values) - 1)
    low, high = values[int(place)], values[min(int(place) + 1, len(values) - 1)]
    return low + (place - int(place)) * (high - low)


def of_monai(prediction, truth, tolerances):
    """hd95, assd and nsd as MONAI computes them."""
    pair = [torch.from_numpy(np.asarray(mask, bool))[None, None] for mask in (prediction, truth)]
    hd95 = HausdorffDistanceMetric(include_background=True, percentile=95)(*pair)
    assd = SurfaceDistanceMetric(include_background=True, symmetric=True)(*pair)
    nsd = [SurfaceDiceMetric([tolerance], include_background=True)(*pair).item() for tolerance in tolerances]
    return {"hd95": hd95.item(), "assd": assd.item(), "nsd": nsd}


def surface_scores(prediction, truth, tolerances=(5.0,)):
    """hd95, assd and nsd as `border_scores` gives them, nsd at several tolerances."""
    every = [border_scores(prediction, truth, tolerance=tolerance) for tolerance in tolerances]
    return {"hd95": every[0]["hd95_px"], "assd": every[0]["assd_px"], "nsd": [scores["nsd"] for scores in every]}


def assert_equal(scores, expected):
    assert scores.keys() == expected.keys()
    for name, value in scores.items():
        assert value == pytest.approx(expected[name], abs=1e-5), name


def test_the_border_is_what_has_a_neighbour_outside_or_lies_at_the_frames_edge():
    mask = np.ones((5, 7), int)
    mask[2, 4] = 0
    expected = ["1111111", "1000101", "1001011", "1000101", "1111111"]
    assert ["".join(map(str, row)) for row in borders.border_of(mask).astype(int)] == expected


def test_distances_of_a_pixel_and_a_line_worked_by_hand():
    # One pixel, and a line of eleven that starts there: 0 one way; 0, 1, ... 10 the other.
    pixel, line = np.zeros((3, 12), int), np.zeros((3, 12), int)
    pixel[1, 1], line[1, 1:] = 1, 1
    there, back = borders.border_distances(pixel, line)
    assert there.tolist() == [0] and back.tolist() == list(range(11))
    scores = surface_scores(pixel, line, [0, 1.5, 10])
    # 95 % of the way from rank 0 to rank 10 is rank 9.5. Of both ways pooled, it would be less.
    assert scores["hd95"] == pytest.approx(9.5)
    assert scores["assd"] == pytest.approx((0 + 55) / 12)
    assert scores["nsd"] == pytest.approx([2 / 12, 3 / 12, 1])
    assert border_scores([[1, 0, 0, 0]], [[0, 0, 1, 1]], tolerance=2)["nsd"] == pytest.approx(2 / 3)


def test_distances_of_two_squares_worked_by_hand():
    # 5 × 5 and three columns further: of 16 border pixels five are 3 off, two 2, five 1 and four 0; both ways alike.
    first, second = np.zeros((9, 12), int), np.zeros((9, 12), int)
    first[2:7, 2:7], second[2:7, 5:10] = 1, 1
    for pair in ((first, second), (second, first)):
        scores = surface_scores(*pair, [0, 0.99, 1, 2, 3])
        assert scores["hd95"] == 3 and scores["assd"] == pytest.approx((5 * 3 + 2 * 2 + 5) / 16)
        assert scores["nsd"] == pytest.approx([4 / 16, 4 / 16, 9 / 16, 11 / 16, 1])


def test_a_single_spike_moves_the_largest_distance_but_not_the_95th_percentile():
    truth = np.zeros((40, 60), int)
    truth[10:30, 10:50] = 1
    spiky = truth.copy()
    spiky[7:10, 30] = 1
    assert max(map(np.max, borders.border_distances(spiky, truth))) == 3
    scores = surface_scores(spiky, truth)
    assert scores["hd95"] == 0 and 0 < scores["assd"] < 0.1 and scores["nsd"] == [1]


@few
@given(masks_of_one_shape, st.sampled_from([0.0, 1.0, 1.5, 3.0]))
def test_scores_equal_those_of_a_search_over_all_pairs_of_points(masks, tolerance):
    points = [border_points(mask) for mask in masks]
    there, back = nearest(*points), nearest(*points[::-1])
    every = there + back
    expected = {"hd95": max(percentile_95(there), percentile_95(back)), "assd": sum(every) / len(every)}
    expected["nsd"] = [sum(distance <= tolerance for distance in every) / len(every)]
    assert_equal(surface_scores(*masks, [tolerance]), expected)


@few
@given(masks_of_one_shape)
def test_scores_of_small_masks_equal_those_of_monai(masks):
    assert_equal(surface_scores(*masks, [1.0, 2.5]), of_monai(*masks, [1.0, 2.5]))


@pytest.mark.parametrize("place", [(400, 300, 190, 150, 30), (420, 500, 200, 170, 100), (60, 30, 90, 40, 0)])
def test_scores_of_whole_frames_equal_those_of_monai(place):
    truth = ellipse_mask(400, 290, 200, 160, 20, (540, 800))
    prediction = ellipse_mask(*place, (540, 800))
    assert_equal(surface_scores(prediction, truth, [5.0, 40.0]), of_monai(prediction, truth, [5.0, 40.0]))


@few
@given(masks_of_one_shape, st.integers(0, 3), st.integers(0, 3))
def test_neither_the_order_nor_a_mirror_nor_empty_space_around_the_masks_changes_a_score(masks, before, after):
    scores = surface_scores(*masks, [1.0])
    assert_equal(surface_scores(*masks[::-1], [1.0]), scores)
    assert_equal(surface_scores(*[mask[:, ::-1] for mask in masks], [1.0]), scores)
    assert_equal(surface_scores(*[np.pad(mask, ((before, after), (after, before))) for mask in masks], [1.0]), scores)


@few
@given(masks_of_one_shape)
def test_scores_are_bounded_and_best_for_a_mask_with_itself(masks):
    scores = surface_scores(*masks, [0.0, 1.0, 99.0])
    assert 0 <= scores["hd95"] <= np.hypot(*masks[0].shape) and 0 <= scores["assd"] <= np.hypot(*masks[0].shape)
    assert 0 <= scores["nsd"][0] <= scores["nsd"][1] <= scores["nsd"][2] == 1
    assert surface_scores(masks[0], masks[0], [0.0]) == {"hd95": 0, "assd": 0, "nsd": [1]}


def test_two_empty_masks_agree_and_a_single_empty_one_is_as_wrong_as_can_be():
    empty, full = np.zeros((3, 4), np.uint8), np.ones((3, 4), np.uint8)
    assert surface_scores(empty, empty, [1, 2]) == {"hd95": 0, "assd": 0, "nsd": [1, 1]}
    for pair in ((empty, full), (full, empty)):
        assert surface_scores(*pair, [1, 99]) == {"hd95": 5, "assd": 5, "nsd": [0, 0]}
