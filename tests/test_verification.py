"""Every check finds what it is for, and nothing where there is nothing."""

import os

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetalseg_helpers import loading, phantom_set, preprocessing, verification
from fetalseg_helpers.verification import CHECKS, FINDING_COLUMNS

KINDS = {kind: kind for kind in phantom_set.DEFECTS} | {"unreadable_image": "unreadable"}


@pytest.fixture(scope="module")
def phantom_findings(phantom_set):
    return verification.verify_pairs(loading.load_pairs(phantom_set))


def found(findings, check):
    return set(findings.image_id[findings.check == check])


def frame(seed, height=60, width=80):
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


def outline(x=40, y=30, a=20, b=15, height=60, width=80):
    return cv2.ellipse(np.zeros((height, width), np.uint8), (x, y), (a, b), 0, 0, 360, 255, 2)


def save(folder, stem, image, drawn):
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in ((f"{stem}.png", image), (f"{stem}_Annotation.png", drawn)):
        if picture is not None:
            content = picture if isinstance(picture, bytes) else cv2.imencode(".png", picture)[1].tobytes()
            (folder / name).write_bytes(content)


def check(folder, **options):
    return verification.verify_pairs(loading.load_pairs(folder), **options)


# phantoms


@pytest.mark.parametrize("kind", KINDS)
def test_every_planted_defect_is_found_under_its_check(phantom_findings, planted, kind):
    assert planted[kind] and set(planted[kind]) <= found(phantom_findings[0], KINDS[kind])


def test_nothing_graver_than_a_note_is_found_beside_the_planted_defects(phantom_findings, planted):
    findings = phantom_findings[0]
    cut = {*planted["open_outline"], *planted["near_border"]}  # near the border the outline is cut open too
    for kind, name in KINDS.items():
        assert found(findings, name) == (cut if kind == "open_outline" else set(planted[kind]))
    assert found(findings, "touches_frame") == cut
    grave = findings[findings.severity != "note"]
    assert set(grave.check) == {KINDS[kind] for kind in KINDS} - {"near_border"}


def test_measurements_have_a_row_for_each_usable_pair(phantom_findings, planted, phantom_set):
    _, measurements = phantom_findings
    lost = ("missing_mask", "orphan_mask", "unreadable_image", "empty_mask", "size_mismatch")
    names = set(loading.load_pairs(phantom_set).image_id)
    assert set(measurements.index) == names - {name for kind in lost for name in planted[kind]}
    assert measurements.area_fraction.between(0, 1).all() and measurements.mean_inside.between(0, 255).all()


def test_phantoms_without_defects_have_nothing_graver_than_a_note(clean_phantoms):
    findings, measurements = check(clean_phantoms)
    assert set(findings.severity) <= {"note"}
    assert len(measurements) == 12


def test_findings_name_a_known_check_its_severity_and_a_reason_gravest_first(phantom_findings):
    findings = phantom_findings[0]
    assert list(findings.columns) == FINDING_COLUMNS == ["image_id", "check", "severity", "detail"]
    assert (findings.severity == findings.check.map(lambda name: CHECKS[name].severity)).all()
    assert findings.detail.str.len().gt(10).all() and not findings.detail.str.contains("\n").any()
    ranks = findings.severity.map({"error": 0, "warning": 1, "note": 2})
    assert ranks.is_monotonic_increasing and "error" in set(findings.severity)


def test_an_unreadable_file_and_a_size_are_named_in_the_reason(phantom_findings, planted):
    details = phantom_findings[0].set_index(["check", "image_id"]).detail
    assert f"{planted['unreadable_image'][0]}.png" in details["unreadable", planted["unreadable_image"][0]]
    assert "800 × 539" in details["size_mismatch", planted["size_mismatch"][0]]
    assert f"{planted['missing_mask'][0]}.png" in details["missing_mask", planted["missing_mask"][0]]


def test_the_count_lists_every_check_also_without_a_finding(phantom_findings):
    findings = phantom_findings[0]
    counts = verification.count_findings(findings)
    assert list(counts.index) == list(CHECKS) and counts.found.sum() == len(findings)
    assert counts.found["orphan_mask"] == 1 and counts.found["duplicate_image"] == 0
    assert verification.count_findings(findings.iloc[:0]).found.eq(0).all()


# single checks


