"""The names of a classifier's classes, and which of them a person means."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ppap_host.files.errors import TargetError, nearest

_SHOWN = 12
"""So many classes are listed in full when a name is unknown."""


def _plain(text: str) -> str:
    """Lower case, with single blanks where there are blanks, underscores or hyphens."""
    return re.sub(r"[\s_-]+", " ", text).strip().lower()


@dataclass(frozen=True)
class Labels:
    """What the classes are called.

    Attributes:
        names: one a class, in the order of the logits; synonyms are separated by commas.
        keys: further names of each class, such as WordNet's "n02099601"; empty if there are none.
        details: one explanation a class, for telling namesakes apart; empty if there are none.
    """

    names: Sequence[str]
    keys: Sequence[str] = ()
    details: Sequence[str] = ()

    @classmethod
    def numbered(cls, count: int) -> Labels:
        """For a checkpoint that does not say what its classes are."""
        return cls([f"class {index}" for index in range(count)])

    def __len__(self) -> int:
        return len(self.names)

    def short(self, index: int) -> str:
        """The first of a class's synonyms."""
        return self.names[index].split(",")[0].strip()

    def find(self, text: str) -> int:
        """The class that ``text`` names.

        A whole name comes first, then any of its synonyms or keys, then the number of a class.
        Upper and lower case, blanks, hyphens and underscores make no difference.

        Raises:
            TargetError: no class is called that, or several are, or the number is out of range.
        """
        wanted = _plain(text)
        hits = [k for k, name in enumerate(self.names) if _plain(name) == wanted]
        hits = hits or [k for k in range(len(self)) if wanted in self._also(k)]
        if len(hits) == 1:
            return hits[0]
        if hits:
            options = "; ".join(f"{k} is {self._explained(k)}" for k in hits)
            raise TargetError(
                f"The label {text!r} means {len(hits)} classes: {options}.",
                remedy="Give the number of the one you mean.",
            )
        if re.fullmatch(r"[+-]?[0-9]{1,99}", text.strip()):
            index = int(text)
            if 0 <= index < len(self):
                return index
            raise TargetError(
                f"There is no class {index}: the classifier has {len(self)}.",
                remedy=f"Give a number from 0 to {len(self) - 1} or the name of a class.",
            )
        raise TargetError(f"No class is called {text!r}.", remedy=self._suggestion(wanted))

    def _also(self, index: int) -> set[str]:
        also = {_plain(part) for part in self.names[index].split(",")}
        return also | {_plain(self.keys[index])} if self.keys else also

    def _explained(self, index: int) -> str:
        return self.details[index] if self.details else self.names[index]

    def _suggestion(self, wanted: str) -> str:
        known = {_plain(part): part.strip() for name in self.names for part in name.split(",")}
        close = [known[name] for name in nearest(wanted, known)]
        # "retriever" is far from "golden retriever" by its letters, not by its words.
        words = set(wanted.split())
        alike = [shown for name, shown in known.items() if words and words <= set(name.split())]
        close += alike[:3]
        hint = " or ".join(repr(name) for name in dict.fromkeys(close))
        hint = f"Did you mean {hint}? " if hint else ""
        if len(self) <= 2 * _SHOWN:
            there = f"Known: {', '.join(self.names)}."
        else:
            some = ", ".join(self.short(k) for k in range(3))
            there = f"There are {len(self)} classes, from {some} on; their numbers count from 0."
        return f"{hint}{there} The path of an image is a target as well."
