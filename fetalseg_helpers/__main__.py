"""The command line: python -m fetalseg_helpers --help."""

import math
import sys
from pathlib import Path

import click

from fetalseg_helpers.workspace import CANVAS_KEYS, PARAMETERS, FetalsegError, read_json, run_folder, shown

DATA_KEYS = ("data", "seed", "phantoms", "split_by")
parameter_option = click.option(
    "-p", "parameters", nargs=2, multiple=True, metavar="NAME VALUE", help="A parameter of a notebook; may be repeated."
)
preset_option = click.option("--preset", type=click.Choice(["quick", "laptop", "reference"]), help="Default: quick.")
data_option = click.option("--data", metavar="phantom|kaggle|hc18|DIR", help="Where the images are. Default: phantom.")
run_dir_option = click.option("--run-dir", metavar="DIR", help="The run folder; one below runs/ by default.")


@click.group(epilog="Any command takes --debug: a full traceback instead of one sentence.")
def cli():
    """From fetal ultrasound images to an honestly evaluated U-Net. For learning only, never for clinical use."""


def named(data):
    """A folder given on the command line as an absolute path, so that every notebook finds it; a name as it is."""
    return data if data in ("phantom", "kaggle", "hc18") else str(Path(data).expanduser().resolve())


@cli.command()
@data_option
@preset_option
@run_dir_option
@parameter_option
def run(data, preset, run_dir, parameters):
    """Execute the six notebooks in a row."""
    from fetalseg_helpers import notebooks, sources, unet

    values = notebooks.read_preset(preset or "quick") | notebooks.parse_parameters(parameters)
    unet.check_divisible(values["height"], values["width"], values["depth"])
    data = named(data or values.get("data", "phantom"))
    name = preset or "quick"
    if run_dir is None:
        run_dir = values.get("run_dir") or f"runs/{name if data == 'phantom' else f'{Path(data).name}-{name}'}"
    elif not Path(run_dir).is_absolute():
        run_dir = str(Path(run_dir).resolve())
    values = {key: value for key, value in values.items() if key != "run_dir"} | {"data": data}
    if data != "phantom":
        sources.find_data(data, run_dir)
    folder = run_folder(run_dir)
    click.echo(f"Six notebooks, data '{data}', preset '{name}', run folder {shown(folder)}.")
    notebooks.run_lessons(folder, values, report=click.echo)
    click.echo(closing_summary(folder))


def closing_summary(folder):
    """The scores of a run and where everything lies, in a few lines."""
    metrics = read_json(folder / "metrics.json")
    (low, high), (iou_low, iou_high) = metrics["dice_interval_95"], metrics["iou_interval_95"]
    lines = [
        f"Dice {metrics['mean_dice']:.4f} (95 % interval {low:.4f} to {high:.4f}), "
        f"IoU {metrics['mean_iou']:.4f} ({iou_low:.4f} to {iou_high:.4f}),",
        f"mean of {metrics['images']} test images of {metrics['examinations']} examinations at their own size.",
    ]
    if metrics["data"] == "phantom":
        lines.append("These are phantoms: the score shows that everything works, it is no result.")
    lines += [
        f"{what:<20}{shown(folder / where)}"
        for what, where in (
            ("executed notebooks", "notebooks"),
            ("scores", "metrics.csv"),
            ("predicted masks", "predictions"),
            ("model card", "model_card.md"),
            ("trained network", "checkpoint.pt"),
        )
    ]
    return "\n".join(lines)


@cli.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--count", default=160, show_default=True, help="Number of frames.")
@click.option("--seed", default=0, show_default=True)
def phantom(folder, count, seed):
    """Make a phantom data set, in the tree and naming of the Kaggle one."""
    from tqdm import tqdm

    from fetalseg_helpers import phantom_set

    with tqdm(total=count, desc="phantoms", disable=None) as bar:
        phantom_set.write_phantoms(folder, count=count, seed=seed, progress=lambda done: bar.update(done - bar.n))
    click.echo(f"{count} phantom frames lie in {shown(folder)}.")


