"""Training: the settings, the loss, the loop over batches, checkpoints, and a trainer that can be stopped anywhere."""

import copy
import hashlib
import time
import zipfile
from dataclasses import asdict, dataclass, fields
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn import functional
from torch.optim.lr_scheduler import ConstantLR, OneCycleLR
from torch.utils.data import DataLoader, RandomSampler

from fetalseg_helpers import evaluation, loading, preprocessing, unet, verification, workspace
from fetalseg_helpers.workspace import FetalsegError, bfloat16_pays, shown, spare_threads

FORMAT = 3  # of checkpoints
PRETRAINED = Path(__file__).parent / "phantoms" / "pretrained.pt"  # the network that ships
# What a checkpoint may say of its network and its canvas: at least all that a notebook may ask for.
ARCHITECTURE = {"base_channels": range(1, 4097), "depth": range(13), "normalisation": tuple(unet.NORMALISATIONS)}
CANVAS = {"width": range(1, 4097), "height": range(1, 4097), "fit": ("scale", "pad")}
HISTORY_COLUMNS = ["epoch", "train_loss", "valid_loss", "valid_dice", "learning_rate", "seconds"]
# What belongs to the network of `checkpoint.pt` and goes when another takes its place.
RESULTS = ["metrics.csv", "metrics.json", "model_card.md", "predictions", "robustness.csv", "leak.csv"]
RESULTS += ["leak_paired.csv", "notebooks/06_evaluation.ipynb", "notebooks/08_beyond_dice.ipynb"]


@dataclass(frozen=True)
class Settings:
    """All that a training depends on besides the prepared arrays. The defaults are those of the preset `quick`."""

    base_channels: int = 8
    depth: int = 4
    normalisation: str = "batch"  # 'none' or 'batch'
    epochs: int = 35
    batch_size: int = 8
    learning_rate: float = 4e-3  # the highest of the one-cycle schedule, or the constant one
    schedule: str = "one-cycle"  # 'one-cycle' or 'constant'
    weight_decay: float = 1e-5
    gradient_norm: float = 1.0  # longer gradients are shortened to this
    bce_weight: float = 0.2
    foreground_weighting: bool = False  # weigh tumor pixels in the BCE by background / foreground
    augmented: bool = True
    patience: int = 15  # epochs without a better validation Dice before stopping
    seed: int = 0
    start: str = "scratch"  # or 'pretrained', the network that ships, or a checkpoint's path: the first weights

    @classmethod
    def of(cls, values):
        """The settings among the values of a preset or of a command line; the rest is for others."""
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})


def dice_loss(logits, truth, smooth=1.0):
    """1 minus the soft Dice of each image, averaged over the batch (Milletari et al., 3DV 2016).

    Logits and truth, 0 or 1, have shape (batch, 1, height, width); the loss is a scalar tensor, 0 (perfect) to 1.
    `smooth` is added above and below, and keeps an empty truth from dividing by zero.
    """
    probability = torch.sigmoid(logits)
    overlap = (probability * truth).sum(dim=(1, 2, 3))  # (batch,)
    total = probability.sum(dim=(1, 2, 3)) + truth.sum(dim=(1, 2, 3))
    return 1 - ((2 * overlap + smooth) / (total + smooth)).mean()


def combined_loss(logits, truth, bce_weight=0.2, positive_weight=None):
    """Dice loss + `bce_weight` × binary cross-entropy on logits, both of shape (batch, 1, height, width).

    `positive_weight`, a tensor, is the weight of tumor pixels in the cross-entropy.
    """
    bce = functional.binary_cross_entropy_with_logits(logits, truth, pos_weight=positive_weight)
    return dice_loss(logits, truth) + bce_weight * bce


