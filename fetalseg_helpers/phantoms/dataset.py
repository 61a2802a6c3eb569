"""A set of phantoms on the disk, in the Kaggle data set's own tree and file naming, with its defects planted."""

import os
import re
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from functools import partial
from itertools import groupby, product
from pathlib import Path

import joblib
import numpy as np
from filelock import FileLock, Timeout

from fetalseg_helpers.ellipses import ellipse_perimeter
from fetalseg_helpers.loading import PIXEL_SIZE_COLUMNS
from fetalseg_helpers.phantoms.frames import cut_pose, draw_examination, draw_frame
from fetalseg_helpers.workspace import UNFINISHED, FetalsegError, cv2, remedy, remove

SPLITS = ("train", "validation", "test")
SPLIT_SHARES = (0.73, 0.12, 0.15)
CLASSES = ("malignant", "benign", "normal")
DATA_FOLDER = Path("Ultrasound Fetus Dataset", "Ultrasound Fetus Dataset", "Data", "Data")
SUFFIXES = ("2HC", "3HC", "4HC")  # of all frames of an examination but its last, which is HC
EXAMINATION_SHARES = (0.70, 0.20, 0.06, 0.04)  # of examinations with one, two, three, four frames
RARE_DEFECTS = ("missing_mask", "orphan_mask", "empty_mask", "size_mismatch", "unreadable_image", "near_border")
DEFECTS = {"split_folders_differ": 4, "open_outline": 2} | dict.fromkeys(RARE_DEFECTS, 1)  # how many a full set has
CUT_HEADS = ("open_outline", "near_border")  # the frame's lower edge cuts through the head
# A malignant frame: stem (`12_2HC`), examination, place there, split of its image, planted defect if any
Entry = namedtuple("Entry", "stem examination index split defect", defaults=[None])


def set_entries(count, seed):
    """The frames of a set, in the order of their numbers; list of `count` Entry, still without defects.

    Within an examination the suffix rises (2HC < 3HC < 4HC < HC), and it always ends with HC, so a suffix that does
    not rise starts a new examination. Splits are drawn frame by frame, as in the real data set: they leak.
    """
    for name, value, least in (("count", count, 1), ("seed", seed, 0)):
        if not isinstance(value, int | np.integer) or value < least:
            raise FetalsegError(f"{name} is {value!r}: choose a whole number from {least} up.")
    rng = _random(seed, 0)
    ends = np.round(np.cumsum(SPLIT_SHARES) * count)
    splits = [SPLITS[np.searchsorted(ends, place, side="right")] for place in rng.permutation(count)]
    entries, examination = [], 0
    while len(entries) < count:
        size = min(1 + int(rng.choice(4, p=EXAMINATION_SHARES)), count - len(entries))
        for index, suffix in enumerate((*SUFFIXES[: size - 1], "HC")):
            entries.append(Entry(f"{len(entries) + 1}_{suffix}", examination, index, splits[len(entries)]))
        examination += 1
    return entries


