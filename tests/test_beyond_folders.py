"""Folders of predicted masks as people hand them in: every name and format, and every way in which a file is wrong."""

import json
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest

from fetalseg_helpers import __main__, evaluation, preprocessing
from fetalseg_helpers.beyond_dice import folders
from fetalseg_helpers.beyond_dice.scores import every_score
from fetalseg_helpers.workspace import FetalsegError

HEIGHT, WIDTH = 40, 60
NAMES = ("1_HC", "2_HC", "3_HC")
needs_posix = pytest.mark.skipif(os.name != "posix", reason="links and names of any bytes need Linux or macOS")


def score_masks(prediction, truth, tolerance=5.0):
    """Every score of one prediction."""
    scores = {}
    for score in every_score(tolerance):
        scores |= score(prediction, truth, math.nan)
    return scores


def head(number=1, shift=0):
    """The mask of a head, another for each number; and the outline that is drawn for it."""
    shape = ((28 + number + shift, 20), (24 + 2 * number, 20 + number), 10.0 * number)
    return cv2.ellipse(np.zeros((HEIGHT, WIDTH), np.uint8), shape, 1, -1)


def outline_of(mask):
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.zeros_like(mask), contours, -1, 255, 1)


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)
    return path


def write_masks(folder, names=NAMES, ending="_Annotation.png", outlines=True):
    for number, name in enumerate(names, 1):
        mask = head(number)
        write(folder / f"{name}{ending}", outline_of(mask) if outlines else mask * 255)
    return folder


def write_predictions(folder, names=NAMES, ending="_pred.png", shift=0):
    for number, name in enumerate(names, 1):
        write(folder / f"{name}{ending}", head(number, shift) * 255)
    return folder


def call_outside(*arguments):
    """The command as a user calls it: a process of its own, which takes seconds to start."""
    command = [sys.executable, "-m", "fetalseg_helpers", "evaluate", *map(str, arguments)]
    options = {"env": {**os.environ, "PYTHONUTF8": "1"}, "encoding": "utf-8", "timeout": 120}
    return subprocess.run(command, capture_output=True, text=True, **options)