@cli.command()
@click.argument("name", type=click.Choice(["kaggle", "hc18"]))
@click.option("--to", "folder", type=click.Path(path_type=Path), help="Folder; data/NAME of the project by default.")
def fetch(name, folder):
    """Download a public data set and unpack it."""
    from fetalseg_helpers import sources

    folder = sources.fetch(name, folder)
    click.echo(f"{name} lies in {shown(folder)}. Credit it: {sources.LICENCES[name]}")


@cli.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
def verify(folder):
    """Check images, outlines and pairs of a data set; exit 1 if there is a defect."""
    from fetalseg_helpers import loading, verification

    pairs = loading.load_pairs(folder)
    findings, measurements = verification.verify_pairs(pairs)
    for finding in findings.itertuples():
        click.echo(f"{finding.severity:<8}{finding.check:<22}{finding.image_id}: {finding.detail}")
    defects = int((findings.severity != "note").sum())
    click.echo(
        f"{len(pairs)} names, {len(measurements)} usable pairs, {defects} defects, {len(findings) - defects} notes."
    )
    sys.exit(1 if defects else 0)


@cli.command()
@data_option
@preset_option
@run_dir_option
@click.option("--resume", is_flag=True, help="Go on where the training in the run folder stopped.")
@click.option("--start", type=click.Path(path_type=Path), metavar="FILE", help="A checkpoint to fine-tune.")
@parameter_option
def train(data, preset, run_dir, resume, start, parameters):
    """Train without notebooks, a line per epoch."""
    from fetalseg_helpers import checkpoints, notebooks, parallel, trainer, training, unet, verification

    folder = run_folder(Path(run_dir).resolve() if run_dir else f"runs/{preset or 'quick'}")
    given = notebooks.parse_parameters(parameters)
    for name in ("run_dir", "resume"):
        if name in given:
            raise FetalsegError(f"training takes no parameter {name}: give --{name.replace('_', '-')}.")
    values = notebooks.read_preset("quick") | {"data": "phantom"} | read_json(folder / "data.json")
    values |= notebooks.read_preset(preset) if preset else {}
    state = {}
    if resume and (folder / "last.pt").exists():
        state = checkpoints.load_checkpoint(folder / "last.pt")
        kept = state["settings"] | {key: state["canvas"][key] for key in CANVAS_KEYS}
        for name in kept.keys() & given.keys():
            if given[name] != kept[name]:
                raise FetalsegError(f"the stopped training has {name} {kept[name]}: leave {name} out to resume it.")
        values |= kept
    values |= given
    unet.check_divisible(values["height"], values["width"], values["depth"])
    if data:
        values["data"] = named(data)
    with parallel.joined():
        with parallel.first_alone():
            known = {key: values[key] for key in (*DATA_KEYS, *CANVAS_KEYS) if key in values}
            verification.ensure_verified(folder, **known)
        if state and parallel.rank() == 0:
            click.echo(f"{shown(folder / 'last.pt')}: going on after epoch {state['epoch']} of {values['epochs']}.")
        history = trainer.train(folder, training.Settings.of(values), resume, start, report=click.echo)
        if parallel.rank() == 0:
            best = history.valid_dice.max()
            click.echo(f"best validation Dice {best:.4f}, kept in {shown(folder / 'checkpoint.pt')}.")


@cli.command()
@click.argument("grid", type=click.Path(path_type=Path))
@click.option("--jobs", default=1, show_default=True, help="How many run at the same time; -1: one per core.")
@click.option("--out", metavar="DIR", help="Folder of all runs; runs/<name of the grid> by default.")
@click.option("--dask", metavar="ADDRESS", help="Scheduler of a Dask cluster that does the work, on all its threads.")
def sweep(grid, jobs, out, dask):
    """Train and evaluate (notebooks 05 and 06) for every combination of a grid, and compare them.

    GRID is a YAML file: a value, or a list of values to try, for each parameter. Run it again after a stop: what is
    complete is kept, the rest goes on.
    """
    import joblib

    from fetalseg_helpers import plotting, sweep

    if jobs == 0:
        raise click.UsageError("--jobs 0 would run nothing: give 1 or more, or -1 for one per core.")
    folder = run_folder(Path(out).resolve() if out else f"runs/{grid.stem}")
    if dask:
        try:
            from dask.distributed import Client
        except ImportError as error:
            raise FetalsegError("--dask needs Dask: pip install 'dask[distributed]'.") from error
        Client(dask)  # becomes the client that joblib's backend finds
    with joblib.parallel_config(backend="dask" if dask else "loky"):
        table, varied = sweep.sweep(grid, folder, jobs, report=click.echo)
    failed = int((table.problem != "").sum())
    if failed < len(table):
        plotting.save(plotting.show_sweep(table, varied), folder / "sweep.png")
        shortened = dict.fromkeys(table.columns.drop(varied), 4)
        click.echo(table.drop(columns="problem").round(shortened).to_string(index=False))
    click.echo(
        f"{len(table) - failed} of {len(table)} runs complete; table and figure: {shown(folder)}/sweep.csv, .png"
    )
    sys.exit(1 if failed else 0)


