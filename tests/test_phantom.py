"""Phantoms: the physics that draws them, the truth that comes with them, the tree they are written to."""

import re
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree
from scipy.stats import kstest

from fetalseg_helpers import phantom
from fetalseg_helpers.workspace import FetalsegError

COUNT, SEED = 44, 3
RANK = {"2HC": 0, "3HC": 1, "4HC": 2, "HC": 3}


def random(*seed):
    return np.random.default_rng(seed)


def blurred_speckle(seed, lateral_sigma=2.0, level=0.0):
    echo = np.full((phantom.SAMPLES, phantom.BEAMS), level, np.float32)
    return phantom.point_spread(phantom.scatterers(random(seed), echo), 1.5, lateral_sigma)


def rim(ellipse, outwards=0.0, steps=4000):
    """Points of an ellipse with both axes made `outwards` longer; array (steps, 2) of x, y."""
    x, y, a, b, degrees = ellipse
    t, turn = np.linspace(0, 2 * np.pi, steps, endpoint=False), np.radians(degrees)
    u, v = (a + outwards) * np.cos(t), (b + outwards) * np.sin(t)
    return np.stack([x + u * np.cos(turn) - v * np.sin(turn), y + u * np.sin(turn) + v * np.cos(turn)], axis=1)


def polar_of_pixels(sector):
    y, x = np.mgrid[: phantom.HEIGHT, : phantom.WIDTH]
    x, y = x - sector.apex_x, y - sector.apex_y
    return np.hypot(x, y) - sector.radius, np.arctan2(x, y)  # depth px, angle


def examination_with_head_in_the_middle(seed):
    examination = phantom.draw_examination(random(seed), zoomed=True)
    sector = phantom.Sector(400, -400, 380, 700, np.radians(32))
    ellipse = (400.0, 230.0, 170.0, 130.0, 0.0)
    return replace(examination, sector=sector, ellipse=ellipse, gain=25.0, dynamic_range=60.0), ellipse


# physics


def test_homogeneous_tissue_gives_fully_developed_speckle():
    magnitude = np.concatenate([phantom.envelope(blurred_speckle(seed))[8:-8, 8:-8] for seed in range(4)])
    assert magnitude.mean() / magnitude.std() == pytest.approx(1.91, rel=0.05)
    independent = magnitude[::12, ::16].ravel()  # further apart than the point spread reaches
    assert kstest(independent, "rayleigh", args=(0, np.sqrt(0.5))).pvalue > 0.001


@pytest.mark.parametrize("level", [-20.0, 0.0, 12.0])
def test_blurring_keeps_the_level_of_the_tissue(level):
    power = np.mean(np.abs(blurred_speckle(1, level=level)) ** 2)
    assert 10 * np.log10(power) == pytest.approx(level, abs=0.3)


def test_speckle_widens_across_the_beams_with_depth_as_asked():
    sigma = np.linspace(1.0, 3.0, phantom.SAMPLES)
    field = np.stack([blurred_speckle(seed, sigma) for seed in range(6)])
    lag = 2  # beams
    product = (field[..., lag:] * field[..., :-lag].conj()).real.mean(axis=(0, 2))
    correlation = product / (np.abs(field) ** 2).mean(axis=(0, 2))
    for band in np.array_split(np.arange(phantom.SAMPLES), 4):
        measured = np.sqrt(-(lag**2) / (4 * np.log(correlation[band].mean())))  # of a Gaussian kernel
        assert measured == pytest.approx(sigma[band].mean(), rel=0.12)


@pytest.mark.parametrize("loss", [0.02, 0.08])
def test_echo_falls_along_the_beam_by_the_loss_that_was_set(loss):
    sector = phantom.Sector(400, -300, 300, 560, 0.5)
    level = phantom.level_along_beam(np.full((phantom.SAMPLES, phantom.BEAMS), loss, np.float32), sector, time_gain=0)
    field = blurred_speckle(2) * 10 ** (level / 20)
    decibels = 10 * np.log10((np.abs(field) ** 2).mean(axis=1))
    slope = np.polyfit(phantom.polar_grid(sector)[0][:, 0], decibels, 1)[0]
    assert slope == pytest.approx(-loss, rel=0.05)


