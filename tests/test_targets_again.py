"""Targets are made again from their copies: masks of a class, heads, and what was in memory."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ppap_host as ppap
from ppap_host.files.errors import PpapError


def disc() -> np.ndarray:
    y, x = np.mgrid[:64, :64]
    return (y - 30) ** 2 + (x - 34) ** 2 < 15**2


def depth() -> np.ndarray:
    return np.repeat(np.linspace(1, 8, 64)[:, None], 64, 1)


def test_a_run_is_repeated_after_its_files_have_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    layer = np.zeros((64, 64, 4), np.uint8)
    layer[disc()] = (255, 0, 0, 255)
    Image.fromarray(layer).save("layer.png")
    guides = [
        ppap.guidance("segmentation", target="cone=layer.png"),
        ppap.guidance("depth", target=ppap.target(depth(), "disparity")),
    ]
    first = ppap.sample("shapes", guides, num=1, steps=2, out="run")
    rows = json.loads(Path("run/run.json").read_text())["targets"]
    assert [row["given"] for row in rows] == [
        "cone=layer.png", "disparity:an array in memory, 64 x 64, float64",
    ]  # fmt: skip
    assert rows[0]["understood"].startswith("mask with 17 % white from 'layer.png' (PNG)")
    assert rows[1]["understood"].startswith("disparity (larger is nearer) from an array in memory")
    assert first.warnings == []
    Path("layer.png").unlink()
    again = ppap.rerun("run")
    pixels = [result.record["images"][0]["pixels_sha256"] for result in (first, again)]
    assert pixels[0] == pixels[1]

    # A record from elsewhere does not say which files are read.
    record = json.loads(Path("run/run.json").read_text())
    Image.fromarray(layer).save("private.png")
    record["config"]["guides"][0]["target"] = "cone=private.png"
    Path("run/run.json").write_text(json.dumps(record))
    with pytest.raises(PpapError, match="does not hold it"):
        ppap.rerun("run")


def test_what_is_doubted_is_warned_of() -> None:
    result = ppap.sample("shapes", ppap.guidance("depth", target=depth()), num=1, steps=2)
    assert "was taken for depth" in result.warnings[0]
    assert result.record["targets"][0]["understood"].startswith("depth (larger is farther)")
