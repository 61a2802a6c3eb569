"""Validation Dice against seconds of training, for the preset `laptop` on real data.

    python tests/benchmarks/time_to_accuracy.py FOLDER_OF_REAL_DATA --out DIR [--epochs 2 10 21] [--seed 0]

One training for each number of epochs, since the learning rate follows it: a short one scores early, a long one higher.
Written are `time_to_accuracy.csv` (a row per epoch: seconds of training and validation so far, validation Dice at
training size) and `time_to_accuracy.png`; printed are the seconds until each mark. Let nothing else run meanwhile.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import pandas as pd

from fetalseg_helpers import notebooks, plotting, training, verification

MARKS = (0.9367, 0.970)  # what the U-Net that this course starts from reached on a GPU, and a good laptop run


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, nargs="+", default=[2, 10, 21])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    preset = notebooks.read_preset("laptop")
    canvas = {name: preset[name] for name in ("width", "height", "fit")}
    tables = []
    for epochs in arguments.epochs:
        run_dir = out / f"epochs_{epochs}"
        verification.ensure_verified(run_dir, **canvas, data=str(arguments.data.resolve()), seed=arguments.seed)
        settings = replace(training.Settings.of(preset), seed=arguments.seed, epochs=epochs, patience=epochs)
        history = training.train(run_dir, settings, resume=True, report=lambda line: print(line, flush=True))
        tables.append(history.assign(epochs=epochs, elapsed=history.seconds.cumsum()))
        for mark in MARKS:
            reached = tables[-1][tables[-1].valid_dice >= mark]
            when = f"after {reached.elapsed.iloc[0]:.0f} s" if len(reached) else "never"
            print(f"{epochs} epochs: validation Dice {mark} {when}", flush=True)
    table = pd.concat(tables)[["epochs", "epoch", "elapsed", "valid_dice"]]
    table.to_csv(out / "time_to_accuracy.csv", index=False)
    figure, axis = plotting.new_figure(height=3)
    for epochs, part in table.groupby("epochs"):
        axis.plot(part.elapsed, part.valid_dice, marker=".", label=f"{epochs} epochs")
    for mark in MARKS:
        axis.axhline(mark, color="black", linestyle="dotted", linewidth=1)
    axis.set(xlabel="seconds of training", ylabel="validation Dice", ylim=(0.85, 1), title="Preset laptop, real frames")
    axis.legend(fontsize=8, loc="lower right")
    plotting.save(figure, out / "time_to_accuracy.png")


if __name__ == "__main__":
    main()
