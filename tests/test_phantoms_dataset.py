"""Sets of phantoms: the tree they are written to, their names, splits and planted defects, and how they are made."""

import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import cv2
import joblib
import numpy as np
import pandas as pd
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fetalseg_helpers import preprocessing
from fetalseg_helpers.beyond_dice.circumference import head_circumference
from fetalseg_helpers.phantoms import dataset
from fetalseg_helpers.phantoms.ultrasound import HEIGHT
from fetalseg_helpers.workspace import FetalsegError

COUNT, SEED = 44, 3
RANK = {"2HC": 0, "3HC": 1, "4HC": 2, "HC": 3}


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A set with every kind of defect: folder, defects, and all malignant files by name."""
    reported = []
    folder = tmp_path_factory.mktemp("set") / "phantoms"
    assert dataset.write_phantoms(folder, COUNT, SEED, progress=reported.append) == folder
    paths = {path.name: path for path in folder.rglob("malignant/*.png")}
    return folder, dataset.planted_defects(COUNT, SEED), paths, reported


def grey(path):
    return cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_GRAYSCALE)


def test_number_of_cores_does_not_change_a_byte(tmp_path, monkeypatch):
    sets = []
    for cores in (1, 3):
        monkeypatch.setattr(joblib, "cpu_count", lambda cores=cores: cores)
        sets.append(files(dataset.write_phantoms(tmp_path / str(cores), 12, 7)))
    assert sets[0] == sets[1]
    other = files(dataset.write_phantoms(tmp_path / "other", 2, 8))
    assert not set(sets[0].values()) & set(other.values())


def test_progress_rises_to_the_number_of_frames(written):
    reported = written[3]
    assert reported == sorted(reported) and reported[-1] == COUNT and len(reported) > 5


def test_tree_and_names_are_those_of_the_data_set(written):
    folder, _, paths, _ = written
    data = folder / "Ultrasound Fetus Dataset" / "Ultrasound Fetus Dataset" / "Data" / "Data"
    assert all(path.parents[2] == data for path in paths.values())
    for split in ("train", "validation", "test"):
        assert {path.name for path in (data / split).iterdir()} == {"malignant", "benign", "normal"}
    assert all(re.fullmatch(r"\d+_[234]?HC(_Annotation)?\.png", name) for name in paths)
    for name in ("benign", "normal"):
        assert len(list(data.rglob(f"{name}/*.png"))) == max(1, COUNT // 40)
    numbers = sorted({int(name.split("_")[0]) for name in paths})
    assert numbers == list(range(1, COUNT + 1))


def test_image_and_outline_lie_together_unless_planted_apart(written):
    _, defects, paths, _ = written
    apart = [
        name[:-4]
        for name, path in paths.items()
        if "_Annotation" not in name
        and (other := paths.get(f"{name[:-4]}_Annotation.png")) is not None
        and path.parent != other.parent
    ]
    assert sorted(apart) == sorted(defects["split_folders_differ"]) and apart


def test_planted_files_are_absent_broken_empty_or_of_another_size(written):
    _, defects, paths, _ = written
    images = {name[:-4] for name in paths if "_Annotation" not in name}
    outlines = {name.removesuffix("_Annotation.png") for name in paths if "_Annotation" in name}
    assert images - outlines == set(defects["missing_mask"])
    assert outlines - images == set(defects["orphan_mask"])
    assert {stem for stem in images if grey(paths[f"{stem}.png"]) is None} == set(defects["unreadable_image"])
    drawn = {stem: grey(paths[f"{stem}_Annotation.png"]) for stem in outlines}
    assert {stem for stem in outlines if not drawn[stem].any()} == set(defects["empty_mask"])
    assert {stem for stem in outlines if drawn[stem].shape != (540, 800)} == set(defects["size_mismatch"])
    assert drawn[defects["size_mismatch"][0]].shape == (539, 800)


def test_only_planted_outlines_are_cut_by_the_frame_and_one_lies_at_its_border(written):
    _, defects, paths, _ = written
    cut = set()
    for name, path in paths.items():
        outline = grey(path) if "_Annotation" in name else np.zeros((3, 3), np.uint8)
        if outline[[0, -1]].any() or outline[:, [0, -1]].any():
            cut.add(name.removesuffix("_Annotation.png"))
    assert cut == set(defects["open_outline"]) | set(defects["near_border"])
    for stem in defects["near_border"]:
        points = np.argwhere(grey(paths[f"{stem}_Annotation.png"]))[:, ::-1]
        moments = cv2.moments(cv2.convexHull(points.astype(np.int32)))
        assert moments["m01"] / moments["m00"] > 0.95 * HEIGHT


def test_pixel_sizes_lie_beside_the_tree_with_a_row_for_each_malignant_frame(written):
    folder, _, paths, _ = written
    assert sorted(path.name for path in folder.iterdir()) == ["Ultrasound Fetus Dataset", "pixel_sizes.csv"]
    table = pd.read_csv(folder / "pixel_sizes.csv")
    assert list(table.columns) == ["image_id", "pixel_mm", "head_circumference_mm"] and not table.isna().any(axis=None)
    stems = {name.removesuffix(".png").removesuffix("_Annotation") for name in paths}
    assert sorted(table.image_id, key=lambda stem: int(stem.split("_")[0])) == list(table.image_id)  # by number
    assert len(table) == COUNT and set(table.image_id) == stems
    examinations = {entry.stem: entry.examination for entry in dataset.set_entries(COUNT, SEED)}
    assert (table.groupby(table.image_id.map(examinations)).pixel_mm.nunique() == 1).all()
    assert table.pixel_mm.between(0.03, 0.6).all() and table.head_circumference_mm.between(40, 400).all()


def test_the_circumference_beside_a_frame_is_that_of_its_outline(written):
    folder, defects, paths, _ = written
    sizes = pd.read_csv(folder / "pixel_sizes.csv", index_col="image_id")
    near_border, unlike = set(defects["near_border"]), set(defects["empty_mask"]) | set(defects["missing_mask"])
    cut, compared = set(defects["open_outline"]), 0
    for stem, row in sizes.drop(unlike | near_border).iterrows():  # a rim at the border is too little to measure
        mask = preprocessing.fill_outline(grey(paths[f"{stem}_Annotation.png"]))
        measured = row.pixel_mm * head_circumference(mask)
        assert measured == pytest.approx(row.head_circumference_mm, rel=0.03 if stem in cut else 0.001), stem
        compared += 1
    assert compared > 35


def test_without_defects_every_pair_is_whole(tmp_path):
    folder = dataset.write_phantoms(tmp_path / "set", 12, defects=False)
    paths = {path.name: path for path in folder.rglob("malignant/*.png")}
    assert len(paths) == 24
    for name, path in paths.items():
        if "_Annotation" in name:
            assert path.with_name(name.replace("_Annotation", "")).exists()
            outline = grey(path)
            assert outline.shape == (540, 800) and outline.any() and not outline[[0, -1]].any()


def groups(stems):
    """Examinations by the rule of rising suffixes; a number for each stem."""
    found, last, group = {}, -1, -1
    for stem in sorted(stems, key=lambda stem: int(stem.split("_")[0])):
        rank = RANK[stem.split("_")[1]]
        group += rank <= last or group < 0
        found[stem], last = group, rank
    return found


@settings(max_examples=60)
@given(count=st.integers(1, 300), seed=st.integers(0, 2**40))
def test_names_give_the_examinations_even_without_defective_frames(count, seed):
    entries = dataset.set_entries(count, seed)
    truth = {entry.stem: entry.examination for entry in entries}
    assert len(truth) == count and groups(truth) == truth
    defects = dataset.planted_defects(count, seed)
    planted = [stem for stems in defects.values() for stem in stems]
    assert len(planted) == len(set(planted)) and set(planted) <= set(truth)
    left = {stem: group for stem, group in truth.items() if stem not in planted}
    found = groups(left)
    assert len(set(found.values())) == len(set(left.values())) == len({(found[s], left[s]) for s in left})


def test_defects_depend_on_the_size_of_the_set():
    full = dataset.planted_defects(160, 0)
    assert {kind: len(stems) for kind, stems in full.items()} == dataset.DEFECTS
    assert not any(dataset.planted_defects(11, 0).values())
    assert sum(map(len, dataset.planted_defects(12, 0).values())) == 3
    assert all(dataset.planted_defects(40, 0).values())
    assert dataset.planted_defects(160, 0) == full != dataset.planted_defects(160, 1)


def test_splits_have_the_data_sets_shares_and_leak_examinations():
    entries = dataset.set_entries(1000, 0)
    splits = [entry.split for entry in entries]
    assert [splits.count(name) for name in dataset.SPLITS] == [730, 120, 150]
    homes = {}
    for entry in entries:
        homes.setdefault(entry.examination, set()).add(entry.split)
    assert sum(len(home) > 1 for home in homes.values()) > 30


def test_a_stopped_run_leaves_nothing_behind(tmp_path):
    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dataset.write_phantoms(tmp_path / "set", 3, progress=stop)
    assert not list(tmp_path.iterdir())


def test_as_many_threads_as_cores_that_may_be_used_but_no_more_than_eight(tmp_path, monkeypatch):
    asked = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, threads):
            asked.append(threads)
            super().__init__(1)

    monkeypatch.setattr(dataset, "ThreadPoolExecutor", Pool)
    for cores in (48, 3):
        monkeypatch.setattr(joblib, "cpu_count", lambda cores=cores: cores)
        dataset.write_phantoms(tmp_path / str(cores), 1)
    assert asked == [8, 3]


DRAWING = """
import signal
from fetalseg_helpers.phantoms.dataset import write_phantoms
from fetalseg_helpers.workspace import FetalsegError

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs in the background without it
try:
    write_phantoms({folder!r}, 400, progress=lambda done: print(done, flush=True))
