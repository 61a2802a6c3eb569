"""The model card: what it must name, taken from a small run, and what it must warn of."""

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fetalseg_helpers import evaluation, loading, training, verification
from fetalseg_helpers.beyond_dice import model_card
from fetalseg_helpers.beyond_dice.scores import complete, every_score
from fetalseg_helpers.beyond_dice.summaries import summarise
from fetalseg_helpers.running import stages
from fetalseg_helpers.workspace import FetalsegError, read_json, write_json, write_table

SMALL = training.Settings(base_channels=2, depth=2, epochs=2, batch_size=6, learning_rate=1e-2, seed=1)


def evaluate(run_dir, sizes=None, flip=False):
    """What notebook 06 leaves in a run folder."""
    network, state = training.load_network(run_dir / "checkpoint.pt")
    predict = evaluation.make_predictor(network, state["canvas"], 0.45, "largest", flip)
    pixel_mm = None if sizes is None else sizes.pixel_mm
    pairs = verification.usable_pairs(run_dir, "test")
    scores = complete(evaluation.score_pairs(predict, pairs, every_score(3.0), pixel_mm), sizes)
    about = {"threshold": 0.45, "region": "largest", "chosen": "chosen on validation images", "tolerance_px": 3.0}
    about |= {"data": read_json(run_dir / "data.json")["data"], "parameters": {"flip": flip}}
    about["checkpoint_sha256"] = state["sha256"]
    write_table(run_dir / "metrics.csv", scores)
    write_json(run_dir / "metrics.json", summarise(scores, draws=200) | about)
    return scores


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, draw_pairs):
    root = tmp_path_factory.mktemp("card")
    draw_pairs(root / "hospital", siblings=True)
    stages.ensure_prepared(root / "run", 48, 32, data=str(root / "hospital"), seed=0)
    training.train(training.Trainer(root / "run", SMALL), report=lambda line: None)
    evaluate(root / "run")
    return root / "run"


@pytest.fixture
def run_dir(evaluated, tmp_path):
    """A run folder of the test's own, trained and evaluated."""
    return Path(shutil.copytree(evaluated, tmp_path / "run"))


def card_of(run_dir):
    path = model_card.write_model_card(run_dir)
    assert path == run_dir / "model_card.md"
    return path.read_text(encoding="utf-8")


def section(text, title):
    found = re.search(rf"^## {re.escape(title)}\n\n(.*?)(?=\n\n## |\Z)", text, flags=re.MULTILINE | re.DOTALL)
    assert found, f"no section {title}"
    return found[1]


def rows_of(text):
    """The rows of the Markdown table in a section: first cell to the others."""
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1 and set(lines[1]) == {" --- "}
    return {line[0].strip(): [cell.strip() for cell in line[1:]] for line in lines if line is not lines[1]}


def test_the_sections_of_a_card_are_in_order_and_none_is_empty(run_dir):
    text = card_of(run_dir)
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    assert titles == [
        "Model card", "What the masks are", "What it must not be used for", "Data", "Training", "Prediction", "Scores",
        "Failures seen", "Made with",
    ]  # fmt: skip
    assert all(section(text, title).strip() for title in titles[1:]) and text.endswith("\n")
    assert "nan" not in text.lower().split() and "None" not in text


def test_it_says_what_the_masks_are_and_what_the_network_must_not_be_used_for(run_dir):
    text = " ".join(card_of(run_dir).split())
    for words in ("outlines of the fetal head from the HC18 challenge", "learns to find heads", "detects tumors"):
        assert words in section_text(run_dir, "What the masks are"), words
    for words in ("any clinical use", "diagnosis", "measurement", "evidence about tumors", "another scanner"):
        assert words in section_text(run_dir, "What it must not be used for"), words
    assert text.startswith("# Model card A U-Net") and "never for clinical use" in text


@pytest.mark.parametrize(
    ("start", "words"),
    [("scratch", "random weights"), ("pretrained", "had seen phantoms"), ("/home/me/mine.pt", "another checkpoint")],
)
def test_it_says_what_training_began_with(start, words, run_dir):
    state = training.load_checkpoint(run_dir / "checkpoint.pt")
    state["settings"]["start"] = start
    training.save_checkpoint(run_dir / "checkpoint.pt", state)
    assert words in section_text(run_dir, "Training") and "/home/me" not in card_of(run_dir)


def section_text(run_dir, title):
    return " ".join(section(card_of(run_dir), title).split())


