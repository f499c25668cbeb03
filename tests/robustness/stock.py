"""Sound documents of every kind, small, to be spoilt by cases."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save

HEX = "0" * 64
_LONG = "@long"
"""Stands for a number that Python itself would not write."""

RUN: dict[str, Any] = {
    "format": 1,
    "config": {
        "backbone": "shapes", "num": 1, "steps": 1, "seed": 3, "device": "cpu",
        "guides": [{"name": "classifier", "target": "red cube", "experts": "none", "recipe": "x0"}],
    },
    "status": "complete",
    "images": [{
        "index": 0, "file": "00000.png", "pixels_sha256": HEX,
        "measures": {"classifier": {"right": 1.0}},
    }],
    "targets": [],
    "versions": {"torch": "2.0"},
    "model_files": {"shapes/config.json": HEX},
    "device": "cpu",
    "machine": "x86_64",
    "threads": 1,
}  # fmt: skip
"""A record that ``ppap rerun`` takes; its image is another, so it exits with 1."""

HARVEST: dict[str, Any] = {
    "format": 1,
    "config": {
        "backbone": "shapes", "checkpoint": None, "backbone_options": {}, "num": 4, "prompts": [],
        "cfg": None, "steps": 1, "sampler": "ddim", "eta": 0.0, "seed": 0, "shard": 2, "batch": 2,
        "device": "cpu", "dtype": "float32",
    },
    "model_files": {"shapes/config.json": HEX},
    "versions": {"torch": "2.0"},
}  # fmt: skip

_RANGE = {
    "low": None, "high": 0.0, "inverse_temperature": 1.0, "count": 10, "accuracy": 0.5,
    "confidence": 0.5, "confidence_after": 0.5, "ece": 0.1, "ece_after": 0.1, "smooth_ece": 0.1,
    "smooth_ece_after": 0.1, "ece_error": 0.01, "ece_error_after": 0.01,
    "bins": [[5.0, 0.5, 0.5]], "bins_after": [[5.0, 0.5, 0.5]],
}  # fmt: skip
CALIBRATION: dict[str, Any] = {
    "format": 1, "guide": "classifier", "network_sha256": HEX, "view": "predicted",
    "experts": None, "experts_sha256": None,
    "ranges": [_RANGE, _RANGE | {"low": 0.0, "high": None}], "truth": "teacher",
}  # fmt: skip

_ENDS = {"distance": 0.1, "standard_error": 0.01}
TUNING: dict[str, Any] = {
    "guide": "classifier", "experts": "experts.safetensors", "ranges": [[-9.0, 0.0], [0.0, 9.0]],
    "quality": [{"range": ["-9.0", "0.0"], "expert": _ENDS, "off_the_shelf": _ENDS}] * 2,
    "history": [{"step": k, "loss": [None, 0.5], "held_out": [0.2, 0.1]} for k in (0, 50)],
}  # fmt: skip

SEARCH: dict[str, Any] = {
    "format": 1, "settings": {"run": {"num": 4}},
    "unguided": {
        "score": 0.5, "measured": {"measure": 0.5, "distance": None, "cost": 0.0}, "error": None,
        "details": {"right": 0.5},
    },
    "trials": [{
        "number": 0, "values": {"scale": 1.0}, "problem": None, "seconds": 1.0,
        "judged": {
            "score": 0.5, "measured": {"measure": 0.5, "distance": 0.5, "cost": 1.0}, "error": 0.1,
            "details": {"right": 0.5},
        },
    }],
    "best": 0, "command": "ppap run", "seconds": 1.0,
}  # fmt: skip

SET: dict[str, Any] = {
    "format": 1, "ranges": [["-inf", "0.0"], ["0.0", "inf"]], "scalings": [1.0, 1.0],
    "guide": "classifier", "network_sha256": HEX, "image_size": [64, 64], "view": "noised",
    "method": "patch", "rank": 4, "model": None, "licence": "Apache-2.0",
    "backbone": {"name": "shapes", "files": {"shapes/config.json": HEX}},
    "tuning": {"steps": 10}, "harvest": {"kind": "harvest", "backbone": "shapes"},
    "quality": [{"expert": _ENDS, "off_the_shelf": _ENDS, "error": 0.5}] * 2,
    "versions": {"torch": "2.0"},
    "trainable": {"per_expert": 8, "total": 16, "network": 100}, "merged_from": [],
}  # fmt: skip
TENSORS = {f"expert.{i}.head.bias": torch.zeros(8) for i in range(2)}


def text_of(values: Any) -> bytes:
    """As JSON, whatever it holds."""
    return json.dumps(values).replace(f'"{_LONG}"', "9" * 5000).encode()


@cache
def png() -> bytes:
    """A small picture."""
    import io

    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, "PNG")
    return buffer.getvalue()


def record(folder: Path, values: Any = RUN) -> None:
    """``run.json``."""
    (folder / "run.json").write_bytes(text_of(values))


def harvest(folder: Path, values: Any = HARVEST) -> None:
    """A harvest in ``h``, its images being noise."""
    (folder / "h").mkdir()
    (folder / "h" / "harvest.json").write_bytes(text_of(values))
    for i in range(2):
        pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
        (folder / "h" / f"images-{i:05d}.safetensors").write_bytes(save({"rgb": pixels}))


def expert_set(folder: Path, values: Any = SET, tensors: Any = None) -> None:
    """``set.safetensors``."""
    tensors = TENSORS if tensors is None else tensors
    header = {"ppap": values if isinstance(values, str) else text_of(values).decode()}
    (folder / "set.safetensors").write_bytes(save(tensors, header))


def calibration(folder: Path, values: Any = CALIBRATION) -> None:
    """``calibration.json``."""
    (folder / "calibration.json").write_bytes(text_of(values))


def tuning(folder: Path, values: Any = TUNING) -> None:
    """``tuning.json``."""
    (folder / "tuning.json").write_bytes(text_of(values))


def search(folder: Path, values: Any = SEARCH) -> None:
    """``w/search.json``."""
    (folder / "w").mkdir()
    (folder / "w" / "search.json").write_bytes(text_of(values))


def nested(depth: int) -> Any:
    """Lists within lists."""
    found: Any = []
    for _ in range(depth):
        found = [found]
    return found


WRONG: dict[str, Any] = {
    "null": None, "true": True, "minus": -1, "half": 0.5, "huge": 10**400, "long": _LONG,
    "not a number": float("nan"), "text": "x", "half a character": "\ud800", "list": [],
    "table": {}, "deep": nested(150), "markup": "[/red]\x1b[31m\n",
}  # fmt: skip
"""What stands where something else should."""


def spoilt(document: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every document with one value left out or replaced, named by where and by what."""
    parts = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in parts:
        place = f"{path}.{key}".removeprefix(".")
        rest = {k: v for k, v in parts if k != key} if isinstance(document, dict) else None
        if isinstance(document, dict):
            yield f"{place} left out", rest
        for name, wrong in WRONG.items():
            yield f"{place} is {name}", _with(document, key, wrong)
        if isinstance(value, dict | list):
            for name, inner in spoilt(value, place):
                yield name, _with(document, key, inner)


def _with(document: Any, key: Any, value: Any) -> Any:
    if isinstance(document, dict):
        return {**document, key: value}
    return [value if k == key else v for k, v in enumerate(document)]
