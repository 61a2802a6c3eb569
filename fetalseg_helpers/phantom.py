"""B-mode phantoms of the fetal head with known truth, in the Kaggle data set's own tree and file naming.

The echo is simulated, not painted: complex Gaussian scatterers on a polar grid of beams and depths, losses summed
along each beam, a point spread function, envelope, log compression, scan conversion (Burckhardt 1978, IEEE Trans.
Sonics Ultrason. 25:1-6; Szabo 2014, Diagnostic Ultrasound Imaging, chapters 8 to 12). All lengths are pixels of the
frame, all levels decibels of amplitude. An ellipse is `(centre_x, centre_y, semi_axis_a, semi_axis_b, angle_degrees)`
with a >= b and the angle of a turned from +x towards +y (down), as OpenCV turns it.
"""

import os
import shutil
import tempfile
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from numbers import Integral
from pathlib import Path

import cv2
import numpy as np

from fetalseg_helpers.workspace import FetalsegError

WIDTH, HEIGHT = 800, 540  # px, of nearly every frame in the data set
SAMPLES, BEAMS = 512, 288  # of the polar grid: about 1.2 px along and 2.5 px across the beams
LINE_HALF_WIDTH = 1.27  # px, the data set's outlines reach this far to both sides of the ellipse they follow
FRAME_MARGIN = 8  # px between a whole head and the frame's edge
ECHO_DB = {"maternal": -1.0, "body": 5.0, "fluid": -34.0, "skull": 2.0, "brain": -11.0}
VENTRICLE_DB, CHOROID_DB, MIDLINE_DB, SULCI_DB = -9.0, 7.0, 10.0, 8.0  # above the brain around them
SPECULAR_POWER = 4  # a mirror's echo falls with this power of the cosine between its normal and the beam
TISSUE_LOSS, BRAIN_LOSS, FLUID_LOSS = 0.030, 0.022, 0.0  # dB/px there and back; time-gain makes up for TISSUE_LOSS
NOISE_DB = -46.0  # electronic noise at the probe's surface, raised with depth by time-gain
LOOKS = 3  # independent pictures that the scanner averages (compounding): smoother speckle
APERTURE = 3.0  # beams: a wide aperture sees past the edge of an obstacle, so shadows have soft edges
GREY_POWER = 1.5  # of the scanner's grey curve, which darkens the middle tones
BAR_COLUMNS, BAR_ROWS, BAR_LEVEL, BAR_POWER = (3, 12), (24, 184), 243, 1.4  # the grey bar at the left edge
SCREEN_COLUMNS = (3, 785)  # the scanner draws no echo outside these columns
BOX_LEFT, BOX_ROWS = (585, 640), (435, 525)  # the box that blacks out the settings, lower right
NOTCH = (692, 104)  # px: columns from, rows to, of the second box (upper right) that some zoomed frames have

SPLITS, SPLIT_SHARES = ("train", "validation", "test"), (0.73, 0.12, 0.15)
CLASSES = ("malignant", "benign", "normal")
DATA_FOLDER = Path("Ultrasound Fetus Dataset", "Ultrasound Fetus Dataset", "Data", "Data")
SUFFIXES = ("2HC", "3HC", "4HC")  # of all frames of an examination but its last, which is HC
EXAMINATION_SHARES = (0.70, 0.20, 0.06, 0.04)  # of examinations with one, two, three, four frames
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
class Sector:
    """What a curved probe sees: `apex_x`, `apex_y`, `radius` of its surface, `depth` (px), `half_angle` (radians)."""

    apex_x: float
    apex_y: float
    radius: float
    depth: float
    half_angle: float


@dataclass(frozen=True)
class Examination:
    """What all frames of one ultrasound session share: sector, usual pose, anatomy and the scanner's settings.

    `age` runs from 0 (early, small head, large choroid) to 1; `axial_sigma` is in samples, `lateral_sigma` in beams
    at the probe and `lateral_growth` how many times that at full depth; `skull` in px; `bone_loss` in dB/px;
    `box` is (left, top, bottom) of the blacked-out box.
    """

    sector: Sector
    ellipse: tuple
    age: float
    anatomy_seed: int
    gain: float
    dynamic_range: float
    axial_sigma: float
    lateral_sigma: float
    lateral_growth: float
    skull: float
    skull_gain: float
    bone_loss: float
    box: tuple
    notch: bool


