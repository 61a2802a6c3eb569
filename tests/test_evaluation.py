"""From a network to scores: maps, steps that tidy a cut map, Dice and IoU against hand and scikit-learn, intervals."""

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from notebook_checks import defined
from shapes import ellipse_mask
from sklearn.metrics import f1_score, jaccard_score
from torch import nn

from fetalseg_helpers import evaluation, preprocessing, verification
from fetalseg_helpers.evaluation import dice_score

CANVAS = {"width": 48, "height": 32, "fit": "scale"}
SCORES = ["dice", "iou", "truth_pixels", "predicted_pixels"]
few = settings(max_examples=50)
pair_of_masks = st.tuples(st.integers(1, 8), st.integers(1, 8)).flatmap(
    lambda shape: st.tuples(*[arrays(np.uint8, shape, elements=st.integers(0, 1))] * 2)
)


def bright(image):
    """What a network without a secret predicts: pixels brighter than the middle are tumor."""
    return np.uint8(image > 127)


class Bright(nn.Module):
    """A network without a secret: pixels brighter than the middle are tumor. It treats every pixel alike."""

    def __init__(self):
        super().__init__()
        self.middle = nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        return 40 * (x - self.middle)


class Ramp(Bright):
    """Believes the right half; the opposite of mirror-symmetric."""

    def forward(self, x):
        return torch.linspace(-3, 3, x.shape[-1]).expand_as(x) + 0 * self.middle


class Brightness(Bright):
    """An image's logits follow its own mean only."""

    def forward(self, x):
        return x.mean(dim=(1, 2, 3), keepdim=True).expand_as(x) - self.middle


class Soft(Bright):
    """Sure of nothing, so that every threshold makes another mask."""

    def forward(self, x):
        return 4 * (x - self.middle)


