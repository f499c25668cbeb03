"""Any depth checkpoint loads by folder, is prepared as its processor does, and gives gradients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ppap_plugin_depth.guide import DepthGuide
from transformers import (
    BertConfig,
    BertModel,
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    DPTConfig,
    DPTForDepthEstimation,
    DPTImageProcessor,
    DPTModel,
    PreTrainedModel,
    ViTImageProcessor,
)

from ppap_host.files.errors import CheckpointError

SMALL_DPT: dict[str, Any] = dict(
    image_size=32, patch_size=16, hidden_size=16, num_hidden_layers=4, num_attention_heads=2,
    intermediate_size=32, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 8, 8],
    fusion_hidden_size=8,
)  # fmt: skip


def _alive(model: PreTrainedModel) -> PreTrainedModel:
    """With the usual small initial weights so small a network answers a constant to everything."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.xavier_normal_(parameter)
        if name in ("head.head.4.bias", "head.conv3.bias"):
            # Relative heads end in a ReLU.
            torch.nn.init.constant_(parameter, 1.0)
    return model


def _depth_anything(kind: str) -> DepthAnythingForDepthEstimation:
    backbone = Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, mlp_ratio=2, image_size=42,
        patch_size=14, out_indices=[1, 2, 3, 4], reshape_hidden_states=False,
        apply_layernorm=True,
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=backbone, patch_size=14, reassemble_hidden_size=16,
        neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8, head_hidden_size=8,
        depth_estimation_type=kind, max_depth=10 if kind == "metric" else 1,
    )  # fmt: skip
    return DepthAnythingForDepthEstimation(config)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("checkpoints")
    aspect = dict(keep_aspect_ratio=True, ensure_multiple_of=14)
    made = {
        "dpt": (
            DPTForDepthEstimation(DPTConfig(**SMALL_DPT)),
            DPTImageProcessor(size={"height": 32, "width": 32}),
        ),
        "relative": (
            _depth_anything("relative"),
            DPTImageProcessor(size={"height": 42, "width": 42}, **aspect),
        ),
        "metric": (
            _depth_anything("metric"),
            DPTImageProcessor(size={"height": 42, "width": 42}, **aspect),
        ),
    }
    for name, (model, processor) in made.items():
        _alive(model).save_pretrained(root / name)
        processor.save_pretrained(root / name)
    return {name: root / name for name in made}


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("dpt", (64, 64)),
        ("relative", (64, 64)),
        ("relative", (40, 72)),
        ("metric", (64, 64)),
        ("metric", (40, 72)),
    ],
)
def test_a_folder_gives_finite_gradients(
    folders: dict[str, Path], name: str, size: tuple[int, int]
) -> None:
    guide = DepthGuide(str(folders[name]))
    assert guide.metric == (name == "metric")
    torch.manual_seed(1)
    x = torch.rand(2, 3, *size).mul(2).sub(1).requires_grad_()
    with torch.no_grad():
        target = guide.see(torch.rand(1, 3, *size))
    losses = guide.loss(guide.see(x), target)
    assert losses.shape == (2,)
    (gradient,) = torch.autograd.grad(losses.sum(), x)
    assert torch.isfinite(gradient).all()
    assert gradient.flatten(1).norm(dim=1).min() > 0


def test_other_kinds_of_models_are_refused(tmp_path: Path) -> None:
    model = BertModel(BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        vocab_size=10,
    ))  # fmt: skip
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError):
        DepthGuide(str(tmp_path))


def test_backbone_without_depth_head_is_refused(tmp_path: Path) -> None:
    DPTModel(DPTConfig(**SMALL_DPT)).save_pretrained(tmp_path)
    DPTImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="lacks"):
        DepthGuide(str(tmp_path))


def test_strange_preprocessing_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folders["dpt"] / name).read_bytes())
    ViTImageProcessor(size={"longest_edge": 40}).save_pretrained(tmp_path)
    assert "longest_edge" in json.loads((tmp_path / "preprocessor_config.json").read_text())["size"]
    with pytest.raises(CheckpointError, match="longest_edge"):
        DepthGuide(str(tmp_path))
