"""The loss against hand and torch, the loop, and checkpoints that survive what can happen to them."""

import copy
import math
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from fetalseg_helpers import checkpoints, evaluation, notebooks, preprocessing, training, unet, widgets, workspace
from fetalseg_helpers.workspace import FetalsegError

SMALL = training.Settings(base_channels=2, depth=2, epochs=4, batch_size=7, learning_rate=1e-2, seed=1)
COLUMNS = ["epoch", "train_loss", "valid_loss", "valid_dice", "learning_rate", "seconds"]
few = hypothesis_settings(max_examples=25, deadline=None)
needs_posix = pytest.mark.skipif(os.name != "posix", reason="SIGKILL and RLIMIT_FSIZE need Linux or macOS")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small networks are fastest on one thread, and bit-identical results need the same number everywhere."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, draw_pairs):
    root = tmp_path_factory.mktemp("training")
    draw_pairs(root / "malignant")
    preprocessing.ensure_prepared(root / "run", 48, 32, data=str(root / "malignant"), seed=0)
    return root / "run"


@pytest.fixture
def run_dir(prepared, tmp_path):
    """A run folder of the test's own, prepared and not trained."""
    return Path(shutil.copytree(prepared, tmp_path / "run"))


@pytest.fixture(scope="module")
def uninterrupted(prepared, tmp_path_factory):
    """A run folder that was trained with SMALL in one go."""
    folder = shutil.copytree(prepared, tmp_path_factory.mktemp("uninterrupted") / "run")
    train(folder, SMALL)
    return folder


def train(run_dir, settings, resume=False):
    return training.train(run_dir, settings, resume, report=lambda line: None)


def load(path):
    return torch.load(path, weights_only=True)


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


def unfinished_free(folder):
    """Names of the checkpoints in a run folder; every one with a final name must load."""
    names = sorted(path.name for path in folder.glob("*.pt") if not path.name.startswith(".unfinished-"))
    for name in names:
        checkpoints.load_checkpoint(folder / name)
    return names


def tensors(images=5, seed=0, size=(8, 12)):
    torch.manual_seed(seed)
    x = torch.rand(images, 1, *size)
    return TensorDataset(x, (x > 0.6).float())


def network_of(seed=0):
    torch.manual_seed(seed)
    return unet.UNet(2, 2, "batch")


def constant(optimiser):
    return torch.optim.lr_scheduler.ConstantLR(optimiser, factor=1.0)


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
    assert same(network.state_dict(), before)


def test_validation_cuts_at_a_probability_of_a_half():
    network = torch.nn.Conv2d(1, 1, 1)
    torch.nn.init.ones_(network.weight), torch.nn.init.constant_(network.bias, -0.3)
    x = torch.tensor([0.2, 0.4, 0.6, 0.1]).reshape(1, 1, 2, 2)  # logits -0.1, 0.1, 0.3, -0.2
    truth = torch.tensor([0.0, 1.0, 0.0, 0.0]).reshape(1, 1, 2, 2)
    _, dice = training.validate(network, TensorDataset(x, truth), training.combined_loss)
    assert dice == pytest.approx(2 / 3)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_short_training_beats_the_mean_mask_on_images_never_seen(run_dir, seed):
    chosen = training.Settings(4, 2, epochs=10, batch_size=4, learning_rate=2e-2, augmented=False, seed=seed)
    train(run_dir, chosen)
    network, state = checkpoints.load_network(run_dir / "checkpoint.pt")
    train_set, test_set = (preprocessing.PreparedDataset(run_dir, split) for split in ("train", "test"))
    mean_mask = train_set.masks[train_set.index.row].mean(axis=0) >= 0.5
    baseline = np.mean([evaluation.dice_score(mean_mask, test_set.masks[row]) for row in test_set.index.row])
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


