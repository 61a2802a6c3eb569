"""How far apart the borders of two masks lie.

A mask's border are those of its pixels that have a neighbour (left, right, above, below) outside of it, or lie at the
frame's edge. Distances run from the centre of each pixel of one border to the nearest of the other; both ways count.
These are the definitions of MONAI's metrics.
"""

import numpy as np
from scipy import ndimage


def border_of(mask):
    """The pixels of a mask, shape (height, width), that lie at its border; bool, same shape."""
    mask = np.asarray(mask, dtype=bool)
    return mask & ~ndimage.binary_erosion(mask)


def border_distances(prediction, truth):
    """Distances, in px, of each border pixel of the prediction from the truth's border, and the other way round.

    Prediction and truth are arrays of bool or {0, 1} of shape (height, width), neither empty; gives two numpy arrays.

    >>> border_distances([[1, 0, 0, 0]], [[0, 0, 1, 1]])
    (array([2.]), array([2., 3.]))
    """
    masks = np.asarray([prediction, truth], dtype=bool)
    (window,) = ndimage.find_objects(masks.any(axis=0).astype(int))  # all borders lie in here
    predicted, true = (border_of(mask[window]) for mask in masks)
    from_truth = ndimage.distance_transform_edt(~true)
    from_prediction = ndimage.distance_transform_edt(~predicted)
    return from_truth[predicted], from_prediction[true]