def disc(height=37, width=53):
    """A grey frame with a bright disc, and the disc."""
    mask = cv2.circle(np.zeros((height, width), np.uint8), (width // 2, height // 2), min(height, width) // 3, 1, -1)
    return (20 + 200 * mask).astype(np.uint8), mask


# One mask


def test_dice_and_iou_of_a_mask_worked_by_hand():
    truth = np.zeros((4, 4), int)
    truth[1:3, 1:3] = 1  # 4 pixels
    prediction = np.zeros((4, 4), int)
    prediction[1:3, 2:4] = 1  # 4 pixels, 2 of them shared
    assert evaluation.dice_score(prediction, truth) == 2 * 2 / (4 + 4)
    assert evaluation.iou_score(prediction, truth) == pytest.approx(2 / 6)


@pytest.mark.parametrize("score", [evaluation.dice_score, evaluation.iou_score])
def test_the_extremes_of_a_score(score):
    empty, full = np.zeros((3, 5)), np.ones((3, 5))
    assert score(full, full) == 1 and score(full, empty) == 0 and score(empty, full) == 0
    assert score(empty, empty) == 1


@few
@given(pair_of_masks)
def test_scores_equal_those_of_scikit_learn(masks):
    prediction, truth = masks
    flat = truth.ravel(), prediction.ravel()
    scores = evaluation.overlap_scores(prediction, truth, np.nan)
    assert list(scores) == SCORES
    assert evaluation.dice_score(prediction, truth) == scores["dice"] == pytest.approx(f1_score(*flat, zero_division=1))
    assert evaluation.iou_score(prediction, truth) == scores["iou"]
    assert scores["iou"] == pytest.approx(jaccard_score(*flat, zero_division=1))
    assert (scores["truth_pixels"], scores["predicted_pixels"]) == (truth.sum(), prediction.sum())


@few
@given(pair_of_masks)
def test_scores_are_symmetric_bounded_and_tied_to_each_other(masks):
    prediction, truth = masks
    dice, iou = evaluation.dice_score(prediction, truth), evaluation.iou_score(prediction, truth)
    assert dice == evaluation.dice_score(truth, prediction) and iou == evaluation.iou_score(truth, prediction)
    assert 0 <= iou <= dice <= 1
    assert iou == pytest.approx(dice / (2 - dice))
    assert dice == evaluation.dice_score(prediction[:, ::-1].astype(bool), truth[:, ::-1])


def overlap(prediction, truth):
    return evaluation.overlap_scores(prediction, truth, 0.1)


@pytest.mark.parametrize("score", [evaluation.dice_score, evaluation.iou_score, overlap])
def test_masks_that_cannot_be_scored_are_refused(score):
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        score(np.zeros((2, 3)), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="prediction has values other than 0 and 1"):
        score(np.full((2, 2), 255), np.ones((2, 2)))
    with pytest.raises(ValueError, match="truth has values other than 0 and 1"):
        score(np.ones((2, 2)), np.full((2, 2), 0.5))


# Many masks


@pytest.fixture(scope="module")
def held_out(bright_run):
    """Rows of the test split; two or more, so that an order can be wrong."""
    pairs = verification.usable_pairs(bright_run, "test")
    assert len(pairs) >= 2 and set(pairs.split) == {"test"}
    return pairs


def test_pairs_are_scored_at_their_own_size_and_their_predictions_written(held_out, tmp_path):
    scores = evaluation.score_pairs(bright, held_out, save_to=tmp_path)
    assert list(scores.columns) == ["image_id", "examination", *SCORES]
    assert list(scores.image_id) == list(held_out.image_id)
    assert list(scores.examination) == list(held_out.examination)
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}_pred.png" for name in held_out.image_id}
    for pair, row in zip(held_out.itertuples(), scores.itertuples(), strict=True):
        written = cv2.imread(str(tmp_path / f"{pair.image_id}_pred.png"), cv2.IMREAD_UNCHANGED)
        assert written.shape == (108, 160) and written.dtype == np.uint8 and set(np.unique(written)) == {0, 255}
        _, truth = preprocessing.read_pair(pair.image_path, pair.mask_path)
        flat = truth.ravel(), (written > 0).ravel()
        assert row.dice == pytest.approx(f1_score(*flat)) and row.iou == pytest.approx(jaccard_score(*flat))
        assert row.dice > 0.9
        assert (row.truth_pixels, row.predicted_pixels) == (truth.sum(), (written > 0).sum())


def test_a_score_of_ones_own_adds_its_columns(held_out):
    seen = []

    def width_of(prediction, truth, pixel_mm):
        seen.append((prediction.shape, truth.shape, prediction.any(), truth.any()))
        columns = np.flatnonzero(truth.any(axis=0))
        return {"width_mm": pixel_mm * (columns[-1] - columns[0] + 1), "pixel_mm": pixel_mm}

    first = held_out.image_id.iloc[0]
    for sizes in (pd.Series({first: 0.25, "other": 9.0}), {first: 0.25}):
        both = evaluation.score_pairs(bright, held_out, [evaluation.overlap_scores, width_of], sizes)
        assert list(both.columns) == ["image_id", "examination", *SCORES, "width_mm", "pixel_mm"]
        table = both.set_index("image_id")
        assert table.pixel_mm[first] == 0.25 and table.width_mm[first] >= 0.25 * 2 * 18  # the least half axis is 18 px
        assert table.pixel_mm.iloc[1:].isna().all() and table.width_mm.iloc[1:].isna().all()
    assert set(seen) == {((108, 160), (108, 160), True, True)}
    alone = evaluation.score_pairs(bright, held_out, [width_of])
    assert list(alone.columns) == ["image_id", "examination", "width_mm", "pixel_mm"] and alone.pixel_mm.isna().all()


# What becomes of the regions of a mask


@few
@given(st.floats(40, 140), st.floats(30, 90), st.floats(12, 50), st.floats(0.5, 1), st.floats(0, 180))
def test_the_ellipse_of_an_ellipse_is_itself_also_where_the_frame_cuts_it(x, y, a, ratio, turn):
    mask = ellipse_mask(x, y, a, ratio * a, turn)
    assert dice_score(evaluation.cut(mask, 1, "ellipse"), mask) > 0.97


def test_the_ellipse_smooths_away_what_wobbles():
    truth = ellipse_mask(90, 60, 60, 40, 20)
    angles = np.arctan2(*np.mgrid[-60:60, -90:90])
    outer, inner = (ellipse_mask(90, 60, 60 + more, 40 + more, 20) for more in (2.5, -2.5))
    wobbling = np.where(np.sin(9 * angles) > 0, outer, inner)
    before, after = (dice_score(mask, truth) for mask in (wobbling, evaluation.cut(wobbling, 1, "ellipse")))
    assert before < 0.96 and after > 0.985


def test_what_is_no_ellipse_or_too_small_for_one_is_kept():
    cross = np.zeros((60, 60), np.uint8)
    cross[28:32], cross[:, 28:32] = 1, 1
    dots = np.zeros((9, 9), np.uint8)
    dots[4, 4:6] = 1
    for mask in (cross, dots, np.zeros((5, 5), np.uint8), np.ones((5, 5), np.uint8)):
        np.testing.assert_array_equal(evaluation.cut(mask, 1, "ellipse"), mask)


@pytest.mark.parametrize(("arm", "kept"), [(35, True), (40, False)])  # Dice with its own ellipse 0.78 and 0.82
def test_a_region_counts_as_an_ellipse_from_a_dice_of_four_fifths_on(arm, kept):
    corner = np.zeros((120, 180), np.uint8)
    corner[20:100, 60 : 60 + arm], corner[100 - arm : 100, 60:140] = 1, 1
    assert np.array_equal(evaluation.cut(corner, 1, "ellipse"), corner) == kept


def test_cutting_keeps_the_largest_region_before_its_ellipse_is_fitted():
    probability = np.maximum(0.9 * ellipse_mask(60, 60, 30, 20, 0), 0.8 * ellipse_mask(150, 100, 8, 8, 0))
    fitted = evaluation.cut(probability, 0.5, region="ellipse")
    assert fitted[100, 150] == 0 and dice_score(fitted, ellipse_mask(60, 60, 30, 20, 0)) > 0.98


@pytest.mark.parametrize(
    ("x", "y", "a", "b"), [(150, 60, 20, 16), (30, 60, 20, 16), (150, 24, 20, 16), (150, 60, 26, 56)]
)
def test_of_a_head_and_a_body_the_ellipse_of_the_head_is_kept(x, y, a, b):
    head, body = ellipse_mask(x, y, a, b, 0), np.zeros((120, 180), np.uint8)
    body[30:90, 60:100], body[70:90, 60:115] = 1, 1  # an L
    assert head.sum() > 1.5 * body.sum() or body.sum() > 2 * head.sum()
    fitted = evaluation.cut(0.9 * np.maximum(head, body), region="ellipse")
    assert dice_score(fitted, head) > 0.97


def test_neither_a_speck_nor_a_band_at_the_edge_is_taken_for_a_head():
    head = ellipse_mask(60, 60, 40, 30, 0)
    bitten = head.copy()
    bitten[60:, 60:] = 0  # a quarter is missing, so that specks are rounder
    band = np.zeros((120, 180), np.uint8)
    band[:, 172:] = 1
    for radius, is_head in ((9, False), (16, True)):  # a tenth of the bitten head's pixels, and more than a fifth
        fitted = evaluation.cut(bitten | ellipse_mask(150, 60, radius, radius, 0), 1, "ellipse")
        assert bool(fitted[60, 150]) == is_head and bool(fitted[40, 40]) != is_head
    for other in (head, bitten):
        fitted = evaluation.cut(other | band, 1, "ellipse")
        assert fitted[40, 40] and not fitted[:, 170:].any()


def test_where_no_region_is_an_ellipse_the_largest_is_kept_as_it_is():
    cross = np.zeros((60, 120), np.uint8)
    cross[28:32, :60], cross[:, 28:32], cross[10:14, 80:], cross[:50, 98:102] = 1, 1, 1, 1
    kept = evaluation.cut(cross, region="ellipse")
    assert np.array_equal(kept, evaluation.cut(cross, 1)) and kept.sum() < cross.sum()


def test_the_largest_component_keeps_one_region_whole():
    mask = np.array([[1, 1, 0, 0, 0], [0, 0, 0, 1, 1], [0, 0, 0, 1, 0]])
    assert evaluation.cut(mask, 1).tolist() == [[0, 0, 0, 0, 0], [0, 0, 0, 1, 1], [0, 0, 0, 1, 0]]


def test_pixels_that_touch_at_a_corner_belong_together():
    mask = np.array([[1, 0, 0, 0, 1, 1], [0, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]])
    assert evaluation.cut(mask, 1).tolist() == [[1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]]


def test_of_two_largest_components_exactly_one_is_kept():
    kept = evaluation.cut([[1, 1, 0, 1, 1]], 1)
    assert kept.tolist() in ([[1, 1, 0, 0, 0]], [[0, 0, 0, 1, 1]])


def test_an_empty_mask_and_a_single_region_stay_as_they_are():
    for mask in (np.zeros((3, 4), bool), disc()[1]):
        kept = evaluation.cut(mask, 1)
        assert kept.dtype == np.uint8 and np.array_equal(kept, mask)


def test_holes_of_the_largest_region_are_filled_and_the_rest_is_dropped():
    drawn = ["0000000000", "0111110011", "0100010011", "0101010000", "0111110110", "0000000100"]
    filled = ["0000000000", "0111110000", "0111110000", "0111110000", "0111110000", "0000000000"]
    mask = np.array([[int(pixel) for pixel in row] for row in drawn])
    assert evaluation.cut(mask, 1, "filled").tolist() == [[int(pixel) for pixel in row] for row in filled]
    assert evaluation.cut(mask, 1, "filled").dtype == np.uint8


def test_what_is_open_to_the_frame_is_no_hole_and_an_empty_mask_stays_empty():
    bay = np.array([[1, 0, 1], [1, 0, 1], [1, 1, 1]])
    assert np.array_equal(evaluation.cut(bay, 1, "filled"), bay)
    assert not evaluation.cut(np.zeros((4, 5)), 1, "filled").any()


def test_each_step_of_a_cut_does_what_it_is_called():
    head = ellipse_mask(60, 60, 40, 30, 0)
    head[58:62, 85:] = 0  # a bay, which only the ellipse closes
    block = np.zeros_like(head)
    block[90:110, 130:170], block[95:100, 140:150] = 1, 0  # holds a hole
    probability = 0.9 * block + 0.7 * head
    every, largest, filled, ellipse = (evaluation.cut(probability, 0.6, region) for region in evaluation.REGIONS)
    assert np.array_equal(every, block | head)
    assert np.array_equal(largest, head) and np.array_equal(filled, head)
    assert ellipse[60, 92] and dice_score(ellipse, ellipse_mask(60, 60, 40, 30, 0)) > 0.97
    whole = block.copy()
    whole[95:100, 140:150] = 1
    assert np.array_equal(evaluation.cut(probability, 0.8, "largest"), block)
    assert np.array_equal(evaluation.cut(probability, 0.8, "filled"), whole)
    for region in evaluation.REGIONS:
        mask = evaluation.cut(probability, 0.6, region)
        assert mask.dtype == np.uint8 and mask.shape == head.shape and set(np.unique(mask)) == {0, 1}
        assert not evaluation.cut(probability, 0.95, region).any()


def test_a_map_is_cut_at_the_threshold_itself_included():
    probability = np.array([[0.5, 0.49, 0.7, 0.0, 0.5]])
    assert evaluation.cut(probability, 0.5, region="every").tolist() == [[1, 0, 1, 0, 1]]
    assert evaluation.cut([[0.9, 0.9, 0.1, 0.9]], 0.5).tolist() == [[1, 1, 0, 0]]


def test_a_step_that_there_is_not_is_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match="'elipse' is none of every, largest, filled, ellipse"):
        evaluation.cut([[0.5]], region="elipse")