def test_time_gain_makes_tissue_equally_bright_at_all_depths():
    sector = phantom.Sector(400, -300, 300, 560, 0.5)
    loss = np.full((phantom.SAMPLES, phantom.BEAMS), phantom.TISSUE_LOSS, np.float32)
    assert np.abs(phantom.level_along_beam(loss, sector)).max() < 0.05


def test_it_is_darker_behind_bone_and_unchanged_beside_it():
    examination, ellipse = examination_with_head_in_the_middle(5)
    clear, bony = (
        phantom.draw_frame(random(6), replace(examination, bone_loss=loss), ellipse).image.astype(float)
        for loss in (0.0, 1.0)
    )
    behind = np.s_[400:430, 330:470]
    assert bony[behind].mean() < 0.5 * clear[behind].mean()
    depth, angle = polar_of_pixels(examination.sector)
    x, y = (rim(ellipse, 20) - [examination.sector.apex_x, examination.sector.apex_y]).T
    beside = (np.abs(angle) > np.abs(np.arctan2(x, y)).max() + 0.08) & (depth > 0)
    assert beside.sum() > 10_000
    assert np.array_equal(bony[beside], clear[beside])


def test_skull_is_brightest_where_it_faces_the_beam():
    facing, lateral = [], []
    for seed in range(6):
        examination, ellipse = examination_with_head_in_the_middle(seed)
        image = phantom.draw_frame(random(seed), examination, ellipse).image
        x, y = rim(ellipse, -examination.skull / 2, 720).round().astype(int).T
        t = np.arctan2((y - ellipse[1]) / ellipse[3], (x - ellipse[0]) / ellipse[2])
        normal = np.stack([np.cos(t) / ellipse[2], np.sin(t) / ellipse[3]])
        beam = np.stack([x - examination.sector.apex_x, y - examination.sector.apex_y])
        cosine = np.abs((normal * beam).sum(0)) / np.linalg.norm(normal, axis=0) / np.linalg.norm(beam, axis=0)
        facing.append(image[y, x][cosine > 0.95].mean())
        lateral.append(image[y, x][cosine < 0.4].mean())
    assert np.mean(facing) > 1.6 * np.mean(lateral)


def test_tissue_behind_fluid_is_enhanced_by_the_loss_the_fluid_spares():
    sector = phantom.Sector(400, -300, 300, 560, 0.5)
    loss = np.full((phantom.SAMPLES, phantom.BEAMS), phantom.TISSUE_LOSS, np.float32)
    loss[100:300, 50:90] = phantom.FLUID_LOSS
    level = phantom.level_along_beam(loss, sector)
    spared = 200 * sector.depth / phantom.SAMPLES * (phantom.TISSUE_LOSS - phantom.FLUID_LOSS)
    assert level[301:, 50:90] - level[301:, :40] == pytest.approx(spared, abs=0.1)
    assert spared > 3


@pytest.mark.parametrize("seed", range(6))
def test_nothing_is_shown_outside_the_sector_but_the_bar(seed):
    examination = phantom.draw_examination(random(seed))
    image = phantom.draw_frame(random(seed, 1), examination).image
    depth, angle = polar_of_pixels(examination.sector)
    outside = (depth < -2) | (depth > examination.sector.depth + 2) | (np.abs(angle) > examination.sector.half_angle)
    bar = np.zeros_like(outside)
    bar[slice(*phantom.BAR_ROWS), slice(*phantom.BAR_COLUMNS)] = True
    edge = np.abs(np.abs(angle) - examination.sector.half_angle) * (depth + examination.sector.radius) < 4
    assert (outside & ~bar & ~edge).any()
    assert not image[outside & ~bar & ~edge].any()
    left, top, bottom = examination.box
    assert not image[top:bottom, left:].any()
    assert image[phantom.BAR_ROWS[0], 5] > 200 > image[phantom.BAR_ROWS[1] - 1, 5]


