"""The leaderboard of the capstone: every hand-in predicts a hidden phantom set, and a table says who found heads best.

    python notebooks/exercises/leaderboard.py HAND_INS --seed SEED [--count 60] [--out leaderboard.csv]

HAND_INS has a folder for each student with a run's `checkpoint.pt` in it, and `metrics.json` if the threshold that was
chosen on validation images shall count. The hidden set is made once, without planted defects, from a seed that only the
teacher knows, in `hidden_SEED_COUNT` beside HAND_INS. `predict` and `evaluate` of the command line do the work, for
each hand-in in a process of its own: one that fails, or takes longer than `--minutes`, has no score and says why.
"""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import pandas as pd

from fetalseg_helpers import training
from fetalseg_helpers.phantoms import dataset
from fetalseg_helpers.workspace import FetalsegError, read_json

BUDGET = 1450  # steps of at most 8 images: 35 epochs of 400 phantoms' training images, however the seed splits them
LARGEST = 8_000_000  # parameters
COLUMNS = ["student", "mean_dice", "low", "high", "mean_iou", "images", "steps", "parameters", "problem"]


def command(*arguments, minutes):
    """Run a command of the course; a FetalsegError has its last line on stderr."""
    process = [sys.executable, "-m", "fetalseg_helpers", *map(str, arguments)]
    try:
        done = subprocess.run(process, capture_output=True, encoding="utf-8", timeout=60 * minutes, check=False)
    except subprocess.TimeoutExpired as error:
        raise FetalsegError(f"{arguments[0]} took longer than {minutes:g} minutes.") from error
    if done.returncode:
        raise FetalsegError((done.stderr.strip().splitlines() or [f"{arguments[0]} failed"])[-1])


def training_of(path):
    """Steps and parameters of a checkpoint's training; a FetalsegError if it broke the rules."""
    state = training.load_checkpoint(path)
    settings, images = state["settings"], state.get("images")
    if not images or "epochs" not in settings:
        raise FetalsegError("the checkpoint does not say how it was trained: hand in checkpoint.pt of a run folder.")
    batches = -(-len(images[0]) // settings["batch_size"])
    steps = settings["epochs"] * batches
    if settings.get("start", "scratch") != "scratch":
        raise FetalsegError("it began with trained weights; the rules say from scratch.")
    if steps > BUDGET or settings["batch_size"] > 8:
        raise FetalsegError(f"{steps} steps of {settings['batch_size']} images; allowed are {BUDGET} of at most 8.")
    parameters = sum(weight.numel() for weight in state["network"].values())
    if parameters > LARGEST:
        raise FetalsegError(f"{parameters:,} parameters; allowed are {LARGEST:,}.")
    return {"steps": steps, "parameters": parameters}


def score(folder, hidden, minutes):
    """The row of one student."""
    row = {"student": folder.name}
    try:
        row |= training_of(folder / "checkpoint.pt")
        with TemporaryDirectory() as scratch:
            masks, scores = Path(scratch, "masks"), Path(scratch, "scores")
            command("predict", hidden, "--out", masks, "--checkpoint", folder / "checkpoint.pt", minutes=minutes)
            command("evaluate", masks, "--masks", hidden, "--out", scores, minutes=minutes)
            found = read_json(scores / "metrics.json")
        low, high = found["dice_interval_95"]
        return row | {name: found[name] for name in ("mean_dice", "mean_iou", "images")} | {"low": low, "high": high}
    except FetalsegError as error:
        return row | {"problem": str(error)}


@click.command()
@click.argument("hand_ins", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--seed", type=int, required=True, help="Of the hidden set; the students' phantoms have seed 0.")
@click.option("--count", default=60, show_default=True, help="Hidden phantoms.")
@click.option("--out", type=click.Path(path_type=Path), help="leaderboard.csv beside HAND_INS by default.")
@click.option("--minutes", default=5.0, show_default=True, help="After which predicting is given up.")
def main(hand_ins, seed, count, out, minutes):
    """Score every hand-in on hidden phantoms, and write the leaderboard."""
    hand_ins = hand_ins.resolve()
    hidden = hand_ins.parent / f"hidden_{seed}_{count}"
    out = out or hand_ins.parent / "leaderboard.csv"
    try:
        if not hidden.exists():
            dataset.write_phantoms(hidden, count, seed, defects=False)
    except FetalsegError as error:
        raise click.ClickException(str(error)) from error
    students = sorted(path for path in hand_ins.iterdir() if path.is_dir())
    table = pd.DataFrame([score(folder, hidden, minutes) for folder in students], columns=COLUMNS)
    table = table.sort_values("mean_dice", ascending=False, na_position="last")
    table = table.astype({name: "Int64" for name in ("images", "steps", "parameters")})
    table.to_csv(out, index=False)
    scored = table[table.mean_dice.notna()].drop(columns="problem")
    click.echo(scored.to_string(index=False, float_format="{:.4f}".format) if len(scored) else "Nobody has a score.")
    for student, problem in table.loc[table.mean_dice.isna(), ["student", "problem"]].itertuples(index=False):
        click.echo(f"{student}, no score: {problem}")
    click.echo(f"Written: {out}. The hidden phantoms are in {hidden}.")


if __name__ == "__main__":
    main()
