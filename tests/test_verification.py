"""Every check finds what it is for, and nothing where there is nothing."""

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapes import contents, drawn_outline, noise, save_pair

from fetalseg_helpers import loading, preprocessing, verification
from fetalseg_helpers.phantoms.dataset import DEFECTS
from fetalseg_helpers.running import stages
from fetalseg_helpers.verification import CHECKS, FINDING_COLUMNS
from fetalseg_helpers.workspace import FetalsegError

KINDS = {kind: kind for kind in DEFECTS} | {"unreadable_image": "unreadable"}


@pytest.fixture(scope="module")
def phantom_findings(phantom_set):
    return verification.verify_pairs(loading.load_pairs(phantom_set))


def found(findings, check):
    return set(findings.image_id[findings.check == check])


def frame(seed):
    return noise(seed, 60, 80)


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
    pairs = loading.load_pairs(phantom_set)
    names = set(pairs.image_id[pairs.check == ""])
    assert set(measurements.index) == names - {name for kind in lost for name in planted[kind]}
    assert measurements.area_fraction.between(0, 1).all() and measurements.mean_inside.between(0, 255).all()


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


# single checks


def test_a_sound_pair_has_no_finding(tmp_path):
    save_pair(tmp_path, "a", frame(1), drawn_outline())
    findings, measurements = check(tmp_path)
    assert findings.empty and list(findings.columns) == FINDING_COLUMNS and list(measurements.index) == ["a"]


@pytest.mark.parametrize(
    ("name", "image", "drawn"),
    [
        ("unreadable", frame(1), b"text"),
        ("unreadable", b"", drawn_outline()),
        ("unreadable", frame(1).astype(np.uint16), drawn_outline()),
        ("missing_mask", frame(1), None),
        ("orphan_mask", None, drawn_outline()),
        ("empty_mask", frame(1), np.zeros((60, 80), np.uint8)),
        ("size_mismatch", frame(1), drawn_outline(width=81)),
        ("size_mismatch", frame(1), np.zeros((59, 80), np.uint8)),
    ],
)
def test_a_pair_that_cannot_be_used_is_an_error_and_has_no_measurement(tmp_path, name, image, drawn):
    save_pair(tmp_path, "sound", frame(2), drawn_outline())
    save_pair(tmp_path, "bad", image, drawn)
    findings, measurements = check(tmp_path)
    assert findings[["image_id", "check", "severity"]].to_numpy().tolist() == [["bad", name, "error"]]
    assert list(measurements.index) == ["sound"]


def test_a_data_set_of_which_nothing_can_be_used_is_reported_all_the_same(tmp_path):
    for stem in "abc":
        save_pair(tmp_path, stem, b"", b"")
    findings, measurements = check(tmp_path)
    assert found(findings, "unreadable") == {"a", "b", "c"} and measurements.empty


def test_an_image_with_a_header_that_claims_too_much_does_not_stop_the_others(tmp_path):
    header = np.array([40, 60_000, 60_000, 1 | 24 << 16, 0, 0, 0, 0, 0, 0], "<u4").tobytes()
    save_pair(tmp_path, "sound", frame(2), drawn_outline())
    save_pair(tmp_path, "huge", None, drawn_outline())
    (tmp_path / "huge.bmp").write_bytes(b"BM" + np.array([154, 0, 54], "<u4").tobytes() + header + bytes(100))
    assert found(check(tmp_path)[0], "unreadable") == {"huge"}


def test_values_other_than_0_and_255_are_counted_and_the_region_kept(tmp_path):
    drawn = drawn_outline()
    drawn[0, :3] = 1, 100, 127
    drawn[drawn == 255] = np.where(np.arange((drawn == 255).sum()) % 2, 254, 255)
    save_pair(tmp_path, "grey", frame(1), drawn)
    findings, measurements = check(tmp_path)
    assert findings[["check", "severity"]].to_numpy().tolist() == [["mask_values", "note"]]
    assert findings.detail[0] == "6 values up to 255 along borders: cut in the middle."
    assert measurements.area_fraction["grey"] == preprocessing.fill_outline(drawn_outline()).mean()


