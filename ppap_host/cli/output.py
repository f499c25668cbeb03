"""How the command line speaks: results on standard output, everything else on standard error.

The words are the host's own; the names, labels, paths and messages in them come from files, plugins
and whoever calls. They all go out through :func:`clean`, and none is taken for markup.
"""

from __future__ import annotations

import codecs
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from ppap_host.files.errors import PpapError

if TYPE_CHECKING:
    from rich.console import Console


@dataclass
class Voice:
    """How much is said: the options that every command has.

    Attributes:
        quiet: nothing but results, warnings and errors.
        verbose: also what was chosen and found.
        debug: tracebacks of errors.
    """

    quiet: bool = False
    verbose: bool = False
    debug: bool = False

    def reset(self) -> None:
        """As it is before any option is read."""
        self.quiet = self.verbose = self.debug = False

    def set(self, what: str, given: bool) -> bool:
        """Turns one of them on if its option was given, here or before the command."""
        if given:
            setattr(self, what, True)
        return given


VOICE = Voice()


# Text that is not ours

# Controls, marks that change the direction of writing, and halves of pairs that are no character.
_STEERING = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
_LINES = re.compile(r"[ \t]*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*")


def clean(text: object) -> str:
    """Text as it can be shown on one line of any terminal: what would steer it is spelled out.

    An escape byte becomes ``\\x1b``, a line break ``\\n``, a byte of a file name that is not UTF-8
    ``\\xff``. All other characters of all languages stay.
    """
    return _STEERING.sub(_spelled, str(text))


def _spelled(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # how Python keeps a byte that could not be decoded
        return f"\\x{code - 0xDC00:02x}"
    return found[0].encode("unicode_escape").decode()


_MOST = 4000  # characters of a message: what it quotes may have millions


def in_one_line(text: object) -> str:
    """A message that may have several lines, :func:`clean` and in one; a long one's middle is left
    out."""
    told = str(text)
    if len(told) > _MOST:
        told = f"{told[: _MOST // 2]} ... {told[-_MOST // 2 :]}"
    return clean(_LINES.sub(" ", told).strip())


def encodable(text: str, stream: TextIO) -> bool:
    """Whether a stream can hold these characters."""
    try:
        text.encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError, AttributeError):
        return False
    return True


_PLAIN = str.maketrans({
    "–": "-", "—": "-", "−": "-", "…": "...", "±": "+-", "×": "x", "✓": "+", "✗": "x", "·": ".",
    "→": "->",
    "“": '"', "”": '"', "‘": "'", "’": "'",
})  # fmt: skip


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """What to write for characters that a stream's encoding does not have."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_PLAIN)
    return text.encode("ascii", "backslashreplace").decode(), error.end


PLAIN_ERRORS = "ppap-plain"
"""Name of the error handler for streams: never an exception, similar characters where it can be."""
codecs.register_error(PLAIN_ERRORS, _in_ascii)


# Lines

Part = tuple[str, str]
"""Text and its style (of Rich), which is shown on terminals alone."""


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a person is at the other end of a stream now, and not later or never."""
    try:
        return stream is not None and stream.isatty()
    except (AttributeError, ValueError):  # replaced, or closed
        return False


def console(*, error: bool = False) -> Console:
    """Rich's console for one of the streams: nothing that is printed is taken for markup."""
    from rich.console import Console

    return Console(stderr=error, markup=False, emoji=False, highlight=False)


def _line(stream: TextIO, *parts: Part) -> None:
    """One line, whatever the width: terminals wrap it, and copying it gives it whole."""
    shown = [(clean(text), style) for text, style in parts]
    if is_terminal(stream) and any(style for _, style in shown):
        from rich.text import Text

        console(error=stream is sys.stderr).print(Text.assemble(*shown), soft_wrap=True)
    else:
        stream.write("".join(text for text, _ in shown) + "\n")
        stream.flush()


def tell(*parts: str | Part) -> None:
    """A line of the result, on standard output."""
    _line(sys.stdout, *(part if isinstance(part, tuple) else (part, "") for part in parts))


