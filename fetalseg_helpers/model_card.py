"""A model card (Mitchell et al. 2019), written from what a run measured: trained on what, how good, not for what."""

from pathlib import Path

import pandas as pd

from fetalseg_helpers import biometry, checkpoints, loading, preprocessing, sources, summaries
from fetalseg_helpers.workspace import FetalsegError, read_json, run_folder, versions, write_text

FAILURES = 5  # worst images that are listed
WHAT_THE_MASKS_ARE = """\
The data set calls the regions tumors, and so does this project: tumor (1), background (0). They are outlines of the
fetal head from the HC18 challenge: 999 files named `*_HC`, all of them ellipses, whose circumferences equal HC18's
published ones within 0.021 %. The network learns to find heads. Nothing in it detects tumors."""
PHANTOM_MASKS = """\
Each mask is the ellipse that was drawn, known exactly, with the line that a human would draw around it. In the data
set that the phantoms imitate, the regions are called tumors, and are outlines of the fetal head. Nothing here detects
tumors."""
NOT_FOR = """\
Not for any clinical use, neither diagnosis nor measurement nor triage: it was made for learning. Not for frames of
another source, another view than the head's standard plane, or another scanner without scoring it there first. Not as
evidence about tumors, and not for comparison with results that were scored on other images or by another convention of
the outline (here the drawn line counts as inside; masks filled to its middle differ by about 0.65 Dice points)."""


def markdown_table(table):
    """A table as Markdown, its index as the first column."""
    rows = [[table.index.name or "", *table.columns], ["---"] * (len(table.columns) + 1)]
    rows += [[name, *values] for name, values in zip(table.index, table.to_numpy(), strict=True)]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def describe_data(asked, manifest):
    """Sentences about the data and its licence."""
    if asked["data"] == "phantom":
        return (
            f"**{asked['phantoms']} phantoms**, simulated frames. The scores below show that everything works; they "
            "are no result, and say nothing about real frames."
        )
    licence = sources.LICENCES.get(asked["data"])
    if licence is None:
        known = f"If it is the Kaggle data set: {sources.LICENCES['kaggle']}"
        licence = f"A folder of the user's, `{Path(asked['root']).name}`, whose licence its maker has to state. {known}"
    return f"{len(manifest)} pairs. {licence}"


def describe_split(asked, manifest):
    """The sizes of the split as a table, and what it keeps apart."""
    counts = manifest.groupby("split").agg(images=("image_id", "count"), examinations=("examination", "nunique"))
    seen = manifest.examination[manifest.split == "train"]
    test = manifest[manifest.split == "test"]
    shared = int(test.examination.isin(seen).sum())
    sentence = f"Split by {asked['split_by']}, seed {asked['seed']}. "
    sentence += (
        f"**{shared} of {len(test)} test images share an examination with a training image: the scores are too good.**"
        if shared
        else "No test image shares an examination with a training image."
    )
    return f"{sentence}\n\n{markdown_table(counts.loc[list(loading.SPLITS)])}"


def describe_failures(scores):
    """The worst images of a table of scores."""
    worst = scores.sort_values("dice").head(FAILURES).set_index("image_id")
    table = pd.DataFrame({"Dice": worst.dice.map("{:.3f}".format), "HD95 (px)": worst.hd95_px.map("{:.0f}".format)})
    table["area error (%)"] = worst.area_error_percent.map("{:+.0f}".format)
    below = int((scores.dice < 0.9).sum())
    return f"{below} of {len(scores)} test images are below a Dice of 0.9. The worst:\n\n{markdown_table(table)}"


def write_model_card(run_dir):
    """Write `model_card.md` into a run folder that has been evaluated; returns its path.

    Raises
    ------
    FetalsegError
        If the run has no scores yet.
    """
    folder = run_folder(run_dir)
    metrics, asked = read_json(folder / "metrics.json"), read_json(folder / "data.json")
    if "scores" not in metrics:
        raise FetalsegError(f"{folder / 'metrics.json'} has no scores yet: run notebook 06 first.")
    manifest, scores = loading.read_manifest(run_dir), pd.read_csv(folder / "metrics.csv", dtype={"image_id": str})
    _, state = checkpoints.load_network(folder / "checkpoint.pt")
    manifest = manifest[manifest.image_id.isin(preprocessing.usable(run_dir).image_id)]
    canvas, settings = state["canvas"], state["settings"]
    flip = ", averaged over the image and its mirror" if metrics["parameters"].get("flip") else ""
    chosen = metrics["chosen"]
    fitted = {"scale": "scaled", "pad": "padded or cropped"}[canvas["fit"]]
    lines = [
        "# Model card",
        f"A U-Net (Ronneberger et al. 2015) of {settings['base_channels']} base channels and depth "
        f"{settings['depth']}, normalisation {settings['normalisation']}, for frames {fitted} to {canvas['width']} × "
        f"{canvas['height']} pixels; a grey image in, P(tumor) for each pixel out. For learning only, never for "
        "clinical use.",
        "## What the masks are",
        PHANTOM_MASKS if asked["data"] == "phantom" else WHAT_THE_MASKS_ARE,
        "## What it must not be used for",
        NOT_FOR,
        "## Data",
        describe_data(asked, manifest),
        describe_split(asked, manifest),
        "## Training",
        f"The weights of epoch {state['epoch']} of {settings['epochs']}, the best by validation Dice "
        f"({state['valid_dice']:.4f} at training size).",
        ", ".join(f"{name} {value}" for name, value in settings.items()) + ".",
        "## Prediction",
        f"Cut at {metrics['threshold']:.2f}, region: {metrics['region']}; {chosen}{flip}.",
        "## Scores",
        f"{metrics['images']} test images of {metrics['examinations']} examinations, each at its own size; the "
        "intervals are from a bootstrap over examinations, and hold for this network and frames like these. "
        f"Surface Dice at {metrics['tolerance_px']:g} px. Empty predictions: {metrics['empty_predictions']}, empty "
        f"truths: {metrics['empty_truths']}.",
        markdown_table(summaries.summary_table(metrics)),
    ]
    if sentence := biometry.describe_agreement(scores):
        lines.append(f"{sentence[0].upper()}{sentence[1:]}.")
    lines += ["## Failures seen", describe_failures(scores), "## Made with", versions()]
    write_text(folder / "model_card.md", "\n\n".join(lines) + "\n")
    return folder / "model_card.md"
