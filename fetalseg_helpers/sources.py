"""Where the data comes from: phantoms made on the spot, the Kaggle data set, HC18, or a folder of yours."""

import hashlib
import http.client
import shutil
import tempfile
import urllib.request
import zipfile
import zlib
from pathlib import Path

from fetalseg_helpers import phantom_set
from fetalseg_helpers.workspace import FetalsegError, project_root, run_folder, shown, written_whole

# name: (file, address, md5 or None); what is downloaded lands in data/<name>/
DOWNLOADS = {
    "kaggle": [
        (
            "ultrasound-fetus-dataset.zip",
            "https://www.kaggle.com/api/v1/datasets/download/orvile/ultrasound-fetus-dataset",
            None,
        )
    ],
    "hc18": [
        (
            "training_set.zip",
            "https://zenodo.org/records/1327317/files/training_set.zip?download=1",
            "00eb8198b9a505b2b3a6dfc740382497",
        ),
        (
            "training_set_pixel_size_and_HC.csv",
            "https://zenodo.org/records/1327317/files/training_set_pixel_size_and_HC.csv?download=1",
            None,
        ),
    ],
}
LICENCES = {
    "phantom": "Phantoms made by this project; no licence needed.",
    "kaggle": "Ultrasound Fetus Dataset, Anitha A., Mendeley Data 2024, doi 10.17632/yrzzw9m6kk, CC BY 4.0; "
    "its malignant class is HC18's training set, van den Heuvel et al. 2018, Zenodo 1327317, CC BY 4.0.",
    "hc18": "HC18, van den Heuvel et al. 2018, Zenodo 1327317, CC BY 4.0.",
}


def data_folder(name):
    """Where `fetch` puts a data set and where `find_data` looks for it."""
    return project_root() / "data" / name


def find_data(data, run_dir, phantoms=400):
    """Folder of the data set that the parameter `data` names; phantoms are made if they are not there yet.

    Parameters
    ----------
    data : str
        'phantom', 'kaggle', 'hc18', or a folder (absolute, or relative to the project root).
    run_dir : str or Path
        Phantoms lie in its folder `phantom_<count>`, or beside it, where several runs share them.
    phantoms : int
        Number of phantom frames.

    Raises
    ------
    FetalsegError
        If the folder is missing. The sentence says how to get it.
    """
    if data == "phantom":
        return find_phantoms(run_dir, phantoms)
    folder = data_folder(data) if data in DOWNLOADS else project_root() / Path(data).expanduser()
    if not folder.is_dir():
        remedy = f"run: python -m fetalseg_helpers fetch {data}" if data in DOWNLOADS else "check the path"
        raise FetalsegError(f"{shown(folder)} is not a folder: {remedy}, or use data = 'phantom'.")
    return folder


def find_phantoms(run_dir, count):
    """Folder of the phantoms in a run folder, or beside it, where several runs share them; made at first."""
    folder = run_folder(run_dir)
    for home in (folder, folder.parent):
        if (home / f"phantom_{count}" / phantom_set.DATA_FOLDER).is_dir():
            return home / f"phantom_{count}"
    return make_phantoms(folder, count)


def make_phantoms(home, count):
    """Make phantoms in `phantom_<count>` of the folder `home`, unless they are there; returns their folder."""
    folder = home / f"phantom_{count}"
    if not (folder.is_dir() and any(folder.iterdir())):
        print(f"{count} phantom frames are being made in {shown(folder)}.")
        phantom_set.write_phantoms(folder, count=count, seed=0)
    return folder


def fetch(name, folder=None, downloads=None):
    """Download and unpack a data set; a folder of that name appears only when all of it is there.

    Parameters
    ----------
    name : {'kaggle', 'hc18'}
    folder : Path, optional
        Where to; `data/<name>` of the project by default.
    downloads : list of (file name, address, md5 or None), optional
        Other addresses, for mirrors.

    Raises
    ------
    FetalsegError
        If there is no network, a checksum differs, an archive is broken or the folder is taken.
    """
    folder = Path(folder or data_folder(name))
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FetalsegError(f"{folder} is already there: delete it, or choose another folder with --to.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FetalsegError(f"{folder.parent} cannot be made ({error.strerror}): choose another folder.") from error
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=folder.parent) as scratch:
        content = Path(scratch) / "content"
        content.mkdir()
        for file_name, address, md5 in downloads or DOWNLOADS[name]:
            downloaded = Path(scratch) / file_name
            download(address, downloaded, md5)
            unpack(downloaded, content)
        if folder.exists():
            folder.rmdir()
        content.rename(folder)
    return folder


def download(address, path, md5=None):
    """Save what lies at `address` as `path`, with a bar, and compare its MD5 where one is known."""
    from tqdm import tqdm

    digest = hashlib.md5(usedforsecurity=False)
    try:
        with reach(address) as answer, written_whole(path) as temporary:
            total = int(answer.headers.get("Content-Length") or 0) or None
            with temporary.open("wb") as file, tqdm(total=total, unit="B", unit_scale=True, desc=path.name) as bar:
                while block := read_block(answer):
                    file.write(block)
                    digest.update(block)
                    bar.update(len(block))
    except http.client.HTTPException as error:
        raise FetalsegError(
            f"{address} could not be downloaded ({error}): check the network, "
            "or download it in a browser, unpack it and give its folder with --data."
        ) from error
    if total is not None and path.stat().st_size != total:
        raise FetalsegError(f"{path.name} arrived with {path.stat().st_size} of {total} bytes: fetch it again.")
    if md5 is not None and digest.hexdigest() != md5:
        raise FetalsegError(f"{path.name} has MD5 {digest.hexdigest()}, expected {md5}: fetch it again.")


def reach(address):
    """Ask for what lies at `address`; whatever goes wrong is an error of the network, not of the disk."""
    try:
        return urllib.request.urlopen(address, timeout=60)
    except OSError as error:
        raise http.client.HTTPException(str(getattr(error, "reason", error))) from error


def read_block(answer):
    """The next megabyte; a connection that breaks is an error of the network, not of the disk."""
    try:
        return answer.read(1 << 20)
    except OSError as error:
        raise http.client.HTTPException(str(error)) from error


def unpack(path, folder):
    """Unpack a zip archive into `folder`; copy any other file there."""
    if path.suffix != ".zip":
        shutil.copy2(path, folder / path.name)
        return
    try:
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder)
    except (zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise FetalsegError(f"{path.name} is not a whole zip archive ({error}): fetch it again.") from error
    except OSError as error:
        raise FetalsegError(
            f"{folder} could not take the content of {path.name} ({error.strerror}): free space."
        ) from error
