"""Predictions without a network: where they lie, how large they are, and what they score."""

import numpy as np
import pytest
from shapes import ellipse_mask

from fetalseg_helpers import evaluation, preprocessing
from fetalseg_helpers.beyond_dice import baselines
from fetalseg_helpers.ellipses import Ellipse

NAMES = ["all background", "mean mask of the training set", "ellipse at the mean place", "Otsu and morphology"]
FRAME = (108, 160)  # of the images; the canvas is another
CANVASES = {"scale": {"width": 80, "height": 64, "fit": "scale"}, "pad": {"width": 128, "height": 96, "fit": "pad"}}


def angle_of(ellipse):
    """Of the long axis, -90 to 90 degrees."""
    return (ellipse.angle + (0 if ellipse.a >= ellipse.b else 90) + 90) % 180 - 90


def speckled(mask, noise=25):
    """A frame, brighter inside of the mask."""
    grey = np.random.default_rng(0).normal(60 + 120.0 * mask, noise)
    return np.clip(grey, 0, 255).astype(np.uint8)


@pytest.fixture(params=["scale", "pad"])
def canvas(request):
    return CANVASES[request.param]


@pytest.fixture
def made(canvas):
    """The baselines of three heads, and the heads as they are."""
    heads = [ellipse_mask(80 + more, 54, 30, 22, 10, FRAME) for more in (-6, 0, 6)]
    size = canvas["width"], canvas["height"], canvas["fit"]
    return baselines.make_baselines(
        np.stack([preprocessing.mask_to_canvas(head, *size) for head in heads]), canvas
    ), heads


# The mean ellipse


def test_the_mean_ellipse_has_the_mean_place_and_the_mean_axes():
    mean = baselines.mean_ellipse([ellipse_mask(70, 50, 40, 30, 20), ellipse_mask(100, 70, 30, 20, 20)])
    assert (mean.x, mean.y) == pytest.approx((85, 60), abs=0.1)
    assert (mean.a, mean.b) == pytest.approx((35, 25), abs=0.3) and angle_of(mean) == pytest.approx(20, abs=1)


@pytest.mark.parametrize(
    ("angles", "mean"), [((179, 1), 0), ((170, 30), 10), ((85, 95), 90), ((40, 50), 45), ((100, 130), 115)]
)
def test_angles_are_averaged_as_directions(angles, mean):
    ellipse = baselines.mean_ellipse([ellipse_mask(90, 60, 45, 25, angle) for angle in angles])
    assert abs((angle_of(ellipse) - mean + 90) % 180 - 90) < 1
    assert (ellipse.a, ellipse.b) == pytest.approx((45, 25), abs=0.3)


def test_which_axis_an_ellipse_calls_its_first_does_not_matter(monkeypatch):
    same = iter([Ellipse(9, 8, 30, 20, 10), Ellipse(9, 8, 20, 30, 100), None])
    monkeypatch.setattr(baselines, "border_ellipse", lambda mask: next(same))  # the last fits no ellipse
    assert baselines.mean_ellipse(np.zeros((3, 2, 2), np.uint8)) == pytest.approx((9, 8, 30, 20, 10))


# Otsu


@pytest.mark.parametrize("place", [(90, 60, 35, 35, 0), (60, 50, 40, 28, 30), (120, 70, 45, 40, 0)])
def test_otsu_finds_a_bright_disc_in_noise(place):
    disc = ellipse_mask(*place)
    found = baselines.otsu(speckled(disc))
    assert found.dtype == np.uint8 and evaluation.dice_score(found, disc) > 0.97


def test_otsu_keeps_the_largest_bright_region_and_fills_it():
    ring = ellipse_mask(70, 60, 45, 40, 0) - ellipse_mask(70, 60, 30, 25, 0)
    image = speckled(ring | ellipse_mask(155, 60, 12, 12, 0), noise=5)
    assert evaluation.dice_score(baselines.otsu(image), ellipse_mask(70, 60, 45, 40, 0)) > 0.97


