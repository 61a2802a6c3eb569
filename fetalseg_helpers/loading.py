"""From folders of files to pairs, examinations, a split, and the manifest that says which is which."""

import hashlib
import os
import re
import unicodedata
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageOps
from sklearn.model_selection import GroupShuffleSplit

from fetalseg_helpers import workspace
from fetalseg_helpers.workspace import FetalsegError, cv2, project_root, read_json, run_folder, shown, write_json

MANIFEST_COLUMNS = ["image_id", "image_path", "mask_path", "examination", "split", "width", "height"]
PAIR_COLUMNS = [*MANIFEST_COLUMNS[:3], "folder", "mask_folder", "origin", "check", "problem", "files", "place"]
AS_TEXT = {"dtype": str, "keep_default_na": False, "encoding_errors": "surrogateescape"}  # how names are read
PIXEL_SIZE_COLUMNS = ("image_id", "pixel_mm", "head_circumference_mm")  # of a table that may lie beside the images
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
UNREAD = re.compile(r"\.(dcm|nii|gz|mh[ad]|nrrd|np[yz]|mat|gif|webp|heic|jp2|zip|mp4|avi)\Z", re.IGNORECASE)
CLASSES = ("benign", "malignant", "normal")
SPLIT_FOLDERS = dict(train="train", training="train", validation="valid", valid="valid", val="valid", test="test")
SPLITS = ("train", "valid", "test")
OF_IMAGES = "images?|imgs?|frames|jpegimages"  # how folders and files are called
OF_MASKS = "annotations?|masks?|labels?|seg|segmentations?|segmentationclass|gt|ground[_ -]?truth|outlines?|contours?"
ROLE = re.compile(f"(?<![a-z])(?:(?P<images>{OF_IMAGES})|(?P<masks>{OF_MASKS}))(?=(?:tr|ts)?(?![a-z]))", re.IGNORECASE)
MASK_ENDING = re.compile(rf"(?<=[^_. -])[_. -]+({OF_MASKS})(_\d)?\Z", re.IGNORECASE)
PREDICTED = re.compile(r"(?<=[^_. -])[_. -]+(pred|predictions?|predicted)([_. -]?masks?)?\Z", re.IGNORECASE)
PERSON = "patient|pat|pt|p|case|subject|subj|sub|study|exam|examination|fetus|id"
PATIENT = re.compile(rf"(({PERSON})[_ -]?\d+([_ -].*)?|\d{{3,}})", re.IGNORECASE)  # the name of a folder
LAYOUTS = "NAME.png and NAME_Annotation.png (or _mask, _seg, _label, _gt), or of images/NAME.png and masks/NAME.png"
ASIDE = {  # why files of a kind are in no pair
    "prediction": "named as predictions are",
    "unread": "of a format that is not read here: save their frames as 8-bit PNG",
    "hidden": "hidden, or left by another system",
    "other": "neither images nor masks",
}
LARGEST_IMAGE = 50_000_000  # pixels; a header that claims more is a mistake or an attack
warnings.filterwarnings("ignore", module="PIL")  # what there is to say of a file, `open_image` says


def find_files(root):
    """List every file below a folder, at whatever level of the data set's tree it begins; links are followed once.

    A row per file: `path`, `stem` (the pair's name, without `_Annotation` or the like), `kind` ('image', 'outline', or
    a key of `ASIDE`), `tissue` ('benign', 'malignant', 'normal' or ''), `folder` ('train', 'valid', 'test' or ''),
    `place` (its folder's name without words such as `images` and `masks`). A folder that is missing, that cannot be
    opened or that holds no image is a FetalsegError.
    """

    def stop(error):
        raise FetalsegError(f"{error.filename} cannot be opened ({error.strerror}): allow it, or move it elsewhere.")

    root = Path(root)
    if not root.is_dir():
        raise FetalsegError(f"{root} is not a folder: check the path.")
    rows, seen = [], set()
    for folder, inner, names in os.walk(root, onerror=stop, followlinks=True):
        if os.path.realpath(folder) in seen:  # a link may lead round in a circle
            inner.clear()
            continue
        seen.add(os.path.realpath(folder))
        inner.sort(key=lambda name, folder=folder: (os.path.islink(os.path.join(folder, name)), name))
        below = Path(folder).relative_to(root).parts
        parts = [part.lower() for part in reversed([root.resolve().name, *below])]  # the innermost folder decides
        tissue = next((part for part in parts if part in CLASSES), "")
        split = next((SPLIT_FOLDERS[part] for part in parts if part in SPLIT_FOLDERS), "")
        words = [re.sub("(?<=[a-z])(?=[A-Z])", "_", part) for part in below]  # TrainMasks
        place = [ROLE.sub("", word).strip("_ -").lower() for word in words]
        place = "/".join(SPLIT_FOLDERS.get(part, part) for part in place if part)
        roles = [match.lastgroup for word in words for match in ROLE.finditer(word)]
        drawn = {MASK_ENDING.sub("", Path(name).stem) for name in names if MASK_ENDING.search(Path(name).stem)}
        for path in (Path(folder, name) for name in sorted(names)):
            stem, kind = read_name(path, roles[-1:] == ["masks"] and path.stem not in drawn)
            hidden = any(part.startswith((".", "__MACOSX")) for part in (*below, path.name))
            rows.append((path, stem, "hidden" if hidden else kind, tissue, split, place))
    files = pd.DataFrame(rows, columns=["path", "stem", "kind", "tissue", "folder", "place"])
    if not files.kind.isin(["image", "outline", "prediction"]).any():
        unread = files.path[files.kind == "unread"]
        others = f"; {len(unread)} files, such as {unread.iloc[0].name}, are {ASIDE['unread']}" if len(unread) else ""
        raise FetalsegError(f"{root} holds no image file ({', '.join(sorted(SUFFIXES))}){others}.")
    return files


