"""How the notebooks are stored, what they teach, and that they run: compared, headless, alone, changed."""

import ast
import contextlib
import copy
import importlib
import io
import json
import linecache
import os
import re
import shutil
import subprocess
import symtable
import sys
from functools import partial
from pathlib import Path

import cv2
import nbformat
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from notebook_checks import UNCOMMITTED, check_notebook, committed, defined, parameters_cell

from fetalseg_helpers import plotting, preprocessing, training, verification, workspace
from fetalseg_helpers.running import lessons, stages
from fetalseg_helpers.running.checks import PARAMETERS, check_parameters

ROOT = workspace.project_root()
LESSONS = [committed(path) for path in lessons.lessons()]
NAMES = [path.stem for path in LESSONS]
OF_ANY_DATA = [path for path in LESSONS if path.stem not in ("00_primer", "07_phantoms")]
TAUGHT = {
    "01_loading": ["split_pairs"],
    "02_preprocessing": ["fill_holes", "fill_outline", "augment"],
    "03_verification": ["outliers"],
    "04_unet": ["ConvBlock", "Down", "Up", "UNet"],
    "05_training": ["dice_loss", "combined_loss", "make_optimiser", "train_one_epoch"],
    "06_evaluation": ["dice_score", "iou_score", "overlap_scores"],
}
SMALL = {
    "phantoms": 24,
    "seed": 3,
    "width": 64,
    "height": 48,
    "base_channels": 4,
    "depth": 3,
    "epochs": 2,
    "overfit_steps": 20,
    "trial_steps": 5,
    "draws": 200,
    "shots": 4,
    "shot_steps": 10,
    "worsened": 2,
    "leak_steps": 10,
}
HOPES = {  # what so few steps need not reach
    "NO  one pair can be learnt by heart",
    "NO  it has learnt more than the mean mask",
    "NO  the network is better than every guess without a network",
}
compared = pytest.mark.xdist_group("nbval")
executed = pytest.mark.xdist_group("notebooks")


def read(path):
    return nbformat.read(path, as_version=4)


def lesson(number):
    return next(path for path in LESSONS if path.name.startswith(f"{number:02d}_"))


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def is_tagged(cell, tag):
    return tag in cell.metadata.get("tags", [])


# --- how they are stored


@pytest.mark.parametrize("path", LESSONS, ids=NAMES)
def test_a_notebook_is_stored_as_the_conventions_say(path):
    assert check_notebook(path) == []


@pytest.mark.parametrize("path", LESSONS, ids=NAMES)
def test_a_notebook_has_the_parts_of_a_lesson(path):
    notebook = read(path)
    prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    assert 25 <= len(notebook.cells) <= 42
    assert prose[0].startswith(f"# {int(path.name[:2])} · ")
    assert "After this notebook you can" in prose[0] and "→" in prose[0]
    text = "\n".join(prose)
    for part in (
        "redict",
        "y hand",
        "What goes wrong if",
        "## Self-checks",
        "## What was saved",
        "## What you can do now",
    ):
        assert part in text, part
    while prose[-1].startswith("## Appendix: "):  # nothing else may follow the closing words
        prose.pop()
    assert "What this does not show" in prose[-1]