# Predictions


@pytest.mark.parametrize("fit", ["scale", "pad"])
@pytest.mark.parametrize("size", [(37, 53), (108, 161), (541, 799), (61, 31), (1, 1)])
def test_a_prediction_has_the_images_own_size(size, fit):
    image, _ = disc(*size)
    probability = evaluation.predict_image(Bright(), image, CANVAS | {"fit": fit})
    assert probability.shape == size and probability.dtype == np.float32
    assert probability.min() >= 0 and probability.max() <= 1


@pytest.mark.parametrize("fit", ["scale", "pad"])
def test_a_prediction_lies_where_the_image_has_it(fit):
    image, mask = disc(85, 127)
    canvas = {"width": 128, "height": 96, "fit": fit}
    cut = evaluation.cut(evaluation.predict_image(Bright(), image, canvas))
    assert dice_score(cut, mask) >= (1 if fit == "pad" else 0.98)


def test_what_padding_crops_away_is_background():
    probability = evaluation.predict_image(Bright(), np.full((40, 70), 255, np.uint8), CANVAS | {"fit": "pad"})
    assert (probability[4:36, 11:59] > 0.99).all()
    probability[4:36, 11:59] = 0
    assert not probability.any()


def predicted_as_it_is(network, image, flip=False):
    """The map of an image that needs no scaling."""
    canvas = {"width": image.shape[1], "height": image.shape[0], "fit": "pad"}
    return evaluation.predict_image(network, image, canvas, flip)


