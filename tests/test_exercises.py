"""The exercises: solutions get full marks, what is open or wrong is refused in words, nbgrader grades real hand-ins."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import matplotlib
import nbformat
import pandas as pd
import pytest
import torch
import yaml

from fetalseg_helpers import training, unet, workspace

ROOT = workspace.project_root()
EXERCISES = ROOT / "notebooks" / "exercises"
ASSIGNMENTS = sorted(path.name for path in (EXERCISES / "source").iterdir() if path.is_dir())
REGION = re.compile(r"### BEGIN SOLUTION\n.*?### END SOLUTION", re.DOTALL)


def read(assignment, kind="source"):
    return nbformat.read(EXERCISES / kind / assignment / f"{assignment}.ipynb", as_version=4)


def kind_of(cell):
    """'answer', 'check', 'manual' or 'given' and the task's number, of a cell that nbgrader knows; else None."""
    known = cell.metadata.get("nbgrader")
    return tuple(known.grade_id.split("_", 1)) if known else None


def tasks(assignment):
    """Points of each task by its number, as 1_2, those graded by a person among them."""
    found = {kind_of(cell): cell.metadata.nbgrader.get("points") for cell in read(assignment).cells if kind_of(cell)}
    return {task: points for (kind, task), points in found.items() if kind in ("check", "manual")}


