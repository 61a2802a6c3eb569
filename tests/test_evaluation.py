"""Scores of one mask and of many against hand and scikit-learn, at the image's own size, in px and in mm."""

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from shapes import ellipse_mask
from sklearn.metrics import f1_score, jaccard_score, precision_score, recall_score

from fetalseg_helpers import biometry, evaluation, preprocessing, summaries

few = settings(max_examples=50)
pair_of_masks = st.tuples(st.integers(1, 8), st.integers(1, 8)).flatmap(
    lambda shape: st.tuples(*[arrays(np.uint8, shape, elements=st.integers(0, 1))] * 2)
)
IN_PX = [name for name in evaluation.METRICS if not name.endswith("_mm")]
IN_MM = [name for name in evaluation.METRICS if name.endswith("_mm")]
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
    scores = evaluation.score_masks(prediction, truth)
    assert evaluation.dice_score(prediction, truth) == scores["dice"] == pytest.approx(f1_score(*flat, zero_division=1))
    assert evaluation.iou_score(prediction, truth) == scores["iou"]
    assert scores["iou"] == pytest.approx(jaccard_score(*flat, zero_division=1))
    agree = float(truth.any() == prediction.any())  # scikit-learn's word for 0 / 0 is ours to choose
    assert scores["precision"] == pytest.approx(precision_score(*flat, zero_division=agree))
    assert scores["recall"] == pytest.approx(recall_score(*flat, zero_division=agree))


@few
@given(pair_of_masks)
def test_scores_are_symmetric_bounded_and_tied_to_each_other(masks):
    prediction, truth = masks
    dice, iou = evaluation.dice_score(prediction, truth), evaluation.iou_score(prediction, truth)
    assert dice == evaluation.dice_score(truth, prediction) and iou == evaluation.iou_score(truth, prediction)
    assert 0 <= iou <= dice <= 1
    assert iou == pytest.approx(dice / (2 - dice))
    assert dice == evaluation.dice_score(prediction[:, ::-1].astype(bool), truth[:, ::-1])
    there, back = evaluation.score_masks(prediction, truth), evaluation.score_masks(truth, prediction)
    assert (there["precision"], there["recall"]) == (back["recall"], back["precision"])
    for name in ("nsd", "hd95_px", "assd_px", "centroid_error_px"):
        assert there[name] == pytest.approx(back[name])
    assert there["area_error_percent"] * back["area_error_percent"] <= 0


@pytest.mark.parametrize("score", [evaluation.dice_score, evaluation.iou_score, evaluation.score_masks])
def test_masks_that_cannot_be_scored_are_refused(score):
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        score(np.zeros((2, 3)), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="prediction has values other than 0 and 1"):
        score(np.full((2, 2), 255), np.ones((2, 2)))
    with pytest.raises(ValueError, match="truth has values other than 0 and 1"):
        score(np.ones((2, 2)), np.full((2, 2), 0.5))


def test_every_score_of_a_rectangle_worked_by_hand():
    # 8 × 12 against the same three columns further and one row longer: 8 × 9 shared.
    truth, prediction = rectangle(4, 12, 5, 17), rectangle(4, 13, 8, 20)
    scores = evaluation.score_masks(prediction, truth)
    assert scores["dice"] == pytest.approx(2 * 72 / (96 + 108)) and scores["iou"] == pytest.approx(72 / (96 + 108 - 72))
    assert scores["precision"] == pytest.approx(72 / 108) and scores["recall"] == pytest.approx(72 / 96)
    assert scores["centroid_error_px"] == pytest.approx(np.hypot(3, 0.5))
    assert scores["area_error_percent"] == pytest.approx(100 * (108 - 96) / 96)
    assert scores["hd95_px"] == 3 and scores["nsd"] == 1
    assert (scores["truth_pixels"], scores["predicted_pixels"]) == (96, 108)


