"""Executing notebooks: parameters, what is left of an earlier run, progress, a kernel that dies, strange paths."""

import os
import sys
from types import SimpleNamespace

import nbformat
import pytest
from filelock import FileLock

from fetalseg_helpers import workspace
from fetalseg_helpers.running import lessons
from fetalseg_helpers.workspace import FetalsegError

PARAMETERS = 'run_dir: str = "runs/quick"  # folder\nepochs: int = 2  # how many'


@pytest.fixture
def write_lesson(tmp_path):
    """A function that writes a notebook of a cell with parameters and the given ones; returns its path."""

    def write(name, *sources):
        cells = [nbformat.v4.new_code_cell(source) for source in (PARAMETERS, *sources)]
        cells[0].metadata["tags"] = ["parameters"]
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        folder = tmp_path / "notebooks"
        folder.mkdir(exist_ok=True)
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / name)
        return folder / name

    return write


def outputs(path):
    """What the cells of an executed notebook printed."""
    cells = nbformat.read(path, as_version=4).cells
    return [output.text.strip() for cell in cells for output in cell.get("outputs", []) if "text" in output]


def test_given_values_that_the_notebook_knows_reach_it_whatever_its_path_is_called(tmp_path, write_lesson):
    path = write_lesson("07_{0}{x}.ipynb", "print(epochs)", "print(run_dir)")
    run_dir = tmp_path / "a {run} {0} {"
    final = lessons.run_lesson(path, run_dir, {"epochs": 7, "width": 32})
    assert final == run_dir / "notebooks" / "07_{0}{x}.ipynb" and outputs(final) == ["7", str(run_dir)]
    assert lessons.read_parameters(path) == {"run_dir": "runs/quick", "epochs": 2}


def test_the_kernel_is_this_environment_s_and_imports_this_package(tmp_path, write_lesson, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "mine"))
    monkeypatch.chdir(tmp_path)
    show = "import sys, fetalseg_helpers\nprint(sys.executable, fetalseg_helpers.__file__)"
    final = lessons.run_lesson(write_lesson("07_where.ipynb", show, "print(sys.path)"), tmp_path / "run", {})
    executable, package = outputs(final)[0].split()
    assert os.path.samefile(os.path.dirname(executable), os.path.dirname(sys.executable))
    assert os.path.samefile(os.path.dirname(os.path.dirname(package)), workspace.project_root())
    assert str(tmp_path / "mine") in outputs(final)[1]


def test_an_error_in_a_cell_is_one_sentence_and_what_was_executed_stays_beside(tmp_path, write_lesson):
    path = write_lesson("07_broken.ipynb", "print('before')", "raise ValueError('too little of it')")
    with pytest.raises(FetalsegError, match=r"07_broken.ipynb, cell 4: too little of it \(see .*_failed.ipynb"):
        lessons.run_lesson(path, tmp_path / "run", {})
    assert [name.name for name in (tmp_path / "run" / "notebooks").iterdir()] == ["07_broken_failed.ipynb"]


@pytest.mark.skipif(os.name != "posix", reason="only POSIX systems can kill a process so")
def test_a_kernel_that_dies_is_one_sentence(tmp_path, write_lesson, capfd):
    path = write_lesson("07_dead.ipynb", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(FetalsegError, match=r"07_dead.ipynb: its kernel died") as error:
        lessons.run_lesson(path, tmp_path / "run", {})
    assert "\n" not in str(error.value) and list((tmp_path / "run" / "notebooks").iterdir()) == []
    assert capfd.readouterr().err == ""


def test_news_are_the_newest_epoch_and_not_more_often_than_every_15_seconds(monkeypatch):
    said = []
    now = [100.0]
    monkeypatch.setattr(lessons, "time", SimpleNamespace(monotonic=lambda: now[0]))
    news = lessons.News(said.append)
    for moment, text in (
        (101.0, "epoch   1/35  valid Dice 0.1\n"),
        (116.0, "4 images\n"),
        (117.0, "epoch   2/35  valid Dice 0.2\nepoch   3/35  valid Dice 0.3\n"),
        (130.0, "epoch   4/35  valid Dice 0.4\n"),
        (132.0, "epoch   5/35  valid Dice 0.5\n"),
    ):
        now[0] = moment
        news.write(text)
        news.flush()
    assert said == ["  epoch   3/35  valid Dice 0.3", "  epoch   5/35  valid Dice 0.5"]


@pytest.fixture
def two_lessons(write_lesson, monkeypatch):
    """Two notebooks in place of the course's: the second fails if a file `fail` lies in the run folder."""
    show = "import os\nprint(os.environ['FETALSEG_LOCKED'])"
    train = "import time\nfor epoch in range(1, 4):\n    time.sleep(0.3)\n    print('epoch', epoch)"
    fail = "from pathlib import Path\nassert not (Path(run_dir) / 'fail').exists(), 'no second time'"
    paths = [write_lesson("01_first.ipynb", show, train), write_lesson("02_second.ipynb", fail)]
    monkeypatch.setattr(lessons, "lessons", lambda: paths)


def test_a_run_says_what_is_done_and_how_far_a_training_is(tmp_path, two_lessons, monkeypatch):
    times = iter(range(0, 1000, 16))
    monkeypatch.setattr(lessons, "time", SimpleNamespace(monotonic=lambda: next(times), perf_counter=lambda: 0.0))
    said = []
    lessons.run_lessons(tmp_path / "run", {}, report=said.append)
    assert said[0] == "  epoch 1" and [line.split()[0] for line in said[-2:]] == ["01_first", "02_second"]


def test_a_failed_run_leaves_no_executed_notebook_of_the_run_before(tmp_path, two_lessons):
    run_dir = tmp_path / "run"
    lessons.run_lessons(run_dir, {}, report=str)
    folder = run_dir / "notebooks"
    (folder / "mine.ipynb").write_text("{}")
    assert {path.name for path in folder.iterdir()} == {"01_first.ipynb", "02_second.ipynb", "mine.ipynb"}
    (run_dir / "fail").write_text("")
    with pytest.raises(FetalsegError, match="no second time"):
        lessons.run_lessons(run_dir, {}, report=str)
    assert {path.name for path in folder.iterdir()} == {"01_first.ipynb", "02_second_failed.ipynb", "mine.ipynb"}


def test_the_run_s_lock_is_passed_on_to_its_kernels_and_kept_from_others(tmp_path, two_lessons):
    run_dir = tmp_path / "run"
    lessons.run_lessons(run_dir, {}, report=str)
    assert str(run_dir) in outputs(run_dir / "notebooks" / "01_first.ipynb")[0]
    before = (run_dir / "notebooks" / "01_first.ipynb").stat().st_mtime_ns
    with FileLock(run_dir / ".lock"), pytest.raises(FetalsegError, match="wait, or choose another") as error:
        lessons.run_lessons(run_dir, {}, report=str)
    assert "\n" not in str(error.value)
    assert (run_dir / "notebooks" / "01_first.ipynb").stat().st_mtime_ns == before


def test_what_a_killed_run_left_unfinished_is_removed_by_the_next(tmp_path, two_lessons):
    left = tmp_path / "run" / "notebooks" / ".unfinished-abc.ipynb"
    left.parent.mkdir(parents=True)
    left.write_text("half")
    lessons.run_lessons(tmp_path / "run", {}, report=str)
    assert not left.exists()


def test_a_clone_without_notebooks_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(lessons, "project_root", lambda: tmp_path)
    with pytest.raises(FetalsegError, match="run this from a clone of the course"):
        lessons.lessons()
