"""From folders of files to pairs, examinations, a split, and the manifest that says which is which."""

import hashlib
import os
import re
import struct
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from fetalseg_helpers import sources
from fetalseg_helpers.workspace import (
    FetalsegError,
    project_root,
    read_json,
    run_folder,
    shown,
    write_json,
    write_table,
)

MANIFEST_COLUMNS = ["image_id", "image_path", "mask_path", "examination", "split", "width", "height"]
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
OUTLINE_ENDING = "_annotation"
CLASSES = ("benign", "malignant", "normal")
SPLIT_FOLDERS = {"train": "train", "validation": "valid", "valid": "valid", "val": "valid", "test": "test"}
SPLITS = ("train", "valid", "test")
LARGEST_IMAGE = 50_000_000  # pixels; a header that claims more is a mistake or an attack
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"


def find_files(root):
    """List every image file below a folder, at whatever level of the data set's tree it begins.

    Parameters
    ----------
    root : str or Path
        The whole data set, or any folder of it.

    Returns
    -------
    pandas.DataFrame
        One row per file, in the order of the paths: `path`, `stem` (the pair's name, without `_Annotation`),
        `kind` ('image' or 'outline'), `tissue` ('benign', 'malignant', 'normal' or ''), `folder` ('train',
        'valid', 'test' or '').

    Raises
    ------
    FetalsegError
        If the folder does not exist or holds no image.
    """
    root = Path(root)
    if not root.is_dir():
        raise FetalsegError(f"{root} is not a folder: check the path.")
    rows = []
    for folder, inner, names in os.walk(root):
        inner[:] = sorted(name for name in inner if not name.startswith((".", "__MACOSX")))
        parts = [root.resolve().name, *Path(folder).relative_to(root).parts]
        parts = [part.lower() for part in reversed(parts)]  # the innermost folder decides
        tissue = next((part for part in parts if part in CLASSES), "")
        split = next((SPLIT_FOLDERS[part] for part in parts if part in SPLIT_FOLDERS), "")
        for name in sorted(names):
            path = Path(folder) / name
            if path.suffix.lower() not in SUFFIXES or name.startswith("."):
                continue
            is_outline = path.stem.lower().endswith(OUTLINE_ENDING)
            stem = path.stem[: -len(OUTLINE_ENDING)] if is_outline else path.stem
            rows.append((path, stem, "outline" if is_outline else "image", tissue, split))
    if not rows:
        raise FetalsegError(f"{root} holds no image file ({', '.join(sorted(SUFFIXES))}): check the path.")
    return pd.DataFrame(rows, columns=["path", "stem", "kind", "tissue", "folder"])


def count_files(files):
    """Table of what lies where: rows are class and kind, columns the split folders ('' is outside of them)."""
    return files.pivot_table(index=["tissue", "kind"], columns="folder", values="path", aggfunc="count", fill_value=0)


def match_pairs(files):
    """Match images and outlines of the malignant class by name, over the whole tree.

    Matching inside each split folder would lose the pairs whose image and outline lie in different ones.
    Where a name occurs several times (the data set repeats its images in a folder `Datasets`), the copy in a
    split folder is taken.

    Returns
    -------
    pandas.DataFrame
        One row per name: `image_id`, `image_path`, `mask_path` (None where a partner is missing), `folder`,
        `mask_folder`, `copies` (files of that name beyond the two). In natural order: 2_HC before 10_HC.
    """
    used = files[files.tissue.isin(["malignant", ""])].copy()
    used["outside"] = used.folder == ""
    used = used.sort_values(["outside", "path"])
    first = {kind: rows.drop_duplicates("stem").set_index("stem") for kind, rows in used.groupby("kind")}
    nothing = used.iloc[:0].set_index("stem")
    images, outlines = first.get("image", nothing), first.get("outline", nothing)
    counts = used.stem.value_counts()
    rows = []
    for stem in sorted(set(images.index) | set(outlines.index), key=lambda name: (natural_order(name), name)):
        image = images.loc[stem] if stem in images.index else None
        outline = outlines.loc[stem] if stem in outlines.index else None
        found = [part for part in (image, outline) if part is not None]
        rows.append(
            {
                "image_id": stem,
                "image_path": None if image is None else image.path,
                "mask_path": None if outline is None else outline.path,
                "folder": "" if image is None else image.folder,
                "mask_folder": "" if outline is None else outline.folder,
                "copies": int(counts[stem]) - len(found),
            }
        )
    return pd.DataFrame(rows, columns=["image_id", "image_path", "mask_path", "folder", "mask_folder", "copies"])


