"""Published files of weights: where they are, and fetching them whole or not at all.

A plugin says with the hook ``ppap_weights`` which files the authors of its models have published;
:func:`fetch` gets one. This module is light: a plugin may import it to make its table.

What can go wrong with two gigabytes, and what then happens:

* The connection is cut, or the process killed: what came is in ``<file>.part``, with a note of
  where it came from in ``<file>.part.json``. The next call asks the server for the rest (``Range``)
  of the same version (``If-Range``). A server that has another version by now, or does not know
  ranges, sends everything, and the part is started over.
* The bytes are wrong: only a file that passes every check there is gets its name, in one step. The
  checks are the published size and SHA-256, and whatever the server says of the file (its length,
  the MD5 of Azure's and Google's storage, the SHA-256 of the Hugging Face hub). A download that
  fails becomes ``<file>.rejected``, for it took long and its owner may want to look at it.
* Nobody has published the SHA-256: the one found is recorded in ``<file>.fetched.json``, and later
  calls compare with it.
* A file of this name is there already: it is checked, and left as it is whatever comes out.
* Two processes want the same file: the second waits for the first and then finds it there.

requests does the talking: it is installed with diffusers anyway, brings its own certificates,
knows proxies, and notices a body that is shorter than announced. The rest is ours because nobody
else's does it: pooch verifies, but starts every download over; the hub's client resumes, but does
not ask whether the file is still the same one, and is for the hub.
"""

# Long because a download is one state machine: resumed, verified, and never half there.
from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urljoin, urlsplit

from ppap_host.files.errors import CheckpointError, OutputError, PpapError

if TYPE_CHECKING:
    import requests

Watch = Callable[[str, int, int], None]
"""Is told what is being done, and how much of how much (0 if nobody knows)."""

CHUNK: Final = 1 << 18
"""Bytes that are read at a time; so many may be lost when a connection is cut."""

PAUSES: tuple[float, ...] = (1.0, 4.0)
"""Seconds before the first, the second ... repetition of a request that brought nothing."""

_PATIENCE: Final = 60
"""Longest Retry-After, in seconds, that is waited for."""

_KEPT: Final = (
    "Free some space or choose another folder with --out; what has come is kept, and the same "
    "command goes on from there."
)
_TIMEOUT: Final = (10.0, 60.0)
"""Seconds to connect, and between two pieces of an answer."""

_REDIRECTS: Final = 10
_BUSY: Final = (429, 500, 502, 503, 504)
_PAGES: Final = ("text/html", "application/xhtml+xml")
_LOCAL: Final = ("localhost", "127.0.0.1", "::1")


class DownloadError(PpapError):
    """A published file cannot be had from its server."""


@dataclass(frozen=True)
class PublishedFile:
    """A file that the authors of a model have published.

    Attributes:
        name: what users call it; the name of the backbone or guide that needs it, if there is one.
        url: where it is; https only.
        file: its name as published, and on disk.
        licence: of the weights.
        summary: one line: what it is for.
        size: in bytes, or None where nobody has published it.
        sha256: in hexadecimal, or None where nobody has published it.
        group: subfolder of the default folder; files that need each other share one.

    Raises:
        ValueError: a value makes no sense; the plugin is then reported as broken.
    """

    name: str
    url: str
    file: str
    licence: str
    summary: str
    size: int | None = None
    sha256: str | None = None
    group: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a published file has no name")
        if not _is_plain(self.file) or (self.group and not _is_plain(self.group)):
            raise ValueError(f"{self.name}: {self.group!r}/{self.file!r} is no plain file name")
        if not _is_secure(self.url):
            raise ValueError(f"{self.name}: the address {self.url!r} is not https")
        if self.size is not None and self.size <= 0:
            raise ValueError(f"{self.name}: {self.size} is no size")
        if self.sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ValueError(f"{self.name}: {self.sha256!r} is no SHA-256")