def train_one_epoch(network, loader, loss_function, optimiser, scheduler, gradient_norm=1.0, reduced=False):
    """Show every batch to the network once; returns the mean loss over the images, a float.

    `loader` is a torch DataLoader of (images, masks), and `loss_function` takes (logits, truth). `optimiser` and
    `scheduler` are as `make_optimiser` and `make_scheduler` give them; the scheduler is stepped once per batch. Longer
    gradients are shortened to `gradient_norm`. With `reduced`, bfloat16 is used where it is safe.
    """
    network.train()
    device = next(network.parameters()).device
    total = torch.zeros((), device=device)  # read once at the end: reading it makes a GPU wait
    for images, masks in loader:
        spare_threads()  # another process may keep a core busy
        images, masks = images.to(device), masks.to(device)  # (batch, 1, height, width)
        with torch.autocast(device.type, torch.bfloat16, enabled=reduced):
            logits = network(images)
        loss = loss_function(logits.float(), masks)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), gradient_norm)
        optimiser.step()
        scheduler.step()
        total += loss.detach() * len(images)
    return total.item() / len(loader.sampler)


@torch.inference_mode()
def validate(network, dataset, loss_function, batch_size=8):
    """Mean loss and mean Dice at threshold 0.5, at training size, over a data set that is not augmented."""
    network.eval()
    device = next(network.parameters()).device
    losses, scores = [], []
    for images, masks in DataLoader(dataset, batch_size):
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16_pays(device)):
            logits = network(images.to(device)).float()
        losses.append(loss_function(logits, masks.to(device)).item() * len(images))
        predictions = (logits > 0).cpu().numpy()
        scores += [evaluation.dice_score(p, t) for p, t in zip(predictions, masks.numpy() > 0, strict=True)]
    return sum(losses) / len(dataset), float(np.mean(scores))


def make_optimiser(network, settings):
    """Adam (Kingma and Ba, arXiv 1412.6980) over all weights, in one fused operation per step."""
    return torch.optim.Adam(
        network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )


def make_scheduler(optimiser, settings, steps):
    """The learning rate over all steps: constant, or one cycle up and down (Smith and Topin, arXiv 1708.07120)."""
    if settings.schedule == "constant":
        return ConstantLR(optimiser, factor=1.0)
    return OneCycleLR(optimiser, settings.learning_rate, total_steps=max(2, steps) + 1, cycle_momentum=False)


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
    with workspace.written_whole(path) as temporary:
        try:
            torch.save(state, temporary)
        except RuntimeError as error:  # torch's own writer reports a full disk so
            raise OSError(28, f"torch could not write: {str(error).splitlines()[0]}") from error


def load_checkpoint(path):
    """Read a checkpoint, or weights alone, and make sure that all of it can be used; code in a file is never run.

    `path` 'pretrained' is the network that ships. Gives a dictionary of `settings`, `canvas`, `epoch`, `valid_dice`,
    `network` (weights), `sha256`, and what `last.pt` needs to resume. A FetalsegError says why a file cannot be used.
    """
    path = PRETRAINED if path == "pretrained" else Path(path)
    if not path.is_file():
        raise FetalsegError(f"there is no file {shown(path)}: run notebook 05 first, or give the right checkpoint.")
    try:
        content = path.read_bytes()  # from the file itself, torch makes an OSError of damage
        with zipfile.ZipFile(BytesIO(content)) as file:  # torch itself looks at nothing of this
            unpacked = sum(record.file_size for record in file.infolist())
            folders = [record for record in file.infolist() if record.external_attr & 0x10]  # torch leaves them unread
            if folders or unpacked > len(content) or file.testzip():
                raise zipfile.BadZipFile
        return usable(torch.load(BytesIO(content), map_location="cpu", weights_only=True))
    except OSError as error:
        raise FetalsegError(f"{shown(path)} cannot be read ({error.strerror or error}): try again.") from error
    except Exception as error:  # torch raises many kinds for a damaged file
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            raise MemoryError(f"not enough memory to read {shown(path)}") from error
        why = error if isinstance(error, FetalsegError) else "damaged, or another kind of file"
        raise FetalsegError(f"{shown(path)} is no usable checkpoint ({why}): train again, or give another.") from error