def natural_order(name):
    """Sorting key that compares the numbers in a name as numbers."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def find_examinations(image_ids):
    """Which frames belong to one examination, read from their names.

    In the Kaggle data set each number occurs once, and frames of one examination follow each other with rising
    suffix: 2HC < 3HC < 4HC < 7HC < HC. A suffix that does not rise starts a new examination. In HC18 the
    frames of one examination share their number. The rule splits none of HC18's 806 examinations and merges
    a few, which is safe: a merged examination can only keep frames together.

    Parameters
    ----------
    image_ids : sequence of str
        Names of all images, those without an outline too.

    Returns
    -------
    dict of str to str
        Examination of each image, named after its first frame: 'E0012'. A name of another form is an
        examination of its own.

    Examples
    --------
    >>> find_examinations(["1_2HC", "2_HC", "3_HC"])
    {'1_2HC': 'E0001', '2_HC': 'E0001', '3_HC': 'E0003'}
    >>> find_examinations(["010_HC", "010_2HC"])
    {'010_HC': 'E0010', '010_2HC': 'E0010'}
    """
    parsed = {name: re.fullmatch(r"(\d+)_(\d*)HC", name) for name in image_ids}
    numbered = [(int(match[1]), int(match[2] or 1000), name) for name, match in parsed.items() if match]
    # A copy under a number that is taken does not make it HC18, where a fifth of the frames share one.
    shared_numbers = len({number for number, _, _ in numbered}) < 0.9 * len(numbered)
    names, rank_before, current = {}, 1001, ""
    for number, rank, name in sorted(numbered):
        if shared_numbers or rank <= rank_before:
            current = f"E{number:04d}"
        names[name], rank_before = current, rank
    return {name: names.get(name, name) for name in image_ids}


def split_pairs(pairs, by="examination", seed=0):
    """Put each pair in train (80 %), valid (10 %) or test (10 %).

    Parameters
    ----------
    pairs : pandas.DataFrame
        With the columns `image_id`, `examination` and `folder`.
    by : {'examination', 'image', 'folder'}
        The unit that stays whole. Only 'examination' keeps frames of one fetus out of both training and
        test; the others are there to show their leak.
    seed : int

    Returns
    -------
    pandas.Series of str
        The split of each row.

    Raises
    ------
    FetalsegError
        If fewer than three units are there, or a pair lies outside the data set's split folders.
    """
    from sklearn.model_selection import GroupShuffleSplit

    if by == "folder":
        outside = pairs.image_id[~pairs.folder.isin(SPLITS)]
        if len(outside) or set(pairs.folder) != set(SPLITS):
            raise FetalsegError(
                "split_by = 'folder' needs every image in a folder train, validation or test: use 'examination'."
            )
        return pairs.folder
    groups = pairs[{"examination": "examination", "image": "image_id"}[by]].to_numpy()
    units = len(set(groups))
    if units < 3:
        raise FetalsegError(f"{units} {by}s cannot be split in three: give at least 3, better 30.")
    held_out = max(1, round(units / 10))
    split = np.full(len(pairs), "train", dtype=object)
    rest = np.arange(len(pairs))
    for name in ("test", "valid"):
        chooser = GroupShuffleSplit(n_splits=1, test_size=held_out, random_state=seed)
        kept, chosen = next(chooser.split(rest, groups=groups[rest]))
        split[rest[chosen]] = name
        rest = rest[kept]
    return pd.Series(split, index=pairs.index)


def leak_table(pairs, seed=0):
    """How many test images share an examination with a training image, for each way to split that can be had."""
    rows = []
    for by in ("examination", "image", "folder"):
        try:
            split = split_pairs(pairs, by, seed)
        except FetalsegError:
            continue
        seen = set(pairs.examination[split == "train"])
        test = pairs.examination[split == "test"]
        counts = split.value_counts()
        rows.append(
            {
                "split by": by,
                **{name: counts.get(name, 0) for name in SPLITS},
                "test images seen": int(test.isin(seen).sum()),
            }
        )
    table = pd.DataFrame(rows, columns=["split by", *SPLITS, "test images seen"]).set_index("split by")
    table["share of test"] = (table["test images seen"] / table["test"]).round(2)
    return table


def image_size(path):
    """Width and height of an image in pixels, from the PNG header where there is one; (0, 0) if unreadable."""
    with open(path, "rb") as file:
        start = file.read(24)
    if start.startswith(PNG_START) and len(start) == 24:
        return struct.unpack(">II", start[16:24])
    try:
        height, width = read_grey(path).shape
    except FetalsegError:
        return 0, 0
    return width, height


def read_grey(path):
    """Read an 8-bit grey image.

    OpenCV gives None for a file that it cannot read and quietly cuts 16 bits to 8; here both are errors.

    Returns
    -------
    numpy.ndarray of uint8, shape (height, width)

    Raises
    ------
    FetalsegError
        If the file is missing, cut off, no image, not 8-bit, or larger than 50 million pixels.
    """
    path = Path(path)
    try:
        data = path.read_bytes()  # OpenCV itself fails on Windows paths with letters beyond ASCII
    except OSError as error:
        raise FetalsegError(f"{shown(path)} cannot be read ({error.strerror}): is it still there?") from error
    if data.startswith(PNG_START):
        width, height = struct.unpack(">II", data[16:24]) if len(data) >= 24 else (0, 0)
        if width * height > LARGEST_IMAGE:
            raise FetalsegError(f"{shown(path)} says it has {width} × {height} pixels: no ultrasound frame has.")
        if PNG_END not in data[-64:]:
            raise FetalsegError(f"{shown(path)} is cut off after {len(data)} bytes: copy or download it again.")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    except cv2.error:  # a header of another format that claims too many pixels
        image = None
    if image is None:
        raise FetalsegError(f"{shown(path)} is not an image that can be decoded: copy or download it again.")
    if image.dtype != np.uint8:
        raise FetalsegError(f"{shown(path)} has {image.dtype} pixels: convert it to 8-bit grey first.")
    if image.ndim == 3:
        image = cv2.cvtColor(image[:, :, :3], cv2.COLOR_BGR2GRAY)
    return image


def fingerprint(path):
    """SHA-256 of a file's content, as 64 hexadecimal digits; '' for a missing file."""
    if not Path(path).exists():
        return ""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def inventory(root):
    """SHA-256 over names and sizes of the image files below a folder: tells that one came, went or was edited."""
    paths = find_files(root).path
    lines = [f"{path.relative_to(root).as_posix()} {path.stat().st_size if path.exists() else 0}" for path in paths]
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def read_manifest(run_dir):
    """The table that notebook 01 wrote, one row per pair; paths are made absolute."""
    path = project_root() / run_dir / "manifest.csv"
    if not path.exists():
        raise FetalsegError(f"{shown(path)} is not there: run notebook 01, or any later one, with this run_dir.")
    manifest = pd.read_csv(path, dtype={"image_id": str, "examination": str, "split": str}, keep_default_na=False)
    for column in ("image_path", "mask_path"):
        manifest[column] = [project_root() / name for name in manifest[column]]
    return manifest


