"""Images made worse: every way keeps its promises and is measured as physics, not as stored pixels."""

from itertools import pairwise

import cv2
import numpy as np
import pandas as pd
import pytest
from notebook_checks import defined
from scipy import ndimage
from scipy.stats import norm

from fetalseg_helpers import evaluation, preprocessing
from fetalseg_helpers.beyond_dice import robustness
from fetalseg_helpers.workspace import FetalsegError

SEEN_BY_THE_PAGE = {"evaluation": evaluation, "pd": pd, "preprocessing": preprocessing, "robustness": robustness}
robustness_table = defined(8, "robustness_table", **SEEN_BY_THE_PAGE)
NAMES = list(robustness.CORRUPTIONS)
CASES = [(name, strength) for name, (_, strengths) in robustness.CORRUPTIONS.items() for strength in strengths]
ALMOST_NOTHING = {"gain": 0.01, "gamma": 1.0001, "speckle": 1e-4, "blur": 0.01, "shadow": 1e-4, "crop": 0.1}
ALMOST_NOTHING |= {"resolution": 1.0}
HEIGHT, WIDTH = 270, 400


def frame(seed=0):
    """A grey frame with a brighter head and some texture, and the head's mask."""
    mask = cv2.ellipse(np.zeros((HEIGHT, WIDTH), np.uint8), ((210, 130), (200, 140), 20.0), 1, -1)
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(0, 30, mask.shape), 2)
    return np.clip(90 + 60.0 * mask + noise, 0, 255).astype(np.uint8), mask


IMAGE, MASK = frame()


def strengths_of(name):
    return robustness.CORRUPTIONS[name].strengths


def made_worse(name, image=IMAGE, mask=MASK, seed=0):
    return [robustness.corrupt(name, image, mask, strength, seed)[0] for strength in strengths_of(name)]


# All of them


def test_there_are_seven_ways_with_five_rising_strengths_each_and_a_unit():
    assert len(NAMES) == 7 == len(ALMOST_NOTHING)
    for name, (unit, strengths) in robustness.CORRUPTIONS.items():
        assert len(strengths) == 5 and list(strengths) == sorted(set(strengths)) and strengths[0] > 0 and unit, name


@pytest.mark.parametrize(("name", "strength"), CASES)
@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (WIDTH, HEIGHT), (67, 53), (12, 16)])
def test_a_worse_image_keeps_type_size_and_what_it_was_made_from(name, strength, size):
    image, mask = (cv2.resize(array, size, interpolation=cv2.INTER_NEAREST) for array in (IMAGE, MASK))
    before = image.copy(), mask.copy()
    worse, left = robustness.corrupt(name, image, mask, strength)
    assert worse.dtype == left.dtype == np.uint8 and worse.shape == left.shape and set(np.unique(left)) <= {0, 1}
    assert np.array_equal(image, before[0]) and np.array_equal(mask, before[1])
    if name == "crop":
        assert worse.shape == tuple(round(side * (1 - strength / 100)) for side in image.shape)
    else:
        assert worse.shape == image.shape and np.array_equal(left, mask)
    if size == (HEIGHT, WIDTH):
        assert worse.shape != image.shape or not np.array_equal(worse, image)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_image(name):
    strength = strengths_of(name)[-1]
    once, again = (robustness.corrupt(name, IMAGE, MASK, strength, seed=3) for _ in range(2))
    assert all(np.array_equal(*arrays) for arrays in zip(once, again, strict=True))
    others = [robustness.corrupt(name, IMAGE, MASK, strength, seed=seed)[0] for seed in range(8)]
    random = not all(np.array_equal(others[0], other) for other in others)
    assert random == (name in ("speckle", "crop"))


@pytest.mark.parametrize("name", NAMES)
def test_a_strength_of_almost_nothing_leaves_the_image_almost_as_it_is(name):
    worse, left = robustness.corrupt(name, IMAGE, MASK, ALMOST_NOTHING[name])
    assert worse.shape == IMAGE.shape and np.array_equal(left, MASK)
    off = np.abs(worse.astype(int) - IMAGE) > 1
    assert off.any(axis=0).sum() <= (name == "shadow")  # no shadow is narrower than a pixel


@pytest.mark.parametrize("name", [name for name in NAMES if name != "crop"])
def test_each_strength_is_further_from_the_image_than_the_one_before(name):
    distances = [np.sqrt(np.mean((worse.astype(float) - IMAGE) ** 2)) for worse in made_worse(name)]
    assert all(first < second for first, second in pairwise(distances)), distances


@pytest.mark.parametrize("name", [name for name in NAMES if name != "crop"])
def test_an_empty_mask_and_an_even_image_are_no_trouble(name):
    even, nothing = np.full((54, 80), 100, np.uint8), np.zeros((54, 80), np.uint8)
    worse, left = robustness.corrupt(name, even, nothing, strengths_of(name)[2])
    assert worse.shape == even.shape and not left.any()


# One by one


