"""Targets: what is given, and what was understood of it.

A target is given as text, as a path, or as a picture, an array or a tensor in memory. All of them
become a :class:`Given`, which reads itself as what a guide asks for, and says in words what it
read. Text may begin with a head that leaves nothing to guess: ``depth,unit=mm:room.png``.
"""

# Long because photographs, maps and masks share one reader, and one line that says what it read.
from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from ppap_host.files.decoding import (
    LOSS,
    Decoded,
    decode,
    from_memory,
    has_alpha,
    one_channel,
    to_srgb,
)
from ppap_host.files.errors import TargetError, foreign, nearest
from ppap_host.files.images import fitted, from_tensor, means_file, to_tensor
from ppap_host.files.reading import local_path

KINDS: Mapping[str, str] = {
    "photo": "a photograph",
    "depth": "distances, larger is farther",
    "disparity": "disparities of a stereo pair, larger is nearer",
    "inverse": "inverse depth, larger is nearer",
    "labels": "the class of each pixel",
    "mask": "where something is: white",
}
"""What a head can name, and what it means. Guides say which of them they take, and may add some."""

Value = str | os.PathLike[str] | Mapping[str, Any] | Image.Image | NDArray[Any] | Tensor
"""What a target may be given as; a mapping is a path with what is known of it, as in TOML."""


@dataclass(frozen=True)
class Target:
    """What a guide should see in the result.

    Attributes:
        text: the target as the user gave it.
        value: what the guide's loss compares with, batch of one (e.g. depth [1, h, w]).
        pictures: what people are shown of it: label -> image.
        files: the files it was read from, for the run's record.
        understood: one line that says what it was read as, from which file, in which colour space,
            and how it was fitted.
        doubts: what had to be guessed or looks wrong, one sentence each, with what to do.
        photo: the photograph that it is, fitted to the images; None if it is none.
        given: what it was read from; filled in by :meth:`ppap_host.guides.guide.Guide.read_target`.
    """

    text: str
    value: Tensor
    pictures: Mapping[str, Image.Image] = field(default_factory=dict)
    files: Sequence[Path] = ()
    understood: str = ""
    doubts: Sequence[str] = ()
    photo: Image.Image | None = None
    given: Given | None = None