def test_the_foreground_weight_is_background_over_foreground(run_dir):
    trainer = training.Trainer(run_dir, replace(SMALL, foreground_weighting=True))
    masks = trainer.train_set.masks[trainer.train_set.index.row]
    assert trainer.positive_weight().item() == pytest.approx((masks == 0).sum() / (masks == 1).sum())
    logits, truth = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
    extra = trainer.loss_function(logits, truth) - training.dice_loss(logits, truth)
    assert extra.item() == pytest.approx(0.2 * math.log(2) * trainer.positive_weight().item(), rel=1e-4)


@pytest.mark.parametrize("augmented", [True, False])
def test_every_epoch_shows_every_image_once_in_a_new_order_and_varied_anew_if_augmented(
    run_dir, monkeypatch, augmented
):
    shown = []

    def record(_, loader, *__):
        shown.append(torch.cat([images for images, _ in loader]))
        return 0.5

    monkeypatch.setattr(training, "train_one_epoch", record)
    trainer = training.Trainer(run_dir, replace(SMALL, augmented=augmented))
    trainer.run_epoch(), trainer.run_epoch()
    (first, first_keys), (second, second_keys) = [(x, [image.numpy().tobytes() for image in x]) for x in shown]
    assert len(first) == len(set(first_keys)) == len(trainer.train_set) == len(second)
    assert first_keys != second_keys
    assert len(set(first_keys) & set(second_keys)) == (0 if augmented else len(first))


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
    trainer = training.Trainer(run_dir, SMALL)
    weights = [copy.deepcopy(trainer.network.state_dict()) for _ in trainer.epochs()]
    best, last = load(run_dir / "checkpoint.pt"), load(run_dir / "last.pt")
    assert (best["epoch"], best["valid_dice"]) == (2, 0.6) and (last["epoch"], last["valid_dice"]) == (4, 0.6)
    assert same(best["network"], dict(weights[1])) and same(last["network"], dict(weights[3]))
    assert not same(best["network"], last["network"])
    _, state = checkpoints.load_network(run_dir / "checkpoint.pt")
    assert state["canvas"]["width"] == 48 and state["settings"]["base_channels"] == 2


def test_training_stops_when_patience_is_out(run_dir, monkeypatch):
    scripted(monkeypatch, [0.2, 0.5, 0.4, 0.5, 0.3, 0.9])
    history = train(run_dir, replace(SMALL, epochs=6, patience=3))
    assert list(history.valid_dice) == [0.2, 0.5, 0.4, 0.5, 0.3]  # three epochs not better than the second


def test_training_goes_on_while_it_gets_better(run_dir, monkeypatch):
    scripted(monkeypatch, [0.1, 0.2, 0.3, 0.4])
    assert len(train(run_dir, replace(SMALL, patience=1))) == 4


@pytest.mark.parametrize(
    ("scores", "epoch"),
    [
        ([0.1, 0.5, 0.90, 0.87, 0.90, 0.905], 5),
        ([0.9, 0.9, 0.9], 1),
        ([0.1, 0.9], 2),
        ([0.9, 0.5], None),
        ([0.7], 1),
        ([], None),
    ],
)
def test_the_stable_epoch_worked_by_hand(scores, epoch):
    history = pd.DataFrame({"epoch": range(1, len(scores) + 1), "valid_dice": scores})
    assert training.stable_epoch(history) == epoch


@few
@given(st.lists(st.integers(0, 20), min_size=1, max_size=12), st.integers(0, 5))
def test_from_the_stable_epoch_on_and_not_before_every_dice_is_near_the_best(scores, tolerance):
    history = pd.DataFrame({"epoch": range(1, len(scores) + 1), "valid_dice": scores})
    near = [score >= max(scores) - tolerance for score in scores]
    starts = [number for number in range(1, len(scores) + 1) if all(near[number - 1 :])]
    assert training.stable_epoch(history, tolerance) == (starts[0] if starts else None)