@dataclass(frozen=True)
class Record:
    """What is known of a fetched file, kept beside it in ``<file>.fetched.json``.

    Attributes:
        name, url: of the published file.
        size: in bytes.
        sha256: as found, in hexadecimal.
        checked: what the file was compared with, in words; empty where there was nothing.
        time: when, in UTC, as ISO 8601 writes it.
    """

    name: str
    url: str
    size: int
    sha256: str
    checked: tuple[str, ...]
    time: str

    @classmethod
    def beside(cls, path: Path) -> Record | None:
        """The record of the file ``path``; None if there is none that can be read."""
        text = dict.fromkeys(("name", "url", "sha256", "time"), (str,))
        content = _note(_record_file(path), {**text, "size": (int,), "checked": (list,)})
        if content is None or not all(isinstance(what, str) for what in content["checked"]):
            return None
        return cls(**content | {"checked": tuple(content["checked"])})


def default_folder(file: PublishedFile) -> Path:
    """Where a file is kept unless the user says otherwise: the user's data folder of ppap."""
    import platformdirs

    return platformdirs.user_data_path("ppap", appauthor=False) / "weights" / file.group


def stored(file: PublishedFile, folder: Path) -> Path | None:
    """The published file in ``folder`` if it is there; nothing is fetched, and nothing read.

    Returns:
        Its path, or None if it is not there, unfinished, of another size, or another file.
    """
    path = folder / file.file
    try:
        found = path.stat().st_size if path.is_file() else None
    except OSError:
        return None
    record = Record.beside(path)
    wanted = file.size
    if wanted is None and record is not None:
        wanted = record.size if record.name == file.name else -1
    return path if found is not None and wanted in (None, found) else None


def unfinished(file: PublishedFile, folder: Path) -> int:
    """Bytes that an unfinished download of this file has left in a folder."""
    return _Part(folder / file.file).size()


def part_file(file: PublishedFile, folder: Path) -> Path:
    """Where those bytes are."""
    return _Part(folder / file.file).path


def by_hand(file: PublishedFile, folder: Path) -> str:
    """How to do without :func:`fetch`, as an instruction."""
    facts = [f"{file.size:,} bytes"] if file.size is not None else []
    facts += [f"SHA-256 {file.sha256}"] if file.sha256 is not None else []
    expected = f" ({', '.join(facts)})" if facts else ""
    return (
        f"By hand: download {file.url} by other means and put it into {str(folder)!r} as "
        f"{file.file!r}{expected}."
    )


