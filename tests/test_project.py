"""The project as a whole: one list of packages, the same test command everywhere, pictures that exist."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
import yaml

from fetalseg_helpers import workspace

ROOT = workspace.project_root()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# of modules that are named otherwise
DISTRIBUTIONS = {"cv2": "opencv-python", "sklearn": "scikit-learn", "yaml": "pyyaml", "pil": "pillow"}


def lines(name):
    return [line.strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines() if line.strip()]


def names(requirements):
    return {re.match(r"[\w-]+", line)[0].lower() for line in requirements}


def imported(path):
    """Third-party modules that a Python file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"fetalseg_helpers"}


def test_there_is_one_list_of_packages():
    assert lines("requirements.txt") == ["-e .[tests]"]
    conda = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    assert [entry["pip"] for entry in conda if isinstance(entry, dict)] == [["-r requirements.txt"]]


def test_torch_is_pinned_and_everything_else_has_an_upper_bound():
    requirements = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["tests"]
    assert requirements[0] == "torch==2.13.0"
    assert all(re.fullmatch(r"[\w-]+>=[\d.]+,<[\d.]+", line) for line in requirements[1:])


def test_what_the_package_imports_is_in_its_list_and_what_only_tests_need_is_not():
    needed, for_tests = names(PROJECT["dependencies"]), names(PROJECT["optional-dependencies"]["tests"])
    modules = {module for path in (ROOT / "fetalseg_helpers").rglob("*.py") for module in imported(path)}
    optional = {"dask"}  # sweep --dask says how to get it
    found = {DISTRIBUTIONS.get(module.lower(), module.lower()) for module in modules - optional}
    assert found <= needed, found - needed
    assert not needed & for_tests
    assert {"pytest", "pytest-xdist", "nbval", "hypothesis", "monai", "ruff"} <= for_tests


def test_nothing_asks_for_the_version_of_one_of_the_two_opencv_packages():
    for path in (ROOT / "fetalseg_helpers").rglob("*.py"):
        assert 'opencv-python"' not in path.read_text(encoding="utf-8"), path.name


def test_ci_runs_the_command_that_the_readme_gives():
    command = "pip install -r requirements.txt && pytest"
    assert command in lines("README.md")
    for name in (".ci/run", ".github/workflows/checks.yml"):
        assert "README.md" in (ROOT / name).read_text(encoding="utf-8")
    if shutil.which("grep") is None:
        pytest.skip("grep is not here, so how .ci/run reads the command cannot be tried: install it")
    found = subprocess.run(["grep", "-m1", "-E", f"^{command}", ROOT / "README.md"], capture_output=True, text=True)
    assert found.stdout.strip() == command


def test_every_picture_and_file_that_the_readme_names_is_there():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / target).exists(), target


def test_every_stored_figure_is_made_by_the_notebook_of_its_number():
    for path in (ROOT / "figures").glob("*.png"):
        notebook = next((ROOT / "notebooks").glob(f"{path.name[:2]}_*.ipynb"))
        assert path.name in notebook.read_text(encoding="utf-8"), path.name


@pytest.mark.xdist_group("together")
def test_tests_that_share_what_is_dear_stay_in_one_process(request):
    if "PYTEST_XDIST_WORKER" not in os.environ:
        pytest.skip("the tests run in a single process: run them with -n 2")
    assert request.node.nodeid.endswith("@together")  # a pytest that this pytest-xdist does not know makes all twice
