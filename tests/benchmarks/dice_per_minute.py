"""Validation Dice at native size against seconds of training: this course's U-Net and three that a user might pick.

    python tests/benchmarks/dice_per_minute.py FOLDER_OF_REAL_DATA --out DIR [--seed 0] [--sizes 96x64] [--scratch]

All train on the same split and the same images, prepared and varied as in this course, in turns of half a minute
in one process, so that a slow quarter of an hour is slow for all. Each has the optimiser, loss, schedule and batch that
its own documentation shows:

- this course, preset `laptop`: the network that ships, fine-tuned; with `--scratch` also the same from random weights:
  Adam with one cycle over the whole time, Dice + 0.2 × BCE, batches of 8;
- MONAI's BasicUNet with its default channels, and UNet with the channels and residual units of the 2D segmentation
  tutorial, which also gives the rest: DiceLoss(sigmoid=True), Adam at 1e-3, eight crops a step;
- segmentation_models.pytorch's Unet with a resnet18 encoder and no downloaded weights: its tutorial's DiceLoss, Adam at
  2e-4, cosine annealing to 1e-5, batches of 16.

The networks of others race at `--sizes`, by default three, for the first `--race` seconds each; the best of each
goes on to the end.
Scored on the validation images at their own size, threshold 0.5, once with the largest region and once with an ellipse
in its place, without mirroring. Only training steps with their batches are timed. To see a processor without bfloat16
and AVX-512 on a better one, set ONEDNN_MAX_CPU_ISA=AVX2 and ATEN_CPU_CAPABILITY=avx2. Written are `dice_per_minute.csv`
and `dice_per_minute.png`. Needs `pip install monai segmentation-models-pytorch`; without the second it is left out.
"""

import argparse
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from monai.losses import DiceLoss
from monai.networks.nets import BasicUNet
from monai.networks.nets import UNet as MonaiUNet
from torch.utils.data import DataLoader, RandomSampler

from fetalseg_helpers import evaluation, plotting, preprocessing, training, unet, verification
from fetalseg_helpers.running import lessons, stages

MARKS = [60, 120, 300, 600]  # seconds that are printed


