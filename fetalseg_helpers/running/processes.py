"""One training in several processes, as torchrun starts them: each takes its share, process 0 alone writes."""

import gc
import os
from contextlib import contextmanager, nullcontext
from datetime import timedelta

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Subset
from torch.utils.data.distributed import DistributedSampler

from fetalseg_helpers import training
from fetalseg_helpers.running import stages
from fetalseg_helpers.running.report import of_run
from fetalseg_helpers.workspace import CANVAS_KEYS, FetalsegError, choose_device, shown


def train(folder, values, report, resume=False):
    """Train in a run folder, in all processes that torchrun has started, or in this one alone.

    `values` are data and settings; `report` takes lines.
    """
    alone = "TORCHELASTIC_RUN_ID" not in os.environ
    with nullcontext() if alone else joined():
        trainer = training.Trainer if alone else DistributedTrainer
        train_here(trainer, folder, values, report if is_first() else str, resume)


def train_here(make_trainer, folder, values, report, resume):
    """This process's part; a function of its own, so that nothing of it is left when the processes part."""
    if is_first():  # the trainers of the others wait for it
        keys = (*stages.OF_DATA, *CANVAS_KEYS)
        stages.ensure_verified(folder, **{name: values[name] for name in keys if name in values})
        report(of_run(folder))
    trainer = make_trainer(folder, training.Settings.of(values), resume=resume)
    if trainer.history:
        report(f"{shown(folder / 'last.pt')}: going on after epoch {len(trainer.history)} of {values['epochs']}.")
    best = training.train(trainer, report).valid_dice.max()
    report(f"best validation Dice {best:.4f}, kept in {shown(folder / 'checkpoint.pt')}.")


@contextmanager
def joined():
    """Join the processes that torchrun started, for the length of a block: NCCL between GPUs, gloo between CPUs."""
    device = choose_device()
    if device.type == "cuda":
        place, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if place >= gpus:
            raise FetalsegError(f"process {place} has no GPU of its own, there are {gpus}: start {gpus} at most.")
        torch.cuda.set_device(place)
    patience = timedelta(hours=2)  # with the first, which prepares the data
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=patience)
    try:
        yield
        distributed.barrier()
    finally:
        gc.collect()  # a network that is still shared at the end of Python would take the process down with it
        distributed.destroy_process_group()


def is_first():
    """True in process 0, the only one that writes and speaks, and in a process that is alone."""
    return not distributed.is_initialized() or distributed.get_rank() == 0


def share_of_batch(batch_size):
    """Images that each process takes of a batch; a FetalsegError if it cannot be divided evenly."""
    count = distributed.get_world_size()
    if batch_size % count:
        lower = batch_size // count * count
        nearest = f"{lower} or {lower + count}" if lower else f"{count}"
        raise FetalsegError(f"batch_size {batch_size} cannot be divided among {count} processes: use {nearest}.")
    return batch_size // count


class DistributedTrainer(training.Trainer):
    """A `Trainer` whose batches are divided among the processes inside `joined`; its gradients are those of one."""

    def __init__(self, run_dir, settings, **options):
        share_of_batch(settings.batch_size)  # refused before anything is made
        distributed.barrier()  # process 0 has prepared the data when it comes here
        super().__init__(run_dir, settings, **options)

    def model(self):
        """The network whose gradients are averaged over the processes."""
        return DistributedDataParallel(self.network, broadcast_buffers=False)  # `checked` does more

    def batches(self, epoch):
        """This process's share of each batch; where the images do not divide evenly, a few are shown twice."""
        self.train_set.epoch = epoch
        order = DistributedSampler(self.train_set, seed=self.settings.seed * 100_003)
        order.set_epoch(epoch)
        return DataLoader(self.train_set, share_of_batch(self.settings.batch_size), sampler=order)

    def checked(self, train_loss, images):
        """Losses and Dice over all processes, after all have the same running statistics of batch normalisation."""
        count = distributed.get_world_size()
        for buffer in self.network.buffers():
            if buffer.is_floating_point():
                distributed.all_reduce(buffer)
                buffer /= count
        mine = Subset(self.valid_set, range(distributed.get_rank(), len(self.valid_set), count))  # every n-th image
        size = self.settings.batch_size
        found = training.validate(self.network, mine, self.loss_function, size) if len(mine) else (0.0, 0.0)
        (train_loss,) = self.averaged([train_loss], images)
        return train_loss, *self.averaged(found, len(mine))

    def averaged(self, values, weight):
        """Mean of numbers over all processes, weighted."""
        sums = torch.tensor([*(value * weight for value in values), weight], dtype=torch.float64, device=self.device)
        distributed.all_reduce(sums)
        return (sums[:-1] / sums[-1]).tolist()

    def identity(self):
        """As in one process, and how many there are."""
        return super().identity() | {"processes": distributed.get_world_size()}

    def save(self, row):
        """Write the state, in process 0."""
        if is_first():
            super().save(row)

    def locked(self):
        """The run folder's lock, in process 0."""
        return super().locked() if is_first() else nullcontext()
