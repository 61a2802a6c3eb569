"""The figure of arrays on the polar grid."""

import numpy as np

from fetalseg_helpers.phantoms.plotting import show_maps
from fetalseg_helpers.plotting import LARGEST_HEIGHT, WIDTH


def test_maps_have_their_titles_and_scales_and_the_probe_at_the_top():
    maps = [np.linspace(0, top, 512 * 288).reshape(512, 288) for top in (1, 2, 3, 4, 5, 6)]
    figure = show_maps(maps, list("abcdef"), ["dB"] * 6, suptitle="phantom", color_range=(0, 2))
    pictures = [axis for axis in figure.axes if axis.images]
    assert [axis.get_title() for axis in pictures] == list("abcdef")
    assert all(axis.get_ylim() == (511.5, -0.5) and axis.images[0].get_clim() == (0, 2) for axis in pictures)
    assert [axis.get_xlabel() for axis in figure.axes if not axis.images].count("dB") == 6
    assert tuple(figure.get_size_inches()) == (WIDTH, LARGEST_HEIGHT)


def test_without_a_range_each_map_has_its_own():
    figure = show_maps([np.eye(4), 3 * np.eye(4)], ["a", "b"], ["", ""], columns=2)
    assert [axis.images[0].get_clim() for axis in figure.axes if axis.images] == [(0, 1), (0, 3)]