def test_an_outline_with_a_gap_is_open_and_one_at_the_frame_touches_it(tmp_path):
    gap = drawn_outline()
    gap[25:36, 50:] = 0
    save_pair(tmp_path, "gap", frame(1), gap)
    save_pair(tmp_path, "cut", frame(2), drawn_outline(x=10))
    findings, _ = check(tmp_path)
    assert found(findings, "open_outline") == {"gap", "cut"}
    assert found(findings, "touches_frame") == {"cut"}
    assert "left" in findings.detail[findings.check == "touches_frame"].item()


def test_images_with_the_same_pixels_are_found_whatever_their_names_and_files(tmp_path):
    save_pair(tmp_path, "a", frame(1), drawn_outline())
    save_pair(tmp_path, "b", frame(2), drawn_outline())
    save_pair(
        tmp_path,
        "c",
        cv2.imencode(".png", frame(1), [cv2.IMWRITE_PNG_COMPRESSION, 0])[1].tobytes(),
        drawn_outline(a=15),
    )
    save_pair(tmp_path, "d", frame(1), drawn_outline())
    findings, _ = check(tmp_path)
    assert findings.image_id.tolist() == ["a", "c", "d"] and set(findings.check) == {"duplicate_image"}
    assert findings.detail.tolist() == [  # of two masks for one image, nobody knows which is right
        "the same pixels as c, but another mask.", "the same pixels as a, but another mask.", "the same pixels as a.",
    ]  # fmt: skip


def test_a_frame_repeated_inside_an_examination_is_only_noted(tmp_path):
    save_pair(tmp_path, "1_2HC", frame(1), drawn_outline())
    save_pair(tmp_path, "2_HC", frame(1), drawn_outline())
    save_pair(tmp_path, "3_HC", frame(1), drawn_outline())
    findings, _ = check(tmp_path)
    assert dict(zip(findings.image_id, findings.check, strict=True)) == {
        "2_HC": "repeated_frame",
        "3_HC": "duplicate_image",
    }
    assert list(findings.severity[findings.check == "repeated_frame"]) == ["note"]


def test_files_in_two_split_folders_are_a_warning_and_read_all_the_same(tmp_path):
    save_pair(tmp_path / "train" / "malignant", "1_HC", frame(1), None)
    save_pair(tmp_path / "test" / "malignant", "1_HC", None, drawn_outline())
    findings, measurements = check(tmp_path)
    assert findings[["check", "severity"]].to_numpy().tolist() == [["split_folders_differ", "warning"]]
    assert "'train'" in findings.detail[0] and "'test'" in findings.detail[0] and len(measurements) == 1


def test_an_examination_in_two_splits_is_found_at_its_first_frame(tmp_path):
    for seed, stem in enumerate(["1_2HC", "2_HC", "3_2HC", "4_HC", "5_HC"]):
        save_pair(tmp_path, stem, frame(seed), drawn_outline())
    split = pd.Series({"1_2HC": "train", "2_HC": "train", "3_2HC": "test", "4_HC": "train"})
    findings, _ = check(tmp_path, split=split)
    assert findings[["image_id", "check"]].to_numpy().tolist() == [["3_2HC", "examination_across_splits"]]
    assert "3_2HC in test, 4_HC in train" in findings.detail[0]


def test_an_unusual_area_and_an_unusual_contrast_are_notes(tmp_path):
    for seed in range(20):
        save_pair(tmp_path, f"{seed}", frame(seed), drawn_outline(a=18 + seed % 3))
    save_pair(tmp_path, "small", frame(30), drawn_outline(a=6, b=5))
    bright = frame(31)
    bright[preprocessing.fill_outline(drawn_outline()) == 1] = 250
    save_pair(tmp_path, "bright", bright, drawn_outline())
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
    ("x", "y", "fraction", "near"),
    [(40, 30, 0.05, False), (24, 30, 0.25, False), (24, 30, 0.35, True), (56, 30, 0.35, True), (40, 42, 0.35, True)],
)
def test_near_the_border_is_within_the_fraction_of_any_edge(tmp_path, x, y, fraction, near):
    save_pair(tmp_path, "a", frame(1), drawn_outline(x=x, y=y))  # 80 × 60, so that 24 and 56 are 30 % from an edge
    assert ("near_border" in set(check(tmp_path, border=fraction)[0].check)) == near


