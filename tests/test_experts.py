"""Patches and expert sets."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call
from worlds import GaussianBackbone, QuadraticGuide

from ppap_host.backbones.backbone import ClassifierFree
from ppap_host.backbones.noise import NoiseLevel, NoiseRange, uniform_ranges
from ppap_host.experts.patches import Patch, estimate_statistics, network_hash
from ppap_host.experts.sets import VIEWS, ExpertSet, WithExperts, joined, report
from ppap_host.files.errors import CheckpointError
from ppap_host.guides.guide import Guide, PatchPlan, Wrapped, default_patch_plan
from ppap_host.recipes.presets import X0
from ppap_host.sampling.evaluator import Evaluator, Guidance, Health


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


def test_a_fresh_patch_changes_nothing_and_all_of_it_learns() -> None:
    """Which networks that people use it also works on: test_expert_networks.py."""
    torch.manual_seed(0)
    network = SmallNet().eval().requires_grad_(False)
    before = network_hash(network)
    x = torch.randn(2, 3, 16, 16)
    patch = Patch.fresh(network, default_patch_plan(network, rank=2))
    plain = network(x)
    torch.testing.assert_close(functional_call(network, patch.merged(network), (x,)), plain)
    torch.testing.assert_close(patch.over(network)(x), plain)

    trainable = [t.requires_grad_(True) for t in patch.trainable()]
    optimiser = torch.optim.AdamW(trainable, lr=1e-2)
    losses = []
    for _ in range(8):
        loss = (patch.over(network)(x) - plain.detach() - 1).square().mean()
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < 0.7 * losses[0]
    assert all(t.grad is not None and t.grad.isfinite().all() for t in trainable)
    assert network_hash(network) == before


def test_a_full_patch_trains_every_parameter() -> None:
    network = SmallNet().eval().requires_grad_(False)
    patch = Patch.full(network)
    assert patch.count() == sum(p.numel() for p in network.parameters())
    assert set(patch.direct) == {name for name, _ in network.named_parameters()} | {
        "body.1.running_mean",
        "body.1.running_var",
    }
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(patch.over(network)(x), network(x))
    patch.direct["head.bias"] += 1
    torch.testing.assert_close(patch.over(network)(x), network(x) + 1)


def test_a_plan_for_another_network_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"'head\.weight'"):
        Patch.fresh(nn.Linear(3, 3), PatchPlan(2, ("head.weight",), ()))


def test_a_patch_is_small_and_counts_itself() -> None:
    network = timm.create_model("resnet18", num_classes=5)
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
    ranges = uniform_ranges(GaussianBackbone().levels(), 2)
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


def test_a_set_says_what_it_is_shown_and_one_that_does_not_is_shown_noise(tmp_path: Path) -> None:
    guide = ScaledGuide()
    for said, view in (({}, "noised"), *(({"view": view}, view) for view in VIEWS)):
        experts = two_experts(guide)
        experts.metadata |= said
        experts.save(tmp_path / "set.safetensors")
        loaded = ExpertSet.load(tmp_path / "set.safetensors")
        assert loaded.view == loaded.describe()["view"] == view
        assert loaded.metadata == experts.metadata
        wrapped = WithExperts(guide, loaded)
        assert wrapped.knows_predictions == (view == "predicted")
        level = GaussianBackbone().walk(3).levels[0]
        x = torch.randn(1, 3, 4, 4)
        assert torch.equal(wrapped.see(x, level), WithExperts(guide, experts).see(x, level))


def test_the_sampler_asks_experts_of_predictions_at_predictions_and_no_others() -> None:
    guide, backbone = ScaledGuide(), GaussianBackbone()
    level = backbone.walk(10).levels[3]
    x = torch.randn(2, 3, 4, 4)

    def guided(asked: Guide) -> Tensor:
        guidance = Guidance(asked, torch.zeros(1, 3, 4, 4), X0, 4.0)
        denoise = ClassifierFree(backbone, {}, {})
        evaluate = Evaluator(backbone, denoise, [guidance], ancestral=False, health=Health())
        return evaluate(x, level).x0

    plain = guided(guide)
    experts = two_experts(guide)
    assert torch.equal(guided(WithExperts(guide, experts)), plain)
    experts.metadata["view"] = "predicted"
    assert not torch.allclose(guided(WithExperts(guide, experts)), plain, atol=1e-3)


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
    assert ExpertSet.read_metadata(tmp_path / "set.safetensors") == experts.metadata
    x, level = torch.randn(1, 3, 4, 4), GaussianBackbone().walk(3).levels[0]
    ours = WithExperts(guide, experts).see(x, level)
    assert torch.equal(WithExperts(guide, loaded).see(x, level), ours)
    experts.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (
        tmp_path / "set.safetensors"
    ).read_bytes()


def test_nothing_of_the_guide_is_lost_behind_its_experts() -> None:
    public = {name for name, value in vars(Guide).items() if callable(value) and name[0] != "_"}
    assert public <= vars(WithExperts).keys() | vars(Wrapped).keys()
    guide = ScaledGuide()
    guide.averages_pixels = True
    wrapped = WithExperts(guide, two_experts(guide))
    for name in Guide.__annotations__:
        assert getattr(wrapped, name) == getattr(guide, name)


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
    for read in (ExpertSet.load, ExpertSet.read_metadata):
        with pytest.raises(CheckpointError, match="no readable expert set"):
            read(path)


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    two_experts(ScaledGuide()).save(tmp_path / "set.safetensors")
    data = (tmp_path / "set.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="no readable expert set"):
        ExpertSet.load(tmp_path / "cut.safetensors")


# Running statistics


class Normalised(nn.Module):
    """Two normalised layers, one of which is behind what the other does, and a dropout."""

    def __init__(self, norm: type[nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = norm(4)
        self.drop = nn.Dropout(0.9)
        self.head = nn.Conv2d(4, 5, 1)
        self.last = norm(5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.head(self.drop(self.norm(self.conv(x)).relu())))
        return y


def state(network: nn.Module) -> tuple[Any, ...]:
    modes = [m.training for m in network.modules()]
    momenta = [getattr(m, "momentum", None) for m in network.modules()]
    return network_hash(network), modes, momenta


def test_statistics_are_those_of_the_activations() -> None:
    torch.manual_seed(0)
    network = Normalised().eval().requires_grad_(False)
    before = state(network)
    patch = Patch.fresh(network, default_patch_plan(network, rank=1))
    patch.direct["conv.bias"] += 3  # as the patched network sees them
    batches = [torch.randn(8, 3, 6, 6) + shift for shift in (0.0, 2.0, 4.0)]
    estimate_statistics(network, patch, iter(batches))
    assert state(network) == before

    seen = torch.cat([network.conv(x) + 3 for x in batches]).transpose(0, 1).flatten(1)
    torch.testing.assert_close(patch.direct["norm.running_mean"], seen.mean(dim=1))
    # Up to Bessel's correction, n / (n - 1), of batches of 128 values.
    torch.testing.assert_close(patch.direct["norm.running_var"], seen.var(dim=1), rtol=1e-2, atol=0)

    single = Patch.fresh(network, default_patch_plan(network, rank=1))
    estimate_statistics(network, single, batches[:1])
    seen = network.conv(batches[0])
    spread, mean = torch.var_mean(seen, dim=(0, 2, 3), keepdim=True, correction=0)
    then = network.head(((seen - mean) / (spread + 1e-5).sqrt()).relu())
    for layer, values in (("norm", seen), ("last", then)):
        flat = values.transpose(0, 1).flatten(1)
        found = (single.direct[f"{layer}.running_{key}"] for key in ("mean", "var"))
        for value, wanted in zip(found, (flat.mean(dim=1), flat.var(dim=1)), strict=True):
            torch.testing.assert_close(value, wanted)


def test_statistics_are_the_same_again_and_weigh_images_alike() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval().requires_grad_(False)
    x = torch.randn(12, 3, 9, 9)
    found = []
    for split in (12, 12, 8):  # 8 + 4
        patch = Patch.full(network)
        estimate_statistics(network, patch, x.split(split))
        found.append(patch.direct["1.running_mean"])
    assert torch.equal(found[0], found[1])
    torch.testing.assert_close(found[2], found[0])


def test_instance_statistics_are_means_over_images() -> None:
    network = nn.InstanceNorm2d(3, track_running_stats=True).eval()
    patch, x = Patch.full(network), torch.randn(6, 3, 5, 5)
    estimate_statistics(network, patch, x.split(2))
    torch.testing.assert_close(patch.direct["running_mean"], x.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(patch.direct["running_var"], x.var(dim=(2, 3)).mean(dim=0))


def test_a_failing_estimate_leaves_network_and_patch_as_they_were() -> None:
    network = Normalised().requires_grad_(False).train()
    network.norm.eval()
    before, patch = state(network), Patch.full(network)
    kept = {name: value.clone() for name, value in patch.direct.items()}
    with pytest.raises(RuntimeError):
        estimate_statistics(network, patch, [torch.randn(2, 3, 6, 6), torch.randn(2, 7, 6, 6)])
    assert state(network) == before
    assert all(torch.equal(patch.direct[name], value) for name, value in kept.items())
    estimate_statistics(network, patch, [])
    assert all(torch.equal(patch.direct[name], value) for name, value in kept.items())


def test_networks_without_running_statistics_are_not_called() -> None:
    def untouched() -> Any:
        pytest.fail("a batch was made")
        yield

    network = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    patch = Patch.full(network)
    estimate_statistics(network, patch, untouched())
    assert set(patch.direct) == {name for name, _ in network.named_parameters()}


# Expert sets


def test_a_set_says_all_about_itself() -> None:
    low, high = NoiseRange(-math.inf, 1.0), NoiseRange(1.0, math.inf)
    patches = [Patch({}, {"bias": torch.zeros(n)}) for n in (3, 5)]
    metadata = {
        "guide": "depth",
        "quality": [{"loss": 0.2}, {"loss": 0.1}],
        "trainable": {"per_expert": 5, "total": 8, "network": 80},
    }
    described = ExpertSet([low, high], patches, metadata).describe()
    assert [e["log_snr"] for e in described["experts"]] == [[1.0, None], [None, 1.0]]
    assert [e["trainable"] for e in described["experts"]] == [5, 3]
    assert [e["quality"] for e in described["experts"]] == [{"loss": 0.1}, {"loss": 0.2}]
    assert described["trainable"] == {"total": 8, "network": 80, "share": 0.1}
    assert described["guide"] == "depth"
    json.dumps(described, allow_nan=False)


def test_half_precision_takes_half_the_room_and_overflows_nowhere(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Normalised().eval().requires_grad_(False)
    patch = Patch.full(network)
    patch.direct["norm.running_var"][:] = 1e6
    patch.direct["head.bias"][:] = 1e5
    whole = ExpertSet([NoiseRange(-math.inf, math.inf)], [patch], {"guide": "any"})
    path = tmp_path / "half.safetensors"
    whole.save(path, dtype=torch.float16)
    kept = {name for name, tensor in load_file(path).items() if tensor.dtype == torch.float32}
    statistics = {n for n in patch.direct if "running" in n}
    assert kept == {f"expert.0.{n}" for n in {"head.bias", *statistics}}
    loaded = ExpertSet.load(path).patches[0]
    for name, tensor in patch.direct.items():
        assert loaded.direct[name].dtype == torch.float32
        torch.testing.assert_close(loaded.direct[name], tensor, rtol=1e-3, atol=1e-4)


def test_a_set_covers_levels_or_not() -> None:
    levels = GaussianBackbone().levels()
    assert ExpertSet(uniform_ranges(levels, 3), [Patch({}, {})] * 3).covers(levels)
    assert not ExpertSet([NoiseRange(0.0, math.inf)], [Patch({}, {})]).covers(levels)


def test_ranges_in_any_order_serve_but_must_not_overlap() -> None:
    ranges = [NoiseRange(-1.0, 1.0), NoiseRange(3.0, math.inf), NoiseRange(1.0, 3.0)]
    experts = ExpertSet(ranges, [Patch({}, {})] * 3)
    assert experts.serving(NoiseLevel(math.exp(1), 1.0, 0.0)) == 2
    with pytest.raises(CheckpointError, match=r"\[-1\.00, 1\.00\) and \[0\.00, 2\.00\)"):
        ExpertSet([NoiseRange(-1.0, 1.0), NoiseRange(0.0, 2.0)], [Patch({}, {})] * 2)
    with pytest.raises(CheckpointError, match="2 ranges for 1 experts"):
        ExpertSet(ranges[:2], [Patch({}, {})])
    for bounds in ((1.0, 1.0), (2.0, 1.0), (math.nan, 1.0)):
        with pytest.raises(CheckpointError, match="empty range"):
            ExpertSet([NoiseRange(*bounds)], [Patch({}, {})])


def test_a_set_for_another_guide_or_size_is_refused_naming_both() -> None:
    guide = ScaledGuide()
    experts = two_experts(guide)
    experts.metadata["image_size"] = [64, 96]
    WithExperts(guide, experts)
    WithExperts(guide, experts, (64, 96))
    said = "tuned for 64 x 96, this backbone makes 256 x 256"
    with pytest.raises(CheckpointError, match=said):
        WithExperts(guide, experts, (256, 256))
    experts.metadata["guide"] = "depth"
    with pytest.raises(CheckpointError, match="'depth', not for 'quadratic'"):
        WithExperts(guide, experts)


def nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


def rewritten(path: Path, change: Any) -> Path:
    """The set of ``two_experts``, its metadata and tensors changed, as a file."""
    from safetensors import safe_open

    two_experts(ScaledGuide()).save(path)
    with safe_open(path, framework="pt") as file:
        described = json.loads(file.metadata()["ppap"])
    tensors = load_file(path)
    described.pop("sha256")  # as in a set that was made by hand
    described = change(described, tensors) or described
    save_file(tensors, path, {"ppap": json.dumps(described)})
    return path


@pytest.mark.parametrize(
    ("said", "change"),
    [
        ("valid dictionary", lambda d, t: [1]),
        ("'format': input should be 1, not 7", lambda d, t: d.update(format=7)),
        ("'ranges': field required", lambda d, t: d.pop("ranges") and None),
        ("'ranges'", lambda d, t: d.update(ranges=3)),
        ("no valid ranges", lambda d, t: d.update(ranges=[["low", "high"]] * 2)),
        ("'ranges.0': list should have at least 2 items", lambda d, t: d.update(ranges=[[1], [2]])),
        ("'scalings.0'", lambda d, t: d.update(scalings=[None, 1])),
        ("'scalings.0'", lambda d, t: d.update(scalings=["nan", 1])),
        ("3 ranges, and 2 scalings", lambda d, t: d["ranges"].append(["100", "inf"])),
        ("overlapping", lambda d, t: d.update(ranges=[["0", "2"], ["1", "3"]])),
        ("2 ranges, and 1 scalings", lambda d, t: d.update(scalings=[1.0])),
        ("belongs to none", lambda d, t: t.update({"stray": torch.zeros(1)})),
        ("belongs to none", lambda d, t: t.update({"expert.x.bias": torch.zeros(1)})),
        ("belongs to none", lambda d, t: t.update({"expert.-1.bias": torch.zeros(1)})),
        ("belongs to none", lambda d, t: t.update({f"expert.{'9' * 5000}.b": torch.zeros(1)})),
        ("others than were written", lambda d, t: d.update(sha256="0" * 64)),
        ("'quality.0.standard_error'", lambda d, t: d.update(quality=[{"standard_error": "x"}] * 2)),  # noqa: E501
        ("'backbone.files'", lambda d, t: d.update(backbone={"files": [1]})),
        ("nested", lambda d, t: d.update(tuning={"a": nested(100)})),
        ("300 digits", lambda d, t: d.update(rank=10**400)),
        ("lacks the factor 'expert.0.b.lora_B'", lambda d, t: t.update({"expert.0.b.lora_A": torch.zeros(1)})),  # noqa: E501
        ("lacks the factor 'expert.1.b.lora_A'", lambda d, t: t.update({"expert.1.b.lora_B": torch.zeros(1)})),  # noqa: E501
        ("'guide'", lambda d, t: d.update(guide=3)),
        ("'network_sha256'", lambda d, t: d.update(network_sha256=None)),
        ("'image_size'", lambda d, t: d.update(image_size=64)),
        ("'image_size.1'", lambda d, t: d.update(image_size=[64, "64"])),
        ("2 ranges, and 1 of 'quality'", lambda d, t: d.update(quality=[{}])),
        ("'rank'", lambda d, t: d.update(rank=True)),
        ("'view'", lambda d, t: d.update(view="blurred")),
        ("'view'", lambda d, t: d.update(view=None)),
        ("'trainable'", lambda d, t: d.update(trainable=7)),
    ],
)  # fmt: skip
def test_a_set_that_makes_no_sense_is_refused_naming_the_file(
    said: str, change: Any, tmp_path: Path
) -> None:
    path = rewritten(tmp_path / "set.safetensors", change)
    with pytest.raises(CheckpointError) as caught:
        ExpertSet.load(path)
    assert said in caught.value.message
    assert str(path) in caught.value.message


def test_sets_of_disjoint_ranges_join_and_others_do_not() -> None:
    guide = ScaledGuide()
    whole = two_experts(guide)
    parts = {
        str(i): ExpertSet(
            [whole.ranges[i]],
            [whole.patches[i]],
            whole.metadata | {"quality": [{"loss": i}], "tuning": {"seed": i}, "rank": 1},
        )
        for i in (1, 0)
    }
    joint = joined(parts)
    assert joint.ranges == whole.ranges
    assert joint.patches == whole.patches
    assert joint.metadata["quality"] == [{"loss": 0}, {"loss": 1}]
    assert joint.metadata["rank"] == 1
    assert "tuning" not in joint.metadata
    sizes = zip((3, 5), whole.ranges, strict=True)
    apart = {str(n): ExpertSet([r], [Patch({}, {"bias": torch.zeros(n)})]) for n, r in sizes}
    assert joined(apart).metadata["trainable"] == {"per_expert": 5, "total": 8}
    level = GaussianBackbone().walk(3).levels[0]
    x = torch.randn(1, 3, 4, 4)
    assert torch.equal(WithExperts(guide, joint).see(x, level), WithExperts(guide, whole).see(x, level))  # fmt: skip  # noqa: E501

    with pytest.raises(CheckpointError, match=r"'one'.*'whole'.*overlap"):
        joined({"one": parts["1"], "whole": whole})
    parts["0"].metadata["image_size"] = [8, 8]
    with pytest.raises(CheckpointError, match=r"'1' and '0' differ in image_size.*\[8, 8\]"):
        joined(parts)
    del parts["0"].metadata["image_size"]
    for part, view in (("0", "noised"), ("1", "predicted")):
        parts[part].metadata["view"] = view
    with pytest.raises(CheckpointError, match="differ in view: predicted and noised"):
        joined(parts)
    parts["0"].metadata["view"] = "predicted"
    assert joined(parts).view == "predicted"
    with pytest.raises(CheckpointError, match="no expert sets"):
        joined({})


def test_factors_that_do_not_fit_each_other_are_refused() -> None:
    for a, b in (((2, 3), (4, 1)), ((2, 4), (4, 2)), ((2, 3), (4, 2, 1))):
        with pytest.raises(CheckpointError, match="'weight'"):
            Patch({"weight": (torch.zeros(a), torch.zeros(b))}, {}).merged(nn.Linear(3, 4))
    with pytest.raises(CheckpointError, match="'bias'"):
        Patch({"bias": (torch.zeros(1, 1), torch.zeros(4, 1))}, {}).merged(nn.Linear(3, 4))
