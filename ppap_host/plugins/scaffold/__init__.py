"""Writes new plugins: a distribution with code that runs, tests, and all that belongs to it.

The templates are the files below ``templates``. ``common`` and the kind's folder are laid over each
other. In a name ``.tmpl`` is dropped, ``dot-`` at its start becomes a dot, and the folder
``package`` gets the package's name; in a text ``§{word}`` is replaced. None of the languages that
are written here uses that character.
"""

from __future__ import annotations

import datetime
import json
import re
import secrets
import shutil
import string
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata, resources
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

from ppap_host.files.errors import OptionError, OutputError, PluginError, nearest
from ppap_host.files.writing import flush_folder, write_file
from ppap_host.plugins.plugin import Kind
from ppap_host.plugins.registry import KNOWN_PLUGINS, Registry

PluginKind = Literal["guide", "backbone", "recipe", "reward"]
Licence = Literal["apache-2.0", "mit"]
KINDS: tuple[PluginKind, ...] = get_args(PluginKind)
LICENCES: tuple[Licence, ...] = get_args(Licence)

PREFIX = "ppap-plugin-"
SUMMARIES: dict[PluginKind, str] = {
    "guide": "same edges as a picture",
    "backbone": "smooth random images, 64x64",
    "recipe": "moves the predicted image, strong gradients compressed",
    "reward": "colourful pictures, the more the better",
}
"""What the templates do, one line each; used where the user says nothing else."""

_LONGEST_NAME, _LONGEST_LINE = 28, 72
"""What fits into the lines of the templates."""

_SPDX: dict[Licence, str] = {"apache-2.0": "Apache-2.0", "mit": "MIT"}
_DEPENDENCIES: dict[PluginKind, tuple[str, ...]] = {
    "guide": ("pillow", "torch"),
    "backbone": ("safetensors", "torch"),
    "recipe": ("torch",),
    "reward": ("torch",),
}


class _Template(string.Template):
    delimiter = "§"


@dataclass(frozen=True)
class Scaffold:
    """What is to be written.

    Attributes:
        name: of the guide, backbone, recipe or reward; see :func:`checked_name`.
        kind: which of them it is; a reward is a guide without a target.
        author: for the metadata and the licence, one line.
        summary: what it does, one line; "" for what the template does.
        licence: of the distribution.
    """

    name: str
    kind: PluginKind = "guide"
    author: str = ""
    summary: str = ""
    licence: Licence = "apache-2.0"

    @property
    def distribution(self) -> str:
        """What pip calls it."""
        return PREFIX + self.name

    @property
    def package(self) -> str:
        """What Python calls it."""
        return self.distribution.replace("-", "_")

    def files(self) -> dict[PurePosixPath, str]:
        """All files, by their paths in the distribution's folder.

        Raises:
            OptionError: author or summary are no single short line.
        """
        words = self._words()
        root = resources.files("ppap_host.plugins.scaffold") / "templates"
        templates = {
            path: template
            for folder in ("common", self.kind)
            for path, template in _templates(root / folder)
        } | {PurePosixPath("LICENSE"): root / "licences" / f"{self.licence}.tmpl"}
        return {
            self._renamed(path): _Template(template.read_text(encoding="utf-8")).substitute(words)
            for path, template in sorted(templates.items())
        }

    def _renamed(self, path: PurePosixPath) -> PurePosixPath:
        return PurePosixPath(*(self.package if part == "package" else part for part in path.parts))

    def _words(self) -> dict[str, str]:
        """What the templates' words stand for."""
        author = _one_line("author", self.author or f"The authors of {self.distribution}")
        summary = _one_line("summary", self.summary or SUMMARIES[self.kind])
        camel = "".join(part.capitalize() for part in self.name.split("-"))
        ending = self.kind.capitalize()
        host = ".".join(metadata.version("ppap-host").split(".")[:2])
        dependencies = (f"ppap-host>={host}", *_DEPENDENCIES[self.kind])
        return {
            "name": self.name,
            "kind": self.kind,
            "distribution": self.distribution,
            "package": self.package,
            # Not the host's own name of the kind, for a plugin of that name.
            "class_name": camel if camel.endswith(ending) and camel != ending else camel + ending,
            "constant": self.name.replace("-", "_").upper(),
            "dependencies": ", ".join(f'"{one}"' for one in dependencies),
            "author": author,
            "author_toml": json.dumps(author, ensure_ascii=False),
            "summary_toml": json.dumps(summary, ensure_ascii=False),
            "summary_python": _python_text(summary),
            "summary_text": summary[0].upper() + summary[1:].rstrip(".") + ".",
            "spdx": _SPDX[self.licence],
            "year": str(datetime.date.today().year),
        }


def _templates(
    folder: Traversable, at: tuple[str, ...] = ()
) -> Iterator[tuple[PurePosixPath, Traversable]]:
    """The templates below a folder, by the paths of what they become."""
    for entry in folder.iterdir():
        name = re.sub(r"^dot-", ".", entry.name.removesuffix(".tmpl"))
        if entry.is_dir():
            yield from _templates(entry, (*at, name))
        elif entry.name.endswith(".tmpl"):
            yield PurePosixPath(*at, name), entry


