"""What Dice does not say: borders, circumference, robustness, comparison (notebooks 6 and 8, `evaluate`).

Read `scores` first, which notebook 6 hands to `evaluation.score_pairs`; it leads to `circumference`. `summaries` and
`model_card` say what a table of scores means, `folders` scores anybody's masks, `baselines` and `robustness` ask more.
"""
