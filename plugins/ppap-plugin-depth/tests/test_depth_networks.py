"""The published kinds of depth networks: maps, metres, preprocessing, sizes and experts."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from ppap_plugin_depth.checkpoint import predicts_metres
from ppap_plugin_depth.guide import DepthGuide
from transformers import (
    AutoImageProcessor,
    AutoModelForDepthEstimation,
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    DepthProConfig,
    DPTConfig,
    DPTForDepthEstimation,
    DPTImageProcessor,
    GLPNConfig,
    GLPNForDepthEstimation,
    GLPNImageProcessor,
    PreTrainedModel,
    ZoeDepthConfig,
    ZoeDepthForDepthEstimation,
    ZoeDepthImageProcessor,
)

from ppap_host.experts.patches import Patch, network_hash
from ppap_host.files.errors import CheckpointError
from ppap_host.files.images import to_tensor
from ppap_host.guides.guide import default_patch_plan

FUSION: dict[str, Any] = dict(neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8)
VIT: dict[str, Any] = dict(
    hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32,
    backbone_out_indices=[0, 1, 2, 3], **FUSION,
)  # fmt: skip
BEIT: dict[str, Any] = dict(
    model_type="beit", image_size=32, patch_size=8, num_hidden_layers=4, hidden_size=16,
    intermediate_size=32, num_attention_heads=2, use_relative_position_bias=True,
    reshape_hidden_states=False, out_features=["stage1", "stage2", "stage3", "stage4"],
)  # fmt: skip
# As in Intel/dpt-hybrid-midas, whose configuration does not say that this is BiT.
BIT: dict[str, Any] = dict(
    depths=[1, 1, 1], embedding_dynamic_padding=True, global_padding="same",
    layer_type="bottleneck", out_features=["stage1", "stage2", "stage3"], embedding_size=8,
    hidden_sizes=[16, 32, 64], num_groups=4,
)  # fmt: skip


def _dpt() -> PreTrainedModel:
    return DPTForDepthEstimation(DPTConfig(image_size=32, patch_size=8, **VIT))


def _hybrid() -> PreTrainedModel:
    return DPTForDepthEstimation(DPTConfig(
        is_hybrid=True, image_size=64, patch_size=16, backbone_featmap_shape=[1, 64, 4, 4],
        backbone_config=dict(BIT), reassemble_factors=[1, 1, 1, 0.5], neck_ignore_stages=[0, 1],
        **VIT | {"neck_hidden_sizes": [16, 32, 8, 8]},
    ))  # fmt: skip


def _dpt_beit() -> PreTrainedModel:
    return DPTForDepthEstimation(DPTConfig(
        backbone_config=dict(BEIT), is_hybrid=False, hidden_size=16, image_size=None, **FUSION
    ))  # fmt: skip


def _depth_anything(kind: str, stages: list[int], layers: int) -> PreTrainedModel:
    backbone = dict(
        model_type="dinov2", hidden_size=16, num_hidden_layers=layers, num_attention_heads=2,
        mlp_ratio=2, image_size=42, patch_size=14, out_indices=stages, reshape_hidden_states=False,
        apply_layernorm=True,
    )  # fmt: skip
    return DepthAnythingForDepthEstimation(DepthAnythingConfig(
        backbone_config=backbone, patch_size=14, reassemble_hidden_size=16, head_hidden_size=8,
        depth_estimation_type=kind, max_depth=20 if kind == "metric" else 1, **FUSION,
    ))  # fmt: skip


def _zoe(*heads: str) -> PreTrainedModel:
    bins = [
        dict(name=name, n_bins=8, min_depth=1e-3, max_depth=10.0 if name == "nyu" else 80.0)
        for name in heads
    ]
    return ZoeDepthForDepthEstimation(ZoeDepthConfig(
        backbone_config=dict(BEIT), bottleneck_features=8, num_relative_features=8,
        bin_embedding_dim=8, num_attractors=[4, 2, 2, 1], bin_configurations=bins,
        num_patch_transformer_layers=4, patch_transformer_hidden_size=128,
        patch_transformer_intermediate_size=16, patch_transformer_num_attention_heads=2, **FUSION,
    ))  # fmt: skip


def _glpn() -> PreTrainedModel:
    return GLPNForDepthEstimation(GLPNConfig(
        hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=8,
    ))  # fmt: skip


def _midas(side: int, multiple: int = 1, keep: bool = False) -> DPTImageProcessor:
    return DPTImageProcessor(
        size={"height": side, "width": side}, keep_aspect_ratio=keep, ensure_multiple_of=multiple
    )


def _zoe_processor() -> ZoeDepthImageProcessor:
    return ZoeDepthImageProcessor(size={"height": 32, "width": 48}, ensure_multiple_of=16)


KINDS: dict[str, tuple[Callable[[], PreTrainedModel], Callable[[], Any]]] = {
    "dpt": (_dpt, lambda: _midas(32)),
    "dpt-hybrid": (_hybrid, lambda: _midas(64)),
    "dpt-beit": (_dpt_beit, lambda: _midas(32, 16, keep=True)),
    "depth-anything": (
        lambda: _depth_anything("relative", [1, 2, 3, 4], 4), lambda: _midas(42, 14, keep=True)
    ),
    # The second version takes its features from all over the backbone.
    "depth-anything-v2": (
        lambda: _depth_anything("relative", [2, 4, 6, 8], 8), lambda: _midas(42, 14, keep=True)
    ),
    "depth-anything-v2-metric": (
        lambda: _depth_anything("metric", [2, 4, 6, 8], 8), lambda: _midas(42, 14, keep=True)
    ),
    "zoedepth-nyu": (lambda: _zoe("nyu"), _zoe_processor),
    "zoedepth-nyu-kitti": (lambda: _zoe("nyu", "kitti"), _zoe_processor),
    "glpn": (_glpn, GLPNImageProcessor),
}  # fmt: skip
METRIC = {"depth-anything-v2-metric", "zoedepth-nyu", "zoedepth-nyu-kitti", "glpn"}
KEEPS_ASPECT = {name for name in KINDS if name not in ("dpt", "dpt-hybrid")}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("depth")
    for name, (build, processor) in KINDS.items():
        model = build()
        for key, parameter in model.named_parameters():
            # The usual small initial weights make so small a network answer a constant.
            if parameter.ndim > 1:
                torch.nn.init.xavier_normal_(parameter)
            # Relative heads end in a ReLU.
            if key in ("head.head.4.bias", "head.conv3.bias"):
                torch.nn.init.constant_(parameter, 1.0)
        model.save_pretrained(root / name)
        processor().save_pretrained(root / name)
    # As Intel published it.
    path = root / "dpt-hybrid" / "config.json"
    config = json.loads(path.read_text())
    config["backbone_config"] = BIT
    path.write_text(json.dumps(config))
    return {name: str(root / name) for name in KINDS}


def _picture(size: tuple[int, int]) -> Image.Image:
    # Smooth, so that the processor's 8-bit rounding and clipping while resizing do not matter.
    coarse = np.random.default_rng(0).integers(60, 190, (6, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)


@pytest.mark.parametrize("size", [(64, 64), (256, 256), (40, 72)])
@pytest.mark.parametrize("name", KINDS)
def test_images_of_any_size_give_maps_and_gradients(
    folders: dict[str, str], name: str, size: tuple[int, int]
) -> None:
    guide = DepthGuide(folders[name])
    assert guide.metric == (name in METRIC)
    torch.manual_seed(1)
    x = torch.rand(2, 3, *size).mul(2).sub(1).requires_grad_()
    seen = guide.see(x)
    assert seen.ndim == 3 and len(seen) == 2 and seen.isfinite().all()
    if guide.metric:
        assert (seen > 0).all()
    with torch.no_grad():
        target = guide.see(torch.rand(1, 3, *size))
    losses = guide.loss(seen, target)
    (gradient,) = torch.autograd.grad(losses[0], x)
    assert gradient.isfinite().all()
    assert gradient[0].norm() > 0
    assert gradient[1].abs().max() == 0


@pytest.mark.parametrize("size", [(64, 64), (256, 256), (60, 90), (200, 150)])
@pytest.mark.parametrize("name", KINDS)
def test_it_answers_and_is_prepared_as_the_library_does(
    folders: dict[str, str], name: str, size: tuple[int, int]
) -> None:
    guide, image = DepthGuide(folders[name]), _picture(size)
    processor = AutoImageProcessor.from_pretrained(folders[name])
    # The guide leaves out ZoeDepth's mirrored border.
    options = {"do_pad": False} if name.startswith("zoedepth") else {}
    expected = processor(images=image, return_tensors="pt", **options)["pixel_values"].float()
    prepared = guide.prepare(to_tensor(image))
    assert prepared.shape == expected.shape
    # One 8-bit step, in units of the smallest standard deviation.
    torch.testing.assert_close(prepared, expected, atol=1.2 / 255 / 0.22, rtol=0)
    if name in KEEPS_ASPECT:
        height, width = prepared.shape[-2:]
        assert (height > width, height < width) == (size[0] > size[1], size[0] < size[1])
    library = AutoModelForDepthEstimation.from_pretrained(folders[name]).eval()
    with torch.no_grad():
        found = guide.network()(expected)
        torch.testing.assert_close(found, library(pixel_values=expected).predicted_depth)


@pytest.mark.parametrize("name", ["dpt", "dpt-hybrid"])
def test_a_dpt_is_shown_squares_whatever_its_processor_says(
    folders: dict[str, str], name: str, tmp_path: Path
) -> None:
    for file in Path(folders[name]).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    # The oldest files name the class so, and one side.
    old = dict(
        do_normalize=True, do_resize=True, ensure_multiple_of=16, resample=2, size=48,
        feature_extractor_type="DPTFeatureExtractor", image_mean=[0.5] * 3, image_std=[0.5] * 3,
        keep_aspect_ratio=True,
    )  # fmt: skip
    for settings, side in (
        (old, 48),
        ({**old, "do_resize": False}, 32),
        ({**old, "size": {"height": 48, "width": 32}}, 48),
    ):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
        guide = DepthGuide(str(tmp_path))
        shown = 64 if name == "dpt-hybrid" else side
        for size in ((64, 64), (40, 72), (90, 50)):
            x = torch.zeros(1, 3, *size)
            assert guide.prepare(x).shape[-2:] == (shown, shown)
            assert guide.see(x).isfinite().all()


def test_what_transformers_itself_cannot_run_is_refused(tmp_path: Path) -> None:
    """Its Depth Anything takes the registers of a DINOv2 for pixels."""
    model = _depth_anything("relative", [1, 2, 3, 4], 4)
    described = {**model.config.backbone_config.to_dict(), "model_type": "dinov2_with_registers"}
    model = DepthAnythingForDepthEstimation(
        DepthAnythingConfig(**{**model.config.to_dict(), "backbone_config": described})
    )
    with pytest.raises(RuntimeError, match="invalid for input"):
        model(torch.zeros(1, 3, 42, 42))
    model.save_pretrained(tmp_path)
    _midas(42, 14, keep=True).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="cannot run in its own library"):
        DepthGuide(str(tmp_path))


def test_no_largest_depth_means_one(folders: dict[str, str], tmp_path: Path) -> None:
    for file in Path(folders["depth-anything"]).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "max_depth": None}))
    x = torch.rand(1, 3, 42, 42)
    with torch.no_grad():
        expected = DepthGuide(folders["depth-anything"]).see(x)
        torch.testing.assert_close(DepthGuide(str(tmp_path)).see(x), expected)


def test_a_zoedepth_with_two_heads_sees_each_image_alone(folders: dict[str, str]) -> None:
    guide = DepthGuide(folders["zoedepth-nyu-kitti"])
    torch.manual_seed(0)
    x = torch.rand(6, 3, 48, 48) * 2 - 1
    inner = guide.network().model
    with torch.no_grad():
        pixels = guide.prepare(x)
        votes = inner(pixel_values=pixels).domain_logits  # type: ignore[union-attr,operator]
        # From now on the heads are of two minds.
        inner.metric_head.mlp_classifier.linear2.bias -= votes.mean(dim=0)  # type: ignore[union-attr,operator]
        votes = inner(pixel_values=pixels).domain_logits  # type: ignore[union-attr,operator]
        assert len(set(votes.argmax(dim=1).tolist())) == 2
        together = guide.see(x)
        alone = torch.cat([guide.see(one[None]) for one in x])
    torch.testing.assert_close(together, alone)


def test_networks_say_whether_they_are_metric() -> None:
    assert predicts_metres(ZoeDepthConfig())
    assert predicts_metres(GLPNConfig())
    assert predicts_metres(DepthAnythingConfig(depth_estimation_type="metric", max_depth=80))
    assert not predicts_metres(DepthAnythingConfig())
    assert not predicts_metres(DPTConfig())
    # Without the field of view that its post-processing applies, this one's map is inverse depth.
    assert not predicts_metres(DepthProConfig())


@pytest.mark.parametrize("name", KINDS)
def test_a_patch_is_laid_trained_a_step_and_merged(folders: dict[str, str], name: str) -> None:
    guide = DepthGuide(folders[name])
    network = guide.network()
    before = network_hash(network)
    patch = Patch.fresh(network, default_patch_plan(network, rank=2), seed=1)
    patched = patch.over(network)
    clean = to_tensor(_picture((64, 64))).expand(2, -1, -1, -1)
    noisy = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        teacher = guide.see(clean)
        torch.testing.assert_close(guide.through(patched, noisy), guide.see(noisy))
    optimiser = torch.optim.Adam([t.requires_grad_(True) for t in patch.trainable()], lr=1e-4)
    loss = guide.distance(guide.through(patched, noisy), teacher).mean()
    loss.backward()
    optimiser.step()
    with torch.no_grad():
        taught = guide.through(patched, noisy)
        assert guide.distance(taught, teacher).mean() < loss
        alone = copy.deepcopy(network)
        alone.load_state_dict(patch.merged(network), strict=False)
        torch.testing.assert_close(guide.through(alone, noisy), taught)
    assert network_hash(network) == before
