"""Patches on the networks that people guide with, and on the oddities that networks have."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import transformers
from timm.models import swin_transformer
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from worlds import GaussianBackbone, QuadraticGuide

from ppap_host.backbones.noise import NoiseLevel, uniform_ranges
from ppap_host.experts.patches import Patch, Patched, factor_shapes, low_rank_delta, network_hash
from ppap_host.experts.sets import ExpertSet, WithExperts
from ppap_host.guides.guide import Guide, PatchPlan, default_patch_plan


class NetworkGuide(QuadraticGuide):
    """A guide that is nothing but a network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._network = network

    def network(self) -> nn.Module:
        return self._network

    def see(self, x: Tensor, level: NoiseLevel | None = None) -> Tensor:
        return Guide.see(self, x, level)


class Pixels(nn.Module):
    """A model of transformers as a plain function of pixels."""

    def __init__(self, model: nn.Module, field: str) -> None:
        super().__init__()
        self.model, self.field = model, field

    def forward(self, pixels: Tensor) -> Tensor:
        output: Tensor = getattr(self.model(pixel_values=pixels), self.field)
        return output


def from_timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        network: nn.Module = timm.create_model(name, num_classes=5, **options)
        return network

    return make


def swin() -> nn.Module:
    """Tables of relative positions."""
    network: nn.Module = swin_transformer.SwinTransformer(
        img_size=32, patch_size=2, embed_dim=16, depths=(1, 1), num_heads=(2, 2), window_size=4,
        num_classes=5,
    )  # fmt: skip
    return network


def dpt() -> nn.Module:
    config = transformers.DPTConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64,
        image_size=32, patch_size=8, backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 16, 24, 32], fusion_hidden_size=16, head_in_index=-1,
        reassemble_factors=[4, 2, 1, 0.5], use_auxiliary_head=False,
    )  # fmt: skip
    return Pixels(transformers.DPTForDepthEstimation(config), "predicted_depth")


def segformer() -> nn.Module:
    config = transformers.SegformerConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 24, 32], num_attention_heads=[1, 2, 2, 4],
        decoder_hidden_size=16, num_labels=4,
    )  # fmt: skip
    return Pixels(transformers.SegformerForSemanticSegmentation(config), "logits")


def segmenter(kind: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        network: nn.Module = getattr(smp, kind)("mobilenet_v2", encoder_weights=None, classes=4)
        return network

    return make


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": from_timm("resnet18"),
    "deit_tiny": from_timm("deit_tiny_patch16_224", img_size=32),
    "vit_tiny": from_timm("vit_tiny_patch16_224", img_size=32, init_values=1e-2),
    "convnext_atto": from_timm("convnext_atto"),
    "swin": swin,
    "dpt": dpt,
    "segformer": segformer,
    "unet": segmenter("Unet"),
    "deeplabv3": segmenter("DeepLabV3"),
    "fpn": segmenter("FPN"),
}

RATES = {"dpt": 2e-2, "segformer": 2e-2, "fpn": 1e-3}


