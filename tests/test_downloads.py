"""Downloads from a server that misbehaves."""

import hashlib
import http.server
import io
import re
import socket
import struct
import threading
import zipfile

import pytest
from filelock import FileLock
from shapes import write_pairs

from fetalseg_helpers import loading
from fetalseg_helpers.beyond_dice.model_card import LICENCES
from fetalseg_helpers.phantoms import dataset
from fetalseg_helpers.running import downloads
from fetalseg_helpers.workspace import FetalsegError

FILES = {"Data/train/malignant/1_HC.png": b"picture", "Data/ü b.txt": b"text" * 5000}


def zipped(files=FILES):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


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


@pytest.fixture
def serve():
    """Function: give paths and what answers them (bytes, or a function of the handler), get the address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.answers, server.daemon_threads = {}, True
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

    yield add
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


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_good_download_is_unpacked_with_what_lies_beside_it(tmp_path, serve):
    address = serve(archive=zipped(), table=b"a,b\n")
    md5 = hashlib.md5(zipped()).hexdigest()
    folder = tmp_path / "new" / "hc18"
    files = [("set.zip", f"{address}/archive", md5), ("sizes.csv", f"{address}/table", None)]
    assert downloads.fetch("hc18", folder, files) == folder
    assert content(folder) == FILES | {"sizes.csv": b"a,b\n"}
    assert list(folder.parent.iterdir()) == [folder]


def test_a_redirected_download_arrives(tmp_path, serve):
    def moved(handler):
        handler.send_response(302)
        handler.send_header("Location", "/archive")
        handler.end_headers()

    address = serve(archive=zipped(), moved=moved)
    folder = downloads.fetch("kaggle", tmp_path / "kaggle", [("set.zip", f"{address}/moved", None)])
    assert content(folder) == FILES


def test_an_empty_folder_is_used(tmp_path, serve):
    (tmp_path / "empty").mkdir()
    folder = downloads.fetch("kaggle", tmp_path / "empty", [("set.zip", serve(archive=zipped()) + "/archive", None)])
    assert content(folder) == FILES


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


@pytest.mark.parametrize("body", [b"", b"<html>Sign in</html>", zipped()[:-200]], ids=["empty", "page", "half"])
def test_what_is_no_whole_zip_archive_is_refused_and_named(tmp_path, serve, body):
    message = fetch_fails(tmp_path, ("set.zip", serve(body=body) + "/body", None))
    assert message.startswith("set.zip is not a whole zip archive")


@pytest.mark.parametrize("place", [0.3, 0.5, 0.7])
def test_a_damaged_zip_archive_is_refused_and_named(tmp_path, serve, place):
    noise = bytes(hashlib.sha512(bytes([n % 256, n // 256])).digest()[0] % 40 for n in range(20_000))
    body = bytearray(zipped({"large.bin": noise}))
    for position in range(int(place * len(body)), int(place * len(body)) + 20):
        body[position] ^= 0xFF
    message = fetch_fails(tmp_path, ("set.zip", serve(body=bytes(body)) + "/body", None))
    assert message.startswith("set.zip is not a whole zip archive")


def test_a_server_that_is_not_there_is_named_with_a_way_around(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/set.zip"
    message = fetch_fails(tmp_path, ("set.zip", address, None))
    assert address in message and "check the network" in message and "--data" in message


def test_an_answer_404_is_refused_with_the_address(tmp_path, serve):
    address = serve(gone=lambda handler: handler.send_error(404)) + "/gone"
    message = fetch_fails(tmp_path, ("set.zip", address, None))
    assert address in message and "Not Found" in message


def test_a_second_file_that_fails_leaves_nothing_of_the_first(tmp_path, serve):
    address = serve(archive=zipped(), gone=lambda handler: handler.send_error(500))
    fetch_fails(tmp_path, ("set.zip", f"{address}/archive", None), ("sizes.csv", f"{address}/gone", None))


def test_a_taken_folder_is_refused_and_stays_as_it_is(tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    with pytest.raises(FetalsegError, match=r"taken is already there: delete it"):
        downloads.fetch("hc18", tmp_path / "taken", [("set.zip", "http://127.0.0.1:9/never", None)])
    assert content(tmp_path) == {"taken/mine.txt": b"mine"}


def test_a_file_in_place_of_the_folder_is_refused_and_stays(tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(FetalsegError, match="taken"):
        downloads.fetch("hc18", tmp_path / "taken", [("set.zip", "http://127.0.0.1:9/never", None)])
    assert content(tmp_path) == {"taken": b"mine"}


def test_a_folder_that_cannot_be_made_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FetalsegError, match="file"):
        downloads.fetch("hc18", tmp_path / "file" / "below", [("set.zip", "http://127.0.0.1:9/never", None)])


def test_no_member_of_an_archive_lands_outside_the_folder(tmp_path, serve):
    address = serve(evil=zipped({"../../evil.txt": b"evil", "/evil.txt": b"evil", "good.txt": b"good"})) + "/evil"
    downloads.fetch("hc18", tmp_path / "to" / "hc18", [("set.zip", address, None)])
    assert [path for path in tmp_path.rglob("evil.txt") if tmp_path / "to" / "hc18" not in path.parents] == []


def test_every_data_set_has_addresses_and_a_licence():
    for name, files in downloads.DOWNLOADS.items():
        assert files and "CC BY 4.0" in LICENCES[name]
        for file_name, address, md5 in files:
            assert "/" not in file_name and address.startswith("https://")
            assert md5 is None or re.fullmatch(r"[0-9a-f]{32}", md5)


def test_what_a_killed_fetch_left_is_removed_by_the_next(tmp_path, serve):
    left = tmp_path / ".unfinished-hc18" / "content" / "Data"
    left.mkdir(parents=True)
    (left / "half.png").write_bytes(b"half")
    address = serve(archive=zipped()) + "/archive"
    folder = downloads.fetch("hc18", tmp_path / "hc18", [("set.zip", address, None)])
    assert content(folder) == FILES and list(tmp_path.iterdir()) == [folder]


def test_a_folder_that_another_process_fetches_is_refused_and_left_to_it(tmp_path, serve):
    scratch = tmp_path / ".unfinished-hc18"
    scratch.mkdir()
    files = [("set.zip", serve(archive=zipped()) + "/archive", None)]
    with FileLock(scratch / "lock"), pytest.raises(FetalsegError, match="another process"):
        downloads.fetch("hc18", tmp_path / "hc18", files)
    assert scratch.is_dir() and not (tmp_path / "hc18").exists()


def test_the_reason_is_given_without_what_the_libraries_made_of_it(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/set.zip"
    message = fetch_fails(tmp_path, ("set.zip", address, None))
    assert "refused" in message and "HTTPConnection" not in message and len(message) < 300


def test_a_full_disk_is_a_matter_of_the_disk_and_not_of_the_network(tmp_path, serve, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(downloads.pooch, "retrieve", full)
    message = fetch_fails(tmp_path, ("set.zip", "http://127.0.0.1:9/never", None))
    assert "No space left on device" in message and "network" not in message


# where the data of a run lies


def test_a_folder_that_is_not_there_is_refused_with_the_remedy(tmp_path, monkeypatch):
    with pytest.raises(FetalsegError, match=r"absent is not a folder: check the path"):
        loading.find_data(str(tmp_path / "absent"), tmp_path / "run")
    monkeypatch.setattr(loading, "project_root", lambda: tmp_path)
    with pytest.raises(FetalsegError, match=r"hc18 is not a folder: run: python -m fetalseg_helpers fetch hc18"):
        loading.find_data("hc18", tmp_path / "run")


def test_phantoms_beside_the_run_folders_are_shared_and_none_are_made(tmp_path):
    shared = write_pairs(tmp_path / "runs" / "phantom_12", ["1_HC", "2_HC", "3_HC"])
    assert loading.find_data("phantom", tmp_path / "runs" / "one", phantoms=12) == shared


def test_phantoms_are_made_once_in_the_run_folder(tmp_path, capsys, monkeypatch):
    made = []

    def write(folder, count, seed):
        made.append((count, seed))
        write_pairs(folder, [f"{number}_HC" for number in range(count)])

    monkeypatch.setattr(dataset, "write_phantoms", write)
    for said in (True, False):
        folder = loading.find_data("phantom", tmp_path / "runs" / "one", phantoms=12)
        assert folder == tmp_path / "runs" / "one" / "phantom_12" and len(loading.load_pairs(folder)) == 12
        assert capsys.readouterr().out.startswith("12 phantom frames are being made in ") == said
    assert made == [(12, 0)]
