"""The loss, the loop, and checkpoints that are whole or absent."""

import hashlib
import time
import zipfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn import functional
from torch.utils.data import DataLoader

from fetalseg_helpers import evaluation, preprocessing, unet
from fetalseg_helpers.workspace import (
    FetalsegError,
    choose_device,
    read_json,
    run_folder,
    seed_everything,
    shown,
    write_table,
    written_whole,
)

FORMAT = 1
HISTORY_COLUMNS = ["epoch", "train_loss", "valid_loss", "valid_dice", "learning_rate", "seconds"]


@dataclass(frozen=True)
class Settings:
    """All that a training depends on besides the prepared arrays. The defaults are those of the preset `quick`."""

    base_channels: int = 8
    depth: int = 4
    normalisation: str = "batch"  # 'none' or 'batch'
    epochs: int = 35
    batch_size: int = 4
    learning_rate: float = 4e-3  # the highest of the one-cycle schedule, or the constant one
    schedule: str = "one-cycle"  # 'one-cycle' or 'constant'
    weight_decay: float = 1e-5
    gradient_norm: float = 1.0  # longer gradients are shortened to this
    bce_weight: float = 0.2
    foreground_weighting: bool = False  # weigh tumor pixels in the BCE by background / foreground
    augmented: bool = True
    patience: int = 15  # epochs without a better validation Dice before stopping
    seed: int = 0


def dice_loss(logits, truth, smooth=1.0):
    """1 minus the soft Dice of each image, averaged over the batch (Milletari et al., 3DV 2016).

    Parameters
    ----------
    logits, truth : torch.Tensor, shape (batch, 1, height, width)
        Truth 0 or 1.
    smooth : float
        Added above and below; keeps an empty truth from dividing by zero.

    Returns
    -------
    torch.Tensor, scalar, 0 (perfect) to 1
    """
    probability = torch.sigmoid(logits)
    overlap = (probability * truth).sum(dim=(1, 2, 3))  # (batch,)
    total = probability.sum(dim=(1, 2, 3)) + truth.sum(dim=(1, 2, 3))
    return 1 - ((2 * overlap + smooth) / (total + smooth)).mean()


def combined_loss(logits, truth, bce_weight=0.2, positive_weight=None):
    """Dice loss + `bce_weight` × binary cross-entropy on logits.

    Parameters
    ----------
    logits, truth : torch.Tensor, shape (batch, 1, height, width)
    bce_weight : float
    positive_weight : torch.Tensor, optional
        Weight of tumor pixels in the cross-entropy.
    """
    bce = functional.binary_cross_entropy_with_logits(logits, truth, pos_weight=positive_weight)
    return dice_loss(logits, truth) + bce_weight * bce


def train_one_epoch(network, loader, loss_function, optimiser, scheduler, gradient_norm=1.0, reduced=False):
    """Show every batch to the network once.

    Parameters
    ----------
    loader : torch DataLoader of (images, masks)
    loss_function : callable of (logits, truth)
    scheduler : torch learning-rate scheduler, stepped once per batch
    gradient_norm : float
    reduced : bool
        Compute in bfloat16 where it is safe.

    Returns
    -------
    float
        Mean loss over the images.
    """
    network.train()
    device = next(network.parameters()).device
    total = 0.0
    for images, masks in loader:
        images, masks = images.to(device), masks.to(device)  # (batch, 1, height, width)
        with torch.autocast(device.type, torch.bfloat16, enabled=reduced):
            logits = network(images)
        loss = loss_function(logits.float(), masks)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), gradient_norm)
        optimiser.step()
        scheduler.step()
        total += loss.item() * len(images)
    return total / len(loader.dataset)


@torch.inference_mode()
def validate(network, dataset, loss_function, batch_size=8, reduced=False):
    """Mean loss and mean Dice at threshold 0.5, at training size, over a data set that is not augmented."""
    network.eval()
    device = next(network.parameters()).device
    losses, scores = [], []
    for images, masks in DataLoader(dataset, batch_size):
        with torch.autocast(device.type, torch.bfloat16, enabled=reduced):
            logits = network(images.to(device)).float()
        losses.append(loss_function(logits, masks.to(device)).item() * len(images))
        predictions = (logits > 0).cpu().numpy()
        scores += [evaluation.dice_score(p, t) for p, t in zip(predictions, masks.numpy() > 0, strict=True)]
    return sum(losses) / len(dataset), float(np.mean(scores))


