"""The backbone in the host: levels, classes, guided sampling, and its noise on the common scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import ppap_plugin_edm
import pytest
import torch
from ppap_plugin_edm.backbone import EDMBackbone, time_steps
from ppap_plugin_edm.checkpoint import make
from ppap_plugin_edm.preconditioning import PRECONDITIONINGS, iDDPMPrecond
from torch import Tensor
from worlds import ColourGuide, QuadraticGuide

from ppap_host.backbones.backbone import Backbone, ClassifierFree, Condition, Prediction
from ppap_host.backbones.noise import (
    DiscreteSchedule,
    NoiseLevel,
    Walk,
    cosine_betas,
    uniform_ranges,
)
from ppap_host.files.errors import OptionError
from ppap_host.plugins.registry import registry
from ppap_host.recipes.presets import NAIVE, X0, X0_THROUGH
from ppap_host.recipes.recipe import Recipe
from ppap_host.sampling.evaluator import Guidance, Health
from ppap_host.sampling.loop import sample
from ppap_host.sampling.solvers import DDIM, DDPM, Churn, DPMSolverPP2M, Heun, Solver, heun
from ppap_host.sampling.streams import ImageNoise

TINY: dict[str, Any] = {
    "img_resolution": 8,
    "img_channels": 3,
    "model_channels": 8,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
}


def tiny(class_name: str = "EDMPrecond", **extra: Any) -> EDMBackbone:
    """A backbone with random weights."""
    torch.manual_seed(3)
    return EDMBackbone(make(class_name, **TINY, **extra))


def gaussian(**extra: Any) -> EDMBackbone:
    """A network that adds little to c_skip x: nearly the exact denoiser of N(0, sigma_data^2)."""
    backbone = tiny(**extra)
    backbone.network.model.get_submodule("out_conv").weight *= 0.02  # type: ignore[operator]
    return backbone


class Preserving(Backbone):
    """An EDM backbone whose states are written in variance-preserving form, alpha x."""

    name = "preserving"
    clip = None
    state_dtype = torch.float64

    def __init__(self, backbone: EDMBackbone) -> None:
        self.backbone, self.state_shape = backbone, backbone.state_shape

    def level_at(self, s: float) -> NoiseLevel:
        exact = self.backbone.level_at(s).sigma
        alpha = 1 / math.hypot(1.0, exact)
        return NoiseLevel(alpha, alpha * exact, exact)

    def walk(self, steps: int | str) -> Walk:
        return Walk(tuple(self.level_at(level.sigma) for level in self.backbone.walk(steps).levels))

    def levels(self) -> tuple[NoiseLevel, ...]:
        return tuple(self.level_at(level.sigma) for level in self.backbone.levels())

    def predict(self, x: Tensor, level: NoiseLevel, condition: Condition) -> Prediction:
        exploding = NoiseLevel(1.0, level.time, level.time)
        return self.backbone.predict(x / level.alpha, exploding, condition)

    def to(self, device: torch.device, dtype: torch.dtype) -> Backbone:
        return self


def run(
    backbone: Backbone,
    solver: Solver,
    steps: int = 6,
    guidance: Sequence[Guidance] = (),
    images: Sequence[int] = (0, 1),
    condition: Condition | None = None,
    health: Health | None = None,
) -> Tensor:
    noise = ImageNoise(4, images, backbone.state_shape)
    walk = backbone.walk(steps)
    return sample(
        backbone,
        ClassifierFree(backbone, condition or {}, {}),
        walk,
        solver,
        noise,
        guidance,
        start=noise().double() * walk.levels[0].scale,
        health=health,
    )


def test_the_host_finds_the_backbone() -> None:
    assert ppap_plugin_edm.ppap_interface == 1
    (entry,) = ppap_plugin_edm.ppap_backbones()
    assert entry.load() is EDMBackbone
    assert "edm" in registry().names("backbone")


# Noise levels


@pytest.mark.parametrize("class_name", list(PRECONDITIONINGS))
def test_levels_rise_from_clean_to_noisy_within_the_networks_limits(class_name: str) -> None:
    backbone = tiny(class_name)
    levels = backbone.levels()
    assert 300 < len(levels) <= 1000
    assert all(level.alpha == 1 and level.time == level.sigma > 0 for level in levels)
    assert all(a.sigma < b.sigma and a.log_snr > b.log_snr for a, b in pairwise(levels))
    low, high = backbone.network.sigma_min, backbone.network.sigma_max
    assert low * (1 - 1e-6) <= levels[0].sigma and levels[-1].sigma <= high * (1 + 1e-6)
    assert levels[-1].sigma == pytest.approx(80, rel=0.01)


@pytest.mark.parametrize("class_name", list(PRECONDITIONINGS))
@pytest.mark.parametrize("steps", [1, 2, "18", 256])
def test_a_walk_falls_to_the_clean_image(class_name: str, steps: int | str) -> None:
    backbone = tiny(class_name)
    walk = backbone.walk(steps)
    sigmas = [level.sigma for level in walk.levels]
    assert sigmas[-1] == 0 and all(a > b for a, b in pairwise(sigmas))
    assert len(walk) == int(steps) or class_name == "iDDPMPrecond"
    assert backbone.walk(steps) == walk


def test_an_iddpm_network_is_only_asked_for_levels_of_its_table() -> None:
    backbone = tiny("iDDPMPrecond")
    assert isinstance(backbone.network, iDDPMPrecond)
    table = set(backbone.network.u.double().tolist())
    assert {level.sigma for level in backbone.walk(256).levels} <= table
    assert {backbone.level_at(s).sigma for s in (0.013, 1.234, 79.9)} <= table


@pytest.mark.parametrize("steps", [0, -3, "ddim25", "10,10", ""])
def test_steps_that_are_no_count_are_refused(steps: int | str) -> None:
    with pytest.raises(OptionError, match="steps"):
        tiny().walk(steps)


def test_the_ends_of_the_time_steps_can_be_chosen() -> None:
    times = time_steps(5, sigma_min=0.1, sigma_max=10, rho=3)
    assert times[[0, -1]].tolist() == pytest.approx([10, 0.1])
    torch.testing.assert_close((times ** (1 / 3)).diff().diff(), torch.zeros(3).double())
    backbone = EDMBackbone(tiny().network, sigma_min="0.1", sigma_max=10, rho="3")
    walk = [level.sigma for level in backbone.walk(5).levels[:-1]]
    torch.testing.assert_close(torch.tensor(walk, dtype=torch.float64), times)


@pytest.mark.parametrize(
    "options",
    [{"rho": "seven"}, {"rho": 0}, {"sigma_min": "-1"}, {"sigma_max": "inf"}, {"sigma_max": 0.001}],
    ids=str,
)
def test_numbers_that_make_no_walk_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        EDMBackbone(tiny().network, **options)


def test_an_edm_level_and_a_ddpm_level_of_one_log_snr_are_one_noise() -> None:
    """Experts are chosen by log-SNR, and see states at unit variance scale."""
    schedule = DiscreteSchedule.from_betas(cosine_betas(1000))
    ranges = uniform_ranges(schedule.levels(), 5)
    backbone = tiny()
    x0, eps = torch.randn(2, 1, 3, 8, 8, dtype=torch.float64)
    for step in (10, 250, 500, 750, 980):
        preserving = schedule.level(step)
        exploding = backbone.level_at(preserving.sigma / preserving.alpha)
        assert exploding.log_snr == pytest.approx(preserving.log_snr, abs=1e-9)
        served = [[level.log_snr in r for r in ranges] for level in (preserving, exploding)]
        assert served[0] == served[1] and sum(served[0]) == 1
        one = (preserving.alpha * x0 + preserving.sigma * eps) / preserving.scale
        torch.testing.assert_close((x0 + exploding.sigma * eps) / exploding.scale, one)


# Predictions


@pytest.mark.parametrize("class_name", list(PRECONDITIONINGS))
def test_eps_is_what_separates_the_state_from_the_denoised_image(class_name: str) -> None:
    backbone = tiny(class_name)
    for level in backbone.walk(4).levels[:-1]:
        x = (torch.randn(2, 3, 8, 8) * level.scale).double()
        eps = backbone.predict(x, level, {}).eps
        assert eps.dtype is torch.float64
        clean = backbone.network(x, torch.tensor(level.sigma)).double()
        torch.testing.assert_close(x - level.sigma * eps, clean)


def test_a_lower_precision_is_given_to_the_parameters_alone() -> None:
    extra = {"model_type": "SongUNet", "embedding_type": "fourier"}
    full, low = tiny(**extra), tiny(**extra)
    low.to(torch.device("cpu"), torch.bfloat16)
    assert {p.dtype for p in low.network.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in low.network.buffers()} == {torch.float32}
    level, x = low.level_at(1.0), torch.randn(1, 3, 8, 8).double()
    eps = [backbone.predict(x, level, {}).eps for backbone in (full, low)]
    assert eps[1].dtype is torch.float64
    assert 0 < (eps[0] - eps[1]).abs().max() < 0.1
    back = low.to(torch.device("cpu"), torch.float32)
    assert (back.predict(x, level, {}).eps - eps[0]).abs().max() < 0.1


# Classes


@pytest.mark.parametrize("model_type", ["SongUNet", "DhariwalUNet"])
def test_classes_are_one_hot_and_none_is_zeros(model_type: str) -> None:
    backbone = tiny(label_dim=4, model_type=model_type)
    rows = backbone.encode_classes([2, None, 0])["classes"]
    assert rows.tolist() == [[0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]]
    level, x = backbone.level_at(1.0), torch.randn(1, 3, 8, 8).double().expand(3, -1, -1, -1)
    eps = backbone.predict(x, level, {"classes": rows}).eps
    assert not torch.allclose(eps[0], eps[1]) and not torch.allclose(eps[0], eps[2])
    without = backbone.predict(x[:1], level, {}).eps
    torch.testing.assert_close(eps[1:2], without, rtol=1e-4, atol=1e-5)


def test_classifier_free_guidance_leaves_the_unconditional_branch() -> None:
    backbone = tiny(label_dim=4)
    level, x = backbone.level_at(1.0), torch.randn(2, 3, 8, 8).double()
    condition, empty = backbone.encode_classes([1]), backbone.encode_classes([None])
    eps = {
        scale: ClassifierFree(backbone, condition, empty, scale)(x, level).eps
        for scale in (0.0, 1.0, 3.0)
    }
    torch.testing.assert_close(eps[3.0], eps[0.0] + 3 * (eps[1.0] - eps[0.0]), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(eps[0.0], eps[1.0])


@pytest.mark.parametrize("label", [4, -1])
def test_unknown_classes_are_refused(label: int) -> None:
    with pytest.raises(OptionError, match=f"no class {label}"):
        tiny(label_dim=4).encode_classes([0, label])


def test_an_unconditional_network_knows_no_classes() -> None:
    assert (tiny(label_dim=4).class_count, tiny().class_count) == (4, None)
    with pytest.raises(OptionError, match="knows no classes"):
        tiny().encode_classes([1])
    assert tiny().encode_classes([None]) == {}


# Sampling


@pytest.mark.parametrize("recipe", [NAIVE, X0, X0_THROUGH], ids=lambda recipe: recipe.name)
@pytest.mark.parametrize("churn", [0.0, 2.0])
def test_guidance_pulls_towards_its_target_and_states_stay_in_double_precision(
    recipe: Recipe, churn: float
) -> None:
    backbone, guide, health = gaussian(), QuadraticGuide(noise=1.0), Health()
    target = torch.full((1, 3, 8, 8), 0.6)
    solver = Heun(Churn(churn), level_at=backbone.level_at)
    guidance = [Guidance(guide, target, replace(recipe, absolute=True), 0.2)]
    plain = run(backbone, solver, steps=12)
    guided = run(backbone, solver, steps=12, guidance=guidance, health=health)
    assert guided.dtype is torch.float64 and guided.isfinite().all()
    assert not health.skipped
    assert (guided - target).abs().mean() < 0.9 * (plain - target).abs().mean()


def test_a_guide_with_a_network_sees_the_states_in_its_own_precision() -> None:
    backbone, guide, health = gaussian(), ColourGuide(), Health()
    target = torch.full((1, 3), 0.3)
    guided, plain = (
        run(backbone, Heun(), 12, [Guidance(guide, target, X0, scale)], health=health)
        for scale in (20.0, 0.0)
    )
    assert not health.skipped
    before, after = (guide.loss(guide.see(x), target) for x in (plain, guided))
    assert (after < 0.95 * before).all()


@pytest.mark.parametrize("churn", [Churn(), Churn(40.0, 0.05, 50.0)], ids=["plain", "churn"])
def test_samples_have_the_spread_of_the_data(churn: Churn) -> None:
    """With F = 0 the denoiser is exact for pixels from N(0, sigma_data^2)."""
    backbone = tiny()
    for parameter in backbone.network.model.get_submodule("out_conv").parameters():
        parameter.zero_()
    solver = Heun(churn, level_at=backbone.level_at)
    x = run(backbone, solver, steps=100, images=range(30))
    assert float(x.std()) == pytest.approx(0.5, rel=0.04)
    assert float(x.mean()) == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize(
    "solver", [DDIM(), DDIM(1.0), DDPM(), DPMSolverPP2M(), Heun()], ids=lambda solver: str(solver)
)
@pytest.mark.parametrize("class_name", ["EDMPrecond", "iDDPMPrecond"])
def test_every_sampler_of_the_host_runs_on_it(solver: Solver, class_name: str) -> None:
    x = run(tiny(class_name), solver, steps=20)
    assert x.shape == (2, 3, 8, 8) and x.isfinite().all()


@pytest.mark.parametrize("churn", [Churn(), Churn(3.0, 0.05, 50.0, 1.003)], ids=["plain", "churn"])
def test_an_image_depends_neither_on_its_batch_nor_on_the_form_of_the_states(churn: Churn) -> None:
    backbone = tiny()
    preserving = Preserving(backbone)
    one = run(backbone, Heun(churn, level_at=backbone.level_at))
    alone = run(backbone, Heun(churn, level_at=backbone.level_at), images=[1])
    torch.testing.assert_close(one[1:], alone, rtol=1e-4, atol=1e-5)
    other = run(preserving, Heun(churn, level_at=preserving.level_at))
    # Not exactly: the walk begins with the noise at unit scale, and float32 inputs differ.
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_churn_is_made_by_name_and_goes_to_levels_that_the_network_knows() -> None:
    backbone = tiny("iDDPMPrecond")
    assert isinstance(backbone.network, iDDPMPrecond)
    solver = heun(backbone, Churn(4.0))
    assert isinstance(solver, Heun) and solver.churn == Churn(4.0)
    seen: list[NoiseLevel] = []
    walk = backbone.walk(6)

    def denoise(x: Tensor, level: NoiseLevel) -> Prediction:
        seen.append(level)
        return backbone.predict(x, level, {})

    draw = ImageNoise(0, [0], backbone.state_shape)
    sample(backbone, denoise, walk, solver, draw)
    raised = [level for level in seen if level not in walk.levels]
    assert raised
    assert {level.sigma for level in raised} <= set(backbone.network.u.double().tolist())


def test_the_class_reaches_the_sample() -> None:
    backbone = tiny(label_dim=4)
    samples = [run(backbone, Heun(), condition=backbone.encode_classes([k])) for k in (0, 1)]
    assert not torch.allclose(*samples)
