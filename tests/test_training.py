"""The loss, the loop, and trainings in a run folder: repeated, stopped, killed, resumed; checkpoints that survive."""

import copy
import errno
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
import zipfile
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock, Timeout
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from notebook_checks import defined
from torch.nn import functional
from torch.utils.data import DataLoader, DistributedSampler, Subset, TensorDataset

from fetalseg_helpers import evaluation, loading, preprocessing, training, unet, verification, workspace
from fetalseg_helpers.running import lessons, stages, widgets
from fetalseg_helpers.workspace import FetalsegError

SMALL = training.Settings(base_channels=2, depth=2, epochs=4, batch_size=7, learning_rate=1e-2, seed=1)
COLUMNS = ["epoch", "train_loss", "valid_loss", "valid_dice", "learning_rate", "seconds"]
few = hypothesis_settings(max_examples=25)
needs_posix = pytest.mark.skipif(os.name != "posix", reason="SIGKILL and RLIMIT_FSIZE need Linux or macOS")


def tensors(images=5, seed=0, size=(8, 12)):
    torch.manual_seed(seed)
    x = torch.rand(images, 1, *size)
    return TensorDataset(x, (x > 0.6).float())


def network_of(seed=0):
    torch.manual_seed(seed)
    return unet.UNet(2, 2, "batch")


def constant(optimiser):
    return torch.optim.lr_scheduler.ConstantLR(optimiser, factor=1.0)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, draw_pairs):
    """A run folder that is prepared at 48 × 32 and not trained. Read only: copy what you change."""
    root = tmp_path_factory.mktemp("training")
    draw_pairs(root / "malignant")
    stages.ensure_verified(root / "run", 48, 32, data=str(root / "malignant"), seed=0)
    return root / "run"


@pytest.fixture
def run_dir(prepared, tmp_path):
    """A run folder of the test's own, prepared and not trained."""
    return Path(shutil.copytree(prepared, tmp_path / "run"))


@pytest.fixture(scope="module")
def uninterrupted(prepared, tmp_path_factory):
    """A run folder that was trained with SMALL in one go. Read only."""
    folder = shutil.copytree(prepared, tmp_path_factory.mktemp("uninterrupted") / "run")
    train(folder, SMALL)
    return folder


def train(run_dir, settings, **options):
    return training.train(training.Trainer(run_dir, settings, **options), report=lambda line: None)


def load(path):
    return torch.load(path, weights_only=True)


def data_set(run_dir, split, **options):
    return preprocessing.PreparedDataset(run_dir, verification.usable_pairs(run_dir, split), **options)


def same(first, second):
    """Whether two nested states hold the same values, bit by bit; the seconds of a history may differ."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        names = set(first) - {"seconds"}
        return names == set(second) - {"seconds"} and all(same(first[name], second[name]) for name in names)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def assert_same_run(first, second):
    for name in ("checkpoint.pt", "last.pt"):
        assert same(load(first / name), load(second / name)), name
    histories = [pd.read_csv(folder / "history.csv").drop(columns="seconds") for folder in (first, second)]
    pd.testing.assert_frame_equal(*histories, check_exact=True)


def assert_one_sentence(error, *parts):
    text = str(error.value)
    assert "\n" not in text and text.endswith(".") and len(text) < 400, text
    assert all(part in text for part in parts), text


def files_of(folder):
    """Content of every file of a run folder but the lock, by name."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def is_free(folder):
    """Whether somebody else could take the lock of a run folder."""
    try:
        with FileLock(folder / ".lock", timeout=0):
            return True
    except Timeout:
        return False


def whole_checkpoints(folder):
    """Names of the checkpoints in a run folder; every one with a final name must load."""
    names = sorted(path.name for path in folder.glob("*.pt") if not path.name.startswith(workspace.UNFINISHED))
    for name in names:
        training.load_checkpoint(folder / name)
    return names


# The loss


def test_the_dice_loss_of_an_undecided_network_worked_by_hand():
    logits, truth = torch.zeros(1, 1, 1, 2), torch.tensor([[[[1.0, 0.0]]]])
    # overlap 1/2, sums 1 + 1: (2 · 1/2 + 1) / (2 + 1) = 2/3
    assert training.dice_loss(logits, truth).item() == pytest.approx(1 / 3)
    assert training.dice_loss(logits, truth, smooth=0).item() == pytest.approx(1 / 2)


def test_the_dice_loss_is_0_for_perfect_and_near_1_for_worst_predictions():
    truth = torch.zeros(2, 1, 10, 10)
    truth[:, :, 2:6] = 1
    assert training.dice_loss(60 * (2 * truth - 1), truth).item() == pytest.approx(0, abs=1e-6)
    assert training.dice_loss(60 * (1 - 2 * truth), truth).item() == pytest.approx(1 - 1 / 101)


def test_smoothing_keeps_an_empty_truth_finite_and_its_gradient_too():
    logits = torch.full((1, 1, 4, 4), -100.0, requires_grad=True)
    loss = training.dice_loss(logits, torch.zeros(1, 1, 4, 4))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6) and torch.isfinite(logits.grad).all()
    assert torch.isnan(training.dice_loss(logits * 2, torch.zeros(1, 1, 4, 4), smooth=0))


@few
@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**31), st.floats(0.1, 5))
def test_the_loss_equals_a_plain_numpy_one_averaged_over_images(images, height, width, seed, positive):
    rng = np.random.default_rng(seed)
    logits, truth = rng.normal(0, 3, (images, 1, height, width)), rng.integers(0, 2, (images, 1, height, width))
    p = 1 / (1 + np.exp(-logits))
    dice = [(2 * (a * b).sum() + 1) / (a.sum() + b.sum() + 1) for a, b in zip(p, truth, strict=True)]
    bce = -(positive * truth * np.log(p) + (1 - truth) * np.log(1 - p)).mean()
    given_tensors = torch.from_numpy(logits), torch.from_numpy(truth).double()
    assert training.dice_loss(*given_tensors).item() == pytest.approx(1 - np.mean(dice))
    weighted = training.combined_loss(*given_tensors, 0.3, torch.tensor(positive).double())
    assert weighted.item() == pytest.approx(1 - np.mean(dice) + 0.3 * bce)


@few
@given(st.integers(0, 2**31))
def test_the_dice_loss_lies_between_0_and_1_and_ignores_mirroring(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 10 * torch.randn(2, 1, 4, 5, generator=generator)
    truth = (torch.rand(2, 1, 4, 5, generator=generator) > 0.5).float()
    loss = training.dice_loss(logits, truth)
    assert 0 <= loss <= 1
    torch.testing.assert_close(training.dice_loss(logits.flip(-1), truth.flip(-1)), loss)


def test_the_combined_loss_adds_torchs_own_cross_entropy():
    torch.manual_seed(0)
    logits, truth = torch.randn(2, 1, 4, 4), (torch.rand(2, 1, 4, 4) > 0.5).float()
    bce = functional.binary_cross_entropy(torch.sigmoid(logits), truth)
    torch.testing.assert_close(training.combined_loss(logits, truth), training.dice_loss(logits, truth) + 0.2 * bce)
    assert training.combined_loss(logits, truth, bce_weight=0) == training.dice_loss(logits, truth)


def test_the_positive_weight_multiplies_tumor_pixels_only():
    logits, weight = torch.zeros(1, 1, 1, 2), torch.tensor(3.0)
    for truth, factor in ((0.0, 1), (1.0, 3)):
        mask = torch.full((1, 1, 1, 2), truth)
        bce = training.combined_loss(logits, mask, 1.0, weight) - training.dice_loss(logits, mask)
        assert bce.item() == pytest.approx(factor * math.log(2))


def test_the_gradient_of_the_loss_is_that_of_finite_differences():
    torch.manual_seed(0)
    logits = torch.randn(2, 1, 3, 4, dtype=torch.double, requires_grad=True)
    truth = (torch.rand(2, 1, 3, 4) > 0.5).double()
    assert torch.autograd.gradcheck(lambda x: training.dice_loss(x, truth), logits)
    weight = torch.tensor(2.0, dtype=torch.double)
    assert torch.autograd.gradcheck(lambda x: training.combined_loss(x, truth, 0.2, weight), logits)


# The loop


def test_training_for_an_epoch_lowers_the_loss():
    network, loader = network_of(), DataLoader(tensors(8), 4)
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-2)
    step = (network, loader, training.combined_loss, optimiser, constant(optimiser))
    losses = [training.train_one_epoch(*step) for _ in range(12)]
    assert losses[-1] < 0.9 * losses[0]
    assert network.training


