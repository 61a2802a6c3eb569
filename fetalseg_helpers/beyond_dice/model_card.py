"""A model card (Mitchell et al. 2019), written from what a run measured: trained on what, how good, not for what."""

import platform
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fetalseg_helpers import loading, training, verification
from fetalseg_helpers.beyond_dice import circumference, summaries
from fetalseg_helpers.beyond_dice.scores import METRICS
from fetalseg_helpers.workspace import FetalsegError, cv2, read_json, run_folder, write_text

TEMPLATE = Path(__file__).with_name("model_card.md")
FORMS = {"dice": "{:.3f}", "hd95_px": "{:.0f}", "area_error_percent": "{:+.0f}"}  # of what is listed of them
SHIPPED = "the network that ships, which had seen phantoms designed by looking at the Ultrasound Fetus Dataset"
BEGUN = {"scratch": "random weights", "pretrained": SHIPPED}
LICENCES = pd.read_csv(TEMPLATE.with_name("licences.csv"), index_col="data").licence.to_dict()


def markdown_table(table):
    """A table as Markdown, its index as the first column."""
    header = [table.index.name or "", *table.columns]
    rows = [header, ["---"] * len(header), *table.itertuples(name=None)]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def write_model_card(run_dir):
    """Write `model_card.md` into a run folder; returns its path.

    A FetalsegError says if the run has no scores yet, or those of another network than its checkpoint.
    """
    folder = run_folder(run_dir)
    metrics, asked = read_json(folder / "metrics.json"), read_json(folder / "data.json")
    if "scores" not in metrics:
        raise FetalsegError(f"{folder / 'metrics.json'} has no scores yet: run notebook 06 first.")
    state = training.load_checkpoint(folder / "checkpoint.pt")
    if metrics.get("checkpoint_sha256") != state["sha256"]:
        raise FetalsegError(f"{folder / 'metrics.json'} is of other weights than checkpoint.pt: run notebook 06 again.")
    pairs = verification.usable_pairs(run_dir)
    known = f"If it is the Kaggle data set: {LICENCES['kaggle']}"
    own = f"A folder of the user's, `{Path(asked['root']).name}`, whose licence its maker has to state. {known}"
    data = f"{len(pairs)} pairs. {LICENCES.get(asked['data'], own)}"
    if simulated := asked["data"] == "phantom":
        works = "The scores below show that all works; they are no result, and say nothing about real frames."
        data = f"**{asked['phantoms']} phantoms**, simulated frames. {works}"
    masks = TEMPLATE.with_name("masks_phantom.md" if simulated else "masks_real.md")
    counts = pairs.groupby("split").agg(images=("image_id", "count"), examinations=("examination", "nunique"))
    test = pairs[pairs.split == "test"]
    seen = int(test.examination.isin(pairs.examination[pairs.split == "train"]).sum())
    leak = f"{seen} of {len(test)} test images share an examination with a training image: the scores are too good."
    scores = pd.read_csv(folder / "metrics.csv", dtype={"image_id": str})
    sentence = circumference.describe_agreement(scores)
    agreement = f"\n\n{sentence[0].upper()}{sentence[1:]}." if sentence else ""
    worst = scores.sort_values("dice").head(5).set_index("image_id")
    columns = {METRICS[name].label: worst[name].map(form.format) for name, form in FORMS.items() if name in worst}
    text = TEMPLATE.read_text(encoding="utf-8").format(
        asked=asked,
        metrics=metrics,
        state=state,
        fitted={"scale": "scaled", "pad": "padded or cropped"}[state["canvas"]["fit"]],
        masks=masks.read_text(encoding="utf-8").strip(),
        data=data,
        shared=f"**{leak}**" if seen else "No test image shares an examination with a training image.",
        counts=markdown_table(counts.loc[list(loading.SPLITS)]),
        begun=BEGUN.get(state["settings"].get("start", "scratch"), "the weights of another checkpoint"),
        every_setting=", ".join(f"{name} {value}" for name, value in state["settings"].items() if name != "start"),
        flip=", averaged over the image and its mirror" if metrics["parameters"].get("flip") else "",
        scores=markdown_table(summaries.summary_table(metrics)) + agreement,
        below=int((scores.dice < 0.9).sum()),
        failures=markdown_table(pd.DataFrame(columns)),
        versions=f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}, "
        f"pandas {pd.__version__}, OpenCV {cv2.__version__}",
    )
    write_text(folder / "model_card.md", text)
    return folder / "model_card.md"
