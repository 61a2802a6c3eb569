"""How `fetalseg_helpers/phantoms/pretrained.pt` is made: draw phantoms, train on them alone, look at real frames.

    python tests/benchmarks/pretraining.py draw runs/pretraining [--processes 2]      # before the next one
    python tests/benchmarks/pretraining.py train runs/pretraining [--real FOLDER]     # goes on where it stopped
    python tests/benchmarks/pretraining.py ship runs/pretraining
    python tests/benchmarks/pretraining.py measure FOLDER --out runs/pretraining

`draw` writes files of 125 phantoms each, one frame an examination. Of five files, four have heads of all trimesters,
early ones more often than in the data set (44 % instead of 17 %); 3 % of the heads are cut by the frame, and 6 % of the
frames have no head. The fifth has early heads that hardly stand out. `train` shows the network random phantoms out of
those that are there, varied each time, and now and then something that is no frame; where a folder of real pairs is
given, `curve.csv` says what the network makes of them. `ship` stores the weights in half precision; `measure` scores
what ships on real pairs and shows it what is no head.

On a machine with one H100 and 16 cores, `draw --processes 13` took seven minutes and `train --workers 6` two. On two
cores, `draw --processes 2` would take about an hour and `train` four.
"""

import os
from dataclasses import asdict
from pathlib import Path

import click
import cv2
import joblib
import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_sample_images

from fetalseg_helpers import evaluation, loading, preprocessing, training, unet, verification, workspace
from fetalseg_helpers.phantoms import frames
from fetalseg_helpers.running import predictions
from fetalseg_helpers.training import PRETRAINED

SHARD = 125  # phantoms in a file
DRAWN = {"width": 192, "height": 128}
CANVAS = {"width": 96, "height": 64, "fit": "scale"}
SETTINGS = training.Settings(base_channels=16, depth=4, batch_size=64, learning_rate=4e-3)
CHUNK = 10_000  # images between two rows of the curve, and two files to go on from
WIDER = {"rotation": 35.0, "zoom": 0.35, "shift": 0.12, "gain": 1.5, "gamma": 1.7}  # than for real frames
NO_HEADS = 0.04  # of what is shown is made by `no_head`
FAINT = {  # blurred, in turbid fluid, the skull a weak line or none; units as in distributions.csv
    "wall_mirror": (-22, 4),
    "wall_echo": (-24, -6),
    "brain": (-10, -2),
    "fluid": (-16, -3),
    "frequency": (1.5, 4.5),
    "beam_growth": (1.2, 2.6),
    "choroid": (-4, 14),
    "midline": (-8, 14),
    "folds": (-6, 10),
    "patchiness": (1, 8),
    "looks": (3, 14),
    "suture_width": (0.1, 0.8),
}
FAINT = {name: frames.Draw("uniform", *ends, "", "") for name, ends in FAINT.items()}


def draw_phantom(rng, faint):
    """A phantom: an early head that hardly stands out, or, unless `faint`, one of any trimester, 44 % of them early."""
    changes = FAINT if faint else None
    examination = frames.draw_examination(rng, changes=changes)
    while examination.trimester != 1 and (faint or rng.random() < 0.75):
        examination = frames.draw_examination(rng, changes=changes)
    if faint:
        return frames.draw_frame(rng, examination)
    ellipse = frames.cut_pose(rng, examination) if rng.random() < 0.03 else None
    return frames.draw_frame(rng, examination, ellipse, head=rng.random() >= 0.06)


def draw_shard(path, number):
    """Draw one file of phantoms, at twice the size that they are trained at; masks hold what is covered, 0 to 255."""
    cv2.setNumThreads(1)
    images, masks = [], []
    for index in range(SHARD):
        phantom = draw_phantom(np.random.default_rng([1, number, index]), faint=number % 5 == 4)
        images.append(preprocessing.to_canvas(phantom.image, **DRAWN))
        masks.append(preprocessing.to_canvas(phantom.mask * np.uint8(255), **DRAWN))
    temporary = path.with_suffix(".tmp.npz")
    np.savez(temporary, images=images, masks=masks)
    os.replace(temporary, path)