def test_so_many_db_less_are_so_many_grey_levels_less_of_255_over_60_db():
    image = np.tile(np.arange(256, dtype=np.uint8), (4, 1))
    for decibels in strengths_of("gain"):
        worse, _ = robustness.corrupt("gain", image, image > 0, decibels)
        lost = image.astype(int) - worse
        assert (worse[worse > 0] > 0).all() and set(lost[worse > 0]) == {round(255 * decibels / 60)}
        assert (worse[image <= round(255 * decibels / 60)] == 0).all()  # below black is black
    assert [round(255 * decibels / 60) for decibels in strengths_of("gain")] == [17, 34, 51, 68, 85]


def test_gamma_raises_grey_levels_to_a_power_and_leaves_black_and_white():
    image = np.tile(np.arange(256, dtype=np.uint8), (4, 1))
    for exponent, worse in zip(strengths_of("gamma"), made_worse("gamma", image, image > 0), strict=True):
        assert (worse[:, 0] == 0).all() and (worse[:, 255] == 255).all()
        assert np.abs(worse[0] / 255 - (np.arange(256) / 255) ** exponent).max() <= 0.5 / 255 + 1e-9
        assert (worse <= image).all()
    assert made_worse("gamma", image, image)[2][0, 128] == 64  # exponent 2: a quarter of white from half of it


@pytest.mark.parametrize("strength", [0.1, 0.2, 0.3])
@pytest.mark.parametrize("level", [40, 100])
def test_speckle_has_the_standard_deviation_that_it_says_relative_to_the_grey_level(strength, level):
    worse, _ = robustness.corrupt("speckle", np.full((400, 600), level, np.uint8), MASK, strength)
    assert worse.std() / level == pytest.approx(strength, rel=0.03)  # multiplicative: the same at both levels
    assert worse.mean() == pytest.approx(level, abs=1.5)


def test_speckle_leaves_black_and_has_grains_that_grow_with_the_frame():
    image = np.full((400, 1500), 100, np.uint8)
    image[:, :300] = 0
    assert not robustness.corrupt("speckle", image, image, 1.0)[0][:, :300].any()

    def likeness(width):  # of neighbouring columns: 0 for grains of one pixel
        worse = robustness.corrupt("speckle", np.full((400, width), 100, np.uint8), MASK, 0.2)[0].astype(float)
        return np.corrcoef(worse[:, 1:].ravel(), worse[:, :-1].ravel())[0, 1]

    assert likeness(100) < 0.1 and likeness(800) == pytest.approx(np.exp(-1 / (4 * 1.6**2)), abs=0.03)
    assert likeness(1500) > likeness(800)


def test_a_blurred_edge_is_that_of_a_gaussian_of_its_sigma():
    edge = np.zeros((60, 800), np.uint8)
    edge[:, 400:] = 255
    for percent, worse in zip(strengths_of("blur"), made_worse("blur", edge, edge), strict=True):
        sigma = percent / 100 * 800
        expected = 255 * norm.cdf(np.arange(800) - 399.5, scale=sigma)
        assert np.abs(worse[30] - expected).max() < 2.5  # OpenCV cuts the Gaussian off at 3 sigma
        assert worse.mean() == pytest.approx(127.5, abs=1)  # nothing is lost


def test_the_shadow_is_black_over_its_width_from_top_to_bottom_and_over_the_region():
    image, mask = np.full((90, 800), 200, np.uint8), np.zeros((90, 800), np.uint8)
    mask[20:60, 450:551] = 1  # its middle column is 500
    for percent, worse in zip(strengths_of("shadow"), made_worse("shadow", image, mask), strict=True):
        assert (worse == worse[0]).all()
        black = np.flatnonzero(worse[0] == 0)
        assert black.max() - black.min() + 1 == len(black) == pytest.approx(percent / 100 * 800, abs=2)
        assert black.mean() == pytest.approx(500, abs=0.6)
        soft = np.flatnonzero((worse[0] > 0) & (worse[0] < 199))
        assert len(soft) <= 0.2 * len(black) + 2  # a fifth of half the width on either side
        assert np.abs(worse[0, np.r_[:200, 790:800]].astype(int) - 200).max() <= 1


def test_without_a_region_the_shadow_falls_on_the_middle():
    worse, _ = robustness.corrupt("shadow", np.full((20, 101), 200, np.uint8), np.zeros((20, 101), np.uint8), 20)
    assert np.flatnonzero(worse[0] == 0).mean() == pytest.approx(50.5, abs=1)


def test_a_crop_is_a_corner_of_the_image_and_of_its_mask():
    seen = set()
    numbered = np.arange(HEIGHT * WIDTH, dtype=np.int32).reshape(HEIGHT, WIDTH)
    for seed in range(30):
        for percent in strengths_of("crop"):
            place, left = robustness.corrupt("crop", numbered, MASK, percent, seed)
            height, width = round(HEIGHT * (1 - percent / 100)), round(WIDTH * (1 - percent / 100))
            top, side = divmod(int(place[0, 0]), WIDTH)
            assert np.array_equal(place, numbered[top : top + height, side : side + width])
            assert np.array_equal(left, MASK[top : top + height, side : side + width])
            assert top in (0, HEIGHT - height) and side in (0, WIDTH - width)
            assert left.flags.c_contiguous and place.flags.c_contiguous
            seen.add((top > 0, side > 0))
    assert len(seen) == 4  # all corners come up


