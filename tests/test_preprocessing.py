"""From outlines to masks, from images to the canvas, and what the network is given."""

import shutil
import sys
from functools import partial
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from shapes import contents, encoded

from fetalseg_helpers import loading, verification
from fetalseg_helpers import preprocessing as pre
from fetalseg_helpers.phantoms import frames
from fetalseg_helpers.running import stages
from fetalseg_helpers.workspace import FetalsegError, read_json

WIDTH, HEIGHT = 64, 48
sizes = st.integers(1, 40)


def dice(a, b):
    a, b = np.asarray(a, bool), np.asarray(b, bool)
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def disc(height, width, x, y, a, b=None):
    rows, columns = np.mgrid[:height, :width]
    return np.uint8(((columns - x) / a) ** 2 + ((rows - y) / (b or a)) ** 2 <= 1)


def ring(height, width, x, y, a, line=3):
    return 255 * (disc(height, width, x, y, a) - disc(height, width, x, y, a - line))


def holes_filled(outline):
    return ndimage.binary_fill_holes(outline > 127).astype(np.uint8)


def is_open(outline):
    return pre.is_open(outline, pre.fill_outline(outline))


# outlines


def test_binarise_cuts_at_128():
    assert pre.binarise(np.uint8([[0, 1, 127, 128, 254, 255]])).tolist() == [[0, 0, 0, 1, 1, 1]]
    assert pre.binarise(np.uint8([[0, 1, 127]]), threshold=1).tolist() == [[0, 1, 1]]
    assert pre.binarise([[0, 255]]).dtype == np.uint8


def test_a_small_outline_is_filled_with_its_line_inside():
    drawn = 255 * np.uint8(
        [
            [0, 0, 0, 0, 0, 0, 0],
            [0, 0, 1, 1, 1, 0, 0],
            [0, 1, 0, 0, 0, 1, 0],
            [0, 1, 0, 0, 0, 1, 0],
            [0, 1, 0, 0, 0, 1, 0],
            [0, 0, 1, 1, 1, 0, 0],
            [0, 0, 0, 0, 0, 0, 0],
        ]
    )
    expected = np.zeros((7, 7), np.uint8)
    expected[1:6, 1:6] = 1
    expected[[1, 1, 5, 5], [1, 5, 1, 5]] = 0
    assert pre.fill_outline(drawn).tolist() == expected.tolist()


@pytest.mark.parametrize("radius", [5, 8, 10, 15, 40, 150])
def test_a_closed_outline_is_filled_whatever_its_size(radius):
    filled, truth = pre.fill_outline(ring(400, 500, 240, 200, radius)), disc(400, 500, 240, 200, radius)
    assert filled.dtype == np.uint8 and set(np.unique(filled)) == {0, 1}
    assert not np.any(filled < truth)
    assert np.sum(filled > truth) < 0.5 * 2 * np.pi * radius  # half a pixel around, from drawing the hull


def test_an_outline_cut_by_the_frame_is_filled_where_a_hole_filler_fails_silently():
    drawn, truth = ring(300, 400, 200, 250, 120), disc(300, 400, 200, 250, 120)
    assert drawn[-1].any() and is_open(drawn)
    trap = holes_filled(drawn)  # no error, and nothing but the thin line
    assert trap.sum() == (drawn > 0).sum() < 0.1 * truth.sum()
    assert dice(pre.fill_outline(drawn), truth) > 0.995


@pytest.mark.parametrize("cut", ["top", "bottom", "left", "right"])
def test_an_outline_is_filled_whichever_edge_cuts_it(cut):
    x, y = {"top": (200, 40), "bottom": (200, 260), "left": (40, 150), "right": (360, 150)}[cut]
    assert dice(pre.fill_outline(ring(300, 400, x, y, 110)), disc(300, 400, x, y, 110)) > 0.995


