"""Data that several test files share, and one thread for torch."""

import os
import shutil
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, and for every process that a test starts

import cv2
import numpy as np
import pytest
import torch
from filelock import FileLock
from hypothesis import HealthCheck, settings

from fetalseg_helpers import workspace
from fetalseg_helpers.phantoms import dataset, frames
from fetalseg_helpers.running import lessons, pages, stages

# A busy machine is no failure, and two runs of the same code see the same examples.
settings.register_profile("steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")

COUNT, SEED = 40, 1


def pytest_configure():
    """One thread: results repeat to the bit, small networks are fastest so, and a busy neighbour does no harm."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def usual_numbers():
    """A training that a test breaks off leaves denormal numbers flushed, which hypothesis refuses."""
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """A function that makes a folder once for all processes of this test session; what is in it is read only."""
    home = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # each process has a folder of its own, in one that they share
        home = home.parent

    def make(name, build):
        folder = home / name
        with FileLock(home / f"{name}.lock"):
            if not folder.exists():
                unfinished = home / f"unfinished-{name}"
                build(unfinished)
                unfinished.rename(folder)
        return folder

    return make


def quick_frame(rng, examination=None, ellipse=None):
    """A phantom with the simulator's ellipses, but a flat picture: its echoes take nearly all of the time."""
    ellipse = ellipse or frames.draw_pose(rng, examination)
    mask, outline = frames.truth(ellipse)
    image = np.uint8(40 + 60 * mask)
    image[::9] += rng.integers(0, 40, image[::9].shape, dtype=np.uint8)  # no two are the same
    return frames.Phantom(image, mask, outline, ellipse)


@pytest.fixture(scope="session")
def phantom_set(made_once):
    """Folder like that of 40 phantom frames, with one or two defects of every kind; see `quick_frame`. Read only."""

    def write(folder):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dataset, "draw_frame", quick_frame)
            dataset.write_phantoms(folder, COUNT, SEED)

    return made_once("phantoms", write)


@pytest.fixture(scope="session")
def folders(made_once):
    """A folder for run folders, in which the 24 phantoms lie that they share; see `quick_frame`."""

    def write(folder):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dataset, "draw_frame", quick_frame)
            dataset.write_phantoms(folder / "phantom_24", 24, 0)

    return made_once("notebooks", write)


@pytest.fixture(scope="session")
def paged_run(made_once):
    """What a run leaves, as far as pages show it, two executed notebooks, figures and a card, with its pages."""

    def write(folder):
        (folder / "notebooks").mkdir(parents=True)
        for path in lessons.lessons()[1:3]:
            shutil.copy(path, folder / "notebooks")
        shutil.copytree(workspace.project_root() / "figures", folder / "figures")
        (folder / "model_card.md").write_text("# Model card\n\n## Scores\n\nDice 0.971\n", encoding="utf-8")
        assert pages.write_pages(folder) == folder / "index.html"

    return made_once("paged_run", write)


@pytest.fixture(scope="session")
def planted(phantom_set):
    """The defects of `phantom_set`: kind to list of names."""
    return dataset.planted_defects(COUNT, SEED)


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
    stages.ensure_prepared(root / "run", 48, 32, data=str(root / "malignant"), seed=0)
    return root / "run"
