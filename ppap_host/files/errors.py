"""The host's own exceptions.

Every error a user can cause is a :class:`PpapError`: it says what was wrong and where in its
message, and what to do about it in its :attr:`~PpapError.remedy`. The command line prints both on
standard error without a traceback and exits with :attr:`~PpapError.exit_code`. Both name options as
one types them there; where Python shows the exception, they are its arguments.
"""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterable
from typing import Any

from ppap_host.files.words import are_typed, in_python


class PpapError(Exception):
    """Base class of all errors that are the user's to mend.

    Args:
        message: what was wrong, naming the file, option or plugin. One that names options begins
            with one: ``--cfg 3 does nothing``.
        remedy: what to do about it, as an instruction. What is not the host's own words in it
            stands in quotes, or is :func:`foreign`.
    """

    exit_code = 2

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self._typed = are_typed()

    def __str__(self) -> str:
        message, remedy = self.message, self.remedy
        if not self._typed:
            message = in_python(message) if message.startswith("--") else message
            remedy = in_python(remedy)
        return f"{message} {remedy}".strip()


class OptionError(PpapError):
    """An option, or a combination of options, makes no sense."""


class TargetError(PpapError):
    """A guidance target cannot be read or means nothing to the guide."""


class UnknownNameError(PpapError):
    """A guide, backbone, recipe, sampler or label of this name does not exist."""


class PluginError(PpapError):
    """A plugin is broken, incompatible, or collides with another one."""


class CheckpointError(PpapError):
    """A model file is missing, damaged, or does not fit the model it was given for."""


class OutputError(PpapError):
    """Results cannot be written: no permission, no space, or something in the way."""


class RecordError(PpapError):
    """A run record cannot be read or does not describe a run."""


class DeviceError(PpapError):
    """The device or the number format asked for is not available on this machine."""


class SamplingError(PpapError):
    """An image could not be finished: something between the network and the file is not finite."""


class CheckpointWarning(UserWarning):
    """A model file was read, and something in it had to be chosen, guessed or left out."""


class DamageWarning(UserWarning):
    """Something on disk was damaged, and what was made of it is made again."""


class GuidanceWarning(UserWarning):
    """Guidance or teaching was asked for, and something of it did not take place."""


class PluginWarning(UserWarning):
    """A plugin works, but did something to the process that had to be undone."""


def foreign(text: str) -> str:
    """Text from outside for a remedy: in quotes where an option or a quote might be seen in it."""
    return repr(text) if re.search(r"--|`|(?<!\w)[bru]?['\"]", text) else text


def nearest(name: str, known: Iterable[str], count: int = 3, alike: float = 0.5) -> list[str]:
    """The known names most like ``name``, best first (empty when nothing comes close)."""
    lowered = {k.lower(): k for k in known}
    hits = difflib.get_close_matches(name.lower(), lowered, n=count, cutoff=alike)
    return [lowered[h] for h in hits]


def unknown_name(kind: str, name: Any, known: Iterable[str], extra: str = "") -> UnknownNameError:
    """An :class:`UnknownNameError` that suggests the nearest names and lists what there is.

    Args:
        name: what stands where a name should.
    """
    names = sorted(known)
    close = nearest(name, names) if isinstance(name, str) else []
    hint = f"Did you mean {' or '.join(repr(c) for c in close)}? " if close else ""
    there = f"Known: {', '.join(map(foreign, names))}." if names else f"No {kind} is installed."
    return UnknownNameError(
        f"Unknown {kind} {reprlib.repr(name)}.", remedy=f"{hint}{there} {extra}".strip()
    )
