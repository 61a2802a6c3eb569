"""From files to arrays: fill the outline, binarise, normalise, resize, augment; and the torch Dataset."""

import shutil
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor

import joblib
import numpy as np
import torch
from torch.utils.data import Dataset

from fetalseg_helpers import loading, workspace
from fetalseg_helpers.workspace import CANVAS_KEYS, FetalsegError, cv2, read_json, run_folder, shown

Placement = namedtuple("Placement", "width height left top")  # of a scaled image on the canvas; negative where cropped


def binarise(mask, threshold=128):
    """An 8-bit mask as uint8 0 and 1: 1 from `threshold` on. JPEG and resizing leave values between 0 and 255."""
    return (np.asarray(mask) >= threshold).astype(np.uint8)


def is_line(mask):
    """Whether a 0/1 mask is a line: 5 px wide or thin by the area of its convex hull, and longer than a dot."""
    left, top, width, height = cv2.boundingRect(mask)
    if not width:
        return False
    mask = np.pad(mask[top : top + height, left : left + width], 1)
    hull_area = cv2.contourArea(convex_hull(mask))
    half_width = cv2.distanceTransform(mask, cv2.DIST_L2, 5).max() - 0.5
    _, sizes = label_regions(mask)
    thin = half_width < max(2.5, 0.08 * np.sqrt(hull_area))
    return bool(thin and sizes.max() > 12 * half_width**2)  # for a dot, the factor is between 3 and 4


def convex_hull(mask):
    """Corners of the convex hull of a 0/1 mask that is not empty, as OpenCV has them: int32 (corners, 1, x y)."""
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.convexHull(np.concatenate(contours))


def label_regions(mask):
    """Connected regions (8 neighbours) of a mask, numbered from 1, and the number of pixels of each."""
    mask = np.asarray(mask, np.uint8)
    labels = np.zeros(mask.shape, np.int32)
    left, top, width, height = cv2.boundingRect(mask)  # only there, which is much quicker
    if not width:
        return labels, np.zeros(0, np.int32)
    window = slice(top, top + height), slice(left, left + width)
    _, labels[window], measures, _ = cv2.connectedComponentsWithStats(mask[window], connectivity=8)
    return labels, measures[1:, cv2.CC_STAT_AREA]


def without_specks(mask):
    """A 0/1 mask without the regions that have less than a twentieth of the largest one's pixels."""
    labels, sizes = label_regions(mask)
    if len(sizes) == 1:  # as most have
        return mask
    return mask * np.isin(labels, np.flatnonzero(sizes >= 0.05 * sizes.max(initial=0)) + 1)


def fill_holes(mask):
    """Fill what a 0/1 mask encloses: whatever cannot be reached from outside the frame over its four neighbours."""
    flooded = np.pad(np.asarray(mask, np.uint8), 1)
    cv2.floodFill(flooded, None, (0, 0), 2)
    return (flooded[1:-1, 1:-1] != 2).astype(np.uint8)


def fill_outline(outline):
    """Fill a drawn outline, uint8 with 0 and 255: uint8 of the same shape, 1 inside (tumor), 0 outside (background).

    The line itself counts as inside. A closed line is filled by a hole filler. Where the frame cuts the line open, a
    hole filler finds no hole and leaves the line as it is; then the convex hull is the region, since a head is convex.
    A region that is filled already stays as it is, with its holes. Where no pixel is set, a FetalsegError says so.
    """
    line = binarise(outline)
    if not line.any():
        raise FetalsegError("the mask is empty: no pixel reaches 128.")
    rest = without_specks(line)
    if not is_line(rest):
        return line
    filled = fill_holes(line)
    hull = cv2.fillConvexPoly(np.zeros_like(line), convex_hull(rest), 1)
    return filled if filled.sum() > hull.sum() / 2 else hull


def is_open(outline, mask):
    """True for a line that encloses nothing, so that a hole filler leaves less than its `mask` from `fill_outline`."""
    return bool(fill_holes(binarise(outline)).sum() < mask.sum())


