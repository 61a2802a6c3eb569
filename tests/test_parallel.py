"""Training in two real processes, as torchrun starts them, beside the same training in one."""

import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from fetalseg_helpers import checkpoints, parallel, preprocessing, training
from fetalseg_helpers.workspace import FetalsegError

ROOT = Path(training.__file__).parent.parent
SETTINGS = training.Settings(base_channels=4, depth=2, normalisation="none", epochs=8, batch_size=4, learning_rate=1e-2)

# One epoch that moves nothing: what is left in .grad is the gradient of its last batch.
GRADIENTS = f"""
import sys
from pathlib import Path
import torch
from fetalseg_helpers import parallel, training
from fetalseg_helpers.trainer import Trainer
run_dir = Path(sys.argv[1])
def main():  # so that nothing of it is left when the processes part
    settings = training.{replace(SETTINGS, learning_rate=1e-8, schedule="constant", gradient_norm=1e6)!r}
    trainer = Trainer(run_dir, settings)
    trainer.reduced = False
    trainer.run_epoch()
    if parallel.rank() == 0:
        torch.save([weight.grad for weight in trainer.network.parameters()], run_dir / "gradients.pt")
with parallel.joined():
    main()
"""


def run(command, processes, run_dir, expected=0):
    """Run Python with these arguments in one process, or in several under torchrun; returns stdout and stderr."""
    launch = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"] if processes > 1 else []
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launch, *command], capture_output=True, text=True, env=environment, cwd=run_dir, timeout=240
    )
    assert done.returncode == expected, done.stderr[-3000:]
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, draw_pairs):
    """Two run folders with the same 48 training images and an odd number of validation images."""
    root = tmp_path_factory.mktemp("parallel")
    draw_pairs(root / "malignant", count=50)
    for name in ("one", "two"):
        preprocessing.ensure_prepared(root / name, 48, 32, data=str(root / "malignant"), seed=0)
    assert len(preprocessing.usable(root / "one", "valid")) % 2 == 1
    assert len(preprocessing.usable(root / "one", "train")) % SETTINGS.batch_size == 0
    return root


@pytest.fixture(scope="module")
def after_an_epoch(prepared):
    script = prepared / "gradients.py"
    script.write_text(GRADIENTS)
    for name, processes in (("one", 1), ("two", 2)):
        run([str(script), str(prepared / name)], processes, prepared)
    return prepared


def test_two_processes_give_the_gradient_of_one(after_an_epoch):
    one, two = (torch.load(after_an_epoch / name / "gradients.pt", weights_only=True) for name in ("one", "two"))
    largest = max(gradient.abs().max() for gradient in one)
    difference = max((a - b).abs().max() for a, b in zip(one, two, strict=True))
    assert largest > 0 and difference < 1e-6 * max(1, largest), (difference, largest)


def test_two_processes_validate_every_image_once_and_none_twice(after_an_epoch):
    one, two = (pd.read_csv(after_an_epoch / name / "history.csv").iloc[0] for name in ("one", "two"))
    for column in ("train_loss", "valid_loss", "valid_dice"):
        assert two[column] == pytest.approx(one[column], abs=2e-6), column


def options(settings):
    values = asdict(settings) | {"width": 48, "height": 32}
    return [text for name, value in values.items() for text in ("-p", name, str(value))]


def test_the_command_under_torchrun_learns_what_one_process_learns(prepared):
    chosen = replace(SETTINGS, normalisation="batch", epochs=25)  # each process normalises its own share of a batch
    found = {}
    for name, processes in (("one", 1), ("two", 2)):
        command = ["-m", "fetalseg_helpers", "train", "--run-dir", str(prepared / name), *options(chosen)]
        lines = [line for line in run(command, processes, prepared)[0].splitlines() if "made" not in line]
        assert len(lines) == chosen.epochs + 1, lines  # one writer, one voice
        found[name] = pd.read_csv(prepared / name / "history.csv").valid_dice.max()
        checkpoints.load_network(prepared / name / "checkpoint.pt")
    assert min(found.values()) > 0.8 and abs(found["one"] - found["two"]) < 0.01, found


def test_a_stopped_training_of_two_processes_goes_on_in_two(prepared):
    run_dir = prepared / "two"
    script = prepared / "two_epochs.py"
    script.write_text(
        f"""
import sys
from fetalseg_helpers import parallel, training
from fetalseg_helpers.trainer import Trainer
def main():
    trainer = Trainer(sys.argv[1], training.{SETTINGS!r}, resume="resume" in sys.argv)
    trainer.run_epoch()
    if len(sys.argv) == 2:
        trainer.run_epoch()
with parallel.joined():
    main()
"""
    )
    run([str(script), str(run_dir)], 2, prepared)
    whole = checkpoints.load_checkpoint(run_dir / "last.pt")
    stop = script.with_name("stop.py")
    stop.write_text(script.read_text().replace("if len(sys.argv) == 2:", "if False:"))
    run([str(stop), str(run_dir)], 2, prepared)
    assert checkpoints.load_checkpoint(run_dir / "last.pt")["epoch"] == 1
    run([str(stop), str(run_dir), "resume"], 2, prepared)
    resumed = checkpoints.load_checkpoint(run_dir / "last.pt")
    assert resumed["epoch"] == whole["epoch"] == 2 and resumed["sha256"] == whole["sha256"]


def test_a_batch_that_cannot_be_divided_is_refused_in_one_sentence(prepared):
    command = ["-m", "fetalseg_helpers", "train", "--run-dir", str(prepared / "two"), *options(SETTINGS)]
    _, err = run([*command, "-p", "batch_size", "5"], 2, prepared, expected=1)
    assert "batch_size 5 cannot be divided among 2 processes: use 4 or 6." in err


def test_in_a_single_process_everything_is_as_it_is():
    network = torch.nn.Linear(2, 1)
    assert (parallel.rank(), parallel.count()) == (0, 1)
    assert parallel.share(network) is network and parallel.share_of([1, 2]) == [1, 2]
    assert parallel.share_of_batch(7) == 7 and parallel.mean([0.1, np.float64(0.2)], 3, "cpu") == (0.1, 0.2)


@pytest.mark.parametrize(("batch", "processes", "nearest"), [(5, 2, "4 or 6"), (1, 4, "4 or 4"), (7, 3, "6 or 9")])
def test_the_nearest_batches_that_can_be_divided_are_named(monkeypatch, batch, processes, nearest):
    monkeypatch.setattr(parallel, "count", lambda: processes)
    with pytest.raises(FetalsegError, match=f"batch_size {batch} .* use {nearest}"):
        parallel.share_of_batch(batch)
