"""Weights alone, as trainings leave them: prefixes, other sizes, older names, other libraries."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from ppap_plugin_classifier.guide import ClassifierGuide
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision import models

from ppap_host.files.errors import CheckpointError

transformers = pytest.importorskip("transformers")

NAME = "mobilenetv3_small_050"
VIT = dict(patch_size=8, embed_dim=16, depth=2, num_heads=2)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    made: nn.Module = timm.create_model(NAME, num_classes=5).eval()
    return made


def same(guide: ClassifierGuide, network: nn.Module, side: int = 64) -> None:
    x = torch.rand(2, 3, side, side) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(guide.see(x), network(guide.prepare(x)))


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize("library", ["timm", "torchvision"])
@pytest.mark.parametrize("form", ["plain", "timm", "lightning", "module", "compiled"])
def test_what_a_training_saves_is_read_as_it_is(
    tmp_path: Path, network: nn.Module, library: str, form: str
) -> None:
    if library == "torchvision":
        torch.manual_seed(1)
        network = models.mobilenet_v3_small(num_classes=4).eval()
    state = network.state_dict()
    aside = {"epoch": 3, "args": argparse.Namespace(lr=0.1), "optimizer": {"state": {}}}
    other = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    content: dict[str, Any] = {
        "plain": state,
        "timm": {"state_dict": other, "state_dict_ema": state, **aside},
        "lightning": {"state_dict": prefixed("model.", state) | {"loss.w": torch.ones(1)}},
        "module": {"model": prefixed("module.", state), **aside},
        "compiled": prefixed("_orig_mod.", state),
    }[form]
    path = tmp_path / "last.ckpt"
    torch.save(content, path)
    architecture = NAME if library == "timm" else "torchvision:mobilenet_v3_small"
    guide = ClassifierGuide(f"{architecture}:{path}")
    same(guide, network)
    assert guide.files() == (path,)
    assert bool(guide.remarks()) == (form not in ("plain", "compiled"))


def test_a_home_is_the_users_own(
    tmp_path: Path, network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    same(ClassifierGuide(f"{NAME}:~/w.safetensors"), network)


def test_a_vit_of_another_size_is_made_for_that_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model("test_vit", num_classes=3, img_size=224).eval()
    usual = timm.get_pretrained_cfg("test_vit").input_size[-1]
    assert usual != 224
    save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    guide = ClassifierGuide(f"test_vit:{tmp_path / 'w.safetensors'}")
    assert guide.prepare(torch.zeros(1, 3, 64, 64)).shape[-2:] == (224, 224)
    same(guide, theirs)
    loaded = guide.network().state_dict()
    assert all(torch.equal(loaded[name], t) for name, t in theirs.state_dict().items())
    assert "224 x 224 pixels, not the usual" in " ".join(guide.remarks())


def test_weights_that_would_be_resampled_are_refused(tmp_path: Path) -> None:
    # A folder says its size, and the weights have another one.
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=48, **VIT)
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    config = {
        "architecture": "vit_tiny_patch16_224", "num_classes": 3,
        "model_args": {**VIT, "img_size": 32}, "pretrained_cfg": {"input_size": [3, 32, 32]},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"another size: 1 of them .*pos_embed"):
        ClassifierGuide(str(tmp_path))
    # Windows of a Swin cannot be told from its tables.
    swin = timm.create_model("swin_tiny_patch4_window7_224", num_classes=3, window_size=4)
    state = {k: v for k, v in swin.state_dict().items() if "relative_position_index" not in k}
    save_file(state, tmp_path / "swin.safetensors")
    with pytest.raises(CheckpointError, match=r"another size|do not fit"):
        ClassifierGuide(f"swin_tiny_patch4_window7_224:{tmp_path / 'swin.safetensors'}")


def test_an_older_name_of_timm_is_followed_and_said(tmp_path: Path) -> None:
    old = {o: n for o, n in timm.models.get_deprecated_models().items() if n is not None}
    name = next(o for o, n in old.items() if "mobilenet" in n or "efficientnet_b0" in n)
    now = old[name]
    theirs = timm.create_model(now.partition(".")[0], num_classes=3).eval()
    save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    guide = ClassifierGuide(f"{name}:{tmp_path / 'w.safetensors'}")
    assert f"timm calls {name!r} {now!r}" in " ".join(guide.remarks())
    same(guide, theirs)


def test_names_of_another_library_are_said_as_such(tmp_path: Path) -> None:
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        image_size=32, patch_size=8, num_labels=3,
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config)
    save_file(model.state_dict(), tmp_path / "hf.safetensors")
    for name in ("vit_tiny_patch16_224", "torchvision:vit_b_16"):
        with pytest.raises(CheckpointError, match="None of its") as caught:
            ClassifierGuide(f"{name}:{tmp_path / 'hf.safetensors'}")
        assert len(str(caught.value)) < 900
    # And the other way: timm's tensors where transformers' are described.
    model.save_pretrained(tmp_path / "folder")
    transformers.ViTImageProcessor(size=32).save_pretrained(tmp_path / "folder")
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32, **VIT)
    save_file(theirs.state_dict(), tmp_path / "folder" / "model.safetensors")
    with pytest.raises(CheckpointError, match="those of timm's transformers") as caught:
        ClassifierGuide(str(tmp_path / "folder"))
    assert len(str(caught.value)) < 600


def vit_folder(folder: Path) -> Any:
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        image_size=32, patch_size=8, num_labels=3,
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config).eval()
    model.save_pretrained(folder)
    transformers.ViTImageProcessor(size=32).save_pretrained(folder)
    return model


@pytest.mark.parametrize("prefix", ["module.", "model.", "net.model.", "_orig_mod.", "ema."])
def test_prefixes_in_a_folder_of_transformers_are_taken_off(tmp_path: Path, prefix: str) -> None:
    from safetensors.torch import load_file

    model = vit_folder(tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    save_file(prefixed(prefix, state), path, {"format": "pt"})
    guide = ClassifierGuide(str(tmp_path))
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(pixel_values=guide.prepare(x)).logits
        torch.testing.assert_close(guide.see(x), expected)
    assert prefix == "_orig_mod." or f"{prefix!r} is taken off" in " ".join(guide.remarks())
    # With averaged weights beside, those are taken.
    zeros = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    both = prefixed("model.", zeros) | prefixed("model_ema.module.", state)
    save_file(both, path, {"format": "pt"})
    with torch.no_grad():
        torch.testing.assert_close(ClassifierGuide(str(tmp_path)).see(x), expected)


def test_half_precision_alone_is_taken_and_said(tmp_path: Path) -> None:
    model = vit_folder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    model.half().save_pretrained(tmp_path, variant="fp16")
    assert (tmp_path / "model.fp16.safetensors").is_file()
    guide = ClassifierGuide(str(tmp_path))
    assert "half-precision" in " ".join(guide.remarks())
    assert {p.dtype for p in guide.network().parameters()} == {torch.float32}
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        expected = model.float()(pixel_values=guide.prepare(x)).logits
        torch.testing.assert_close(guide.see(x), expected)
    # A whole set beside it comes first.
    model.float().save_pretrained(tmp_path)
    guide = ClassifierGuide(str(tmp_path))
    assert guide.remarks() == () and "model.fp16.safetensors" not in {f.name for f in guide.files()}


def test_parts_of_half_precision_are_taken_and_those_of_pickles_are_not(tmp_path: Path) -> None:
    model = vit_folder(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    for name in ("pytorch_model-00001-of-00002.bin", "optimizer.pt", "training_args.bin"):
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match="only pickles in parts") as caught:
        ClassifierGuide(str(tmp_path))
    assert "save_pretrained" in caught.value.remedy
    parts = {name: f"model.fp16-0000{1 + k % 2}-of-00002.safetensors" for k, name in
             enumerate(state)}  # fmt: skip
    for part in set(parts.values()):
        save_file({k: v.half() for k, v in state.items() if parts[k] == part}, tmp_path / part)
    index = tmp_path / "model.safetensors.index.fp16.json"
    index.write_text(json.dumps({"weight_map": parts}))
    guide = ClassifierGuide(str(tmp_path))
    assert "half-precision" in " ".join(guide.remarks())
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        expected = model.half().float()(pixel_values=guide.prepare(x)).logits
        torch.testing.assert_close(guide.see(x), expected)


def test_weights_that_a_network_does_not_use_are_said(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    vit_folder(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file(load_file(path) | {"lora.weight": torch.ones(2)}, path, {"format": "pt"})
    assert "1 weights" in " ".join(ClassifierGuide(str(tmp_path)).remarks())


# What a folder may not decide


@pytest.mark.parametrize(
    "argument",
    [
        {"pretrained_cfg_overlay": {"url": "http://localhost:1/w.pth"}},
        {"pretrained_cfg_overlay": {"file": "/tmp/other.safetensors"}},
        {"checkpoint_path": "/tmp/other.pth"},
        {"pretrained_cfg": {"file": "/tmp/other.safetensors"}},
    ],
    ids=["address", "file", "checkpoint", "cfg"],
)
def test_weights_elsewhere_are_refused(
    tmp_path: Path, network: nn.Module, argument: dict[str, Any]
) -> None:
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": NAME, "num_classes": 5, "model_args": argument}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="weights that are elsewhere"):
        ClassifierGuide(str(tmp_path))


def test_what_timm_keeps_of_the_source_of_weights_is_not_followed(
    tmp_path: Path, network: nn.Module
) -> None:
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    other = timm.create_model(NAME, num_classes=5)
    save_file(other.state_dict(), tmp_path / "other.safetensors")
    cfg = {
        "url": "http://localhost:1/w.pth", "file": str(tmp_path / "other.safetensors"),
        "hf_hub_id": "timm/other", "source": "hf-hub", "custom_load": True, "state_dict": {"a": 1},
        "classifier": "classifier", "input_size": [3, 64, 64],
    }  # fmt: skip
    config = {"architecture": NAME, "num_classes": 5, "pretrained_cfg": cfg}
    (tmp_path / "config.json").write_text(json.dumps(config))
    same(ClassifierGuide(str(tmp_path)), network)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_classes": 10**12}, "13 digits|cannot be meant"),
        ({"num_classes": 10**8}, "are for 5 classes|far larger"),
        ({"architecture": "vit_tiny_patch16_224", "model_args": {"depth": 10**6}}, "be meant"),
        ({"architecture": "vit_tiny_patch16_224", "model_args": {"depth": 30_000}}, "far larger"),
        (
            {"architecture": "vit_tiny_patch16_224", "model_args": {"embed_dim": 3 * 10**6}},
            "far larger",
        ),
        ({"num_classes": -1}, "no classes"),
        ({"num_classes": 5.0}, "num_classes is no number"),
        ({"pretrained_cfg": {"input_size": "abc"}}, "not understood"),
        ({"pretrained_cfg": {"input_size": [3, 10**6, 10**6]}}, "cannot be meant"),
        ({"pretrained_cfg": {"std": [0, 0, 0]}}, "cannot be meant"),
        ({"pretrained_cfg": []}, ""),
    ],
    ids=range(11),
)
def test_numbers_that_cannot_be_meant_are_refused(
    tmp_path: Path, network: nn.Module, change: dict[str, Any], words: str
) -> None:
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": NAME, "num_classes": 5, **change}
    (tmp_path / "config.json").write_text(json.dumps(config))
    if not words:
        same(ClassifierGuide(str(tmp_path)), network)
        return
    with pytest.raises(CheckpointError, match=words):
        ClassifierGuide(str(tmp_path))