@dataclass(frozen=True, eq=False)
class Given:
    """A target as it was given, before a guide has understood it.

    Attributes:
        value: text, or a picture, an array or a tensor in memory.
        kind: which of :data:`KINDS` it was said to be, or one that the guide knows; None if the
            guide is to find out.
        settings: what was said of it besides, such as {"unit": "mm"}.
        is_path: whether text is a path, even where words would do.
        moved: of a run that is repeated, its files: path as given -> path now. No other is read.
    """

    value: str | Image.Image | NDArray[Any] | Tensor
    kind: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    is_path: bool = False
    moved: Mapping[str, str] | None = None

    @classmethod
    def of(
        cls,
        value: Value | Given,
        kinds: Collection[str] = (),
        moved: Mapping[str, str] | None = None,
    ) -> Given:
        """From whatever a target is given as.

        Args:
            kinds: what the head of a text may name; a head of another one of :data:`KINDS` is an
                error, and any other belongs to the file's name. Empty for guides whose targets are
                words: text is then taken as it is.
            moved: as the attribute.

        Raises:
            TargetError: the head is malformed, its kind is not among these, or the value is none
                that a target can be.
        """
        if isinstance(value, Given):
            given = replace(value, moved=value.moved if moved is None else moved)
        elif isinstance(value, Mapping):
            given = replace(cls._of_table(value), moved=moved)
        elif isinstance(value, os.PathLike):
            given = cls(os.fspath(value), is_path=True, moved=moved)
        elif isinstance(value, str | Image.Image | np.ndarray | Tensor):
            given = cls(value, moved=moved)
        else:
            raise TargetError(
                f"A target cannot be a {type(value).__name__}.",
                remedy="Give a text, a path, a PIL image, a numpy array or a torch tensor.",
            )
        if given.kind is None and isinstance(given.value, str) and not given.is_path and kinds:
            given = _with_head(given, kinds)
        if given.kind is not None and kinds and given.kind not in kinds:
            raise TargetError(
                f"The target {given.text!r} is said to be {_called(given.kind)}, which is not "
                "what this guide takes.",
                remedy=f"It takes {' or '.join(kinds)}. If the name of the file begins so, write "
                f"./ before it.",
            )
        return given

    @classmethod
    def _of_table(cls, table: Mapping[str, Any]) -> Given:
        """From ``{path = "room.png", as = "depth", unit = "mm"}``, as TOML and records have it."""
        rest = dict(table)
        path, kind = rest.pop("path", None), rest.pop("as", None)
        plain = [
            v for value in rest.values() for v in (value if isinstance(value, list) else [value])
        ]
        if (
            not (isinstance(path, str) and path and isinstance(kind, str | None))
            or (rest and kind is None)
            or not all(isinstance(v, str | int | float) for v in plain)
        ):
            raise TargetError(
                f"The table {dict(table)} is no target.",
                remedy='Write path = "FILE", as = one of '
                f'{", ".join(KINDS)}, and its settings, such as unit = "mm".',
            )
        return target(Path(path), kind, **rest)

    @property
    def table(self) -> dict[str, str]:
        """The same for TOML and records, which :meth:`of` reads as it is."""
        if not isinstance(self.value, str):
            raise TypeError("what is in memory has no table")
        kind = {} if self.kind is None else {"as": self.kind}
        return {"path": self.value, **kind, **self.settings}

    @property
    def head(self) -> str:
        """What is said of it before the colon, with the colon; empty if nothing is."""
        if self.kind is None:
            return ""
        return ",".join([self.kind, *(f"{k}={v}" for k, v in self.settings.items())]) + ":"

    @property
    def text(self) -> str:
        """As the user gave it; of what is in memory, a description."""
        return self.head + (self.value if isinstance(self.value, str) else _described(self.value))

    @property
    def source(self) -> str:
        """What messages call it: the path, or a description of what is in memory."""
        if isinstance(self.value, str):
            return f"The file {self.value!r}"
        return f"The target ({_described(self.value)})"

    @property
    def in_memory(self) -> bool:
        """Whether it is a picture, an array or a tensor, and no text or path."""
        return not isinstance(self.value, str)

    @property
    def is_file(self) -> bool:
        """Whether it is in memory, was said to be a file, or is the name of one that there is."""
        if not isinstance(self.value, str) or self.is_path or self.kind is not None:
            return True
        return self._may_read(self.value) and os.path.isfile(self._place(self.value))

    @property
    def means_file(self) -> bool:
        """Whether it is one, or looks like the path of one; reading it then says what is wrong."""
        return self.is_file or (isinstance(self.value, str) and means_file(self.value))

    @property
    def words(self) -> str:
        """The text, for guides whose targets are words.

        Raises:
            TargetError: it is a path, or something in memory.
        """
        if isinstance(self.value, str) and not self.is_path and self.kind is None:
            return self.value
        raise TargetError(
            f"{self.source} was given where words are wanted.", remedy="Give the words as text."
        )

    @property
    def path(self) -> Path:
        """Where the file is.

        Raises:
            TargetError: it is in memory.
        """
        if not isinstance(self.value, str):
            raise TargetError(f"{self.source} is no file.", remedy="Give the path of a file.")
        return self._place(self.value)

    @property
    def files(self) -> tuple[Path, ...]:
        """The file it is read from; nothing if it is in memory."""
        return (self.path,) if isinstance(self.value, str) else ()

    def setting_path(self, name: str) -> Path:
        """A setting that names a file."""
        self._check_may_read(self.settings[name])
        return self._place(self.settings[name])

    def _place(self, text: str) -> Path:
        expanded = local_path(text)
        return Path((self.moved or {}).get(expanded, expanded))

    def _may_read(self, text: str) -> bool:
        return self.moved is None or local_path(text) in self.moved

    def _check_may_read(self, text: str) -> None:
        if not self._may_read(text):
            raise TargetError(
                f"The record names the file {text!r}, and does not hold it.",
                remedy="Do not trust that record; give the target again.",
            )

    # What readers ask

    def expect(self, kinds: Sequence[str], settings: Sequence[str]) -> None:
        """Refuses another kind than these, and settings that they do not have.

        Raises:
            TargetError: as said.
        """
        if self.kind is not None and self.kind not in kinds:
            raise TargetError(
                f"The target {self.text!r} is said to be {_called(self.kind)}, and what is wanted "
                f"here is {' or '.join(_called(kind) for kind in kinds)}.",
                remedy=f"Leave out {self.head!r} or write {kinds[0]}: there.",
            )
        for name in self.settings:
            if name not in settings:
                close = nearest(name, settings, 1)
                raise TargetError(
                    f"The target {self.text!r} has the setting {name!r}, which means nothing here.",
                    remedy=(f"Did you mean {close[0]!r}? " if close else "")
                    + (f"Known: {', '.join(settings)}." if settings else "There are none."),
                )

    def choice(self, name: str, answers: Sequence[str]) -> str | None:
        """A setting that is one of a few words; None if it is not given.

        Raises:
            TargetError: it is another word.
        """
        value = self.settings.get(name)
        if value is None or value in answers:
            return value
        raise self.bad_setting(name, f"Give {' or '.join(f'{name}={a}' for a in answers)}.")

    def number(self, name: str) -> float | None:
        """A setting that is a finite number; None if it is not given.

        Raises:
            TargetError: it is none.
        """
        value = self.settings.get(name)
        if value is None:
            return None
        try:
            found = float(value)
        except ValueError:
            found = math.nan
        if not math.isfinite(found):
            raise self.bad_setting(name, f"Give a number, as in {name}=1.5.")
        return found

    def flag(self, name: str) -> bool:
        """A setting that is yes or no; no if it is not given."""
        return self.choice(name, ("yes", "no")) == "yes"

    def as_(self, head: str) -> str:
        """How to give it with this head, for remedies: with what else is said of it."""
        kind = head.partition(",")[0]
        for name, value in self.settings.items():
            if f",{name}=" not in head and (kind == self.kind or name == "key"):
                head += f",{name}={value}"
        if isinstance(self.value, str) and self.value.isprintable():
            return foreign(f"{head}:{self.value}")
        return f"{head}:..."

    def bad_setting(self, name: str, remedy: str) -> TargetError:
        """For a setting whose value makes no sense."""
        return TargetError(
            f"In the target {self.text!r}, {name}={self.settings[name]} makes no sense.",
            remedy=remedy,
        )

    def decoded(self, near: tuple[int, int] | None = None) -> Decoded:
        """What it holds, as stored.

        Args:
            near: (height, width) that will do, times four.

        Raises:
            TargetError: as :func:`ppap_host.files.decoding.decode`.
        """
        if isinstance(self.value, str):
            self._check_there()
            return decode(self.path, near, self.settings.get("key"))
        if isinstance(self.value, Tensor):
            return from_memory(_tensor_as_array(self.source, self.value), self.source)
        return from_memory(self.value, self.source)

    def _check_there(self) -> None:
        """Tells of a head that was taken for one, or was not, where the file is missing."""
        assert isinstance(self.value, str)
        self._check_may_read(self.value)
        if os.path.exists(self.path):
            return
        other = _with_head(self, KINDS) if self.kind is None else self
        if self.kind is not None and os.path.exists(self._place(self.text)):
            remedy = f"There is one that is called {self.text!r}: write ./{self.text} for it."
        elif self.kind is None and other.kind is not None and os.path.exists(other.path):
            remedy = f"This guide's targets have no heads: give {other.value!r}."
        elif self.kind is None and (rest := _after_a_head(self.value)) and os.path.exists(
            self._place(rest)
        ):  # fmt: skip
            remedy = f"If it begins with a head, known are {', '.join(KINDS)}, in small letters."
        else:
            return
        raise TargetError(f"There is no file {self.value!r}.", remedy=remedy)

    def numbers(self) -> tuple[NDArray[Any], NDArray[np.bool_] | None, Decoded]:
        """The numbers of a map, [h, w], where it is transparent, and what it was read from.

        Raises:
            TargetError: it cannot be read or has colours.
        """
        decoded = self.decoded()
        found = decoded.numbers()
        if found is None:
            has = (
                f"the shape {decoded.pixels.shape}"
                if isinstance(decoded.pixels, np.ndarray)
                else f"colours ({decoded.pixels.mode})"
            )
            raise TargetError(
                f"{decoded.name} has {has}; a map has one number a pixel.",
                remedy="Save one of its maps, or of scores of classes the index of the largest "
                "(numpy.argmax), as a two-dimensional .npy array."
                if isinstance(decoded.pixels, np.ndarray)
                else "Save it as a 16-bit grey PNG or as a two-dimensional .npy array.",
            )
        if decoded.narrowed:
            raise TargetError(
                f"{decoded.name} has several channels of 16 bits, of which only 8 can be read.",
                remedy="Save one of them, as a 16-bit grey PNG or as .npy.",
            )
        values, clear = found
        if 0 in values.shape:
            raise TargetError(f"{decoded.name} has no pixels.", remedy="Check how it was made.")
        return values, clear, decoded

    def photo(self, size: tuple[int, int] | None = None) -> Photo:
        """As a photograph: RGB in sRGB, upright, cropped to the aspect ratio of ``size``.

        Args:
            size: (height, width); None leaves its own.

        Settings: ``range`` (``low..high``), what black and white are in an array or a tensor;
        ``key``, which array or channel. Without ``range`` a float array is in [0, 1], and a float
        tensor is in [-1, 1] and has to have negative values to show it.

        Raises:
            TargetError: it cannot be read as one.
        """
        self.expect(("photo",), ("range", "key"))
        bounds = self._range()
        notes: tuple[str, ...]
        doubts: tuple[str, ...]
        if isinstance(self.value, Tensor):
            pixels, colour = _tensor_photo(self.source, self.value, bounds)
            image = from_tensor(pixels)[0]
            original, read_from = image.size, _described(self.value)
            notes, doubts = (), ()
        else:
            decoded = self.decoded(near=size)
            image, colour = to_srgb(decoded, bounds)
            original, notes, read_from = decoded.original, decoded.notes, origin(self, decoded)
            doubts = _photo_doubts(decoded, colour)
        doubts += _dim_doubts(self.source, image)
        parts = [f"photograph from {read_from}", colour, *notes, how_fitted(original, size)]
        understood = "; ".join([", ".join(parts[:2]), *parts[2:]])
        shown = image if size is None else fitted(image, size)
        return Photo(self, understood, self.files, doubts, original, shown)

    def _range(self) -> tuple[float, float] | None:
        value = self.settings.get("range")
        if value is None:
            return None
        try:
            low, high = (float(part) for part in value.split(".."))
        except ValueError:
            low = high = math.nan
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise self.bad_setting("range", "Give black and white as in range=0..255.")
        return low, high

    def mask(self, size: tuple[int, int], known: Sequence[str] = ()) -> Mask:
        """As a mask: where something is, as a share of each pixel's area.

        Read is any picture whose black (0) means no and whose white means yes; a layer that is
        painted in one colour on transparency, where what is painted means yes; two values of which
        one is 0; one colour on black; and arrays of truth values, 0 and 1, or 0 and 255.

        Args:
            size: (height, width); it is cropped to this aspect ratio.
            known: further settings that the caller has understood.

        Settings: ``by`` (``brightness`` or ``alpha``), what counts; ``white``, the number that
        means yes; ``invert`` (``yes``); ``key``.

        Raises:
            TargetError: it cannot be read, or is no mask.
        """
        self.expect(("mask",), ("by", "white", "invert", "key", *known))
        inverted, _ = self.flag("invert"), self.number("white")  # before the file, for their errors
        decoded = self.decoded()
        white, words, doubts = _mask_values(self, decoded)
        if inverted:
            white, words = 1 - white, f"{words}, inverted"
        fit = fit_numbers(white.astype(np.float32), size, Image.Resampling.BOX).clip(0, 1)
        percent = 100 * float(fit.mean())
        shown = f"{percent:.0f}" if 0.5 <= percent < 99.5 or percent in (0, 100) else (
            f"{percent:.3g}"
        )  # fmt: skip
        understood = "; ".join(
            [f"mask with {shown} % white from {origin(self, decoded)}, {words}", *decoded.notes,
             how_fitted(decoded.original, size)]
        )  # fmt: skip
        if fit.min() == fit.max():
            what = "nothing in it is marked" if fit.max() < 0.5 else "all of it is marked"
            doubts.append(f"{decoded.name} is the same everywhere: {what}.")
        elif fit.min() > 0.5:
            doubts.append(
                f"Nothing in {_lower(decoded.name)} is black, so that all of it counts as white."
            )
        elif looks_inverted(fit) and "invert" not in self.settings:
            doubts.append(
                f"{decoded.name} is white along its border and black inside, as inverted masks "
                "are. White is what is meant; if black is, give "
                f"{self.as_('mask,invert=yes')}."
            )
        share = torch.from_numpy(fit.copy())[None]
        return Mask(self, understood, self.files, tuple(doubts), decoded.original, share)

    def encoded(self) -> tuple[str, bytes]:
        """What is in memory as a file that reads the same: (suffix, content).

        With :attr:`head` before its path, it can be given again.
        """
        buffer = io.BytesIO()
        decoded = self.decoded()
        one = decoded.numbers() if isinstance(decoded.pixels, np.ndarray) else None
        if one is not None:
            np.save(buffer, one[0], allow_pickle=False)
            return ".npy", buffer.getvalue()
        image = decoded.image
        if image is None or isinstance(self.value, Tensor):
            image = replace(self, kind=None, settings=_only(self.settings, "range")).photo().image
        plain = image.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
        image.save(buffer, format="PNG" if plain else "TIFF")
        return ".png" if plain else ".tiff", buffer.getvalue()


