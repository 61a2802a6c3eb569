"""The circumference of drawn ellipses against their length, tables of pixel sizes, and agreement by hand."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from shapes import ellipse_mask

from fetalseg_helpers import ellipses, preprocessing
from fetalseg_helpers.beyond_dice import circumference
from fetalseg_helpers.beyond_dice.scores import complete
from fetalseg_helpers.workspace import FetalsegError

few = settings(max_examples=30)
LINE = 1.27  # px from the middle of the drawn line to its edge
axes = st.floats(45, 95), st.floats(0.6, 1), st.floats(0, 180)


def perimeter(a, b):
    """Length of an ellipse, added up along its angle."""
    return quad(lambda angle: np.hypot(a * np.sin(angle), b * np.cos(angle)), 0, 2 * np.pi)[0]


def head(x, y, a, b, turn, size=(240, 360)):
    """The mask of a head whose ellipse was drawn with the line of the data set, and filled."""
    return ellipse_mask(x, y, a + LINE, b + LINE, turn, size)


# The circumference


@given(st.floats(165, 195), st.floats(110, 130), *axes)
@few
def test_the_circumference_of_a_mask_is_the_length_of_the_ellipse_that_was_drawn(x, y, a, ratio, turn):
    found = circumference.head_circumference(head(x, y, a, ratio * a, turn))
    assert found == pytest.approx(perimeter(a, ratio * a), rel=0.005)


@pytest.mark.parametrize(("a", "b", "turn"), [(190, 150, 20), (120, 85, 95), (240, 200, 160)])
def test_the_circumference_of_a_whole_frame_is_right_to_a_thousandth(a, b, turn):
    found = circumference.head_circumference(head(400.3, 269.6, a, b, turn, (540, 800)))
    assert found == pytest.approx(perimeter(a, b), rel=0.001)


def test_the_circumference_runs_along_the_middle_of_the_line():
    outer, inner = (ellipse_mask(180, 120, 70 + more, 50 + more, 30, (240, 360)) for more in (LINE, -LINE))
    filled = preprocessing.fill_outline((outer - inner) * np.uint8(255))
    assert np.array_equal(filled, outer)
    assert circumference.head_circumference(filled) == pytest.approx(perimeter(70, 50), rel=0.003)
    assert perimeter(70 + LINE, 50 + LINE) > 1.015 * perimeter(70, 50)  # so that the line matters


@given(st.floats(0.1, 0.9), *axes)
@few
def test_the_circumference_of_a_head_that_the_frame_cuts_off_is_that_of_the_whole(below, a, ratio, turn):
    b = ratio * a
    for centre in ((180, 240 - below * b), (below * b, 120)):
        mask = head(*centre, a, b, turn)
        assert mask[[0, -1]].any() or mask[:, [0, -1]].any()
        assert circumference.head_circumference(mask) == pytest.approx(perimeter(a, b), rel=0.05)


def test_the_circumference_is_that_of_the_largest_region_and_not_of_the_longest_border():
    mask = head(100, 120, 40, 30, 0)
    mask[5, 5:355] = 1  # 350 px long and one high
    mask[180:200, 250:270] = 1
    assert circumference.head_circumference(mask) == pytest.approx(perimeter(40, 30), rel=0.005)


@pytest.mark.parametrize("mask", [np.zeros((30, 40)), np.ones((30, 40)), np.pad([[1, 1], [1, 1]], 9), np.ones((1, 1))])
def test_where_no_ellipse_fits_there_is_none_and_the_circumference_is_0(mask):
    mask = mask.astype(np.uint8)
    assert ellipses.border_ellipse(mask) is None and circumference.head_circumference(mask) == 0


def test_an_ellipse_far_longer_than_its_border_is_none():
    mask = np.zeros((540, 800), np.uint8)
    mask[200, 100:392] = mask[201, 390:392] = 1  # least squares: half an axis of 770 px
    assert ellipses.border_ellipse(mask) is None and circumference.head_circumference(mask) == 0


@pytest.mark.parametrize("size", [(2, 3), (1, 7), (3, 3)])
def test_the_circumference_of_a_speck_is_a_small_number(size):
    assert 0 < circumference.head_circumference(np.pad(np.ones(size, np.uint8), 9)) < 20


# Pixel sizes


HC18 = "filename,pixel size(mm),head circumference (mm)\n000_HC.png,0.0691358,44.3\n010_2HC.png,0.2,175.5\n"
OURS = "image_id,pixel_mm,head_circumference_mm\n000_HC,0.0691358,44.3\n010_2HC,0.2,175.5\n"


def written(tmp_path, text):
    path = tmp_path / "pixel_sizes.csv"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("text", [HC18, OURS])
def test_pixel_sizes_are_read_from_hc18s_table_and_from_ours(tmp_path, text):
    sizes = circumference.read_pixel_sizes(written(tmp_path, text))
    assert list(sizes.index) == ["000_HC", "010_2HC"] and sizes.index.name == "image_id"
    assert sizes.pixel_mm.tolist() == [0.0691358, 0.2] and sizes.head_circumference_mm.tolist() == [44.3, 175.5]


def test_a_circumference_may_be_unknown_and_a_name_may_be_a_number(tmp_path):
    sizes = circumference.read_pixel_sizes(written(tmp_path, "image_id,pixel_mm\n007,0.1\n12,0.2\n"))
    assert list(sizes.index) == ["007", "12"] and sizes.head_circumference_mm.isna().all()
    some = circumference.read_pixel_sizes(
        written(tmp_path, "pixel_mm,head_circumference_mm,image_id\n0.1,,a\n0.2,99,b\n")
    )
    assert some.loc["b"].tolist() == [0.2, 99] and np.isnan(some.head_circumference_mm["a"])


def test_only_the_ending_of_an_image_file_is_taken_off_a_name(tmp_path):
    text = "image_id,pixel_mm\nscan.1,0.1\nscan.2,0.2\nscan.3.PNG,0.3\nscan.4.jpeg,0.4\n"
    sizes = circumference.read_pixel_sizes(written(tmp_path, text))
    assert list(sizes.index) == ["scan.1", "scan.2", "scan.3", "scan.4"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("image_id,mm\n1_HC,0.1\n", "has no column 'pixel_mm' or 'pixel size\\(mm\\)'"),
        ("name,pixel_mm\n1_HC,0.1\n", "has no column 'image_id' or 'filename'"),
        ("image_id;pixel_mm\n1_HC;0.1\n", "has no column 'image_id'"),
        ("image_id,pixel_mm\n1_HC,0.1\n2_HC,0.1\n1_HC,0.2\n", "has 1_HC twice"),
        ("filename,pixel size(mm)\n1_HC.png,0.1\n1_HC.jpg,0.1\n", "has 1_HC twice"),
        ("image_id,pixel_mm\n1_HC,0.1\n2_HC,0\n", "pixel size of 2_HC is no number between 0 and 100 mm"),
        ("image_id,pixel_mm\n1_HC,-0.1\n", "pixel size of 1_HC is no number between 0 and 100 mm"),
        ("image_id,pixel_mm\n1_HC,\n", "pixel size of 1_HC is no number between 0 and 100 mm"),
        ("image_id,pixel_mm\n1_HC,fine\n", "pixel size of 1_HC is no number between 0 and 100 mm"),
        ("", "cannot be read as a table of pixel sizes"),
        ("image_id,pixel_mm\n1,2,3,4\n5\n1,2,3,4,5,6\n", "cannot be read as a table of pixel sizes"),
    ],
)
def test_what_is_no_table_of_pixel_sizes_is_refused_with_its_reason(tmp_path, text, reason):
    with pytest.raises(FetalsegError, match=rf"pixel_sizes\.csv.*{reason}"):
        circumference.read_pixel_sizes(written(tmp_path, text))


def test_a_missing_file_and_one_that_is_no_text_are_refused(tmp_path):
    with pytest.raises(FetalsegError, match=r"pixel_sizes\.csv cannot be read.*No such file"):
        circumference.read_pixel_sizes(tmp_path / "pixel_sizes.csv")
    (tmp_path / "pixel_sizes.csv").write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe\x00")
    with pytest.raises(FetalsegError, match=r"pixel_sizes\.csv cannot be read"):
        circumference.read_pixel_sizes(tmp_path / "pixel_sizes.csv")


def test_the_table_beside_the_data_is_found_and_a_given_one_goes_first(tmp_path):
    data, run = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    run.mkdir()
    (run / "data.json").write_text(json.dumps({"root": str(data)}), encoding="utf-8")
    none = circumference.find_pixel_sizes(run)
    assert none.empty and list(none.columns) == ["pixel_mm", "head_circumference_mm"]
    (data / "training_set_pixel_size_and_HC.csv").write_text(HC18, encoding="utf-8")
    assert circumference.find_pixel_sizes(run).pixel_mm["010_2HC"] == 0.2
    given_table = written(tmp_path, OURS.replace("0.2,", "0.3,"))
    assert circumference.find_pixel_sizes(run, str(given_table)).pixel_mm["010_2HC"] == 0.3


# Millimetres

PX = ["circumference_px", "truth_circumference_px"]


def scored(**circumferences):
    """A table of scores: (circumference, true circumference) in px by name."""
    table = pd.DataFrame.from_dict(circumferences, "index", columns=PX)
    return table.rename_axis("image_id").reset_index().assign(examination="A")


def sizes_of(**rows):
    return pd.DataFrame.from_dict(rows, "index", columns=["pixel_mm", "head_circumference_mm"], dtype=float)


def test_circumferences_in_mm_and_the_published_truth_before_that_of_the_mask():
    table = scored(a=(1000.0, 1010.0), b=(500.0, 480.0), c=(700.0, 700.0))
    sizes = sizes_of(b=(0.2, np.nan), a=(0.1, 100.0), d=(0.1, 100.0))
    found = complete(table, sizes).set_index("image_id")
    assert list(found.index) == ["a", "b", "c"] and found.loc["c"].isna().sum() == 4
    assert found.pixel_mm[:2].tolist() == [0.1, 0.2]
    assert found.circumference_mm[:2].tolist() == pytest.approx([100, 100])
    assert found.truth_circumference_mm[:2].tolist() == pytest.approx([100, 96])
    assert found.circumference_error_mm[:2].tolist() == pytest.approx([0, 4])
    assert complete(table, sizes_of(d=(0.1, 100))).circumference_mm.isna().all()


def test_without_any_pixel_size_nothing_is_in_mm():
    table = scored(a=(1000.0, 1010.0))
    for sizes in (None, sizes_of()):
        assert list(complete(table, sizes).columns) == ["image_id", "examination", *PX]


def test_the_circumference_in_mm_of_a_drawn_head_is_its_length_times_the_size_of_a_pixel():
    mask = head(180, 120, 90, 70, 40)
    table = scored(a=(circumference.head_circumference(mask),) * 2)
    found = complete(table, sizes_of(a=(0.35, np.nan)))
    assert found.circumference_mm.iloc[0] == pytest.approx(0.35 * perimeter(90, 70), rel=0.003)


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_a_table_of_other_images_under_the_same_names_is_refused(factor):
    table = scored(a=(1000.0, 1000.0), b=(500.0, 500.0), c=(700.0, 700.0))
    with pytest.raises(FetalsegError, match=r"differ from those of the masks by \d+% at the median"):
        complete(table, sizes_of(a=(0.1, 100), b=(0.1, 50 * factor), c=(0.1, 70 * factor)))


def test_single_masks_that_differ_from_what_is_published_or_are_empty_make_no_table_wrong():
    table = scored(a=(1000.0, 1000.0), b=(500.0, 500.0), c=(700.0, 700.0))
    found = complete(table, sizes_of(a=(0.1, 101), b=(0.1, 50), c=(0.1, 200)))
    assert found.truth_circumference_mm.tolist() == [101, 50, 200]
    found = complete(scored(a=(1000.0, 0.0), b=(0.0, 0.0)), sizes_of(a=(0.1, 90), b=(0.1, np.nan)))
    assert found.truth_circumference_mm.tolist() == [90, 0] and found.circumference_mm.tolist() == [100, 0]


def test_agreement_worked_by_hand():
    # Differences 1, 0 and -2: their mean is -1/3, their variance ((4² + 1² + 5²) / 9) / 2 = 7/3.
    found = circumference.agreement([10, 12, 11], [9, 12, 13])
    assert found["df"] == pytest.approx(-1 / 3) and found["df_sd"] == pytest.approx((7 / 3) ** 0.5)
    assert found["adf"] == pytest.approx(1) and found["adf_sd"] == pytest.approx(1)
    assert found["low"] == pytest.approx(-1 / 3 - 1.96 * (7 / 3) ** 0.5)
    assert found["high"] == pytest.approx(-1 / 3 + 1.96 * (7 / 3) ** 0.5)


def test_95_percent_of_normal_differences_lie_within_the_limits_of_agreement():
    rng = np.random.default_rng(0)
    truth = rng.uniform(100, 300, 4000)
    difference = rng.normal(1.5, 2.0, 4000)
    found = circumference.agreement(truth + difference, truth)
    assert np.mean((found["low"] <= difference) & (difference <= found["high"])) == pytest.approx(0.95, abs=0.01)


def test_a_single_measurement_agrees_without_spread():
    found = circumference.agreement([10.0], [12.0])
    assert found == {"adf": 2, "adf_sd": 0, "df": -2, "df_sd": 0, "low": -2, "high": -2}
