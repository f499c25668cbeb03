"""Every scheduler of diffusers is a sampler, and takes the steps that it takes in diffusers."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import diffusers
import pytest
import torch
from diffusers import schedulers
from pipelines import tiny
from torch import Tensor

from ppap_host.backbones.backbone import ClassifierFree, encode
from ppap_host.pipelines.backbone import PipelineBackbone
from ppap_host.plugins.loading import load_sampler
from ppap_host.plugins.registry import registry
from ppap_host.sampling.evaluator import Guidance
from ppap_host.sampling.loop import sample
from ppap_host.sampling.names import DIFFUSERS, NO_SAMPLERS
from ppap_host.sampling.streams import ImageNoise, generator, of_image

STEPS, CFG, PROMPT = 4, 3.0, "a red cube"
ETA = {"cogvideox-ddim": 0.3, "ddim-parallel": 0.3, "diffusers-ddim": 0.3, "tcd": 0.4}
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*__array_wrap__:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*algorithm_type:FutureWarning"),
]


FLOWS = {n for n in DIFFUSERS if n.startswith(("flow", "ltx", "minimax"))}
MADE_FOR = {"edm-euler", "edm-dpmsolver++", "cosine-dpmsolver++", "consistency", "ipndm"}
"""Samplers whose noise levels are those of pipelines made for them."""


def pipeline(name: str) -> Any:
    """A tiny pipeline whose own schedule the sampler takes."""
    if name in FLOWS:
        return tiny("sd3")
    kind = getattr(diffusers, DIFFUSERS[name].kind)
    return tiny("sd", kind() if name in MADE_FOR else None)


def in_diffusers(pipe: Any, name: str, rows: int) -> Tensor:
    """The latents that the pipeline makes itself with the scheduler."""
    scheduled = DIFFUSERS[name]
    kind = getattr(diffusers, scheduled.kind)
    before, pipe.scheduler = (
        pipe.scheduler, kind.from_config(pipe.scheduler.config, **scheduled.settings)
    )  # fmt: skip
    streams = [generator(of_image(0, k)) for k in range(rows)]
    if name in FLOWS and "generator" in inspect.signature(kind.step).parameters:
        # This pipeline leaves its scheduler to draw from the global generator.
        pipe.scheduler.step = partial(pipe.scheduler.step, generator=streams)
    made = pipe(
        [PROMPT] * rows, num_inference_steps=STEPS, guidance_scale=CFG, generator=streams,
        output_type="latent", height=16, width=16, **({"eta": ETA[name]} if name in ETA else {}),
    ).images  # fmt: skip
    pipe.scheduler = before
    return made  # type: ignore[no-any-return]


def by_host(backbone: PipelineBackbone, name: str, rows: int, *guidance: Guidance) -> Tensor:
    """The same by the host's loop."""
    solver = load_sampler(registry(), name, backbone, ETA.get(name))
    condition, nothing = (encode(backbone, [text] * rows, [None] * rows) for text in (PROMPT, ""))
    return sample(
        backbone,
        ClassifierFree(backbone, condition, nothing, CFG),
        solver.walk(backbone, STEPS),
        solver,
        ImageNoise(0, range(rows), backbone.state_shape),
        guidance,
    )


@pytest.mark.parametrize("name", DIFFUSERS)
def test_a_sampler_takes_diffusers_own_steps(name: str) -> None:
    pipe = pipeline(name)
    with torch.no_grad():
        theirs = in_diffusers(pipe, name, 2)
        ours = by_host(PipelineBackbone(pipe), name, 2)
    assert torch.equal(ours, theirs), float((ours - theirs).abs().max())


def test_every_scheduler_is_a_sampler_or_says_why_not() -> None:
    kinds = {name for name in dir(schedulers) if name.endswith("Scheduler")}
    assert kinds == {one.kind for one in DIFFUSERS.values()} | set(NO_SAMPLERS)
