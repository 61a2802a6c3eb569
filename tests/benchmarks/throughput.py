"""Images per second of this course's U-Net beside MONAI's BasicUNet and UNet, alternating in one process.

    python tests/benchmarks/throughput.py OUT [--rounds 9] [--channels 16] [--batch 8] [--width 192] [--height 128]

The networks compared have four halvings and the same channels on each level; all train on the same batch with the same
loss. MONAI's two run as its documentation shows them: 32-bit numbers, default layout, torch's Adam. "plain" is this
course's network run the same way. Written are `throughput.csv`, images per second and the ratio to BasicUNet in the
same round, and `parts.csv`, where a step of this course's training spends its time at `--depth`. Needs MONAI: pip
install monai.
"""

import argparse
import time
from pathlib import Path

import pandas as pd
import torch
from monai.networks.nets import BasicUNet
from monai.networks.nets import UNet as MonaiUNet

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


def parts(arguments, device):
    """Where an epoch of this course's training spends its time, by kind of operation, as torch's profiler sees it."""
    run_dir = arguments.out.resolve() / "run"
    stages.ensure_verified(run_dir, arguments.width, arguments.height, phantoms=60)
    settings = training.Settings(arguments.channels, arguments.depth, batch_size=arguments.batch)
    trainer = training.Trainer(run_dir, settings)
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
        ("depth", 5),
        ("batch", 8),
        ("width", 192),
        ("height", 128),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    device = choose_device()
    table = measure(arguments, device)
    table.to_csv(arguments.out / "throughput.csv", index=False)
    columns = ["images_per_second", "times_basic_unet"]
    print(table.groupby(["what", "network"])[columns].quantile([0.25, 0.5, 0.75]).unstack().round(2).to_string())
    spent = parts(arguments, device)
    spent.to_csv(arguments.out / "parts.csv", index=False)
    print(spent.round(3).to_string(index=False))


if __name__ == "__main__":
    main()