def target(value: Value, kind: str | None = None, **settings: object) -> Given:
    """A target for a guide, with what is to be known of it.

    Args:
        value: a text or a path, a PIL image, a numpy array (a photograph is uint8 [h, w, 3] or
            floats in [0, 1]; maps are [h, w] as they are), or a torch tensor (RGB [3, h, w] or
            [1, 3, h, w] in [-1, 1]; maps as arrays).
        kind: one of :data:`KINDS`, or one that the guide adds; None lets the guide find out.
        settings: of that kind, such as ``unit="mm"`` or ``range=(0, 1)``.

    Raises:
        TargetError: the value is none that a target can be, or there are settings of no kind.
    """
    given = Given.of(value)
    if kind is None:
        if settings.keys() - {"range"}:
            raise TargetError(
                f"The settings {', '.join(settings)} belong to a kind of target; none is named.",
                remedy='Name it, as in target(value, "depth", unit="mm").',
            )
        kind = "photo" if settings else None
    return replace(given, kind=kind, settings={k: _setting(v) for k, v in settings.items()})


def _setting(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple | list):
        return "..".join(str(part) for part in value)
    return str(value)


def _only(settings: Mapping[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in settings.items() if name in names}


# The head of a text


def _with_head(given: Given, kinds: Collection[str]) -> Given:
    text = given.value
    assert isinstance(text, str)
    found = re.match(r"[a-z][a-z-]*(?=[,:])", text)
    if found is None or found[0] not in {*KINDS, *kinds} or ":" not in text:
        return given
    rest, settings = text[found.end() :], dict[str, str]()
    while rest.startswith(","):
        # The colon of a drive letter is not the one that ends the head.
        part = re.match(r",\s*([\w-]+)\s*=\s*((?:[A-Za-z]:[\\/])?[^,:]*)", rest)
        if part is None or part[1] in settings:
            wrong = "gives a setting twice" if part else "has something else than settings"
            raise TargetError(
                f"The head of the target {text!r} {wrong}.",
                remedy=f"Write settings as in {found[0]},name=value:FILE. If the name of the file "
                "begins so, write ./ before it.",
            )
        settings[part[1]] = part[2].strip()
        rest = rest[part.end() :]
    if not rest.startswith(":") or not rest[1:].strip():
        raise TargetError(
            f"The target {text!r} names no file.", remedy=f"Write {found[0]}:FILE, as in "
            f"{found[0]}:room.png."
        )  # fmt: skip
    return replace(given, value=rest[1:], kind=found[0], settings=settings)


def _after_a_head(text: str) -> str:
    """What follows something that is written like a head; "" if nothing is."""
    found = re.match(r"[A-Za-z-]+(,[^:]*)?:\s*", text)
    return text[found.end() :] if found else ""


def _called(kind: str) -> str:
    return f"{kind} ({KINDS[kind]})" if kind in KINDS else kind


def _described(value: Image.Image | NDArray[Any] | Tensor) -> str:
    if isinstance(value, Image.Image):
        return f"a picture in memory, {value.width} x {value.height}, {value.mode}"
    sides = " x ".join(str(side) for side in value.shape)
    kind = "a tensor" if isinstance(value, Tensor) else "an array"
    return f"{kind} in memory, {sides}, {str(value.dtype).removeprefix('torch.')}"


# What was read


@dataclass(frozen=True, eq=False)
class Reading:
    """What was understood of a target.

    Attributes:
        given: what it was read from.
        understood: in one line.
        files: that it was read from.
        doubts: what had to be guessed, or looks wrong, one sentence each.
    """

    given: Given
    understood: str
    files: tuple[Path, ...]
    doubts: tuple[str, ...]

    def target(
        self,
        value: Tensor,
        pictures: Mapping[str, Image.Image] | None = None,
        then: str = "",
    ) -> Target:
        """The target with a guide's value for it.

        Args:
            pictures: for people.
            then: what the guide made of it, for the line that says what was understood.
        """
        said = f"{self.understood}; {then}" if then else self.understood
        return Target(self.given.text, value, pictures or {}, self.files, said, self.doubts)

    def doubting(self, *sentences: str) -> Self:
        """The same with further doubts."""
        return replace(self, doubts=(*self.doubts, *sentences))


@dataclass(frozen=True, eq=False)
class Photo(Reading):
    """A photograph as people see it.

    Attributes:
        original: (width, height) before it was fitted.
        image: RGB, 8 bits, in sRGB.
    """

    original: tuple[int, int]
    image: Image.Image

    @property
    def pixels(self) -> Float[Tensor, "1 3 h w"]:
        """RGB in [-1, 1]."""
        return to_tensor(self.image)

    def target(
        self,
        value: Tensor,
        pictures: Mapping[str, Image.Image] | None = None,
        then: str = "",
    ) -> Target:
        """As :meth:`Reading.target`, with the photograph."""
        return replace(super().target(value, pictures, then), photo=self.image)


@dataclass(frozen=True, eq=False)
class Mask(Reading):
    """Where something is.

    Attributes:
        original: (width, height) before it was fitted.
        share: of each pixel that is white, in [0, 1].
    """

    original: tuple[int, int]
    share: Float[Tensor, "1 h w"]


def _photo_doubts(decoded: Decoded, colour: str) -> tuple[str, ...]:
    """What looks wrong in the colours of a photograph, as ``to_srgb`` put them into words."""
    doubts = []
    if "taken for sRGB" in colour:
        doubts.append(
            f"The colours of {_lower(decoded.name)} were {colour[colour.index('taken') :]}. Save "
            "it in sRGB."
        )
    image = decoded.image
    if "on white" in colour and image is not None:
        alpha = np.asarray(image.convert("RGBA").getchannel("A"))
        if not alpha.any():
            doubts.append(f"{decoded.name} is transparent everywhere, and so all white.")
        elif ((alpha > 0) & (alpha < 255)).mean() > 0.5:
            doubts.append(
                f"Most of {_lower(decoded.name)} is half transparent, and was laid on white. If "
                "its alpha channel holds something else, such as depth, save it without."
            )
    if image is not None and not image.mode.startswith("I"):
        return tuple(doubts)
    values = np.asarray(decoded.pixels)
    most = float(values.max()) if values.size else 0.0
    if values.dtype.kind in "ui" and values.dtype.itemsize == 2 and most < 4096:
        doubts.append(
            f"{decoded.name} is dark: its brightest pixel is {most:g} of 65535. If that is white, "
            "bring it to all of its 16 bits, or to 8."
        )
    if decoded.format == "EXR" and float((values > 1).mean()) > 0.2:
        doubts.append(
            f"Much of {_lower(decoded.name)} is brighter than white (1) and was cut. Bring it to "
            "what a screen shows, and save it as PNG."
        )
    return tuple(doubts)


def _dim_doubts(name: str, image: Image.Image) -> tuple[str, ...]:
    """What is doubted of a picture in sRGB that shows nothing, or that numbers were taken for."""
    spans: Any = image.getextrema()
    most = max(high for _, high in spans)
    if all(low == high for low, high in spans):
        return (f"{name} has the same colour everywhere, so that it shows nothing.",)
    if most < 16:
        return (
            f"{name} is nearly black: its brightest pixel is {most} of 255. If it holds numbers, "
            "such as those of classes, it is no photograph; else make it brighter.",
        )
    return ()


def _lower(name: str) -> str:
    return name[:1].lower() + name[1:]


def is_grey(image: Image.Image) -> bool:
    """Whether all channels of an RGB picture are equal, but for what compression makes of them."""
    return one_channel(np.asarray(image), LOSS) is not None


def origin(given: Given, decoded: Decoded) -> str:
    """From what something was read, in words."""
    if isinstance(given.value, str):
        return f"{given.value!r} ({decoded.format})"
    return _described(given.value)


def how_fitted(original: tuple[int, int], size: tuple[int, int] | None) -> str:
    """How a picture of (width, height) pixels comes to (height, width), in words."""
    width, height = original
    if size is None or (height, width) == size:
        return f"{width} x {height} pixels as they are"
    to = f"resized to {size[1]} x {size[0]}"
    if width * size[0] == height * size[1]:
        return f"{width} x {height} {to}"
    scale = min(width / size[1], height / size[0])
    part = f"{max(1, round(size[1] * scale))} x {max(1, round(size[0] * scale))}"
    return f"the middle {part} of {width} x {height}, {to}"


def fit_numbers(
    values: NDArray[np.float32], size: tuple[int, int], filter: Image.Resampling
) -> NDArray[np.float32]:
    """The middle of a map [h, w] in the aspect ratio of ``size``, resized to it."""
    if values.shape == size:
        return values
    resized = ImageOps.fit(Image.fromarray(values), (size[1], size[0]), filter)
    return np.asarray(resized, dtype=np.float32)


# Tensors


def _tensor_as_array(name: str, value: Tensor) -> NDArray[Any]:
    """[h, w] or [h, w, c] of a tensor with or without a batch of one."""
    plain = value.detach().cpu()
    if plain.dtype == torch.bfloat16:
        plain = plain.float()
    while plain.ndim > 3 or (plain.ndim == 3 and len(plain) == 1):
        if len(plain) != 1:
            raise _not_one(name, value)
        plain = plain[0]
    array = plain.numpy()
    return np.moveaxis(array, 0, -1) if array.ndim == 3 else array


def _not_one(name: str, value: Tensor) -> TargetError:
    return TargetError(
        f"{name} has the shape {tuple(value.shape)}.",
        remedy="A target is one picture [3, h, w] or one map [h, w]; of a batch make a list, "
        "list(batch), which has one an image.",
    )


def _tensor_photo(
    name: str, value: Tensor, bounds: tuple[float, float] | None
) -> tuple[Float[Tensor, "1 3 h w"], str]:
    """RGB in [-1, 1], and in words what it was."""
    x = value.detach().cpu()
    x = x[None] if x.ndim == 3 else x
    if x.ndim != 4 or len(x) != 1 or x.shape[1] not in (1, 3) or 0 in x.shape:
        raise _not_one(name, value)
    if x.dtype == torch.uint8:
        bounds = bounds or (0.0, 255.0)
    elif not x.is_floating_point():
        raise TargetError(f"{name} holds whole numbers.", remedy="Give floats or uint8.")
    x = x.double()
    if not bool(x.isfinite().all()):
        raise TargetError(f"{name} holds NaN or infinite values.", remedy="Fill them first.")
    if bounds is None and float(x.min()) >= 0:
        raise TargetError(
            f"{name} has no negative values; tensors of pictures are in [-1, 1], and it may be in "
            "[0, 1].",
            remedy="Say what black and white are: target(x, range=(0, 1)) or range=(-1, 1).",
        )
    low, high = bounds or (-1.0, 1.0)
    if float(x.min()) < low or float(x.max()) > high:
        raise TargetError(
            f"{name} holds values from {float(x.min()):g} to {float(x.max()):g}, which are not "
            f"from {low:g} to {high:g}.",
            remedy="Say what black and white are, as in range=(0, 255).",
        )
    unit = (x - low) / (high - low)
    return (2 * unit - 1).float().expand(1, 3, -1, -1), f"RGB from {low:g} to {high:g}"


# Masks

_MIDDLE = 0.3
"""From this share of pixels on that are neither black nor white, a mask is doubted."""


def looks_inverted(mask: NDArray[np.float32]) -> bool:
    """Whether a mask is white along most of its border and mostly, and black somewhere."""
    border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    return bool(border.mean() > 0.75 and mask.mean() > 0.5 and mask.min() < 0.5)


def _mask_values(given: Given, decoded: Decoded) -> tuple[NDArray[np.float64], str, list[str]]:
    """[h, w] in [0, 1], what counts as white in words, and doubts."""
    by = given.choice("by", ("brightness", "alpha"))
    image = decoded.image
    alpha = None
    if image is not None and has_alpha(image) and by != "brightness":
        alpha = np.asarray(image.convert("RGBA").getchannel("A"), dtype=np.float64) / 255
        alpha = None if alpha.min() == alpha.max() > 0 else alpha
    if by == "alpha" and alpha is None:
        raise TargetError(
            f"{decoded.name} has no transparency.", remedy="Leave out by=alpha: its white counts."
        )
    if alpha is not None:
        assert image is not None
        return _layer(given, decoded, image, alpha, by)
    doubts: list[str] = []
    found = decoded.numbers()
    if found is None:
        if isinstance(decoded.pixels, np.ndarray) and decoded.pixels.dtype != np.uint8:
            given.numbers()  # says what is wrong with it
        values, words = _by_colours(decoded)
    else:
        values, words, doubts = _by_numbers(given, decoded, found[0])
    if decoded.narrowed and not values.any():
        given.numbers()  # says that small numbers were cut away
    middle = float(((values > 0.1) & (values < 0.9)).mean())
    if middle > _MIDDLE:
        doubts.append(
            f"{decoded.name} is read as a mask, though {100 * middle:.0f} % of it is neither black "
            "nor white; such pixels count in part."
        )
    return values, words, doubts


def _layer(
    given: Given,
    decoded: Decoded,
    image: Image.Image,
    alpha: NDArray[np.float64],
    by: str | None,
) -> tuple[NDArray[np.float64], str, list[str]]:
    """Of a picture with transparency: what is painted, if that is all of one colour."""
    rgb = np.asarray(image.convert("RGBA").convert("RGB"), dtype=np.int16)
    painted = rgb[alpha >= 0.5] if (alpha >= 0.5).any() else rgb[alpha > 0]
    words = "what is painted on transparency counts as white"
    spread = int(np.ptp(painted, axis=0).max()) if len(painted) else 0
    if by == "alpha" or spread <= 24:
        levels = np.unique(alpha)
        if len(levels) == 2 and levels[0] == 0:  # a brush that lets the ground through
            alpha = (alpha > 0).astype(np.float64)
        return alpha, words, []
    raise TargetError(
        f"{decoded.name} has transparent parts and several colours, so that it is not clear what "
        "of it is meant.",
        remedy=f"Give {given.as_('mask,by=alpha')} if what is opaque is meant, "
        f"{given.as_('mask,by=alpha,invert=yes')} if what is transparent is, or "
        f"{given.as_('mask,by=brightness')} if its white is.",
    )


def _by_numbers(
    given: Given, decoded: Decoded, values: NDArray[Any]
) -> tuple[NDArray[np.float64], str, list[str]]:
    stored = values.astype(np.float64)
    if not np.isfinite(stored).all() or stored.min() < 0:
        raise TargetError(
            f"{decoded.name} holds values below zero, NaN or infinity, which mean nothing in a "
            "mask.",
            remedy="Use 0 for no and 1 or 255 for yes.",
        )
    low, high = float(stored.min()), float(stored.max())
    white = given.number("white") or _mask_white(decoded, values, high)
    shares = values.dtype.kind == "f" and high <= 1
    two = not shares and low == 0 < high and not ((stored != 0) & (stored != high)).any()
    if two and high != white and "white" not in given.settings:
        # Two values need not be black and white to be told apart, if one is black.
        doubt = (
            f"{decoded.name} holds 0 and {high:g}; {high:g} counts as white. If it is a label map, "
            f"give {given.as_('labels')}."
        )
        return stored / high, f"its {high:g} counts as white", [doubt] if 1 < high < 32 else []
    if 0 < high < white / 2:
        raise TargetError(
            f"{decoded.name} has no white pixel, its brightest is {high:g} of {white:g}.",
            remedy="In a mask, the class is white and the rest black (0). If another number is "
            f"white, say so: {given.as_(f'mask,white={high:g}')}.",
        )
    if high > white:
        raise TargetError(
            f"{decoded.name} holds {high:g}, which is more than white ({white:g}).",
            remedy=f"Say what white is, as in {given.as_('mask,white=255')}.",
        )
    between = stored[(stored > 0) & (stored < white)]
    if decoded.exact and white == 255 and 0.01 * stored.size < between.size and between.max() < 64:
        raise TargetError(
            f"{decoded.name} holds {int(between.max())} besides 0 and 255, as label maps do whose "
            "255 is open, and masks do not.",
            remedy=f"If it is a label map, give {given.as_('labels')}; if its "
            f"{int(between.max())} is white, save it as black and white.",
        )
    return stored / white, f"white is {white:g}", []


def _mask_white(decoded: Decoded, values: NDArray[Any], high: float) -> float:
    """The number that means white, by the type of the numbers."""
    image = decoded.image
    if values.dtype == np.bool_ or (image is not None and image.mode == "1"):
        return 1.0
    if decoded.step != 1:
        return float(round((65535 if values.dtype.itemsize > 1 else 255) / decoded.step))
    if values.dtype.kind == "f":
        return 1.0 if high <= 1 else 255.0
    if values.dtype.itemsize == 1 or high <= 255:
        return 1.0 if high <= 1 and values.dtype.itemsize > 1 else 255.0
    return 65535.0


def _by_colours(decoded: Decoded) -> tuple[NDArray[np.float64], str]:
    """Of a picture with colours: one of them on black."""
    rgb, _ = to_srgb(decoded)
    colours = np.asarray(rgb, dtype=np.float64)
    brightest = colours.max(axis=2)
    bright = brightest >= 0.8 * brightest.max()
    hue = colours[bright].mean(axis=0)
    share = (colours @ hue / (hue @ hue)).clip(0, 1) if hue.any() else brightest * 0
    # JPEG blurs colours where they meet.
    off = np.abs(colours - share[..., None] * hue).max(axis=2)
    if np.percentile(off, 98) > 40 or brightest.max() < 64:
        raise TargetError(
            f"{decoded.name} has several colours, and a mask is white on black.",
            remedy="Save it as black and white, or as one colour on black or on transparency.",
        )
    shown = "#{:02x}{:02x}{:02x}".format(*(round(c) for c in hue))
    return share, f"its {shown} counts as white"


def read_known(
    image: Given, mask: Given, size: tuple[int, int]
) -> tuple[Photo, Mask, Float[Tensor, "1 1 h w"]]:
    """A picture that is to be filled in, its mask, and 1 where the picture is known.

    Args:
        mask: white where the picture is to be made anew, black where it is kept.
        size: (height, width).

    Raises:
        TargetError: as :meth:`Given.photo` and :meth:`Given.mask`; or the mask keeps everything, or
            has another aspect ratio than the picture.
    """
    photo, holes = image.photo(size), mask.mask(size)
    check_same_shape(photo, holes)
    return photo, holes, known_by(holes)


def known_by(mask: Mask) -> Float[Tensor, "1 1 h w"]:
    """0 where a picture is to be filled in, 1 where it is known.

    Raises:
        TargetError: the mask keeps everything.
    """
    known = (mask.share < 0.5).float()[None]
    if bool(known.all()):
        raise TargetError(
            f"The mask {mask.given.text!r} has nothing white, so nothing is to be made anew.",
            remedy="Paint white what is to be filled in.",
        )
    return known


def check_same_shape(photo: Photo, mask: Mask) -> None:
    """Both are cropped to the images' aspect ratio, which moves them apart if theirs differ.

    Raises:
        TargetError: they do.
    """
    (w1, h1), (w2, h2) = photo.original, mask.original
    # Sides are whole pixels, so two sizes of one picture differ by up to one of them.
    if abs(w1 * h2 - w2 * h1) > max(w1, h1, w2, h2):
        raise TargetError(
            f"The mask {mask.given.text!r} has {w2} x {h2} pixels, the picture "
            f"{photo.given.text!r} has {w1} x {h1}.",
            remedy="Give a mask of the same picture: of its size, or with its aspect ratio.",
        )
