"""Predictions without a network: what every network has to beat before it may say that it has learnt something."""

import cv2
import numpy as np

from fetalseg_helpers import biometry, prediction, preprocessing


def mean_ellipse(masks):
    """The ellipse at the mean place, with the mean axes and the mean angle, of many masks.

    Parameters
    ----------
    masks : array of uint8 {0, 1}, shape (images, height, width)

    Returns
    -------
    biometry.Ellipse
        In px of these masks. Angles are averaged as directions, so that 179° and 1° give 0°.
    """
    found = [ellipse for mask in masks if (ellipse := biometry.border_ellipse(np.asarray(mask))) is not None]
    x, y, first, second, angle = np.array(found).T
    long, short = np.maximum(first, second), np.minimum(first, second)
    doubled = 2 * np.radians(np.where(first >= second, angle, angle + 90))  # an axis has no head and no tail
    direction = np.arctan2(np.sin(doubled).mean(), np.cos(doubled).mean()) / 2
    return biometry.Ellipse(x.mean(), y.mean(), long.mean(), short.mean(), float(np.degrees(direction)))


def otsu(image):
    """Bright regions after Otsu's threshold (1979), opened, closed and filled; the largest is kept.

    Parameters
    ----------
    image : array of uint8, shape (height, width)

    Returns
    -------
    numpy.ndarray of uint8, same shape, values 0 and 1
    """
    across = max(image.shape)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (across // 50 | 1, across // 50 | 1))
    wide = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (across // 16 | 1, across // 16 | 1))
    smooth = cv2.GaussianBlur(image, (0, 0), across / 200)
    _, mask = cv2.threshold(smooth, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    mask = cv2.morphologyEx(cv2.morphologyEx(mask, cv2.MORPH_OPEN, kernel), cv2.MORPH_CLOSE, wide)
    return prediction.fill_holes(mask)


def make_baselines(masks, canvas):
    """Functions that make the mask of an image, by name.

    Parameters
    ----------
    masks : array of uint8 {0, 1}, shape (images, height, width)
        Of the training images, on the canvas.
    canvas : dict
        `width`, `height` and `fit`.

    Returns
    -------
    dict of str to callable
        Each takes an image, uint8 (height, width), and gives its mask at the same size.
    """
    mean, ellipse = masks.mean(axis=0, dtype=np.float32), mean_ellipse(masks)
    drawn = biometry.draw_ellipse(ellipse, canvas["width"], canvas["height"]).astype(np.float32)

    def always(small):
        back = preprocessing.from_canvas
        return lambda image: np.uint8(back(small, image.shape[1], image.shape[0], canvas["fit"]) >= 0.5)

    return {
        "all background": np.zeros_like,
        "mean mask of the training set": always(mean),
        "ellipse at the mean place": always(drawn),
        "Otsu and morphology": otsu,
    }
