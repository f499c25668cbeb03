"""Published files of weights: fetched whole, verified, resumed; half a file never looks whole."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest
from processes import Outcome, plain_environment, run_process

from ppap_host.files import weights
from ppap_host.files.errors import CheckpointError, OutputError, PluginError, UnknownNameError
from ppap_host.files.weights import DownloadError, PublishedFile, Record, fetch, stored
from ppap_host.plugins.hookspecs import hookimpl
from ppap_host.plugins.registry import Registry, fetched

Call = Callable[..., Outcome]

BODY = b"\x80" + bytes(range(256)) * 400 + b"the end"
OTHER = b"\x80" + bytes(reversed(range(256))) * 400 + b"the end"
SHA256 = hashlib.sha256(BODY).hexdigest()
MD5 = base64.b64encode(hashlib.md5(BODY).digest()).decode()
HALF = len(BODY) // 2


@dataclass
class Site:
    """What the server does, and what it was asked for.

    Attributes:
        body, etag: of the one file, at every path.
        cuts: bytes after which the connection of each answer in turn is cut; None: not at all.
        statuses: of the first answers, for those that are errors.
        ranges: whether it knows them.
        headers: that come with every answer.
        to: where it redirects, from any path but "/moved".
        gate: is waited for in the middle of a body.
        asked: the Range and If-Range of each request.
        reached: is set when half a body is out.
    """

    body: bytes = BODY
    etag: str | None = '"one"'
    cuts: list[int | None] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    ranges: bool = True
    headers: dict[str, str] = field(default_factory=dict)
    to: str | None = None
    gate: threading.Event | None = None
    url: str = ""
    asked: list[tuple[str | None, str | None]] = field(default_factory=list)
    reached: threading.Event = field(default_factory=threading.Event)

    @property
    def file(self) -> PublishedFile:
        """The file as a plugin would declare it, all being known."""
        return PublishedFile(
            "toy", f"{self.url}/toy.pt", "toy.pt", "MIT", "a toy", len(BODY), SHA256, group="toys"
        )

    @property
    def unknown(self) -> PublishedFile:
        """The same, nothing being known."""
        return replace(self.file, size=None, sha256=None)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Clients that hang up are what this is about."""


@pytest.fixture
def site() -> Iterator[Site]:
    here = Site()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            answer(self, here)

    server = Server(("127.0.0.1", 0), Handler)
    here.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield here
    if here.gate is not None:
        here.gate.set()
    server.shutdown()
    thread.join()
    server.server_close()


