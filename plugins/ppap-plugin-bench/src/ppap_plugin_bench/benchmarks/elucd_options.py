"""What ``ppap bench elucd`` can be asked, for the command line too: imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ppap_host.files.errors import OptionError

PARTS = {
    "ablation": "each part of EluCD added in turn",
    "grid": "one setting of elucd changed at a time",
    "classifiers": "calibration and guidance of several classifiers",
}
"""Parts of the benchmark."""

SHIPPED = "shipped"
"""Name of the classifier that the guide comes with."""


def named_models(texts: Sequence[str]) -> dict[str, str]:
    """Name -> folder, from FOLDER or NAME=FOLDER, several separated by commas.

    A folder without a name is called after itself.

    Raises:
        OptionError: a name is empty, comes twice, or is that of the shipped classifier.
    """
    found: dict[str, str] = {}
    for text in (part for given in texts for part in given.split(",")):
        name, equals, folder = text.partition("=")
        if not equals:
            name, folder = Path(text).name, text
        if not name or not folder:
            raise OptionError(f"--model {text!r} has no name.", remedy="Give NAME=FOLDER.")
        if name == SHIPPED:
            raise OptionError(
                f"--model {text!r}: the classifier {SHIPPED!r} is there already.",
                remedy="Leave it out, or give another one another NAME=FOLDER.",
            )
        if name in found:
            raise OptionError(
                f"--model has two classifiers {name!r}.", remedy="Give each its own NAME=FOLDER."
            )
        found[name] = folder
    return found
