"""Project root and run folder, files that are whole or absent, device and seeds."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fetalseg_helpers import workspace
from fetalseg_helpers.workspace import FetalsegError, written_whole


def python(code, *arguments):
    """Run a script in a process of its own; it ends with the code that `written_whole` is tried on."""
    script = "from fetalseg_helpers.workspace import *\nimport os, signal, sys\n" + textwrap.dedent(code)
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, cwd=workspace.project_root(), capture_output=True, text=True, timeout=60)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


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


def test_a_folder_that_is_a_file_is_refused_and_named(tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(FetalsegError, match=r"taken/x\.txt could not be written"):
        workspace.write_text(tmp_path / "taken" / "x.txt", "text")
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL: run it on Linux or macOS")
def test_a_kill_in_the_middle_leaves_no_half_file(tmp_path):
    (tmp_path / "old.csv").write_text("old")
    code = """
        with written_whole(Path(sys.argv[1]) / "old.csv") as one, written_whole(Path(sys.argv[1]) / "new.csv") as two:
            one.write_text("half")
            two.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    assert python(code, tmp_path).returncode == -signal.SIGKILL
    assert (tmp_path / "old.csv").read_text() == "old" and not (tmp_path / "new.csv").exists()
    assert all(name.startswith(".unfinished-") for name in names(tmp_path) if name != "old.csv")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes: run it on Linux or macOS")
def test_a_full_disk_is_one_sentence_and_leaves_the_old_file(tmp_path):
    import resource

    path = tmp_path / "table.csv"
    path.write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(FetalsegError, match=r"could not be written \(File too large\): free some space") as caught:
            workspace.write_text(path, "new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(caught.value).startswith(f"{path} ") and "\n" not in str(caught.value)
    assert path.read_text() == "old" and names(tmp_path) == ["table.csv"]


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "free some space"),
        (PermissionError(errno.EACCES, "Permission denied"), "close what has it open"),
        (OSError(errno.EIO, "Input/output error"), "choose another folder"),
    ],
)
def test_the_sentence_says_the_systems_reason_and_the_remedy_for_it(tmp_path, error, remedy):
    with pytest.raises(FetalsegError, match=remedy) as caught, written_whole(tmp_path / "a.txt") as temporary:
        error.filename = str(temporary)
        raise error
    assert f"a.txt could not be written ({error.strerror})" in str(caught.value)
    assert ("free some space" in str(caught.value)) == (error.errno == errno.ENOSPC)
    assert names(tmp_path) == []


def test_an_error_of_another_file_in_the_block_is_not_called_an_error_of_this_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="source"), written_whole(tmp_path / "copy.txt") as temporary:
        temporary.write_bytes((tmp_path / "source.txt").read_bytes())
    assert names(tmp_path) == []


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


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"[1, 2]", b"3", b'"no"', b"null", b"\xff\xfe{}"])
def test_a_json_file_that_is_damaged_or_no_dictionary_is_named(tmp_path, content):
    (tmp_path / "metrics.json").write_bytes(content)
    with pytest.raises(FetalsegError, match=r"metrics\.json is damaged: delete it"):
        workspace.read_json(tmp_path / "metrics.json")


def test_a_table_has_no_index_and_plain_line_ends(tmp_path):
    workspace.write_table(tmp_path / "t.csv", pd.DataFrame({"a": [1, 2], "b": ["x", "y,z"]}, index=[7, 8]))
    assert (tmp_path / "t.csv").read_bytes() == b'a,b\n1,x\n2,"y,z"\n'


def test_a_picture_comes_back_pixel_by_pixel_from_any_path(tmp_path):
    image = np.arange(35, dtype=np.uint8).reshape(5, 7)
    path = tmp_path / "ein Ordner ü 胎儿" / "bild ß.png"
    workspace.write_png(path, image)
    assert np.array_equal(cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED), image)


# the machine


def test_the_chosen_device_can_calculate():
    assert torch.ones(2, device=workspace.choose_device()).sum().item() == 2
