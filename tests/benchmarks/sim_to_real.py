"""From phantoms to real frames: train `laptop`'s network on phantoms alone, then fine-tune on a few real pairs.

    python tests/benchmarks/sim_to_real.py FOLDER_OF_REAL_DATA --out runs/sim_to_real [--count 2000] [--repeats 2]

Writes `real.csv` (each real pair scored by the network that saw phantoms alone, at native size) and `transfer.csv`
(mean Dice on the real test split, from scratch and pretrained, for each number of pairs and each repeat). About
20 minutes of training on two cores for 2,000 phantoms, and ten minutes for each repeat.
"""

import copy
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import click
import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Subset

from fetalseg_helpers import evaluation, loading, preprocessing, training, unet, verification
from fetalseg_helpers.beyond_dice import summaries
from fetalseg_helpers.phantoms.dataset import write_phantoms
from fetalseg_helpers.running import lessons, stages
from fetalseg_helpers.workspace import CANVAS_KEYS, bfloat16_pays

STEPS = {16: 200, 64: 300, 256: 700}  # batches of 8, the same from scratch and pretrained
TUNING_RATE = 3e-4  # of 1e-4, 3e-4 and 1e-3 none was clearly better on the validation images, with 16 pairs


def train_briefly(network, dataset, rows, steps, settings):
    """The short training of notebook 7: no validation, no checkpoint; the last epoch is finished."""
    order = torch.Generator().manual_seed(settings.seed)
    loader = DataLoader(Subset(dataset, rows), settings.batch_size, shuffle=True, generator=order)
    epochs = -(-steps // len(loader))
    optimiser = training.make_optimiser(network, settings)
    scheduler = training.make_scheduler(optimiser, settings, epochs * len(loader))
    loss = partial(training.combined_loss, bce_weight=settings.bce_weight)
    reduced = bfloat16_pays(next(network.parameters()).device)
    for dataset.epoch in range(epochs):
        training.train_one_epoch(network, loader, loss, optimiser, scheduler, settings.gradient_norm, reduced)
    return network.eval()


@click.command()
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path))
@click.option("--count", default=2000, show_default=True, help="Phantoms.")
@click.option("--repeats", default=2, show_default=True, help="Of the fine-tuning, each with other pairs.")
def main(data, out, count, repeats):
    """Measure what phantoms are worth on real frames."""
    out = out.resolve()
    larger = {"width": 192, "height": 128, "epochs": 28, "patience": 28}  # than the preset, as in RESULTS.md
    preset = lessons.read_preset("laptop") | larger
    settings = training.Settings.of(preset)
    folder, run = out / f"phantom_{count}", out / "run"
    if not folder.exists():
        started = time.perf_counter()
        write_phantoms(folder, count, defects=False)
        print(f"{count} phantoms in {time.perf_counter() - started:.0f} s", flush=True)
    if not (run / "history.csv").exists() or len(pd.read_csv(run / "history.csv")) < settings.epochs:
        loading.write_manifest(run, data=str(folder))
        preprocessing.prepare(run, **{name: preset[name] for name in CANVAS_KEYS})
        verification.write_verification(run)
        training.train(training.Trainer(run, settings, resume=True), report=lambda line: print(line, flush=True))
    network, state = training.load_network(run / "checkpoint.pt")

    real = out / "real"
    canvas = {name: preset[name] for name in CANVAS_KEYS}
    pairs = stages.ensure_verified(real, **canvas, data=str(data.resolve()), seed=0)
    scores = evaluation.score_pairs(evaluation.make_predictor(network, state["canvas"], flip=True), pairs)
    scores.to_csv(out / "real.csv", index=False)
    print(summaries.summarise(scores), flush=True)

    test = pairs[pairs.split == "test"]
    dataset = preprocessing.PreparedDataset(real, pairs[pairs.split == "train"], preprocessing.augment)
    start = evaluation.score_pairs(evaluation.make_predictor(network, state["canvas"], flip=True), test).dice
    rows = [(0, 0, "from phantoms", start.mean(), start.min())]
    for repeat in range(repeats):
        order = np.random.default_rng(repeat).permutation(len(dataset))
        for pairs_seen, steps in STEPS.items():
            for how in ("from scratch", "from phantoms"):
                torch.manual_seed(repeat)
                fresh = (
                    unet.make_network(*(state["settings"][name] for name in training.ARCHITECTURE))
                    if how == "from scratch"
                    else copy.deepcopy(network)
                )
                chosen = settings if how == "from scratch" else replace(settings, learning_rate=TUNING_RATE)
                trained = train_briefly(fresh, dataset, order[:pairs_seen], steps, chosen)
                predict = evaluation.make_predictor(trained, state["canvas"], flip=True)
                dice = evaluation.score_pairs(predict, test).dice
                rows.append((pairs_seen, repeat, how, dice.mean(), dice.min()))
                print(*rows[-1], flush=True)
                table = pd.DataFrame(rows, columns=["pairs", "repeat", "start", "mean_dice", "worst_dice"])
                table.to_csv(out / "transfer.csv", index=False)


if __name__ == "__main__":
    main()
