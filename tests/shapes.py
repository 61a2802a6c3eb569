"""Shapes and small files that several test files draw."""

from pathlib import Path

import cv2
import numpy as np


def ellipse_mask(x, y, a, b, turn, size=(120, 180)):
    """Pixels whose centre lies inside an ellipse with half axes a and b, turned by `turn` degrees."""
    turn = np.deg2rad(turn)
    rows, columns = np.mgrid[: size[0], : size[1]]
    u = (columns - x) * np.cos(turn) + (rows - y) * np.sin(turn)
    v = (rows - y) * np.cos(turn) - (columns - x) * np.sin(turn)
    return ((u / a) ** 2 + (v / b) ** 2 <= 1).astype(np.uint8)


def noise(seed=0, height=12, width=16):
    """A picture of random grey levels, another for each seed."""
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


def drawn_outline(x=40, y=30, a=20, b=15, height=60, width=80):
    """An ellipse as a line of 255, as a mask file has it."""
    return cv2.ellipse(np.zeros((height, width), np.uint8), (x, y), (a, b), 0, 0, 360, 255, 2)


def encoded(image, suffix=".png"):
    """The bytes of an image file."""
    return cv2.imencode(suffix, image)[1].tobytes()


def save_pair(folder, stem, image=None, outline=None, suffix=".png"):
    """Write an image, an outline or both, each an array or the bytes of a file."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, picture in ((f"{stem}{suffix}", image), (f"{stem}_Annotation{suffix}", outline)):
        if picture is not None:
            content = picture if isinstance(picture, bytes) else encoded(picture, suffix)
            (Path(folder) / name).write_bytes(content)


def contents(folder):
    """Every file below a folder, path to bytes; locks, which may come and go, are none."""
    files = (path for path in sorted(Path(folder).rglob("*")) if path.is_file() and not path.name.endswith(".lock"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def write_pairs(root, stems):
    """Small images with a rectangle as outline, all different."""
    outline = cv2.rectangle(np.zeros((12, 16), np.uint8), (3, 2), (12, 9), 255, 1)
    for seed, stem in enumerate(stems):
        save_pair(root, stem, noise(seed), outline)
    return Path(root)
