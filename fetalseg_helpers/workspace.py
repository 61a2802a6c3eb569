"""Project root, run folder and its lock, files that are either whole or absent, cores and device."""

import errno
import json
import os
import shutil
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

try:
    import cv2
except ImportError as error:
    raise ImportError(f"OpenCV cannot be imported ({error}): pip install opencv-python-headless") from None
import joblib
import psutil
from filelock import FileLock, Timeout

CANVAS_KEYS = ("width", "height", "fit")  # what decides the size that the network sees
UNFINISHED = ".unfinished-"  # how the name of a file or folder begins that is not whole yet
LOCKED = "FETALSEG_LOCKED"  # environment variable: run folders that a parent process has locked for its children


class FetalsegError(ValueError):
    """Something the user can mend: one sentence that names the file or value and the remedy."""

    def _render_traceback_(self):  # what Jupyter shows: the sentence, without the way there
        return [f"{type(self).__name__}: {self}"]


def project_root():
    """Folder that holds `notebooks/` and `fetalseg_helpers/`; the current folder for a copy without notebooks."""
    root = Path(__file__).resolve().parent.parent
    return root if (root / "notebooks").is_dir() else Path.cwd()


def run_folder(run_dir):
    """Make and return a run folder; a FetalsegError says that the path is a file or cannot be made.

    `run_dir`, a str or Path, is absolute, with `~` for the home folder, or relative to the project root, so that a
    notebook finds the same folder from anywhere.
    """
    folder = project_root() / Path(run_dir).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FetalsegError(f"{folder} cannot be made ({error.strerror}): choose another run_dir.") from error
    return folder


def shown(path):
    """`path` as text with forward slashes, relative to the project root where it lies inside."""
    path = Path(os.path.realpath(path))  # unlike `resolve`, for a link to itself too
    root = project_root()
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


@contextmanager
def locked(folder):
    """Keep every other process from making something in a run folder while the block runs; gives the folder.

    Who has the lock may take it again, and so may the processes that it starts. The system lets go of it when a process
    is killed; what that one left unfinished is removed by the next. If another process has it, a FetalsegError says so.
    """
    folder = run_folder(folder)
    entry = f"\n{folder.resolve()}\n"  # resolved, since one folder may be written in several ways
    if entry in os.environ.get(LOCKED, ""):
        yield folder
        return
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        who = "another run or notebook"
        raise FetalsegError(f"{shown(folder)} is being used by {who}: wait, or choose another run_dir.") from None
    try:
        os.environ[LOCKED] = os.environ.get(LOCKED, "") + entry
        for leftover in folder.rglob(f"{UNFINISHED}*"):
            remove(leftover)
        yield folder
    finally:
        os.environ[LOCKED] = os.environ[LOCKED].replace(entry, "")  # others may have come and gone meanwhile
        lock.release()


