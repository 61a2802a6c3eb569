"""What breaks first: images made worse in seven ways, each at five strengths."""

from collections import namedtuple

import numpy as np

from fetalseg_helpers.workspace import cv2

DYNAMIC_RANGE = 60  # dB from black to white, a usual setting: so a change of the gain becomes one of the grey levels
Corruption = namedtuple("Corruption", "unit strengths change")  # change(image, mask, strength, rng) gives both, altered


def lower_gain(image, mask, decibels, rng):
    """Echoes weaker by so many dB: on a logarithmic scale all grey levels sink by the same amount."""
    return cv2.subtract(image, round(255 * decibels / DYNAMIC_RANGE)), mask


def darken(image, mask, exponent, rng):
    """Grey levels raised to a power."""
    return np.uint8(255 * (image / 255) ** exponent + 0.5), mask


def add_speckle(image, mask, strength, rng):
    """Multiplicative noise in grains of some pixels, its standard deviation relative to the grey level."""
    grain = cv2.GaussianBlur(rng.standard_normal(image.shape).astype(np.float32), (0, 0), image.shape[1] / 500)
    return np.clip(image * (1 + strength * grain / grain.std()), 0, 255).astype(np.uint8), mask


def blur(image, mask, percent, rng):
    """A Gaussian blur whose sigma is a share of the frame's width."""
    return cv2.GaussianBlur(image, (0, 0), percent / 100 * image.shape[1]), mask


def cast_shadow(image, mask, percent, rng):
    """A stripe without any echo, from top to bottom, of so much of the frame's width, over the region's middle."""
    columns = np.flatnonzero(mask.any(axis=0))
    middle = columns.mean() if len(columns) else image.shape[1] / 2
    distance = np.abs(np.arange(image.shape[1]) - middle) / (percent / 200 * image.shape[1])
    return (image * np.clip(5 * (distance - 1), 0, 1)).astype(np.uint8), mask


def crop(image, mask, percent, rng):
    """So much of the width and the height cut off, on the sides of a corner drawn at random; the mask as well."""
    height, width = (round(size * (1 - percent / 100)) for size in image.shape)
    top, left = rng.integers(2) * (image.shape[0] - height), rng.integers(2) * (image.shape[1] - width)
    window = slice(top, top + height), slice(left, left + width)
    return np.ascontiguousarray(image[window]), np.ascontiguousarray(mask[window])


def coarsen(image, mask, factor, rng):
    """Pixels so many times as large."""
    height, width = image.shape
    size = max(1, round(width / factor)), max(1, round(height / factor))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST), mask


CORRUPTIONS = {
    "gain": Corruption("dB less", (4, 8, 12, 16, 20), lower_gain),
    "gamma": Corruption("exponent", (1.25, 1.5, 2, 2.5, 3), darken),
    "speckle": Corruption("SD, of the grey level", (0.2, 0.4, 0.6, 0.8, 1.0), add_speckle),
    "blur": Corruption("sigma, % of the width", (0.5, 1, 1.5, 2, 3), blur),
    "shadow": Corruption("% of the width", (5, 10, 20, 30, 40), cast_shadow),
    "crop": Corruption("% of each side", (5, 10, 20, 30, 40), crop),
    "resolution": Corruption("times coarser", (4, 8, 16, 24, 32), coarsen),
}


def corrupt(name, image, mask, strength, seed=0):
    """A frame and its mask, made worse in the way `name`; the same seed gives the same grains and corners."""
    return CORRUPTIONS[name].change(image, mask, strength, np.random.default_rng(seed))
