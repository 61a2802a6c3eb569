"""From outlines to masks, from images to the canvas, and what the network is given."""

import shutil
import subprocess
import sys

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from fetalseg_helpers import loading, phantom
from fetalseg_helpers import preprocessing as pre
from fetalseg_helpers.workspace import FetalsegError, project_root

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
    assert drawn[-1].any() and pre.is_open(drawn)
    trap = holes_filled(drawn)  # no error, and nothing but the thin line
    assert trap.sum() == (drawn > 0).sum() < 0.1 * truth.sum()
    assert dice(pre.fill_outline(drawn), truth) > 0.995


@pytest.mark.parametrize("cut", ["top", "bottom", "left", "right"])
def test_an_outline_is_filled_whichever_edge_cuts_it(cut):
    x, y = {"top": (200, 40), "bottom": (200, 260), "left": (40, 150), "right": (360, 150)}[cut]
    assert dice(pre.fill_outline(ring(300, 400, x, y, 110)), disc(300, 400, x, y, 110)) > 0.995


def test_an_outline_with_a_gap_is_open_and_filled():
    drawn = ring(200, 200, 100, 100, 60)
    assert not pre.is_open(drawn)
    drawn[95:105, 150:] = 0
    assert pre.is_open(drawn) and holes_filled(drawn).sum() < 0.2 * pre.fill_outline(drawn).sum()
    assert dice(pre.fill_outline(drawn), disc(200, 200, 100, 100, 60)) > 0.99


def test_an_empty_outline_is_refused():
    for empty in (np.zeros((5, 5), np.uint8), np.full((5, 5), 127, np.uint8)):
        with pytest.raises(FetalsegError, match="empty"):
            pre.fill_outline(empty)


def test_a_mask_that_is_filled_already_stays_as_it_is():
    filled = disc(100, 120, 60, 50, 40, 30)
    filled[20:30, 55:60] = 0  # a notch that a hull would close
    assert np.array_equal(pre.fill_outline(filled * 255), filled)
    assert not pre.is_open(filled * 255)
    assert pre.fill_outline(np.full((4, 5), 255, np.uint8)).all()


def test_off_values_are_cut_at_128_before_filling():
    drawn = ring(200, 200, 100, 100, 60)
    noisy = drawn.copy()
    noisy[drawn == 0] = 100  # as of a JPEG
    noisy[drawn == 255] = 180
    assert np.array_equal(pre.fill_outline(noisy), pre.fill_outline(drawn))
    assert pre.is_open(noisy) == pre.is_open(drawn)


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
    assert pre.is_open(drawn) and dice(pre.fill_outline(drawn), expected) > 0.98


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32 - 1), cut=st.sampled_from(["whole", "cut", "border"]))
def test_phantom_outlines_are_filled_to_the_truth_within_their_rim(seed, cut):
    rng = np.random.default_rng(seed)
    examination = phantom.draw_examination(rng)
    pose = (
        phantom.draw_pose(rng, examination) if cut == "whole" else phantom.cut_pose(rng, examination, cut == "border")
    )
    truth, outline = phantom.truth(pose)
    filled = pre.fill_outline(outline)
    assert filled.shape == truth.shape and dice(filled, truth) > 0.99
    near_line = cv2.dilate(outline, np.ones((3, 3), np.uint8)) > 0
    assert not np.any((filled != truth) & ~near_line)  # at most one pixel off, from drawing the hull
    assert not np.any(filled < truth)
    assert pre.is_open(outline) == (cut != "whole")


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
    path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
    return path


def test_a_pair_is_read_with_its_mask_filled(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (90, 100), dtype=np.uint8)
    drawn = ring(90, 100, 50, 45, 30)
    paths = write(tmp_path / "1_HC.png", image), write(tmp_path / "1_HC_Annotation.png", drawn)
    read, mask = pre.read_pair(*paths)
    assert np.array_equal(read, image) and dice(mask, disc(90, 100, 50, 45, 30)) > 0.99


def test_a_pair_of_two_sizes_or_with_nothing_drawn_is_refused_by_name(tmp_path):
    image = write(tmp_path / "1_HC.png", np.ones((90, 100), np.uint8))
    with pytest.raises(FetalsegError, match=r"1_HC_Annotation\.png is 100 × 89, its image 100 × 90"):
        pre.read_pair(image, write(tmp_path / "1_HC_Annotation.png", ring(89, 100, 50, 45, 30)))
    with pytest.raises(FetalsegError, match=r"1_HC_Annotation\.png.*empty"):
        pre.read_pair(image, write(tmp_path / "1_HC_Annotation.png", np.zeros((90, 100), np.uint8)))


# prepared/


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, phantom_set):
    """Run folder with the phantom set at 64 × 48. Read only: copy what you change."""
    run_dir = tmp_path_factory.mktemp("prepared") / "run"
    loading.write_manifest(run_dir, data=str(phantom_set))
    pre.prepare(run_dir, WIDTH, HEIGHT)
    return run_dir


