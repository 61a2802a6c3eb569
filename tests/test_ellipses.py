"""Ellipses as they are drawn and as they are found again, against sums and pixels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from shapes import ellipse_mask

from fetalseg_helpers import ellipses
from fetalseg_helpers.phantoms.anatomy import ellipse_distance

few = settings(max_examples=30)
axes = st.floats(45, 95), st.floats(0.6, 1), st.floats(0, 180)


def perimeter(a, b):
    """Length of an ellipse, added up along its angle."""
    return quad(lambda angle: np.hypot(a * np.sin(angle), b * np.cos(angle)), 0, 2 * np.pi)[0]


def rim(x, y, a, b, turn, angle, outwards=0.0):
    """A point of an ellipse, moved along the normal, and the normal; by hand from its parameters."""
    turn = np.deg2rad(turn)
    normal = np.array([np.cos(angle) / a, np.sin(angle) / b])
    normal /= np.hypot(*normal)
    along = np.array([a * np.cos(angle), b * np.sin(angle)]) + outwards * normal
    turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return np.array([x, y]) + turned @ along, turned @ normal


@given(st.floats(0.5, 500), st.floats(0.5, 500))
@few
def test_the_perimeter_of_an_ellipse_is_its_length(a, b):
    assert ellipses.ellipse_perimeter(a, b) == pytest.approx(perimeter(a, b), rel=1e-6)
    assert ellipses.ellipse_perimeter(a, a) == pytest.approx(2 * np.pi * a)


def test_coordinates_along_the_axes_worked_by_hand():
    ellipse = ellipses.Ellipse(x=10, y=20, a=4, b=2, angle=90)  # the first axis points down
    assert ellipses.ellipse_coordinates(ellipse, 10, 24) == pytest.approx((1, 0), abs=1e-6)
    assert ellipses.ellipse_coordinates(ellipse, 8, 20) == pytest.approx((0, 1), abs=1e-6)
    assert ellipses.ellipse_coordinates(ellipse, 10, 20) == (0, 0)


@given(*axes, st.floats(0, 2 * np.pi), st.floats(-1.5, 1.5))
@few
def test_near_an_ellipse_distance_and_normal_are_those_of_geometry(a, ratio, turn, angle, outwards):
    point, normal = rim(170, 110, a, ratio * a, turn, angle, outwards)
    distance, found = ellipse_distance(ellipses.Ellipse(170, 110, a, ratio * a, turn), *point)
    assert distance == pytest.approx(outwards, abs=0.03)
    assert found == pytest.approx(normal, abs=0.03)


@given(*axes)
@few
def test_the_ellipse_of_a_drawn_ellipse_has_its_place_axes_and_angle(a, ratio, turn):
    found = ellipses.border_ellipse(ellipse_mask(170, 110, a, ratio * a, turn, (240, 360)))
    assert (found.x, found.y) == pytest.approx((170, 110), abs=0.2)
    assert sorted((found.a, found.b)) == pytest.approx([ratio * a, a], abs=0.5)
    if ratio < 0.9:  # else the angle means little
        long_axis = found.angle if found.a > found.b else found.angle + 90
        assert abs((long_axis - turn + 90) % 180 - 90) < 2


def test_the_frames_edge_is_no_border_of_a_region_that_it_cuts():
    found = ellipses.border_ellipse(ellipse_mask(40, 60, 60, 45, 0))  # a third of it lies left of the frame
    assert (found.x, found.y) == pytest.approx((40, 60), abs=0.5)
    assert sorted((found.a, found.b)) == pytest.approx([45, 60], abs=0.7)


@given(st.floats(-60, 420), st.floats(-60, 300), *axes)
@few
def test_a_drawn_ellipse_holds_the_pixels_whose_centres_lie_in_it(x, y, a, ratio, turn):
    drawn = ellipses.draw_ellipse(ellipses.Ellipse(x, y, a, ratio * a, turn), 360, 240)
    assert drawn.shape == (240, 360) and drawn.dtype == np.uint8
    # In single precision a centre that lies on the ellipse may fall to either side.
    inner, outer = (ellipse_mask(x, y, a + more, ratio * a + more, turn, (240, 360)) for more in (-0.01, 0.01))
    assert (inner <= drawn).all() and (drawn <= outer).all()
