"""How long scoring takes: a folder of masks of 800 × 540, every metric, with the files read and the distances found.

    python tests/benchmarks/scoring.py [--images 100] [--rounds 5] [--masks DIR]

Predictions are the true masks, moved and wobbling at the border, so that no distance is trivial. Without --masks, the
masks are ellipses of the sizes that heads have. Prints seconds for each round of the whole folder, as the command
`evaluate` scores it, and for one image in one thread where the time goes.
"""

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import cv2
import numpy as np
from scipy import ndimage

from fetalseg_helpers import evaluation, loading, preprocessing, workspace
from fetalseg_helpers.beyond_dice import folders, scores
from fetalseg_helpers.beyond_dice.circumference import head_circumference
from fetalseg_helpers.ellipses import Ellipse, draw_ellipse

WIDTH, HEIGHT = 800, 540


def draw_masks(count, rng):
    """Filled ellipses of 12 to 45 % of the frame."""
    for _ in range(count):
        a, b = rng.uniform(130, 260), rng.uniform(100, 200)
        ellipse = Ellipse(*rng.uniform((300, 220), (500, 320)), a, b, rng.uniform(0, 180))
        yield draw_ellipse(ellipse, WIDTH, HEIGHT)


def disturb(mask, rng):
    """A mask moved by some pixels, its border wobbling by about ten."""
    noise = cv2.GaussianBlur(rng.standard_normal(mask.shape).astype(np.float32), (0, 0), 12)
    depth = cv2.distanceTransform(mask, cv2.DIST_L2, 5) - cv2.distanceTransform(1 - mask, cv2.DIST_L2, 5)
    return np.roll((depth + 8 * noise / noise.std() > 0).astype(np.uint8), rng.integers(-8, 9, 2), axis=(0, 1))


@click.command()
@click.option("--images", default=100, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--masks", type=click.Path(exists=True, path_type=Path), help="A data set whose outlines are filled.")
def main(images, rounds, masks):
    """Time the scoring of a folder."""
    rng = np.random.default_rng(0)
    truths = draw_masks(images, rng)
    if masks:
        paths = loading.load_pairs(masks).mask_path.dropna()[:images]
        truths = (preprocessing.fill_outline(loading.read_grey(path)) for path in paths)
    with TemporaryDirectory() as folder:
        for number, truth in enumerate(truths):
            mask = disturb(truth, rng)
            workspace.write_png(Path(folder, "masks", f"{number}_mask.png"), truth * np.uint8(255))
            workspace.write_png(Path(folder, "predictions", f"{number}_pred.png"), mask * np.uint8(255))
        seconds = []
        for _ in range(rounds):
            started = time.perf_counter()
            table, problems = folders.score_folder(Path(folder, "predictions"), Path(folder, "masks"))
            seconds.append(time.perf_counter() - started)
        assert len(problems) == 0
        print(f"{len(table)} images, mean Dice {table.dice.mean():.3f}, mean HD95 {table.hd95_px.mean():.1f} px")
        low, middle, high = np.quantile(seconds, (0, 0.5, 1))
        print(f"whole folder, {rounds} rounds: median {middle:.2f} s, from {low:.2f} to {high:.2f} s")
    parts = {
        "every score": lambda: [score(mask, truth, np.nan) for score in scores.every_score()],
        "border distances": lambda: scores.border_scores(mask, truth),
        "overlap": lambda: evaluation.overlap_counts(mask, truth),
        "two ellipses": lambda: [head_circumference(one) for one in (mask, truth)],
        "two centroids": lambda: [ndimage.center_of_mass(one) for one in (mask, truth)],
    }
    for name, part in parts.items():
        started = time.perf_counter()
        for _ in range(20):
            part()
        print(f"{name:20}{(time.perf_counter() - started) / 20 * 1000:6.1f} ms an image")


if __name__ == "__main__":
    main()