def test_log_compression_maps_its_range_from_black_to_white():
    shown = phantom.compress(np.float32([1e-9, 10 ** (-30 / 20), 1.0, 10 ** (30 / 20), 1e9]), 30, 60)
    assert shown == pytest.approx([0, 0, 0.5, 1, 1], abs=1e-4)


def test_scan_conversion_puts_a_sample_where_the_polar_grid_says():
    sector = phantom.draw_examination(random(1), zoomed=False).sector
    polar = np.zeros((phantom.SAMPLES, phantom.BEAMS), np.float32)
    polar[298:303, 98:103] = 1
    _, _, x, y = phantom.polar_grid(sector)
    rows, columns = np.nonzero(phantom.scan_convert(polar, sector) > 0.5)
    assert columns.mean() == pytest.approx(x[300, 100], abs=0.6)
    assert rows.mean() == pytest.approx(y[300, 100], abs=0.6)


# truth


@pytest.mark.parametrize("seed", range(8))
def test_outline_follows_the_ellipse_and_mask_fills_it(seed):
    drawn = phantom.draw_frame(random(seed, 9))
    assert drawn.image.shape == drawn.mask.shape == drawn.outline.shape == (540, 800)
    assert drawn.image.dtype == drawn.mask.dtype == drawn.outline.dtype == np.uint8
    assert set(np.unique(drawn.outline)) == {0, 255} and set(np.unique(drawn.mask)) == {0, 1}
    rows, columns = np.nonzero(drawn.outline)
    line = np.stack([columns, rows], axis=1)
    assert cKDTree(rim(drawn.ellipse)).query(line)[0].max() < phantom.LINE_HALF_WIDTH + 0.1
    assert cKDTree(line).query(rim(drawn.ellipse))[0].max() < 0.8  # no gap anywhere
    _, _, a, b, _ = drawn.ellipse
    expected = np.pi * (a + phantom.LINE_HALF_WIDTH) * (b + phantom.LINE_HALF_WIDTH)
    assert drawn.mask.sum() == pytest.approx(expected, rel=0.003)
    filled = np.zeros_like(drawn.mask)
    cv2.fillConvexPoly(filled, cv2.convexHull(line.astype(np.int32)), 1)
    differing = np.argwhere(filled != drawn.mask)[:, ::-1]
    assert cKDTree(line).query(differing)[0].max(initial=0) <= 1.0  # px: the hull's own rounding


def test_a_fitted_ellipse_recovers_the_analytic_one():
    for seed in range(5):
        drawn = phantom.draw_frame(random(seed, 4))
        rows, columns = np.nonzero(drawn.outline)
        centre, axes, _ = cv2.fitEllipse(np.stack([columns, rows], axis=1).astype(np.float32))
        assert centre == pytest.approx(drawn.ellipse[:2], abs=0.3)
        assert sorted(axes) == pytest.approx([2 * drawn.ellipse[3], 2 * drawn.ellipse[2]], abs=0.6)


@pytest.fixture(scope="module")
def thirty():
    return [phantom.draw_frame(random(seed, 11)) for seed in range(30)]


def test_skull_stands_out_from_what_it_encloses_in_every_frame(thirty):
    for drawn in thirty:
        distance = cv2.distanceTransform(drawn.mask, cv2.DIST_L2, 5)
        wall = drawn.image[(distance > 3) & (distance < 0.05 * drawn.ellipse[2])]
        within = drawn.image[distance > 0.3 * drawn.ellipse[3]]
        assert np.percentile(wall, 80) > 1.5 * within.mean() + 10