@dataclass(frozen=True)
class Phantom:
    """A frame with its truth: `image` uint8, `mask` uint8 0/1, `outline` uint8 0/255, all (540, 800); the `ellipse`."""

    image: np.ndarray
    mask: np.ndarray
    outline: np.ndarray
    ellipse: tuple


def polar_grid(sector):
    """Where the samples lie: depth (samples, 1), angle (1, beams), x and y (samples, beams); float32, px, radians."""
    depth = (np.arange(SAMPLES, dtype=np.float32)[:, None] + 0.5) * np.float32(sector.depth / SAMPLES)
    angle = (np.arange(BEAMS, dtype=np.float32)[None] + 0.5) * np.float32(2 / BEAMS) - 1
    angle = angle * np.float32(sector.half_angle)
    x = np.float32(sector.apex_x) + (sector.radius + depth) * np.sin(angle)
    y = np.float32(sector.apex_y) + (sector.radius + depth) * np.cos(angle)
    return depth, angle, x.astype(np.float32), y.astype(np.float32)


def ellipse_distance(ellipse, x, y):
    """Distance (px, first order) of points from an ellipse, negative inside, and the outward unit normal (x, y)."""
    centre_x, centre_y, a, b, degrees = (np.float32(value) for value in ellipse)
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    u = ((x - centre_x) * cosine + (y - centre_y) * sine) / a
    v = ((y - centre_y) * cosine - (x - centre_x) * sine) / b
    level = np.sqrt(u**2 + v**2) + np.float32(1e-6)
    slope = np.sqrt((u / a) ** 2 + (v / b) ** 2) + np.float32(1e-9)
    normal = (u / a * cosine - v / b * sine) / slope, (u / a * sine + v / b * cosine) / slope
    return (level - 1) * level / slope, normal


def scatterers(rng, echo_db):
    """Complex Gaussian scatterers whose mean power is set by `echo_db` (any shape, dB); complex64 of that shape."""
    pairs = rng.standard_normal((*echo_db.shape, 2), dtype=np.float32)
    return pairs.view(np.complex64)[..., 0] * _amplitude(echo_db - 3.01)  # two parts of power 1/2


def point_spread(field, axial_sigma, lateral_sigma):
    """Blur a complex field as the pulse does along, and the beam across, the direction of sound.

    Parameters
    ----------
    field : complex64 array, shape (samples, beams)
    axial_sigma : float
        Standard deviation of the Gaussian pulse, in samples.
    lateral_sigma : float or array, shape (samples,)
        Standard deviation of the Gaussian beam at each depth, in beams.

    Returns
    -------
    complex64 array, shape (samples, beams)
        Both kernels have energy 1, so independent scatterers keep their mean power; only within a kernel of the
        grid's edge, where the field is mirrored, do they gain up to 3 dB.
    """
    field = np.asarray(field, np.complex64)
    lateral_sigma = np.broadcast_to(np.float32(lateral_sigma), len(field))[:, None]
    reach = int(np.ceil(3 * lateral_sigma.max()))
    kernels = np.exp(-(np.arange(-reach, reach + 1, dtype=np.float32) ** 2) / (2 * lateral_sigma**2))
    kernels /= np.sqrt((kernels**2).sum(axis=1, keepdims=True))
    padded = np.pad(field, ((0, 0), (reach, reach)), mode="reflect")
    blurred = sum(kernels[:, k, None] * padded[:, k : k + field.shape[1]] for k in range(2 * reach + 1))
    pulse = cv2.getGaussianKernel(2 * int(np.ceil(3 * axial_sigma)) + 1, axial_sigma)
    pulse /= np.sqrt((pulse**2).sum())
    parts = np.ascontiguousarray(blurred).view(np.float32).reshape(*field.shape, 2)
    return cv2.sepFilter2D(parts, -1, np.ones(1), pulse).view(np.complex64)[..., 0]


