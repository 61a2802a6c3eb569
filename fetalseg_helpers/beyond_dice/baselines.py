"""Predictions without a network: what every network has to beat before it may say that it has learnt something."""

import numpy as np
from scipy.stats import circmean

from fetalseg_helpers.ellipses import Ellipse, border_ellipse, draw_ellipse
from fetalseg_helpers.evaluation import cut
from fetalseg_helpers.preprocessing import from_canvas
from fetalseg_helpers.workspace import cv2


def mean_ellipse(masks):
    """The ellipse at the mean place, of mean axes and angle (179° and 1° give 0°), of masks (images, height, width)."""
    x, y, first, second, angle = np.array([*filter(None, map(border_ellipse, np.asarray(masks)))]).T
    short, long = np.sort([first, second], axis=0).mean(axis=1)
    angles = np.where(first >= second, angle, angle + 90)  # of the long axes, which have no head and no tail
    return Ellipse(x.mean(), y.mean(), long, short, circmean(angles, high=180))


def otsu(image):
    """The mask of the largest bright region after Otsu's threshold (1979), opened, closed and filled."""
    across = max(image.shape)
    small, large = (cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (across // part | 1,) * 2) for part in (50, 16))
    smooth = cv2.GaussianBlur(image, (0, 0), across / 200)
    _, mask = cv2.threshold(smooth, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    opened = cv2.morphologyEx(mask, cv2.MORPH_OPEN, small)
    return cut(cv2.morphologyEx(opened, cv2.MORPH_CLOSE, large), 1, "filled")


def make_baselines(masks, canvas):
    """Functions that make the mask of an image, uint8 (height, width) both, by name.

    `masks`, uint8 {0, 1} of shape (images, height, width), are those of the training images on the `canvas`, a
    dictionary with its `width`, `height` and `fit`.
    """
    ellipse = draw_ellipse(mean_ellipse(masks), canvas["width"], canvas["height"])

    def always(small):
        return lambda image: np.uint8(from_canvas(small, *image.shape[::-1], canvas["fit"]) >= 0.5)

    return {
        "all background": np.zeros_like,
        "mean mask of the training set": always(masks.mean(axis=0, dtype=np.float32)),
        "ellipse at the mean place": always(ellipse.astype(np.float32)),
        "Otsu and morphology": otsu,
    }
