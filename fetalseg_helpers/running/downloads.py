"""Fetching the public data sets: whole or not at all."""

import zipfile
import zlib
from pathlib import Path

import pooch
from filelock import FileLock, Timeout
from requests.exceptions import RequestException

from fetalseg_helpers.workspace import FetalsegError, project_root, remove

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
    folder = Path(folder or project_root() / "data" / name).expanduser()
    if folder.is_file() or (folder.exists() and any(folder.iterdir())):
        raise FetalsegError(f"{folder} is already there: delete it, or choose another folder with --to.")
    scratch = folder.with_name(f".unfinished-{folder.name}")
    content = scratch / "content"
    lock = FileLock(scratch / "lock", timeout=0)
    pooch.get_logger().setLevel("WARNING")
    http = pooch.HTTPDownloader(progressbar=True, timeout=60)
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        remove(content)  # of a fetch that was killed
        for file, address, md5 in downloads or DOWNLOADS[name]:
            unzip = pooch.Unzip(extract_dir="content") if file.endswith(".zip") else None
            known_hash = f"md5:{md5}" if md5 else None
            pooch.retrieve(address, known_hash, file, scratch if unzip else content, processor=unzip, downloader=http)
        if folder.exists():
            folder.rmdir()
        content.rename(folder)
    except RequestException as error:
        reason = error
        while reason.__context__ is not None:  # what happened at the bottom says more than what was made of it
            reason = reason.__context__
        raise FetalsegError(
            f"{file} could not be downloaded from {address} ({reason}): check the network, or download it in a "
            "browser, unpack it and give its folder with --data."
        ) from error
    except ValueError as error:  # the checksum
        raise FetalsegError(f"{str(error).split('. ')[0]}: fetch it again.") from error
    except (zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise FetalsegError(f"{file} is not a whole zip archive ({error}): fetch it again.") from error
    except Timeout as error:
        raise FetalsegError(f"{folder} is being fetched by another process: wait for it.") from error
    except OSError as error:
        raise FetalsegError(f"{folder} could not be made ({error.strerror or error}): free space there.") from error
    finally:
        if lock.is_locked:
            lock.release()
            remove(scratch)
    return folder
