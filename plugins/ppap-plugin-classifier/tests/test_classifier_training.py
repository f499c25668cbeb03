"""Training: every architecture becomes a folder that the guide loads, and four of them a study."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from ppap_plugin_classifier.guide import ClassifierGuide

from ppap_host.shapes.scenes import CLASS_NAMES


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = importlib.import_module("ppap_plugin_classifier.train")
    monkeypatch.setattr(module, "FRESH_COUNT", 8)
    return module


@pytest.mark.parametrize(
    ("arch", "activation"), [("resnet", "ReLU"), ("convnext", "GELU"), ("efficientnet", "SiLU")]
)
def test_each_architecture_is_loaded_as_it_was_trained(
    train: ModuleType, tmp_path: Path, arch: str, activation: str
) -> None:
    assert train.ARCHITECTURES[arch].activation == activation
    settings = train.Settings(arch, scenes=8, images=16, batch=8, width=0.5)
    report = train.run(tmp_path, tmp_path / "out", settings, torch.device("cpu"), "by hand")
    guide = ClassifierGuide(str(tmp_path / "out"))
    assert list(guide.labels.names) == list(CLASS_NAMES)
    network = guide.network()
    names = {type(module).__name__ for module in network.modules()}
    assert any(activation.lower() in name.lower() for name in names)
    assert report["parameters"] == sum(p.numel() for p in network.parameters())
    assert report["command"] == "by hand" and report["trained_on"]["images"] == 16
    assert guide.see(torch.zeros(2, 3, 64, 64)).shape == (2, 24)
    # Asked again, it is not trained anew.
    assert train.run(tmp_path, tmp_path / "out", settings, torch.device("cpu"), "") == report


def test_the_command_line_chooses_the_architecture(
    train: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    options = f"--work {tmp_path} --out {out} --arch efficientnet --scenes 8 --images 8 --batch 8"
    monkeypatch.setattr(sys, "argv", ["train", *options.split()])
    train.main()
    assert json.loads((out / "config.json").read_text())["architecture"] == "test_efficientnet"


def test_the_study_trains_what_is_missing_and_keeps_the_shipped_one(
    train: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    qualities = importlib.import_module("ppap_plugin_classifier.qualities")
    assert qualities.QUALITIES["shipped"] is None and len(qualities.QUALITIES) == 4
    tiny = {
        name: settings and train.Settings(settings.arch, 8, 8, 0.5, 8)
        for name, settings in qualities.QUALITIES.items()
    }
    monkeypatch.setattr(qualities, "QUALITIES", tiny)
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["qualities", "--work", str(tmp_path), "--out", str(out)])
    qualities.main()
    shown = capsys.readouterr().out
    for name in tiny:
        accuracy = json.loads((out / name / "measured.json").read_text())["measured"]["accuracy"]
        assert f"{name:10} {accuracy:.4f}" in shown
    shipped = (qualities.BUNDLED / "model.safetensors").read_bytes()
    assert (out / "shipped" / "model.safetensors").read_bytes() == shipped
    before = (out / "gelu" / "model.safetensors").stat().st_mtime_ns
    qualities.main()
    assert (out / "gelu" / "model.safetensors").stat().st_mtime_ns == before
