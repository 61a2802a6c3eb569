"""The command line: python -m fetalseg_helpers --help."""

import math
import os
import signal
import sys
from concurrent.futures import BrokenExecutor
from contextlib import nullcontext, suppress
from importlib import import_module
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import click
import psutil

DATA_KEYS = ("data", "seed", "phantoms", "split_by")  # what decides the manifest
OUT_OF_MEMORY = ("out of memory", "allocate memory", "insufficient memory", "start new thread", "create a primitive")
path = click.Path(path_type=Path)
parameter_option = click.option(
    "-p", "parameters", nargs=2, multiple=True, metavar="NAME VALUE", help="A parameter of a notebook; may be repeated."
)
preset_option = click.option("--preset", type=click.Choice(["quick", "laptop", "reference"]), help="Default: quick.")
data_option = click.option("--data", metavar="phantom|kaggle|hc18|DIR", help="Where the images are. Default: phantom.")
run_dir_option = click.option("--run-dir", type=path, metavar="DIR", help="The run folder. Default: one below runs/.")


def one_sentence(error):
    """What an error says that the user can mend; '' for another one."""
    text = str(error).strip() or type(error).__name__
    if isinstance(error, ImportError):
        return text if "pip install" in text else f"{text}: pip install -r requirements.txt"
    if isinstance(error, load("workspace")[0].FetalsegError):
        return text
    if isinstance(error, MemoryError | BrokenExecutor) or any(part in text.lower() for part in OUT_OF_MEMORY):
        return f"there is not enough memory ({text.splitlines()[0]}): lower batch_size or the size of the images."
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}." if error.filename else text
    return ""


def load(*names):
    """Modules of the package, only now: `--help` does not wait for them and works where one cannot be imported."""
    names = ("workspace", *names)  # first, since it says what to do where OpenCV is missing
    return [import_module(f"fetalseg_helpers.{name}") for name in names]