@pytest.mark.parametrize("path", LESSONS, ids=NAMES)
def test_links_between_notebooks_lead_somewhere(path):
    for cell in read(path).cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\(([^)#]+\.ipynb)\)", cell.source):
                assert (ROOT / "notebooks" / target).exists(), target


@pytest.mark.parametrize("path", OF_ANY_DATA, ids=[path.stem for path in OF_ANY_DATA])
def test_no_figure_shows_a_phantom_without_saying_so(path):
    assert 'kind = "phantom" if data == "phantom" else "frame"' in "\n".join(c.source for c in code_cells(read(path)))


@pytest.mark.parametrize(
    ("number", "draws", "least"), [(0, r"show_images\(|draw_image\(", 4), (7, r"\bshow_\w+\(|new_figure\(", 11)]
)
def test_every_figure_of_a_phantom_says_so_where_there_is_no_other_data(number, draws, least):
    cells = [cell.source for cell in code_cells(read(lesson(number)))]
    drawing = [source for source in cells if re.search(draws, source)]
    assert len(drawing) >= least
    assert all("phantom" in re.sub(r"phantoms?\.", "", source).lower() for source in drawing)


def test_run_executes_notebooks_1_to_6(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(lessons, "run_lesson", lambda path, *_: done.append(path.name[:2]))
    lessons.run_lessons(tmp_path / "run", {}, report=str)
    assert done == ["01", "02", "03", "04", "05", "06"]


def spoilt(change):
    """A stored notebook with one thing wrong."""
    notebook = copy.deepcopy(read(LESSONS[0]))
    change(notebook)
    return notebook


def swap_counts(notebook):
    first, second = code_cells(notebook)[:2]
    first.execution_count, second.execution_count = 2, 1


def strip_counts(notebook):
    for cell in code_cells(notebook):
        cell.execution_count, cell.outputs = None, []


def add_output(**output):
    return lambda notebook: code_cells(notebook)[-1].outputs.append(nbformat.v4.new_output(**output))


def set_source(source):
    return lambda notebook: code_cells(notebook)[-1].update(source=source)


def set_parameters(line):
    def change(notebook):
        parameters_cell(notebook).source += "\n" + line

    return change


BAD = {
    "out of order": (swap_counts, "execution counts"),
    "stripped": (strip_counts, "execution counts"),
    "stored error": (
        add_output(output_type="error", ename="KeyError", evalue="x", traceback=[]),
        "stored error KeyError",
    ),
    "stderr": (add_output(output_type="stream", name="stderr", text="careful"), "stored stderr"),
    "long output": (add_output(output_type="stream", name="stdout", text="x\n" * 200), "lines of output"),
    "somebody's path": (add_output(output_type="stream", name="stdout", text="/home/ann/x"), "path of one machine"),
    "Windows path": (set_source("folder = 'C:\\\\Users\\\\ann'"), "path of one machine"),
    "long cell": (set_source("x = 1\n" * 40), "lines, over 30"),
    "unknown parameter": (set_parameters("colour: int = 3  # what"), "no rule"),
    "computed parameter": (set_parameters("seed: int = 1 + len('a')  # what"), "is computed"),
    "bare parameter": (set_parameters("seed = 1"), "is not `name: type = literal"),
    "no parameters": (lambda n: parameters_cell(n).metadata.clear(), "one cell tagged 'parameters'"),
    "no kernelspec": (lambda n: n.metadata.pop("kernelspec"), "kernelspec"),
    "widget state": (lambda n: n.metadata.update(widgets={}), "widget state"),
    "late figure": (lambda n: [c.update(outputs=[]) for c in code_cells(n)[:4]], "no figure within"),
}


@pytest.mark.parametrize("kind", BAD)
def test_the_format_check_notices(kind, tmp_path):
    change, expected = BAD[kind]
    path = tmp_path / "bad.ipynb"
    nbformat.write(spoilt(change), path)
    problems = check_notebook(path)
    assert any(expected in problem for problem in problems), problems


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not here, so there is no clone to try: install it")
def test_a_notebook_that_was_saved_in_a_clone_is_tested_as_it_was_committed(tmp_path, monkeypatch):
    monkeypatch.delenv(UNCOMMITTED, raising=False)
    git = partial(subprocess.run, check=True, capture_output=True)
    origin, clone = tmp_path / "origin", tmp_path / "clone"
    for name in ("notebooks/01_lesson.ipynb", "fetalseg_helpers/unet.py"):
        (origin / name).parent.mkdir(parents=True)
        shutil.copy(LESSONS[0], origin / name)
    git(["git", "init", origin])
    git(["git", "add", "."], cwd=origin)
    identity = ["-c", "user.name=Ann", "-c", "user.email=ann@example.org", "-c", "commit.gpgsign=false"]
    git(["git", *identity, "commit", "-m", "A lesson"], cwd=origin)
    git(["git", "clone", origin, clone])
    path = clone / "notebooks" / "01_lesson.ipynb"
    assert committed(path) == path

    nbformat.write(spoilt(swap_counts), path)
    with pytest.warns(UserWarning, match="01_lesson.ipynb is tested as it was last committed"):
        assert read(committed(path)) == read(LESSONS[0])
    monkeypatch.setenv(UNCOMMITTED, "1")
    assert committed(path) == path
    monkeypatch.delenv(UNCOMMITTED)
    (clone / "fetalseg_helpers" / "unet.py").write_text("changed too", encoding="utf-8")
    assert committed(path) == path
    for new in (path.with_name("02_new.ipynb"), tmp_path / "01_without_git.ipynb"):
        shutil.copy(path, new)
        assert committed(new) == new


# --- what they teach


def definition(source, name):
    """Syntax tree of one function or class without its docstrings, as text."""
    for node in ast.parse(source).body:
        if getattr(node, "name", None) == name:
            for inner in ast.walk(node):
                if isinstance(inner, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(inner) is not None:
                    inner.body = inner.body[1:]
            return ast.dump(node)
    return None


def taught_cells(path):
    return [cell.source for cell in code_cells(read(path)) if is_tagged(cell, "taught")]


@pytest.mark.parametrize("name", TAUGHT)
def test_a_taught_definition_is_the_package_s(name):
    path = next(path for path in LESSONS if path.stem == name)
    page = "\n".join(taught_cells(path))
    module = importlib.import_module(f"fetalseg_helpers.{name[3:]}")
    package = Path(module.__file__).read_text(encoding="utf-8")
    assert [node.name for node in ast.parse(page).body] == TAUGHT[name]
    for taught in TAUGHT[name]:
        assert definition(page, taught) == definition(package, taught) is not None


def test_a_changed_taught_definition_is_noticed():
    cell = taught_cells(lesson(5))[0]
    assert definition(cell, "dice_loss") != definition(cell.replace("smooth=1.0", "smooth=2.0"), "dice_loss")


def test_nothing_is_tagged_taught_elsewhere():
    assert {path.stem for path in LESSONS if taught_cells(path)} == set(TAUGHT)


def test_notebook_3_counts_its_questions_in_words():
    words = {24: "twenty-four"}
    assert f"You asked {words[len(verification.CHECKS)]} questions" in read(lesson(3)).cells[-1].source


@pytest.fixture(scope="module")
def stable_epoch():
    """The function that notebook 5 defines."""
    return defined(5, "stable_epoch")


@pytest.mark.parametrize(
    ("scores", "epoch"),
    [
        ([0.1, 0.5, 0.90, 0.87, 0.90, 0.905], 5),
        ([0.9, 0.9, 0.9], 1),
        ([0.1, 0.9], 2),
        ([0.9, 0.5], None),
        ([0.7], 1),
        ([], None),
    ],
)
def test_the_stable_epoch_worked_by_hand(scores, epoch, stable_epoch):
    history = pd.DataFrame({"epoch": range(1, len(scores) + 1), "valid_dice": scores})
    assert stable_epoch(history, 0.01) == epoch


@given(st.lists(st.integers(0, 20), min_size=1, max_size=12), st.integers(0, 5))
def test_from_the_stable_epoch_on_and_not_before_every_dice_is_near_the_best(stable_epoch, scores, tolerance):
    history = pd.DataFrame({"epoch": range(1, len(scores) + 1), "valid_dice": scores})
    near = [score >= max(scores) - tolerance for score in scores]
    starts = [number for number in range(1, len(scores) + 1) if all(near[number - 1 :])]
    assert stable_epoch(history, tolerance) == (starts[0] if starts else None)


# --- what they draw


def dice_axis(scores, baseline=0.4, stable=None):
    """The axis with the validation Dice that notebook 5 draws of these scores."""
    epochs = np.arange(1, len(scores) + 1)
    rows = pd.DataFrame({"epoch": epochs, "train_loss": 1 / epochs, "valid_loss": 1.2 / epochs, "valid_dice": scores})
    draw = defined(5, "show_history", pd=pd, plotting=plotting, kind="phantom", baseline=baseline)
    return draw(rows.to_dict("records"), stable).axes[1]


def test_one_bad_first_epoch_does_not_flatten_the_last_ones():
    scores = [0.05, *np.linspace(0.94, 0.98, 34)]
    axis = dice_axis(scores, baseline=0.8)
    lowest, highest = axis.get_ylim()
    assert 0.05 < lowest < 0.94 and highest == 1
    assert axis.get_title() == "validation Dice (1 of 35 epochs below)"
    assert list(axis.lines[0].get_ydata()) == scores


@pytest.mark.parametrize(
    "scores", [[0.7], [0.1, 0.9], [0.9, 0.95, 0.96, 0.5, 0.2, 0.1], [0.0, 0.0], [1.0, 1.0], [0.3, 0.5, 0.7, 0.9, 0.95]]
)
@pytest.mark.parametrize("baseline", [0.4, 0.99])
def test_the_later_half_of_the_epochs_and_the_baseline_are_in_the_picture(scores, baseline):
    axis = dice_axis(scores, baseline, stable=1)
    lowest, highest = axis.get_ylim()
    shown = [*scores[len(scores) // 2 :], baseline]
    assert 0 <= lowest <= min(shown) and max(shown) <= highest and lowest < highest
    assert ("below" in axis.get_title()) == (min(scores) < lowest)


def test_notebook_3_rings_the_centroids_near_the_border():
    measurements = pd.DataFrame({"centroid_x": [0.5, 0.04, 0.7], "centroid_y": [0.5, 0.5, 0.97]})
    names = {"np": np, "plotting": plotting, "verification": verification, "Rectangle": Rectangle}
    draw = defined(3, "show_border", border=0.05, kind="phantom", measurements=measurements, **names)
    axis = draw().axes[0]
    every, ringed = axis.collections
    np.testing.assert_allclose(every.get_offsets(), measurements)
    np.testing.assert_allclose(ringed.get_offsets(), measurements[1:])
    assert axis.get_title().startswith("2 of 3 phantoms") and "5%" in axis.get_title().replace(" ", "")
    assert draw(0.0).axes[0].get_title().startswith("0 of 3")


def test_notebook_6_paints_what_is_predicted_and_not_true_orange_and_the_other_errors_green():
    image = np.random.default_rng(0).integers(0, 200, (54, 80), dtype=np.uint8)
    truth, prediction = (cv2.circle(np.zeros_like(image), (x, 27), 15, 1, -1) for x in (38, 44))
    scores = pd.DataFrame({"image_id": ["1_HC", "2_HC"], "dice": [0.9, 0.8]})
    names = {"np": np, "plotting": plotting, "to_rgb": to_rgb, "kind": "phantom", "scores": scores}
    draw = defined(6, "show_ranked", read_and_predict=lambda name: (image, truth, prediction), **names)
    figure = draw(rank=1)
    assert "2_HC: Dice 0.8000, place 1 of 2" in figure.axes[0].get_title()
    painted = figure.axes[0].images[0].get_array()
    for where, color in ((prediction > truth, plotting.PREDICTION), (truth > prediction, plotting.TRUTH)):
        expected = 0.25 * image[where, None] / 255 + 0.75 * np.array(to_rgb(color))
        np.testing.assert_allclose(painted[where], expected)
    same = truth == prediction
    np.testing.assert_allclose(painted[same], np.repeat(image[same, None] / 255, 3, axis=1))


# --- what they choose


@pytest.fixture(scope="module")
def choose_cut():
    """The function that notebook 6 defines."""
    return defined(6, "choose_cut")


def cuts(**columns):
    """A table of cuts at 0.3, 0.4, 0.5, 0.7, with the steps in their order."""
    return pd.DataFrame(columns, index=pd.Index([0.3, 0.4, 0.5, 0.7], name="threshold"))


@pytest.mark.parametrize(
    ("table", "chosen"),
    [
        (cuts(every=[0.8, 0.7, 0.7, 0.7], filled=[0.7, 0.7, 0.7, 0.9]), (0.7, "filled")),
        (cuts(every=[0.8, 0.95, 0.7, 0.7], filled=[0.7, 0.7, 0.7, 0.9]), (0.4, "every")),
        (cuts(every=[0.9, 0.9, 0.8, 0.9], filled=[0.9, 0.9, 0.8, 0.9]), (0.4, "every")),  # towards 0.5, the simpler
        (cuts(every=[0.9, 0.8, 0.8, 0.8], filled=[0.9, 0.9, 0.8, 0.9]), (0.3, "every")),  # the simpler goes first
        (cuts(every=[0.9, 0.9, 0.89992, 0.9], filled=[0.9, 0.9, 0.9, 0.9]), (0.5, "every")),  # as good as equal
        (cuts(every=[0.90006, 0.8, 0.90004, 0.8], filled=[0.8] * 4), (0.5, "every")),
        (cuts(every=[0.9, 0.8, 0.8998, 0.8], filled=[0.8] * 4), (0.3, "every")),  # a difference
        (cuts(every=[0.9] * 4, largest=[0.90009] * 4, filled=[0.9003] * 4), (0.5, "filled")),
    ],
)
def test_the_best_cut_is_chosen_and_of_equals_the_simplest_step_and_the_threshold_nearest_to_a_half(
    table, chosen, choose_cut
):
    assert choose_cut(table) == chosen


def test_a_threshold_or_a_step_that_is_given_is_kept(choose_cut):
    table = cuts(every=[0.9, 0.8, 0.7, 0.6], filled=[0.7, 0.7, 0.8, 0.6], ellipse=[0.5, 0.6, 0.6, 0.7])
    assert choose_cut(table) == (0.3, "every")
    assert choose_cut(table, threshold=0.7) == (0.7, "ellipse")
    assert choose_cut(table, region="filled") == (0.5, "filled")
    assert choose_cut(table, threshold=0.4, region="ellipse") == (0.4, "ellipse")


@pytest.mark.parametrize(
    ("threshold", "step"), [(0.62, "ellipse"), (0.58, "filled"), (0.05, "every"), (0.99, "ellipse")]
)
def test_a_threshold_that_the_table_lacks_is_kept_with_the_step_of_its_neighbour(threshold, step, choose_cut):
    table = cuts(every=[0.9, 0.8, 0.7, 0.6], filled=[0.7, 0.7, 0.8, 0.6], ellipse=[0.5, 0.6, 0.6, 0.7])
    assert choose_cut(table, threshold=threshold) == (threshold, step)


# --- their parameters


def test_every_parameter_has_a_rule_and_every_rule_a_parameter():
    known = {name for path in LESSONS for name in lessons.read_parameters(path)}
    assert known == set(PARAMETERS)


def test_one_parameter_has_one_default_everywhere():
    defaults = {}
    for path in LESSONS:
        for name, value in lessons.read_parameters(path).items():
            assert defaults.setdefault(name, value) == value, name
            check_parameters(**{name: value})
    assert all(defaults[name] == value for name, value in lessons.read_preset("quick").items())
    assert all(defaults[name] == value for name, value in vars(training.Settings()).items())


@pytest.mark.parametrize("path", LESSONS, ids=NAMES)
def test_a_parameter_is_never_given_another_value(path):
    """Otherwise a cell that is run again, or in another order, would give something else."""
    known = set(lessons.read_parameters(path))
    for cell in code_cells(read(path)):
        if not is_tagged(cell, "parameters"):
            symbols = symtable.symtable(cell.source, path.name, "exec").get_symbols()
            assert not known & {symbol.get_name() for symbol in symbols if symbol.is_assigned()}, cell.source


@pytest.mark.parametrize("name", ["quick", "laptop", "reference"])
def test_a_preset_holds_known_values_in_range(name):
    values = lessons.read_preset(name)
    check_parameters(**values)
    assert values["width"] % 2 ** values["depth"] == 0 == values["height"] % 2 ** values["depth"]


def test_the_reference_preset_is_the_mission_s_configuration():
    preset = lessons.read_preset("reference")
    expected = {
        "base_channels": 64, "depth": 4, "normalisation": "none", "width": 800, "height": 544, "fit": "pad",
        "batch_size": 4, "learning_rate": 1e-4, "weight_decay": 1e-5, "gradient_norm": 1.0, "epochs": 35,
        "bce_weight": 0.2, "schedule": "constant", "foreground_weighting": True,
    }  # fmt: skip
    assert {name: preset[name] for name in expected} == expected


def test_papermill_finds_every_parameter_with_its_comment():
    import papermill

    for path in LESSONS:
        found = papermill.inspect_notebook(str(path))
        assert set(found) == set(lessons.read_parameters(path))
        assert all(entry["help"] for entry in found.values())


# --- that they run, in this process: all that a kernel would do, without starting one


def execute(path, values, *changes, cells=None, times=1, names=None):
    """Run a notebook's code cells, figures and tables drawn as Jupyter draws them.

    Parameters
    ----------
    values : dict
        Of the parameters, as papermill injects them; what the notebook does not know is left out.
    changes : pairs of str
        Text that stands once in the notebook, and what a student writes in its place.
    cells : int, optional
        How many cells; by default all.
    times : int
        How often each cell is run, one time after the other.
    names : dict, optional
        What an earlier pass has left in the kernel.

    Returns
    -------
    (dict, str)
        The names that the notebook leaves, and what it printed.
    """
    known = lessons.read_parameters(path)
    sources = [(cell.source, is_tagged(cell, "parameters")) for cell in code_cells(read(path))[:cells]]
    for old, new in changes:
        assert sum(source.count(old) for source, _ in sources) == 1, old
        sources = [(source.replace(old, new), tagged) for source, tagged in sources]
    names, printed = {"__name__": "__main__"} if names is None else names, io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.MonkeyPatch.context() as patch:
        patch.delenv("JPY_SESSION_NAME", raising=False)
        for number, (source, tagged) in enumerate((one for one in sources for _ in range(times)), 1):
            tree = ast.parse(source)
            last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
            name = f"{path.stem}, code cell {number}"
            linecache.cache[name] = len(source), None, source.splitlines(keepends=True), name  # as a kernel does
            exec(compile(tree, name, "exec"), names)
            shown = eval(compile(ast.Expression(last.value), name, "eval"), names) if last else None
            if hasattr(shown, "savefig"):
                shown.savefig(io.BytesIO(), dpi=30)  # every part is drawn, on few pixels
            elif hasattr(shown, "to_html"):
                shown.to_html()
            if tagged:
                names |= {name: value for name, value in values.items() if name in known}
    return names, printed.getvalue()


def assert_promises(printed, hopes=HOPES):
    lines = printed.splitlines()
    assert any(line.startswith("yes ") for line in lines)
    assert {line for line in lines if line.startswith("NO  ")} <= hopes


@pytest.fixture(scope="session")
def alone(folders):
    """A function that runs a notebook once, with small values, in a run folder of its own; gives names and print."""
    done = {}

    def run(number):
        if number not in done:
            with pytest.MonkeyPatch.context() as patch:
                if number == 6:  # it trains the network of the defaults, which is not small
                    patch.setattr(training, "Settings", partial(training.Settings, base_channels=4, depth=3, epochs=12))
                run_dir = folders / f"alone_{number}_{os.getpid()}"  # several test processes share `folders`
                done[number] = execute(lesson(number), SMALL | {"run_dir": str(run_dir)})
        return done[number]

    return run


@executed
@pytest.mark.parametrize("number", range(lessons.CORE + 1), ids=NAMES[: lessons.CORE + 1])
def test_a_notebook_of_the_course_or_the_primer_runs_alone_with_other_parameters(number, alone):
    _, printed = alone(number)
    assert_promises(printed)


@executed
def test_what_a_notebook_needs_is_made_and_said(alone):
    for number, made in ((2, ["manifest.csv made"]), (6, ["manifest.csv made", "prepared made", "is being trained"])):
        _, printed = alone(number)
        assert all(words in printed for words in made), printed


@executed
def test_notebook_5_trains_what_the_command_line_trains(alone, folders):
    names, _ = alone(5)
    run_dir = folders / "command_line"
    known = {name: SMALL[name] for name in ("phantoms", "seed")}
    stages.ensure_verified(run_dir, SMALL["width"], SMALL["height"], "scale", data="phantom", **known)
    history = training.train(training.Trainer(run_dir, names["settings"]), report=str)
    pd.testing.assert_frame_equal(
        history.drop(columns="seconds"), names["history"].drop(columns="seconds"), check_exact=True
    )


# No hidden state: what a cell does depends on the cells above it and on nothing else.


def results(run_dir):
    """What a notebook has left in its run folder, but for figures, times and paths."""
    found = {}
    for path in sorted(run_dir.rglob("*")):
        if path.suffix == ".npy":
            found[path.name] = path.read_bytes()
        elif path.name in ("manifest.csv", "verification.csv", "metrics.csv", "leak.csv", "robustness.csv"):
            found[path.name] = path.read_text(encoding="utf-8")
        elif path.name == "history.csv":
            found[path.name] = pd.read_csv(path).drop(columns="seconds").to_csv()
        elif path.name == "metrics.json":
            found[path.name] = {**workspace.read_json(path), "parameters": None}
    return found


@executed
@pytest.mark.parametrize("number", range(lessons.CORE + 1), ids=NAMES[: lessons.CORE + 1])
def test_cells_that_run_twice_leave_what_they_leave_when_they_run_once(number, alone, folders):
    once, _ = alone(number)
    run_dir = folders / f"twice_{number}_{os.getpid()}"
    with pytest.MonkeyPatch.context() as patch:
        if number == 6:
            patch.setattr(training, "Settings", partial(training.Settings, base_channels=4, depth=3, epochs=12))
        names, printed = execute(lesson(number), SMALL | {"run_dir": str(run_dir)}, times=2)
    assert_promises(printed)
    left = results(run_dir)
    assert left == results(folders / f"alone_{number}_{os.getpid()}") and (left or number in (0, 4))
    kinds = (int, float, str, bool)
    plain = {name for name, value in once.items() if isinstance(value, kinds) and name not in ("run_dir", "seconds")}
    changed = {name for name in plain if names[name] != once[name] and "second" not in name and "start" not in name}
    assert not changed, {name: (once[name], names[name]) for name in changed}


@executed
@pytest.mark.parametrize(("number", "name", "value"), [(2, "width", 48), (5, "epochs", 1), (6, "threshold", 0.3)])
def test_cells_that_run_again_after_a_changed_parameter_give_what_a_fresh_kernel_gives(
    number, name, value, alone, folders
):
    usual, _ = alone(6)
    fresh, used = (folders / f"{kind}_{name}_{os.getpid()}" for kind in ("fresh", "used"))
    for folder in (fresh, used):
        if number == 6:
            shutil.copytree(usual["folder"], folder)
    execute(lesson(number), SMALL | {"run_dir": str(fresh), name: value})
    names, _ = execute(lesson(number), SMALL | {"run_dir": str(used)})
    execute(lesson(number), SMALL | {"run_dir": str(used), name: value}, names=names)
    assert results(used) == results(fresh)


# What a student changes on the page takes effect in that notebook, and nothing raises.


def pixels_of(figure):
    """What a figure shows, as bytes."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="raw", dpi=40)
    return drawn.getvalue()


@executed
@pytest.mark.parametrize(
    ("number", "name", "values"),
    [
        (0, "show_window", [{"row": 1, "column": 1}, {"row": 46, "column": 62}]),
        (2, "show_filling", [{"cut": 0}, {"cut": 250}]),
        (4, "show_field", [{"across": 0, "down": 0}, {"levels": 3}, {"across": 5}]),
        (4, "show_features", [{"part": "first"}, {"part": "downs.0"}, {"part": "last"}]),
        (5, "show_losses", [{"logit": -8.0}, {"logit": 8.0}, {"weight": 0.0}]),
    ],
)
def test_a_figure_under_sliders_follows_every_value(number, name, values, alone):
    names, _ = alone(number)
    pictures = [pixels_of(names[name](**chosen)) for chosen in [{}, *values]]
    assert len(set(pictures[1:])) == len(values) and len(set(pictures)) >= len(values)


@executed
def test_another_filling_makes_other_prepared_masks(alone, folders):
    run_dir = folders / "filling"
    _, printed = execute(
        lesson(2),
        SMALL | {"run_dir": str(run_dir)},
        ("return filled if filled.sum() > hull.sum() / 2 else hull", "return filled"),
    )
    assert_promises(printed, HOPES | {"NO  every prepared mask has both values"})
    usual, _ = alone(2)
    masks = [np.load(folder / "prepared" / "masks.npy") for folder in (run_dir, usual["folder"].parent)]
    changed = [one.sum() != other.sum() for one, other in zip(*masks, strict=True)]
    assert sum(changed) == 1, "one phantom in 24 has an open outline"


@executed
def test_another_loss_epoch_and_network_are_what_is_trained(alone, folders):
    usual, _ = alone(5)
    names, printed = execute(
        lesson(5),
        SMALL | {"run_dir": str(folders / "loss"), "foreground_weighting": True},
        ("smooth=1.0", "smooth=1000.0"),
        ("return total.item() / len(loader.sampler)", "return 7.0"),
        ("return unet.make_network(base_channels, depth, normalisation)", "return unet.make_network(2, 2, 'none')"),
    )
    assert_promises(printed)
    assert (names["history"].train_loss == 7).all()
    assert (names["history"].valid_loss < usual["history"].valid_loss).all()
    assert names["trainer"].network is not usual["trainer"].network and names["trainer"].network.depth == 2
    weights = [loss.keywords["positive_weight"] for loss in (names["loss_function"], names["trainer"].usual_loss())]
    assert weights[0] == weights[1] > 1
    with pytest.raises(workspace.FetalsegError, match="weights of another network"):
        training.load_network(names["trainer"].folder / "checkpoint.pt")


@executed
def test_another_score_fills_the_metrics(alone, folders):
    usual, _ = alone(6)
    folder = folders / "score"
    shutil.copytree(usual["folder"], folder)
    (folder / "predictions" / "999_HC_pred.png").write_text("of another split")
    _, printed = execute(
        lesson(6),
        SMALL | {"run_dir": str(folder)},
        ("return 2 * both / (predicted + true) if", "return both / (predicted + true) if"),
        ("    circumference_error,\n]", "    circumference_error,\n    lambda *_: {'mine': 7},\n]"),
    )
    assert_promises(printed, HOPES | {"NO  IoU = Dice / (2 - Dice), everywhere"})
    before, after = (pd.read_csv(path / "metrics.csv") for path in (usual["folder"], folder))
    assert np.allclose(after.dice, before.dice / 2) and (after.mine == 7).all()
    assert {path.name for path in (folder / "predictions").iterdir()} == {f"{name}_pred.png" for name in after.image_id}


@executed
def test_a_threshold_that_is_given_is_kept_and_said(alone, folders):
    usual, _ = alone(6)
    folder = folders / "given"
    shutil.copytree(usual["folder"], folder)
    execute(lesson(6), SMALL | {"run_dir": str(folder), "threshold": 0.3})
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["threshold"] == 0.3 and metrics["chosen"] == "threshold given, not chosen"
    chosen = json.loads((usual["folder"] / "metrics.json").read_text(encoding="utf-8"))["chosen"]
    assert chosen == "chosen on validation images"


@pytest.mark.parametrize("path", LESSONS, ids=NAMES)
def test_a_kernel_without_the_package_says_how_to_get_it(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fetalseg_helpers", None)
    with pytest.raises(ModuleNotFoundError, match="choose the course's kernel, or run `pip install"):
        execute(path, {}, cells=1)


@pytest.mark.parametrize("path", LESSONS, ids=NAMES)
def test_a_notebook_of_another_copy_of_the_course_is_refused(path, tmp_path, monkeypatch):
    (tmp_path / "fetalseg_helpers").mkdir()
    (tmp_path / "fetalseg_helpers" / "__init__.py").touch()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    with pytest.raises(workspace.FetalsegError, match="but the package that it has imported in"):
        execute(path, {}, cells=1)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"epochs": "three"}, "epochs is 'three' of type str, but must be a whole number."),
        ({"augmented": "false"}, "augmented is 'false' of type str, but must be true or false: write False."),
        ({"learning_rate": "1e-3"}, "learning_rate is '1e-3' of type str, but must be a number: write 0.001."),
        ({"epochs": 0}, "epochs is 0, but must lie between 1 and 10000."),
        ({"schedule": "weekly"}, "schedule is 'weekly', but must be one of one-cycle, constant."),
        (
            {"width": 128, "height": 100, "depth": 4},
            "128 × 100 does not divide by 2^4 = 16: use 128 × 96 or 128 × 112, or another depth.",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_value_is_refused_by_the_checking_cell(wrong, sentence, tmp_path):
    with pytest.raises(workspace.FetalsegError, match=re.escape(sentence)):
        execute(lesson(5), wrong | {"run_dir": str(tmp_path / "run")}, cells=3)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("path", LESSONS, ids=NAMES)
def test_every_parameter_is_checked_before_anything_is_made(path, tmp_path):
    for name in lessons.read_parameters(path):
        with pytest.raises(workspace.FetalsegError, match=f"^{name} is "):
            execute(path, {"run_dir": str(tmp_path / "run")} | {name: None}, cells=3)
    assert not (tmp_path / "run").exists()


@executed
@pytest.mark.parametrize("preset", ["laptop", "reference"])
def test_a_preset_is_a_file_for_papermill(preset, folders, tmp_path):
    """Papermill takes the file, and notebook 2 the values, on a few phantoms."""
    from papermill.cli import papermill

    path = ROOT / "notebooks" / "presets" / f"{preset}.yaml"
    out = tmp_path / "out.ipynb"
    result = CliRunner().invoke(papermill, ["--prepare-only", "-f", str(path), str(lesson(2)), str(out)])
    assert result.exit_code == 0, result.output
    injected = {}
    exec(next(cell.source for cell in code_cells(read(out)) if is_tagged(cell, "injected-parameters")), injected)
    values = {name: injected[name] for name in lessons.read_preset(preset)}
    assert values == lessons.read_preset(preset)
    execute(lesson(2), values | {"phantoms": 24, "run_dir": str(folders / preset)})
    canvas = preprocessing.read_canvas(folders / preset)
    assert canvas == {name: values[name] for name in workspace.CANVAS_KEYS}


# --- that they run, in kernels


@executed
@pytest.mark.parametrize("number", range(lessons.CORE + 1, len(LESSONS)), ids=NAMES[lessons.CORE + 1 :])
def test_a_deeper_notebook_runs_in_a_kernel_with_other_parameters(number, alone, folders):
    """In the folder that notebook 6 leaves, whose network they need; `run` does the same with the first six."""
    usual, _ = alone(6)
    folder = folders / f"deeper_{number}"
    shutil.copytree(usual["folder"], folder)
    final = lessons.run_lesson(lesson(number), folder, SMALL)
    outputs = [output for cell in code_cells(read(final)) for output in cell.outputs]
    assert {output.name for output in outputs if output.output_type == "stream"} == {"stdout"}
    assert_promises("".join(output.get("text", "") for output in outputs))
    defaults = lessons.read_parameters(lesson(number))
    assert lessons.read_parameters(final) == defaults  # what was given stands in a cell of its own


def test_a_task_that_a_kernel_leaves_behind_is_no_word_on_stderr(tmp_path):
    said = "import logging\nlogging.getLogger('asyncio').error('Task was destroyed but it is pending!')\nprint('done')"
    cells = [nbformat.v4.new_code_cell('run_dir: str = "x"  # folder'), nbformat.v4.new_code_cell(said)]
    cells[0].metadata["tags"] = ["parameters"]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=read(LESSONS[0]).metadata)
    nbformat.write(notebook, tmp_path / "07_task.ipynb")
    final = lessons.run_lesson(tmp_path / "07_task.ipynb", tmp_path / "run", {})
    assert [output.name for output in code_cells(read(final))[-1].outputs] == ["stdout"]


def nbval(folder, *names):
    """Compare stored notebooks of a folder with what they give now."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "JUPYTER_PREFER_ENV_PATH": "1", "PYTHONUTF8": "1"}
    for name in ("JPY_SESSION_NAME", "PYTEST_ADDOPTS"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "--nbval-cell-timeout=900"]
    command += ["-p", "no:cacheprovider", "-q", "--rootdir", folder, *(f"notebooks/{name}.ipynb" for name in names)]
    return subprocess.run(
        list(map(str, command)), cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=3600
    )


@compared
def test_nbval_compares_notebooks_0_to_4(tmp_path):
    """In a copy of what git would clone, without runs; it comes before the installed package."""
    hidden = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for name in ("notebooks", "fetalseg_helpers"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=hidden)
    for path in LESSONS:
        shutil.copy(path, tmp_path / "notebooks")
    result = nbval(tmp_path, *NAMES[:5])
    assert result.returncode == 0, result.stdout[-3000:]
    assert " passed" in result.stdout and "skipped" not in result.stdout


@compared
def test_nbval_notices_a_changed_number_unless_a_cell_may_differ(tmp_path):
    cells = [nbformat.v4.new_code_cell(f"print({number})") for number in (1, 2)]
    for count, (cell, text) in enumerate(zip(cells, ("7\n", "8\n"), strict=True), 1):
        cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=text)]
        cell.execution_count = count
    cells[0].metadata["tags"] = ["nbval-ignore-output"]
    (tmp_path / "notebooks").mkdir()
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=read(LESSONS[0]).metadata)
    nbformat.write(notebook, tmp_path / "notebooks" / "changed.ipynb")
    result = nbval(tmp_path, "changed")
    assert result.returncode == 1 and "1 failed, 1 passed" in result.stdout


def test_every_link_to_the_glossary_leads_to_a_term():
    glossary = (ROOT / "notebooks" / "GLOSSARY.md").read_text(encoding="utf-8")
    terms = re.findall(r"^## (.+)$", glossary, flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", term.lower()).replace(" ", "-") for term in terms}
    assert len(anchors) == len(terms) > 60
    for path in LESSONS:
        prose = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
        linked = set(re.findall(r"GLOSSARY\.md#([\w-]+)", prose))
        assert linked <= anchors, (path.name, linked - anchors)
        assert len(linked) >= 4 or path.stem == "00_primer", path.name