except KeyboardInterrupt:
    print("interrupted")
except FetalsegError as error:
    print(error)
"""  # without `if __name__ == "__main__":`, and not even in a file


@contextmanager
def drawing(folder):
    """A process that draws and has finished its first frame."""
    command = [sys.executable, "-c", DRAWING.format(folder=str(folder))]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, start_new_session=True, **pipes) as process:
        try:
            assert process.stdout.readline().strip().isdigit()
            assert psutil.Process(process.pid).children() == []  # nobody who could outlive it
            yield process
        finally:
            process.kill()


def last_line(process):
    output, errors = process.communicate(timeout=20)
    assert errors == ""
    return output.splitlines()[-1]


def test_of_two_that_write_one_folder_the_second_is_told_and_what_a_killed_one_leaves_is_removed_by_the_next(tmp_path):
    with drawing(tmp_path / "set") as process:
        with pytest.raises(FetalsegError, match=r"set is being written by another process: wait, or choose another"):
            dataset.write_phantoms(tmp_path / "set", 1)
        assert process.stdout.readline().strip().isdigit()  # it draws on
        process.kill()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".unfinished-set", ".unfinished-set.lock"]
    dataset.write_phantoms(tmp_path / "set", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is no signal to others on Windows: try it in a console")
def test_ctrl_c_ends_it_at_once_with_nothing_left_and_nothing_said(tmp_path):
    with drawing(tmp_path / "set") as process:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of the group
        assert last_line(process) == "interrupted"
    assert not list(tmp_path.iterdir())


def test_an_error_of_a_drawing_thread_is_raised_and_leaves_nothing(tmp_path):
    with pytest.raises(TypeError, match="not callable"):
        dataset.write_phantoms(tmp_path / "set", 3, changes={"gain": dataset.DEFECTS})
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux, which limits the memory of a process")
def test_too_little_memory_is_an_error_in_one_sentence(tmp_path):
    code = f"""
