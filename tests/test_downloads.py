"""Downloads from a server that misbehaves."""

import hashlib
import http.server
import io
import os
import re
import shutil
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
import zipfile

import pytest
from click.testing import CliRunner
from filelock import FileLock
from shapes import contents, write_pairs

from fetalseg_helpers import __main__, loading
from fetalseg_helpers.beyond_dice.model_card import LICENCES
from fetalseg_helpers.phantoms import dataset
from fetalseg_helpers.running import downloads, stages
from fetalseg_helpers.workspace import FetalsegError, project_root

FILES = {"Data/train/malignant/1_HC.png": b"picture", "Data/ü b.txt": b"text" * 5000}
PAGE = downloads.PAGES["hc18"]
LAYOUTS = {  # of a data set: where its pairs lie, and how they are named
    "kaggle": (dataset.DATA_FOLDER / "train" / "malignant", ["1_2HC", "2_HC", "3_HC"]),
    "hc18": ("training_set", ["000_HC", "001_HC", "001_2HC"]),
}
FETCH = """
import sys
from fetalseg_helpers.running import downloads
downloads.fetch("hc18", sys.argv[1], [("set.zip", sys.argv[2], None)])
"""


def zipped(files=FILES, **changes):
    """The bytes of an archive; `changes` are attributes of its last member, put into its headers."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items() if isinstance(files, dict) else files:
            archive.writestr(member := zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
        for name, value in changes.items():
            setattr(member, name, value)
    return buffer.getvalue()


def zipped_pairs(tmp_path, layout):
    """The bytes of an archive of small pairs in the tree of a data set."""
    place, names = LAYOUTS[layout]
    write_pairs(tmp_path / "pairs" / layout / place, names)
    archive = shutil.make_archive(tmp_path / f"made-{layout}", "zip", tmp_path / "pairs" / layout)
    with open(archive, "rb") as file:
        return file.read()


def zipped_giants(size):
    """The bytes of an archive whose members claim to unpack to `size` bytes or more, four GB each."""
    count = int(size // 4e9) + 1
    body = bytearray(zipped({f"{number}.bin": b"0" * 1000 for number in range(count)}))
    place = 0
    for _ in range(count):
        place = body.index(b"PK\x01\x02", place) + 24  # where the directory has the size of a member
        body[place : place + 4] = struct.pack("<L", 4_000_000_000)
    return bytes(body)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers with what `server.answers` has under the path: a function of this handler."""

    def do_GET(self):
        self.server.answers[self.path](self)

    def log_message(self, *_):
        pass

    def start(self, **headers):
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()


@pytest.fixture(autouse=True)
def mount(tmp_path, monkeypatch):
    """Where Kaggle would have the data set; there is nothing yet, on Kaggle too."""
    monkeypatch.setattr(downloads, "MOUNTS", [tmp_path / "kaggle" / "input", tmp_path / "kaggle" / "new"])
    return downloads.MOUNTS[0]


@pytest.fixture
def serve():
    """Function: give paths and what answers them (bytes, or a function of the handler), get the address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.answers, server.daemon_threads, server.go_on = {}, True, threading.Event()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()

    def send(body):
        def answer(handler):
            handler.start(Content_Length=len(body))
            handler.wfile.write(body)

        return answer

    def add(**answers):
        for name, answer in answers.items():
            server.answers[f"/{name}"] = send(answer) if isinstance(answer, bytes) else answer
        return f"http://127.0.0.1:{server.server_port}"

    add.go_on = server.go_on  # an event that answers may wait for
    yield add
    server.go_on.set()
    server.shutdown()
    thread.join()
    server.server_close()


def fetch_fails(tmp_path, *files):
    """The sentence that a failing download gives; nothing may be left."""
    with pytest.raises(FetalsegError) as caught:
        downloads.fetch("hc18", tmp_path / "to" / "hc18", files)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "to").exists() or list((tmp_path / "to").iterdir()) == []
    return str(caught.value)


def no_server():
    """An address where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def half(handler):
    """Answer with the first half of an archive, then with nothing until the test ends."""
    body = zipped({"noise.bin": os.urandom(200_000)})
    handler.start(Content_Length=len(body))
    handler.wfile.write(body[:100_000])
    handler.wfile.flush()
    handler.server.go_on.wait(30)


