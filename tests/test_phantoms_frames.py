"""Phantoms: what a frame of them shows, the truth that comes with it, and the table that it is drawn from."""

import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.spatial import cKDTree

from fetalseg_helpers.phantoms import anatomy, frames, ultrasound

TABLES = {
    "second": frames.DISTRIBUTIONS,
    "first": frames.FIRST_TRIMESTER,
    "third": frames.THIRD_TRIMESTER,
    "whole": frames.WHOLE_SECTOR,
}


def random(*seed):
    return np.random.default_rng(seed)


def rim(ellipse, outwards=0.0, steps=4000):
    """Points of an ellipse with both axes made `outwards` longer; array (steps, 2) of x, y."""
    x, y, a, b, degrees = ellipse
    t, turn = np.linspace(0, 2 * np.pi, steps, endpoint=False), np.radians(degrees)
    u, v = (a + outwards) * np.cos(t), (b + outwards) * np.sin(t)
    return np.stack([x + u * np.cos(turn) - v * np.sin(turn), y + u * np.sin(turn) + v * np.cos(turn)], axis=1)


def polar_of_pixels(sector):
    y, x = np.mgrid[: ultrasound.HEIGHT, : ultrasound.WIDTH]
    x, y = x - sector.apex_x, y - sector.apex_y
    return np.hypot(x, y) - sector.radius, np.arctan2(x, y)  # depth px, angle


def with_values(examination, **values):
    return replace(examination, values=examination.values | values)


def late_examination(seed):
    """A head of the second trimester in the middle of an enlarged sector, no gaps in its skull, usual gain."""
    rng = random(seed)
    examination = frames.draw_examination(rng, whole_sector=False)
    while examination.trimester != 2:
        examination = frames.draw_examination(rng, whole_sector=False)
    examination = replace(examination, sector=ultrasound.Sector(400, -400, 380, 700, np.radians(32)), pixel_size=0.15)
    usual = {"gain": 25.0, "dynamic_range": 60.0, "sutures": 0, "trunk": False, "limbs": 0, "double_line": False}
    return with_values(examination, **usual), (400.0, 230.0, 170.0, 130.0, 0.0)


class Homogeneous:
    """A scene of even tissue, for the whole chain from scatterers to grey levels."""

    def __init__(self, attenuation):
        shape = ultrasound.SAMPLES, ultrasound.BEAMS
        self.echo, self.mirror = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        self.attenuation = np.full(shape, attenuation, np.float32)


def homogeneous_magnitude(seed=0, **values):
    """Echo magnitude before compression, from the grey levels of an even scene."""
    plain = {"looks": 1, "clutter": -200.0, "noise": -200.0, "dynamic_range": 90.0, "gain": 60.0, "beam_growth": 1.0}
    examination, _ = late_examination(3)
    examination = with_values(examination, **plain | {"time_gain": examination.values["attenuation"]} | values)
    grey = frames.echoes(random(seed), examination, Homogeneous(examination.values["attenuation"]))
    decibels = grey ** (1 / examination.values["grey_power"]) * 90.0 - 60.0
    return 10 ** (decibels / 20)


# what a frame shows


def test_the_whole_chain_keeps_the_statistics_of_speckle():
    magnitude = np.stack([homogeneous_magnitude(seed)[20:-20, 20:-20] for seed in range(4)])
    assert magnitude.mean() / magnitude.std() == pytest.approx(1.91, rel=0.05)


def test_compounding_smooths_speckle_by_the_square_root_of_the_looks():
    one, four = (homogeneous_magnitude(1, looks=looks)[20:-20, 20:-20] for looks in (1, 4))
    assert (four.mean() / four.std()) / (one.mean() / one.std()) == pytest.approx(2, rel=0.1)


