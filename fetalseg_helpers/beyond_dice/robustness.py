"""What breaks first: images made worse in seven ways, each at five strengths."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from fetalseg_helpers.workspace import cv2

DYNAMIC_RANGE = 60  # dB from black to white, a usual setting: so a change of the gain becomes one of the grey levels
# Of each way by its name: the `unit` of a strength, and the `strengths`, five numbers that rise
TABLE = pd.read_csv(Path(__file__).with_name("corruptions.csv"), index_col="name", converters={"strengths": json.loads})
CORRUPTIONS = dict(TABLE.iterrows())


def corrupt(name, image, mask, strength, seed=0):
    """A frame and its mask, made worse in the way `name`; the same seed gives the same grains and corners.

    `image` is uint8 and `mask` 0/1, both (height, width); `strength` is in the unit of `CORRUPTIONS[name]`. Only 'crop'
    changes the mask and the size. An unknown name raises KeyError.
    """
    height, width = image.shape
    rng = np.random.default_rng(seed)
    match name:
        case "gain":  # on a logarithmic scale all grey levels sink by the same amount
            return cv2.subtract(image, round(255 * strength / DYNAMIC_RANGE)), mask
        case "gamma":  # grey levels to a power
            return np.uint8(255 * (image / 255) ** strength + 0.5), mask
        case "speckle":  # multiplicative noise in grains of some pixels
            grain = cv2.GaussianBlur(rng.standard_normal(image.shape).astype(np.float32), (0, 0), width / 500)
            return np.clip(image * (1 + strength * grain / grain.std()), 0, 255).astype(np.uint8), mask
        case "blur":  # Gaussian, its sigma a share of the width
            return cv2.GaussianBlur(image, (0, 0), strength / 100 * width), mask
        case "shadow":  # a stripe without any echo, from top to bottom, over the region's middle
            columns = np.flatnonzero(mask.any(axis=0))
            middle = columns.mean() if len(columns) else width / 2
            distance = np.abs(np.arange(width) - middle) / (strength / 200 * width)
            return (image * np.clip(5 * (distance - 1), 0, 1)).astype(np.uint8), mask
        case "crop":  # of width and height, on the sides of a corner drawn at random; the mask as well
            rows, columns = (round(size * (1 - strength / 100)) for size in image.shape)
            top, left = rng.integers(2) * (height - rows), rng.integers(2) * (width - columns)
            window = slice(top, top + rows), slice(left, left + columns)
            return np.ascontiguousarray(image[window]), np.ascontiguousarray(mask[window])
        case "resolution":  # pixels so many times as large
            size = max(1, round(width / strength)), max(1, round(height / strength))
            small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            return cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST), mask
    raise KeyError(name)