def test_an_epochs_loss_is_the_mean_over_images_also_with_a_smaller_last_batch():
    masks = torch.tensor([0.0, 0.0, 1.0])[:, None, None, None].expand(3, 1, 8, 8)
    loader = DataLoader(TensorDataset(torch.rand(3, 1, 8, 8), masks), 2)
    network = network_of()
    optimiser = torch.optim.SGD(network.parameters(), lr=0.0)
    loss = training.train_one_epoch(
        network, loader, lambda x, t: 0 * x.sum() + t.mean(), optimiser, constant(optimiser)
    )
    assert loss == pytest.approx(1 / 3)


def test_gradients_are_shortened_and_the_learning_rate_moves_once_per_batch():
    network, loader = network_of(), DataLoader(tensors(6), 2)
    before = torch.cat([p.detach().clone().ravel() for p in network.parameters()])
    optimiser = torch.optim.SGD(network.parameters(), lr=1.0)
    halving = torch.optim.lr_scheduler.StepLR(optimiser, step_size=1, gamma=0.5)
    training.train_one_epoch(network, loader, lambda x, t: 1e4 * x.sum(), optimiser, halving, gradient_norm=0.01)
    moved = torch.cat([p.detach().ravel() for p in network.parameters()]) - before
    assert optimiser.param_groups[0]["lr"] == 1 / 8
    assert 0 < moved.norm() <= 0.01 * (1 + 1 / 2 + 1 / 4) * 1.001


def test_validation_scores_are_those_worked_by_hand_and_the_network_stays_as_it_is():
    network, dataset = network_of(), tensors(5)
    before = copy.deepcopy(network.state_dict())
    loss, dice = training.validate(network, dataset, training.combined_loss, batch_size=2)
    losses, scores = [], []
    with torch.no_grad():
        for x, t in dataset:
            logits = network.eval()(x[None])
            losses.append(training.combined_loss(logits, t[None]).item())
            scores.append(evaluation.dice_score(torch.sigmoid(logits)[0, 0].numpy() > 0.5, t[0].numpy()))
    assert dice == pytest.approx(np.mean(scores))
    assert loss == pytest.approx(np.mean(losses), rel=1e-4)
    torch.testing.assert_close(dict(network.state_dict()), dict(before), rtol=0, atol=0)


def test_validation_cuts_at_a_probability_of_a_half():
    network = torch.nn.Conv2d(1, 1, 1)
    torch.nn.init.ones_(network.weight), torch.nn.init.constant_(network.bias, -0.3)
    x = torch.tensor([0.2, 0.4, 0.6, 0.1]).reshape(1, 1, 2, 2)  # logits -0.1, 0.1, 0.3, -0.2
    truth = torch.tensor([0.0, 1.0, 0.0, 0.0]).reshape(1, 1, 2, 2)
    _, dice = training.validate(network, TensorDataset(x, truth), training.combined_loss)
    assert dice == pytest.approx(2 / 3)


# Trainings in a run folder


@pytest.mark.parametrize("seed", [0, 1])
def test_a_short_training_beats_the_mean_mask_on_images_never_seen(run_dir, seed):
    chosen = training.Settings(4, 2, epochs=10, batch_size=4, learning_rate=2e-2, augmented=False, seed=seed)
    train(run_dir, chosen)
    network, state = training.load_network(run_dir / "checkpoint.pt")
    train_set, test_set = data_set(run_dir, "train"), data_set(run_dir, "test")
    mean_mask = train_set.masks[train_set.rows].mean(axis=0) >= 0.5
    baseline = np.mean([evaluation.dice_score(mean_mask, test_set.masks[row]) for row in test_set.rows])
    _, dice = training.validate(network, test_set, training.dice_loss)
    # measured over seeds 0 to 3: 0.95 to 0.99, the mean mask 0.45
    assert dice > baseline + 0.3 and state["valid_dice"] > 0.8


def test_the_same_seed_gives_the_same_history_and_another_seed_another(run_dir):
    chosen = replace(SMALL, epochs=2)
    first, again, other = (train(run_dir, replace(chosen, seed=seed)).drop(columns="seconds") for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first, again, check_exact=True)
    assert (first.train_loss != other.train_loss).all()


def test_the_history_has_exactly_the_columns_of_the_contract_and_a_row_per_epoch(uninterrupted):
    assert (uninterrupted / "history.csv").read_text(encoding="utf-8").splitlines()[0] == ",".join(COLUMNS)
    history = pd.read_csv(uninterrupted / "history.csv")
    assert list(history.epoch) == [1, 2, 3, 4]
    assert history.notna().all(axis=None) and (history.seconds > 0).all() and history.valid_dice.between(0, 1).all()


def test_training_reports_a_line_per_epoch_and_returns_what_it_wrote(run_dir):
    lines = []
    history = training.train(training.Trainer(run_dir, replace(SMALL, epochs=2)), lines.append)
    assert [line[:12] for line in lines] == ["epoch   1/2 ", "epoch   2/2 "]
    assert f"valid Dice {history.valid_dice[1]:.4f}" in lines[1]
    stored = pd.read_csv(run_dir / "history.csv")
    pd.testing.assert_frame_equal(stored, history, check_exact=False, rtol=1e-5)


def test_the_foreground_weight_is_background_over_foreground(run_dir):
    loop = training.Trainer(run_dir, replace(SMALL, foreground_weighting=True))
    masks = loop.train_set.masks[loop.train_set.rows]
    weight = (masks == 0).sum() / (masks == 1).sum()
    logits, truth = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
    extra = loop.loss_function(logits, truth) - training.dice_loss(logits, truth)
    assert extra.item() == pytest.approx(0.2 * math.log(2) * weight, rel=1e-4) and weight > 1.5


def test_the_order_of_an_epoch_is_that_which_several_processes_would_share(run_dir):
    loop = training.Trainer(run_dir, SMALL)
    for epoch in (1, 2):
        shared = DistributedSampler(loop.train_set, num_replicas=1, rank=0, seed=SMALL.seed * 100_003)
        shared.set_epoch(epoch)
        assert list(loop.batches(epoch).sampler) == list(shared)


@pytest.mark.parametrize("schedule", ["constant", "one-cycle"])
def test_the_learning_rate_follows_the_schedule_to_its_end(run_dir, schedule):
    rates = train(run_dir, replace(SMALL, schedule=schedule, epochs=5, patience=99)).learning_rate
    if schedule == "constant":
        assert (rates == SMALL.learning_rate).all()
    else:
        assert rates[0] == pytest.approx(SMALL.learning_rate / 25) and rates.idxmax() in (1, 2)
        assert rates.max() <= SMALL.learning_rate and rates[4] < rates[3] < rates[2]


def scripted(monkeypatch, scores):
    """Let validation give these Dice values, one per epoch."""
    left = iter(scores)
    monkeypatch.setattr(training, "validate", lambda *_: (0.5, next(left)))


def test_checkpoint_holds_the_best_epoch_and_last_the_newest(run_dir, monkeypatch):
    scripted(monkeypatch, [0.2, 0.6, 0.4, 0.6])
    loop = training.Trainer(run_dir, SMALL)
    weights = [copy.deepcopy(loop.network.state_dict()) for _ in loop.epochs()]
    best, last = load(run_dir / "checkpoint.pt"), load(run_dir / "last.pt")
    assert (best["epoch"], best["valid_dice"]) == (2, 0.6) and (last["epoch"], last["valid_dice"]) == (4, 0.6)
    assert same(best["network"], dict(weights[1])) and same(last["network"], dict(weights[3]))
    assert not same(best["network"], last["network"])
    _, state = training.load_network(run_dir / "checkpoint.pt")
    assert state["canvas"]["width"] == 48 and state["settings"]["base_channels"] == 2


