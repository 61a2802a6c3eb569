"""The command line. Each command imports what it needs, so that --help waits for no torch and works without OpenCV."""

import json
import math
import os
import signal
import sys
from concurrent.futures import BrokenExecutor
from contextlib import nullcontext, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import click
import joblib
import psutil
from tqdm import tqdm

OUT_OF_MEMORY = ["out of memory", "allocate memory", "insufficient memory", "start new thread", "create a primitive"]
OUT_OF_MEMORY += ["failed to map segment"]  # of a library
path = click.Path(path_type=Path)
of_notebooks = [  # what the commands `run` and `train` both take
    click.Option(["--data"], metavar="phantom|kaggle|hc18|DIR", help="Where the images are. Default: phantom."),
    click.Option(["--preset"], type=click.Choice(["quick", "laptop", "reference"]), help="Default: quick."),
    click.Option(["--run-dir"], type=path, metavar="DIR", help="The run folder. Default: one below runs/."),
    click.Option(["--examinations"], metavar="CSV|PATTERN", help="Which frames belong together. Default: by names."),
    click.Option(["-p", "parameters"], nargs=2, multiple=True, metavar="NAME VALUE", help="One or more parameters."),
]


def one_sentence(error):
    """What an error says that the user can mend; '' for another one."""
    text = str(error).strip() or type(error).__name__
    if isinstance(error, MemoryError | BrokenExecutor) or any(part in text.lower() for part in OUT_OF_MEMORY):
        return f"there is not enough memory ({text.splitlines()[0]}): lower batch_size or the size of the images."
    if isinstance(error, ImportError):
        return text if "pip install" in text else f"{text}: pip install -r requirements.txt"
    from fetalseg_helpers.workspace import FetalsegError  # not before: without OpenCV it cannot be imported

    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}."
    return text if isinstance(error, OSError | FetalsegError) else ""


