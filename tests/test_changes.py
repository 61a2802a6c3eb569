"""What students change in coursework: each change takes effect in notebooks 4 to 6, and nothing raises."""

import os
import re
import shutil
from collections import namedtuple

import numpy as np
import pandas as pd
import pytest
import torch
from test_notebooks import SMALL, execute, is_tagged, lesson, read

from fetalseg_helpers import training, unet
from fetalseg_helpers.workspace import read_json

TINY = SMALL | {"width": 32, "height": 32, "base_channels": 2, "depth": 2, "overfit_steps": 4, "trial_steps": 1}
Change = namedtuple("Change", "in_4 in_5 in_6", defaults=((), (), ()))
IMPORTS = "import torch\nfrom torch import nn\nfrom fetalseg_helpers.unet import NORMALISATIONS, check_divisible\n"
MAKE = "return unet.make_network(base_channels, depth, normalisation)"
OWN = "own_network = None"


def classes(old, new):
    """The cells of notebook 4 that define the U-Net, with a change, as one pastes them elsewhere."""
    cells = [cell.source for cell in read(lesson(4)).cells if is_tagged(cell, "taught")]
    source = IMPORTS + "\n\n\n".join(cells)
    assert source.count(old) == 1
    return source.replace(old, new)


def network(old, new):
    """A change of the network, pasted into notebooks 5 and 6."""
    pasted = classes(old, new)
    return Change(
        in_4=[(old, new)],
        in_5=[
            ("def make_network():", f"{pasted}\n\n\ndef make_network():"),
            (MAKE, "return UNet(2, 2, normalisation)"),
        ],
        in_6=[(OWN, f"{pasted}\n\n\nown_network = UNet(2, 2, 'batch')")],
    )


FOCAL = (
    "bce = functional.binary_cross_entropy_with_logits(logits, truth, pos_weight=positive_weight)",
    "bce = functional.binary_cross_entropy_with_logits(logits, truth, reduction='none')\n"
    "    bce = ((1 - torch.exp(-bce)) ** 2 * bce).mean()",
)
INVERTED = (
    "augmentation = preprocessing.augment if settings.augmented else None",
    "augmentation = lambda image, mask, rng: (255 - image, mask)",
)
MINE = ("    circumference_error,\n]", "    circumference_error,\n    lambda *_: {'mine': 7},\n]")
MOMENTUM = (
    "return torch.optim.Adam(\n        network.parameters(), lr=settings.learning_rate, "
    "weight_decay=settings.weight_decay, fused=True\n    )",
    "return torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)",
)
CHANGES = {
    "a smoothing of 100": Change(in_5=[("smooth=1.0", "smooth=100.0")]),
    "a focal loss": Change(in_5=[FOCAL]),
    "LeakyReLU": network("nn.ReLU(inplace=True)", "nn.LeakyReLU(0.1, inplace=True)"),
    "no skips": network("torch.cat([skip, self.enlarge(x)], dim=1)", "torch.cat([0 * skip, self.enlarge(x)], dim=1)"),
    "a convolution more": network("(in_channels, out_channels):", "(in_channels, out_channels, out_channels):"),
    "GroupNorm": network("NORMALISATIONS[normalisation](out_channels)", "nn.GroupNorm(1, out_channels)"),
    "an augmentation": Change(in_5=[INVERTED]),
    "a score": Change(in_6=[MINE]),
    "SGD with momentum": Change(in_5=[MOMENTUM]),
    "a threshold of 0.3": Change(),
}


@pytest.fixture(scope="module")
def usual(folders):
    """What notebooks 4 to 6 leave without a change."""
    return run(folders / f"unchanged_{os.getpid()}", Change())


def run(folder, change, trained=None, **values):
    """Run notebooks 4 to 6 in a folder; gives the names that each leaves, and all that they print.

    Where only notebook 6 is changed, what `trained` holds of the others is taken over.
    """
    values = TINY | {"run_dir": str(folder)} | values
    done, said = {}, ""
    as_before = trained is not None and not (change.in_4 or change.in_5)
    if as_before:
        shutil.copytree(trained[5]["trainer"].folder, folder)
        done[5] = trained[5]
    for number, changes in zip((4, 5, 6), change, strict=True):
        if number == 5 and as_before:
            continue
        if number == 4 and not changes and "unchanged" not in folder.name:
            continue  # notebook 4 as it is runs once, in `usual`
        done[number], printed = execute(lesson(number), values, *changes)
        said += printed
    return done, said


@pytest.mark.xdist_group("changes")
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_takes_effect_and_nothing_raises(name, usual, folders):
    values = {"threshold": 0.3} if name == "a threshold of 0.3" else {}
    before = usual[0]
    done, said = run(folders / re.sub(r"\W", "_", name), CHANGES[name], before, **values)
    trainer, scored = done[5]["trainer"], done[6]["network"]
    history, usual_history = (names[5]["history"].valid_loss.to_numpy() for names in (done, before))
    metrics = read_json(done[6]["folder"] / "metrics.json")
    assert metrics["images"] > 0 and np.isfinite(history).all()
    changed = re.findall(r"changed on this page: ([\w, ]+)\.", said)
    if name in ("a smoothing of 100", "a focal loss"):
        assert changed == ["dice_loss" if "smoothing" in name else "combined_loss"]
    if CHANGES[name].in_4:
        assert changed and type(trainer.network) is not unet.UNet and type(scored) is not unet.UNet
        assert str(scored) == str(trainer.network)
        kept = training.load_checkpoint(trainer.folder / "checkpoint.pt")["network"]
        assert all(torch.equal(value, scored.state_dict()[key].cpu()) for key, value in kept.items())
    if CHANGES[name].in_5:
        assert not np.array_equal(history, usual_history)
    else:
        assert np.array_equal(history, usual_history)
    effects = {
        "LeakyReLU": "LeakyReLU" in str(scored),
        "GroupNorm": "GroupNorm" in str(scored),
        "a convolution more": len(scored.first.layers) == 9,
        "an augmentation": trainer.train_set.augmentation is done[5]["augmentation"] is not None,
        "a score": "mine" in pd.read_csv(done[6]["folder"] / "metrics.csv"),
        "SGD with momentum": isinstance(trainer.optimiser, torch.optim.SGD),
        "a threshold of 0.3": metrics["threshold"] == 0.3,
    }
    assert effects.get(name, True)
