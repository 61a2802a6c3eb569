"""One training in several processes, as torchrun starts them; in a single process all of this does nothing."""

import gc
import os
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed
from torch.utils.data import Subset

from fetalseg_helpers.workspace import FetalsegError, choose_device

PATIENCE = timedelta(hours=2)  # how long processes wait for the first, which prepares the data


def rank():
    """Number of this process, from 0; the process 0 is the only one that writes."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def count():
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


@contextmanager
def joined():
    """Join the processes that torchrun started, for the length of a block: NCCL between GPUs, gloo between CPUs."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    device = choose_device()
    if device.type == "cuda":
        place, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if place >= gpus:
            raise FetalsegError(f"process {place} has no GPU of its own, there are {gpus}: start {gpus} at most.")
        torch.cuda.set_device(place)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield
        distributed.barrier()
    finally:
        gc.collect()  # a network that is still shared at the end of Python would take the process down with it
        distributed.destroy_process_group()


@contextmanager
def first_alone():
    """Let process 0 do the block first and the others after it, when they find what it has made."""
    if rank() > 0:
        distributed.barrier()
    yield
    if count() > 1 and rank() == 0:
        distributed.barrier()


def share(network):
    """The network whose gradients are averaged over the processes (DistributedDataParallel); itself if there is one."""
    if count() == 1:
        return network
    return torch.nn.parallel.DistributedDataParallel(network, broadcast_buffers=False)  # `average_buffers` does more


def share_of_batch(batch_size):
    """Images that each process takes of a batch.

    Raises
    ------
    FetalsegError
        If the batch cannot be divided evenly.
    """
    if batch_size % count():
        step = count()
        nearest = f"{max(step, batch_size // step * step)} or {-(-batch_size // step) * step}"
        raise FetalsegError(f"batch_size {batch_size} cannot be divided among {step} processes: use {nearest}.")
    return batch_size // count()


def share_of(dataset):
    """Every n-th item, beginning with this process's number: all items once, none twice, some processes one more."""
    return Subset(dataset, range(rank(), len(dataset), count())) if count() > 1 else dataset


def mean(values, weight, device):
    """Mean of numbers over all processes, weighted; the numbers themselves if there is one process."""
    if count() == 1:
        return tuple(values)
    sums = torch.tensor([*(value * weight for value in values), weight], dtype=torch.float64, device=device)
    distributed.all_reduce(sums)
    return tuple((sums[:-1] / sums[-1]).tolist())


def average_buffers(network):
    """Give all processes the same running mean and variance of each batch normalisation: the mean over processes."""
    if count() > 1:
        for buffer in network.buffers():
            if buffer.is_floating_point():
                distributed.all_reduce(buffer)
                buffer /= count()