def test_a_folder_of_the_user_s_is_named_and_its_licence_asked_for(run_dir):
    data = section_text(run_dir, "Data")
    assert "30 pairs" in data and "`hospital`" in data and "licence its maker has to state" in data
    assert "CC BY 4.0" in data and "simulated" not in data
    assert str(run_dir.parent) not in card_of(run_dir)  # no path of somebody's machine


@pytest.mark.parametrize(("data", "words"), [("kaggle", "Mendeley Data 2024"), ("hc18", "Zenodo 1327317, CC BY 4.0")])
def test_a_public_data_set_is_credited_with_its_licence(data, words, run_dir):
    write_json(run_dir / "data.json", read_json(run_dir / "data.json") | {"data": data})
    assert words in section_text(run_dir, "Data") and "user's" not in section_text(run_dir, "Data")


def test_scores_of_phantoms_are_said_to_be_no_result(run_dir):
    write_json(run_dir / "data.json", read_json(run_dir / "data.json") | {"data": "phantom", "phantoms": 30})
    data = section_text(run_dir, "Data")
    assert "30 phantoms" in data and "no result" in data and "simulated" in data
    assert "the ellipse that was drawn" in section_text(run_dir, "What the masks are")


def test_the_sizes_of_the_split_are_those_of_the_pairs_that_were_used(run_dir):
    manifest = loading.read_manifest(run_dir)
    dropped = manifest.image_id[manifest.split == "train"].iloc[0]
    finding = pd.DataFrame({"image_id": [dropped], "check": ["x"], "severity": ["error"], "detail": ["x"]})
    write_table(run_dir / "verification.csv", finding)
    data = section(card_of(run_dir), "Data")
    used = manifest[manifest.image_id != dropped]
    for split, (images, examinations) in list(rows_of(data).items())[1:]:
        assert int(images) == (used.split == split).sum()
        assert int(examinations) == used.examination[used.split == split].nunique()
    assert list(rows_of(data)) == ["split", "train", "valid", "test"] and "29 pairs" in data
    assert "Split by examination, seed 0" in data


def test_a_split_that_shares_no_examination_is_said_to_share_none(run_dir):
    data = section_text(run_dir, "Data")
    assert "No test image shares an examination with a training image." in data and "too good" not in data


def test_test_images_that_share_an_examination_with_training_are_counted_and_warned_of(run_dir):
    manifest = pd.read_csv(run_dir / "manifest.csv", dtype=str)
    test = manifest.index[manifest.split == "test"]
    manifest.loc[test[:2], "examination"] = manifest.examination[manifest.split == "train"].iloc[0]
    manifest.to_csv(run_dir / "manifest.csv", index=False)
    data = section_text(run_dir, "Data")
    assert (
        f"**2 of {len(test)} test images share an examination with a training image: the scores are too good." in data
    )
    assert "No test image" not in data


def test_network_and_training_are_described_by_the_checkpoint(run_dir):
    state = training.load_checkpoint(run_dir / "checkpoint.pt")
    text = card_of(run_dir)
    assert "2 base channels and depth 2, normalisation batch, for frames scaled to 48 × 32 pixels" in " ".join(
        text.split()
    )
    words = section_text(run_dir, "Training")
    assert f"The weights of epoch {state['epoch']} of 2" in words and f"({state['valid_dice']:.4f} at" in words
    for name, value in state["settings"].items():
        assert name == "start" or f"{name} {value}" in words


@pytest.mark.parametrize("flip", [False, True])
def test_it_says_how_maps_are_cut_and_whether_they_are_averaged_over_the_mirror(flip, run_dir):
    evaluate(run_dir, flip=flip)
    assert section_text(run_dir, "Prediction") == (
        "Cut at 0.45, region: largest; chosen on validation images"
        + (", averaged over the image and its mirror." if flip else ".")
    )


def test_scores_have_their_intervals_and_the_number_of_images(run_dir):
    metrics = read_json(run_dir / "metrics.json")
    scores = section(card_of(run_dir), "Scores")
    words = " ".join(scores.split())
    assert f"{metrics['images']} test images of {metrics['examinations']} examinations" in words
    assert "Surface Dice at 3 px" in words and "Empty predictions: " in words
    rows = rows_of(scores)
    low, high = metrics["dice_interval_95"]
    assert rows["Dice"][:2] == [f"{metrics['mean_dice']:.3f}", f"{low:.3f} to {high:.3f}"]
    assert rows["HD95 (px)"][0] == f"{metrics['scores']['hd95_px']['mean']:.2f}"
    assert len(rows) == 1 + len(metrics["scores"]) and "mm" not in scores