def test_an_outline_with_a_gap_is_open_and_filled():
    drawn = ring(200, 200, 100, 100, 60)
    assert not is_open(drawn)
    drawn[95:105, 150:] = 0
    assert is_open(drawn) and holes_filled(drawn).sum() < 0.2 * pre.fill_outline(drawn).sum()
    assert dice(pre.fill_outline(drawn), disc(200, 200, 100, 100, 60)) > 0.99


def test_an_empty_outline_is_refused():
    for empty in (np.zeros((5, 5), np.uint8), np.full((5, 5), 127, np.uint8)):
        with pytest.raises(FetalsegError, match="empty"):
            pre.fill_outline(empty)


def test_a_mask_that_is_filled_already_stays_as_it_is():
    filled = disc(100, 120, 60, 50, 40, 30)
    filled[20:30, 55:60] = 0  # a notch that a hull would close
    assert np.array_equal(pre.fill_outline(filled * 255), filled)
    assert not is_open(filled * 255)
    assert pre.fill_outline(np.full((4, 5), 255, np.uint8)).all()


def test_off_values_are_cut_at_128_before_filling():
    drawn = ring(200, 200, 100, 100, 60)
    noisy = drawn.copy()
    noisy[drawn == 0] = 100  # as of a JPEG
    noisy[drawn == 255] = 180
    assert np.array_equal(pre.fill_outline(noisy), pre.fill_outline(drawn))
    assert is_open(noisy) == is_open(drawn)


@pytest.mark.parametrize("drawn", [ring(200, 200, 100, 100, 60), ring(200, 200, 100, 0, 60)], ids=["closed", "cut off"])
def test_a_stray_pixel_does_not_change_the_region(drawn):
    filled, stray = pre.fill_outline(drawn), drawn.copy()
    stray[190, 10] = 255
    difference = pre.fill_outline(stray) != filled
    assert filled.sum() > 3000 and difference.sum() <= 1 and not difference[:180].any()


def test_two_filled_regions_stay_two():
    discs = disc(200, 200, 50, 50, 20) | disc(200, 200, 150, 150, 20)
    assert np.array_equal(pre.fill_outline(discs * np.uint8(255)), discs) and not pre.is_line(discs)


def test_an_outline_that_the_frame_cuts_in_two_is_one_region():
    drawn = cv2.ellipse(np.zeros((100, 200), np.uint8), (100, 50), (70, 60), 0, 0, 360, 255, 2)
    expected = cv2.ellipse(np.zeros((100, 200), np.uint8), (100, 50), (71, 61), 0, 0, 360, 1, -1)
    assert is_open(drawn) and dice(pre.fill_outline(drawn), expected) > 0.98


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), cut=st.sampled_from(["whole", "cut", "border"]))
def test_phantom_outlines_are_filled_to_the_truth_within_their_rim(seed, cut):
    rng = np.random.default_rng(seed)
    examination = frames.draw_examination(rng)
    if cut == "whole":
        pose = frames.draw_pose(rng, examination)
    else:
        pose = frames.cut_pose(rng, examination, near_border=cut == "border")
    truth, outline = frames.truth(pose)
    filled = pre.fill_outline(outline)
    assert filled.shape == truth.shape and dice(filled, truth) > 0.99
    near_line = cv2.dilate(outline, np.ones((3, 3), np.uint8)) > 0
    assert not np.any((filled != truth) & ~near_line)  # at most one pixel off, from drawing the hull
    assert not np.any(filled < truth)
    assert is_open(outline) == (cut != "whole")


# intensities and the canvas


def test_normalise_maps_0_to_0_and_255_to_1_for_every_image():
    assert pre.normalise(np.uint8([[0, 51, 255]]))[0] == pytest.approx([0, 0.2, 1])
    assert pre.normalise(np.uint8([[7, 7]]))[0] == pytest.approx([7 / 255, 7 / 255])
    assert pre.normalise(np.uint8([[7]])).dtype == np.float32