def test_predicting_uses_the_running_statistics_of_batch_normalisation():
    network = nn.Sequential(nn.BatchNorm2d(1)).train()
    image = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    expected = 1 / (1 + np.exp(image / -255))  # mean 0 and variance 1, as initialised
    np.testing.assert_allclose(predicted_as_it_is(network, image), expected, atol=1e-4)


def test_flip_averaging_changes_nothing_for_a_network_that_treats_left_and_right_alike():
    image = np.random.default_rng(0).integers(0, 256, (16, 24), dtype=np.uint8)
    assert np.array_equal(predicted_as_it_is(Bright(), image, flip=True), predicted_as_it_is(Bright(), image))


def test_flip_averaging_makes_a_one_sided_network_even():
    image = np.zeros((16, 24), np.uint8)
    plain = predicted_as_it_is(Ramp(), image)
    averaged = predicted_as_it_is(Ramp(), image, flip=True)
    np.testing.assert_allclose(averaged, (plain + plain[:, ::-1]) / 2, atol=1e-7)
    np.testing.assert_allclose(averaged, 0.5, atol=1e-6)


# Which cut


@pytest.mark.parametrize("flip", [False, True])
def test_notebook_6_s_table_of_cuts_holds_the_mean_dice_of_scoring_each_by_itself(bright_run, flip):
    pairs = verification.usable_pairs(bright_run, "test").head(2)
    network = Ramp() if flip else Soft()
    names = {"np": np, "pd": pd, "preprocessing": preprocessing, "evaluation": evaluation}
    names |= {"network": network, "canvas": CANVAS, "flip": flip, "dice_score": evaluation.dice_score}
    thresholds = [0.25, 0.5, 0.7]
    rows = defined(6, "score_cuts", **names)(pairs, thresholds)
    assert len(rows) == 2 * len(thresholds) * len(evaluation.REGIONS) and set(rows.image_id) == set(pairs.image_id)
    table = rows.pivot_table(index="threshold", columns="region", values="dice")[list(evaluation.REGIONS)]
    assert list(table.index) == thresholds
    assert list(table.columns) == list(evaluation.REGIONS) == ["every", "largest", "filled", "ellipse"]
    for threshold in thresholds:
        for region in table.columns:
            predict = evaluation.make_predictor(network, CANVAS, threshold, region, flip)
            expected = evaluation.score_pairs(predict, pairs).dice.mean()
            assert table.loc[threshold, region] == pytest.approx(expected)
    assert flip or table.stack().nunique() >= 9  # else nothing was compared