def read_name(path, of_masks):
    """The name of the pair that a file belongs to, and its kind as in `find_files`; its folder may say `of_masks`."""
    stem = unicodedata.normalize("NFC", path.stem)  # macOS writes accents as letters of their own
    if stem.endswith("_overlay") or path.suffix.lower() not in SUFFIXES or (path.exists() and not path.is_file()):
        return stem, "unread" if UNREAD.search(path.name) else "other"
    for rule, kind in ((PREDICTED, "prediction"), (MASK_ENDING, "outline")):
        if rule.search(stem):
            return rule.sub("", stem), kind
    return stem, "outline" if of_masks else "image"


def set_aside(files):
    """Why each file of `find_files` is in no pair, or '': a pandas.Series."""
    why = files.kind.map(ASIDE).fillna("")
    if (files.tissue == "malignant").any():  # elsewhere, a folder called normal is a folder
        others = (why == "") & ~files.tissue.isin(["malignant", ""])
        why[others] = "of the class " + files.tissue[others] + ", only malignant is used"
    return why


def match_pairs(files):
    """Match images and outlines by name, in one folder first, then over the whole tree; rows as in `load_pairs`.

    Each folder alone would lose the pairs whose files lie in different ones; the name alone would marry strangers.
    """
    files = files[set_aside(files) == ""]
    outlined = set(files.stem[files.kind == "outline"])
    named = {}
    for file in files.itertuples():
        stem = file.stem
        if stem not in outlined and stem.removesuffix("_0000") in outlined:  # nnU-Net's first channel
            stem = stem.removesuffix("_0000")
        named.setdefault(stem, []).append(file)
    kinds = files.groupby("place").kind.agg(set)
    top = os.path.commonpath([file.path.parent for same in named.values() for file in same] or [""])
    rows = []
    for stem in sorted(named, key=lambda stem: (natural_order(stem), stem)):
        pairs, left = match_name(named[stem], kinds)
        groups = pairs + ([left] if len({file.kind for file in left}) == 2 else [[file] for file in left])
        copies = [file.path for file in named[stem] if not any(file in group for group in groups)]
        for group in groups:
            paths = [file.path for file in group]
            by_kind = {} if group is left else {file.kind: file for file in group}
            image_id, origin, check, problem = stem, "", "", ""
            if len(groups) > 1 and pairs != [group]:  # a single whole pair keeps the bare name
                origin = paths[0].parent.relative_to(top).as_posix().replace("/", "_")
                image_id = stem if origin == "." else f"{origin}_{stem}"
            if group is left:
                check, names = "ambiguous_name", ", ".join(path.relative_to(top).as_posix() for path in paths)
                rule = "Keep one image and one outline of a name in a folder; merge several masks of one image."
                problem = f"partners or strangers? {names}. {rule}"
            partners = by_kind.get("image"), by_kind.get("outline")
            places = [getattr(file, "path", None) for file in partners]
            places += [getattr(file, "folder", "") for file in partners]
            rows.append([image_id, *places, origin, check, problem, paths + copies, group[0].place])
            copies = []  # the first row has accounted for them
    pairs = pd.DataFrame(rows, columns=PAIR_COLUMNS)
    number = (pairs.groupby("image_id").cumcount() + 1).astype(str)
    pairs["image_id"] = pairs.image_id.mask(pairs.image_id.duplicated(keep=False), pairs.image_id + "_" + number)
    return pairs


