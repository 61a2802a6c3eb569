"""Scores beyond Dice of one mask and of many, against hand and scikit-learn, in px and in mm."""

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from shapes import ellipse_mask
from sklearn.metrics import precision_score, recall_score

from fetalseg_helpers import evaluation, preprocessing, verification
from fetalseg_helpers.beyond_dice.circumference import head_circumference
from fetalseg_helpers.beyond_dice.scores import METRICS, complete, every_score
from fetalseg_helpers.beyond_dice.summaries import summarise

few = settings(max_examples=50)
pair_of_masks = st.tuples(st.integers(1, 8), st.integers(1, 8)).flatmap(
    lambda shape: st.tuples(*[arrays(np.uint8, shape, elements=st.integers(0, 1))] * 2)
)
IN_PX = [name for name in METRICS if not name.endswith("_mm")]
IN_MM = [name for name in METRICS if name.endswith("_mm")]
SIZES = ["truth_pixels", "predicted_pixels", "circumference_px", "truth_circumference_px"]
EMPTY, FULL = np.zeros((3, 4), np.uint8), np.ones((3, 4), np.uint8)  # the diagonal is 5
# Every combination of an empty and a full mask: prediction, truth, and all scores.
EMPTY_CASES = {
    "both empty": (EMPTY, EMPTY, [1, 1, 1, 1, 1, 0, 0, 0, 0, 0]),
    "empty prediction": (EMPTY, FULL, [0, 0, 0, 0, 0, 5, 5, 5, -100, -100]),
    "empty truth": (FULL, EMPTY, [0, 0, 0, 0, 0, 5, 5, 5, 100, 100]),
    "neither empty": (FULL, FULL, [1, 1, 1, 1, 1, 0, 0, 0, 0, 0]),
}


def bright(image):
    """What a network without a secret predicts: pixels brighter than the middle are tumor."""
    return np.uint8(image > 127)


def pixel_sizes(**rows):
    """A table of pixel sizes: (pixel_mm, head_circumference_mm) by name."""
    return pd.DataFrame.from_dict(rows, orient="index", columns=["pixel_mm", "head_circumference_mm"], dtype=float)


