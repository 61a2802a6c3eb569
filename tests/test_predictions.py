"""Masks for a folder of images: what is predicted, what is skipped, what is refused."""

import cv2
import numpy as np
import pytest

from fetalseg_helpers.beyond_dice import folders
from fetalseg_helpers.ellipses import LINE_HALF_WIDTH, Ellipse, draw_ellipse, ellipse_perimeter
from fetalseg_helpers.evaluation import dice_score
from fetalseg_helpers.running.predictions import ORANGE, describe, doubt, frozen_cut, measure_head, predict_folder
from fetalseg_helpers.workspace import FetalsegError, write_json


def bright(image):
    """A predictor without a network: pixels brighter than the middle are tumor."""
    return np.uint8(image > 127)


def disc(height=37, width=53):
    """A grey frame with a bright disc, and the disc."""
    mask = cv2.circle(np.zeros((height, width), np.uint8), (width // 2, height // 2), min(height, width) // 3, 1, -1)
    return (20 + 200 * mask).astype(np.uint8), mask


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def test_a_folder_is_predicted_at_any_depth_without_its_annotations(tmp_path):
    image, mask = disc()
    for name in ("1_HC.png", "a/2_HC.png", "a/b/c/3_HC.jpg"):
        write(tmp_path / "in" / name, image)
    write(tmp_path / "in" / "a" / "2_HC_Annotation.png", mask * 255)
    table, problems, _ = predict_folder(bright, tmp_path / "in", tmp_path / "out")
    assert (len(table), problems) == (3, [])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{n}_HC_pred.png" for n in (1, 2, 3)]
    mine = cv2.imread(str(tmp_path / "out" / "2_HC_pred.png"), cv2.IMREAD_UNCHANGED)
    assert mine.shape == image.shape and set(np.unique(mine)) == {0, 255}
    assert dice_score(mine > 0, mask) == 1


def test_a_single_file_is_predicted(tmp_path):
    write(tmp_path / "in" / "x.png", disc()[0])
    table, problems, _ = predict_folder(bright, tmp_path / "in" / "x.png", tmp_path / "out")
    assert len(table) == 1 and not problems
    assert (tmp_path / "out" / "x_pred.png").exists()


def test_unreadable_files_are_reported_and_the_rest_is_done(tmp_path):
    for name in ("1.png", "2.png", "4.png"):
        write(tmp_path / "in" / name, disc()[0])
    (tmp_path / "in" / "2.png").write_bytes((tmp_path / "in" / "1.png").read_bytes()[:60])
    (tmp_path / "in" / "3.png").write_text("no image")
    table, problems, _ = predict_folder(bright, tmp_path / "in", tmp_path / "out")
    assert len(table) == 2 and len(problems) == 2
    assert "2.png is cut off" in problems[0] and "3.png is cut off, damaged or not an image" in problems[1]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["1_pred.png", "4_pred.png"]


@pytest.mark.parametrize("twins", [("a/1.png", "b/1.png"), ("1.png", "1.jpg")])
def test_two_images_that_would_write_the_same_file_are_refused(tmp_path, twins):
    for name in twins:
        write(tmp_path / "in" / name, disc()[0])
    with pytest.raises(FetalsegError, match=r"1_pred\.png"):
        predict_folder(bright, tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_to_predict_is_refused(tmp_path):
    write(tmp_path / "in" / "1_HC_Annotation.png", disc()[1] * 255)
    (tmp_path / "empty").mkdir()
    for folder in ("in", "empty", "missing"):
        with pytest.raises(FetalsegError, match=folder):
            predict_folder(bright, tmp_path / folder, tmp_path / "out")


def test_predictions_of_an_earlier_time_are_not_predicted_again(tmp_path):
    write(tmp_path / "1.png", disc()[0])
    for _ in range(2):
        table, problems, _ = predict_folder(bright, tmp_path, tmp_path / "out", overlay=True)
        assert len(table) == 1 and not problems
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["1_overlay.png", "1_pred.png"]


@pytest.mark.parametrize("images", ["", "1.png"])
def test_predictions_can_lie_beside_their_images(tmp_path, images):
    write(tmp_path / "1.png", disc()[0])
    table, problems, _ = predict_folder(bright, tmp_path / images, tmp_path)
    assert len(table) == 1 and not problems
    assert (tmp_path / "1_pred.png").exists()


# the ellipse, the doubt, the overlay


def test_the_ellipse_of_a_head_is_that_of_the_line_s_middle():
    drawn = Ellipse(100.0, 80.0, 60 + LINE_HALF_WIDTH, 40 + LINE_HALF_WIDTH, 0.0)
    head = measure_head(draw_ellipse(drawn, 200, 160))
    assert (head["x_px"], head["y_px"], head["a_px"], head["b_px"]) == pytest.approx((100, 80, 60, 40), abs=0.3)
    upright = measure_head(draw_ellipse(drawn._replace(angle=90.0), 200, 160))
    assert upright["a_px"] == pytest.approx(60, abs=0.3) and upright["angle"] == pytest.approx(90, abs=1)
    assert min(head["angle"], 180 - head["angle"]) == pytest.approx(0, abs=1)
    assert head["circumference_px"] == pytest.approx(ellipse_perimeter(60, 40), rel=0.01)
    assert np.isnan(list(measure_head(np.zeros((160, 200), np.uint8)).values())).all()


def test_doubt_by_hand():
    mask = np.array([[1, 1, 0, 0]], np.uint8)
    assert doubt(np.float32([[1, 1, 0, 0]]), mask) == 0
    assert doubt(np.float32([[0.9, 0.7, 0.3, 0.1]]), mask) == pytest.approx(1 - 2 * 1.6 / 4)
    assert doubt(np.float32([[0.4, 0.3, 0, 0]]), 0 * mask) == doubt(np.zeros((1, 4), np.float32), 0 * mask) == 1


def test_an_overlay_is_the_image_with_the_mask_s_border_in_orange(tmp_path):
    image, mask = disc()
    write(tmp_path / "in" / "1.png", image)
    predict_folder(bright, tmp_path / "in", tmp_path / "out", overlay=True)
    drawn = cv2.imread(str(tmp_path / "out" / "1_overlay.png"))
    orange = (drawn == ORANGE).all(axis=2)
    near = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((5, 5), np.uint8)) > 0
    assert orange.sum() > 30 and not (orange & ~near).any()
    assert (drawn[~orange] == image[~orange][:, None]).all()
    write(tmp_path / "truth" / "1_mask.png", mask * 255)
    scores, problems = folders.score_folder(tmp_path / "out", tmp_path / "truth")
    assert list(scores.dice) == [1] and list(problems.problem) == ["passed over"]


def test_images_without_a_head_and_heads_in_doubt_are_told_by_name(tmp_path):
    maps = {"sure": disc()[1] * 1.0, "unsure": 0.6 * disc()[1] + 0.2, "nothing": 0 * disc()[1] + 0.1}
    maps["whole"] = 0 * disc()[1] + 0.99  # no border, so no ellipse
    for number, name in enumerate(maps):
        write(tmp_path / "in" / f"{name}.png", np.full((37, 53), number, np.uint8))
    table, _, _ = predict_folder(lambda image: list(maps.values())[image[0, 0]], tmp_path / "in", tmp_path / "out")
    assert list(table.image_id) == ["nothing", "sure", "unsure", "whole"]
    told = ["1 images without a head: nothing", "2 images in doubt, look at them: unsure, whole"]
    assert list(describe(table)) == told
    assert list(describe(table[1:2])) == []


def test_the_cut_of_a_run_is_that_of_its_own_evaluation_and_else_the_usual(tmp_path):
    usual = {"threshold": 0.5, "region": "largest", "flip": False}
    state = {"sha256": "of these weights"}
    assert frozen_cut(tmp_path / "checkpoint.pt", state) == usual
    stored = {"checkpoint_sha256": "of others", "threshold": 0.3, "region": "ellipse", "parameters": {"flip": True}}
    write_json(tmp_path / "metrics.json", stored)
    assert frozen_cut(tmp_path / "checkpoint.pt", state) == usual
    write_json(tmp_path / "metrics.json", stored | {"checkpoint_sha256": "of these weights"})
    frozen = frozen_cut(tmp_path / "checkpoint.pt", state)
    assert frozen == {"threshold": 0.3, "region": "ellipse", "flip": True}