def normalise(image):
    """Intensities from 0..255 to the fixed range [0, 1], as float32. Every image gets the same map."""
    return np.asarray(image, dtype=np.float32) / 255


def place(native_width, native_height, width, height, fit="scale"):
    """Centre an image on a canvas, its aspect kept; all sizes in pixels.

    `fit` 'scale' makes the image as large as the canvas allows; 'pad' leaves its pixels alone and pads or crops.

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
    scaled = cv2.resize(image, (placement.width, placement.height), interpolation=cv2.INTER_AREA)
    return paste(scaled, width, height, placement.left, placement.top)


def from_canvas(canvas, native_width, native_height, fit="scale"):
    """The way back: what lies on a canvas (height, width), at the image's own size. Cropped margins come back as 0."""
    placement = place(native_width, native_height, canvas.shape[1], canvas.shape[0], fit)
    scaled = paste(canvas, placement.width, placement.height, -placement.left, -placement.top)
    return cv2.resize(scaled, (native_width, native_height), interpolation=cv2.INTER_LINEAR)


def paste(array, width, height, left, top):
    """Zeros of shape (height, width) with `array` at (top, left); what lies outside is cropped."""
    frame = np.zeros((height, width), dtype=array.dtype)
    inside = array[max(0, -top) : height - top, max(0, -left) : width - left]
    frame[max(0, top) :, max(0, left) :][: inside.shape[0], : inside.shape[1]] = inside
    return frame


def mask_to_canvas(mask, width, height, fit="scale"):
    """A 0/1 mask at training size: resized as a grey image, then 1 where at least half of a pixel is covered."""
    return binarise(to_canvas(mask * np.uint8(255), width, height, fit))


def augment(image, mask, rng, rotation=25.0, zoom=0.25, shift=0.1, mirror=True, gain=1.25, gamma=1.4, shadow=0.5):
    """One random variation of a pair, uint8 of shape (height, width); what comes in from outside the frame is 0.

    Turned by at most `rotation` degrees to either side, zoomed and shifted by at most the fractions `zoom` and `shift`,
    with `mirror` every second frame mirrored left to right, and never upside down: the probe is always at the top.
    Intensities are changed by at most the factor `gain` and the exponent `gamma`, at least by one over them. `shadow`
    is the chance of a dark stripe from top to bottom, such as bone or gas near the probe casts.
    """
    height, width = image.shape
    angle, scale = rng.uniform(-rotation, rotation), rng.uniform(1 - zoom, 1 + zoom)
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), angle, scale)
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


def read_pair(image_path, mask_path, fill=fill_outline):
    """Read an image and its mask, filled by `fill`, both uint8 of shape (height, width).

    An empty mask stays empty. A FetalsegError says that a file cannot be read, or that the two differ in size.
    """
    outline, _ = loading.read_mask(mask_path)
    image = loading.read_grey(image_path)
    return image, fill_pair(image, outline, mask_path.name, fill)


def fill_pair(image, outline, name, fill=fill_outline):
    """The filled mask of an outline that belongs to an image; `name` is the outline's file, for the errors."""
    if image.shape != outline.shape:
        size, image_size = (f"{array.shape[1]} × {array.shape[0]}" for array in (outline, image))
        raise FetalsegError(f"{name} is {size}, its image {image_size}. Was one resized?")
    inner = outline[3:-3, 3:-3]  # the rest is 3 px along the frame's edges
    along = np.count_nonzero(outline) - np.count_nonzero(inner)
    if along > 0.6 * (outline.size - inner.size):  # three sides or more; a line of black around them changes little
        raise FetalsegError(f"{name} covers the border of the frame: inverted? Draw the region white on black.")
    return fill(outline) if outline.any() else outline