@pytest.mark.parametrize(("prediction", "error"), [((4, 12, 5, 11), -50), ((4, 12, 5, 17), 0), ((0, 16, 5, 17), 100)])
def test_an_area_error_is_negative_where_the_prediction_is_too_small(prediction, error):
    assert evaluation.score_masks(rectangle(*prediction), rectangle(4, 12, 5, 17))["area_error_percent"] == error


def test_a_centroid_error_follows_a_shift_and_not_a_growth():
    truth = ellipse_mask(90, 60, 40, 30, 20)
    shifted, grown = ellipse_mask(93, 56, 40, 30, 20), ellipse_mask(90, 60, 45, 35, 20)
    assert evaluation.score_masks(shifted, truth)["centroid_error_px"] == pytest.approx(5)
    assert evaluation.score_masks(grown, truth)["centroid_error_px"] == pytest.approx(0, abs=1e-9)


def test_a_circumference_error_is_that_of_the_ellipses_in_percent_of_the_truths():
    # Masks reach 1.27 px beyond the ellipses that were measured: half axes 40 and 30, and a tenth more.
    small, large = ellipse_mask(90, 60, 41.27, 31.27, 30), ellipse_mask(90, 60, 45.27, 34.27, 30)
    larger, smaller = evaluation.score_masks(large, small), evaluation.score_masks(small, large)
    assert larger["circumference_error_percent"] == pytest.approx(10, abs=0.4)
    assert smaller["circumference_error_percent"] == pytest.approx(-100 / 11, abs=0.4)
    assert larger["circumference_px"] == smaller["truth_circumference_px"] > larger["truth_circumference_px"]


def test_the_tolerance_of_the_surface_dice_is_in_px():
    lines = rectangle(0, 20, 9, 10), rectangle(0, 20, 13, 14)  # 4 px apart
    assert [evaluation.score_masks(*lines, tolerance=tolerance)["nsd"] for tolerance in (3.9, 4)] == [0, 1]
    assert evaluation.score_masks(*lines)["nsd"] == 1  # at 5 px


@pytest.mark.parametrize("case", EMPTY_CASES)
def test_of_empty_masks_every_score_is_what_the_convention_says(case):
    prediction, truth, expected = EMPTY_CASES[case]
    # A frame full of mask has no border inside of it, so that no ellipse fits: these circumferences are given.
    if not case.startswith(("both", "neither")):
        prediction, truth = (ellipse_mask(90, 60, 40, 30, 0) * mask[0, 0] for mask in (prediction, truth))
        expected = [np.hypot(120, 180) if value == 5 else value for value in expected]
    scores = evaluation.score_masks(prediction, truth)
    assert [scores[name] for name in IN_PX] == expected
    in_mm = evaluation.score_masks(prediction, truth, pixel_mm=0.5)
    assert in_mm["nsd_mm"] == scores["nsd"]
    for name in ("hd95", "assd", "centroid_error"):
        assert in_mm[f"{name}_mm"] == scores[f"{name}_px"] / 2
    for size, mask in (("truth", truth), ("predicted", prediction)):
        assert scores[f"{size}_pixels"] == mask.sum()


def test_scores_in_mm_are_those_in_px_times_the_size_of_a_pixel():
    truth, prediction = ellipse_mask(90, 60, 40, 30, 20), ellipse_mask(93, 56, 44, 29, 10)
    in_px, in_mm = evaluation.score_masks(prediction, truth), evaluation.score_masks(prediction, truth, pixel_mm=0.3)
    assert not [name for name in in_px if name.endswith("_mm")]
    for name in ("hd95", "assd", "centroid_error"):
        assert in_mm[f"{name}_mm"] == pytest.approx(0.3 * in_px[f"{name}_px"]) and in_mm[f"{name}_mm"] > 0
    assert {name: in_mm[name] for name in in_px} == in_px


@pytest.mark.parametrize(("pixel_mm", "right"), [(0.26, 0), (0.25, 1), (0.1, 1)])
def test_the_surface_dice_in_mm_counts_what_is_off_by_a_millimetre_as_right(pixel_mm, right):
    lines = rectangle(0, 20, 9, 10), rectangle(0, 20, 13, 14)  # 4 px apart
    scores = evaluation.score_masks(*lines, tolerance=3, pixel_mm=pixel_mm)
    assert scores["nsd_mm"] == right and scores["nsd"] == 0