def stop(*_):
    """Ctrl-C: end the kernels and drawing processes at once, before each of them complains, then this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            process.terminate()
    click.echo("stopped.", err=True)
    sys.exit(130)


@click.group(epilog="Any command takes --debug: a full traceback instead of one sentence.")
def cli():
    """From fetal ultrasound images to an honestly evaluated U-Net. For learning only, never for clinical use."""


def named(data):
    """A folder given on the command line as an absolute path, so that every notebook finds it; a name as it is."""
    return data if data in ("phantom", "kaggle", "hc18") else str(Path(data).expanduser().resolve())


def choose_folder(run_dir, data, preset):
    """The run folder, not made yet: as given, or one below `runs/` in which no other data than this lies."""
    workspace, loading = load("loading")
    if run_dir:
        return run_dir.expanduser().resolve()
    runs = workspace.project_root() / "runs"
    if data == "phantom":
        return runs / preset
    root = workspace.shown(loading.data_folder(data) if data in loading.DOWNLOADED else data)
    for number in count(1):
        folder = runs / f"{Path(data).name}-{preset}{f'-{number}' if number > 1 else ''}"
        if workspace.read_json(folder / "data.json").get("root", root) == root:
            return folder


@cli.command()
@data_option
@preset_option
@run_dir_option
@parameter_option
def run(data, preset, run_dir, parameters):
    """Execute the six notebooks in a row."""
    workspace, loading, unet, lessons = load("loading", "unet", "running.lessons")
    preset = preset or "quick"
    values = lessons.read_preset(preset) | lessons.parse_parameters(parameters)
    unet.check_divisible(values["height"], values["width"], values["depth"])
    data = values["data"] = named(data or values.get("data", "phantom"))
    if "run_dir" in values and not run_dir:  # a notebook's parameter, so relative to the project
        run_dir = workspace.project_root() / Path(values["run_dir"]).expanduser()
    folder = choose_folder(run_dir, data, preset)
    if data != "phantom":
        loading.find_data(data, folder)
    click.echo(f"Six notebooks, data '{data}', preset '{preset}', run folder {workspace.shown(folder)}.")
    lessons.run_lessons(folder, values, report=click.echo)
    click.echo(closing_summary(folder))


def closing_summary(folder):
    """The scores of a run and where everything lies, in a few lines."""
    (workspace,) = load()
    metrics = workspace.read_json(folder / "metrics.json")
    (low, high), (iou_low, iou_high) = metrics["dice_interval_95"], metrics["iou_interval_95"]
    lines = [
        f"Dice {metrics['mean_dice']:.4f} (95 % interval {low:.4f} to {high:.4f}), "
        f"IoU {metrics['mean_iou']:.4f} ({iou_low:.4f} to {iou_high:.4f}),",
        f"mean of {metrics['images']} test images of {metrics['examinations']} examinations at their own size.",
    ]
    if metrics["data"] == "phantom":
        lines.append("These are phantoms: the score shows that everything works, it is no result.")
    places = {"executed notebooks": "notebooks", "scores": "metrics.csv", "predicted masks": "predictions"}
    places |= {"model card": "model_card.md", "trained network": "checkpoint.pt"}
    return "\n".join(lines + [f"{what:<20}{workspace.shown(folder / where)}" for what, where in places.items()])


@cli.command()
@click.argument("folder", metavar="DIR", type=path)
@click.option("--count", default=160, show_default=True, help="Number of frames.")
@click.option("--seed", default=0, show_default=True)
def phantom(folder, count, seed):
    """Make a phantom data set, in the tree and naming of the Kaggle one."""
    from tqdm import tqdm

    workspace, dataset = load("phantoms.dataset")
    with tqdm(total=count, desc="phantoms", disable=None) as bar:
        dataset.write_phantoms(folder, count=count, seed=seed, progress=lambda done: bar.update(done - bar.n))
    click.echo(f"{count} phantom frames lie in {workspace.shown(folder)}.")


@cli.command()
@click.argument("name", type=click.Choice(["kaggle", "hc18"]))
@click.option("--to", "folder", type=path, help="Folder; data/NAME of the project by default.")
def fetch(name, folder):
    """Download a public data set and unpack it."""
    workspace, loading, downloads = load("loading", "running.downloads")
    folder = downloads.fetch(name, folder)
    click.echo(f"{name} lies in {workspace.shown(folder)}. Credit it: {loading.LICENCES[name]}")


@cli.command()
@click.argument("folder", metavar="DIR", type=path)
def verify(folder):
    """Check images, outlines and pairs of a data set; exit 1 if there is a defect."""
    _, loading, verification = load("loading", "verification")
    pairs = loading.load_pairs(folder)
    findings, measurements = verification.verify_pairs(pairs)
    for finding in findings.itertuples():
        click.echo(f"{finding.severity:<8}{finding.check:<22}{finding.image_id}: {finding.detail}")
    defects = int((findings.severity != "note").sum())
    notes = len(findings) - defects
    click.echo(f"{len(pairs)} names, {len(measurements)} usable pairs, {defects} defects, {notes} notes.")
    sys.exit(1 if defects else 0)


@cli.command()
@data_option
@preset_option
@run_dir_option
@click.option("--resume", is_flag=True, help="Go on where the training in the run folder stopped.")
@click.option("--start", type=path, metavar="FILE", help="A checkpoint to fine-tune.")
@parameter_option
def train(data, preset, run_dir, resume, start, parameters):
    """Train without notebooks, a line per epoch. A run folder keeps the data that it was made from."""
    workspace, unet, lessons = load("unet", "running.lessons")
    given = lessons.parse_parameters(parameters)
    for name in ("run_dir", "resume"):
        if name in given:
            raise workspace.FetalsegError(f"training takes no parameter {name}: give --{name.replace('_', '-')}.")
    if data or "data" in given:
        given["data"] = named(data or given["data"])
    folder = choose_folder(run_dir, given.get("data", "phantom"), preset or "quick")
    values = {"data": "phantom"} | lessons.read_preset(preset or "quick")
    made = workspace.read_json(folder / "data.json")
    if not preset:
        made |= workspace.read_json(folder / "prepared" / "settings.json")
    values.update({name: made[name] for name in (*DATA_KEYS, *workspace.CANVAS_KEYS) if name in made})
    if resume:
        values.update(stopped_values(folder, given))
    values.update(given)
    unet.check_divisible(values["height"], values["width"], values["depth"])
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _, processes = load("running.processes")
        with processes.joined():
            train_in(folder, values, resume, start, processes)
    else:
        train_in(folder, values, resume, start)


def stopped_values(folder, given):
    """Settings and size of the training that was stopped in a run folder; what is given must not differ from them."""
    workspace, training = load("training")
    state = training.load_checkpoint(folder / "last.pt")
    kept = state["settings"] | state["canvas"]
    for name in kept.keys() & given.keys():
        if given[name] != kept[name]:
            was = f"{name} {kept[name]}"
            raise workspace.FetalsegError(f"the stopped training has {was}: leave {name} out to resume it.")
    return kept


def train_in(folder, values, resume, start, processes=None):
    """Train in a run folder, in one process or, with the module `processes`, in all that torchrun has started."""
    workspace, training, verification = load("training", "verification")
    with processes.first_alone() if processes else nullcontext():
        verification.ensure_verified(folder, **{name: values[name] for name in (*DATA_KEYS, *workspace.CANVAS_KEYS)})
    make_trainer = processes.DistributedTrainer if processes else training.Trainer
    report = click.echo if processes is None or processes.is_first() else lambda line: None
    trainer = make_trainer(folder, training.Settings.of(values), resume=resume, start=start)
    if trainer.history:
        last = workspace.shown(folder / "last.pt")
        report(f"{last}: going on after epoch {len(trainer.history)} of {values['epochs']}.")
    best = training.train(trainer, report).valid_dice.max()
    report(f"best validation Dice {best:.4f}, kept in {workspace.shown(folder / 'checkpoint.pt')}.")


@cli.command()
@click.argument("grid", type=path)
@click.option("--jobs", default=1, show_default=True, help="How many run at the same time; -1: one per core.")
@click.option("--out", type=path, metavar="DIR", help="Folder of all runs; runs/<name of the grid> by default.")
@click.option("--dask", metavar="ADDRESS", help="Scheduler of a Dask cluster that does the work, on all its threads.")
def sweep(grid, jobs, out, dask):
    """Train and evaluate (notebooks 05 and 06) for every combination of a grid, and compare them.

    GRID is a YAML file: a value, or a list of values to try, for each parameter. Run it again after a stop: what is
    complete is kept, the rest goes on.
    """
    import joblib

    workspace, plotting, sweep = load("plotting", "running.sweep")
    if jobs == 0:
        raise click.UsageError("--jobs 0 would run nothing: give 1 or more, or -1 for one per core.")
    folder = out.expanduser().resolve() if out else workspace.project_root() / "runs" / grid.stem
    if dask:
        if find_spec("distributed") is None:
            raise workspace.FetalsegError("--dask needs Dask: pip install 'dask[distributed]'.")
        import_module("distributed").Client(dask)  # becomes the client that joblib's backend finds
    with joblib.parallel_config(backend="dask" if dask else "loky"):
        table, varied = sweep.sweep(grid, folder, jobs, report=click.echo)
    failed = int((table.problem != "").sum())
    if failed < len(table):
        plotting.save(sweep.show_sweep(table, varied), folder / "sweep.png")
        shortened = dict.fromkeys(table.columns.drop(varied), 4)
        click.echo(table.drop(columns="problem").round(shortened).to_string(index=False))
    where = workspace.shown(folder)
    click.echo(f"{len(table) - failed} of {len(table)} runs complete; table and figure: {where}/sweep.csv, .png")
    sys.exit(1 if failed else 0)


@cli.command()
@click.argument("images", type=path)
@click.option("--checkpoint", required=True, type=path, metavar="FILE")
@click.option("--out", required=True, type=path, metavar="DIR")
@click.option("--threshold", type=click.FloatRange(0.01, 0.99), help="The least probability that counts as tumor.")
@click.option("--region", type=click.Choice(["every", "largest", "filled", "ellipse"]), help="What of a mask is kept.")
@click.option("--flip/--no-flip", default=None, help="Average over the image and its mirror; twice the time.")
def predict(images, checkpoint, out, **given):
    """Predict a mask for an image or every image of a folder.

    Maps are cut as the evaluation of the run chose it on validation images, if it lies beside the checkpoint; else at
    0.5, the largest region is kept, and nothing is mirrored. What is given here goes first.
    """
    workspace, evaluation, training, predictions = load("evaluation", "training", "running.predictions")
    if not images.exists():
        raise workspace.FetalsegError(f"{images} is not there: give an image or a folder of images.")
    network, state = training.load_network(checkpoint)
    cut = evaluation.frozen_cut(checkpoint, state)
    cut |= {name: value for name, value in given.items() if value is not None}
    predictor = evaluation.make_predictor(network, state["canvas"], **cut)
    written, problems = predictions.predict_folder(predictor, images, out)
    for problem in problems:
        click.echo(problem, err=True)
    mirrored = ", averaged over image and mirror" if cut["flip"] else ""
    click.echo(f"cut at {cut['threshold']:.2f}, region '{cut['region']}'{mirrored}.")
    click.echo(f"{written} predictions lie in {out}.")
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
    workspace, circumference, folders = load("beyond_dice.circumference", "beyond_dice.folders")
    if not math.isfinite(tolerance):
        raise click.UsageError(f"--tolerance {tolerance} is no distance: give a number of px.")
    sizes = circumference.read_pixel_sizes(pixel_size_csv) if pixel_size_csv else None
    scores, problems = folders.score_folder(predictions, masks, sizes, tolerance)
    summary = folders.write_scores(out, scores, problems, tolerance)
    for line in folders.report(scores, problems, summary):
        click.echo(line)
    click.echo(f"{len(scores)} of {summary['masks']} masks scored; every score: {workspace.shown(out)}/metrics.csv")
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