def usable(state):
    """What a file holds, as a state; a FetalsegError, or any other error, says why it cannot be used."""
    for weight in state.get("network", state).values():
        if weight.nbytes > weight.untyped_storage().nbytes() or not weight.isfinite().all():
            raise FetalsegError("not all of its weights are stored as finite numbers")
    state = dict(state) if "network" in state else around(state)
    for part, bounds in {"settings": ARCHITECTURE, "canvas": CANVAS}.items():
        for name, allowed in bounds.items():
            value = state[part].get(name)
            if type(value) not in (int, str) or value not in allowed:
                raise FetalsegError(f"its {name} cannot be {repr(value).splitlines()[0]:.20}")
    uneven = any(state["canvas"][side] % 2 ** state["settings"]["depth"] for side in ("width", "height"))
    wrong = [name for name, kind in {"epoch": int, "valid_dice": float}.items() if type(state.get(name)) is not kind]
    if uneven or wrong or state["format"] != FORMAT or state["sha256"] != weights_sha256(state["network"]):
        raise FetalsegError("damaged, or of another version")
    return state


def around(weights):
    """The state for weights alone: a U-Net by their names and shapes, the canvas of the preset `laptop`, epoch 0."""
    weights = without_prefix(weights)
    depth = sum(name.endswith("enlarge.weight") for name in weights)
    normalisation = "batch" if "first.layers.1.weight" in weights else "none"
    settings = {"base_channels": weights["last.weight"].numel(), "depth": depth, "normalisation": normalisation}
    width, height = (-(-size // 2**depth) * 2**depth for size in (96, 64))  # larger where a deep network needs it
    canvas = {"width": width, "height": height, "fit": "scale"}
    state = {"format": FORMAT, "settings": settings, "canvas": canvas, "epoch": 0, "valid_dice": np.nan}
    return state | {"network": weights, "sha256": weights_sha256(weights)}


def without_prefix(weights):
    """Weights by the names in their network: DataParallel and torch.compile put one of their own before each."""
    for prefix in ("module.", "_orig_mod.", "module."):  # in either order
        if all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): weight for name, weight in weights.items()}
    return weights


def load_weights(network, weights, path, assign=False):
    """Put the weights of a checkpoint into a network; FetalsegError, with its `path`, if they are of another."""
    try:
        same_names = weights.keys() == network.state_dict().keys()
        network.load_state_dict(weights if same_names else without_prefix(weights), assign=assign)
    except (RuntimeError, TypeError, AttributeError) as error:
        shape = ", ".join(ARCHITECTURE)
        raise FetalsegError(f"{shown(path)} holds weights of another network: give its own, or its {shape}.") from error


def load_network(path, network=None):
    """The trained network of a checkpoint, ready to predict, and the checkpoint itself.

    The weights go into `network`, or into the U-Net that the settings describe. For weights alone, a line says which
    size is assumed. Raises a FetalsegError as `load_checkpoint`, and if they are of another network.
    """
    state = load_checkpoint(path)
    if state["epoch"] == 0:  # weights alone
        size = f"{state['canvas']['width']} × {state['canvas']['height']}"
        print(f"{shown(path)} does not say at which size it was trained: images are scaled to {size}.")
    if network is None:
        shape = [state["settings"][name] for name in ARCHITECTURE]
        with torch.device("meta"):  # which takes no memory: do the weights fit at all?
            load_weights(unet.UNet(*shape), state["network"], path, assign=True)
        network = unet.make_network(*shape)
    load_weights(network, state["network"], path)
    return network.eval(), state