def planted_defects(count, seed):
    """Which defects `write_phantoms` plants: every kind of `DEFECTS` to a list of stems.

    A full list from 40 frames (split folders differ: one pair in 40, at most four), three defects from 12, none below.
    No stem comes twice, and none is the last of several in an examination: its loss would merge that with the next.
    """
    numbers = dict.fromkeys(DEFECTS, 0)
    if count >= 40:
        numbers = DEFECTS | {"split_folders_differ": min(DEFECTS["split_folders_differ"], count // 40)}
    elif count >= 12:
        numbers |= {"split_folders_differ": 1, "open_outline": 1, "missing_mask": 1}
    fit = [entry.stem for entry in set_entries(count, seed) if entry.index == 0 or not entry.stem.endswith("_HC")]
    drawn = iter(_random(seed, 1).permutation(fit).tolist())
    return {kind: [next(drawn) for _ in range(number)] for kind, number in numbers.items()}


def write_phantoms(folder, count=160, seed=0, defects=True, progress=None, changes=None):
    """Write a set of phantoms in the data set's tree and return its folder; equal arguments give equal bytes.

    Beside the tree lies `pixel_sizes.csv`, with each frame's pixel size and the circumference of its head. Another kind
    of processor may round a rare pixel to the next grey level. `folder`, new or empty, appears under its name only when
    everything is in it. `count` is the number of malignant frames; `max(1, count // 40)` benign and as many normal
    ones, without outlines, come on top. `defects` says whether to plant `planted_defects`; `progress` is called with
    the number of malignant frames done; `changes` are as for `frames.draw_examination`. A FetalsegError says if `count`
    (1 or more) or `seed` (0 or more) is out of range, `folder` holds something or is being written by another process,
    the disk refuses the files, or memory is short; nothing is left then.
    """
    entries = set_entries(count, seed)
    for kind, stems in planted_defects(count, seed).items() if defects else ():
        entries = [entry._replace(defect=kind) if entry.stem in stems else entry for entry in entries]
    examinations = [list(group) for _, group in groupby(entries, key=lambda entry: entry.examination)]
    sizes = [",".join(PIXEL_SIZE_COLUMNS)]
    with _unfinished(Path(os.path.abspath(folder))) as temporary:
        data = temporary / DATA_FOLDER
        for split, name in product(SPLITS, CLASSES):
            (data / split / name).mkdir(parents=True)
        tasks = [partial(_write_examination, data, seed, changes, group) for group in examinations]
        for number, name in product(range(1, max(1, count // 40) + 1), CLASSES[1:]):
            tasks.append(partial(_write_other, data, seed, changes, name, number))
        pool = ThreadPoolExecutor(min(joblib.cpu_count(), 8))  # a disk takes no more frames at once
        with pool, closing(pool.map(lambda task: task(), tasks)) as results:  # closed, it calls off what has not begun
            for rows in results:
                sizes += rows
                if rows and progress:
                    progress(len(sizes) - 1)
        (temporary / "pixel_sizes.csv").write_text("\n".join(sizes) + "\n", encoding="utf-8", newline="\n")
    return Path(folder)


@contextmanager
def _unfinished(folder):
    """An empty folder that nobody else writes to, which becomes `folder` when the block ends well, else nothing."""
    temporary = folder.with_name(f"{UNFINISHED}{folder.name}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{temporary}.lock", timeout=0) as lock:
            try:
                if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
                    raise FetalsegError(f"{folder} exists already: delete it, or write the phantoms to another folder.")
                remove(temporary)  # what a process left that was killed
                temporary.mkdir()
                yield temporary
                if folder.exists():
                    folder.rmdir()
                temporary.rename(folder)
            finally:
                remove(temporary)
                with suppress(OSError):  # Windows does it on release
                    Path(lock.lock_file).unlink()
    except Timeout:
        raise FetalsegError(f"{folder} is being written by another process: wait, or choose another folder.") from None
    except (MemoryError, RuntimeError, cv2.error) as error:
        if not isinstance(error, MemoryError) and not re.search("memory|new thread", str(error)):
            raise
        raise FetalsegError(f"{folder} could not be drawn, memory is short: close other programs.") from error
    except OSError as error:
        raise FetalsegError(f"{folder} could not be written ({error.strerror or error}): {remedy(error)}.") from error


def _write_other(data, seed, changes, name, number):
    """Draw and write a benign or normal frame; returns no row of `pixel_sizes.csv`."""
    rng = _random(seed, 2 + CLASSES.index(name), number - 1)
    split = SPLITS[rng.choice(3, p=SPLIT_SHARES)]
    image = draw_frame(rng, draw_examination(rng, changes=changes)).image
    (data / split / name / f"{name[0].upper()}_{number}.png").write_bytes(_png(image))
    return []


def _write_examination(data, seed, changes, entries):
    """Draw and write the frames of one examination with their defects; returns a row of `pixel_sizes.csv` for each."""
    whole_sector = False if any(entry.defect in CUT_HEADS for entry in entries) else None
    examination = draw_examination(_random(seed, 2, entries[0].examination), whole_sector, changes)
    rows = []
    for stem, number, index, split, defect in entries:
        rng = _random(seed, 2, number, index)
        ellipse = cut_pose(rng, examination, defect == "near_border") if defect in CUT_HEADS else None
        phantom = draw_frame(rng, examination, ellipse)
        if defect != "orphan_mask":
            image = _png(phantom.image)
            readable = len(image) // 5 if defect == "unreadable_image" else len(image)
            (data / split / CLASSES[0] / f"{stem}.png").write_bytes(image[:readable])
        if defect != "missing_mask":
            outline = {"empty_mask": 0 * phantom.outline, "size_mismatch": phantom.outline[:-1]}
            if defect == "split_folders_differ":
                split = SPLITS[SPLITS.index(split) - 1]
            path = data / split / CLASSES[0] / f"{stem}_Annotation.png"
            path.write_bytes(_png(outline.get(defect, phantom.outline)))
        circumference = ellipse_perimeter(phantom.ellipse.a, phantom.ellipse.b) * examination.pixel_size
        rows.append(f"{stem},{examination.pixel_size:.6f},{circumference:.2f}")
    return rows


def _png(image):
    return cv2.imencode(".png", image)[1].tobytes()


def _random(seed, *key):
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
