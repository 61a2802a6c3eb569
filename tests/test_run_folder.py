"""A run folder that never surprises: what is refused, what is kept, what is removed, and who may write at a time."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import cv2
import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import contents, drawn_outline, encoded, noise, save_pair

from fetalseg_helpers import loading, preprocessing, training, unet, verification, workspace
from fetalseg_helpers.running import checks, predictions, stages
from fetalseg_helpers.workspace import FetalsegError, locked

SMALL = training.Settings(base_channels=2, depth=2, epochs=1, batch_size=4, seed=1)
SIZE = {"width": 32, "height": 32, "fit": "scale"}
needs_kill = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL: run it on Linux or macOS")
needs_linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="needs /proc and affinity: run it on Linux"
)


def python(code, *arguments, **options):
    """A process of its own that runs a script."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=workspace.project_root(), capture_output=True, text=True, timeout=120, **options)


@pytest.fixture(autouse=True)
def nothing_locked(monkeypatch):
    """Each test begins without a lock, whatever the one before it left."""
    monkeypatch.setenv(workspace.LOCKED, "")


def make_run(root, draw_pairs):
    """Run folder `run` in `root`: 12 small pairs of its folder `data`, prepared, verified, and a network trained."""
    draw_pairs(root / "data", count=12)
    stages.ensure_verified(root / "run", 32, 32, data=str(root / "data"), seed=1)
    stages.ensure_checkpoint(root / "run", SMALL)
    return root / "run"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, draw_pairs):
    """A run folder with everything up to a network. Read only, and so is its data."""
    return make_run(tmp_path_factory.mktemp("trained"), draw_pairs)


