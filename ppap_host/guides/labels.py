"""The names of a network's classes, and which of them a person means."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from ppap_host.files.errors import TargetError, foreign, nearest

_NUMBER = re.compile("[+-]?[0-9]{1,99}")
_SHOWN = 12
"""So many classes are listed in full when a name is unknown."""


def plain(text: str) -> str:
    """A name as it is compared: in one Unicode form, without case, blanks where separators are.

    The form is NFKC, so that an accent that is written apart, a full-width letter and a ligature
    are what they look like; case is folded by Unicode's rules.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return re.sub(r"[\s_\-\u2010-\u2015]+", " ", folded).strip()


@dataclass(frozen=True)
class Labels:
    """What the classes are called.

    Attributes:
        names: one a class, in the order of the outputs; synonyms are separated by commas.
        keys: a further name of each class, such as WordNet's "n02099601"; empty if there are none.
        synonyms: further names of each class; empty if there are none.
        details: one explanation a class, for telling namesakes apart; empty if there are none.
    """

    names: Sequence[str]
    keys: Sequence[str] = ()
    synonyms: Sequence[Sequence[str]] = ()
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

    def find(self, text: str, else_: str = "") -> int:
        """The class that ``text`` names.

        A class's name and its parts between commas come first, then its key and further synonyms,
        then the number of a class. Upper and lower case, Unicode's forms, blanks, hyphens and
        underscores make no difference.

        Args:
            else_: what would also do, for the remedy.

        Raises:
            TargetError: no class is called that, or several are, or the number is out of range.
        """
        hits = self.matches(text)
        if len(hits) == 1:
            return hits[0]
        if hits:
            shown = [f"{k} is {self._explained(k)}" for k in hits[:5]] + ["..."] * (len(hits) > 5)
            raise TargetError(
                f"The label {text!r} means {len(hits)} classes: {'; '.join(shown)}.",
                remedy="Give the number of the one you mean.",
            )
        if _NUMBER.fullmatch(text.strip()):
            raise TargetError(
                f"There is no class {int(text)}: the network has {len(self)}.",
                remedy=f"Give a number from 0 to {len(self) - 1} or the name of a class.",
            )
        raise TargetError(
            f"No class is called {text[:100]!r}.",
            remedy=f"{self._suggestion(plain(text))} {else_}".strip(),
        )

    def matches(self, text: str) -> list[int]:
        """The classes that ``text`` names by the rules of :meth:`find`: none, one or several."""
        wanted = plain(text)
        hits = [k for k in range(len(self)) if wanted in self._called(k)]
        hits = hits or [k for k in range(len(self)) if wanted in self._also_called(k)]
        if not hits and _NUMBER.fullmatch(text.strip()) and 0 <= int(text) < len(self):
            hits = [int(text)]
        return hits

    def _called(self, index: int) -> set[str]:
        whole = self.names[index]
        return {plain(name) for name in (whole, *whole.split(","))} - {""}

    def _also_called(self, index: int) -> set[str]:
        also = (self.synonyms[index] if self.synonyms else (), self.keys[index : index + 1])
        return {plain(name) for names in also for name in names} - {""}

    def _explained(self, index: int) -> str:
        return self.details[index] if self.details else self.names[index]

    def _suggestion(self, wanted: str) -> str:
        known = {plain(part): part.strip() for name in self.names for part in name.split(",")}
        close = [known[name] for name in nearest(wanted, known)]
        # "retriever" is far from "golden retriever" by its letters, not by its words.
        words = set(wanted.split())
        alike = [shown for name, shown in known.items() if words and words <= set(name.split())]
        close += alike[:3]
        hint = " or ".join(repr(name) for name in dict.fromkeys(close))
        hint = f"Did you mean {hint}? " if hint else ""
        if len(self) <= 2 * _SHOWN:
            return f"{hint}Known: {', '.join(map(foreign, self.names))}."
        some = ", ".join(foreign(self.short(k)) for k in range(3))
        return f"{hint}There are {len(self)} classes, from {some} on; their numbers count from 0."
