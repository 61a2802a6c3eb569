"""The physics behind the phantoms, tested as physics: speckle, attenuation, time-gain, reverberation, geometry."""

import numpy as np
import pytest
from scipy.stats import kstest

from fetalseg_helpers.phantoms import ultrasound as us

SHAPE = us.SAMPLES, us.BEAMS
SECTOR = us.Sector(400, -300, 300, 560, 0.5)


def random(*seed):
    return np.random.default_rng(seed)


def blurred_speckle(seed, lateral_sigma=2.0, level=0.0):
    echo = np.full(SHAPE, level, np.float32)
    return us.point_spread(us.scatterers(random(seed), echo), 1.5, lateral_sigma)


def test_homogeneous_tissue_gives_fully_developed_speckle():
    magnitude = np.concatenate([us.envelope(blurred_speckle(seed))[8:-8, 8:-8] for seed in range(4)])
    assert magnitude.mean() / magnitude.std() == pytest.approx(1.91, rel=0.05)
    independent = magnitude[::12, ::16].ravel()  # further apart than the point spread reaches
    assert kstest(independent, "rayleigh", args=(0, np.sqrt(0.5))).pvalue > 0.001


@pytest.mark.parametrize("level", [-20.0, 0.0, 12.0])
def test_blurring_keeps_the_level_of_the_tissue(level):
    power = np.mean(np.abs(blurred_speckle(1, level=level)) ** 2)
    assert 10 * np.log10(power) == pytest.approx(level, abs=0.3)


def test_speckle_widens_across_the_beams_with_depth_as_asked():
    sigma = np.linspace(1.0, 3.0, us.SAMPLES)
    field = np.stack([blurred_speckle(seed, sigma) for seed in range(6)])
    lag = 2  # beams
    product = (field[..., lag:] * field[..., :-lag].conj()).real.mean(axis=(0, 2))
    correlation = product / (np.abs(field) ** 2).mean(axis=(0, 2))
    for band in np.array_split(np.arange(us.SAMPLES), 4):
        measured = np.sqrt(-(lag**2) / (4 * np.log(correlation[band].mean())))  # of a Gaussian kernel
        assert measured == pytest.approx(sigma[band].mean(), rel=0.12)


@pytest.mark.parametrize(("attenuation", "frequency"), [(0.3, 3.0), (0.7, 5.0)])
def test_echo_falls_along_the_beam_by_attenuation_times_frequency_times_way(attenuation, frequency):
    pixel_size = 0.15  # mm
    loss = np.full(SHAPE, us.loss_per_pixel(attenuation, frequency, pixel_size), np.float32)
    field = blurred_speckle(2) * 10 ** (us.level_along_beam(loss, SECTOR, time_gain=0) / 20)
    decibels = 10 * np.log10((np.abs(field) ** 2).mean(axis=1))
    centimetres = us.polar_grid(SECTOR)[0][:, 0] * pixel_size / 10
    assert np.polyfit(centimetres, decibels, 1)[0] == pytest.approx(-2 * attenuation * frequency, rel=0.05)


def test_time_gain_makes_tissue_equally_bright_at_all_depths():
    assert np.abs(us.level_along_beam(np.full(SHAPE, 0.05, np.float32), SECTOR, 0.05)).max() < 0.05


def test_tissue_behind_fluid_is_enhanced_by_the_loss_the_fluid_spares():
    loss = np.full(SHAPE, 0.04, np.float32)
    loss[100:300, 50:90] = 0.001
    level = us.level_along_beam(loss, SECTOR, 0.04)
    spared = 200 * SECTOR.depth / us.SAMPLES * 0.039
    assert level[301:, 50:90] - level[301:, :40] == pytest.approx(spared, abs=0.1)


def test_pulse_and_beam_have_the_widths_of_the_textbook():
    # 2 cycles at 4 MHz are 2 × 0.385 mm long and, on the way there and back, half as long in the picture
    assert us.gaussian_sigma(2 / 2, 4.0, 0.1) * 2.355 == pytest.approx(0.385 / 0.1, rel=0.001)
    assert us.gaussian_sigma(3.0, 4.0, 0.1) * 2.355 == pytest.approx(3 * 0.385 / 0.1, rel=0.001)  # at f-number 3
    assert us.gaussian_sigma(1, 8.0, 0.1) == pytest.approx(us.gaussian_sigma(1, 4.0, 0.1) / 2)


def test_haze_lags_behind_its_echo_and_fades_to_1_over_e():
    power = np.zeros(SHAPE, np.float32)
    power[100] = 1
    haze = us.reverberate(power, 40.0)
    assert not haze[:101].any()
    assert haze[181] / haze[141] == pytest.approx(1 / np.e, rel=0.001)
    assert us.reverberate(np.ones(SHAPE, np.float32), 40.0)[-1] == pytest.approx(1, abs=0.001)  # of a steady echo


def test_log_compression_maps_its_range_from_black_to_white():
    shown = us.compress(np.float32([1e-9, 10 ** (-30 / 20), 1.0, 10 ** (30 / 20), 1e9]), 30, 60)
    assert shown == pytest.approx([0, 0, 0.5, 1, 1], abs=1e-4)


def test_scan_conversion_puts_a_sample_where_the_polar_grid_says():
    sector = us.Sector(390, -150, 190, 480, 0.55)
    polar = np.zeros(SHAPE, np.float32)
    polar[298:303, 98:103] = 1
    _, _, x, y = us.polar_grid(sector)
    rows, columns = np.nonzero(us.scan_convert(polar, sector) > 0.5)
    assert columns.mean() == pytest.approx(x[300, 100], abs=0.6)
    assert rows.mean() == pytest.approx(y[300, 100], abs=0.6)


def test_scan_conversion_leaves_everything_outside_the_sector_black():
    sector = us.Sector(390, -150, 190, 480, 0.55)
    frame = us.scan_convert(np.ones(SHAPE, np.float32), sector)
    y, x = np.mgrid[: us.HEIGHT, : us.WIDTH]
    depth = np.hypot(x - sector.apex_x, y - sector.apex_y) - sector.radius
    angle = np.abs(np.arctan2(x - sector.apex_x, y - sector.apex_y))
    outside = (depth < -1) | (depth > sector.depth + 1) | (angle > sector.half_angle + 0.004)
    inside = (depth > 2) & (depth < sector.depth - 2) & (angle < sector.half_angle - 0.01)
    assert outside.sum() > 50_000 and not frame[outside].any()
    assert inside.sum() > 50_000 and frame[inside].min() > 0.999
