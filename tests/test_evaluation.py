"""Scores against hand and scikit-learn, predictions at the image's own size, and the interval over examinations."""

import json

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import f1_score, jaccard_score
from torch import nn

from fetalseg_helpers import evaluation, preprocessing
from fetalseg_helpers.workspace import FetalsegError

CANVAS = {"width": 48, "height": 32, "fit": "scale"}
few = settings(max_examples=50, deadline=None)
pair_of_masks = st.tuples(st.integers(1, 8), st.integers(1, 8)).flatmap(
    lambda shape: st.tuples(*[arrays(np.uint8, shape, elements=st.integers(0, 1))] * 2)
)


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


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, draw_pairs):
    root = tmp_path_factory.mktemp("evaluation")
    draw_pairs(root / "malignant", noise=15, brighter=130.0, siblings=True)
    preprocessing.ensure_prepared(root / "run", 48, 32, data=str(root / "malignant"), seed=0)
    return root / "run"


def disc(height=37, width=53):
    """A grey frame with a bright disc, and the disc."""
    mask = cv2.circle(np.zeros((height, width), np.uint8), (width // 2, height // 2), min(height, width) // 3, 1, -1)
    return (20 + 200 * mask).astype(np.uint8), mask


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


# Scores


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
    assert evaluation.dice_score(prediction, truth) == pytest.approx(f1_score(*flat, zero_division=1.0))
    assert evaluation.iou_score(prediction, truth) == pytest.approx(jaccard_score(*flat, zero_division=1.0))


@few
@given(pair_of_masks)
def test_scores_are_symmetric_bounded_and_tied_to_each_other(masks):
    prediction, truth = masks
    dice, iou = evaluation.dice_score(prediction, truth), evaluation.iou_score(prediction, truth)
    assert dice == evaluation.dice_score(truth, prediction) and iou == evaluation.iou_score(truth, prediction)
    assert 0 <= iou <= dice <= 1
    assert iou == pytest.approx(dice / (2 - dice))
    assert dice == evaluation.dice_score(prediction[:, ::-1].astype(bool), truth[:, ::-1])


@pytest.mark.parametrize("score", [evaluation.dice_score, evaluation.iou_score])
def test_masks_that_cannot_be_scored_are_refused(score):
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        score(np.zeros((2, 3)), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="prediction has values other than 0 and 1"):
        score(np.full((2, 2), 255), np.ones((2, 2)))
    with pytest.raises(ValueError, match="truth has values other than 0 and 1"):
        score(np.ones((2, 2)), np.full((2, 2), 0.5))


def ellipse_mask(x, y, a, b, turn, size=(120, 180)):
    """Pixels whose centre lies inside an ellipse with half axes a and b, turned by `turn` degrees."""
    turn = np.deg2rad(turn)
    rows, columns = np.mgrid[: size[0], : size[1]]
    u = (columns - x) * np.cos(turn) + (rows - y) * np.sin(turn)
    v = (rows - y) * np.cos(turn) - (columns - x) * np.sin(turn)
    return ((u / a) ** 2 + (v / b) ** 2 <= 1).astype(np.uint8)


@few
@given(st.floats(40, 140), st.floats(30, 90), st.floats(9, 50), st.floats(0.5, 1), st.floats(0, 180))
def test_the_ellipse_of_an_ellipse_is_itself_also_where_the_frame_cuts_it(x, y, a, ratio, turn):
    mask = ellipse_mask(x, y, a, ratio * a, turn)
    assert evaluation.dice_score(evaluation.fit_ellipse(mask), mask) > 0.97


def test_the_ellipse_smooths_away_what_wobbles():
    truth = ellipse_mask(90, 60, 60, 40, 20)
    angles = np.arctan2(*np.mgrid[-60:60, -90:90])
    outer, inner = (ellipse_mask(90, 60, 60 + more, 40 + more, 20) for more in (2.5, -2.5))
    wobbling = np.where(np.sin(9 * angles) > 0, outer, inner)
    before, after = (evaluation.dice_score(mask, truth) for mask in (wobbling, evaluation.fit_ellipse(wobbling)))
    assert before < 0.96 and after > 0.985


def test_what_is_no_ellipse_or_too_small_for_one_is_kept():
    cross = np.zeros((60, 60), np.uint8)
    cross[28:32], cross[:, 28:32] = 1, 1
    dots = np.zeros((9, 9), np.uint8)
    dots[4, 4:6] = 1
    for mask in (cross, dots, np.zeros((5, 5), np.uint8), np.ones((5, 5), np.uint8)):
        np.testing.assert_array_equal(evaluation.fit_ellipse(mask), mask)


def test_cutting_keeps_the_largest_region_before_its_ellipse_is_fitted():
    probability = np.maximum(0.9 * ellipse_mask(60, 60, 30, 20, 0), 0.8 * ellipse_mask(150, 100, 8, 8, 0))
    fitted = evaluation.cut(probability, 0.5, keep_largest=True, ellipse=True)
    assert fitted[100, 150] == 0 and evaluation.dice_score(fitted, ellipse_mask(60, 60, 30, 20, 0)) > 0.98


@pytest.mark.parametrize(
    ("x", "y", "a", "b"), [(150, 60, 20, 16), (30, 60, 20, 16), (150, 24, 20, 16), (150, 60, 26, 56)]
)
def test_of_a_head_and_a_body_the_ellipse_of_the_head_is_kept(x, y, a, b):
    head, body = ellipse_mask(x, y, a, b, 0), np.zeros((120, 180), np.uint8)
    body[30:90, 60:100], body[70:90, 60:115] = 1, 1  # an L
    assert head.sum() > 1.5 * body.sum() or body.sum() > 2 * head.sum()
    fitted = evaluation.cut(0.9 * np.maximum(head, body), keep_largest=True, ellipse=True)
    assert evaluation.dice_score(fitted, head) > 0.97


def test_neither_a_speck_nor_a_band_at_the_edge_is_taken_for_a_head():
    head = ellipse_mask(60, 60, 40, 30, 0)
    head[60:, 60:] = 0
    speck, band = ellipse_mask(150, 60, 9, 7, 0), np.zeros((120, 180), np.uint8)
    band[:, 179:] = 1
    for other in (speck, band):
        fitted = evaluation.fit_ellipse(head | other, least_overlap=0.0, least_share=0.03)
        assert bool(fitted[60, 150]) == (other is speck)
        fitted = evaluation.fit_ellipse(head | other, least_overlap=0.0)
        assert fitted[40, 40] and not fitted[60, 150] and not fitted[:, 170:].any()


def test_where_no_region_is_an_ellipse_the_largest_is_kept_as_it_is():
    cross = np.zeros((60, 120), np.uint8)
    cross[28:32, :60], cross[:, 28:32], cross[10:14, 80:], cross[:50, 98:102] = 1, 1, 1, 1
    kept = evaluation.cut(cross, ellipse=True)
    assert np.array_equal(kept, evaluation.largest_component(cross)) and kept.sum() < cross.sum()


def test_the_largest_component_keeps_one_region_whole():
    mask = np.array([[1, 1, 0, 0, 0], [0, 0, 0, 1, 1], [0, 0, 0, 1, 0]])
    assert evaluation.largest_component(mask).tolist() == [[0, 0, 0, 0, 0], [0, 0, 0, 1, 1], [0, 0, 0, 1, 0]]


def test_pixels_that_touch_at_a_corner_belong_together():
    mask = np.array([[1, 0, 0, 0, 1, 1], [0, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]])
    assert evaluation.largest_component(mask).tolist() == [[1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]]


def test_of_two_largest_components_exactly_one_is_kept():
    kept = evaluation.largest_component(np.array([[1, 1, 0, 1, 1]]))
    assert kept.tolist() in ([[1, 1, 0, 0, 0]], [[0, 0, 0, 1, 1]])


def test_an_empty_mask_and_a_single_region_stay_as_they_are():
    for mask in (np.zeros((3, 4), bool), disc()[1]):
        kept = evaluation.largest_component(mask)
        assert kept.dtype == np.uint8 and np.array_equal(kept, mask)


def test_a_map_is_cut_at_the_threshold_itself_included():
    probability = np.array([[0.5, 0.49, 0.7, 0.0, 0.5]])
    assert evaluation.cut(probability, 0.5, keep_largest=False).tolist() == [[1, 0, 1, 0, 1]]
    assert evaluation.cut([[0.9, 0.9, 0.1, 0.9]], 0.5).tolist() == [[1, 1, 0, 0]]


# The interval


def test_the_interval_of_two_examinations_worked_by_hand():
    # Draws AA, AB, BA, BB: means 0, 1/2, 1/2, 1. The middle half of them is 1/2, the outer 95 % reach 0 and 1.
    assert evaluation.bootstrap_interval([0.0, 1.0], ["A", "B"]) == (0.0, 1.0)
    assert evaluation.bootstrap_interval([0.0, 1.0], ["A", "B"], level=0.4) == (0.5, 0.5)


def test_an_examination_weighs_as_many_images_as_it_has():
    # A has three images: the mixed draw has the mean 1/4.
    scores, examinations = [0.0, 0.0, 0.0, 1.0], ["A", "A", "A", "B"]
    assert evaluation.bootstrap_interval(scores, examinations, level=0.4) == (0.25, 0.25)


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
    prediction = evaluation.cut(evaluation.predict_image(Bright(), image, canvas))
    assert evaluation.dice_score(prediction, mask) >= (1 if fit == "pad" else 0.98)


def test_what_padding_crops_away_is_background():
    probability = evaluation.predict_image(Bright(), np.full((40, 70), 255, np.uint8), CANVAS | {"fit": "pad"})
    assert (probability[4:36, 11:59] > 0.99).all()
    probability[4:36, 11:59] = 0
    assert not probability.any()


@pytest.mark.parametrize("network", [Bright(), Brightness()])
def test_predictions_do_not_depend_on_the_batch_size(network):
    canvases = np.random.default_rng(0).integers(0, 256, (7, 16, 24), dtype=np.uint8)
    one_by_one = evaluation.predict_canvases(network, canvases, batch_size=1)
    assert one_by_one.shape == (7, 16, 24)
    for size in (2, 3, 7, 99):
        np.testing.assert_allclose(evaluation.predict_canvases(network, canvases, batch_size=size), one_by_one, 1e-6)


def test_predicting_uses_the_running_statistics_of_batch_normalisation():
    network = nn.Sequential(nn.BatchNorm2d(1)).train()
    canvases = np.random.default_rng(0).integers(0, 256, (4, 8, 8), dtype=np.uint8)
    expected = 1 / (1 + np.exp(canvases / -255))  # mean 0 and variance 1, as initialised
    np.testing.assert_allclose(evaluation.predict_canvases(network, canvases), expected, atol=1e-4)


def test_flip_averaging_changes_nothing_for_a_network_that_treats_left_and_right_alike():
    canvases = np.random.default_rng(0).integers(0, 256, (3, 16, 24), dtype=np.uint8)
    plain = evaluation.predict_canvases(Bright(), canvases)
    assert np.array_equal(evaluation.predict_canvases(Bright(), canvases, flip=True), plain)


def test_flip_averaging_makes_a_one_sided_network_even():
    canvases = np.zeros((1, 16, 24), np.uint8)
    plain = evaluation.predict_canvases(Ramp(), canvases)
    averaged = evaluation.predict_canvases(Ramp(), canvases, flip=True)
    np.testing.assert_allclose(averaged, (plain + plain[..., ::-1]) / 2, atol=1e-7)
    np.testing.assert_allclose(averaged, 0.5, atol=1e-6)


def test_pairs_of_the_test_split_are_scored_at_their_own_size(run_dir, tmp_path):
    pairs = evaluation.usable_pairs(run_dir)
    assert len(pairs) >= 2 and set(pairs.split) == {"test"}
    scores = evaluation.score_pairs(Bright(), pairs, CANVAS, save_to=tmp_path)
    assert list(scores.columns) == ["image_id", "examination", "dice", "iou", "truth_pixels", "predicted_pixels"]
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


def test_a_pair_with_an_error_in_the_verification_is_not_scored(run_dir, tmp_path):
    pairs = evaluation.usable_pairs(run_dir)
    excluded = pairs.image_id.iloc[0]
    findings = pd.DataFrame({"image_id": [excluded], "check": ["x"], "severity": ["error"], "detail": ["x"]})
    try:
        findings.to_csv(run_dir / "verification.csv", index=False)
        assert list(evaluation.usable_pairs(run_dir).image_id) == list(pairs.image_id[1:])
    finally:
        (run_dir / "verification.csv").unlink()


def test_metrics_hold_the_means_their_intervals_and_on_how_much_they_rest(tmp_path):
    scores = pd.DataFrame(
        [("1", "A", 0.9, 0.82, 9, 9), ("2", "A", 0.7, 0.54, 9, 9), ("3", "B", 0.8, 0.67, 9, 9)],
        columns=evaluation.SCORE_COLUMNS,
    )
    summary = evaluation.summarise(scores)
    evaluation.write_metrics(tmp_path, scores, summary)
    stored = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    contract = {"mean_dice", "mean_iou", "dice_interval_95", "iou_interval_95", "images", "examinations"}
    assert contract <= set(stored)
    assert stored["mean_dice"] == 0.8 and stored["mean_iou"] == pytest.approx(0.6767)
    assert (stored["images"], stored["examinations"]) == (3, 2)
    assert stored["dice_interval_95"] == pytest.approx(evaluation.bootstrap_interval([0.9, 0.7, 0.8], list("AAB")))
    assert (stored["worst_image"], stored["worst_dice"], stored["median_dice"]) == ("2", 0.7, 0.8)
    table = pd.read_csv(tmp_path / "metrics.csv", dtype={"image_id": str})
    pd.testing.assert_frame_equal(table, scores, check_dtype=False)


def test_a_folder_is_predicted_at_any_depth_without_its_annotations(tmp_path):
    image, mask = disc()
    for name in ("1_HC.png", "a/2_HC.png", "a/b/c/3_HC.jpg"):
        write(tmp_path / "in" / name, image)
    write(tmp_path / "in" / "a" / "2_HC_Annotation.png", mask * 255)
    written, problems = evaluation.predict_folder(Bright(), CANVAS, tmp_path / "in", tmp_path / "out")
    assert (written, problems) == (3, [])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{n}_HC_pred.png" for n in (1, 2, 3)]
    prediction = cv2.imread(str(tmp_path / "out" / "2_HC_pred.png"), cv2.IMREAD_UNCHANGED)
    assert prediction.shape == image.shape and set(np.unique(prediction)) == {0, 255}
    assert evaluation.dice_score(prediction > 0, mask) > 0.95


def test_a_single_file_is_predicted(tmp_path):
    write(tmp_path / "in" / "x.png", disc()[0])
    assert evaluation.predict_folder(Bright(), CANVAS, tmp_path / "in" / "x.png", tmp_path / "out") == (1, [])
    assert (tmp_path / "out" / "x_pred.png").exists()


def test_unreadable_files_are_reported_and_the_rest_is_done(tmp_path):
    for name in ("1.png", "2.png", "4.png"):
        write(tmp_path / "in" / name, disc()[0])
    (tmp_path / "in" / "2.png").write_bytes((tmp_path / "in" / "1.png").read_bytes()[:60])
    (tmp_path / "in" / "3.png").write_text("no image")
    written, problems = evaluation.predict_folder(Bright(), CANVAS, tmp_path / "in", tmp_path / "out")
    assert written == 2 and len(problems) == 2
    assert "2.png is cut off" in problems[0] and "3.png is not an image" in problems[1]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["1_pred.png", "4_pred.png"]


@pytest.mark.parametrize("twins", [("a/1.png", "b/1.png"), ("1.png", "1.jpg")])
def test_two_images_that_would_write_the_same_file_are_refused(tmp_path, twins):
    for name in twins:
        write(tmp_path / "in" / name, disc()[0])
    with pytest.raises(FetalsegError, match=r"1_pred\.png"):
        evaluation.predict_folder(Bright(), CANVAS, tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_to_predict_is_refused(tmp_path):
    write(tmp_path / "in" / "1_HC_Annotation.png", disc()[1] * 255)
    (tmp_path / "empty").mkdir()
    for folder in ("in", "empty", "missing"):
        with pytest.raises(FetalsegError, match=folder):
            evaluation.predict_folder(Bright(), CANVAS, tmp_path / folder, tmp_path / "out")


def test_predictions_of_an_earlier_time_are_not_predicted_again(tmp_path):
    write(tmp_path / "1.png", disc()[0])
    for _ in range(2):
        assert evaluation.predict_folder(Bright(), CANVAS, tmp_path, tmp_path / "out") == (1, [])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["1_pred.png"]


@pytest.mark.parametrize("images", ["", "1.png"])
def test_predictions_can_lie_beside_their_images(tmp_path, images):
    write(tmp_path / "1.png", disc()[0])
    assert evaluation.predict_folder(Bright(), CANVAS, tmp_path / images, tmp_path) == (1, [])
    assert (tmp_path / "1_pred.png").exists()
