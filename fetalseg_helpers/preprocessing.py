"""From files to arrays: fill the outline, binarise, normalise, resize, augment; and the torch Dataset."""

from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
import torch
from scipy import ndimage
from torch.utils.data import Dataset

from fetalseg_helpers import loading
from fetalseg_helpers.workspace import (
    FetalsegError,
    check_free_space,
    read_json,
    run_folder,
    shown,
    write_json,
    write_table,
    written_whole,
)

INDEX_COLUMNS = ["row", "image_id", "examination", "split", "width", "height", "problem"]


def binarise(mask, threshold=128):
    """Turn an 8-bit mask file into 0 and 1; grey in-between values, from JPEG or resizing, become one or the other.

    Parameters
    ----------
    mask : array of uint8, shape (height, width)
    threshold : int
        The least value that counts as 1.

    Returns
    -------
    numpy.ndarray of uint8, same shape, values 0 and 1
    """
    return (np.asarray(mask) >= threshold).astype(np.uint8)


def is_line(mask):
    """Whether a 0/1 mask is thin everywhere, measured by the area of its convex hull."""
    if not mask.any():
        return False
    hull_area = cv2.contourArea(cv2.convexHull(cv2.findNonZero(mask)))
    half_width = cv2.distanceTransform(mask, cv2.DIST_L2, 5).max() - 0.5
    return bool(half_width < 0.08 * np.sqrt(hull_area))


def label_regions(mask):
    """Connected regions (8 neighbours) of a mask, numbered from 1, and the number of pixels of each."""
    _, labels, measures, _ = cv2.connectedComponentsWithStats(np.asarray(mask, np.uint8), connectivity=8)
    return labels, measures[1:, cv2.CC_STAT_AREA]


def without_specks(mask, least_share=0.05):
    """A 0/1 mask without the regions that have less than this share of the largest one's pixels."""
    labels, sizes = label_regions(mask)
    return mask * np.isin(labels, np.flatnonzero(sizes >= least_share * sizes.max(initial=0)) + 1)


def fill_outline(outline):
    """Fill a drawn outline; the line itself counts as inside.

    A closed line is filled by a hole filler. Where the frame cuts the line open, a hole filler finds no hole and
    leaves the line as it is; then the convex hull is the region, since a head is convex. A region that is filled
    already stays as it is.

    Parameters
    ----------
    outline : array of uint8, shape (height, width)
        As in the file: 0 background, 255 line.

    Returns
    -------
    numpy.ndarray of uint8, same shape, values 0 (background) and 1 (tumor)

    Raises
    ------
    FetalsegError
        If no pixel is set.
    """
    line = binarise(outline)
    if not line.any():
        raise FetalsegError("the mask is empty: no pixel reaches 128.")
    filled = ndimage.binary_fill_holes(line).astype(np.uint8)
    rest = without_specks(filled)
    if not is_line(rest):
        return filled
    return cv2.fillConvexPoly(np.zeros_like(line), cv2.convexHull(cv2.findNonZero(rest)), 1)


def is_open(outline):
    """True for a line that encloses nothing, so that a hole filler leaves less than `fill_outline` gives."""
    return bool(ndimage.binary_fill_holes(binarise(outline)).sum() < fill_outline(outline).sum())


def normalise(image):
    """Intensities from 0..255 to the fixed range [0, 1], as float32. Every image gets the same map."""
    return np.asarray(image, dtype=np.float32) / 255


class Placement(NamedTuple):
    """Where an image lies on the canvas that the network sees, in pixels of the canvas."""

    width: int  # of the image after scaling
    height: int
    left: int  # negative where the image is cropped
    top: int