def test_a_sound_pair_has_no_finding(tmp_path):
    save(tmp_path, "a", frame(1), outline())
    findings, measurements = check(tmp_path)
    assert findings.empty and list(findings.columns) == FINDING_COLUMNS and list(measurements.index) == ["a"]
    assert set(findings.severity) <= {"note"}


@pytest.mark.parametrize(
    ("name", "image", "drawn"),
    [
        ("unreadable", frame(1), b"text"),
        ("unreadable", b"", outline()),
        ("unreadable", frame(1).astype(np.uint16), outline()),
        ("missing_mask", frame(1), None),
        ("orphan_mask", None, outline()),
        ("empty_mask", frame(1), np.zeros((60, 80), np.uint8)),
        ("size_mismatch", frame(1), outline(width=81)),
        ("size_mismatch", frame(1), np.zeros((59, 80), np.uint8)),
    ],
)
def test_a_pair_that_cannot_be_used_is_an_error_and_has_no_measurement(tmp_path, name, image, drawn):
    save(tmp_path, "sound", frame(2), outline())
    save(tmp_path, "bad", image, drawn)
    findings, measurements = check(tmp_path)
    assert findings[["image_id", "check", "severity"]].to_numpy().tolist() == [["bad", name, "error"]]
    assert list(measurements.index) == ["sound"]


def test_a_data_set_of_which_nothing_can_be_used_is_reported_all_the_same(tmp_path):
    for stem in "abc":
        save(tmp_path, stem, b"", b"")
    findings, measurements = check(tmp_path)
    assert found(findings, "unreadable") == {"a", "b", "c"} and measurements.empty


def test_an_image_with_a_header_that_claims_too_much_does_not_stop_the_others(tmp_path):
    header = np.array([40, 60_000, 60_000, 1 | 24 << 16, 0, 0, 0, 0, 0, 0], "<u4").tobytes()
    save(tmp_path, "sound", frame(2), outline())
    save(tmp_path, "huge", None, outline())
    (tmp_path / "huge.bmp").write_bytes(b"BM" + np.array([154, 0, 54], "<u4").tobytes() + header + bytes(100))
    assert found(check(tmp_path)[0], "unreadable") == {"huge"}


def test_values_other_than_0_and_255_are_counted_and_the_region_kept(tmp_path):
    drawn = outline()
    drawn[0, :3] = 1, 100, 127
    drawn[drawn == 255] = np.where(np.arange((drawn == 255).sum()) % 2, 254, 255)
    save(tmp_path, "grey", frame(1), drawn)
    findings, measurements = check(tmp_path)
    assert findings[["check", "severity"]].to_numpy().tolist() == [["mask_values", "warning"]]
    assert findings.detail[0].startswith("4 other values")
    assert measurements.area_fraction["grey"] == preprocessing.fill_outline(outline()).mean()


def test_an_outline_with_a_gap_is_open_and_one_at_the_frame_touches_it(tmp_path):
    gap = outline()
    gap[25:36, 50:] = 0
    save(tmp_path, "gap", frame(1), gap)
    save(tmp_path, "cut", frame(2), outline(x=10))
    findings, _ = check(tmp_path)
    assert found(findings, "open_outline") == {"gap", "cut"}
    assert found(findings, "touches_frame") == {"cut"}
    assert "left" in findings.detail[findings.check == "touches_frame"].item()


def test_images_with_the_same_pixels_are_found_whatever_their_names_and_files(tmp_path):
    save(tmp_path, "a", frame(1), outline())
    save(tmp_path, "b", frame(2), outline())
    save(tmp_path, "c", cv2.imencode(".png", frame(1), [cv2.IMWRITE_PNG_COMPRESSION, 0])[1].tobytes(), outline(a=15))
    save(tmp_path, "d", frame(1), outline())
    findings, _ = check(tmp_path)
    assert findings.image_id.tolist() == ["c", "d"] and set(findings.check) == {"duplicate_image"}
    assert findings.detail.str.contains("same pixels as a").all()


def test_a_frame_repeated_inside_an_examination_is_only_noted(tmp_path):
    save(tmp_path, "1_2HC", frame(1), outline())
    save(tmp_path, "2_HC", frame(1), outline())
    save(tmp_path, "3_HC", frame(1), outline())
    findings, _ = check(tmp_path)
    assert dict(zip(findings.image_id, findings.check, strict=True)) == {
        "2_HC": "repeated_frame",
        "3_HC": "duplicate_image",
    }
    assert list(findings.severity[findings.check == "repeated_frame"]) == ["note"]