@pytest.mark.parametrize(
    ("native", "canvas", "fit", "expected"),
    [
        ((800, 540), (400, 270), "scale", (400, 270, 0, 0)),
        ((800, 540), (256, 192), "scale", (256, 173, 0, 9)),  # 540 * 0.32 = 172.8; (192 - 173) // 2
        ((540, 800), (256, 192), "scale", (130, 192, 63, 0)),  # 540 * 0.24 = 129.6
        ((800, 540), (800, 544), "pad", (800, 540, 0, 2)),
        ((800, 563), (800, 544), "pad", (800, 563, 0, -10)),  # (544 - 563) // 2
        ((738, 539), (800, 544), "pad", (738, 539, 31, 2)),
        ((4000, 1), (16, 16), "scale", (16, 1, 0, 7)),
    ],
)
def test_a_placement_worked_by_hand(native, canvas, fit, expected):
    assert pre.place(*native, *canvas, fit) == expected


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(16, 1024), st.integers(16, 1024))
def test_a_scaled_image_fills_one_side_and_is_centred_in_the_other(native_width, native_height, width, height):
    scaled_width, scaled_height, left, top = pre.place(native_width, native_height, width, height)
    assert scaled_width == width or scaled_height == height
    assert 1 <= scaled_width <= width and 1 <= scaled_height <= height
    assert abs(2 * left + scaled_width - width) <= 1 and abs(2 * top + scaled_height - height) <= 1
    if min(scaled_width, scaled_height) > 1:
        scale = min(width / native_width, height / native_height)
        assert abs(scaled_width - native_width * scale) <= 0.5 and abs(scaled_height - native_height * scale) <= 0.5


def test_halving_averages_blocks_of_four_and_pads_with_zero():
    image = np.uint8([[10, 20, 0, 100], [30, 40, 100, 200]])
    assert pre.to_canvas(image, 2, 3).tolist() == [[0, 0], [25, 100], [0, 0]]


def test_padding_centres_the_image_and_cropping_takes_its_middle():
    image = np.arange(1, 7, dtype=np.uint8).reshape(2, 3)
    assert pre.to_canvas(image, 5, 2, "pad").tolist() == [[0, 1, 2, 3, 0], [0, 4, 5, 6, 0]]
    assert pre.to_canvas(image, 1, 4, "pad").tolist() == [[0], [2], [5], [0]]
    assert pre.from_canvas(np.uint8([[0], [2], [5], [0]]), 3, 2, "pad").tolist() == [[0, 2, 0], [0, 5, 0]]


@given(sizes, sizes, sizes, sizes, st.sampled_from([np.uint8, np.float32]))
def test_padding_gives_back_every_pixel_that_was_not_cropped(native_width, native_height, width, height, kind):
    image = np.arange(1, native_width * native_height + 1).reshape(native_height, native_width).astype(kind)
    canvas = pre.to_canvas(image, width, height, "pad")
    assert canvas.shape == (height, width) and canvas.dtype == kind

    def kept(native, size):
        place = np.arange(native) + (size - native) // 2
        return (place >= 0) & (place < size)

    expected = np.where(np.outer(kept(native_height, height), kept(native_width, width)), image, 0)
    assert np.array_equal(pre.from_canvas(canvas, native_width, native_height, "pad"), expected)
    assert (canvas > 0).sum() == (expected > 0).sum()


@settings(max_examples=40)
@given(
    native=st.tuples(st.integers(300, 900), st.integers(300, 900)),
    canvas=st.tuples(st.integers(96, 256), st.integers(96, 256)),
    a=st.floats(0.2, 0.45),
    b=st.floats(0.2, 0.45),
)
def test_a_smooth_mask_comes_back_from_the_canvas_nearly_whole(native, canvas, a, b):
    (width, height), size = native, min(native)
    mask = disc(height, width, width / 2, height / 2, a * size, b * size)
    small = pre.mask_to_canvas(mask, *canvas)
    assert small.shape == canvas[::-1] and set(np.unique(small)) <= {0, 1}
    back = pre.from_canvas(small.astype(np.float32), width, height)
    assert back.shape == mask.shape and dice(back >= 0.5, mask) > 0.95