def level_along_beam(loss, sector, time_gain=TISSUE_LOSS):
    """Level (dB) at which each sample is heard: time-gain minus the `loss` (dB/px) summed from the probe to it."""
    step = sector.depth / SAMPLES
    depth = (np.arange(SAMPLES, dtype=np.float32)[:, None] + 0.5) * step
    return time_gain * depth - (np.cumsum(loss, axis=0, dtype=np.float32) - loss / 2) * step


def envelope(field):
    """Magnitude of the complex echo; float32, >= 0. In homogeneous tissue Rayleigh distributed: mean/std = 1.91."""
    return np.abs(field)


def compress(magnitude, gain, dynamic_range):
    """Log compression to float32, 0 to 1: -`gain` dB is black, `dynamic_range` dB above it is white."""
    decibels = 20 * np.log10(magnitude + np.float32(1e-6))
    return np.clip((decibels + np.float32(gain)) / np.float32(dynamic_range), 0, 1)


def scan_convert(polar, sector):
    """Bring a polar picture (samples, beams) to the frame: float32 (540, 800), 0 outside the sector."""
    x = np.arange(WIDTH, dtype=np.float32)[None] - np.float32(sector.apex_x)
    y = np.arange(HEIGHT, dtype=np.float32)[:, None] - np.float32(sector.apex_y)
    sample = (np.sqrt(x**2 + y**2) - np.float32(sector.radius)) * np.float32(SAMPLES / sector.depth) - np.float32(0.5)
    beam = (np.arctan2(x, y) / np.float32(sector.half_angle) + 1) * np.float32(BEAMS / 2) - np.float32(0.5)
    return cv2.remap(np.float32(polar), beam, sample, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)


def _amplitude(decibels):
    return np.exp(np.float32(np.log(10) / 20) * np.float32(decibels))


def _smooth_noise(rng, rows, columns):
    """Random field of the polar grid's shape, about -2 to 2, with `rows` x `columns` independent values."""
    coarse = rng.standard_normal((rows, columns), dtype=np.float32)
    return cv2.resize(coarse, (BEAMS, SAMPLES), interpolation=cv2.INTER_CUBIC)


def _blob(u, v, centre_u, centre_v, size_u, size_v):
    return ((u - centre_u) / size_u) ** 2 + ((v - centre_v) / size_v) ** 2 < 1


def anatomy(examination, ellipse):
    """Lay maternal tissue, fluid, skull and brain on the polar grid of an examination.

    Returns
    -------
    echo, mirror, loss : float32 arrays, shape (samples, beams)
        Level of the scatterers (dB), amplitude of the mirror-like (specular) echo, loss there and back (dB/px).
    """
    rng = np.random.default_rng(examination.anatomy_seed)
    ellipse = tuple(float(value) for value in ellipse)  # float64 scalars of NumPy would make all arrays float64
    depth, angle, x, y = polar_grid(examination.sector)
    beam = np.sin(angle), np.cos(angle)
    echo, loss = _surroundings(rng, examination, ellipse, depth, x, y)
    wobble = np.float32(0.006 * ellipse[2]) * _smooth_noise(rng, 5, 5)
    distance, normal = ellipse_distance(ellipse, x, y)
    distance = distance + np.clip(wobble, -1.5, 1.5)
    facing = np.abs(normal[0] * beam[0] + normal[1] * beam[1])  # 1 where the wall is hit squarely
    inside = distance < -examination.skull
    turn = np.radians(np.float32(ellipse[4]))
    along = (x - ellipse[0]) * np.cos(turn) + (y - ellipse[1]) * np.sin(turn)
    across = (y - ellipse[1]) * np.cos(turn) - (x - ellipse[0]) * np.sin(turn)
    brain, falx = _brain(rng, examination, along / ellipse[2], across / ellipse[3], ellipse[3])
    echo = np.where(inside, brain, echo)
    loss = np.where(inside, np.float32(BRAIN_LOSS), loss)
    bearing = np.arctan2(across / ellipse[3], along / ellipse[2])
    bone = np.exp(-(((distance + examination.skull / 2) / (0.42 * examination.skull)) ** 2))
    for suture in rng.uniform(-np.pi, np.pi, 3):
        off = np.float32(np.pi) - np.abs(np.abs(bearing - np.float32(suture)) - np.float32(np.pi))  # the shorter way
        bone = bone * (1 - np.float32(0.75) * np.exp(-((off / np.float32(0.06)) ** 2)))
    patchy = np.clip(1 + np.float32(0.35) * _smooth_noise(rng, 10, 12), 0.35, 1.6)
    echo = np.maximum(echo, ECHO_DB["skull"] + 20 * np.log10(bone + np.float32(1e-3)))
    mirror = bone * patchy * _amplitude(examination.skull_gain) * facing**SPECULAR_POWER
    upright = np.abs(-np.sin(turn) * beam[0] + np.cos(turn) * beam[1]) ** SPECULAR_POWER
    mirror = mirror + falx * inside * upright
    return echo, mirror, loss + bone * np.float32(examination.bone_loss)


