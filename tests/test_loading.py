"""From trees of files to pairs, examinations, splits and the manifest."""

import csv
import os
import shutil
import struct
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from shapes import contents, encoded, noise, save_pair, write_pairs

from fetalseg_helpers import loading
from fetalseg_helpers.running import stages
from fetalseg_helpers.workspace import FetalsegError, project_root

INNER = Path("Ultrasound Fetus Dataset", "Ultrasound Fetus Dataset", "Data", "Data")
SPLIT_FOLDERS = ("train", "validation", "test")


def touch(root, *names):
    """Empty files: enough to find and to pair."""
    for name in names:
        (Path(root) / name).parent.mkdir(parents=True, exist_ok=True)
        (Path(root) / name).touch()
    return Path(root)


def pairs_of(root):
    return loading.match_pairs(loading.find_files(root)).set_index("image_id")


def complete(pairs):
    return set(pairs.index[pairs.image_path.notna() & pairs.mask_path.notna()])


# pairing


def test_image_and_outline_are_paired_across_split_folders(tmp_path):
    touch(tmp_path, "train/malignant/1_HC.png", "test/malignant/1_HC_Annotation.png")
    row = pairs_of(tmp_path).loc["1_HC"]
    assert row.image_path == tmp_path / "train/malignant/1_HC.png"
    assert row.mask_path == tmp_path / "test/malignant/1_HC_Annotation.png"
    assert (row.folder, row.mask_folder) == ("train", "test") and set(row.files) == {row.image_path, row.mask_path}


@settings(max_examples=25)
@given(
    places=st.dictionaries(
        st.integers(1, 999), st.tuples(st.sampled_from(SPLIT_FOLDERS), st.sampled_from(SPLIT_FOLDERS)), min_size=1
    ),
    capitalised=st.booleans(),
    depth=st.sampled_from([Path(), Path("Data"), INNER]),
)
def test_no_pair_is_lost_wherever_its_files_lie(places, capitalised, depth):
    with tempfile.TemporaryDirectory() as root:
        for number, folders in places.items():
            for folder, ending in zip(folders, ("", "_Annotation"), strict=True):
                inner = f"{folder}/malignant"
                inner = inner.title() if capitalised else inner
                touch(root, depth / inner / f"{number}_HC{ending}.png")
        pairs = pairs_of(root)
    assert complete(pairs) == {f"{number}_HC" for number in places}
    seen = {name: (row.folder, row.mask_folder) for name, row in pairs.iterrows()}
    short = {"train": "train", "validation": "valid", "test": "test"}
    assert seen == {f"{n}_HC": (short[image], short[mask]) for n, (image, mask) in places.items()}


LEVELS = {
    ".": ("train", "valid"),
    "Ultrasound Fetus Dataset": ("train", "valid"),
    str(INNER.parent): ("train", "valid"),
    str(INNER): ("train", "valid"),
}


@pytest.mark.parametrize("level", LEVELS)
def test_any_level_of_the_tree_will_do(tmp_path, level):
    touch(tmp_path / INNER, "train/malignant/1_HC.png", "validation/malignant/1_HC_Annotation.png")
    touch(tmp_path / INNER, "train/benign/B_1.png", "Datasets/malignant/1_HC.png", "Datasets/benign/B_1.png")
    row = pairs_of(tmp_path / level).loc["1_HC"]
    assert (row.folder, row.mask_folder) == LEVELS[level] and len(row.files) == 3
    assert len(pairs_of(tmp_path / level)) == 1


def test_one_split_folder_or_its_malignant_folder_will_do(tmp_path):
    touch(tmp_path / "Train", "Malignant/1_HC.png", "Malignant/1_HC_Annotation.png", "Benign/B_1.png")
    outer, inner = pairs_of(tmp_path / "Train"), pairs_of(tmp_path / "Train" / "Malignant")
    assert complete(outer) == complete(inner) == {"1_HC"}
    assert outer.folder.item() == "train"


def test_a_flat_folder_of_ones_own_will_do(tmp_path):
    touch(tmp_path, "scan a.png", "scan a_Annotation.png", "scan b.PNG", "scan b_ANNOTATION.PNG")
    assert complete(pairs_of(tmp_path)) == {"scan a", "scan b"}


