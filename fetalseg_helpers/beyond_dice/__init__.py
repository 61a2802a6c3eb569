"""What Dice does not say: borders, circumference, robustness, comparison (notebooks 6 and 8, `evaluate`).

Read `scores` first, the list that notebook 6 hands to `evaluation.score_pairs`; it leads to
`circumference`. `summaries` and `model_card` say what a table of scores means, `folders` scores masks of anybody.
`baselines` and `robustness` each ask one more question; calibration is measured on notebook 8's own page.
"""