def test_the_worst_images_are_listed_as_failures(run_dir):
    scores = pd.read_csv(run_dir / "metrics.csv", dtype={"image_id": str})
    failures = section(card_of(run_dir), "Failures seen")
    below = (scores.dice < 0.9).sum()
    assert failures.startswith(f"{below} of {len(scores)} test images are below a Dice of 0.9.")
    worst = scores.sort_values("dice").head(5)
    rows = list(rows_of(failures).items())[1:]
    assert [name for name, _ in rows] == list(worst.image_id)
    assert [cells[0] for _, cells in rows] == [f"{dice:.3f}" for dice in worst.dice]


def test_pixel_sizes_add_scores_and_the_circumference_in_mm(run_dir):
    names = verification.usable_pairs(run_dir, "test").image_id
    sizes = pd.DataFrame({"pixel_mm": 0.2, "head_circumference_mm": np.nan}, index=names[:-1])
    scores = evaluate(run_dir, sizes)
    text = section(card_of(run_dir), "Scores")
    off = (scores.circumference_mm - scores.truth_circumference_mm).dropna()
    assert f"circumference of {len(names) - 1} images: ADF {off.abs().mean():.2f} ± " in text
    assert f"DF {off.mean():.2f} ± {off.std():.2f} mm." in text and "HD95 (mm)" in rows_of(text)


def test_pixel_sizes_of_other_images_add_nothing(run_dir):
    evaluate(run_dir, pd.DataFrame({"pixel_mm": [0.2], "head_circumference_mm": [np.nan]}, index=["99_HC"]))
    text = section(card_of(run_dir), "Scores")
    assert "Head circumference of" not in text and "nan" not in text and "mm" not in text


def test_a_run_that_was_scored_by_dice_and_iou_alone_has_a_card(run_dir):
    scores = pd.read_csv(run_dir / "metrics.csv", dtype={"image_id": str, "examination": str})
    scores = scores[["image_id", "examination", "dice", "iou", "truth_pixels", "predicted_pixels"]]
    write_table(run_dir / "metrics.csv", scores)
    write_json(run_dir / "metrics.json", read_json(run_dir / "metrics.json") | summarise(scores, draws=200))
    text = card_of(run_dir)
    assert list(rows_of(section(text, "Scores")))[1:] == ["Dice", "IoU"]
    assert "HD95" not in section(text, "Failures seen")


def test_the_versions_close_the_card(run_dir):
    made_with = section_text(run_dir, "Made with")
    assert re.match(r"Python 3\.\d+\.\d+, torch \S+, numpy \S+", made_with) and "/" not in made_with


def test_a_card_is_written_anew_after_another_evaluation(run_dir):
    first = card_of(run_dir)
    assert card_of(run_dir) == first
    write_json(run_dir / "metrics.json", read_json(run_dir / "metrics.json") | {"threshold": 0.3})
    assert "Cut at 0.30" in card_of(run_dir)


@pytest.mark.parametrize("kept", [None, {}, {"mean_dice": 0.9}], ids=["missing", "empty", "of an older version"])
def test_a_run_without_scores_is_refused_in_one_sentence(kept, run_dir):
    (run_dir / "metrics.json").unlink()
    if kept is not None:
        write_json(run_dir / "metrics.json", kept)
    with pytest.raises(FetalsegError, match=r"metrics\.json has no scores yet: run notebook 06 first\.$") as error:
        model_card.write_model_card(run_dir)
    assert "\n" not in str(error.value) and not (run_dir / "model_card.md").exists()


def test_scores_of_another_network_are_refused_in_one_sentence(run_dir):
    write_json(run_dir / "metrics.json", read_json(run_dir / "metrics.json") | {"checkpoint_sha256": "0" * 64})
    with pytest.raises(FetalsegError, match=r"metrics\.json is of other weights than checkpoint\.pt") as error:
        model_card.write_model_card(run_dir)
    assert "\n" not in str(error.value) and not (run_dir / "model_card.md").exists()


def test_a_table_in_markdown_has_its_index_first():
    table = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}, index=pd.Index(["p", "q"], name="n"))
    assert model_card.markdown_table(table).splitlines() == [
        "| n | a | b |", "| --- | --- | --- |", "| p | 1 | x |", "| q | 2 | y |",
    ]  # fmt: skip