def test_the_copy_in_a_split_folder_is_taken_before_the_one_in_datasets(tmp_path):
    for ending in ("", "_Annotation"):
        touch(tmp_path, f"Datasets/malignant/1_HC{ending}.png", f"validation/malignant/1_HC{ending}.png")
        touch(tmp_path, f"Datasets/malignant/2_HC{ending}.png")
    pairs = pairs_of(tmp_path)
    assert pairs.loc["1_HC"].image_path == tmp_path / "validation/malignant/1_HC.png"
    assert pairs.loc["1_HC"].mask_path == tmp_path / "validation/malignant/1_HC_Annotation.png"
    assert pairs.files.map(len).to_dict() == {"1_HC": 4, "2_HC": 2}
    assert pairs.loc["2_HC"].folder == ""


def test_leavings_of_other_systems_are_ignored(tmp_path):
    touch(tmp_path, "malignant/1_HC.png", "malignant/1_HC_Annotation.png")
    touch(tmp_path, "__MACOSX/malignant/._1_HC.png", "__MACOSX/malignant/9_HC.png", "malignant/._1_HC.png")
    touch(tmp_path, ".unfinished-x/malignant/8_HC.png", "malignant/Thumbs.db", "malignant/FetusDataset.csv")
    files = loading.find_files(tmp_path)
    kinds = {kind: sorted(path.name for path in some.path) for kind, some in files.groupby("kind")}
    assert kinds.pop("hidden") == ["._1_HC.png", "._1_HC.png", "8_HC.png", "9_HC.png"]
    assert kinds == {
        "image": ["1_HC.png"],
        "outline": ["1_HC_Annotation.png"],
        "other": ["FetusDataset.csv", "Thumbs.db"],
    }
    assert complete(pairs_of(tmp_path)) == {"1_HC"}


def test_benign_and_normal_are_counted_and_never_paired(tmp_path):
    for tissue in ("benign", "malignant", "Normal"):
        touch(tmp_path, f"train/{tissue}/1_HC.png", f"train/{tissue}/1_HC_Annotation.png", f"test/{tissue}/2_HC.png")
    files = loading.find_files(tmp_path)
    pairs = loading.match_pairs(files)
    assert {path.parent.name for path in [*pairs.image_path, *pairs.mask_path.dropna()]} == {"malignant"}
    assert complete(pairs.set_index("image_id")) == {"1_HC"}
    assert set(files.value_counts(["tissue", "kind", "folder"])) == {1} and len(files) == 9


def test_a_missing_partner_is_none_and_the_name_stays(tmp_path):
    touch(tmp_path, "1_HC.png", "2_HC_Annotation.png", "10_HC.png", "10_HC_Annotation.png")
    pairs = pairs_of(tmp_path)
    assert list(pairs.index) == ["1_HC", "2_HC", "10_HC"]
    assert pairs.loc["1_HC"].mask_path is None and pairs.loc["2_HC"].image_path is None


def test_images_alone_or_outlines_alone_are_listed_and_refused_as_data(tmp_path):
    for ending in ("", "_Annotation"):
        root = touch(tmp_path / f"only{ending}", f"1_HC{ending}.png", f"2_HC{ending}.png")
        assert len(pairs_of(root)) == 2
        with pytest.raises(FetalsegError, match=r"holds no pair of NAME\.png and NAME_Annotation\.png"):
            loading.load_pairs(root)


def test_a_folder_without_images_or_no_folder_is_named(tmp_path):
    (tmp_path / "notes.txt").touch()
    for folder, sentence in ((tmp_path, "holds no image file"), (tmp_path / "absent", "is not a folder")):
        with pytest.raises(FetalsegError, match=sentence) as caught:
            loading.find_files(folder)
        assert str(folder) in str(caught.value)


@settings(max_examples=50)
@example(names=["3²", "²", "٣_HC"])
@given(names=st.lists(st.text(min_size=1, max_size=8)))
def test_any_names_can_be_put_in_order(names):
    assert sorted(sorted(names, key=loading.natural_order)) == sorted(names)


def test_numbers_in_names_are_ordered_as_numbers():
    names = ["10_HC", "2_HC", "2_2HC", "b", "1_HC", "a10", "a9"]
    assert sorted(names, key=loading.natural_order) == ["1_HC", "2_2HC", "2_HC", "10_HC", "a9", "a10", "b"]


# examinations


