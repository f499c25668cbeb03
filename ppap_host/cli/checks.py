"""What can be told without torch: the files that a command names are there, and what they are for.

A slip of the pen is answered at once, not after libraries and models were loaded. What is inside a
file is judged by whoever reads it; of an expert set the header says for which guide it is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ppap_host.files.errors import (
    CheckpointError,
    DeviceError,
    OptionError,
    OutputError,
    PpapError,
    unknown_name,
)
from ppap_host.files.reading import PICTURE_ENDINGS, Document, local_path, require_regular

if TYPE_CHECKING:
    from ppap_host.plugins.registry import Registry
    from ppap_host.runs.config import GuideConfig, RunConfig

_WEIGHTS = (".bin", ".ckpt", ".npz", ".pkl", ".pt", ".pth", ".safetensors")
DTYPES = ("float32", "bfloat16", "float16")
_HERE = ("/", "./", "../", "~/", ".\\", "..\\")


def is_path(text: str, endings: tuple[str, ...] = ()) -> bool:
    """Whether a text can be nothing but a path: it begins as one, or ends as such files do."""
    if "://" in text or text.startswith(("http:", "https:")):
        return False
    return text.startswith(_HERE) or text.lower().endswith(endings)


def check_folder(folder: Path, holds: str, error: type[PpapError], remedy: str) -> None:
    """Whether there is a folder with this file.

    Raises:
        PpapError: of the class ``error``.
    """
    if not os.path.isdir(folder):
        raise error(f"There is no folder {str(folder)!r}.", remedy=remedy)
    if not os.path.isfile(folder / holds):
        raise error(f"There is no {holds} in {str(folder)!r}.", remedy=remedy)


def check_new(out: Path, holds: str, what: str) -> None:
    """Whether results may be written to this folder.

    Args:
        holds: the file by which a folder is known that holds others already.
        what: they are.

    Raises:
        OutputError: it is a file, or holds such results.
    """
    if os.path.exists(out) and not os.path.isdir(out):
        raise OutputError(f"{str(out)!r} is a file.", remedy="Give a folder with --out.")
    if os.path.exists(out / holds):
        raise OutputError(
            f"The folder {str(out)!r} already holds {what}.",
            remedy="Give another folder with --out; nothing is overwritten.",
        )


def check_picture(out: Path) -> None:
    """Whether a picture may be written as this file: it is new, or another picture takes its place.

    Raises:
        OutputError: it is something else, which would be lost.
    """
    from ppap_host.files.writing import PNG

    if os.path.isdir(out):
        raise OutputError(f"{str(out)!r} is a folder.", remedy="Give a file with --out.")
    if os.path.isfile(out) and os.path.getsize(out):
        with open(out, "rb") as file:
            if file.read(len(PNG)) != PNG:
                raise OutputError(
                    f"{str(out)!r} is no PNG, and would be lost.",
                    remedy="Give another file with --out.",
                )


def check_run(config: RunConfig, found: Registry, moved: Mapping[str, str]) -> None:
    """Whether everything that a run names exists.

    Args:
        moved: of a run that is repeated, its files: path as given -> path now.

    Raises:
        PpapError: something does not.
    """
    from ppap_host.runs.config import check_names, code_of

    check_names(config, found)
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", config.device):
        raise DeviceError(
            f"Unknown device {config.device!r}.", remedy="Give auto, cpu, cuda, cuda:N or mps."
        )
    if config.dtype not in DTYPES:
        raise unknown_name("dtype", config.dtype, DTYPES)
    for guide in config.guides:
        code = code_of(guide.steers)
        if code is not None:
            remedy = "Give FILE.py:NAME, a guide or a function in a file."
            require_regular(code[0], OptionError, remedy)
    for given in (config.image, config.mask):
        if isinstance(given, str | Mapping):
            _check_picture(given, moved)
    check_weights(config.checkpoint)
    for guide in config.guides:
        for target in guide.target if isinstance(guide.target, tuple) else (guide.target,):
            is_file = isinstance(target, str) and is_path(_behind_head(target), PICTURE_ENDINGS)
            if is_file or isinstance(target, Mapping):
                _check_picture(target, moved)
        check_weights(guide.model)
        if guide.calibration is not None:
            _check_calibration(Path(guide.calibration))
        _check_experts(guide, found)


_HEAD = re.compile(r"\A[a-z][a-z-]*(,\s*[\w-]+\s*=[^,:]*)*:(?=.)")
"""What says before a colon how the file behind it is to be read."""


def _behind_head(text: str) -> str:
    return text if os.path.exists(text) else _HEAD.sub("", text, count=1)


def _check_picture(given: str | Mapping[str, object], moved: Mapping[str, str]) -> None:
    """Whether a file, or that of a table, begins as a picture or a map does.

    Raises:
        TargetError: it does not, or cannot be read.
    """
    from ppap_host.files.decoding import check_header

    text = given if isinstance(given, str) else str(given.get("path") or ".")
    for path in (text, _behind_head(text)):
        path = local_path(path)
        if path in moved:
            check_header(Path(moved[path]))
            return
    if os.path.exists(path) or "=" not in path:  # else CLASS=FILE, which its guide looks at
        check_header(Path(path))


def check_weights(text: str | None) -> None:
    """Whether weights that can be nothing but a file or a folder are there.

    Raises:
        CheckpointError: they are not.
    """
    # What stands before a colon may name a library, or say which weights of several.
    if text is None or (":" in text and not text.startswith(_HERE)):
        return
    if is_path(text, _WEIGHTS) and not os.path.exists(text):
        raise CheckpointError(f"There is no file {text!r}.", remedy="Check the path.")


def _check_calibration(path: Path) -> None:
    remedy = "Give what `ppap calibrate` wrote, its folder or the file in it."
    if os.path.isdir(path):
        check_folder(path, "calibration.json", CheckpointError, remedy)
    else:
        require_regular(path, CheckpointError, remedy)


def _check_experts(guide: GuideConfig, found: Registry) -> None:
    name = guide.experts
    if name is None or name == "none":
        return
    if os.path.isdir(name):
        path = os.path.join(name, "experts.safetensors")
    elif os.path.exists(name) or os.sep in name or name.endswith(".safetensors"):
        path = name
    else:
        found.entry("expert set", name)
        return
    remedy = "Give a set of `ppap tune`: its folder or the file in it."
    said = Document("readable expert set", CheckpointError, remedy).header(path, "ppap")
    made_for = said.get("guide") if isinstance(said, dict) else None
    if isinstance(made_for, str) and isinstance(guide.steers, str) and made_for != guide.steers:
        raise CheckpointError(
            f"The experts in {name!r} are for the guide {made_for!r}, not {guide.steers!r}.",
            remedy=f"Use them with --guide {made_for}, or name other ones.",
        )