def place(native_width, native_height, width, height, fit="scale"):
    """Centre an image on a canvas, its aspect kept.

    Parameters
    ----------
    native_width, native_height : int
        Size of the image in pixels.
    width, height : int
        Size of the canvas in pixels.
    fit : {'scale', 'pad'}
        'scale' makes the image as large as the canvas allows; 'pad' leaves its pixels alone and pads or crops.

    Returns
    -------
    Placement

    Examples
    --------
    >>> place(800, 540, 192, 128)
    Placement(width=190, height=128, left=1, top=0)
    >>> place(800, 540, 800, 544, fit="pad")
    Placement(width=800, height=540, left=0, top=2)
    """
    scale = min(width / native_width, height / native_height) if fit == "scale" else 1.0
    scaled_width, scaled_height = max(1, round(native_width * scale)), max(1, round(native_height * scale))
    return Placement(scaled_width, scaled_height, (width - scaled_width) // 2, (height - scaled_height) // 2)


def to_canvas(image, width, height, fit="scale"):
    """Resize an image and pad it with 0, or crop it, to shape (height, width); the dtype stays."""
    placement = place(image.shape[1], image.shape[0], width, height, fit)
    size = (placement.width, placement.height)
    scaled = image if size == image.shape[::-1] else cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    canvas = np.zeros((height, width), dtype=image.dtype)
    (rows, scaled_rows), (columns, scaled_columns) = overlap(placement, width, height)
    canvas[rows, columns] = scaled[scaled_rows, scaled_columns]
    return canvas


def from_canvas(canvas, native_width, native_height, fit="scale"):
    """The way back: what lies on a canvas (height, width), at the image's own size. Cropped margins come back as 0."""
    height, width = canvas.shape
    placement = place(native_width, native_height, width, height, fit)
    scaled = np.zeros((placement.height, placement.width), dtype=canvas.dtype)
    (rows, scaled_rows), (columns, scaled_columns) = overlap(placement, width, height)
    scaled[scaled_rows, scaled_columns] = canvas[rows, columns]
    size = (native_width, native_height)
    return scaled if size == scaled.shape[::-1] else cv2.resize(scaled, size, interpolation=cv2.INTER_LINEAR)


def overlap(placement, width, height):
    """Slices (rows, columns) that a canvas and the scaled image share, on the canvas and on the image."""
    slices = []
    for start, length, size in ((placement.top, placement.height, height), (placement.left, placement.width, width)):
        first, last = max(0, start), min(size, start + length)
        slices.append((slice(first, last), slice(first - start, last - start)))
    return slices


def mask_to_canvas(mask, width, height, fit="scale"):
    """A 0/1 mask at training size: resized as a grey image, then 1 where at least half of a pixel is covered."""
    return binarise(to_canvas(mask * np.uint8(255), width, height, fit))


def augment(image, mask, rng, rotation=25.0, zoom=0.25, shift=0.1, mirror=True, gain=1.25, gamma=1.4, shadow=0.5):
    """One random variation of a pair: turned, zoomed, shifted, mirrored, gain and gamma changed, a shadow cast.

    Never upside down: the probe is always at the top.

    Parameters
    ----------
    image, mask : array of uint8, shape (height, width)
    rng : numpy.random.Generator
    rotation : float
        Largest angle in degrees, to either side.
    zoom, shift : float
        Largest change of size, and of place as a fraction of the frame.
    mirror : bool
        Mirror every second frame left to right.
    gain, gamma : float
        Largest factor and exponent of the intensities; the smallest are one over it.
    shadow : float
        Chance of a dark stripe from top to bottom, such as bone or gas near the probe casts.

    Returns
    -------
    image, mask : numpy.ndarray of uint8, same shape
        What comes in from outside the frame is 0.
    """
    height, width = image.shape
    matrix = cv2.getRotationMatrix2D(
        (width / 2, height / 2), rng.uniform(-rotation, rotation), rng.uniform(1 - zoom, 1 + zoom)
    )
    matrix[:, 2] += rng.uniform(-shift, shift, 2) * (width, height)
    if mirror and rng.random() < 0.5:
        matrix = matrix @ np.array([[-1, 0, width - 1], [0, 1, 0], [0, 0, 1]])
    image = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR)
    mask = cv2.warpAffine(mask, matrix, (width, height), flags=cv2.INTER_NEAREST)
    factor, exponent = gain ** rng.uniform(-1, 1), gamma ** rng.uniform(-1, 1)
    table = np.clip(255 * factor * (np.arange(256) / 255) ** exponent, 0, 255).astype(np.uint8)
    image = cv2.LUT(image, table)
    if rng.random() < shadow:
        place, spread, darkness = rng.uniform(0, width), rng.uniform(0.03, 0.12) * width, rng.uniform(0.3, 1)
        stripe = 1 - darkness * np.exp(-((np.arange(width) - place) ** 2) / (2 * spread**2))
        image = (image * stripe).astype(np.uint8)
    return image, mask


def read_pair(image_path, mask_path):
    """Read an image and its filled mask, both uint8 of shape (height, width).

    Raises
    ------
    FetalsegError
        If a file cannot be read, the two differ in size, or the mask is empty.
    """
    image, outline = loading.read_grey(image_path), loading.read_grey(mask_path)
    return image, fill_pair(image, outline, mask_path.name)


def fill_pair(image, outline, name):
    """The filled mask of an outline that belongs to an image; `name` is the outline's file, for the errors.

    Raises
    ------
    FetalsegError
        If the two arrays differ in size, or the mask is empty.
    """
    if image.shape != outline.shape:
        (height, width), (image_height, image_width) = outline.shape, image.shape
        raise FetalsegError(f"{name} is {width} × {height}, its image {image_width} × {image_height}. Was one resized?")
    try:
        return fill_outline(outline)
    except FetalsegError as error:
        raise FetalsegError(f"{name}: {error}") from error


