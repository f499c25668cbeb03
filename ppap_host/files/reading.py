"""Small files that anyone may have written: regular ones, within budgets, of known structure.

A document (JSON, TOML, a list of lines) is measured before it is parsed and parsed before it is
believed. A few kilobytes can ask for minutes or gigabytes: a device that never ends, a pipe that
nobody writes to, brackets a thousand deep, a number of five thousand digits, one key of ten
thousand parts. Each kind of document has one :class:`Document`, in the room that owns it, and one
pydantic model.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit
from urllib.request import url2pathname

from pydantic import TypeAdapter, ValidationError

from ppap_host.files.errors import PpapError

T = TypeVar("T")

BYTES: Final = 64 << 20
"""Largest JSON document: the record of a run of a hundred thousand images has a third of it."""

TOML_BYTES: Final = 1 << 18
"""Largest TOML document. Python's parser takes a hundred times as long as that of JSON."""

VALUES: Final = 2_000_000
"""Most values in a document, and so a bound of the memory that it takes."""

DEPTH: Final = 64
"""Most brackets within each other."""

PICTURE_ENDINGS: Final = (
    ".avif", ".bmp", ".exr", ".gif", ".heic", ".heif", ".jpeg", ".jpg", ".npy", ".npz", ".pbm",
    ".pfm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
"""How names of pictures and maps end, by which a text is told to be one."""

_KEY_PARTS: Final = 16
_WORD: Final = 512  # characters of a bare key or a number in TOML
_LARGEST: Final = 10**300  # beyond it whole numbers are no floating-point numbers
_SHOWN: Final = 60


def local_path(text: str) -> str:
    """The path that a text means: ``~`` is the user's folder, ``file://`` comes from a browser."""
    if text.startswith("file:/"):  # a Path keeps one slash of them
        address = urlsplit(text)
        if address.netloc in ("", "localhost"):
            return url2pathname(address.path)
    return os.path.expanduser(text)


def require_regular(
    path: str | os.PathLike[str], error: type[PpapError], remedy: str = "Check the path."
) -> None:
    """Whether this is a regular file, perhaps through links; nothing of it is read.

    A pipe, a device or a socket may never end, or wait for somebody. Whatever opens a file that a
    user, a record or a model folder has named asks here first.

    Args:
        error: the class of the error, as fits what the file is for.

    Raises:
        PpapError: of that class; it is missing, a folder, or no regular file.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as problem:
        raise error(_missing(path, problem), remedy=remedy) from None
    if not stat.S_ISREG(mode):
        raise error(f"{_name(path)} is {_kind(mode)}, not a regular file.", remedy=remedy)


def read_bytes(
    path: str | os.PathLike[str],
    error: type[PpapError],
    remedy: str = "Check the path.",
    size: int = BYTES,
) -> bytes:
    """All bytes of a regular file.

    Args:
        error: the class of the error, as fits what the file is for.
        size: most bytes that it may have.

    Raises:
        PpapError: of that class; it is missing, no regular file, unreadable or too large.
    """
    require_regular(path, error, remedy)
    try:
        # Not blocking, should it have become a pipe since.
        with open(path, "rb", opener=_opened) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise error(f"{_name(path)} is not a regular file.", remedy=remedy)
            data = file.read(size + 1)
    except OSError as problem:
        raise error(_missing(path, problem), remedy=remedy) from None
    if len(data) > size:
        raise error(
            f"{_name(path)} has more than {size:,} bytes, too many for what it should be.",
            remedy=remedy,
        )
    return data


def read_text(
    path: str | os.PathLike[str],
    error: type[PpapError],
    remedy: str = "Check the path.",
    size: int = BYTES,
) -> str:
    """The text of a regular file in UTF-8, as :func:`read_bytes`.

    Raises:
        PpapError: of the class ``error``; also if it is no UTF-8.
    """
    try:
        return read_bytes(path, error, remedy, size).decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(f"{_name(path)} is no text in UTF-8 ({problem}).", remedy=remedy) from None


@dataclass(frozen=True)
class Document:
    """A kind of document.

    Attributes:
        what: it is, for people, without an article, such as "harvest".
        error: the class of the error when it is something else.
        remedy: what to do then.
        size: most bytes.
        infinite: whether it may hold Infinity and NaN, as configurations of diffusers do; they are
            no numbers of JSON, and documents of the project have none.
    """

    what: str
    error: type[PpapError]
    remedy: str
    size: int = BYTES
    infinite: bool = False

    def read(self, path: str | os.PathLike[str], model: type[T]) -> T:
        """The JSON document in a file, in the form that its model gives it.

        Args:
            model: a pydantic model, a dataclass or any other type that pydantic knows.

        Raises:
            PpapError: of the class :attr:`error`; it is missing, too much, or something else.
        """
        return self.parse(read_bytes(path, self.error, self.remedy, self.size), model, str(path))

    def parse(self, text: str | bytes, model: type[T], source: str) -> T:
        """The document from JSON.

        Args:
            source: what people call it, such as its path.

        Raises:
            PpapError: of the class :attr:`error`.
        """
        return self.check(self.values(text, source), model, source)

    def values(self, text: str | bytes, source: str) -> Any:
        """The plain values of JSON, within the budgets; of whatever structure.

        Raises:
            PpapError: of the class :attr:`error`.
        """
        data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
        if len(data) > self.size:
            raise self.fail(source, f"it has more than {self.size:,} bytes")
        if sum(data.count(sign) for sign in (b",", b"[", b"{")) > VALUES:
            raise self.fail(source, f"it has more than {VALUES:,} values")
        try:
            values = json.loads(text, parse_constant=None if self.infinite else _refused)
        except RecursionError:
            raise self.fail(source, f"it is nested more than {DEPTH} deep") from None
        except ValueError as error:  # also numbers of thousands of digits, and no UTF-8
            raise self.fail(source, str(error).partition(";")[0]) from error
        problem = beyond(values, self.infinite)
        if problem:
            raise self.fail(source, problem)
        return values

    def header(self, path: str | os.PathLike[str], key: str) -> Any:
        """The plain values of JSON that a safetensors file carries under this key of its header.

        Raises:
            PpapError: of the class :attr:`error`; also if the file is no safetensors, or has none.
        """
        from safetensors import SafetensorError, safe_open

        require_regular(path, self.error, self.remedy)
        try:
            with safe_open(path, "np") as file:
                text = (file.metadata() or {}).get(key, "")
        except (OSError, RuntimeError, SafetensorError) as error:
            raise self.fail(str(path), str(error)) from None
        return self.values(text, str(path))

    def check(self, values: Any, model: type[T], source: str) -> T:
        """The document from plain values.

        Raises:
            PpapError: of the class :attr:`error`; names the first value that is wrong.
        """
        try:
            read: T = _adapter(model).validate_python(values, strict=True)  # type: ignore[arg-type]
        except ValidationError as error:
            raise self.fail(source, first_problem(error)) from None
        return read

    def fail(self, source: str, why: str) -> PpapError:
        """What is to be raised when it is something else."""
        return self.error(
            f"{_name(source)} is no {self.what} ({_cut(why, 300)}).", remedy=self.remedy
        )


def read_toml(path: str | os.PathLike[str], error: type[PpapError], remedy: str) -> dict[str, Any]:
    """The plain values of a TOML file.

    Raises:
        PpapError: of the class ``error``; it is missing, too much, or not valid TOML.
    """
    document = Document("valid TOML", error, remedy)
    text = read_text(path, error, remedy, TOML_BYTES)
    problem = _too_much(text)
    if problem:
        raise document.fail(str(path), problem)
    try:
        values = tomllib.loads(text)
    except ValueError as invalid:  # numbers that are too long are none of its own errors
        raise document.fail(str(path), str(invalid)) from None
    problem = beyond(values)
    if problem:
        raise document.fail(str(path), problem)
    return values


def first_problem(error: ValidationError) -> str:
    """What pydantic found first, in a line: where it is and what it should be."""
    found = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in found["loc"])
    more = f"; and {error.error_count() - 1} more" if error.error_count() > 1 else ""
    told = found["type"] in ("missing", "value_error") or not place
    shown = "" if told else f", not {_shown(found['input'])}"
    message = found["msg"].removeprefix("Value error, ")
    text = message[:1].lower() + message[1:]
    return f"{_cut(place, _SHOWN)!r}: {text}{shown}{more}" if place else f"{text}{shown}{more}"


def _refused(constant: str) -> float:
    raise ValueError(f"{constant} is no number of JSON")


@cache
def _adapter(model: Any) -> TypeAdapter[Any]:
    return TypeAdapter(model)


def _opened(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _missing(path: str | os.PathLike[str], problem: Exception) -> str:
    code = getattr(problem, "errno", None)
    if code in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
        return f"There is no file {_name(path)}."
    reason = problem.strerror if isinstance(problem, OSError) else str(problem)
    return f"{_name(path)} cannot be read ({reason})."


def _name(path: str | os.PathLike[str]) -> str:
    return repr(_cut(os.fspath(path), 300))


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _shown(value: Any) -> str:
    if isinstance(value, dict | list | tuple):
        return f"{'a table' if isinstance(value, dict) else 'a list'} of {len(value)}"
    try:
        return _cut(repr(value), _SHOWN)
    except ValueError:  # a whole number of thousands of digits
        return "so long a number"


def _kind(mode: int) -> str:
    kinds = (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISSOCK, "a socket"),
    )
    return next((name for test, name in kinds if test(mode)), "a device")


def beyond(values: Any, infinite: bool = False) -> str:
    """What no document has a use for: numbers that are none, or brackets without end.

    Args:
        values: plain ones; what is none is passed over.
        infinite: whether numbers may be infinite or NaN.

    Returns:
        What it is, in words; "" where there is nothing.
    """
    rows: list[tuple[Any, int]] = [(values, 0)]
    while rows:
        value, depth = rows.pop()
        if isinstance(value, float) and not infinite and not math.isfinite(value):
            return f"it holds the number {value}"
        if isinstance(value, int) and not -_LARGEST < value < _LARGEST:
            return "it holds a whole number of more than 300 digits"
        if depth > DEPTH:
            return f"it is nested more than {DEPTH} deep"
        if isinstance(value, Mapping):
            rows += [(part, depth + 1) for part in value.values()]
        elif isinstance(value, list | tuple):
            rows += [(part, depth + 1) for part in value]
    return ""


# Linear in the length of any text: nothing is tried twice, and a text that has no end goes to the
# end of the line or the file.
_TEXTS = re.compile(
    r'"""(?:[^\\]|\\.)*?(?:"""|\Z)|\'\'\'.*?(?:\'\'\'|\Z)'
    r'|"(?:[^"\\\n]|\\.)*+"?|\'[^\'\n]*+\'?|#[^\n]*+',
    re.DOTALL,
)
_PARTS = re.compile(rf"(?<![\w-])[\w-]++(?:[ \t]*+\.[ \t]*+[\w-]++){{{_KEY_PARTS},}}")


def _too_much(text: str) -> str:
    """What would take Python's parser of TOML too long, told from the signs outside of texts.

    It follows a dotted key by the square of its parts, and brackets by calling itself.
    """
    signs = _TEXTS.sub("x", text)
    if _PARTS.search(signs):
        return f"a key has more than {_KEY_PARTS} parts"
    if max(map(len, re.findall(r"[\w+.:-]++", signs)), default=0) > _WORD:
        return f"a key or a number has more than {_WORD} characters"
    depth = 0
    for sign in re.findall(r"[\[\]{}]", signs):
        depth += 1 if sign in "[{" else -1
        if depth > DEPTH:
            return f"it is nested more than {DEPTH} deep"
    return ""