@cli.command()
@click.argument("images", type=click.Path(path_type=Path))
@click.option("--checkpoint", required=True, type=click.Path(path_type=Path), metavar="FILE")
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="DIR")
@click.option("--threshold", type=click.FloatRange(0.01, 0.99), help="The least probability that counts as tumor.")
@click.option("--region", type=click.Choice(PARAMETERS["region"].choices[1:]), help="What of the cut mask is kept.")
@click.option("--flip/--no-flip", default=None, help="Average over the image and its mirror; twice the time.")
def predict(images, checkpoint, out, **given):
    """Predict a mask for an image or every image of a folder.

    Maps are cut as the evaluation of the run chose it on validation images, if it lies beside the checkpoint; else at
    0.5, the largest region is kept, and nothing is mirrored. What is given here goes first.
    """
    from fetalseg_helpers import checkpoints, prediction

    if not images.exists():
        raise FetalsegError(f"{images} is not there: give an image or a folder of images.")
    network, state = checkpoints.load_network(checkpoint)
    cut = prediction.frozen_cut(checkpoint, state)
    cut |= {name: value for name, value in given.items() if value is not None}
    predictor = prediction.make_predictor(network, state["canvas"], **cut)
    written, problems = prediction.predict_folder(predictor, images, out)
    for problem in problems:
        click.echo(problem, err=True)
    mirrored = ", averaged over image and mirror" if cut["flip"] else ""
    click.echo(f"cut at {cut['threshold']:.2f}, region '{cut['region']}'{mirrored}.")
    click.echo(f"{written} predictions lie in {out}.")
    sys.exit(1 if problems else 0)


@cli.command()
@click.argument("predictions", type=click.Path(path_type=Path))
@click.option("--masks", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Outlines, or masks.")
@click.option("--pixel-size-csv", type=click.Path(path_type=Path), metavar="FILE", help="Adds the scores in mm.")
@click.option(
    "--tolerance", default=5.0, show_default=True, type=click.FloatRange(0), help="Of the surface Dice, in px."
)
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="DIR")
def evaluate(predictions, masks, pixel_size_csv, tolerance, out):
    """Score a folder of predicted masks, whoever made them; exit 1 if a mask has no usable prediction.

    Files belong together by name: 12_HC.png or 12_HC_pred.png is a prediction for 12_HC_Annotation.png. Those that are
    missing, extra, misshapen or unreadable are listed, on the screen and in problems.csv.
    """
    from fetalseg_helpers import biometry, folder_scores

    if not math.isfinite(tolerance):
        raise click.UsageError(f"--tolerance {tolerance} is no distance: give a number of px.")
    sizes = biometry.read_pixel_sizes(pixel_size_csv) if pixel_size_csv else None
    scores, problems = folder_scores.score_folder(predictions, masks, sizes, tolerance)
    summary = folder_scores.write_scores(out, scores, problems, tolerance)
    for line in folder_scores.report(scores, problems, summary):
        click.echo(line)
    click.echo(f"{len(scores)} of {summary['masks']} masks scored; every score: {shown(out)}/metrics.csv")
    sys.exit(1 if summary["unscored"] else 0)


def main():
    """Run the command line; errors that the user can mend are one sentence and exit code 1."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    for stream in (sys.stdout, sys.stderr):  # a Windows console may not know '×'
        stream.reconfigure(errors="replace")
    try:
        cli(arguments, prog_name="python -m fetalseg_helpers")
    except (FetalsegError, OSError) as error:
        if debug:
            raise
        click.echo(str(error), err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