def import_smp():
    """segmentation_models.pytorch, or None. Its torchvision may be built for another torch: no operator is used."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    try:
        import segmentation_models_pytorch
    except (ImportError, RuntimeError):
        for name in ("nms", "qnms"):  # what torchvision itself would define, if its compiled part could be loaded
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        try:
            import segmentation_models_pytorch
        except (ImportError, RuntimeError) as error:
            print(f"segmentation_models.pytorch is left out: {error}")
            return None
    return segmentation_models_pytorch, library


class Contender:
    """A network with its way of training, which can be taken further by some seconds at a time."""

    def __init__(self, name, network, size, folder, settings, loss, optimiser, schedule, batch, clip=None):
        self.name, self.network, self.size, self.settings = name, network, size, settings
        self.loss, self.optimiser, self.clip = loss, optimiser, clip
        self.pairs = verification.usable_pairs(folder, "valid")
        pairs = verification.usable_pairs(folder, "train")
        self.images = preprocessing.PreparedDataset(folder, pairs, preprocessing.augment, settings.seed)
        self.canvas = {"width": size[0], "height": size[1], "fit": "scale"}
        self.batch, self.epoch, self.shown, self.seconds, self.rows = batch, 0, 0, 0.0, []
        self.make_schedule, self.scheduler, self.left = schedule, None, 0
        self.batches = self.endless()

    def endless(self):
        """Batch after batch, each image once an epoch, in an order and with variations that follow from the seed."""
        while True:
            self.epoch += 1
            self.images.epoch = self.epoch
            order = torch.Generator().manual_seed(self.settings.seed * 100_003 + self.epoch)
            sampler = RandomSampler(self.images, generator=order)
            yield from DataLoader(self.images, self.batch, sampler=sampler)

    def step(self):
        images, masks = next(self.batches)
        loss = self.loss(self.network(images), masks)
        self.optimiser.zero_grad()
        loss.backward()
        if self.clip:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.clip)
        self.optimiser.step()
        if self.scheduler and self.left > 0:  # steps were estimated; the last ones go on at the lowest rate
            self.scheduler.step()
            self.left -= 1
        self.shown += len(images)

    def go_on(self, until, whole):
        """Train until so many seconds have been spent in all, out of `whole`; then score."""
        self.network.train()
        if self.scheduler is None and self.make_schedule:
            steps = self.steps_in(whole)
            self.scheduler, self.left = self.make_schedule(self.optimiser, steps), steps
        started = time.perf_counter() - self.seconds
        while self.seconds < until:
            self.step()
            self.seconds = time.perf_counter() - started
        self.score()

    def steps_in(self, seconds):
        """Steps that fit into so many seconds, from a copy of the network that takes some."""
        weights = {name: value.clone() for name, value in self.network.state_dict().items()}
        state = self.optimiser.state_dict()
        for count in (2, 12):  # the first two warm up
            started = time.perf_counter()
            for _ in range(count):
                self.step()
            each = (time.perf_counter() - started) / count
        self.network.load_state_dict(weights)
        self.optimiser.load_state_dict(state)
        self.batches, self.epoch, self.shown = self.endless(), 0, 0
        return int(seconds / each)

    def score(self):
        """Mean and worst Dice of the validation images at their own size, as a row."""
        scores = {"largest": [], "ellipse": []}
        for image, truth in validation_images(tuple(zip(self.pairs.image_path, self.pairs.mask_path, strict=True))):
            probability = evaluation.predict_image(self.network, image, self.canvas)
            for region, dice in scores.items():
                dice.append(evaluation.dice_score(evaluation.cut(probability, 0.5, region), truth))
        width, height = self.size
        row = {"network": self.name, "width": width, "height": height, "seconds": self.seconds, "images": self.shown}
        row |= {"dice": np.mean(scores["largest"]), "worst": min(scores["largest"])}
        self.rows.append(row | {"ellipse_dice": np.mean(scores["ellipse"]), "ellipse_worst": min(scores["ellipse"])})
        told = f"{self.name} {width} × {height}: {self.seconds:.0f} s, {self.shown} images"
        print(f"{told}, Dice {row['dice']:.4f}, with an ellipse {np.mean(scores['ellipse']):.4f}", flush=True)


CACHE = {}


def validation_images(paths):
    """Images and filled masks at their own size, read once."""
    if paths not in CACHE:
        CACHE[paths] = [preprocessing.read_pair(*pair) for pair in paths]
    return CACHE[paths]


def contenders(data, out, seed, scratch, sizes):
    """Every network at every size at which it takes part."""
    torch.manual_seed(seed)
    preset = lessons.read_preset("laptop") | {"seed": seed}
    folders = {}
    for size in {(preset["width"], preset["height"]), *sizes}:
        folders[size] = out / f"seed_{seed}_{size[0]}x{size[1]}"
        stages.ensure_verified(folders[size], *size, "scale", data=str(data), seed=seed)

    def ours(name, start, rate):
        settings = training.Settings.of(preset | {"start": start, "learning_rate": rate})
        network = unet.make_network(settings.base_channels, settings.depth, settings.normalisation)
        if start == "pretrained":
            training.load_weights(network, training.load_checkpoint(start)["network"], start)
        size = preset["width"], preset["height"]
        loss = partial(training.combined_loss, bce_weight=settings.bce_weight)
        optimiser = training.make_optimiser(network, settings)

        def schedule(optimiser, steps):
            return training.make_scheduler(optimiser, settings, steps)

        batch, clip = settings.batch_size, settings.gradient_norm
        return Contender(name, network, size, folders[size], settings, loss, optimiser, schedule, batch, clip)

    found = [ours("this course, pretrained", "pretrained", preset["learning_rate"])]
    if scratch:
        found.append(ours("this course, from scratch", "scratch", lessons.read_preset("quick")["learning_rate"]))
    settings = training.Settings.of(preset)
    smp = import_smp()
    for size in sizes:
        widths = (16, 32, 64, 128, 256)
        networks = {
            "MONAI BasicUNet": BasicUNet(spatial_dims=2, in_channels=1, out_channels=1),
            "MONAI UNet": MonaiUNet(
                spatial_dims=2, in_channels=1, out_channels=1, channels=widths, strides=(2, 2, 2, 2), num_res_units=2
            ),
        }
        for name, network in networks.items():
            optimiser = torch.optim.Adam(network.parameters(), 1e-3)
            loss = DiceLoss(sigmoid=True)
            found.append(Contender(name, network, size, folders[size], settings, loss, optimiser, None, 8))
        if smp:
            network = smp[0].Unet("resnet18", encoder_weights=None, in_channels=1, classes=1)
            optimiser = torch.optim.Adam(network.parameters(), lr=2e-4)
            loss = smp[0].losses.DiceLoss(smp[0].losses.BINARY_MODE, from_logits=True)

            def cosine(optimiser, steps):
                return torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=steps, eta_min=1e-5)

            name = "smp Unet resnet18"
            found.append(Contender(name, network, size, folders[size], settings, loss, optimiser, cosine, 16))
    return found


def write(found, out, racing):
    """The table of all rows so far, and the figure of those that went to the end."""
    table = pd.DataFrame([row for contender in found for row in contender.rows])
    table.round({"seconds": 1, "dice": 5, "worst": 4, "ellipse_dice": 5, "ellipse_worst": 4}).to_csv(
        out / "dice_per_minute.csv", index=False
    )
    styles = dict(zip(table.network.unique(), ["solid", "dashed", "dotted", "dashdot", (0, (5, 1))], strict=False))
    figure, axes = plotting.new_figure(1, 2, 3.4, "Validation Dice on real frames at their own size, two cores")
    columns = {"dice": "largest region", "ellipse_dice": "an ellipse in its place"}
    for axis, (column, title) in zip(axes, columns.items(), strict=True):
        for contender in found:
            if contender.seconds > racing or not racing:
                part = pd.DataFrame(contender.rows)
                label = f"{contender.name}, {contender.size[0]} × {contender.size[1]}"
                axis.plot(part.seconds / 60, part[column], linestyle=styles[contender.name], label=label)
        axis.set(xlabel="minutes of training", ylabel="mean Dice", ylim=(0.88, 0.985), title=title)
    axes[1].legend(fontsize=7, loc="lower right")
    plotting.save(figure, out / "dice_per_minute.png")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sizes", default="96x64,128x96,192x128", help="for the networks of others")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--race", type=float, default=150, help="seconds for each size of the networks of others")
    parser.add_argument("--turn", type=float, default=30, help="seconds of training between two scores")
    parser.add_argument("--scratch", action="store_true", help="this course's network from random weights too")
    arguments = parser.parse_args()
    turn = arguments.turn
    torch.set_flush_denormal(True)  # for all of them; this course's trainer does so too
    out, whole = arguments.out.resolve(), 60 * arguments.minutes
    sizes = [tuple(map(int, size.split("x"))) for size in arguments.sizes.split(",")]
    found = contenders(arguments.data.resolve(), out, arguments.seed, arguments.scratch, sizes)
    for contender in found:
        contender.score()  # before the first step
    going = found
    for until in np.arange(turn, whole + turn / 2, turn):
        if until - turn >= arguments.race > until - 2 * turn:
            best = {}
            for contender in going:
                rivals = [other for other in going if other.name == contender.name]
                best[contender.name] = max(rivals, key=lambda one: max(row["dice"] for row in one.rows))
            print("going on:", *(f"{one.name} {one.size}" for one in best.values()), flush=True)
            going = list(best.values())
        for contender in going:
            contender.go_on(until, whole)
        write(found, out, min(arguments.race, whole))
    for mark in MARKS:
        for contender in going:
            rows = [row for row in contender.rows if row["seconds"] <= mark + turn / 2]
            if rows and contender.seconds >= mark - turn:
                best = max(rows, key=lambda row: row["ellipse_dice"])
                told = f"{mark} s, {contender.name}: best so far {max(row['dice'] for row in rows):.4f}"
                print(f"{told}, with an ellipse {best['ellipse_dice']:.4f}, worst {best['ellipse_worst']:.3f}")


if __name__ == "__main__":
    main()