@given(sizes, sizes, st.integers(16, 64), st.integers(16, 64), st.sampled_from(["scale", "pad"]))
def test_shapes_hold_for_any_size(native_width, native_height, width, height, fit):
    image = np.full((native_height, native_width), 200, np.uint8)
    canvas = pre.to_canvas(image, width, height, fit)
    assert canvas.shape == (height, width) and set(np.unique(canvas)) <= {0, 200} and canvas.any()
    assert pre.from_canvas(canvas, native_width, native_height, fit).shape == image.shape


def test_a_mask_pixel_is_set_where_at_least_half_of_it_is_covered():
    mask = np.uint8([[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0]])
    assert pre.mask_to_canvas(mask, 3, 1).tolist() == [[1, 1, 0]]


# augmentation


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_image_and_mask_stay_aligned(seed):
    mask = disc(96, 128, 58, 40, 30, 20) | disc(96, 128, 90, 60, 12)
    image, moved = pre.augment(mask * np.uint8(255), mask, np.random.default_rng(seed), shadow=0)
    assert image.shape == moved.shape == mask.shape and image.dtype == moved.dtype == np.uint8
    assert set(np.unique(moved)) == {0, 1}
    assert dice(image > 0.4 * image.max(), moved) > 0.97


@settings(max_examples=100)
@given(st.integers(0, 2**32 - 1))
def test_up_stays_up(seed):
    mask = np.zeros((96, 128), np.uint8)
    mask[20:30, 50:78], mask[66:76, 50:78] = 1, 2
    moved = pre.augment(mask, mask, np.random.default_rng(seed))[1]
    above, below = (np.nonzero(moved == label)[0].mean() for label in (1, 2))
    assert below - above > 0.75 * 46 * np.cos(np.radians(25)) - 2


def test_without_turning_zooming_and_shifting_only_the_exact_mirror_image_is_left():
    mask = np.random.default_rng(0).integers(0, 2, (9, 14), dtype=np.uint8)
    mirrored = []
    for seed in range(200):
        moved = pre.augment(mask, mask, np.random.default_rng(seed), rotation=0, zoom=0, shift=0)[1]
        mirrored.append(np.array_equal(moved, mask[:, ::-1]))
        assert mirrored[-1] or np.array_equal(moved, mask)
    assert 0.35 < np.mean(mirrored) < 0.65


def test_each_variation_can_be_left_out_and_all_of_them_leave_the_pair_as_it_is():
    rng = np.random.default_rng(0)
    image, mask = rng.integers(0, 256, (24, 36), dtype=np.uint8), disc(24, 36, 18, 12, 8)
    still = {"rotation": 0, "zoom": 0, "shift": 0, "mirror": False, "gain": 1, "gamma": 1, "shadow": 0}
    for seed in range(20):
        same = pre.augment(image, mask, np.random.default_rng(seed), **still)
        assert np.array_equal(same[0], image) and np.array_equal(same[1], mask)


def test_a_shadow_darkens_a_stripe_from_top_to_bottom_and_leaves_the_mask_alone():
    image, mask = np.full((40, 60), 200, np.uint8), disc(40, 60, 30, 20, 12)
    still = {"rotation": 0, "zoom": 0, "shift": 0, "mirror": False, "gain": 1, "gamma": 1}
    cast = 0
    for seed in range(100):
        shaded, same = pre.augment(image, mask, np.random.default_rng(seed), **still)
        assert np.array_equal(same, mask) and (shaded == shaded[:1]).all() and shaded.max() <= 200
        cast += shaded.min() < 180
        assert shaded.max() > 150  # never the whole frame
    assert 35 < cast < 65