# The interval


def test_the_interval_of_two_examinations_worked_by_hand():
    # Draws AA, AB, BA, BB: means 0, 1/2, 1/2, 1. The middle half of them is 1/2, the outer 95 % reach 0 and 1.
    assert evaluation.bootstrap_interval([0.0, 1.0], ["A", "B"]) == (0.0, 1.0)
    assert evaluation.bootstrap_interval([0.0, 1.0], ["A", "B"], level=0.4) == (0.5, 0.5)


def test_an_examination_weighs_as_many_images_as_it_has():
    # A has three images: the mixed draw has the mean 1/4.
    scores, examinations = [0.0, 0.0, 0.0, 1.0], ["A", "A", "A", "B"]
    assert evaluation.bootstrap_interval(scores, examinations, level=0.4) == (0.25, 0.25)


def test_notebook_6_s_bootstrap_in_a_loop_gives_the_same_interval():
    names = {"np": np, "pd": pd, "draws": 300, "seed": 4}
    scores, examinations = [0.1, 0.9, 0.7, 0.95, 0.4, 0.8], ["B", "A", "B", "C", "D", "D"]
    expected = evaluation.bootstrap_interval(scores, examinations, draws=300, seed=4)
    assert defined(6, "bootstrap", **names)(scores, examinations) == pytest.approx(expected)