# Many masks


def masks_by_name(**pairs):
    return [(name, name[0], lambda pair=pair: pair) for name, pair in pairs.items()]


def test_a_table_has_a_row_per_image_in_order_with_the_scores_of_its_masks():
    pairs = {"b1": (FULL, FULL), "a2": (EMPTY, FULL), "a1": (ellipse_mask(9, 9, 5, 4, 0), ellipse_mask(8, 9, 5, 4, 0))}
    table = evaluation.score_table(masks_by_name(**pairs), tolerance=2.0)
    assert list(table.image_id) == ["b1", "a2", "a1"] and list(table.examination) == ["b", "a", "a"]
    assert list(table.columns) == ["image_id", "examination", *IN_PX, *evaluation.SIZES]
    for row, pair in zip(table.to_dict("records"), pairs.values(), strict=True):
        assert row.items() >= evaluation.score_masks(*pair, tolerance=2.0).items()


def test_an_image_without_masks_has_no_row():
    table = evaluation.score_table(masks_by_name(a1=None, a2=(FULL, FULL)))
    assert list(table.image_id) == ["a2"]


@pytest.mark.parametrize("sizes", [None, pixel_sizes(a1=(0.2, 100))])
def test_a_table_of_no_image_is_empty(sizes):
    for masks in ([], masks_by_name(a1=None)):
        assert evaluation.score_table(masks, sizes).empty


def test_a_table_has_scores_in_mm_where_the_size_of_a_pixel_is_known():
    masks = ellipse_mask(93, 60, 45, 35, 20), ellipse_mask(90, 60, 40, 30, 20)
    plain = evaluation.score_masks(*masks)
    true_mm = 0.2 * plain["truth_circumference_px"]
    sizes = pixel_sizes(a1=(0.2, np.nan), a2=(0.2, 1.01 * true_mm), other=(9, 9))
    table = evaluation.score_table(masks_by_name(a1=masks, b1=masks, a2=masks), sizes).set_index("image_id")
    assert set(IN_MM) <= set(table.columns) and list(table.index) == ["a1", "b1", "a2"]
    in_mm = [*IN_MM, "pixel_mm", "circumference_mm", "truth_circumference_mm"]
    assert table.loc["b1", in_mm].isna().all() and not table.loc[["a1", "a2"], in_mm].isna().any(axis=None)
    assert not table[IN_PX].isna().any(axis=None)
    assert (table.pixel_mm[["a1", "a2"]] == 0.2).all()
    assert table.hd95_mm["a1"] == pytest.approx(0.2 * plain["hd95_px"])
    predicted_mm = 0.2 * plain["circumference_px"]
    for name, true in (("a1", true_mm), ("a2", 1.01 * true_mm)):  # what is published goes before the mask
        assert table.circumference_mm[name] == pytest.approx(predicted_mm)
        assert table.truth_circumference_mm[name] == pytest.approx(true)
        assert table.circumference_error_mm[name] == pytest.approx(predicted_mm - true)


def test_an_empty_mask_does_not_make_published_circumferences_wrong():
    head = ellipse_mask(90, 60, 40, 30, 0)
    table = evaluation.score_table(masks_by_name(a1=(head, 0 * head)), pixel_sizes(a1=(0.2, 43.0)))
    assert table.truth_circumference_mm[0] == 43 and table.circumference_error_percent[0] == 100


def test_a_table_of_other_images_pixel_sizes_still_scores_in_px():
    table = evaluation.score_table(masks_by_name(a1=(FULL, FULL)), pixel_sizes(b1=(0.2, 170)))
    assert table.dice.tolist() == [1] and table.circumference_error_mm.isna().all()
    assert summaries.summarise(table)["scores"].keys() == set(IN_PX)