def match_name(files, kinds_of):
    """The pairs of one name, as lists of two files, and the files that are left; copies are in neither.

    Two that lie apart are a pair where nothing else has their name, they are not of two patients, and either both lie
    in split folders, or one in a place of images only and the other in one of outlines only (`kinds_of`).
    """
    kinds = [file.kind for file in files]  # a file that is alone of its kind is no copy, and need not be read
    content = {file: file.kind + (fingerprint(file.path) if kinds.count(file.kind) > 1 else "") for file in files}
    in_splits = {content[file] for file in files if file.folder}
    folders = {}
    for file in files:
        folders.setdefault(file.place, []).append(file)
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
    if pairs or not is_pair(left):
        return pairs, left
    torn = all(file.folder for file in left) or all(len(kinds_of[file.place]) == 1 for file in left)
    of_one = len({patient(file.place) for file in left} - {""}) < 2
    return ([left], []) if torn and of_one else ([], left)


def patient(place):
    """The innermost of a file's folders that is called as those of patients are, or ''."""
    return next(filter(PATIENT.fullmatch, place.split("/")[::-1]), "")


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
    """Width and height of an image in pixels, as it is shown, from its header; (0, 0) if that cannot be read."""
    try:
        with Image.open(path) as image:
            lying = "exif" in image.info and image.getexif().get(274, 1) >= 5  # turned by a quarter
            return image.size[::-1] if lying else image.size
    except (OSError, Image.DecompressionBombError):
        return 0, 0


def open_image(path):
    """Decode an image file, turned as its EXIF tag says: a PIL.Image, in whose `info` stands whether it is `deep`."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise FetalsegError(f"{shown(path)} cannot be read ({error.strerror}): is it still there?") from error
    try:
        with Image.open(BytesIO(data)) as image:
            codec = [tile[-1] if isinstance(tile[-1], str) else tile[-1][0] for tile in image.tile]
            pages = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # MPO: a photograph and its preview
            if image.width * image.height > LARGEST_IMAGE:
                raise Image.DecompressionBombError
            image.verify()  # the checksums of a PNG, which decoding passes over
        image, file_format = ImageOps.exif_transpose(Image.open(BytesIO(data))), image.format
    except Image.DecompressionBombError:
        raise FetalsegError(f"{shown(path)} says it has more pixels than any ultrasound frame.") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises many kinds
        medical = data[128:132] == b"DICM" or UNREAD.search(Path(path).name)
        remedy = "save its frames as 8-bit PNG" if medical else "copy or download it again"
        raise FetalsegError(f"{shown(path)} is cut off, damaged or not an image: {remedy}.") from error
    if pages > 1:
        raise FetalsegError(f"{shown(path)} holds {pages} images: save each as a file of its own.")
    image.format = file_format  # turning has lost it
    image.info["deep"] = image.mode in ("I", "F") or any("16" in str(name) for name in codec)
    return image


def read_grey(path):
    """Read an 8-bit grey image as uint8 of shape (height, width).

    A FetalsegError names a file that is missing, cut off, damaged, no image, not 8-bit, or larger than 50 million
    pixels.
    """
    image = open_image(path)
    if image.info["deep"]:
        raise FetalsegError(f"{shown(path)} has 16 bits a pixel or more: convert it to 8-bit grey first.")
    return np.asarray(image.convert("L"))


def read_mask(path):
    """Read a mask or outline: uint8 of shape (height, width), 0 and 255, and how its values were read, or ''.

    Of two values the larger is the region; of up to 16 labels or colours that cover areas, all above 0; grey along
    borders is cut in the middle; many colours count as their brightest channel, what is transparent as background.
    Raises a FetalsegError as `read_grey`, but for 16 bits, and for a file that is grey all over.
    """
    image = open_image(path)
    values, clear = np.asarray(image), ""
    if values.ndim == 3 or image.mode in ("1", "P"):
        pixels = np.asarray(image.convert("RGBA"))
        opaque = pixels[..., 3] > 127
        clear = "" if opaque.all() else ", transparent is background"
        codes = pixels[..., :3] @ np.array([65536, 256, 1]) * opaque
        colours, labels = np.unique(codes, return_inverse=True)
        few = 2 < len(colours) <= 16 and colours[0] == 0
        values = np.uint8(labels.reshape(codes.shape)) if few else pixels[..., :3].max(axis=2) * opaque
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise FetalsegError(f"{shown(path)} has values that are no numbers: save 0 and 255.")
    least, most = values.min(), values.max()
    two = np.count_nonzero(values == least) + np.count_nonzero(values == most) >= values.size
    found = np.unique([least, most] if two else values)
    if len(found) == 1 and most not in (0, 255):
        raise FetalsegError(f"{shown(path)} has the value {most} everywhere: a mask needs a background of 0.")
    if len(found) <= 2:
        usual = most == 0 or ({least, most} <= {0, 255} and not clear)
        said = "" if usual else f"{least} and {most}: the larger is tumor{clear}"
        return (values == most) * np.uint8(255 * (most > 0)), said
    labels = least == 0 and len(found) <= 16 and image.format != "JPEG" and values.dtype.kind != "f"
    if labels and any(has_areas(values, value - 1, value + 1) for value in found[1:].tolist() if value < 0.8 * most):
        return (values > 0) * np.uint8(255), f"{len(found)} labels up to {most}: all above 0 are tumor{clear}"
    if has_areas(values, 0.2 * most, 0.8 * most):
        reason = f"{len(found)} values up to {most} all over: a picture or a map, no mask (were they exchanged?)"
        raise FetalsegError(f"{shown(path)} has {reason}. Save 0 and 255.")
    said = f"{len(found)} values up to {most} along borders: cut in the middle{clear}"
    return (values >= most / 2) * np.uint8(255), said


def has_areas(values, low, high):
    """Whether more than lines and single pixels, a thousandth of an array, lies between two values."""
    between = np.uint8((values > low) & (values < high))
    return bool(cv2.erode(between, np.ones((3, 3), np.uint8)).mean() > 0.001)


def fingerprint(path):
    """SHA-256 of a file's content, as 64 hexadecimal digits; '' for a missing file."""
    if not Path(path).exists():
        return ""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise FetalsegError(f"{shown(path)} cannot be read ({error.strerror}): allow it, or move it.") from error


