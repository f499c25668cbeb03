"""What networks are shown, and what their outputs mean."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ppap_plugin_dit.backbone import DiTBackbone
from ppap_plugin_edm.backbone import EDMBackbone, time_steps
from ppap_plugin_edm.checkpoint import make
from ppap_plugin_openai.backbone import ADMBackbone
from torch import Tensor, nn
from worlds import GaussianBackbone

from ppap_host.backbones.backbone import ClassifierFree, Prediction, encode, repeat_condition
from ppap_host.backbones.noise import NoiseLevel
from ppap_host.pipelines.schedules import schedule_of

RNG = np.random.default_rng(2)
SHAPE = (2, 3, 8, 8)
X, OUT = RNG.standard_normal((2, *SHAPE))


def same(found: Any, wanted: Any, tolerance: float = 1e-5) -> None:
    found = found.detach().numpy() if isinstance(found, Tensor) else found
    np.testing.assert_allclose(found, np.asarray(wanted), rtol=tolerance, atol=tolerance)


# Karras et al. (2022)


class Stub(nn.Module):
    """Answers with the same tensor, and keeps what it is shown and told."""

    dtype = torch.float32

    def __init__(self, channels: int) -> None:
        super().__init__()
        noise = np.random.default_rng(9).standard_normal((2, channels, 8, 8))
        self.answer = torch.from_numpy(noise).float()

    def forward(self, x: Tensor, noise: Tensor, *labels: Any) -> Tensor:
        self.shown, self.told = x, noise
        return self.answer


def alpha_bar(j: int, shift: float = 0.008, count: int = 1000) -> float:
    return math.sin(math.pi / 2 * j / (count * (shift + 1))) ** 2


def table() -> list[float]:
    """u_j of table 1, iDDPM: u_M = 0, u_{j-1} = sqrt((u_j^2 + 1) / max(abar_{j-1}/abar_j, C_1) - 1)."""  # noqa: E501
    found = [0.0]
    for j in range(1000, 0, -1):
        ratio = max(alpha_bar(j - 1) / alpha_bar(j), 0.001)
        found.append(math.sqrt((found[-1] ** 2 + 1) / ratio - 1))
    return found[::-1]


TABLE = table()
COLUMNS: dict[str, Any] = {
    # sigma -> (c_skip, c_out, c_in, c_noise), table 1
    "EDMPrecond": lambda s: (
        0.25 / (s**2 + 0.25), s * 0.5 / math.sqrt(s**2 + 0.25), 1 / math.sqrt(0.25 + s**2),
        math.log(s) / 4,
    ),
    "VPPrecond": lambda s: (
        1.0, -s, 1 / math.sqrt(s**2 + 1),
        999 * (math.sqrt(0.1**2 + 2 * 19.9 * math.log(1 + s**2)) - 0.1) / 19.9,
    ),
    "VEPrecond": lambda s: (1.0, s, 1.0, math.log(s / 2)),
    "iDDPMPrecond": lambda s: (
        1.0, -s, 1 / math.sqrt(s**2 + 1),
        999 - min(range(1001), key=lambda j: abs(TABLE[j] - s)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("sigma", [0.05, 1.7, 30.0])
def test_a_denoiser_is_its_column_of_table_1(name: str, sigma: float) -> None:
    """D = c_skip x + c_out F(c_in x; c_noise), eq. 7."""
    unet = "SongUNet" if name[0] == "V" else "DhariwalUNet"
    network = make(
        name, img_resolution=8, img_channels=3, model_type=unet, model_channels=16,
        channel_mult=[1], num_blocks=1, attn_resolutions=[],
    )  # fmt: skip
    stub = Stub(6 if name == "iDDPMPrecond" else 3)
    network.model = stub
    found = network(torch.from_numpy(X), torch.tensor(sigma))
    skip, out, inward, noise = COLUMNS[name](sigma)
    same(stub.shown, inward * X)
    same(stub.told, np.full(1, noise), 1e-4)
    denoised = skip * X + out * stub.answer.numpy()[:, :3]
    same(found, denoised)
    eps = EDMBackbone(network).predict(
        torch.from_numpy(X), NoiseLevel(1.0, sigma, sigma), {}
    ).eps  # fmt: skip
    same(eps, (X - denoised) / sigma, 1e-4)


def test_time_steps_are_even_in_a_power_of_the_noise() -> None:
    """Eq. 5."""
    for n, low, high, rho in ((5, 0.002, 80.0, 7.0), (3, 0.1, 4.0, 2.0)):
        roots = np.linspace(high ** (1 / rho), low ** (1 / rho), n)
        same(time_steps(n, low, high, rho), roots**rho, 1e-9)
    same(time_steps(4, 0.002, 80.0, 7.0, (0.5, 20.0))[[0, -1]], [20.0, 0.5], 1e-9)
    same(time_steps(1, 0.002, 80.0, 7.0), [80.0], 1e-9)


# Networks that are told a step


def answering(channels: int) -> tuple[Any, dict[str, Any]]:
    """A network that answers with noise; what it was given."""
    given: dict[str, Any] = {}
    answer = torch.from_numpy(np.random.default_rng(9).standard_normal((2, channels, 8, 8)))

    def network(x: Tensor, time: Any = None, **others: Any) -> Any:
        given.update(x=x, time=time if time is not None else others.pop("timestep"), **others)
        return SimpleNamespace(sample=answer.to(x))

    return network, {"given": given, "answer": answer.numpy()}


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("predicts_x0", [True, False])
def test_a_network_is_told_the_original_step_and_its_second_half_is_the_variance(
    learned: bool, predicts_x0: bool
) -> None:
    network, seen = answering(6 if learned else 3)
    level = NoiseLevel(0.6, 0.8, 321.0)
    dit: Any = object.__new__(DiTBackbone)
    dit.transformer, dit.dtype, dit._predicts_x0 = network, torch.float32, predicts_x0
    adm: Any = object.__new__(ADMBackbone)
    network.config = SimpleNamespace(num_class_embeds=None)  # type: ignore[attr-defined]
    adm.unet, adm.dtype = network, torch.float32
    for backbone in (dit, adm):
        found = backbone.predict(torch.from_numpy(X), level, {"labels": torch.zeros(2)})
        same(seen["given"]["x"], X)
        same(seen["given"]["time"], [321.0, 321.0])
        first = seen["answer"][:, :3]
        if predicts_x0 and backbone is dit:
            first = (X - 0.6 * first) / 0.8
        same(found.eps, first)
        if learned:
            same(found.v, seen["answer"][:, 3:])
        else:
            assert found.v is None


# diffusers: what a network's output means, by x = alpha x_0 + sigma eps

X0, EPS = RNG.standard_normal((2, *SHAPE))


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_outputs_of_variance_preserving_networks(prediction: str) -> None:
    """v = alpha eps - sigma x_0 (Salimans and Ho, 2022)."""
    import diffusers

    schedule = schedule_of(diffusers.DDIMScheduler(prediction_type=prediction))
    level = NoiseLevel(0.6, 0.8, 400.0)
    x = 0.6 * X0 + 0.8 * EPS
    out = {"epsilon": EPS, "sample": X0, "v_prediction": 0.6 * EPS - 0.8 * X0}[prediction]
    same(schedule.eps(torch.from_numpy(x), torch.from_numpy(out), level), EPS)


def test_outputs_of_flows() -> None:
    """The velocity eps - x_0 of x = (1 - t) x_0 + t eps."""
    import diffusers

    schedule = schedule_of(diffusers.FlowMatchEulerDiscreteScheduler())
    x, out = 0.3 * X0 + 0.7 * EPS, EPS - X0
    found = schedule.eps(torch.from_numpy(x), torch.from_numpy(out), NoiseLevel(0.3, 0.7, 700.0))
    same(found, EPS)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_outputs_of_karras_networks(prediction: str) -> None:
    """D = c_skip x + c_out F, with c_out of the other sign for networks trained on v."""
    import diffusers

    scheduler = diffusers.EDMEulerScheduler(sigma_data=0.5, prediction_type=prediction)
    schedule, level = schedule_of(scheduler), NoiseLevel(1.0, 3.0, 0.0)
    x = X0 + 3 * EPS
    skip, out = 0.25 / 9.25, 3 * 0.5 / math.sqrt(9.25)
    sign = 1 if prediction == "epsilon" else -1
    same(schedule.network_input(torch.from_numpy(x), level), x / math.sqrt(9.25))
    denoised = skip * x + sign * out * OUT
    same(schedule.eps(torch.from_numpy(x), torch.from_numpy(OUT), level), (x - denoised) / 3)


# Classifier-free guidance


class Told(GaussianBackbone):
    """Noise and variance are functions of what it is told."""

    def predict(self, x: Tensor, level: NoiseLevel, condition: Any) -> Prediction:
        self.evaluations += 1
        told = condition["told"].view(-1, 1, 1, 1) if condition else torch.zeros(len(x), 1, 1, 1)
        return Prediction(0 * x + told, 0 * x + 10 * told)


@pytest.mark.parametrize("channels", [None, 2])
def test_guidance_extrapolates_from_the_unconditional_branch(channels: int | None) -> None:
    """Ho and Salimans (2022), eq. 6, of the first channels, with the conditional variance."""
    world = Told()
    world.cfg_channels = channels
    level, x = world.walk(5).levels[2], torch.from_numpy(X[:, :, :4, :4])
    told = {"told": torch.tensor([2.0, 3.0]).double()}
    empty = {"told": torch.tensor([0.5]).double()}
    found = ClassifierFree(world, told, empty, 3.0)(x, level)
    wanted = np.array([0.5 + 3 * 1.5, 0.5 + 3 * 2.5]).reshape(2, 1, 1, 1) * np.ones((2, 3, 4, 4))
    if channels:
        wanted[:, channels:] = np.array([2.0, 3.0]).reshape(2, 1, 1, 1)
    same(found.eps, wanted)
    same(found.v, np.array([20.0, 30.0]).reshape(2, 1, 1, 1) * np.ones((2, 3, 4, 4)))
    assert world.evaluations == 1
    same(ClassifierFree(world, told, empty, 1.0)(x, level).eps[:, 0, 0, 0], [2.0, 3.0])
    same(ClassifierFree(world, told, empty, 0.0)(x, level).eps[:, 0, 0, 0], [0.5, 0.5])
    same(ClassifierFree(world, {}, {}, 7.0)(x, level).eps[:, 0, 0, 0], [0.0, 0.0])


def test_one_row_of_a_condition_serves_all_images() -> None:
    rows = repeat_condition({"a": torch.tensor([[1.0, 2.0]])}, 3)["a"]
    same(rows, [[1.0, 2.0]] * 3)
    assert encode(GaussianBackbone(), ["", ""], [None, None]) == {}


def test_the_nearest_level_is_found_by_its_relative_noise() -> None:
    world = GaussianBackbone()
    ratios = [lv.sigma / lv.alpha for lv in world.levels()]
    for s in (ratios[3], 0.4 * ratios[10] + 0.6 * ratios[11], 1e9):
        nearest = min(range(len(ratios)), key=lambda k: abs(ratios[k] - s))
        assert world.level_at(s) == world.levels()[nearest]
