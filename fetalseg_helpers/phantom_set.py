"""A set of phantoms on the disk, in the Kaggle data set's own tree and file naming, with its defects planted.

Beside the tree lies `pixel_sizes.csv`, with each frame's pixel size and the circumference of its head.
"""

import os
import shutil
import tempfile
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from multiprocessing import get_context
from numbers import Integral
from pathlib import Path

import cv2
import numpy as np

from fetalseg_helpers import anatomy
from fetalseg_helpers.phantom import cut_pose, draw_examination, draw_frame
from fetalseg_helpers.workspace import FetalsegError

SPLITS, SPLIT_SHARES = ("train", "validation", "test"), (0.73, 0.12, 0.15)
CLASSES = ("malignant", "benign", "normal")
DATA_FOLDER = Path("Ultrasound Fetus Dataset", "Ultrasound Fetus Dataset", "Data", "Data")
SUFFIXES = ("2HC", "3HC", "4HC")  # of all frames of an examination but its last, which is HC
EXAMINATION_SHARES = (0.70, 0.20, 0.06, 0.04)  # of examinations with one, two, three, four frames
PIXEL_SIZE_COLUMNS = ("image_id", "pixel_mm", "head_circumference_mm")
DEFECTS = {  # how many of each kind a full set has
    "split_folders_differ": 4,
    "open_outline": 2,
    "missing_mask": 1,
    "orphan_mask": 1,
    "empty_mask": 1,
    "size_mismatch": 1,
    "unreadable_image": 1,
    "near_border": 1,
}
SMALL_SET_DEFECTS = ("split_folders_differ", "open_outline", "missing_mask")  # one of each, from 12 to 39 frames


@dataclass(frozen=True)
class Entry:
    """One malignant frame of a set: its stem (`12_2HC`), its examination, its place there, the split of its image."""

    stem: str
    examination: int
    index: int
    split: str


def _random(seed, *key):
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def set_entries(count, seed):
    """The frames of a set, in the order of their numbers; list of `count` Entry.

    Within an examination the suffix rises (2HC < 3HC < 4HC < HC), and it always ends with HC, so a suffix that does
    not rise starts a new examination. Splits are drawn frame by frame, as in the real data set: they leak.
    """
    if not isinstance(count, Integral) or count < 1:
        raise FetalsegError(f"count is {count!r}: ask for at least one phantom.")
    if not isinstance(seed, Integral) or seed < 0:
        raise FetalsegError(f"seed is {seed!r}: choose a whole number from 0 up.")
    rng = _random(seed, 0)
    ends = np.round(np.cumsum(SPLIT_SHARES) * count)
    splits = [SPLITS[np.searchsorted(ends, place, side="right")] for place in rng.permutation(count)]
    entries, examination = [], 0
    while len(entries) < count:
        size = min(1 + int(rng.choice(4, p=EXAMINATION_SHARES)), count - len(entries))
        for index, suffix in enumerate((*SUFFIXES[: size - 1], "HC")):
            number = len(entries) + 1
            entries.append(Entry(f"{number}_{suffix}", examination, index, splits[number - 1]))
        examination += 1
    return entries