def test_a_higher_frequency_makes_finer_speckle_along_and_across_the_beams():
    def width(magnitude, axis):
        a = magnitude - magnitude.mean()
        shifted = np.roll(a, 1, axis)
        return (a * shifted)[5:-5, 5:-5].mean() / (a * a)[5:-5, 5:-5].mean()  # correlation of neighbours

    low, high = homogeneous_magnitude(2, frequency=2.5), homogeneous_magnitude(2, frequency=7.0)
    assert width(low, 0) > width(high, 0) + 0.1 and width(low, 1) > width(high, 1) + 0.1


def test_attenuation_that_time_gain_does_not_make_up_for_darkens_with_depth():
    magnitude = homogeneous_magnitude(4, attenuation=0.6, time_gain=0.5, frequency=4.0)
    examination, _ = late_examination(3)
    depth = ultrasound.polar_grid(examination.sector)[0][:, 0] * examination.pixel_size / 10  # cm
    decibels = 10 * np.log10((magnitude**2).mean(axis=1))
    assert np.polyfit(depth[20:-20], decibels[20:-20], 1)[0] == pytest.approx(-2 * 0.1 * 4.0, rel=0.1)


def test_it_is_darker_behind_bone_and_unchanged_beside_it():
    examination, ellipse = late_examination(5)
    clear, bony = (
        frames.draw_frame(random(6), with_values(examination, bone_attenuation=loss), ellipse).image.astype(float)
        for loss in (0.0, 8.0)
    )
    behind = np.s_[400:430, 330:470]
    assert bony[behind].mean() < 0.6 * clear[behind].mean()
    depth, angle = polar_of_pixels(examination.sector)
    x, y = (rim(ellipse, 20) - [examination.sector.apex_x, examination.sector.apex_y]).T
    beside = (np.abs(angle) > np.abs(np.arctan2(x, y)).max() + 0.08) & (depth > 0)
    assert beside.sum() > 10_000
    assert np.array_equal(bony[beside], clear[beside])


def test_skull_is_brightest_where_it_faces_the_beam():
    facing, lateral = [], []
    for seed in range(6):
        examination, ellipse = late_examination(seed)
        image = frames.draw_frame(random(seed), examination, ellipse).image
        wall = examination.values["wall"] * ellipse[2] / 2
        x, y = rim(ellipse, -wall, 720).round().astype(int).T
        t = np.arctan2((y - ellipse[1]) / ellipse[3], (x - ellipse[0]) / ellipse[2])
        normal = np.stack([np.cos(t) / ellipse[2], np.sin(t) / ellipse[3]])
        beam = np.stack([x - examination.sector.apex_x, y - examination.sector.apex_y])
        cosine = np.abs((normal * beam).sum(0)) / np.linalg.norm(normal, axis=0) / np.linalg.norm(beam, axis=0)
        facing.append(image[y, x][cosine > 0.95].mean())
        lateral.append(image[y, x][cosine < 0.4].mean())
    assert np.mean(facing) > 1.6 * np.mean(lateral)


@pytest.mark.parametrize(("name", "low", "high", "brighter"), [("gain", 20, 30, True), ("shadow", 0, 25, False)])
def test_gain_brightens_and_shadow_darkens(name, low, high, brighter):
    examination, ellipse = late_examination(8)
    first, second = (
        frames.draw_frame(random(9), with_values(examination, **{name: value}), ellipse).image.mean()
        for value in (low, high)
    )
    assert second > first + 1 if brighter else second < first - 1


