"""The geometry of an ellipse, which the phantoms draw and the scores measure."""

from collections import namedtuple

import numpy as np
from scipy.special import ellipe

from fetalseg_helpers.workspace import cv2

LINE_HALF_WIDTH = 1.27  # px, the data set's outlines reach this far to both sides of the ellipse they follow


class Ellipse(namedtuple("Ellipse", "x y a b angle")):
    """Centre and half axes in px, the angle of the first axis in degrees from +x to +y (down), as OpenCV has it."""


def ellipse_coordinates(ellipse, x, y):
    """Coordinates of points along the two axes of an ellipse: u, v with u² + v² = 1 on it."""
    centre_x, centre_y, a, b, degrees = (np.float32(value) for value in ellipse)
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    u = ((x - centre_x) * cosine + (y - centre_y) * sine) / a
    v = ((y - centre_y) * cosine - (x - centre_x) * sine) / b
    return u, v


def ellipse_perimeter(a, b):
    """Length of an ellipse with half axes a and b, exactly: 4 a E(1 - (b / a)²)."""
    return 4 * a * float(ellipe(1 - (b / a) ** 2))


def border_ellipse(mask):
    """The ellipse that fits the border of a 0/1 mask's largest region best, in the sense of least squares.

    Where the frame cuts the region off, its edge is no border. None where fewer than five pixels of border are left, or
    where what fits is more than three times as long as the border reaches.
    """
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    height, width = mask.shape
    border = max((contour[:, 0] for contour in contours), key=cv2.contourArea, default=np.zeros((0, 2), np.int32))
    border = border[((border > 0) & (border < (width - 1, height - 1))).all(axis=1)]  # (points, x y)
    if len(border) < 5:  # an ellipse has five degrees of freedom
        return None
    cv2.setRNGSeed(0)  # OpenCV shakes points on a line by chance
    (x, y), diameters, angle = cv2.fitEllipse(border.astype(np.float32))
    if not (np.isfinite([x, y]).all() and max(diameters) <= 3 * np.hypot(*np.ptp(border, axis=0))):
        return None
    return Ellipse(x, y, *(diameter / 2 + 0.5 for diameter in diameters), angle)  # pixels reach beyond their centres


def draw_ellipse(ellipse, width, height):
    """Pixels whose centres lie in an ellipse: uint8 (height, width), 0 and 1, cut off by the frame."""
    reach = max(ellipse.a, ellipse.b) + 1
    left, right = (int(np.clip(x, 0, width)) for x in (ellipse.x - reach, ellipse.x + reach + 1))
    top, bottom = (int(np.clip(y, 0, height)) for y in (ellipse.y - reach, ellipse.y + reach + 1))
    u, v = ellipse_coordinates(ellipse, np.arange(left, right), np.arange(top, bottom)[:, None])
    mask = np.zeros((height, width), np.uint8)
    mask[top:bottom, left:right] = u * u + v * v <= 1
    return mask
