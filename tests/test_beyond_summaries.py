"""What tables of scores say: means and tails of every score, two runs side by side."""

import json

import numpy as np
import pandas as pd
import pytest

from fetalseg_helpers import evaluation
from fetalseg_helpers.beyond_dice import summaries
from fetalseg_helpers.evaluation import overlap_scores
from fetalseg_helpers.workspace import FetalsegError

COLUMNS = ["image_id", "examination", "dice", "iou", "hd95_px", "truth_pixels", "predicted_pixels"]


def table_of(*rows):
    """A table of scores: name, examination, Dice, IoU, HD95, and the pixels of both masks."""
    return pd.DataFrame(rows, columns=COLUMNS)


def overlaps_of(*rows):
    """A table of overlap alone: name, examination, Dice, IoU, and the pixels of both masks."""
    return pd.DataFrame(rows, columns=[name for name in COLUMNS if name != "hd95_px"])


# The summary


def test_a_summary_holds_the_means_their_intervals_and_on_how_much_they_rest():
    scores = overlaps_of(("1", "A", 0.9, 0.82, 9, 9), ("2", "A", 0.7, 0.54, 9, 9), ("3", "B", 0.8, 0.67, 9, 9))
    summary = summaries.summarise(scores)
    stored = json.loads(json.dumps(summary))
    contract = {"mean_dice", "mean_iou", "dice_interval_95", "iou_interval_95", "images", "examinations"}
    assert contract <= set(stored)
    assert stored["mean_dice"] == 0.8 and stored["mean_iou"] == pytest.approx(0.6767)
    assert (stored["images"], stored["examinations"]) == (3, 2)
    assert stored["dice_interval_95"] == pytest.approx(evaluation.bootstrap_interval([0.9, 0.7, 0.8], list("AAB")))
    assert stored["iou_interval_95"] == pytest.approx(evaluation.bootstrap_interval([0.82, 0.54, 0.67], list("AAB")))
    assert (stored["worst_image"], stored["worst_dice"], stored["median_dice"]) == ("2", 0.7, 0.8)


def test_pooled_scores_weigh_pixels_and_means_weigh_images():
    # A small head missed but for half of it, and a large one that is nearly right: prediction and truth of each.
    small, large = np.zeros((2, 40, 50), int), np.zeros((2, 40, 50), int)
    small[0, 2:4, 2:6], small[1, 2:4, 4:8] = 1, 1  # 8 and 8, 4 shared
    large[0, 5:35, 5:45], large[1, 5:35, 5:43] = 1, 1  # 1200 and 1140, within each other
    pairs = {"small": small, "large": large}
    table = overlaps_of(*[(name, name, *overlap_scores(*pair, 0.1).values()) for name, pair in pairs.items()])
    summary = summaries.summarise(table)
    # Of both, 4 + 1140 pixels are shared, 8 + 1200 predicted, 8 + 1140 true.
    assert summary["pooled_dice"] == pytest.approx(2 * 1144 / (1208 + 1148), abs=5e-5)
    assert summary["pooled_iou"] == pytest.approx(1144 / (1208 + 1148 - 1144), abs=5e-5)
    assert summary["mean_dice"] == pytest.approx((8 / 16 + 2 * 1140 / 2340) / 2, abs=5e-5)
    assert summary["mean_iou"] == pytest.approx((4 / 12 + 1140 / 1200) / 2, abs=5e-5)
    assert summary["pooled_dice"] > summary["mean_dice"] + 0.2


def test_empty_predictions_and_empty_truths_are_counted():
    empty, full = np.zeros((3, 4), int), np.ones((3, 4), int)
    cases = [(empty, empty), (empty, full), (empty, full), (full, empty), (full, full), (full, full)]
    table = overlaps_of(*[(str(n), str(n), *overlap_scores(*pair, 0.1).values()) for n, pair in enumerate(cases)])
    summary = summaries.summarise(table)
    assert (summary["empty_predictions"], summary["empty_truths"], summary["images"]) == (3, 2, 6)
    assert summary["mean_dice"] == 0.5 and summary["pooled_dice"] == pytest.approx(2 * 24 / (36 + 48), abs=5e-5)
    nothing = summaries.summarise(table.head(1))
    assert (nothing["pooled_dice"], nothing["pooled_iou"], nothing["mean_dice"]) == (1, 1, 1)