class Page:
    """A notebook that is being run, cell by cell, in this process."""

    def __init__(self, assignment):
        self.names, self.cells = {"__name__": "__main__"}, read(assignment).cells
        self.tasks = [task for kind, task in filter(None, map(kind_of, self.cells)) if kind == "check"]

    def cell(self, kind, task):
        return next(cell.source for cell in self.cells if kind_of(cell) == (kind, task))

    def run(self, source, name="cell"):
        exec(compile(source, name, "exec"), self.names)

    def judged(self, task, answer, capsys):
        """What is said of an answer, and the error of the hidden tests, if any; for nbgrader, any means no points."""
        self.run(answer, f"answer {task}")
        capsys.readouterr()
        refused = None
        try:
            self.run(self.cell("check", task), f"check {task}")
        except Exception as error:
            refused = error
        said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Task ")]
        assert len(said) == 1, said
        return said[0].split(": ", 1)[1], refused


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_solutions_are_right_and_what_is_open_or_wrong_is_refused_in_words(assignment, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")
    page = Page(assignment)
    for cell in page.cells:
        if cell.cell_type == "code" and (kind_of(cell) or ("",))[0] != "check":
            page.run(cell.source)
        elif cell.cell_type == "code":
            task = kind_of(cell)[1]
            assert page.judged(task, "", capsys) == ("right.", None), task
    wrong = yaml.safe_load((ROOT / "tests" / "wrong_answers" / f"{assignment}.yaml").read_text(encoding="utf-8"))
    assert sorted(wrong) == sorted(page.tasks)
    for task in page.tasks:
        solution = page.cell("answer", task)
        assert REGION.search(solution), task
        said, refused = page.judged(task, REGION.sub("...", solution), capsys)
        assert said == "not answered yet." and refused is not None, (task, said)
        messages = []
        for case in wrong[task]:
            said, refused = page.judged(task, case["answer"], capsys)
            assert refused is not None and case["says"] in said, (task, said)
            messages.append(said)
        assert len(messages) >= 3 and len(set(messages)) == len(messages), (task, messages)
        page.run(solution)


# --- by nbgrader itself


def nbgrader(course, *arguments):
    """Run nbgrader in a course's folder; it looks for alembic, which lies beside Python, on the path."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = [sys.executable, "-m", "nbgrader", *arguments]
    return subprocess.run(command, cwd=course, env=os.environ | {"PATH": path}, capture_output=True, text=True)


@pytest.fixture(scope="session")
def course(made_once):
    """The course's folder as a teacher has it, every assignment generated. Hand-ins are put below `submitted/`."""
    if find_spec("nbgrader") is None:
        pytest.skip("nbgrader is not installed: pip install -e '.[teach]'")

    def write(folder):
        folder.mkdir()
        shutil.copy(EXERCISES / "nbgrader_config.py", folder)
        shutil.copytree(EXERCISES / "source", folder / "source")
        for assignment in ASSIGNMENTS:
            made = nbgrader(folder, "generate_assignment", assignment, "--create")
            assert made.returncode == 0, made.stderr

    return made_once("course", write)


def hand_in(course, student, notebook, assignment):
    folder = course / "submitted" / student / assignment
    folder.mkdir(parents=True)
    nbformat.write(notebook, folder / f"{assignment}.ipynb")


def marks(course, assignment, student):
    """Points given and points to be had, of each task that is graded by tests, by its number."""
    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{course / 'gradebook.db'}") as book:
        grades = book.find_submission_notebook(assignment, assignment, student).grades
        return {one.name.split("_", 1)[1]: (one.auto_score, one.max_score) for one in grades if "check" in one.name}


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_what_students_get_is_what_nbgrader_makes_of_the_source(assignment, course):
    fresh = nbformat.read(course / "release" / assignment / f"{assignment}.ipynb", as_version=4)
    stored = read(assignment, "release")
    assert [cell.source for cell in stored.cells] == [cell.source for cell in fresh.cells]
    assert [kind_of(cell) for cell in stored.cells] == [kind_of(cell) for cell in fresh.cells]
    text = json.dumps(stored)
    assert "BEGIN SOLUTION" not in text and "HIDDEN TESTS" not in text
    assert not any(cell.get("outputs") for cell in read(assignment).cells + stored.cells)


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_nbgrader_gives_a_solution_full_marks(assignment, course):
    hand_in(course, "solver", read(assignment), assignment)
    graded = nbgrader(course, "autograde", assignment, "--create", "--student=solver")
    assert graded.returncode == 0, graded.stderr
    given = marks(course, assignment, "solver")
    assert given and all(got == most for got, most in given.values()), given


def test_five_hand_ins_end_in_a_table_of_five_rows(course, tmp_path):
    """One is right, one half, one empty, one never ends, and one kills its kernel."""
    assignment = "02_preprocessing"
    right, half, empty = read(assignment), read(assignment), read(assignment, "release")
    endless, deadly = read(assignment, "release"), read(assignment, "release")
    answers = [cell for cell in half.cells if (kind_of(cell) or ("",))[0] == "answer"]
    for cell in answers[: len(answers) // 2]:
        cell.source = REGION.sub("...", cell.source)
    for notebook, bad in ((endless, "while True:\n    pass"), (deadly, "import os\nos._exit(1)")):
        next(cell for cell in notebook.cells if (kind_of(cell) or ("",))[0] == "answer").source = bad
    own = tmp_path / "course"
    shutil.copytree(course, own, ignore=shutil.ignore_patterns("submitted", "autograded", "gradebook.db"))
    assert nbgrader(own, "generate_assignment", assignment, "--create", "--force").returncode == 0
    hand_ins = {"right": right, "half": half, "empty": empty, "endless": endless, "deadly": deadly}
    for student, notebook in hand_ins.items():
        hand_in(own, student, notebook, assignment)
    nbgrader(own, "autograde", assignment, "--create", "--ExecutePreprocessor.timeout=10")
    exported = nbgrader(own, "export", "--to=grades.csv")
    assert exported.returncode == 0, exported.stderr
    table = pd.read_csv(own / "grades.csv").query("assignment == @assignment").set_index("student_id")
    assert sorted(table.index) == sorted(hand_ins)
    points = sum(points for task, points in tasks(assignment).items() if task in Page(assignment).tasks)
    assert table.raw_score["right"] == points > table.raw_score["half"] > 0
    assert (table.raw_score[["empty", "endless", "deadly"]] == 0).all(), table.raw_score


# --- the leaderboard of the capstone


def run_leaderboard(hand_ins, count):
    """The table that the leaderboard writes, by student, and what it prints."""
    command = [sys.executable, EXERCISES / "leaderboard.py", hand_ins, "--seed=7", f"--count={count}"]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONUTF8": "1"})
    assert result.returncode == 0, result.stderr
    return pd.read_csv(hand_ins.parent / "leaderboard.csv").set_index("student"), result.stdout


def test_the_leaderboard_ranks_hand_ins_and_says_what_is_wrong_with_the_others(tmp_path):
    torch.manual_seed(0)
    network, shipped = training.load_network("pretrained")
    settings = shipped["settings"] | {"epochs": 10, "batch_size": 8, "start": "scratch"}
    state = shipped | {"network": network.state_dict(), "settings": settings, "images": [["1_HC"] * 80, ["2_HC"]]}
    fresh = unet.make_network(*(settings[name] for name in training.ARCHITECTURE)).state_dict()
    hand_ins = {
        "ada": state,
        "ben": state | {"network": fresh},
        "cleo": state | {"settings": settings | {"epochs": 200}},
        "dan": state | {"settings": settings | {"start": "pretrained"}},
    }
    for student, one in hand_ins.items():
        training.save_checkpoint(tmp_path / "in" / student / "checkpoint.pt", one)
    (tmp_path / "in" / "eve").mkdir()
    training.save_checkpoint(tmp_path / "in" / "fay" / "checkpoint.pt", state)
    (tmp_path / "in" / "fay" / "metrics.json").write_text('{"threshold": ')
    table, output = run_leaderboard(tmp_path / "in", count=40)
    assert list(table.index[:2]) == ["ada", "ben"] and sorted(table.index) == [*hand_ins, "eve", "fay"]
    assert table.mean_dice["ada"] > 0.9 > table.mean_dice["ben"] and table.steps["ada"] == 100
    assert table.images["ada"] == 40  # a set of so many would have planted defects, which are no student's fault
    assert f"Written: {tmp_path / 'leaderboard.csv'}" in output and "nan" not in output
    problems = {"cleo": "2000 steps", "dan": "from scratch", "eve": "no file", "fay": "metrics.json is damaged"}
    assert table.mean_dice[list(problems)].isna().all()
    for student, words in problems.items():
        assert words in table.problem[student]


def test_a_leaderboard_without_a_score_says_so(tmp_path):
    (tmp_path / "in" / "eve").mkdir(parents=True)
    table, output = run_leaderboard(tmp_path / "in", count=3)
    assert output.startswith("Nobody has a score.\neve, no score: ") and list(table.index) == ["eve"]