def fingerprint_files(root, manifest):
    """SHA-256 over the names of all image files below a folder and the contents of those in the manifest."""
    digest = hashlib.sha256()
    used = {os.path.realpath(path) for path in (*manifest.image_path, *manifest.mask_path)}
    for path in find_files(root).query("kind in ('image', 'outline')").path:
        content = fingerprint(path) if os.path.realpath(path) in used else ""
        digest.update(f"{path.relative_to(root).as_posix()} {content}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def source(run_dir):
    """SHA-256 of what everything after the manifest is made from: the manifest and the contents of its files."""
    path = run_folder(run_dir) / "manifest.csv"
    made = read_json(path.with_name("data.json"))
    return hashlib.sha256(path.read_bytes() + f"{made['files']}{made.get('negatives') or ''}".encode()).hexdigest()


def read_manifest(run_dir):
    """The table that notebook 01 wrote, one row per pair; paths are made absolute."""
    path = run_folder(run_dir) / "manifest.csv"
    if not path.exists():
        raise FetalsegError(f"{shown(path)} is not there: run notebook 01, or any later one, with this run_dir.")
    manifest = pd.read_csv(path, **AS_TEXT).astype({"width": int, "height": int})
    for column in ("image_path", "mask_path"):
        manifest[column] = [project_root() / name for name in manifest[column]]
    return manifest


def load_pairs(root, examinations="names"):
    """Match the images and outlines below `root`, and find their examinations; where there is a malignant class, its.

    A row per name, or several where it stands for different images, in natural order (2_HC before 10_HC): `image_id`
    (the name, with its folder before it if another has it too), `image_path`, `mask_path` (None where a partner is
    missing), `folder`, `mask_folder`, `origin` (the folder in `image_id`, or ''), `check` and `problem` (why these
    files are in no pair, or ''), `files` (paths that the row accounts for, copies among them), `place`, `examination`
    (by `group_frames`). At the end stands a row for each reason to set files aside, so that every file below `root` is
    in one row. Where no image has an outline, a FetalsegError says so.
    """
    files = find_files(root)
    pairs = match_pairs(files)
    whole = pairs.image_path.notna() & pairs.mask_path.notna()
    if not whole.any() and pairs.problem.any():
        raise FetalsegError(f"{root} holds no pair that is clear: {pairs.problem.max()}")
    if not whole.any():
        names = files.groupby("kind").path.agg(lambda paths: ", ".join(path.name for path in paths[:3]))
        seen = "; ".join(f"{ASIDE.get(kind, f'{kind}s')} such as {some}" for kind, some in names.items())
        raise FetalsegError(f"{root} holds no pair of {LAYOUTS}: it has {seen}.")
    pairs["examination"] = group_frames(pairs, examinations)
    aside = []
    for why, group in files.groupby(set_aside(files)):
        if why:
            first, paths = group.iloc[0], list(group.path)
            names = ", ".join(path.relative_to(root).as_posix() for path in paths[:3])
            detail = f"{len(paths)} files, such as {names}: {why}."
            name = f"({first.kind if first.kind in ASIDE else first.tissue})"
            aside.append([name, None, None, "", "", "", "set_aside", detail, paths, "", ""])
    return pd.concat([pairs, pd.DataFrame(aside, columns=pairs.columns)], ignore_index=True) if aside else pairs


def group_frames(pairs, examinations="names"):
    """Which examination each of several pairs belongs to: a pandas.Series.

    `examinations` is 'names' (a folder per patient, such as `case_12` or `012`, else what `find_examinations` finds), a
    CSV file (first column the image, second its examination), or a regular expression: what its first group, or all of
    it, matches in `image_id`. A FetalsegError says that it is neither, or names images of which it says nothing.
    """
    if examinations != "names":
        try:
            if examinations.lower().endswith(".csv"):
                path = project_root() / Path(examinations).expanduser()
                table = pd.read_csv(path, dtype=str, sep=None, engine="python", encoding="utf-8-sig").iloc[:, :2]
                table = table.apply(lambda column: column.str.strip()).drop_duplicates()
                names = table.iloc[:, 0].str.replace(r"\.(png|jpe?g|bmp|tiff?)$", "", regex=True, case=False)
                if names.duplicated().any():
                    raise ValueError(f"{names[names.duplicated()].iloc[0]} is in two examinations")
                found = pairs.image_id.map(dict(zip(names, table.iloc[:, 1], strict=True)))
            else:
                rule = re.compile(examinations)
                matches = pairs.image_id.map(rule.search)
                found = matches.map(lambda match: match[min(1, rule.groups)] or None, na_action="ignore")
        except (OSError, ValueError, IndexError, re.error) as error:
            raise FetalsegError(f"examinations = '{examinations}' is no CSV and no pattern ({error}).") from error
        unknown = pairs.image_id[found.isna() & (pairs.problem == "") & pairs.notna().all(axis=1)]
        if len(unknown):
            about = f"{len(unknown)} images, such as {', '.join(unknown[:3])}"
            raise FetalsegError(f"examinations = '{examinations}' says nothing of {about}.")
        return found.fillna("")
    grouped = pd.Series("", index=pairs.index)
    for origin, rows in pairs.groupby("origin"):
        names = rows.image_id.str.removeprefix(f"{origin}_" if origin else "")
        grouped[rows.index] = (f"{origin}/" if origin else "") + names.map(find_examinations(names))
    folders = pairs.place.map(patient)
    return grouped.mask(folders != "", folders) if folders[folders != ""].nunique() > 1 else grouped


def write_manifest(
    run_dir, data, seed=0, phantoms=400, split_by="examination", examinations="names", deal=split_pairs, root=None,
    negatives=False,  # True: pairs with an empty mask are used, as frames without a head
):  # fmt: skip
    """Pair and split (by `deal`) the files below `root`, or the folder `data`; write `manifest.csv` and `data.json`."""
    with workspace.locked(run_dir) as folder:
        root = root or project_root() / Path(data).expanduser()
        pairs = load_pairs(root, examinations).dropna(subset=["image_path", "mask_path"])
        pairs["split"] = deal(pairs, split_by, seed)
        pairs["width"], pairs["height"] = zip(*map(image_size, pairs.image_path), strict=True)
        made = {"data": data, "seed": seed, "phantoms": phantoms, "split_by": split_by, "examinations": examinations}
        made |= {"negatives": negatives, "root": shown(root), "files": fingerprint_files(root, pairs)}
        pairs[MANIFEST_COLUMNS[1:3]] = pairs[MANIFEST_COLUMNS[1:3]].map(shown)
        (folder / "data.json").unlink(missing_ok=True)  # written last, it vouches for the manifest
        workspace.write_table(folder / "manifest.csv", pairs[MANIFEST_COLUMNS])
        write_json(folder / "data.json", made)
    return read_manifest(run_dir)