@pytest.mark.parametrize("seed", range(6))
def test_nothing_is_shown_outside_the_sector_but_the_bar(seed):
    examination = frames.draw_examination(random(seed), whole_sector=seed % 2 == 0)
    examination = with_values(examination, cine_bar=False)
    image = frames.draw_frame(random(seed, 1), examination).image
    depth, angle = polar_of_pixels(examination.sector)
    outside = (depth < -2) | (depth > examination.sector.depth + 2) | (np.abs(angle) > examination.sector.half_angle)
    bar = np.zeros_like(outside)
    bar[slice(*frames.BAR_ROWS), slice(*frames.BAR_COLUMNS)] = True
    edge = np.abs(np.abs(angle) - examination.sector.half_angle) * (depth + examination.sector.radius) < 4
    assert (outside & ~bar & ~edge).any() or not examination.values["whole_sector"]
    assert not image[outside & ~bar & ~edge].any()
    assert not image[450:520, 660:].any()
    assert image[frames.BAR_ROWS[0], 5] > 200 > image[frames.BAR_ROWS[1] - 1, 5]


def test_the_time_line_is_written_at_the_bottom_where_it_is_drawn():
    examination, ellipse = late_examination(2)
    image = frames.draw_frame(random(1), with_values(examination, cine_bar=True), ellipse).image
    assert image[frames.CINE_ROWS[0] :, 20].min() > 20 and image[frames.CINE_ROWS[0] :, 530:580].max() > 150


# truth


@pytest.mark.parametrize("seed", range(8))
def test_outline_follows_the_ellipse_and_mask_fills_it(seed):
    drawn = frames.draw_frame(random(seed, 9))
    assert drawn.image.shape == drawn.mask.shape == drawn.outline.shape == (540, 800)
    assert drawn.image.dtype == drawn.mask.dtype == drawn.outline.dtype == np.uint8
    assert set(np.unique(drawn.outline)) == {0, 255} and set(np.unique(drawn.mask)) == {0, 1}
    rows, columns = np.nonzero(drawn.outline)
    line = np.stack([columns, rows], axis=1)
    assert cKDTree(rim(drawn.ellipse)).query(line)[0].max() < frames.LINE_HALF_WIDTH + 0.1
    assert cKDTree(line).query(rim(drawn.ellipse))[0].max() < 0.8  # no gap anywhere
    _, _, a, b, _ = drawn.ellipse
    expected = np.pi * (a + frames.LINE_HALF_WIDTH) * (b + frames.LINE_HALF_WIDTH)
    assert drawn.mask.sum() == pytest.approx(expected, rel=0.003)
    filled = np.zeros_like(drawn.mask)
    cv2.fillConvexPoly(filled, cv2.convexHull(line.astype(np.int32)), 1)
    differing = np.argwhere(filled != drawn.mask)[:, ::-1]
    assert cKDTree(line).query(differing)[0].max(initial=0) <= 1.0  # px: the hull's own rounding


def test_a_fitted_ellipse_recovers_the_analytic_one():
    for seed in range(5):
        drawn = frames.draw_frame(random(seed, 4))
        rows, columns = np.nonzero(drawn.outline)
        centre, axes, _ = cv2.fitEllipse(np.stack([columns, rows], axis=1).astype(np.float32))
        assert centre == pytest.approx(drawn.ellipse[:2], abs=0.3)
        assert sorted(axes) == pytest.approx([2 * drawn.ellipse[3], 2 * drawn.ellipse[2]], abs=0.6)


# the table of distributions


def test_every_row_says_its_unit_and_meaning_and_is_used():
    code = "".join(Path(module.__file__).read_text(encoding="utf-8") for module in (anatomy, frames))
    for name in frames.DISTRIBUTIONS | frames.WHOLE_SECTOR:
        assert re.search(rf'values(\.get\(|\[)"{name}"', code), name
    for table in TABLES.values():
        for draw in table.values():
            assert draw.how in ("uniform", "normal", "chance") and draw.unit and len(draw.meaning) > 8
            assert draw.how != "uniform" or draw.first < draw.second


def test_the_table_holds_no_row_that_nobody_reads():
    with Path(frames.__file__).with_name("distributions.csv").open(encoding="utf-8") as file:
        assert sum(1 for _ in file) == 1 + sum(map(len, TABLES.values()))