def remark(text: str, style: str = "dim") -> None:
    """A line beside the result, on standard error; not with --quiet."""
    if not VOICE.quiet:
        _line(sys.stderr, (in_one_line(text), style))


def detail(text: str) -> None:
    """A line for those who want to know more, on standard error; only with --verbose."""
    if VOICE.verbose:
        _line(sys.stderr, (in_one_line(text), "dim"))


def warn(text: str) -> None:
    """A warning in one line, on standard error."""
    _line(sys.stderr, ("Warning: ", "yellow"), (in_one_line(text), "yellow"))


def fail(error: PpapError) -> NoReturn:
    """Prints an error in one line, with its remedy, and exits with its code."""
    message, remedy = in_one_line(error.message), in_one_line(error.remedy)
    _line(sys.stderr, ("Error: ", "bold red"), (message, ""), (f" {remedy}" if remedy else "", ""))
    sys.exit(error.exit_code)


# Paths


def tell_path(what: str, path: Path) -> None:
    """Where something is, on standard output: absolute, and to be clicked where that works."""
    path = Path(os.path.abspath(path))
    tell(f"{what}: ", (str(path), f"link {path.as_uri()}"))


def open_file(path: Path) -> None:
    """Opens a file as a double click would."""
    import typer

    try:
        opened = typer.launch(os.path.abspath(path)) == 0
    except OSError:
        opened = False
    if not opened:
        warn(f"Nothing here can open {str(path)!r}.")


def print_path(path: Path) -> None:
    """A path alone, for another program: byte for byte, unless a person looks."""
    if is_terminal(sys.stdout) or not hasattr(sys.stdout, "buffer"):
        tell(str(path))
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(os.fsencode(path) + b"\n")
    sys.stdout.flush()


# Values


def as_json(value: Any) -> str:
    """JSON that can be shown on any terminal and written in any encoding of Unicode.

    Characters that would steer a terminal, or are none, are escaped as JSON escapes them.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False)
    # Line breaks between values are the only such characters that stand outside of texts.
    return _STEERING.sub(lambda found: found[0] if found[0] == "\n" else _escaped(found[0]), text)


def _escaped(character: str) -> str:
    return json.dumps(character)[1:-1]


def print_json(value: Any) -> None:
    """Prints a value as JSON and nothing else."""
    text = as_json(value)
    if not encodable(text, sys.stdout):
        text = json.dumps(value, indent=2)
    sys.stdout.write(text + "\n")


def print_toml(text: str) -> None:
    """Prints a configuration.

    Raises:
        OptionError: the name of a file in it is no text in UTF-8, which TOML cannot hold.
    """
    from ppap_host.files.errors import OptionError

    if any("\ud800" <= character <= "\udfff" for character in text):
        raise OptionError(
            "The name of a file here is no text in UTF-8, and TOML cannot hold it.",
            remedy="Rename the file.",
        )
    # Its own line breaks apart, as TOML escapes them.
    sys.stdout.write(_STEERING.sub(lambda found: _toml_escape(found[0]), text))


def _toml_escape(character: str) -> str:
    if character == "\n":
        return character
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def duration(seconds: float) -> str:
    """A time for people: 8.4 s, 3 min 20 s, 2 h 5 min, 1 d 3 h."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    whole = round(seconds)
    for size, unit, smaller, name in (
        (86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")
    ):  # fmt: skip
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // smaller} {name}"
    return f"{whole} s"


def times(seconds: Mapping[str, float], names: Mapping[str, str]) -> str:
    """What took how long: the sum, and the parts that took a tenth of a second or more.

    Args:
        names: of parts, as people say it; others are called as they are.
    """
    parts = [f"{names.get(p, p)} {duration(s)}" for p, s in seconds.items() if s >= 0.1]
    of_parts = f": {', '.join(parts)}" if len(parts) > 1 else ""
    return f"Took {duration(sum(seconds.values()))}{of_parts}."


def counted(count: int, one: str, several: str = "") -> str:
    """A number of things: "1 image", "2,000 images"."""
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def listed(names: Sequence[str]) -> str:
    """Names in a sentence."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
