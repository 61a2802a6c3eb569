"""The project as a whole: the same packages everywhere, the same test command, pictures that exist."""

import re
import shutil
import subprocess

import pytest
import yaml

from fetalseg_helpers import workspace

ROOT = workspace.project_root()


def lines(name):
    return [line.strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines() if line.strip()]


def test_both_environments_list_the_same_packages():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    from_pip = next(entry["pip"] for entry in conda if isinstance(entry, dict))
    assert from_pip == lines("requirements.txt")


def test_torch_is_pinned_and_everything_else_has_an_upper_bound():
    requirements = lines("requirements.txt")
    assert requirements[0] == "torch==2.13.0" and requirements[-1] == "-e ."
    assert all(re.fullmatch(r"[a-z-]+>=[\d.]+,<[\d.]+", line) for line in requirements[1:-1])


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