def grouped(names):
    """Examinations as a set of sets of names."""
    groups = {}
    for name, examination in loading.find_examinations(names).items():
        groups.setdefault(examination, set()).add(name)
    return sorted(map(sorted, groups.values()))


def test_a_suffix_that_does_not_rise_starts_a_new_examination():
    names = ["1_2HC", "2_3HC", "3_HC", "4_HC", "5_2HC", "6_4HC", "7_7HC", "8_HC", "9_2HC", "10_2HC"]
    expected = [["1_2HC", "2_3HC", "3_HC"], ["4_HC"], ["5_2HC", "6_4HC", "7_7HC", "8_HC"], ["9_2HC"], ["10_2HC"]]
    assert grouped(names) == sorted(map(sorted, expected))
    assert grouped(names[::-1]) == grouped(names)


def test_frames_that_share_an_hc18_number_are_one_examination():
    names = ["000_HC", "010_HC", "010_2HC", "011_2HC", "012_HC", "012_3HC"]
    expected = [["000_HC"], ["010_2HC", "010_HC"], ["011_2HC"], ["012_3HC", "012_HC"]]
    assert grouped(names) == expected


def test_names_of_another_form_are_examinations_of_their_own():
    names = ["scan", "12_hc", "12_HC_b", "a_12_HC", "12-HC", "HC", "胎儿"]
    assert loading.find_examinations(names) == {name: name for name in names}
    assert grouped(["1_2HC", "scan", "2_HC"]) == [["1_2HC", "2_HC"], ["scan"]]


def test_no_names_have_no_examinations():
    assert loading.find_examinations([]) == {}


@given(st.lists(st.integers(1, 4), min_size=1, max_size=60))
def test_examinations_of_rising_suffixes_that_end_in_hc_are_found_exactly(sizes):
    truth, number = [], 0
    for size in sizes:
        group = []
        for suffix in (*("2HC", "3HC", "4HC")[: size - 1], "HC"):
            number += 1
            group.append(f"{number}_{suffix}")
        truth.append(sorted(group))
    assert grouped([name for group in truth for name in group]) == sorted(truth)


# splits


def table(sizes, folders=("train",)):
    """Pairs in examinations of the given sizes."""
    names = [f"e{number}" for number, size in enumerate(sizes) for _ in range(size)]
    return pd.DataFrame(
        {
            "image_id": [f"i{number}" for number in range(len(names))],
            "examination": names,
            "folder": [folders[number % len(folders)] for number in range(len(names))],
        }
    )


@settings(max_examples=60)
@given(sizes=st.lists(st.integers(1, 6), min_size=3, max_size=60), seed=st.integers(0, 2**31 - 1))
def test_an_examination_never_crosses_a_split_and_the_shares_hold(sizes, seed):
    pairs = table(sizes)
    split = loading.split_pairs(pairs, seed=seed)
    assert pairs.groupby("examination").apply(lambda frames: split[frames.index].nunique()).eq(1).all()
    held_out = max(1, round(len(sizes) / 10))
    units = {name: pairs.examination[split == name].nunique() for name in ("train", "valid", "test")}
    assert units == {"train": len(sizes) - 2 * held_out, "valid": held_out, "test": held_out}
    assert list(split) == list(loading.split_pairs(pairs, seed=seed))


def test_a_hundred_examinations_of_one_frame_are_split_80_10_10():
    split = loading.split_pairs(table([1] * 100), seed=3)
    assert split.value_counts().to_dict() == {"train": 80, "valid": 10, "test": 10}


def test_another_seed_is_another_split():
    pairs = table([1] * 100)
    splits = {tuple(loading.split_pairs(pairs, seed=seed)) for seed in range(10)}
    assert len(splits) == 10


def test_the_rows_may_have_any_index():
    pairs = table([2] * 20)
    moved = pairs.set_axis(range(100, 140))
    assert list(loading.split_pairs(moved)) == list(loading.split_pairs(pairs))
    assert list(loading.split_pairs(moved).index) == list(moved.index)


def test_a_split_by_image_keeps_the_shares_of_images_and_tears_examinations():
    pairs = table([5] * 20)
    split = loading.split_pairs(pairs, by="image")
    assert split.value_counts().to_dict() == {"train": 80, "valid": 10, "test": 10}
    assert pairs.groupby("examination").apply(lambda frames: split[frames.index].nunique()).max() > 1