def _surroundings(rng, examination, ellipse, depth, x, y):
    """Echo and loss of everything outside the head: layers under the probe, uterus, fluid, other parts of the fetus."""
    centre_x, centre_y, a, b, degrees = ellipse
    echo = ECHO_DB["maternal"] + 5.5 * _smooth_noise(rng, 5, 5) + 3.0 * _smooth_noise(rng, 40, 14)
    echo = echo + rng.uniform(0, 3) * _smooth_noise(rng, 90, 12)
    layers = rng.uniform(0.08, 0.26) * examination.sector.depth * (1 + 0.15 * _smooth_noise(rng, 2, 4))
    streaks = 5.0 * _smooth_noise(rng, 90, 5) + 3.0 * _smooth_noise(rng, 45, 12)
    echo = np.where(depth < layers, echo + streaks, echo)
    loss = np.full_like(echo, TISSUE_LOSS)
    contact = np.clip(_smooth_noise(rng, 1, 6) + rng.normal(-0.4, 0.5), 0, 2)  # beams where the probe lifts off
    loss[0] += 6.0 * contact[0] * SAMPLES / examination.sector.depth
    if rng.random() < 0.7:
        reach = rng.uniform(0.95, 1.6), rng.uniform(0.8, 1.4)
        shift_x, shift_y = rng.normal(0, 0.45) * a, rng.normal(0, 0.25) * b
        cavity = centre_x + shift_x, centre_y + shift_y, a * reach[0], b * reach[1], degrees + rng.normal(0, 20)
        wall = ellipse_distance(cavity, x, y)[0] + np.float32(0.13 * a) * _smooth_noise(rng, 5, 6)
        fluid = (wall < 0) & (depth > layers)
        level = ECHO_DB["fluid"] + rng.uniform(0, 14)
        echo = np.where(fluid, level, echo + 5.0 * np.exp(-((wall / 7) ** 2)))
        loss = np.where(fluid & (loss <= TISSUE_LOSS), np.float32(FLUID_LOSS), loss)
    for _ in range(rng.integers(0, 4)):  # shoulder, hand, cord
        bearing, size = rng.uniform(0, 2 * np.pi), a * rng.uniform(0.12, 0.4)
        place_x = centre_x + (a + 0.8 * size) * np.cos(bearing)
        place_y = centre_y + (b + 0.8 * size) * np.sin(bearing)
        part = (place_x, place_y, size, size * rng.uniform(0.4, 0.9), rng.uniform(0, 180))
        inside = ellipse_distance(part, x, y)[0] < 0.15 * size * _smooth_noise(rng, 12, 12)
        echo = np.where(inside, ECHO_DB["body"] + 4.0 * _smooth_noise(rng, 30, 20), echo)
    return echo.astype(np.float32), loss.astype(np.float32)


