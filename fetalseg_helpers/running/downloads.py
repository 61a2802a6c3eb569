"""Fetching the public data sets: whole or not at all."""

import re
import shutil
import stat
import zipfile
import zlib
from pathlib import Path

import pandas as pd
import pooch
from filelock import FileLock, Timeout
from requests.exceptions import RequestException

from fetalseg_helpers.workspace import UNFINISHED, FetalsegError, project_root, remedy, remove

TIMEOUT = 60  # seconds that a server may be silent
LARGEST = 20e9  # bytes that an archive may unpack to
SET = "orvile/ultrasound-fetus-dataset"
MOUNTS = [Path("/kaggle/input/ultrasound-fetus-dataset"), Path("/kaggle/input/datasets", SET)]  # on Kaggle: old, new
PAGES = {"kaggle": f"https://www.kaggle.com/datasets/{SET}", "hc18": "https://zenodo.org/records/1327317"}
TABLE = pd.read_csv(Path(__file__).with_name("downloads.csv"), keep_default_na=False)  # md5 where it is known
DOWNLOADS = {name: rows[["file", "address", "md5"]].to_numpy().tolist() for name, rows in TABLE.groupby("data")}


def fetch(name, folder=None, downloads=None):
    """Download and unpack a data set into `folder`, which appears only when all of it is there; returns it.

    By default it is `data/<name>`, from `DOWNLOADS`. A file beside it goes before a download of that name; on Kaggle it
    becomes a link to the mounted data set. Where that fails, a FetalsegError says what to do.
    """
    folder = Path(folder or project_root() / "data" / name).expanduser().absolute()
    scratch = folder.with_name(f"{UNFINISHED}{folder.name}")
    content = scratch / "new" / "content"
    lock = FileLock(scratch / "lock", timeout=0)
    pooch.get_logger().setLevel("WARNING")
    files = downloads or DOWNLOADS[name]
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        mount = next((mount for mount in MOUNTS if name == "kaggle" and mount.is_dir()), None)
        if mount and not folder.exists():
            folder.symlink_to(mount, target_is_directory=True)
        if mount and folder.samefile(mount):
            return folder
        if folder.is_symlink() or folder.is_file() or (folder.exists() and any(folder.iterdir())):
            raise FetalsegError(f"{folder} is already there: delete it, or choose another folder with --to.")
        remove(content.parent)  # of a fetch that was killed
        content.mkdir(parents=True)
        for number, (file, address, md5) in enumerate(files):
            here = folder.with_name(file).is_file()  # put there by hand
            source = str(folder.with_name(file)) if here else address
            http = pooch.HTTPDownloader(progressbar=True, timeout=TIMEOUT)
            get = (lambda path, target, _: shutil.copyfile(path, target)) if here else http
            try:
                pooch.retrieve(source, f"md5:{md5}" if md5 else None, file, content.parent, unpack, get)
            except (RequestException, ValueError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
                reason = error
                while reason.__context__ is not None:  # what happened at the bottom says more than what was made of it
                    reason = reason.__context__
                problem = f"{file} cannot be taken from {source} ({str(reason).split('. ')[0] or 'cut off'})"
                network = "check the network, or " if isinstance(error, RequestException) else ""
                wanted = " and ".join(str(folder.with_name(row[0])) for row in files[number:])
                by_hand = f"{network}open {PAGES[name]} in a browser, save the download as {wanted}, and fetch again"
                raise FetalsegError(f"{problem}: {by_hand}.") from error
        if folder.exists():
            folder.rmdir()
        content.rename(folder)
    except Timeout as error:
        raise FetalsegError(f"{folder} is being fetched by another process: wait for it.") from error
    except OSError as error:
        raise FetalsegError(f"{folder} could not be made ({error.strerror or error}): {remedy(error)}.") from error
    finally:
        if lock.is_locked:
            lock.release()
            remove(scratch)
    return folder


def unpack(path, action, pup):
    """What pooch does with a file: put it, or what an archive holds if none of that does harm, into `content`."""
    if not path.endswith(".zip"):
        return shutil.copyfile(path, Path(path).parent / "content" / Path(path).name)
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
        if size > min(LARGEST, shutil.disk_usage(Path(path).parent).free):
            raise zipfile.BadZipFile(f"it would unpack to {size / 1e9:.1f} GB, more than is allowed or free")
        for member in archive.infolist():
            problems = {
                "has an unsafe path": re.search(r"^/|^[A-Za-z]:|\\|//|(^|/)\.{1,2}(/|$)", member.orig_filename),
                "is a symbolic link": stat.S_ISLNK(member.external_attr >> 16),
                "is encrypted or packed oddly": member.flag_bits & 1 or member.compress_type > zipfile.ZIP_DEFLATED,
                "comes twice": archive.getinfo(member.filename) is not member,
            }
            for problem, found in problems.items():
                if found:
                    raise zipfile.BadZipFile(f"its member {member.filename!r} {problem}")
    return pooch.Unzip(extract_dir="content")(path, action, pup)
