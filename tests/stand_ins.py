"""Small networks of random weights in place of the published ones, under the published names.

The commands of the documentation name checkpoints of gigabytes. Here each of them is written in
its published format but with few channels, so that the commands run through the same code.
Backbones that are known by name insist on their published size; :func:`shrink` makes that small,
too.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import pickle
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch
from urllib.parse import urlparse

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]

_HUB_REVISION = "0" * 40
_VIT: dict[str, Any] = dict(
    hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32
)
_FUSION: dict[str, Any] = dict(neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8)
_EDM: dict[str, Any] = dict(
    img_resolution=64, img_channels=3, model_channels=8, channel_mult=[1, 2],
    channel_mult_emb=1, num_blocks=1, attn_resolutions=[32],
)  # fmt: skip
_ADM: dict[str, Any] = dict(
    image_size=64, num_channels=32, num_res_blocks=1, channel_mult="1,1", num_heads=2,
    attention_resolutions="32", learn_sigma=True,
)  # fmt: skip


def make(folder: Path) -> None:
    """Writes all of them.

    Args:
        folder: gets ``files`` (what lies in the folder that commands run in: files, folders of
            models by their names on the hub, pictures), ``hub`` (HF_HOME) and ``torch``
            (TORCH_HOME).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        files = folder / "files"
        files.mkdir(parents=True)
        _pictures(files)
        _experts(files)
        _openai(files)
        _edm(files)
        _dit(files)
        _diffusers(files)
        _transformers(files)
        _clip(files)
        _hub(folder / "hub" / "hub")
        _torchvision(folder / "torch" / "hub" / "checkpoints")


def shrink() -> None:
    """Makes the published networks of this process as small as the stand-ins.

    Changes the plugins' tables of what was published (sizes of the networks, and sizes and digests
    of the files), the size of the images that torchvision's segmentation is shown, how many
    silhouettes are rendered for pictures to be compared with, and what a quick benchmark makes.
    """
    from ppap_plugin_bench import geometry
    from ppap_plugin_bench.benchmarks import elucd
    from ppap_plugin_dit import dit
    from ppap_plugin_dit import published as dit_files
    from ppap_plugin_openai import adm, glide
    from ppap_plugin_openai import published as openai_files
    from torchvision.models.segmentation import (  # type: ignore[import-untyped]
        DeepLabV3_ResNet50_Weights,
    )

    for table, small in (
        (adm.PUBLISHED_ADM, _small_adm),
        (adm.PUBLISHED_CLASSIFIERS, _small_classifier),
        (glide.PUBLISHED_GLIDE, _small_glide),
    ):
        entries = cast(dict[str, Any], table)
        entries |= {name: replace(e, config=small(e.config)) for name, e in entries.items()}
    networks = cast(dict[str, Any], dit.PUBLISHED)
    networks |= {name: _small_dit(config) for name, config in networks.items()}
    # torchvision's own network is as large as ever.
    DeepLabV3_ResNet50_Weights.DEFAULT.transforms.keywords["resize_size"] = 64
    vars(geometry)["silhouettes"] = functools.cache(lambda: geometry.Silhouettes(scenes=300))
    vars(elucd)["QUICK"] = replace(
        elucd.QUICK, sampling=replace(elucd.QUICK.sampling, steps=3),
        validation=6, references=12, grid=6,
    )  # fmt: skip
    for module in (dit_files, openai_files):
        files = [replace(file, size=None, sha256=None) for file in module.PUBLISHED]
        vars(module)["PUBLISHED"] = tuple(files)


def _small_adm(config: Any) -> Any:
    return replace(
        config, num_channels=32, num_res_blocks=1, channel_mult=(1,) * len(config.channel_mult),
        num_heads=2, num_head_channels=-1, attention_resolutions=(8,),
    )  # fmt: skip


def _small_classifier(config: Any) -> Any:
    return replace(
        config, model_channels=32, num_res_blocks=1, num_head_channels=16,
        channel_mult=(1,) * len(config.channel_mult),
    )  # fmt: skip


def _small_glide(config: Any) -> Any:
    return replace(
        config, num_channels=32, num_res_blocks=1, channel_mult=(1,) * len(config.channel_mult),
        num_head_channels=16, attention_resolutions=(8,), text_ctx=16, xf_width=32, xf_layers=1,
        xf_heads=2, n_vocab=_GPT2_TOKENS,
    )  # fmt: skip


