"""Every plugin of this repository, the host's own things and the examples conform.

Guides and backbones that ship no weights are checked with small random ones in the published forms.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pipelines import tiny
from torch import nn

from ppap_host.backbones.backbone import Backbone
from ppap_host.files.images import from_tensor
from ppap_host.guides.guide import Guide
from ppap_host.plugins import builtin
from ppap_host.plugins.registry import registry
from ppap_host.shapes.backbone import ShapesBackbone
from ppap_host.testing import Check, check_backbone, check_guide, check_recipe, pictures

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "docs" / "examples"


def from_plugin(address: str, **options: str) -> Callable[[], Guide]:
    """A factory that imports its module when it is called."""

    def make() -> Guide:
        module, _, name = address.partition(":")
        made: Guide = getattr(importlib.import_module(module), name)(**options)
        return made

    return make


def all_of(checks: dict[str, list[Check]]) -> Any:
    """Parameters: every check of every thing."""
    return pytest.mark.parametrize(
        "check",
        [
            pytest.param(check, id=f"{name}-{check}")
            for name, found in checks.items()
            for check in found
        ],
    )


SHIPPED = {
    "classifier": check_guide(
        from_plugin("ppap_plugin_classifier.guide:ClassifierGuide"), "red cone"
    ),
    "depth": check_guide(from_plugin("ppap_plugin_depth.guide:DepthGuide")),
    "segmentation": check_guide(from_plugin("ppap_plugin_segmentation.guide:SegmentationGuide")),
}


@all_of(SHIPPED)
def test_a_guide_with_its_own_network_conforms(check: Check) -> None:
    check()


RESTORING = {
    name: check_guide(from_plugin(f"ppap_plugin_restore.guide:{name}", **options), size=(24, 32))
    for name, options in (
        ("inpainting", {"model": "box=0.5"}),
        ("deblur", {}),
        ("motion_deblur", {}),
        ("colourise", {}),
    )
}


@all_of(RESTORING)
def test_a_guide_that_restores_conforms(check: Check) -> None:
    check()


@pytest.fixture(scope="module")
def small_picture(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("pictures") / "small.png"
    from_tensor(pictures(1, (6, 8)))[0].save(path)
    return str(path)


def test_super_resolution_conforms(small_picture: str) -> None:
    make = from_plugin("ppap_plugin_restore.guide:super_resolution")
    all_hold(check_guide(make, small_picture, size=(24, 32)))


def all_hold(checks: list[Check]) -> None:
    """Raises the first fault."""
    results = [check.result() for check in checks]
    for result in results:
        if result.error is not None:
            raise result.error
    assert sum(result.outcome == "passed" for result in results) > len(results) / 2
    for result in results:
        assert result.outcome == "passed" or result.reason


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = set(sys.modules)
    for folder in EXAMPLES.iterdir():
        monkeypatch.syspath_prepend(folder / "src")
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("ppap_plugin_brightness", "ppap_plugin_signed")):
            del sys.modules[name]


@pytest.mark.usefixtures("examples")
def test_the_example_of_a_guide_conforms() -> None:
    make = from_plugin("ppap_plugin_brightness.guide:BrightnessGuide")
    all_hold(check_guide(make, "orange", size=(24, 32)))


@pytest.mark.usefixtures("examples")
def test_the_example_of_a_recipe_conforms() -> None:
    all_hold(check_recipe(importlib.import_module("ppap_plugin_signed.recipe").SIGNED))


RECIPES = {entry.name: check_recipe(entry.load()) for entry in builtin.ppap_recipes()}


@all_of(RECIPES)
def test_a_preset_conforms(check: Check) -> None:
    check()


@all_of({"shapes": check_backbone(ShapesBackbone)})
def test_the_built_in_backbone_conforms(check: Check) -> None:
    check()


@pytest.mark.parametrize("name", ["ddpm", "sd", "sd3"])
def test_pipelines_of_diffusers_conform(name: str, tmp_path: Path) -> None:
    from ppap_host.pipelines.loading import load

    tiny(name).save_pretrained(tmp_path / "pipeline")
    prompt = None if name == "ddpm" else "a dog"
    all_hold(check_backbone(lambda: load(str(tmp_path / "pipeline")), prompt, trained=False))


def test_edm_conforms() -> None:
    from ppap_plugin_edm.backbone import EDMBackbone
    from ppap_plugin_edm.checkpoint import make

    def backbone() -> Backbone:
        torch.manual_seed(3)
        return EDMBackbone(
            make(
                "EDMPrecond", img_resolution=8, img_channels=3, model_channels=8,
                channel_mult=[1, 2], num_blocks=1, attn_resolutions=[4], label_dim=3,
            )
        )  # fmt: skip

    all_hold(check_backbone(backbone, trained=False))


def test_dit_conforms(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL
    from ppap_plugin_dit.backbone import LATENT_SCALE, DiTBackbone
    from ppap_plugin_dit.dit import DiTConfig, build_dit

    from ppap_host.pipelines.autoencoder import Autoencoder

    config = DiTConfig(
        input_size=8, hidden_size=16, depth=2, num_heads=2, mlp_size=64, num_classes=5, patch_size=2
    )

    def backbone() -> Backbone:
        torch.manual_seed(0)
        network = build_dit(config).to_empty(device="cpu")
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.1)
        nn.init.normal_(network.pos_embed.pos_embed)
        vae = AutoencoderKL(
            block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4,
        )  # fmt: skip
        vae.decoder.conv_out.weight.data *= 20
        return DiTBackbone(
            network.requires_grad_(False).eval(), Autoencoder(vae, scaling=LATENT_SCALE)
        )

    all_hold(check_backbone(backbone, trained=False))


def weights(layout: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Random ones that keep activations near 1."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator) / max(1, math.prod(shape[1:])) ** 0.5
        for name, shape in layout.items()
    }


def test_adm_conforms(tmp_path: Path) -> None:
    from ppap_plugin_openai.adm import ADMConfig, load_adm, published_layout
    from ppap_plugin_openai.backbone import ADMBackbone

    config = ADMConfig(
        image_size=16, num_channels=32, num_res_blocks=1, channel_mult=(1, 2),
        attention_resolutions=(8,), learn_sigma=True,
    )  # fmt: skip
    torch.save(weights(published_layout(config)), tmp_path / "adm.pt")
    all_hold(check_backbone(lambda: ADMBackbone(load_adm(tmp_path / "adm.pt", config)),
                            trained=False))  # fmt: skip


def test_the_classifier_of_adm_conforms(tmp_path: Path) -> None:
    from ppap_plugin_openai.adm import ADMClassifierConfig, published_layout
    from ppap_plugin_openai.guide import ADMClassifierGuide

    flags = {
        "model_channels": 32, "image_size": 16, "num_res_blocks": 1, "attention_resolutions": [2],
        "out_channels": 5, "channel_mult": [1, 2], "num_head_channels": 16, "pool": "attention",
    }  # fmt: skip
    path = tmp_path / "classifier.pt"
    torch.save(weights(published_layout(ADMClassifierConfig.from_flags(flags))), path)
    Path(f"{path}.json").write_text(json.dumps(flags | {"noise_schedule": "cosine"}))
    all_hold(check_guide(lambda: ADMClassifierGuide(str(path)), "3", size=(16, 16)))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny random CLIP, as the plugin's own tests make it."""
    source = ROOT / "plugins" / "ppap-plugin-clip" / "tests" / "conftest.py"
    spec = importlib.util.spec_from_file_location("clip_networks", source)
    assert spec is not None and spec.loader is not None
    helpers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(helpers)
    return str(helpers.write_clip(tmp_path_factory.mktemp("clip") / "model"))


@pytest.mark.parametrize(
    ("address", "target"),
    [("clip_guide:ClipGuide", "a red cube"), ("style_guide:StyleGuide", None)],
)
def test_the_guides_by_clip_conform(address: str, target: str | None, clip: str) -> None:
    make = from_plugin(f"ppap_plugin_clip.{address}", model=clip)
    all_hold(check_guide(make, target, trained=False))


def test_every_guide_and_recipe_of_this_repository_is_checked_here() -> None:
    """Backbones are many names for few classes; those have their tests above."""
    checked = {name.replace("_", "-") for name in (*SHIPPED, *RESTORING, *RECIPES)}
    checked |= {"super-resolution", "adm-classifier", "clip", "style"}
    ours = {
        entry.name
        for plugin in registry().plugins
        if plugin.distribution == "ppap-host" or (ROOT / "plugins" / plugin.distribution).is_dir()
        for kind in ("guide", "recipe")
        for entry in plugin.offers.get(kind, [])  # type: ignore[call-overload]
    }
    assert ours == checked