def load_pairs(root):
    """Every name of the malignant class below `root` with its examination; partners may be missing.

    Raises
    ------
    FetalsegError
        If no image has an outline.
    """
    pairs = match_pairs(find_files(root))
    if not (pairs.image_path.notna() & pairs.mask_path.notna()).any():
        raise FetalsegError(
            f"{root} holds no pair of NAME.png and NAME_Annotation.png in a folder 'malignant' or outside "
            "of class folders: check the path."
        )
    pairs["examination"] = pairs.image_id.map(find_examinations(pairs.image_id))
    return pairs


def write_manifest(run_dir, data="phantom", seed=0, phantoms=400, split_by="examination"):
    """Find, pair and split the data; write `manifest.csv` and, beside it, `data.json` that says from what.

    Where the data's files have changed, what was prepared from the older ones no longer counts.

    Returns
    -------
    pandas.DataFrame
        As `read_manifest` gives it.
    """
    root = sources.find_data(data, run_dir, phantoms)
    pairs = load_pairs(root)
    pairs = pairs[pairs.image_path.notna() & pairs.mask_path.notna()].reset_index(drop=True)
    pairs["split"] = split_pairs(pairs, split_by, seed)
    pairs["width"], pairs["height"] = zip(*map(image_size, pairs.image_path), strict=True)
    for column in ("image_path", "mask_path"):
        pairs[column] = pairs[column].map(shown)
    folder, files = run_folder(run_dir), inventory(root)
    if read_json(folder / "data.json").get("files") != files:
        for made in ("prepared/settings.json", "verification.csv"):
            (folder / made).unlink(missing_ok=True)
    (folder / "data.json").unlink(missing_ok=True)  # written last, it vouches for the manifest
    write_table(folder / "manifest.csv", pairs[MANIFEST_COLUMNS])
    asked = {"data": data, "seed": seed, "phantoms": phantoms, "split_by": split_by}
    write_json(folder / "data.json", asked | {"root": shown(root), "files": files})
    return read_manifest(run_dir)


def ensure_manifest(run_dir, **asked):
    """Read the manifest; make it first where it is missing, was made from something else or files changed; say so.

    Parameters
    ----------
    run_dir : str or Path
    asked : `data`, `seed`, `phantoms`, `split_by`
        As for `write_manifest`. What is not asked stays as it is in the run folder.
    """
    folder = run_folder(run_dir)
    made = read_json(folder / "data.json")
    fits = made and (folder / "manifest.csv").exists() and all(made.get(name) == value for name, value in asked.items())
    if fits and (root := project_root() / made["root"]).is_dir() and made.get("files") == inventory(root):
        return read_manifest(run_dir)
    kept = {name: value for name, value in made.items() if name not in ("root", "files")}
    manifest = write_manifest(run_dir, **(kept | asked))
    print(f"{shown(folder / 'manifest.csv')} made: {len(manifest)} pairs (notebook 01 explains it).")
    return manifest