def stop(*_):
    """Ctrl-C: end the kernels at once, before each of them complains, then this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            process.terminate()
    click.echo("stopped.", err=True)
    sys.exit(130)


@click.group(epilog="Any command takes --debug: a full traceback instead of one sentence.")
def cli():
    """From fetal ultrasound images to an honestly evaluated U-Net. For learning only, never for clinical use."""


@cli.command(params=list(of_notebooks))
@click.option("--html", is_flag=True, help="Leave each notebook as a page for any browser too, and index.html.")
def run(data, preset, run_dir, examinations, html, parameters):
    """Execute the six notebooks in a row."""
    from fetalseg_helpers import unet, workspace
    from fetalseg_helpers.running import lessons, report, stages

    preset = preset or "quick"
    values = lessons.read_preset("quick") | lessons.read_preset(preset)
    values |= lessons.parse_parameters(parameters, data=data, examinations=examinations)
    unet.check_divisible(values["height"], values["width"], values["depth"])
    data = values["data"]
    if "run_dir" in values and not run_dir:  # a notebook's parameter, so relative to the project
        run_dir = workspace.project_root() / Path(values["run_dir"]).expanduser()
    folder = lessons.choose_folder(run_dir, data, preset)
    where = workspace.shown(folder)
    if data != "phantom":
        stages.find_data(data, folder)
    click.echo(f"Six notebooks, data '{data}', preset '{preset}', run folder {where}.")
    lessons.run_lessons(folder, values, report=click.echo)
    click.echo(report.of_run(folder))
    metrics = workspace.read_json(folder / "metrics.json")
    for name in ("Dice", "IoU"):
        low, high = metrics[f"{name.lower()}_interval_95"]
        click.echo(f"{name} {metrics[f'mean_{name.lower()}']:.4f}, 95 % interval {low:.4f} to {high:.4f}")
    click.echo(f"mean of {metrics['images']} test images of {metrics['examinations']} examinations at their own size.")
    click.echo(f"{where} holds the executed notebooks (notebooks/), the scores (metrics.csv), the predicted masks")
    click.echo("(predictions/), the model card (model_card.md) and the trained network (checkpoint.pt).")
    if html:
        from fetalseg_helpers.running import pages

        click.echo(f"{workspace.shown(pages.write_pages(folder))} leads to all of it in a browser.")
    if data == "phantom":
        click.echo("These are phantoms: the score shows that everything works, it is no result.")
        click.echo("Next, real frames: python -m fetalseg_helpers fetch kaggle")
        click.echo("             then: python -m fetalseg_helpers run --data kaggle --preset laptop")


@cli.command()
@click.argument("folder", metavar="DIR", type=path)
@click.option("--count", default=160, show_default=True, help="Number of frames.")
@click.option("--seed", default=0, show_default=True)
def phantom(folder, count, seed):
    """Make a phantom data set, in the tree and naming of the Kaggle one."""
    from fetalseg_helpers.phantoms import dataset

    with tqdm(total=count, desc="phantoms", disable=None) as bar:
        dataset.write_phantoms(folder, count=count, seed=seed, progress=lambda done: bar.update(done - bar.n))
    click.echo(f"{count} phantom frames lie in {folder}.")


@cli.command()
@click.argument("name", type=click.Choice(["kaggle", "hc18"]))
@click.option("--to", "folder", type=path, help="Folder; data/NAME of the project by default.")
def fetch(name, folder):
    """Download a public data set and unpack it."""
    from fetalseg_helpers.beyond_dice.model_card import LICENCES
    from fetalseg_helpers.running import downloads

    folder = downloads.fetch(name, folder)
    place = f"{folder.readlink()} and is used from there, through the link {folder}" if folder.is_symlink() else folder
    click.echo(f"{name} lies in {place}. Credit it: {LICENCES[name]}")


@cli.command()
@click.argument("folder", metavar="DIR", type=path)
@click.option("--examinations", metavar="CSV|PATTERN", help="Which frames belong together. Default: by names.")
@click.option("--negatives", is_flag=True, help="Keep empty masks, as frames without a head.")
@click.option("--all", "every", is_flag=True, help="A line for each finding, not for each cause.")
@click.option("--json", "as_json", is_flag=True, help="Everything, for a machine.")
def verify(folder, examinations, negatives, every, as_json):
    """Check images, masks and pairs of a data set; exit 1 if there is a defect, 2 if the folder cannot be read."""
    from fetalseg_helpers import loading, verification
    from fetalseg_helpers.running import lessons, report

    if not (folder.is_dir() and os.access(folder, os.R_OK | os.X_OK)):
        click.echo(f"{folder} is not a folder that can be read: check the path.", err=True)
        sys.exit(2)
    pairs = loading.load_pairs(folder, **lessons.parse_parameters([], examinations=examinations))
    findings, measurements = verification.verify_pairs(pairs, negatives=negatives)
    if as_json:
        told = report.describe(pairs, findings, measurements) | {"causes": report.causes(findings).to_dict("records")}
        click.echo(json.dumps(told | {"findings": findings.to_dict("records")}, indent=2))
    else:
        click.echo("\n".join(report.lines(pairs, findings, measurements, every)))
    sys.exit(0 if findings.severity.eq("note").all() else 1)


@cli.command(params=list(of_notebooks))
@click.option("--resume", is_flag=True, help="Go on where the training in the run folder stopped.")
@click.option("--start", metavar="FILE|pretrained", help="A checkpoint to fine-tune, or the network that ships.")
def train(data, preset, run_dir, examinations, resume, start, parameters):
    """Train without notebooks, a line per epoch. A run folder keeps the data that it was made from."""
    from fetalseg_helpers import training, unet
    from fetalseg_helpers.running import lessons, processes
    from fetalseg_helpers.workspace import FetalsegError, read_json

    given = lessons.parse_parameters(parameters, data=data, examinations=examinations, start=start)
    for name in ("run_dir", "resume"):
        if name in given:
            raise FetalsegError(f"training takes no parameter {name}: give --{name.replace('_', '-')}.")
    folder = lessons.choose_folder(run_dir, given.get("data", "phantom"), preset or "quick")
    values = lessons.read_preset("quick") | lessons.read_preset(preset or "quick")
    values |= read_json(folder / "data.json")
    start = given.get("start", "scratch")
    if start not in ("scratch", "pretrained"):
        given["start"] = str(Path(start).expanduser().absolute())
    if start != "scratch" and not resume:
        first = training.load_checkpoint(given["start"])
        values |= {name: first["settings"][name] for name in training.ARCHITECTURE}
        values |= first["canvas"] if not preset else {}
    if not preset:
        values |= read_json(folder / "prepared" / "settings.json")
    if resume:
        last = training.load_checkpoint(folder / "last.pt")
        last = last["settings"] | last["canvas"]
        for name, value in given.items():
            if value != last.get(name, value):
                raise FetalsegError(f"the stopped training has {name} {last[name]}: leave {name} out to resume it.")
        values |= last
    values |= given
    unet.check_divisible(values["height"], values["width"], values["depth"])
    processes.train(folder, values, click.echo, resume)


@cli.command()
@click.argument("grid", type=path)
@click.option("--jobs", default=1, show_default=True, help="How many run at the same time; 0: one per core.")
@click.option("--out", type=path, metavar="DIR", help="Folder of all runs; runs/<name of the grid> by default.")
@click.option("--dask", metavar="ADDRESS", help="Scheduler of a Dask cluster that does the work, on all its threads.")
def sweep(grid, jobs, out, dask):
    """Train and evaluate (notebooks 05 and 06) for every combination of a grid, and compare them.

    GRID is a YAML file: a value, or a list of values, for each parameter. Run again, it keeps what is complete.
    """
    from fetalseg_helpers.running import sweep
    from fetalseg_helpers.workspace import FetalsegError, project_root, shown

    if dask and find_spec("distributed") is None:
        raise FetalsegError("--dask needs Dask: pip install 'dask[distributed]'.")
    folder = out.expanduser().resolve() if out else project_root() / "runs" / grid.stem
    with joblib.parallel_config("dask", scheduler_host=dask) if dask else nullcontext():
        table = sweep.sweep(grid, folder, jobs or -1, report=click.echo)
    click.echo(table.drop(columns="problem").to_string(index=False, float_format="{:.4g}".format))
    failed = int((table.problem != "").sum())
    click.echo(f"{len(table) - failed} of {len(table)} runs complete: see sweep.csv and sweep.png in {shown(folder)}")
    sys.exit(1 if failed else 0)


@cli.command()
@click.argument("images", type=path)
@click.option("--checkpoint", type=path, metavar="FILE", help="By default the network that ships, trained on phantoms.")
@click.option("--out", required=True, type=path, metavar="DIR")
@click.option("--overlay", is_flag=True, help="Also write each image with the outline of its mask.")
@click.option("--csv", "as_csv", is_flag=True, help="Also write predictions.csv: the ellipse and the doubt of each.")
@click.option("--pixel-size-csv", type=path, metavar="FILE", help="Also write predictions.csv, with mm.")
@click.option("--threshold", type=click.FloatRange(0.01, 0.99), help="The least probability that counts as tumor.")
@click.option("--region", type=click.Choice(["every", "largest", "filled", "ellipse"]), help="What of a mask is kept.")
@click.option("--flip/--no-flip", default=None, help="Average over the image and its mirror; twice the time.")
def predict(images, checkpoint, out, overlay, as_csv, pixel_size_csv, **given):
    """Predict a mask for an image or every image of a folder.

    Maps are cut at 0.5. The network that ships averages over the mirror image, and one ellipse is kept; of a
    checkpoint, the largest region, or what the evaluation of its run chose. What is given here goes first.
    """
    from fetalseg_helpers import evaluation, training
    from fetalseg_helpers.beyond_dice import circumference
    from fetalseg_helpers.running import predictions
    from fetalseg_helpers.workspace import write_table

    sizes = circumference.read_pixel_sizes(pixel_size_csv) if pixel_size_csv else None
    checkpoint = checkpoint or training.PRETRAINED
    network, state = training.load_network(checkpoint)
    cut = predictions.frozen_cut(checkpoint, state) | {key: value for key, value in given.items() if value is not None}
    make_map = partial(evaluation.predict_image, network, canvas=state["canvas"], flip=cut["flip"])
    make_mask = partial(evaluation.cut, threshold=cut["threshold"], region=cut["region"])
    table, problems, passed = predictions.predict_folder(make_map, images, out, make_mask, overlay)
    if sizes is not None:
        table["circumference_mm"] = table.circumference_px * table.image_id.map(sizes.pixel_mm)
        if unknown := int((~table.image_id.isin(sizes.index)).sum()):
            passed.append(f"{unknown} images have no pixel size in {pixel_size_csv}.")
    if as_csv or sizes is not None:
        write_table(out / "predictions.csv", table)
    for problem in problems:
        click.echo(problem, err=True)
    click.echo(f"cut at {cut['threshold']:.2f}, region '{cut['region']}', flip {cut['flip']}.")
    click.echo("\n".join([*passed, *predictions.describe(table), f"{len(table)} predictions lie in {out}."]))
    sys.exit(1 if problems else 0)


@cli.command()
@click.argument("predictions", type=path)
@click.option("--masks", required=True, type=path, metavar="DIR", help="Outlines, or masks.")
@click.option("--pixel-size-csv", type=path, metavar="FILE", help="Adds the scores in mm.")
@click.option("--tolerance", default=5.0, show_default=True, type=click.FloatRange(0), help="Of surface Dice, in px.")
@click.option("--out", required=True, type=path, metavar="DIR")
def evaluate(predictions, masks, pixel_size_csv, tolerance, out):
    """Score a folder of predicted masks, whoever made them; exit 1 if a mask has no usable prediction.

    Files belong together by name: 12_HC.png or 12_HC_pred.png is a prediction for 12_HC_Annotation.png. Those that are
    missing, extra, misshapen or unreadable are listed, on the screen and in problems.csv.
    """
    from fetalseg_helpers.beyond_dice import circumference, folders

    if not math.isfinite(tolerance):
        raise click.UsageError(f"--tolerance {tolerance} is no distance: give a number of px.")
    sizes = circumference.read_pixel_sizes(pixel_size_csv) if pixel_size_csv else None
    scores, problems = folders.score_folder(predictions, masks, sizes, tolerance)
    summary = folders.write_scores(out, scores, problems, tolerance)
    click.echo("\n".join(folders.report(scores, problems, summary)))
    click.echo(f"{len(scores)} of {summary['masks']} masks scored; every score: {out}/metrics.csv")
    sys.exit(1 if summary["unscored"] else 0)


def main():
    """Run the command line; what the user can mend is one sentence on stderr and exit code 1."""
    for stream in (sys.stdout, sys.stderr):  # a Windows console may not know '×'
        stream.reconfigure(errors="replace")
    signal.signal(signal.SIGINT, stop)
    try:
        cli([argument for argument in sys.argv[1:] if argument != "--debug"], prog_name="python -m fetalseg_helpers")
    except Exception as error:
        sentence = one_sentence(error)
        if not sentence or "--debug" in sys.argv:
            raise
        sys.exit(sentence)


if __name__ == "__main__":
    main()
