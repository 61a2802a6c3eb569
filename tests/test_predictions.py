"""Masks for a folder of images: what is predicted, what is skipped, what is refused."""

import cv2
import numpy as np
import pytest

from fetalseg_helpers.evaluation import dice_score
from fetalseg_helpers.running.predictions import frozen_cut, predict_folder
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
    written, problems, _ = predict_folder(bright, tmp_path / "in", tmp_path / "out")
    assert (written, problems) == (3, [])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{n}_HC_pred.png" for n in (1, 2, 3)]
    mine = cv2.imread(str(tmp_path / "out" / "2_HC_pred.png"), cv2.IMREAD_UNCHANGED)
    assert mine.shape == image.shape and set(np.unique(mine)) == {0, 255}
    assert dice_score(mine > 0, mask) == 1


def test_a_single_file_is_predicted(tmp_path):
    write(tmp_path / "in" / "x.png", disc()[0])
    assert predict_folder(bright, tmp_path / "in" / "x.png", tmp_path / "out")[:2] == (1, [])
    assert (tmp_path / "out" / "x_pred.png").exists()


def test_unreadable_files_are_reported_and_the_rest_is_done(tmp_path):
    for name in ("1.png", "2.png", "4.png"):
        write(tmp_path / "in" / name, disc()[0])
    (tmp_path / "in" / "2.png").write_bytes((tmp_path / "in" / "1.png").read_bytes()[:60])
    (tmp_path / "in" / "3.png").write_text("no image")
    written, problems, _ = predict_folder(bright, tmp_path / "in", tmp_path / "out")
    assert written == 2 and len(problems) == 2
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
        assert predict_folder(bright, tmp_path, tmp_path / "out")[:2] == (1, [])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["1_pred.png"]


@pytest.mark.parametrize("images", ["", "1.png"])
def test_predictions_can_lie_beside_their_images(tmp_path, images):
    write(tmp_path / "1.png", disc()[0])
    assert predict_folder(bright, tmp_path / images, tmp_path)[:2] == (1, [])
    assert (tmp_path / "1_pred.png").exists()


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
