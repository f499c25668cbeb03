"""Every scheduler of diffusers is a sampler, and takes the steps that it takes in diffusers."""

from __future__ import annotations

import inspect
from functools import partial
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from typing import Any

import diffusers
import pytest
import torch
from diffusers import schedulers
from pipelines import tiny
from torch import Tensor
from worlds import Exploding, GaussianBackbone

import ppap_host as ppap
from ppap_host.backbones.backbone import ClassifierFree, encode
from ppap_host.backbones.noise import DiscreteSchedule, Walk, cosine_betas
from ppap_host.files.errors import OptionError
from ppap_host.pipelines.backbone import PipelineBackbone
from ppap_host.plugins.loading import load_recipe, load_sampler
from ppap_host.plugins.registry import Registry, registry
from ppap_host.recipes.presets import X0
from ppap_host.sampling.evaluator import Guidance, Health
from ppap_host.sampling.loop import sample
from ppap_host.sampling.names import DIFFUSERS, NO_SAMPLERS
from ppap_host.sampling.solvers import DPMSolverPP2M
from ppap_host.sampling.streams import ImageNoise, generator, of_image
from ppap_host.testing import PullGuide

STEPS, CFG, PROMPT = 4, 3.0, "a red cube"
ETA = {"cogvideox-ddim": 0.3, "ddim-parallel": 0.3, "diffusers-ddim": 0.3, "tcd": 0.4}
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*__array_wrap__:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*algorithm_type:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Should have:UserWarning"),
]


FLOWS = {n for n in DIFFUSERS if n.startswith(("flow", "ltx"))}
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
    if hasattr(pipe.scheduler, "noise_sampler_seed"):
        pipe.scheduler.noise_sampler_seed = [stream.initial_seed() for stream in streams]
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


NEEDS = {"cosine-dpmsolver++": "torchsde", "dpmsolver-sde": "torchsde"}


def is_here(name: str) -> bool:
    return name not in NEEDS or find_spec(NEEDS[name]) is not None


@pytest.mark.parametrize("name", DIFFUSERS)
def test_a_sampler_takes_diffusers_own_steps(name: str) -> None:
    if not is_here(name):
        with pytest.raises(OptionError, match=f"cannot be had here: .*{NEEDS[name]}"):
            load_sampler(registry(), name, GaussianBackbone())
        return
    pipe = pipeline(name)
    backbone = PipelineBackbone(pipe)
    with torch.no_grad():
        theirs = in_diffusers(pipe, name, 2)
        ours = by_host(backbone, name, 2)
    assert torch.equal(ours, theirs), float((ours - theirs).abs().max())
    # A guide without a gradient, asked in every way, leaves the very bytes.
    blind = PullGuide(blind=True)
    for recipe in ("x0", "mpgd", "tfg", "dps"):
        asked = Guidance(blind, torch.zeros(1), load_recipe(registry(), recipe), 1.0)
        assert torch.equal(by_host(backbone, name, 2, asked), theirs), recipe
    # And one with a gradient moves the images, each by itself.
    pulls = Guidance(PullGuide(), torch.full((1,), 0.9), X0, 1.0)
    moved = by_host(backbone, name, 2, pulls)
    assert not torch.equal(moved, theirs)
    torch.testing.assert_close(by_host(backbone, name, 1, pulls), moved[:1], rtol=1e-3, atol=1e-3)


def test_every_scheduler_is_a_sampler_or_says_why_not() -> None:
    kinds = {name for name in dir(schedulers) if name.endswith("Scheduler")}
    assert kinds == {one.kind for one in DIFFUSERS.values()} | set(NO_SAMPLERS)
    for kind, name in (("DDIMInverse", "ddim-inverse"), ("VQDiffusion", "VQDiffusionScheduler"),
                       ("FlowMapEulerDiscrete", "flow-map-euler-discrete")):  # fmt: skip
        with pytest.raises(OptionError, match=f"{kind}Scheduler is no sampler: it "):
            ppap.sample(GaussianBackbone(), sampler=name)


OWN_LEVELS = [
    name
    for name, one in DIFFUSERS.items()
    if is_here(name)
    and name not in MADE_FOR
    and "trained_betas" in inspect.signature(getattr(diffusers, one.kind)).parameters
]
"""Samplers that take the levels of any backbone."""