def answer(request: BaseHTTPRequestHandler, site: Site) -> None:
    wanted, condition = request.headers.get("Range"), request.headers.get("If-Range")
    site.asked.append((wanted, condition))
    cut = site.cuts.pop(0) if site.cuts else None
    if site.to is not None and request.path != "/moved":
        request.send_response(302)
        request.send_header("Location", site.to)
        for name, value in site.headers.items():
            request.send_header(name, value)
        request.end_headers()
        return
    start, status = 0, site.statuses.pop(0) if site.statuses else 200
    if status == 200 and wanted and site.ranges and condition in (None, site.etag):
        start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        status = 206 if start < len(site.body) else 416
    body = site.body[start:] if status in (200, 206) else b"sorry"
    request.send_response(status)
    headers = {"Content-Length": str(len(body)), "Content-Type": "application/octet-stream"}
    if site.etag is not None:
        headers["ETag"] = site.etag
    if status == 206:
        headers["Content-Range"] = f"bytes {start}-{len(site.body) - 1}/{len(site.body)}"
    for name, value in (headers | site.headers).items():
        request.send_header(name, value)
    request.end_headers()
    if site.gate is not None:
        request.wfile.write(body[: len(body) // 2])
        site.reached.set()
        site.gate.wait(60)
        body = body[len(body) // 2 :]
    request.wfile.write(body if cut is None else body[:cut])


@pytest.fixture(autouse=True)
def haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "PAUSES", (0.01, 0.01))
    monkeypatch.setattr(weights, "CHUNK", 1000)


def interrupt_after(size: int) -> weights.Watch:
    """Ctrl-C once so many bytes are there."""

    def watch(what: str, done: int, total: int) -> None:
        if what.startswith("fetching") and done >= size:
            raise KeyboardInterrupt

    return watch


def names(folder: Path) -> set[str]:
    """What is in a folder, but for locks."""
    return {p.name for p in folder.iterdir() if not p.name.endswith(".lock")}


WHOLE = {"toy.pt", "toy.pt.fetched.json"}
CUT = {"toy.pt.part", "toy.pt.part.json"}


# Fetching


def test_a_fetched_file_is_the_published_one(site: Site, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    path = fetch(site.file, tmp_path / "new", lambda *now: seen.append(now))
    assert path == tmp_path / "new" / "toy.pt"
    assert path.read_bytes() == BODY
    assert names(path.parent) == WHOLE
    assert site.asked == [(None, None)]
    done = [n for what, n, _ in seen if what.startswith("fetching toy.pt")]
    assert done == sorted(done)
    assert done[-1] == len(BODY)
    assert {total for _, _, total in seen} == {len(BODY)}


def test_a_fetched_file_is_not_fetched_again(site: Site, tmp_path: Path) -> None:
    path = fetch(site.file, tmp_path)
    before = path.stat().st_mtime_ns
    site.statuses = [500] * 9
    assert fetch(site.file, tmp_path) == path
    assert path.stat().st_mtime_ns == before
    assert len(site.asked) == 1


def test_the_record_says_what_was_found_and_compared(site: Site, tmp_path: Path) -> None:
    path = fetch(site.file, tmp_path)
    record = Record.beside(path)
    assert record is not None
    assert (record.name, record.url, record.size) == ("toy", site.file.url, len(BODY))
    assert record.sha256 == SHA256
    assert record.checked == ("the published size", "the published SHA-256", "the server's size")


# Cut downloads


def test_a_cut_download_goes_on_where_it_was(site: Site, tmp_path: Path) -> None:
    site.cuts = [HALF]
    path = fetch(site.file, tmp_path)
    assert path.read_bytes() == BODY
    (first, second) = site.asked
    assert first == (None, None)
    start = int(str(second[0]).removeprefix("bytes=").removesuffix("-"))
    assert HALF - 1000 <= start <= HALF
    assert second[1] == '"one"'
    assert names(tmp_path) == WHOLE


def test_a_server_that_cuts_every_answer_still_gives_everything(site: Site, tmp_path: Path) -> None:
    site.cuts = [9000] * 100
    assert fetch(site.file, tmp_path).read_bytes() == BODY
    assert 11 <= len(site.asked) <= 14
    assert all(condition == '"one"' for _, condition in site.asked[1:])


def test_an_interrupted_download_goes_on_in_the_next_call(site: Site, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fetch(site.file, tmp_path, interrupt_after(HALF))
    assert names(tmp_path) == CUT
    kept = weights.unfinished(site.file, tmp_path)
    assert kept >= HALF
    assert stored(site.file, tmp_path) is None
    assert fetch(site.file, tmp_path).read_bytes() == BODY
    assert site.asked[1] == (f"bytes={kept}-", '"one"')
    assert names(tmp_path) == WHOLE


def test_all_bytes_but_no_verification_yet(site: Site, tmp_path: Path) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if what.startswith("verifying"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(site.file, tmp_path, stop)
    assert names(tmp_path) == CUT
    assert stored(site.file, tmp_path) is None
    assert fetch(site.file, tmp_path).read_bytes() == BODY
    assert len(site.asked) == 1


FETCH = """\
import json, sys
from pathlib import Path
from ppap_host.files.weights import PublishedFile, fetch
print(fetch(PublishedFile(**json.loads(sys.argv[1])), Path(sys.argv[2])))
"""


@contextmanager
def another_process(site: Site, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that fetches and has half of the body, the server holding the rest back."""
    site.gate = threading.Event()
    described = json.dumps(site.file.__dict__)
    process = subprocess.Popen(
        [sys.executable, "-c", FETCH, described, str(folder)],
        env=plain_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert site.reached.wait(60)
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_killed_process_leaves_nothing_that_looks_whole(site: Site, tmp_path: Path) -> None:
    with another_process(site, tmp_path) as process:
        deadline = time.monotonic() + 30
        while not (tmp_path / "toy.pt.part").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
        process.wait()
    # Killed while the record was being written, its half stays under a name of its own.
    halves = {name for name in names(tmp_path) if name.startswith(".toy.pt.part.json.")}
    assert names(tmp_path) - halves <= CUT
    assert stored(site.file, tmp_path) is None
    assert site.gate is not None
    site.gate.set()
    assert fetch(site.file, tmp_path).read_bytes() == BODY


def test_two_processes_do_not_get_in_each_others_way(site: Site, tmp_path: Path) -> None:
    with another_process(site, tmp_path) as process:

        def watch(what: str, done: int, total: int) -> None:
            said.append(what)
            if what.startswith("waiting"):
                assert site.gate is not None
                site.gate.set()

        said: list[str] = []
        path = fetch(site.file, tmp_path, watch)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")
    assert out.decode().strip() == str(path)
    assert said[0] == "waiting for another process that fetches toy.pt"
    assert path.read_bytes() == BODY
    assert len(site.asked) == 1
    assert names(tmp_path) == WHOLE


def cut_in_half(site: Site, folder: Path, file: PublishedFile | None = None) -> None:
    with pytest.raises(KeyboardInterrupt):
        fetch(file or site.file, folder, interrupt_after(HALF))
    site.asked.clear()


def test_a_file_that_has_changed_is_started_over(site: Site, tmp_path: Path) -> None:
    site.body = OTHER
    cut_in_half(site, tmp_path, site.unknown)
    site.body, site.etag = BODY, '"two"'
    path = fetch(site.unknown, tmp_path)
    assert path.read_bytes() == BODY
    assert len(site.asked) == 1
    assert site.asked[0][1] == '"one"'


def test_a_server_that_hides_the_change_is_not_believed(site: Site, tmp_path: Path) -> None:
    """It answers 206 although the version is another one: the tag in its answer gives it away."""
    site.body = OTHER
    cut_in_half(site, tmp_path, site.unknown)
    site.body, site.headers = BODY, {"ETag": '"two"'}
    assert fetch(site.unknown, tmp_path).read_bytes() == BODY
    assert [wanted is None for wanted, _ in site.asked] == [False, True]


def test_a_server_without_ranges_sends_everything_again(site: Site, tmp_path: Path) -> None:
    cut_in_half(site, tmp_path)
    site.ranges = False
    assert fetch(site.file, tmp_path).read_bytes() == BODY
    assert len(site.asked) == 1
    assert site.asked[0][0] is not None


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_a_strong_tag_or_a_date_nothing_is_joined(
    site: Site, tmp_path: Path, etag: str | None
) -> None:
    site.etag = etag
    cut_in_half(site, tmp_path)
    assert fetch(site.file, tmp_path).read_bytes() == BODY
    assert site.asked == [(None, None)]


def test_a_date_will_do(site: Site, tmp_path: Path) -> None:
    day = "Thu, 01 Jul 2021 00:00:00 GMT"
    site.etag, site.headers = None, {"Last-Modified": day}
    cut_in_half(site, tmp_path)
    fetch(site.file, tmp_path)
    assert site.asked[0][1] == day


def test_pieces_that_do_not_fit_are_fetched_anew_once(site: Site, tmp_path: Path) -> None:
    cut_in_half(site, tmp_path)
    part = tmp_path / "toy.pt.part"
    part.write_bytes(b"?" * part.stat().st_size)
    with pytest.raises(KeyboardInterrupt):
        fetch(site.file, tmp_path, interrupt_after(HALF))
    site.asked.clear()
    assert fetch(site.file, tmp_path).read_bytes() == BODY
    assert [wanted is None for wanted, _ in site.asked] == [False, True]


def test_a_part_of_unknown_origin_is_not_gone_on_with(site: Site, tmp_path: Path) -> None:
    (tmp_path / "toy.pt.part").write_bytes(OTHER[:HALF])
    assert fetch(site.file, tmp_path).read_bytes() == BODY
    (tmp_path / "toy.pt").unlink()
    cut_in_half(site, tmp_path)
    moved = replace(site.file, url=f"{site.url}/elsewhere/toy.pt")
    assert fetch(moved, tmp_path).read_bytes() == BODY
    assert site.asked == [(None, None)]


def test_a_part_that_is_too_long_is_started_over(site: Site, tmp_path: Path) -> None:
    cut_in_half(site, tmp_path)
    with (tmp_path / "toy.pt.part").open("ab") as part:
        part.write(b"?" * len(BODY))
    assert fetch(site.file, tmp_path).read_bytes() == BODY


# Verification


def test_a_wrong_hash_gets_no_name(site: Site, tmp_path: Path) -> None:
    site.body = OTHER
    with pytest.raises(CheckpointError, match="the published SHA-256") as caught:
        fetch(site.file, tmp_path)
    assert names(tmp_path) == {"toy.pt.rejected"}
    assert str(tmp_path / "toy.pt.rejected") in caught.value.remedy
    assert stored(site.file, tmp_path) is None
    site.body = BODY
    assert fetch(site.file, tmp_path).read_bytes() == BODY


def test_another_size_is_noticed_before_anything_is_fetched(site: Site, tmp_path: Path) -> None:
    site.body = BODY + b"more"
    with pytest.raises(
        CheckpointError, match=r"has another 'toy.pt' .* 102,412 bytes, not 102,408"
    ):
        fetch(site.file, tmp_path)
    assert names(tmp_path) == set()


def test_what_the_user_had_stays(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "toy.pt"
    for mine in (OTHER, b"short", BODY):
        path.write_bytes(mine)
        if mine == BODY:
            assert fetch(site.file, tmp_path) == path
        else:
            with pytest.raises(CheckpointError, match="is not the published file") as caught:
                fetch(site.file, tmp_path)
            assert "left as it is" in caught.value.remedy
            assert names(tmp_path) == {"toy.pt"}
        assert path.read_bytes() == mine
    assert site.asked == []


def test_a_file_in_a_folder_that_cannot_be_written_is_found(
    site: Site, tmp_path: Path, as_user: None
) -> None:
    (tmp_path / "toy.pt").write_bytes(BODY)
    tmp_path.chmod(0o500)
    try:
        assert fetch(site.file, tmp_path).read_bytes() == BODY
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    ("headers", "checked"),
    [
        ({"Content-MD5": MD5}, "the server's MD5"),
        ({"x-ms-blob-content-md5": MD5}, "the server's MD5"),
        ({"x-goog-hash": f"crc32c=AAAAAA==,md5={MD5}"}, "the server's MD5"),
        ({"X-Linked-Etag": f'"{SHA256}"'}, "the server's SHA-256"),
    ],
)
def test_what_the_server_says_is_compared(
    site: Site, tmp_path: Path, headers: dict[str, str], checked: str
) -> None:
    site.headers = headers
    record = Record.beside(fetch(site.unknown, tmp_path))
    assert record is not None
    assert record.checked == ("the server's size", checked)
    (tmp_path / "toy.pt").unlink()
    site.body = OTHER
    with pytest.raises(CheckpointError, match=checked):
        fetch(site.unknown, tmp_path)
    assert not (tmp_path / "toy.pt").exists()


def test_a_digest_of_the_first_answer_holds_for_the_second(site: Site, tmp_path: Path) -> None:
    """Azure's Content-MD5 is of the blob in a whole answer, and of the piece in a partial one."""
    site.headers = {"Content-MD5": MD5}
    cut_in_half(site, tmp_path, site.unknown)
    site.headers = {"Content-MD5": base64.b64encode(b"0" * 16).decode()}
    record = Record.beside(fetch(site.unknown, tmp_path))
    assert record is not None
    assert "the server's MD5" in record.checked


def test_without_a_published_hash_the_recorded_one_counts(site: Site, tmp_path: Path) -> None:
    path = fetch(site.unknown, tmp_path)
    assert fetch(site.unknown, tmp_path) == path
    path.write_bytes(OTHER)
    with pytest.raises(CheckpointError, match="the SHA-256 when it was fetched"):
        fetch(site.unknown, tmp_path)
    assert path.read_bytes() == OTHER
    path.write_bytes(BODY[:-1])
    with pytest.raises(CheckpointError, match="the size when it was fetched"):
        fetch(site.unknown, tmp_path)
    assert stored(site.unknown, tmp_path) is None


def test_a_file_put_there_by_hand_is_recorded(site: Site, tmp_path: Path) -> None:
    (tmp_path / "toy.pt").write_bytes(BODY)
    assert stored(site.unknown, tmp_path) == tmp_path / "toy.pt"
    record = Record.beside(fetch(site.unknown, tmp_path))
    assert record is not None
    assert (record.sha256, record.checked) == (SHA256, ())


def test_two_files_of_one_name_are_not_mistaken_for_each_other(site: Site, tmp_path: Path) -> None:
    fetch(site.unknown, tmp_path)
    other = replace(site.unknown, name="other")
    assert stored(other, tmp_path) is None
    with pytest.raises(CheckpointError, match="it was fetched as 'toy', not as 'other'"):
        fetch(other, tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"checked": 3}', "{", '{"name": "toy"}'])
def test_a_damaged_record_is_no_record(site: Site, tmp_path: Path, content: str) -> None:
    path = fetch(site.file, tmp_path)
    (tmp_path / "toy.pt.fetched.json").write_text(content)
    assert Record.beside(path) is None
    assert fetch(site.file, tmp_path) == path
    assert Record.beside(path) is not None


PAGE = b"<!DOCTYPE html><title>Sign in</title>"


def test_a_web_page_is_no_file(site: Site, tmp_path: Path) -> None:
    site.body, site.headers = PAGE, {"Content-Type": "text/html; charset=utf-8"}
    with pytest.raises(CheckpointError, match=r"sends a web page instead of 'toy.pt'"):
        fetch(site.unknown, tmp_path)
    assert names(tmp_path) == set()


def test_a_web_page_in_disguise_is_no_file_either(site: Site, tmp_path: Path) -> None:
    site.body = PAGE
    with pytest.raises(CheckpointError, match="is a web page"):
        fetch(site.unknown, tmp_path)
    assert names(tmp_path) == {"toy.pt.rejected"}


# Servers that do not give it


def test_without_a_connection_there_is_the_manual_way(site: Site, tmp_path: Path) -> None:
    file = replace(site.file, url="http://127.0.0.1:9/toy.pt")
    began = time.monotonic()
    with pytest.raises(DownloadError, match=r"from 127.0.0.1: there is no connection") as caught:
        fetch(file, tmp_path / "here")
    assert time.monotonic() - began < 5
    for said in (file.url, repr(str(tmp_path / "here")), "'toy.pt'", "102,408 bytes", SHA256):
        assert said in caught.value.remedy


def test_a_connection_that_is_lost_for_good_keeps_what_came(site: Site, tmp_path: Path) -> None:
    site.cuts = [HALF, 0, 0, 0]
    with pytest.raises(DownloadError, match=r"kB are kept, and the same command goes on"):
        fetch(site.file, tmp_path)
    assert names(tmp_path) == CUT
    assert fetch(site.file, tmp_path).read_bytes() == BODY


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (404, "does not have 'toy.pt' (HTTP 404)"),
        (410, "has removed 'toy.pt' (HTTP 410)"),
        (403, "does not give 'toy.pt' (HTTP 403)"),
        (400, "fails to send 'toy.pt' (HTTP 400)"),
    ],
)
def test_a_refusal_is_final(site: Site, tmp_path: Path, status: int, said: str) -> None:
    site.statuses = [status]
    with pytest.raises(DownloadError) as caught:
        fetch(site.file, tmp_path)
    assert said in caught.value.message
    assert site.file.url in caught.value.remedy
    assert len(site.asked) == 1
    assert names(tmp_path) == set()


def test_a_busy_server_is_asked_again(site: Site, tmp_path: Path) -> None:
    site.statuses = [503, 429]
    assert fetch(site.file, tmp_path).read_bytes() == BODY
    assert len(site.asked) == 3


def test_a_server_that_stays_busy_is_left_alone(site: Site, tmp_path: Path) -> None:
    site.statuses = [503] * 9
    with pytest.raises(DownloadError, match=r"it is busy \(HTTP 503\)"):
        fetch(site.file, tmp_path)
    assert len(site.asked) == 3


def test_a_server_that_wants_its_peace_gets_it(site: Site, tmp_path: Path) -> None:
    site.statuses, site.headers = [503], {"Retry-After": "3600"}
    with pytest.raises(DownloadError, match="it is busy"):
        fetch(site.file, tmp_path)
    assert len(site.asked) == 1


def test_a_redirection_is_followed_and_its_digest_kept(site: Site, tmp_path: Path) -> None:
    site.to, site.headers = "/moved", {"X-Linked-Etag": f'"{SHA256}"'}
    record = Record.beside(fetch(site.unknown, tmp_path))
    assert record is not None
    assert "the server's SHA-256" in record.checked


@pytest.mark.parametrize("to", ["http://example.org/toy.pt", "ftp://127.0.0.1/x", "file:///x"])
def test_only_https_is_followed(site: Site, tmp_path: Path, to: str) -> None:
    site.to = to
    with pytest.raises(DownloadError, match="which is not https"):
        fetch(site.file, tmp_path)
    assert names(tmp_path) == set()


def test_redirections_have_an_end(site: Site, tmp_path: Path) -> None:
    site.to = "/round/and/round"
    with pytest.raises(DownloadError, match="sends us on and on"):
        fetch(site.file, tmp_path)


# Disks that do not take it


def test_no_room_is_said_before_anything_is_fetched(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(OutputError, match=r"no room for 102.41 kB in .*, only for 1.00 kB"):
        fetch(site.file, tmp_path)
    assert stored(site.file, tmp_path) is None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no disk that is always full")
def test_a_disk_that_fills_up(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = weights._Part.begin

    def on_a_full_disk(part: weights._Part, origin: weights._Origin) -> None:
        begin(part, origin)
        part.path.unlink()
        part.path.symlink_to("/dev/full")

    monkeypatch.setattr(weights._Part, "begin", on_a_full_disk)
    with pytest.raises(OutputError, match="No space left on device") as caught:
        fetch(site.file, tmp_path)
    assert "goes on from there" in caught.value.remedy
    assert not (tmp_path / "toy.pt").exists()


def test_a_folder_that_cannot_be_made(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="Cannot write into"):
        fetch(site.file, tmp_path / "file" / "folder")
    assert site.asked == []


def test_a_folder_without_permission(site: Site, tmp_path: Path, as_user: None) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="Permission denied"):
            fetch(site.file, tmp_path)
    finally:
        tmp_path.chmod(0o700)


def test_a_folder_in_the_place_of_the_file(site: Site, tmp_path: Path) -> None:
    (tmp_path / "toy.pt").mkdir()
    with pytest.raises(CheckpointError, match="is a folder"):
        fetch(site.file, tmp_path)


# Declaring


@pytest.mark.parametrize(
    "change",
    [
        {"name": ""},
        {"file": "../toy.pt"},
        {"file": ".toy"},
        {"file": ""},
        {"file": "a/b"},
        {"file": "a\\b"},
        {"group": ".."},
        {"url": "http://example.org/toy.pt"},
        {"url": "file:///toy.pt"},
        {"size": 0},
        {"sha256": "abc"},
        {"sha256": SHA256.upper()},
    ],
)
def test_a_declaration_that_makes_no_sense(site: Site, change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"toy|name"):
        replace(site.file, **change)


def plugin(distribution: str, files: Callable[[], list[Any]]) -> metadata.EntryPoint:
    """A plugin of this distribution that declares files."""
    module = ModuleType(distribution)
    module.__dict__["ppap_interface"] = 1
    module.__dict__["ppap_weights"] = hookimpl(files)
    point = SimpleNamespace(
        name=distribution,
        value=distribution,
        dist=SimpleNamespace(name=distribution, version="1.0"),
        load=lambda: module,
    )
    return cast(metadata.EntryPoint, point)


def test_a_declared_file_is_found_by_its_name(site: Site) -> None:
    registry = Registry([plugin("a", lambda: [site.file])])
    assert [p.problem for p in registry.plugins] == [None, None]
    assert registry.published("toy") is registry.published_files()["toy"][0][1]
    with pytest.raises(UnknownNameError, match=r"Unknown published file 'tyo'.* mean 'toy'"):
        registry.published("tyo")
    with pytest.raises(UnknownNameError, match="No plugin that is installed declares one"):
        Registry([]).published("toy")


def test_two_plugins_that_declare_one_name(site: Site) -> None:
    good = replace(site.file, name="good")
    registry = Registry([plugin("a", lambda: [site.file]), plugin("b", lambda: [site.file, good])])
    with pytest.raises(PluginError, match=r"The published file 'toy' is claimed by a 1.0 and b 1"):
        registry.published("toy")
    assert registry.published("good") == good
    assert registry.collisions() == [("published file", "toy", ["a 1.0", "b 1.0"])]


def test_a_broken_plugin_does_not_break_the_list(site: Site) -> None:
    def breaks() -> list[Any]:
        raise KeyError("oh")

    registry = Registry(
        [
            plugin("a", lambda: ["toy"]),
            plugin("b", breaks),
            plugin("c", lambda: [replace(site.file, size=-1)]),
            plugin("d", lambda: [site.file]),
        ]
    )
    problems = [p.problem for p in registry.plugins[1:]]
    assert problems == [
        "ppap_weights must return a list of PublishedFile, not of str",
        "fails in a hook: KeyError: 'oh'",
        "fails in a hook: ValueError: toy: -1 is no size",
        None,
    ]
    assert list(registry.published_files()) == ["toy"]


def test_the_tables_of_the_projects_plugins_name_what_these_plugins_load() -> None:
    from ppap_plugin_dit import dit
    from ppap_plugin_dit import published as of_dit
    from ppap_plugin_edm import published as of_edm
    from ppap_plugin_openai import adm, glide
    from ppap_plugin_openai import published as of_openai

    loaded = {name: entry.file for name, entry in adm.PUBLISHED_ADM.items()}
    loaded |= {name: entry.file for name, entry in adm.PUBLISHED_CLASSIFIERS.items()}
    loaded |= {name: entry.file for name, entry in glide.PUBLISHED_GLIDE.items()}
    declared = {f.name: f.file for f in of_openai.PUBLISHED}
    assert loaded.items() <= declared.items()
    assert set(declared) - set(loaded) == {"glide-vocabulary", "glide-merges"}
    assert {f.file for f in of_dit.PUBLISHED} == set(dit.PUBLISHED)
    everything = [*of_openai.PUBLISHED, *of_dit.PUBLISHED, *of_edm.PUBLISHED]
    assert len({f.name for f in everything}) == len(everything)
    assert len({(f.group, f.file) for f in everything}) == len(everything)
    assert all(f.url.endswith(f"/{f.file}") for f in everything)


def test_a_table_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "import ppap_plugin_dit.published, ppap_plugin_edm.published\n"
        "import ppap_plugin_openai.published\n"
        "print(*sorted({'torch', 'requests', 'numpy', 'filelock'} & set(sys.modules)))\n"
    )
    assert run_process([sys.executable, "-c", code], tmp_path) == Outcome(0, "\n", "")


# The command


@pytest.fixture
def declared(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """What is installed: the site's file, and one that nothing is known of; a home of its own."""
    vague = replace(site.unknown, name="vague", file="vague.pt")
    registry = Registry([plugin("toys", lambda: [site.file, vague])])
    monkeypatch.setattr("ppap_host.plugins.registry.registry", lambda: registry)
    monkeypatch.setattr("platformdirs.user_data_path", lambda *_, **__: tmp_path / "data")
    return site


def test_the_list_needs_no_network(declared: Site, ppap_here: Call) -> None:
    outcome = ppap_here("weights", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    toy, vague = json.loads(outcome.out)
    assert (toy["name"], toy["size"], toy["sha256"]) == ("toy", len(BODY), SHA256)
    assert (toy["licence"], toy["from"], toy["path"]) == ("MIT", ["toys 1.0"], None)
    assert (vague["name"], vague["size"], vague["sha256"]) == ("vague", None, None)
    assert declared.asked == []


def test_the_list_as_a_table(declared: Site, ppap_here: Call, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "weights" / "toys"
    for state in ("no", "25%", "yes"):
        if state == "25%":
            folder.mkdir(parents=True)
            (folder / "toy.pt.part").write_bytes(BODY[: len(BODY) // 4])
        elif state == "yes":
            fetch(declared.file, folder)
        text = ppap_here("weights").out
        (line,) = [line for line in text.splitlines() if line.startswith("toy ")]
        assert line.split()[-1] == state
        assert "102.41 kB" in line and declared.file.summary in line


def test_a_claim_of_two_plugins_in_the_table(
    site: Site, ppap_here: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    twins = Registry([plugin("a", lambda: [site.file]), plugin("b", lambda: [site.file])])
    monkeypatch.setattr("ppap_host.plugins.registry.registry", lambda: twins)
    (row,) = json.loads(ppap_here("weights", "--json").out)
    assert row == {
        "name": "toy",
        "summary": "unusable: claimed by several plugins",
        "from": ["a 1.0", "b 1.0"],
    }
    assert "a 1.0 and b 1.0" in ppap_here("weights").out


def test_the_path_is_all_that_goes_to_standard_output(
    declared: Site, ppap_here: Call, tmp_path: Path
) -> None:
    path = tmp_path / "data" / "weights" / "toys" / "toy.pt"
    outcome = ppap_here("weights", "toy")
    assert (outcome.code, outcome.out) == (0, f"{path}\n")
    assert path.read_bytes() == BODY
    for said in (declared.file.url, f"{len(BODY):,} bytes", SHA256, "MIT", str(path)):
        assert said in outcome.err
    assert "compared with: the published size, the published SHA-256" in outcome.err
    assert fetched("toy") == path
    assert fetched("vague") is None
    assert fetched("toy", tmp_path) is None


def test_showing_fetches_nothing(declared: Site, ppap_here: Call, tmp_path: Path) -> None:
    facts = json.loads(ppap_here("weights", "toy", "--show", "--out", "here", "--json").out)
    assert (facts["url"], facts["folder"], facts["path"]) == (declared.file.url, "here", None)
    outcome = ppap_here("weights", "vague", "--show")
    assert (outcome.code, outcome.err) == (0, "")
    assert "unknown" in outcome.out
    assert "not published" in outcome.out
    assert str(tmp_path / "data" / "weights" / "toys" / "vague.pt") in outcome.out
    assert declared.asked == []
    assert not (tmp_path / "data").exists()


def test_another_folder_and_json(declared: Site, ppap_here: Call, tmp_path: Path) -> None:
    outcome = ppap_here("weights", "vague", "--out", "here", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    facts = json.loads(outcome.out)
    assert facts["path"] == os.path.join("here", "vague.pt")
    assert facts["found"]["sha256"] == SHA256
    assert facts["found"]["checked"] == ["the server's size"]
    assert (tmp_path / "here" / "vague.pt").read_bytes() == BODY
    rows = json.loads(ppap_here("weights", "--out", "here", "--json").out)
    assert [row["path"] is None for row in rows] == [True, False]


def test_an_interrupted_command_says_what_it_kept(
    declared: Site, ppap_here: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def progress_bar() -> Iterator[weights.Watch]:
        yield interrupt_after(HALF)

    with monkeypatch.context() as patched:
        patched.setattr("ppap_host.cli.weights.progress_bar", progress_bar)
        outcome = ppap_here("weights", "toy", "--out", "here")
    assert (outcome.code, outcome.out) == (130, "")
    assert "the same command goes on from there" in outcome.err
    assert os.path.join("here", "toy.pt.part") in outcome.err
    assert names(tmp_path / "here") == CUT
    assert ppap_here("weights", "toy", "--out", "here").code == 0


def test_errors_are_one_line(declared: Site, ppap_here: Call) -> None:
    outcome = ppap_here("weights", "tyo")
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert "Did you mean 'toy'?" in outcome.err
    declared.statuses = [404]
    outcome = ppap_here("weights", "toy", "--json")
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert outcome.err.startswith("Error: 127.0.0.1 does not have 'toy.pt' (HTTP 404). By hand: ")
