"""Trainings in a run folder: repeated, stopped, killed, resumed; and checkpoints that survive it."""

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
from torch.utils.data import DataLoader

from fetalseg_helpers import (
    checkpoints,
    evaluation,
    notebooks,
    preprocessing,
    trainer,
    training,
    unet,
    widgets,
    workspace,
)
from fetalseg_helpers.workspace import FetalsegError

SMALL = training.Settings(base_channels=2, depth=2, epochs=4, batch_size=7, learning_rate=1e-2, seed=1)
COLUMNS = ["epoch", "train_loss", "valid_loss", "valid_dice", "learning_rate", "seconds"]
needs_posix = pytest.mark.skipif(os.name != "posix", reason="SIGKILL and RLIMIT_FSIZE need Linux or macOS")
pytestmark = pytest.mark.usefixtures("one_thread")


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
    return trainer.train(run_dir, settings, resume, report=lambda line: None)


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
    loop = trainer.Trainer(run_dir, replace(SMALL, foreground_weighting=True))
    masks = loop.train_set.masks[loop.train_set.index.row]
    assert loop.positive_weight().item() == pytest.approx((masks == 0).sum() / (masks == 1).sum())
    logits, truth = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
    extra = loop.loss_function(logits, truth) - training.dice_loss(logits, truth)
    assert extra.item() == pytest.approx(0.2 * math.log(2) * loop.positive_weight().item(), rel=1e-4)


@pytest.mark.parametrize("augmented", [True, False])
def test_every_epoch_shows_every_image_once_in_a_new_order_and_varied_anew_if_augmented(
    run_dir, monkeypatch, augmented
):
    shown = []

    def record(_, loader, *__):
        shown.append(torch.cat([images for images, _ in loader]))
        return 0.5

    monkeypatch.setattr(trainer, "train_one_epoch", record)
    loop = trainer.Trainer(run_dir, replace(SMALL, augmented=augmented))
    loop.run_epoch(), loop.run_epoch()
    (first, first_keys), (second, second_keys) = [(x, [image.numpy().tobytes() for image in x]) for x in shown]
    assert len(first) == len(set(first_keys)) == len(loop.train_set) == len(second)
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
    monkeypatch.setattr(trainer, "validate", lambda *_: (0.5, next(left)))


def test_checkpoint_holds_the_best_epoch_and_last_the_newest(run_dir, monkeypatch):
    scripted(monkeypatch, [0.2, 0.6, 0.4, 0.6])
    loop = trainer.Trainer(run_dir, SMALL)
    weights = [copy.deepcopy(loop.network.state_dict()) for _ in loop.epochs()]
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


def test_a_learning_rate_too_high_stops_with_the_epoch_and_the_remedy_and_keeps_what_was_good(run_dir):
    train(run_dir, replace(SMALL, epochs=1))
    before = {name: (run_dir / name).read_bytes() for name in ("checkpoint.pt", "last.pt", "history.csv")}
    with pytest.raises(FetalsegError) as error:
        train(run_dir, replace(SMALL, learning_rate=1e30, normalisation="none"))
    assert_one_sentence(error, "epoch 1", "learning_rate")
    assert before == {name: (run_dir / name).read_bytes() for name in before}


def test_a_training_that_blows_up_later_keeps_the_checkpoints_of_the_epochs_before(run_dir):
    loop = trainer.Trainer(run_dir, replace(SMALL, schedule="constant", normalisation="none"))
    loop.run_epoch(), loop.run_epoch()
    loop.optimiser.param_groups[0]["lr"] = 1e30
    with pytest.raises(FetalsegError, match="epoch 3"):
        loop.run_epoch()
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
        trainer.Trainer(run_dir, replace(SMALL, depth=5))
    assert_one_sentence(error, "48 × 32", "64 × 32", "depth")
    assert not (run_dir / "last.pt").exists()


@pytest.mark.parametrize("split", ["train", "valid"])
def test_an_empty_split_is_refused(run_dir, split):
    index = pd.read_csv(run_dir / "prepared" / "index.csv")
    index.assign(split=index.split.replace(split, "test")).to_csv(run_dir / "prepared" / "index.csv", index=False)
    with pytest.raises(FetalsegError) as error:
        trainer.Trainer(run_dir, SMALL)
    assert_one_sentence(error, f"'{split}'")


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


# Checkpoints


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
    torch.save({"network": unet.UNet(2, 2, "batch").state_dict()}, path)


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
    loop = trainer.Trainer(run_dir, SMALL)
    for _ in range(stop):
        loop.run_epoch()
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
        trainer.Trainer(run_dir, replace(SMALL, epochs=1, learning_rate=1e-3), resume=True)
    assert_one_sentence(error, "last.pt", "resume")