def test_the_intervals_of_a_summary_follow_from_its_draws_and_seed():
    rng = np.random.default_rng(0)
    table = overlaps_of(
        *[(str(n), str(n // 2), dice, dice / (2 - dice), 9, 9) for n, dice in enumerate(rng.random(20))]
    )
    low, high = evaluation.bootstrap_interval(table.dice, table.examination, draws=150, seed=7)
    summary = summaries.summarise(table, draws=150, seed=7)
    assert summary["dice_interval_95"] == [round(low, 4), round(high, 4)]
    assert summaries.summarise(table, draws=150, seed=8)["dice_interval_95"] != summary["dice_interval_95"]
    assert summaries.summarise(table, draws=160, seed=7)["dice_interval_95"] != summary["dice_interval_95"]


def test_the_numbers_of_a_score_worked_by_hand():
    scores = table_of(("1", "A", 0.5, 0.4, 1.0, 9, 9), ("2", "B", 0.9, 0.8, 9.0, 9, 9), ("3", "C", 1.0, 0.9, 2.0, 9, 9))
    found = summaries.summarise(scores)["scores"]
    assert found["dice"] == {
        "mean": 0.8,
        "sd": 0.2646,  # √((0.09 + 0.01 + 0.04) / 2)
        "median": 0.9,
        "percentile_5": 0.54,  # a tenth of the way from 0.5 to 0.9
        "worst": 0.5,
        "interval_95": [0.5, 1.0],  # one in 27 draws is the worst three times
        "images": 3,
    }
    assert found["hd95_px"] == {
        "mean": 4.0,
        "sd": 4.3589,  # √((9 + 25 + 4) / 2)
        "median": 2.0,
        "percentile_95": 8.3,  # nine tenths of the way from 2 to 9
        "worst": 9.0,
        "interval_95": [1.0, 9.0],
        "images": 3,
    }
    assert list(found) == ["dice", "iou", "hd95_px"]


def test_the_worst_of_a_signed_error_is_the_largest_to_either_side():
    errors = [-30.0, 4.0, 20.0]
    scores = table_of(*[(str(n), "A", 0.9, 0.8, 1.0, 9, 9) for n in range(3)]).assign(area_error_percent=errors)
    numbers = summaries.summarise(scores)["scores"]["area_error_percent"]
    assert numbers["worst"] == -30 and numbers["mean"] == -2 and numbers["percentile_95"] == 29


def test_scores_that_some_images_lack_are_of_those_that_have_them():
    scores = table_of(*[(str(n), "AAB"[n], 0.9, 0.8, 1.0, 9, 9) for n in range(3)])
    scores["hd95_mm"], scores["assd_mm"] = [np.nan, 2.0, 4.0], np.nan
    found = summaries.summarise(scores)["scores"]
    assert "assd_mm" not in found
    assert (found["hd95_mm"]["mean"], found["hd95_mm"]["images"], found["dice"]["images"]) == (3, 2, 3)
    assert found["hd95_mm"]["interval_95"] == list(evaluation.bootstrap_interval([2.0, 4.0], list("AB")))


def test_a_single_image_has_no_spread():
    numbers = summaries.summarise(table_of(("1", "A", 0.9, 0.8, 1.0, 9, 9)))["scores"]["dice"]
    assert (numbers["sd"], numbers["interval_95"], numbers["percentile_5"]) == (0, [0.9, 0.9], 0.9)


def test_a_summary_reads_as_a_table_with_units_and_the_tail_that_is_bad():
    scores = table_of(("1", "A", 0.5, 0.4, 1.0, 9, 9), ("2", "B", 0.9, 0.8, 9.0, 9, 9), ("3", "C", 1.0, 0.9, 2.0, 9, 9))
    table = summaries.summary_table(summaries.summarise(scores))
    assert list(table.index) == ["Dice", "IoU", "HD95 (px)"]
    assert table.loc["Dice"].to_dict() == {
        "mean": "0.800",
        "95 % interval": "0.500 to 1.000",
        "SD": "0.265",
        "median": "0.900",
        "5 % are beyond": "0.540",
        "worst": "0.500",
    }
    assert list(table.loc["HD95 (px)"]) == ["4.00", "1.00 to 9.00", "4.36", "2.00", "8.30", "9.00"]


# Two runs


FIRST = table_of(
    ("1_HC", "A", 0.8, 0.70, 5.0, 9, 9), ("2_HC", "A", 0.9, 0.80, 4.0, 9, 9), ("10_HC", "B", 0.7, 0.55, 8.0, 9, 9)
)
SECOND = table_of(
    ("10_HC", "B", 0.9, 0.80, 2.0, 9, 9), ("1_HC", "A", 0.7, 0.60, 6.0, 9, 9), ("2_HC", "A", 0.9, 0.85, 1.0, 9, 9)
)


def test_two_runs_are_compared_image_by_image_whatever_their_order():
    table = summaries.compare(FIRST, SECOND, metrics=("dice", "hd95_px"))
    dice, hd95 = table.loc["dice"], table.loc["hd95_px"]
    assert (dice["first"], dice["second"]) == pytest.approx((2.4 / 3, 2.5 / 3))
    assert (hd95["first"], hd95["second"]) == pytest.approx((17 / 3, 9 / 3))
    assert dice.difference == pytest.approx(0.1 / 3)  # -0.1, 0, +0.2
    assert hd95.difference == pytest.approx(-8 / 3)  # +1, -3, -6
    assert table[["better", "worse", "images"]].to_numpy().tolist() == [[1, 1, 3], [2, 1, 3]]
    # Draws of two examinations, A with the differences -0.1 and 0, B with 0.2: the extremes are A twice and B twice.
    assert (dice.low, dice.high) == pytest.approx((-0.05, 0.2)) and (hd95.low, hd95.high) == pytest.approx((-6, -1))


def test_the_better_of_a_signed_error_is_the_smaller_one():
    first, second = FIRST.assign(area_error_percent=[-9.0, 3.0, 5.0]), FIRST.assign(area_error_percent=[4.0, -5.0, -5])
    table = summaries.compare(first, second, metrics=["area_error_percent"])
    assert table[["better", "worse"]].to_numpy().tolist() == [[1, 1]]
    assert table.difference.tolist() == pytest.approx([(13 - 8 - 10) / 3])


def test_the_interval_of_a_difference_is_that_of_pairs_and_not_of_two_means():
    # Images differ by far more than the two runs, and every image gains about 0.02.
    rng = np.random.default_rng(0)
    rows = [(str(n), str(n // 2), dice, 0.5, 1.0, 9, 9) for n, dice in enumerate(rng.uniform(0.5, 0.95, 60))]
    first = table_of(*rows)
    second = first.assign(dice=first.dice + 0.02 + rng.normal(0, 0.005, 60))
    row = summaries.compare(first, second, metrics=["dice"]).loc["dice"]
    assert row.low > 0.015 and row.high < 0.025 and row.better > 55
    low, high = evaluation.bootstrap_interval(second.dice - first.dice, first.examination)
    assert (row.low, row.high) == (low, high)
    alone = evaluation.bootstrap_interval(first.dice, first.examination)
    assert alone[1] - alone[0] > 10 * (high - low)


def test_a_run_compared_with_itself_differs_in_nothing():
    table = summaries.compare(FIRST, FIRST, metrics=("dice", "iou", "hd95_px"))
    assert not table[["difference", "low", "high", "better", "worse"]].any(axis=None)


def test_a_score_that_no_image_has_is_compared_as_unknown():
    table = summaries.compare(FIRST.assign(hd95_px=np.nan), SECOND, metrics=("dice", "hd95_px"))
    assert table.images["hd95_px"] == 0 and table.loc["hd95_px", ["difference", "low", "high"]].isna().all()
    assert table.loc["dice", "low"] <= table.loc["dice", "high"]


def test_tables_of_different_images_are_not_compared():
    with pytest.raises(FetalsegError, match="only one has 2_HC"):
        summaries.compare(FIRST, SECOND[SECOND.image_id != "2_HC"])
    with pytest.raises(FetalsegError, match="only one has 2_HC"):  # the first in the order of numbers
        summaries.compare(FIRST[FIRST.image_id == "1_HC"], SECOND)
    with pytest.raises(FetalsegError, match="only one has 3_HC"):
        summaries.compare(FIRST, SECOND.replace({"image_id": {"10_HC": "3_HC"}}))


@pytest.mark.parametrize("repeated", [(0, 0, 1, 2), (0, 1, 1, 2)])
def test_tables_that_hold_an_image_twice_are_not_compared(repeated):
    again = FIRST.iloc[list(repeated)]
    for pair in ((FIRST, again), (again, FIRST), (FIRST.iloc[[0, 0, 1, 2]], again)):
        with pytest.raises(FetalsegError, match="more often than once"):
            summaries.compare(*pair, metrics=["dice"])