def test_the_interval_of_a_single_examination_is_its_mean():
    assert evaluation.bootstrap_interval([0.8, 0.9, 1.0], ["A"] * 3) == pytest.approx((0.9, 0.9))


def test_scores_clustered_in_examinations_give_a_wider_interval_than_independent_ones():
    scores = np.repeat(np.linspace(0.7, 0.95, 10), 8)  # 10 examinations, 8 frames alike in each
    low, high = evaluation.bootstrap_interval(scores, np.repeat(np.arange(10), 8))
    alone_low, alone_high = evaluation.bootstrap_interval(scores, np.arange(80))
    assert (high - low) / (alone_high - alone_low) == pytest.approx(np.sqrt(8), rel=0.15)


def test_the_interval_covers_the_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):  # 40 examinations with an effect of their own and 3 frames each, true mean 0
        scores = np.repeat(rng.normal(0, 1, 40), 3) + rng.normal(0, 0.3, 120)
        low, high = evaluation.bootstrap_interval(scores, np.repeat(np.arange(40), 3), draws=300, seed=trial)
        hits += low <= 0 <= high
    assert 0.88 <= hits / 200 <= 0.99


@few
@given(st.lists(st.tuples(st.floats(0, 1), st.sampled_from("ABCDEF")), min_size=1, max_size=20))
def test_the_interval_contains_the_mean_and_stays_within_the_scores(rows):
    scores, examinations = zip(*rows, strict=True)
    low, high = evaluation.bootstrap_interval(scores, examinations)
    assert min(scores) - 1e-9 <= low <= np.mean(scores) + 1e-9
    assert np.mean(scores) - 1e-9 <= high <= max(scores) + 1e-9


def test_the_interval_follows_from_the_seed():
    rng = np.random.default_rng(0)
    given_rows = rng.random(30), rng.integers(0, 10, 30)
    assert evaluation.bootstrap_interval(*given_rows, seed=3) == evaluation.bootstrap_interval(*given_rows, seed=3)
    assert evaluation.bootstrap_interval(*given_rows, seed=3) != evaluation.bootstrap_interval(*given_rows, seed=4)


def test_an_interval_of_nothing_or_of_unequal_lengths_is_refused():
    with pytest.raises(ValueError, match="0 scores"):
        evaluation.bootstrap_interval([], [])
    with pytest.raises(ValueError, match="2 scores for 1 examinations"):
        evaluation.bootstrap_interval([0.1, 0.2], ["A"])
