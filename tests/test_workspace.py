"""Parameters, the run folder, and files that are whole or absent."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import textwrap

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fetalseg_helpers import workspace
from fetalseg_helpers.workspace import PARAMETERS, FetalsegError, check_parameters, written_whole

WRONG_TYPES = {
    int: ["12", "1e-3", 1.0, 2.5, True, None, [3], np.int64(3), ""],
    float: ["1e-3", "0.5", True, None, [0.5], ""],
    str: [1, 0.5, True, None, ["phantom"], b"phantom"],
    bool: ["false", "true", "", 0, 1, None],
}
NUMBERS = [name for name, rule in PARAMETERS.items() if rule.low is not None]
CHOICES = [name for name, rule in PARAMETERS.items() if rule.choices]


def python(code, *arguments):
    """Run a script in a process of its own; it ends with the code that `written_whole` is tried on."""
    script = "from fetalseg_helpers.workspace import *\nimport os, signal, sys\n" + textwrap.dedent(code)
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, cwd=workspace.project_root(), capture_output=True, text=True, timeout=60)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# parameters


def sentence_about(name, value):
    """The message of the error that `value` causes, which must be one sentence with name and value."""
    with pytest.raises(FetalsegError) as caught:
        check_parameters(**{name: value})
    message = str(caught.value)
    assert message.startswith(f"{name} is ") and message.endswith(".") and "\n" not in message
    return message


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_parameter_of_a_wrong_type_is_refused_with_name_value_and_type(name):
    for value in WRONG_TYPES[PARAMETERS[name].kind]:
        message = sentence_about(name, value)
        assert repr(value) in message and type(value).__name__ in message


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_is_taken_at_both_bounds_and_refused_beyond_them(name):
    kind, low, high, _ = PARAMETERS[name]
    check_parameters(**{name: kind(low)})
    check_parameters(**{name: kind(high)})
    for value in (low - 1, high + 1) if kind is int else (low - 0.01, high + 0.01 * high):
        numbers = re.findall(r"-?\d(?:[\d.e+-]*\d)?", sentence_about(name, value))
        shown, *bounds = map(float, numbers)
        assert shown == pytest.approx(value, rel=1e-5) and bounds == pytest.approx([low, high], rel=1e-5)
        assert not bounds[0] <= shown <= bounds[1]  # as a reader sees them


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_not_a_number_and_infinity_are_no_learning_rate(value):
    assert str(value) in sentence_about("learning_rate", value)


def test_a_whole_number_is_good_where_a_number_is_asked():
    check_parameters(learning_rate=1, bce_weight=0, gradient_norm=1)


@pytest.mark.parametrize("name", CHOICES)
def test_an_unknown_choice_is_refused_with_the_known_ones(name):
    for value in ("", "Scale", "exam", PARAMETERS[name].choices[0].upper() + " "):
        message = sentence_about(name, value)
        assert repr(value) in message and all(choice in message for choice in PARAMETERS[name].choices)
    for value in PARAMETERS[name].choices:
        check_parameters(**{name: value})


@pytest.mark.parametrize("name", ["run_dir", "data"])
@pytest.mark.parametrize("value", ["", " ", "\t\n"])
def test_an_empty_text_is_refused(name, value):
    assert "empty" in sentence_about(name, value)


def test_the_first_wrong_parameter_of_several_is_named():
    with pytest.raises(FetalsegError, match=r"^epochs is 0,"):
        check_parameters(seed=1, epochs=0, data="phantom", flip="no")


# folders


def test_a_relative_run_folder_is_the_same_from_every_working_folder(tmp_path, monkeypatch):
    relative = os.path.relpath(tmp_path / "runs" / "one", workspace.project_root())
    folders = []
    for place in (tmp_path, workspace.project_root()):
        monkeypatch.chdir(place)
        folders.append(workspace.run_folder(relative).resolve())
    assert folders == [(tmp_path / "runs" / "one").resolve()] * 2 and folders[0].is_dir()


def test_a_run_folder_that_is_a_file_is_refused_and_named(tmp_path):
    (tmp_path / "taken").write_text("mine")
    for folder in (tmp_path / "taken", tmp_path / "taken" / "below"):
        with pytest.raises(FetalsegError, match="choose another run_dir") as caught:
            workspace.run_folder(folder)
        assert str(folder) in str(caught.value)
    assert (tmp_path / "taken").read_text() == "mine"


def test_the_project_root_holds_the_notebooks_and_this_package():
    assert (workspace.project_root() / "notebooks").is_dir()
    assert (workspace.project_root() / "fetalseg_helpers" / "workspace.py").is_file()


def test_paths_are_shown_from_the_project_root_or_whole(tmp_path):
    assert workspace.shown(workspace.project_root() / "runs" / "a" / "manifest.csv") == "runs/a/manifest.csv"
    assert workspace.shown(tmp_path / "x") == (tmp_path / "x").resolve().as_posix()


# whole or absent


def test_a_file_appears_only_when_the_block_has_ended(tmp_path):
    path = tmp_path / "new folder" / "größe 1.txt"
    with written_whole(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists() and temporary.parent == path.parent and temporary.suffix == ".txt"
        inode = temporary.stat().st_ino
    assert path.read_text() == "whole" and names(path.parent) == [path.name]
    assert path.stat().st_ino == inode  # moved in one step, not copied


@pytest.mark.parametrize("error", [RuntimeError("mine"), KeyboardInterrupt(), FetalsegError("mine")])
def test_an_exception_in_the_block_passes_and_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "kept.txt"
    path.write_text("old")
    with pytest.raises(type(error)), written_whole(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old" and names(tmp_path) == ["kept.txt"]


def test_too_little_free_space_is_said_before_anything_is_written(tmp_path):
    path = tmp_path / "large.npy"
    refusal = r"large\.npy could not be written \(1000000000000 MB needed, \d+ MB free"
    with pytest.raises(FetalsegError, match=refusal), written_whole(path, free=10**18):
        pytest.fail("the block was entered")
    assert names(tmp_path) == []


def test_a_folder_that_is_a_file_is_refused_and_named(tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(FetalsegError, match=r"taken/x\.txt could not be written"):
        workspace.write_text(tmp_path / "taken" / "x.txt", "text")
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL: run it on Linux or macOS")
@pytest.mark.parametrize("old", [None, "old"])
def test_a_kill_in_the_middle_leaves_no_half_file(tmp_path, old):
    path = tmp_path / "table.csv"
    if old:
        path.write_text(old)
    code = """
        with written_whole(sys.argv[1]) as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    assert python(code, path).returncode == -signal.SIGKILL
    assert (path.read_text() if path.exists() else None) == old
    assert all(name.startswith(".") for name in names(tmp_path) if name != "table.csv")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes: run it on Linux or macOS")