@pytest.fixture
def copied(tmp_path, prepared):
    return shutil.copytree(prepared, tmp_path / "run")


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_prepared_arrays_hold_every_pair_of_the_manifest_in_its_order(prepared, planted):
    manifest, index = loading.read_manifest(prepared), pre.read_index(prepared)
    images, masks = (np.load(prepared / "prepared" / name) for name in ("images.npy", "masks.npy"))
    assert images.shape == masks.shape == (len(manifest), HEIGHT, WIDTH) and images.dtype == masks.dtype == np.uint8
    assert list(index.row) == list(range(len(manifest))) and list(index.image_id) == list(manifest.image_id)
    assert set(index.split) == {"train", "valid", "test"} and set(np.unique(masks)) == {0, 1}
    broken = {*planted["unreadable_image"], *planted["empty_mask"], *planted["size_mismatch"]}
    assert set(index.image_id[index.problem != ""]) == broken
    for row, pair in enumerate(manifest.itertuples()):
        if pair.image_id in broken:
            assert not images[row].any() and not masks[row].any()
            assert f"{pair.image_id}" in index.problem[row]
        else:
            native = cv2.imdecode(np.fromfile(pair.image_path, np.uint8), cv2.IMREAD_GRAYSCALE)
            small = cv2.resize(native, (64, 43), interpolation=cv2.INTER_AREA)  # 540 * 0.08 = 43.2
            assert np.array_equal(images[row, 2:45], small) and not images[row, [0, 1, 45, 46, 47]].any()
            assert 0.03 < masks[row].mean() < 0.7 or pair.image_id in planted["near_border"]


def test_when_no_pair_can_be_used_the_first_reason_is_given(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}_HC.png").write_bytes(b"")
        write(tmp_path / f"{number}_HC_Annotation.png", ring(40, 40, 20, 20, 15))
    loading.write_manifest(tmp_path / "run", data=str(tmp_path))
    with pytest.raises(FetalsegError, match=r"none of the 3 pairs can be used; the first: .*0_HC\.png"):
        pre.prepare(tmp_path / "run", 16, 16)
    assert not (tmp_path / "run" / "prepared" / "settings.json").exists()


def test_prepared_is_reused_silently_and_made_anew_for_another_canvas_or_manifest(copied, capsys, phantom_set):
    before = files(copied / "prepared")
    pre.ensure_prepared(copied)
    pre.ensure_prepared(copied, WIDTH, HEIGHT, "scale", data=str(phantom_set), seed=0)
    assert files(copied / "prepared") == before and capsys.readouterr().out == ""
    pre.ensure_prepared(copied, 32, 16)
    assert np.load(copied / "prepared" / "masks.npy").shape[1:] == (16, 32)
    assert "prepared made, 32 × 16 pixels" in capsys.readouterr().out
    pre.ensure_prepared(copied, seed=1, data=str(phantom_set))
    assert "prepared made, 32 × 16 pixels" in capsys.readouterr().out
    assert list(pre.read_index(copied).split) == list(loading.read_manifest(copied).split)


def test_a_half_made_folder_is_made_again(copied):
    before = files(copied / "prepared")
    (copied / "prepared" / "settings.json").unlink()
    (copied / "prepared" / "images.npy").write_bytes(b"half")
    pre.ensure_prepared(copied, WIDTH, HEIGHT)
    assert files(copied / "prepared") == before


