"""From folders of files to pairs, examinations, a split, and the manifest that says which is which."""

import hashlib
import os
import re
import struct
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.model_selection import GroupShuffleSplit

from fetalseg_helpers import workspace
from fetalseg_helpers.workspace import FetalsegError, cv2, project_root, read_json, run_folder, shown, write_json

MANIFEST_COLUMNS = ["image_id", "image_path", "mask_path", "examination", "split", "width", "height"]
PAIR_COLUMNS = ["image_id", "image_path", "mask_path", "folder", "mask_folder", "origin", "problem", "files"]
PIXEL_SIZE_COLUMNS = ("image_id", "pixel_mm", "head_circumference_mm")  # of a table that may lie beside the images
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
CLASSES = ("benign", "malignant", "normal")
SPLIT_FOLDERS = {"train": "train", "validation": "valid", "valid": "valid", "val": "valid", "test": "test"}
SPLITS = ("train", "valid", "test")
LARGEST_IMAGE = 50_000_000  # pixels; a header that claims more is a mistake or an attack
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
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


def find_files(root):
    """List every image file below a folder, at whatever level of the data set's tree it begins.

    A row per file: `path`, `stem` (the pair's name, without `_Annotation`), `kind` ('image' or 'outline'), `tissue`
    ('benign', 'malignant', 'normal' or ''), `folder` ('train', 'valid', 'test' or ''). No file, or no folder, is a
    FetalsegError.
    """
    root = Path(root)
    if not root.is_dir():
        raise FetalsegError(f"{root} is not a folder: check the path.")
    rows, seen = [], set()
    for folder, inner, names in os.walk(root, followlinks=True):
        if (place := os.path.realpath(folder)) in seen:  # a link may lead round in a circle
            inner.clear()
            continue
        seen.add(place)
        inner[:] = sorted(name for name in inner if not name.startswith((".", "__MACOSX")))
        parts = [root.resolve().name, *Path(folder).relative_to(root).parts]
        parts = [part.lower() for part in reversed(parts)]  # the innermost folder decides
        tissue = next((part for part in parts if part in CLASSES), "")
        split = next((SPLIT_FOLDERS[part] for part in parts if part in SPLIT_FOLDERS), "")
        for path in (Path(folder, name) for name in sorted(names)):
            if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
                stem = re.sub(r"_annotation\Z", "", path.stem, flags=re.IGNORECASE)
                rows.append((path, stem, "image" if stem == path.stem else "outline", tissue, split))
    if not rows:
        raise FetalsegError(f"{root} holds no image file ({', '.join(sorted(SUFFIXES))}): check the path.")
    return pd.DataFrame(rows, columns=["path", "stem", "kind", "tissue", "folder"])


def match_pairs(files):
    """Match images and outlines by name, in one folder first, then over the whole tree; rows as in `load_pairs`.

    Each folder alone would lose the pairs whose files lie in different ones; the name alone would marry strangers.
    """
    named = {}
    for file in files[files.tissue.isin(["malignant", ""])].itertuples():
        named.setdefault(file.stem, []).append(file)
    top = os.path.commonpath([file.path.parent for same in named.values() for file in same] or [""])
    rows = []
    for stem in sorted(named, key=lambda stem: (natural_order(stem), stem)):
        pairs, left = match_name(named[stem])
        groups = pairs + ([left] if len({file.kind for file in left}) == 2 else [[file] for file in left])
        copies = [file.path for file in named[stem] if not any(file in group for group in groups)]
        for group in groups:
            paths = [file.path for file in group]
            by_kind = {} if group is left else {file.kind: file for file in group}
            image_id, origin, problem = stem, "", ""
            if len(groups) > 1 and pairs != [group]:  # a single whole pair keeps the bare name
                origin = paths[0].parent.relative_to(top).as_posix().replace("/", "_")
                image_id = stem if origin == "." else f"{origin}_{stem}"
            if group is left:
                names = ", ".join(path.relative_to(top).as_posix() for path in paths)
                problem = f"several files could be partners: {names}. "
                problem += "Keep one image and one outline of this name in a folder."
            partners = by_kind.get("image"), by_kind.get("outline")
            places = [getattr(file, "path", None) for file in partners]
            places += [getattr(file, "folder", "") for file in partners]
            rows.append([image_id, *places, origin, problem, paths + copies])
            copies = []  # the first row has accounted for them
    pairs = pd.DataFrame(rows, columns=PAIR_COLUMNS)
    number = (pairs.groupby("image_id").cumcount() + 1).astype(str)
    pairs["image_id"] = pairs.image_id.mask(pairs.image_id.duplicated(keep=False), pairs.image_id + "_" + number)
    return pairs