def test_the_order_in_which_a_pool_reads_does_not_change_the_table():
    def backwards(function, items):
        return [function(item) for item in list(items)[::-1]][::-1]

    masks = masks_by_name(a1=(FULL, FULL), a2=(EMPTY, FULL))
    pd.testing.assert_frame_equal(evaluation.score_table(masks, over=backwards), evaluation.score_table(masks))


def test_predictions_of_another_split_do_not_stay_beside_those_of_this_one(bright_run, tmp_path):
    for name in ("999_HC_pred.png", "notes.txt"):
        (tmp_path / name).write_text("old")
    pairs = evaluation.usable_pairs(bright_run)
    evaluation.score_pairs(bright, pairs, save_to=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}_pred.png" for name in pairs.image_id} | {"notes.txt"}


def test_pairs_of_the_test_split_are_scored_at_their_own_size(bright_run, tmp_path):
    pairs = evaluation.usable_pairs(bright_run)
    assert len(pairs) >= 2 and set(pairs.split) == {"test"}
    scores = evaluation.score_pairs(bright, pairs, save_to=tmp_path)
    assert list(scores.columns) == ["image_id", "examination", *IN_PX, *evaluation.SIZES]
    assert list(scores.image_id) == list(pairs.image_id) and list(scores.examination) == list(pairs.examination)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{name}_pred.png" for name in pairs.image_id)
    for pair, row in zip(pairs.itertuples(), scores.itertuples(), strict=True):
        written = cv2.imread(str(tmp_path / f"{pair.image_id}_pred.png"), cv2.IMREAD_UNCHANGED)
        assert written.shape == (108, 160) and written.dtype == np.uint8 and set(np.unique(written)) == {0, 255}
        _, truth = preprocessing.read_pair(pair.image_path, pair.mask_path)
        flat = truth.ravel(), (written > 0).ravel()
        assert row.dice == pytest.approx(f1_score(*flat)) and row.iou == pytest.approx(jaccard_score(*flat))
        assert row.dice > 0.9
        assert (row.truth_pixels, row.predicted_pixels) == (truth.sum(), (written > 0).sum())


def test_pairs_are_scored_in_mm_and_at_the_tolerance_that_is_given(bright_run):
    def too_large(image):
        return cv2.dilate(bright(image), np.ones((7, 7)))  # by 3 px to every side

    pairs = evaluation.usable_pairs(bright_run)
    sizes = pixel_sizes(**{name: (0.5, np.nan) for name in pairs.image_id})
    scores = evaluation.score_pairs(too_large, pairs, sizes, tolerance=2.0)
    assert (scores.nsd_mm == scores.nsd).all() and (scores.hd95_mm == scores.hd95_px / 2).all()
    assert (scores.nsd < 0.5).all() and (scores.recall > 0.99).all() and (scores.area_error_percent > 10).all()
    assert (evaluation.score_pairs(too_large, pairs, sizes).nsd > 0.9).all()
    for pair, row in zip(pairs.itertuples(), scores.itertuples(), strict=True):
        _, truth = preprocessing.read_pair(pair.image_path, pair.mask_path)
        true_mm = 0.5 * biometry.head_circumference(truth)
        assert row.truth_circumference_mm == pytest.approx(true_mm) and true_mm > 50


def test_a_pair_with_an_error_in_the_verification_is_not_scored(bright_run, tmp_path):
    pairs = evaluation.usable_pairs(bright_run)
    excluded = pairs.image_id.iloc[0]
    findings = pd.DataFrame({"image_id": [excluded], "check": ["x"], "severity": ["error"], "detail": ["x"]})
    try:
        findings.to_csv(bright_run / "verification.csv", index=False)
        assert list(evaluation.usable_pairs(bright_run).image_id) == list(pairs.image_id[1:])
    finally:
        (bright_run / "verification.csv").unlink()


def test_usable_pairs_are_those_of_the_split_that_is_asked_for(bright_run):
    train, test = (set(evaluation.usable_pairs(bright_run, split).image_id) for split in ("train", "test"))
    assert train and test and not train & test
