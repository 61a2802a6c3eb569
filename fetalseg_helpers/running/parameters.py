"""What the parameters of the notebooks may be."""

from typing import NamedTuple

from fetalseg_helpers.workspace import FetalsegError


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
