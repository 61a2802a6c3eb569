"""Data that several test files share."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from fetalseg_helpers import preprocessing
from fetalseg_helpers.phantom_set import planted_defects, write_phantoms

# A busy machine is no failure, and two runs of the same code see the same examples.
settings.register_profile("steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")

COUNT, SEED = 40, 1


@pytest.fixture(scope="session")
def phantom_set(tmp_path_factory):
    """Folder of 40 phantom frames with one or two defects of every kind. Read only: copy what you change."""
    return write_phantoms(tmp_path_factory.mktemp("shared") / "phantoms", COUNT, SEED, processes=1)


@pytest.fixture(scope="session")
def planted(phantom_set):
    """The defects of `phantom_set`: kind to list of names."""
    return planted_defects(COUNT, SEED)


@pytest.fixture(scope="session")
def clean_phantoms(tmp_path_factory):
    """Folder of 12 phantom frames without defects. Read only."""
    return write_phantoms(tmp_path_factory.mktemp("shared") / "clean", 12, SEED, processes=1, defects=False)


@pytest.fixture(scope="module")
def one_thread():
    """Small networks are fastest on one thread, and bit-identical results need the same number everywhere."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def real_data():
    """Folder of the real data set, whole or in part."""
    folder = os.environ.get("FETALSEG_DATA")
    if not folder:
        pytest.skip(
            "FETALSEG_DATA is not set, so the real images are missing: run "
            "`python -m fetalseg_helpers fetch kaggle`, then set FETALSEG_DATA to the folder data/kaggle"
        )
    if not Path(folder).is_dir():
        pytest.skip(f"FETALSEG_DATA is {folder}, which is not a folder: set it to the unpacked Kaggle data set")
    return Path(folder)


@pytest.fixture(scope="session")
def draw_pairs():
    """A function that writes small frames with a bright ellipse each, and its outline."""

    def draw(folder, count=30, noise=20, brighter=60.0, siblings=False):
        folder.mkdir(parents=True)
        rng = np.random.default_rng(0)
        for number in range(1, count + 1):
            centre, axes = rng.integers((45, 38), (116, 71)), rng.integers((22, 18), (40, 32))
            shape = (tuple(map(int, centre)), tuple(map(int, axes)), float(rng.integers(180)), 0, 360)
            inside, outline = np.zeros((108, 160), np.uint8), np.zeros((108, 160), np.uint8)
            cv2.ellipse(inside, *shape, 1, -1)
            cv2.ellipse(outline, *shape, 255, 1)
            frame = np.clip(rng.normal(60, noise, inside.shape) + brighter * inside, 0, 255).astype(np.uint8)
            name = f"{number}_{'2HC' if siblings and number % 3 == 1 else 'HC'}"  # every third with a sibling
            cv2.imwrite(str(folder / f"{name}.png"), frame)
            cv2.imwrite(str(folder / f"{name}_Annotation.png"), outline)

    return draw


@pytest.fixture(scope="module")
def bright_run(tmp_path_factory, draw_pairs):
    """A run folder with bright heads, some with a sibling, prepared at 48 × 32."""
    root = tmp_path_factory.mktemp("bright")
    draw_pairs(root / "malignant", noise=15, brighter=130.0, siblings=True)
    preprocessing.ensure_prepared(root / "run", 48, 32, data=str(root / "malignant"), seed=0)
    return root / "run"