def test_a_split_by_folder_is_the_data_sets_own():
    pairs = table([1] * 9, folders=("train", "valid", "test"))
    assert list(loading.split_pairs(pairs, by="folder")) == ["train", "valid", "test"] * 3


@pytest.mark.parametrize("folders", [("train", "valid", "test", ""), ("train", "test")])
def test_a_split_by_folder_needs_every_image_in_one_of_three(folders):
    with pytest.raises(FetalsegError, match="split_by = 'folder' needs images in all three"):
        loading.split_pairs(table([1] * 8, folders), by="folder")


@pytest.mark.parametrize(("sizes", "by"), [([4, 4], "examination"), ([9], "examination"), ([2], "image")])
def test_too_few_units_are_counted_in_the_refusal(sizes, by):
    with pytest.raises(FetalsegError, match=rf"^{len(sizes) if by == 'examination' else 2} {by}s? cannot be split"):
        loading.split_pairs(table(sizes), by=by)


def test_an_unknown_unit_is_not_taken_for_another():
    with pytest.raises((FetalsegError, ValueError, KeyError)):
        loading.split_pairs(table([3] * 20), by="exam")


# reading


def refused(path):
    """The one sentence with which a file is refused; it must name the file."""
    with pytest.raises(FetalsegError) as caught:
        loading.read_grey(path)
    message = str(caught.value)
    assert path.name in message and message.endswith((".", "?")) and "\n" not in message
    return message


def test_a_grey_image_is_read_pixel_by_pixel_from_any_path(tmp_path):
    folder = tmp_path / "ein Ordner ü 胎儿"
    folder.mkdir()
    (folder / "bild ß.png").write_bytes(encoded(noise()))
    assert np.array_equal(loading.read_grey(folder / "bild ß.png"), noise())
    assert loading.image_size(folder / "bild ß.png") == (16, 12)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_a_colour_image_is_read_as_grey(tmp_path, suffix):
    colour = np.stack([noise(1), noise(2), noise(3)], axis=2)  # blue, green, red
    path = tmp_path / f"colour{suffix}"
    path.write_bytes(encoded(colour, suffix))
    expected = colour @ [0.114, 0.587, 0.299]  # ITU-R BT.601
    grey = loading.read_grey(path)
    assert grey.shape == (12, 16) and grey.dtype == np.uint8
    assert np.abs(grey - expected).max() < 1


def test_an_image_with_transparency_is_read_as_its_grey(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(np.dstack([noise()] * 3 + [noise(1)])))
    assert np.array_equal(loading.read_grey(tmp_path / "a.png"), noise())


@pytest.mark.parametrize("kept", [10, 20, 24, 40, 0.5, -12, -13])
def test_a_truncated_png_is_refused_and_named(tmp_path, kept):
    whole = encoded(noise(0, 100, 120))
    path = tmp_path / "half.png"
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    assert refused(path).endswith(": copy or download it again.")


@pytest.mark.parametrize("suffix", [".jpg", ".bmp", ".tif"])
def test_other_truncated_formats_are_refused_and_named(tmp_path, suffix):
    path = tmp_path / f"half{suffix}"
    whole = encoded(noise(0, 100, 120), suffix)
    path.write_bytes(whole[: len(whole) // 2])
    refused(path)


@pytest.mark.parametrize("place", [0.2, 0.5, 0.9])
def test_a_damaged_png_is_refused_and_named(tmp_path, place):
    whole = bytearray(encoded(noise(0, 100, 120)))
    whole[int(place * len(whole))] ^= 0xFF
    (tmp_path / "damaged.png").write_bytes(whole)
    refused(tmp_path / "damaged.png")


def test_a_zero_byte_file_is_refused_and_named(tmp_path):
    (tmp_path / "zero.png").touch()
    refused(tmp_path / "zero.png")
    assert loading.image_size(tmp_path / "zero.png") == (0, 0)


def test_a_text_file_named_png_is_refused_and_named(tmp_path):
    (tmp_path / "text.png").write_text("not a picture\n" * 100)
    assert "not an image" in refused(tmp_path / "text.png")
    assert loading.image_size(tmp_path / "text.png") == (0, 0)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_16_bit_image_is_refused_and_not_cut_to_8(tmp_path, suffix):
    path = tmp_path / f"deep{suffix}"
    path.write_bytes(encoded(noise().astype(np.uint16) * 257, suffix))
    assert "16" in refused(path) and "8-bit" in refused(path)


def test_a_png_header_that_claims_too_much_is_refused_before_decoding(tmp_path, monkeypatch):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 200_000, 200_000, 8, 0, 0, 0, 0))
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b""))
    monkeypatch.delattr(Image.Image, "convert")
    assert "more pixels" in refused(path)