def read_shard(path):
    """Images and masks of a file at training size, uint8 of shape (phantoms, height, width), masks 0 and 1."""
    size = CANVAS["width"], CANVAS["height"]
    with np.load(path) as shard:
        images = [cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in shard["images"]]
        masks = [cv2.resize(mask, size, interpolation=cv2.INTER_AREA) for mask in shard["masks"]]
    return np.stack(images), preprocessing.binarise(np.stack(masks))


def no_head(image, rng):
    """Something without a head: the frame inverted, noise, one grey, or soft patches as a photograph has them."""
    height, width = image.shape
    kind = rng.integers(5)
    if kind == 0:
        return 255 - image
    if kind == 1:
        return np.full_like(image, rng.integers(0, 256))
    if kind == 2:
        return np.uint8(np.clip(rng.normal(rng.uniform(0, 255), rng.uniform(5, 80), image.shape), 0, 255))
    if kind == 3:
        return np.uint8(np.clip(rng.rayleigh(rng.uniform(10, 80), image.shape), 0, 255))
    rows, columns = rng.integers(2, 9, 2)
    coarse = np.float32(rng.uniform(0, 255, (rows, columns)))
    soft = cv2.resize(coarse, (width, height), interpolation=[cv2.INTER_CUBIC, cv2.INTER_NEAREST][rng.integers(2)])
    return np.uint8(np.clip(soft + rng.normal(0, 10, image.shape), 0, 255))


def worsen(image, rng):
    """Independently of one another: less contrast in 25 % of the images, blur in 25 %, darker in 15 %."""
    if rng.random() < 0.25:
        middle, share = image.mean(), rng.uniform(0.3, 1)
        image = np.uint8(np.clip(middle + share * (image - middle), 0, 255))
    if rng.random() < 0.25:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 2.0))
    if rng.random() < 0.15:
        image = np.uint8(image * rng.uniform(0.25, 0.9))
    return image


class Shown(torch.utils.data.Dataset):
    """The images `first` to `last` - 1 of `total` that are shown: each a random phantom of the pool, varied."""

    def __init__(self, images, masks, first, last, total):
        self.images, self.masks, self.first, self.last, self.total = images, masks, first, last, total

    def __len__(self):
        return self.last - self.first

    def __getitem__(self, position):
        rng = np.random.default_rng([2, self.first + position])
        # Few phantoms without a head, and none at the end: a network that saw them all missed faint heads.
        passed_over = 0.75 if self.first + position < 0.9 * self.total else 1
        row = rng.integers(len(self.images))
        while not self.masks[row].any() and rng.random() < passed_over:
            row = rng.integers(len(self.images))
        image, mask = preprocessing.augment(self.images[row], self.masks[row], rng, **WIDER)
        image = worsen(image, rng)
        if rng.random() < NO_HEADS:
            image, mask = no_head(image, rng), 0 * mask
        return torch.from_numpy(preprocessing.normalise(image))[None], torch.from_numpy(np.float32(mask))[None]


def usable(real):
    """The pairs of a folder that pass every check."""
    pairs = loading.load_pairs(real)
    findings, measured = verification.verify_pairs(pairs)
    bad = set(findings.image_id[findings.severity == "error"])
    return pairs[pairs.image_id.isin(set(measured.index) - bad)]


def score_real(network, pairs):
    """Mean, median and lowest Dice over real pairs, at their own size, and how many are below 0.7."""
    predict = evaluation.make_predictor(network, CANVAS, region="ellipse")
    dice = evaluation.score_pairs(predict, pairs).dice
    return {"real_dice": dice.mean(), "real_median": dice.median(), "real_worst": dice.min(), "missed": sum(dice < 0.7)}


@click.group()
def cli():
    """Draw phantoms, train on them, and put the network where it ships."""


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--shards", default=220, show_default=True, help=f"Files of {SHARD} phantoms.")
@click.option("--processes", default=1, show_default=True)
def draw(folder, shards, processes):
    """Draw what is not there yet."""
    (folder / "shards").mkdir(parents=True, exist_ok=True)
    paths = [folder / "shards" / f"{number:04d}.npz" for number in range(shards)]
    missing = [(path, number) for number, path in enumerate(paths) if not path.exists()]
    joblib.Parallel(processes, verbose=5)(joblib.delayed(draw_shard)(*each) for each in missing)


