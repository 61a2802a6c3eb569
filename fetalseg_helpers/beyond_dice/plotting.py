"""What a border distance looks like (notebook 6); the other figures stand on notebook 8's page."""

import numpy as np

from fetalseg_helpers.plotting import ACCENT, draw_image, new_figure


def show_border_distances(image, prediction, border, distances, title):
    """The prediction's border, coloured by how far each of its pixels is from the truth's, and how often which.

    Parameters
    ----------
    image : array of uint8, shape (height, width)
    border : array of bool, same shape
        Where the distances belong, in the order of the rows.
    distances : array of float
        In px.
    """
    figure, (left, right) = new_figure(1, 2, 2.7, title, width_ratios=(1.5, 1))
    draw_image(left, image, "")
    rows, columns = np.nonzero(border)
    dots = left.scatter(columns, rows, c=distances, s=3, cmap="plasma", vmin=0)
    figure.colorbar(dots, ax=left, label="distance (px)", fraction=0.04)
    right.hist(distances, bins=20, color=ACCENT, alpha=0.8)
    mark = np.percentile(distances, 95)
    right.axvline(mark, color="black", linestyle="dashed", linewidth=1, label=f"95 % are within {mark:.1f} px")
    right.set(xlabel="distance from the truth (px)", ylabel="border pixels")
    right.margins(y=0.2)  # room for the legend
    right.legend()
    return figure
