"""What a step of this course's training costs, beside MONAI's BasicUNet and UNet, alternating in one process.

    python tests/benchmarks/throughput.py OUT [--rounds 9] [--channels 16] [--batch 8] [--width 96] [--height 64]

The networks compared have four halvings and the same channels on each level; all train on the same batch with the same
loss. MONAI's two run as its documentation shows them: 32-bit numbers, default layout, torch's Adam. "plain" is this
course's network run the same way. Written are `throughput.csv`, images per second and the ratio to BasicUNet in the
same round; `parts.csv`, where an epoch of this course's training spends its time, batches read and varied included; and
`peak.csv`, the floating-point operations that the network does in a second, forward and backward, as a share of what a
32-bit matrix product of the same machine reaches in the same round. Printed are the seconds of a whole epoch of the
trainer, of its batches and its validation alone, and the highest memory. To see a processor without bfloat16 and
AVX-512 on a better one, set ONEDNN_MAX_CPU_ISA=AVX2, ATEN_CPU_CAPABILITY=avx2 and, for the matrix product,
MKL_ENABLE_INSTRUCTIONS=AVX2. Needs MONAI: pip install monai.
"""

import argparse
import resource
import time
from pathlib import Path

import pandas as pd
import torch
from monai.networks.nets import BasicUNet
from monai.networks.nets import UNet as MonaiUNet
from torch.utils.flop_counter import FlopCounterMode

from fetalseg_helpers import training, unet
from fetalseg_helpers.running import stages
from fetalseg_helpers.workspace import bfloat16_pays, choose_device

KINDS = {  # part of an operation's name in torch
    "convolutions": ("convolution",),
    "batch normalisation": ("batch_norm",),
    "copies and changes of type": ("copy_", "_to_copy", "aten::cat"),
    "ReLU and pooling": ("threshold", "clamp", "max_pool", "relu"),
    "Adam and gradient norm": ("adam", "Adam", "norm", "foreach"),
}


def candidates(channels, normalisation, device):
    """Network, whether it runs as in this course, for each name."""
    widths = [channels * 2**level for level in range(5)]
    plain = unet.UNet(channels, 4, normalisation)
    basic = BasicUNet(spatial_dims=2, in_channels=1, out_channels=1, features=(*widths, channels))
    other = MonaiUNet(spatial_dims=2, in_channels=1, out_channels=1, channels=widths, strides=(2, 2, 2, 2))
    return {
        "this course": (unet.make_network(channels, 4, normalisation), True),
        "plain": (plain.to(device), False),
        "MONAI BasicUNet": (basic.to(device), False),
        "MONAI UNet": (other.to(device), False),
    }


