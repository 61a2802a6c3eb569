"""What notebook 8 defines: does a probability mean what it says, against hand, a plain loop and scikit-learn; doubt."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from notebook_checks import defined
from scipy import ndimage
from scipy.spatial.distance import cdist
from sklearn.calibration import calibration_curve
from torch import nn

from fetalseg_helpers import evaluation
from fetalseg_helpers.beyond_dice.scores import border_of

near_border = defined(8, "near_border", border_of=border_of, ndimage=ndimage)
reliability = defined(8, "reliability", near_border=near_border, np=np, pd=pd)
calibration_error = defined(8, "calibration_error", np=np)
predict_views = defined(8, "predict_views", evaluation=evaluation, np=np)
disagreement = defined(8, "disagreement", evaluation=evaluation, np=np)
risk_coverage = defined(8, "risk_coverage", np=np, pd=pd)

CANVAS = {"width": 48, "height": 32, "fit": "scale"}
few = settings(max_examples=50)


class Right(nn.Module):
    """Believes in the right half of whatever it sees, by a strength."""

    def __init__(self, strength=3.0):
        super().__init__()
        self.strength = nn.Parameter(torch.tensor(strength))

    def forward(self, x):
        return torch.linspace(-1, 1, x.shape[-1]).expand_as(x) * self.strength


class Bright(Right):
    """Believes in bright pixels, each on its own."""

    def forward(self, x):
        return 10 * self.strength * (x - 0.5)


def disc(height=41, width=61, radius=12):
    rows, columns = np.mgrid[:height, :width]
    return ((rows - height // 2) ** 2 + (columns - width // 2) ** 2 <= radius**2).astype(np.uint8)


def random_maps(count=3, shape=(30, 40), seed=0):
    """Maps, and truths that are drawn from them: what is called 0.7 is tumor in 7 of 10."""
    rng = np.random.default_rng(seed)
    maps = [rng.random(shape) for _ in range(count)]
    return maps, [(rng.random(shape) < p).astype(np.uint8) for p in maps]


def plain_error(maps, truths, bins=10):
    """Expected calibration error as it is defined, pixel by pixel."""
    held = [[] for _ in range(bins)]
    for p, t in zip(np.ravel(maps), np.ravel(truths), strict=True):
        held[min(int(p * bins), bins - 1)].append((p, t))
    count = sum(map(len, held))
    return sum(len(rows) / count * abs(np.subtract(*np.mean(rows, axis=0))) for rows in held if rows)


# Reliability


def test_the_reliability_of_six_pixels_worked_by_hand():
    maps, truths = np.array([[[0.1, 0.3, 0.5]], [[0.5, 0.9, 1.0]]]), np.array([[[0, 0, 1]], [[0, 1, 0]]])
    table = reliability(maps, truths, bins=2)
    # below 0.5: 0.1 and 0.3, none tumor; from 0.5 on: 0.5, 0.5, 0.9, 1.0, two of four tumor
    assert table.probability.tolist() == pytest.approx([0.2, 2.9 / 4])
    assert table["share"].tolist() == [0, 0.5] and table.pixels.tolist() == [2, 4]
    assert calibration_error(table) == pytest.approx((2 * 0.2 + 4 * 0.225) / 6, abs=1e-6)


@pytest.mark.parametrize("bins", [1, 5, 10, 15])
def test_reliability_is_that_of_scikit_learn(bins):
    maps, truths = random_maps()
    table = reliability(maps, truths, bins=bins)
    share, probability = calibration_curve(np.ravel(truths), np.ravel(maps), n_bins=bins)
    np.testing.assert_allclose(table["share"], share)
    np.testing.assert_allclose(table.probability, probability)
    assert calibration_error(table) == pytest.approx(plain_error(maps, truths, bins), abs=1e-6)


@few
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=30))
def test_reliability_counts_every_pixel_and_the_error_lies_between_0_and_1(pixels):
    maps, truths = (np.array(column)[None, None] for column in zip(*pixels, strict=True))
    table = reliability(maps, truths)
    assert table.pixels.sum() == len(pixels) and (table.pixels > 0).all() and table.pixels.dtype == int
    assert table[["probability", "share"]].stack().between(-1e-12, 1 + 1e-12).all()
    assert table.probability.is_monotonic_increasing
    error = calibration_error(table)
    assert 0 <= error <= 1 and error == pytest.approx(plain_error(maps, truths), abs=2e-6)


def test_the_error_that_the_page_works_by_hand():
    table = pd.DataFrame({"probability": [0.2, 0.9], "share": [0.2, 0.7], "pixels": [100, 100]})
    assert calibration_error(table) == 0.1
    assert calibration_error(table.assign(pixels=[300, 100])) == 0.05


def test_a_map_that_means_what_it_says_has_an_error_near_0():
    maps, truths = random_maps(5, (200, 200))
    table = reliability(maps, truths)
    assert calibration_error(table) < 0.005
    assert (table.probability - table["share"]).abs().max() < 0.015  # 20000 pixels a bin: SD below 0.0036


@pytest.mark.parametrize(("said", "true"), [(0.95, 0.8), (0.99, 0.5), (0.3, 0.6)])
def test_a_map_that_is_too_sure_of_itself_is_off_by_as_much(said, true):
    truth = (np.arange(10_000).reshape(100, 100) % 100 < 100 * true).astype(np.uint8)
    table = reliability([np.full(truth.shape, said)], [truth])
    assert len(table) == 1 and calibration_error(table) == pytest.approx(abs(said - true), abs=1e-6)


def test_sharpened_maps_are_worse_the_more_they_are_sharpened():
    maps, truths = random_maps(2, (100, 100))
    errors = []
    for power in (1, 2, 4):
        sharp = [p**power / (p**power + (1 - p) ** power) for p in maps]
        errors.append(calibration_error(reliability(sharp, truths)))
    assert errors[0] < 0.02 < 0.08 < errors[1] < errors[2]


def test_0_and_1_themselves_are_counted_in_the_first_and_last_bin():
    table = reliability(np.array([[[0.0, 1.0]]]), np.array([[[0, 1]]]))
    assert table.to_numpy().tolist() == [[0, 0, 1], [1, 1, 1]] and calibration_error(table) == 0


def test_float32_maps_and_any_iterable_give_the_same():
    maps, truths = random_maps()
    expected = reliability([p.astype(np.float32) for p in maps], truths)
    given_maps = (p.astype(np.float32) for p in maps)
    pd.testing.assert_frame_equal(reliability(given_maps, iter(truths)), expected)
    with pytest.raises(ValueError, match="shorter"):
        reliability(maps, truths[:-1])


# Near the border


@pytest.mark.parametrize("width", [0, 1, 2.5, 7])
def test_near_a_border_is_what_lies_within_the_width_of_it(width):
    truth = disc()
    near = near_border(truth, width)
    padded = np.pad(truth, 1)
    neighbours = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    border = np.argwhere((truth == 1) & (neighbours < 4))
    distance = cdist(np.argwhere(np.ones_like(truth)), border).min(axis=1).reshape(truth.shape)
    assert near.dtype == bool and np.array_equal(near, distance <= width)
    if width > 1:
        assert near[truth == 1].any() and near[truth == 0].any() and not near[20, 30]


def test_an_empty_mask_has_no_border_and_a_full_one_has_the_frame_s():
    assert not near_border(np.zeros((5, 6)), 3).any()
    near = near_border(np.ones((7, 9)), 1)
    assert near[:2].all() and near[:, -2:].all() and not near[2:-2, 2:-2].any()


def test_reliability_near_the_border_looks_at_those_pixels_only():
    truth = disc()
    probability = np.where(near_border(truth, 3), 0.7, truth)  # sure, and right, far away
    far, near = (reliability([probability], [truth], width=width) for width in (None, 3))
    assert near.pixels.sum() == near_border(truth, 3).sum() < far.pixels.sum() == truth.size
    assert calibration_error(near) > 3 * calibration_error(far) > 0
    assert reliability([probability], [truth], width=0).pixels.sum() == border_of(truth).sum()
    assert reliability([probability], [0 * truth], width=3).empty


# Views and doubt


def test_views_are_turned_back_to_where_the_image_has_them():
    image = np.random.default_rng(0).integers(0, 256, (33, 51), dtype=np.uint8)
    plain, mirrored = predict_views([Bright()], image, CANVAS)
    np.testing.assert_allclose(mirrored, plain, atol=0.02)  # only resizing sees left and right
    plain, mirrored = predict_views([Right()], image, CANVAS)
    np.testing.assert_allclose(mirrored, plain[:, ::-1], atol=1e-6)
    assert plain[:, -1].min() > 0.5 > plain[:, 0].max()


def test_there_are_two_views_a_network_in_their_order_at_the_image_s_size():
    image = disc(37, 53) * np.uint8(200)
    networks = [Right(1.0), Right(5.0), Bright()]
    views = predict_views(networks, image, CANVAS)
    assert views.shape == (6, 37, 53) and views.dtype == np.float32 and 0 <= views.min() <= views.max() <= 1
    for number, network in enumerate(networks):
        assert np.array_equal(views[2 * number], evaluation.predict_image(network, image, CANVAS))
    np.testing.assert_allclose(  # and their mean is what averaging over the mirror predicts
        views[:2].mean(axis=0), evaluation.predict_image(networks[0], image, CANVAS, flip=True), atol=1e-6
    )


def test_identical_views_do_not_disagree_nor_do_empty_ones():
    probability = np.random.default_rng(0).random((20, 30))
    assert disagreement(np.stack([probability] * 4), 0.5) == 0
    assert disagreement(np.zeros((3, 5, 6)), 0.5) == 0
    assert disagreement(np.full((2, 5, 6), 0.4), threshold=0.5) == 0


def test_disagreement_worked_by_hand():
    views = np.array([[[0.9, 0.9, 0.0, 0.0]], [[0.9, 0.0, 0.0, 0.0]], [[0.9, 0.9, 0.9, 0.0]]])
    # the mean, 0.9 0.6 0.3 0, has the mask 1 1 0 0: Dice 1, 2/3 and 4/5
    assert disagreement(views, 0.5) == pytest.approx(1 - (1 + 2 / 3 + 4 / 5) / 3)
    masks, mean = views >= 0.25, views.mean(axis=0) >= 0.25
    expected = 1 - np.mean([evaluation.dice_score(mask, mean) for mask in masks])
    assert disagreement(views, 0.25) == pytest.approx(expected)


def test_views_that_share_no_pixel_with_their_mean_disagree_wholly():
    assert disagreement(np.eye(4)[:, None], 0.5) == 1  # each sure of a pixel of its own, the mean of none


@few
@given(st.integers(1, 5), st.integers(0, 2**31), st.floats(0.05, 0.95))
def test_disagreement_lies_between_0_and_1(count, seed, threshold):
    views = np.random.default_rng(seed).random((count, 4, 5))
    assert -1e-12 <= disagreement(views, threshold) <= 1
    if count == 1:
        assert disagreement(views, threshold) == pytest.approx(0, abs=1e-12)


# Risk and coverage


def test_risk_and_coverage_worked_by_hand():
    assert risk_coverage([0.3, 0.1], [0.4, 0.2]).risk.tolist() == pytest.approx([0.2, 0.3])
    table = risk_coverage([0.5, 0.1, 0.3, 0.2], [0.4, 0.1, 0.0, 0.3])
    assert table.coverage.tolist() == [0.25, 0.5, 0.75, 1]
    assert table.risk.tolist() == pytest.approx([0.1, 0.4 / 2, 0.4 / 3, 0.8 / 4])
    assert table.best.tolist() == pytest.approx([0, 0.1 / 2, 0.4 / 3, 0.8 / 4])


@few
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30))
def test_no_order_is_better_than_the_best_and_all_orders_end_at_the_mean(rows):
    doubt, error = zip(*rows, strict=True)
    table = risk_coverage(doubt, error)
    assert len(table) == len(rows) and (table.risk >= table.best - 1e-12).all()
    assert table.coverage.iloc[-1] == 1 and table.coverage.is_monotonic_increasing
    assert table.risk.iloc[-1] == pytest.approx(np.mean(error)) and table.best.iloc[-1] == pytest.approx(np.mean(error))
    assert table.best.diff().dropna().ge(-1e-12).all()
    perfect = risk_coverage(error, error)
    np.testing.assert_allclose(perfect.risk, perfect.best)