def test_a_learning_rate_too_high_stops_with_the_epoch_and_the_remedy_and_keeps_what_was_good(run_dir):
    train(run_dir, replace(SMALL, epochs=1))
    before = {name: (run_dir / name).read_bytes() for name in ("checkpoint.pt", "last.pt", "history.csv")}
    with pytest.raises(FetalsegError) as error:
        train(run_dir, replace(SMALL, learning_rate=1e30, normalisation="none"))
    assert_one_sentence(error, "epoch 1", "learning_rate")
    assert before == {name: (run_dir / name).read_bytes() for name in before}


def test_a_training_that_blows_up_later_keeps_the_checkpoints_of_the_epochs_before(run_dir):
    trainer = training.Trainer(run_dir, replace(SMALL, schedule="constant", normalisation="none"))
    trainer.run_epoch(), trainer.run_epoch()
    trainer.optimiser.param_groups[0]["lr"] = 1e30
    with pytest.raises(FetalsegError, match="epoch 3"):
        trainer.run_epoch()
    last = checkpoints.load_checkpoint(run_dir / "last.pt")
    assert last["epoch"] == 2 and all(torch.isfinite(value).all() for value in last["network"].values())
    assert len(pd.read_csv(run_dir / "history.csv")) == 2


def test_weights_that_blow_up_in_the_last_batch_of_an_epoch_never_become_a_checkpoint(run_dir):
    whole = replace(SMALL, batch_size=24, normalisation="none", schedule="constant", learning_rate=1e30)
    with pytest.raises(FetalsegError, match="epoch 1"):
        train(run_dir, whole)
    assert not list(run_dir.glob("*.pt"))


def test_a_canvas_that_the_depth_does_not_divide_is_refused_before_training(run_dir):
    with pytest.raises(FetalsegError) as error:
        training.Trainer(run_dir, replace(SMALL, depth=5))
    assert_one_sentence(error, "48 × 32", "64 × 32", "depth")
    assert not (run_dir / "last.pt").exists()


@pytest.mark.parametrize("split", ["train", "valid"])
def test_an_empty_split_is_refused(run_dir, split):
    index = pd.read_csv(run_dir / "prepared" / "index.csv")
    index.assign(split=index.split.replace(split, "test")).to_csv(run_dir / "prepared" / "index.csv", index=False)
    with pytest.raises(FetalsegError) as error:
        training.Trainer(run_dir, SMALL)
    assert_one_sentence(error, f"'{split}'")


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
        assert {"settings", "canvas", "epoch", "valid_dice", "network"} <= set(state)
        checkpoints.load_network(uninterrupted / name)


@pytest.mark.parametrize("record", [0, 1, -1])
@pytest.mark.parametrize("offset", ["first", "last"])
def test_a_flipped_byte_in_the_weights_is_refused_though_torch_loads_it(uninterrupted, tmp_path, record, offset):
    path = Path(shutil.copy(uninterrupted / "checkpoint.pt", tmp_path))
    start, size = tensor_records(path)[record]
    flip_byte(path, start if offset == "first" else start + size - 1)
    assert not same(load(path)["network"], load(uninterrupted / "checkpoint.pt")["network"])  # the trap
    with pytest.raises(FetalsegError) as error:
        checkpoints.load_network(path)
    assert_one_sentence(error, "checkpoint.pt", "damaged")


