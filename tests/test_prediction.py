"""From a network to masks: maps at the image's own size, the steps that tidy a cut map, and folders of images."""

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import ellipse_mask
from torch import nn

from fetalseg_helpers import evaluation, prediction
from fetalseg_helpers.evaluation import dice_score
from fetalseg_helpers.workspace import FetalsegError, write_json

CANVAS = {"width": 48, "height": 32, "fit": "scale"}
few = settings(max_examples=50)


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


PREDICT = prediction.make_predictor(Bright(), CANVAS)


def disc(height=37, width=53):
    """A grey frame with a bright disc, and the disc."""
    mask = cv2.circle(np.zeros((height, width), np.uint8), (width // 2, height // 2), min(height, width) // 3, 1, -1)
    return (20 + 200 * mask).astype(np.uint8), mask


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


# What becomes of the regions of a mask


@few
@given(st.floats(40, 140), st.floats(30, 90), st.floats(12, 50), st.floats(0.5, 1), st.floats(0, 180))
def test_the_ellipse_of_an_ellipse_is_itself_also_where_the_frame_cuts_it(x, y, a, ratio, turn):
    mask = ellipse_mask(x, y, a, ratio * a, turn)
    assert dice_score(prediction.fit_ellipse(mask), mask) > 0.97


def test_the_ellipse_smooths_away_what_wobbles():
    truth = ellipse_mask(90, 60, 60, 40, 20)
    angles = np.arctan2(*np.mgrid[-60:60, -90:90])
    outer, inner = (ellipse_mask(90, 60, 60 + more, 40 + more, 20) for more in (2.5, -2.5))
    wobbling = np.where(np.sin(9 * angles) > 0, outer, inner)
    before, after = (dice_score(mask, truth) for mask in (wobbling, prediction.fit_ellipse(wobbling)))
    assert before < 0.96 and after > 0.985


def test_what_is_no_ellipse_or_too_small_for_one_is_kept():
    cross = np.zeros((60, 60), np.uint8)
    cross[28:32], cross[:, 28:32] = 1, 1
    dots = np.zeros((9, 9), np.uint8)
    dots[4, 4:6] = 1
    for mask in (cross, dots, np.zeros((5, 5), np.uint8), np.ones((5, 5), np.uint8)):
        np.testing.assert_array_equal(prediction.fit_ellipse(mask), mask)


def test_cutting_keeps_the_largest_region_before_its_ellipse_is_fitted():
    probability = np.maximum(0.9 * ellipse_mask(60, 60, 30, 20, 0), 0.8 * ellipse_mask(150, 100, 8, 8, 0))
    fitted = prediction.cut(probability, 0.5, region="ellipse")
    assert fitted[100, 150] == 0 and dice_score(fitted, ellipse_mask(60, 60, 30, 20, 0)) > 0.98


@pytest.mark.parametrize(
    ("x", "y", "a", "b"), [(150, 60, 20, 16), (30, 60, 20, 16), (150, 24, 20, 16), (150, 60, 26, 56)]
)
def test_of_a_head_and_a_body_the_ellipse_of_the_head_is_kept(x, y, a, b):
    head, body = ellipse_mask(x, y, a, b, 0), np.zeros((120, 180), np.uint8)
    body[30:90, 60:100], body[70:90, 60:115] = 1, 1  # an L
    assert head.sum() > 1.5 * body.sum() or body.sum() > 2 * head.sum()
    fitted = prediction.cut(0.9 * np.maximum(head, body), region="ellipse")
    assert dice_score(fitted, head) > 0.97


def test_neither_a_speck_nor_a_band_at_the_edge_is_taken_for_a_head():
    head = ellipse_mask(60, 60, 40, 30, 0)
    head[60:, 60:] = 0
    speck, band = ellipse_mask(150, 60, 9, 7, 0), np.zeros((120, 180), np.uint8)
    band[:, 179:] = 1
    for other in (speck, band):
        fitted = prediction.fit_ellipse(head | other, least_overlap=0.0, least_share=0.03)
        assert bool(fitted[60, 150]) == (other is speck)
        fitted = prediction.fit_ellipse(head | other, least_overlap=0.0)
        assert fitted[40, 40] and not fitted[60, 150] and not fitted[:, 170:].any()


def test_where_no_region_is_an_ellipse_the_largest_is_kept_as_it_is():
    cross = np.zeros((60, 120), np.uint8)
    cross[28:32, :60], cross[:, 28:32], cross[10:14, 80:], cross[:50, 98:102] = 1, 1, 1, 1
    kept = prediction.cut(cross, region="ellipse")
    assert np.array_equal(kept, prediction.largest_component(cross)) and kept.sum() < cross.sum()


def test_the_largest_component_keeps_one_region_whole():
    mask = np.array([[1, 1, 0, 0, 0], [0, 0, 0, 1, 1], [0, 0, 0, 1, 0]])
    assert prediction.largest_component(mask).tolist() == [[0, 0, 0, 0, 0], [0, 0, 0, 1, 1], [0, 0, 0, 1, 0]]


def test_pixels_that_touch_at_a_corner_belong_together():
    mask = np.array([[1, 0, 0, 0, 1, 1], [0, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]])
    assert prediction.largest_component(mask).tolist() == [[1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]]


def test_of_two_largest_components_exactly_one_is_kept():
    kept = prediction.largest_component(np.array([[1, 1, 0, 1, 1]]))
    assert kept.tolist() in ([[1, 1, 0, 0, 0]], [[0, 0, 0, 1, 1]])


def test_an_empty_mask_and_a_single_region_stay_as_they_are():
    for mask in (np.zeros((3, 4), bool), disc()[1]):
        kept = prediction.largest_component(mask)
        assert kept.dtype == np.uint8 and np.array_equal(kept, mask)


def test_holes_of_the_largest_region_are_filled_and_the_rest_is_dropped():
    drawn = ["0000000000", "0111110011", "0100010011", "0101010000", "0111110110", "0000000100"]
    filled = ["0000000000", "0111110000", "0111110000", "0111110000", "0111110000", "0000000000"]
    mask = np.array([[int(pixel) for pixel in row] for row in drawn])
    assert prediction.fill_holes(mask).tolist() == [[int(pixel) for pixel in row] for row in filled]
    assert prediction.fill_holes(mask).dtype == np.uint8


def test_what_is_open_to_the_frame_is_no_hole_and_an_empty_mask_stays_empty():
    bay = np.array([[1, 0, 1], [1, 0, 1], [1, 1, 1]])
    assert np.array_equal(prediction.fill_holes(bay), bay)
    assert not prediction.fill_holes(np.zeros((4, 5), np.uint8)).any()


def test_each_step_of_a_cut_does_what_it_is_called():
    head = ellipse_mask(60, 60, 40, 30, 0)
    head[58:62, 85:] = 0  # a bay, which only the ellipse closes
    block = np.zeros_like(head)
    block[90:110, 130:170], block[95:100, 140:150] = 1, 0  # holds a hole
    probability = 0.9 * block + 0.7 * head
    every, largest, filled, ellipse = (prediction.cut(probability, 0.6, region) for region in prediction.REGIONS)
    assert np.array_equal(every, block | head)
    assert np.array_equal(largest, head) and np.array_equal(filled, head)
    assert ellipse[60, 92] and dice_score(ellipse, ellipse_mask(60, 60, 40, 30, 0)) > 0.97
    whole = block.copy()
    whole[95:100, 140:150] = 1
    assert np.array_equal(prediction.cut(probability, 0.8, "largest"), block)
    assert np.array_equal(prediction.cut(probability, 0.8, "filled"), whole)
    for region in prediction.REGIONS:
        mask = prediction.cut(probability, 0.6, region)
        assert mask.dtype == np.uint8 and mask.shape == head.shape and set(np.unique(mask)) == {0, 1}
        assert not prediction.cut(probability, 0.95, region).any()


def test_a_map_is_cut_at_the_threshold_itself_included():
    probability = np.array([[0.5, 0.49, 0.7, 0.0, 0.5]])
    assert prediction.cut(probability, 0.5, region="every").tolist() == [[1, 0, 1, 0, 1]]
    assert prediction.cut([[0.9, 0.9, 0.1, 0.9]], 0.5).tolist() == [[1, 1, 0, 0]]


# Predictions


@pytest.mark.parametrize("fit", ["scale", "pad"])
@pytest.mark.parametrize("size", [(37, 53), (108, 161), (541, 799), (61, 31), (1, 1)])
def test_a_prediction_has_the_images_own_size(size, fit):
    image, _ = disc(*size)
    probability = prediction.predict_image(Bright(), image, CANVAS | {"fit": fit})
    assert probability.shape == size and probability.dtype == np.float32
    assert probability.min() >= 0 and probability.max() <= 1


@pytest.mark.parametrize("fit", ["scale", "pad"])
def test_a_prediction_lies_where_the_image_has_it(fit):
    image, mask = disc(85, 127)
    canvas = {"width": 128, "height": 96, "fit": fit}
    cut = prediction.cut(prediction.predict_image(Bright(), image, canvas))
    assert dice_score(cut, mask) >= (1 if fit == "pad" else 0.98)


def test_what_padding_crops_away_is_background():
    probability = prediction.predict_image(Bright(), np.full((40, 70), 255, np.uint8), CANVAS | {"fit": "pad"})
    assert (probability[4:36, 11:59] > 0.99).all()
    probability[4:36, 11:59] = 0
    assert not probability.any()


@pytest.mark.parametrize("network", [Bright(), Brightness()])
def test_predictions_do_not_depend_on_the_batch_size(network):
    canvases = np.random.default_rng(0).integers(0, 256, (7, 16, 24), dtype=np.uint8)
    one_by_one = prediction.predict_canvases(network, canvases, batch_size=1)
    assert one_by_one.shape == (7, 16, 24)
    for size in (2, 3, 7, 99):
        np.testing.assert_allclose(prediction.predict_canvases(network, canvases, batch_size=size), one_by_one, 1e-6)


def test_predicting_uses_the_running_statistics_of_batch_normalisation():
    network = nn.Sequential(nn.BatchNorm2d(1)).train()
    canvases = np.random.default_rng(0).integers(0, 256, (4, 8, 8), dtype=np.uint8)
    expected = 1 / (1 + np.exp(canvases / -255))  # mean 0 and variance 1, as initialised
    np.testing.assert_allclose(prediction.predict_canvases(network, canvases), expected, atol=1e-4)


def test_flip_averaging_changes_nothing_for_a_network_that_treats_left_and_right_alike():
    canvases = np.random.default_rng(0).integers(0, 256, (3, 16, 24), dtype=np.uint8)
    plain = prediction.predict_canvases(Bright(), canvases)
    assert np.array_equal(prediction.predict_canvases(Bright(), canvases, flip=True), plain)


def test_flip_averaging_makes_a_one_sided_network_even():
    canvases = np.zeros((1, 16, 24), np.uint8)
    plain = prediction.predict_canvases(Ramp(), canvases)
    averaged = prediction.predict_canvases(Ramp(), canvases, flip=True)
    np.testing.assert_allclose(averaged, (plain + plain[..., ::-1]) / 2, atol=1e-7)
    np.testing.assert_allclose(averaged, 0.5, atol=1e-6)


@pytest.mark.parametrize("size", [(37, 53), (541, 799), (1, 1)])
@pytest.mark.parametrize("fit", ["scale", "pad"])
def test_a_predictor_gives_the_cut_map_of_an_image_at_its_own_size(size, fit):
    image = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    canvas = CANVAS | {"fit": fit}
    for flip in (False, True):
        probability = prediction.predict_image(Ramp(), image, canvas, flip)
        mask = prediction.make_predictor(Ramp(), canvas, 0.6, "every", flip)(image)
        assert mask.shape == size and mask.dtype == np.uint8 and np.array_equal(mask, probability >= 0.6)


# Which cut


def test_the_table_of_cuts_holds_the_mean_dice_of_scoring_each_by_itself(bright_run):
    pairs = evaluation.usable_pairs(bright_run).head(2)
    thresholds = (0.25, 0.5, 0.7)
    for flip in (False, True):
        table = prediction.score_cuts(Ramp() if flip else Soft(), pairs, CANVAS, flip, thresholds)
        assert list(table.index) == list(thresholds) and list(table.columns) == list(prediction.REGIONS)
        for threshold in thresholds:
            for region in table.columns:
                predict = prediction.make_predictor(Ramp() if flip else Soft(), CANVAS, threshold, region, flip)
                expected = evaluation.score_pairs(predict, pairs).dice.mean()
                assert table.loc[threshold, region] == pytest.approx(expected)
        assert flip or table.stack().nunique() >= 9  # else nothing was compared


def test_every_twentieth_from_a_tenth_to_nine_tenths_is_tried_with_every_step():
    np.testing.assert_allclose(prediction.THRESHOLDS, np.arange(2, 19) / 20)
    assert 0.5 in prediction.THRESHOLDS and list(prediction.REGIONS) == ["every", "largest", "filled", "ellipse"]


def cuts(**columns):
    """A table of cuts at 0.3, 0.4, 0.5, 0.7, with the steps in their order."""
    return pd.DataFrame(columns, index=pd.Index([0.3, 0.4, 0.5, 0.7], name="threshold"))


@pytest.mark.parametrize(
    ("table", "chosen"),
    [
        (cuts(every=[0.8, 0.7, 0.7, 0.7], filled=[0.7, 0.7, 0.7, 0.9]), (0.7, "filled")),
        (cuts(every=[0.8, 0.95, 0.7, 0.7], filled=[0.7, 0.7, 0.7, 0.9]), (0.4, "every")),
        (cuts(every=[0.9, 0.9, 0.8, 0.9], filled=[0.9, 0.9, 0.8, 0.9]), (0.4, "every")),  # towards 0.5, the simpler
        (cuts(every=[0.9, 0.8, 0.8, 0.8], filled=[0.9, 0.9, 0.8, 0.9]), (0.4, "filled")),
        (cuts(every=[0.9, 0.9, 0.89992, 0.9], filled=[0.9, 0.9, 0.9, 0.9]), (0.5, "every")),  # as good as equal
        (cuts(every=[0.90006, 0.8, 0.90004, 0.8], filled=[0.8] * 4), (0.5, "every")),
        (cuts(every=[0.9, 0.8, 0.8998, 0.8], filled=[0.8] * 4), (0.3, "every")),  # a difference
        (cuts(every=[0.9] * 4, largest=[0.90009] * 4, filled=[0.9003] * 4), (0.5, "filled")),
    ],
)
def test_the_best_cut_is_chosen_and_of_equals_that_nearest_to_a_half_and_the_simplest(table, chosen):
    assert prediction.choose_cut(table) == chosen


def test_a_threshold_or_a_step_that_is_given_is_kept():
    table = cuts(every=[0.9, 0.8, 0.7, 0.6], filled=[0.7, 0.7, 0.8, 0.6], ellipse=[0.5, 0.6, 0.6, 0.7])
    assert prediction.choose_cut(table) == (0.3, "every")
    assert prediction.choose_cut(table, threshold=0.7) == (0.7, "ellipse")
    assert prediction.choose_cut(table, region="filled") == (0.5, "filled")
    assert prediction.choose_cut(table, threshold=0.4, region="ellipse") == (0.4, "ellipse")


@pytest.mark.parametrize(
    ("threshold", "step"), [(0.62, "ellipse"), (0.58, "filled"), (0.05, "every"), (0.99, "ellipse")]
)
def test_a_threshold_that_the_table_lacks_is_kept_with_the_step_of_its_neighbour(threshold, step):
    table = cuts(every=[0.9, 0.8, 0.7, 0.6], filled=[0.7, 0.7, 0.8, 0.6], ellipse=[0.5, 0.6, 0.6, 0.7])
    assert prediction.choose_cut(table, threshold=threshold) == (threshold, step)


def test_the_cut_of_a_run_is_that_of_its_own_evaluation_and_else_the_usual(tmp_path):
    usual = {"threshold": 0.5, "region": "largest", "flip": False}
    state = {"sha256": "of these weights"}
    assert prediction.frozen_cut(tmp_path / "checkpoint.pt", state) == usual
    stored = {"checkpoint_sha256": "of others", "threshold": 0.3, "region": "ellipse", "parameters": {"flip": True}}
    write_json(tmp_path / "metrics.json", stored)
    assert prediction.frozen_cut(tmp_path / "checkpoint.pt", state) == usual
    write_json(tmp_path / "metrics.json", stored | {"checkpoint_sha256": "of these weights"})
    frozen = prediction.frozen_cut(tmp_path / "checkpoint.pt", state)
    assert frozen == {"threshold": 0.3, "region": "ellipse", "flip": True}


# Folders


def test_a_folder_is_predicted_at_any_depth_without_its_annotations(tmp_path):
    image, mask = disc()
    for name in ("1_HC.png", "a/2_HC.png", "a/b/c/3_HC.jpg"):
        write(tmp_path / "in" / name, image)
    write(tmp_path / "in" / "a" / "2_HC_Annotation.png", mask * 255)
    written, problems = prediction.predict_folder(PREDICT, tmp_path / "in", tmp_path / "out")
    assert (written, problems) == (3, [])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{n}_HC_pred.png" for n in (1, 2, 3)]
    mine = cv2.imread(str(tmp_path / "out" / "2_HC_pred.png"), cv2.IMREAD_UNCHANGED)
    assert mine.shape == image.shape and set(np.unique(mine)) == {0, 255}
    assert dice_score(mine > 0, mask) > 0.95


def test_a_single_file_is_predicted(tmp_path):
    write(tmp_path / "in" / "x.png", disc()[0])
    assert prediction.predict_folder(PREDICT, tmp_path / "in" / "x.png", tmp_path / "out") == (1, [])
    assert (tmp_path / "out" / "x_pred.png").exists()


def test_unreadable_files_are_reported_and_the_rest_is_done(tmp_path):
    for name in ("1.png", "2.png", "4.png"):
        write(tmp_path / "in" / name, disc()[0])
    (tmp_path / "in" / "2.png").write_bytes((tmp_path / "in" / "1.png").read_bytes()[:60])
    (tmp_path / "in" / "3.png").write_text("no image")
    written, problems = prediction.predict_folder(PREDICT, tmp_path / "in", tmp_path / "out")
    assert written == 2 and len(problems) == 2
    assert "2.png is cut off" in problems[0] and "3.png is not an image" in problems[1]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["1_pred.png", "4_pred.png"]


@pytest.mark.parametrize("twins", [("a/1.png", "b/1.png"), ("1.png", "1.jpg")])
def test_two_images_that_would_write_the_same_file_are_refused(tmp_path, twins):
    for name in twins:
        write(tmp_path / "in" / name, disc()[0])
    with pytest.raises(FetalsegError, match=r"1_pred\.png"):
        prediction.predict_folder(PREDICT, tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_to_predict_is_refused(tmp_path):
    write(tmp_path / "in" / "1_HC_Annotation.png", disc()[1] * 255)
    (tmp_path / "empty").mkdir()
    for folder in ("in", "empty", "missing"):
        with pytest.raises(FetalsegError, match=folder):
            prediction.predict_folder(PREDICT, tmp_path / folder, tmp_path / "out")


def test_predictions_of_an_earlier_time_are_not_predicted_again(tmp_path):
    write(tmp_path / "1.png", disc()[0])
    for _ in range(2):
        assert prediction.predict_folder(PREDICT, tmp_path, tmp_path / "out") == (1, [])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["1_pred.png"]


@pytest.mark.parametrize("images", ["", "1.png"])
def test_predictions_can_lie_beside_their_images(tmp_path, images):
    write(tmp_path / "1.png", disc()[0])
    assert prediction.predict_folder(PREDICT, tmp_path / images, tmp_path) == (1, [])
    assert (tmp_path / "1_pred.png").exists()
