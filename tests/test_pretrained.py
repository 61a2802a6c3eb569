"""The network that ships: how large it is, what it finds, what it takes for no head, and how commands use it."""

import os
import re
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from fetalseg_helpers import evaluation, loading, preprocessing, training, workspace
from fetalseg_helpers.ellipses import ellipse_perimeter
from fetalseg_helpers.phantoms import frames
from fetalseg_helpers.running import predictions
from fetalseg_helpers.training import PRETRAINED


@pytest.fixture(scope="module")
def find():
    """A function that finds the head of an image: mask and doubt."""
    network, state = training.load_network(PRETRAINED)
    cut = predictions.frozen_cut(PRETRAINED, state)

    def find(image):
        probability = evaluation.predict_image(network, image, state["canvas"], cut["flip"])
        mask = evaluation.cut(probability, cut["threshold"], cut["region"])
        return mask, predictions.doubt(probability, mask)

    return find


@pytest.fixture(scope="module")
def phantom_frames():
    """Twelve phantoms of which the network has seen none."""
    return [frames.draw_frame(np.random.default_rng([77, number])) for number in range(12)]


@pytest.fixture(scope="module")
def folder(phantom_frames, tmp_path_factory):
    """Four of them as files, with a table of their pixel sizes."""
    folder = tmp_path_factory.mktemp("frames")
    for number, phantom in enumerate(phantom_frames[:4]):
        cv2.imwrite(str(folder / f"{number}.png"), phantom.image)
    pd.DataFrame({"image_id": range(4), "pixel_mm": 0.1}).to_csv(folder / "sizes.csv", index=False)
    return folder


def command(*arguments, cwd=None):
    root = {"PYTHONUTF8": "1", "PYTHONPATH": str(cwd or workspace.project_root())}
    process = [sys.executable, "-m", "fetalseg_helpers", *map(str, arguments)]
    return subprocess.run(process, capture_output=True, encoding="utf-8", env=os.environ | root, cwd=cwd, check=False)


def test_it_is_small():
    network, _ = training.load_network(PRETRAINED)
    assert PRETRAINED.stat().st_size < 5e6 and sum(weight.numel() for weight in network.parameters()) < 2.5e6


def test_it_finds_the_heads_of_new_phantoms_and_does_not_doubt_them(find, phantom_frames):
    found = [find(phantom.image) for phantom in phantom_frames]
    dice = [evaluation.dice_score(mask, phantom.mask) for (mask, _), phantom in zip(found, phantom_frames, strict=True)]
    assert np.mean(dice) > 0.95 and min(dice) > 0.85
    assert max(doubt for _, doubt in found) <= predictions.DOUBTFUL


def test_what_is_no_head_is_not_called_one(find, phantom_frames):
    rng = np.random.default_rng(0)
    others = [frames.draw_frame(np.random.default_rng([78, number]), head=False).image for number in range(6)]
    others += [255 - phantom.image for phantom in phantom_frames[:6]]
    others += [rng.integers(0, 256, (540, 800), dtype=np.uint8), np.zeros((540, 800), np.uint8)]
    sure = [mask.any() and doubt <= predictions.DOUBTFUL for mask, doubt in map(find, others)]
    assert sum(sure) <= 1


def test_predict_without_a_checkpoint_writes_masks_overlays_and_a_table(folder, phantom_frames, tmp_path):
    options = ("--overlay", "--csv", "--pixel-size-csv", folder / "sizes.csv")
    result = command("predict", folder, "--out", tmp_path / "out", *options)
    assert result.returncode == 0, result.stderr
    table = pd.read_csv(tmp_path / "out" / "predictions.csv")
    assert list(table.columns) == ["image_id", *predictions.ELLIPSE, "doubt", "circumference_mm"]
    for row, phantom in zip(table.itertuples(), phantom_frames, strict=False):
        written = cv2.imread(str(tmp_path / "out" / f"{row.image_id}_pred.png"), cv2.IMREAD_UNCHANGED)
        assert evaluation.dice_score(written > 0, phantom.mask) > 0.85
        truth = ellipse_perimeter(*sorted(phantom.ellipse[2:4], reverse=True))
        assert row.circumference_px == pytest.approx(truth, rel=0.08)
        assert row.circumference_mm == pytest.approx(0.1 * row.circumference_px, rel=1e-4)
        assert cv2.imread(str(tmp_path / "out" / f"{row.image_id}_overlay.png")).shape == (540, 800, 3)
    assert len(table) == 4


def test_training_starts_from_it_with_its_shape_and_its_size(folder, draw_pairs, tmp_path):
    draw_pairs(tmp_path / "malignant")
    options = ("-p", "epochs", 1, "-p", "learning_rate", 1e-8, "--start", "pretrained")
    result = command("train", "--data", tmp_path / "malignant", "--run-dir", tmp_path / "run", *options)
    assert result.returncode == 0, result.stderr
    state, first = (training.load_checkpoint(path) for path in (tmp_path / "run" / "checkpoint.pt", PRETRAINED))
    assert state["canvas"] == first["canvas"] == preprocessing.read_canvas(tmp_path / "run")
    kernels = [name for name, weight in first["network"].items() if weight.ndim > 1]
    assert all(torch.allclose(state["network"][name], first["network"][name].float(), atol=1e-5) for name in kernels)
    other = command("train", "--run-dir", tmp_path / "run", "--start", "pretrained", "-p", "depth", 3)
    assert other.returncode == 1 and len(other.stderr.splitlines()) == 1 and "another network" in other.stderr


@pytest.mark.parametrize("damage", ["missing", "cut off", "another"])
def test_without_the_whole_file_one_sentence_says_so(damage, folder, tmp_path):
    shutil.copytree(workspace.project_root() / "fetalseg_helpers", tmp_path / "fetalseg_helpers")
    file = tmp_path / "fetalseg_helpers" / "phantoms" / "pretrained.pt"
    content = file.read_bytes()
    file.unlink()
    if damage != "missing":
        file.write_bytes(content[:-1000] if damage == "cut off" else b"a page of a proxy")
    result = command("predict", folder, "--out", tmp_path / "out", cwd=tmp_path)
    assert result.returncode == 1 and len(result.stderr.splitlines()) == 1 and "pretrained.pt" in result.stderr
    assert not (tmp_path / "out").exists()


def test_it_finds_real_heads(find, real_data):
    pairs = loading.load_pairs(real_data).query("check == ''")[::20]
    dice = []
    for pair in pairs.itertuples():
        image, truth = preprocessing.read_pair(pair.image_path, pair.mask_path)
        dice.append(evaluation.dice_score(find(image)[0], truth))
    assert len(dice) > 40 and np.mean(dice) > 0.965 and np.median(dice) > 0.97


def test_its_card_says_where_it_comes_from_and_what_it_is_not_for():
    card = (PRETRAINED.parent / "pretrained.md").read_text(encoding="utf-8")
    for part in ("phantoms", "pretraining.py", "never for clinical use", "doubt"):
        assert part in card
    assert not re.findall(r"\b(REAL|DOUBT|NOHEADS|PHANTOMS|SHOWN)\b", card)  # every place is filled
