"""The command line, as a user calls it: a subprocess, files, exit codes, one sentence."""

import json
import os
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pandas as pd
import pytest

from fetalseg_helpers import checkpoints, phantom_set, prediction

QUICK = {
    "phantoms": 24,
    "epochs": 2,
    "width": 64,
    "height": 48,
    "base_channels": 4,
    "depth": 3,
    "overfit_steps": 20,
    "trial_steps": 5,
}
CONTRACT = {
    "manifest.csv": ["image_id", "image_path", "mask_path", "examination", "split", "width", "height"],
    "verification.csv": ["image_id", "check", "severity", "detail"],
    "history.csv": ["epoch", "train_loss", "valid_loss", "valid_dice", "learning_rate", "seconds"],
}


def call(*arguments, cwd=None, timeout=600):
    environment = {**os.environ, "PYTHONUTF8": "1"}
    return subprocess.run(
        [sys.executable, "-m", "fetalseg_helpers", *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=timeout,
    )


def parameters(values):
    return [text for name, value in values.items() for text in ("-p", name, str(value))]


def is_one_sentence(text):
    return text.strip() and "Traceback" not in text and len(text.strip().splitlines()) == 1


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run, as small as it gets, called from another folder."""
    folder = tmp_path_factory.mktemp("finished")
    result = call("run", "--run-dir", "run", *parameters(QUICK), cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder / "run", result


@pytest.fixture(scope="module")
def whole_set(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "phantoms"
    return phantom_set.write_phantoms(folder, count=16, seed=5, defects=False, processes=1)


def test_run_leaves_everything_that_the_contract_names(finished):
    folder, _ = finished
    for name, columns in CONTRACT.items():
        assert list(pd.read_csv(folder / name).columns)[: len(columns)] == columns, name
    assert list(pd.read_csv(folder / "metrics.csv").columns)[:4] == ["image_id", "examination", "dice", "iou"]
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert {"mean_dice", "mean_iou", "images", "examinations", "threshold", "data", "parameters"} <= set(metrics)
    for name in ("checkpoint.pt", "last.pt", "prepared/images.npy", "prepared/masks.npy"):
        assert (folder / name).stat().st_size > 0
    assert len(list((folder / "notebooks").glob("0?_*.ipynb"))) == 6


def test_predictions_are_masks_of_0_and_255_at_the_image_s_own_size(finished):
    folder, _ = finished
    manifest = pd.read_csv(folder / "manifest.csv").set_index("image_id")
    scored = pd.read_csv(folder / "metrics.csv")
    for image_id in scored.image_id:
        mask = cv2.imread(str(folder / "predictions" / f"{image_id}_pred.png"), cv2.IMREAD_UNCHANGED)
        assert mask.shape == (manifest.height[image_id], manifest.width[image_id])
        assert set(np.unique(mask)) <= {0, 255}


def test_run_says_where_it_is_and_what_came_out(finished):
    _, result = finished
    for name in ("01_loading", "06_evaluation", "Dice", "95 % interval", "phantoms", "predictions"):
        assert name in result.stdout
    assert result.stderr == ""


def test_given_parameters_reach_the_notebooks(finished):
    folder, _ = finished
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert {name: metrics["parameters"][name] for name in ("epochs", "width", "base_channels")} == {
        "epochs": 2, "width": 64, "base_channels": 4,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (("epoch", "3"), "no notebook has a parameter 'epoch': did you mean 'epochs'?"),
        (("learningrate", "1"), "did you mean 'learning_rate'?"),
        (("epochs", "many"), "epochs is 'many' of type str, but must be a whole number."),
        (("bce_weight", "-1"), "bce_weight is -1.0, but must lie between 0 and 100."),
        (("flip", "perhaps"), "flip is 'perhaps' of type str, but must be true or false."),
        (("width", "100"), "100 × 96 does not divide by 2^4 = 16: use 96 × 96 or 112 × 96, or another depth."),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_a_wrong_parameter_stops_a_run_before_anything_runs(given, sentence, tmp_path):
    result = call("run", "--run-dir", tmp_path / "run", "-p", *given)
    assert result.returncode == 1 and sentence in result.stderr and is_one_sentence(result.stderr)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name, value", [("run_dir", "elsewhere"), ("resume", "true")])
def test_train_does_not_silently_drop_what_has_an_option_of_its_own(name, value, tmp_path):
    result = call("train", "--run-dir", tmp_path / "run", "-p", name, value, cwd=tmp_path)
    assert result.returncode == 1 and is_one_sentence(result.stderr)
    assert f"--{name.replace('_', '-')}" in result.stderr and not list(tmp_path.rglob("*.pt"))


def test_wrong_usage_exits_with_2():
    assert call("run", "--preset", "huge").returncode == 2
    assert call("walk").returncode == 2
    assert call("predict", "x").returncode == 2


def test_a_missing_data_folder_is_one_sentence_with_the_folder_s_name(tmp_path):
    result = call("run", "--data", tmp_path / "nowhere", "--run-dir", tmp_path / "run")
    assert result.returncode == 1 and "nowhere" in result.stderr and is_one_sentence(result.stderr)


def test_a_folder_without_a_pair_is_one_sentence(tmp_path):
    (tmp_path / "data").mkdir()
    cv2.imwrite(str(tmp_path / "data" / "1_HC.png"), np.zeros((54, 80), np.uint8))
    result = call("run", "--data", tmp_path / "data", "--run-dir", tmp_path / "run")
    assert result.returncode == 1 and "holds no pair" in result.stderr and is_one_sentence(result.stderr)
    result = call("verify", tmp_path / "data")
    assert result.returncode == 1 and "holds no pair" in result.stderr and is_one_sentence(result.stderr)


def test_debug_shows_the_traceback(tmp_path):
    result = call("verify", tmp_path / "nowhere", "--debug")
    assert result.returncode == 1 and "Traceback" in result.stderr


def test_verify_exits_with_0_only_where_nothing_is_wrong(whole_set, tmp_path):
    result = call("verify", whole_set)
    assert result.returncode == 0 and "0 defects" in result.stdout
    phantom_set.write_phantoms(tmp_path / "spoilt", count=40, seed=0, processes=1)
    result = call("verify", tmp_path / "spoilt")
    assert result.returncode == 1 and "unreadable" in result.stdout and "missing_mask" in result.stdout


def test_phantom_writes_the_frames_that_are_asked_for(tmp_path):
    result = call("phantom", tmp_path / "set", "--count", 4, "--seed", 2)
    assert result.returncode == 0
    images = [path for path in (tmp_path / "set").rglob("malignant/*.png") if "Annotation" not in path.name]
    assert len(images) == 4
    again = call("phantom", tmp_path / "set", "--count", 4)
    assert again.returncode == 1 and is_one_sentence(again.stderr)


def test_predict_takes_a_file_or_a_folder_at_any_depth(finished, whole_set, tmp_path):
    folder, _ = finished
    checkpoint = folder / "checkpoint.pt"
    images = [path for path in sorted(whole_set.rglob("malignant/*.png")) if "Annotation" not in path.name]
    result = call("predict", whole_set, "--checkpoint", checkpoint, "--out", tmp_path / "all")
    assert result.returncode == 0, result.stderr
    written = {path.name for path in (tmp_path / "all").iterdir()}
    assert {f"{path.stem}_pred.png" for path in images} <= written
    assert not any("Annotation" in name for name in written)
    result = call("predict", images[0], "--checkpoint", checkpoint, "--out", tmp_path / "one")
    assert result.returncode == 0 and [path.name for path in (tmp_path / "one").iterdir()] == [
        f"{images[0].stem}_pred.png"
    ]
    one, same = (cv2.imread(str(tmp_path / where / f"{images[0].stem}_pred.png"), 0) for where in ("one", "all"))
    assert np.array_equal(one, same) and one.shape == (540, 800) and set(np.unique(one)) <= {0, 255}


def test_predict_cuts_as_the_evaluation_of_the_run_did(finished, tmp_path):
    folder, _ = finished
    row = pd.read_csv(folder / "manifest.csv").query("split == 'test'").iloc[0]
    result = call("predict", row.image_path, "--checkpoint", folder / "checkpoint.pt", "--out", tmp_path / "mine")
    assert result.returncode == 0, result.stderr
    chosen = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert f"cut at {chosen['threshold']:.2f}, region '{chosen['region']}'" in result.stdout
    name = f"{row.image_id}_pred.png"
    assert (tmp_path / "mine" / name).read_bytes() == (folder / "predictions" / name).read_bytes()
    (tmp_path / "alone").mkdir()
    shutil.copyfile(folder / "checkpoint.pt", tmp_path / "alone" / "checkpoint.pt")
    alone = call("predict", row.image_path, "--checkpoint", tmp_path / "alone/checkpoint.pt", "--out", tmp_path / "out")
    assert alone.returncode == 0 and "cut at 0.50, region 'largest'" in alone.stdout
    chosen["checkpoint_sha256"] = "of other weights"
    (tmp_path / "alone" / "metrics.json").write_text(json.dumps(chosen), encoding="utf-8")
    other = call("predict", row.image_path, "--checkpoint", tmp_path / "alone/checkpoint.pt", "--out", tmp_path / "out")
    assert "cut at 0.50, region 'largest'" in other.stdout


def test_predict_cuts_as_it_is_told(finished, whole_set, tmp_path):
    image = next(path for path in sorted(whole_set.rglob("malignant/*.png")) if "Annotation" not in path.name)
    options = ("predict", image, "--checkpoint", finished[0] / "checkpoint.pt", "--threshold", 0.3, "--no-flip")
    for name in ("largest", "ellipse"):
        assert call(*options, "--out", tmp_path / name, "--region", name).returncode == 0
    plain, ellipse = (
        cv2.imread(str(tmp_path / name / f"{image.stem}_pred.png"), 0) // 255 for name in ("largest", "ellipse")
    )
    assert np.array_equal(ellipse, prediction.fit_ellipse(plain))


def test_predict_reports_an_unreadable_image_and_does_the_rest(finished, tmp_path):
    folder, _ = finished
    cv2.imwrite(str(tmp_path / "good.png"), np.zeros((60, 90), np.uint8))
    (tmp_path / "bad.png").write_bytes(b"no image")
    result = call("predict", tmp_path, "--checkpoint", folder / "checkpoint.pt", "--out", tmp_path / "out")
    assert result.returncode == 1 and "bad.png" in result.stderr and is_one_sentence(result.stderr)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good_pred.png"]


@pytest.mark.parametrize("content", [None, b"", b"not a checkpoint"], ids=["missing", "empty", "text"])
def test_predict_refuses_a_checkpoint_that_is_none(content, tmp_path):
    cv2.imwrite(str(tmp_path / "image.png"), np.zeros((60, 90), np.uint8))
    checkpoint = tmp_path / "broken.pt"
    if content is not None:
        checkpoint.write_bytes(content)
    result = call("predict", tmp_path / "image.png", "--checkpoint", checkpoint, "--out", tmp_path / "out")
    assert result.returncode == 1 and "broken.pt" in result.stderr and is_one_sentence(result.stderr)
    assert not (tmp_path / "out").exists()


def test_a_killed_training_resumes_where_it_stopped_and_ends_with_the_same_weights(tmp_path):
    values = parameters(QUICK | {"epochs": 4, "patience": 4})
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert call("train", "--run-dir", whole, *values).returncode == 0
    first = subprocess.Popen(
        [sys.executable, "-m", "fetalseg_helpers", "train", "--run-dir", str(stopped), *values],
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in first.stdout:
        if line.startswith("epoch   2/"):
            first.kill()
            break
    first.wait()
    result = call("train", "--run-dir", stopped, "--resume")
    assert result.returncode == 0, result.stderr
    columns = ["epoch", "train_loss", "valid_loss", "valid_dice", "learning_rate"]
    histories = [pd.read_csv(folder / "history.csv")[columns] for folder in (whole, stopped)]
    pd.testing.assert_frame_equal(*histories, check_exact=True)
    weights = [checkpoints.load_checkpoint(folder / "last.pt")["sha256"] for folder in (whole, stopped)]
    assert weights[0] == weights[1]


def test_train_fine_tunes_a_checkpoint_on_other_data(finished, whole_set, tmp_path):
    folder, _ = finished
    given = parameters({name: value for name, value in QUICK.items() if name != "phantoms"} | {"epochs": 1})
    command = ("train", "--data", whole_set, "--run-dir", tmp_path / "tuned", "--start")
    result = call(*command, folder / "checkpoint.pt", *given)
    assert result.returncode == 0 and "best validation Dice" in result.stdout, result.stderr
    result = call(*command, folder / "checkpoint.pt", *given, "-p", "base_channels", "5")
    assert result.returncode == 1 and is_one_sentence(result.stderr) and "another network" in result.stderr


def test_a_failing_notebook_is_kept_and_the_run_says_where(tmp_path):
    """One of five pairs has something drawn, so that training works and validation has no image."""
    for number in range(1, 6):
        image = np.random.default_rng(number).integers(0, 255, (54, 80), dtype=np.uint8)
        outline = cv2.ellipse(np.zeros_like(image), (40, 27), (20, 15), 0, 0, 360, 255, 2)
        cv2.imwrite(str(tmp_path / f"{number}_HC.png"), image)
        cv2.imwrite(str(tmp_path / f"{number}_HC_Annotation.png"), outline * (number == 1))
    result = call("run", "--data", tmp_path, "--run-dir", tmp_path / "run", *parameters(QUICK | {"seed": 1}))
    assert result.returncode == 1 and is_one_sentence(result.stderr)
    assert "05_training" in result.stderr and "no usable image is in the split 'valid'" in result.stderr
    names = {path.name for path in (tmp_path / "run" / "notebooks").iterdir()}
    assert "05_training_failed.ipynb" in names and "05_training.ipynb" not in names and "04_unet.ipynb" in names