class Trainer:
    """One training in a run folder: its data, network, optimiser and history. It may be stopped at any moment.

    Parameters
    ----------
    run_dir : str or Path, with `prepared/` in it
    settings : Settings
    network : torch.nn.Module from (batch, 1, height, width) to logits of that shape; by default the U-Net of `settings`
    loss : callable of (logits, truth); by default `combined_loss` with the weights of `settings`
    train_epoch : callable that shows every batch once, as `train_one_epoch`
    resume : bool, whether to go on from `last.pt` where there is one

    A FetalsegError says if a split is empty, the training split smaller than a batch, the canvas does not divide by
    2^depth, `last.pt` was made with other settings or data, or the first weights are of another network.
    """

    def __init__(self, run_dir, settings, network=None, loss=None, train_epoch=train_one_epoch, resume=False):
        self.folder, self.settings = workspace.run_folder(run_dir), settings
        self.device = workspace.choose_device()
        self.canvas = preprocessing.read_canvas(run_dir)
        unet.check_divisible(self.canvas["height"], self.canvas["width"], settings.depth)
        augmentation = preprocessing.augment if settings.augmented else None
        train_pairs, valid_pairs = (verification.usable_pairs(run_dir, split) for split in ("train", "valid"))
        self.train_set = preprocessing.PreparedDataset(run_dir, train_pairs, augmentation, settings.seed)
        self.valid_set = preprocessing.PreparedDataset(run_dir, valid_pairs)
        self.check_batches()
        torch.manual_seed(settings.seed)
        shape = (getattr(settings, name) for name in ARCHITECTURE)
        self.network = network.to(self.device) if network else unet.make_network(*shape)
        self.loss_function = loss or self.usual_loss()
        self.train_epoch, self.make_optimiser = train_epoch, make_optimiser  # others may take their places
        self.reduced = bfloat16_pays(self.device)
        self.history = []
        self.belongs_to = self.identity()  # once: files that change meanwhile are not what was learnt from
        resume = resume and (self.folder / "last.pt").exists()
        if settings.start != "scratch" and not resume:
            start = settings.start if settings.start == "pretrained" else workspace.project_root() / settings.start
            load_weights(self.network, load_checkpoint(start)["network"], start)
        self.first_weights = copy.deepcopy(self.network.state_dict())
        self.go_back(resume)

    def check_batches(self):
        """Refuse a batch that the training images cannot fill, or that batch normalisation cannot use."""
        images, size, depth = len(self.train_set), self.settings.batch_size, self.settings.depth
        if size > images:
            raise FetalsegError(f"batch_size {size} is more than the {images} training images: lower it.")
        smallest = self.canvas["height"] * self.canvas["width"] // 4**depth  # pixels at the bottom of the U
        if self.settings.normalisation == "batch" and smallest == 1 and 1 in (size, images % size):
            raise FetalsegError(f"batch normalisation over one pixel, at depth {depth}: change batch_size or depth.")

    def usual_loss(self):
        """`combined_loss` with the weights of the settings."""
        weight = None
        if self.settings.foreground_weighting:  # background pixels for each tumor pixel, over the training masks
            share = np.mean([self.train_set.masks[row].mean() for row in self.train_set.rows])
            weight = torch.tensor((1 - share) / share, dtype=torch.float32, device=self.device)
        return partial(combined_loss, bce_weight=self.settings.bce_weight, positive_weight=weight)

    def go_back(self, resume=False):
        """Go back to the end of the last complete epoch, which `last.pt` holds, or to the beginning."""
        self.trained = self.model()
        self.optimiser = self.make_optimiser(self.network, self.settings)
        batches = -(-len(self.train_set) // self.settings.batch_size)
        self.scheduler = make_scheduler(self.optimiser, self.settings, self.settings.epochs * batches)
        if not (self.history or resume):
            self.network.load_state_dict(self.first_weights)
            return
        state = load_checkpoint(self.folder / "last.pt")
        self.check_same(state)
        load_weights(self.network, state["network"], self.folder / "last.pt")
        self.optimiser.load_state_dict(state["optimiser"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.history = state["history"]  # and into the file: a training that was killed may not have written it
        workspace.write_table(self.folder / "history.csv", pd.DataFrame(self.history, columns=HISTORY_COLUMNS))

    def check_same(self, state):
        """Refuse the state of a training of other settings, data or processes."""
        path, mine = shown(self.folder / "last.pt"), self.belongs_to
        if "optimiser" not in state:
            raise FetalsegError(f"{path} is a checkpoint.pt, which holds no optimiser to go on with: train anew.")
        was = [f"{name} {state['settings'].get(name)}" for name, value in mine["settings"].items()
               if state["settings"].get(name, "scratch") != value]  # fmt: skip
        if state.get("processes") != mine["processes"]:
            was.append(f"{state.get('processes')} processes")
        if any(state.get(name) != mine[name] for name in ("canvas", "images", "pixels")):
            was.append("other data or at another size")
        if was:
            raise FetalsegError(f"{path} was made with {', '.join(was)}: give the same to resume, or train anew.")

    def epochs(self):
        """Run epoch after epoch, giving each row of the history, until the last one or until patience is out.

        After an interruption it goes on, when called again, from the end of the last complete epoch.
        """
        with self.locked():
            self.go_back()
            while len(self.history) < self.settings.epochs and self.epochs_since_best() < self.settings.patience:
                yield self.run_epoch()

    def epochs_since_best(self):
        """How many epochs have passed since the best validation Dice."""
        scores = [row["valid_dice"] for row in self.history]
        return len(scores) - 1 - int(np.argmax(scores)) if scores else 0

    def run_epoch(self):
        """Train and validate once, save; return the row of the history."""
        epoch, started = len(self.history) + 1, time.perf_counter()
        loader, norm = self.batches(epoch), self.settings.gradient_norm
        optimiser, schedule = self.optimiser, self.scheduler
        rate = optimiser.param_groups[0]["lr"]
        torch.set_flush_denormal(True)  # to 0: what dead filters leave takes up to six times as long
        train_loss = self.train_epoch(self.trained, loader, self.loss_function, optimiser, schedule, norm, self.reduced)
        train_loss, valid_loss, valid_dice = self.checked(train_loss, len(loader.sampler))
        torch.set_flush_denormal(False)
        if not np.isfinite([train_loss, valid_loss]).all():
            raise FetalsegError(f"the loss of epoch {epoch} is not finite: lower learning_rate (earlier epochs stay).")
        row = (epoch, train_loss, valid_loss, valid_dice, rate, time.perf_counter() - started)
        row = dict(zip(HISTORY_COLUMNS, row, strict=True))
        self.save(row)
        self.history.append(row)
        return row

    def save(self, row):
        """Write `checkpoint.pt` if this epoch is the best so far, `last.pt` and `history.csv`."""
        state = self.belongs_to | {"epoch": row["epoch"], "valid_dice": row["valid_dice"]}
        state["network"] = self.network.state_dict()
        if not self.history:  # what an older training left must not go on from here
            workspace.remove(self.folder / "last.pt")
        if row["valid_dice"] > max((earlier["valid_dice"] for earlier in self.history), default=-1.0):
            for name in RESULTS:
                workspace.remove(self.folder / name)
            save_checkpoint(self.folder / "checkpoint.pt", state)
        state["history"] = [*self.history, row]
        state["optimiser"], state["scheduler"] = self.optimiser.state_dict(), self.scheduler.state_dict()
        save_checkpoint(self.folder / "last.pt", state)
        workspace.write_table(self.folder / "history.csv", pd.DataFrame(state["history"], columns=HISTORY_COLUMNS))

    # What several processes do otherwise: running/processes.py

    def model(self):
        """What is trained: the network itself."""
        return self.network

    def identity(self):
        """What a checkpoint belongs to: settings, canvas, number of processes, and images by name and content."""
        return {"settings": asdict(self.settings), "canvas": self.canvas, "processes": 1} | learnt_from(self.folder)

    def batches(self, epoch):
        """The batches of an epoch: every image once, order and variations known from seed and epoch."""
        self.train_set.epoch = epoch
        order = torch.Generator().manual_seed(self.settings.seed * 100_003 + epoch)
        sampler = RandomSampler(self.train_set, generator=order)
        return DataLoader(self.train_set, self.settings.batch_size, sampler=sampler)

    def checked(self, train_loss, images):
        """Training loss over `images` images, and loss and Dice of the validation, over all processes."""
        return train_loss, *validate(self.network, self.valid_set, self.loss_function, self.settings.batch_size)

    def locked(self):
        """The lock of the run folder, as a context manager."""
        return workspace.locked(self.folder)


def learnt_from(run_dir):
    """What a network learns from: names of the images of training and validation, contents of the arrays."""
    images = [list(verification.usable_pairs(run_dir, split).image_id) for split in ("train", "valid")]
    arrays = [workspace.run_folder(run_dir) / "prepared" / name for name in ("images.npy", "masks.npy")]
    return {"images": images, "pixels": [loading.fingerprint(path) for path in arrays]}


def train(trainer, report=print):
    """Train without a notebook, a line per epoch; returns the history as a table."""
    for row in trainer.epochs():
        losses = f"train loss {row['train_loss']:.4f}  valid loss {row['valid_loss']:.4f}"
        done = f"{row['epoch']:3d}/{trainer.settings.epochs}"
        report(f"epoch {done}  {losses}  valid Dice {row['valid_dice']:.4f}  {row['seconds']:.1f} s")
    return pd.DataFrame(trainer.history, columns=HISTORY_COLUMNS)