def amount(size: int) -> str:
    """A number of bytes for people."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:.2f} {name}"
    return f"{size} bytes"


def fetch(file: PublishedFile, folder: Path, watch: Watch | None = None) -> Path:
    """Makes sure that a published file is in a folder, whole and verified.

    What is there already is checked and left as it is. What is missing is downloaded, going on
    with an earlier download that was cut; see the beginning of this module for the details.

    Args:
        file: what to fetch.
        folder: where to keep it; is made if need be.
        watch: is told how far it is, in bytes.

    Returns:
        The path of the file.

    Raises:
        DownloadError: no connection, or the server does not give the file.
        CheckpointError: what is there, or what the server gave, is not the published file.
        OutputError: no permission, no space, or something is in the way. The part is kept.
    """
    watch = watch or _silent
    target = folder / file.file
    # Before locking, so that a shared folder need not be writable.
    if os.path.lexists(target):
        return _confirm(file, target, watch)
    with _alone(target, watch):
        if os.path.lexists(target):
            return _confirm(file, target, watch)
        _download(file, target, watch)
    return target


# --------------------------------------------------------------------------------------------
# What is on disk
# --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Origin:
    """Which version of which file a part belongs to, and what its server says of it."""

    url: str
    etag: str | None
    modified: str | None
    size: int | None
    md5: str | None
    sha256: str | None

    @property
    def validator(self) -> str | None:
        """For If-Range, which takes no weak tags."""
        strong = self.etag is not None and not self.etag.startswith("W/")
        return self.etag if strong else self.modified


class _Part:
    """A download on its way to ``target``."""

    def __init__(self, target: Path) -> None:
        self.path = target.with_name(f"{target.name}.part")
        self._note = target.with_name(f"{target.name}.part.json")

    def size(self) -> int:
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def origin(self, url: str) -> _Origin | None:
        """Where the part came from; None if that is unknown or elsewhere."""
        maybe = {name: (str, type(None)) for name in ("etag", "modified", "md5", "sha256")}
        content = _note(self._note, {"url": (str,), "size": (int, type(None)), **maybe})
        return _Origin(**content) if content is not None and content["url"] == url else None

    def begin(self, origin: _Origin) -> None:
        """Makes an empty part. The note comes last, so that it never speaks of other bytes."""
        with _writing(self.path):
            self._note.unlink(missing_ok=True)
            from ppap_host.files.writing import write_json

            self.path.write_bytes(b"")
            write_json(self._note, dataclasses.asdict(origin))

    def discard(self) -> None:
        with _writing(self.path):
            self._note.unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)

    def become(self, path: Path) -> None:
        from ppap_host.files.writing import flush_folder

        with _writing(path):
            with open(self.path, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(self.path, path)
            flush_folder(path.parent)
            self._note.unlink(missing_ok=True)


def _note(path: Path, kinds: Mapping[str, tuple[type, ...]]) -> dict[str, Any] | None:
    """What a note says of these things; None unless it says all of them, in these types."""
    from ppap_host.files.reading import Document

    try:
        content = Document("note", CheckpointError, "", 1 << 16).read(path, dict[str, Any])
    except CheckpointError:
        return None
    sound = all(type(content.get(name)) in kind for name, kind in kinds.items())
    return (
        {name: content[name] for name in kinds}
        if sound and kinds.keys() <= content.keys()
        else None
    )


def _record_file(path: Path) -> Path:
    # Not <file>.json, where a user's flags of the network may be.
    return path.with_name(f"{path.name}.fetched.json")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _cannot_write(path, error) from error
    except OutputError as error:
        raise OutputError(error.message, remedy=_KEPT) from error


def _cannot_write(path: Path, error: OSError) -> OutputError:
    return OutputError(f"Cannot write {str(path)!r}: {error.strerror or error}.", remedy=_KEPT)


@contextmanager
def _alone(target: Path, watch: Watch) -> Iterator[None]:
    """Keeps other processes from fetching the same file."""
    from filelock import FileLock, Timeout

    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            watch(f"waiting for another process that fetches {target.name}", 0, 0)
            lock.acquire()
    # The latter where a file system knows no locks.
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(
            f"Cannot write into {str(target.parent)!r}: {reason}.",
            remedy="Choose another folder with --out.",
        ) from error
    try:
        yield
    finally:
        lock.release()


def _digests(path: Path, watch: Watch, *names: str) -> dict[str, str]:
    """Hexadecimal digests of a file's bytes, by the name of the algorithm."""
    made = {name: hashlib.new(name, usedforsecurity=False) for name in names}
    done, total = 0, path.stat().st_size
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            for digest in made.values():
                digest.update(piece)
            done += len(piece)
            watch(f"verifying {path.name}", done, total)
    return {name: digest.hexdigest() for name, digest in made.items()}


def _confirm(file: PublishedFile, path: Path, watch: Watch) -> Path:
    """Checks a file that was there before, and records its SHA-256 where it can."""
    from ppap_host.files.checkpoints import read_head

    record = Record.beside(path)
    if record is not None and record.name != file.name and file.sha256 is None:
        raise _not_it(path, f"it was fetched as {record.name!r}, not as {file.name!r}")
    read_head(path)
    try:
        size, sha256 = path.stat().st_size, _digests(path, watch, "sha256")["sha256"]
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from error
    checks = [
        ("the published size", file.size, size),
        ("the published SHA-256", file.sha256, sha256),
    ]
    if record is not None and file.sha256 is None:
        checks += [
            ("the size when it was fetched", record.size, size),
            ("the SHA-256 when it was fetched", record.sha256, sha256),
        ]
    wrong, checked = _compare(checks)
    if wrong:
        raise _not_it(path, wrong)
    if record is None or record.sha256 != sha256:
        with suppress(OutputError):  # it is the user's file; the record is a help
            _write_record(file, path, size, sha256, checked)
    return path