def test_the_same_generator_gives_the_same_variation_and_another_one_another():
    rng = np.random.default_rng(1)
    image, mask = rng.integers(0, 256, (48, 64), dtype=np.uint8), disc(48, 64, 30, 20, 12)
    kept = image.copy(), mask.copy()
    one, same, other = (pre.augment(image, mask, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert np.array_equal(one[0], same[0]) and np.array_equal(one[1], same[1])
    assert not np.array_equal(one[0], other[0]) and not np.array_equal(one[1], other[1])
    assert np.array_equal(image, kept[0]) and np.array_equal(mask, kept[1])


# pairs


def write(path, image):
    path.write_bytes(encoded(image))
    return path


def test_a_pair_is_read_with_its_mask_filled(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (90, 100), dtype=np.uint8)
    drawn = ring(90, 100, 50, 45, 30)
    paths = write(tmp_path / "1_HC.png", image), write(tmp_path / "1_HC_Annotation.png", drawn)
    read, mask = pre.read_pair(*paths)
    assert np.array_equal(read, image) and dice(mask, disc(90, 100, 50, 45, 30)) > 0.99


def test_a_pair_of_two_sizes_is_refused_by_name_and_an_empty_mask_stays_empty(tmp_path):
    image = write(tmp_path / "1_HC.png", np.ones((90, 100), np.uint8))
    with pytest.raises(FetalsegError, match=r"1_HC_Annotation\.png is 100 × 89, its image 100 × 90"):
        pre.read_pair(image, write(tmp_path / "1_HC_Annotation.png", ring(89, 100, 50, 45, 30)))
    _, mask = pre.read_pair(image, write(tmp_path / "1_HC_Annotation.png", np.zeros((90, 100), np.uint8)))
    assert mask.shape == (90, 100) and not mask.any()


# prepared/

BROKEN = {"5_HC": "cut off", "9_HC": "empty", "13_HC": "is 160 × 107, its image 160 × 108"}


@pytest.fixture(scope="module")
def data(tmp_path_factory, draw_pairs):
    """Folder of 30 small pairs, three of which cannot be used. Read only."""
    folder = tmp_path_factory.mktemp("data") / "malignant"
    draw_pairs(folder)
    whole = (folder / "5_HC.png").read_bytes()
    (folder / "5_HC.png").write_bytes(whole[: len(whole) // 2])
    write(folder / "9_HC_Annotation.png", np.zeros((108, 160), np.uint8))
    write(folder / "13_HC_Annotation.png", cv2.imread(str(folder / "13_HC_Annotation.png"), 0)[:-1])
    return folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, data):
    """Run folder with these pairs at 64 × 48. Read only: copy what you change."""
    run_dir = tmp_path_factory.mktemp("prepared") / "run"
    loading.write_manifest(run_dir, data=str(data))
    pre.prepare(run_dir, WIDTH, HEIGHT)
    return run_dir


@pytest.fixture
def copied(tmp_path, prepared):
    return shutil.copytree(prepared, tmp_path / "run")


def test_prepared_arrays_hold_every_pair_of_the_manifest_in_its_order(prepared):
    manifest = loading.read_manifest(prepared)
    problems = read_json(prepared / "prepared" / "settings.json")["problems"]
    images, masks = (np.load(prepared / "prepared" / name) for name in ("images.npy", "masks.npy"))
    assert images.shape == masks.shape == (30, HEIGHT, WIDTH) and images.dtype == masks.dtype == np.uint8
    assert set(np.unique(masks)) == {0, 1} and set(problems) == set(BROKEN)
    for row, pair in enumerate(manifest.itertuples()):
        if pair.image_id in BROKEN:
            assert not images[row].any() and not masks[row].any()
            assert f"{pair.image_id}" in problems[pair.image_id] and BROKEN[pair.image_id] in problems[pair.image_id]
        else:
            native = cv2.imread(str(pair.image_path), cv2.IMREAD_GRAYSCALE)
            small = cv2.resize(native, (64, 43), interpolation=cv2.INTER_AREA)  # 108 * 0.4 = 43.2
            assert np.array_equal(images[row, 2:45], small) and not images[row, [0, 1, 45, 46, 47]].any()
            whole = pre.mask_to_canvas(pre.read_pair(pair.image_path, pair.mask_path)[1], WIDTH, HEIGHT)
            assert np.array_equal(masks[row], whole) and 0.03 < whole.mean() < 0.7


def test_another_way_to_fill_makes_other_masks(copied):
    before = np.load(copied / "prepared" / "masks.npy")
    pre.prepare(copied, WIDTH, HEIGHT, fill=lambda outline: pre.binarise(outline))
    after = np.load(copied / "prepared" / "masks.npy")
    assert 0 < after.sum() < 0.5 * before.sum() and (after <= before).all()  # the lines alone


def test_when_no_pair_can_be_used_the_first_reason_is_given_and_nothing_is_left(tmp_path):
    for number in range(3):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / f"{number}_HC.png").write_bytes(b"")
        write(tmp_path / "data" / f"{number}_HC_Annotation.png", ring(40, 40, 20, 20, 15))
    loading.write_manifest(tmp_path / "run", data=str(tmp_path / "data"))
    with pytest.raises(FetalsegError, match=r"none of the 3 pairs can be used; the first: .*0_HC\.png"):
        pre.prepare(tmp_path / "run", 16, 16)
    assert set(contents(tmp_path / "run")) == {"manifest.csv", "data.json"}
    with pytest.raises(FetalsegError, match="run notebook 02"):
        pre.read_canvas(tmp_path / "run")


def test_what_is_prepared_is_used_silently_whatever_is_not_asked(prepared, capsys, data):
    before = contents(prepared)
    for asked in ({}, {"width": WIDTH}, {"fit": "scale", "seed": 0}, {"height": HEIGHT, "data": str(data)}):
        stages.ensure_prepared(prepared, **asked)
    assert contents(prepared) == before and capsys.readouterr().out == ""


def test_what_is_missing_is_made_as_asked_and_said_in_one_line(tmp_path, data, capsys):
    stages.ensure_prepared(tmp_path / "run", 32, 16, "pad", data=str(data))
    assert pre.read_canvas(tmp_path / "run") == {"width": 32, "height": 16, "fit": "pad"}
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("manifest.csv made: 30 pairs (notebook 01 explains it).")
    assert second.endswith("prepared made, 32 × 16 pixels (notebook 02 explains it).")
    assert np.load(tmp_path / "run" / "prepared" / "masks.npy").shape == (30, 16, 32)


def test_prepare_makes_anew_at_another_size(copied):
    pre.prepare(copied, 32, 16)
    assert pre.read_canvas(copied) == {"width": 32, "height": 16, "fit": "scale"}
    assert np.load(copied / "prepared" / "images.npy").shape == (30, 16, 32)


def test_a_half_made_folder_is_made_again(copied):
    before = contents(copied)
    (copied / "prepared" / "settings.json").unlink()
    (copied / "prepared" / "images.npy").write_bytes(b"half")
    stages.ensure_prepared(copied, WIDTH, HEIGHT)
    assert contents(copied) == before


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes: run it on Linux or macOS")
def test_a_full_disk_while_preparing_is_one_sentence_and_leaves_everything_as_it_was(copied):
    import resource

    before = contents(copied)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(FetalsegError, match=r"could not be written .*: free some space") as caught:
            pre.prepare(copied, 128, 96)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value) and contents(copied) == before
    stages.ensure_prepared(copied, WIDTH, HEIGHT)
    assert contents(copied) == before


def test_a_disk_without_room_for_the_arrays_is_refused_before_the_work(copied, monkeypatch):
    """A map on a full disk is no error when it is opened: the process would be killed in the middle of the work."""
    before = contents(copied)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=300_000))
    monkeypatch.setattr(pre, "read_pair", lambda *_: pytest.fail("work was done"))
    with pytest.raises(FetalsegError, match="run needs 1 MB: free some space"):
        pre.prepare(copied, 128, 96)
    assert contents(copied) == before