def _small_dit(config: Any) -> Any:
    return replace(config, hidden_size=32, depth=2, num_heads=2, mlp_size=64)


_GPT2_TOKENS = 257
"""Of the stand-in for GPT-2's vocabulary: the bytes, and what pads."""


def _random(layout: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Weights so that activations stay near 1."""
    return {
        name: torch.randn(shape) / max(1, torch.Size(shape[1:]).numel()) ** 0.5
        for name, shape in layout.items()
    }


def _helper(path: str) -> Any:
    """What the tests of a plugin help themselves with."""
    name = path.replace("/", "_").removesuffix(".py").replace("-", "_")
    spec = importlib.util.spec_from_file_location(f"stand_ins_{name}", ROOT / "plugins" / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# What people bring


def _pictures(files: Path) -> None:
    """Photographs as a program can draw them: soft light, a few things, and grain."""
    for seed, name in enumerate(
        ("photo.jpg", "room.jpg", "photos/goldfish/1.jpg", "photos/tabby/2.jpg")
    ):
        (files / name).parent.mkdir(parents=True, exist_ok=True)
        _photograph(seed).save(files / name, quality=90)
    mask = np.zeros((240, 320), dtype=np.uint8)
    mask[60:180, 80:240] = 255
    Image.fromarray(mask).save(files / "mask.png")
    (files / "prompts.txt").write_text("a red cube\na small blue sphere\n", encoding="utf-8")


def _photograph(seed: int) -> Image.Image:
    drawn = np.random.default_rng(seed)
    y, x = np.mgrid[0:240, 0:320] / 240
    picture = np.stack([0.7 - 0.4 * y, 0.6 - 0.2 * x, 0.5 + 0.2 * y], axis=2)
    for _ in range(4):
        (cy, cx), radius, colour = drawn.random(2), 0.1 + 0.15 * drawn.random(), drawn.random(3)
        away = np.hypot(y - cy, x - cx * 4 / 3) / radius
        inside = np.clip(8 * (1 - away), 0, 1)[..., None]
        picture = (
            picture * (1 - inside) + inside * colour * (1.1 - 0.5 * away.clip(0, 1))[..., None]
        )
    grain = 0.02 * drawn.standard_normal(picture.shape)
    return Image.fromarray(((picture + grain).clip(0, 1) * 255).astype(np.uint8))


def _experts(files: Path) -> None:
    """Two expert sets, of the low and of the high noise levels."""
    from ppap_host.experts.sets import ExpertSet
    from ppap_host.plugins.registry import registry

    whole = ExpertSet.load(registry().load("expert set", "classifier-shapes-5")())
    half = len(whole.ranges) // 2
    for name, part in (("low-noise", slice(half)), ("high-noise", slice(half, None))):
        metadata = whole.metadata | {"quality": whole.metadata["quality"][part]}
        experts = ExpertSet(whole.ranges[part], whole.patches[part], metadata)
        experts.save(files / f"{name}.safetensors")


# Published backbones


def _openai(files: Path) -> None:
    from ppap_plugin_openai import adm, glide

    for entry in adm.PUBLISHED_ADM.values():
        torch.save(_random(adm.published_layout(_small_adm(entry.config))), files / entry.file)
    for classifier in adm.PUBLISHED_CLASSIFIERS.values():
        layout = adm.published_layout(_small_classifier(classifier.config))
        torch.save(_random(layout), files / classifier.file)
    for network in glide.PUBLISHED_GLIDE.values():
        layout = glide.published_layout(_small_glide(network.config))
        torch.save(_random(layout), files / network.file)
    for name in ("model.pt", "my-adm.pt"):
        torch.save(_random(adm.published_layout(adm.ADMConfig.from_flags(_ADM))), files / name)
        (files / f"{name}.json").write_text(json.dumps(_ADM))


def _edm(files: Path) -> None:
    from ppap_plugin_edm import published
    from ppap_plugin_edm.preconditioning import PRECONDITIONINGS

    kinds = {"vp": "SongUNet", "ve": "SongUNet", "adm": "DhariwalUNet"}
    for file in published.PUBLISHED:
        by_class = 1000 if "imagenet" in file.file else 10
        arguments = _EDM | {
            "img_resolution": 32 if "32x32" in file.file else 64,
            "attn_resolutions": [16],
            "model_type": kinds[file.name.rpartition("-")[2]],
            "label_dim": 0 if "uncond" in file.file else by_class,
        }
        if arguments["model_type"] == "DhariwalUNet":
            arguments["model_channels"] = 64
        network = PRECONDITIONINGS["EDMPrecond"](**arguments)
        for parameter in network.parameters():
            if not parameter.any():
                parameter.data.normal_(std=0.05)
        _write_edm(files / file.file, network, arguments)


class _Persistent:
    """Is pickled as NVlabs/edm's ``torch_utils.persistence`` pickles an object."""

    def __init__(self, class_name: str, state: Mapping[str, Any]) -> None:
        self.class_name, self.state = class_name, dict(state)

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild = sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj
        meta = {"type": "class", "version": 6, "module_src": "", "class_name": self.class_name}
        return rebuild, (meta | {"state": self.state},)


def _write_edm(path: Path, network: nn.Module, arguments: Mapping[str, Any]) -> None:
    def _reconstruct_persistent_obj(meta: Any) -> Any:
        raise AssertionError("is only named in the file")

    package, module = types.ModuleType("torch_utils"), types.ModuleType("torch_utils.persistence")
    _reconstruct_persistent_obj.__module__ = module.__name__
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    vars(module)["_reconstruct_persistent_obj"] = _reconstruct_persistent_obj
    made = {"_init_args": (), "_init_kwargs": dict(arguments), "img_channels": 3}
    with patch.dict(sys.modules, {package.__name__: package, module.__name__: module}):
        content = {"ema": _persistent(network, made), "loss_fn": None, "augment_pipe": None}
        path.write_bytes(pickle.dumps(content, protocol=4))


def _persistent(module: nn.Module, extra: Mapping[str, Any]) -> Any:
    state = {name: vars(module)[name] for name in ("_parameters", "_buffers")}
    state["_modules"] = {name: _persistent(part, {}) for name, part in module.named_children()}
    if isinstance(module, nn.ModuleDict):
        plain = nn.ModuleDict()
        vars(plain).update(state)
        return plain
    return _Persistent(type(module).__name__, {"training": False, **state, **extra})


def _dit(files: Path) -> None:
    from diffusers import AutoencoderKL
    from ppap_plugin_dit.dit import PUBLISHED, published_layout

    for name, config in PUBLISHED.items():
        torch.save(_random(published_layout(_small_dit(config))), files / name)
    AutoencoderKL(
        block_out_channels=(8,) * 4, norm_num_groups=4, sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    ).save_pretrained(files / "stabilityai" / "sd-vae-ft-ema")  # fmt: skip


def _diffusers(files: Path) -> None:
    from pipelines import tiny

    tiny("sd").save_pretrained(files / "stable-diffusion-v1-5" / "stable-diffusion-v1-5")


# Published guides


def _transformers(files: Path) -> None:
    import transformers as t

    def depth(size: int, **settings: Any) -> Any:
        sides = {"height": size, "width": size}
        return t.DPTImageProcessor(size=sides, **settings)

    def dpt() -> Any:
        config = t.DPTConfig(
            image_size=32, patch_size=8, backbone_out_indices=[0, 1, 2, 3], **_VIT, **_FUSION
        )
        return t.DPTForDepthEstimation(config)

    def anything() -> Any:
        backbone = dict(
            model_type="dinov2", hidden_size=16, num_hidden_layers=4, num_attention_heads=2,
            mlp_ratio=2, image_size=42, patch_size=14, out_indices=[1, 2, 3, 4],
            reshape_hidden_states=False, apply_layernorm=True,
        )  # fmt: skip
        return t.DepthAnythingForDepthEstimation(t.DepthAnythingConfig(
            backbone_config=backbone, patch_size=14, reassemble_hidden_size=16, head_hidden_size=8,
            **_FUSION,
        ))  # fmt: skip

    def vit() -> Any:
        config = t.ViTConfig(image_size=32, patch_size=8, num_labels=1000, **_VIT)
        return t.ViTForImageClassification(config)

    def two_classes() -> Any:
        names: dict[str, Any] = dict(id2label={0: "goldfish", 1: "tabby"})
        return t.ViTForImageClassification(
            t.ViTConfig(
                image_size=32, patch_size=8, label2id={"goldfish": 0, "tabby": 1}, **names, **_VIT
            )
        )

    def segformer() -> Any:
        return t.SegformerForSemanticSegmentation(t.SegformerConfig(
            depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16], num_attention_heads=[1, 1, 2, 2],
            decoder_hidden_size=16, num_labels=3,
        ))  # fmt: skip

    def mask2former() -> Any:
        stages = ["stage1", "stage2", "stage3", "stage4"]
        backbone = dict(
            model_type="swin", image_size=64, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1],
            num_heads=[1, 1, 2, 2], window_size=2, out_features=stages,
        )  # fmt: skip
        return t.Mask2FormerForUniversalSegmentation(t.Mask2FormerConfig(
            backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32,
            encoder_feedforward_dim=32, encoder_layers=1, decoder_layers=2, num_attention_heads=2,
            dim_feedforward=32, num_queries=5,
            id2label={0: "sky", 1: "road", 2: "car"}, label2id={"sky": 0, "road": 1, "car": 2},
        ))  # fmt: skip

    t.utils.logging.disable_progress_bar()
    side = {"height": 32, "width": 32}
    kinds: dict[str, tuple[Callable[[], Any], Any]] = {
        "Intel/dpt-large": (dpt, depth(32)),
        "Intel/dpt-hybrid-midas": (dpt, depth(32)),
        "my-depth-network": (dpt, depth(32)),
        "depth-anything/Depth-Anything-V2-Small-hf": (
            anything, depth(42, ensure_multiple_of=14, keep_aspect_ratio=True)
        ),
        "google/vit-base-patch16-224": (vit, t.ViTImageProcessor(size=side)),
        "my-network": (two_classes, t.ViTImageProcessor(size=side)),
        "nvidia/segformer-b0-finetuned-ade-512-512": (
            segformer, t.SegformerImageProcessor(size={"height": 64, "width": 64})
        ),
        "facebook/mask2former-swin-tiny-ade-semantic": (
            mask2former, t.Mask2FormerImageProcessor(size={"height": 64, "width": 64})
        ),
    }  # fmt: skip
    for name, (build, processor) in kinds.items():
        model = build()
        for key, parameter in model.named_parameters():
            # The usual small initial weights make so small a network answer a constant.
            if parameter.ndim > 1:
                nn.init.xavier_normal_(parameter)
            # Relative depth ends in a ReLU.
            if key in ("head.head.4.bias", "head.conv3.bias"):
                nn.init.constant_(parameter, 1.0)
        model.save_pretrained(files / name)
        processor.save_pretrained(files / name)