def test_heads_differ_in_size_place_and_brightness(thirty):
    share = np.array([drawn.mask.mean() for drawn in thirty])
    assert 0.18 < np.median(share) < 0.42 and share.min() < 0.16 and share.max() > 0.38
    assert np.std([drawn.ellipse[0] for drawn in thirty]) > 15
    brightness = np.array([drawn.image.mean() for drawn in thirty])
    assert brightness.std() > 8 and 20 < brightness.mean() < 70


# the set


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A set with every kind of defect: folder, defects, and all malignant files by name."""
    reported = []
    folder = tmp_path_factory.mktemp("set") / "phantoms"
    assert phantom.write_phantoms(folder, COUNT, SEED, processes=2, progress=reported.append) == folder
    paths = {path.name: path for path in folder.rglob("malignant/*.png")}
    return folder, phantom.planted_defects(COUNT, SEED), paths, reported


def grey(path):
    return cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_GRAYSCALE)


def test_number_of_processes_does_not_change_a_byte(tmp_path):
    one = files(phantom.write_phantoms(tmp_path / "one", 12, 7, processes=1))
    two = files(phantom.write_phantoms(tmp_path / "two", 12, 7, processes=2))
    assert one == two
    other = files(phantom.write_phantoms(tmp_path / "other", 12, 8, processes=1))
    assert not set(one.values()) & set(other.values())


def test_drawing_in_this_process_leaves_opencv_as_it_was(tmp_path):
    before = cv2.getNumThreads()
    phantom.write_phantoms(tmp_path / "set", 1, processes=1)
    assert cv2.getNumThreads() == before


def test_progress_rises_to_the_number_of_frames(written):
    reported = written[3]
    assert reported == sorted(reported) and reported[-1] == COUNT and len(reported) > 5


def test_tree_and_names_are_those_of_the_data_set(written):
    folder, _, paths, _ = written
    data = folder / "Ultrasound Fetus Dataset" / "Ultrasound Fetus Dataset" / "Data" / "Data"
    assert all(path.parents[2] == data for path in paths.values())
    for split in ("train", "validation", "test"):
        assert {path.name for path in (data / split).iterdir()} == {"malignant", "benign", "normal"}
    assert all(re.fullmatch(r"\d+_[234]?HC(_Annotation)?\.png", name) for name in paths)
    for name in ("benign", "normal"):
        assert len(list(data.rglob(f"{name}/*.png"))) == max(1, COUNT // 40)
    numbers = sorted({int(name.split("_")[0]) for name in paths})
    assert numbers == list(range(1, COUNT + 1))


def test_image_and_outline_lie_together_unless_planted_apart(written):
    _, defects, paths, _ = written
    apart = [
        name[:-4]
        for name, path in paths.items()
        if "_Annotation" not in name
        and (other := paths.get(f"{name[:-4]}_Annotation.png")) is not None
        and path.parent != other.parent
    ]
    assert sorted(apart) == sorted(defects["split_folders_differ"]) and apart


def test_planted_files_are_absent_broken_empty_or_of_another_size(written):
    _, defects, paths, _ = written
    images = {name[:-4] for name in paths if "_Annotation" not in name}
    outlines = {name.removesuffix("_Annotation.png") for name in paths if "_Annotation" in name}
    assert images - outlines == set(defects["missing_mask"])
    assert outlines - images == set(defects["orphan_mask"])
    assert {stem for stem in images if grey(paths[f"{stem}.png"]) is None} == set(defects["unreadable_image"])
    drawn = {stem: grey(paths[f"{stem}_Annotation.png"]) for stem in outlines}
    assert {stem for stem in outlines if not drawn[stem].any()} == set(defects["empty_mask"])
    assert {stem for stem in outlines if drawn[stem].shape != (540, 800)} == set(defects["size_mismatch"])
    assert drawn[defects["size_mismatch"][0]].shape == (539, 800)


def test_only_planted_outlines_are_cut_by_the_frame_and_one_lies_at_its_border(written):
    _, defects, paths, _ = written
    cut = set()
    for name, path in paths.items():
        outline = grey(path) if "_Annotation" in name else np.zeros((3, 3), np.uint8)
        if outline[[0, -1]].any() or outline[:, [0, -1]].any():
            cut.add(name.removesuffix("_Annotation.png"))
    assert cut == set(defects["open_outline"]) | set(defects["near_border"])
    for stem in defects["near_border"]:
        points = np.argwhere(grey(paths[f"{stem}_Annotation.png"]))[:, ::-1]
        moments = cv2.moments(cv2.convexHull(points.astype(np.int32)))
        assert moments["m01"] / moments["m00"] > 0.95 * phantom.HEIGHT


def test_without_defects_every_pair_is_whole(tmp_path):
    folder = phantom.write_phantoms(tmp_path / "set", 40, defects=False, processes=2)
    paths = {path.name: path for path in folder.rglob("malignant/*.png")}
    assert len(paths) == 80
    for name, path in paths.items():
        if "_Annotation" in name:
            assert path.with_name(name.replace("_Annotation", "")).exists()
            outline = grey(path)
            assert outline.shape == (540, 800) and outline.any() and not outline[[0, -1]].any()


def groups(stems):
    """Examinations by the rule of rising suffixes; a number for each stem."""
    found, last, group = {}, -1, -1
    for stem in sorted(stems, key=lambda stem: int(stem.split("_")[0])):
        rank = RANK[stem.split("_")[1]]
        group += rank <= last or group < 0
        found[stem], last = group, rank
    return found


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 300), seed=st.integers(0, 2**40))
def test_names_give_the_examinations_even_without_defective_frames(count, seed):
    entries = phantom.set_entries(count, seed)
    truth = {entry.stem: entry.examination for entry in entries}
    assert len(truth) == count and groups(truth) == truth
    defects = phantom.planted_defects(count, seed)
    planted = [stem for stems in defects.values() for stem in stems]
    assert len(planted) == len(set(planted)) and set(planted) <= set(truth)
    left = {stem: group for stem, group in truth.items() if stem not in planted}
    found = groups(left)
    assert len(set(found.values())) == len(set(left.values())) == len({(found[s], left[s]) for s in left})


def test_defects_depend_on_the_size_of_the_set():
    full = phantom.planted_defects(160, 0)
    assert {kind: len(stems) for kind, stems in full.items()} == phantom.DEFECTS
    assert not any(phantom.planted_defects(11, 0).values())
    assert sum(map(len, phantom.planted_defects(12, 0).values())) == 3
    assert all(phantom.planted_defects(40, 0).values())
    assert phantom.planted_defects(160, 0) == full != phantom.planted_defects(160, 1)


def test_splits_have_the_data_sets_shares_and_leak_examinations():
    entries = phantom.set_entries(1000, 0)
    splits = [entry.split for entry in entries]
    assert [splits.count(name) for name in phantom.SPLITS] == [730, 120, 150]
    homes = {}
    for entry in entries:
        homes.setdefault(entry.examination, set()).add(entry.split)
    assert sum(len(home) > 1 for home in homes.values()) > 30


def test_a_stopped_run_leaves_nothing_behind(tmp_path):
    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        phantom.write_phantoms(tmp_path / "set", 3, processes=1, progress=stop)
    assert not list(tmp_path.iterdir())


def test_a_folder_with_something_in_it_is_refused_and_an_empty_one_used(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    phantom.write_phantoms(folder, 1, processes=1)
    before = files(folder)
    with pytest.raises(FetalsegError, match="delete it"):
        phantom.write_phantoms(folder, 1, processes=1)
    assert files(folder) == before


@pytest.mark.parametrize(("count", "seed"), [(0, 0), (-3, 0), (2.5, 0), (1, -1), (1, "a")])
def test_bad_arguments_are_refused_in_one_sentence(tmp_path, count, seed):
    with pytest.raises(FetalsegError, match=r"^(count|seed) is "):
        phantom.write_phantoms(tmp_path / "set", count, seed)
    assert not list(tmp_path.iterdir())