def prepare(run_dir, width=64, height=48, fit="scale", fill=fill_outline):
    """Write every pair of the manifest at training size (px, `fit` as in `place`) into `prepared/`.

    `images.npy` and `masks.npy` are uint8 (rows of the manifest, height, width), masks 0 and 1 by the function `fill`;
    `settings.json`, written last, says how they were made. Returns why pairs could not be used, by `image_id` (an empty
    mask, but for `negatives`); these are zeros. A FetalsegError says that no pair can be used or that the disk is full.
    """

    def small(pair):
        try:
            image, mask = read_pair(pair.image_path, pair.mask_path, fill)
            if not (mask.any() or negatives):
                raise FetalsegError(f"{pair.mask_path.name} is empty.")
            return to_canvas(image, width, height, fit), mask_to_canvas(mask, width, height, fit), ""
        except FetalsegError as error:
            return 0, 0, str(error)

    with workspace.locked(run_dir) as home:
        manifest, negatives = loading.read_manifest(run_dir), read_json(home / "data.json").get("negatives")
        shape = (len(manifest), height, width)
        problems = {}
        with workspace.folder_whole(home / "prepared") as folder:
            if shutil.disk_usage(folder).free < 2 * np.prod(shape):  # a full disk would be a bus error later
                raise FetalsegError(f"{shown(home)} needs {2 * np.prod(shape) / 1e6:.0f} MB: free some space there.")
            images = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, shape)
            masks = np.lib.format.open_memmap(folder / "masks.npy", "w+", np.uint8, shape)
            with ThreadPoolExecutor(joblib.cpu_count()) as pool:  # decoding runs outside of Python's lock
                for row, (image, mask, problem) in enumerate(pool.map(small, manifest.itertuples())):
                    images[row], masks[row] = image, mask
                    if problem:
                        problems[manifest.image_id[row]] = problem
            if len(problems) == len(manifest):
                first = next(iter(problems.values()))
                raise FetalsegError(f"none of the {len(problems)} pairs can be used; the first: {first}")
            del images, masks  # closes the files: Windows moves no open one
            made = dict(width=width, height=height, fit=fit, source=loading.source(run_dir), problems=problems)
            workspace.write_json(folder / "settings.json", made)
    return problems


def read_canvas(run_dir):
    """Width, height and fit of what lies in `prepared/`, as a dictionary; FetalsegError if nothing does."""
    settings = read_json(run_folder(run_dir) / "prepared" / "settings.json")
    if not settings:
        raise FetalsegError(f"{shown(run_folder(run_dir) / 'prepared')} is not complete: run notebook 02 first.")
    return {name: settings[name] for name in CANVAS_KEYS}


class PreparedDataset(Dataset):
    """Prepared pairs as torch tensors: items are `(image, mask)`, float32 of shape (1, height, width), within [0, 1].

    `pairs` are rows of `verification.usable_pairs` and say which pairs, in which order. `augmentation`, such as
    `augment`, takes image, mask (uint8) and a random generator, and gives image and mask. The generator follows from
    (seed, epoch, position), so that a repeated or resumed epoch sees the same images.
    """

    def __init__(self, run_dir, pairs, augmentation=None, seed=0):
        self.folder = run_folder(run_dir) / "prepared"
        self.pairs = pairs.reset_index(drop=True)
        self.rows = self.pairs.row.to_numpy()
        self.augmentation, self.seed, self.epoch = augmentation, seed, 0

    # The files are mapped only while they are read: a map that stays open could not be replaced under Windows.
    @property
    def images(self):
        """All prepared images, uint8 of shape (rows of the manifest, height, width)."""
        return np.load(self.folder / "images.npy", mmap_mode="r")

    @property
    def masks(self):
        """All prepared masks, values 0 and 1, as `images`."""
        return np.load(self.folder / "masks.npy", mmap_mode="r")

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, position):
        row = self.rows[position]
        image, mask = np.array(self.images[row]), np.array(self.masks[row])
        if self.augmentation is not None:
            rng = np.random.default_rng([self.seed, self.epoch, position])
            image, mask = self.augmentation(image, mask, rng)
        mask = np.asarray(mask, dtype=np.float32)
        return torch.from_numpy(normalise(image))[None], torch.from_numpy(mask)[None]  # (1, height, width) each
