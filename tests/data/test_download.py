"""`make data` against a real HTTP server that breaks off, lies, and goes away."""

import hashlib
import http.server
import random
import threading
import zipfile

import pytest

from pipeline.data.download import MIRFLICKR, Remote, download
from pipeline.errors import DataError
from tests.conftest import write_zip

BODY = random.Random(0).randbytes(300_000)


class Server(http.server.BaseHTTPRequestHandler):
    """Serves BODY with ranges; `plan` says how each request goes wrong."""

    body = BODY
    ranges = True
    plan: list = []  # noqa: RUF012 -- set per test
    seen: list = []  # noqa: RUF012 -- set per test

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.seen.append(wanted)
        fault = self.plan.pop(0) if self.plan else None
        if fault in (404, 503):
            self.send_error(fault)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges else 0
        if start >= len(self.body):
            self.send_error(416)
            return
        part = self.body[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part[: fault or len(part)])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    handler = type("Handler", (Server,), {"plan": [], "seen": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        handler.url = f"http://127.0.0.1:{running.server_port}/file.zip"
        yield handler
        running.shutdown()


def fetch(server, folder, md5=None):
    md5 = hashlib.md5(server.body).hexdigest() if md5 is None else md5
    return download([Remote("file.zip", server.url, md5 or None)], folder, pause_s=0)[0]


def test_a_file_arrives_whole_and_is_not_fetched_twice(server, tmp_path):
    path = fetch(server, tmp_path / "raw")
    assert path.read_bytes() == BODY
    assert path.with_name("file.zip.sha256").read_text().startswith(hashlib.sha256(BODY).hexdigest())
    fetch(server, tmp_path / "raw")
    assert server.seen == [None]


def test_it_reports_what_has_come(server, tmp_path, told):
    server.body = random.Random(0).randbytes(3_000_000)
    fetch(server, tmp_path)
    assert {(state.doing, state.total, state.unit) for state in told} == {
        ("downloading file.zip, MB", 3, "MB")
    }
    assert told[-1].done == 3


def test_a_broken_connection_is_taken_up_where_it_broke(server, tmp_path):
    server.plan += [100_000, 50_000, 503]
    assert fetch(server, tmp_path).read_bytes() == BODY
    assert server.seen == [None, "bytes=100000-", "bytes=150000-", "bytes=150000-"]


def test_a_later_call_goes_on_with_what_came(server, tmp_path):
    server.plan += [100_000, 404]
    with pytest.raises(DataError, match=r"file.zip: cannot be fetched: .*404.*100,000 bytes are kept"):
        fetch(server, tmp_path)
    assert not (tmp_path / "file.zip").exists()
    assert fetch(server, tmp_path).read_bytes() == BODY
    assert server.seen[-1] == "bytes=100000-"


def test_a_server_without_ranges_sends_it_all_again(server, tmp_path):
    server.ranges = False
    server.plan += [100_000]
    assert fetch(server, tmp_path).read_bytes() == BODY


def test_a_complete_part_of_a_killed_call_is_used(server, tmp_path):
    (tmp_path / "file.zip.part").write_bytes(BODY)
    assert fetch(server, tmp_path).read_bytes() == BODY


def test_a_corrupted_file_is_deleted_and_named(server, tmp_path):
    with pytest.raises(
        DataError,
        match=r"its MD5 is \w+, expected 0000; it was deleted|the download is not the expected file",
    ):
        fetch(server, tmp_path, md5="0000")
    assert list(tmp_path.iterdir()) == []


def test_without_a_published_digest_the_archive_s_own_checks_count(server, tmp_path):
    server.body = write_zip(tmp_path / "good.zip", {"a.txt": "x" * 5000}).read_bytes()
    path = fetch(server, tmp_path / "a", md5="")
    assert zipfile.ZipFile(path).read("a.txt") == b"x" * 5000
    server.body = server.body.replace(b"xxxx", b"xyxx", 1)
    with pytest.raises(DataError, match=r"the archive is damaged: a.txt"):
        fetch(server, tmp_path / "b", md5="")


def test_no_internet_says_what_to_do_instead(tmp_path):
    with pytest.raises(DataError, match=r"cannot be fetched: .*refused.*without internet, copy the file to"):
        download([Remote("x.zip", "http://127.0.0.1:9/x.zip", None)], tmp_path, pause_s=0)


def test_the_table_names_the_published_digest():
    assert MIRFLICKR[0].md5 == "a23d0a8564ee84cda5622a6c2f947785"
    assert [remote.name for remote in MIRFLICKR] == ["mirflickr25k.zip", "mirflickr25k_annotations_v080.zip"]