def test_special_cases_replace_rows_of_the_table():
    assert set(frames.FIRST_TRIMESTER) | set(frames.THIRD_TRIMESTER) <= set(frames.DISTRIBUTIONS)
    assert set(frames.WHOLE_SECTOR) - set(frames.DISTRIBUTIONS) == {"head_shrink"}


def test_draws_have_the_mean_and_spread_of_their_row():
    rng = random(0)
    normal = [frames.Draw("normal", 5, 2, "px", "a length")(rng) for _ in range(2000)]
    uniform = [frames.Draw("uniform", -1, 3, "px", "a length")(rng) for _ in range(2000)]
    chance = [frames.Draw("chance", 0.25, 0, "1", "a chance")(rng) for _ in range(2000)]
    assert np.mean(normal) == pytest.approx(5, abs=0.2) and np.std(normal) == pytest.approx(2, rel=0.1)
    assert -1 <= min(uniform) < -0.95 and 2.95 < max(uniform) <= 3
    assert set(chance) == {False, True} and np.mean(chance) == pytest.approx(0.25, abs=0.04)


def test_other_distributions_replace_those_of_every_trimester_and_view():
    changes = {"gain": frames.Draw("uniform", 11, 12, "dB", "another scanner")}
    drawn = [frames.draw_examination(random(seed), changes=changes) for seed in range(40)]
    assert {examination.trimester for examination in drawn} == {1, 2, 3}
    assert all(11 <= examination.values["gain"] <= 12 for examination in drawn)
    assert frames.draw_examination(random(0)).values["gain"] > 12


@pytest.fixture(scope="module")
def many():
    return [frames.draw_examination(random(seed, 5)) for seed in range(400)]


def test_circumference_over_pixels_gives_the_pixel_size(many):
    for examination in many:
        points = rim(examination.ellipse, steps=2000)
        pixels = np.linalg.norm(points - np.roll(points, 1, axis=0), axis=1).sum()
        expected = np.clip(examination.values["circumference"], 57, 346)
        assert pixels * examination.pixel_size == pytest.approx(expected, rel=0.002)
    sizes = np.array([examination.pixel_size for examination in many])
    assert sizes.min() > 0.04 and sizes.max() < 0.5 and 0.1 < np.median(sizes) < 0.16  # mm, as in HC18


def test_trimesters_come_in_the_shares_of_the_data_set_and_differ(many):
    trimesters = np.array([examination.trimester for examination in many])
    assert np.mean(trimesters == 1) == pytest.approx(165 / 999, abs=0.05)
    assert np.mean(trimesters == 3) == pytest.approx(141 / 999, abs=0.05)
    size = np.array([examination.values["circumference"] for examination in many])
    assert size[trimesters == 1].max() < 101 and size[trimesters == 3].min() > 225


@pytest.fixture(scope="module")
def forty():
    return [frames.draw_frame(random(seed, 11)) for seed in range(40)]


def test_skull_stands_out_in_most_frames_but_not_in_all(forty):
    contrast = []
    for drawn in forty:
        distance = cv2.distanceTransform(drawn.mask, cv2.DIST_L2, 5)
        wall = drawn.image[(distance > 3) & (distance < 0.07 * drawn.ellipse[2])]
        contrast.append(np.percentile(wall, 80) - 1.3 * drawn.image[distance > 0.3 * drawn.ellipse[3]].mean())
    assert np.mean(np.array(contrast) > 10) > 0.75
    assert min(contrast) < 40 < max(contrast)


def test_heads_run_from_a_twelfth_of_the_frame_to_half_of_it_in_dark_and_bright_frames(forty):
    share = np.array([drawn.mask.mean() for drawn in forty])
    assert 0.2 < np.median(share) < 0.36 and share.min() < 0.10 and share.max() > 0.42
    brightness = np.array([drawn.image.mean() for drawn in forty])
    assert 25 < brightness.mean() < 60 and brightness.min() < 20 and brightness.max() > 60