def _brain(rng, examination, u, v, across_size):
    """Echo of the brain (dB), amplitude of its mirrors; u, v run from -1 to 1, `across_size` is b in px."""
    young = 1 - examination.age
    texture = 3.0 * _smooth_noise(rng, 14, 14) + 2.0 * _smooth_noise(rng, 40, 26)
    folds = np.exp(-((_smooth_noise(rng, 26, 22) / 0.1) ** 2)) * (_smooth_noise(rng, 7, 7) > 0.3)
    centre = 5.0 * np.exp(-((u / 0.45) ** 2) - (v / 0.4) ** 2)  # the thalami and what lies around them
    echo = ECHO_DB["brain"] + 5.0 * young + texture + centre + SULCI_DB * folds * (0.3 + 0.7 * examination.age)
    end = rng.choice((-1.0, 1.0))  # which end of the head is the back
    rough_u, rough_v = u + 0.05 * _smooth_noise(rng, 16, 16), v + 0.05 * _smooth_noise(rng, 16, 16)
    for side in (-1, 1):
        place = end * rng.uniform(0.15, 0.4), side * rng.uniform(0.28, 0.42)
        size = rng.uniform(0.26, 0.42) + 0.12 * young, rng.uniform(0.08, 0.15) + 0.16 * young
        if rng.random() < 0.75:
            echo = np.where(_blob(rough_u, rough_v, *place, *size), echo + VENTRICLE_DB, echo)
        if rng.random() < 0.4 + 0.5 * young:
            choroid = _blob(rough_u, rough_v, place[0] + 0.08 * end, place[1], 0.6 * size[0], 0.62 * size[1])
            echo = np.where(choroid, ECHO_DB["brain"] + 5.0 * young + CHOROID_DB + texture, echo)
    cavum = (np.abs(rough_u + 0.42 * end) < 0.09) & (np.abs(rough_v) < 0.05)
    echo = np.where(cavum, echo + VENTRICLE_DB, echo)
    bend = 0.012 * _smooth_noise(rng, 5, 5)
    thin = 0.011 + 1.0 / across_size
    mirror = np.zeros_like(u)
    for offset, gap, share in ((0, 0.3, 1.0), *((side * rng.uniform(0.2, 0.5), 1.0, 0.6) for side in (-1, 1, -1, 1))):
        pieces = np.clip(_smooth_noise(rng, 10, 18) + 1.0 - gap * 1.2, 0, 1.4)  # lines beside it are short pieces
        mirror += share * pieces * np.exp(-(((v + bend - offset) / thin) ** 2)) * (np.abs(u) < 0.86 - 0.5 * abs(offset))
    edges = np.exp(-(((np.abs(v + bend) - 0.06) / thin) ** 2)) * (np.abs(u + 0.42 * end) < 0.1)
    mirror = mirror * ~cavum + edges
    return echo, mirror.astype(np.float32) * _amplitude(ECHO_DB["brain"] + MIDLINE_DB)


def draw_examination(rng, zoomed=None):
    """Draw what one session keeps the same; `zoomed` False shows the whole sector, True fills the frame with it."""
    if zoomed is None:
        zoomed = rng.random() < 0.75
    half_angle = np.radians(rng.uniform(20, 36) if zoomed else rng.uniform(26, 38))
    top_width = rng.uniform(360, 900) if zoomed else rng.uniform(180, 320)
    above = top_width / 2 / np.tan(half_angle)  # px from the apex to the frame's upper edge
    start = rng.uniform(-90, 25) if zoomed else rng.uniform(15, 70)
    end = rng.uniform(565, 720) if zoomed else rng.uniform(500, 560)
    sector = Sector(rng.normal(395, 22), -above, above + start, end - start, half_angle)
    age = rng.beta(2.2, 1.5)
    a = (135 + 165 * age if zoomed else 90 + 130 * age) * rng.uniform(0.92, 1.08)
    turn = rng.normal(0, 14) if rng.random() < 0.85 else rng.uniform(-90, 90)
    centre_y = rng.normal(272, 26) if zoomed else start + (end - start) * rng.uniform(0.45, 0.68)
    ellipse = (rng.normal(398, 40 if zoomed else 70), centre_y, a, a * rng.uniform(0.72, 0.88), turn)
    return Examination(
        sector=sector,
        ellipse=ellipse,
        age=age,
        anatomy_seed=int(rng.integers(2**32)),
        gain=rng.normal(25, 3.5),
        dynamic_range=rng.uniform(52, 64),
        axial_sigma=rng.uniform(1.0, 1.5) * (1.3 if zoomed else 1.0),
        lateral_sigma=rng.uniform(0.8, 1.2) * (1.2 if zoomed else 1.0),
        lateral_growth=rng.uniform(1.3, 2.0),
        skull=a * rng.uniform(0.035, 0.055) + 2.0,
        skull_gain=rng.uniform(9, 15) + 3 * age,
        bone_loss=rng.uniform(0.1, 0.45),
        box=(int(rng.uniform(*BOX_LEFT)), *BOX_ROWS),
        notch=bool(zoomed and rng.random() < 0.4),
    )


