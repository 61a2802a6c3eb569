"""Small trainings, which notebooks compare with each other: no validation, no checkpoint."""

from functools import partial

import torch
from torch.utils.data import DataLoader, Subset

from fetalseg_helpers.training import combined_loss, make_optimiser, make_scheduler, train_one_epoch
from fetalseg_helpers.workspace import bfloat16_pays


def train_briefly(network, dataset, rows, steps, settings):
    """Train a network on some rows of a data set, without validation and without checkpoints.

    `dataset` is a `preprocessing.PreparedDataset`, and `rows` are positions in it. It takes at least `steps` batches;
    the last epoch is finished. Of the `settings`, `epochs`, `patience`, `augmented`, `foreground_weighting` and the
    network's shape do not count. Returns the same network, with the weights of the last step, ready to predict.
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
        train_one_epoch(network, loader, loss_function, optimiser, scheduler, settings.gradient_norm, reduced)
    return network.eval()