def prepare(run_dir, width=128, height=96, fit="scale"):
    """Write every pair of the manifest at training size into `prepared/`.

    `images.npy` and `masks.npy` are uint8 of shape (pairs, height, width), masks 0 and 1. `index.csv` has a row
    per pair; one that cannot be used has its reason under `problem` and zeros in the arrays. `settings.json`,
    written last, marks a complete folder.

    Returns
    -------
    pandas.DataFrame
        The index.

    Raises
    ------
    FetalsegError
        If no pair can be used or the disk is full.
    """
    manifest = loading.read_manifest(run_dir)
    folder = run_folder(run_dir) / "prepared"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise FetalsegError(f"{folder} cannot be made ({error.strerror}): delete what is there.") from error
    (folder / "settings.json").unlink(missing_ok=True)
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(manifest), height, width)}
    problems = []
    with written_whole(folder / "images.npy") as images_path, written_whole(folder / "masks.npy") as masks_path:
        check_free_space(folder, 2 * len(manifest) * height * width)
        # Written in order, not through a memory map: a full disk then raises an error instead of a bus error.
        with images_path.open("wb") as images_file, masks_path.open("wb") as masks_file:
            for file in (images_file, masks_file):
                np.lib.format.write_array_header_1_0(file, header)
            for pair in manifest.itertuples():
                image = mask = np.zeros((height, width), np.uint8)
                problem = ""
                try:
                    image, mask = read_pair(pair.image_path, pair.mask_path)
                    image, mask = to_canvas(image, width, height, fit), mask_to_canvas(mask, width, height, fit)
                except FetalsegError as error:
                    problem = str(error)
                images_file.write(image.tobytes())
                masks_file.write(mask.tobytes())
                problems.append(problem)
    index = manifest.assign(row=range(len(manifest)), problem=problems)[INDEX_COLUMNS]
    if not (index.problem == "").any():
        raise FetalsegError(f"none of the {len(index)} pairs can be used; the first: {problems[0]}")
    write_table(folder / "index.csv", index)
    write_json(folder / "settings.json", prepared_settings(run_dir, width, height, fit))
    return index


def prepared_settings(run_dir, width, height, fit):
    """What `prepared/` depends on: the canvas and the manifest that was read."""
    manifest = run_folder(run_dir) / "manifest.csv"
    return {"width": width, "height": height, "fit": fit, "manifest": loading.fingerprint(manifest)}


def ensure_prepared(run_dir, width=None, height=None, fit=None, **data):
    """Read the index of `prepared/`; make it first where it is missing or differs from what is asked, and say so.

    What is not asked stays as it is in the run folder, or is 128 × 96 pixels, scaled. `data` is handed to
    `loading.ensure_manifest`.
    """
    loading.ensure_manifest(run_dir, **data)
    folder = run_folder(run_dir) / "prepared"
    found = read_json(folder / "settings.json")
    width, height = width or found.get("width", 128), height or found.get("height", 96)
    fit = fit or found.get("fit", "scale")
    if found != prepared_settings(run_dir, width, height, fit):
        prepare(run_dir, width, height, fit)
        print(f"{shown(folder)} made, {width} × {height} pixels (notebook 02 explains it).")
    return read_index(run_dir)


def read_index(run_dir):
    """The table `prepared/index.csv`."""
    text = {"image_id": str, "examination": str, "split": str, "problem": str}
    return pd.read_csv(run_folder(run_dir) / "prepared" / "index.csv", dtype=text, keep_default_na=False)


def usable(run_dir, split=None):
    """Rows of the index that training and evaluation use.

    Left out are pairs that could not be prepared and those with a finding of severity `error` in
    `verification.csv`.
    """
    index = read_index(run_dir)
    index = index[index.problem == ""]
    findings = run_folder(run_dir) / "verification.csv"
    if findings.exists():
        table = pd.read_csv(findings, dtype=str, keep_default_na=False)
        index = index[~index.image_id.isin(table.image_id[table.severity == "error"])]
    if split is None:
        return index
    index = index[index.split == split]
    if index.empty:
        raise FetalsegError(f"no usable image is in the split '{split}': give more data or another seed.")
    return index


class PreparedDataset(Dataset):
    """The prepared pairs of one split, as torch tensors.

    Parameters
    ----------
    run_dir : str or Path
    split : {'train', 'valid', 'test'}
    augmented : bool
        Vary each pair at random. The variation follows from (seed, epoch, position), so that a repeated or
        resumed epoch sees the same images.
    seed : int
    variation : dict, optional
        How much, as `augment` takes it.

    Notes
    -----
    Items are `(image, mask)`, float32 of shape (1, height, width), image in [0, 1], mask 0 or 1. The arrays
    are memory-mapped: only what is used is read.
    """

    def __init__(self, run_dir, split, augmented=False, seed=0, variation=None):
        folder = run_folder(run_dir) / "prepared"
        self.index = usable(run_dir, split).reset_index(drop=True)
        self.images = np.load(folder / "images.npy", mmap_mode="r")
        self.masks = np.load(folder / "masks.npy", mmap_mode="r")
        self.augmented, self.seed, self.epoch, self.variation = augmented, seed, 0, variation or {}

    def __len__(self):
        return len(self.index)

    def __getitem__(self, position):
        row = self.index.row.iloc[position]
        image, mask = self.images[row], self.masks[row]
        if self.augmented:
            rng = np.random.default_rng([self.seed, self.epoch, position])
            image, mask = augment(np.asarray(image), np.asarray(mask), rng, **self.variation)
        image, mask = normalise(image), np.asarray(mask, dtype=np.float32)
        return torch.from_numpy(image)[None], torch.from_numpy(mask)[None]  # (1, height, width) each
