"""Project root, run folder, device, seeds, versions, and files that are either whole or absent."""

import json
import os
import platform
import random
import shutil
import tempfile
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

CANVAS_KEYS = ("width", "height", "fit")  # what decides the size that the network sees
PACKAGES = ("torch", "numpy", "opencv-python", "matplotlib", "pandas")


class Rule(NamedTuple):
    """What a notebook's parameter may be."""

    kind: type
    low: float | None = None
    high: float | None = None
    choices: tuple = ()


PARAMETERS = {
    "run_dir": Rule(str),
    "data": Rule(str),
    "seed": Rule(int, 0, 2**31 - 1),
    "phantoms": Rule(int, 12, 100_000),
    "split_by": Rule(str, choices=("examination", "image", "folder")),
    "width": Rule(int, 16, 4096),
    "height": Rule(int, 16, 4096),
    "fit": Rule(str, choices=("scale", "pad")),
    "border": Rule(float, 0, 0.5),
    "base_channels": Rule(int, 1, 256),
    "depth": Rule(int, 1, 7),
    "normalisation": Rule(str, choices=("none", "batch")),
    "overfit_steps": Rule(int, 1, 10_000),
    "epochs": Rule(int, 1, 10_000),
    "batch_size": Rule(int, 1, 1024),
    "learning_rate": Rule(float, 1e-8, 1),
    "schedule": Rule(str, choices=("one-cycle", "constant")),
    "weight_decay": Rule(float, 0, 1),
    "gradient_norm": Rule(float, 1e-6, 1e6),
    "bce_weight": Rule(float, 0, 100),
    "foreground_weighting": Rule(bool),
    "augmented": Rule(bool),
    "patience": Rule(int, 1, 10_000),
    "resume": Rule(bool),
    "trial_steps": Rule(int, 1, 10_000),
    "threshold": Rule(float, 0, 0.99),
    "region": Rule(str, choices=("chosen", "every", "largest", "filled", "ellipse")),
    "flip": Rule(bool),
    "tolerance": Rule(float, 0, 1000),
    "pixel_sizes": Rule(str),
    "draws": Rule(int, 100, 100_000),
    "near": Rule(float, 1, 1000),
    "worsened": Rule(int, 1, 10_000),
    "leak_steps": Rule(int, 1, 1_000_000),
    "repeats": Rule(int, 1, 100),
    "real_data": Rule(str),
    "shots": Rule(int, 1, 10_000),
}


class FetalsegError(ValueError):
    """Something the user can mend: one sentence that names the file or value and the remedy."""


def project_root():
    """Folder that holds `notebooks/` and `fetalseg_helpers/`; the current folder for a copy without notebooks."""
    root = Path(__file__).resolve().parent.parent
    return root if (root / "notebooks").is_dir() else Path.cwd()


def run_folder(run_dir):
    """Make and return a run folder.

    Parameters
    ----------
    run_dir : str or Path
        Absolute, or relative to the project root, so that a notebook finds the same folder from anywhere.

    Raises
    ------
    FetalsegError
        If the path is a file or cannot be made.
    """
    folder = project_root() / run_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FetalsegError(
            f"{folder} cannot be made a run folder ({error.strerror}): choose another run_dir."
        ) from error
    return folder


def shown(path):
    """`path` as text with forward slashes, relative to the project root where it lies inside."""
    path = Path(path).resolve()
    root = project_root()
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def check_parameters(**values):
    """Make sure that a notebook's parameters have the type and the range that they need.

    Raises
    ------
    FetalsegError
        Names the first parameter that is wrong, its value, and what it may be.
    """
    for name, value in values.items():
        kind, low, high, choices = PARAMETERS[name]
        right = type(value) is kind or (kind is float and type(value) is int)
        if not right:
            wanted = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}[kind]
            raise FetalsegError(f"{name} is {value!r} of type {type(value).__name__}, but must be {wanted}.")
        if choices and value not in choices:
            raise FetalsegError(f"{name} is {value!r}, but must be one of {', '.join(choices)}.")
        if low is not None and not low <= value <= high:
            raise FetalsegError(f"{name} is {value!r}, but must lie between {low} and {high}.")
        if kind is str and not value.strip():
            raise FetalsegError(f"{name} is empty, but must name something.")


def self_check(promises, hopes=()):
    """Print each promise of a notebook with yes or NO.

    Parameters
    ----------
    promises : dict of str to bool
        A plain sentence, and whether it holds.
    hopes : sequence of str
        Promises that other parameters may break rightly, such as a Dice after a single epoch.

    Raises
    ------
    AssertionError
        Names the first promise that is broken and is no hope.
    """
    for promise, kept in promises.items():
        print("yes" if kept else "NO ", promise)
    for promise, kept in promises.items():
        assert kept or promise in hopes, f"self-check failed: {promise}"


@contextmanager
def written_whole(path, free=0):
    """Give a temporary file to write; move it to `path` only when the block ends well.

    Parameters
    ----------
    path : Path
        The final name. Its folder is made.
    free : int
        Bytes that must be free on the disk before anything is written.

    Raises
    ------
    FetalsegError
        If the disk is full or the folder refuses the file. Nothing of that name appears or changes.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        check_free_space(path.parent, free)
        handle, temporary = tempfile.mkstemp(prefix=".unfinished-", suffix=path.suffix, dir=path.parent)
        os.chmod(temporary, 0o644)
        os.close(handle)
        yield Path(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise FetalsegError(
            f"{path} could not be written ({reason}): free some space there or choose another folder; "
            "everything written before is still there."
        ) from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def check_free_space(folder, needed):
    """Raise OSError when fewer than `needed` bytes are free where `folder` lies."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(28, f"{needed / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free")


def write_text(path, text):
    """Write `text` to `path` as UTF-8, whole or not at all; a file that already says the same is left alone."""
    path = Path(path)
    if path.exists() and path.read_bytes() == text.encode("utf-8"):
        return
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path, values):
    """Write a dictionary to `path` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def read_json(path):
    """Read a JSON file; an absent one gives an empty dictionary."""
    path = Path(path)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write_table(path, table):
    """Write a pandas table to `path` as CSV without its index, whole or not at all."""
    write_text(path, table.to_csv(index=False, lineterminator="\n", float_format="%.6g"))


def write_png(path, image):
    """Write an 8-bit grey image of shape (height, width) to `path`, whole or not at all.

    Encoded in memory first: OpenCV itself cannot write to every Windows path and reports no reason.
    """
    try:
        _, buffer = cv2.imencode(".png", image)
    except cv2.error as error:
        raise FetalsegError(f"{path} could not be encoded as PNG: its shape is {image.shape}.") from error
    with written_whole(path) as temporary:
        temporary.write_bytes(buffer.tobytes())


def choose_device():
    """The fastest torch device at hand: CUDA, then Apple's MPS (for a single process), then the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda")
    alone = not torch.distributed.is_initialized()
    return torch.device("mps" if alone and torch.backends.mps.is_available() else "cpu")


def bfloat16_pays(device):
    """True where the processor multiplies bfloat16 in hardware; elsewhere it would only slow things down."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    abilities = torch.cpu.get_capabilities()
    return device.type == "cpu" and bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16"))


def seed_everything(seed):
    """Seed Python, NumPy and torch, so that a run on one processor with as many threads can be repeated."""
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def versions():
    """One line with the versions that a result depends on."""
    parts = [f"Python {platform.python_version()}"] + [f"{name} {version(name)}" for name in PACKAGES]
    return ", ".join(parts)