def test_otsu_drops_what_is_thin_and_closes_gaps_that_are():
    disc = ellipse_mask(90, 60, 40, 40, 0)
    image = (60 + 120 * disc).astype(np.uint8)
    image[60:62, :] = 180  # a line across the frame
    image[20:60, 90:92] = 60  # a cut into the disc
    found = baselines.otsu(image)
    assert not found[60:62, :45].any() and not found[60:62, 135:].any()
    assert found[25:60, 90:92].all() and evaluation.dice_score(found, disc) > 0.98


# All of them


def test_each_baseline_gives_a_mask_at_the_images_own_size(made):
    functions, _ = made
    assert list(functions) == NAMES
    for size in (FRAME, (54, 80), (541, 799), (200, 90), (1, 1)):
        image = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
        for name, predict in functions.items():
            mask = predict(image)
            assert mask.shape == size and mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 1}, name


def test_all_background_scores_a_dice_of_0(made):
    functions, heads = made
    for head in heads:
        mask = functions["all background"](speckled(head))
        assert not mask.any() and evaluation.dice_score(mask, head) == 0


def test_the_mean_mask_is_what_at_least_half_of_the_training_masks_cover(made):
    functions, heads = made
    at_least_half = np.mean(heads, axis=0) >= 0.5
    mask = functions["mean mask of the training set"](speckled(heads[0]))
    assert evaluation.dice_score(mask, at_least_half) > 0.97
    assert evaluation.dice_score(mask, heads[0]) < 0.93  # it does not look at the image


def test_a_pixel_that_exactly_half_of_the_masks_cover_is_tumor():
    masks = np.zeros((2, 12, 12), np.uint8)
    masks[0, 2:8, 2:8], masks[1, 4:10, 4:10] = 1, 1
    canvas = {"width": 12, "height": 12, "fit": "pad"}
    mask = baselines.make_baselines(masks, canvas)["mean mask of the training set"](np.zeros((12, 12), np.uint8))
    assert np.array_equal(mask, masks[0] | masks[1])


def test_the_mean_ellipse_lies_where_the_heads_lie_on_average(made):
    functions, heads = made
    mask = functions["ellipse at the mean place"](speckled(heads[0]))
    assert evaluation.dice_score(mask, heads[1]) > 0.96 > evaluation.dice_score(mask, heads[0])


def test_of_heads_far_apart_the_mean_ellipse_is_in_the_middle_and_the_mean_mask_is_not():
    heads = np.stack([ellipse_mask(x, 54, 18, 14, 0, FRAME) for x in (30, 70, 110, 130)])
    functions = baselines.make_baselines(heads, {"width": FRAME[1], "height": FRAME[0], "fit": "scale"})
    image = np.zeros(FRAME, np.uint8)
    assert not functions["mean mask of the training set"](image)[:, :100].any()
    ellipse = functions["ellipse at the mean place"](image)
    assert evaluation.dice_score(ellipse, ellipse_mask(85, 54, 18, 14, 0, FRAME)) > 0.97


@pytest.mark.parametrize("name", NAMES[1:3])
def test_what_is_learnt_on_a_canvas_moves_with_the_image(name):
    """Scaled, it grows with the image; padded, its pixels stay as they are and its middle is the image's."""
    head = ellipse_mask(80, 54, 30, 22, 10, FRAME)
    for fit, (height, width), a, b in (("scale", (216, 320), 60, 44), ("pad", (90, 140), 30, 22)):
        canvas = CANVASES[fit]
        small = preprocessing.mask_to_canvas(head, canvas["width"], canvas["height"], fit)
        mask = baselines.make_baselines(small[None], canvas)[name](np.zeros((height, width), np.uint8))
        truth = ellipse_mask(width / 2, height / 2, a, b, 10, (height, width))
        assert evaluation.dice_score(mask, truth) > 0.95


def test_otsu_among_the_baselines_looks_at_the_image(made):
    functions, heads = made
    for head in heads:
        assert evaluation.dice_score(functions["Otsu and morphology"](speckled(head)), head) > 0.95