def test_a_flipped_byte_in_what_a_resumed_training_needs_is_refused(uninterrupted, tmp_path):
    path = Path(shutil.copy(uninterrupted / "last.pt", tmp_path))
    start, size = [record for record in tensor_records(path) if record[1] >= 64][-1]  # a moment of Adam
    flip_byte(path, start + size // 2)
    assert same(load(path)["network"], load(uninterrupted / "last.pt")["network"])
    with pytest.raises(FetalsegError):
        checkpoints.load_checkpoint(path)


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
    checkpoints.save_checkpoint(path, state)


def other_depth(path):
    state = load(path)
    state["settings"]["depth"] = 3
    checkpoints.save_checkpoint(path, state)


def foreign(path):
    torch.save({"network": network_of().state_dict()}, path)


def other_version(path):
    checkpoints.save_checkpoint(path, load(path) | {"format": checkpoints.FORMAT + 1})


@pytest.mark.parametrize(
    "damage", [truncated, text_file, empty, missing, other_shape, other_depth, foreign, other_version]
)
def test_a_checkpoint_that_cannot_be_used_is_refused_in_one_sentence_that_names_it(uninterrupted, tmp_path, damage):
    path = Path(shutil.copy(uninterrupted / "checkpoint.pt", tmp_path / "mine.pt"))
    damage(path)
    with pytest.raises(FetalsegError) as error:
        checkpoints.load_network(path)
    assert_one_sentence(error, "mine.pt")


def test_a_loaded_network_is_the_one_that_was_saved_and_ready_to_predict(uninterrupted):
    network, state = checkpoints.load_network(uninterrupted / "last.pt")
    assert not network.training and same(dict(network.state_dict()), state["network"])


@pytest.mark.parametrize("stop", [1, 3])
def test_a_stopped_and_resumed_training_equals_an_uninterrupted_one_bit_by_bit(run_dir, uninterrupted, stop):
    trainer = training.Trainer(run_dir, SMALL)
    for _ in range(stop):
        trainer.run_epoch()
    torch.rand(7), np.random.random(7)  # whatever happens in between
    train(run_dir, SMALL, resume=True)
    assert_same_run(run_dir, uninterrupted)


def test_resuming_what_is_complete_changes_nothing_and_resuming_nothing_begins(run_dir, uninterrupted):
    train(run_dir, SMALL, resume=True)
    before = (run_dir / "last.pt").read_bytes()
    assert len(train(run_dir, SMALL, resume=True)) == SMALL.epochs
    assert (run_dir / "last.pt").read_bytes() == before
    assert_same_run(run_dir, uninterrupted)


def test_without_resume_training_begins_anew(run_dir, uninterrupted):
    train(run_dir, replace(SMALL, epochs=1))
    train(run_dir, SMALL)
    assert_same_run(run_dir, uninterrupted)


def test_resuming_with_other_settings_is_refused(run_dir):
    train(run_dir, replace(SMALL, epochs=1))
    with pytest.raises(FetalsegError) as error:
        training.Trainer(run_dir, replace(SMALL, epochs=1, learning_rate=1e-3), resume=True)
    assert_one_sentence(error, "last.pt", "resume")


def test_resuming_names_the_setting_that_differs(run_dir):
    train(run_dir, replace(SMALL, epochs=1))
    with pytest.raises(FetalsegError) as error:
        training.Trainer(run_dir, replace(SMALL, epochs=1, base_channels=4), resume=True)
    assert_one_sentence(error, "last.pt was made with base_channels 2")


def test_resuming_on_other_images_of_the_same_names_is_refused(run_dir):
    train(run_dir, replace(SMALL, epochs=1))
    images = np.load(run_dir / "prepared" / "images.npy", mmap_mode="r+")
    images[0, 0, 0] ^= 1
    images.flush()
    with pytest.raises(FetalsegError) as error:
        training.Trainer(run_dir, replace(SMALL, epochs=1), resume=True)
    assert_one_sentence(error, "last.pt", "other data")


@pytest.mark.parametrize("stop", [0, 2])
def test_a_loop_that_is_interrupted_in_an_epoch_and_run_again_ends_bit_by_bit_as_an_uninterrupted_one(
    run_dir, uninterrupted, monkeypatch, stop
):
    trainer = training.Trainer(run_dir, SMALL)
    for _ in range(stop):
        trainer.run_epoch()
    seen = []

    def interrupted(logits, truth):
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return training.combined_loss(logits, truth, SMALL.bce_weight)

    monkeypatch.setattr(trainer, "loss_function", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(trainer.epochs())
    seen.extend([1] * 9)
    list(trainer.epochs())
    assert_same_run(run_dir, uninterrupted)


def test_an_interrupted_first_epoch_does_not_go_on_from_an_older_training(run_dir, uninterrupted, monkeypatch):
    train(run_dir, replace(SMALL, epochs=2))
    trainer = training.Trainer(run_dir, SMALL)
    monkeypatch.setattr(trainer, "save", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        trainer.run_epoch()
    monkeypatch.undo()
    list(trainer.epochs())
    assert_same_run(run_dir, uninterrupted)


def test_an_epoch_whose_saving_failed_is_shown_once_when_the_cell_runs_again(run_dir, uninterrupted, monkeypatch):
    trainer = training.Trainer(run_dir, SMALL)
    trainer.run_epoch()
    monkeypatch.setattr(trainer, "save", lambda: (_ for _ in ()).throw(FetalsegError("the disk is full.")))
    with pytest.raises(FetalsegError, match="full"):
        list(trainer.epochs())
    monkeypatch.undo()
    rows = widgets.watch(trainer.epochs(), SMALL.epochs, None, lambda row: "", trainer.history)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert_same_run(run_dir, uninterrupted)


def test_a_history_that_was_not_written_any_more_is_written_when_resuming(run_dir, uninterrupted):
    train(run_dir, SMALL)
    history = run_dir / "history.csv"
    history.write_text("\n".join(history.read_text().splitlines()[:-1]) + "\n")
    train(run_dir, SMALL, resume=True)
    assert_same_run(run_dir, uninterrupted)


def test_the_best_checkpoint_is_no_training_to_go_on_with(run_dir, uninterrupted):
    shutil.copy(uninterrupted / "checkpoint.pt", run_dir / "last.pt")
    with pytest.raises(FetalsegError) as error:
        training.Trainer(run_dir, SMALL, resume=True)
    assert_one_sentence(error, "last.pt", "checkpoint.pt")


def test_a_batch_larger_than_the_split_is_refused_before_training(run_dir):
    with pytest.raises(FetalsegError) as error:
        training.Trainer(run_dir, replace(SMALL, batch_size=25))
    assert_one_sentence(error, "batch_size 25", "24 training images")


@pytest.mark.parametrize(("batch_size", "allowed"), [(1, False), (23, False), (12, True)])
def test_batch_normalisation_over_a_single_value_is_refused_before_training(tmp_path, draw_pairs, batch_size, allowed):
    draw_pairs(tmp_path / "malignant")
    preprocessing.ensure_prepared(tmp_path / "run", 16, 16, data=str(tmp_path / "malignant"), seed=0)
    chosen = replace(SMALL, depth=4, batch_size=batch_size, epochs=1)
    if allowed:
        assert len(train(tmp_path / "run", chosen)) == 1
        return
    with pytest.raises(FetalsegError) as error:
        training.Trainer(tmp_path / "run", chosen)
    assert_one_sentence(error, "batch normalisation", "depth 4")


def test_a_canvas_that_cannot_be_halved_is_refused_with_the_nearest_that_can(run_dir):
    with pytest.raises(FetalsegError) as error:
        training.Trainer(run_dir, replace(SMALL, depth=5))
    assert_one_sentence(error, "48 × 32 does not divide by 2^5", "32 × 32 or 64 × 32")


def test_a_short_fit_learns_its_rows_and_takes_the_settings(run_dir):
    dataset = preprocessing.PreparedDataset(run_dir, "train")
    seen = torch.utils.data.Subset(dataset, range(6))
    chosen = replace(SMALL, batch_size=3)
    before, after = network_of(), network_of()
    training.fit(after, dataset, range(6), 200, chosen)
    assert not after.training
    scores = [training.validate(one, seen, training.combined_loss)[1] for one in (before, after)]
    assert scores[1] > max(0.85, scores[0])
    again = training.fit(network_of(), dataset, range(6), 200, chosen)
    assert same(dict(again.state_dict()), dict(after.state_dict()))
    still = training.fit(network_of(), dataset, range(6), 1, replace(chosen, learning_rate=1e-12, schedule="constant"))
    torch.testing.assert_close(still.last.weight, network_of().last.weight)


def test_added_phantoms_are_trained_on_beside_the_images_and_never_validated_on(run_dir, monkeypatch, capsys):
    chosen = replace(SMALL, added_phantoms=12, batch_size=6, epochs=3)
    trainer = training.Trainer(run_dir, chosen)
    assert "12 phantom frames to train on as well are being made" in capsys.readouterr().out
    images, phantoms = trainer.parts
    assert len(trainer.shown) == len(images) + 12 and len(phantoms) == 12
    assert phantoms[0][0].shape == images[0][0].shape and trainer.valid_set.index.equals(
        preprocessing.PreparedDataset(run_dir, "valid").index
    )
    first = images[0][0], phantoms[0][0]
    trainer.run_epoch()
    assert not torch.equal(images[0][0], first[0]) and not torch.equal(phantoms[0][0], first[1])  # varied anew
    train(run_dir, chosen)
    assert capsys.readouterr().out == ""  # they are made once
    whole = load(run_dir / "last.pt")
    training.Trainer(run_dir, chosen).run_epoch()
    train(run_dir, chosen, resume=True)
    assert same(load(run_dir / "last.pt"), whole)


def test_one_step_of_the_reference_preset_on_an_unscaled_frame(tmp_path, clean_phantoms):
    preset = notebooks.read_preset("reference")
    canvas = {name: preset[name] for name in workspace.CANVAS_KEYS}
    preprocessing.ensure_prepared(tmp_path, **canvas, data=str(clean_phantoms), seed=0)
    settings = training.Settings.of(preset)
    trainer = training.Trainer(tmp_path, settings)
    assert unet.count_parameters(trainer.network) == 31_030_593
    before = copy.deepcopy(trainer.network.state_dict())
    loader = DataLoader(torch.utils.data.Subset(trainer.train_set, [0]), 1)  # of its four: eight gigabytes less
    images, masks = next(iter(loader))
    assert images.shape == masks.shape == (1, 1, 544, 800)
    step = trainer.loss_function, trainer.optimiser, trainer.scheduler, settings.gradient_norm, trainer.reduced
    loss = training.train_one_epoch(trainer.network, loader, *step)
    assert 0 < loss < 3
    moved = [(new - before[name]).abs().max() for name, new in trainer.network.state_dict().items()]
    assert 0 < max(moved) < 1.1e-4  # Adam's first step is the learning rate, 1e-4


def test_fine_tuning_begins_with_the_weights_of_a_checkpoint(run_dir, uninterrupted):
    network, _ = checkpoints.load_network(uninterrupted / "checkpoint.pt")
    trainer = training.Trainer(
        run_dir, replace(SMALL, epochs=1, learning_rate=1e-3), start=uninterrupted / "checkpoint.pt"
    )
    assert same(dict(trainer.network.state_dict()), dict(network.state_dict()))
    assert trainer.history == []
    trainer.run_epoch()
    assert not same(dict(trainer.network.state_dict()), dict(network.state_dict()))
    assert not same(dict(training.Trainer(run_dir, SMALL).network.state_dict()), dict(network.state_dict()))


def test_fine_tuning_another_network_is_refused(run_dir, uninterrupted):
    with pytest.raises(FetalsegError) as error:
        training.Trainer(run_dir, replace(SMALL, base_channels=6), start=uninterrupted / "checkpoint.pt")
    assert_one_sentence(error, "checkpoint.pt", "base_channels")


def test_a_resumed_fine_tuning_goes_on_where_it_stopped(run_dir, uninterrupted):
    start = uninterrupted / "checkpoint.pt"
    training.Trainer(run_dir, SMALL, start=start).run_epoch()
    resumed = training.Trainer(run_dir, SMALL, resume=True, start=start)
    assert same(dict(resumed.network.state_dict()), load(run_dir / "last.pt")["network"]) and len(resumed.history) == 1


def test_a_checkpoint_is_trained_once_and_again_only_when_the_data_changed(run_dir, capsys):
    chosen = replace(SMALL, epochs=1)
    training.ensure_checkpoint(run_dir, chosen)
    assert "is being trained for 1 epochs" in capsys.readouterr().out
    before = (run_dir / "checkpoint.pt").read_bytes()
    training.ensure_checkpoint(run_dir, chosen)
    assert capsys.readouterr().out == "" and (run_dir / "checkpoint.pt").read_bytes() == before
    preprocessing.prepare(run_dir, 32, 32)
    _, state = training.ensure_checkpoint(run_dir, chosen)
    assert "is being trained" in capsys.readouterr().out and state["canvas"]["width"] == 32


CHILD = f"""
import os, resource, signal, sys, torch
from dataclasses import replace
from pathlib import Path
torch.set_num_threads(1)
from fetalseg_helpers import training
from fetalseg_helpers.workspace import FetalsegError
run_dir, settings = Path(sys.argv[1]), training.{SMALL!r}
"""


def child(code, run_dir, **options):
    environment = os.environ | {"PYTHONPATH": str(Path(training.__file__).parent.parent)}
    command = [sys.executable, "-c", CHILD + code, str(run_dir)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, **options)


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
training.train(run_dir, settings)
""",
        run_dir,
    )
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert list(run_dir.glob(".unfinished-*"))  # it was killed where it was meant to be
    assert unfinished_free(run_dir) == ["checkpoint.pt", "last.pt"]
    assert checkpoints.load_checkpoint(run_dir / "last.pt")["epoch"] == 2
    assert list(pd.read_csv(run_dir / "history.csv").epoch) == [1, 2]
    train(run_dir, SMALL, resume=True)
    assert_same_run(run_dir, uninterrupted)


@needs_posix
def test_a_training_killed_at_any_moment_leaves_whole_files_and_resumes(run_dir):
    process = child("training.train(run_dir, replace(settings, epochs=9999, patience=9999))", run_dir)
    lines = [process.stdout.readline() for _ in range(3)]
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL and lines[2].startswith("epoch   3/9999")
    assert unfinished_free(run_dir) == ["checkpoint.pt", "last.pt"]
    last = checkpoints.load_checkpoint(run_dir / "last.pt")
    resumed = training.Trainer(run_dir, replace(SMALL, epochs=9999, patience=9999), resume=True)
    assert resumed.run_epoch()["epoch"] == last["epoch"] + 1 >= 4


def test_two_processes_do_not_train_in_one_folder_and_a_killed_one_leaves_it_free(run_dir, uninterrupted):
    process = child("training.train(run_dir, replace(settings, epochs=9999, patience=9999))", run_dir)
    process.stdout.readline()
    with pytest.raises(FetalsegError) as error:
        train(run_dir, SMALL)
    assert_one_sentence(error, "another process")
    process.kill()
    process.communicate(timeout=60)
    train(run_dir, SMALL)
    assert_same_run(run_dir, uninterrupted)


@needs_posix
def test_a_full_disk_while_saving_gives_one_sentence_and_leaves_the_old_checkpoints(run_dir):
    training.Trainer(run_dir, SMALL).run_epoch()
    before = {path.name: path.read_bytes() for path in run_dir.iterdir() if path.is_file()}
    process = child(
        """
trainer = training.Trainer(run_dir, settings, resume=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    trainer.run_epoch()
except FetalsegError as error:
    print(error)
""",
        run_dir,
        stderr=subprocess.PIPE,
    )
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert err == "" and out.count("\n") == 1 and ".pt could not be written" in out and "free some space" in out
    assert {path.name: path.read_bytes() for path in run_dir.iterdir() if path.is_file()} == before