def _clip(files: Path) -> None:
    write = _helper("ppap-plugin-clip/tests/conftest.py").write_clip
    for seed, name in enumerate(
        ("clip-vit-large-patch14", "clip-vit-base-patch16", "clip-vit-base-patch32")
    ):
        (files / "openai").mkdir(exist_ok=True)
        write(files / "openai" / name, seed)


def _hub(hub: Path) -> None:
    """What the hub's own cache holds: weights of timm, in their size, and GPT-2's vocabulary."""
    import timm
    from safetensors.torch import save_file
    from tokenizers.pre_tokenizers import ByteLevel

    for architecture in ("resnet18", "resnet50"):
        model = timm.create_model(architecture)
        folder = _cached(hub, timm.models.get_pretrained_cfg(architecture).hf_hub_id)
        save_file(model.state_dict(), folder / "model.safetensors")
    folder = _cached(hub, "openai-community/gpt2")
    tokens = [*sorted(ByteLevel.alphabet()), "<|endoftext|>"]
    assert len(tokens) == _GPT2_TOKENS
    (folder / "vocab.json").write_text(json.dumps({token: k for k, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")


def _cached(hub: Path, name: str) -> Path:
    """The folder of a repository in the hub's cache."""
    repository = hub / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(_HUB_REVISION)
    folder = repository / "snapshots" / _HUB_REVISION
    folder.mkdir(parents=True)
    return folder


def _torchvision(folder: Path) -> None:
    """Weights of torchvision, in their size: its builders know no other."""
    from torchvision.models import get_model, get_model_weights  # type: ignore[import-untyped]

    folder.mkdir(parents=True)
    for architecture, settings in (
        ("resnet50", {}),
        ("deeplabv3_resnet50", {"weights_backbone": None, "aux_loss": True}),
    ):
        model = get_model(architecture, weights=None, **settings)
        url = str(get_model_weights(architecture).DEFAULT.url)
        torch.save(model.state_dict(), folder / Path(urlparse(url).path).name)
