"""Validation Dice against seconds of training on real data; budgets of about one, five and seven minutes, two cores.

    python tests/benchmarks/time_to_accuracy.py FOLDER_OF_REAL_DATA --out DIR [--seed 0] [--budgets one five seven]

One training for each budget, since the learning rate follows the number of epochs. Written are `time_to_accuracy.csv`
(a row per epoch: seconds of training and validation so far, validation Dice at training size) and
`time_to_accuracy.png`; printed are the seconds until each mark, and the validation Dice of the kept network at the
images' own size, cut as the preset `laptop` says. Let nothing else run meanwhile.
"""

import argparse
from pathlib import Path

import pandas as pd

from fetalseg_helpers import evaluation, plotting, training, verification
from fetalseg_helpers.running import lessons, stages
from fetalseg_helpers.workspace import CANVAS_KEYS

BUDGETS = {  # what differs from the preset `laptop`
    "one": {"epochs": 10},
    "five": {"epochs": 55},
    "seven": {},
}
MARKS = (0.9367, 0.970)  # what the U-Net that this course starts from reached on a GPU, and a good laptop run


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budgets", nargs="+", choices=BUDGETS, default=list(BUDGETS))
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    tables = []
    for budget in arguments.budgets:
        values = lessons.read_preset("laptop") | BUDGETS[budget] | {"seed": arguments.seed}
        values["patience"] = values["epochs"]
        run_dir = out / f"{budget}_seed_{arguments.seed}"
        canvas = {name: values[name] for name in CANVAS_KEYS}
        stages.ensure_verified(run_dir, **canvas, data=str(arguments.data.resolve()), seed=arguments.seed)
        trainer = training.Trainer(run_dir, training.Settings.of(values), resume=True)
        history = training.train(trainer)
        tables.append(history.assign(budget=budget, elapsed=history.seconds.cumsum()))
        for mark in MARKS:
            reached = tables[-1][tables[-1].valid_dice >= mark]
            when = f"after {reached.elapsed.iloc[0]:.0f} s" if len(reached) else "never"
            print(f"{budget}: validation Dice {mark} {when}", flush=True)
        network, state = training.load_network(run_dir / "checkpoint.pt")
        predict = evaluation.make_predictor(network, state["canvas"], region="ellipse", flip=values["flip"])
        scores = evaluation.score_pairs(predict, verification.usable_pairs(run_dir, "valid"))
        whole = tables[-1].elapsed.iloc[-1]
        print(f"{budget}: {whole:.0f} s, own size {scores.dice.mean():.4f}, worst {scores.dice.min():.3f}", flush=True)
    table = pd.concat(tables)[["budget", "epoch", "elapsed", "valid_dice"]]
    table.to_csv(out / "time_to_accuracy.csv", index=False)
    figure, axis = plotting.new_figure(height=3)
    for budget, part in table.groupby("budget", sort=False):
        axis.plot(part.elapsed, part.valid_dice, marker=".", label=f"budget {budget}: {len(part)} epochs")
    for mark in MARKS:
        axis.axhline(mark, color="black", linestyle="dotted", linewidth=1)
    axis.set(xlabel="seconds of training", ylabel="validation Dice", ylim=(0.85, 1), title="Real frames, two cores")
    axis.legend(fontsize=8, loc="lower right")
    plotting.save(figure, out / "time_to_accuracy.png")


if __name__ == "__main__":
    main()
