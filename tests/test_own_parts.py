"""Parts of recipes as third parties write them: what the pages promise them holds."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from worlds import ClassBackbone, GaussianBackbone

from ppap_host.backbones.backbone import Backbone, ClassifierFree
from ppap_host.backbones.noise import Walk
from ppap_host.files.errors import OptionError
from ppap_host.guides.functions import as_guide
from ppap_host.recipes.estimate import Estimate
from ppap_host.recipes.places import CleanPoint, Entering, MeanOrScore, Place, Renoised, Sphere
from ppap_host.recipes.presets import CFG_PP, FK, MPGD, SVDD, TFG, X0
from ppap_host.recipes.recipe import Recipe
from ppap_host.recipes.selections import FeynmanKac, Selected, Selection
from ppap_host.recipes.strengths import Constant
from ppap_host.recipes.views import Noisy, Predicted, PredictedThrough
from ppap_host.sampling.evaluator import Guidance
from ppap_host.sampling.loop import sample
from ppap_host.sampling.solvers import DDIM, DDPM, Heun, Solver
from ppap_host.sampling.streams import ImageNoise
from ppap_host.testing import check_recipe

WORLD = GaussianBackbone(shape=(2,))
NOTHING = torch.zeros(1, 0)


def value(x: Tensor) -> Tensor:
    return (x - 1.0).square().sum(dim=1)


def run(
    recipe: Recipe | None = None,
    *,
    process: Recipe | None = None,
    world: Backbone = WORLD,
    denoise: Any = None,
    solver: Solver = DDIM(1.0),  # noqa: B008  frozen
    images: Any = 3,
    steps: int = 5,
    guide: Any = None,
    scale: float = 1.0,
) -> Tensor:
    guide, target = guide or (as_guide(value, "value"), NOTHING)
    images = range(images) if isinstance(images, int) else images
    guidance = [] if recipe is None else [Guidance(guide, target, recipe, scale)]
    return sample(
        world, denoise or ClassifierFree(world, {}, {}), world.walk(steps), solver,
        ImageNoise(0, images, world.state_shape), guidance, process=process,
    )  # fmt: skip


@dataclass(frozen=True)
class Remembers(Place):
    """Keeps a mean of what it was given, asks again, draws, and looks at it all in the end."""

    enters: bool = False  # type: ignore[misc]
    once: ClassVar[bool] = True

    def __call__(self, estimate: Estimate, gradient: Tensor, ancestral: bool) -> Estimate:
        kept = estimate.memory.get("mean", torch.zeros_like(gradient))
        estimate.memory["mean"] = kept = 0.5 * (kept + gradient)
        ask = estimate.asking()
        again = ask.clean(estimate.x, estimate.level)
        assert again.shape == gradient.shape == ask.noise("own", gradient).shape
        if self.enters:
            return Entering()(estimate, kept, ancestral)
        moved = CleanPoint()(estimate, kept, ancestral)
        return replace(moved, ends=(*moved.ends, self._end))

    def _end(self, x: Tensor, estimate: Estimate) -> Tensor:
        estimate.memory["steps"] = estimate.memory.get("steps", 0) + 1
        SEEN.append((estimate.memory["steps"], estimate.memory["mean"].clone(), estimate.scale))
        return x


SEEN: list[tuple[int, Tensor, float]] = []


@pytest.mark.parametrize("enters", [False, True])
def test_a_place_remembers_asks_again_and_draws(enters: bool) -> None:
    place = Remembers(enters)
    recipe = Recipe("remembers", view=Noisy() if enters else Predicted(), place=place)
    SEEN.clear()
    found = run(recipe)
    failed = [str(r.error) for c in check_recipe(recipe) if (r := c.result()).outcome == "failed"]
    assert not [e for e in failed if "strength" not in e]  # the test's recipe sets no limit
    alone = torch.cat([run(recipe, images=[k]) for k in range(3)])
    torch.testing.assert_close(found, alone)
    if not enters:
        assert [k for k, *_ in SEEN[:5]] == [1, 2, 3, 4, 5] and SEEN[0][2] == 1.0


class Worst(Selection):
    """Keeps the worst, by a rule of its own, and shows the second particle in the end."""

    size = 3

    def begin(self, images: int, like: Tensor) -> Any:
        return torch.zeros(images, 3)

    def __call__(
        self, rewards: Tensor, before: Any, i: int, steps: int, uniforms: Tensor, **told: Tensor
    ) -> Selected:
        worst = rewards.argmin(dim=1, keepdim=True).expand(-1, 3)
        return Selected(worst, before + 1)

    def final(self, rewards: Tensor, before: Any, uniforms: Tensor) -> Tensor:
        assert bool((before == 5).all()) and bool((uniforms < 1).all())
        return torch.ones(len(rewards), dtype=torch.long)


class WorstBranch(Selection):
    branches, needs = 4, "gaussian"

    def chosen(self, values: Tensor, uniforms: Tensor | None) -> Tensor:
        return values.argmin(dim=0)


@pytest.mark.parametrize("own", [Worst(), WorstBranch()], ids=lambda s: type(s).__name__)
def test_a_selection_of_ones_own_is_asked(own: Selection) -> None:
    recipe = Recipe("own", view=Predicted(), selection=own)
    worst, plain = run(recipe, images=24), run(images=24)
    best = run(SVDD if own.branches > 1 else FK, images=24)
    assert value(best).mean() < value(plain).mean() < value(worst).mean()
    torch.testing.assert_close(worst[:2], run(recipe, images=2))


def test_a_selection_that_does_not_say_how_is_no_silent_nothing() -> None:
    class Forgot(Selection):
        size = 2

    with pytest.raises(NotImplementedError, match="Forgot has particles"):
        run(Recipe("forgot", view=Predicted(), selection=Forgot()))


TDS = Recipe(
    "tds",
    view=PredictedThrough(),
    place=MeanOrScore(),
    strength=Constant(1.0),
    absolute=True,
    selection=FeynmanKac(
        16, "diff", factor=1.0, period=1, relative=False, corrected=True, final_draw=True
    ),
)


@pytest.mark.slow
@pytest.mark.parametrize("proposal", [0.0, 1.0, 2.0])
def test_twisted_particles_draw_from_the_posterior_whatever_proposes_them(proposal: float) -> None:
    """Wu et al. (2023), algorithm 1: moves propose, weights correct; also where moves overdo it."""
    world, noise, y = GaussianBackbone(shape=(1,), mean=0.3, spread=0.5), 0.4, 1.5
    guide = as_guide(lambda x: (x[:, 0] - y).square() / (2 * noise**2), "likelihood"), NOTHING
    precision = 1 / world.spread**2 + 1 / noise**2
    mean = (world.mean / world.spread**2 + y / noise**2) / precision
    chosen = replace(TDS.selection, size=48)  # type: ignore[type-var]
    recipe = replace(TDS, strength=Constant(proposal), selection=chosen)
    x = run(recipe, world=world, guide=guide, solver=DDPM(), images=48, steps=24)
    assert abs(float(x.mean()) - mean) < 4 * math.sqrt(1 / precision / 48)
    assert 0.7 < float(x.std()) * math.sqrt(precision) < 1.35
    if proposal == 2.0:
        blind = replace(recipe, selection=None)
        x = run(blind, world=world, guide=guide, solver=DDPM(), images=48, steps=24)
        assert float(x.mean()) > mean + 0.1


@dataclass(frozen=True)
class Projected:
    """APG (Sadat et al., 2025): what is parallel to the conditional x_0 counts less, with a
    momentum of the difference."""

    parallel: float = 0.0
    momentum: float = 0.0

    def __call__(self, estimate: Estimate) -> Tensor:
        level = estimate.level
        assert estimate.conditional is not None and estimate.unconditional is not None
        told, free = (
            (estimate.x - level.sigma * eps) / level.alpha
            for eps in (estimate.conditional, estimate.unconditional)
        )
        gap = told - free + self.momentum * estimate.memory.get("gap", 0.0)
        estimate.memory["gap"] = gap
        sides = tuple(range(1, gap.ndim))
        inner = (gap * told).sum(sides, keepdim=True) / told.square().sum(sides, keepdim=True)
        along = inner * told
        x0 = told + (estimate.scale - 1) * (gap - along + self.parallel * along)
        return (estimate.x - level.alpha * x0) / level.sigma


@dataclass(frozen=True)
class Usual:
    def __call__(self, estimate: Estimate) -> Tensor:
        return estimate.eps


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("solver", [DDIM(), Heun()], ids=lambda s: s.name)
def test_a_blend_sees_both_branches_and_makes_one_of_them(solver: Solver, scale: float) -> None:
    world = ClassBackbone()
    flags = world.encode_classes([2]), world.encode_classes([None])

    def made(process: Recipe | None, images: Any = 2) -> Tensor:
        denoise = ClassifierFree(world, *flags, scale, both=process is not None)
        return run(world=world, denoise=denoise, solver=solver, process=process, images=images)

    plain = made(None)
    for blend in (Usual(), Projected(parallel=1.0)):
        torch.testing.assert_close(made(Recipe("own", blend=blend)), plain, rtol=0, atol=1e-4)
    apg = Recipe("apg", blend=Projected(momentum=0.3))
    assert torch.equal(made(apg), made(apg))
    torch.testing.assert_close(made(apg, [1]), made(apg)[1:])
    assert (made(apg) - plain).abs().max() > (1e-3 if scale == 3 else -1)
    if scale == 1:
        assert not [c.name for c in check_recipe(apg) if c.result().outcome == "failed"]


class NoiseAlone(Solver):
    """Steps along the predicted noise, as DEIS does; x_0 is not looked at."""

    name, reads_x0 = "noise-alone", False

    def step(
        self, x: Tensor, i: int, walk: Walk, evaluate: Any, draw: Any, memory: Any
    ) -> tuple[Tensor, Estimate, Any]:
        now, then = walk.levels[i : i + 2]
        estimate = evaluate(x, now)
        x0 = (x - now.sigma * estimate.eps) / now.alpha
        return then.alpha * x0 + then.sigma * estimate.eps, estimate, None


@pytest.mark.parametrize("recipe", [X0, MPGD, TFG], ids=lambda r: r.name)
def test_a_sampler_that_follows_the_noise_alone_is_guided_as_ddim(recipe: Recipe) -> None:
    found, wanted = (run(recipe, solver=solver) for solver in (NoiseAlone(), DDIM()))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert (found - run(solver=DDIM())).abs().max() > 0.05


def test_a_black_box_is_refused_by_what_follows_gradients() -> None:
    def shades(x: Tensor) -> Tensor:
        return x.detach().round().mean(dim=1)

    with pytest.raises(OptionError, match=r"has no gradient.*best-of-n, fk or svdd"):
        run(X0, guide=(as_guide(shades, "shades"), NOTHING))
    declared = as_guide(shades, "shades")
    declared.differentiable = False
    with pytest.raises(OptionError, match="has no gradient"):
        Guidance(declared, NOTHING, X0, 1.0)
    assert run(SVDD, guide=(declared, NOTHING)).isfinite().all()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: replace(X0, leads="unconditional"),
        lambda: replace(X0, blend=Usual()),
        lambda: replace(X0, cfg=0.5),
        lambda: replace(CFG_PP, recurrence=2),
        lambda: replace(CFG_PP, every=2),
        lambda: replace(TDS, place=Sphere()),
        lambda: replace(TDS, place=Renoised()),
        lambda: replace(TDS, recurrence=2),
    ],
)
def test_parts_that_would_do_nothing_do_not_go_together(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"the process itself|asks none|make up for"):
        wrong()


def test_a_process_has_no_settings_of_guides() -> None:
    with pytest.raises(OptionError, match="has no settings"):
        CFG_PP.with_values({"every": 2})