def test_the_fraction_for_the_border_is_handed_through(tmp_path):
    save_pair(tmp_path, "a", frame(1), drawn_outline(x=24))  # centroid at 30 %
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


# names that stand for more than one frame


def test_different_frames_of_one_name_are_all_kept_and_the_name_is_a_finding(tmp_path):
    for seed, split in enumerate(["train", "validation", "test"]):
        save_pair(tmp_path / split / "malignant", "1_HC", frame(seed), drawn_outline(a=18 + seed))
    findings, measurements = check(tmp_path)
    assert len(measurements) == measurements.pixels.nunique() == 3
    assert list(findings.check) == ["repeated_name"] * 3 and set(findings.image_id) == set(measurements.index)
    assert findings.detail.str.contains("told apart").all()


def test_two_images_that_could_belong_to_an_outline_are_an_error_that_names_the_files(tmp_path):
    save_pair(tmp_path, "sound", frame(1), drawn_outline())
    save_pair(tmp_path, "two", frame(2), drawn_outline(a=15))
    save_pair(tmp_path, "two", frame(3), suffix=".bmp")
    findings, measurements = check(tmp_path)
    assert findings[["image_id", "check", "severity"]].to_numpy().tolist() == [["two", "ambiguous_name", "error"]]
    assert "two.png" in findings.detail[0] and "two.bmp" in findings.detail[0]
    assert list(measurements.index) == ["sound"]


def test_copies_of_a_pair_are_counted_in_a_note(tmp_path):
    for folder in ("Datasets", "train"):
        save_pair(tmp_path / folder / "malignant", "1_HC", frame(1), drawn_outline())
    findings, measurements = check(tmp_path)
    assert findings[["check", "severity"]].to_numpy().tolist() == [["copies", "note"]]
    assert findings.detail[0].startswith("2 more files") and list(measurements.index) == ["1_HC"]


# in the run folder


@pytest.fixture
def run_dir(tmp_path):
    """Run folder over thirty small pairs, of which one is empty and two are the same image."""
    for seed in range(30):
        save_pair(tmp_path / "data", f"{seed + 1}_HC", frame(seed if seed != 11 else 10), drawn_outline() * (seed != 4))
    loading.write_manifest(tmp_path / "run", data=str(tmp_path / "data"), seed=1)
    return tmp_path / "run"


LEFT_OUT = {"5_HC": "empty_mask", "12_HC": "duplicate_image"}


def test_findings_are_written_and_errors_leave_the_pairs_out(run_dir):
    usable = stages.ensure_verified(run_dir, 16, 16)
    table = pd.read_csv(run_dir / "verification.csv", dtype=str)
    assert list(table.columns) == FINDING_COLUMNS
    errors = table[table.severity == "error"]
    assert dict(zip(errors.image_id, errors.check, strict=True)) == LEFT_OUT
    assert set(usable.image_id) == {f"{number}_HC" for number in range(1, 31)} - set(LEFT_OUT)


def test_verification_is_made_once_said_in_one_line_and_then_used_silently(run_dir, capsys):
    first = stages.ensure_verified(run_dir, 16, 16)
    assert capsys.readouterr().out.splitlines()[1].endswith("verification.csv made (notebook 03 explains it).")
    before = contents(run_dir)
    assert stages.ensure_verified(run_dir).equals(first)
    assert capsys.readouterr().out == "" and contents(run_dir) == before


