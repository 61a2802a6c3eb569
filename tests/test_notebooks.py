"""How the notebooks are stored, what they teach, and that they run: compared, headless, alone, changed."""

import ast
import copy
import importlib
import json
import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
import yaml

from fetalseg_helpers import notebooks, training, workspace

ROOT = workspace.project_root()
LESSONS = notebooks.lessons()
NAMES = [path.stem for path in LESSONS]
OF_ANY_DATA = [path for path in LESSONS if path.stem != "07_phantoms"]
TAUGHT = {
    "02_preprocessing": ["fill_outline"],
    "04_unet": ["ConvBlock", "Down", "Up", "UNet"],
    "05_training": ["dice_loss", "combined_loss", "train_one_epoch", "train_briefly"],
    "06_evaluation": ["dice_score", "iou_score"],
}
SMALL = {"phantoms": 24, "seed": 3}


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture(scope="session")
def clone(tmp_path_factory):
    """A copy of what git would clone, without runs, as a project of its own."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("notebooks", "fetalseg_helpers"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    return folder


def run_in(folder, *command, timeout=1800):
    """Run a python module in a clone, which comes before the installed package."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "JUPYTER_PREFER_ENV_PATH": "1", "PYTHONUTF8": "1"}
    environment.pop("JPY_SESSION_NAME", None)
    return subprocess.run(
        [sys.executable, "-m", *map(str, command)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=timeout,
    )


def nbval(folder, *names, lax=False):
    options = ["--nbval-current-env", "--nbval-cell-timeout=900", "-p", "no:cacheprovider", "-q", "--rootdir", folder]
    return run_in(
        folder, "pytest", "--nbval-lax" if lax else "--nbval", *options, *(f"notebooks/{n}.ipynb" for n in names)
    )


# --- how they are stored


@pytest.mark.parametrize("path", LESSONS, ids=NAMES)
def test_a_notebook_is_stored_as_the_conventions_say(path):
    assert notebooks.check_notebook(path) == []


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
    assert "What this does not show" in prose[-1]


@pytest.mark.parametrize("path", LESSONS, ids=NAMES)
def test_links_between_notebooks_lead_somewhere(path):
    for cell in read(path).cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\(([^)#]+\.ipynb)\)", cell.source):
                assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", OF_ANY_DATA, ids=[path.stem for path in OF_ANY_DATA])
def test_no_figure_shows_a_phantom_without_saying_so(path):
    assert 'kind = "phantom" if data == "phantom" else "frame"' in "\n".join(c.source for c in code_cells(read(path)))


def test_every_figure_of_the_notebook_on_phantoms_says_phantom():
    path = next(path for path in LESSONS if path.stem == "07_phantoms")
    drawing = [cell.source for cell in code_cells(read(path)) if "plotting.show_" in cell.source]
    assert len(drawing) > 10
    assert all("phantom" in re.sub(r"phantom(_set)?\.", "", source).lower() for source in drawing)


def test_the_course_is_the_first_six_notebooks():
    assert [path.name[:2] for path in LESSONS[: notebooks.CORE]] == ["01", "02", "03", "04", "05", "06"]


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
        notebooks.parameters_cell(notebook).source += "\n" + line

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
    "no parameters": (lambda n: notebooks.parameters_cell(n).metadata.clear(), "one cell tagged 'parameters'"),
    "no kernelspec": (lambda n: n.metadata.pop("kernelspec"), "kernelspec"),
    "widget state": (lambda n: n.metadata.update(widgets={}), "widget state"),
    "late figure": (lambda n: [c.update(outputs=[]) for c in code_cells(n)[:4]], "no figure within"),
}


@pytest.mark.parametrize("kind", BAD)
def test_the_format_check_notices(kind, tmp_path):
    change, expected = BAD[kind]
    path = tmp_path / "bad.ipynb"
    nbformat.write(spoilt(change), path)
    problems = notebooks.check_notebook(path)
    assert any(expected in problem for problem in problems), problems


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
    return [cell.source for cell in code_cells(read(path)) if "taught" in cell.metadata.get("tags", [])]


@pytest.mark.parametrize("name", TAUGHT)
def test_a_taught_definition_is_the_package_s(name):
    path = next(path for path in LESSONS if path.stem == name)
    cells = taught_cells(path)
    assert len(cells) == len(TAUGHT[name])
    module = importlib.import_module(f"fetalseg_helpers.{name[3:]}")
    with open(module.__file__, encoding="utf-8") as file:
        package = file.read()
    for cell, taught in zip(cells, TAUGHT[name], strict=True):
        assert definition(cell, taught) == definition(package, taught) is not None


def test_a_changed_taught_definition_is_noticed():
    cell = taught_cells(LESSONS[4])[0]
    assert definition(cell, "dice_loss") != definition(cell.replace("smooth=1.0", "smooth=2.0"), "dice_loss")


def test_nothing_is_tagged_taught_elsewhere():
    assert {path.stem for path in LESSONS if taught_cells(path)} == set(TAUGHT)


# --- their parameters


def test_every_parameter_has_a_rule_and_every_rule_a_parameter():
    known = {name for path in LESSONS for name in notebooks.read_parameters(path)}
    assert known == set(workspace.PARAMETERS)


def test_one_parameter_has_one_default_everywhere():
    defaults = {}
    for path in LESSONS:
        for name, value in notebooks.read_parameters(path).items():
            assert defaults.setdefault(name, value) == value, name
            workspace.check_parameters(**{name: value})
    assert all(defaults[name] == value for name, value in notebooks.read_preset("quick").items())
    assert all(defaults[name] == value for name, value in vars(training.Settings()).items())


@pytest.mark.parametrize("name", ["quick", "laptop", "reference"])
def test_a_preset_holds_known_values_in_range(name):
    values = notebooks.read_preset(name)
    workspace.check_parameters(**values)
    assert values["width"] % 2 ** values["depth"] == 0 == values["height"] % 2 ** values["depth"]


def test_the_reference_preset_is_the_mission_s_configuration():
    preset = notebooks.read_preset("reference")
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
        assert set(found) == set(notebooks.read_parameters(path))
        assert all(entry["help"] for entry in found.values())


# --- that they run


def test_a_task_that_a_kernel_leaves_behind_is_no_word_on_stderr(tmp_path):
    said = "import logging\nlogging.getLogger('asyncio').error('Task was destroyed but it is pending!')\nprint('done')"
    cells = [nbformat.v4.new_code_cell('run_dir: str = "x"  # folder'), nbformat.v4.new_code_cell(said)]
    cells[0].metadata["tags"] = ["parameters"]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=read(LESSONS[0]).metadata)
    nbformat.write(notebook, tmp_path / "07_task.ipynb")
    final = notebooks.run_lesson(tmp_path / "07_task.ipynb", tmp_path / "run", {})
    assert [output.name for output in code_cells(read(final))[-1].outputs] == ["stdout"]


def test_nbval_compares_notebooks_1_to_4(clone):
    result = nbval(clone, *NAMES[:4])
    assert result.returncode == 0, result.stdout[-3000:]
    assert " passed" in result.stdout and "skipped" not in result.stdout


def test_nbval_executes_the_notebooks_that_train(clone):
    result = nbval(clone, *NAMES[4:7], lax=True)  # 08 trains five more networks: it runs below, with small values
    assert result.returncode == 0, result.stdout[-3000:]
    metrics = json.loads((clone / "runs/quick/metrics.json").read_text(encoding="utf-8"))
    assert metrics["mean_dice"] > 0.95, "the default run promises 0.95 on phantoms"


def test_nbval_notices_a_changed_number(clone, tmp_path):
    folder = tmp_path / "changed"
    shutil.copytree(clone / "fetalseg_helpers", folder / "fetalseg_helpers")
    notebook = read(LESSONS[0])
    cell = next(cell for cell in code_cells(notebook) if "matched over the whole tree" in cell.source)
    cell.outputs[0].text = cell.outputs[0].text.replace("pairs", "pears")
    for other in code_cells(notebook):
        if other is not cell and not {"parameters", "nbval-ignore-output"} & set(other.metadata.get("tags", [])):
            other.metadata["tags"] = ["nbval-ignore-output"]
    notebooks.parameters_cell(notebook).source = notebooks.parameters_cell(notebook).source.replace("400", "24")
    (folder / "notebooks").mkdir()
    nbformat.write(notebook, folder / "notebooks" / LESSONS[0].name)
    result = nbval(folder, NAMES[0])
    assert result.returncode == 1 and "pears" in result.stdout and "1 failed" in result.stdout


@pytest.mark.parametrize("path", LESSONS, ids=NAMES)
def test_a_notebook_runs_alone_with_other_parameters(path, clone, tmp_path):
    values = SMALL | {
        "width": 64,
        "height": 48,
        "base_channels": 4,
        "depth": 3,
        "epochs": 2,
        "overfit_steps": 20,
        "trial_steps": 5,
        "draws": 200,
        "shots": 4,
        "worsened": 2,
        "leak_steps": 10,
    }
    known = notebooks.read_parameters(path)
    given = [text for name, value in values.items() if name in known for text in ("-p", name, str(value))]
    out = tmp_path / "out.ipynb"
    result = run_in(clone, "papermill", path, out, "-p", "run_dir", tmp_path / "run", *given, "--no-progress-bar")
    assert result.returncode == 0, result.stderr[-2000:]
    assert notebooks.read_parameters(out) == known  # the defaults; what papermill gave stands in its own cell
    promises = "".join(o.get("text", "") for c in code_cells(read(out)) for o in c.outputs if "checks = {" in c.source)
    hopes = {"NO  one pair can be learnt by heart", "NO  it has learnt more than the mean mask"}
    hopes |= {"NO  the network is better than every guess without a network"}  # too few steps for any of them
    assert {line for line in promises.splitlines() if not line.startswith("yes ")} <= hopes and "yes" in promises


@pytest.mark.parametrize("preset", ["laptop", "reference"])
def test_a_preset_is_a_file_for_papermill(preset, clone, tmp_path):
    """Notebook 2 with the preset's size, on a few phantoms."""
    presets = yaml.safe_load((ROOT / "notebooks/presets" / f"{preset}.yaml").read_text(encoding="utf-8"))
    given = ["-f", f"notebooks/presets/{preset}.yaml", "-p", "phantoms", 12, "-p", "run_dir", tmp_path / "run"]
    result = run_in(
        clone, "papermill", "notebooks/02_preprocessing.ipynb", tmp_path / "out.ipynb", *given, "--no-progress-bar"
    )
    assert result.returncode == 0, result.stderr[-2000:]
    made = json.loads((tmp_path / "run/prepared/settings.json").read_text(encoding="utf-8"))
    assert (made["width"], made["height"], made["fit"]) == (presets["width"], presets["height"], presets["fit"])


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (("-p", "epochs", "three"), "epochs is 'three' of type str, but must be a whole number."),
        (("-p", "augmented", "false"), "augmented is 'false' of type str, but must be true or false."),
        (("-y", "learning_rate: 1e-3"), "learning_rate is '1e-3' of type str, but must be a number."),
        (("-p", "epochs", "0"), "epochs is 0, but must lie between 1 and 10000."),
        (("-p", "schedule", "weekly"), "schedule is 'weekly', but must be one of one-cycle, constant."),
        (
            ("-p", "height", "100"),
            "128 × 100 does not divide by 2^4 = 16: use 128 × 96 or 128 × 112, or another depth.",
        ),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else "",
)
def test_a_wrong_value_is_refused_by_the_checking_cell(given, sentence, clone, tmp_path):
    out = tmp_path / "out.ipynb"
    run = ("-p", "run_dir", tmp_path / "run", "--no-progress-bar")
    result = run_in(clone, "papermill", "notebooks/05_training.ipynb", out, *run, *given)
    assert result.returncode != 0 and sentence in result.stderr
    assert not (tmp_path / "run" / "history.csv").exists()