def draw_pose(rng, examination):
    """Ellipse of one frame: the examination's head, moved and turned a little, within the frame and the sector."""
    x, y, a, b, turn = examination.ellipse
    a, b, turn = a * rng.uniform(0.93, 1.06), b * rng.uniform(0.93, 1.06), turn + rng.normal(0, 6)
    x, y = x + rng.normal(0, 18), y + rng.normal(0, 14)
    sector = examination.sector
    top = max(FRAME_MARGIN, sector.apex_y + sector.radius)
    bottom = min(HEIGHT - FRAME_MARGIN, sector.apex_y + sector.radius + sector.depth)
    for _ in range(2):  # the height of the centre sets how wide the sector is there; shrinking moves the centre
        room = min(WIDTH / 2 - FRAME_MARGIN, (y - sector.apex_y) * np.tan(sector.half_angle))
        half_width, half_height = _half_extent(a, b, turn)
        scale = min(1.0, room / half_width, (bottom - top) / 2 / half_height)
        a, b, half_width, half_height = (scale * value for value in (a, b, half_width, half_height))
        y = np.clip(y, top + half_height, bottom - half_height)
    aside = min(room - half_width, WIDTH / 2 - FRAME_MARGIN - half_width - abs(sector.apex_x - WIDTH / 2))
    x = np.clip(x, sector.apex_x - max(aside, 0), sector.apex_x + max(aside, 0))
    x = np.clip(x, half_width + FRAME_MARGIN, WIDTH - half_width - FRAME_MARGIN)
    return tuple(float(value) for value in (x, y, a, min(a, b), turn))


def _half_extent(a, b, degrees):
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.hypot(a * cosine, b * sine), np.hypot(a * sine, b * cosine)


def cut_pose(rng, examination, near_border=False):
    """Ellipse of a head cut by the frame's lower edge; with `near_border` only its uppermost part is left.

    The lower edge, left of the blacked-out box, is where every zoomed sector reaches the frame's edge.
    """
    _, _, a, b, turn = draw_pose(rng, examination)
    a, b, turn = max(a, 170.0), max(b, 130.0), float(np.clip(turn, -15, 15))
    half_height = _half_extent(a, b, turn)[1]
    visible = rng.uniform(48, 58) if near_border else half_height * rng.uniform(1.45, 1.7)
    return (rng.uniform(310, 370), float(HEIGHT + half_height - visible), a, b, turn)