def _not_it(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: is not the published file: {why}.",
        remedy="It is left as it is. Move it away and run the command again, or choose another "
        "folder with --out.",
    )


def _compare(checks: list[tuple[str, Any, Any]]) -> tuple[str, tuple[str, ...]]:
    """What is wrong, in words, and what was compared; None means that there is nothing to."""
    known = [check for check in checks if check[1] is not None]
    wrong = [
        f"{what} is {wanted}, this is {found}" for what, wanted, found in known if wanted != found
    ]
    return "; ".join(wrong), tuple(what for what, _, _ in known)


def _write_record(
    file: PublishedFile, path: Path, size: int, sha256: str, checked: tuple[str, ...]
) -> None:
    from ppap_host.files.writing import write_json

    now = datetime.now(UTC).isoformat(timespec="seconds")
    record = Record(file.name, file.url, size, sha256, checked, now)
    write_json(_record_file(path), dataclasses.asdict(record))


# --------------------------------------------------------------------------------------------
# From the server to the disk
# --------------------------------------------------------------------------------------------


def _download(file: PublishedFile, target: Path, watch: Watch) -> None:
    """Fetches what is not there yet."""
    part = _Part(target)
    for second in (False, True):
        origin, resumed = _receive(file, target, part, watch)
        problem, checked, sha256 = _examine(file, part.path, origin, watch)
        if not problem:
            break
        # Pieces of two requests may not belong together although the server said so.
        if resumed and not second:
            part.discard()
            continue
        rejected = target.with_name(f"{target.name}.rejected")
        part.become(rejected)
        raise CheckpointError(
            f"What {_host(file.url)} sent for {file.name!r} is not the published file: {problem}.",
            remedy=f"It is kept as {str(rejected)!r} for you to look at or delete, and is never "
            "used. Run the command again; if the outcome is the same, the file has changed at its "
            "source: tell the plugin's authors.",
        )
    # The record first: a file without its record may be anybody's.
    with _writing(_record_file(target)):
        _write_record(file, target, part.size(), sha256, checked)
    part.become(target)


def _examine(
    file: PublishedFile, path: Path, origin: _Origin, watch: Watch
) -> tuple[str, tuple[str, ...], str]:
    """What is wrong with a downloaded file, what it was compared with, and its SHA-256."""
    from ppap_host.files.checkpoints import read_head

    try:
        read_head(path)
    except CheckpointError as error:
        return error.message.removeprefix(f"{path}: ").rstrip("."), (), ""
    names = ("sha256", "md5") if origin.md5 is not None else ("sha256",)
    size, digests = path.stat().st_size, _digests(path, watch, *names)
    problem, checked = _compare(
        [
            ("the published size", file.size, size),
            ("the published SHA-256", file.sha256, digests["sha256"]),
            ("the server's size", origin.size, size),
            ("the server's SHA-256", origin.sha256, digests["sha256"]),
            ("the server's MD5", origin.md5, digests.get("md5")),
        ]
    )
    return problem, checked, digests["sha256"]


class _Again(Exception):
    """The server is busy: ask again.

    Args:
        status: of HTTP.
        wait: seconds that the server asks for.
    """

    def __init__(self, status: int, wait: float) -> None:
        super().__init__(f"it is busy (HTTP {status})")
        self.wait = wait


def _receive(file: PublishedFile, target: Path, part: _Part, watch: Watch) -> tuple[_Origin, bool]:
    """Gets all bytes into the part; also says whether they came with more than one request."""
    import requests

    failures, resumed, answered = 0, False, False
    with requests.Session() as session:
        while True:
            origin = part.origin(file.url)
            have = part.size()
            if origin is None or (origin.validator is None and have != origin.size):
                part.discard()
                have = 0
            elif have and have == origin.size:
                return origin, True
            resumed = resumed or have > 0
            wait = 0.0
            try:
                if _transfer(file, target, part, have, session, watch):
                    made = part.origin(file.url)
                    assert made is not None
                    return made, resumed
                answered = True
                continue
            except _Again as busy:
                problem, wait, answered = str(busy), busy.wait, True
            except requests.RequestException as error:
                problem = _reason(error)
                # Where nothing has ever come, there is no connection, and waiting is no use.
                cut = isinstance(error, requests.exceptions.ChunkedEncodingError)
                answered = answered or cut or part.size() > have
            failures = 1 if part.size() > have else failures + 1
            if not answered or failures > len(PAUSES) or wait > _PATIENCE:
                raise _unreachable(file, target.parent, part, problem)
            time.sleep(max(wait, PAUSES[failures - 1]))