@pytest.fixture
def run(tmp_path, trained):
    """A copy of it; the data is still read only."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def own(tmp_path, draw_pairs):
    """A run folder with a network, over data that may be changed."""
    return make_run(tmp_path, draw_pairs)


@contextmanager
def refused_and_nothing_changes(folder, *words):
    """The block must end in one sentence with these words, and the folder must be the same afterwards."""
    before = contents(folder)
    with pytest.raises(FetalsegError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    for word in words:
        assert word in message
    assert contents(folder) == before


def make_anew(run_dir, **data):
    """What notebooks 01 to 03 do."""
    loading.write_manifest(run_dir, **data)
    preprocessing.prepare(run_dir, **SIZE)
    verification.write_verification(run_dir)


# needing is careful


@pytest.mark.parametrize(
    ("asked", "difference", "notebook"),
    [
        ({"seed": 0}, "seed 1, not 0", "01"),
        ({"split_by": "image"}, "split_by examination, not image", "01"),
        ({"data": "phantom"}, "not phantom", "01"),
        ({"data": "phantom", "phantoms": 20}, "not phantom", "01"),
        ({"width": 64}, "width 32, not 64", "02"),
        ({"height": 64}, "height 32, not 64", "02"),
        ({"fit": "pad"}, "fit scale, not pad", "02"),
    ],
)
def test_what_was_made_otherwise_is_refused_and_everything_stays(run, asked, difference, notebook):
    for ensure in (stages.ensure_manifest, stages.ensure_prepared, stages.ensure_verified):
        if ensure is stages.ensure_manifest and notebook == "02":
            continue
        with refused_and_nothing_changes(run.parent, difference, "another run_dir", f"run notebook {notebook}"):
            ensure(run, **asked)
    assert set(stages.ensure_verified(run, **SIZE, seed=1).image_id) == {f"{n}_HC" for n in range(1, 13)}


def test_another_folder_of_the_same_files_is_other_data(run, trained, tmp_path):
    shutil.copytree(trained.parent / "data", tmp_path / "other")
    with refused_and_nothing_changes(run, "was made with data", "another run_dir", "run notebook 01"):
        stages.ensure_verified(run, data=str(tmp_path / "other"))


def test_another_number_of_phantoms_is_other_data_and_of_no_matter_for_ones_own(tmp_path, trained, run, draw_pairs):
    for count in (12, 15):
        draw_pairs(tmp_path / "runs" / f"phantom_{count}", count=count)
    phantoms = tmp_path / "runs" / "one"
    stages.ensure_manifest(phantoms, data="phantom", phantoms=12)
    with refused_and_nothing_changes(tmp_path, "phantoms 12, not 15", "run notebook 01"):
        stages.ensure_manifest(phantoms, phantoms=15)
    with refused_and_nothing_changes(tmp_path, "data phantom, not "):
        stages.ensure_manifest(phantoms, data=str(trained.parent / "data"))
    stages.ensure_manifest(run, phantoms=15)


def test_a_network_is_used_and_kept_whatever_settings_are_asked(run):
    before = contents(run)
    weights = torch.load(run / "checkpoint.pt", weights_only=True)["network"]
    for settings_asked in (None, training.Settings(), training.Settings(base_channels=4, seed=0)):
        network, state = stages.ensure_checkpoint(run, settings_asked)
        assert state["settings"]["base_channels"] == 2
        assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    assert contents(run) == before


def test_a_network_of_another_size_is_refused_and_kept(run):
    preprocessing.prepare(run, 64, 64)  # tried in notebook 02
    with refused_and_nothing_changes(run, "32 × 32", "64 × 64", "another run_dir", "run notebook 05"):
        stages.ensure_checkpoint(run, training.Settings())


def test_after_another_split_each_stage_refuses_the_one_before_and_the_network_is_kept(run, trained):
    network = {name: (run / name).read_bytes() for name in ("checkpoint.pt", "last.pt", "history.csv")}
    loading.write_manifest(run, data=str(trained.parent / "data"), seed=2)
    with refused_and_nothing_changes(run, "prepared was made from another manifest", "run notebook 02"):
        stages.ensure_verified(run)
    preprocessing.prepare(run, **SIZE)
    with refused_and_nothing_changes(run, "verification.csv was made from another manifest", "run notebook 03"):
        stages.ensure_verified(run)
    verification.write_verification(run)
    stages.ensure_verified(run, **SIZE, seed=2)
    with refused_and_nothing_changes(run, "checkpoint.pt was trained on", "split", "run notebook 05"):
        stages.ensure_checkpoint(run)
    assert network == {name: (run / name).read_bytes() for name in network}


def test_when_everything_is_made_anew_from_the_same_the_network_is_still_the_one(run, trained):
    before = contents(run)
    make_anew(run, data=str(trained.parent / "data"), seed=1)
    stages.ensure_checkpoint(run)
    assert contents(run) == before


# files that changed


def redraw(data):
    for path in data.glob("*_Annotation.png"):
        drawn = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        path.write_bytes(encoded(np.roll(drawn, 5, axis=1)))


def add(data):
    save_pair(data, "77_HC", noise(77, 108, 160), drawn_outline(height=108, width=160))


CHANGES = {"redrawn": redraw, "added": add, "gone": lambda data: (data / "3_HC_Annotation.png").unlink()}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_files_are_refused_and_after_making_anew_so_is_the_old_network(own, change):
    CHANGES[change](own.parent / "data")
    for ensure in (stages.ensure_manifest, stages.ensure_prepared, stages.ensure_verified):
        with refused_and_nothing_changes(own, "before files in", "changed", "another run_dir", "run notebook 01"):
            ensure(own)
    make_anew(own, data=str(own.parent / "data"), seed=1)
    stages.ensure_verified(own, **SIZE, seed=1)
    with refused_and_nothing_changes(own, "checkpoint.pt was trained on other images, outlines", "run notebook 05"):
        stages.ensure_checkpoint(own)


@pytest.mark.parametrize("victim", ["3_HC.bmp", "3_HC_Annotation.bmp"])
def test_a_file_edited_to_the_same_size_and_time_is_noticed(tmp_path, victim):
    for number in range(1, 11):
        save_pair(tmp_path / "data", f"{number}_HC", noise(number), noise(20), suffix=".bmp")
    loading.write_manifest(tmp_path / "run", data=str(tmp_path / "data"))
    path = tmp_path / "data" / victim
    before, status = path.read_bytes(), path.stat()
    path.write_bytes(before[:-1] + bytes([before[-1] ^ 0xFF]))  # one pixel
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size and path.stat().st_mtime_ns == status.st_mtime_ns
    with refused_and_nothing_changes(tmp_path / "run", "before files in", "changed"):
        stages.ensure_manifest(tmp_path / "run")


# files found are files used or set aside with a reason


def test_different_frames_of_one_name_in_two_folders_are_ten_of_ten_pairs(tmp_path):
    for number in range(1, 6):
        for seed, split in enumerate(["train", "test"]):
            save_pair(tmp_path / "data" / split, str(number), noise(10 * number + seed, 60, 80), drawn_outline())
    manifest = loading.write_manifest(tmp_path / "run", data=str(tmp_path / "data"))
    assert len(manifest) == manifest.image_id.nunique() == manifest.image_path.nunique() == 10
    assert manifest.examination.nunique() == 10  # nothing says that two frames called 1 are of one fetus
    for pair in manifest.itertuples():
        assert pair.image_path.parent == pair.mask_path.parent and pair.image_path.stem in pair.image_id
    usable = stages.ensure_verified(tmp_path / "run", **SIZE)
    findings = pd.read_csv(tmp_path / "run" / "verification.csv", dtype=str)
    assert set(findings.image_id[findings.check == "repeated_name"]) == set(manifest.image_id) == set(usable.image_id)
    images = np.load(tmp_path / "run" / "prepared" / "images.npy")
    for pair in usable.itertuples():
        native = loading.read_grey(pair.image_path)
        assert np.array_equal(images[pair.row], preprocessing.to_canvas(native, **SIZE))


FOLDERS = [".", "a", "b/c", "train/malignant", "test/malignant", "validation/malignant", "Datasets/malignant"]
PICTURES = [encoded(picture) for picture in (noise(1, 60, 80), noise(2, 60, 80), drawn_outline(), drawn_outline(a=25))]
a_file = st.tuples(
    st.sampled_from(FOLDERS),
    st.sampled_from(["1_HC", "2_HC", "x"]),
    st.sampled_from(["", "_Annotation"]),
    st.sampled_from([".png", ".bmp"]),  # what is in it tells how it is read
)


def whole_pairs(files):
    """Folders and names, below the root, where one image and one outline lie together, with their contents."""
    homes = {}
    for (folder, stem, ending, suffix), picture in files.items():
        homes.setdefault((folder, stem), []).append((ending, folder, f"{stem}{ending}{suffix}", picture))
    return [sorted(home) for home in homes.values() if sorted(ending for ending, *_ in home) == ["", "_Annotation"]]


@settings(max_examples=40)
@given(st.dictionaries(a_file, st.integers(0, 3), min_size=1, max_size=12))
def test_of_any_tree_every_file_is_used_or_set_aside_with_a_reason(files):
    with tempfile.TemporaryDirectory() as root:
        for (folder, stem, ending, suffix), picture in files.items():
            path = Path(root, folder, f"{stem}{ending}{suffix}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(PICTURES[picture])
        found = loading.find_files(root)
        pairs = loading.match_pairs(found)
        pairs["examination"] = pairs.image_id
        contents_of = {path: (path.stem.endswith("_Annotation"), path.read_bytes()) for path in found.path}
        findings, measured = verification.verify_pairs(pairs)
    assert sorted(path for row in pairs.files for path in row) == sorted(found.path)  # each in one row and one only
    assert pairs.image_id.is_unique
    complete, kept, unclear = [], [], []
    for pair in pairs.itertuples():
        named = [path for path in (pair.image_path, pair.mask_path) if path is not None]
        assert set(named) <= set(pair.files)
        kept += named or pair.files
        if pair.image_path is not None and pair.mask_path is not None:
            complete.append([contents_of[pair.image_path][1], contents_of[pair.mask_path][1]])
        if pair.problem:
            unclear.append({contents_of[path] for path in pair.files})
    for pair in pairs.itertuples():
        for path in set(pair.files) - set(kept):  # a copy of what is kept under the same name
            same = [other for other in kept if contents_of[other] == contents_of[path]]
            assert any(other.stem.lower() == path.stem.lower() for other in same), path
    errors = set(findings.image_id[findings.severity == "error"])
    assert set(pairs.image_id) == errors | set(measured.index)  # a row that is not used has an error that says why
    for image, outline in whole_pairs(files):
        both = [PICTURES[image[-1]], PICTURES[outline[-1]]]
        refused = any({(False, both[0]), (True, both[1])} <= row for row in unclear)
        assert both in complete or refused, (image, outline)


def test_a_whole_pair_outside_the_split_folders_is_no_copy_when_only_its_outline_is_one(tmp_path):
    save_pair(tmp_path / "train", "1_HC", noise(1, 60, 80), drawn_outline())
    save_pair(tmp_path / "more", "1_HC", noise(2, 60, 80), drawn_outline())
    pairs = loading.load_pairs(tmp_path)
    assert len(pairs) == 2 and pairs.image_path.notna().all() and pairs.mask_path.notna().all()


# errors that say what is wrong


@pytest.mark.parametrize("rest", [bytes(100), b"IEND\xaeB`\x82", os.urandom(4096)], ids=["zeros", "end twice", "noise"])
def test_a_png_with_bytes_after_its_end_is_sound(tmp_path, rest):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(noise()) + rest)
    assert np.array_equal(loading.read_grey(path), noise())


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")]
)
def test_too_little_memory_for_a_checkpoint_is_not_called_damage(trained, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(MemoryError):
        training.load_checkpoint(trained / "checkpoint.pt")


@needs_linux
def test_a_drive_that_does_not_answer_is_said_and_not_called_damage(tmp_path):
    (tmp_path / "checkpoint.pt").symlink_to("/proc/self/mem")  # opens, and cannot be read
    with pytest.raises(OSError, match="Input/output error"), open(tmp_path / "checkpoint.pt", "rb") as file:
        file.read(1)
    with pytest.raises(FetalsegError, match=r"cannot be read \(Input/output error\)") as caught:
        training.load_checkpoint(tmp_path / "checkpoint.pt")
    assert "damaged" not in str(caught.value) and "train again" not in str(caught.value)


def test_a_damaged_checkpoint_is_called_damaged(run):
    whole = (run / "checkpoint.pt").read_bytes()
    for damaged in (*(whole[: len(whole) // part] for part in (2, 3, 50)), whole[:-1], b"text", b""):
        (run / "checkpoint.pt").write_bytes(damaged)
        with pytest.raises(FetalsegError, match=r"checkpoint\.pt is .*damaged.*: train again"):
            training.load_checkpoint(run / "checkpoint.pt")


# Windows: nothing may replace a file that is open


@needs_linux
def test_no_map_stays_open_when_the_data_set_has_been_used(trained):
    def mapped():
        return [line for line in Path("/proc/self/maps").read_text().splitlines() if ".npy" in line]

    items = preprocessing.PreparedDataset(trained, verification.usable_pairs(trained), preprocessing.augment)
    held = items.images
    assert mapped()  # so that this test would see one
    del held
    for batch in torch.utils.data.DataLoader(items, batch_size=4):
        assert len(batch) == 2 and not mapped()
    items[0]
    items.images[0].sum(), items.masks.mean()
    assert not mapped()
    trainer = training.Trainer(trained, SMALL)
    assert len(trainer.train_set) and not mapped()


def hold(monkeypatch, held):
    """From now on `held` can be neither moved, replaced nor deleted, nor a folder above it: as under Windows."""

    def guard(call):
        def guarded(*paths, **options):
            for path in paths:
                if held == Path(path) or Path(path) in held.parents:
                    raise PermissionError(errno.EACCES, "Access is denied", str(paths[0]), None, str(paths[-1]))
            return call(*paths, **options)

        return guarded

    for name in ("replace", "rename", "unlink", "remove"):
        monkeypatch.setattr(os, name, guard(getattr(os, name)))


@pytest.mark.parametrize("name", ["images.npy", "masks.npy"])
@pytest.mark.parametrize("size", [{"width": 64, "height": 64}, {"width": 32, "height": 32}])
def test_arrays_that_are_open_elsewhere_are_named_and_stay_usable(run, monkeypatch, name, size):
    with monkeypatch.context() as patch:
        hold(patch, run / "prepared" / name)
        with refused_and_nothing_changes(run, "prepared", "Access is denied", "close what has it open"):
            preprocessing.prepare(run, **size, fill=lambda outline: preprocessing.binarise(outline))
    stages.ensure_prepared(run, **SIZE)
    stages.ensure_checkpoint(run)


# what a killed process leaves


def test_unfinished_files_and_folders_are_removed_by_the_next_that_takes_the_lock(tmp_path):
    for name in (".unfinished-a.csv", "prepared/.unfinished-x.npy", "notebooks/.unfinished-05.ipynb"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("half")
    save_pair(tmp_path / ".unfinished-phantom_12" / "train", "1_HC", noise(), noise())
    (tmp_path / "history.csv").write_text("whole")
    with locked(tmp_path):
        assert set(contents(tmp_path)) == {"history.csv"}
        assert not (tmp_path / ".unfinished-phantom_12").exists()


def test_what_is_being_written_survives_when_the_lock_is_taken_once_more(tmp_path):
    with locked(tmp_path), workspace.written_whole(tmp_path / "prepared" / "a.npy") as temporary:
        temporary.write_text("half")
        with locked(tmp_path):
            assert temporary.exists()
    assert (tmp_path / "prepared" / "a.npy").read_text() == "half"


HOLD = """
import sys
from fetalseg_helpers.workspace import locked, written_whole
with locked(sys.argv[1]) as folder, written_whole(folder / "prepared" / "images.npy") as temporary:
    temporary.write_text("half")
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(folder):
    """Another process that has the lock of a run folder and is writing a file there."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=workspace.project_root(), **pipes) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


@needs_kill
def test_a_killed_process_holds_no_lock_and_leaves_nothing(run):
    before = contents(run)
    with holder(run) as process:
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
        assert [path.name for path in (run / "prepared").glob(".unfinished-*")]
        with locked(run):
            assert contents(run) == before


# one lock


def test_a_second_process_is_refused_in_one_sentence_and_changes_nothing(run, trained):
    data = str(trained.parent / "data")
    bare = run.parent / "bare"
    shutil.copytree(run, bare, ignore=shutil.ignore_patterns("*.pt", "verification.*", "prepared"))
    makers = [
        lambda: loading.write_manifest(run, data=data, seed=1),
        lambda: preprocessing.prepare(run, **SIZE),
        lambda: verification.write_verification(run),
        lambda: training.train(training.Trainer(run, SMALL)),
    ]
    with holder(run):
        for make in makers:
            with refused_and_nothing_changes(run, "is being used by another", "another run_dir"):
                make()
        stages.ensure_verified(run, **SIZE, seed=1, data=data)  # to read is no harm
        stages.ensure_checkpoint(run)
        stages.ensure_verified(bare, **SIZE)  # nor to make something elsewhere
    with holder(bare), refused_and_nothing_changes(bare, "is being used by another"):
        stages.ensure_checkpoint(bare, SMALL)
    for make in makers:
        make()


def test_the_processes_that_the_holder_starts_may_write_and_others_not(tmp_path):
    take = "import sys\nfrom fetalseg_helpers.workspace import locked\nwith locked(sys.argv[1]): print('taken')"
    with locked(tmp_path):
        assert python(take, tmp_path).stdout == "taken\n"
        stranger = {name: value for name, value in os.environ.items() if name != workspace.LOCKED}
        refused = python(take, tmp_path, env=stranger)
        assert refused.stdout == "" and "is being used by another" in refused.stderr.splitlines()[-1]
    assert str(tmp_path) not in os.environ.get(workspace.LOCKED, "")


def test_the_lock_is_free_again_after_an_error(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), locked(tmp_path):
            raise KeyboardInterrupt
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("name", ["plain", "a:b", "a;b", "ein Ordner ü"])
def test_who_has_the_lock_may_take_it_again_however_the_folder_is_written(tmp_path, name, monkeypatch):
    if sys.platform == "win32" and ":" in name:
        pytest.skip("Windows has no such names: run it on Linux or macOS")
    monkeypatch.chdir(tmp_path)
    with locked(tmp_path / name), locked(str(tmp_path / name)), locked(tmp_path / name / ".." / name):
        pass


def test_locks_may_end_in_another_order_than_they_began(tmp_path):
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(locked(tmp_path / "x"))
        second.enter_context(locked(tmp_path / "y"))
        first.close()
        with locked(tmp_path / "y"):  # this process still has it
            pass
        with (
            holder(tmp_path / "x"),
            pytest.raises(FetalsegError, match="is being used by another"),
            locked(tmp_path / "x"),
        ):
            pytest.fail("a lock of another process was taken")
    assert not os.environ.get(workspace.LOCKED)


# results belong to a network


RESULTS = ["metrics.csv", "metrics.json", "model_card.md", "predictions/1_HC_pred.png", "robustness.csv"]
RESULTS += ["notebooks/06_evaluation.ipynb", "notebooks/08_beyond_dice.ipynb"]
KEPT = ["notebooks/01_loading.ipynb", "notes.txt"]


def write_results(run_dir):
    for name in RESULTS + KEPT:
        (run_dir / name).parent.mkdir(exist_ok=True)
        (run_dir / name).write_text("{}")


def test_a_new_network_removes_the_results_of_the_old_one_and_nothing_else(run):
    write_results(run)
    before = contents(run)
    training.train(training.Trainer(run, training.Settings(base_channels=4, depth=2, epochs=1, batch_size=4)))
    after = contents(run)
    assert set(before) - set(after) == set(RESULTS)
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"checkpoint.pt", "last.pt", "history.csv"}


def test_a_training_that_is_stopped_in_its_first_epoch_leaves_the_old_network_and_its_results(run):
    write_results(run)

    def stop(*_):
        raise KeyboardInterrupt

    before = contents(run)
    with pytest.raises(KeyboardInterrupt):
        training.train(training.Trainer(run, training.Settings(base_channels=4, depth=2), train_epoch=stop))
    assert contents(run) == before


def test_results_stay_while_the_best_network_stays(run, monkeypatch):
    dice = iter([0.5, 0.4, 0.6])
    monkeypatch.setattr(training, "validate", lambda *_: (1.0, next(dice)))
    settings_of_three = training.Settings(base_channels=2, depth=2, epochs=3, batch_size=4)
    epochs = training.Trainer(run, settings_of_three).epochs()
    next(epochs)
    epochs.close()
    write_results(run)
    network = (run / "checkpoint.pt").read_bytes()
    epochs = training.Trainer(run, settings_of_three, resume=True).epochs()
    next(epochs)  # no better
    assert all((run / name).exists() for name in RESULTS) and (run / "checkpoint.pt").read_bytes() == network
    next(epochs)  # better
    assert not any((run / name).exists() for name in RESULTS) and (run / "checkpoint.pt").read_bytes() != network
    epochs.close()


def test_a_threshold_that_was_chosen_for_another_network_is_not_used(run):
    _, state = training.load_network(run / "checkpoint.pt")
    chosen = {"threshold": 0.35, "region": "ellipse", "parameters": {"flip": True}}
    usual = {"threshold": 0.5, "region": "largest", "flip": False}
    assert predictions.frozen_cut(run / "checkpoint.pt", state) == usual
    workspace.write_json(run / "metrics.json", chosen | {"checkpoint_sha256": "0" * 64})
    assert predictions.frozen_cut(run / "checkpoint.pt", state) == usual
    workspace.write_json(run / "metrics.json", chosen | {"checkpoint_sha256": state["sha256"]})
    cut = predictions.frozen_cut(run / "checkpoint.pt", state)
    assert cut == {"threshold": 0.35, "region": "ellipse", "flip": True}


# Apple silicon


@pytest.mark.parametrize(("device", "last"), [("cpu", True), ("cuda", True), ("cuda:1", True), ("mps", False)])
def test_channels_last_is_for_the_processor_and_cuda_only(device, last):
    expected = torch.channels_last if last else torch.contiguous_format
    assert workspace.memory_format(torch.device(device)) == workspace.memory_format(device) == expected


def test_a_network_has_the_layout_of_its_device(monkeypatch):
    def weights():
        network = unet.make_network(4, 1, "batch")
        return [weight for weight in network.parameters() if weight.ndim == 4 and min(weight.shape[1:]) > 1]

    monkeypatch.setattr(unet, "choose_device", lambda: torch.device("cpu"))
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights())
    monkeypatch.setattr(unet, "memory_format", lambda device: torch.contiguous_format)
    found = weights()
    assert len(found) > 3 and all(weight.is_contiguous() for weight in found)


def test_no_other_place_of_the_package_chooses_a_layout():
    package = Path(workspace.__file__).parent
    for path in package.rglob("*.py"):
        if path.name != "workspace.py":
            assert "channels_last" not in path.read_text(encoding="utf-8"), path


# libraries


@pytest.fixture
def without_opencv(tmp_path):
    """Environment in which OpenCV is installed and cannot be imported, as without libGL."""
    (tmp_path / "cv2.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')\n")
    return os.environ | {"PYTHONPATH": str(tmp_path)}


def test_without_opencv_every_module_of_the_course_says_in_one_sentence_how_to_get_it(without_opencv):
    code = """