@pytest.mark.parametrize("side", [30_000, 60_000])
def test_a_bmp_header_that_claims_too_much_is_refused_and_named(tmp_path, side):
    header = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
    (tmp_path / "huge.bmp").write_bytes(b"BM" + struct.pack("<IHHI", 154, 0, 0, 54) + header + bytes(100))
    refused(tmp_path / "huge.bmp")


def test_a_missing_file_and_a_folder_are_refused_and_named(tmp_path):
    (tmp_path / "folder.png").mkdir()
    refused(tmp_path / "folder.png")
    assert "still there" in refused(tmp_path / "missing.png")


def test_a_fingerprint_is_the_sha256_of_the_content(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, example B.1
    assert loading.fingerprint(tmp_path / "abc") == expected
    assert loading.fingerprint(tmp_path / "absent") == ""


# which files a row accounts for


def test_files_of_one_name_that_do_not_make_one_pair_are_named_and_none_is_chosen(tmp_path):
    save_pair(tmp_path, "1_HC", noise(1), noise(2))
    save_pair(tmp_path, "1_HC", noise(3), suffix=".bmp")
    pairs = loading.load_pairs(write_pairs(tmp_path, ["2_HC"])).set_index("image_id")
    row = pairs.loc["1_HC"]
    assert row.image_path is None and row.mask_path is None and len(row.files) == 3
    assert all(name in row.problem for name in ("1_HC.png", "1_HC.bmp", "1_HC_Annotation.png"))
    assert pairs.problem["2_HC"] == "" and complete(pairs) == {"2_HC"}


def test_a_name_with_a_single_pair_keeps_its_name_and_the_image_beside_it_gets_its_folders(tmp_path):
    write_pairs(tmp_path / "training_set", ["000_HC", "001_HC"])
    save_pair(tmp_path / "test_set", "000_HC", noise(9))
    pairs = pairs_of(tmp_path)
    assert complete(pairs) == {"000_HC", "001_HC"}
    assert pairs.image_path["000_HC"].parent.name == pairs.mask_path["000_HC"].parent.name == "training_set"
    assert pairs.image_path["test_set_000_HC"] == tmp_path / "test_set" / "000_HC.png"


def test_frames_of_one_outline_that_differ_are_both_kept(tmp_path):
    for seed, folder in enumerate(["train", "test"]):
        save_pair(tmp_path / folder, "1_HC", noise(seed), noise(7))
    assert complete(pairs_of(tmp_path)) == {"train_1_HC", "test_1_HC"}


# the manifest


@pytest.fixture
def small(tmp_path):
    """Folder of ten small pairs, a space and an umlaut in its name."""
    return write_pairs(tmp_path / "kleine Dätä", [f"{number}_HC" for number in range(1, 11)])


def test_the_manifest_has_the_contracts_columns_and_a_row_for_each_pair(tmp_path, phantom_set, planted):
    loading.write_manifest(tmp_path, data=str(phantom_set))
    with open(tmp_path / "manifest.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["image_id", "image_path", "mask_path", "examination", "split", "width", "height"]
    single = {*planted["missing_mask"], *planted["orphan_mask"]}
    assert len(rows) == len({row["image_id"] for row in rows}) == 40 - len(single)
    assert not single & {row["image_id"] for row in rows}
    homes = {}
    for row in rows:
        image, mask = (project_root() / row[name] for name in ("image_path", "mask_path"))
        assert image.name == f"{row['image_id']}.png" and image.is_file()
        assert mask.name == f"{row['image_id']}_Annotation.png" and mask.is_file()
        assert (row["width"], row["height"]) == ("800", "540") and "\\" not in row["image_path"]
        homes.setdefault(row["examination"], set()).add(row["split"])
    assert all(len(home) == 1 for home in homes.values())
    assert {split for home in homes.values() for split in home} == {"train", "valid", "test"}


def test_the_manifest_is_read_back_as_it_was_made(tmp_path, small):
    made = loading.write_manifest(tmp_path / "run", data=str(small), seed=4)
    read = loading.read_manifest(tmp_path / "run")
    pd.testing.assert_frame_equal(made, read)
    assert all(path.is_absolute() and path.is_file() for path in [*read.image_path, *read.mask_path])
    assert set(read.width) == {16} and set(read.height) == {12}


def test_the_manifests_paths_hold_from_another_working_folder(tmp_path, small, monkeypatch):
    loading.write_manifest(tmp_path / "run", data=str(small))
    monkeypatch.chdir("/")
    assert all(path.is_file() for path in loading.read_manifest(tmp_path / "run").image_path)


def test_names_that_look_like_missing_values_or_numbers_keep_their_names(tmp_path):
    names = ["NA", "null", "nan", "007", "1e3", "None", "b", "c"]
    root = write_pairs(tmp_path / "data", names)
    manifest = loading.write_manifest(tmp_path / "run", data=str(root))
    assert set(manifest.image_id) == set(names) and set(manifest.examination) == set(names)


def test_without_a_manifest_reading_says_what_to_run(tmp_path):
    with pytest.raises(FetalsegError, match=r"manifest\.csv is not there: run notebook 01"):
        loading.read_manifest(tmp_path)


def test_a_manifest_is_made_once_then_used_silently(tmp_path, small, capsys):
    made = stages.ensure_manifest(tmp_path / "run", data=str(small), seed=1)
    assert capsys.readouterr().out.endswith("manifest.csv made: 10 pairs (notebook 01 explains it).\n")
    before = contents(tmp_path / "run")
    os.utime(tmp_path / "run" / "manifest.csv", (1, 1))
    os.utime(small / "3_HC.png", (1, 1))  # a file that only looks new, or old, is the same file
    for asked in ({"data": str(small), "seed": 1}, {"seed": 1}, {}, {"data": f"{small}/../{small.name}"}):
        pd.testing.assert_frame_equal(stages.ensure_manifest(tmp_path / "run", **asked), made)
    assert contents(tmp_path / "run") == before and capsys.readouterr().out == ""


def test_a_manifest_is_made_anew_by_the_one_that_makes_it(tmp_path, small):
    first = loading.write_manifest(tmp_path / "run", data=str(small), seed=1)
    second = loading.write_manifest(tmp_path / "run", data=str(small), seed=2)
    assert list(first.split) != list(second.split)
    other = write_pairs(tmp_path / "other", ["7_HC", "8_HC", "9_HC"])
    third = loading.write_manifest(tmp_path / "run", data=str(other), seed=2)
    assert list(third.image_id) == ["7_HC", "8_HC", "9_HC"]
    assert list(stages.ensure_manifest(tmp_path / "run", data=str(other), seed=2).image_id) == list(third.image_id)


@pytest.mark.parametrize("asked", [True, False])
def test_a_data_folder_that_is_gone_is_named_and_not_replaced_by_phantoms(tmp_path, small, asked):
    stages.ensure_manifest(tmp_path / "run", data=str(small))
    write_pairs(tmp_path / "run" / "phantom_400", [f"{number}_HC" for number in range(1, 21)])
    shutil.rmtree(small)
    before = contents(tmp_path / "run")
    with pytest.raises(FetalsegError, match=r"kleine Dätä.* is not a folder|kleine Dätä.* is no longer there"):
        stages.ensure_manifest(tmp_path / "run", **({"data": str(small)} if asked else {}))
    assert contents(tmp_path / "run") == before


def test_a_manifest_that_lost_the_record_of_its_making_is_made_anew(tmp_path, small):
    write_pairs(tmp_path / "run" / "phantom_400", ["1_HC", "2_HC", "3_HC"])
    for asked, count in (({"data": str(small)}, 10), ({}, 3)):
        loading.write_manifest(tmp_path / "run", data=str(small))
        (tmp_path / "run" / "data.json").unlink()
        assert len(stages.ensure_manifest(tmp_path / "run", **asked)) == count


def test_an_end_between_manifest_and_record_does_not_leave_the_wrong_manifest(tmp_path, small, monkeypatch):
    first = loading.write_manifest(tmp_path / "run", data=str(small), seed=1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loading, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        loading.write_manifest(tmp_path / "run", data=str(small), seed=2)
    again = stages.ensure_manifest(tmp_path / "run", data=str(small), seed=1)
    assert list(again.split) == list(first.split)
