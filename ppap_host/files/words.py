"""Options of the command line in errors, and what Python calls them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

ARGUMENTS = {
    name: name
    for name in ("guides", "out", "watch", "upsampler", "vae", "lora", "offload", "tiling")
} | {"class": "class_index", "guide": "guidance", "backbone_option": "backbone_options"}
"""Python's name of every option that is an argument there; configurations add their fields."""

_OPTION = re.compile(
    r"`[^`]*(?:`|$)"
    r"|(?<!\w)[bru]?(?P<mark>['\"])(?:\\.|(?!(?P=mark)).)*(?:(?P=mark)|$)"
    r"|the command line --\S+"
    r"|(?<![^\s(])--(?P<option>[a-z][a-z-]*)(?=[.,;:)]*(?:\s|$))",
    re.DOTALL,
)
_TYPED = [False]


def are_typed() -> bool:
    """Whether a command runs."""
    return _TYPED[-1]


@contextmanager
def typed() -> Iterator[None]:
    """While a command runs: errors of this time name options as they are typed, ever after."""
    _TYPED.append(True)
    try:
        yield
    finally:
        _TYPED.pop()


def in_python(text: str) -> str:
    """Text with options as arguments: --cfg-interval is `cfg_interval`.

    What is quoted stays as it is, and so do whole commands and what no function takes.
    """
    # Its fields are arguments, whatever was imported before the error.
    import_module("ppap_host.runs.config")

    def argument(found: re.Match[str]) -> str:
        name = ARGUMENTS.get((found["option"] or "").replace("-", "_"))
        return found[0] if name is None else f"`{name}`"

    return _OPTION.sub(argument, text)