def test_a_full_disk_is_one_sentence_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    code = """
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write_text(sys.argv[1], "new" * 1000)
        except FetalsegError as error:
            print(error)
    """
    done = python(code, path)
    assert done.stdout.startswith(f"{path} could not be written (") and done.stdout.count("\n") == 1, done.stderr
    assert "free some space" in done.stdout
    assert path.read_text() == "old" and names(tmp_path) == ["table.csv"]


# texts, tables, pictures


def test_a_text_that_is_there_already_is_not_written_again(tmp_path):
    path = tmp_path / "a.txt"
    workspace.write_text(path, "ä\n")
    assert path.read_bytes() == b"\xc3\xa4\n"
    os.utime(path, (1, 1))
    workspace.write_text(path, "ä\n")
    assert path.stat().st_mtime == 1
    workspace.write_text(path, "ö\n")
    assert path.stat().st_mtime > 1 and path.read_bytes() == b"\xc3\xb6\n"


@settings(max_examples=25)
@given(
    st.dictionaries(st.text(max_size=5), st.none() | st.integers() | st.text() | st.lists(st.booleans()), max_size=4)
)
def test_json_comes_back_as_it_went(tmp_path_factory, values):
    path = tmp_path_factory.getbasetemp() / "values.json"
    workspace.write_json(path, values)
    assert workspace.read_json(path) == values == json.loads(path.read_bytes())


def test_an_absent_json_file_is_an_empty_dictionary(tmp_path):
    assert workspace.read_json(tmp_path / "absent.json") == {}


def test_a_table_has_no_index_and_plain_line_ends(tmp_path):
    workspace.write_table(tmp_path / "t.csv", pd.DataFrame({"a": [1, 2], "b": ["x", "y,z"]}, index=[7, 8]))
    assert (tmp_path / "t.csv").read_bytes() == b'a,b\n1,x\n2,"y,z"\n'


def test_a_picture_comes_back_pixel_by_pixel_from_any_path(tmp_path):
    image = np.arange(35, dtype=np.uint8).reshape(5, 7)
    path = tmp_path / "ein Ordner ü 胎儿" / "bild ß.png"
    workspace.write_png(path, image)
    assert np.array_equal(cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED), image)


def test_a_picture_without_pixels_is_refused_and_named(tmp_path):
    with pytest.raises(FetalsegError, match=r"empty\.png could not be encoded"):
        workspace.write_png(tmp_path / "empty.png", np.zeros((0, 0), np.uint8))
    assert names(tmp_path) == []


# the machine


def test_seeding_repeats_all_three_random_sources():
    import torch

    def draw():
        workspace.seed_everything(5)
        return random.random(), np.random.random(), torch.rand(1).item()

    assert draw() == draw()


def test_the_chosen_device_can_calculate():
    import torch

    assert torch.ones(2, device=workspace.choose_device()).sum().item() == 2


def test_the_versions_line_names_all_that_a_result_depends_on():
    line = workspace.versions()
    assert "\n" not in line
    assert all(f"{name} " in line for name in ("Python", "torch", "numpy", "opencv-python", "pandas"))
    assert f"numpy {np.__version__}" in line