def test_resuming_names_the_setting_that_differs(run_dir):
    train(run_dir, replace(SMALL, epochs=1))
    with pytest.raises(FetalsegError) as error:
        trainer.Trainer(run_dir, replace(SMALL, epochs=1, base_channels=4), resume=True)
    assert_one_sentence(error, "last.pt was made with base_channels 2")


def test_resuming_on_other_images_of_the_same_names_is_refused(run_dir):
    train(run_dir, replace(SMALL, epochs=1))
    images = np.load(run_dir / "prepared" / "images.npy", mmap_mode="r+")
    images[0, 0, 0] ^= 1
    images.flush()
    with pytest.raises(FetalsegError) as error:
        trainer.Trainer(run_dir, replace(SMALL, epochs=1), resume=True)
    assert_one_sentence(error, "last.pt", "other data")


@pytest.mark.parametrize("stop", [0, 2])
def test_a_loop_that_is_interrupted_in_an_epoch_and_run_again_ends_bit_by_bit_as_an_uninterrupted_one(
    run_dir, uninterrupted, monkeypatch, stop
):
    loop = trainer.Trainer(run_dir, SMALL)
    for _ in range(stop):
        loop.run_epoch()
    seen = []

    def interrupted(logits, truth):
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return training.combined_loss(logits, truth, SMALL.bce_weight)

    monkeypatch.setattr(loop, "loss_function", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(loop.epochs())
    seen.extend([1] * 9)
    list(loop.epochs())
    assert_same_run(run_dir, uninterrupted)


def test_an_interrupted_first_epoch_does_not_go_on_from_an_older_training(run_dir, uninterrupted, monkeypatch):
    train(run_dir, replace(SMALL, epochs=2))
    loop = trainer.Trainer(run_dir, SMALL)
    monkeypatch.setattr(loop, "save", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        loop.run_epoch()
    monkeypatch.undo()
    list(loop.epochs())
    assert_same_run(run_dir, uninterrupted)


def test_an_interruption_while_the_curve_is_drawn_leaves_the_folder_free(run_dir, uninterrupted, monkeypatch):
    def interrupted(rows):
        raise KeyboardInterrupt

    monkeypatch.setattr(widgets, "somebody_watches", lambda: True)
    loop = trainer.Trainer(run_dir, SMALL)
    with pytest.raises(KeyboardInterrupt) as kept:  # as a notebook keeps the traceback, and all that it holds
        widgets.watch(loop.epochs(), SMALL.epochs, interrupted, None, loop.history)
    assert kept.traceback and len(loop.history) == 1
    list(trainer.Trainer(run_dir, SMALL, resume=True).epochs())
    assert_same_run(run_dir, uninterrupted)


def test_an_epoch_whose_saving_failed_is_shown_once_when_the_cell_runs_again(run_dir, uninterrupted, monkeypatch):
    loop = trainer.Trainer(run_dir, SMALL)
    loop.run_epoch()
    monkeypatch.setattr(loop, "save", lambda: (_ for _ in ()).throw(FetalsegError("the disk is full.")))
    with pytest.raises(FetalsegError, match="full"):
        list(loop.epochs())
    monkeypatch.undo()
    rows = widgets.watch(loop.epochs(), SMALL.epochs, None, lambda row: "", loop.history)
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
        trainer.Trainer(run_dir, SMALL, resume=True)
    assert_one_sentence(error, "last.pt", "checkpoint.pt")


def test_a_batch_larger_than_the_split_is_refused_before_training(run_dir):
    with pytest.raises(FetalsegError) as error:
        trainer.Trainer(run_dir, replace(SMALL, batch_size=25))
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
        trainer.Trainer(tmp_path / "run", chosen)
    assert_one_sentence(error, "batch normalisation", "depth 4")


def test_a_canvas_that_cannot_be_halved_is_refused_with_the_nearest_that_can(run_dir):
    with pytest.raises(FetalsegError) as error:
        trainer.Trainer(run_dir, replace(SMALL, depth=5))
    assert_one_sentence(error, "48 × 32 does not divide by 2^5", "32 × 32 or 64 × 32")


def test_one_step_of_the_reference_preset_on_an_unscaled_frame(tmp_path, clean_phantoms):
    preset = notebooks.read_preset("reference")
    canvas = {name: preset[name] for name in workspace.CANVAS_KEYS}
    preprocessing.ensure_prepared(tmp_path, **canvas, data=str(clean_phantoms), seed=0)
    settings = training.Settings.of(preset)
    loop = trainer.Trainer(tmp_path, settings)
    assert unet.count_parameters(loop.network) == 31_030_593
    before = copy.deepcopy(loop.network.state_dict())
    loader = DataLoader(torch.utils.data.Subset(loop.train_set, [0]), 1)  # of its four: eight gigabytes less
    images, masks = next(iter(loader))
    assert images.shape == masks.shape == (1, 1, 544, 800)
    step = loop.loss_function, loop.optimiser, loop.scheduler, settings.gradient_norm, loop.reduced
    loss = training.train_one_epoch(loop.network, loader, *step)
    assert 0 < loss < 3
    moved = [(new - before[name]).abs().max() for name, new in loop.network.state_dict().items()]
    assert 0 < max(moved) < 1.1e-4  # Adam's first step is the learning rate, 1e-4


def test_fine_tuning_begins_with_the_weights_of_a_checkpoint(run_dir, uninterrupted):
    network, _ = checkpoints.load_network(uninterrupted / "checkpoint.pt")
    loop = trainer.Trainer(run_dir, replace(SMALL, epochs=1, learning_rate=1e-3), start=uninterrupted / "checkpoint.pt")
    assert same(dict(loop.network.state_dict()), dict(network.state_dict()))
    assert loop.history == []
    loop.run_epoch()
    assert not same(dict(loop.network.state_dict()), dict(network.state_dict()))
    assert not same(dict(trainer.Trainer(run_dir, SMALL).network.state_dict()), dict(network.state_dict()))


def test_fine_tuning_another_network_is_refused(run_dir, uninterrupted):
    with pytest.raises(FetalsegError) as error:
        trainer.Trainer(run_dir, replace(SMALL, base_channels=6), start=uninterrupted / "checkpoint.pt")
    assert_one_sentence(error, "checkpoint.pt", "base_channels")


def test_a_resumed_fine_tuning_goes_on_where_it_stopped(run_dir, uninterrupted):
    start = uninterrupted / "checkpoint.pt"
    trainer.Trainer(run_dir, SMALL, start=start).run_epoch()
    resumed = trainer.Trainer(run_dir, SMALL, resume=True, start=start)
    assert same(dict(resumed.network.state_dict()), load(run_dir / "last.pt")["network"]) and len(resumed.history) == 1


def test_a_checkpoint_is_trained_once_and_again_only_when_the_data_changed(run_dir, capsys):
    chosen = replace(SMALL, epochs=1)
    trainer.ensure_checkpoint(run_dir, chosen)
    assert "is being trained for 1 epochs" in capsys.readouterr().out
    before = (run_dir / "checkpoint.pt").read_bytes()
    trainer.ensure_checkpoint(run_dir, chosen)
    assert capsys.readouterr().out == "" and (run_dir / "checkpoint.pt").read_bytes() == before
    preprocessing.prepare(run_dir, 32, 32)
    _, state = trainer.ensure_checkpoint(run_dir, chosen)
    assert "is being trained" in capsys.readouterr().out and state["canvas"]["width"] == 32


CHILD = f"""
import os, resource, signal, sys, torch
from dataclasses import replace
from pathlib import Path
torch.set_num_threads(1)
from fetalseg_helpers import trainer, training
from fetalseg_helpers.workspace import FetalsegError
run_dir, settings = Path(sys.argv[1]), training.{SMALL!r}
"""


def child(code, run_dir, **options):
    environment = os.environ | {"PYTHONPATH": str(Path(training.__file__).parent.parent), "PYTHONUNBUFFERED": "1"}
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
trainer.train(run_dir, settings)
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
    process = child("trainer.train(run_dir, replace(settings, epochs=9999, patience=9999))", run_dir)
    lines = [process.stdout.readline() for _ in range(3)]
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL and lines[2].startswith("epoch   3/9999")
    assert unfinished_free(run_dir) == ["checkpoint.pt", "last.pt"]
    last = checkpoints.load_checkpoint(run_dir / "last.pt")
    resumed = trainer.Trainer(run_dir, replace(SMALL, epochs=9999, patience=9999), resume=True)
    assert resumed.run_epoch()["epoch"] == last["epoch"] + 1 >= 4


def test_two_processes_do_not_train_in_one_folder_and_a_killed_one_leaves_it_free(run_dir, uninterrupted):
    process = child("trainer.train(run_dir, replace(settings, epochs=9999, patience=9999))", run_dir)
    process.stdout.readline()
    try:
        with pytest.raises(FetalsegError) as error:
            train(run_dir, SMALL)
    finally:
        process.kill()
        process.communicate(timeout=60)
    assert_one_sentence(error, "another process")
    train(run_dir, SMALL)
    assert_same_run(run_dir, uninterrupted)


@needs_posix
def test_a_full_disk_while_saving_gives_one_sentence_and_leaves_the_old_checkpoints(run_dir):
    trainer.Trainer(run_dir, SMALL).run_epoch()
    before = {path.name: path.read_bytes() for path in run_dir.iterdir() if path.is_file()}
    process = child(
        """
loop = trainer.Trainer(run_dir, settings, resume=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    loop.run_epoch()
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
