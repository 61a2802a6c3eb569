"""Fetching the public data sets: whole or not at all."""

import zipfile
import zlib
from pathlib import Path

import pooch
from filelock import FileLock, Timeout
from requests.exceptions import RequestException

from fetalseg_helpers import loading
from fetalseg_helpers.workspace import FetalsegError, remove

KAGGLE = "https://www.kaggle.com/api/v1/datasets/download/orvile/ultrasound-fetus-dataset"
ZENODO = "https://zenodo.org/records/1327317/files"
DOWNLOADS = {  # name: (file, address, md5 where it is known) of each download
    "kaggle": [("ultrasound-fetus-dataset.zip", KAGGLE, None)],
    "hc18": [
        ("training_set.zip", f"{ZENODO}/training_set.zip?download=1", "00eb8198b9a505b2b3a6dfc740382497"),
        ("training_set_pixel_size_and_HC.csv", f"{ZENODO}/training_set_pixel_size_and_HC.csv?download=1", None),
    ],
}


def fetch(name, folder=None, downloads=None):
    """Download and unpack a data set into `folder`, which appears only when all of it is there; returns it.

    By default it is `data/<name>` of the project, and the addresses are those of `DOWNLOADS`. Without a network, with
    a wrong checksum, a broken archive, a full disk or a folder that is taken, a FetalsegError says what to do.
    """
    folder = Path(folder or loading.data_folder(name)).expanduser()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FetalsegError(f"{folder} is already there: delete it, or choose another folder with --to.")
    scratch = folder.with_name(f".unfinished-{folder.name}")
    lock = FileLock(scratch / "lock", timeout=0)
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        remove(scratch / "content")  # of a fetch that was killed
        for file_name, address, md5 in downloads or DOWNLOADS[name]:
            download(scratch, file_name, address, md5)
        if folder.exists():
            folder.rmdir()
        (scratch / "content").rename(folder)
    except Timeout as error:
        raise FetalsegError(f"{folder} is being fetched by another process: wait for it.") from error
    except OSError as error:
        raise FetalsegError(f"{folder} could not be made ({error.strerror or error}): free space there.") from error
    finally:
        if lock.is_locked:
            lock.release()
            remove(scratch)
    return folder


def download(scratch, file_name, address, md5):
    """Put a file, or what is in a zip archive, into the folder `content` of `scratch`."""
    pooch.get_logger().setLevel("WARNING")
    unzip = pooch.Unzip(extract_dir="content") if file_name.endswith(".zip") else None
    try:
        pooch.retrieve(
            address,
            known_hash=f"md5:{md5}" if md5 else None,
            fname=file_name,
            path=scratch if unzip else scratch / "content",
            processor=unzip,
            downloader=pooch.HTTPDownloader(progressbar=True, timeout=60),
        )
    except RequestException as error:
        reason = error
        while reason.__context__ is not None:  # what happened at the bottom says more than what was made of it
            reason = reason.__context__
        raise FetalsegError(
            f"{file_name} could not be downloaded from {address} ({reason}): check the network, or download it in a "
            "browser, unpack it and give its folder with --data."
        ) from error
    except ValueError as error:  # the checksum
        raise FetalsegError(f"{str(error).split('. ')[0]}: fetch it again.") from error
    except (zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise FetalsegError(f"{file_name} is not a whole zip archive ({error}): fetch it again.") from error
