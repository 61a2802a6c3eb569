"""What a notebook needs around its lesson: versions, parameters, sharp figures, changed definitions, its promises."""

import ast
import difflib
import inspect
import io
import os
import platform
import textwrap
from collections import namedtuple
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from IPython import get_ipython
from matplotlib.figure import Figure
from PIL import Image

import fetalseg_helpers
from fetalseg_helpers.workspace import FetalsegError, cv2, project_root

Rule = namedtuple("Rule", ["kind", "low", "high", "choices"], defaults=[None, None, ()])
KINDS = {"str": str, "int": int, "float": float, "bool": bool}
PARAMETERS = {}  # what each parameter of a notebook may be
for row in pd.read_csv(Path(__file__).with_name("parameters.csv"), dtype=str, keep_default_na=False).itertuples():
    limits = [(int(limit) if limit.isdigit() else float(limit)) if limit else None for limit in (row.low, row.high)]
    PARAMETERS[row.name] = Rule(KINDS[row.kind], *limits, tuple(row.choices.split()))


def rule_of(name):
    """The `Rule` of a parameter; a FetalsegError names the nearest where no notebook has one of that name."""
    if name not in PARAMETERS:
        near = difflib.get_close_matches(name, PARAMETERS, n=1, cutoff=0)
        raise FetalsegError(f"no notebook has a parameter '{name}': did you mean '{near[0]}'?")
    return PARAMETERS[name]


def check_parameters(**values):
    """Refuse parameters of a wrong type or range: a FetalsegError names the first, its value, and what it may be."""
    for name, value in values.items():
        kind, low, high, choices = PARAMETERS[name]
        if type(value) is not kind and not (kind is float and type(value) is int):
            wanted = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}[kind]
            meant = {"true": True, "false": False}.get(str(value).lower()) if kind is bool else None
            with suppress(ValueError, TypeError, OverflowError):  # text that is a number
                meant = kind(float(value)) if kind in (int, float) else meant
            hint = "" if meant is None or type(value) is not str else f": write {meant}"
            raise FetalsegError(f"{name} is {value!r} of type {type(value).__name__}, but must be {wanted}{hint}.")
        if choices and value not in choices:
            raise FetalsegError(f"{name} is {value!r}, but must be one of {', '.join(choices)}.")
        if low is not None and not low <= value <= high:
            raise FetalsegError(f"{name} is {value!r}, but must lie between {low} and {high}.")
        if kind is str and not value.strip():
            raise FetalsegError(f"{name} is empty, but must name something.")


CLASS = {"run_dir": ("FETALSEG_RUN_DIR", "runs/quick"), "seed": ("FETALSEG_SEED", 0)}  # variable, and what is stored
PAGE = {}  # the `globals()` of this kernel's notebook, and its parameters as `begin` found them


def begin(names):
    """Check the parameters of a notebook, which are among its `globals()`, and watch over its cells from here on.

    A class may set FETALSEG_RUN_DIR and FETALSEG_SEED in place of a run_dir and seed that are still the stored ones. A
    FetalsegError names a parameter that is wrong, that no notebook knows, or that papermill could not hand over. Later
    a line above a cell's output says that one was changed without running this cell again, and figures are `sharp`.
    """
    cells = [source for source in names.get("In", []) if source.startswith("# Parameters\n")]  # put in by papermill
    nodes = ast.parse("\n".join(cells)).body
    given = {node.targets[0].id: ast.literal_eval(node.value) for node in nodes}
    for name, value in given.items():
        rule_of(name)
        if names.get(name, value) != value:
            lost = "the cell of the parameters has lost its tag `parameters`"
            raise FetalsegError(f"{name} was given as {value!r}, and is {names[name]!r}: {lost}.")
    for name, (variable, stored) in CLASS.items():
        if variable in os.environ and name not in given and names.get(name) == stored:
            names[name] = type(stored)(os.environ[variable])
            print(f"{name} = {names[name]!r}, from the environment variable {variable}")
    own = PAGE["values"] if PAGE.get("names") is names else PARAMETERS  # later, other names may be such as well
    values = {name: names[name] for name in own if name in names}
    check_parameters(**values)
    if (shell := get_ipython()) and not PAGE:
        if hasattr(shell, "kernel"):
            shell.run_line_magic("matplotlib", "inline")  # now, so that nothing takes the formatter's place later
        shell.display_formatter.formatters["image/png"].for_type(Figure, sharp)
        shell.events.register("pre_run_cell", point_out)
        shell.set_custom_exc((NameError,), explain)
    PAGE.update(names=names, values=values)