def run_out_of_space(script, *arguments, prefix=()):
    code = f"from fetalseg_helpers import preprocessing, workspace\nimport resource, sys\n{script}"
    command = [*prefix, sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=project_root(), capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes: run it on Linux or macOS")
def test_a_full_disk_while_preparing_leaves_the_old_arrays_and_no_new_ones(copied):
    before = files(copied / "prepared")
    script = """
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    preprocessing.prepare(sys.argv[1], 128, 96)
except workspace.FetalsegError as error:
    print(error)
"""
    done = run_out_of_space(script, copied)
    assert done.stdout.count("\n") == 1 and "could not be written" in done.stdout, done.stderr
    assert "free some space" in done.stdout and ".npy" in done.stdout
    assert files(copied / "prepared") == {name: old for name, old in before.items() if name != "settings.json"}
    pre.ensure_prepared(copied, WIDTH, HEIGHT)
    assert files(copied / "prepared") == before


def test_a_disk_without_room_for_the_arrays_is_refused_before_the_work(tmp_path, copied):
    small = tmp_path / "small disk"
    small.mkdir()
    script = """
import pathlib, shutil
run_dir = pathlib.Path(sys.argv[2]) / "run"
shutil.copytree(sys.argv[1], run_dir, ignore=shutil.ignore_patterns("prepared"))
try:
    preprocessing.prepare(run_dir, 128, 96)
except workspace.FetalsegError as error:
    print(error)
print(sorted(path.name for path in (run_dir / "prepared").iterdir()))
"""
    mount = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=300k none "$0" && exec "$@"', str(small)]
    try:
        possible = subprocess.run([*mount, "true"], capture_output=True).returncode == 0
    except OSError:
        possible = False
    if not possible:
        pytest.skip("a small disk cannot be mounted here: run as root on Linux")
    done = run_out_of_space(script, copied, small, prefix=mount)
    message, left = done.stdout.splitlines()
    assert "1 MB needed, 0 MB free" in message and left == "[]", done.stderr


def test_prepare_does_not_enter_a_file_named_prepared(tmp_path, copied):
    shutil.rmtree(copied / "prepared")
    (copied / "prepared").write_text("mine")
    with pytest.raises(FetalsegError, match="prepared"):
        pre.prepare(copied, WIDTH, HEIGHT)


# what is used


def test_pairs_with_a_problem_or_an_error_are_left_out_and_warnings_kept(copied):
    index = pre.read_index(copied)
    good = list(index.image_id[index.problem == ""])
    assert list(pre.usable(copied).image_id) == good
    rows = [(good[0], "duplicate_image", "error", "x"), (good[1], "open_outline", "warning", "x")]
    rows += [(good[2], "near_border", "note", "x"), ("not in the index", "orphan_mask", "error", "x")]
    table = pd.DataFrame(rows, columns=["image_id", "check", "severity", "detail"])
    table.to_csv(copied / "verification.csv", index=False)
    assert list(pre.usable(copied).image_id) == good[1:]
    by_split = [pre.usable(copied, split) for split in ("train", "valid", "test")]
    assert sorted(name for part in by_split for name in part.image_id) == sorted(good[1:])
    assert [set(part.split) for part in by_split] == [{"train"}, {"valid"}, {"test"}]


def test_a_split_without_a_usable_image_is_named(copied):
    index = pre.read_index(copied)
    rows = [(name, "empty_mask", "error", "x") for name in index.image_id[index.split == "valid"]]
    table = pd.DataFrame(rows, columns=["image_id", "check", "severity", "detail"])
    table.to_csv(copied / "verification.csv", index=False)
    with pytest.raises(FetalsegError, match="no usable image is in the split 'valid'"):
        pre.PreparedDataset(copied, "valid")


@pytest.mark.parametrize("augmented", [False, True])
def test_items_are_float_tensors_in_range(prepared, augmented):
    dataset = pre.PreparedDataset(prepared, "train", augmented)
    assert len(dataset) == len(pre.usable(prepared, "train"))
    for position in range(len(dataset)):
        image, mask = dataset[position]
        assert image.shape == mask.shape == (1, HEIGHT, WIDTH) and image.dtype == mask.dtype == torch.float32
        assert image.min() >= 0 and 0.2 < image.max() <= 1 and set(mask.unique().tolist()) <= {0, 1}


def test_items_without_augmentation_are_the_prepared_pairs(prepared):
    dataset = pre.PreparedDataset(prepared, "test")
    images, masks = (np.load(prepared / "prepared" / name) for name in ("images.npy", "masks.npy"))
    for position, row in enumerate(pre.usable(prepared, "test").row):
        image, mask = dataset[position]
        assert np.array_equal((image[0].numpy() * 255).round(), images[row])
        assert np.array_equal(mask[0].numpy(), masks[row])


def test_an_augmented_item_follows_from_seed_epoch_and_position_alone(prepared):
    def item(seed, epoch, position):
        dataset = pre.PreparedDataset(prepared, "train", augmented=True, seed=seed)
        dataset.epoch = epoch
        return dataset[position][0]

    assert torch.equal(item(3, 1, 2), item(3, 1, 2))
    assert not torch.equal(item(3, 1, 2), item(3, 2, 2))
    assert not torch.equal(item(3, 1, 2), item(4, 1, 2))
    plain = pre.PreparedDataset(prepared, "train")
    before = plain[2][0]
    plain.epoch = 9
    assert torch.equal(plain[2][0], before)


def test_a_loop_over_the_data_set_ends_after_its_last_item(prepared):
    dataset = pre.PreparedDataset(prepared, "test")
    assert sum(1 for _ in dataset) == len(dataset)


def test_a_data_loader_gives_batches(prepared):
    dataset = pre.PreparedDataset(prepared, "train", augmented=True)
    shapes = [tuple(image.shape) for image, _ in torch.utils.data.DataLoader(dataset, batch_size=4)]
    assert shapes[0] == (4, 1, HEIGHT, WIDTH) and sum(shape[0] for shape in shapes) == len(dataset)


# the real outlines


def test_every_real_outline_fills_and_only_the_known_ones_are_open(real_data):
    pairs = loading.load_pairs(real_data)
    opened = []
    for pair in pairs.itertuples():
        outline = loading.read_grey(pair.mask_path)
        filled = pre.fill_outline(outline)
        assert filled.mean() > 0.03 and filled.sum() > 5 * (outline > 0).sum(), pair.image_id
        if pre.is_open(outline):
            opened.append(pair.image_id)
    assert {"231_HC", "427_2HC", "977_HC"} <= set(opened)
    assert len(opened) == (3 if len(pairs) == 850 else 4)
