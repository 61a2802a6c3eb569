"""Data that several test files share."""

import os
from pathlib import Path

import pytest

from fetalseg_helpers import phantom

COUNT, SEED = 40, 1


@pytest.fixture(scope="session")
def phantom_set(tmp_path_factory):
    """Folder of 40 phantom frames with one or two defects of every kind. Read only: copy what you change."""
    return phantom.write_phantoms(tmp_path_factory.mktemp("shared") / "phantoms", COUNT, SEED, processes=1)


@pytest.fixture(scope="session")
def planted(phantom_set):
    """The defects of `phantom_set`: kind to list of names."""
    return phantom.planted_defects(COUNT, SEED)


@pytest.fixture(scope="session")
def clean_phantoms(tmp_path_factory):
    """Folder of 12 phantom frames without defects. Read only."""
    return phantom.write_phantoms(tmp_path_factory.mktemp("shared") / "clean", 12, SEED, processes=1, defects=False)


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
