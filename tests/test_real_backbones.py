"""Harvest, tuning and guidance on every kind of backbone, from folders as people have them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pipelines import tiny
from teaching import world
from worlds import ColourGuide

from ppap_host.experts.harvest import HarvestConfig
from ppap_host.experts.tuning import TuningConfig, tune
from ppap_host.plugins.loading import load_backbone
from ppap_host.runs.config import GuideConfig, RunConfig
from ppap_host.runs.harvesting import harvest
from ppap_host.runs.run import run

# Networks of random weights make no pictures.
pytestmark = pytest.mark.filterwarnings("ignore:Most pixels")
CONFIG = HarvestConfig("diffusers", num=6, shard=3, batch=3, steps=3, device="cpu", cfg=2.0)


@pytest.mark.parametrize("name", ["ddpm", "sd", "sd3"])
def test_experts_are_tuned_on_a_pipeline_of_diffusers_and_used_with_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pixels, latents and flow matching; the guide always sees decoded images."""
    monkeypatch.setattr("ppap_host.runs.setup.registry", world)
    folder = tmp_path / "pipeline"
    tiny(name).save_pretrained(folder)
    text = name != "ddpm"
    config = replace(
        CONFIG, checkpoint=str(folder), prompts=("a dog", "") if text else (),
        cfg=2.0 if text else None,
    )  # fmt: skip
    made = harvest(config, tmp_path / "harvest", found=world())
    backbone = load_backbone(world(), "diffusers", str(folder))
    assert tuple(made.pixels().shape) == (6, 3, *backbone.image_size)
    assert made.pixels().float().std() > 1
    guide = ColourGuide()
    experts = tune(
        guide,
        made.lesson(guide),
        backbone.levels(),
        TuningConfig(experts=2, rank=1, steps=4, batch=3, held_out=0.3),
    )
    experts.save(tmp_path / "experts.safetensors")
    settings = RunConfig(
        guides=(GuideConfig("colour", "0.2", experts=str(tmp_path / "experts.safetensors")),),
        backbone="diffusers", checkpoint=str(folder), prompt="a dog" if text else "",
        steps=3, num=2, device="cpu",
    )  # fmt: skip
    record = run(settings, tmp_path / "run").record
    assert record["status"] == "complete" and record["skipped_guidance"] == {}
    assert record["used"]["guides"][0]["recipe"] == "ppap"
    assert any("noises latents" in text for text in record["warnings"]) == backbone.latent
    assert backbone.latent == (name != "ddpm")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_harvest_in_half_precision_is_close_to_one_in_full(dtype: str, tmp_path: Path) -> None:
    tiny("ddpm").save_pretrained(tmp_path / "pipeline")
    config = replace(CONFIG, checkpoint=str(tmp_path / "pipeline"), cfg=None)
    full = harvest(config, tmp_path / "full", found=world()).pixels().float()
    half = harvest(replace(config, dtype=dtype), tmp_path / dtype, found=world()).pixels().float()
    assert 0 < (full - half).abs().mean() < 8


def test_experts_of_a_network_in_half_precision_are_tuned_in_full(tmp_path: Path) -> None:
    made = harvest(
        HarvestConfig("gaussian", num=20, shard=10, batch=10, steps=3, device="cpu"),
        tmp_path / "harvest",
        found=world(),
    )
    guide = ColourGuide().to(torch.device("cpu"), torch.bfloat16)
    levels = load_backbone(world(), "gaussian").levels()
    config = TuningConfig(experts=2, rank=1, steps=150, batch=8, held_out=0.2)
    experts = tune(guide, made.lesson(guide), levels, config)
    tensors = [t for patch in experts.patches for t in patch.tensors().values()]
    assert {t.dtype for t in tensors} == {torch.float32}
    for quality in experts.metadata["quality"]:
        assert quality["expert"]["distance"] < quality["off_the_shelf"]["distance"]