def test_files_in_two_split_folders_are_a_warning_and_read_all_the_same(tmp_path):
    save(tmp_path / "train" / "malignant", "1_HC", frame(1), None)
    save(tmp_path / "test" / "malignant", "1_HC", None, outline())
    findings, measurements = check(tmp_path)
    assert findings[["check", "severity"]].to_numpy().tolist() == [["split_folders_differ", "warning"]]
    assert "'train'" in findings.detail[0] and "'test'" in findings.detail[0] and len(measurements) == 1


def test_an_examination_in_two_splits_is_found_at_its_first_frame(tmp_path):
    for seed, stem in enumerate(["1_2HC", "2_HC", "3_2HC", "4_HC", "5_HC"]):
        save(tmp_path, stem, frame(seed), outline())
    split = pd.Series({"1_2HC": "train", "2_HC": "train", "3_2HC": "test", "4_HC": "train"})
    findings, _ = check(tmp_path, split=split)
    assert findings[["image_id", "check"]].to_numpy().tolist() == [["3_2HC", "examination_across_splits"]]
    assert "3_2HC in test, 4_HC in train" in findings.detail[0]


def test_an_unusual_area_and_an_unusual_contrast_are_notes(tmp_path):
    for seed in range(20):
        save(tmp_path, f"{seed}", frame(seed), outline(a=18 + seed % 3))
    save(tmp_path, "small", frame(30), outline(a=6, b=5))
    bright = frame(31)
    bright[preprocessing.fill_outline(outline()) == 1] = 250
    save(tmp_path, "bright", bright, outline())
    findings, _ = check(tmp_path)
    assert found(findings, "area_outlier") == {"small"} and "bright" in found(findings, "intensity_difference")
    assert set(findings.severity) == {"note"}


# measures worked by hand


def test_area_centroid_and_means_of_a_tiny_mask():
    mask = np.uint8([[0, 0, 0, 0], [0, 1, 1, 0]])
    image = np.uint8([[10, 10, 10, 10], [10, 50, 70, 40]])
    measured = verification.measure_region(image, mask)
    assert measured["area_fraction"] == 2 / 8
    assert (measured["centroid_x"], measured["centroid_y"]) == (
        0.5,
        0.75,
    )  # pixel centres: (1.5 + 2.5) / 2 / 4, 1.5 / 2
    assert measured["mean_inside"] == 60 and measured["mean_outside"] == 15 and measured["difference"] == 45


def test_a_mask_of_one_corner_pixel_and_of_the_whole_frame():
    corner = np.zeros((5, 10), np.uint8)
    corner[0, 9] = 1
    measured = verification.measure_region(corner, corner)
    assert (measured["centroid_x"], measured["centroid_y"]) == pytest.approx((0.95, 0.1))
    assert measured["area_fraction"] == 0.02 and measured["difference"] == 1
    whole = verification.measure_region(np.full((3, 4), 9, np.uint8), np.ones((3, 4), np.uint8))
    assert whole["area_fraction"] == 1 and (whole["centroid_x"], whole["centroid_y"]) == (0.5, 0.5)
    assert whole["mean_inside"] == 9 and np.isnan(whole["mean_outside"])


@pytest.mark.parametrize(
    ("place", "fraction", "near"),
    [
        ((0.5, 0.5), 0.05, False),
        ((0.049, 0.5), 0.05, True),
        ((0.5, 0.951), 0.05, True),
        ((0.951, 0.5), 0.05, True),
        ((0.06, 0.94), 0.05, False),
        ((0.06, 0.5), 0.1, True),
        ((0.01, 0.01), 0, False),
    ],
)
def test_near_the_border_is_within_the_fraction_of_any_edge(place, fraction, near):
    assert verification.is_near_border(*place, fraction) == near


def test_the_fraction_for_the_border_is_handed_through(tmp_path):
    save(tmp_path, "a", frame(1), outline(x=24))  # centroid at 30 %
    assert check(tmp_path, border=0.25)[0].empty
    assert found(check(tmp_path, border=0.35)[0], "near_border") == {"a"}


def test_the_edges_that_a_mask_touches_are_named():
    mask = np.zeros((4, 5), np.uint8)
    assert verification.touched_edges(mask) == []
    mask[2, 0] = 1
    assert verification.touched_edges(mask) == ["left"]
    mask[0, 4] = 1
    assert sorted(verification.touched_edges(mask)) == ["left", "right", "top"]
    mask[3, 2] = 1
    assert sorted(verification.touched_edges(mask)) == ["bottom", "left", "right", "top"]