def test_findings_about_another_split_are_refused_until_they_are_made_anew(run_dir):
    stages.ensure_verified(run_dir, 16, 16)
    loading.write_manifest(run_dir, data=str(run_dir.parent / "data"), seed=2)
    preprocessing.prepare(run_dir, 16, 16)
    before = contents(run_dir)
    with pytest.raises(FetalsegError, match=r"verification\.csv was made from another manifest.* run notebook 03"):
        stages.ensure_verified(run_dir)
    assert contents(run_dir) == before
    verification.write_verification(run_dir)
    assert len(stages.ensure_verified(run_dir)) == 28


def test_findings_without_the_record_of_their_making_are_made_again(run_dir):
    stages.ensure_verified(run_dir, 16, 16)
    before = contents(run_dir)
    (run_dir / "verification.json").unlink()
    (run_dir / "verification.csv").write_text("image_id,check,severity,detail\n")
    assert len(stages.ensure_verified(run_dir)) == 28
    assert contents(run_dir) == before


def test_a_split_by_image_that_tears_an_examination_is_found_in_the_run_folder(tmp_path):
    for number in range(1, 41):
        suffix = "HC" if number % 4 == 0 else f"{number % 4 + 1}HC"
        save_pair(tmp_path / "data", f"{number}_{suffix}", frame(number), drawn_outline())
    for split_by, torn in (("image", True), ("examination", False)):
        loading.write_manifest(tmp_path / "run", data=str(tmp_path / "data"), split_by=split_by)
        findings, _, pairs = verification.write_verification(tmp_path / "run")
        assert bool(found(findings, "examination_across_splits")) == torn and len(pairs) == 40


# which pairs are used


def write_findings(run_dir, rows):
    rows = [(image_id, check, severity, "x") for image_id, check, severity in rows]
    pd.DataFrame(rows, columns=FINDING_COLUMNS).to_csv(run_dir / "verification.csv", index=False)


def test_used_are_the_manifests_rows_with_their_place_in_the_arrays(run_dir):
    pairs, manifest = verification.usable_pairs(run_dir), loading.read_manifest(run_dir)
    assert pairs[loading.MANIFEST_COLUMNS].equals(manifest) and list(pairs.row) == list(range(30))
    preprocessing.prepare(run_dir, 16, 16)  # now it is known that one has no mask
    pairs = verification.usable_pairs(run_dir)
    assert list(pairs.image_id) == [name for name in manifest.image_id if name != "5_HC"]
    images = np.load(run_dir / "prepared" / "images.npy")
    for pair in pairs.itertuples():
        assert manifest.image_id[pair.row] == pair.image_id and pair.image_path.is_file()
        native = loading.read_grey(pair.image_path)
        assert np.array_equal(images[pair.row], preprocessing.to_canvas(native, 16, 16))


def test_pairs_with_a_problem_or_an_error_are_left_out_and_warnings_kept(run_dir):
    preprocessing.prepare(run_dir, 16, 16)
    write_findings(
        run_dir,
        [
            ("1_HC", "duplicate_image", "error"),
            ("2_HC", "open_outline", "warning"),
            ("3_HC", "near_border", "note"),
            ("not in the manifest", "orphan_mask", "error"),
        ],
    )
    left = {f"{number}_HC" for number in range(1, 31)} - {"1_HC", "5_HC"}
    assert set(verification.usable_pairs(run_dir).image_id) == left
    parts = [verification.usable_pairs(run_dir, split) for split in loading.SPLITS]
    assert sorted(name for part in parts for name in part.image_id) == sorted(left)
    assert [set(part.split) for part in parts] == [{"train"}, {"valid"}, {"test"}]


def test_a_split_without_a_usable_image_is_named(run_dir):
    manifest = loading.read_manifest(run_dir)
    write_findings(run_dir, [(name, "empty_mask", "error") for name in manifest.image_id[manifest.split == "valid"]])
    with pytest.raises(FetalsegError, match="no usable image is in the split 'valid'"):
        verification.usable_pairs(run_dir, "valid")
    assert set(verification.usable_pairs(run_dir).split) == {"train", "test"}
    write_findings(run_dir, [(name, "empty_mask", "error") for name in manifest.image_id])
    with pytest.raises(FetalsegError, match="no usable image"):
        verification.usable_pairs(run_dir)