def truth(ellipse):
    """Mask (0/1, the line counted inside) and outline (0/255) of an ellipse; uint8 (540, 800), cut by the frame."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    distance = ellipse_distance(ellipse, x, y)[0]
    return np.uint8(distance <= LINE_HALF_WIDTH), np.uint8(np.abs(distance) <= LINE_HALF_WIDTH) * np.uint8(255)


def draw_frame(rng, examination=None, ellipse=None):
    """Draw one phantom.

    Parameters
    ----------
    rng : numpy.random.Generator
        Gives the speckle, and whatever is not given below.
    examination : Examination, optional
        By default a new one.
    ellipse : tuple of five floats, optional
        Where the head lies (px, degrees). By default a pose near the examination's own.

    Returns
    -------
    Phantom
    """
    examination = examination or draw_examination(rng)
    ellipse = ellipse or draw_pose(rng, examination)
    echo, mirror, loss = anatomy(examination, ellipse)
    level = level_along_beam(loss, examination.sector)
    heard = _amplitude(cv2.GaussianBlur(level, (0, 0), sigmaX=APERTURE, sigmaY=0.3))
    lateral = np.linspace(1, examination.lateral_growth, SAMPLES) * examination.lateral_sigma
    time_gain = TISSUE_LOSS * polar_grid(examination.sector)[0]
    noise = scatterers(rng, np.broadcast_to(NOISE_DB + time_gain, echo.shape))
    magnitude = np.float32(0)
    for _ in range(LOOKS):
        field = point_spread((scatterers(rng, echo) + mirror) * heard, examination.axial_sigma, lateral)
        magnitude = magnitude + envelope(field + noise) / LOOKS
    grey = 255 * compress(magnitude, examination.gain, examination.dynamic_range) ** np.float32(GREY_POWER)
    image = _screen(np.uint8(scan_convert(grey, examination.sector) + 0.5), examination)
    return Phantom(image, *truth(ellipse), ellipse)


def _screen(image, examination):
    """Add what the scanner's screen adds: its edges, the grey bar, the blacked-out boxes."""
    image[:, : SCREEN_COLUMNS[0]] = image[:, SCREEN_COLUMNS[1] :] = 0
    left, top, bottom = examination.box
    image[top:bottom, left:] = 0
    if examination.notch:
        image[: NOTCH[1], NOTCH[0] :] = 0
    fall = np.linspace(1, 0, BAR_ROWS[1] - BAR_ROWS[0]) ** BAR_POWER
    image[slice(*BAR_ROWS), slice(*BAR_COLUMNS)] = np.uint8(BAR_LEVEL * fall)[:, None]
    return image


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


def write_phantoms(folder, count=160, seed=0, processes=None, defects=True, progress=None):
    """Write a set of phantoms in the data set's tree; equal arguments give equal bytes, whatever `processes`.

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
    examinations = [
        [entry for entry in entries if entry.examination == number] for number in range(entries[-1].examination + 1)
    ]
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder.parent))
        os.chmod(temporary, 0o755)
        _write_set(temporary, seed, examinations, kinds, processes, progress)
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


def _write_set(folder, seed, examinations, kinds, processes, progress):
    """Draw and write all examinations, in as many processes as asked for."""
    for split in SPLITS:
        for name in CLASSES:
            (folder / DATA_FOLDER / split / name).mkdir(parents=True)
    processes = min(processes or os.cpu_count() or 1, len(examinations))
    write = partial(_write_examination, folder, seed, kinds)
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
        for number in written:
            done += number
            if progress:
                progress(done)
        frames = sum(len(entries) for entries in examinations)
        for index in range(max(1, frames // 40)):
            for key, name in enumerate(CLASSES[1:], start=3):
                rng = _random(seed, key, index)
                split = SPLITS[rng.choice(3, p=SPLIT_SHARES)]
                path = folder / DATA_FOLDER / split / name / f"{name[0].upper()}_{index + 1}.png"
                path.write_bytes(_png(draw_frame(rng).image))


def _write_examination(folder, seed, kinds, entries):
    """Draw and write the frames of one examination; returns how many."""
    cut = {"open_outline", "near_border"} & {kinds.get(entry.stem) for entry in entries}
    examination = draw_examination(_random(seed, 2, entries[0].examination), zoomed=True if cut else None)
    for entry in entries:
        rng = _random(seed, 2, entry.examination, entry.index)
        kind = kinds.get(entry.stem)
        ellipse = cut_pose(rng, examination, kind == "near_border") if kind in ("open_outline", "near_border") else None
        _write_pair(folder / DATA_FOLDER, entry, kind, draw_frame(rng, examination, ellipse))
    return len(entries)


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
