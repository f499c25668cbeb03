"""Smooth activations in any network: formulas, every way to call them, gradients, networks."""

from __future__ import annotations

import importlib
import math
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from worlds import GaussianBackbone, QuadraticGuide

from ppap_host.backbones.noise import NoiseLevel, uniform_ranges
from ppap_host.experts.patches import Patch
from ppap_host.experts.sets import ExpertSet, WithExperts
from ppap_host.files.errors import OptionError
from ppap_host.guides.activations import Softened, softened
from ppap_host.guides.guide import Guide, default_patch_plan

BETA = 4.0
SLOPES = torch.tensor([0.1, 0.3, 0.6], dtype=torch.float64)


def plus(z: Tensor) -> Tensor:
    """Softplus, as one would write it; exact where torch switches to the identity."""
    return torch.logaddexp(BETA * z, torch.zeros_like(z)) / BETA


def leaky(z: Tensor, slope: float | Tensor) -> Tensor:
    return slope * z + (1 - slope) * plus(z)


def between(z: Tensor, low: float, high: float) -> Tensor:
    return low + plus(z - low) - plus(z - high)


def exponential(z: Tensor, alpha: float) -> Tensor:
    return plus(z) + alpha * torch.expm1(-plus(-z))


SELU = 1.0507009873554805, 1.6732632423543772
_prelu = nn.PReLU(3, dtype=torch.float64)
with torch.no_grad():
    _prelu.weight.copy_(SLOPES)
_nn: Any = torch._C._nn

# What is called, and what it must give; forms with an underscore or inplace overwrite.
CALLS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "nn.ReLU": (nn.ReLU(), plus),
    "nn.ReLU in place": (nn.ReLU(inplace=True), plus),
    "F.relu": (F.relu, plus),
    "F.relu by keyword": (lambda z: F.relu(input=z, inplace=True), plus),
    "F.relu_": (F.relu_, plus),
    "torch.relu": (torch.relu, plus),
    "torch.relu_": (torch.relu_, plus),
    "Tensor.relu": (Tensor.relu, plus),
    "Tensor.relu_": (Tensor.relu_, plus),
    "aten.relu": (torch.ops.aten.relu.default, plus),
    "aten.relu_": (torch.ops.aten.relu_, plus),
    "nn.Threshold": (nn.Threshold(0.5, 0.5), lambda z: 0.5 + plus(z - 0.5)),
    "torch.threshold_": (lambda z: torch.threshold_(z, 0, 0), plus),
    "nn.ReLU6": (nn.ReLU6(), lambda z: between(z, 0, 6)),
    "F.relu6 in place": (lambda z: F.relu6(z, True), lambda z: between(z, 0, 6)),
    "nn.LeakyReLU": (nn.LeakyReLU(0.2), lambda z: leaky(z, 0.2)),
    "F.leaky_relu_": (lambda z: _nn.leaky_relu_(z, 0.2), lambda z: leaky(z, 0.2)),
    "nn.PReLU": (_prelu, lambda z: leaky(z, SLOPES.view(-1, 1, 1))),
    "F.prelu, one slope": (lambda z: F.prelu(z, SLOPES[:1]), lambda z: leaky(z, 0.1)),
    "Tensor.prelu": (lambda z: z.prelu(SLOPES), lambda z: leaky(z, SLOPES.view(-1, 1, 1))),
    "nn.RReLU": (nn.RReLU(0.1, 0.3).eval(), lambda z: leaky(z, 0.2)),
    "torch.rrelu_": (lambda z: torch.rrelu_(z, 0.1, 0.3), lambda z: leaky(z, 0.2)),
    "nn.Hardtanh": (nn.Hardtanh(-0.5, 2.0), lambda z: between(z, -0.5, 2)),
    "F.hardtanh_": (lambda z: _nn.hardtanh_(z, -0.5, 2.0), lambda z: between(z, -0.5, 2)),
    "nn.Hardsigmoid": (nn.Hardsigmoid(), lambda z: between(z + 3, 0, 6) / 6),
    "nn.Hardswish": (nn.Hardswish(True), lambda z: z * between(z + 3, 0, 6) / 6),
    "nn.ELU": (nn.ELU(2.0), lambda z: exponential(z, 2.0)),
    "F.elu_": (lambda z: _nn.elu_(z, 2.0), lambda z: exponential(z, 2.0)),
    "nn.SELU": (nn.SELU(True), lambda z: SELU[0] * exponential(z, SELU[1])),
    "torch.selu": (torch.selu, lambda z: SELU[0] * exponential(z, SELU[1])),
}
INPLACE = {n for n in CALLS if n.endswith("_") or "in place" in n or "keyword" in n}
INPLACE |= {"nn.Hardswish", "nn.SELU"}