def rectangle(top, bottom, left, right, size=(20, 30)):
    mask = np.zeros(size, np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def score_masks(prediction, truth, tolerance=5.0, pixel_mm=np.nan):
    """Every score of one prediction."""
    scores = {}
    for score in every_score(tolerance):
        scores |= score(prediction, truth, pixel_mm)
    return scores


def table_of(sizes=None, tolerance=5.0, **pairs):
    """A table of every score of masks by name."""
    rows = []
    for name, masks in pairs.items():
        pixel_mm = np.nan if sizes is None else sizes.pixel_mm.get(name, np.nan)
        rows.append({"image_id": name, "examination": name[0]} | score_masks(*masks, tolerance, pixel_mm))
    return complete(pd.DataFrame(rows), sizes)


# One mask


@few
@given(pair_of_masks)
def test_precision_and_recall_equal_those_of_scikit_learn(masks):
    prediction, truth = masks
    flat = truth.ravel(), prediction.ravel()
    scores = score_masks(prediction, truth)
    assert (scores["dice"], scores["iou"]) == (evaluation.dice_score(*masks), evaluation.iou_score(*masks))
    agree = float(truth.any() == prediction.any())  # scikit-learn's word for 0 / 0 is ours to choose
    assert scores["precision"] == pytest.approx(precision_score(*flat, zero_division=agree))
    assert scores["recall"] == pytest.approx(recall_score(*flat, zero_division=agree))


@few
@given(pair_of_masks)
def test_scores_of_swapped_masks_are_the_same_or_swapped(masks):
    prediction, truth = masks
    there, back = score_masks(prediction, truth), score_masks(truth, prediction)
    assert (there["precision"], there["recall"]) == (back["recall"], back["precision"])
    for name in ("nsd", "hd95_px", "assd_px", "centroid_error_px"):
        assert there[name] == pytest.approx(back[name])
    assert there["area_error_percent"] * back["area_error_percent"] <= 0


def test_masks_that_cannot_be_scored_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        score_masks(np.zeros((2, 3)), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="prediction has values other than 0 and 1"):
        score_masks(np.full((2, 2), 255), np.ones((2, 2)))
    with pytest.raises(ValueError, match="truth has values other than 0 and 1"):
        score_masks(np.ones((2, 2)), np.full((2, 2), 0.5))


@pytest.mark.parametrize("score", every_score())
def test_each_score_takes_bool_and_0_or_1_alike_and_gives_plain_numbers(score):
    truth, prediction = ellipse_mask(30, 20, 14, 9, 20, (40, 60)), ellipse_mask(33, 18, 13, 9, 20, (40, 60))
    for pixel_mm in (np.nan, 0.3):
        scores = score(prediction, truth, pixel_mm)
        assert scores == score(prediction.astype(bool), truth.astype(bool), pixel_mm)
        assert scores and {type(value) for value in scores.values()} <= {int, float}


def test_every_score_of_a_rectangle_worked_by_hand():
    # 8 × 12 against the same three columns further and one row longer: 8 × 9 shared.
    truth, prediction = rectangle(4, 12, 5, 17), rectangle(4, 13, 8, 20)
    scores = score_masks(prediction, truth)
    assert scores["dice"] == pytest.approx(2 * 72 / (96 + 108)) and scores["iou"] == pytest.approx(72 / (96 + 108 - 72))
    assert scores["precision"] == pytest.approx(72 / 108) and scores["recall"] == pytest.approx(72 / 96)
    assert scores["centroid_error_px"] == pytest.approx(np.hypot(3, 0.5))
    assert scores["area_error_percent"] == pytest.approx(100 * (108 - 96) / 96)
    assert scores["hd95_px"] == 3 and scores["nsd"] == 1
    assert (scores["truth_pixels"], scores["predicted_pixels"]) == (96, 108)


@pytest.mark.parametrize(("prediction", "error"), [((4, 12, 5, 11), -50), ((4, 12, 5, 17), 0), ((0, 16, 5, 17), 100)])
def test_an_area_error_is_negative_where_the_prediction_is_too_small(prediction, error):
    assert score_masks(rectangle(*prediction), rectangle(4, 12, 5, 17))["area_error_percent"] == error


def test_a_centroid_error_follows_a_shift_and_not_a_growth():
    truth = ellipse_mask(90, 60, 40, 30, 20)
    shifted, grown = ellipse_mask(93, 56, 40, 30, 20), ellipse_mask(90, 60, 45, 35, 20)
    assert score_masks(shifted, truth)["centroid_error_px"] == pytest.approx(5)
    assert score_masks(grown, truth)["centroid_error_px"] == pytest.approx(0, abs=1e-9)


def test_a_circumference_error_is_that_of_the_ellipses_in_percent_of_the_truths():
    # Masks reach 1.27 px beyond the ellipses that were measured: half axes 40 and 30, and a tenth more.
    small, large = ellipse_mask(90, 60, 41.27, 31.27, 30), ellipse_mask(90, 60, 45.27, 34.27, 30)
    larger, smaller = score_masks(large, small), score_masks(small, large)
    assert larger["circumference_error_percent"] == pytest.approx(10, abs=0.4)
    assert smaller["circumference_error_percent"] == pytest.approx(-100 / 11, abs=0.4)
    assert larger["circumference_px"] == smaller["truth_circumference_px"] > larger["truth_circumference_px"]


def test_the_tolerance_of_the_surface_dice_is_in_px():
    lines = rectangle(0, 20, 9, 10), rectangle(0, 20, 13, 14)  # 4 px apart
    assert [score_masks(*lines, tolerance=tolerance)["nsd"] for tolerance in (3.9, 4)] == [0, 1]
    assert score_masks(*lines)["nsd"] == 1  # at 5 px


@pytest.mark.parametrize("case", EMPTY_CASES)
def test_of_empty_masks_every_score_is_what_the_convention_says(case):
    prediction, truth, expected = EMPTY_CASES[case]
    # A frame full of mask has no border inside of it, so that no ellipse fits: these circumferences are given.
    if not case.startswith(("both", "neither")):
        prediction, truth = (ellipse_mask(90, 60, 40, 30, 0) * mask[0, 0] for mask in (prediction, truth))
        expected = [np.hypot(120, 180) if value == 5 else value for value in expected]
    scores = score_masks(prediction, truth)
    assert [scores[name] for name in IN_PX] == expected
    in_mm = score_masks(prediction, truth, pixel_mm=0.5)
    assert in_mm["nsd_mm"] == scores["nsd"]
    for name in ("hd95", "assd", "centroid_error"):
        assert in_mm[f"{name}_mm"] == scores[f"{name}_px"] / 2
    for size, mask in (("truth", truth), ("predicted", prediction)):
        assert scores[f"{size}_pixels"] == mask.sum()


def test_scores_in_mm_are_those_in_px_times_the_size_of_a_pixel():
    truth, prediction = ellipse_mask(90, 60, 40, 30, 20), ellipse_mask(93, 56, 44, 29, 10)
    in_px, in_mm = score_masks(prediction, truth), score_masks(prediction, truth, pixel_mm=0.3)
    assert not [name for name in in_px if name.endswith("_mm")]
    for name in ("hd95", "assd", "centroid_error"):
        assert in_mm[f"{name}_mm"] == pytest.approx(0.3 * in_px[f"{name}_px"]) and in_mm[f"{name}_mm"] > 0
    assert {name: in_mm[name] for name in in_px} == in_px


@pytest.mark.parametrize(("pixel_mm", "right"), [(0.26, 0), (0.25, 1), (0.1, 1)])
def test_the_surface_dice_in_mm_counts_what_is_off_by_a_millimetre_as_right(pixel_mm, right):
    lines = rectangle(0, 20, 9, 10), rectangle(0, 20, 13, 14)  # 4 px apart
    scores = score_masks(*lines, tolerance=3, pixel_mm=pixel_mm)
    assert scores["nsd_mm"] == right and scores["nsd"] == 0


# Many masks


def test_a_table_has_its_columns_in_the_order_of_the_metrics():
    table = table_of(b1=(FULL, FULL), a1=(ellipse_mask(9, 9, 5, 4, 0), ellipse_mask(8, 9, 5, 4, 0)))
    assert list(table.columns) == ["image_id", "examination", *IN_PX, *SIZES]


def test_a_table_has_scores_in_mm_where_the_size_of_a_pixel_is_known():
    masks = ellipse_mask(93, 60, 45, 35, 20), ellipse_mask(90, 60, 40, 30, 20)
    plain = score_masks(*masks)
    true_mm = 0.2 * plain["truth_circumference_px"]
    sizes = pixel_sizes(a1=(0.2, np.nan), a2=(0.2, 1.01 * true_mm), other=(9, 9))
    table = table_of(sizes, a1=masks, b1=masks, a2=masks).set_index("image_id")
    more = ["pixel_mm", "circumference_mm", "truth_circumference_mm"]
    assert list(table.columns) == ["examination", *METRICS, *SIZES, *more] and list(table.index) == ["a1", "b1", "a2"]
    in_mm = [*IN_MM, *more]
    assert table.loc["b1", in_mm].isna().all() and not table.loc[["a1", "a2"], in_mm].isna().any(axis=None)
    assert not table[IN_PX].isna().any(axis=None)
    assert (table.pixel_mm[["a1", "a2"]] == 0.2).all()
    assert table.hd95_mm["a1"] == pytest.approx(0.2 * plain["hd95_px"])
    predicted_mm = 0.2 * plain["circumference_px"]
    for name, true in (("a1", true_mm), ("a2", 1.01 * true_mm)):  # what is published goes before the mask
        assert table.circumference_mm[name] == pytest.approx(predicted_mm)
        assert table.truth_circumference_mm[name] == pytest.approx(true)
        assert table.circumference_error_mm[name] == pytest.approx(predicted_mm - true)


def test_a_list_of_scores_may_lack_some_and_have_others():
    def perimeter_in_steps(prediction, truth, pixel_mm):
        return {"steps": 4}

    rows = [{"image_id": "a1", "examination": "a"} | perimeter_in_steps(FULL, FULL, np.nan)]
    rows[0] |= evaluation.overlap_scores(FULL, FULL, np.nan)
    table = complete(pd.DataFrame(rows), pixel_sizes(a1=(0.2, 43.0)))
    assert list(table.columns) == ["image_id", "examination", "dice", "iou", "steps", *SIZES[:2]]
    assert set(summarise(table)["scores"]) == {"dice", "iou"}


def test_an_empty_mask_does_not_make_published_circumferences_wrong():
    head = ellipse_mask(90, 60, 40, 30, 0)
    table = table_of(pixel_sizes(a1=(0.2, 43.0)), a1=(head, 0 * head))
    assert table.truth_circumference_mm[0] == 43 and table.circumference_error_percent[0] == 100


def test_a_table_of_other_images_pixel_sizes_still_scores_in_px():
    table = table_of(pixel_sizes(b1=(0.2, 170)), a1=(FULL, FULL))
    assert table.dice.tolist() == [1] and table.circumference_error_mm.isna().all()
    assert summarise(table)["scores"].keys() == set(IN_PX)


def test_pairs_are_scored_in_mm_and_at_the_tolerance_that_is_given(bright_run):
    def too_large(image):
        return cv2.dilate(bright(image), np.ones((7, 7)))  # by 3 px to every side

    pairs = verification.usable_pairs(bright_run, "test")
    sizes = pixel_sizes(**{name: (0.5, np.nan) for name in pairs.image_id})
    scores = complete(evaluation.score_pairs(too_large, pairs, every_score(2.0), sizes.pixel_mm), sizes)
    assert list(scores.columns)[:7] == ["image_id", "examination", *list(METRICS)[:5]]
    assert (scores.nsd_mm == scores.nsd).all() and (scores.hd95_mm == scores.hd95_px / 2).all()
    assert (scores.nsd < 0.5).all() and (scores.recall > 0.99).all() and (scores.area_error_percent > 10).all()
    assert (evaluation.score_pairs(too_large, pairs, every_score()).nsd > 0.9).all()
    for pair, row in zip(pairs.itertuples(), scores.itertuples(), strict=True):
        _, truth = preprocessing.read_pair(pair.image_path, pair.mask_path)
        true_mm = 0.5 * head_circumference(truth)
        assert row.truth_circumference_mm == pytest.approx(true_mm) and true_mm > 50