def wait(device):
    """Let a GPU finish what it has been given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(work, steps, device):
    """Seconds that one call takes, over some calls."""
    wait(device)
    started = time.perf_counter()
    for _ in range(steps):
        work()
    wait(device)
    return (time.perf_counter() - started) / steps


def step_of(network, ours, images, masks):
    """A training step and a prediction, as functions."""
    device = images.device
    reduced = ours and bfloat16_pays(device)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True if ours else None)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimiser, factor=1.0)

    def train():
        network.train()
        batch = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, masks), len(images))
        training.train_one_epoch(network, batch, training.combined_loss, optimiser, schedule, reduced=reduced)

    @torch.inference_mode()
    def predict():
        network.eval()
        with torch.autocast(device.type, torch.bfloat16, enabled=reduced):
            return torch.sigmoid(network(images).float())

    return train, predict


def measure(arguments, device):
    """Images per second of each network in each round, training and predicting."""
    size = (arguments.batch, 1, arguments.height, arguments.width)
    images, masks = torch.rand(size, device=device), (torch.rand(size, device=device) > 0.7).float()
    steps = {
        name: step_of(network, ours, images, masks)
        for name, (network, ours) in candidates(arguments.channels, "batch", device).items()
    }
    rows = []
    for number in range(-1, arguments.rounds):  # the first round warms up
        for name, works in steps.items():
            for what, work in zip(("training", "inference"), works, strict=True):
                seconds = timed(work, arguments.steps, device)
                if number >= 0:
                    rows.append((number, what, name, arguments.batch / seconds))
    table = pd.DataFrame(rows, columns=["round", "what", "network", "images_per_second"])
    basic = table[table.network == "MONAI BasicUNet"].set_index(["round", "what"]).images_per_second
    table["times_basic_unet"] = (
        table.images_per_second / basic.loc[list(zip(table["round"], table.what, strict=True))].to_numpy()
    )
    return table


def peak(arguments, device):
    """Operations a second of a training step and of a matrix product, in turns, and the share of the first."""
    size = (arguments.batch, 1, arguments.height, arguments.width)
    images, masks = torch.rand(size, device=device), (torch.rand(size, device=device) > 0.7).float()
    network = unet.make_network(arguments.channels, 4, "batch")
    with FlopCounterMode(display=False) as counter:
        network(images).sum().backward()
    work = counter.get_total_flops()
    matrix = torch.rand(2000, 2000, device=device)
    train, _ = step_of(network, True, images, masks)
    train(), matrix @ matrix  # these warm up
    rows = []
    for number in range(arguments.rounds):
        product = 2 * 2000**3 / timed(lambda: matrix @ matrix, arguments.steps, device)
        reached = work / timed(train, arguments.steps, device)
        rows.append((number, work / arguments.batch / 1e9, reached / 1e9, product / 1e9, reached / product))
    columns = ["round", "gflop_per_image", "training_gflops", "product_gflops", "share"]
    return pd.DataFrame(rows, columns=columns)


def make_trainer(arguments):
    """A trainer of the course on 160 phantoms, with the network that is measured here."""
    run_dir = arguments.out.resolve() / "run"
    stages.ensure_verified(run_dir, arguments.width, arguments.height, phantoms=160)
    return training.Trainer(run_dir, training.Settings(arguments.channels, 4, batch_size=arguments.batch))


def epoch(trainer):
    """Print what a whole epoch takes, and its batches and its validation alone, in ms for each image."""
    trainer.run_epoch()  # warms up
    images = len(trainer.train_set)
    for name, work, count in (
        ("a whole epoch, checkpoints written", trainer.run_epoch, images),
        ("its training images read and varied", lambda: list(trainer.batches(3)), images),
        ("its validation", lambda: trainer.checked(0.0, images), len(trainer.valid_set)),
    ):
        took = sorted(timed(work, 1, trainer.device) for _ in range(5))
        low, middle, high = (1000 * took[place] / count for place in (0, 2, 4))
        print(f"{name}: {middle:.2f} ms for each of {count} images ({low:.2f} to {high:.2f}, five times)")
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"highest memory of the process: {highest / 1e6:.0f} MB")


def parts(arguments, trainer, device):
    """Where an epoch of this course's training spends its time, by kind of operation, as torch's profiler sees it."""
    loader = torch.utils.data.DataLoader(trainer.train_set, arguments.batch)
    step = (trainer.network, loader, trainer.loss_function, trainer.optimiser, trainer.scheduler, 1.0, trainer.reduced)
    training.train_one_epoch(*step)  # warms up
    activities = [torch.profiler.ProfilerActivity.CPU]
    started = time.perf_counter()
    with torch.profiler.profile(activities=activities) as profile:
        training.train_one_epoch(*step)
        wait(device)
    seconds = time.perf_counter() - started
    spent = dict.fromkeys([*KINDS, "other operations"], 0.0)
    for operation in profile.key_averages():
        kind = next((kind for kind, words in KINDS.items() if any(word in operation.key for word in words)), None)
        spent[kind or "other operations"] += operation.self_cpu_time_total / 1e6
    spent["outside torch: reading and varying images, Python"] = seconds - sum(spent.values())
    table = pd.DataFrame({"part": list(spent), "seconds": list(spent.values())})
    return table.assign(share=table.seconds / seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    for name, value in (
        ("rounds", 9),
        ("steps", 5),
        ("channels", 16),
        ("batch", 8),
        ("width", 96),
        ("height", 64),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    device = choose_device()
    trainer = make_trainer(arguments)
    epoch(trainer)
    shares = peak(arguments, device)
    shares.to_csv(arguments.out / "peak.csv", index=False)
    print(shares.quantile([0, 0.5, 1]).drop(columns="round").round(3).to_string())
    table = measure(arguments, device)
    table.to_csv(arguments.out / "throughput.csv", index=False)
    columns = ["images_per_second", "times_basic_unet"]
    print(table.groupby(["what", "network"])[columns].quantile([0.25, 0.5, 0.75]).unstack().round(2).to_string())
    spent = parts(arguments, trainer, device)
    spent.to_csv(arguments.out / "parts.csv", index=False)
    print(spent.round(3).to_string(index=False))


if __name__ == "__main__":
    main()
