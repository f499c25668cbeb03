"""Class names for a classifier whose checkpoint holds none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ppap_host.files.errors import CheckpointError, TargetError, nearest


class Labels:
    """What the classes are called, and which one a person means.

    Args:
        names: one a class in the order of the logits, synonyms separated by commas; none where
            classes have numbers only.
        count: number of classes.
    """

    def __init__(self, names: Sequence[str], count: int) -> None:
        self.names, self.count = tuple(names), count

    @classmethod
    def beside(cls, model: Path, count: int) -> tuple[Labels, tuple[Path, ...]]:
        """Names from ``<model>.txt``, one class a line, if there is such a file, and the file.

        Raises:
            CheckpointError: it cannot be read, or does not have one line for each class.
        """
        path = model.with_name(f"{model.name}.txt")
        if not path.exists():
            return cls((), count), ()
        try:
            names = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path}: the class names cannot be read.") from error
        if len(names) != count:
            raise CheckpointError(
                f"{path}: {len(names)} class names for {count} classes.",
                remedy="Write one line for each class, in the order of their numbers.",
            )
        return cls(names, count), (path,)

    def short(self, index: int) -> str:
        """A class's first name, or its number."""
        return self.names[index].split(",")[0].strip() if self.names else f"class {index}"

    def find(self, text: str) -> int:
        """The class of this name, in any case, or of this number.

        Raises:
            TargetError: there is none, or several have the name.
        """
        wanted = _plain(text)
        hits = [k for k, name in enumerate(self.names) if wanted in map(_plain, name.split(","))]
        if len(hits) == 1:
            return hits[0]
        if hits:
            raise TargetError(
                f"Classes {', '.join(map(str, hits))} are all called {text!r}.",
                remedy="Give the number of the one you mean.",
            )
        if wanted.isascii() and wanted.isdigit() and len(wanted) < 10:
            if int(wanted) < self.count:
                return int(wanted)
            raise TargetError(
                f"There is no class {wanted}.", remedy=f"Give a number below {self.count}."
            )
        if not self.names:
            raise TargetError(
                f"The classifier knows its classes by their numbers, not as {text!r}.",
                remedy=f"Give a number below {self.count}, or class names beside the model "
                "(<model>.txt, one line a class).",
            )
        known = [part.strip() for name in self.names for part in name.split(",")]
        close = nearest(text, known)
        raise TargetError(
            f"No class is called {text!r}.",
            remedy=(f"Did you mean {' or '.join(close)}? " if close else "")
            + f"Numbers below {self.count} are understood as well.",
        )


def _plain(text: str) -> str:
    return " ".join(text.replace("_", " ").lower().split())
