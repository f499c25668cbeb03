"""Settings: frozen dataclasses whose fields know their types and ranges.

Every door (the command line, TOML, Python, records) makes the same objects, so what means nothing
is refused in one place. pydantic checks; what it finds becomes an
:class:`~ppap_host.files.errors.OptionError` that names the option and where it was written.
"""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from functools import wraps
from typing import Annotated, Any, TypeVar, dataclass_transform

import pydantic
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass as checked_dataclass

from ppap_host.files.errors import OptionError, nearest
from ppap_host.files.reading import beyond
from ppap_host.files.words import ARGUMENTS, are_typed

T = TypeVar("T")


def _kept(value: int) -> int:
    if beyond(value):
        raise ValueError("a whole number of at most 300 digits")
    return value


def _named(value: str) -> str:
    if not value:
        raise ValueError("a text that is not empty")
    return value


Finite = Annotated[float, Field(allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Images = Annotated[int, Field(ge=1, le=100_000_000)]
"""A number of images to make."""
MoreImages = Annotated[int, Field(ge=0, le=100_000_000)]
"""The same where none may be wanted."""
Batch = Annotated[int, Field(ge=1, le=1_000_000)]
Seed = Annotated[int, Field(ge=0), AfterValidator(_kept)]
"""Of random draws; as large as records can hold."""
Place = Annotated[str, AfterValidator(_named)]
"""A file, a folder or a name; empty it would be the folder one stands in, or what is shipped."""
Index = Annotated[int, Field(ge=0, le=2**31 - 1)]
Side = Annotated[int, Field(ge=1, le=65_536)]
"""Pixels along a side of an image."""
Count = Annotated[int, Field(ge=1, le=100)]
"""How often something is done within one step of sampling."""
Repeats = Annotated[int, Field(ge=0, le=100)]
"""The same where it may be left out."""
Decay = Annotated[float, Field(ge=0, lt=1)]
"""Of a moving average."""
Parts = Annotated[int, Field(ge=1, le=1000)]
"""Into how many parts something is split."""
Number = Annotated[int, Field(ge=1, le=1_000_000)]
"""Of steps, or of trials."""
Steps = Number | Place
"""A number of steps, or a spacing of them."""


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


Many = BeforeValidator(_as_tuple)
"""A tuple that may be written as a list, as JSON and TOML do."""


def _sound(value: Mapping[str, Any]) -> Mapping[str, Any]:
    if beyond(value):
        raise ValueError("a table of finite numbers that is not nested without end")
    return value


Table = Annotated[Mapping[str, Any], AfterValidator(_sound)]
"""Values of any kind by name, within the bounds of documents."""

_source: ContextVar[str] = ContextVar("_source", default="")


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def settings(cls: type[T]) -> type[T]:
    """Makes a frozen dataclass whose values are checked whenever one is made.

    Raises (the class, when it is called):
        OptionError: a name is unknown, a type is wrong or a value is out of range.
    """
    config = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)
    made: Any = checked_dataclass(frozen=True, config=config)(cls)
    check: Callable[..., None] = made.__init__

    @wraps(check)
    def init(self: Any, *args: Any, **values: Any) -> None:
        try:
            check(self, *args, **values)
        except pydantic.ValidationError as error:
            raise _explained(made, error) from None

    def short(self: Any) -> str:
        kept = []
        for part in dataclasses.fields(self):
            value = getattr(self, part.name)
            if part.default is dataclasses.MISSING or value is not part.default:
                factory = part.default_factory
                if factory is dataclasses.MISSING or value != factory():
                    kept.append(f"{part.name}={reprlib.repr(value)}")
        return f"{type(self).__name__}({', '.join(kept)})"

    made.__init__, made.__repr__ = init, short
    ARGUMENTS.update((field.name, field.name) for field in dataclasses.fields(made))
    result: type[T] = made
    return result


def read(cls: type[T], values: Mapping[str, Any], source: str) -> T:
    """A ``cls`` from plain values.

    Args:
        source: names the origin in errors: a file, "the command line".

    Raises:
        OptionError: as the class itself does.
    """
    token = _source.set(source)
    try:
        return cls(**{str(key): value for key, value in values.items()})
    finally:
        _source.reset(token)


def _explained(cls: Any, error: pydantic.ValidationError) -> OptionError:
    """The first thing that is wrong, in the words of who wrote it."""
    where = _source.get() or ("the command line" if are_typed() else f"{cls.__name__}(...)")
    known = [field.name for field in dataclasses.fields(cls)]
    faults = error.errors(include_url=False)
    first = faults[0]
    part = next(iter(first["loc"]), "?")
    path = known[part] if isinstance(part, int) and part < len(known) else str(part)
    if first["type"] == "unexpected_keyword_argument":
        close = nearest(path, known, 1)
        return OptionError(
            f"Unknown option {path!r} in {where}.",
            remedy=(f"Did you mean {close[0]!r}? " if close else "")
            + f"Known: {', '.join(known)}.",
        )
    if first["type"] in ("missing", "missing_argument"):
        return OptionError(f"There is no {path!r} in {where}.", remedy=f'Add {path} = "...".')
    wanted = [
        fault["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
        for fault in faults
        if fault["loc"][:1] == first["loc"][:1]
        and (fault["type"] != "tuple_type" or len(faults) == 1)
    ]
    shown = repr(first["input"])
    if len(shown) > 80:
        shown = shown[:77] + "..."
    return OptionError(
        f"{path!r} in {where} is {shown}.",
        remedy=f"It must be {' or '.join(dict.fromkeys(wanted))}.",
    )