@pytest.mark.parametrize("name", OWN_LEVELS)
def test_a_sampler_walks_the_levels_of_any_backbone(name: str) -> None:
    """Without guidance it ends in the data's distribution, with a guide nearer to the target."""
    inner = GaussianBackbone(mean=0.3, spread=0.2, shape=(3, 6, 6))
    world = Exploding(inner) if OWN_LEVELS.index(name) % 2 else inner
    made = ppap.sample(world, sampler=name, steps=16, num=4)
    assert abs(float(made.tensor.mean()) - 0.3) < 0.06
    assert 0.1 < float(made.tensor.std()) < 0.32
    for recipe in ("x0", "dps"):
        towards = ppap.guidance(lambda x: (x - 0.9).square().sum((1, 2, 3)), scale=4.0)
        guided = ppap.sample(world, towards, recipe=recipe, sampler=name, steps=16, num=2)
        assert float(guided.tensor.mean()) > float(made.tensor[:2].mean()) + 0.02, recipe


class Whole(GaussianBackbone):
    """On all of the cosine schedule, whose last step leaves next to nothing of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.schedule = DiscreteSchedule.from_betas(cosine_betas(1000))


@pytest.mark.parametrize("name", ["euler", "dpmsolver++", "unipc", "deis", "diffusers-ddim"])
def test_a_sampler_begins_where_the_schedule_leaves_nothing_of_the_image(name: str) -> None:
    world = Whole()
    solver = load_sampler(registry(), name, world)
    walk, noise = solver.walk(world, 100), ImageNoise(1, range(6), world.state_shape)
    assert walk.levels[0].scale == pytest.approx(1)
    exact = world.flow(ImageNoise(1, range(6), world.state_shape)(), walk.levels[0])
    denoise = ClassifierFree(world, {}, {}, 1.0)
    made = sample(world, denoise, walk, solver, noise, (), health=Health())
    assert float((made - exact).abs().max()) < 0.05


@pytest.mark.parametrize(("name", "eta"), [("dpmsolver++", 0.0), ("dpmsolver++-sde", 1.0)])
@pytest.mark.parametrize("steps", [16, 40])
def test_dpm_plus_plus_is_that_of_diffusers_at_the_same_levels(
    name: str, eta: float, steps: int
) -> None:
    """Diffusers in float32, whose first and last steps are of first order from 15 steps on."""
    world = GaussianBackbone()
    theirs = load_sampler(registry(), name, world)
    walk = theirs.walk(world, steps)
    made = [
        sample(
            world, ClassifierFree(world, {}, {}, 1.0), levels, solver,
            ImageNoise(3, range(4), world.state_shape), (), health=Health(),
        )
        for solver, levels in ((theirs, walk), (DPMSolverPP2M(eta), Walk(walk.levels)))
    ]  # fmt: skip
    torch.testing.assert_close(*made, rtol=0, atol=2e-4)


def test_another_schedule_than_the_backbones_is_refused() -> None:
    for name, world in (
        ("flow-euler", GaussianBackbone()),
        ("edm-euler", GaussianBackbone()),
        ("euler", PipelineBackbone(tiny("sd3"))),
        ("flow-euler", PipelineBackbone(tiny("sd"))),
    ):
        with pytest.raises(OptionError, match="noise levels"):
            load_sampler(registry(), name, world)
    with pytest.raises(OptionError, match="takes no ddim4 steps"):
        ppap.sample(GaussianBackbone(), sampler="euler", steps="ddim4")
    with pytest.raises(OptionError, match="`eta` is nothing that"):
        ppap.sample(GaussianBackbone(), sampler="unipc", eta=0.5)


def test_a_run_is_the_same_in_any_batch_and_again() -> None:
    world = GaussianBackbone(shape=(3, 4, 4))
    for name in ("euler-ancestral", "dpmsolver++-sde", "lcm"):
        one, all_ = (
            ppap.sample(world, sampler=name, steps=5, num=3, batch=batch) for batch in (1, 3)
        )
        assert one.record["images"] == all_.record["images"]
        again = ppap.rerun(one.record, backbone=world)
        assert again.record["images"] == one.record["images"]
        assert again.record["config"]["sampler"] == name


def test_a_plugins_sampler_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Registry([EntryPoint("mine", "sampler_plugin", "ppap")])
    assert found.plugins[1].problem is None
    assert load_sampler(found, "plain-euler", GaussianBackbone()).name == "plain-euler"
