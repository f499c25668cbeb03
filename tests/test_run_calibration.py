"""``ppap run --calibration``: a guide that is as sure as it is right, by what was fitted before."""

from __future__ import annotations

import json
import math
from pathlib import Path

from typer.testing import CliRunner

from ppap_host.cli import app
from ppap_host.experts.calibration import Calibration, RangeCalibration
from ppap_host.experts.patches import network_hash
from ppap_host.experts.sets import View
from ppap_host.files.errors import OptionError
from ppap_host.plugins.loading import load_guide
from ppap_host.plugins.registry import registry


def written(folder: Path, factor: float, view: View = "predicted") -> Path:
    """A calibration of the shipped classifier, the same factor at all levels."""
    guide = load_guide(registry(), "classifier")
    flat = RangeCalibration(-math.inf, math.inf, factor, 10, *[0.5] * 9)
    calibration = Calibration("classifier", network_hash(guide.network()), view, (flat,))
    folder.mkdir(exist_ok=True)
    calibration.save(folder / "calibration.json")
    return folder


def run(out: Path, options: list[str]) -> dict[str, object]:
    command = f"run --guide classifier --recipe x0 --steps 2 --num 1 --out {out} --json"
    outcome = CliRunner().invoke(app, [*command.split(), *options])
    assert outcome.exit_code == 0, outcome.output
    record: dict[str, object] = json.loads(outcome.stdout)
    return record


def pixels(record: dict[str, object]) -> str:
    images = record["images"]
    assert isinstance(images, list)
    return str(images[0]["pixels_sha256"])


def test_a_calibration_changes_how_sure_the_guide_is_and_is_on_record(tmp_path: Path) -> None:
    name = load_guide(registry(), "classifier").guide.labels.names[0]  # type: ignore[attr-defined]
    given = ["--target", name]
    plain = run(tmp_path / "a", given)
    neutral = run(tmp_path / "b", [*given, "--calibration", str(written(tmp_path, 1.0))])
    assert pixels(plain) == pixels(neutral)
    modest = run(tmp_path / "c", [*given, "--calibration", str(written(tmp_path, 0.2))])
    assert pixels(plain) != pixels(modest)
    files = modest["model_files"]
    assert isinstance(files, dict) and any("classifier-calibration" in key for key in files)


def test_a_calibration_of_another_view_or_guide_is_refused(tmp_path: Path) -> None:
    noised = written(tmp_path / "noised", 1.0, "noised")
    command = "run --guide classifier --target cone --recipe x0 --steps 2 --num 1"
    given = [*command.split(), "--calibration", str(noised), "--out", str(tmp_path / "d")]
    error = CliRunner().invoke(app, given).exception
    assert isinstance(error, OptionError) and "noised images" in error.message
    assert not (tmp_path / "d").exists()