def bfloat16_pays(device):
    """True where the processor multiplies bfloat16 in hardware; elsewhere it would only slow things down."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    abilities = torch.cpu.get_capabilities()
    return device.type == "cpu" and bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16"))


def make_network(settings, device=None):
    """The U-Net that the settings describe, its weights in the channels-last layout that convolutions like best."""
    network = unet.UNet(settings.base_channels, settings.depth, settings.normalisation)
    return network.to(device or choose_device(), memory_format=torch.channels_last)


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
        If a split is empty, the canvas does not divide by 2^depth, `last.pt` was made with other settings, or the
        weights of `start` are of another network.
    """

    def __init__(self, run_dir, settings, resume=False, start=None):
        seed_everything(settings.seed)
        self.folder, self.settings, self.device = run_folder(run_dir), settings, choose_device()
        for leftover in self.folder.glob(".unfinished-*.pt"):  # of a training that was killed while saving
            leftover.unlink()
        self.canvas = read_json(self.folder / "prepared" / "settings.json")
        if not self.canvas:
            raise FetalsegError(f"{shown(self.folder / 'prepared')} is not complete: run notebook 02 first.")
        unet.check_divisible(self.canvas["height"], self.canvas["width"], settings.depth)
        self.train_set = preprocessing.PreparedDataset(run_dir, "train", settings.augmented, settings.seed)
        self.valid_set = preprocessing.PreparedDataset(run_dir, "valid")
        self.network = make_network(settings, self.device)
        if start is not None:
            begin_with(self.network, start)
        self.reduced = bfloat16_pays(self.device)
        weight = self.positive_weight() if settings.foreground_weighting else None
        self.loss_function = lambda logits, truth: combined_loss(logits, truth, settings.bce_weight, weight)
        self.optimiser = torch.optim.Adam(
            self.network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        batches = -(-len(self.train_set) // settings.batch_size)
        self.scheduler = make_scheduler(self.optimiser, settings, batches)
        self.history, self.best = [], -1.0
        if resume and (self.folder / "last.pt").exists():
            self.load_state(load_checkpoint(self.folder / "last.pt"))

    def positive_weight(self):
        """Background pixels for each tumor pixel, over the training masks."""
        share = np.mean([self.train_set.masks[row].mean() for row in self.train_set.index.row])
        return torch.tensor((1 - share) / share, dtype=torch.float32, device=self.device)

    def run_epoch(self):
        """Train and validate once; return the row of the history."""
        epoch, started = len(self.history) + 1, time.perf_counter()
        self.train_set.epoch = epoch
        order = torch.Generator().manual_seed(self.settings.seed * 100_003 + epoch)  # resumable: known from the epoch
        loader = DataLoader(self.train_set, self.settings.batch_size, shuffle=True, generator=order)
        rate = self.optimiser.param_groups[0]["lr"]
        step = (self.loss_function, self.optimiser, self.scheduler, self.settings.gradient_norm, self.reduced)
        train_loss = train_one_epoch(self.network, loader, *step)
        check = (self.loss_function, self.settings.batch_size, self.reduced)
        valid_loss, valid_dice = validate(self.network, self.valid_set, *check)
        if not np.isfinite([train_loss, valid_loss]).all():
            raise FetalsegError(
                f"the loss is no longer finite in epoch {epoch}: lower learning_rate; checkpoints stay."
            )
        row = (epoch, train_loss, valid_loss, valid_dice, rate, time.perf_counter() - started)
        self.history.append(dict(zip(HISTORY_COLUMNS, row, strict=True)))
        self.save()
        return self.history[-1]

    def epochs(self):
        """Run epoch after epoch, giving each row of the history, until the last one or until patience is out."""
        while len(self.history) < self.settings.epochs and self.epochs_since_best() < self.settings.patience:
            yield self.run_epoch()

    def epochs_since_best(self):
        """How many epochs have passed since the best validation Dice."""
        scores = [row["valid_dice"] for row in self.history]
        return len(scores) - 1 - int(np.argmax(scores)) if scores else 0

    def save(self):
        """Write `last.pt`, `checkpoint.pt` if this epoch is the best so far, and `history.csv`."""
        state = {
            "format": FORMAT,
            "settings": asdict(self.settings),
            "canvas": self.canvas,
            "train_images": list(self.train_set.index.image_id),
            "epoch": len(self.history),
            "valid_dice": self.history[-1]["valid_dice"],
            "network": self.network.state_dict(),
        }
        state["sha256"] = weights_sha256(state["network"])
        if state["valid_dice"] > self.best:
            self.best = state["valid_dice"]
            save_checkpoint(self.folder / "checkpoint.pt", state)
        state |= {"history": self.history, "best": self.best}
        state |= {"optimiser": self.optimiser.state_dict(), "scheduler": self.scheduler.state_dict()}
        save_checkpoint(self.folder / "last.pt", state)
        write_table(self.folder / "history.csv", pd.DataFrame(self.history, columns=HISTORY_COLUMNS))

    def load_state(self, state):
        """Take over the state of a training that was stopped."""
        same = state["settings"] == asdict(self.settings) and state["canvas"] == self.canvas
        if not same or state["train_images"] != list(self.train_set.index.image_id) or "optimiser" not in state:
            raise FetalsegError(
                f"{shown(self.folder / 'last.pt')} was made with other settings or data: "
                "train anew without resume, or give the same parameters."
            )
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.history, self.best = state["history"], state["best"]


def begin_with(network, path):
    """Take over the weights of a checkpoint, from whatever data they were learnt.

    Raises
    ------
    FetalsegError
        As `load_checkpoint`, and if the weights are of another network.
    """
    try:
        network.load_state_dict(load_checkpoint(path)["network"])
    except RuntimeError as error:
        raise FetalsegError(
            f"{shown(path)} holds weights of another network: give the base_channels, depth and normalisation it has."
        ) from error


def make_scheduler(optimiser, settings, batches):
    """The learning rate over all batches: constant, or one cycle up and down (Smith and Topin, arXiv 1708.07120)."""
    if settings.schedule == "constant":
        return torch.optim.lr_scheduler.ConstantLR(optimiser, factor=1.0)
    steps = max(2, settings.epochs * batches)
    return torch.optim.lr_scheduler.OneCycleLR(
        optimiser, settings.learning_rate, total_steps=steps + 1, cycle_momentum=False
    )


def weights_sha256(weights):
    """SHA-256 over all tensors of a state dictionary, names and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_checkpoint(path, state):
    """Write a checkpoint, whole or not at all."""
    with written_whole(path) as temporary:
        try:
            torch.save(state, temporary)
        except RuntimeError as error:  # torch's own writer reports a full disk so
            raise OSError(28, f"torch could not write: {str(error).splitlines()[0]}") from error


def load_checkpoint(path):
    """Read a checkpoint and make sure that it is whole.

    Returns
    -------
    dict
        `settings`, `canvas`, `epoch`, `valid_dice`, `network` (the weights), and in `last.pt` what a resumed
        training needs.

    Raises
    ------
    FetalsegError
        If the file is missing, is no checkpoint of this course, or its weights do not match their checksum.
    """
    path = Path(path)
    if not path.exists():
        raise FetalsegError(f"{shown(path)} is not there: run notebook 05 first, or give the right checkpoint.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        with zipfile.ZipFile(path) as file:  # torch does not look at the checksums that it writes
            whole = file.testzip() is None
        whole = whole and state["format"] == FORMAT and state["sha256"] == weights_sha256(state["network"])
    except Exception as error:  # torch raises many kinds for a damaged file
        raise FetalsegError(f"{shown(path)} is no checkpoint of this course, or it is damaged: train again.") from error
    if not whole:
        raise FetalsegError(f"{shown(path)} is damaged or of another version: train again.")
    return state


def load_network(path, device=None):
    """The trained network of a checkpoint, ready to predict, and the checkpoint itself.

    Raises
    ------
    FetalsegError
        As `load_checkpoint`, and if the weights do not fit the network that the settings describe.
    """
    state = load_checkpoint(path)
    try:
        names = {field.name for field in fields(Settings)}
        settings = Settings(**{name: value for name, value in state["settings"].items() if name in names})
        network = make_network(settings, device)
        network.load_state_dict(state["network"])
    except (RuntimeError, TypeError, KeyError) as error:
        raise FetalsegError(
            f"{shown(path)} holds weights of another shape than its settings say: train again."
        ) from error
    return network.eval(), state


def train(run_dir, settings, resume=False, start=None, report=print):
    """Train without a notebook: a line per epoch; returns the history as a table."""
    trainer = Trainer(run_dir, settings, resume, start)
    for row in trainer.epochs():
        report(epoch_line(row, settings.epochs))
    return pd.DataFrame(trainer.history, columns=HISTORY_COLUMNS)


def epoch_line(row, epochs):
    """One epoch in one line."""
    return (
        f"epoch {row['epoch']:3d}/{epochs}  train loss {row['train_loss']:.4f}  valid loss {row['valid_loss']:.4f}  "
        f"valid Dice {row['valid_dice']:.4f}  {row['seconds']:.1f} s"
    )


def stable_epoch(history, tolerance=0.01):
    """First epoch from which the validation Dice stays within `tolerance` of its best value.

    Parameters
    ----------
    history : pandas.DataFrame
        With `epoch` and `valid_dice`.
    tolerance : float
        In Dice, 0 to 1.

    Returns
    -------
    int or None
        None if the last epoch is outside, or the history is empty.
    """
    if len(history) == 0:
        return None
    far = history.valid_dice < history.valid_dice.max() - tolerance
    later = history.epoch[far[::-1].cummax()[::-1]]
    after = history.epoch[history.epoch > (later.max() if len(later) else -1)]
    return int(after.iloc[0]) if len(after) else None


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
        network, state = load_network(path)
        if state["canvas"] == canvas:
            return network, state
    settings = settings or Settings()
    print(f"{shown(path)} is being trained for {settings.epochs} epochs (notebook 05 explains it).")
    train(run_dir, settings)
    return load_network(path)