def numbers(*shape: int, seed: int = 0, spread: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(*shape, generator=generator, dtype=torch.float64)


class NetworkGuide(QuadraticGuide):
    """A guide that is nothing but a network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._network = network.eval().requires_grad_(False)

    def network(self) -> nn.Module:
        return self._network

    def see(self, x: Tensor, level: NoiseLevel | None = None) -> Tensor:
        return Guide.see(self, x, level)


def small() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Conv2d(8, 4, 3), nn.ReLU())
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 5)).double()


@pytest.mark.parametrize("name", CALLS)
def test_each_way_to_call_gives_the_formula_and_its_gradient(name: str) -> None:
    call, formula = CALLS[name]
    x = numbers(2, 3, 4, 4).requires_grad_()
    weight = numbers(2, 3, 4, 4, seed=1)
    with softened(BETA):
        seen = call(x * 1.0)  # a copy to overwrite
    torch.testing.assert_close(seen, formula(x), rtol=0, atol=1e-8)
    # The backward pass comes when the context is over.
    (gradient,) = torch.autograd.grad((seen * weight).sum(), x)
    (wanted,) = torch.autograd.grad((formula(x) * weight).sum(), x)
    torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", CALLS)
def test_each_tends_to_the_original(name: str) -> None:
    call, _ = CALLS[name]
    x = numbers(2, 3, 4, 4)
    plain = call(x.clone())
    gaps = []
    for beta in (1.0, 100.0, 1e5):
        with softened(beta):
            gaps.append(float((call(x.clone()) - plain).detach().abs().max()))
    assert gaps[0] > gaps[1] > gaps[2] and gaps[2] < 1e-4
    with softened(math.inf):
        assert torch.equal(call(x.clone()), plain)


@pytest.mark.parametrize("name", CALLS)
def test_second_derivatives_are_right(name: str) -> None:
    call, _ = CALLS[name]
    x = numbers(1, 3, 2, 1, spread=1.0).requires_grad_()

    def inside(z: Tensor) -> Tensor:
        with softened(BETA):
            return call(z * 1.0)

    for slope in _prelu.parameters():
        slope.requires_grad_(False)
    assert torch.autograd.gradcheck(inside, x)
    assert torch.autograd.gradgradcheck(inside, x)


@pytest.mark.parametrize("name", CALLS)
def test_what_overwrites_its_input_still_does_and_nothing_else_does(name: str) -> None:
    call, formula = CALLS[name]
    x = numbers(2, 3, 4, 4)
    for grad in (False, True):
        z = x.clone().requires_grad_(grad) * 1
        with softened(BETA):
            returned = call(z)
        assert (returned is z) == (name in INPLACE)
        torch.testing.assert_close(z, formula(x) if name in INPLACE else x, rtol=0, atol=1e-8)


def test_an_ignored_result_in_place_counts_also_in_a_part_of_a_tensor() -> None:
    x = numbers(2, 4).requires_grad_()
    with softened(BETA):
        z = x * 1
        z[:, :2].relu_()
        F.leaky_relu(z[0], 0.2, inplace=True)
    z.sum().backward()

    y = x.detach().clone().requires_grad_()
    half = torch.cat([plus(y[:, :2]), y[:, 2:]], dim=1)
    wanted = torch.stack([leaky(half[0], 0.2), half[1]])
    torch.testing.assert_close(z, wanted, rtol=0, atol=1e-8)
    wanted.sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=0, atol=1e-8)


def test_beyond_the_threshold_it_is_the_identity_as_in_the_paper_s_code() -> None:
    z = torch.tensor([20.001, 19.999], dtype=torch.float64) / BETA
    with softened(BETA):
        seen = F.relu(z)
    assert seen[0] == z[0] and seen[1] != z[1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_precision_stays(dtype: torch.dtype) -> None:
    x = numbers(4, 3, 2).to(dtype)
    with softened(BETA):
        for call in (F.relu, F.relu6, F.hardswish, F.selu):
            assert call(x).dtype == dtype
            assert call(x.clone(), inplace=True).dtype == dtype
    with softened(BETA), torch.autocast("cpu", torch.bfloat16):
        assert F.relu(F.linear(x, x[0])).dtype == torch.bfloat16


def test_what_is_no_activation_of_the_family_is_left_alone() -> None:
    x = numbers(3, 5)
    calls: list[Callable[[Tensor], Tensor]] = [
        F.gelu, F.silu, F.mish, F.elu, F.celu, F.softplus, F.sigmoid, torch.tanh,
        lambda z: z.clamp(0, 1), lambda z: z.clamp_min(0), lambda z: torch.clamp(z, max=1),
        lambda z: F.threshold(z, 1.0, 0.0), lambda z: F.relu((10 * z).long()),
    ]  # fmt: skip
    plain = [call(x) for call in calls]
    with softened(BETA):
        assert all(torch.equal(call(x), value) for call, value in zip(calls, plain, strict=True))
        torch.manual_seed(0)
        drawn = F.rrelu(x, training=True)
    torch.manual_seed(0)
    assert torch.equal(drawn, F.rrelu(x, training=True))


def test_clamps_are_softened_only_where_asked() -> None:
    x = numbers(3, 5)
    with softened(BETA, clamps=True):
        torch.testing.assert_close(x.clamp(min=0), plus(x), rtol=0, atol=1e-8)
        torch.testing.assert_close(x.clamp_min(0.5), 0.5 + plus(x - 0.5), rtol=0, atol=1e-8)
        torch.testing.assert_close(torch.clamp(x, -1, 2), between(x, -1, 2), rtol=0, atol=1e-8)
        torch.testing.assert_close(torch.clip(x, max=2), x - plus(x - 2), rtol=0, atol=1e-8)
        torch.testing.assert_close(x.clamp_max(2), x - plus(x - 2), rtol=0, atol=1e-8)
        torch.testing.assert_close(x.clone().clamp_(0, 6), between(x, 0, 6), rtol=0, atol=1e-8)


def test_wrong_calls_fail_as_they_do_without() -> None:
    with softened(BETA):
        with pytest.raises(TypeError):
            F.relu(numbers(2), slope=0.1)  # type: ignore[call-arg]
        with pytest.raises(RuntimeError, match="leaf"):
            numbers(2).requires_grad_().relu_()


@pytest.mark.parametrize("call", [F.gelu, F.silu, F.mish, nn.SiLU(inplace=True), nn.GELU("tanh")])
def test_gates_widen_the_bend_and_keep_the_limits(call: Callable[[Tensor], Tensor]) -> None:
    x = numbers(3, 50)
    plain = call(x.clone())
    with softened(BETA, gates=1.0):
        assert torch.equal(call(x.clone()), plain)
    with softened(math.inf, gates=0.5):
        seen = call(x.clone())
        far = call(torch.tensor([-200.0, 200.0], dtype=torch.float64))
    torch.testing.assert_close(seen, 2 * call(x / 2))
    torch.testing.assert_close(far, torch.tensor([0.0, 200.0], dtype=torch.float64))

    def bend(gates: float) -> float:
        z = torch.linspace(-6, 6, 201, dtype=torch.float64, requires_grad=True)
        with softened(math.inf, gates=gates):
            y = call(z * 1)
        (slope,) = torch.autograd.grad(y.sum(), z, create_graph=True)
        (second,) = torch.autograd.grad(slope.sum(), z)
        return float(second.abs().max())

    assert bend(0.5) == pytest.approx(bend(1.0) / 2, rel=0.02)


def test_the_innermost_of_several_counts() -> None:
    x = numbers(8)
    with softened(1.0):
        with softened(BETA, gates=0.5):
            torch.testing.assert_close(F.relu(x), plus(x), rtol=0, atol=1e-8)
            torch.testing.assert_close(F.silu(x), x * (x / 2).sigmoid())
        with softened(math.inf):
            assert torch.equal(F.relu(x), x.clamp(min=0))
        assert torch.equal(F.relu(x), F.softplus(x, 1.0))
    assert torch.equal(F.relu(x), x.clamp(min=0))


def test_it_ends_with_its_context_also_after_an_error() -> None:
    x = numbers(8)
    with pytest.raises(ZeroDivisionError), softened(BETA):
        raise ZeroDivisionError
    assert torch.equal(F.relu(x), x.clamp(min=0))
    with softened(BETA):
        torch.testing.assert_close(F.relu(x), plus(x), rtol=0, atol=1e-8)


def test_threads_do_not_meet() -> None:
    x = numbers(64)
    inside, done = threading.Event(), threading.Event()
    other: list[Tensor] = []

    def soft() -> None:
        with softened(1.0):
            inside.set()
            done.wait(30)
            other.append(F.relu(x))

    thread = threading.Thread(target=soft)
    thread.start()
    assert inside.wait(30)
    assert torch.equal(F.relu(x), x.clamp(min=0))
    with softened(BETA):
        torch.testing.assert_close(F.relu(x), plus(x), rtol=0, atol=1e-8)
        done.set()
        thread.join(30)
    assert torch.equal(other[0], F.softplus(x, 1.0))


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_a_sharpness_that_is_not_positive_is_refused(value: float) -> None:
    with pytest.raises(OptionError, match="Softplus must be positive"), softened(value):
        pass
    with pytest.raises(OptionError, match="must be positive"), softened(1.0, gates=value):
        pass
    with pytest.raises(OptionError):
        Softened(NetworkGuide(small()), value)


# Networks


class Pixels(nn.Module):
    """A model of transformers as a plain function of pixels."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.model(pixel_values=pixels).logits
        return logits


def from_torchvision(name: str, **options: Any) -> nn.Module:
    models = importlib.import_module("torchvision.models")
    network: nn.Module = getattr(models, name)(weights=None, num_classes=5, **options)
    if hasattr(network, "maxpool"):
        network.maxpool = nn.AvgPool2d(3, 2, 1)  # a maximum has kinks of its own
    return network


def from_timm(name: str, **options: Any) -> nn.Module:
    timm = importlib.import_module("timm")
    network: nn.Module = timm.create_model(name, num_classes=5, **options)
    return network


def vit_of_transformers(activation: str) -> nn.Module:
    library = importlib.import_module("transformers")
    config = library.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        image_size=32, patch_size=8, hidden_act=activation, num_labels=5,
    )  # fmt: skip
    return Pixels(library.ViTForImageClassification(config))


