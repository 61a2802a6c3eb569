"""Shapes that several test files draw."""

import numpy as np


def ellipse_mask(x, y, a, b, turn, size=(120, 180)):
    """Pixels whose centre lies inside an ellipse with half axes a and b, turned by `turn` degrees."""
    turn = np.deg2rad(turn)
    rows, columns = np.mgrid[: size[0], : size[1]]
    u = (columns - x) * np.cos(turn) + (rows - y) * np.sin(turn)
    v = (rows - y) * np.cos(turn) - (columns - x) * np.sin(turn)
    return ((u / a) ** 2 + (v / b) ** 2 <= 1).astype(np.uint8)
