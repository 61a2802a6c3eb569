"""Run the course in a row with papermill, and check how a notebook is stored."""

import ast
import base64
import difflib
import os
import re
import shutil
import struct
import time
from pathlib import Path

import nbclient
import nbformat
import yaml

from fetalseg_helpers.workspace import (
    PARAMETERS,
    FetalsegError,
    check_parameters,
    project_root,
    run_folder,
    shown,
    written_whole,
)

CORE = 6  # notebooks of the course; those with higher numbers go deeper and are run one by one
LONGEST_CELL, LONGEST_OUTPUT = 30, 100  # lines
LARGEST_FIGURE = (700, 450)  # pixels
QUIET_KERNEL = (  # nothing of its own on stderr: neither hints, nor what asyncio says of a task cut off at the end
    "--IPKernelApp.log_level=ERROR",
    '--IPKernelApp.logging_config={"loggers": {"asyncio": {"level": "CRITICAL"}}}',
)
MACHINE_PATH = r"/home/|/Users/|/tmp/|/private/|/mnt/|\b[A-Za-z]:\\"  # and below, the folders of this machine


def lessons():
    """Paths of the numbered notebooks, in order."""
    found = sorted((project_root() / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise FetalsegError(f"{project_root() / 'notebooks'} holds no notebook: run this from a clone of the course.")
    return found


def parameters_cell(notebook):
    """The cell tagged `parameters`."""
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise FetalsegError(f"a notebook needs one cell tagged 'parameters', this one has {len(cells)}.")
    return cells[0]


def read_parameters(path):
    """Names and default values in a notebook's `parameters` cell."""
    tree = ast.parse(parameters_cell(nbformat.read(path, as_version=4)).source)
    return {node.target.id: ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.AnnAssign)}


def read_preset(name):
    """Values of a preset, a file that `papermill -f` reads too."""
    path = project_root() / "notebooks" / "presets" / f"{name}.yaml"
    if not path.exists():
        names = sorted(file.stem for file in path.parent.glob("*.yaml"))
        raise FetalsegError(f"{name} is no preset: use one of {', '.join(names)}.")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def parse_parameters(pairs):
    """Turn (name, text) pairs of a command line into values of the right type.

    Raises
    ------
    FetalsegError
        For a name that no notebook knows, with the nearest that one does, and for a value that does not fit.
    """
    values = {}
    for name, text in pairs:
        if name not in PARAMETERS:
            near = difflib.get_close_matches(name, PARAMETERS, n=1, cutoff=0)
            raise FetalsegError(f"no notebook has a parameter '{name}': did you mean '{near[0]}'?")
        kind = PARAMETERS[name].kind
        try:
            value = {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
        except (ValueError, KeyError):
            value = text
        check_parameters(**{name: value})
        values[name] = value
    return values


def run_lesson(path, run_dir, values):
    """Execute one notebook into `<run_dir>/notebooks/`; only a finished one gets its final name.

    Raises
    ------
    FetalsegError
        Names the notebook, the cell and the error; what was executed so far stays beside as `*_failed.ipynb`.
    """
    import papermill

    known = read_parameters(path)
    given = {name: value for name, value in values.items() if name in known} | {"run_dir": str(run_dir)}
    final = run_folder(run_dir) / "notebooks" / path.name
    failed = final.with_name(f"{path.stem}_failed.ipynb")
    failed.unlink(missing_ok=True)
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")  # the kernel of this environment
    os.environ.pop("JPY_SESSION_NAME", None)  # nobody watches: no bars, a line per epoch
    with written_whole(final) as unfinished:
        try:
            options = {"progress_bar": False, "cwd": path.parent, "kernel_name": "python3", "start_timeout": 300}
            options["extra_arguments"] = list(QUIET_KERNEL)
            papermill.execute_notebook(path, unfinished, parameters=given, **options)
        except papermill.PapermillExecutionError as error:
            shutil.copyfile(unfinished, failed)
            reason = error.evalue or error.ename
            raise FetalsegError(f"{path.name}, cell {error.exec_count}: {reason} (see {shown(failed)})") from error
        except nbclient.exceptions.DeadKernelError as error:
            raise FetalsegError(
                f"{path.name}: its kernel died, most often for want of memory: lower batch_size."
            ) from error
    return final


def run_lessons(run_dir, values, report=print):
    """Execute the notebooks of the course in order; a line after each."""
    for path in lessons()[:CORE]:
        started = time.perf_counter()
        run_lesson(path, run_dir, values)
        report(f"{path.stem:<18} done in {time.perf_counter() - started:5.1f} s")


def check_notebook(path):
    """What is wrong with how a notebook is stored; an empty list if nothing is.

    Looked at: execution counts 1..N, errors, stderr, widget state, the kernelspec, the parameters cell (typed
    literals with a comment, all known), length of cells and outputs, size of figures, an early first figure,
    paths of somebody's machine.

    Returns
    -------
    list of str
        One sentence per problem.
    """
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    problems = []
    counts = [cell.execution_count for cell in code]
    if counts != list(range(1, len(code) + 1)):
        problems.append(
            f"the execution counts are {counts}, not 1 to {len(code)}: restart the kernel and run all cells."
        )
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        problems.append("the kernelspec is not python3.")
    if "widgets" in notebook.metadata:
        problems.append("widget state is stored: clear it.")
    problems += check_parameters_cell(notebook)
    for number, cell in enumerate(code, 1):
        lines = cell.source.count("\n") + 1
        if lines > LONGEST_CELL:
            problems.append(f"code cell {number} has {lines} lines, over {LONGEST_CELL}.")
        problems += [f"code cell {number}: {text}" for output in cell.outputs for text in check_output(output)]
    own = [re.escape(f"{folder.as_posix()}/") for folder in (project_root(), Path.home()) if len(folder.parts) > 1]
    for cell in notebook.cells:
        text = cell.source + "".join(str(output) for output in cell.get("outputs", []))
        if found := re.search("|".join([MACHINE_PATH, *own]), text):
            problems.append(
                f"a path of one machine is stored: ...{text[max(0, found.start() - 20) : found.end() + 20]}..."
            )
    if not any("image/png" in output.get("data", {}) for cell in code[:4] for output in cell.outputs):
        problems.append("no figure within the first four code cells.")
    return problems


def check_parameters_cell(notebook):
    """Problems of the `parameters` cell: it must hold typed literals with a comment each, all of them known."""
    try:
        source = parameters_cell(notebook).source
    except FetalsegError as error:
        return [str(error)]
    problems = []
    for node, line in zip(ast.parse(source).body, source.splitlines(), strict=False):
        if not isinstance(node, ast.AnnAssign) or "#" not in line or line.split("#")[0].count("=") != 1:
            problems.append(f"parameters: '{line}' is not `name: type = literal  # what it is`.")
        elif node.target.id not in PARAMETERS:
            problems.append(f"parameters: '{node.target.id}' has no rule in workspace.PARAMETERS.")
        else:
            try:
                ast.literal_eval(node.value)
            except ValueError:
                problems.append(f"parameters: '{line}' is computed.")
    return problems


def check_output(output):
    """Problems of one stored output."""
    if output.output_type == "error":
        yield f"stored error {output.ename}: {output.evalue}."
    if output.get("name") == "stderr":
        yield f"stored stderr: {output.text[:60]!r}."
    text = output.get("text", "") or output.get("data", {}).get("text/plain", "")
    if text.count("\n") > LONGEST_OUTPUT:
        yield f"{text.count(chr(10))} lines of output, over {LONGEST_OUTPUT}."
    if picture := output.get("data", {}).get("image/png"):
        width, height = struct.unpack(">II", base64.b64decode(picture)[16:24])
        if width > LARGEST_FIGURE[0] or height > LARGEST_FIGURE[1]:
            yield f"a figure of {width} × {height} pixels, over {LARGEST_FIGURE[0]} × {LARGEST_FIGURE[1]}."