@pytest.fixture
def call(monkeypatch, capfd):
    """The same in this process; what libraries write past Python is seen as well."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["fetalseg_helpers", "evaluate", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            __main__.main()
        code, (stdout, stderr) = end.value.code or 0, capfd.readouterr()
        if isinstance(code, str):  # Python prints it and exits with 1
            code, stderr = 1, f"{stderr}{code}\n"
        return SimpleNamespace(returncode=code, stdout=stdout, stderr=stderr)

    return run


def is_one_sentence(text):
    return text.strip() and "Traceback" not in text and len(text.strip().splitlines()) == 1


def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")


def read_out(out):
    """Scores, summary and problems as they were written; the summary as strict JSON."""
    text = {"image_id": str, "examination": str}
    summary = json.loads((out / "metrics.json").read_text(encoding="utf-8"), parse_constant=refuse)
    options = {"keep_default_na": False, "encoding_errors": "surrogateescape"}  # as names of files are
    problems = pd.read_csv(out / "problems.csv", dtype=str, **options)
    return pd.read_csv(out / "metrics.csv", dtype=text, **options), summary, problems


def kinds(problems):
    return dict(zip(problems.image_id, problems.problem, strict=True))


@pytest.fixture
def masks(tmp_path):
    return write_masks(tmp_path / "masks")


@pytest.fixture
def predictions(tmp_path):
    return tmp_path / "predictions"


# The command


def test_a_good_folder_is_scored_in_silence_with_exit_code_0_and_every_file_of_the_contract(tmp_path, masks):
    write_predictions(tmp_path / "predictions", shift=2)
    result = call_outside(
        tmp_path / "predictions", "--masks", masks, "--out", tmp_path / "new" / "out", "--tolerance", 1
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "3 of 3 masks scored" in result.stdout and "normalised surface Dice" in result.stdout
    scores, summary, problems = read_out(tmp_path / "new" / "out")
    assert list(problems.columns) == ["image_id", "problem", "file", "detail"] and problems.empty
    assert (summary["images"], summary["masks"], summary["unscored"], summary["tolerance_px"]) == (3, 3, 0, 1)
    assert "mean_dice_unscored_as_0" not in summary
    assert list(scores.image_id) == list(NAMES) and list(scores.columns)[:4] == [
        "image_id", "examination", "dice", "iou",
    ]  # fmt: skip
    assert summary["mean_dice"] == pytest.approx(scores.dice.mean(), abs=1e-4)
    for number, row in enumerate(scores.itertuples(), 1):
        expected = score_masks(head(number, 2), head(number), tolerance=1)
        assert {name: getattr(row, name) for name in expected} == pytest.approx(expected, rel=1e-5)


def test_whatever_is_wrong_is_listed_and_counted_and_the_exit_code_is_1(call, tmp_path):
    names = [f"{number}_HC" for number in range(1, 10)]
    write_masks(tmp_path / "masks", names)
    folder = write_predictions(tmp_path / "predictions", names)
    (folder / "1_HC_pred.png").unlink()
    write(folder / "2_HC_pred.png", head(2).T.copy() * 255)
    (folder / "3_HC_pred.png").write_bytes(b"")
    (folder / "4_HC_pred.png").write_bytes((folder / "5_HC_pred.png").read_bytes()[:70])
    write(folder / "fold 2" / "6_HC_mask.png", head(6) * 255)
    write(folder / "7_HC_pred.png", head(7) * np.uint16(1000))
    write(folder / "30_HC.png", head() * 255)
    write(tmp_path / "masks" / "8_HC_Annotation.png", np.zeros((2, 2), np.uint8))
    result = call(folder, "--masks", tmp_path / "masks", "--out", folder / "out")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "3 of 9 masks scored" in result.stdout
    scores, summary, problems = read_out(folder / "out")
    assert list(scores.image_id) == ["5_HC", "7_HC", "9_HC"]
    assert kinds(problems) == {
        "1_HC": "missing", "2_HC": "misshapen", "3_HC": "unreadable", "4_HC": "unreadable", "6_HC": "twice",
        "7_HC": "values", "8_HC": "misshapen", "30_HC": "extra",
    }  # fmt: skip
    assert (summary["images"], summary["masks"], summary["unscored"]) == (3, 9, 6)
    assert summary["mean_dice_unscored_as_0"] == pytest.approx(scores.dice.sum() / 9, abs=1e-4)
    for problem in problems[problems.problem != "values"].itertuples():
        assert f"{problem.problem:<12}{problem.file} {problem.detail}" in result.stdout
        assert (problem.file + problem.detail).count(problem.image_id) == (2 if problem.problem == "twice" else 1)
    details = dict(zip(problems.image_id, problems.detail, strict=True))
    assert details["2_HC"] == "is 40 × 60 but the mask 60 × 40" and "cut off" in details["4_HC"]
    assert "0 and 1000: the larger is tumor" in details["7_HC"] and "6_HC_mask.png" in details["6_HC"]
    again = call(folder, "--masks", tmp_path / "masks", "--out", folder / "out")  # its own output is no prediction
    more = set(again.stdout.splitlines()) - set(result.stdout.splitlines())
    assert more == {"3 files passed over: neither images nor masks."}


def test_an_extra_prediction_alone_is_listed_and_no_failure(call, tmp_path, masks):
    write_predictions(tmp_path / "p", [*NAMES, "4_HC"])
    result = call(tmp_path / "p", "--masks", masks, "--out", tmp_path / "out")
    assert (result.returncode, result.stderr) == (0, "") and "extra" in result.stdout
    assert kinds(read_out(tmp_path / "out")[2]) == {"4_HC": "extra"}


@pytest.mark.parametrize("tolerance", ["-1", "nan", "inf", "many"])
def test_a_tolerance_that_is_no_distance_is_wrong_usage(call, tolerance, tmp_path, masks):
    write_predictions(tmp_path / "p")
    result = call(tmp_path / "p", "--masks", masks, "--out", tmp_path / "out", f"--tolerance={tolerance}")
    assert result.returncode == 2 and "--tolerance" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_missing_option_is_wrong_usage(call, tmp_path, masks):
    assert call(tmp_path, "--masks", masks).returncode == 2
    assert call(tmp_path, "--out", tmp_path / "out").returncode == 2


def spoil_nothing_to_score(tmp_path):
    for name in NAMES:
        (tmp_path / "predictions" / f"{name}_pred.png").write_text("no image", encoding="utf-8")
    return "1_HC_pred.png is cut off, damaged or not an image"


def spoil_other_names(tmp_path):
    for path in list((tmp_path / "predictions").iterdir()):
        path.rename(path.with_name(f"other {path.name}"))
    return "no prediction in"


def spoil_empty(tmp_path):
    for path in list((tmp_path / "predictions").iterdir()):
        path.unlink()
    return "holds no image file"


def spoil_out_is_a_file(tmp_path):
    (tmp_path / "out").write_text("taken", encoding="utf-8")
    return "choose another folder"


def spoil_out_below_a_file(tmp_path):
    (tmp_path / "out.txt").write_text("taken", encoding="utf-8")
    (tmp_path / "out").symlink_to(tmp_path / "out.txt" / "below")
    return "choose another folder"


SPOILT = {name.removeprefix("spoil_"): value for name, value in list(globals().items()) if name.startswith("spoil_")}
if os.name != "posix":
    del SPOILT["out_below_a_file"]


@pytest.mark.parametrize("name", SPOILT)
def test_what_cannot_be_scored_at_all_is_one_sentence(call, name, tmp_path, masks):
    write_predictions(tmp_path / "predictions")
    sentence = SPOILT[name](tmp_path)
    result = call(tmp_path / "predictions", "--masks", masks, "--out", tmp_path / "out")
    assert result.returncode == 1 and is_one_sentence(result.stderr) and sentence in result.stderr
    assert result.stderr.strip().endswith(".") and ".." not in result.stderr
    assert not (tmp_path / "out").is_dir()


def test_debug_shows_the_error_as_it_was_raised(tmp_path, masks, monkeypatch):
    options = ["evaluate", str(tmp_path / "nowhere"), "--masks", str(masks), "--out", str(tmp_path / "out"), "--debug"]
    monkeypatch.setattr(sys, "argv", ["fetalseg_helpers", *options])
    with pytest.raises(FetalsegError, match="nowhere is not a folder"):
        __main__.main()


@pytest.mark.parametrize("wrong", ["predictions", "masks"])
def test_a_folder_that_is_missing_or_a_file_is_named(wrong, tmp_path, masks):
    write_predictions(tmp_path / "predictions")
    for path in (tmp_path / "nowhere", tmp_path / "predictions" / "1_HC_pred.png"):
        given = {"predictions": tmp_path / "predictions", "masks": masks} | {wrong: path}
        with pytest.raises(FetalsegError, match=f"{path.name} is not a folder"):
            folders.score_folder(given["predictions"], given["masks"])


# Names


@pytest.mark.parametrize(
    "name", ["1_HC_pred.png", "1_HC.png", "1_HC_mask.png", "1_HC_Annotation.png", "1_HC_SEG.PNG", "a/b c/1_HC.bmp"]
)
@pytest.mark.parametrize("ending", ["_Annotation.png", ".png", "_mask.png", "_segmentation.tif", "_pred.png"])
def test_a_prediction_and_a_mask_belong_together_by_the_image_s_name(name, ending, tmp_path):
    write(tmp_path / "p" / name, head() * 255)
    write(tmp_path / "m" / f"1_HC{ending}", head() * 255)
    scores, problems = folders.score_folder(tmp_path / "p", tmp_path / "m")
    assert list(scores.image_id) == ["1_HC"] and list(scores.dice) == [1] and problems.empty


def test_endings_may_be_mixed_in_both_folders(tmp_path):
    names = ("1_HC_pred.png", "2_HC.png", "3_HC_Mask.png", "4_HC_Annotation.png")
    masks = ("1_HC_Annotation.png", "2_HC_mask.png", "3_HC_seg.png", "4_HC_Annotation.png")
    for number, (name, mask) in enumerate(zip(names, masks, strict=True), 1):
        write(tmp_path / "p" / name, head(number) * 255)
        write(tmp_path / "m" / mask, outline_of(head(number)))
        write(tmp_path / "m" / f"{number}_HC.png", np.full((HEIGHT, WIDTH), 90, np.uint8))  # the image
    scores, problems = folders.score_folder(tmp_path / "p", tmp_path / "m")
    assert list(scores.image_id) == ["1_HC", "2_HC", "3_HC", "4_HC"] and set(scores.dice) == {1} and problems.empty


@pytest.mark.parametrize("name", ["Köpfchen 7", "頭_HC", "a.b", "1 HC (copy)", "x" * 200], ids=str.split)
def test_a_name_may_hold_any_letters(name, tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "m").mkdir()
    data = cv2.imencode(".png", head() * 255)[1].tobytes()
    (tmp_path / "p" / f"{name}_pred.png").write_bytes(data)
    (tmp_path / "m" / f"{name}_Annotation.png").write_bytes(data)
    scores, problems = folders.score_folder(tmp_path / "p", tmp_path / "m")
    assert list(scores.image_id) == [name] and problems.empty


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux takes names of any bytes")
def test_a_name_that_is_no_text_is_scored_and_written(call, tmp_path, masks, predictions):
    data = cv2.imencode(".png", head() * 255)[1].tobytes()
    write_predictions(predictions)
    for folder, name in ((masks, b"4\xff_Annotation.png"), (predictions, b"4\xff.png"), (predictions, b"5\xfe.png")):
        with open(os.path.join(os.fsencode(folder), name), "wb") as file:
            file.write(data)
    result = call(predictions, "--masks", masks, "--out", tmp_path / "out")
    assert (result.returncode, result.stderr) == (0, "") and "4 of 4 masks scored" in result.stdout
    scores, _, problems = read_out(tmp_path / "out")
    assert "4\udcff" in list(scores.image_id) and list(problems.image_id) == ["5\udcfe"]


def test_images_beside_their_predictions_are_passed_over_and_said_so(call, tmp_path, masks, predictions):
    write_predictions(predictions)
    for name in NAMES:
        write(predictions / f"{name}.png", np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint8))
    result = call(predictions, "--masks", masks, "--out", tmp_path / "out")
    assert (result.returncode, result.stderr) == (
        0,
        "",
    ) and "3 files passed over: taken for the images" in result.stdout
    scores, _, problems = read_out(tmp_path / "out")
    assert set(scores.dice) == {1} and kinds(problems) == dict.fromkeys(NAMES, "passed over")


@pytest.mark.parametrize("ending", ["_Annotation.png", "_mask.png"])
def test_one_folder_may_hold_images_masks_and_predictions(ending, tmp_path):
    write_masks(tmp_path, ending=ending)
    write_predictions(tmp_path, shift=1)
    for name in NAMES:
        write(tmp_path / f"{name}.png", np.full((HEIGHT, WIDTH), 90, np.uint8))
    scores, problems = folders.score_folder(tmp_path, tmp_path)
    assert list(scores.image_id) == list(NAMES) and (scores.dice < 1).all()
    assert set(problems.problem) == {"passed over"}


def test_masks_below_the_folder_of_predictions_are_not_scored_against_themselves(tmp_path):
    write_predictions(tmp_path, shift=1)
    write_masks(tmp_path / "truth")
    scores, problems = folders.score_folder(tmp_path, tmp_path / "truth")
    assert (scores.dice < 1).all() and len(scores) == 3 and problems.empty


def test_a_folder_of_masks_is_not_its_own_prediction(masks):
    with pytest.raises(FetalsegError, match=r"1_HC_Annotation\.png has no prediction\.$"):
        folders.score_folder(masks, masks)


def test_two_files_for_one_image_are_listed_both_and_neither_is_scored(masks, predictions):
    write_predictions(predictions)
    write(predictions / "old" / "1_HC_pred.png", head() * 255)
    write(masks / "2_HC.png", head() * 255)
    write(masks / "again" / "3_HC_Annotation.png", head() * 255)
    write(predictions / "3_HC_prediction.bmp", head() * 255)
    scores, problems = folders.score_folder(predictions, masks)
    assert list(scores.image_id) == ["2_HC"] and kinds(problems) == {"1_HC": "twice", "3_HC": "twice"}
    said = dict(zip(problems.image_id, problems.file + problems.detail, strict=True))
    assert "old/1_HC_pred.png" in said["1_HC"] and "predictions/1_HC_pred.png" in said["1_HC"]
    for name in ("masks/3_HC_Ann", "again/3_HC_Ann", "3_HC_pred.png", "3_HC_prediction.bmp"):
        assert name in said["3_HC"]


def test_a_copy_of_an_outline_is_no_problem_as_in_the_data_set(masks, predictions):
    write_predictions(predictions)
    (masks / "copies").mkdir()
    (masks / "copies" / "3_HC_Annotation.png").write_bytes((masks / "3_HC_Annotation.png").read_bytes())
    scores, problems = folders.score_folder(predictions, masks)
    assert len(scores) == 3 and problems.empty


def test_every_file_is_scored_or_listed(masks, predictions):
    write_predictions(predictions, [*NAMES, "4_HC", "5_HC"])
    write(predictions / "1_HC.png", head() * 255)
    write(predictions / "a" / "2_HC_pred.png", head() * 255)
    write(predictions / "3_HC_pred.png", np.zeros((3, 3), np.uint8))
    write(predictions / "zoo.jpg", head() * 255)
    write_masks(masks, ["6_HC", "7_HC"])
    files = {path.name for folder in (masks, predictions) for path in folder.rglob("*.*")}
    scores, problems = folders.score_folder(predictions, masks)
    said = " ".join(problems.file + " " + problems.detail)
    scored = {f"{name}{ending}" for name in scores.image_id for ending in ("_pred.png", "_Annotation.png")}
    partners = {f"{name}_Annotation.png" for name in problems.image_id[problems.problem.isin(["twice", "misshapen"])]}
    assert files == {name for name in files if name in said} | scored | partners
    assert {"1_HC"} == set(scores.image_id) and len(problems) == 8


def test_frames_without_a_prediction_tell_examinations_apart(tmp_path):
    write_masks(tmp_path / "m", ["1_2HC", "2_HC", "3_2HC", "4_HC"])
    write_predictions(tmp_path / "p", ["1_2HC"])
    write_predictions(tmp_path / "p", ["4_HC"])
    scores, _ = folders.score_folder(tmp_path / "p", tmp_path / "m")
    assert dict(zip(scores.image_id, scores.examination, strict=True)) == {"1_2HC": "E0001", "4_HC": "E0003"}


# Formats


def ramp(mask):
    """A soft edge: 0 and 255, and grey levels in between, of which those from 128 on are the mask."""
    soft = cv2.GaussianBlur(mask * np.uint8(255), (0, 0), 1.5)
    return np.where(mask == 1, np.maximum(soft, 128), np.minimum(soft, 127)).astype(np.uint8)


FORMATS = {
    "0/1": lambda mask: mask,
    "0/255": lambda mask: mask * 255,
    "0/7": lambda mask: mask * 7,
    "100/200": lambda mask: mask * 100 + 100,
    "RGB": lambda mask: cv2.merge([mask * 255] * 3),
    "red": lambda mask: cv2.merge([mask * 0, mask * 0, mask * 128]),
    "RGBA": lambda mask: cv2.merge([*[mask * 255] * 3, np.full_like(mask, 255)]),
    "grey ramp": ramp,
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("suffix", [".png", ".PNG", ".bmp", ".tif"])
def test_a_mask_is_the_same_in_every_format(form, suffix, tmp_path):
    write(tmp_path / "p" / f"1{suffix}", FORMATS[form](head(1, 3)))
    write(tmp_path / "m" / "1_Annotation.png", outline_of(head()))
    scores, problems = folders.score_folder(tmp_path / "p", tmp_path / "m")
    assert scores.dice[0] == evaluation.dice_score(head(1, 3), head()) < 1
    announced = form in ("0/1", "0/7", "100/200", "red", "grey ramp")
    assert list(problems.problem) == (["values"] if announced else [])


def test_a_png_of_one_bit_per_pixel_is_a_mask(tmp_path, masks):
    (tmp_path / "p").mkdir()
    for number, name in enumerate(NAMES, 1):
        path = str(tmp_path / "p" / f"{name}.png")
        assert cv2.imwrite(path, head(number) * 255, [cv2.IMWRITE_PNG_BILEVEL, 1])
        with open(path, "rb") as file:
            assert file.read()[24] == 1  # bits
    scores, problems = folders.score_folder(tmp_path / "p", masks)
    assert list(scores.dice) == [1, 1, 1] and problems.empty


def test_a_jpeg_is_cut_at_128_and_said_so(tmp_path, masks):
    write_predictions(tmp_path / "p", ending=".jpg")
    scores, problems = folders.score_folder(tmp_path / "p", masks)
    assert (scores.dice > 0.97).all() and kinds(problems) == dict.fromkeys(NAMES, "values")


@pytest.mark.parametrize("of", ["predictions", "masks"])
def test_of_several_labels_all_above_0_count_in_predictions_and_masks_alike_and_that_is_said(of, tmp_path):
    for number, name in enumerate(NAMES, 1):
        labels = head(number)
        labels[:3] = 2  # another organ
        both = {"predictions": head(number) * 255, "masks": head(number) * 255} | {of: labels}
        write(tmp_path / "predictions" / f"{name}_pred.png", both["predictions"])
        write(tmp_path / "masks" / f"{name}_mask.png", both["masks"])
    scores, problems = folders.score_folder(tmp_path / "predictions", tmp_path / "masks")
    expected = [evaluation.dice_score(head(number), head(number) | rows_above(3)) for number in range(1, 4)]
    assert list(scores.dice) == expected and kinds(problems) == dict.fromkeys(NAMES, "values")
    assert problems.detail.str.endswith("3 labels up to 2: all above 0 are tumor").all()


def rows_above(number):
    return np.uint8(np.arange(HEIGHT)[:, None] < number) * np.ones((HEIGHT, WIDTH), np.uint8)


@pytest.mark.parametrize("of", ["predictions", "masks"])
@pytest.mark.parametrize("kind", ["one grey", "a picture"])
def test_what_is_no_mask_has_no_score_on_either_side(of, kind, tmp_path):
    strange = np.full((HEIGHT, WIDTH), 30, np.uint8)
    if kind == "a picture":
        strange = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH), dtype=np.uint8)
    for name, mask in (("1", strange), ("2", head() * 255)):
        both = {"predictions": head() * 255, "masks": head() * 255} | {of: mask}
        write(tmp_path / "predictions" / f"{name}_pred.png", both["predictions"])
        write(tmp_path / "masks" / f"{name}_mask.png", both["masks"])
    scores, problems = folders.score_folder(tmp_path / "predictions", tmp_path / "masks")
    assert list(scores.image_id) == ["2"] and kinds(problems) == {"1": "unreadable"}


@pytest.mark.parametrize("outlines", [True, False])
def test_a_mask_may_be_filled_or_an_outline(outlines, tmp_path):
    write_masks(tmp_path / "m", ending="_mask.png", outlines=outlines)
    write_predictions(tmp_path / "p", shift=1)
    scores, _ = folders.score_folder(tmp_path / "p", tmp_path / "m")
    assert list(scores.truth_pixels) == [head(number).sum() for number in (1, 2, 3)]


def test_a_filled_mask_keeps_its_holes_and_its_regions(tmp_path):
    ring = cv2.circle(np.zeros((HEIGHT, WIDTH), np.uint8), (WIDTH // 3, HEIGHT // 2), 12, 255, 9)
    cv2.circle(ring, (WIDTH - 12, HEIGHT // 2), 8, 255, -1)
    write(tmp_path / "m" / "1_HC_mask.png", ring)
    write(tmp_path / "p" / "1_HC_pred.png", ring)
    scores, _ = folders.score_folder(tmp_path / "p", tmp_path / "m")
    assert scores.dice[0] == 1 and scores.truth_pixels[0] == np.count_nonzero(ring)


def test_an_outline_as_a_prediction_is_scored_as_it_is_and_said_so(tmp_path, masks):
    for number, name in enumerate(NAMES, 1):
        write(tmp_path / "p" / f"{name}.png", outline_of(head(number)))
    scores, problems = folders.score_folder(tmp_path / "p", masks)
    assert (scores.dice < 0.6).all() and kinds(problems) == dict.fromkeys(NAMES, "outline")


def test_two_specks_far_apart_are_no_outline(tmp_path, masks):
    specks = np.zeros((HEIGHT, WIDTH), np.uint8)
    specks[2:6, 2:6] = specks[-6:-2, -6:-2] = 255
    for name in NAMES:
        write(tmp_path / "p" / f"{name}.png", specks)
    assert folders.score_folder(tmp_path / "p", masks)[1].empty


def test_empty_masks_are_scored_as_every_score_says(tmp_path):
    empty, full = np.zeros((HEIGHT, WIDTH), np.uint8), np.full((HEIGHT, WIDTH), 255, np.uint8)
    for name, prediction, mask in (("1", empty, outline_of(head())), ("2", head() * 255, empty), ("3", empty, empty)):
        write(tmp_path / "p" / f"{name}.png", prediction)
        write(tmp_path / "m" / f"{name}_Annotation.png", mask)
    write(tmp_path / "p" / "4.png", full)
    write(tmp_path / "m" / "4_Annotation.png", outline_of(head()))
    scores, problems = folders.score_folder(tmp_path / "p", tmp_path / "m")
    assert list(scores.dice) == pytest.approx([0, 0, 1, 2 * head().sum() / (head().sum() + HEIGHT * WIDTH)])
    assert list(scores.hd95_px)[:3] == [math.hypot(HEIGHT, WIDTH)] * 2 + [0] and problems.empty
    summary = folders.write_scores(tmp_path / "out", scores, problems, 5.0)
    assert (summary["empty_predictions"], summary["empty_truths"]) == (2, 2)
    assert read_out(tmp_path / "out")[1] == summary


@pytest.mark.parametrize("case", ["predictions", "truths", "both"])
def test_a_whole_folder_of_empty_masks_gives_numbers_and_strict_json(case, tmp_path):
    empty = np.zeros((HEIGHT, WIDTH), np.uint8)
    for number, name in enumerate(NAMES, 1):
        write(tmp_path / "p" / f"{name}.png", head(number) * 255 if case == "truths" else empty)
        write(tmp_path / "m" / f"{name}_mask.png", head(number) * 255 if case == "predictions" else empty)
    scores, problems = folders.score_folder(tmp_path / "p", tmp_path / "m")
    folders.write_scores(tmp_path / "out", scores, problems, 0.0)
    assert read_out(tmp_path / "out")[1]["mean_dice"] == (1 if case == "both" else 0)
    assert np.isfinite(scores.select_dtypes("number")).all(axis=None)


# Files that are none


def test_folders_and_links_named_like_images_are_no_trouble(tmp_path, masks, predictions):
    write_predictions(predictions, NAMES[1:])
    (predictions / "1_HC.png").mkdir()
    write(predictions / "1_HC.png" / "1_HC_pred.png", head() * 255)
    (predictions / "x.png").mkdir()
    _, problems = folders.score_folder(predictions, masks)
    assert problems.empty


@needs_posix
def test_links_to_files_count_as_files_and_broken_ones_are_listed_by_their_own_name(tmp_path, masks):
    for number, name in enumerate(NAMES, 1):
        write(tmp_path / "store" / f"blob{number}.png", head(number) * 255)
        (tmp_path / "p").mkdir(exist_ok=True)
        (tmp_path / "p" / f"{name}_pred.png").symlink_to(tmp_path / "store" / f"blob{number}.png")
    (tmp_path / "store" / "blob3.png").unlink()
    scores, problems = folders.score_folder(tmp_path / "p", masks)
    assert list(scores.image_id) == ["1_HC", "2_HC"] and kinds(problems) == {"3_HC": "unreadable"}
    assert problems.file[0].endswith("p/3_HC_pred.png") and problems.detail[0].startswith("cannot be read")


@needs_posix
def test_links_to_the_masks_themselves_are_predictions(tmp_path):
    masks = write_masks(tmp_path / "m", ending=".png", outlines=False)
    (tmp_path / "p").mkdir()
    for name in NAMES:
        (tmp_path / "p" / f"{name}.png").symlink_to(masks / f"{name}.png")
    scores, problems = folders.score_folder(tmp_path / "p", masks)
    assert list(scores.dice) == [1, 1, 1] and problems.empty


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read every file: run as another user")
def test_a_file_that_may_not_be_read_is_listed(masks, predictions):
    write_predictions(predictions)
    (predictions / "1_HC_pred.png").chmod(0)
    _, problems = folders.score_folder(predictions, masks)
    assert kinds(problems) == {"1_HC": "unreadable"} and "Permission" in problems.detail[0]


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0"], ids=repr)
@pytest.mark.parametrize("side", ["predictions", "masks"])
def test_a_file_that_is_no_image_is_listed_on_either_side(side, content, tmp_path, masks, predictions):
    write_predictions(predictions)
    path = next(iter((tmp_path / side).glob("2_HC_*")))
    path.write_bytes(content)
    scores, problems = folders.score_folder(predictions, masks)
    assert list(scores.image_id) == ["1_HC", "3_HC"] and kinds(problems) == {"2_HC": "unreadable"}
    assert path.name in problems.file[0] and path.name not in problems.detail[0]


@pytest.mark.parametrize("factor", [0.5, 2, 3])
def test_a_scaled_prediction_is_misshapen(factor, masks, predictions):
    write_predictions(predictions)
    small = cv2.resize(head() * np.uint8(255), None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST)
    write(predictions / "1_HC_pred.png", small)
    _, problems = folders.score_folder(predictions, masks)
    assert kinds(problems) == {"1_HC": "misshapen"}
    assert problems.detail[0] == f"is {WIDTH * factor:.0f} × {HEIGHT * factor:.0f} but the mask {WIDTH} × {HEIGHT}"


# Pixel sizes


def scores_with_sizes(call, tmp_path, masks, text):
    write_predictions(tmp_path / "p", shift=2)
    (tmp_path / "sizes.csv").write_text(text, encoding="utf-8")
    options = ("--pixel-size-csv", tmp_path / "sizes.csv", "--out", tmp_path / "out")
    return call(tmp_path / "p", "--masks", masks, *options)


@pytest.mark.parametrize(
    "header", ["image_id,pixel_mm", "filename,pixel size(mm)", "filename,pixel size(mm),head circumference (mm)"]
)
def test_pixel_sizes_add_scores_in_mm_under_our_columns_or_those_of_hc18(call, header, tmp_path, masks):
    suffix = ".png" if header.startswith("filename") else ""
    more = [f",{0.2 * score_masks(head(n), head(n))['truth_circumference_px']}" for n in (1, 2, 3)]
    rows = [f"{name}{suffix},0.2{more[n] if 'head' in header else ''}" for n, name in enumerate(NAMES)]
    result = scores_with_sizes(call, tmp_path, masks, "\n".join([header, *rows]))
    assert (result.returncode, result.stderr) == (0, "") and "head circumference of 3 images: ADF" in result.stdout
    scores, summary, _ = read_out(tmp_path / "out")
    assert np.allclose(scores.hd95_mm, 0.2 * scores.hd95_px) and np.allclose(scores.pixel_mm, 0.2)
    assert np.allclose(scores.truth_circumference_mm, 0.2 * scores.truth_circumference_px, rtol=1e-4)
    assert summary["scores"]["hd95_mm"]["images"] == 3


def test_images_without_a_pixel_size_have_no_score_in_mm_and_are_counted(call, tmp_path, masks):
    result = scores_with_sizes(call, tmp_path, masks, "image_id,pixel_mm\n2_HC,0.2\n9_HC,0.3\n")
    assert (result.returncode, result.stderr) == (0, "")
    assert "2 images have no pixel size" in result.stdout and "head circumference of 1 images" in result.stdout
    scores, summary, _ = read_out(tmp_path / "out")
    assert list(scores.hd95_mm.astype(str) == "") == [True, False, True]
    assert summary["scores"]["hd95_mm"]["images"] == 1 and summary["images"] == 3


def test_a_table_of_other_images_adds_nothing_and_says_so(call, tmp_path, masks):
    result = scores_with_sizes(call, tmp_path, masks, "image_id,pixel_mm\n9_HC,0.3\n")
    assert (result.returncode, result.stderr) == (0, "") and "3 images have no pixel size" in result.stdout
    assert "hd95_mm" not in read_out(tmp_path / "out")[1]["scores"]


def test_a_table_of_pixel_sizes_that_is_none_is_one_sentence(call, tmp_path, masks):
    result = scores_with_sizes(call, tmp_path, masks, "name,size\n1_HC,0.2\n")
    assert result.returncode == 1 and is_one_sentence(result.stderr) and "'image_id' or 'filename'" in result.stderr
    options = ("--pixel-size-csv", tmp_path / "nowhere.csv", "--out", tmp_path / "out")
    result = call(tmp_path / "p", "--masks", masks, *options)
    assert result.returncode == 1 and is_one_sentence(result.stderr) and "nowhere.csv" in result.stderr
    assert not (tmp_path / "out").exists()


# Numbers


@pytest.mark.parametrize("tolerance", [0.0, 1.0, 5.0])
def test_scores_are_those_of_every_score(tolerance, tmp_path):
    rng = np.random.default_rng(0)
    written = {}
    for number in range(8):
        centre, axes = rng.uniform((20, 15), (40, 25)), rng.uniform(12, 25, 2)
        prediction = cv2.ellipse(np.zeros((HEIGHT, WIDTH), np.uint8), (tuple(centre), tuple(axes), 30.0), 1, -1)
        written[f"{number}"] = prediction, head(number)
        write(tmp_path / "p" / f"{number}.png", prediction * 255)
        write(tmp_path / "m" / f"{number}_Annotation.png", outline_of(head(number)))
    scores, _ = folders.score_folder(tmp_path / "p", tmp_path / "m", tolerance=tolerance)
    for row in scores.to_dict("records"):
        prediction, mask = written[row["image_id"]]
        assert np.array_equal(preprocessing.fill_outline(outline_of(mask)), mask)
        expected = score_masks(prediction, mask, tolerance)
        assert {name: row[name] for name in expected} == expected


def test_names_are_in_natural_order_whatever_thread_was_first(tmp_path):
    names = [f"{number}_HC" for number in (1, 2, 3, 10, 11, 20, 100)]
    write_masks(tmp_path / "m", names)
    write_predictions(tmp_path / "p", [*names, "4_HC", "40_HC"])
    write(tmp_path / "p" / "11_HC_pred.png", ramp(head(5)))
    scores, problems = folders.score_folder(tmp_path / "p", tmp_path / "m")
    assert list(scores.image_id) == names and list(problems.image_id) == ["4_HC", "11_HC", "40_HC"]
