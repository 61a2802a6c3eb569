"""The stages of a run folder: made where one is needed and missing, refused where it was made from something else."""

from pathlib import Path

from fetalseg_helpers import loading, preprocessing, training, verification
from fetalseg_helpers.workspace import CANVAS_KEYS, FetalsegError, project_root, read_json, run_folder, shown

OF_DATA = ("data", "seed", "phantoms", "split_by", "examinations", "negatives")  # parameters that decide the manifest
DOWNLOADED = ("kaggle", "hc18")  # data sets that the command `fetch` puts into data/<name>


def find_data(data, run_dir, phantoms=400):
    """Folder of the data set that `data` names: 'phantom', 'kaggle', 'hc18', or a folder, relative to the project root.

    Phantoms are made if they are not there yet, in the folder `phantom_<count>` of the run folder; one beside it, which
    several runs share, goes first. Where a folder is missing, a FetalsegError says how to get it.
    """
    if data == "phantom":
        folder = run_folder(run_dir)
        shared = folder.parent / f"phantom_{phantoms}"
        return shared if shared.is_dir() else make_phantoms(folder, phantoms)
    folder = project_root() / (f"data/{data}" if data in DOWNLOADED else Path(data).expanduser())
    if not folder.is_dir():
        remedy = f"run: python -m fetalseg_helpers fetch {data}" if data in DOWNLOADED else "check the path"
        raise FetalsegError(f"{shown(folder)} is not a folder: {remedy}, or use data = 'phantom'.")
    return folder


def make_phantoms(home, count):
    """Make phantoms in `phantom_<count>` of the folder `home`, unless they are there; returns their folder."""
    from fetalseg_helpers.phantoms.dataset import write_phantoms  # only here: nobody else needs the simulator

    folder = home / f"phantom_{count}"
    if not (folder.is_dir() and any(folder.iterdir())):
        print(f"{count} phantom frames are being made in {shown(folder)}.")
        write_phantoms(folder, count=count, seed=0)
    return folder


def ensure_manifest(run_dir, **asked):
    """Read the manifest; make it first where it is missing, and say so.

    `asked` is as for `loading.write_manifest`: `data`, `seed`, `phantoms` and so on. What is not asked may be anything.
    A FetalsegError refuses a manifest that was made from something else, or before files of the data changed.
    """
    path = run_folder(run_dir) / "manifest.csv"
    made = read_json(path.with_name("data.json"))
    if not made or not path.exists():
        asked = {"data": "phantom", "phantoms": 400} | asked
        root = find_data(asked["data"], run_dir, asked["phantoms"])
        manifest = loading.write_manifest(run_dir, root=root, **asked)
        print(f"{shown(path)} made: {len(manifest)} pairs (notebook 01 explains it).")
        return manifest
    made.setdefault("negatives", False)  # as it was before there was a choice
    for name, value in asked.items():
        if value == made.get(name, value) or (name == "phantoms" and made["data"] != "phantom"):
            continue
        folders = name == "data" and "phantom" not in (value, made["data"])  # one may be written in two ways
        if not (folders and shown(find_data(value, run_dir)) == made["root"]):
            refuse(path, f"was made with {name} {made[name]}, not {value}", "01")
    manifest = loading.read_manifest(run_dir)
    if loading.fingerprint_files(project_root() / made["root"], manifest) != made["files"]:
        refuse(path, f"was made before files in {made['root']} changed", "01 and those after it")
    return manifest


def ensure_prepared(run_dir, width=None, height=None, fit=None, **data):
    """Make `prepared/` where it is missing, and say so.

    What is not asked may be anything, or is made at 64 × 48 pixels, scaled. `data` is for `ensure_manifest`.
    A FetalsegError refuses what was made at another size than asked, or from another manifest or other files.
    """
    ensure_manifest(run_dir, **data)
    folder = run_folder(run_dir) / "prepared"
    found = read_json(folder / "settings.json")
    if not found:
        width, height = width or 64, height or 48
        preprocessing.prepare(run_dir, width, height, fit or "scale")
        print(f"{shown(folder)} made, {width} × {height} pixels (notebook 02 explains it).")
    elif found.get("source") != loading.source(run_dir):
        refuse(folder, "was made from another manifest or other files than there are now", "02")
    for name, value in zip(CANVAS_KEYS, (width, height, fit), strict=True):
        if found and value not in (None, found[name]):
            refuse(folder, f"was made with {name} {found[name]}, not {value}", "02")


def ensure_verified(run_dir, width=None, height=None, fit=None, **data):
    """Manifest, prepared arrays and findings of a run folder; whatever is missing is made, and said so.

    Gives the table of `verification.usable_pairs`. A FetalsegError refuses what was made from something else than
    asked, or than the one before it.
    """
    ensure_prepared(run_dir, width, height, fit, **data)
    path = run_folder(run_dir) / "verification.csv"
    found = read_json(path.with_suffix(".json"))
    if not found or not path.exists():
        verification.write_verification(run_dir)
        print(f"{shown(path)} made (notebook 03 explains it).")
    elif found.get("source") != loading.source(run_dir):
        refuse(path, "was made from another manifest or other files", "03")
    return verification.usable_pairs(run_dir)


def ensure_checkpoint(run_dir, settings=None, network=None):
    """The network of `checkpoint.pt` and its state, as `training.load_network`; trained first where there is none.

    The weights go into `network` if that is given. A FetalsegError says if they were trained on other images, or at
    another size, than `prepared/` holds; they are never replaced here.
    """
    path, settings = run_folder(run_dir) / "checkpoint.pt", settings or training.Settings()
    if not path.exists():
        print(f"{shown(path)} is being trained for {settings.epochs} epochs (notebook 05 explains it).")
        training.train(training.Trainer(run_dir, settings, network))
    network, state = training.load_network(path, network)
    canvas = preprocessing.read_canvas(run_dir)
    if state["canvas"] != canvas:
        sizes = [f"{each['width']} × {each['height']} ({each['fit']})" for each in (state["canvas"], canvas)]
        refuse(path, f"was trained at {sizes[0]}, and prepared/ is {sizes[1]}", "05")
    if any(state.get(name) != value for name, value in training.learnt_from(run_dir).items()):
        refuse(path, "was trained on other images, outlines or another split than prepared/ holds", "05")
    return network, state


def refuse(path, why, notebooks):
    """Raise the FetalsegError of a stage that is there, but was made from something else."""
    remedies = f"give the same, choose another run_dir, or run notebook {notebooks} anew"
    raise FetalsegError(f"{shown(path)} {why}: {remedies}.")
