"""A training in a run folder: it can be stopped at any moment and, on one processor, goes on to the bit."""

import time
from contextlib import contextmanager, nullcontext
from dataclasses import asdict

import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from fetalseg_helpers import checkpoints, loading, parallel, preprocessing, unet
from fetalseg_helpers.training import (
    Settings,
    combined_loss,
    epoch_line,
    make_optimiser,
    make_scheduler,
    train_one_epoch,
    validate,
)
from fetalseg_helpers.workspace import (
    FetalsegError,
    bfloat16_pays,
    choose_device,
    read_json,
    run_folder,
    seed_everything,
    shown,
    write_table,
)

HISTORY_COLUMNS = ["epoch", "train_loss", "valid_loss", "valid_dice", "learning_rate", "seconds"]


class Trainer:
    """One training in a run folder: its data, network, optimiser and history.

    Parameters
    ----------
    run_dir : str or Path
        With `prepared/` in it.
    settings : Settings
    resume : bool
        Go on from `last.pt` where there is one.
    start : Path, optional
        A checkpoint whose weights to begin with (fine-tuning), instead of random ones.

    Raises
    ------
    FetalsegError
        If a split is empty, the training split smaller than a batch, the canvas does not divide by 2^depth, `last.pt`
        was made with other settings or data, or the weights of `start` are of another network.
    """

    def __init__(self, run_dir, settings, resume=False, start=None):
        self.folder, self.settings, self.start, self.device = run_folder(run_dir), settings, start, choose_device()
        self.canvas = read_json(self.folder / "prepared" / "settings.json")
        if not self.canvas:
            raise FetalsegError(f"{shown(self.folder / 'prepared')} is not complete: run notebook 02 first.")
        unet.check_divisible(self.canvas["height"], self.canvas["width"], settings.depth)
        self.train_set = preprocessing.PreparedDataset(run_dir, "train", settings.augmented, settings.seed)
        self.valid_set = preprocessing.PreparedDataset(run_dir, "valid")
        check_batches(len(self.train_set), settings, self.canvas)
        weight = self.positive_weight() if settings.foreground_weighting else None
        self.loss_function = lambda logits, truth: combined_loss(logits, truth, settings.bce_weight, weight)
        self.reduced = bfloat16_pays(self.device)
        self.belongs_to = self.identity()
        self.begin(resume)

    def begin(self, resume):
        """Set up network, optimiser and history: those of `last.pt`, or new ones."""
        settings, self.midway = self.settings, True
        seed_everything(settings.seed)
        self.network = unet.make_network(settings.base_channels, settings.depth, settings.normalisation, self.device)
        resume = resume and (self.folder / "last.pt").exists()
        if self.start is not None and not resume:
            checkpoints.begin_with(self.network, self.start)
        self.shared = parallel.share(self.network)
        self.optimiser = make_optimiser(self.network, settings)
        batches = -(-len(self.train_set) // settings.batch_size)
        self.scheduler = make_scheduler(self.optimiser, settings, settings.epochs * batches)
        self.history, self.best, self.saved = [], -1.0, resume
        if resume:
            self.load_state(checkpoints.load_checkpoint(self.folder / "last.pt"))
        self.midway = False

    def positive_weight(self):
        """Background pixels for each tumor pixel, over the training masks."""
        share = np.mean([self.train_set.masks[row].mean() for row in self.train_set.index.row])
        return torch.tensor((1 - share) / share, dtype=torch.float32, device=self.device)

    def run_epoch(self):
        """Train and validate once; return the row of the history."""
        epoch, started = len(self.history) + 1, time.perf_counter()
        self.midway = True
        self.train_set.epoch = epoch
        place = {"num_replicas": parallel.count(), "rank": parallel.rank()}
        order = DistributedSampler(self.train_set, seed=self.settings.seed * 100_003, **place)
        order.set_epoch(epoch)  # resumable: the order is known from seed and epoch
        batch_size = parallel.share_of_batch(self.settings.batch_size)
        loader = DataLoader(self.train_set, batch_size, sampler=order)
        rate = self.optimiser.param_groups[0]["lr"]
        step = (self.loss_function, self.optimiser, self.scheduler, self.settings.gradient_norm, self.reduced)
        train_loss = train_one_epoch(self.shared, loader, *step)
        parallel.average_buffers(self.network)
        mine = parallel.share_of(self.valid_set)
        check = (self.loss_function, self.settings.batch_size, self.reduced)
        checked = validate(self.network, mine, *check) if len(mine) else (0.0, 0.0)
        (train_loss,) = parallel.mean([train_loss], len(order), self.device)
        valid_loss, valid_dice = parallel.mean(checked, len(mine), self.device)
        if not np.isfinite([train_loss, valid_loss]).all():
            raise FetalsegError(
                f"the loss is no longer finite in epoch {epoch}: lower learning_rate; the checkpoints of the epochs "
                "before stay."
            )
        row = (epoch, train_loss, valid_loss, valid_dice, rate, time.perf_counter() - started)
        self.history.append(dict(zip(HISTORY_COLUMNS, row, strict=True)))
        if parallel.rank() == 0:
            self.save()
        self.midway, self.saved = False, True
        return self.history[-1]

    def epochs(self):
        """Run epoch after epoch, giving each row of the history, until the last one or until patience is out.

        After an interruption in the middle of an epoch, it goes back to the end of the one before.
        """
        if self.midway:
            self.begin(resume=self.saved)
        return self.remaining_epochs()

    def remaining_epochs(self):
        """The loop of `epochs`, in one process at a time."""
        with self.alone() if parallel.rank() == 0 else nullcontext():
            if self.history and parallel.rank() == 0:
                self.write_history()  # a training that was killed may not have
            while len(self.history) < self.settings.epochs and self.epochs_since_best() < self.settings.patience:
                yield self.run_epoch()

    @contextmanager
    def alone(self):
        """Keep other processes from training in this run folder; the system lets go of it if this one is killed."""
        try:
            with FileLock(self.folder / ".training.lock", timeout=0):
                yield
        except Timeout as error:
            raise FetalsegError(
                f"{shown(self.folder)} is being trained in by another process: wait for it, or choose another run_dir."
            ) from error

    def epochs_since_best(self):
        """How many epochs have passed since the best validation Dice."""
        scores = [row["valid_dice"] for row in self.history]
        return len(scores) - 1 - int(np.argmax(scores)) if scores else 0

    def identity(self):
        """What a checkpoint belongs to: settings, canvas, number of processes, and images by name and content."""
        arrays = [self.folder / "prepared" / name for name in ("images.npy", "masks.npy")]
        return {
            "settings": asdict(self.settings),
            "canvas": self.canvas,
            "processes": parallel.count(),
            "images": [list(images.index.image_id) for images in (self.train_set, self.valid_set)],
            "pixels": [loading.fingerprint(path) for path in arrays],
        }

    def save(self):
        """Write `last.pt`, `checkpoint.pt` if this epoch is the best so far, and `history.csv`."""
        for leftover in self.folder.glob(".unfinished-*.pt"):  # of a training that was killed while saving
            leftover.unlink()
        state = self.belongs_to | {"epoch": len(self.history), "valid_dice": self.history[-1]["valid_dice"]}
        state["network"] = self.network.state_dict()
        if state["epoch"] == 1:  # what an older training left must not go on from here
            (self.folder / "last.pt").unlink(missing_ok=True)
        if state["valid_dice"] > self.best:
            self.best = state["valid_dice"]
            checkpoints.save_checkpoint(self.folder / "checkpoint.pt", state)
        state |= {"history": self.history, "best": self.best}
        state |= {"optimiser": self.optimiser.state_dict(), "scheduler": self.scheduler.state_dict()}
        checkpoints.save_checkpoint(self.folder / "last.pt", state)
        self.write_history()

    def write_history(self):
        """Write `history.csv`."""
        write_table(self.folder / "history.csv", pd.DataFrame(self.history, columns=HISTORY_COLUMNS))

    def load_state(self, state):
        """Take over the state of a training that was stopped; refuse one of other settings or data."""
        path = shown(self.folder / "last.pt")
        mine = self.belongs_to
        other = [name for name, value in mine["settings"].items() if state["settings"].get(name) != value]
        if other:
            was = ", ".join(f"{name} {state['settings'].get(name)}" for name in other)
            raise FetalsegError(f"{path} was made with {was}: give the same to resume, or train anew without resume.")
        if any(state.get(name) != mine[name] for name in ("canvas", "images", "pixels")):
            raise FetalsegError(f"{path} was made from other data or at another size: train anew without resume.")
        if state.get("processes") != mine["processes"] or "optimiser" not in state:
            was = f"in {state.get('processes')} processes" if "optimiser" in state else "as checkpoint.pt"
            raise FetalsegError(f"{path} was written {was}: resume in as many, or train anew without resume.")
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.history, self.best = state["history"], state["best"]


def check_batches(images, settings, canvas):
    """Raise FetalsegError for a batch that the training images cannot fill, or that batch normalisation cannot use."""
    if settings.batch_size > images:
        raise FetalsegError(f"batch_size {settings.batch_size} is more than the {images} training images: lower it.")
    smallest = canvas["height"] * canvas["width"] // 4**settings.depth  # pixels at the bottom of the U
    share = parallel.share_of_batch(settings.batch_size)
    alone = share == 1 or -(-images // parallel.count()) % share == 1  # a batch of one image
    if settings.normalisation == "batch" and smallest == 1 and alone:
        raise FetalsegError(
            f"batch normalisation cannot use a batch of one image that is a single pixel at depth {settings.depth}: "
            "choose another batch_size, or a smaller depth."
        )


def train(run_dir, settings, resume=False, start=None, report=print):
    """Train without a notebook, also in several processes: a line per epoch; returns the history as a table."""
    trainer = Trainer(run_dir, settings, resume, start)
    for row in trainer.epochs():
        if parallel.rank() == 0:
            report(epoch_line(row, settings.epochs))
    return pd.DataFrame(trainer.history, columns=HISTORY_COLUMNS)


def ensure_checkpoint(run_dir, settings=None):
    """The network of `checkpoint.pt`; trained first where there is none or the data changed, and said so.

    Returns
    -------
    (torch.nn.Module, dict)
        As `load_network`.
    """
    path = run_folder(run_dir) / "checkpoint.pt"
    canvas = read_json(run_folder(run_dir) / "prepared" / "settings.json")
    if path.exists():
        network, state = checkpoints.load_network(path)
        if state["canvas"] == canvas:
            return network, state
    settings = settings or Settings()
    print(f"{shown(path)} is being trained for {settings.epochs} epochs (notebook 05 explains it).")
    train(run_dir, settings)
    return checkpoints.load_network(path)