def test_a_larger_crop_with_the_same_seed_cuts_the_same_sides():
    for seed in range(10):
        kept = [robustness.corrupt("crop", IMAGE, MASK, percent, seed)[1].sum() for percent in strengths_of("crop")]
        assert kept == sorted(kept, reverse=True)


def test_coarse_pixels_are_blocks_of_so_many_and_hold_their_mean():
    image = np.random.default_rng(0).integers(0, 256, (192, 384), dtype=np.uint8)  # divides by every factor
    for factor, worse in zip(strengths_of("resolution"), made_worse("resolution", image, image), strict=True):
        blocks = worse.reshape(192 // factor, factor, 384 // factor, factor).transpose(0, 2, 1, 3)
        assert (blocks == blocks[:, :, :1, :1]).all()
        means = image.reshape(192 // factor, factor, 384 // factor, factor).mean(axis=(1, 3))
        assert np.abs(blocks[:, :, 0, 0] - means).max() <= 0.5 + 1e-9
    assert len(np.unique(robustness.corrupt("resolution", IMAGE, MASK, 10_000)[0])) == 1


# The table, which notebook 8 defines


@pytest.fixture
def pairs(tmp_path):
    """Two frames with a head in the middle and one whose head lies in a corner, small."""
    rows = []
    for number, centre in enumerate(((120, 80), (110, 90), (12, 10)), 1):
        mask = cv2.circle(np.zeros((160, 240), np.uint8), centre, 40 if number < 3 else 8, 255, -1)
        image = np.clip(40.0 + 0.6 * mask, 0, 255).astype(np.uint8)
        paths = [tmp_path / f"{number}{ending}.png" for ending in ("", "_Annotation")]
        for path, array in zip(paths, (image, mask), strict=True):
            cv2.imwrite(str(path), array)
        rows.append((f"{number}", *paths))
    return pd.DataFrame(rows, columns=["image_id", "image_path", "mask_path"])


def bright(image):
    return (image > 116).astype(np.uint8)


def test_the_table_has_a_row_for_the_image_as_it_is_and_for_each_strength(pairs):
    table = robustness_table(bright, pairs[:2])
    assert list(table.columns) == ["corruption", "strength", "dice", "lost"]
    assert list(dict.fromkeys(table.corruption)) == NAMES
    for name, rows in table.groupby("corruption"):
        assert list(rows.strength) == [0, *strengths_of(name)]
        assert rows.dice.iloc[0] == 1 and rows.lost.iloc[0] == 0
    assert table.dice.between(0, 1).all() and table.lost.between(0, 2).all() and table.lost.dtype == int


def test_a_predictor_of_bright_pixels_breaks_as_it_must(pairs):
    table = robustness_table(bright, pairs[:2]).set_index(["corruption", "strength"])
    # 193 grey levels inside: 17 to 68 fewer are above 116 still, 85 are not
    assert table.dice["gain"].tolist() == [1, 1, 1, 1, 1, 0] and table.lost["gain"].tolist() == [0] * 5 + [2]
    assert table.dice["shadow"].is_monotonic_decreasing and table.dice["shadow", 40] < 0.5
    assert table.dice["crop"].tolist() == pytest.approx([1] * 6)  # it sees each pixel on its own
    assert table.dice["blur"].is_monotonic_decreasing and table.dice["blur", 3] > 0.9


def test_each_score_is_the_mean_over_images_made_worse_with_seeds_of_their_own(pairs):
    table = robustness_table(bright, pairs[:2]).set_index(["corruption", "strength"])
    expected = []
    for number, pair in enumerate(pairs[:2].itertuples()):
        image, mask = preprocessing.read_pair(pair.image_path, pair.mask_path)
        worse, left = robustness.corrupt("speckle", image, mask, 1.0, seed=number)
        expected.append(evaluation.dice_score(bright(worse), left))
    assert table.dice["speckle", 1.0] == pytest.approx(np.mean(expected))
    assert table.lost["speckle", 1.0] == np.sum(np.less(expected, 0.5))


def test_an_image_whose_head_is_cropped_away_is_left_out_there(pairs):
    table = robustness_table(lambda image: np.zeros_like(image), pairs[2:])
    rows = table[table.corruption == "crop"]
    image, mask = preprocessing.read_pair(pairs.image_path[2], pairs.mask_path[2])
    left = [robustness.corrupt("crop", image, mask, percent)[1].any() for percent in strengths_of("crop")]
    assert not all(left)
    assert list(rows.strength) == [0, *np.array(strengths_of("crop"))[left]]
    assert not table.isna().any(axis=None) and set(table.dice) == {0} and set(table.lost) == {1}


def test_a_pair_that_cannot_be_read_is_an_error_that_names_it(pairs):
    pairs.mask_path[1].write_bytes(b"")
    with pytest.raises(FetalsegError, match=r"2_Annotation\.png"):
        robustness_table(bright, pairs)
