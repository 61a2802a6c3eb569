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
    with joined() if "TORCHELASTIC_RUN_ID" in os.environ else nullcontext():
        train_here(folder, values, report if is_first() else str, resume)


def train_here(folder, values, report, resume):
    """This process's part; a function of its own, so that nothing of it is left when the processes part."""
    if is_first():  # the trainers of the others wait for it
        keys = (*stages.OF_DATA, *CANVAS_KEYS)
        stages.ensure_verified(folder, **{name: values[name] for name in keys if name in values})
        report(of_run(folder))
    make_trainer = DistributedTrainer if distributed.is_initialized() else training.Trainer
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


class DistributedTrainer(training.Trainer):
    """A `Trainer` whose batches are divided among the processes inside `joined`; its gradients are those of one."""

    def __init__(self, run_dir, settings, **options):
        size, count = settings.batch_size, distributed.get_world_size()
        if size % count:  # refused before anything is made
            lower = size // count * count
            nearest = f"{lower} or {lower + count}" if lower else f"{count}"
            raise FetalsegError(f"batch_size {size} cannot be divided among {count} processes: use {nearest}.")
        self.share = size // count  # images of a batch that each process takes
        distributed.barrier()  # process 0 has prepared the data when it comes here
        super().__init__(run_dir, settings, **options)

    def model(self):
        """The network whose gradients are averaged over the processes."""
        return DistributedDataParallel(self.network, broadcast_buffers=False)  # `checked` does more

    def batches(self, epoch):
        """This process's share of each batch; where the images do not divide evenly, a few are shown twice."""
        self.train_set.epoch = epoch
        order = DistributedSampler(self.train_set, seed=self.settings.seed * 100_003 + epoch)
        return DataLoader(self.train_set, self.share, sampler=order)

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
        means, weights = [train_loss, *found], [images, len(mine), len(mine)]
        sums = torch.tensor([means, weights], dtype=torch.float64, device=self.device)
        sums[0] *= sums[1]
        distributed.all_reduce(sums)
        return (sums[0] / sums[1]).tolist()

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