def test_prepare_does_not_enter_a_file_named_prepared(copied):
    shutil.rmtree(copied / "prepared")
    (copied / "prepared").write_text("mine")
    with pytest.raises(FetalsegError, match="prepared"):
        pre.prepare(copied, WIDTH, HEIGHT)
    assert (copied / "prepared").read_text() == "mine"


# the data set


def dataset(run_dir, split, **options):
    return pre.PreparedDataset(run_dir, verification.usable_pairs(run_dir, split), **options)


@pytest.mark.parametrize("augmentation", [None, pre.augment])
def test_items_are_float_tensors_in_range(prepared, augmentation):
    items = dataset(prepared, "train", augmentation=augmentation)
    assert len(items) == len(verification.usable_pairs(prepared, "train")) > 15
    for position in range(len(items)):
        image, mask = items[position]
        assert image.shape == mask.shape == (1, HEIGHT, WIDTH) and image.dtype == mask.dtype == torch.float32
        assert image.min() >= 0 and 0.2 < image.max() <= 1 and set(mask.unique().tolist()) <= {0, 1}


def test_items_without_augmentation_are_the_prepared_pairs_in_the_order_that_is_given(prepared):
    images, masks = (np.load(prepared / "prepared" / name) for name in ("images.npy", "masks.npy"))
    pairs = verification.usable_pairs(prepared, "train").iloc[::-3]  # any rows, in any order
    items = pre.PreparedDataset(prepared, pairs)
    assert list(items.pairs.image_id) == list(pairs.image_id) and list(items.pairs.index) == list(range(len(pairs)))
    assert len(items) == len(pairs) > 5
    for position, row in enumerate(pairs.row):
        image, mask = items[position]
        assert np.array_equal((image[0].numpy() * 255).round(), images[row])
        assert np.array_equal(mask[0].numpy(), masks[row])
        assert np.array_equal(items.images[row], images[row]) and np.array_equal(items.masks[row], masks[row])


