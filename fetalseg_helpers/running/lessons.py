"""The notebooks of the course, executed in a row with papermill: with which parameters, and in which run folder."""

import ast
import io
import logging
import os
import re
import shutil
import time
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import yaml

from fetalseg_helpers.running.checks import check_parameters, rule_of
from fetalseg_helpers.workspace import FetalsegError, locked, project_root, read_json, run_folder, shown, written_whole

CORE = 6  # notebooks of the course, 01 to 06; the primer and those that go deeper are run one by one
KERNEL = {"kernel_name": "python3", "start_timeout": 120, "progress_bar": False}  # how papermill starts it
KERNEL["extra_arguments"] = [  # nothing of its own on stderr: neither hints, nor of tasks cut off at the end
    "--IPKernelApp.log_level=CRITICAL",
    '--IPKernelApp.logging_config={"loggers": {"asyncio": {"level": "CRITICAL"}}}',
]


def lessons():
    """Paths of the numbered notebooks, in order."""
    if not (found := sorted((project_root() / "notebooks").glob("[0-9][0-9]_*.ipynb"))):
        raise FetalsegError(f"{project_root() / 'notebooks'} holds no notebook: run this from a clone of the course.")
    return found


def read_parameters(path):
    """Names and default values in a notebook's cell tagged `parameters`."""
    import papermill  # takes more than a second, and not every command needs it

    found = papermill.inspect_notebook(as_it_is(path))
    return {name: ast.literal_eval(parameter["default"]) for name, parameter in found.items()}


def read_preset(name):
    """Values of a preset, a file that `papermill -f` reads too."""
    path = project_root() / "notebooks" / "presets" / f"{name}.yaml"
    if not path.exists():
        raise FetalsegError(f"{name} is no preset: use quick, laptop or reference.")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def parse_parameters(pairs, **options):
    """Values of a command line's (name, text) pairs; `options` win, but for None.

    `data` and a CSV of examinations become absolute. A FetalsegError names a value that does not fit, or, for a name
    that no notebook knows, the nearest one.
    """
    values = {}
    for name, text in [*pairs, *((name, text) for name, text in options.items() if text is not None)]:
        kind = rule_of(name).kind
        values[name] = text  # where it is no value of the right type
        with suppress(ValueError, KeyError):
            values[name] = {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
        check_parameters(**{name: values[name]})
    if values.get("data", "phantom") not in ("phantom", "kaggle", "hc18"):  # absolute, for every notebook to find it
        values["data"] = str(Path(values["data"]).expanduser().resolve())
    if values.get("examinations", "").lower().endswith(".csv"):
        values["examinations"] = str(Path(values["examinations"]).expanduser().resolve())
    return values


def choose_folder(run_dir, data, preset):
    """The run folder, not made yet: as given, or one below `runs/` in which no other data than this lies."""
    if run_dir:
        return run_dir.expanduser().resolve()
    runs = project_root() / "runs"
    if data == "phantom":
        return runs / preset
    root = shown(project_root() / "data" / data)  # an absolute path stays what it is
    for number in count(1):
        folder = runs / f"{Path(data).name}-{preset}{f'-{number}' if number > 1 else ''}"
        if read_json(folder / "data.json").get("root", root) == root:
            return folder


class News(io.TextIOBase):
    """Passes on what a notebook prints of its epochs, a line every 15 seconds at the most."""

    def __init__(self, report):
        self.report = report
        self.spoke = time.monotonic()

    def write(self, text):
        """Take what was printed, a line or more."""
        epochs = [line for line in text.splitlines() if re.match(r"epoch +\d", line)]
        if epochs and time.monotonic() - self.spoke >= 15:
            self.report(f"  {epochs[-1]}")
            self.spoke = time.monotonic()


def run_lesson(path, run_dir, values, news=None):
    """Execute one notebook into `<run_dir>/notebooks/`; only a finished one gets its final name.

    An error becomes a FetalsegError that names notebook and cell; what was executed stays as `*_failed.ipynb`.
    """
    import papermill

    known = read_parameters(path)
    given = {name: value for name, value in values.items() if name in known} | {"run_dir": str(run_dir)}
    final = run_folder(run_dir) / "notebooks" / path.name
    failed = final.with_name(f"{path.stem}_failed.ipynb")
    failed.unlink(missing_ok=True)
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")  # the kernel of this environment
    paths = [str(project_root()), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(filter(None, paths)))  # and this copy of the package
    os.environ.pop("JPY_SESSION_NAME", None)  # nobody watches: no bars, a line per epoch
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what goes wrong is said below
    with written_whole(final) as unfinished:
        try:
            options = KERNEL | {"stdout_file": news, "cwd": path.parent}
            papermill.execute_notebook(as_it_is(path), as_it_is(unfinished), given, **options)
        except papermill.PapermillExecutionError as error:
            shutil.copyfile(unfinished, failed)
            what = f"{path.name}, cell {error.exec_count}: {error.evalue or error.ename}"
            raise FetalsegError(f"{what} (see {shown(failed)})") from error
        except RuntimeError as error:  # nbclient's DeadKernelError, and what jupyter_client says at the start
            died = f"{path.name}: its kernel died, most often for want of memory"
            raise FetalsegError(f"{died}: close other programs, or lower batch_size.") from error
    return final


def as_it_is(path):
    """A path as text that papermill, which takes it for a format, leaves alone."""
    return str(path).replace("{", "{{").replace("}", "}}")


@contextmanager
def cleared(folder):
    """Take the lock of a run folder, and leave nothing unfinished below it where the block is stopped by Ctrl-C."""
    try:
        with locked(folder):
            yield
    except (KeyboardInterrupt, SystemExit):
        with locked(folder):  # newly taken, it removes what others left when they were ended
            raise


def run_lessons(run_dir, values, report=print):
    """Execute the notebooks of the course in order; a line after each, and now and then one within a long one."""
    folder = run_folder(run_dir)
    with cleared(folder):
        for old in (folder / "notebooks").glob("[0-9][0-9]_*.ipynb"):  # of an earlier run
            old.unlink()
        for path in [path for path in lessons() if not path.name.startswith("00_")][:CORE]:
            started = time.perf_counter()
            run_lesson(path, folder, values, News(report))
            report(f"{path.stem:<18} done in {time.perf_counter() - started:5.1f} s")
