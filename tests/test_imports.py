"""Who imports whom, how long the package is, and that what it offers is described."""

import ast
import subprocess
import sys
from collections import namedtuple
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import fetalseg_helpers

PACKAGE = Path(fetalseg_helpers.__file__).parent
NAME = PACKAGE.name
STAGES = "fetalseg_helpers.running.stages"
FOLDERS = ("phantoms", "beyond_dice", "running")
CORE_LINES, PACKAGE_LINES = 2000, 4800
Found = namedtuple("Found", "module at_import_time")


def module_name(path):
    """`fetalseg_helpers/running/sweep.py` is `fetalseg_helpers.running.sweep`."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
CORE = [name for name, path in MODULES.items() if path.parent == PACKAGE and path.stem != "__main__"]


def folder_of(module):
    """'phantoms', 'beyond_dice' or 'running'; '' for the core; 'other' for what is not ours."""
    parts = module.split(".")
    if parts[0] != NAME:
        return "other"
    return parts[1] if len(parts) > 1 and parts[1] in FOLDERS else ""


def imports_of(source, known=MODULES):
    """The modules that a source imports, and whether importing it is enough to import them."""
    found = []

    def visit(node, at_import_time):
        if isinstance(node, ast.Import):
            found.extend(Found(alias.name, at_import_time) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.append(Found(inner if inner in known else node.module, at_import_time))
        for child in ast.iter_child_nodes(node):
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            visit(child, at_import_time and not inside)

    visit(ast.parse(source), True)
    return found


IMPORTS = {name: imports_of(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def needed(imports):
    """Of each module, those of the package that it imports, inside functions too; but for the core's of a folder."""
    needs = {}
    for name, found in imports.items():
        ours = {one.module for one in found if folder_of(one.module) != "other"}
        needs[name] = {one for one in ours if not (folder_of(name) == "" and folder_of(one) in FOLDERS)}
    return needs


def test_the_reader_of_imports_tells_those_at_import_time_from_those_inside_functions():
    source = """
import a, b.c as d
from p import q, other
try:
    from p.q import r
except ImportError:
    import e
class K:
    import f
    def method(self):
        import g
async def h():
    from p import q
"""
    found = imports_of(source, known={"p.q", "p"})
    assert [one.module for one in found if one.at_import_time] == ["a", "b.c", "p.q", "p", "p.q", "e", "f"]
    assert [one.module for one in found if not one.at_import_time] == ["g", "p.q"]
    with pytest.raises(AssertionError, match="relative"):
        imports_of("from . import training")


def test_the_core_imports_no_folder_when_it_is_imported():
    assert f"{NAME}.training" in CORE and f"{NAME}.__main__" not in CORE
    for name in CORE:
        wrong = {one.module for one in IMPORTS[name] if one.at_import_time and folder_of(one.module) in FOLDERS}
        assert not wrong, f"{name} imports {wrong}"


def test_the_core_needs_no_folder_and_the_stages_only_the_simulator_where_they_make_phantoms():
    assert [name for name in CORE for one in IMPORTS[name] if folder_of(one.module) in FOLDERS] == []
    needs = [one for one in IMPORTS[STAGES] if folder_of(one.module) in ("phantoms", "beyond_dice")]
    assert [(one.module, one.at_import_time) for one in needs] == [(f"{NAME}.phantoms.dataset", False)]


def test_a_folder_imports_the_core_and_itself_only():
    inside = [name for name in MODULES if folder_of(name) in FOLDERS and name != STAGES]
    assert {folder_of(name) for name in inside} == set(FOLDERS)
    for name in inside:
        wrong = {one.module for one in IMPORTS[name] if folder_of(one.module) not in ("other", "", folder_of(name))}
        assert not wrong and f"{NAME}.__main__" not in {one.module for one in IMPORTS[name]}, f"{name}: {wrong}"


def test_imports_go_in_no_circle():
    assert len(list(TopologicalSorter(needed(IMPORTS)).static_order())) >= len(MODULES)
    bad = {
        f"{NAME}.a": imports_of(f"from {NAME} import b", [f"{NAME}.b"]),
        f"{NAME}.b": imports_of(f"def late():\n    import {NAME}.a"),
    }
    with pytest.raises(CycleError):
        list(TopologicalSorter(needed(bad)).static_order())


def test_the_network_and_its_training_bring_in_neither_simulator_nor_notebooks():
    code = f"import sys, {NAME}.unet, {NAME}.training; print(*sorted(sys.modules), sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=True)
    loaded = done.stdout.split()
    assert {f"{NAME}.unet", f"{NAME}.training", f"{NAME}.workspace"} <= set(loaded)
    assert [name for name in loaded if folder_of(name) in FOLDERS] == []
    assert not {"papermill", "nbformat", "ipywidgets", "IPython", "matplotlib.pyplot"} & set(loaded)


def lines_of(names):
    """Lines of some modules, as `wc -l` counts them."""
    return sum(MODULES[name].read_bytes().count(b"\n") for name in names)


def test_core_and_package_do_not_grow():
    assert lines_of(CORE) <= CORE_LINES
    assert lines_of(MODULES) <= PACKAGE_LINES


def test_the_reading_list_names_every_module_of_the_core_and_every_folder():
    listed = [line.split()[0] for line in fetalseg_helpers.__doc__.splitlines() if line.startswith("    ")]
    assert sorted(f"{NAME}.{name}" for name in listed) == sorted(set(CORE) - {NAME})
    assert all(f"`{folder}`" in fetalseg_helpers.__doc__ for folder in FOLDERS)


def undescribed(source):
    """Public functions, classes and methods of a source without a docstring; `forward` is torch's own name."""
    found = []

    def visit(node, prefix):
        for child in node.body:
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = prefix + child.name
                if not child.name.startswith("_") and child.name != "forward" and not ast.get_docstring(child):
                    found.append(name)
                if isinstance(child, ast.ClassDef):
                    visit(child, f"{name}.")

    visit(ast.parse(source), "")
    return found


def test_the_reader_of_docstrings_finds_what_has_none():
    source = """
def one(): pass
def two(): "What it does."
def _three(): pass
class Four:
    "What it is."
    def __init__(self): pass
    def forward(self): pass
    def five(self):
        def inner(): pass
"""
    assert undescribed(source) == ["one", "Four.five"]


@pytest.mark.parametrize("name", MODULES)
def test_every_module_and_what_it_offers_is_described(name):
    source = MODULES[name].read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(source)) and undescribed(source) == []