def _transfer(
    file: PublishedFile,
    target: Path,
    part: _Part,
    have: int,
    session: requests.Session,
    watch: Watch,
) -> bool:
    """One request for everything after the first ``have`` bytes.

    Returns:
        Whether all bytes are there; False if the part was useless and is gone.
    """
    import requests

    origin = part.origin(file.url)
    headers = {
        # Weights do not compress, and ranges of something compressed are ranges of what?
        "Accept-Encoding": "identity",
        "User-Agent": f"ppap-host/{_version()}",
    }
    if have and origin is not None and origin.validator is not None:
        headers |= {"Range": f"bytes={have}-", "If-Range": origin.validator}
    with _get(file, target.parent, session, headers) as (answer, digests):
        if answer.status_code == 206 and origin is not None and have:
            if not _continues(answer, origin, have):
                part.discard()
                return False
        elif answer.status_code == 416 and have:
            part.discard()
            return False
        elif answer.status_code == 200:
            have, origin = 0, _origin(file, target, answer, digests)
            part.begin(origin)
        else:
            raise _refused(file, target.parent, answer)
        total = origin.size or file.size or 0
        _make_sure_of_room(part.path, total - have)
        try:
            with part.path.open("ab") as out:
                for piece in answer.iter_content(CHUNK):
                    out.write(piece)
                    have += len(piece)
                    of = f" of {amount(total)}" if total else ""
                    watch(f"fetching {file.file}, {amount(have)}{of}", have, total)
        except requests.RequestException:  # which are OSErrors, too
            raise
        except OSError as error:
            raise _cannot_write(part.path, error) from error
    return True


@contextmanager
def _get(
    file: PublishedFile, folder: Path, session: requests.Session, headers: dict[str, str]
) -> Iterator[tuple[requests.Response, dict[str, str]]]:
    """The answer to a request, and the digests that it or a redirection to it names."""
    url, digests = file.url, dict[str, str]()
    for _ in range(_REDIRECTS):
        if not _is_secure(url):
            raise DownloadError(
                f"{_host(file.url)} sends us on to {url!r}, which is not https.",
                remedy=by_hand(file, folder),
            )
        with session.get(
            url, headers=headers, stream=True, allow_redirects=False, timeout=_TIMEOUT
        ) as answer:
            digests |= _announced(answer)
            if not answer.is_redirect:
                yield answer, digests
                return
            url = urljoin(url, answer.headers["Location"])
    raise DownloadError(f"{_host(file.url)} sends us on and on.", remedy=by_hand(file, folder))


def _announced(answer: requests.Response) -> dict[str, str]:
    """Digests of the whole file in the headers of an answer, hexadecimal."""
    headers, found = answer.headers, dict[str, str]()
    encoded = [headers.get("x-ms-blob-content-md5")]  # Azure, of the blob
    if answer.status_code == 200:  # otherwise of a piece, or of a message
        encoded.append(headers.get("Content-MD5"))
    encoded += re.findall(r"md5=([\w+/=]+)", headers.get("x-goog-hash", ""))
    for text in encoded:
        with suppress(binascii.Error, ValueError):
            digest = base64.b64decode(text or "", validate=True)
            if len(digest) == hashlib.md5(usedforsecurity=False).digest_size:
                found["md5"] = digest.hex()
    linked = headers.get("X-Linked-Etag", "").strip('"')  # the hub, of large files
    if re.fullmatch(r"[0-9a-f]{64}", linked):
        found["sha256"] = linked
    return found