def test_the_augmentation_that_is_given_is_the_one_that_is_used(prepared):
    def inverted(image, mask, rng):
        return 255 - image, 1 - mask

    plain, other = (dataset(prepared, "test", augmentation=augmentation) for augmentation in (None, inverted))
    for (image, mask), (other_image, other_mask) in zip(plain, other, strict=True):
        assert torch.allclose(image + other_image, torch.ones(1)) and torch.equal(
            mask + other_mask, torch.ones_like(mask)
        )
    still = partial(pre.augment, rotation=0, zoom=0, shift=0, mirror=False, gain=1, gamma=1, shadow=0)
    assert torch.equal(dataset(prepared, "test", augmentation=still)[0][0], plain[0][0])


def test_an_augmented_item_follows_from_seed_epoch_and_position_alone(prepared):
    def item(seed, epoch, position):
        items = dataset(prepared, "train", augmentation=pre.augment, seed=seed)
        items.epoch = epoch
        return items[position][0]

    assert torch.equal(item(3, 1, 2), item(3, 1, 2))
    assert not torch.equal(item(3, 1, 2), item(3, 2, 2))
    assert not torch.equal(item(3, 1, 2), item(4, 1, 2))
    twice = pre.PreparedDataset(prepared, verification.usable_pairs(prepared).iloc[[0, 0]], pre.augment)
    assert not torch.equal(twice[0][0], twice[1][0])  # one image at two places
    plain = dataset(prepared, "train")
    before = plain[2][0]
    plain.epoch = 9
    assert torch.equal(plain[2][0], before)


def test_a_change_of_an_item_changes_nothing_on_the_disk(prepared):
    before = contents(prepared)
    items = dataset(prepared, "test")
    for tensor in items[0]:
        tensor += 1
    assert contents(prepared) == before and items[0][0].max() <= 1


def test_a_loop_over_the_data_set_ends_after_its_last_item(prepared):
    items = dataset(prepared, "test")
    assert sum(1 for _ in items) == len(items)


def test_a_data_loader_gives_batches(prepared):
    items = dataset(prepared, "train", augmentation=pre.augment)
    shapes = [tuple(image.shape) for image, _ in torch.utils.data.DataLoader(items, batch_size=4)]
    assert shapes[0] == (4, 1, HEIGHT, WIDTH) and sum(shape[0] for shape in shapes) == len(items)
