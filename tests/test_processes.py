"""Training in two real processes, as torchrun starts them, beside the same training in one."""

import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from fetalseg_helpers import training, verification
from fetalseg_helpers.running import processes, stages
from fetalseg_helpers.workspace import FetalsegError

pytestmark = pytest.mark.xdist_group("processes")
ROOT = Path(training.__file__).parent.parent
SETTINGS = training.Settings(base_channels=4, depth=2, normalisation="none", epochs=8, batch_size=4, learning_rate=1e-2)
STILL = replace(SETTINGS, learning_rate=1e-8, schedule="constant", gradient_norm=1e6)

# An epoch that moves nothing, so that what is left in .grad is the gradient of its last batch; then two epochs without
# a stop, and two with one between them.
SCRIPT = f"""
import sys
from pathlib import Path
import torch
from fetalseg_helpers.running import processes
from fetalseg_helpers.training import Settings

root = Path(sys.argv[1])

def one_epoch(name, settings, **options):
    trainer = processes.DistributedTrainer(root / name, settings, **options)
    trainer.reduced = False
    trainer.run_epoch()
    torch.distributed.barrier()  # process 0 has saved
    return trainer

def main():  # so that nothing of it is left when the processes part
    still = one_epoch("two", {STILL!r})
    if processes.is_first():
        torch.save([weight.grad for weight in still.network.parameters()], root / "two.pt")
    one_epoch("whole", {SETTINGS!r}).run_epoch()
    one_epoch("stopped", {SETTINGS!r})
    one_epoch("stopped", {SETTINGS!r}, resume=True)

with processes.joined():
    main()
"""


def torchrun(command, run_dir):
    """Run Python with these arguments in two processes; returns what they print."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, *command], capture_output=True, text=True, env=environment, cwd=run_dir, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, draw_pairs):
    """Run folders with the same 48 training images and an odd number of validation images."""
    root = tmp_path_factory.mktemp("processes")
    draw_pairs(root / "malignant", count=50)
    for name in ("one", "two", "whole", "stopped"):
        stages.ensure_prepared(root / name, 48, 32, data=str(root / "malignant"), seed=0)
    assert len(verification.usable_pairs(root / "one", "valid")) % 2 == 1
    assert len(verification.usable_pairs(root / "one", "train")) % SETTINGS.batch_size == 0
    return root


@pytest.fixture(scope="module")
def in_two(prepared):
    """The run folders after `SCRIPT`, and the trainer that did its first part in this process."""
    script = prepared / "script.py"
    script.write_text(SCRIPT)
    torchrun([str(script), str(prepared)], prepared)
    trainer = training.Trainer(prepared / "one", STILL)
    trainer.reduced = False
    trainer.run_epoch()
    return prepared, trainer


def test_two_processes_give_the_gradient_of_one(in_two):
    root, trainer = in_two
    one = [weight.grad for weight in trainer.network.parameters()]
    two = torch.load(root / "two.pt", weights_only=True)
    largest = max(gradient.abs().max() for gradient in one)
    difference = max((a - b).abs().max() for a, b in zip(one, two, strict=True))
    assert largest > 0 and difference < 1e-6 * max(1, largest), (difference, largest)


def test_two_processes_validate_every_image_once_and_none_twice(in_two):
    root, trainer = in_two
    two = pd.read_csv(root / "two" / "history.csv").iloc[0]
    for column in ("train_loss", "valid_loss", "valid_dice"):
        assert two[column] == pytest.approx(trainer.history[0][column], abs=2e-6), column


def test_a_stopped_training_of_two_processes_goes_on_in_two(in_two):
    root, _ = in_two
    whole, resumed = (training.load_checkpoint(root / name / "last.pt") for name in ("whole", "stopped"))
    assert resumed["epoch"] == whole["epoch"] == 2 and resumed["sha256"] == whole["sha256"]


def test_a_training_of_two_processes_does_not_go_on_in_one(in_two):
    root, _ = in_two
    with pytest.raises(FetalsegError, match="2 processes"):
        training.Trainer(root / "stopped", SETTINGS, resume=True)


def options(settings):
    values = asdict(settings) | {"width": 48, "height": 32}
    return [text for name, value in values.items() for text in ("-p", name, str(value))]


def test_the_command_under_torchrun_learns_what_one_process_learns(prepared):
    chosen = replace(SETTINGS, normalisation="batch", epochs=25)  # each process normalises its own share of a batch
    command = ["-m", "fetalseg_helpers", "train", "--run-dir", str(prepared / "two"), *options(chosen)]
    lines = [line for line in torchrun(command, prepared).splitlines() if "made" not in line]
    assert len(lines) == chosen.epochs + 2, lines  # one writer, one voice
    two = pd.read_csv(prepared / "two" / "history.csv").valid_dice.max()
    one = training.train(training.Trainer(prepared / "one", chosen), report=lines.append).valid_dice.max()
    assert min(one, two) > 0.8 and abs(one - two) < 0.01, (one, two)
    training.load_network(prepared / "two" / "checkpoint.pt")


def test_a_batch_that_cannot_be_divided_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(processes.distributed, "get_world_size", lambda: 2)
    with pytest.raises(FetalsegError, match="batch_size 5 cannot be divided among 2 processes: use 4 or 6"):
        processes.DistributedTrainer(tmp_path / "run", replace(SETTINGS, batch_size=5))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("batch", "count", "nearest"), [(5, 2, "4 or 6"), (1, 4, "4"), (7, 3, "6 or 9")])
def test_the_nearest_batches_that_can_be_divided_are_named(monkeypatch, batch, count, nearest):
    monkeypatch.setattr(processes.distributed, "get_world_size", lambda: count)
    with pytest.raises(FetalsegError, match=f"batch_size {batch} .* use {nearest}."):
        processes.DistributedTrainer("nowhere", replace(SETTINGS, batch_size=batch))
