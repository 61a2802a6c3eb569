"""How a B-mode picture comes about, from scatterers to the sector on the screen.

The echo is simulated, not painted: complex Gaussian scatterers on a polar grid of beams and depths, losses summed
along each beam, a point spread function, reverberation, envelope, log compression, scan conversion (Burckhardt 1978,
IEEE Trans. Sonics Ultrason. 25:1-6; Szabo 2014, Diagnostic Ultrasound Imaging, chapters 8 to 12). Lengths are pixels
of the frame where nothing else is said, levels decibels of amplitude.
"""

from collections import namedtuple

import numpy as np
from scipy.signal import lfilter

from fetalseg_helpers.workspace import cv2

WIDTH, HEIGHT = 800, 540  # px, of nearly every frame in the data set
SAMPLES, BEAMS = 512, 288  # of the polar grid: about 1.2 px along and 2.5 px across the beams
SOUND_SPEED = 1.54  # mm/µs in soft tissue, which scanners take for everything


class Sector(namedtuple("Sector", ["apex_x", "apex_y", "radius", "depth", "half_angle"])):
    """What a curved probe sees: apex, radius of the probe's surface, depth below it (px), half angle (radians)."""


def polar_grid(sector):
    """Where the samples lie: depth (samples, 1), angle (1, beams), x and y (samples, beams); float32, px, radians."""
    depth = (np.arange(SAMPLES, dtype=np.float32)[:, None] + 0.5) * np.float32(sector.depth / SAMPLES)
    angle = (np.arange(BEAMS, dtype=np.float32)[None] + 0.5) * np.float32(2 / BEAMS) - 1
    angle = angle * np.float32(sector.half_angle)
    x = np.float32(sector.apex_x) + (sector.radius + depth) * np.sin(angle)
    y = np.float32(sector.apex_y) + (sector.radius + depth) * np.cos(angle)
    return depth, angle, x.astype(np.float32), y.astype(np.float32)


def amplitude(decibels):
    """10^(dB / 20), float32."""
    return np.exp(np.float32(np.log(10) / 20) * np.float32(decibels))


def scatterers(rng, echo_db):
    """Complex Gaussian scatterers whose mean power is set by `echo_db` (any shape, dB); complex64 of that shape."""
    pairs = rng.standard_normal((*np.shape(echo_db), 2), dtype=np.float32)
    return pairs.view(np.complex64)[..., 0] * amplitude(np.subtract(echo_db, 3.01))  # two parts of power 1/2


def loss_per_pixel(attenuation, frequency, pixel_size):
    """Loss on the way there and back, dB/px, of an `attenuation` (dB/cm/MHz) at `frequency` (MHz); pixels in mm."""
    return 2 * attenuation * frequency * pixel_size / 10


def gaussian_sigma(wavelengths, frequency, pixel_size):
    """Standard deviation, px, of a Gaussian that is so many wavelengths wide at half its height; MHz, pixels in mm."""
    return wavelengths * SOUND_SPEED / frequency / 2.355 / pixel_size


def point_spread(field, axial_sigma, lateral_sigma):
    """Blur a field as the pulse does along, and the beam across, the direction of sound; complex64 (samples, beams).

    `axial_sigma` is the standard deviation of the Gaussian pulse in samples, `lateral_sigma` that of the beam in beams,
    one for all depths or of shape (samples,). Both kernels have energy 1, so independent scatterers keep their mean
    power; only within a kernel of the grid's edge, where the field is mirrored, do they gain up to 3 dB.
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
    parts = np.ascontiguousarray(blurred).view(np.float32).reshape(*field.shape, 2)  # real and imaginary
    return cv2.sepFilter2D(parts, -1, np.ones(1), pulse).view(np.complex64)[..., 0]


def level_along_beam(loss, sector, time_gain):
    """Level at which each sample is heard, dB: time-gain minus loss, both summed from the probe to it; float32.

    `loss`, there and back, has the shape (samples, beams), as has what is returned. It is in dB/px, as is `time_gain`,
    by which the scanner amplifies what comes from deeper.
    """
    depth, *_ = polar_grid(sector)
    summed = (np.cumsum(loss, axis=0, dtype=np.float32) - loss / 2) * np.float32(sector.depth / SAMPLES)
    return np.float32(time_gain) * depth - summed


def reverberate(power, length):
    """Power of the haze that lags behind every echo: it fades to 1/e over `length` samples; shape (samples, beams).

    Sound that goes to and fro between layers arrives late and is drawn too deep. In a steady echo the haze is as
    strong as the echo itself: scale it by the clutter's level.
    """
    keep = float(np.exp(-1 / length))
    return lfilter([0, 1 - keep], [1, -keep], power, axis=0).astype(np.float32)


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
