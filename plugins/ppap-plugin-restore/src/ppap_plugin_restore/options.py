"""What ``--model`` says of a measurement: ``key=value,key=value``."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

from ppap_host.files.errors import OptionError, foreign, nearest

_ANSWERS = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}


class Options:
    """The options of one guide, each read by a method that checks it.

    A comma only separates options where ``key=`` follows it, so that paths may contain commas.

    Args:
        guide: its name, for messages.
        text: the --model option; None or "" is all defaults.
        known: the keys that the guide has.

    Raises:
        OptionError: a key is unknown or is given twice, or there is something else than options.
    """

    def __init__(self, guide: str, text: str | None, known: Sequence[str]) -> None:
        self.guide = guide
        self._values: dict[str, str] = {}
        for part in re.split(r",(?=\s*[\w-]+\s*=)", text or ""):
            if not part.strip():
                continue
            key, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals or not value:
                raise OptionError(
                    f"--model {part.strip()!r} is no option of the guide {guide!r}.",
                    remedy="This guide has no network to name. Write options as key=value, with "
                    f"commas between them; there are {', '.join(known)}.",
                )
            if key not in known:
                close = nearest(key, known, 1)
                raise OptionError(
                    f"--model gives the option {key!r}, which the guide {guide!r} does not have.",
                    remedy=(f"Did you mean {close[0]!r}? " if close else "")
                    + f"Known: {', '.join(known)}.",
                )
            if key in self._values:
                raise OptionError(
                    f"--model gives the option {key!r} twice.", remedy="Leave out one of them."
                )
            self._values[key] = value

    def __contains__(self, key: str) -> bool:
        """Whether the user gave it."""
        return key in self._values

    def whole(self, key: str, default: int, low: int) -> int:
        """A whole number from ``low`` on.

        Raises:
            OptionError: it is none.
        """
        value = self._values.get(key, str(default))
        if not value.isdecimal() or int(value) < low:
            raise self._wrong(key, f"Give a whole number from {low} on, such as {key}={default}.")
        return int(value)

    def number(self, key: str, default: float, low: float, high: float = math.inf) -> float:
        """A finite number between ``low`` and ``high``, these included.

        Raises:
            OptionError: it is none.
        """
        try:
            value = float(self._values.get(key, default))
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and low <= value <= high):
            bounds = f"from {low:g} to {high:g}" if math.isfinite(high) else f"from {low:g} on"
            bounds = bounds if math.isfinite(low) else "that is finite"
            raise self._wrong(key, f"Give a number {bounds}, such as {key}={default:g}.")
        return value

    def flag(self, key: str) -> bool:
        """yes or no; no if it is not given.

        Raises:
            OptionError: it is neither.
        """
        value = self._values.get(key, "no").lower()
        if value not in _ANSWERS:
            raise self._wrong(key, f"Give {key}=yes or leave it out.")
        return _ANSWERS[value]

    def path(self, key: str) -> Path | None:
        """A file that exists; None if it is not given.

        Raises:
            OptionError: there is no such file.
        """
        if key not in self._values:
            return None
        # os.path, because Path.is_file raises for names that are too long.
        if not os.path.isfile(self._values[key]):
            raise self._wrong(key, "There is no such file; check the path.")
        return Path(self._values[key])

    def _wrong(self, key: str, remedy: str) -> OptionError:
        value = self._values[key]
        return OptionError(
            f"--model {foreign(f'{key}={value}')} makes no sense to the guide {self.guide!r}.",
            remedy=remedy,
        )