def test_training_stops_when_patience_is_out(run_dir, monkeypatch):
    scripted(monkeypatch, [0.2, 0.5, 0.4, 0.5, 0.3, 0.9])
    history = train(run_dir, replace(SMALL, epochs=6, patience=3))
    assert list(history.valid_dice) == [0.2, 0.5, 0.4, 0.5, 0.3]  # three epochs not better than the second


def test_training_goes_on_while_it_gets_better(run_dir, monkeypatch):
    scripted(monkeypatch, [0.1, 0.2, 0.3, 0.4])
    assert len(train(run_dir, replace(SMALL, patience=1))) == 4


def test_a_learning_rate_too_high_stops_with_the_epoch_and_the_remedy_and_keeps_what_was_good(run_dir):
    train(run_dir, replace(SMALL, epochs=1))
    workspace.write_json(run_dir / "metrics.json", {"mean_dice": 0.9})
    before = files_of(run_dir)
    with pytest.raises(FetalsegError) as error:
        train(run_dir, replace(SMALL, learning_rate=1e30, normalisation="none"))
    assert_one_sentence(error, "epoch 1", "learning_rate")
    assert files_of(run_dir) == before


def test_a_training_that_blows_up_later_keeps_the_checkpoints_of_the_epochs_before(run_dir):
    loop = training.Trainer(run_dir, replace(SMALL, schedule="constant", normalisation="none"))
    loop.run_epoch(), loop.run_epoch()
    loop.optimiser.param_groups[0]["lr"] = 1e30
    with pytest.raises(FetalsegError, match="epoch 3"):
        loop.run_epoch()
    last = training.load_checkpoint(run_dir / "last.pt")
    assert last["epoch"] == 2 and all(torch.isfinite(value).all() for value in last["network"].values())
    assert len(pd.read_csv(run_dir / "history.csv")) == 2


def test_weights_that_blow_up_in_the_last_batch_of_an_epoch_never_become_a_checkpoint(run_dir):
    whole = replace(SMALL, batch_size=24, normalisation="none", schedule="constant", learning_rate=1e30)
    with pytest.raises(FetalsegError, match="epoch 1"):
        train(run_dir, whole)
    assert not list(run_dir.glob("*.pt"))


def test_a_canvas_that_cannot_be_halved_is_refused_with_the_nearest_that_can(run_dir):
    with pytest.raises(FetalsegError) as error:
        training.Trainer(run_dir, replace(SMALL, depth=5))
    assert_one_sentence(error, "48 × 32 does not divide by 2^5", "32 × 32 or 64 × 32", "depth")


def test_a_batch_larger_than_the_split_is_refused_before_training(run_dir):
    with pytest.raises(FetalsegError) as error:
        training.Trainer(run_dir, replace(SMALL, batch_size=25))
    assert_one_sentence(error, "batch_size 25", "24 training images")


@pytest.mark.parametrize(("batch_size", "allowed"), [(1, False), (23, False), (12, True)])
def test_batch_normalisation_over_a_single_value_is_refused_before_training(run_dir, batch_size, allowed):
    preprocessing.prepare(run_dir, 16, 16)
    chosen = replace(SMALL, depth=4, batch_size=batch_size, epochs=1)
    if allowed:
        assert len(train(run_dir, chosen)) == 1
        return
    with pytest.raises(FetalsegError) as error:
        training.Trainer(run_dir, chosen)
    assert_one_sentence(error, "batch normalisation", "depth 4")


@pytest.mark.parametrize("split", ["train", "valid"])
def test_an_empty_split_is_refused(run_dir, split):
    manifest = run_dir / "manifest.csv"
    manifest.write_text(manifest.read_text(encoding="utf-8").replace(f",{split},", ",test,"), encoding="utf-8")
    with pytest.raises(FetalsegError) as error:
        training.Trainer(run_dir, SMALL)
    assert_one_sentence(error, f"'{split}'")


def test_training_before_anything_is_prepared_names_the_notebook_that_prepares(tmp_path):
    with pytest.raises(FetalsegError) as error:
        training.Trainer(tmp_path, SMALL)
    assert_one_sentence(error, "prepared", "notebook 02")


def test_images_with_an_error_in_the_verification_are_not_trained_on(run_dir):
    before = training.Trainer(run_dir, SMALL)
    left_out = [before.train_set.pairs.image_id[3], before.valid_set.pairs.image_id[0]]
    findings = pd.DataFrame({"image_id": left_out, "check": "empty_mask", "severity": "error", "detail": "x"})
    findings.loc[2] = [before.train_set.pairs.image_id[0], "near_border", "note", "x"]
    findings.to_csv(run_dir / "verification.csv", index=False)
    after = training.Trainer(run_dir, SMALL)
    for earlier, later in ((before.train_set, after.train_set), (before.valid_set, after.valid_set)):
        assert list(later.pairs.image_id) == [name for name in earlier.pairs.image_id if name not in left_out]
        assert len(later) == len(earlier) - 1
    assert torch.equal(after.valid_set[0][0], before.valid_set[1][0])  # the pixels move up with the names
    assert sum(len(images) for images, _ in after.batches(1)) == len(before.train_set) - 1


def test_one_step_of_the_reference_preset_on_an_unscaled_frame(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "malignant").mkdir()
    for number in range(1, 7):
        outline = cv2.ellipse(np.zeros((540, 800), np.uint8), (400, 270), (180, 140), 20, 0, 360, 255, 2)
        image = np.clip(rng.normal(60, 20, (540, 800)), 0, 255).astype(np.uint8)
        cv2.imwrite(str(tmp_path / "malignant" / f"{number}_HC.png"), image)
        cv2.imwrite(str(tmp_path / "malignant" / f"{number}_HC_Annotation.png"), outline)
    preset = lessons.read_preset("reference")
    canvas = {name: preset[name] for name in workspace.CANVAS_KEYS}
    stages.ensure_prepared(tmp_path / "run", **canvas, data=str(tmp_path / "malignant"), seed=0)
    settings = training.Settings.of(preset)
    loop = training.Trainer(tmp_path / "run", settings)
    assert sum(values.numel() for values in loop.network.parameters()) == 31_030_593
    before = copy.deepcopy(loop.network.state_dict())
    loader = DataLoader(Subset(loop.train_set, [0]), 1)  # of its four: eight gigabytes less
    images, masks = next(iter(loader))
    assert images.shape == masks.shape == (1, 1, 544, 800)
    step = loop.loss_function, loop.optimiser, loop.scheduler, settings.gradient_norm, loop.reduced
    loss = training.train_one_epoch(loop.network, loader, *step)
    assert 0 < loss < 3
    moved = [(new - before[name]).abs().max() for name, new in loop.network.state_dict().items()]
    assert 0 < max(moved) < 1.1e-4  # Adam's first step is the learning rate, 1e-4


# One's own parts


class Tiny(torch.nn.Module):
    """A network of one's own: two convolutions."""

    def __init__(self, channels=3):
        super().__init__()
        self.inner, self.outer = torch.nn.Conv2d(1, channels, 3, padding=1), torch.nn.Conv2d(channels, 1, 1)

    def forward(self, x):
        return self.outer(torch.relu(self.inner(x)))


def test_a_network_of_ones_own_is_trained_saved_and_resumed(run_dir, tmp_path):
    torch.manual_seed(0)
    network = Tiny()
    first = copy.deepcopy(network.state_dict())
    train(run_dir, SMALL, network=network)
    last = load(run_dir / "last.pt")
    assert last["network"].keys() == first.keys() and last["epoch"] == 4
    assert same(dict(network.state_dict()), last["network"]) and not same(dict(first), last["network"])
    stopped = Path(shutil.copytree(run_dir, tmp_path / "stopped"))
    for path in stopped.glob("*.pt"):
        path.unlink()
    again = Tiny()
    again.load_state_dict(first)
    training.Trainer(stopped, SMALL, network=again).run_epoch()
    train(stopped, SMALL, network=Tiny(), resume=True)
    assert_same_run(stopped, run_dir)


def test_a_network_of_ones_own_is_not_taken_for_the_u_net_of_the_settings(run_dir):
    train(run_dir, replace(SMALL, epochs=1), network=Tiny())
    with pytest.raises(FetalsegError) as error:
        training.load_network(run_dir / "checkpoint.pt")
    assert_one_sentence(error, "checkpoint.pt", "another network")
    for network in (None, Tiny(channels=5)):  # other names of weights, and other shapes under the same names
        with pytest.raises(FetalsegError) as error:
            training.Trainer(run_dir, replace(SMALL, epochs=1), network=network, resume=True)
        assert_one_sentence(error, "last.pt", "another network")