def learn(network: nn.Module, patch: Patch, x: Tensor, steps: int = 4, rate: float = 5e-3) -> float:
    """Trains a patch to shift the network's output; the loss as a share of what it was."""
    trainable = [t.requires_grad_(True) for t in patch.trainable()]
    optimiser = torch.optim.Adam(trainable, lr=rate)
    with torch.no_grad():
        target = network(x).float() + 1
    losses = []
    for _ in range(steps + 1):
        loss = (patch.over(network)(x).float() - target).square().mean()
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        assert all(t.grad is None or t.grad.isfinite().all() for t in trainable)
        optimiser.step()
    assert any(t.grad is not None and t.grad.any() for t in trainable)
    for t in trainable:
        t.requires_grad_(False)
    return losses[-1] / losses[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_patch_is_laid_trained_kept_and_routed_on(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name]().eval().requires_grad_(False)
    before, x = network_hash(network), torch.randn(2, 3, 32, 32)
    fresh, trained = (
        Patch.fresh(network, default_patch_plan(network, rank=2), seed=seed) for seed in (0, 1)
    )
    with torch.no_grad():
        plain = network(x)
        torch.testing.assert_close(fresh.over(network)(x), plain)

    assert learn(network, trained, x, rate=RATES.get(name, 5e-3)) < 0.9
    assert network_hash(network) == before

    guide = NetworkGuide(network)
    world = GaussianBackbone()
    experts = ExpertSet(
        uniform_ranges(world.levels(), 2),
        [fresh, trained],
        {"guide": guide.name, "network_sha256": before, "image_size": [32, 32]},
    )
    experts.save(tmp_path / "set.safetensors")
    routed = WithExperts(guide, ExpertSet.load(tmp_path / "set.safetensors"), (32, 32))
    noisy, *_, fine, _ = world.walk(6).levels
    with torch.no_grad():
        torch.testing.assert_close(routed.see(x, fine), plain)
        taught = trained.over(network)(x)
        torch.testing.assert_close(routed.see(x, noisy), taught)
    assert (taught - plain).abs().max() > 1e-3
    assert routed.see(x.requires_grad_(True), noisy).requires_grad
    assert network_hash(network) == before


class Tied(nn.Module):
    """One layer in two places, and one weight in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.again = self.first
        self.other = nn.Linear(16, 16)
        self.other.weight = self.first.weight
        self.statistics = nn.BatchNorm1d(16)
        self.same = self.statistics

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.same(self.other(self.again(self.statistics(self.first(x)))))
        return y


def test_shared_layers_and_tied_weights_are_changed_once_and_everywhere() -> None:
    torch.manual_seed(0)
    network = Tied().eval().requires_grad_(False)
    before, weight = network_hash(network), network.first.weight
    x = torch.randn(4, 16)
    aliases = PatchPlan(2, ("first.weight", "again.weight", "other.weight"), ("again.bias",))
    for plan in (aliases, default_patch_plan(network, rank=2)):
        patch = Patch.fresh(network, plan)
        assert list(patch.low_rank) == ["first.weight"]
        assert "first.bias" in patch.direct
        assert not any(name.startswith(("again", "same")) for name in patch.direct)
        assert learn(network, patch, x) < 0.97
        by_hand = Tied().eval()
        by_hand.load_state_dict(network.state_dict())
        by_hand.load_state_dict(patch.merged(network), strict=False)
        with torch.no_grad():
            torch.testing.assert_close(patch.over(network)(x), by_hand(x))
    # functional_call leaves the shared layer with the patch's weight.
    assert network.first.weight is weight is network.other.weight
    assert network_hash(network) == before


def test_an_exception_in_the_network_leaves_it_as_it_was() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(5, 4)).requires_grad_(False)
    before = network_hash(network)
    patch = Patch.full(network)
    patch.direct["0.weight"] += 1
    with pytest.raises(RuntimeError):
        patch.over(network)(torch.zeros(1, 4))
    assert network_hash(network) == before


@pytest.mark.parametrize(
    "layer",
    [
        nn.ConvTranspose2d(24, 40, 3, stride=2),
        nn.ConvTranspose2d(24, 40, (2, 4), groups=2),
        nn.Conv2d(24, 40, 3, groups=2),
        nn.Conv1d(24, 40, 5),
        nn.Conv3d(24, 40, 3),
    ],
    ids=str,
)
def test_factors_of_convolutions_are_few_and_of_low_rank(layer: nn.Module) -> None:
    torch.manual_seed(0)
    layer.requires_grad_(False)
    rank, weight = 2, layer.get_parameter("weight")
    patch = Patch.fresh(layer, default_patch_plan(layer, rank))
    a, b = patch.low_rank["weight"]
    out, inner, *kernel = weight.shape
    last, rest = kernel[-1], weight[0, 0].numel() // kernel[-1]
    assert (a.numel(), b.numel()) == (rank * last**2 * inner, rank * last * out * rest)
    delta = low_rank_delta(a, torch.randn(b.shape), weight.shape)
    assert delta.shape == weight.shape
    assert torch.linalg.matrix_rank(delta.reshape(out * rest, inner * last)) == rank * last
    x = torch.randn(2, 24, *(8 for _ in kernel))
    torch.testing.assert_close(patch.over(layer)(x), layer(x))
    assert learn(layer, patch, x) < 0.99


def test_depthwise_convolutions_are_trained_directly() -> None:
    layer = nn.Conv2d(24, 24, 3, groups=24)
    patch = Patch.fresh(layer, default_patch_plan(layer, rank=1))
    assert not patch.low_rank
    assert set(patch.direct) == {"weight", "bias"}
    assert factor_shapes(layer.weight.shape, 1) == ((3, 3), (72, 3))


@pytest.mark.parametrize(
    "wrap", [parametrizations.weight_norm, parametrizations.spectral_norm], ids=lambda w: w.__name__
)
def test_parametrised_layers(wrap: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(wrap(nn.Linear(16, 24)), nn.ReLU(), wrap(nn.Linear(24, 4)))
    network.eval().requires_grad_(False)
    before, x = network_hash(network), torch.randn(4, 16)
    patch = Patch.fresh(network, default_patch_plan(network, rank=2))
    torch.testing.assert_close(patch.over(network)(x), network(x))
    assert learn(network, patch, x, rate=2e-2) < 0.99
    assert network_hash(network) == before
    full = Patch.full(network)
    assert learn(network, full, x, rate=2e-2) < 0.9
    assert network_hash(network) == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_network_in_half_precision_is_tuned_in_single(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3)
    )
    network.eval().requires_grad_(False).to(dtype)
    before, x = network_hash(network), torch.randn(2, 3, 8, 8).to(dtype)
    patch = Patch.fresh(network, default_patch_plan(network, rank=1))
    assert patch.low_rank
    assert {t.dtype for t in patch.trainable()} == {torch.float32}
    assert {t.dtype for t in patch.merged(network).values()} == {dtype, torch.int64}
    torch.testing.assert_close(patch.over(network)(x), network(x))
    assert learn(network, patch, x) < 0.99
    assert network_hash(network) == before


def test_a_patch_in_half_precision_does_not_round_the_network() -> None:
    network = nn.Linear(64, 64).requires_grad_(False)
    patch = Patch.fresh(network, default_patch_plan(network, rank=1))
    halved = {name: (a.half(), b.half()) for name, (a, b) in patch.low_rank.items()}
    merged = Patch(halved, {}).merged(network)
    assert torch.equal(merged["weight"], network.weight)


def test_a_patch_follows_the_network_to_its_device() -> None:
    network = nn.Linear(64, 64).requires_grad_(False)
    patch = Patch.fresh(network, default_patch_plan(network, rank=1))
    assert {t.device.type for t in patch.merged(network.to("meta")).values()} == {"meta"}


class Writing(nn.Module):
    """Writes to its buffers, in place and by assignment, and keeps a cache it makes when asked."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("average", torch.zeros(4))
        self.cached = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.average = 0.9 * self.average + 0.1 * x.mean(dim=0)
        if self.cached < len(x):
            self.register_buffer("positions", torch.arange(len(x)).float(), persistent=False)
            self.cached = len(x)
        y: Tensor = self.layer(x) + self.positions[: len(x), None]
        return y


def test_a_forward_that_writes_to_its_buffers_leaves_the_frozen_network_as_it_was() -> None:
    network = Writing().eval().requires_grad_(False)
    before = network_hash(network)
    patched = Patch.fresh(network, default_patch_plan(network, rank=1)).over(network)
    patched(torch.zeros(2, 4))
    patched(torch.zeros(5, 4))
    assert network_hash(network) == before
    assert len(network.positions) == network.cached == 5
    network(torch.zeros(5, 4))
    assert network.calls == 1


def test_names_that_a_network_lacks_are_left_out() -> None:
    network = nn.Linear(3, 3).requires_grad_(False)
    x = torch.randn(2, 3)
    assert torch.equal(Patched(network, {"elsewhere": torch.zeros(1)})(x), network(x))


def fastest(calls: list[Callable[[], object]], rounds: int) -> list[float]:
    """Seconds of each call, the least of several rounds in turn: others use the machine, too."""
    best = [float("inf")] * len(calls)
    for _ in range(rounds):
        for i, call in enumerate(calls):
            began = time.perf_counter()
            call()
            best[i] = min(best[i], time.perf_counter() - began)
    return best


def test_a_guided_step_costs_what_the_plain_network_costs(record_property: Any) -> None:
    torch.manual_seed(0)
    network = NETWORKS["resnet18"]().eval().requires_grad_(False)
    guide, levels = NetworkGuide(network), GaussianBackbone().levels()
    patch = Patch.fresh(network, default_patch_plan(network))
    wrapped = WithExperts(guide, ExpertSet(uniform_ranges(levels, 1), [patch]))
    x = torch.randn(1, 3, 64, 64, requires_grad=True)

    def step(guide: Guide) -> Tensor:
        (gradient,) = torch.autograd.grad(guide.see(x, levels[500]).sum(), x)
        return gradient

    torch.testing.assert_close(step(wrapped), step(guide))
    for rounds in (10, 40, 120):  # more only where the look before was disturbed
        plain, patched = fastest([lambda: step(guide), lambda: step(wrapped)], rounds)
        if patched / plain < 1.15:
            break
    record_property("ratio", patched / plain)
    assert patched / plain < 1.15


def test_laying_a_patch_over_a_transformer_costs_next_to_nothing(record_property: Any) -> None:
    """The call without the network: where the network is small the rest would drown in noise."""
    torch.manual_seed(0)
    network = NETWORKS["vit_tiny"]().eval().requires_grad_(False)
    patched, x = Patch.full(network).over(network), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        (plain,) = fastest([lambda: network(x)], 10)
        patched.network = nn.Identity()
        (laying,) = fastest([lambda: patched(x)], 50)
    record_property("share", laying / plain)
    assert laying / plain < 0.05