from importlib import import_module
for name in "loading preprocessing verification unet training evaluation ellipses plotting workspace".split():
    try:
        import_module(f"fetalseg_helpers.{name}")
        print(name, "needs none")
    except ImportError as error:
        print(name, error)
"""
    said = dict(line.split(" ", 1) for line in python(code, env=without_opencv).stdout.splitlines())
    assert len(said) == 9
    for name, sentence in said.items():
        if sentence != "needs none" or name in ("loading", "preprocessing", "ellipses", "workspace"):
            assert "libGL.so.1" in sentence and sentence.endswith("pip install opencv-python-headless"), (
                name,
                sentence,
            )


def test_without_opencv_the_command_line_helps_and_says_what_is_missing(without_opencv, tmp_path):
    code = "import runpy, sys\nsys.argv[0] = 'fetalseg'\nrunpy.run_module('fetalseg_helpers', run_name='__main__')"
    done = python(code, "verify", tmp_path, env=without_opencv)
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "libGL.so.1" in line and "pip install opencv-python-headless" in line
    assert python(code, "--help", env=without_opencv).returncode == 0


def test_either_package_of_opencv_will_do(monkeypatch):
    real = checks.version

    def version(name):
        if name.startswith("opencv"):
            raise PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(checks, "version", version)
    monkeypatch.chdir(workspace.project_root())
    assert f"OpenCV {cv2.__version__}" in checks.versions()


# which code runs


def test_a_notebook_of_another_copy_of_the_course_is_refused_with_both_folders(tmp_path, monkeypatch):
    other = tmp_path / "other copy"
    (other / "fetalseg_helpers").mkdir(parents=True)
    (other / "fetalseg_helpers" / "__init__.py").touch()
    (other / "notebooks" / "exercises").mkdir(parents=True)
    for place in (other / "notebooks" / "exercises", other / "notebooks", other):
        monkeypatch.chdir(place)
        with refused_and_nothing_changes(tmp_path, str(other), str(workspace.project_root()), "pip install -e ."):
            checks.versions()
    for place in (tmp_path, workspace.project_root() / "notebooks", workspace.project_root()):
        monkeypatch.chdir(place)
        assert str(workspace.project_root().name) in checks.versions()


def test_a_link_to_the_course_is_no_other_copy(tmp_path, monkeypatch):
    try:
        (tmp_path / "link").symlink_to(workspace.project_root(), target_is_directory=True)
    except OSError:
        pytest.skip("links cannot be made here: run it on Linux or macOS, or as an administrator")
    monkeypatch.chdir(tmp_path / "link" / "notebooks")
    assert checks.versions()


def test_a_tilde_is_the_home_folder_for_run_folder_and_data(tmp_path, monkeypatch):
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    save_pair(tmp_path / "home" / "data", "1_HC", noise(), noise())
    assert workspace.run_folder("~/x") == tmp_path / "home" / "x" and (tmp_path / "home" / "x").is_dir()
    assert stages.find_data("~/data", "~/x") == tmp_path / "home" / "data"
    assert not (tmp_path / "~").exists() and not (workspace.project_root() / "~").exists()


# cores


@needs_linux
def test_cores_are_those_of_the_affinity_and_of_the_limit(monkeypatch):
    allowed = os.sched_getaffinity(0)
    assert 1 <= joblib.cpu_count() <= len(allowed)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert joblib.cpu_count() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    assert joblib.cpu_count() == 1


@pytest.fixture
def machine(monkeypatch):
    """A function that lets seconds pass on eight cores, some of them used by others, and gives torch's threads."""
    clock = np.zeros(3)  # seconds: passed, computed by others, by this process
    looked = np.zeros(3)  # the same when psutil was last asked

    def percent():
        passed, others, own = clock - looked
        looked[:] = clock
        busy = 100 * (others + own) / passed
        shares["own"] = 100 * own / passed
        return [busy / 8] * 8

    def after(seconds, others=0.0, own=0.0):
        clock[:] += seconds * np.array([1, others, own])
        workspace.spare_threads()
        return torch.get_num_threads()

    shares = {}
    process = SimpleNamespace(cpu_percent=lambda: shares["own"], cpu_affinity=lambda: range(8))
    monkeypatch.setattr(workspace.psutil, "cpu_percent", lambda percpu: percent())
    monkeypatch.setattr(workspace, "PROCESS", process)
    monkeypatch.setattr(workspace.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(joblib, "cpu_count", lambda: 8)
    monkeypatch.setattr(workspace, "THREADS", {"looked": 0.0, "given": None, "allowed": None})
    yield after
    torch.set_num_threads(1)


def test_threads_are_as_many_as_other_processes_leave_cores_and_never_more_than_allowed(machine):
    torch.set_num_threads(4)
    assert machine(1) == 4
    assert machine(1, others=4) == 4
    assert machine(1, others=6) == 2
    assert machine(1, others=7) == 1
    assert machine(1, others=20) == 1
    assert machine(1, others=3, own=4) == 4  # what this process computes takes nothing from it
    assert machine(1, others=5, own=3) == 3
    assert machine(1) == 4


def test_a_short_burst_is_no_neighbour(machine):
    torch.set_num_threads(4)
    assert machine(1) == 4
    assert machine(0.2, others=8) == 4  # looked too lately
    assert machine(0.8) == 4  # on average there is room


def test_a_number_of_threads_that_somebody_chooses_is_the_new_limit(machine, monkeypatch):
    torch.set_num_threads(4)
    assert machine(1) == 4
    torch.set_num_threads(3)
    assert machine(1) == machine(1) == 3
    monkeypatch.setattr(joblib, "cpu_count", lambda: 2)
    torch.set_num_threads(6)
    assert machine(1) == machine(1) == 2


@needs_linux
def test_beside_a_busy_process_one_of_two_cores_is_left_and_afterwards_both_again():
    """Two cores, whether the machine has no more or the process may use no more."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("this process may use one core only: run it where there are two")
    code = """
import os, subprocess, sys, time
import psutil, torch
from fetalseg_helpers.workspace import spare_threads

def worked():
    # seconds that the cores have worked; cpu_percent would count from the last look of spare_threads
    times = psutil.cpu_times(percpu=True)
    return sum(sum(times[core][:8]) - times[core].idle - times[core].iowait for core in cores)

def reached(threads):
    # whether so many are allowed, and whether the cores were idle for a second before the answer
    end = time.monotonic() + 20
    while time.monotonic() < end:
        before = worked()
        for _ in range(12):
            spare_threads()
            time.sleep(0.1)
        idle = worked() - before < 0.14  # no half second of these can have had half a core busy
        if torch.get_num_threads() == threads or idle:
            return torch.get_num_threads() == threads, idle
    return False, False

cores = sorted(os.sched_getaffinity(0))[:2]
os.sched_setaffinity(0, cores)
torch.set_num_threads(2)
neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"])
one, _ = reached(1)
neighbour.kill()
neighbour.wait()
print(one, *reached(2))
"""
    one, two, idle = python(code).stdout.split()
    assert one == "True"
    if idle == "False" and two == "False":
        pytest.skip("other processes keep this machine busy, so the second core never came free: run it alone")
    assert two == "True"