def test_a_loss_of_ones_own_trains_and_validates(run_dir):
    def distance_from_2(logits, truth):
        assert logits.shape == truth.shape == (len(truth), 1, 32, 48)
        return (logits - 2).square().mean()

    loop = training.Trainer(run_dir, replace(SMALL, epochs=12, learning_rate=5e-2), loss=distance_from_2)
    history = training.train(loop, report=lambda line: None)
    assert history.valid_loss.iloc[-1] < 0.5 < 3 < history.train_loss[0]  # it starts near 2² and sees no truth
    logits = loop.network.eval()(loop.valid_set[0][0][None])
    assert logits.mean().item() == pytest.approx(2, abs=0.7)


@pytest.mark.parametrize("augmented", [True, False])
def test_an_epoch_of_ones_own_is_given_every_image_once_in_a_new_order_and_varied_anew_if_augmented(run_dir, augmented):
    shown, given_parts = [], []

    def record(network, loader, loss_function, optimiser, scheduler, gradient_norm, reduced):
        shown.append(torch.cat([images for images, _ in loader]))
        given_parts.append((network, loss_function, optimiser, scheduler, gradient_norm, reduced))
        return 0.125

    settings = replace(SMALL, augmented=augmented, gradient_norm=0.7, patience=9, epochs=2)
    loop = training.Trainer(run_dir, settings, train_epoch=record)
    history = training.train(loop, report=lambda line: None)
    parts = (loop.network, loop.loss_function, loop.optimiser, loop.scheduler, 0.7, loop.reduced)
    assert given_parts == [parts, parts] and list(history.train_loss) == [0.125, 0.125]
    (first, first_keys), (second, second_keys) = [(x, [image.numpy().tobytes() for image in x]) for x in shown]
    assert len(first) == len(set(first_keys)) == len(loop.train_set) == len(second) == 24
    assert first_keys != second_keys
    assert len(set(first_keys) & set(second_keys)) == (0 if augmented else len(first))


def test_an_augmentation_of_ones_own_is_used_and_repeats_with_seed_epoch_and_position(run_dir):
    def brighten(image, mask, rng):
        assert image.dtype == mask.dtype == np.uint8 and image.shape == (32, 48)
        return np.full_like(image, rng.integers(200)), 1 - mask

    plain, varied = data_set(run_dir, "train"), data_set(run_dir, "train", augmentation=brighten, seed=3)
    image, mask = varied[2]
    assert image.shape == mask.shape == (1, 32, 48) and image.dtype == mask.dtype == torch.float32
    assert image.unique().item() == pytest.approx(np.random.default_rng([3, 0, 2]).integers(200) / 255)
    assert torch.equal(mask, 1 - plain[2][1])
    assert torch.equal(varied[2][0], image) and not torch.equal(varied[1][0], image)
    varied.epoch = 1
    assert not torch.equal(varied[2][0], image)
    still = data_set(
        run_dir, "train", augmentation=partial(preprocessing.augment, rotation=0, zoom=0, shift=0, mirror=False)
    )
    assert torch.equal(still[2][1], plain[2][1]) and not torch.equal(still[2][0], plain[2][0])


# Checkpoints


def tensor_records(path):
    """Place in the file and size of every tensor's bytes, in the order in which they were stored."""
    places = []
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        for record in archive.infolist():
            if "/data/" in record.filename:
                file.seek(record.header_offset + 26)
                lengths = file.read(4)
                start = record.header_offset + 30 + sum(int.from_bytes(lengths[i : i + 2], "little") for i in (0, 2))
                places.append((start, record.file_size))
    return places


def flip_byte(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)


def test_both_checkpoints_load_with_weights_only(uninterrupted):
    for name in ("checkpoint.pt", "last.pt"):
        state = torch.load(uninterrupted / name, weights_only=True)
        assert {"settings", "canvas", "epoch", "valid_dice", "network", "sha256"} <= set(state)
        training.load_network(uninterrupted / name)


@pytest.mark.parametrize("record", [0, 1, -1])
@pytest.mark.parametrize("offset", ["first", "last"])
def test_a_flipped_byte_in_the_weights_is_refused_though_torch_loads_it(uninterrupted, tmp_path, record, offset):
    path = Path(shutil.copy(uninterrupted / "checkpoint.pt", tmp_path))
    start, size = tensor_records(path)[record]
    flip_byte(path, start if offset == "first" else start + size - 1)
    assert not same(load(path)["network"], load(uninterrupted / "checkpoint.pt")["network"])  # the trap
    with pytest.raises(FetalsegError) as error:
        training.load_network(path)
    assert_one_sentence(error, "checkpoint.pt", "damaged")


def test_a_flipped_byte_in_what_a_resumed_training_needs_is_refused(uninterrupted, tmp_path):
    path = Path(shutil.copy(uninterrupted / "last.pt", tmp_path))
    start, size = [record for record in tensor_records(path) if record[1] >= 64][-1]  # a moment of Adam
    flip_byte(path, start + size // 2)
    assert same(load(path)["network"], load(uninterrupted / "last.pt")["network"])
    with pytest.raises(FetalsegError):
        training.load_checkpoint(path)


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def text_file(path):
    path.write_text("epoch,train_loss\n1,0.5\n")


def empty(path):
    path.write_bytes(b"")


def missing(path):
    path.unlink()


def other_shape(path):
    state = load(path)
    state["settings"]["base_channels"] = 3
    training.save_checkpoint(path, state)


def other_depth(path):
    state = load(path)
    state["settings"]["depth"] = 3
    training.save_checkpoint(path, state)


def foreign(path):
    torch.save({"network": unet.UNet(2, 2, "batch").state_dict()}, path)


def other_version(path):
    state = load(path)
    state["format"] = training.FORMAT + 1
    torch.save(state, path)


def other_weights(path):
    state = load(path)
    state["network"]["last.bias"] += 1  # a whole file, but not what its checksum says
    torch.save(state, path)


@pytest.mark.parametrize(
    "damage", [truncated, text_file, empty, missing, other_shape, other_depth, other_weights, foreign, other_version]
)
def test_a_checkpoint_that_cannot_be_used_is_refused_in_one_sentence_that_names_it(uninterrupted, tmp_path, damage):
    path = Path(shutil.copy(uninterrupted / "checkpoint.pt", tmp_path / "mine.pt"))
    damage(path)
    with pytest.raises(FetalsegError) as error:
        training.load_network(path)
    assert_one_sentence(error, "mine.pt")


def raising(error):
    def load(*_, **__):
        raise error

    return load


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_drive_that_fails_while_a_checkpoint_is_read_is_not_called_damage(uninterrupted, monkeypatch, number):
    monkeypatch.setattr(torch, "load", raising(OSError(number, os.strerror(number))))
    with pytest.raises(FetalsegError) as error:
        training.load_network(uninterrupted / "checkpoint.pt")
    assert_one_sentence(error, "checkpoint.pt cannot be read", os.strerror(number))
    assert "train again" not in str(error.value) and "damaged" not in str(error.value)


@pytest.mark.parametrize(
    "lack",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: Error code 12"),
    ],
)
def test_a_lack_of_memory_while_a_checkpoint_is_read_is_not_called_damage(uninterrupted, monkeypatch, lack):
    monkeypatch.setattr(torch, "load", raising(lack))
    with pytest.raises(MemoryError, match=r"memory to read .*checkpoint\.pt"):
        training.load_network(uninterrupted / "checkpoint.pt")


def test_a_loaded_network_is_the_one_that_was_saved_and_ready_to_predict(uninterrupted):
    network, state = training.load_network(uninterrupted / "last.pt")
    assert not network.training and same(dict(network.state_dict()), state["network"])


# Checkpoints from elsewhere: nothing in them is trusted


def network_equals(network, weights):
    return same(dict(network.state_dict()), dict(weights))


