"""What is wrong with how a notebook is stored: for the tests of the notebooks."""

import ast
import base64
import os
import re
import shutil
import struct
import subprocess
import tempfile
import warnings
from pathlib import Path

import nbformat

from fetalseg_helpers.running.checks import PARAMETERS
from fetalseg_helpers.workspace import FetalsegError, project_root

LONGEST_CELL, LONGEST_OUTPUT = 30, 100  # lines
LARGEST_NOTEBOOK = 2_000_000  # bytes
LARGEST_FIGURE = (700, 450)  # pixels
NUMBER = r"(?<![\w.])\d[\d,]*(?:\.\d+)?"  # 316, 0.956 or 31,030,593
MACHINE_PATH = r"/home/|/Users/|/tmp/|/private/|/mnt/|\b[A-Za-z]:\\"  # and below, the folders of this machine

UNCOMMITTED = "FETALSEG_UNCOMMITTED"  # environment variable: notebooks are tested as they are saved, committed or not
COPIES = tempfile.TemporaryDirectory()  # of committed notebooks; removed when Python ends


def committed(path):
    """A notebook as it was last committed: one that was run and saved in a clone must not fail the tests.

    Returns
    -------
    Path
        A copy of the committed file if the saved one differs from it, with a warning. Otherwise the saved one: also
        where there is no git, where it was never committed, where the package differs from the last commit as well
        (somebody works on both), and where the environment variable FETALSEG_UNCOMMITTED is set.
    """
    if os.environ.get(UNCOMMITTED) or shutil.which("git") is None:
        return path

    def git(*arguments):
        return subprocess.run(["git", *arguments], cwd=path.parent, capture_output=True)

    notebook, package = (git("diff", "--quiet", "HEAD", "--", name) for name in (path.name, "../fetalseg_helpers"))
    content = git("show", f"HEAD:./{path.name}")
    if notebook.returncode == 0 or package.returncode == 1 or content.returncode != 0:
        return path
    warnings.warn(f"{path.name} is tested as it was last committed; with {UNCOMMITTED}=1, as it is saved", stacklevel=2)
    copy = Path(tempfile.mkdtemp(dir=COPIES.name), path.name)
    copy.write_bytes(content.stdout)
    return copy


def parameters_cell(notebook):
    """The cell tagged `parameters`."""
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise FetalsegError(f"a notebook needs one cell tagged 'parameters', this one has {len(cells)}.")
    return cells[0]


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
    if Path(path).stat().st_size > LARGEST_NOTEBOOK:
        problems.append(f"it is larger than {LARGEST_NOTEBOOK / 1e6:.0f} MB.")
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
    return problems + list(check_stored_run(notebook))


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
            problems.append(f"parameters: '{node.target.id}' has no rule in running.checks.PARAMETERS.")
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
        pixels = struct.unpack(">II", base64.b64decode(picture)[16:24])
        about = output.metadata.get("image/png", {})
        width, height = about.get("width", pixels[0]), about.get("height", pixels[1])
        if width > LARGEST_FIGURE[0] or height > LARGEST_FIGURE[1]:
            yield f"a figure of {width} × {height} pixels, over {LARGEST_FIGURE[0]} × {LARGEST_FIGURE[1]}."
        if pixels[0] < 2 * width:
            yield f"a figure of {pixels[0]} pixels, shown {width} wide: blurred."
        if not about.get("alt"):
            yield "a figure without alternative text: it needs a title."


def check_stored_run(notebook):
    """Numbers in paragraphs `**In the stored run**` that no stored output has, or has with more digits."""
    said = "\n".join(
        output.get("text", "") or output.get("data", {}).get("text/plain", "")
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    )
    known = [float(number.replace(",", "")) for number in re.findall(NUMBER, said)]
    for cell in notebook.cells:
        for paragraph in cell.source.split("\n\n") if cell.cell_type == "markdown" else []:
            if paragraph.lstrip("> ").startswith("**In the stored run**"):
                text = re.sub(r"\(\S*?\)|\[otebook \d\]", "", re.sub(r"otebook \d", "", paragraph))
                for number in re.findall(NUMBER, text):
                    digits = len(number.partition(".")[2])
                    value = float(number.replace(",", ""))
                    if not any(round(abs(one), digits) == value for one in known):
                        yield f"in the stored run: {number} is in no stored output."


def defined(number, name, **names):
    """A function that a notebook defines, which finds what else it needs in `names`."""
    (path,) = (project_root() / "notebooks").glob(f"{number:02d}_*.ipynb")
    notebook = nbformat.read(committed(path), as_version=4)
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    source = next(source for source in cells if f"def {name}(" in source)
    function = next(node for node in ast.parse(source).body if getattr(node, "name", "") == name)
    exec(ast.unparse(function), names)
    return names[name]