def planted_defects(count, seed):
    """Which defects `write_phantoms` plants, from its arguments alone.

    Returns
    -------
    dict of str to list of str
        Kind to stems, all distinct, every kind of `DEFECTS` present. Full lists from 40 frames (split folders differ:
        one pair in 40, at most four), three defects from 12, none below. Never the last of several frames of an
        examination: without that one, the rule of rising suffixes would merge it with the next.
    """
    entries = set_entries(count, seed)
    numbers = {kind: 0 for kind in DEFECTS}
    if count >= 40:
        numbers = DEFECTS | {"split_folders_differ": min(DEFECTS["split_folders_differ"], count // 40)}
    elif count >= 12:
        numbers |= {kind: 1 for kind in SMALL_SET_DEFECTS}
    fit = [entry.stem for entry in entries if entry.index == 0 or not entry.stem.endswith("_HC")]
    drawn = iter(_random(seed, 1).permutation(fit).tolist())
    return {kind: [next(drawn) for _ in range(number)] for kind, number in numbers.items()}


def write_phantoms(folder, count=160, seed=0, processes=None, defects=True, progress=None, changes=None):
    """Write a set of phantoms in the data set's tree; on one kind of processor, equal arguments give equal bytes.

    The number of processes does not matter. Another kind of processor may round a rare pixel to the next grey level.

    Parameters
    ----------
    folder : str or Path
        New or empty. It appears under its name only when everything is in it.
    count : int
        Malignant frames. `max(1, count // 40)` benign and as many normal frames, without outlines, come on top.
    seed : int
        0 or more.
    processes : int, optional
        By default as many as there are processors; 1 draws in this process.
    defects : bool
        Whether to plant those of `planted_defects(count, seed)`.
    progress : callable, optional
        Called with the number of malignant frames done so far.
    changes : dict of str to Draw, optional
        Distributions other than `phantom.DISTRIBUTIONS`, as for `phantom.draw_examination`.

    Returns
    -------
    Path
        `folder`.

    Raises
    ------
    FetalsegError
        If `count` or `seed` is out of range, `folder` holds something, the disk refuses the files, or the processes
        cannot start (a script that calls this needs the usual `if __name__ == "__main__":`; a notebook does not).
    """
    folder = Path(folder)
    entries = set_entries(count, seed)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FetalsegError(f"{folder} exists already: delete it, or write the phantoms to another folder.")
    plan = planted_defects(count, seed) if defects else {}
    kinds = {stem: kind for kind, stems in plan.items() for stem in stems}
    examinations = [list(frames) for _, frames in groupby(entries, key=lambda entry: entry.examination)]
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder.parent))
        os.chmod(temporary, 0o755)
        _write_set(temporary, seed, examinations, kinds, changes, processes, progress)
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    except OSError as error:
        raise FetalsegError(
            f"{folder} could not be written ({error.strerror or error}): free some space or choose another folder."
        ) from error
    except BrokenExecutor as error:
        raise FetalsegError(
            'The drawing processes broke off: give processes=1, or call from under `if __name__ == "__main__":`.'
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _write_set(folder, seed, examinations, kinds, changes, processes, progress):
    """Draw and write all examinations, in as many processes as asked for."""
    for split in SPLITS:
        for name in CLASSES:
            (folder / DATA_FOLDER / split / name).mkdir(parents=True)
    processes = min(processes or os.cpu_count() or 1, len(examinations))
    write = partial(_write_examination, folder, seed, kinds, changes)
    done = 0
    with ExitStack() as stack:
        if processes == 1:
            stack.callback(cv2.setNumThreads, cv2.getNumThreads())
            cv2.setNumThreads(1)
            written = map(write, examinations)
        else:
            fresh = get_context("spawn")  # a fork would inherit OpenCV's locks without the threads that hold them
            pool = ProcessPoolExecutor(processes, fresh, initializer=cv2.setNumThreads, initargs=(1,))
            written = stack.enter_context(pool).map(write, examinations)
            stack.callback(pool.shutdown, cancel_futures=True)  # whoever interrupts need not wait for the rest
        sizes = [",".join(PIXEL_SIZE_COLUMNS)]
        for rows in written:
            sizes += rows
            done += len(rows)
            if progress:
                progress(done)
        (folder / "pixel_sizes.csv").write_text("\n".join(sizes) + "\n", encoding="utf-8", newline="\n")
        frames = sum(len(entries) for entries in examinations)
        for index in range(max(1, frames // 40)):
            for key, name in enumerate(CLASSES[1:], start=3):
                rng = _random(seed, key, index)
                split = SPLITS[rng.choice(3, p=SPLIT_SHARES)]
                path = folder / DATA_FOLDER / split / name / f"{name[0].upper()}_{index + 1}.png"
                path.write_bytes(_png(draw_frame(rng, draw_examination(rng, changes=changes)).image))


def _write_examination(folder, seed, kinds, changes, entries):
    """Draw and write the frames of one examination; returns a row of `pixel_sizes.csv` for each."""
    cut = {"open_outline", "near_border"} & {kinds.get(entry.stem) for entry in entries}
    rng = _random(seed, 2, entries[0].examination)
    examination = draw_examination(rng, whole_sector=False if cut else None, changes=changes)
    rows = []
    for entry in entries:
        rng = _random(seed, 2, entry.examination, entry.index)
        kind = kinds.get(entry.stem)
        ellipse = cut_pose(rng, examination, kind == "near_border") if kind in ("open_outline", "near_border") else None
        drawn = draw_frame(rng, examination, ellipse)
        _write_pair(folder / DATA_FOLDER, entry, kind, drawn)
        circumference = anatomy.ellipse_perimeter(*drawn.ellipse[2:4]) * examination.pixel_size
        rows.append(f"{entry.stem},{examination.pixel_size:.6f},{circumference:.2f}")
    return rows


def _write_pair(data, entry, kind, phantom):
    """Write image and outline of one frame, with its planted defect if it has one."""
    image, outline, outline_split = _png(phantom.image), phantom.outline, entry.split
    if kind == "split_folders_differ":
        outline_split = SPLITS[SPLITS.index(entry.split) - 1]
    if kind == "empty_mask":
        outline = np.zeros_like(outline)
    if kind == "size_mismatch":
        outline = outline[:-1]
    if kind == "unreadable_image":
        image = image[: len(image) // 5]
    if kind != "orphan_mask":
        (data / entry.split / CLASSES[0] / f"{entry.stem}.png").write_bytes(image)
    if kind != "missing_mask":
        (data / outline_split / CLASSES[0] / f"{entry.stem}_Annotation.png").write_bytes(_png(outline))


def _png(image):
    return cv2.imencode(".png", image)[1].tobytes()
