"""Data as users have it: nothing is paired wrongly, and no file is lost without a word."""

import os
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from shapes import encoded, noise

from fetalseg_helpers import evaluation, loading, preprocessing, training, verification
from fetalseg_helpers.beyond_dice import folders
from fetalseg_helpers.running import report, stages
from fetalseg_helpers.running.predictions import predict_folder
from fetalseg_helpers.workspace import FetalsegError, project_root, read_json, write_json

HEIGHT, WIDTH = 108, 160


def picture(number):
    return noise(number, HEIGHT, WIDTH)


def disc(number=0, radius=30, value=255, thickness=-1):
    return cv2.circle(np.zeros((HEIGHT, WIDTH), np.uint8), (50 + 5 * number, 54), radius, value, thickness)


def put(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(array if isinstance(array, bytes) else encoded(array, path.suffix))


def pair(folder, name, number, mask=None):
    put(folder / f"{name}.png", picture(number))
    put(folder / f"{name}_Annotation.png", disc(number) if mask is None else mask)


def checked(root, **options):
    """Pairs, findings and measurements as `verify` has them."""
    pairs = loading.load_pairs(root, **options)
    return pairs, *verification.verify_pairs(pairs)


def partners(pairs):
    """Image to mask of each pair, by their names below the folder in which they lie."""
    whole = pairs[pairs.image_path.notna() & pairs.mask_path.notna()]
    return {row.image_path.parent.name + "/" + row.image_path.name: row.mask_path for row in whole.itertuples()}


def checks(findings):
    return {check: set(found.image_id) for check, found in findings.groupby("check")}


# A: a name may occur in several folders


def test_test_images_of_the_same_names_get_no_training_outlines(tmp_path):
    for n in range(8):
        pair(tmp_path / "training_set", f"{n:03d}_HC", n)
        put(tmp_path / "test_set" / f"{n:03d}_HC.png", picture(100 + n))
    pairs, findings, measurements = checked(tmp_path)
    assert set(partners(pairs)) == {f"training_set/{n:03d}_HC.png" for n in range(8)} and len(measurements) == 8
    assert checks(findings) == {"missing_mask": {f"test_set_{n:03d}_HC" for n in range(8)}}


@pytest.mark.parametrize("place", ["patient_{:02d}", "p{}/day 1", "{:03d}"])
def test_one_name_in_the_folder_of_every_patient_is_a_pair_and_an_examination_each(tmp_path, place):
    for n in range(6):
        for frame in ("frame", "another"):
            pair(tmp_path / place.format(n), frame, 10 * n + len(frame), mask=disc(n))
    pairs, _, measurements = checked(tmp_path)
    assert len(measurements) == 12 and pairs.examination.nunique() == 6
    assert all(row.image_path.parent == row.mask_path.parent for row in pairs.itertuples())
    assert (
        pairs.groupby("examination")
        .image_path.agg(lambda paths: {path.parts[-2] for path in paths})
        .map(len)
        .eq(1)
        .all()
    )


def test_numbers_that_begin_anew_in_each_split_are_pairs_of_their_own(tmp_path):
    for split, first in (("train", 0), ("val", 10), ("test", 20)):
        for n in range(4):
            pair(tmp_path / split, str(n), first + n)
    pairs, _, measurements = checked(tmp_path)
    assert len(measurements) == 12
    assert all(row.image_path.parent == row.mask_path.parent for row in pairs.itertuples())


@pytest.mark.parametrize("rivals", [("0.png", "0.jpg"), ("images/0.png", "imgs/0.png")])
def test_two_images_for_one_outline_are_an_error_that_names_both(tmp_path, rivals):
    pair(tmp_path, "sound", 1)
    for seed, name in enumerate(rivals):
        put(tmp_path / name, picture(50 + seed))
    put(tmp_path / "0_Annotation.png", disc())
    pairs, findings, _ = checked(tmp_path)
    assert set(partners(pairs)) == {f"{tmp_path.name}/sound.png"} and checks(findings) == {"ambiguous_name": {"0"}}
    assert all(name in findings.detail[0] for name in rivals)


def test_two_annotators_are_an_error_that_names_both_folders(tmp_path):
    for n in range(4):
        put(tmp_path / "images" / f"{n}.png", picture(n))
        for reader, radius in (("reader_a", 30), ("reader_b", 24)):
            put(tmp_path / reader / f"{n}_Annotation.png", disc(n, radius))
    with pytest.raises(FetalsegError, match=r"reader_a.*reader_b"):
        loading.load_pairs(tmp_path)
    pair(tmp_path, "sound", 9)
    _, findings, measurements = checked(tmp_path)
    assert checks(findings)["ambiguous_name"] == {"0", "1", "2", "3"} and list(measurements.index) == ["sound"]


def test_an_outline_far_away_is_taken_only_where_it_is_the_only_one(tmp_path):
    put(tmp_path / "a" / "1.png", picture(1))
    put(tmp_path / "b" / "1_Annotation.png", disc(1))
    pair(tmp_path / "c", "2", 2)
    put(tmp_path / "a" / "2.png", picture(3))
    put(tmp_path / "b" / "2_Annotation.png", disc(4))
    pairs, findings, _ = checked(tmp_path)
    assert {name: path.parent.name for name, path in partners(pairs).items()} == {"a/1.png": "b", "c/2.png": "c"}
    assert len(checks(findings)["ambiguous_name"]) == 1


# C: what masks are


def test_inverted_masks_are_an_error_that_asks_so(tmp_path):
    for n in range(4):
        pair(tmp_path, str(n), n, mask=255 - disc(n))
    pair(tmp_path, "white", 9, mask=np.full((HEIGHT, WIDTH), 255, np.uint8))
    _, findings, measurements = checked(tmp_path)
    assert checks(findings) == {"inverted_mask": {"0", "1", "2", "3", "white"}} and measurements.empty
    assert findings.detail.str.contains("inverted?", regex=False).all()


def test_a_hole_stays_and_scattered_regions_stay_apart(tmp_path):
    ring = disc() - disc(radius=20)
    dots = np.zeros((HEIGHT, WIDTH), np.uint8)
    for k in range(20):
        cv2.circle(dots, (8 + 15 * (k % 10), 25 + 50 * (k // 10)), 3, 255, -1)
    for name, drawn in (("ring", ring), ("dots", dots)):
        pair(tmp_path, name, len(name), mask=drawn)
        mask = preprocessing.read_pair(tmp_path / f"{name}.png", tmp_path / f"{name}_Annotation.png")[1]
        assert np.array_equal(mask, drawn // 255)


def test_a_line_among_filled_masks_is_an_error_and_a_filled_mask_among_lines_a_note(tmp_path):
    for n in range(5):
        pair(tmp_path / "filled", f"f{n}", n, mask=disc(n, thickness=2 if n == 3 else -1))
        pair(tmp_path / "lines", f"l{n}", 10 + n, mask=disc(n, thickness=-1 if n == 3 else 2))
    assert checks(checked(tmp_path / "filled")[1]) == {"line_among_filled": {"f3"}}
    pairs, findings, measurements = checked(tmp_path / "lines")
    assert checks(findings) == {"filled_among_lines": {"l3"}}
    assert "masks: 4 outlines, to be filled; 1 filled already" in report.lines(pairs, findings, measurements)


def test_images_given_as_masks_are_refused_with_a_question(tmp_path):
    for n in range(3):
        put(tmp_path / f"{n}.png", disc(n))
        put(tmp_path / f"{n}_Annotation.png", cv2.GaussianBlur(picture(n), (0, 0), 2))
    _, findings, measurements = checked(tmp_path)
    assert measurements.empty and findings.detail.str.contains("were they exchanged?", regex=False).all()


# B and G: values and layouts


def red(mask):
    return cv2.merge([0 * mask, 0 * mask, mask])


def transparent(mask):
    return np.dstack([np.full((HEIGHT, WIDTH, 3), 255, np.uint8), mask])


def soft(mask):
    return cv2.GaussianBlur(mask, (0, 0), 1)


VALUES = {
    "0 and 255": (lambda mask: mask, ""),
    "0 and 1": (lambda mask: mask // 255, "0 and 1: the larger is tumor"),
    "0, 1 and 2": (lambda mask: mask // 255 + mask // 255 * (np.arange(WIDTH) < 45), "3 labels up to 2: all above 0"),
    "0, 85, 170": (lambda mask: np.uint8(mask // 255 * (85 + 85 * (np.arange(WIDTH) < 45))), "3 labels up to 170: all"),
    "red": (red, ""),
    "16 bits": (lambda mask: mask * np.uint16(257), "0 and 65535: the larger is tumor"),
    "in alpha": (transparent, "transparent is background"),
    "soft edges": (soft, "along borders: cut in the middle"),
}


@pytest.mark.parametrize("form", VALUES)
def test_values_that_can_be_read_in_one_way_are_read_so_and_said(tmp_path, form):
    draw, said = VALUES[form]
    put(tmp_path / "a.png", draw(disc()))
    mask, how = loading.read_mask(tmp_path / "a.png")
    assert np.array_equal(mask, disc()) or (form == "soft edges" and np.abs((mask > 0) * 1.0 - disc() / 255).sum() < 60)
    assert said in how and (how == "") == (said == "")


def test_a_palette_and_one_bit_a_pixel_are_read_as_they_are_shown(tmp_path):
    indexed = Image.fromarray(disc() // 255, "P")
    indexed.putpalette([0, 0, 0, 200, 30, 30])
    indexed.save(tmp_path / "palette.png")
    Image.fromarray(disc()).convert("1").save(tmp_path / "bit.png")
    for name in ("palette.png", "bit.png"):
        assert np.array_equal(loading.read_mask(tmp_path / name)[0], disc())


@pytest.mark.parametrize("value", [1, 30, 254])
def test_one_value_everywhere_is_no_mask(tmp_path, value):
    put(tmp_path / "a.png", np.full((HEIGHT, WIDTH), value, np.uint8))
    with pytest.raises(
        FetalsegError, match=rf"a\.png has the value {value} everywhere: a mask needs a background of 0"
    ):
        loading.read_mask(tmp_path / "a.png")


LAYOUTS = {
    "images and masks": ("images/{}.png", "masks/{}.png"),
    "the same in each split": ("train/images/{}.png", "train/masks/{}.png"),
    "splits inside": ("img/train/{}.jpg", "labels/train/{}.png"),
    "split in the name": ("train_images/{}.png", "train_masks/{}.png"),
    "nnU-Net": ("imagesTr/{}_0000.png", "labelsTr/{}.png"),
    "VOC": ("JPEGImages/{}.jpg", "SegmentationClass/{}.png"),
    "mask": ("{}.png", "{}_mask.png"),
    "seg": ("a/{}.png", "a/{}-seg.png"),
    "label": ("{}.jpg", "{}_label.png"),
    "ground truth": ("data/{}.bmp", "ground truth/{}.bmp"),
    "Mask, twice": ("images/{}.png", "masks/{}_Mask.png"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_usual_layouts_are_understood(tmp_path, layout):
    image, mask = LAYOUTS[layout]
    for n in range(11, 15):
        put(tmp_path / image.format(f"case{n}"), picture(n))
        put(tmp_path / mask.format(f"case{n}"), disc(n - 11))
    pairs, findings, measurements = checked(tmp_path)
    assert list(measurements.index) == [f"case{n}" for n in range(11, 15)] and findings.empty, layout
    assert all(row.mask_path == tmp_path / mask.format(row.image_id) for row in pairs.itertuples())


def test_a_layout_that_is_not_known_shows_names_and_those_that_are(tmp_path):
    for n in range(4):
        put(tmp_path / f"scan{n}.png", picture(n))
        put(tmp_path / f"{n}_drawn.png", disc(n))
    with pytest.raises(
        FetalsegError, match=r"NAME_Annotation\.png .*images/NAME\.png and masks/NAME\.png: .*0_drawn\.png"
    ):
        loading.load_pairs(tmp_path)


@pytest.fixture
def some_empty(tmp_path):
    for n in range(24):
        pair(tmp_path / "data", str(n), n % 6 + 20 * n, mask=0 * disc() if n % 3 == 0 else disc(n % 6))
    return tmp_path / "data"


def test_empty_masks_are_used_as_negatives_where_that_is_asked(some_empty, tmp_path):
    pairs = loading.load_pairs(some_empty)
    findings, measurements = verification.verify_pairs(pairs, negatives=True)
    assert checks(findings)["negative"] == {str(n) for n in range(0, 24, 3)} and len(measurements) == 16
    told = list(report.lines(pairs, findings, measurements))
    assert "48 files found: 24 pairs used" in told[0]
    assert "8 masks are empty, and kept: frames without a head" in told
    run = tmp_path / "run"
    usable = stages.ensure_verified(run, 32, 32, data=str(some_empty), negatives=True)
    assert len(usable) == 24 and "24 pairs used" in report.of_run(run)
    settings = training.Settings(epochs=1, base_channels=2, depth=2, batch_size=4)
    training.train(training.Trainer(run, settings), report=str)
    scores = evaluation.score_pairs(lambda image: np.zeros_like(image), usable)
    assert (scores.dice[scores.truth_pixels == 0] == 1).all() and sum(scores.truth_pixels == 0) == 8
    with pytest.raises(FetalsegError, match="made with negatives True, not False"):
        stages.ensure_verified(run, 32, 32, data=str(some_empty), negatives=False)
    loading.write_manifest(run, data=str(some_empty))  # as notebook 1 does: what was prepared belongs to it no more
    with pytest.raises(FetalsegError, match="from another manifest"):
        stages.ensure_prepared(run)


def test_a_data_set_of_negatives_alone_is_described(tmp_path):
    for n in range(4):
        pair(tmp_path, str(n), n, mask=0 * disc())
    pairs = loading.load_pairs(tmp_path)
    told = list(report.lines(pairs, *verification.verify_pairs(pairs, negatives=True)))
    assert "8 files found: 4 pairs used" in told[0] and not any("regions" in line for line in told)


def test_a_frame_that_is_there_twice_is_found_among_negatives_too(tmp_path):
    for n, (seed, mask) in enumerate([(5, 0 * disc()), (5, 0 * disc()), (6, 0 * disc()), (6, disc(3)), (7, disc(4))]):
        pair(tmp_path, f"frame{n}", seed, mask=mask)
    pairs = loading.load_pairs(tmp_path)
    findings, _ = verification.verify_pairs(pairs, negatives=True)
    assert checks(findings)["duplicate_image"] == {"frame1", "frame2", "frame3"}
    assert "duplicate_image" not in checks(verification.verify_pairs(pairs)[0])


def test_a_run_folder_from_before_there_were_negatives_has_none(some_empty, tmp_path):
    run = tmp_path / "run"
    loading.write_manifest(run, data=str(some_empty))
    made = read_json(run / "data.json")
    assert made.pop("negatives") is False
    write_json(run / "data.json", made)
    stages.ensure_manifest(run, data=str(some_empty), negatives=False)
    with pytest.raises(FetalsegError, match="made with negatives False, not True"):
        stages.ensure_manifest(run, data=str(some_empty), negatives=True)


def test_empty_masks_are_left_out_and_counted(tmp_path):
    for n in range(12):
        pair(tmp_path, str(n), n % 6 + 20 * n, mask=0 * disc() if n % 3 == 0 else disc(n % 6))
    pairs, findings, measurements = checked(tmp_path)
    assert checks(findings)["empty_mask"] == {"0", "3", "6", "9"} and len(measurements) == 8
    assert "24 files found: 8 pairs used, each an examination of its own" in next(
        report.lines(pairs, findings, measurements)
    )


# D: examinations


@pytest.fixture
def frames_of_patients(tmp_path):
    for n in range(24):
        pair(tmp_path / "data", f"P{n // 4:02d}_f{n % 4}", n, mask=disc(n % 12))
    return tmp_path / "data"


def test_where_nothing_tells_examinations_one_line_says_that_each_image_is_one(frames_of_patients):
    assert any("no two images are known" in line for line in report.lines(*checked(frames_of_patients)))


@pytest.mark.parametrize("given_as", ["table", "names of files", "pattern", "pattern without a group"])
def test_examinations_can_be_given(tmp_path, frames_of_patients, given_as):
    ending = ".png" if given_as == "names of files" else ""
    rows = [(f"P{n // 4:02d}_f{n % 4}{ending}", f"exam {n // 4}") for n in range(24)]
    pd.DataFrame(rows, columns=["file", "patient"]).to_csv(tmp_path / "who.csv", index=False)
    how = {"pattern": r"(P\d+)_", "pattern without a group": r"P\d+"}.get(given_as, str(tmp_path / "who.csv"))
    manifest = loading.write_manifest(tmp_path / "run", data=str(frames_of_patients), examinations=how)
    assert manifest.groupby("examination").split.nunique().eq(1).all() and manifest.examination.nunique() == 6
    findings, _, _ = verification.write_verification(tmp_path / "run")
    assert "examination_across_splits" not in set(findings.check)
    assert "24 pairs used, of 6 examinations" in report.of_run(tmp_path / "run")


@pytest.mark.parametrize("wrong", ["absent.csv", "(", "one row.csv", "P00"])
def test_examinations_that_cannot_be_read_or_leave_images_out_are_refused(tmp_path, frames_of_patients, wrong):
    (tmp_path / "one row.csv").write_text("image,patient\nP00_f0,1\n")
    examinations = str(tmp_path / wrong) if wrong.endswith(".csv") else wrong
    with pytest.raises(FetalsegError, match=r"is no CSV and no pattern|says nothing of 2[03] images, such as P0"):
        loading.load_pairs(frames_of_patients, examinations)


# E: nothing vanishes in the walk


def test_folders_called_normal_are_classes_only_beside_a_malignant_one(tmp_path):
    for n in range(8):
        pair(tmp_path / ("normal" if n < 4 else "abnormal"), str(n), n)
    assert len(checked(tmp_path)[2]) == 8
    assert len(checked(tmp_path / "normal")[2]) == 4
    pair(tmp_path / "malignant", "9", 9)
    _, findings, measurements = checked(tmp_path)
    assert len(measurements) == 5 and checks(findings) == {"set_aside": {"(normal)"}}
    assert findings.detail[0].startswith("8 files, such as normal/0.png")


def test_links_are_followed_once(tmp_path):
    for n in range(3):
        pair(tmp_path / "elsewhere", str(n), n)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "data" / "again").symlink_to(tmp_path / "data", target_is_directory=True)
    (tmp_path / "elsewhere" / "round").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert len(checked(tmp_path / "data")[2]) == 3


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may open every folder: run as another"
)
def test_a_folder_that_may_not_be_opened_is_named(tmp_path):
    pair(tmp_path, "1", 1)
    pair(tmp_path / "closed", "2", 2)
    (tmp_path / "closed").chmod(0)
    try:
        with pytest.raises(FetalsegError, match=r"closed cannot be opened"):
            loading.load_pairs(tmp_path)
    finally:
        (tmp_path / "closed").chmod(0o755)


# F: orientation


@pytest.mark.parametrize(("tag", "turns"), [(3, 2), (6, 3), (8, 1)])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_an_image_is_read_as_its_exif_tag_turns_it(tmp_path, tag, turns, suffix):
    grey = cv2.GaussianBlur(picture(1), (0, 0), 3)
    image = Image.fromarray(grey)
    exif = image.getexif()
    exif[274] = tag
    image.save(tmp_path / f"a{suffix}", exif=exif, quality=95)
    read = loading.read_grey(tmp_path / f"a{suffix}")
    expected = np.rot90(grey, turns)
    assert read.shape == expected.shape == loading.image_size(tmp_path / f"a{suffix}")[::-1]
    assert np.abs(read.astype(int) - expected).mean() < 3


# what once was paired wrongly, or read wrongly, without a word


def test_a_lone_image_and_a_lone_mask_of_two_patients_or_sets_are_no_pair(tmp_path):
    pair(tmp_path / "patient_1", "a", 1)
    put(tmp_path / "patient_7" / "scan.png", picture(2))
    put(tmp_path / "patient_8" / "scan_mask.png", disc(2))
    pair(tmp_path / "training_set", "001_HC", 3)
    put(tmp_path / "training_set" / "005_HC_Annotation.png", disc(3))
    put(tmp_path / "test_set" / "005_HC.png", picture(4))
    put(tmp_path / "images" / "P1" / "1.png", picture(5))
    put(tmp_path / "masks" / "P2" / "1.png", disc(4))
    put(tmp_path / "train" / "P3" / "torn.png", picture(6))
    put(tmp_path / "test" / "P4" / "torn_mask.png", disc(5))
    _, findings, measurements = checked(tmp_path)
    assert set(measurements.index) == {"a", "001_HC"} and checks(findings)["ambiguous_name"] == {
        "scan", "005_HC", "1", "torn",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["Patient_{}", "P0{}", "Case{}", "Subject 0{}", "patient-{}", "pt_{}", "case_{}_2023"])
def test_folders_of_patients_are_recognised_however_they_are_written(tmp_path, name):
    for n in range(8):
        pair(tmp_path / name.format(n // 2), f"frame{n}", n)
    assert loading.load_pairs(tmp_path).groupby("examination").size().tolist() == [2, 2, 2, 2]


def test_a_single_numbered_folder_is_no_patient(tmp_path):
    for n in range(4):
        pair(tmp_path / "2023", f"frame{n}", n)
    assert loading.load_pairs(tmp_path).examination.nunique() == 4


def test_noise_and_halos_of_a_jpeg_are_no_labels(tmp_path):
    for quality in (98, 95, 80):
        Image.fromarray(disc(value=254)).save(tmp_path / "a.jpg", quality=quality)
        assert np.array_equal(loading.read_mask(tmp_path / "a.jpg")[0], disc())
    put(tmp_path / "a.png", np.maximum(disc(), picture(1) % 4))
    assert np.array_equal(loading.read_mask(tmp_path / "a.png")[0], disc())
    smooth = cv2.GaussianBlur(disc(), (0, 0), 15)
    Image.fromarray(np.float32(smooth / 255)).save(tmp_path / "map.tif")
    put(tmp_path / "map.png", smooth)
    for name in ("map.tif", "map.png"):
        with pytest.raises(FetalsegError, match="a picture or a map, no mask"):
            loading.read_mask(tmp_path / name)


def test_labels_of_several_colours_are_all_the_region_and_counted(tmp_path):
    colours = cv2.merge([0 * disc(), disc(2, 12), disc() - np.minimum(disc(), disc(2, 12))])
    put(tmp_path / "colours.png", colours)
    indexed = Image.fromarray((disc() > 0) * np.uint8(1) + (disc(2, 12) > 0), "P")
    indexed.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    indexed.save(tmp_path / "palette.png")
    for name in ("colours.png", "palette.png"):
        mask, said = loading.read_mask(tmp_path / name)
        assert np.array_equal(mask > 0, (disc() > 0) | (disc(2, 12) > 0)) and said.startswith("3 labels up to 2")


def test_a_mask_inverted_inside_a_thin_black_frame_is_inverted(tmp_path):
    inverted = 255 - disc()
    inverted[[0, -1]] = inverted[:, [0, -1]] = 0
    pair(tmp_path, "framed", 1, mask=inverted)
    pair(tmp_path, "cornered", 2, mask=255 - cv2.circle(0 * disc(), (10, 10), 40, 255, -1))
    assert checks(checked(tmp_path)[1]) == {"inverted_mask": {"framed", "cornered"}}


def test_a_dotted_outline_is_pointed_out(tmp_path):
    dotted = 0 * disc()
    for angle in np.linspace(0, 2 * np.pi, 24, endpoint=False):
        cv2.circle(dotted, (int(80 + 35 * np.cos(angle)), int(54 + 35 * np.sin(angle))), 1, 255, -1)
    pair(tmp_path, "dotted", 1, mask=dotted)
    assert checks(checked(tmp_path)[1]) == {"sparse_mask": {"dotted"}}


def test_masks_that_contradict_each_other_are_both_left_out(tmp_path):
    for folder, radius in (("new", 30), ("old", 20)):
        put(tmp_path / folder / "1.png", picture(1))
        put(tmp_path / folder / "1_mask.png", disc(radius=radius))
    assert len(checks(checked(tmp_path)[1])["duplicate_image"]) == 2


def test_one_ending_in_a_folder_of_masks_does_not_make_images_of_the_others(tmp_path):
    for n in range(5):
        put(tmp_path / "images" / f"{n}.png", picture(n))
        put(tmp_path / "masks" / (f"{n}_mask.png" if n == 4 else f"{n}.png"), disc(n))
    assert len(checked(tmp_path)[2]) == 5
    for n in range(5):
        put(tmp_path / "predictions" / f"{n}_pred.png", disc(n))
    scores, problems = folders.score_folder(tmp_path / "predictions", tmp_path / "masks")
    assert list(scores.image_id) == ["4"] and set(problems.problem) == {"extra"}  # none without a word


def test_predictions_and_masks_of_patients_are_matched_patient_by_patient(tmp_path):
    for n in range(3):
        put(tmp_path / "p" / f"P{n}" / "frame_pred.png", disc(n))
        put(tmp_path / "t" / f"P{n}" / "frame_mask.png", disc(n))
    scores, problems = folders.score_folder(tmp_path / "p", tmp_path / "t")
    assert (
        scores.image_id.tolist() == ["p0/frame", "p1/frame", "p2/frame"] and set(scores.dice) == {1} and problems.empty
    )
    put(tmp_path / "p" / "P7" / "other_pred.png", disc(1))
    put(tmp_path / "t" / "P8" / "other_mask.png", disc(1))
    scores, problems = folders.score_folder(tmp_path / "p", tmp_path / "t")
    assert len(scores) == 3 and dict(zip(problems.image_id, problems.problem, strict=True)) == {
        "p7/other": "extra", "p8/other": "missing",
    }  # fmt: skip


def test_a_table_of_examinations_may_be_written_in_several_ways_but_not_contradict_itself(tmp_path, frames_of_patients):
    rows = [(f"P{n // 4:02d}_f{n % 4}", f"P{n // 4} ") for n in range(24)]
    (tmp_path / "a.csv").write_text("\ufeffimage;patient\n" + "".join(f"{a}.PNG ; {b}\n" for a, b in rows), "utf-8")
    assert loading.load_pairs(frames_of_patients, str(tmp_path / "a.csv")).examination.nunique() == 6
    (tmp_path / "b.csv").write_text("image,patient\n" + "".join(f"{a},{b}\n" for a, b in [*rows, ("P00_f0", "P9")]))
    for wrong, sentence in ((str(tmp_path / "b.csv"), "P00_f0 is in two examinations"), (r"\d*", "says nothing of 24")):
        with pytest.raises(FetalsegError, match=sentence):
            loading.load_pairs(frames_of_patients, wrong)


def test_linked_files_are_not_taken_for_changed_ones(tmp_path):
    for n in range(4):
        pair(tmp_path / "elsewhere", str(n), n)
    (tmp_path / "data").mkdir()
    for path in (tmp_path / "elsewhere").iterdir():
        (tmp_path / "data" / path.name).symlink_to(path)
    made = stages.ensure_manifest(tmp_path / "run", data=str(tmp_path / "data"))
    pd.testing.assert_frame_equal(stages.ensure_manifest(tmp_path / "run", data=str(tmp_path / "data")), made)


@pytest.mark.skipif(os.name != "posix", reason="only there are pipes files")
def test_pipes_and_links_to_themselves_neither_hang_nor_crash(tmp_path):
    pair(tmp_path, "1", 1)
    put(tmp_path / "2_mask.png", disc(2))
    put(tmp_path / "3.png", picture(3))
    os.mkfifo(tmp_path / "2.png")
    (tmp_path / "3_mask.png").symlink_to(tmp_path / "3_mask.png")
    _, findings, measurements = checked(tmp_path)
    assert list(measurements.index) == ["1"]
    assert checks(findings) == {"orphan_mask": {"2"}, "unreadable": {"3"}, "set_aside": {"(other)"}}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux takes names of any bytes")
def test_a_name_that_is_no_text_goes_through_the_run_folder(tmp_path):
    for n in range(4):
        pair(tmp_path / "data", f"b\udcff{n}", n)
    stages.ensure_verified(tmp_path / "run", 16, 16, "scale", data=str(tmp_path / "data"))
    assert len(verification.usable_pairs(tmp_path / "run")) == 4


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colours_of_16_bits_are_masks_or_refused_but_no_crash(tmp_path, mode):
    deep = np.dstack([disc() * np.uint16(257)] * len(mode))
    put(tmp_path / "a.png", deep)
    assert np.array_equal(loading.read_mask(tmp_path / "a.png")[0], disc())
    with pytest.raises(FetalsegError, match="16 bits"):
        loading.read_grey(tmp_path / "a.png")


def test_moving_pictures_are_refused(tmp_path):
    frames = [Image.fromarray(picture(n)) for n in range(3)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    with pytest.raises(FetalsegError, match="holds 3 images"):
        loading.read_grey(tmp_path / "a.png")


# J: what is not read, and names


def test_other_formats_are_counted_with_what_helps(tmp_path):
    for n in range(4):
        pair(tmp_path, str(n), n)
        (tmp_path / f"{n}.dcm").write_bytes(b"\0" * 128 + b"DICM")
        (tmp_path / f"{n}.nii.gz").write_bytes(b"\x1f\x8b\x08\0")
    _, findings, measurements = checked(tmp_path)
    assert len(measurements) == 4 and checks(findings) == {"set_aside": {"(unread)"}}
    assert findings.detail[0].startswith("8 files, such as 0.dcm") and "8-bit PNG" in findings.detail[0]
    (tmp_path / "renamed.png").write_bytes(b"\0" * 128 + b"DICM")
    for name in ("0.dcm", "0.nii.gz", "renamed.png"):
        with pytest.raises(FetalsegError, match="save its frames as 8-bit PNG"):
            loading.read_grey(tmp_path / name)


def test_accents_written_as_one_letter_or_two_are_the_same_name(tmp_path):
    put(tmp_path / "fu\u0308nf.png", picture(1))
    put(tmp_path / "f\u00fcnf_Annotation.png", disc(1))
    assert list(checked(tmp_path)[2].index) == ["f\u00fcnf"]


def test_predictions_beside_images_are_no_images(tmp_path):
    pair(tmp_path, "1", 1)
    put(tmp_path / "1_Predicted_Mask.png", disc(1))
    assert checks(checked(tmp_path)[1]) == {"set_aside": {"(prediction)"}}
    scores, problems = folders.score_folder(tmp_path, tmp_path)
    assert list(scores.dice) == [1] and list(problems.problem) == ["passed over"]
    assert len(predict_folder(lambda image: np.uint8(image > 127), tmp_path, tmp_path)[0]) == 1
    assert len(predict_folder(lambda image: np.uint8(image > 127), tmp_path, tmp_path)[0]) == 1


# the law: files found = used + set aside with a reason

PLACES = [
    "",
    "",
    "train/malignant",
    "test/malignant",
    "Datasets/malignant",
    "train/benign",
    "normal",
    "images",
    "masks",
]
PLACES += ["images/a", "labels/a", "patient_1", "patient_2", ".cache", "__MACOSX"]
ENDINGS = [".png", ".png", "_Annotation.png", "_Annotation.png", "_mask.png", ".jpg", "_pred.png", ".dcm", ".txt"]
CONTENTS = [
    encoded(image[::4, ::4].copy()) for image in (picture(1), picture(2), disc(), disc(3), disc(2, thickness=8))
]
CONTENTS += [encoded(255 - disc()[::4, ::4]), encoded(0 * disc()[::4, ::4]), CONTENTS[0][:60], b""]
FILES = st.tuples(st.sampled_from(PLACES), st.sampled_from(["1_HC", "2", "a"]), st.sampled_from(ENDINGS))
NUMBERS = st.sampled_from([0, 0, 0, 1, 1, 1, *range(len(CONTENTS))])  # sound files first
TREES = st.dictionaries(FILES, NUMBERS, min_size=1, max_size=16)


def grow(root, tree):
    """Write a tree; gives its files."""
    for (place, stem, ending), number in tree.items():
        of_mask = "_" in ending or place in ("masks", "labels/a")
        put(Path(root, place, stem + ending), CONTENTS[(number + 2 * of_mask) % len(CONTENTS)])
    return sorted(path for path in Path(root).rglob("*") if path.is_file())


def obeys(root, files):
    """Whether each file below a folder is used, or has a reason, in every command; how many pairs were used."""
    used = 0
    try:
        pairs, findings, measurements = checked(root)
    except FetalsegError as error:
        assert "holds no pair" in str(error) or "holds no image file" in str(error)
    else:
        assert sorted(path for some in pairs.files for path in some) == files
        bad = set(findings.image_id[(findings.severity == "error") | (findings.check == "set_aside")])
        kept = pairs[~pairs.image_id.isin(bad)]
        assert set(kept.image_id) <= set(measurements.index) and not pairs.image_id.duplicated().any()
        copied = kept.image_id[kept.files.map(len) > 2]
        assert set(copied) <= set(findings.image_id[findings.check == "copies"])
        assert kept.mask_path.is_unique
        for row in kept.itertuples():  # never a stranger: the partner beside it, or the only one
            names = {path.name for path in files if path.name.startswith(Path(row.image_path).stem)}
            assert loading.read_name(row.mask_path, True)[0] == loading.read_name(row.image_path, False)[0], names
        used = len(kept)
    out = Path(root).with_name(Path(root).name + "-out")
    try:
        table, problems, passed = predict_folder(lambda image: np.uint8(image > 127), Path(root), out)
        assert len(table) + len(problems) + sum(int(line.split()[0]) for line in passed) == len(files)
    except FetalsegError as error:
        assert any(part in str(error) for part in ("would both write", "holds no image"))
    try:
        scores, problems = folders.score_folder(root, root)
    except FetalsegError as error:
        assert any(part in str(error) for part in ("no prediction in", "holds no image"))
    else:
        assert not scores.image_id.duplicated().any()
        about = " ".join(problems.file + " " + problems.detail)
        for path in files:
            stem, kind = loading.read_name(path, False)
            named = {image_id.rsplit("/", 1)[-1] for image_id in (*scores.image_id, *problems.image_id)}
            assert stem in named or path.name in about, kind
    return used


@settings(max_examples=60, deadline=None)
@given(tree=TREES)
def test_every_file_found_is_used_or_set_aside_with_a_reason(tree):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "data")
        obeys(root, grow(root, tree))


def test_train_and_run_use_what_verify_says(tmp_path):
    tree = {("train/malignant", "1_HC", ending): number for ending, number in ((".png", 0), ("_Annotation.png", 0))}
    tree |= {("test/malignant", "2", ending): number for ending, number in ((".png", 1), ("_Annotation.png", 3))}
    tree |= {("Datasets/malignant", "1_HC", ".png"): 0, ("train/benign", "a", ".png"): 1, ("", "a", ".dcm"): 0}
    for n in range(4):
        tree |= {("train/malignant", f"{n + 5}_HC", ".png"): 0, ("train/malignant", f"{n + 5}_HC", "_mask.png"): 1}
    files = grow(tmp_path / "data", tree)
    for number, path in enumerate(path for path in files if path.name.endswith("HC.png") and path.name[0] in "5678"):
        put(path, picture(10 + number)[::4, ::4].copy())
    pairs, findings, measurements = checked(tmp_path / "data")
    stages.ensure_verified(tmp_path / "run", 16, 16, "scale", data=str(tmp_path / "data"))
    used = verification.usable_pairs(tmp_path / "run")
    bad = set(findings.image_id[findings.severity == "error"])
    assert set(used.image_id) == set(measurements.index) - bad == {"1_HC", "5_HC", "6_HC", "7_HC", "8_HC"}
    assert report.of_run(tmp_path / "run").startswith(next(report.lines(pairs, findings, measurements))[:-1])


def test_files_of_users_are_decoded_in_one_place_only():  # `checks` opens figures that it has just drawn
    for path in (project_root() / "fetalseg_helpers").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        found = [word for word in ("imread", "imdecode", "Image.open") if word in text]
        assert found == (["Image.open"] if path.name in ("loading.py", "checks.py") else []), path.name