def test_a_good_download_is_unpacked_with_what_lies_beside_it(tmp_path, serve):
    address = serve(archive=zipped(), table=b"a,b\n")
    md5 = hashlib.md5(zipped()).hexdigest()
    folder = tmp_path / "new" / "hc18"
    files = [("set.zip", f"{address}/archive", md5), ("sizes.csv", f"{address}/table", None)]
    assert downloads.fetch("hc18", folder, files) == folder
    assert contents(folder) == FILES | {"sizes.csv": b"a,b\n"}
    assert list(folder.parent.iterdir()) == [folder]
    assert len({path.stat().st_mode for path in folder.rglob("*") if path.is_file()}) == 1


def test_a_download_shows_a_progress_bar(tmp_path, serve, capsys):
    downloads.fetch("hc18", tmp_path / "hc18", [("set.zip", serve(archive=zipped()) + "/archive", None)])
    assert "100%|" in capsys.readouterr().err


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_pairs_of_either_data_set_are_found_in_what_was_fetched(tmp_path, serve, layout):
    address = serve(archive=zipped_pairs(tmp_path, layout))
    folder = downloads.fetch(layout, tmp_path / "to" / layout, [("set.zip", f"{address}/archive", None)])
    assert contents(folder) == contents(tmp_path / "pairs" / layout)
    pairs = loading.load_pairs(folder)
    assert sorted(pairs.image_id) == sorted(LAYOUTS[layout][1]) and pairs.mask_path.notna().all()


def test_a_redirected_download_arrives(tmp_path, serve):
    def moved(handler):
        handler.send_response(302)
        handler.send_header("Location", "/archive")
        handler.end_headers()

    address = serve(archive=zipped(), moved=moved)
    folder = downloads.fetch("kaggle", tmp_path / "kaggle", [("set.zip", f"{address}/moved", None)])
    assert contents(folder) == FILES


def test_an_empty_folder_is_used(tmp_path, serve):
    (tmp_path / "empty").mkdir()
    folder = downloads.fetch("kaggle", tmp_path / "empty", [("set.zip", serve(archive=zipped()) + "/archive", None)])
    assert contents(folder) == FILES


def test_a_wrong_checksum_is_refused_with_both_sums(tmp_path, serve):
    wanted = "0" * 32
    message = fetch_fails(tmp_path, ("set.zip", serve(archive=zipped()) + "/archive", wanted))
    assert "set.zip" in message and wanted in message and hashlib.md5(zipped()).hexdigest() in message


def test_a_body_that_is_cut_off_is_refused_with_its_length(tmp_path, serve):
    def cut(handler):
        handler.start(Content_Length=5000)
        handler.wfile.write(b"x" * 1200)

    message = fetch_fails(tmp_path, ("set.zip", serve(cut=cut) + "/cut", None))
    assert "set.zip" in message and "1200 bytes read, 3800 more expected" in message


def test_a_chunked_body_that_is_cut_off_is_refused(tmp_path, serve):
    def cut(handler):
        handler.protocol_version = "HTTP/1.1"
        handler.start(Transfer_Encoding="chunked", Connection="close")
        handler.wfile.write(b"1000\r\n" + b"x" * 100)
        handler.close_connection = True

    assert "/cut" in (message := fetch_fails(tmp_path, ("set.zip", serve(cut=cut) + "/cut", None))), message


def test_a_connection_that_breaks_in_the_middle_is_a_matter_of_the_network(tmp_path, serve):
    def reset(handler):
        handler.start(Content_Length=5_000_000)
        handler.wfile.write(b"x" * 1_500_000)
        handler.wfile.flush()
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.connection.close()  # with RST

    message = fetch_fails(tmp_path, ("set.zip", serve(reset=reset) + "/reset", None))
    assert "network" in message and "/reset" in message and "free some space" not in message


def test_a_connection_that_breaks_before_an_answer_is_a_matter_of_the_network(tmp_path, serve):
    def reset(handler):
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.connection.close()

    message = fetch_fails(tmp_path, ("set.zip", serve(reset=reset) + "/reset", None))
    assert "network" in message and "/reset" in message and "free some space" not in message