@cli.command()
@click.argument("folder", type=click.Path(exists=True, path_type=Path))
@click.option("--real", type=click.Path(exists=True, path_type=Path), help="Real pairs, which are never trained on.")
@click.option("--every", default=6, show_default=True, help="Look at the real pairs after so many chunks.")
@click.option("--shown", "total", default=600_000, show_default=True, help="Images, each a phantom varied.")
@click.option("--workers", default=0, show_default=True, help="Processes that vary images; on a GPU some pay.")
def train(folder, real, every, total, workers):
    """Train, and go on after an interruption at the last complete chunk."""
    torch.manual_seed(0)
    network = unet.make_network(SETTINGS.base_channels, SETTINGS.depth, SETTINGS.normalisation)
    chunks = [(first, min(first + CHUNK, total)) for first in range(0, total, CHUNK)]
    steps = sum(-(-(last - first) // SETTINGS.batch_size) for first, last in chunks)
    optimiser = training.make_optimiser(network, SETTINGS)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, SETTINGS.learning_rate, total_steps=steps + 1, pct_start=0.15, cycle_momentum=False
    )
    last, rows = folder / "last.pt", []
    if last.exists():
        state = torch.load(last, weights_only=True)
        rows = state["rows"]
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        scheduler.load_state_dict(state["scheduler"])
    pairs = usable(real) if real else None
    shards = [read_shard(path) for path in sorted((folder / "shards").glob("????.npz"))]
    images, masks = (np.concatenate(arrays) for arrays in zip(*shards, strict=True))
    for first, end in chunks[len(rows) :]:
        shown = Shown(images, masks, first, end, total)
        loader = torch.utils.data.DataLoader(shown, SETTINGS.batch_size, num_workers=workers)
        torch.set_flush_denormal(True)
        loss = training.train_one_epoch(network, loader, training.combined_loss, optimiser, scheduler)
        torch.set_flush_denormal(False)
        row = {"shown": end, "phantoms": len(images), "loss": loss}
        if pairs is not None and ((len(rows) + 1) % every == 0 or end == total):
            row |= score_real(network, pairs)
        rows.append({name: float(value) for name, value in row.items()})
        click.echo("  ".join(f"{name} {value:.6g}" for name, value in row.items()))
        state = {"network": network.state_dict(), "optimiser": optimiser.state_dict(), "rows": rows}
        torch.save(state | {"scheduler": scheduler.state_dict()}, last.with_suffix(".tmp"))
        os.replace(last.with_suffix(".tmp"), last)
        pd.DataFrame(rows).to_csv(folder / "curve.csv", index=False, float_format="%.5g")


@cli.command()
@click.argument("folder", type=click.Path(exists=True, path_type=Path))
def ship(folder):
    """Store the weights where the package has them: kernels in half precision, the rest as it is."""
    fresh = folder / "fresh.npz"  # phantoms that were not trained on
    if not fresh.exists():
        draw_shard(fresh, 1_000_000)
    images, masks = (torch.from_numpy(array)[:, None].float() for array in read_shard(fresh))
    state = torch.load(folder / "last.pt", weights_only=True)
    weights = {name: weight.half() if weight.ndim > 1 else weight for name, weight in state["network"].items()}
    network = unet.UNet(*(getattr(SETTINGS, name) for name in training.ARCHITECTURE))
    network.load_state_dict(weights)
    dataset = torch.utils.data.TensorDataset(images / 255, masks)
    _, dice = training.validate(network, dataset, training.combined_loss)
    state = {"settings": asdict(SETTINGS), "canvas": CANVAS, "epoch": len(state["rows"]), "valid_dice": dice}
    training.save_checkpoint(PRETRAINED, state | {"network": weights})
    click.echo(
        f"{PRETRAINED}: {PRETRAINED.stat().st_size / 1e6:.2f} MB, Dice {dice:.4f} on {len(images)} fresh phantoms"
    )


def non_heads():
    """Name and image of what shows no head, twelve of each kind; these very ones were not trained on."""
    size = frames.HEIGHT, frames.WIDTH
    for number in range(12):
        rng = np.random.default_rng([3, number])
        examination = frames.draw_examination(rng)
        yield "phantom without a head", frames.draw_frame(rng, examination, head=False).image
        yield "phantom inverted", 255 - frames.draw_frame(rng).image
        yield "white noise", np.uint8(rng.integers(0, 256, size))
        speckle = cv2.GaussianBlur(rng.normal(0, 1, size), (0, 0), rng.uniform(1, 6))
        yield "speckle without tissue", np.uint8(np.clip(60 + rng.uniform(20, 60) * speckle / speckle.std(), 0, 255))
        yield "one grey", np.full(size, number * 23, np.uint8)
        ramp = np.linspace(0, 255, frames.WIDTH)[None] if number % 2 else np.linspace(0, 255, frames.HEIGHT)[:, None]
        yield "ramp or stripes", np.uint8(np.broadcast_to(ramp * (1 + number // 2) % 256, size))
        photographs = [cv2.cvtColor(photograph, cv2.COLOR_RGB2GRAY) for photograph in load_sample_images().images]
        photograph = photographs[number % 2]
        height, width = photograph.shape
        top, left = rng.integers(height // 2), rng.integers(width // 2)
        yield "photograph", cv2.resize(photograph[top : top + height // 2, left : left + width // 2], size[::-1])


@cli.command()
@click.argument("real", type=click.Path(exists=True, path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path))
def measure(real, out):
    """What ships, on real pairs and on what is no head: `real.csv` and `non_heads.csv`."""
    network, state = training.load_network(PRETRAINED)
    cut = predictions.frozen_cut(PRETRAINED, state)

    def find(image):
        probability = evaluation.predict_image(network, image, state["canvas"], cut["flip"])
        mask = evaluation.cut(probability, cut["threshold"], cut["region"])
        return mask, predictions.doubt(probability, mask)

    rows = []
    for pair in usable(real).itertuples():
        image, truth = preprocessing.read_pair(pair.image_path, pair.mask_path)
        mask, doubt = find(image)
        dice, iou = evaluation.dice_score(mask, truth), evaluation.iou_score(mask, truth)
        rows.append((pair.image_id, pair.examination, dice, iou, doubt))
    scores = pd.DataFrame(rows, columns=["image_id", "examination", "dice", "iou", "doubt"])
    low, high = evaluation.bootstrap_interval(scores.dice, scores.examination)
    doubtful = set(scores.nlargest(len(scores) // 10, "doubt").image_id)
    caught = len(doubtful.intersection(scores.nsmallest(10, "dice").image_id))
    told = (scores.doubt > predictions.DOUBTFUL).sum()
    click.echo(f"{len(scores)} real frames: Dice {scores.dice.mean():.4f} ({low:.4f} to {high:.4f})")
    click.echo(f"IoU {scores.iou.mean():.4f}, median Dice {scores.dice.median():.4f}, worst {scores.dice.min():.3f}")
    click.echo(f"below 0.85: {(scores.dice < 0.85).sum()}, below 0.7: {(scores.dice < 0.7).sum()}")
    click.echo(f"of the ten worst, {caught} are in the tenth of most doubt; {told} images are told to be in doubt")
    rows = []
    for kind, image in non_heads():
        mask, doubt = find(image)
        empty = not mask.any()
        rows.append((kind, empty, not empty and doubt > predictions.DOUBTFUL, doubt))
    others = pd.DataFrame(rows, columns=["kind", "empty", "in_doubt", "doubt"])
    others["called_a_head"] = ~(others["empty"] | others["in_doubt"])
    click.echo(others.groupby("kind")[["empty", "in_doubt", "called_a_head"]].sum().to_string())
    for name, table in (("real", scores), ("non_heads", others)):
        workspace.write_table(out / f"{name}.csv", table)


if __name__ == "__main__":
    cli()
