"""Notebooks 05 and 06 for every combination of a grid, side by side; a table and a figure of what came out."""

import os
from itertools import product
from pathlib import Path

import joblib
import pandas as pd
import yaml

from fetalseg_helpers import loading, plotting, preprocessing, training, verification
from fetalseg_helpers.running import lessons, stages
from fetalseg_helpers.running.checks import check_parameters
from fetalseg_helpers.workspace import FetalsegError, locked, read_json, remove, run_folder, write_json, write_table

LESSONS = ("05_training.ipynb", "06_evaluation.ipynb")
RESULTS = ("last.pt", "checkpoint.pt", "history.csv", "notebooks/05_training.ipynb", *training.RESULTS)


def read_grid(path):
    """All parameters of each combination of a grid, by the name of its folder, and the names of those that vary.

    The grid is a YAML file with a value or a list of values for each parameter, as `learning_rate: [0.001, 0.004]`; the
    rest is taken from its `preset`, or from `quick`. A FetalsegError says why a file cannot be used.
    """
    try:
        grid = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise FetalsegError(f"{path} cannot be read as YAML ({str(error).splitlines()[0]}).") from error
    if not isinstance(grid, dict) or not grid:
        raise FetalsegError(f"{path} holds no parameters: write lines such as 'learning_rate: [0.001, 0.004]'.")
    base = lessons.read_preset("quick") | lessons.read_preset(str(grid.pop("preset", "quick")))
    both = [lesson for lesson in lessons.lessons() if lesson.name in LESSONS]
    known = {"examinations", "negatives"}.union(*map(lessons.read_parameters, both)) - {"run_dir", "resume"}
    lists = {name: value if isinstance(value, list) else [value] for name, value in grid.items()}
    for name, values in lists.items():
        if name not in known:
            raise FetalsegError(f"{path}: '{name}' is not a parameter that can be varied.")
        if not values:
            raise FetalsegError(f"{path}: {name} has no value.")
        for value in values:
            check_parameters(**{name: value})
    varied = [name for name, values in lists.items() if len(values) > 1]
    combinations = {}
    for chosen in product(*lists.values()):
        values = base | dict(zip(lists, chosen, strict=True))
        name = ",".join(f"{key}={Path(str(values[key])).name}" for key in varied) or "only"
        if name in combinations:
            raise FetalsegError(f"{path}: two combinations would share the folder {name}.")
        combinations[name] = values
    return combinations, varied


def run_combination(folder, values):
    """Train and evaluate in a folder of its own; returns the folder's name, and a sentence if that failed, or ''.

    What is complete is left alone, what was stopped goes on, and what other values or other files made is made anew.
    """
    try:
        with locked(folder):
            root = stages.find_data(values["data"], folder, values["phantoms"])
            asked = {name: values[name] for name in stages.OF_DATA if name in values}
            loading.write_manifest(folder, root=root, **asked)
            made = {"values": values, "files": read_json(folder / "data.json")["files"]}
            same = read_json(folder / "values.json") == made
            if not same:
                for name in ("values.json", *RESULTS):
                    remove(folder / name)
                preprocessing.prepare(folder, values["width"], values["height"], values["fit"])
                verification.write_verification(folder)
                write_json(folder / "values.json", made)  # last, it vouches for the rest
            if not (same and (folder / "notebooks" / LESSONS[-1]).exists()):
                for path in lessons.lessons():
                    if path.name in LESSONS:
                        lessons.run_lesson(path, folder, values | {"resume": same})
    except Exception as error:  # of a kernel or of papermill, too: the other combinations go on
        return folder.name, str(error) if isinstance(error, FetalsegError) else f"{type(error).__name__}: {error}"
    return folder.name, ""


def sweep(grid, folder, jobs=1, report=print):
    """Run every combination of a grid, `jobs` at the same time; write `sweep.csv` and, if any has scores, `sweep.png`.

    In processes of this machine or, inside `joblib.parallel_config("dask")`, of a cluster. Returns a row for each: what
    varies, scores on test images, seconds of training, and under `problem` why it failed; `report` is told a line.
    """
    combinations, varied = read_grid(grid)
    home = run_folder(folder)
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")  # what it says when a sweep is stopped
    with lessons.cleared(home):
        for values in combinations.values():  # once, not in each process
            if values["data"] == "phantom":
                stages.make_phantoms(home, values["phantoms"])
            else:
                stages.find_data(values["data"], home)
        tasks = [joblib.delayed(run_combination)(home / name, values) for name, values in combinations.items()]
        rows = dict.fromkeys(combinations)  # in this order, whichever ends first
        run = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1)  # a line as soon as one ends
        for done, (name, problem) in enumerate(run(tasks), start=1):
            report(f"{done}/{len(tasks)} {name}: {problem or 'done'}")
            row = {"run": name} | {key: combinations[name][key] for key in varied}
            if metrics := read_json(home / name / "metrics.json"):
                row |= {key: metrics[key] for key in ("mean_dice", "mean_iou", "worst_dice", "images")}
                row["dice_low"], row["dice_high"] = metrics["dice_interval_95"]
                history = pd.read_csv(home / name / "history.csv")
                row |= {"valid_dice": history.valid_dice.max(), "seconds": history.seconds.sum()}
            rows[name] = row | {"problem": problem}
        table = pd.DataFrame(list(rows.values()))
        write_table(home / "sweep.csv", table)
        if "valid_dice" in table:
            plotting.save(show_sweep(table, varied), home / "sweep.png")
    return table


def show_sweep(table, varied):
    """Best validation Dice of the runs of a sweep, best on top: a dot per seed and a line at their mean.

    A setting that is chosen by its test scores would have been trained on the test images. Runs that differ in nothing
    but `seed` share a line; of many lines the best twenty are drawn.
    """
    table = table.dropna(subset="valid_dice")
    names = [name for name in varied if name != "seed"]
    labels = table[names].astype(str).agg(", ".join, axis=1) if names else table.run.map(lambda _: "all seeds")
    means = table.valid_dice.groupby(labels).mean().sort_values()[-20:]
    dots = table.valid_dice[labels.isin(means.index)]
    figure, axis = plotting.new_figure(height=1.2 + 0.25 * len(means))
    axis.plot(means, means.index, "|", color="black", markersize=14, label="mean")
    axis.plot(dots, labels[dots.index], "o", color=plotting.ACCENT, markersize=4, label="one run")
    axis.tick_params(axis="y", labelsize=7)
    axis.set(xlabel="best validation Dice", ylabel=", ".join(names), title=f"{len(table)} runs, best on top")
    axis.legend(fontsize=8, loc="lower right")
    return figure