def point_out(cell):
    """Say above a cell's output that a parameter is no longer what was checked."""
    for name, value in PAGE["values"].items():
        now = PAGE["names"].get(name, value)
        if now != value and "begin(globals())" not in cell.raw_cell:
            print(f"{name} was {value!r} and is {now!r} now: run the cell with `begin` again, and all after it.")


def explain(shell, kind, error, trace, tb_offset=None):
    """A name that does not exist is an error of one sentence."""
    while trace.tb_next:
        trace = trace.tb_next
    told = [f"NameError, line {trace.tb_lineno}: {error}. Run the cells above first, or mend its spelling."]
    shell._showtraceback(kind, error, told)
    return told


def sharp(figure):
    """A figure as PNG with two pixels for each of the screen, its size there, and its titles as alternative text."""
    drawn, stored = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, dpi=200, bbox_inches="tight", pil_kwargs={"compress_level": 1})
    picture = Image.open(drawn).convert("RGB")
    size = {"width": picture.width // 2, "height": picture.height // 2}
    maps = {image.get_cmap().name for axis in figure.axes for image in axis.images}
    if maps <= {"gray"}:  # then few colours look the same, and take half the space
        picture = with_few_colours(picture)
    picture.save(stored, "png")
    titles = [figure.get_suptitle(), *(axis.get_title() for axis in figure.axes)]
    return stored.getvalue(), size | {"alt": "; ".join(title.replace("\n", " ") for title in titles if title)}


def with_few_colours(picture):
    """A picture in every fifth grey, and in the 128 colours that cover its coloured pixels best."""
    pixels = np.asarray(picture)
    index = np.uint8(pixels.mean(axis=2) / 5 + 0.5)  # (height, width), 0 to 51
    palette = np.repeat(np.arange(0, 256, 5), 3).tolist()
    coloured = np.ptp(pixels, axis=2) > 8
    if coloured.any():
        chosen = Image.fromarray(pixels[coloured][None]).quantize(128, method=Image.Quantize.MAXCOVERAGE, dither=0)
        index[coloured] = 52 + np.asarray(chosen)[0]
        palette += chosen.getpalette()
    small = Image.fromarray(index)
    small.putpalette(palette)
    return small


def say_changes(definitions, module, consequence):
    """Say which definitions of a page differ from those of the same names in a module, and what follows from that."""
    if changed := [one.__name__ for one in definitions if code_of(one) != code_of(getattr(module, one.__name__))]:
        print(f"changed on this page: {', '.join(changed)}. {consequence}")


def code_of(definition):
    """What a function, or the methods of a class, do: without docstring, comments and layout."""
    if inspect.isclass(definition):
        return {name: code_of(part) for name, part in vars(definition).items() if inspect.isfunction(part)}
    (function,) = ast.parse(textwrap.dedent(inspect.getsource(definition))).body
    if ast.get_docstring(function) is not None:
        function.body = function.body[1:]
    return ast.dump(function)


def versions():
    """One line: course, folder, versions that a result depends on. A FetalsegError refuses another copy's notebook."""
    root, here, home = project_root(), Path.cwd(), Path.home()
    for folder in (here, *here.parents):
        if (folder / "fetalseg_helpers" / "__init__.py").is_file() and folder.resolve() != root:
            there = f"{root}: run `pip install -e .` in {folder} and restart the kernel, or open its notebook there"
            raise FetalsegError(f"this notebook lies in {folder}, but the package that it has imported in {there}.")
    place = f"~/{root.relative_to(home).as_posix()}" if root.is_relative_to(home) else str(root)
    packages = [f"{name} {version(name)}" for name in ("torch", "numpy", "matplotlib", "pandas")]
    course = f"fetalseg {fetalseg_helpers.__version__} in {place}"
    return ", ".join([course, f"Python {platform.python_version()}", *packages, f"OpenCV {cv2.__version__}"])


def self_check(promises, hopes=()):
    """Print promises (sentence: bool) with yes or NO; an AssertionError names the first broken one, but for `hopes`."""
    for promise, kept in promises.items():
        print("yes" if kept else "NO ", promise)
    for promise, kept in promises.items():  # other parameters may rightly break what is a hope
        assert kept or promise in hopes, f"self-check failed: {promise}"


NOT_ANSWERED = "not answered yet."


def judge(task, answer, find_problem):
    """Say in one line whether the answer to a task of the exercises is right, missing, or what is wrong with it.

    `find_problem` takes the answer, a value or a function, and gives a sentence, or None where nothing is wrong. What
    the answer raises is told in words too.
    """
    try:
        problem = NOT_ANSWERED if answer is None or answer is ... else find_problem(answer)
    except Exception as error:
        problem = f"it stops with {type(error).__name__}: {error}"
    print(f"Task {task}: {problem or 'right.'}")