def read_or_refused(path):
    """The state that is loaded from a file; None where it is refused in one sentence."""
    try:
        return training.load_network(path)[1]
    except FetalsegError as error:
        text = str(error)
        assert "\n" not in text and text.endswith(".") and path.name in text and len(text) < 400, text
        return None


@pytest.fixture(params=["a checkpoint", "weights alone"])
def sound(request, uninterrupted, tmp_path):
    """A file that loads."""
    path = Path(shutil.copy(uninterrupted / "checkpoint.pt", tmp_path / "mine.pt"))
    if request.param == "weights alone":
        torch.save(load(path)["network"], path)
    return path


@pytest.fixture
def no_network_is_made(monkeypatch):
    """Fails where a network is made: one of the size that a file asks for may take all memory."""
    monkeypatch.setattr(unet, "make_network", lambda *_: pytest.fail("a network was made"))


def test_a_bit_that_is_flipped_anywhere_is_refused_or_changes_nothing(sound):
    data, whole = sound.read_bytes(), training.load_checkpoint(sound)
    rng, refused = np.random.default_rng(0), 0
    for place in rng.integers(len(data), size=150):
        damaged = bytearray(data)
        damaged[place] ^= 1 << rng.integers(8)
        sound.write_bytes(damaged)
        state = read_or_refused(sound)
        assert state is None or (state["sha256"], state["canvas"]) == (whole["sha256"], whole["canvas"]), place
        refused += state is None
    assert refused > 50  # the rest hits the padding between the tensors


def test_a_bit_that_makes_a_folder_of_a_tensor_is_refused_though_torch_leaves_its_memory_as_it_was(sound):
    data = bytearray(sound.read_bytes())
    entry = data.rindex(b"PK\x01\x02", 0, data.rindex(b"/data/"))  # of the last tensor, in the directory of the archive
    data[entry + 38] ^= 0x10
    sound.write_bytes(data)
    load(sound)  # the trap
    assert read_or_refused(sound) is None


def test_a_file_that_is_cut_off_anywhere_is_refused(sound):
    data = sound.read_bytes()
    for length in (0, 1, 4, len(data) - 1, *np.random.default_rng(0).integers(len(data), size=100)):
        sound.write_bytes(data[:length])
        assert read_or_refused(sound) is None, length


@pytest.mark.parametrize("part", ["format", "settings", "canvas", "epoch", "valid_dice", "network", "sha256"])
@pytest.mark.parametrize("value", [KeyError, None, "x", [1], (1, 2), {}, torch.zeros(2)], ids=repr)
def test_a_part_that_is_missing_or_of_another_kind_is_refused(uninterrupted, tmp_path, part, value):
    state = load(uninterrupted / "checkpoint.pt")
    state[part] = value
    if value is KeyError:
        del state[part]
    torch.save(state, tmp_path / "mine.pt")
    assert read_or_refused(tmp_path / "mine.pt") is None


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        *(("settings", "base_channels", value) for value in (10**6, 0, -1, "x", 2.0, True, None, 3)),
        *(("settings", "depth", value) for value in (50, 10**9, -1, "x", 2.0, None, 3)),
        *(("settings", "normalisation", value) for value in ("foo", "none", [], None, torch.zeros(2))),
        *(("canvas", "width", value) for value in (0, -4, 49, 10**9, "x", 48.0, True, [48], None)),
        *(("canvas", "height", value) for value in (0, 33, 10**9, None)),
        *(("canvas", "fit", value) for value in ("stretch", 1, None)),
    ],
)
def test_a_value_that_no_training_writes_is_refused(uninterrupted, tmp_path, no_network_is_made, part, name, value):
    state = load(uninterrupted / "checkpoint.pt")
    state[part][name] = value
    torch.save(state, tmp_path / "mine.pt")
    assert read_or_refused(tmp_path / "mine.pt") is None


def test_the_value_that_cannot_be_is_named(uninterrupted, tmp_path):
    state = load(uninterrupted / "checkpoint.pt")
    state["canvas"]["width"] = 10**9
    torch.save(state, tmp_path / "mine.pt")
    with pytest.raises(FetalsegError, match=r"mine\.pt .* width cannot be 1000000000"):
        training.load_checkpoint(tmp_path / "mine.pt")