class Encoder(nn.Module):
    """torch's own transformer, which has a fused path for evaluation, with ReLU inside."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.embed = nn.Conv2d(3, 16, 8, 8)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        logits: Tensor = self.head(self.encoder(tokens).mean(dim=1))
        return logits


KINKED: dict[str, Callable[[], nn.Module]] = {
    "torchvision resnet18, in place": lambda: from_torchvision("resnet18"),
    "torchvision mobilenet_v2, ReLU6": lambda: from_torchvision("mobilenet_v2"),
    "torchvision mobilenet_v3, hardswish": lambda: from_torchvision("mobilenet_v3_small"),
    "timm resnetblur18": lambda: from_timm(
        "resnetblur18", layers=[1, 1, 1, 1], channels=[8, 8, 16, 16], replace_stem_pool=True
    ),
    "transformers ViT with ReLU": lambda: vit_of_transformers("relu"),
    "torch TransformerEncoder": Encoder,
}
SMOOTH: dict[str, Callable[[], nn.Module]] = {
    "timm efficientnet, SiLU": lambda: from_timm("test_efficientnet"),
    "timm vit, GELU": lambda: from_timm("test_vit", img_size=32),
    "transformers ViT, GELU": lambda: vit_of_transformers("gelu"),
}


def made(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(3)
    network = make().double()
    generator = torch.Generator().manual_seed(4)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.weight is not None:
            # Untrained statistics would let the signal of a deep network die or explode.
            module.momentum = None
            module.bias.data = 0.1 * torch.randn(
                module.bias.shape, generator=generator, dtype=torch.float64
            )
    with torch.no_grad():
        network.train()(numbers(8, 3, 32, 32, seed=5, spread=1.0))
    return network.eval().requires_grad_(False)


def remaining_jump(network: nn.Module, halvings: int = 26) -> float:
    """How much of its change along a line the gradient makes within 1e-8 of it.

    Halves an interval again and again and goes on with the half in which the slope changes more:
    a continuous gradient changes as much less as the interval is shorter, a kink stays a kink.
    """
    start, way = numbers(1, 3, 32, 32, seed=6, spread=1.0), numbers(1, 3, 32, 32, seed=7, spread=1)

    def slope(t: float) -> Tensor:
        x = (start + t * way).requires_grad_()
        (gradient,) = torch.autograd.grad(network(x)[0, 0], x)
        return gradient

    low, high = -0.5, 0.5
    at_low, at_high = slope(low), slope(high)
    whole = float((at_high - at_low).norm())
    for _ in range(halvings):
        middle = (low + high) / 2
        at_middle = slope(middle)
        if (at_middle - at_low).norm() > (at_high - at_middle).norm():
            high, at_high = middle, at_middle
        else:
            low, at_low = middle, at_middle
    return float((at_high - at_low).norm()) / whole


@pytest.mark.parametrize("name", KINKED)
def test_gradients_jump_plainly_and_are_continuous_under_it(name: str) -> None:
    network = made(KINKED[name])
    assert remaining_jump(network) > 1e-3
    with softened(BETA):
        assert remaining_jump(network) < 1e-4


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_networks_stay_as_they_are_unless_gates_say_otherwise(name: str) -> None:
    network = made(SMOOTH[name])
    assert remaining_jump(network) < 1e-4
    x = numbers(2, 3, 32, 32, spread=1.0)
    plain = network(x)
    with softened(BETA):
        assert torch.equal(network(x), plain)
    with softened(BETA, gates=0.5):
        assert not torch.allclose(network(x), plain)
        assert remaining_jump(network) < 1e-4


@pytest.mark.parametrize("name", KINKED)
def test_a_sharp_network_is_nearly_the_plain_one(name: str) -> None:
    network, x = made(KINKED[name]), numbers(2, 3, 32, 32, spread=1.0)
    plain, gaps = network(x), []
    for beta in (1e1, 1e3, 1e5):
        with softened(beta), torch.no_grad():
            gaps.append(float((network(x) - plain).norm() / plain.norm()))
    assert gaps[0] > gaps[1] > gaps[2] and gaps[2] < 1e-3
    with softened(math.inf):
        assert torch.equal(network(x), plain)


def test_it_is_the_network_with_softplus_modules_in_place_of_relu() -> None:
    network = made(KINKED["torchvision resnet18, in place"])
    x = numbers(2, 3, 32, 32, spread=1.0).requires_grad_()
    with softened(BETA):
        soft = network(x)
    (gradient,) = torch.autograd.grad(soft.sum(), x)
    for module in list(network.modules()):
        for child in [n for n, m in module.named_children() if isinstance(m, nn.ReLU)]:
            setattr(module, child, nn.Softplus(BETA))
    wanted = network(x)
    torch.testing.assert_close(soft, wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, torch.autograd.grad(wanted.sum(), x)[0])


# Guides


def test_a_guide_sees_smoothly_and_its_network_is_left_as_it_was() -> None:
    guide = NetworkGuide(small())
    soft = Softened(guide, BETA)
    x = numbers(2, 3, 8, 8, spread=1.0)
    plain = guide.see(x)
    seen = soft.see(x)
    with softened(BETA):
        assert torch.equal(seen, guide.network()(x))
    assert not torch.allclose(seen, plain)
    assert torch.equal(guide.see(x), plain) and torch.equal(guide.network()(x), plain)
    assert soft.network() is guide.network() and soft.name == guide.name
    assert (soft.beta, soft.gates) == (BETA, 1.0)
    assert torch.equal(Softened(guide, math.inf).see(x), plain)


def test_its_gradient_is_that_of_the_smooth_network_after_it_has_looked() -> None:
    guide = NetworkGuide(small())
    x = numbers(2, 3, 8, 8, spread=1.0).requires_grad_()
    (gradient,) = torch.autograd.grad(Softened(guide, BETA).see(x).sum(), x)
    with softened(BETA):
        (wanted,) = torch.autograd.grad(guide.network()(x).sum(), x)
    assert torch.equal(gradient, wanted)


def test_a_backbone_is_not_softened_while_a_guide_is() -> None:
    class Kinked(GaussianBackbone):
        def predict(self, x: Tensor, level: NoiseLevel, condition: Any) -> Any:
            seen.append(F.relu(torch.zeros(1)))
            return super().predict(x, level, condition)

    seen: list[Tensor] = []
    backbone = Kinked()
    level = backbone.levels()[500]
    guide = Softened(NetworkGuide(small()), BETA)
    x = numbers(1, 3, 8, 8)
    guide.see(backbone.predict(x, level, None).eps)
    backbone.predict(x, level, None)
    assert [float(value) for value in seen] == [0.0, 0.0]


@pytest.mark.parametrize("above", [True, False])
def test_experts_are_softened_whether_they_lie_below_or_above(above: bool) -> None:
    guide = NetworkGuide(small())
    levels = GaussianBackbone().levels()
    ranges = uniform_ranges(levels, 2)
    plan = default_patch_plan(guide.network(), rank=2)
    patches = [Patch.fresh(guide.network(), plan, seed=k) for k in range(2)]
    for patch in patches:
        for name, value in patch.direct.items():
            patch.direct[name] = value + 0.1
    experts = ExpertSet(ranges, patches, {})
    plain = WithExperts(guide, experts)
    soft: Guide = Softened(plain, BETA) if above else WithExperts(Softened(guide, BETA), experts)
    x = numbers(2, 3, 8, 8, spread=1.0)
    for level in (levels[0], levels[-1], None):
        with softened(BETA):
            wanted = plain.see(x, level)
        seen = soft.see(x, level)
        torch.testing.assert_close(seen, wanted, rtol=1e-12, atol=1e-12)
        assert not torch.allclose(seen, plain.see(x, level))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_scripted_and_compiled_parts_are_refused_by_name() -> None:
    for make in (
        lambda: torch.jit.script(nn.ReLU()),
        lambda: torch.jit.trace(nn.ReLU(), torch.zeros(1)),
    ):
        network = nn.Sequential(nn.Conv2d(3, 3, 1), make())
        with pytest.raises(OptionError, match=r"'1' of its network is a torch\.jit program"):
            Softened(NetworkGuide(network), BETA)
        assert Softened(NetworkGuide(network), math.inf).network() is network
    with pytest.raises(OptionError, match=r"its network is a torch\.compile program"):
        Softened(NetworkGuide(torch.compile(nn.ReLU())), BETA)
    in_place = nn.Sequential(nn.ReLU())
    in_place[0].compile()
    with pytest.raises(OptionError, match=r"'0' of its network is a torch\.compile program"):
        Softened(NetworkGuide(in_place), BETA)


def test_activation_checkpointing_is_refused() -> None:
    network = from_timm("test_vit", img_size=32)
    Softened(NetworkGuide(network), BETA)
    network.set_grad_checkpointing()  # type: ignore[operator]
    with pytest.raises(OptionError, match="checkpointing"):
        Softened(NetworkGuide(network), BETA)