def _one_line(what: str, text: str) -> str:
    """The text without the space around it.

    Raises:
        OptionError: it is empty, long, or holds what cannot be printed in a line.
    """
    text = text.strip()
    width = sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
    if not text or not text.isprintable() or width > _LONGEST_LINE:
        raise OptionError(
            f"The {what} {text!r} is no line of 1 to {_LONGEST_LINE} characters.",
            remedy=f"Give --{what} with one short line.",
        )
    return text


def _python_text(text: str) -> str:
    """A literal as ruff formats it: in double quotes, unless single ones save escapes."""
    text = text.replace("\\", "\\\\")
    quote = "'" if text.count('"') > text.count("'") else '"'
    return quote + text.replace(quote, f"\\{quote}") + quote


def checked_name(name: str) -> str:
    """The name without the distributions' common beginning.

    Raises:
        OptionError: it is no name for a plugin; says what would be.
    """
    bare = name.strip().removeprefix(PREFIX)
    remedy = "Use lower case letters and digits, words joined by hyphens, a letter first."
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", bare):
        better = re.sub(r"[^a-z0-9]+", "-", bare.lower()).strip("-")
        if re.fullmatch(r"[a-z][a-z0-9-]*", better) and len(better) <= _LONGEST_NAME:
            remedy += f" For example: {better}."
        raise OptionError(f"{name!r} is no name for a plugin.", remedy=remedy)
    if len(bare) > _LONGEST_NAME:
        raise OptionError(
            f"The name {name!r} has {len(bare)} characters.",
            remedy=f"Give one of at most {_LONGEST_NAME}: users type it.",
        )
    return bare


def checked_kind(text: str) -> PluginKind:
    """The kind of this name.

    Raises:
        OptionError: there is none; names those there are.
    """
    for kind in KINDS:
        if kind == text.strip().lower():
            return kind
    raise _unknown("kind", text, KINDS)


def checked_licence(text: str) -> Licence:
    """The licence of this name.

    Raises:
        OptionError: there is none; names those there are.
    """
    for licence in LICENCES:
        if licence == text.strip().lower():
            return licence
    raise _unknown("licence", text, LICENCES)


def _unknown(option: str, text: str, known: tuple[str, ...]) -> OptionError:
    close = nearest(text, known, 1)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return OptionError(
        f"--{option} {text!r} is unknown.", remedy=f"{hint}Give {' or '.join(known)}."
    )


def registered_as(kind: PluginKind) -> Kind:
    """What a thing of a kind is called where it is registered."""
    return "guide" if kind == "reward" else kind


def require_free(found: Registry, name: str, kind: Kind | None = None) -> None:
    """Checks that a name is nobody's yet.

    Args:
        kind: of what shall have the name; None to look at the distribution's name alone.

    Raises:
        PluginError: an installed plugin has it, or one that the project publishes.
    """
    distribution = PREFIX + name
    claims = found.names(kind).get(name, []) if kind is not None else []
    installed = {plugin.distribution: plugin.label for plugin in found.plugins}
    published = {one for plugins in KNOWN_PLUGINS.values() for one in plugins.values()}
    published_as = None if kind is None else KNOWN_PLUGINS.get(kind, {}).get(name)
    remedy = "Choose another name."
    if claims:
        owner = claims[0][0]
        if owner.distribution == distribution:
            remedy = f"Choose another name, or `pip uninstall {distribution}` first."
        raise PluginError(f"There is a {kind} {name!r} already, of {owner.label}.", remedy=remedy)
    if distribution in installed:
        raise PluginError(
            f"{installed[distribution]} is installed already.",
            remedy=f"Choose another name, or `pip uninstall {distribution}` first.",
        )
    if published_as is not None:
        raise PluginError(f"The {kind} {name!r} is that of {published_as}.", remedy=remedy)
    if distribution in published:
        raise PluginError(f"{distribution} is one of the project's own plugins.", remedy=remedy)


def require_new(folder: Path) -> None:
    """Checks that a folder can be made: that it is not there, and what it lies in is.

    Raises:
        OutputError: it cannot.
    """
    if folder.exists() or folder.is_symlink():
        raise OutputError(
            f"{str(folder)!r} is there already.", remedy="Choose another folder with --out."
        )
    if not folder.absolute().parent.is_dir():
        raise OutputError(
            f"There is no folder {str(folder.parent)!r} to write into.",
            remedy="Make it first, or choose another folder with --out.",
        )


def write(scaffold: Scaffold, folder: Path) -> list[Path]:
    """Writes a distribution, whole or not at all; returns the paths of its files.

    The files go into a folder beside, which gets its name when all are there.

    Raises:
        OptionError: as :meth:`Scaffold.files`.
        OutputError: the folder is there already, or cannot be written.
    """
    require_new(folder)
    files = scaffold.files()
    folder = folder.absolute()
    beside = folder.parent / f".{folder.name}.{secrets.token_hex(4)}"
    try:
        beside.mkdir()
        for path, text in files.items():
            write_file(beside / path, text.encode("utf-8"))
        require_new(folder)
        beside.rename(folder)
        flush_folder(folder.parent)
    except OutputError as error:
        message = error.message.replace(beside.name, folder.name)
        raise OutputError(message, remedy=error.remedy) from None
    except OSError as error:
        raise OutputError(
            f"Cannot write {str(folder)!r}: {error.strerror or error}.",
            remedy="Free some space or choose another folder with --out.",
        ) from None
    finally:
        with suppress(OSError):
            if beside.exists():
                shutil.rmtree(beside)
    return [folder / path for path in files]
