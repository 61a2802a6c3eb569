"""Checkpoints that are whole or absent, and say what they belong to."""

import hashlib
import zipfile
from pathlib import Path

import torch

from fetalseg_helpers import unet
from fetalseg_helpers.workspace import FetalsegError, shown, written_whole

FORMAT = 2
ARCHITECTURE = ("base_channels", "depth", "normalisation")


def weights_sha256(weights):
    """SHA-256 over all tensors of a state dictionary, names and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_checkpoint(path, state):
    """Write a checkpoint with its format version and the checksum of its weights, whole or not at all."""
    state = {"format": FORMAT} | state | {"sha256": weights_sha256(state["network"])}
    with written_whole(path) as temporary:
        try:
            torch.save(state, temporary)
        except RuntimeError as error:  # torch's own writer reports a full disk so
            raise OSError(28, f"torch could not write: {str(error).splitlines()[0]}") from error


def load_checkpoint(path):
    """Read a checkpoint and make sure that it is whole.

    Returns
    -------
    dict
        `settings`, `canvas`, `epoch`, `valid_dice`, `network` (the weights), and in `last.pt` what a resumed
        training needs.

    Raises
    ------
    FetalsegError
        If the file is missing, is no checkpoint of this course, or its weights do not match their checksum.
    """
    path = Path(path)
    if not path.exists():
        raise FetalsegError(f"{shown(path)} is not there: run notebook 05 first, or give the right checkpoint.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        with zipfile.ZipFile(path) as file:  # torch does not look at the checksums that it writes
            whole = file.testzip() is None
        whole = whole and state["format"] == FORMAT and state["sha256"] == weights_sha256(state["network"])
    except PermissionError:
        raise
    except Exception as error:  # torch raises many kinds for a damaged file
        raise FetalsegError(f"{shown(path)} is no checkpoint of this course, or it is damaged: train again.") from error
    if not whole:
        raise FetalsegError(f"{shown(path)} is damaged or of another version: train again.")
    return state


def load_network(path, device=None):
    """The trained network of a checkpoint, ready to predict, and the checkpoint itself.

    Raises
    ------
    FetalsegError
        As `load_checkpoint`, and if the weights do not fit the network that the settings describe.
    """
    state = load_checkpoint(path)
    try:
        network = unet.make_network(*(state["settings"][name] for name in ARCHITECTURE), device)
        network.load_state_dict(state["network"])
    except (RuntimeError, TypeError, KeyError) as error:
        raise FetalsegError(
            f"{shown(path)} holds weights of another shape than its settings say: train again."
        ) from error
    return network.eval(), state


def begin_with(network, path):
    """Take over the weights of a checkpoint, from whatever data they were learnt.

    Raises
    ------
    FetalsegError
        As `load_checkpoint`, and if the weights are of another network.
    """
    try:
        network.load_state_dict(load_checkpoint(path)["network"])
    except RuntimeError as error:
        raise FetalsegError(
            f"{shown(path)} holds weights of another network: give the base_channels, depth and normalisation it has."
        ) from error