HOSTILE = {
    "not a number": lambda weight: weight * math.nan,
    "infinite": lambda weight: weight + math.inf,
    "claimed to be huge": lambda weight: torch.zeros(1).expand(10**6, 10**6),  # four bytes, and four terabytes
    "claimed to be wide": lambda weight: torch.zeros(1, 1, 1, 1).expand(1, 4096, 1, 1),
    "of another shape": lambda weight: weight.flatten(),
    "sparse": lambda weight: weight.to_sparse(),
    "without memory": lambda weight: weight.to("meta"),
    "text": lambda weight: "x",
    "nested": lambda weight: {"weight": weight},
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_weights_are_refused(sound, kind, monkeypatch):
    state = load(sound)
    weights = state.get("network", state)
    weights["last.weight"] = HOSTILE[kind](weights["last.weight"])
    if weights is not state:
        monkeypatch.setattr(training, "weights_sha256", lambda weights: "as it should be")
        state["sha256"] = "as it should be"
    torch.save(state, sound)
    assert read_or_refused(sound) is None


@pytest.mark.parametrize("change", [{"last.bias": None}, {"more": torch.zeros(2)}, {5: torch.zeros(2)}], ids=str)
def test_weights_that_are_missing_or_too_many_are_refused(sound, change):
    state = load(sound)
    weights = state.get("network", state)
    weights |= change
    for name in [name for name, weight in weights.items() if weight is None]:
        del weights[name]
    if weights is not state and 5 not in weights:
        state["sha256"] = training.weights_sha256(weights)
    torch.save(state, sound)
    assert read_or_refused(sound) is None


@pytest.mark.parametrize("metadata", [5, {"first.layers.1": {"version": "x"}}], ids=str)
def test_weights_with_a_hostile_note_about_their_version_are_refused(sound, metadata):
    state = load(sound)
    state.get("network", state)._metadata = metadata
    torch.save(state, sound)
    assert read_or_refused(sound) is None


def test_an_archive_that_unpacks_to_more_than_its_size_is_refused_before_it_is_unpacked(uninterrupted, tmp_path):
    whole = zipfile.ZipFile(uninterrupted / "checkpoint.pt")
    with whole, zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
        packed.writestr(f"{name} and more", bytes(10**7))
    assert read_or_refused(tmp_path / "bomb.pt") is None


class Code:
    """What runs code where a pickle is trusted."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["in an archive", "in the weights", "torch's old format", "a plain pickle"])
def test_code_in_a_pickle_is_not_run(uninterrupted, tmp_path, kind):
    path, code = tmp_path / "mine.pt", Code(tmp_path / "ran")
    if kind == "a plain pickle":
        path.write_bytes(pickle.dumps(code))
    elif kind == "in the weights":
        state = load(uninterrupted / "checkpoint.pt")
        state["network"]["last.bias"] = code
        torch.save(state, path)
    else:
        torch.save(code, path, _use_new_zipfile_serialization=kind == "in an archive")
    with pytest.raises(FetalsegError) as error:
        training.load_network(path)
    assert_one_sentence(error, "mine.pt")
    assert not code.path.exists()
    pickle.loads(pickle.dumps(code))  # the trap is one
    assert code.path.exists()


@pytest.mark.parametrize("holds", [[1, 2], "network", 3, None, torch.zeros(3), {}, {"state_dict": {}, "epoch": 3}])
def test_a_torch_file_of_something_else_is_refused(tmp_path, holds):
    torch.save(holds, tmp_path / "mine.pt")
    assert read_or_refused(tmp_path / "mine.pt") is None


def test_a_folder_in_the_place_of_a_checkpoint_is_refused(tmp_path):
    (tmp_path / "mine.pt").mkdir()
    with pytest.raises(FetalsegError) as error:
        training.load_checkpoint(tmp_path / "mine.pt")
    assert_one_sentence(error, "no file", "mine.pt")


# Weights alone, and names with a prefix


@few
@given(st.integers(1, 5), st.integers(1, 4), st.sampled_from(sorted(unet.NORMALISATIONS)))
def test_weights_alone_say_what_network_they_are_of(tmp_path_factory, base_channels, depth, normalisation):
    path = tmp_path_factory.mktemp("alone") / "mine.pt"
    weights = unet.UNet(base_channels, depth, normalisation).state_dict()
    torch.save(weights, path)
    network, state = training.load_network(path)
    assert network_equals(network, weights) and not network.training
    shape = {"base_channels": base_channels, "depth": depth, "normalisation": normalisation}
    assert state["settings"] == shape and state["sha256"] == training.weights_sha256(weights)


def test_the_size_for_weights_alone_is_that_of_the_preset_laptop_and_is_said_in_a_line(tmp_path, capsys):
    torch.save(network_of().state_dict(), tmp_path / "mine.pt")
    _, state = training.load_network(tmp_path / "mine.pt")
    laptop = lessons.read_preset("laptop")
    assert state["canvas"] == {name: laptop[name] for name in workspace.CANVAS_KEYS}
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "mine.pt" in said and f"{laptop['width']} × {laptop['height']}" in said


def test_the_size_for_weights_alone_divides_also_for_a_deep_network(tmp_path):
    torch.save(unet.UNet(1, 7).state_dict(), tmp_path / "mine.pt")
    network, state = training.load_network(tmp_path / "mine.pt")
    assert state["canvas"] == {"width": 128, "height": 128, "fit": "scale"}
    evaluation.predict_image(network, np.zeros((30, 40), np.uint8), state["canvas"])


def test_nothing_is_said_about_a_checkpoint(uninterrupted, capsys):
    training.load_network(uninterrupted / "checkpoint.pt")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "weights",
    [
        torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2)).state_dict(),
        {name.replace("downs", "encoder"): weight for name, weight in unet.UNet(2, 2).state_dict().items()},
        unet.UNet(2, 2).state_dict() | {"last.weight": torch.zeros(1, 3, 1, 1)},
        {"last.weight": torch.zeros(1, 8, 1, 1)} | {f"{level}.enlarge.weight": torch.zeros(1) for level in range(12)},
        {"last.weight": torch.zeros(1, 8, 1, 1)} | {f"{level}.enlarge.weight": torch.zeros(1) for level in range(500)},
    ],
    ids=["another network", "other names", "another width", "deep", "deeper"],
)
def test_weights_alone_of_another_network_are_refused(tmp_path, no_network_is_made, weights):
    torch.save(weights, tmp_path / "mine.pt")
    assert read_or_refused(tmp_path / "mine.pt") is None


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_names_that_torch_has_put_a_prefix_before_load_as_without_it(sound, prefix):
    state = load(sound)
    weights = state.get("network", state)
    named = {prefix + name: weight for name, weight in weights.items()}
    if weights is state:
        torch.save(named, sound)
    else:
        training.save_checkpoint(sound, state | {"network": named})
    network, loaded = training.load_network(sound)
    assert network_equals(network, weights)
    if weights is state:
        assert loaded["sha256"] == training.weights_sha256(weights)


def test_a_prefix_before_some_of_the_names_is_no_prefix(sound):
    state = load(sound)
    weights = state.get("network", state)
    weights["module.last.bias"] = weights.pop("last.bias")
    if weights is not state:
        state["sha256"] = training.weights_sha256(weights)
    torch.save(state, sound)
    assert read_or_refused(sound) is None


class Wrapped(torch.nn.Module):
    """A network of one's own that keeps another as DataParallel does."""

    def __init__(self):
        super().__init__()
        self.module = network_of()

    def forward(self, x):
        return self.module(x)


def test_a_network_that_is_wrapped_itself_keeps_its_names(run_dir):
    train(run_dir, replace(SMALL, epochs=1), network=Wrapped())
    resumed = training.Trainer(run_dir, replace(SMALL, epochs=1), network=Wrapped(), resume=True)
    weights = load(run_dir / "last.pt")["network"]
    assert all(name.startswith("module.") for name in weights) and network_equals(resumed.network, weights)
    network, _ = training.load_network(run_dir / "checkpoint.pt", Wrapped())
    assert network_equals(network, load(run_dir / "checkpoint.pt")["network"])
    network, _ = training.load_network(run_dir / "checkpoint.pt")
    assert type(network) is unet.UNet


def test_numbers_that_are_nearly_nothing_are_nothing_while_a_network_is_trained(run_dir):
    """Otherwise a training that starts from weights with dead filters takes up to six times as long."""
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormal numbers")
    torch.set_flush_denormal(False)
    left = []

    def train_epoch(*arguments):
        left.append(bool((torch.full((100, 100), 1e-39) * 0.5).any()))
        return training.train_one_epoch(*arguments)

    training.Trainer(run_dir, SMALL, train_epoch=train_epoch).run_epoch()
    assert left == [False] and (torch.full((100, 100), 1e-39) * 0.5).any()  # afterwards all is as it was


def test_fine_tuning_begins_with_weights_alone(run_dir, tmp_path):
    weights = network_of(3).state_dict()
    torch.save({f"module.{name}": weight for name, weight in weights.items()}, tmp_path / "start.pt")
    loop = training.Trainer(run_dir, replace(SMALL, start=str(tmp_path / "start.pt")))
    assert network_equals(loop.network, weights)


def test_weights_alone_are_not_taken_for_the_network_of_a_run(run_dir):
    canvas = {"width": 96, "height": 64, "fit": "scale"}
    torch.save(network_of().state_dict(), run_dir / "checkpoint.pt")
    with pytest.raises(FetalsegError, match=r"96 × 64"):
        stages.ensure_checkpoint(run_dir, SMALL)
    settings = workspace.read_json(run_dir / "prepared" / "settings.json")
    workspace.write_json(run_dir / "prepared" / "settings.json", settings | canvas)
    with pytest.raises(FetalsegError, match="other images"):
        stages.ensure_checkpoint(run_dir, SMALL)


# Stopped and resumed


@pytest.mark.parametrize("stop", [1, 3])
def test_a_stopped_and_resumed_training_equals_an_uninterrupted_one_bit_by_bit(run_dir, uninterrupted, stop):
    loop = training.Trainer(run_dir, SMALL)
    for _ in range(stop):
        loop.run_epoch()
    torch.rand(7), np.random.random(7)  # whatever happens in between
    train(run_dir, SMALL, resume=True)
    assert_same_run(run_dir, uninterrupted)


def test_resuming_what_is_complete_changes_nothing_and_resuming_nothing_begins(run_dir, uninterrupted):
    train(run_dir, SMALL, resume=True)
    workspace.write_json(run_dir / "metrics.json", {"mean_dice": 0.9})
    before = files_of(run_dir)
    assert len(train(run_dir, SMALL, resume=True)) == SMALL.epochs
    assert files_of(run_dir) == before
    assert_same_run(run_dir, uninterrupted)


def test_without_resume_training_begins_anew(run_dir, uninterrupted):
    train(run_dir, replace(SMALL, epochs=1))
    train(run_dir, SMALL)
    assert_same_run(run_dir, uninterrupted)


@pytest.mark.parametrize("other", [{"learning_rate": 1e-3}, {"base_channels": 4}, {"epochs": 5}])
def test_resuming_with_other_settings_is_refused_with_the_setting_that_differs(run_dir, uninterrupted, other):
    shutil.copy(uninterrupted / "last.pt", run_dir)
    with pytest.raises(FetalsegError) as error:
        training.Trainer(run_dir, replace(SMALL, **other), resume=True)
    (name,) = other
    assert_one_sentence(error, f"last.pt was made with {name} {getattr(SMALL, name)}: give the same to resume")


def test_resuming_on_other_images_of_the_same_names_is_refused(run_dir, uninterrupted):
    shutil.copy(uninterrupted / "last.pt", run_dir)
    images = np.load(run_dir / "prepared" / "images.npy", mmap_mode="r+")
    images[0, 0, 0] ^= 1
    images.flush()
    with pytest.raises(FetalsegError) as error:
        training.Trainer(run_dir, SMALL, resume=True)
    assert_one_sentence(error, "last.pt", "other data")


def test_resuming_on_another_split_of_the_same_images_is_refused(run_dir, uninterrupted):
    shutil.copy(uninterrupted / "last.pt", run_dir)
    split_anew(run_dir)
    with pytest.raises(FetalsegError) as error:
        training.Trainer(run_dir, SMALL, resume=True)
    assert_one_sentence(error, "last.pt", "other data")


def split_anew(run_dir):
    """What notebooks 01 to 03 do with another seed: the same images in another split."""
    data = workspace.read_json(run_dir / "data.json")["data"]
    before = (run_dir / "prepared" / "images.npy").read_bytes()
    loading.write_manifest(run_dir, data=data, seed=5)
    preprocessing.prepare(run_dir, 48, 32)
    verification.write_verification(run_dir)
    assert (run_dir / "prepared" / "images.npy").read_bytes() == before


def test_the_best_checkpoint_is_no_training_to_go_on_with(run_dir, uninterrupted):
    shutil.copy(uninterrupted / "checkpoint.pt", run_dir / "last.pt")
    with pytest.raises(FetalsegError) as error:
        training.Trainer(run_dir, SMALL, resume=True)
    assert_one_sentence(error, "last.pt", "checkpoint.pt")


@pytest.mark.parametrize("stop", [0, 2])
def test_a_loop_that_is_interrupted_in_an_epoch_and_run_again_ends_bit_by_bit_as_an_uninterrupted_one(
    run_dir, uninterrupted, stop
):
    seen = []

    def interrupted(logits, truth):
        seen.append(1)
        if len(seen) == 3 + 5 * stop:  # four batches and one for validation an epoch
            raise KeyboardInterrupt
        return training.combined_loss(logits, truth, SMALL.bce_weight)

    loop = training.Trainer(run_dir, SMALL, loss=interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(loop.epochs())
    assert len(loop.history) == stop and is_free(run_dir)
    list(loop.epochs())
    assert_same_run(run_dir, uninterrupted)


@pytest.mark.parametrize("epoch", [1, 3])  # the validation Dice rises in both
@pytest.mark.parametrize("place", ["checkpoint.pt", "last.pt", "history.csv"])
def test_a_loop_that_is_interrupted_while_saving_and_run_again_ends_bit_by_bit_as_an_uninterrupted_one(
    run_dir, uninterrupted, monkeypatch, epoch, place
):
    train(run_dir, replace(SMALL, epochs=1, seed=2))  # an older training, which must not be gone on with
    write_table, save_checkpoint = workspace.write_table, training.save_checkpoint

    def interrupted_table(path, table):
        write_table(path, table)
        if len(table) == epoch and path.name == place:
            raise KeyboardInterrupt

    def interrupted_checkpoint(path, state):
        if state["epoch"] == epoch and path.name == place:
            raise KeyboardInterrupt
        save_checkpoint(path, state)

    loop = training.Trainer(run_dir, SMALL)
    monkeypatch.setattr(workspace, "write_table", interrupted_table)
    monkeypatch.setattr(training, "save_checkpoint", interrupted_checkpoint)
    with pytest.raises(KeyboardInterrupt):
        list(loop.epochs())
    monkeypatch.undo()
    list(loop.epochs())
    assert_same_run(run_dir, uninterrupted)


def test_what_an_older_training_left_is_not_gone_on_with_after_a_new_one_died_while_saving(
    run_dir, uninterrupted, monkeypatch
):
    for name in ("last.pt", "checkpoint.pt", "history.csv"):
        shutil.copy(uninterrupted / name, run_dir)
    real = training.save_checkpoint

    def save_checkpoint(path, state):
        if path.name == "last.pt":
            raise KeyboardInterrupt
        real(path, state)

    monkeypatch.setattr(training, "save_checkpoint", save_checkpoint)
    with pytest.raises(KeyboardInterrupt):
        train(run_dir, SMALL)
    monkeypatch.undo()
    assert load(run_dir / "checkpoint.pt")["epoch"] == 1
    train(run_dir, SMALL, resume=True)  # the older one had the same settings and was complete
    assert_same_run(run_dir, uninterrupted)


def test_an_interruption_while_the_curve_is_drawn_leaves_the_folder_free(run_dir, uninterrupted, monkeypatch):
    held = []

    def interrupted(rows):
        held.append(not is_free(run_dir))
        raise KeyboardInterrupt

    monkeypatch.setattr(widgets, "somebody_watches", lambda: True)
    loop = training.Trainer(run_dir, SMALL)
    with pytest.raises(KeyboardInterrupt) as kept:  # as a notebook keeps the traceback, and all that it holds
        widgets.watch(loop.epochs(), SMALL.epochs, interrupted, None, loop.history)
    assert kept.traceback and len(loop.history) == 1
    assert held == [True] and is_free(run_dir)
    list(training.Trainer(run_dir, SMALL, resume=True).epochs())
    assert_same_run(run_dir, uninterrupted)


def test_an_epoch_whose_saving_failed_is_shown_once_when_the_cell_runs_again(run_dir, uninterrupted, monkeypatch):
    loop = training.Trainer(run_dir, SMALL)
    loop.run_epoch()
    monkeypatch.setattr(loop, "save", raising(FetalsegError("the disk is full.")))
    with pytest.raises(FetalsegError, match="full"):
        list(loop.epochs())
    monkeypatch.undo()
    rows = widgets.watch(loop.epochs(), SMALL.epochs, None, lambda row: "", loop.history)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert_same_run(run_dir, uninterrupted)


def test_a_history_that_was_not_written_any_more_is_written_when_resuming(run_dir, uninterrupted):
    for name in ("last.pt", "checkpoint.pt", "history.csv"):
        shutil.copy(uninterrupted / name, run_dir)
    history = run_dir / "history.csv"
    history.write_text("\n".join(history.read_text().splitlines()[:-1]) + "\n")
    train(run_dir, SMALL, resume=True)
    assert_same_run(run_dir, uninterrupted)


# Fine-tuning


def test_fine_tuning_begins_with_the_weights_of_a_checkpoint(run_dir, uninterrupted):
    network, _ = training.load_network(uninterrupted / "checkpoint.pt")
    chosen = replace(SMALL, epochs=1, learning_rate=1e-3, start=str(uninterrupted / "checkpoint.pt"))
    loop = training.Trainer(run_dir, chosen)
    assert same(dict(loop.network.state_dict()), dict(network.state_dict()))
    assert loop.history == []
    loop.run_epoch()
    assert not same(dict(loop.network.state_dict()), dict(network.state_dict()))
    assert not same(dict(training.Trainer(run_dir, SMALL).network.state_dict()), dict(network.state_dict()))


def test_fine_tuning_another_network_is_refused(run_dir, uninterrupted):
    with pytest.raises(FetalsegError) as error:
        training.Trainer(run_dir, replace(SMALL, base_channels=6, start=str(uninterrupted / "checkpoint.pt")))
    assert_one_sentence(error, "checkpoint.pt", "base_channels")


def test_a_resumed_fine_tuning_goes_on_where_it_stopped_also_when_its_start_is_gone(run_dir, uninterrupted, tmp_path):
    start = Path(shutil.copy(uninterrupted / "checkpoint.pt", tmp_path / "start.pt"))
    settings = replace(SMALL, start=str(start))
    training.Trainer(run_dir, settings).run_epoch()
    start.unlink()
    resumed = training.Trainer(run_dir, settings, resume=True)
    assert same(dict(resumed.network.state_dict()), load(run_dir / "last.pt")["network"]) and len(resumed.history) == 1


# What belongs to another network, and what only needs one


def results(folder):
    """Make all that an evaluation leaves, as if of the network that is there; returns the names."""
    for name in ("metrics.csv", "metrics.json", "model_card.md", "predictions/1_HC_pred.png", "robustness.csv"):
        workspace.write_text(folder / name, "{}")
    workspace.write_text(folder / "notebooks" / "06_evaluation.ipynb", "{}")
    return {
        "metrics.csv",
        "metrics.json",
        "model_card.md",
        "predictions",
        "robustness.csv",
        "notebooks/06_evaluation.ipynb",
    }


def test_a_training_with_other_settings_removes_the_results_of_the_network_before(run_dir):
    train(run_dir, replace(SMALL, epochs=1))
    names = results(run_dir)
    workspace.write_text(run_dir / "notebooks" / "01_loading.ipynb", "{}")
    loop = training.Trainer(run_dir, replace(SMALL, epochs=1, base_channels=3))
    assert all((run_dir / name).exists() for name in names)  # nothing is lost before there is something new
    training.train(loop, report=lambda line: None)
    assert [name for name in names if (run_dir / name).exists()] == []
    for name in (
        "manifest.csv",
        "verification.csv",
        "prepared/images.npy",
        "notebooks/01_loading.ipynb",
        "history.csv",
    ):
        assert (run_dir / name).exists(), name


def test_results_stay_while_their_network_stays_and_go_with_it(run_dir, monkeypatch):
    scripted(monkeypatch, [0.5, 0.4, 0.6])
    loop = training.Trainer(run_dir, SMALL)
    loop.run_epoch()
    names = results(run_dir)
    before = (run_dir / "checkpoint.pt").read_bytes()
    loop.run_epoch()  # no better
    assert (run_dir / "checkpoint.pt").read_bytes() == before and all((run_dir / name).exists() for name in names)
    loop.run_epoch()
    assert (run_dir / "checkpoint.pt").read_bytes() != before
    assert not any((run_dir / name).exists() for name in names)


def test_a_checkpoint_that_is_needed_is_trained_once_and_never_replaced(run_dir, capsys):
    chosen = replace(SMALL, epochs=1, seed=3)
    _, made = stages.ensure_checkpoint(run_dir, chosen)
    assert "checkpoint.pt is being trained for 1 epochs (notebook 05" in capsys.readouterr().out
    before = files_of(run_dir)
    for settings in (chosen, None, replace(chosen, seed=4, base_channels=5)):  # whoever needs it takes what is there
        network, state = stages.ensure_checkpoint(run_dir, settings)
        assert state["sha256"] == made["sha256"] and isinstance(network, unet.UNet)
    assert capsys.readouterr().out == "" and files_of(run_dir) == before


def other_size(run_dir):
    preprocessing.prepare(run_dir, 32, 32)


def redrawn_outline(run_dir):
    """What notebooks 01 to 03 do after an outline was drawn anew under its name."""
    home = Path(shutil.copytree(workspace.read_json(run_dir / "data.json")["root"], run_dir.parent / "malignant"))
    loading.write_manifest(run_dir, data=str(home), seed=0)
    path = home / "4_HC_Annotation.png"
    cv2.imwrite(str(path), cv2.flip(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), 1))
    loading.write_manifest(run_dir, data=str(home), seed=0)
    preprocessing.prepare(run_dir, 48, 32)
    verification.write_verification(run_dir)


@pytest.mark.parametrize("change", [other_size, redrawn_outline, split_anew])
def test_a_checkpoint_of_other_data_is_refused_and_kept_where_one_is_needed(run_dir, uninterrupted, capsys, change):
    for name in ("last.pt", "checkpoint.pt", "history.csv"):
        shutil.copy(uninterrupted / name, run_dir)
    stages.ensure_checkpoint(run_dir)
    change(run_dir)
    before = files_of(run_dir)
    capsys.readouterr()
    with pytest.raises(FetalsegError) as error:
        stages.ensure_checkpoint(run_dir)
    assert_one_sentence(error, "checkpoint.pt", "run_dir", "notebook 05")
    assert files_of(run_dir) == before and capsys.readouterr().out == ""


# Killed, full, and beside another process


CHILD = f"""
import os, signal, sys, torch
from dataclasses import replace
from pathlib import Path
torch.set_num_threads(1)
from fetalseg_helpers import training
run_dir, settings = Path(sys.argv[1]), training.{SMALL!r}
"""


def child(code, run_dir):
    environment = os.environ | {"PYTHONPATH": str(Path(training.__file__).parent.parent), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-c", CHILD + code, str(run_dir)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


@needs_posix
def test_a_training_killed_in_the_middle_of_saving_leaves_whole_files_and_resumes_bit_by_bit(run_dir, uninterrupted):
    process = child(
        """
real = torch.save


def save(state, path):
    real(state, path)
    if "optimiser" in state and state["epoch"] == 3:
        os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
torch.save = save
training.train(training.Trainer(run_dir, settings))
""",
        run_dir,
    )
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    assert list(run_dir.glob(".unfinished-*"))  # it was killed where it was meant to be
    assert whole_checkpoints(run_dir) == ["checkpoint.pt", "last.pt"]
    assert training.load_checkpoint(run_dir / "last.pt")["epoch"] == 2
    assert list(pd.read_csv(run_dir / "history.csv").epoch) == [1, 2]
    train(run_dir, SMALL, resume=True)
    assert not list(run_dir.glob(".unfinished-*"))
    assert_same_run(run_dir, uninterrupted)


@needs_posix
def test_two_processes_do_not_train_in_one_folder_and_one_killed_at_any_moment_leaves_it_whole_and_free(
    run_dir, uninterrupted
):
    endless = replace(SMALL, epochs=9999, patience=9999)
    process = child("training.train(training.Trainer(run_dir, replace(settings, epochs=9999, patience=9999)))", run_dir)
    try:
        lines = [process.stdout.readline() for _ in range(3)]
        assert lines[2].startswith("epoch   3/9999")
        with pytest.raises(FetalsegError) as error:
            train(run_dir, SMALL)
        assert_one_sentence(error, "run", "another run or notebook", "run_dir")
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert whole_checkpoints(run_dir) == ["checkpoint.pt", "last.pt"]
    last = training.load_checkpoint(run_dir / "last.pt")
    resumed = training.Trainer(run_dir, endless, resume=True)
    assert next(resumed.epochs())["epoch"] == last["epoch"] + 1 >= 4
    train(run_dir, SMALL)
    assert_same_run(run_dir, uninterrupted)


@contextmanager
def no_file_grows_beyond(size):
    """A disk that is full for this process alone."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@needs_posix
@pytest.mark.parametrize("size", [0, 5000])
def test_a_full_disk_while_saving_gives_one_sentence_and_leaves_the_old_checkpoints(run_dir, uninterrupted, size):
    loop = training.Trainer(run_dir, SMALL)
    loop.run_epoch()
    results(run_dir)
    before = files_of(run_dir)
    assert len(before["checkpoint.pt"]) > 5000
    with no_file_grows_beyond(size), pytest.raises(FetalsegError) as error:
        loop.run_epoch()
    assert_one_sentence(error, ".pt could not be written", "free some space")
    after = files_of(run_dir)
    assert {name: after[name] for name in ("checkpoint.pt", "last.pt", "history.csv")}.items() <= before.items()
    assert not list(run_dir.glob(".unfinished-*"))
    list(loop.epochs())
    assert_same_run(run_dir, uninterrupted)


# small trainings, as notebook 7 defines them

train_briefly = defined(7, "train_briefly", Subset=Subset, **vars(training))


def test_a_short_fit_learns_its_rows_and_takes_the_settings(prepared):
    dataset = data_set(prepared, "train")
    chosen = training.Settings(batch_size=3, learning_rate=8e-2, seed=1)
    before, after = network_of(), network_of()
    train_briefly(after, dataset, range(3), 50, chosen)
    assert not after.training
    seen = Subset(dataset, range(3))
    scores = [training.validate(one, seen, training.combined_loss)[1] for one in (before, after)]
    assert scores[1] > max(0.85, scores[0])
    again = train_briefly(network_of(), dataset, range(3), 50, chosen)
    torch.testing.assert_close(dict(again.state_dict()), dict(after.state_dict()), rtol=0, atol=0)
    slow = replace(chosen, learning_rate=1e-12, schedule="constant")
    still = train_briefly(network_of(), dataset, range(3), 1, slow)
    torch.testing.assert_close(still.last.weight, network_of().last.weight)
    weighted = (replace(chosen, bce_weight=weight) for weight in (0, 5))
    one, other = (train_briefly(network_of(), dataset, range(3), 1, values) for values in weighted)
    assert not torch.equal(one.last.weight, other.last.weight)


def test_a_short_fit_finishes_its_last_epoch_and_varies_each_anew(prepared):
    seen = []

    def record(image, mask, rng):
        seen.append(rng.integers(2**62))
        return image, mask

    dataset = data_set(prepared, "train", augmentation=record)
    train_briefly(network_of(), dataset, range(5), 3, training.Settings(batch_size=3))
    assert len(seen) == len(set(seen)) == 10  # 3 steps are at least two epochs of two batches
