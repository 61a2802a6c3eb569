"""Notebooks 05 and 06 for every combination of a grid, side by side, and a table of what came out."""

from itertools import product
from pathlib import Path

import joblib
import pandas as pd
import yaml

from fetalseg_helpers import notebooks, sources
from fetalseg_helpers.workspace import (
    FetalsegError,
    check_parameters,
    read_json,
    run_folder,
    write_json,
    write_table,
)

LESSONS = ("05_training.ipynb", "06_evaluation.ipynb")
RESULTS = ("metrics.json", "history.csv", "last.pt", "checkpoint.pt", f"notebooks/{LESSONS[-1]}")
SCORES = ("mean_dice", "mean_iou", "worst_dice", "images")


def read_grid(path):
    """Values of a grid: for each parameter one value, or a list of values to try.

    Parameters
    ----------
    path : str or Path
        A YAML file such as `learning_rate: [0.001, 0.004]`; what it does not name is taken from the preset that it
        may name under `preset`, or from `quick`.

    Returns
    -------
    list of dict, list of str
        All parameters of each combination, and the names of those that vary.

    Raises
    ------
    FetalsegError
        If the file cannot be read, names something that no notebook knows, or a value does not fit.
    """
    try:
        grid = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise FetalsegError(f"{path} cannot be read as YAML ({str(error).splitlines()[0]}).") from error
    if not isinstance(grid, dict) or not grid:
        raise FetalsegError(f"{path} holds no parameters: write lines such as 'learning_rate: [0.001, 0.004]'.")
    base = notebooks.read_preset("quick") | notebooks.read_preset(str(grid.pop("preset", "quick")))
    lists = {name: value if isinstance(value, list) else [value] for name, value in grid.items()}
    known = {name for path in lessons() for name in notebooks.read_parameters(path)} - {"run_dir", "resume"}
    for name, values in lists.items():
        if name not in known:
            raise FetalsegError(f"{path}: '{name}' is not a parameter that can be varied.")
        if not values:
            raise FetalsegError(f"{path}: {name} has no value.")
        for value in values:
            check_parameters(**{name: value})
    combinations = [base | dict(zip(lists, values, strict=True)) for values in product(*lists.values())]
    return combinations, [name for name, values in lists.items() if len(values) > 1]


def lessons():
    """Paths of the two notebooks."""
    return [path for path in notebooks.lessons() if path.name in LESSONS]


def run_name(values, varied):
    """Name of a combination's folder, such as `learning_rate=0.001,seed=2`."""
    return ",".join(f"{name}={Path(str(values[name])).name}" for name in varied) or "only"


def run_combination(folder, values):
    """Train and evaluate in a folder of its own, in processes of its own: each notebook has its kernel.

    What is complete is left alone; what was stopped goes on where it was.

    Returns
    -------
    (str, str)
        The folder's name, and a sentence if it failed, '' if all went well.
    """
    folder = Path(folder)
    try:
        same = read_json(run_folder(folder) / "values.json") == values
        if same and (folder / "notebooks" / LESSONS[-1]).exists():
            return folder.name, ""
        for old in () if same else RESULTS:  # of other values
            (folder / old).unlink(missing_ok=True)
        write_json(folder / "values.json", values)
        for path in lessons():
            notebooks.run_lesson(path, folder, values | {"resume": same})
    except FetalsegError as error:
        return folder.name, str(error)
    except Exception as error:  # of a kernel or of papermill: the other combinations go on
        return folder.name, f"{type(error).__name__}: {error}"
    return folder.name, ""


def sweep(grid, folder, jobs=1, report=print):
    """Run every combination of a grid and write `sweep.csv`.

    Parameters
    ----------
    grid : str or Path
        As `read_grid`.
    folder : str or Path
        Each combination gets a folder below it.
    jobs : int
        How many run at the same time, under joblib's current backend: processes of this machine, or, inside
        `joblib.parallel_config(backend="dask")`, those of a cluster, which then decides itself how many.
    report : callable
        Told a line after each combination.

    Returns
    -------
    table : pandas.DataFrame
        A row per combination: its folder's name, what varies, the scores on the test images, the seconds of
        training, and under `problem` why it failed.
    varied : list of str
        The columns that vary.
    """
    combinations, varied = read_grid(grid)
    folder = run_folder(folder)
    names = [run_name(values, varied) for values in combinations]
    if len(set(names)) < len(names):
        raise FetalsegError(f"{grid}: two combinations would share the folder {max(names, key=names.count)}.")
    for values in combinations:  # once, not in each process
        if values["data"] == "phantom":
            sources.make_phantoms(folder, values["phantoms"])
        else:
            sources.find_data(values["data"], folder)
    tasks = [
        joblib.delayed(run_combination)(folder / name, values) for name, values in zip(names, combinations, strict=True)
    ]
    problems = {}
    run = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1)  # a line as soon as one is done
    for name, problem in run(tasks):
        problems[name] = problem
        report(f"{len(problems)}/{len(tasks)} {name}: {problem or 'done'}")
    rows = [
        {"run": name} | {key: values[key] for key in varied} | scores(folder / name) | {"problem": problems[name]}
        for name, values in zip(names, combinations, strict=True)
    ]
    table = pd.DataFrame(rows)
    write_table(folder / "sweep.csv", table)
    return table, varied


def scores(folder):
    """What a table of results says of a run folder; nothing of one that has no scores."""
    metrics = read_json(folder / "metrics.json")
    if not metrics:
        return {}
    history = pd.read_csv(folder / "history.csv")
    found = {name: metrics[name] for name in SCORES} | dict(
        zip(("dice_low", "dice_high"), metrics["dice_interval_95"], strict=True)
    )
    return found | {"valid_dice": history.valid_dice.max(), "seconds": history.seconds.sum()}