def test_outliers_lie_beyond_the_limit_of_robust_deviations():
    values = [1, 2, 3, 4, 5, 6, 7, 8, 9]  # median 5, and with the tenth: 5.5, MAD 2.5, limit 3.5 * 1.4826 * 2.5 = 12.97
    assert verification.outliers([*values, 18.4]).tolist() == [False] * 10
    assert verification.outliers([*values, 18.6]).tolist() == [False] * 9 + [True]
    assert verification.outliers([*values, -8.4]).tolist() == [False] * 10  # from 4.5
    assert verification.outliers([*values, -8.6]).tolist() == [False] * 9 + [True]


def test_nothing_is_an_outlier_among_few_or_equal_values():
    assert not verification.outliers([1, 1, 1, 1000]).any()
    assert not verification.outliers([5] * 15 + [1000]).any()
    assert verification.outliers([]).tolist() == []


@given(
    st.lists(st.integers(-1000, 1000), min_size=10, max_size=40), st.integers(-500, 500), st.sampled_from([2, 0.5, -4])
)
def test_outliers_do_not_depend_on_unit_or_origin(values, origin, unit):
    moved = np.array(values) * unit + origin
    assert verification.outliers(moved).tolist() == verification.outliers(values).tolist()
    assert verification.outliers(values).sum() <= len(values) / 2


# in the run folder


@pytest.fixture
def run_dir(tmp_path):
    """Run folder over twelve small pairs, of which one is empty and two are the same image."""
    for seed in range(12):
        save(tmp_path / "data", f"{seed + 1}_HC", frame(min(seed, 10)), outline() * (seed != 4))
    loading.ensure_manifest(tmp_path / "run", data=str(tmp_path / "data"), seed=1)
    return tmp_path / "run"


def test_findings_are_written_and_errors_leave_the_pairs_out(run_dir):
    usable = verification.ensure_verified(run_dir, 16, 16)
    table = pd.read_csv(run_dir / "verification.csv", dtype=str)
    assert list(table.columns) == FINDING_COLUMNS
    left_out = {"5_HC": "empty_mask", "12_HC": "duplicate_image"}
    errors = table[table.severity == "error"]
    assert dict(zip(errors.image_id, errors.check, strict=True)) == left_out
    assert set(usable.image_id) == {f"{number}_HC" for number in range(1, 13)} - set(left_out)


def test_verification_is_made_once_and_then_reused_silently(run_dir, capsys):
    verification.ensure_verified(run_dir, 16, 16)
    assert "verification.csv made (notebook 03 explains it)" in capsys.readouterr().out
    verification.ensure_verified(run_dir, 16, 16)
    assert capsys.readouterr().out == ""


def test_after_a_new_split_verification_is_made_once_more_and_then_reused(run_dir, capsys):
    data = {"data": str(run_dir.parent / "data"), "seed": 2}
    verification.ensure_verified(run_dir, 16, 16)
    verification.ensure_verified(run_dir, 16, 16, **data)
    assert "verification.csv made" in capsys.readouterr().out
    verification.ensure_verified(run_dir, 16, 16, **data)
    assert "verification.csv made" not in capsys.readouterr().out


def test_findings_as_old_as_the_manifest_are_not_trusted(run_dir, capsys):
    verification.ensure_verified(run_dir, 16, 16)
    for name in ("manifest.csv", "verification.csv"):  # as on a disk whose clock ticks in seconds
        os.utime(run_dir / name, (1_000_000_000, 1_000_000_000))
    capsys.readouterr()
    verification.ensure_verified(run_dir, 16, 16)
    assert "verification.csv made" in capsys.readouterr().out


def test_a_split_by_image_that_tears_an_examination_is_found_in_the_run_folder(tmp_path):
    for number in range(1, 41):
        save(
            tmp_path / "data",
            f"{number}_{'HC' if number % 4 == 0 else f'{number % 4 + 1}HC'}",
            frame(number),
            outline(),
        )
    for split_by, torn in (("image", True), ("examination", False)):
        loading.write_manifest(tmp_path / "run", data=str(tmp_path / "data"), split_by=split_by)
        findings, _, pairs = verification.write_verification(tmp_path / "run")
        assert bool(found(findings, "examination_across_splits")) == torn and len(pairs) == 40