@pytest.mark.parametrize("moment", ["before the answer", "in the middle"])
def test_a_server_that_hangs_is_given_up(tmp_path, serve, monkeypatch, moment):
    monkeypatch.setattr(downloads, "TIMEOUT", 0.2)
    hang = half if moment == "in the middle" else lambda handler: handler.server.go_on.wait(30)
    message = fetch_fails(tmp_path, ("set.zip", serve(hang=hang) + "/hang", None))
    assert "timed out" in message and "check the network" in message


@pytest.mark.parametrize("body", [b"", b"<!DOCTYPE html><title>Log in</title>", zipped()[:-200]])
def test_what_is_no_whole_zip_archive_is_refused_with_the_page_to_open_and_the_place_for_the_file(
    tmp_path, serve, body
):
    def log_in(handler):
        handler.send_response(302)
        handler.send_header("Location", "/body")
        handler.end_headers()

    address = serve(body=body, log_in=log_in) + "/log_in"
    message = fetch_fails(tmp_path, ("set.zip", address, None))
    assert message.startswith(f"set.zip cannot be taken from {address} (File is not a zip file): open {PAGE} in a ")
    assert f"save the download as {tmp_path / 'to' / 'set.zip'}, and fetch again" in message


@pytest.mark.parametrize("place", [0.3, 0.5, 0.7])
def test_a_damaged_zip_archive_is_refused_and_named(tmp_path, serve, place):
    noise = bytes(hashlib.sha512(bytes([n % 256, n // 256])).digest()[0] % 40 for n in range(20_000))
    body = bytearray(zipped({"large.bin": noise}))
    for position in range(int(place * len(body)), int(place * len(body)) + 20):
        body[position] ^= 0xFF
    message = fetch_fails(tmp_path, ("set.zip", serve(body=bytes(body)) + "/body", None))
    assert message.startswith("set.zip cannot be taken from ") and "check the network" not in message


def test_a_member_that_is_longer_than_its_archive_says_is_refused(tmp_path, serve):
    body = bytearray(zipped({"large.bin": b"0" * 100_000}))
    place = body.index(b"PK\x01\x02") + 24
    body[place : place + 4] = struct.pack("<L", 10)
    assert "CRC" in fetch_fails(tmp_path, ("set.zip", serve(body=bytes(body)) + "/body", None))


def test_a_server_that_is_not_there_is_named_with_a_way_around(tmp_path):
    message = fetch_fails(tmp_path, ("set.zip", address := f"{no_server()}/set.zip", None))
    assert address in message and "check the network" in message and f"open {PAGE} in a browser" in message


@pytest.mark.parametrize(("status", "words"), [(403, "Forbidden"), (404, "Not Found"), (500, "Internal Server Error")])
def test_an_answer_of_failure_is_refused_with_the_address_and_a_way_around(tmp_path, serve, status, words):
    address = serve(gone=lambda handler: handler.send_error(status)) + "/gone"
    message = fetch_fails(tmp_path, ("set.zip", address, None))
    assert address in message and f"{status} " in message and words in message and f"open {PAGE} in" in message


def test_a_second_file_that_fails_leaves_nothing_of_the_first(tmp_path, serve):
    address = serve(archive=zipped(), gone=lambda handler: handler.send_error(500))
    fetch_fails(tmp_path, ("set.zip", f"{address}/archive", None), ("sizes.csv", f"{address}/gone", None))


def test_a_taken_folder_is_refused_and_stays_as_it_is(tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    with pytest.raises(FetalsegError, match=r"taken is already there: delete it"):
        downloads.fetch("hc18", tmp_path / "taken", [("set.zip", "http://127.0.0.1:9/never", None)])
    assert contents(tmp_path) == {"taken/mine.txt": b"mine"}


def test_a_file_in_place_of_the_folder_is_refused_and_stays(tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(FetalsegError, match="taken is already there: delete it"):
        downloads.fetch("hc18", tmp_path / "taken", [("set.zip", "http://127.0.0.1:9/never", None)])
    assert contents(tmp_path) == {"taken": b"mine"}


def test_a_folder_that_cannot_be_made_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FetalsegError, match="file"):
        downloads.fetch("hc18", tmp_path / "file" / "below", [("set.zip", "http://127.0.0.1:9/never", None)])


LINK = {"create_system": 3, "external_attr": (stat.S_IFLNK | 0o777) << 16}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("names", "changes", "problem"),
    [
        (["../evil.txt"], {}, "has an unsafe path"),
        (["a/../../evil.txt"], {}, "has an unsafe path"),
        (["/evil.txt"], {}, "has an unsafe path"),
        (["C:/evil.txt"], {}, "has an unsafe path"),
        (["c:evil.txt"], {}, "has an unsafe path"),
        (["..\\evil.txt"], {}, "has an unsafe path"),
        (["a\\b.txt"], {}, "has an unsafe path"),
        (["a//b.txt"], {}, "has an unsafe path"),
        (["a/./b.txt"], {}, "has an unsafe path"),
        (["link"], LINK, "is a symbolic link"),
        (["secret.txt"], {"flag_bits": 1}, "is encrypted or packed oddly"),
        (["odd.txt"], {"compress_type": zipfile.ZIP_LZMA}, "is encrypted or packed oddly"),
        (["same.txt", "same.txt"], {}, "comes twice"),
    ],
)
def test_an_archive_that_could_do_harm_is_refused_before_it_is_unpacked(tmp_path, serve, names, changes, problem):
    files = [("good.txt", b"good"), *((name, b"evil") for name in names)]
    address = serve(evil=zipped(files, **changes)) + "/evil"
    codes = []
    sys.setprofile(lambda frame, *_: codes.append(frame.f_code))
    try:
        message = fetch_fails(tmp_path, ("set.zip", address, None))
    finally:
        sys.setprofile(None)
    assert f"(its member {names[-1]!r} {problem}): open " in message
    assert downloads.unpack.__code__ in codes and zipfile.ZipFile.extractall.__code__ not in codes
    assert [path for path in tmp_path.rglob("*") if path.name != "to"] == []


def test_an_archive_that_would_unpack_to_more_than_is_sane_is_refused(tmp_path, serve):
    address = serve(bomb=zipped_giants(downloads.LARGEST)) + "/bomb"
    assert "(it would unpack to 24.0 GB, more than is allowed or free): open " in fetch_fails(
        tmp_path, ("set.zip", address, None)
    )


def test_an_archive_that_needs_more_than_the_free_disk_is_refused(tmp_path, serve, monkeypatch):
    monkeypatch.setattr(downloads, "LARGEST", float("inf"))
    address = serve(large=zipped_giants(shutil.disk_usage(tmp_path).free + 1e11)) + "/large"
    message = fetch_fails(tmp_path, ("set.zip", address, None))
    assert "more than is allowed or free): open " in message


# what somebody put there by hand


def test_without_a_network_the_file_can_be_put_there_by_hand(tmp_path):
    files = [("set.zip", f"{no_server()}/set", hashlib.md5(zipped()).hexdigest()), ("sizes.csv", no_server(), None)]
    paths = [tmp_path / "to" / name for name in ("set.zip", "sizes.csv")]
    message = fetch_fails(tmp_path, *files)
    assert f"open {PAGE} in a browser, save the download as {paths[0]} and {paths[1]}, and fetch again." in message
    paths[0].parent.mkdir(exist_ok=True)
    paths[0].write_bytes(zipped())
    with pytest.raises(FetalsegError, match=re.escape(f"save the download as {paths[1]}, and")):
        downloads.fetch("hc18", tmp_path / "to" / "hc18", files)
    paths[1].write_bytes(b"a,b\n")
    folder = downloads.fetch("hc18", tmp_path / "to" / "hc18", files)
    assert contents(folder) == FILES | {"sizes.csv": b"a,b\n"}
    assert sorted(folder.parent.iterdir()) == sorted([folder, *paths])


def test_the_place_for_a_file_is_a_full_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FetalsegError, match=re.escape(f"save the download as {tmp_path / 'to' / 'set.zip'}, and")):
        downloads.fetch("hc18", "to/hc18", [("set.zip", no_server(), None)])


@pytest.mark.parametrize(
    ("body", "reason"),
    [(zipped({"other.txt": b"other"}), "does not match the known hash"), (b"<html>Log in</html>", "File is not a zip")],
)
def test_a_wrong_file_put_there_by_hand_is_named_and_stays(tmp_path, serve, body, reason):
    md5 = None if "zip" in reason else hashlib.md5(zipped()).hexdigest()
    (tmp_path / "set.zip").write_bytes(body)
    with pytest.raises(FetalsegError, match=reason) as caught:
        downloads.fetch("hc18", tmp_path / "hc18", [("set.zip", f"{no_server()}/set", md5)])
    assert f"set.zip cannot be taken from {tmp_path / 'set.zip'} (" in str(caught.value)
    assert "network" not in str(caught.value) and "\n" not in str(caught.value)
    assert contents(tmp_path) == {"set.zip": body}


def test_the_command_names_page_and_place_where_there_is_no_network(tmp_path, monkeypatch):
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, no_server())
    result = CliRunner().invoke(__main__.cli, ["fetch", "kaggle", "--to", str(tmp_path / "set")])
    sentence = __main__.one_sentence(result.exception)
    assert "open https://www.kaggle.com/datasets/orvile/ultrasound-fetus-dataset in a browser" in sentence
    assert f"as {tmp_path / 'ultrasound-fetus-dataset.zip'}, and fetch again." in sentence and "\n" not in sentence


# on Kaggle


@pytest.mark.parametrize("place", [0, 1])
def test_on_kaggle_the_data_set_is_used_from_where_it_is_mounted(tmp_path, monkeypatch, place):
    mount = write_pairs(downloads.MOUNTS[place], ["1_HC", "2_HC", "3_HC"])
    for module in (downloads, stages):
        monkeypatch.setattr(module, "project_root", lambda: tmp_path / "project")
    for _ in range(2):
        result = CliRunner().invoke(__main__.cli, ["fetch", "kaggle"])
        where = f"{mount} and is used from there, through the link {tmp_path / 'project' / 'data' / 'kaggle'}"
        assert result.output == f"kaggle lies in {where}. Credit it: {LICENCES['kaggle']}\n"
    assert [path.name for path in (tmp_path / "project" / "data").iterdir()] == ["kaggle"]
    found = stages.find_data("kaggle", tmp_path / "run")
    assert list(loading.load_pairs(found).image_id) == ["1_HC", "2_HC", "3_HC"]


def test_on_kaggle_a_folder_that_holds_something_else_stays(tmp_path, mount):
    write_pairs(mount, ["1_HC"])
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    with pytest.raises(FetalsegError, match="taken is already there"):
        downloads.fetch("kaggle", tmp_path / "taken")
    assert contents(tmp_path / "taken") == {"mine.txt": b"mine"} and len(list(mount.iterdir())) == 2


def test_a_link_to_a_mount_that_is_gone_is_refused(tmp_path):
    (tmp_path / "set").symlink_to(tmp_path / "gone", target_is_directory=True)
    with pytest.raises(FetalsegError, match="set is already there: delete it"):
        downloads.fetch("kaggle", tmp_path / "set", [("set.zip", f"{no_server()}/set", None)])


def test_hc18_is_downloaded_on_kaggle_too(tmp_path, serve, mount):
    write_pairs(mount, ["1_HC"])
    folder = downloads.fetch("hc18", tmp_path / "hc18", [("set.zip", serve(archive=zipped()) + "/archive", None)])
    assert contents(folder) == FILES and not folder.is_symlink()


# fetches that were killed, or run at the same time


def test_every_data_set_has_addresses_and_a_licence():
    for name, files in downloads.DOWNLOADS.items():
        assert files and "CC BY 4.0" in LICENCES[name]
        for file_name, address, md5 in files:
            assert "/" not in file_name and address.startswith("https://")
            assert md5 == "" or re.fullmatch(r"[0-9a-f]{32}", md5)


@pytest.mark.parametrize("moment", ["download", "unpacking"])
def test_a_killed_fetch_leaves_nothing_that_is_taken_for_whole_and_can_be_run_again(tmp_path, serve, moment):
    many = {f"Data/{number}.txt": b"%d" % number for number in range(4000)}
    address = serve(half=half, many=zipped(many), archive=zipped())
    first = "half" if moment == "download" else "many"
    folder = tmp_path / "data" / "hc18"
    new = tmp_path / "data" / ".unfinished-hc18" / "new"
    command = [sys.executable, "-c", FETCH, str(folder), f"{address}/{first}"]
    with subprocess.Popen(command, cwd=project_root(), stderr=subprocess.DEVNULL) as process:
        begun = "tmp*" if moment == "download" else "content/Data/1*.txt"
        while process.poll() is None and not any(path.stat().st_size for path in new.glob(begun)):
            time.sleep(0.002)
        process.kill()
    assert process.returncode not in (0, 1) and new.is_dir() and not folder.exists()
    assert downloads.fetch("hc18", folder, [("set.zip", f"{address}/archive", None)]) == folder
    assert contents(folder) == FILES and list(folder.parent.iterdir()) == [folder]


def test_a_second_fetch_is_told_of_the_first_and_then_of_what_it_made(tmp_path, serve):
    def slow(handler):
        body = zipped()
        handler.start(Content_Length=len(body))
        handler.wfile.write(body[:10])
        asked.set()
        handler.server.go_on.wait(30)
        handler.wfile.write(body[10:])

    asked = threading.Event()
    folder, files = tmp_path / "to" / "hc18", [("set.zip", serve(slow=slow) + "/slow", None)]
    first = threading.Thread(target=downloads.fetch, args=("hc18", folder, files))
    first.start()
    assert asked.wait(30)
    with pytest.raises(FetalsegError, match="hc18 is being fetched by another process: wait for it"):
        downloads.fetch("hc18", folder, files)
    serve.go_on.set()
    first.join()
    assert contents(folder) == FILES and list(folder.parent.iterdir()) == [folder]
    with pytest.raises(FetalsegError, match="hc18 is already there"):
        downloads.fetch("hc18", folder, files)
    assert contents(folder) == FILES


def test_a_folder_that_another_process_fetches_is_refused_and_left_to_it(tmp_path, serve):
    scratch = tmp_path / ".unfinished-hc18"
    scratch.mkdir()
    files = [("set.zip", serve(archive=zipped()) + "/archive", None)]
    with FileLock(scratch / "lock"), pytest.raises(FetalsegError, match="another process"):
        downloads.fetch("hc18", tmp_path / "hc18", files)
    assert scratch.is_dir() and not (tmp_path / "hc18").exists()


def test_the_reason_is_given_without_what_the_libraries_made_of_it(tmp_path):
    message = fetch_fails(tmp_path, ("set.zip", f"{no_server()}/set.zip", None))
    assert "refused" in message and "HTTPConnection" not in message and len(message) < 400


def test_a_file_that_the_disk_refuses_is_a_matter_of_the_disk_and_not_of_the_network(tmp_path, serve):
    resource = pytest.importorskip("resource", reason="only Unix can limit the size of files")
    address = serve(archive=zipped({"noise.bin": os.urandom(200_000)})) + "/archive"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        message = fetch_fails(tmp_path, ("set.zip", address, None))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "File too large" in message and "free some space" in message and "network" not in message


# where the data of a run lies


def test_a_folder_that_is_not_there_is_refused_with_the_remedy(tmp_path, monkeypatch):
    with pytest.raises(FetalsegError, match=r"absent is not a folder: check the path"):
        stages.find_data(str(tmp_path / "absent"), tmp_path / "run")
    monkeypatch.setattr(loading, "project_root", lambda: tmp_path)
    with pytest.raises(FetalsegError, match=r"hc18 is not a folder: run: python -m fetalseg_helpers fetch hc18"):
        stages.find_data("hc18", tmp_path / "run")


def test_phantoms_beside_the_run_folders_are_shared_and_none_are_made(tmp_path):
    shared = write_pairs(tmp_path / "runs" / "phantom_12", ["1_HC", "2_HC", "3_HC"])
    assert stages.find_data("phantom", tmp_path / "runs" / "one", phantoms=12) == shared


def test_phantoms_are_made_once_in_the_run_folder(tmp_path, capsys, monkeypatch):
    made = []

    def write(folder, count, seed):
        made.append((count, seed))
        write_pairs(folder, [f"{number}_HC" for number in range(count)])

    monkeypatch.setattr(dataset, "write_phantoms", write)
    for said in (True, False):
        folder = stages.find_data("phantom", tmp_path / "runs" / "one", phantoms=12)
        assert folder == tmp_path / "runs" / "one" / "phantom_12" and len(loading.load_pairs(folder)) == 12
        assert capsys.readouterr().out.startswith("12 phantom frames are being made in ") == said
    assert made == [(12, 0)]