def match_name(files):
    """The pairs of one name, as lists of two files, and the files that are left; copies are in neither."""
    kinds = [file.kind for file in files]  # a file that is alone of its kind is no copy, and need not be read
    content = {file: file.kind + (fingerprint(file.path) if kinds.count(file.kind) > 1 else "") for file in files}
    in_splits = {content[file] for file in files if file.folder}
    folders = {}
    for file in files:
        folders.setdefault(file.path.parent, []).append(file)
    pairs, left, seen = [], [], set()
    for inside in sorted(folders.values(), key=is_pair, reverse=True):
        if not inside[0].folder and in_splits.issuperset(content[file] for file in inside):
            continue  # the data set's folder `Datasets` has copies of many
        new = [file for file in inside if content[file] not in seen]
        if new and is_pair(inside):  # both, since different frames may have the same outline
            pairs.append(inside)
        else:
            left += new
        seen.update(content[file] for file in inside)
    return ([left], []) if is_pair(left) and not pairs else (pairs, left)


def is_pair(files):
    """Whether files of one name are one image and one outline."""
    return sorted(file.kind for file in files) == ["image", "outline"]


def natural_order(name):
    """Sorting key that compares the numbers in a name as numbers."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def find_examinations(image_ids):
    """Which frames belong to one examination, read from their names: {'12_HC': 'E0012'}, after the first frame.

    In the Kaggle data set each number occurs once, and frames of one examination follow each other with rising
    suffix: 2HC < 3HC < 4HC < 7HC < HC. A suffix that does not rise starts a new examination. In HC18 the frames of one
    examination share their number. The rule splits none of HC18's 806 examinations and merges a few, which is safe: a
    merged examination can only keep frames together. A name of another form is an examination of its own.

    Examples
    --------
    >>> find_examinations(["1_2HC", "2_HC", "3_HC"])
    {'1_2HC': 'E0001', '2_HC': 'E0001', '3_HC': 'E0003'}
    >>> find_examinations(["010_HC", "010_2HC"])
    {'010_HC': 'E0010', '010_2HC': 'E0010'}
    """
    parsed = {name: re.fullmatch(r"(\d+)_(\d*)HC", name) for name in image_ids}
    numbered = sorted((int(match[1]), float(match[2] or "inf"), name) for name, match in parsed.items() if match)
    shared = len(numbered) - len({number for number, _, _ in numbered})
    like_hc18 = shared > len(numbered) / 10  # a fifth do there; in the Kaggle set at most a copy does
    examinations = {name: name for name in image_ids}
    suffix_before = float("inf")
    for number, suffix, name in numbered:
        if like_hc18 or suffix <= suffix_before:
            current = f"E{number:04d}"
        examinations[name] = current
        suffix_before = suffix
    return examinations


def split_pairs(pairs, by="examination", seed=0):
    """Put each pair in train (80 %), valid (10 %) or test (10 %): a Series of these names.

    `pairs` needs the columns `image_id`, `examination` and `folder`; `by`, 'examination', 'image' or 'folder', is the
    unit that stays whole. Only 'examination' keeps frames of one fetus out of both training and test. A FetalsegError
    says that there are fewer than three units, or that a pair lies outside the data set's split folders.
    """
    if by == "folder":
        if set(pairs.folder) != set(SPLITS):
            raise FetalsegError("split_by = 'folder' needs images in all three split folders: use 'examination'.")
        return pairs.folder
    groups = pairs[{"examination": "examination", "image": "image_id"}[by]].to_numpy()
    units = len(set(groups))
    if units < 3:
        raise FetalsegError(f"{units} {by}s cannot be split in three: give at least 3, better 30.")
    chooser = GroupShuffleSplit(n_splits=1, test_size=max(1, round(units / 10)), random_state=seed)
    split = np.full(len(pairs), "train", dtype=object)
    for name in ("test", "valid"):
        rest = np.flatnonzero(split == "train")
        _, chosen = next(chooser.split(rest, groups=groups[rest]))
        split[rest[chosen]] = name
    return pd.Series(split, index=pairs.index)


def image_size(path):
    """Width and height of an image in pixels, from its header; (0, 0) if that cannot be read."""
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, Image.DecompressionBombError):
        return 0, 0


def read_grey(path):
    """Read an 8-bit grey image as uint8 of shape (height, width).

    OpenCV gives None for a file that it cannot read and quietly cuts 16 bits to 8. Here a FetalsegError names a file
    that is missing, cut off, no image, not 8-bit, or larger than 50 million pixels.
    """
    try:
        data = Path(path).read_bytes()  # OpenCV itself fails on Windows paths with letters beyond ASCII
    except OSError as error:
        raise FetalsegError(f"{shown(path)} cannot be read ({error.strerror}): is it still there?") from error
    if data.startswith(PNG_START):
        if PNG_END not in data[24:]:
            raise FetalsegError(f"{shown(path)} is cut off after {len(data)} bytes: copy or download it again.")
        width, height = struct.unpack(">II", data[16:24])
        if width * height > LARGEST_IMAGE:
            raise FetalsegError(f"{shown(path)} says it has {width} × {height} pixels: no ultrasound frame has.")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:  # an empty file, or a header of another format that claims too many pixels
        image = None
    if image is None:
        raise FetalsegError(f"{shown(path)} is not an image that can be decoded: copy or download it again.")
    if image.dtype != np.uint8:
        raise FetalsegError(f"{shown(path)} has {image.dtype} pixels: convert it to 8-bit grey first.")
    return cv2.cvtColor(image[:, :, :3], cv2.COLOR_BGR2GRAY) if image.ndim == 3 else image


def fingerprint(path):
    """SHA-256 of a file's content, as 64 hexadecimal digits; '' for a missing file."""
    if not Path(path).exists():
        return ""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint_files(root, manifest):
    """SHA-256 over the names of all image files below a folder and the contents of those in the manifest."""
    digest = hashlib.sha256()
    used = {*manifest.image_path, *manifest.mask_path}
    for path in find_files(root).path:
        content = fingerprint(path) if path in used else ""
        digest.update(f"{path.relative_to(root).as_posix()} {content}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def source(run_dir):
    """SHA-256 of what everything after the manifest is made from: the manifest and the contents of its files."""
    path = run_folder(run_dir) / "manifest.csv"
    return hashlib.sha256(path.read_bytes() + read_json(path.with_name("data.json"))["files"].encode()).hexdigest()


def read_manifest(run_dir):
    """The table that notebook 01 wrote, one row per pair; paths are made absolute."""
    path = run_folder(run_dir) / "manifest.csv"
    if not path.exists():
        raise FetalsegError(f"{shown(path)} is not there: run notebook 01, or any later one, with this run_dir.")
    manifest = pd.read_csv(path, dtype={"image_id": str, "examination": str, "split": str}, keep_default_na=False)
    for column in ("image_path", "mask_path"):
        manifest[column] = [project_root() / name for name in manifest[column]]
    return manifest


def load_pairs(root):
    """Match the images and outlines of the malignant class below `root`, and find their examinations.

    A row per name, or several where it stands for different images, in natural order (2_HC before 10_HC): `image_id`
    (the name, with its folder before it if another has it too), `image_path`, `mask_path` (None where a partner is
    missing), `folder`, `mask_folder`, `origin` (the folder in `image_id`, or ''), `problem` (why these files cannot be
    matched, or ''), `files` (paths that the row accounts for, copies among them), `examination`. Where no image has an
    outline, a FetalsegError says so.
    """
    pairs = match_pairs(find_files(root))
    if pairs.dropna(subset=["image_path", "mask_path"]).empty:
        where = "in a folder 'malignant' or outside of class folders"
        raise FetalsegError(f"{root} holds no pair of NAME.png and NAME_Annotation.png {where}: check the path.")
    for origin, rows in pairs.groupby("origin"):
        names = rows.image_id.str.removeprefix(f"{origin}_" if origin else "")
        pairs.loc[rows.index, "examination"] = (f"{origin}/" if origin else "") + names.map(find_examinations(names))
    return pairs


def write_manifest(run_dir, data="phantom", seed=0, phantoms=400, split_by="examination", deal=split_pairs):
    """Find, pair and split the data (by `deal`); write `manifest.csv` and `data.json`, which says from what."""
    with workspace.locked(run_dir) as folder:
        root = find_data(data, run_dir, phantoms)
        pairs = load_pairs(root).dropna(subset=["image_path", "mask_path"])
        pairs["split"] = deal(pairs, split_by, seed)
        pairs["width"], pairs["height"] = zip(*map(image_size, pairs.image_path), strict=True)
        made = {"data": data, "seed": seed, "phantoms": phantoms, "split_by": split_by, "root": shown(root)}
        made["files"] = fingerprint_files(root, pairs)
        for column in ("image_path", "mask_path"):
            pairs[column] = pairs[column].map(shown)
        (folder / "data.json").unlink(missing_ok=True)  # written last, it vouches for the manifest
        workspace.write_table(folder / "manifest.csv", pairs[MANIFEST_COLUMNS])
        write_json(folder / "data.json", made)
    return read_manifest(run_dir)


def ensure_manifest(run_dir, **asked):
    """Read the manifest; make it first where it is missing, and say so.

    `asked` is as for `write_manifest`: `data`, `seed`, `phantoms`, `split_by`. What is not asked may be anything. A
    FetalsegError refuses a manifest that was made from something else, or before files of the data changed.
    """
    path = run_folder(run_dir) / "manifest.csv"
    made = read_json(path.with_name("data.json"))
    if not made or not path.exists():
        manifest = write_manifest(run_dir, **asked)
        print(f"{shown(path)} made: {len(manifest)} pairs (notebook 01 explains it).")
        return manifest
    for name, value in asked.items():
        if value == made[name] or (name == "phantoms" and made["data"] != "phantom"):
            continue
        folders = name == "data" and "phantom" not in (value, made["data"])
        if not (folders and shown(find_data(value, run_dir)) == made["root"]):  # one folder may be written in two ways
            refuse(path, f"was made with {name} {made[name]}, not {value}", "01")
    manifest = read_manifest(run_dir)
    if fingerprint_files(project_root() / made["root"], manifest) != made["files"]:
        refuse(path, f"was made before files in {made['root']} changed", "01 and those after it")
    return manifest


def refuse(path, why, notebooks):
    """Raise the FetalsegError of a stage that is there, but was made from something else."""
    raise FetalsegError(
        f"{shown(path)} {why}: give the same, choose another run_dir, or run notebook {notebooks} anew."
    )