def _origin(
    file: PublishedFile, target: Path, answer: requests.Response, digests: Mapping[str, str]
) -> _Origin:
    """What the server says of the file that it is about to send.

    Raises:
        CheckpointError: it is not the published file.
    """
    kind = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind in _PAGES:
        raise CheckpointError(
            f"{_host(file.url)} sends a web page instead of {file.file!r}.",
            remedy=f"Open {file.url} in a browser to read it. {by_hand(file, target.parent)}",
        )
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        raise DownloadError(
            f"{_host(file.url)} sends {file.file!r} in a compressed form.",
            remedy=by_hand(file, target.parent),
        )
    length = answer.headers.get("Content-Length", "")
    size = int(length) if length.isdecimal() else None
    if None not in (size, file.size) and size != file.size:
        raise CheckpointError(
            f"{_host(file.url)} has another {file.file!r} than the published one: {size:,} bytes, "
            f"not {file.size:,}.",
            remedy="Nothing was fetched. The file has changed at its source, or something between "
            "here and there changes it: tell the plugin's authors.",
        )
    etag, modified = answer.headers.get("ETag"), answer.headers.get("Last-Modified")
    return _Origin(file.url, etag, modified, size, digests.get("md5"), digests.get("sha256"))


def _continues(answer: requests.Response, origin: _Origin, have: int) -> bool:
    """Whether a partial answer is what comes after ``have`` bytes of the same version."""
    given = re.fullmatch(
        r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", "").strip()
    )
    if given is None or int(given[1]) != have:
        return False
    if origin.size is not None and given[2] not in ("*", str(origin.size)):
        return False
    return answer.headers.get("ETag", origin.etag) == origin.etag


def _refused(file: PublishedFile, folder: Path, answer: requests.Response) -> Exception:
    status = answer.status_code
    if status in _BUSY:
        wait = answer.headers.get("Retry-After", "")
        return _Again(status, float(wait) if wait.isdecimal() else 0.0)
    reasons = {401: "does not give", 403: "does not give", 404: "does not have", 410: "has removed"}
    return DownloadError(
        f"{_host(file.url)} {reasons.get(status, 'fails to send')} {file.file!r} (HTTP {status}).",
        remedy=by_hand(file, folder),
    )


def _unreachable(file: PublishedFile, folder: Path, part: _Part, problem: str) -> DownloadError:
    kept = part.size()
    here = f" {amount(kept)} are kept, and the same command goes on from there." if kept else ""
    return DownloadError(
        f"Cannot fetch {file.file!r} from {_host(file.url)}: {problem}.{here}",
        remedy=by_hand(file, folder),
    )


def _reason(error: requests.RequestException) -> str:
    from requests import exceptions

    # A class before those that it derives from. Their own words run over many lines.
    words = {
        exceptions.SSLError: "its certificate is not accepted",
        exceptions.ProxyError: "the proxy does not let us through",
        exceptions.Timeout: "it does not answer in time",
        exceptions.ChunkedEncodingError: "the connection was cut",
        exceptions.ConnectionError: "there is no connection",
    }
    found = [text for kind, text in words.items() if isinstance(error, kind)]
    return found[0] if found else f"{type(error).__name__}: {error}"


def _make_sure_of_room(path: Path, size: int) -> None:
    try:
        free = shutil.disk_usage(path.parent).free
    except OSError:
        return
    if size > free:
        raise OutputError(
            f"There is no room for {amount(size)} in {str(path.parent)!r}, only for "
            f"{amount(free)}.",
            remedy="Free some space or choose another folder with --out.",
        )


def _is_plain(name: str) -> bool:
    return bool(name) and Path(name).name == name and not re.match(r"\.|.*[\\:]", name)


def _is_secure(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOCAL)


def _host(url: str) -> str:
    return urlsplit(url).hostname or url


def _version() -> str:
    try:
        return metadata.version("ppap-host")
    except metadata.PackageNotFoundError:
        return "0"


def _silent(what: str, done: int, total: int) -> None:
    """Nobody watches."""