def remove(path):
    """Delete a file, a folder with all that is in it, or nothing."""
    path = Path(path)
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def written_whole(path):
    """Give a temporary file to write; move it to `path` only when the block ends well.

    A disk that is full or a folder that refuses the file is a FetalsegError with the system's reason; then nothing of
    that name appears or changes. Errors of other files that the block meets pass through as they are.
    """
    path = Path(path)
    temporary = path.with_name(f"{UNFINISHED}{uuid4().hex}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is not None and str(error.filename) not in map(str, (temporary, path, path.parent)):
            raise
        raise FetalsegError(f"{path} could not be written ({error.strerror or error}): {remedy(error)}.") from error
    finally:
        with suppress(OSError):  # where it could not be made, there is none
            temporary.unlink()


@contextmanager
def folder_whole(path):
    """As `written_whole`, for a folder: the old one is there, whole, until the new one takes its place."""
    path = Path(path)
    new, old = (path.with_name(f"{UNFINISHED}{age}-{path.name}") for age in ("new", "old"))
    try:
        path.mkdir(parents=True, exist_ok=True)
        remove(new)
        new.mkdir()
        yield new
        path.rename(old)  # Windows refuses this while somebody has one of its files open
        new.rename(path)
    except OSError as error:
        if old.exists() and not path.exists():
            old.rename(path)
        raise FetalsegError(f"{path} could not be written ({error.strerror or error}): {remedy(error)}.") from error
    finally:
        remove(new)
        remove(old)


def remedy(error):
    """What helps against an OSError of writing."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "free some space there or choose another folder; everything written before is still there"
    if isinstance(error, PermissionError):
        return "close what has it open, such as another notebook, or choose a folder that you may write to"
    return "choose another folder"


def write_text(path, text):
    """Write `text` to `path` as UTF-8, whole or not at all; a file that already says the same is left alone."""
    path, data = Path(path), text.encode("utf-8", "surrogateescape")  # a file's name may be no text
    if not (path.exists() and path.read_bytes() == data):
        with written_whole(path) as temporary:
            temporary.write_bytes(data)


def write_json(path, values):
    """Write a dictionary to `path` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def read_json(path):
    """Read a dictionary from a JSON file; an absent one gives an empty one, a damaged one a FetalsegError."""
    try:
        return dict(json.loads(Path(path).read_text(encoding="utf-8"))) if Path(path).exists() else {}
    except (ValueError, TypeError) as error:
        raise FetalsegError(f"{shown(path)} is damaged: delete it, or copy it anew.") from error


def write_table(path, table):
    """Write a pandas table to `path` as CSV without its index, whole or not at all."""
    write_text(path, table.to_csv(index=False, lineterminator="\n", float_format="%.6g"))


def write_png(path, image):
    """Write an 8-bit image, grey or with OpenCV's order of colours, to `path`, whole or not at all."""
    _, buffer = cv2.imencode(".png", image)  # OpenCV cannot write to every Windows path, and gives no reason
    with written_whole(path) as temporary:
        temporary.write_bytes(buffer.tobytes())


PROCESS = psutil.Process()
PROCESS.cpu_percent()  # counts from here
THREADS = {"looked": 0.0, "given": None, "allowed": None}  # at the last look of `spare_threads`


def spare_threads():
    """Let torch use as many threads as other processes leave cores free; call it once a batch.

    The threads of one step wait for each other. Where another process keeps one of their cores busy, all wait for the
    one that has to queue, and a step takes up to thirty times as long; with a thread less, it takes half as long
    again. Looks at most twice a second, and never gives more threads than torch was given from outside.
    """
    import torch

    if torch.get_num_threads() != THREADS["given"]:  # the first time, or somebody has chosen another number since
        THREADS["allowed"] = min(torch.get_num_threads(), joblib.cpu_count())  # what affinity and container allow
    elif time.perf_counter() - THREADS["looked"] < 0.5:
        return
    THREADS["looked"] = time.perf_counter()
    every, own = psutil.cpu_percent(percpu=True), PROCESS.cpu_percent()  # since the last look, 100 is one core
    cores = PROCESS.cpu_affinity() if hasattr(PROCESS, "cpu_affinity") else range(len(every))
    others = sum(every[core] for core in cores) - own
    THREADS["given"] = max(1, min(THREADS["allowed"], int(len(cores) - others / 100 + 0.4)))
    torch.set_num_threads(THREADS["given"])


def choose_device():
    """The fastest torch device at hand: CUDA, then Apple's MPS (for a single process), then the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda")
    alone = not torch.distributed.is_initialized()
    return torch.device("mps" if alone and torch.backends.mps.is_available() else "cpu")


def memory_format(device):
    """The layout of weights that convolutions like best: channels-last, but not on Apple's MPS.

    There the gradients of batch normalisation in that layout are wrong in torch 2.13 (pytorch issue 175189).
    """
    import torch

    return torch.contiguous_format if torch.device(device).type == "mps" else torch.channels_last


def bfloat16_pays(device):
    """True where the processor multiplies bfloat16 in hardware; elsewhere it would only slow things down."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    abilities = torch.cpu.get_capabilities()
    return device.type == "cpu" and bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16"))
