"""What an expert changes of a weight, where it begins, and which expert serves a level."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from worlds import ColourGuide, GaussianBackbone

from ppap_host.backbones.noise import NoiseLevel, NoiseRange, uniform_ranges
from ppap_host.experts.patches import Patch, factor_shapes, network_hash
from ppap_host.experts.sets import ExpertSet, WithExperts, overlap
from ppap_host.files.errors import CheckpointError
from ppap_host.guides.guide import PatchPlan, default_patch_plan


@pytest.mark.parametrize(
    ("weight", "a", "b"),
    [
        ((7, 5), (2, 5), (7, 2)),
        ((7, 5, 3, 3), (6, 15), (21, 6)),
        ((7, 5, 3, 4), (8, 20), (21, 8)),  # the last side goes with the input
        ((7, 5, 4), (8, 20), (7, 8)),
        ((7, 5, 2, 3, 4), (8, 20), (42, 8)),
    ],
)
def test_factors_have_the_shapes_of_ppaps(
    weight: tuple[int, ...], a: tuple[int, int], b: tuple[int, int]
) -> None:
    """B A has as many numbers as the weight; with k the last side, A is (r k, in k)."""
    assert factor_shapes(weight, 2) == (a, b)
    assert b[0] * a[1] == math.prod(weight)


LAYERS: dict[str, nn.Module] = {
    "linear": nn.Linear(5, 7),
    "convolution": nn.Conv2d(5, 7, (3, 4), padding=1),
    "line": nn.Conv1d(5, 7, 3),
    "transposed": nn.ConvTranspose2d(5, 7, 3),
}


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_merged_weight_is_w_plus_alpha_over_r_b_a(layer: nn.Module, dtype: torch.dtype) -> None:
    """W + s B A, entry by entry in the order of memory (Hu et al., 2022, eq. 3; s is alpha / r)."""
    layer = layer.to(dtype).requires_grad_(False)
    weight = layer.get_parameter("weight")
    rng = np.random.default_rng(0)
    factors = [rng.standard_normal(shape) for shape in factor_shapes(weight.shape, 2)]
    a, b = (torch.from_numpy(f).float() for f in factors)
    shift = torch.from_numpy(rng.standard_normal(7)).float()
    patch = Patch({"weight": (a, b)}, {"bias": shift}, scaling=0.7)
    merged = patch.merged(layer)
    columns = a.shape[1]
    wanted = np.array([
        float(w) + 0.7 * sum(
            float(b[k // columns, r]) * float(a[r, k % columns]) for r in range(a.shape[0])
        )
        for k, w in enumerate(weight.flatten().double())
    ])  # fmt: skip
    tolerance = {torch.bfloat16: 2e-2}.get(dtype, 1e-5)
    np.testing.assert_allclose(merged["weight"].double().flatten(), wanted, rtol=tolerance, atol=tolerance)  # fmt: skip  # noqa: E501
    assert merged["weight"].dtype == merged["bias"].dtype == dtype
    torch.testing.assert_close(merged["bias"], shift.to(dtype))
    x = torch.from_numpy(rng.standard_normal((2, 5, 6, 6)[: weight.ndim] if weight.ndim > 2 else (2, 5))).to(dtype)  # fmt: skip  # noqa: E501
    before = layer(x)
    changed = type(layer).forward
    copied = {k: v.clone() for k, v in layer.state_dict().items()}
    found = patch.over(layer)(x)
    assert torch.equal(layer(x), before), "the network itself stays as it is"
    layer.load_state_dict(merged)
    torch.testing.assert_close(found, changed(layer, x))
    layer.load_state_dict(copied)


def test_a_fresh_patch_begins_uniform_times_zero() -> None:
    """A uniform in +-1 / sqrt(its columns), as torch's own linear layers begin; B zero."""
    network = nn.Sequential(nn.Linear(400, 300), nn.Conv2d(64, 64, 3))
    patch = Patch.fresh(network, PatchPlan(3, ("0.weight", "1.weight"), ("0.bias",)), seed=4)
    for name, columns in (("0.weight", 400), ("1.weight", 192)):
        a, b = patch.low_rank[name]
        bound = 1 / math.sqrt(columns)
        assert not b.any()
        assert a.abs().max() <= bound
        assert a.max() > 0.98 * bound and a.min() < -0.98 * bound
        assert float(a.double().std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert patch.scaling == 1.0 and set(patch.direct) == {"0.bias"}
    again, other = (
        Patch.fresh(network, PatchPlan(3, ("0.weight",), ()), seed=seed) for seed in (4, 5)
    )
    assert torch.equal(again.low_rank["0.weight"][0], patch.low_rank["0.weight"][0])
    assert not torch.equal(other.low_rank["0.weight"][0], patch.low_rank["0.weight"][0])


@pytest.mark.parametrize(("inner", "low_rank"), [(4, False), (5, True)])
def test_a_weight_that_factors_would_not_make_smaller_is_trained_itself(
    inner: int, low_rank: bool
) -> None:
    """Of 4 x 4 by rank 2 they have 16 numbers, of 5 x 4 18 of 20."""
    patch = Patch.fresh(nn.Linear(inner, 4), PatchPlan(2, ("weight",), ()))
    assert ("weight" in patch.low_rank) == low_rank != ("weight" in patch.direct)
    assert patch.count() == (18 if low_rank else 16)


class Everything(nn.Module):
    """A kind of each parameter that a plan must tell apart."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.group = nn.GroupNorm(2, 8)
        self.head = nn.Linear(8, 5)
        self.words = nn.Embedding(9, 8)
        self.positions = nn.Parameter(torch.zeros(1, 4, 8))
        self.relative_position_bias_table = nn.Parameter(torch.zeros(9, 2))
        self.gamma = nn.Parameter(torch.ones(8))


def test_a_plan_takes_weights_as_factors_and_what_is_small_as_it_is() -> None:
    plan = default_patch_plan(Everything(), rank=3)
    assert plan.rank == 3
    assert set(plan.low_rank) == {"conv.weight", "head.weight"}
    assert set(plan.direct) == {
        "conv.bias", "norm.weight", "norm.bias", "group.weight", "group.bias", "head.bias",
        "relative_position_bias_table", "gamma",
    }  # fmt: skip


def test_a_network_is_known_by_its_values_names_and_shapes() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    known = network_hash(network)
    assert known == network_hash(network)
    for change in (
        lambda: network[0].bias.data.add_(1e-6),
        lambda: network[1].running_mean.add_(1e-6),
    ):
        change()
        assert (known := network_hash(network)) != network_hash(nn.Sequential(*network[:1]))
    flat, tall = nn.Linear(6, 1, bias=False), nn.Linear(2, 3, bias=False)
    tall.weight.data = flat.weight.data.view(3, 2)
    assert network_hash(flat) != network_hash(tall)


# Which expert serves which level


class Fixed(NoiseLevel):
    """A level whose log-SNR is given."""

    @property
    def log_snr(self) -> float:
        return self.time


def test_a_level_at_a_bound_is_served_by_the_cleaner_expert_and_no_other() -> None:
    ranges = [NoiseRange(1.0, math.inf), NoiseRange(-math.inf, -2.0), NoiseRange(-2.0, 1.0)]
    experts = ExpertSet(ranges, [Patch({}, {})] * 3)
    for log_snr, wanted in (
        (1.0, 0), (math.nextafter(1.0, 0), 2), (-2.0, 2), (math.nextafter(-2.0, -3), 1),
        (1e300, 0), (-math.inf, 1),
    ):  # fmt: skip
        assert experts.serving(Fixed(0.6, 0.8, log_snr)) == wanted, log_snr
    gap = ExpertSet(ranges[:2], [Patch({}, {})] * 2)
    assert gap.covers([Fixed(0.6, 0.8, 1.0)])
    assert not gap.covers([Fixed(0.6, 0.8, 1.0), Fixed(0.6, 0.8, -2.0)])
    with pytest.raises(CheckpointError, match=r"log-SNR -2\.00"):
        gap.serving(Fixed(0.6, 0.8, -2.0))


def test_ranges_that_only_touch_do_not_overlap() -> None:
    a, b, c = NoiseRange(0.0, 1.0), NoiseRange(1.0, 2.0), NoiseRange(0.999, 1.5)
    assert overlap([a, b], [a, b]) == (a, a), "of two lists every pair counts"
    same = [a, b]
    assert overlap(same, same) is None
    assert overlap([a], [c]) == (a, c) and overlap([a], [b]) is None
    assert overlap([b, a], [c]) == (b, c)


def test_a_guide_looks_through_the_expert_of_each_level_as_its_weights_say() -> None:
    """Each expert shifts the output's bias by its own number, and nothing else does."""
    guide, levels = ColourGuide(), GaussianBackbone().levels()
    bias = guide.network()[-1].bias
    patches = [Patch({}, {"6.bias": bias + 10.0 * (i + 1)}) for i in range(3)]
    seen = WithExperts(guide, ExpertSet(uniform_ranges(levels, 3), patches))
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    plain: Tensor = guide.see(x)
    count = len(levels)
    for k in (0, count // 3 - 1, count // 3, count // 2, 2 * count // 3, count - 1, 0):
        i = sum(k >= j * count // 3 for j in (1, 2))
        torch.testing.assert_close(seen.see(x, levels[k]), plain + 10.0 * (i + 1))
    torch.testing.assert_close(seen.see(x), plain)