import resource
import fetalseg_helpers.loading
from fetalseg_helpers.phantoms.dataset import write_phantoms
from fetalseg_helpers.workspace import FetalsegError

resource.setrlimit(resource.RLIMIT_AS, (100_000_000, 100_000_000))
try:
    write_phantoms({str(tmp_path / "set")!r}, 40)
except FetalsegError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.count("memory is short") == 1 and done.stderr == ""
    assert not list(tmp_path.iterdir())


def test_a_refused_file_is_reported_with_the_systems_own_reason(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(FetalsegError, match=r"could not be written \((Not a directory|File exists)\)") as caught:
        dataset.write_phantoms(tmp_path / "file" / "set", 1)
    assert "free some space" not in str(caught.value)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dataset, "_png", full)
    with pytest.raises(FetalsegError, match=r"could not be written \(No space left on device\): free some space"):
        dataset.write_phantoms(tmp_path / "set", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_with_something_in_it_is_refused_and_an_empty_one_used(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    dataset.write_phantoms(folder, 1)
    before = files(folder)
    with pytest.raises(FetalsegError, match="delete it"):
        dataset.write_phantoms(folder, 1)
    assert files(folder) == before


@pytest.mark.parametrize(("count", "seed"), [(0, 0), (-3, 0), (2.5, 0), (1, -1), (1, "a")])
def test_bad_arguments_are_refused_in_one_sentence(tmp_path, count, seed):
    with pytest.raises(FetalsegError, match=r"^(count|seed) is "):
        dataset.write_phantoms(tmp_path / "set", count, seed)
    assert not list(tmp_path.iterdir())
