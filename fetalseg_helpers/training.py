"""The settings of a training, the loss, and the loop over batches."""

from dataclasses import dataclass, fields
from functools import partial

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, Subset

from fetalseg_helpers import evaluation
from fetalseg_helpers.workspace import bfloat16_pays


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

    @classmethod
    def of(cls, values):
        """The settings among the values of a preset or of a command line; the rest is for others."""
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})


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
    total = torch.zeros((), device=device)  # read once at the end: reading it makes a GPU wait
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
        total += loss.detach() * len(images)
    return total.item() / len(loader.sampler)


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


def make_optimiser(network, settings):
    """Adam (Kingma and Ba, arXiv 1412.6980) over all weights, in one fused operation per step."""
    return torch.optim.Adam(
        network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )


def make_scheduler(optimiser, settings, steps):
    """The learning rate over all steps: constant, or one cycle up and down (Smith and Topin, arXiv 1708.07120)."""
    if settings.schedule == "constant":
        return torch.optim.lr_scheduler.ConstantLR(optimiser, factor=1.0)
    return torch.optim.lr_scheduler.OneCycleLR(
        optimiser, settings.learning_rate, total_steps=max(2, steps) + 1, cycle_momentum=False
    )


def train_briefly(network, dataset, rows, steps, settings):
    """Train a network on some rows of a data set, without validation and without checkpoints.

    Parameters
    ----------
    network : torch.nn.Module
    dataset : preprocessing.PreparedDataset
    rows : sequence of int
        Positions in the data set.
    steps : int
        Batches, at least; the last epoch is finished.
    settings : Settings
        `epochs`, `patience`, `augmented`, `foreground_weighting` and the network's shape do not count.

    Returns
    -------
    torch.nn.Module
        The same network, with the weights of the last step, ready to predict.
    """
    order = torch.Generator().manual_seed(settings.seed)
    loader = DataLoader(Subset(dataset, rows), settings.batch_size, shuffle=True, generator=order)
    epochs = -(-steps // len(loader))
    optimiser = make_optimiser(network, settings)
    scheduler = make_scheduler(optimiser, settings, epochs * len(loader))
    loss_function = partial(combined_loss, bce_weight=settings.bce_weight)
    reduced = bfloat16_pays(next(network.parameters()).device)
    for epoch in range(epochs):
        dataset.epoch = epoch  # other variations in each
        step = loss_function, optimiser, scheduler, settings.gradient_norm, reduced
        train_one_epoch(network, loader, *step)
    return network.eval()


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
