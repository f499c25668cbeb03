"""Patches, expert sets and routing; against PPAP's own numbers where there are some."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.func import functional_call
from worlds import GaussianBackbone, QuadraticGuide

from ppap_host.errors import CheckpointError
from ppap_host.experts import ExpertSet, Patch, WithExperts, network_hash, report
from ppap_host.guide import default_patch_plan
from ppap_host.noise import DiscreteSchedule, NoiseLevel, NoiseRange, linear_betas, uniform_ranges

VECTORS = Path(os.environ.get("PPAP_VECTORS", Path(__file__).parents[2] / "shared" / "vectors"))


def cases(marker: str) -> list[Any]:
    """Guidance case folders whose settings or inputs have the key ``marker``."""
    found = []
    for path in sorted(VECTORS.glob("guidance/*/case.json")):
        case = json.loads(path.read_text())
        if marker in case.get("config", {}) and case.get("config", {}).keys() <= ROOM[marker]:
            found.append(pytest.param(path.parent, id=path.parent.name))
    reason = f"no such vectors in {VECTORS}; set PPAP_VECTORS"
    return found or [pytest.param(None, marks=pytest.mark.skip(reason=reason), id="absent")]


ROOM = {
    "lora_alpha": {"r (gamma)", "lora_alpha", "scaling", "convs", "linear"},
    "n_experts": {"num_timesteps", "n_experts"},
}


@pytest.mark.parametrize("folder", cases("lora_alpha"))
def test_vector_low_rank_merging(folder: Path, record_property: Any) -> None:
    case = json.loads((folder / "case.json").read_text())
    io, config = load_file(folder / "io.safetensors"), case["config"]
    scaling = config["lora_alpha"] / config["r (gamma)"]
    tolerance = case["tolerance"]["float64"]
    layers: list[tuple[str, nn.Module, str, str]] = [
        (
            f"conv.{c['id']}",
            nn.Conv2d(
                c["cin"], c["cout"], c["k"], stride=c["stride"], padding=c["pad"], bias=c["bias"]
            ),
            "out",
            "weight_merged",
        )
        for c in config["convs"]
    ]
    linear = config["linear"]
    layers.append(("lin", nn.Linear(linear["in"], linear["out"]), "out_merged", "weight_merged"))
    worst = 0.0
    for name, layer, output, weight in layers:
        layer = layer.double().requires_grad_(False)
        state = {k: io[f"{name}.{k}"].double() for k in layer.state_dict()}
        layer.load_state_dict(state)
        factors = (io[f"{name}.A"].double(), io[f"{name}.B"].double())
        merged = Patch({"weight": factors}, {}, scaling).merged(layer)
        found = {
            weight: merged["weight"],
            output: functional_call(layer, merged, (io[f"{name}.x"].double(),)),
        }
        for key, value in found.items():
            torch.testing.assert_close(value, io[f"{name}.{key}"], **tolerance)
            worst = max(worst, float((value - io[f"{name}.{key}"]).abs().max()))
    record_property("largest_error", worst)


@pytest.mark.parametrize("folder", cases("n_experts"))
def test_vector_routing(folder: Path) -> None:
    case = json.loads((folder / "case.json").read_text())
    io, total = load_file(folder / "io.safetensors"), case["config"]["num_timesteps"]
    schedule = DiscreteSchedule.from_betas(linear_betas(total))
    for n in case["config"]["n_experts"]:
        experts = ExpertSet(uniform_ranges(schedule, n), [Patch({}, {})] * n)
        served = [experts.serving(schedule.level(t)) for t in io["t"].tolist()]
        assert served == io[f"n{n}.index_trained"].tolist()


class SmallNet(nn.Module):
    """One of everything a patch must handle."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 24, 3, padding=1),
            nn.BatchNorm2d(24),
            nn.ReLU(),
            nn.Conv2d(24, 24, (3, 5), padding=(1, 2), groups=24),
            nn.Conv2d(24, 32, 1, bias=False),
            nn.GroupNorm(4, 32),
        )
        self.norm = nn.LayerNorm(32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(self.body(x).flatten(2).transpose(1, 2))
        mixed, _ = self.attention(tokens, tokens, tokens)
        logits: Tensor = self.head(mixed.mean(dim=1))
        return logits


def networks() -> dict[str, Any]:
    timm = pytest.importorskip("timm")
    return {
        "everything": SmallNet,
        "resnet": lambda: timm.create_model("resnet18", num_classes=5),
        "deit": lambda: timm.create_model("deit_tiny_patch16_224", num_classes=5, img_size=32),
        "convnext": lambda: timm.create_model("convnext_atto", num_classes=5),
    }


@pytest.mark.parametrize("name", ["everything", "resnet", "deit", "convnext"])
def test_a_fresh_patch_changes_nothing_and_a_trained_one_learns_on_any_network(name: str) -> None:
    torch.manual_seed(0)
    network = networks()[name]().eval().requires_grad_(False)
    before = network_hash(network)
    x = torch.randn(2, 3, 32, 32)
    patch = Patch.fresh(network, default_patch_plan(network, rank=2))
    plain = network(x)
    torch.testing.assert_close(functional_call(network, patch.merged(network), (x,)), plain)

    trainable = [t.requires_grad_(True) for t in patch.trainable()]
    optimiser = torch.optim.AdamW(trainable, lr=1e-2)
    target = plain.detach() + 1
    losses = []
    for _ in range(8):
        out = functional_call(network, patch.merged(network), (x,))
        loss = (out - target).square().mean()
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < 0.7 * losses[0]
    assert all(t.grad is not None and t.grad.isfinite().all() for t in trainable)
    assert network_hash(network) == before


def test_a_patch_is_small_and_counts_itself() -> None:
    network = networks()["resnet"]()
    patch = Patch.fresh(network, default_patch_plan(network, rank=4))
    counted = report(network, ExpertSet([NoiseRange(-math.inf, math.inf)], [patch]))
    assert counted["share_of_largest"] < 0.10
    assert counted["network"] == sum(p.numel() for p in network.parameters())
    by_hand = sum(a.numel() + b.numel() for a, b in patch.low_rank.values())
    by_hand += sum(v.numel() for k, v in patch.direct.items() if "running" not in k)
    assert patch.count() == by_hand
    assert any("running_mean" in name for name in patch.direct)


def two_experts(guide: QuadraticGuide | ScaledGuide) -> ExpertSet:
    network = guide.network()
    patches = []
    for i in range(2):
        patch = Patch.fresh(network, default_patch_plan(network, rank=1), seed=i)
        patch.direct["bias"] = torch.full_like(patch.direct["bias"], float(i + 1))
        patches.append(patch)
    ranges = uniform_ranges(GaussianBackbone().schedule, 2)
    metadata = {"guide": guide.name, "network_sha256": network_hash(network)}
    return ExpertSet(ranges, patches, metadata)


class ScaledGuide(QuadraticGuide):
    """A quadratic guide with a real network: a 1 x 1 convolution."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(noise=1.0)
        torch.manual_seed(seed)
        self.layer = nn.Conv2d(3, 3, 1).eval().requires_grad_(False)

    def network(self) -> nn.Module:
        return self.layer

    def see(self, x: Tensor, level: NoiseLevel | None = None) -> Tensor:
        out: Tensor = self.layer(self.prepare(x))
        return out


def test_each_level_is_seen_by_its_expert_and_clean_images_by_the_plain_network() -> None:
    guide = ScaledGuide()
    wrapped = WithExperts(guide, two_experts(guide))
    walk = GaussianBackbone().walk(10)
    x = torch.randn(2, 3, 4, 4)
    plain = guide.see(x)
    bias = guide.layer.bias.view(1, 3, 1, 1)
    torch.testing.assert_close(wrapped.see(x), plain)
    noisy, fine = walk.levels[0], walk.levels[-2]
    torch.testing.assert_close(wrapped.see(x, noisy), plain - bias + 2.0)
    torch.testing.assert_close(wrapped.see(x, fine), plain - bias + 1.0)


def test_weights_are_merged_once_for_each_range(monkeypatch: pytest.MonkeyPatch) -> None:
    merges = []
    merge = Patch.merged

    def counted(self: Patch, network: nn.Module) -> dict[str, Tensor]:
        merges.append(self)
        return merge(self, network)

    monkeypatch.setattr(Patch, "merged", counted)
    guide = ScaledGuide()
    wrapped = WithExperts(guide, two_experts(guide))
    for level in GaussianBackbone().walk(20).levels[:-1]:
        wrapped.see(torch.zeros(1, 3, 4, 4), level)
    assert len(merges) == 2


def test_a_set_is_the_same_after_saving_and_loading(tmp_path: Path) -> None:
    guide = ScaledGuide()
    experts = two_experts(guide)
    experts.save(tmp_path / "set.safetensors")
    loaded = ExpertSet.load(tmp_path / "set.safetensors")
    assert loaded.ranges == experts.ranges
    assert loaded.metadata == experts.metadata
    x, level = torch.randn(1, 3, 4, 4), GaussianBackbone().walk(3).levels[0]
    ours = WithExperts(guide, experts).see(x, level)
    assert torch.equal(WithExperts(guide, loaded).see(x, level), ours)
    experts.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (
        tmp_path / "set.safetensors"
    ).read_bytes()


def test_experts_of_another_network_are_refused_naming_both() -> None:
    guide, other = ScaledGuide(0), ScaledGuide(1)
    with pytest.raises(CheckpointError) as caught:
        WithExperts(other, two_experts(guide))
    for network in (guide.layer, other.layer):
        assert network_hash(network)[:12] in caught.value.message


def test_a_patch_that_does_not_fit_says_where() -> None:
    patch = Patch({}, {"bias": torch.zeros(7)})
    with pytest.raises(CheckpointError, match=r"'bias' \(7,\).*\(3,\)"):
        patch.merged(nn.Conv2d(3, 3, 1))
    with pytest.raises(CheckpointError, match="lacks it"):
        Patch({}, {"scale": torch.zeros(7)}).merged(nn.Conv2d(3, 3, 1))


def test_a_level_that_no_expert_covers_is_an_error_naming_both_sides() -> None:
    experts = ExpertSet([NoiseRange(-2.0, 3.0)], [Patch({}, {})])
    with pytest.raises(CheckpointError, match=r"-4\.00.*\[-2\.00, 3\.00\)"):
        experts.serving(NoiseLevel(math.exp(-2), 1.0, 0.0))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 pickle", b"<html>not found</html>"])
def test_files_that_are_no_expert_set_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "set.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="no readable expert set"):
        ExpertSet.load(path)


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    two_experts(ScaledGuide()).save(tmp_path / "set.safetensors")
    data = (tmp_path / "set.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="no readable expert set"):
        ExpertSet.load(tmp_path / "cut.safetensors")
