"""Guides calibrated against noise, in a world where the truth is known in closed form."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from ppap_plugin_bench.calibration import measurement
from ppap_plugin_bench.calibration.material import Material, from_folder
from ppap_plugin_bench.calibration.measurement import (
    CalibrationConfig,
    _cross_fitted,
    calibrate,
    spread,
)
from torch import Tensor, nn
from torch.nn import functional as F
from worlds import ClassBackbone, ColourGuide, GaussianBackbone, small_gaussian

from ppap_host.backbones.noise import NoiseLevel, NoiseRange, uniform_ranges
from ppap_host.experts.calibration import (
    HIGHEST,
    LOWEST,
    Calibrated,
    Calibration,
    RangeCalibration,
    experts_hash,
    experts_of,
    load_calibration,
)
from ppap_host.experts.patches import Patch, network_hash
from ppap_host.experts.sets import ExpertSet, WithExperts
from ppap_host.files.errors import CheckpointError, OptionError, OutputError, TargetError
from ppap_host.files.images import to_pixels
from ppap_host.guides.guide import Guide
from ppap_host.guides.targets import Given, Target
from ppap_host.plugins.hookspecs import Entry, hookimpl
from ppap_host.plugins.registry import Registry

MEANS = (-0.4, 0.0, 0.4)
SPREAD = 0.3


class ShadeGuide(ColourGuide):
    """Which of three shades an image is of, by its mean: for clean images the exact posterior,
    times ``model``."""

    name = "shade"

    def __init__(self, model: str | None = None) -> None:
        self.factor = float(model or 1)
        count = 3 * 8 * 8
        self._network = nn.Sequential(nn.Flatten(), nn.Linear(count, 3)).eval()
        means = torch.tensor(MEANS)[:, None]
        weight = self.factor * means / (count * SPREAD**2)
        with torch.no_grad():
            layer = self._network[1]
            layer.weight.copy_(weight.expand(3, count))
            layer.bias.copy_(-self.factor * means[:, 0] ** 2 / (2 * SPREAD**2))
        self._network.requires_grad_(False)

    def understand(self, given: Given, size: tuple[int, int]) -> Target:
        names = ("dark", "grey", "light")
        if given.words not in names:
            raise TargetError(f"No shade is called {given.words!r}.")
        return Target(given.words, F.one_hot(torch.tensor([names.index(given.words)]), 3).float())

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return -(target * output.log_softmax(dim=1)).sum(dim=1)

    def logits(self, output: Tensor) -> Tensor:
        return output.float()


class LatentBackbone(GaussianBackbone):
    """Says that it makes larger pictures than its states."""

    @property
    def image_size(self) -> tuple[int, int]:
        return (16, 16)


def shades(count: int) -> Material:
    """Labelled images of the world, each of one colour: N(its shade's mean, SPREAD^2)."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (count,), generator=generator)
    shade = torch.tensor(MEANS)[labels] + SPREAD * torch.randn(count, generator=generator)
    x = shade.view(-1, 1, 1, 1).expand(count, 3, 8, 8)
    return Material(to_pixels(x), F.one_hot(labels, 3).double(), {"kind": "test"})


def world() -> GaussianBackbone:
    return small_gaussian()


def measured(guide: Guide, count: int = 300, **settings: Any) -> Calibration:
    config = CalibrationConfig(**({"ranges": 3, "levels": 2} | settings))
    return calibrate(guide, world(), shades(count), config)


def expert_set(guide: Guide, seed: int = 1) -> ExpertSet:
    """Two experts; the noisier one says something else."""
    torch.manual_seed(seed)
    patches = [Patch({}, {"1.bias": torch.randn(3) * i}) for i in range(2)]
    known = {"guide": guide.name, "network_sha256": network_hash(guide.network())}
    return ExpertSet(uniform_ranges(world().levels(), 2), patches, known | {"image_size": [8, 8]})


def hand_made(guide: Guide, **changes: Any) -> Calibration:
    """Two ranges with inverse temperatures 1/2 and 1/4."""
    zeros = dict.fromkeys(
        (
            "accuracy", "confidence", "confidence_after", "ece", "ece_after",
            "smooth_ece", "smooth_ece_after", "ece_error", "ece_error_after",
        ),
        0.0,
    )  # fmt: skip
    ranges = (
        RangeCalibration(0.0, math.inf, 0.5, 0, **zeros),
        RangeCalibration(-math.inf, 0.0, 0.25, 0, **zeros),
    )
    made = Calibration(guide.name, network_hash(guide.network()), "noised", ranges)
    return replace(made, **changes)


CLEANER, NOISIER = NoiseLevel(0.9, 0.4, 1.0), NoiseLevel(0.4, 0.9, 2.0)


# Measuring


def test_overconfidence_is_found_at_every_level_and_mended() -> None:
    found = measured(ShadeGuide("3"), count=600)
    assert [part.count for part in found.ranges] == [1200] * 3
    for part in found.ranges:
        assert part.confidence > part.accuracy
        assert part.ece_after < 0.6 * part.ece
        assert part.smooth_ece_after < 0.6 * part.smooth_ece
        assert sum(row[0] for row in part.bins) == part.count
        assert part.temperature == pytest.approx(1 / part.inverse_temperature)
    integral = found.details["integral"]
    assert integral["mean_after"] < 0.5 * integral["mean"]
    assert integral["trapezoid_after"] < 0.5 * integral["trapezoid"]
    assert found.details["truth"] == "labels"
    errors = [point["ece"] for point in found.details["levels"]]
    assert integral["mean"] == pytest.approx(np.mean(errors))


def test_a_larger_factor_of_the_network_is_a_larger_temperature_and_nothing_else() -> None:
    one, three = measured(ShadeGuide("1")), measured(ShadeGuide("3"))
    for a, b in zip(one.ranges[:2], three.ranges[:2], strict=True):
        assert b.temperature == pytest.approx(3 * a.temperature, rel=1e-4)
        assert b.ece_after == pytest.approx(a.ece_after, abs=2e-3)
        assert b.accuracy == a.accuracy


def test_each_half_of_the_images_has_the_temperature_of_the_other() -> None:
    """Every second image is sure to be right, the others are right as often as not."""
    truth = np.array([[1.0, 0.0], [0.5, 0.5]] * 4)
    found = _cross_fitted(np.tile([1.0, 0.0], (1, 8, 1)), truth)
    sure, unsure = (1 / (1 + math.exp(-beta)) for beta in (HIGHEST, LOWEST))
    np.testing.assert_allclose(found, [[unsure, sure] * 4])


def test_without_labels_the_teacher_is_the_truth() -> None:
    material = replace(shades(200), truth=None)
    guide, config = ShadeGuide(), CalibrationConfig(ranges=3, levels=1)
    found = calibrate(guide, world(), material, config)
    assert found.details["truth"] == "teacher"
    # Nearly clean, the guide says what the teacher says.
    assert found.ranges[0].inverse_temperature == pytest.approx(1, abs=0.1)
    assert found.ranges[0].ece < 0.02


def test_the_same_call_gives_the_same_and_other_noise_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measurement, "_RESAMPLINGS", 10)
    first, again = (measured(ShadeGuide("2"), 40) for _ in range(2))
    assert first.to_dict() == again.to_dict()
    assert measured(ShadeGuide("2"), 40, batch=7).ranges == first.ranges
    assert measured(ShadeGuide("2"), 40, seed=1).ranges != first.ranges


def test_predicted_images_are_shown_without_a_level_and_those_that_know_are_told() -> None:
    seen: list[NoiseLevel | None] = []

    class Watched(ShadeGuide):
        def see(self, x: Tensor, level: NoiseLevel | None = None) -> Tensor:
            seen.append(level)
            return super().see(x, level)

    guide, backbone = Watched("2"), world()
    config = CalibrationConfig("predicted", ranges=2, levels=1)
    found = calibrate(guide, backbone, shades(10), config)
    assert found.view == "predicted"
    assert backbone.evaluations == 2
    assert set(seen) == {None}
    guide.knows_predictions = True
    calibrate(guide, backbone, shades(10), config)
    assert {level for level in seen if level} == {
        backbone.levels()[p["position"]] for p in found.details["levels"]
    }


def test_experts_are_measured_in_their_own_ranges() -> None:
    guide = ShadeGuide("2")
    experts = expert_set(guide)
    found = calibrate(
        WithExperts(guide, experts), world(), shades(50), CalibrationConfig(levels=1), "mine"
    )
    assert [part.range for part in found.ranges] == experts.ranges
    assert (found.experts, found.experts_sha256) == ("mine", experts_hash(experts))
    plain = calibrate(guide, world(), shades(50), CalibrationConfig(ranges=2, levels=1))
    assert plain.experts is plain.experts_sha256 is None
    # The first expert changes the bias to zero, the second to something else.
    assert all(
        a.confidence != b.confidence for a, b in zip(plain.ranges, found.ranges, strict=True)
    )
    of_predictions = replace(experts, metadata=experts.metadata | {"view": "predicted"})
    both, config = WithExperts(guide, of_predictions), CalibrationConfig("predicted", levels=1)
    told = calibrate(both, world(), shades(50), config)
    assert told.view == "predicted"
    untold = calibrate(guide, world(), shades(50), replace(config, ranges=2))
    assert told.ranges[1].confidence != untold.ranges[1].confidence
    with pytest.raises(OptionError, match="tuned on predicted images, not on noised"):
        calibrate(both, world(), shades(50), CalibrationConfig())
    x = torch.ones(1, 3, 8, 8)
    calibrated = Calibrated(both, told)
    assert calibrated.knows_predictions
    factor = told.inverse_temperature(NOISIER)
    torch.testing.assert_close(calibrated.see(x, NOISIER), factor * both.see(x, NOISIER))


def test_levels_are_spread_evenly_over_their_ranges() -> None:
    levels = world().levels()
    found = spread(levels, uniform_ranges(levels, 2), 2)
    assert found == [[122, 367], [612, 857]]
    assert spread(levels[:3], uniform_ranges(levels[:3], 3), 5) == [[0], [1], [2]]
    with pytest.raises(OptionError, match="no noise level"):
        spread(levels, [NoiseRange(50.0, 60.0)], 1)


def test_what_cannot_be_calibrated_is_said() -> None:
    with pytest.raises(OptionError, match="knows no classes"):
        measured(ColourGuide())
    with pytest.raises(OptionError, match="1 image"):
        measured(ShadeGuide(), 1)
    material = replace(shades(5), truth=torch.eye(4)[:1].expand(5, 4))
    with pytest.raises(OptionError, match="4 classes, the guide knows 3"):
        calibrate(ShadeGuide(), world(), material, CalibrationConfig())
    for key in ("ranges", "levels", "bins", "batch"):
        with pytest.raises(OptionError, match=f"'{key}' .* is 0"):
            CalibrationConfig(**{key: 0})

    class Squared(ShadeGuide):
        def logits(self, output: Tensor) -> Tensor:
            return output**2

    with pytest.raises(OptionError, match="not proportional"):
        measured(Squared())

    class Broken(ShadeGuide):
        def see(self, x: Tensor, level: NoiseLevel | None = None) -> Tensor:
            return super().see(x) * (math.nan if level else 1)

    with pytest.raises(OptionError, match="not finite"):
        measured(Broken())

    class Blind(ClassBackbone):
        def encode_classes(self, labels: Any) -> Any:
            raise OptionError("No unconditional branch.")

    predicted = CalibrationConfig("predicted")
    with pytest.raises(OptionError, match="without a condition"):
        calibrate(ShadeGuide(), _sized(Blind()), shades(5), predicted)
    latent = LatentBackbone(shape=(3, 8, 8))

    class Any16(ShadeGuide):
        def prepare(self, x: Tensor) -> Tensor:
            return F.interpolate(x, size=(8, 8))

    with pytest.raises(OptionError, match="latents"):
        calibrate(Any16(), latent, shades(5), predicted)


def _sized(backbone: Any) -> Any:
    backbone.state_shape = (3, 8, 8)
    return backbone


# Using it


def test_logits_are_multiplied_by_their_ranges_inverse_temperature() -> None:
    guide = ShadeGuide()
    calibrated = Calibrated(guide, hand_made(guide))
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    plain = guide.see(x)
    torch.testing.assert_close(calibrated.see(x), plain)
    torch.testing.assert_close(calibrated.see(x, CLEANER), plain / 2)
    torch.testing.assert_close(calibrated.see(x, NOISIER), plain / 4)
    assert calibrated.name == "shade"
    assert not calibrated.knows_predictions


def test_what_was_fitted_makes_the_measured_guide_calibrated() -> None:
    guide = ShadeGuide("3")
    found = measured(guide, 600)
    again = measured(Calibrated(guide, found), 600)
    for before, after in zip(found.ranges, again.ranges, strict=True):
        assert after.inverse_temperature == pytest.approx(1, rel=1e-4)
        assert after.ece == pytest.approx(before.ece_after, abs=0.02)


def test_a_calibration_of_predictions_is_told_their_level() -> None:
    guide = ShadeGuide()
    calibrated = Calibrated(guide, hand_made(guide, view="predicted"))
    assert calibrated.knows_predictions
    x = torch.zeros(1, 3, 8, 8)
    torch.testing.assert_close(calibrated.see(x, NOISIER), guide.see(x) / 4)
    see, told = guide.see, []
    guide.see = lambda x, level=None: told.append(level) or see(x)  # type: ignore[method-assign,func-returns-value]
    for knows in (False, True):  # the guide itself only if it is one for predictions
        guide.knows_predictions = knows
        calibrated.see(x, NOISIER)
    assert told == [None, NOISIER]


def test_calibration_goes_over_experts() -> None:
    guide = ShadeGuide()
    experts = expert_set(guide)
    both = WithExperts(guide, experts)
    known = hand_made(guide, experts="mine", experts_sha256=experts_hash(experts))
    calibrated = Calibrated(both, known)
    x = torch.ones(1, 3, 8, 8)
    torch.testing.assert_close(calibrated.see(x, NOISIER), both.see(x, NOISIER) / 4)
    assert experts_of(calibrated) is experts
    moved = replace(experts, ranges=uniform_ranges(world().levels()[:900], 2))
    scaled = replace(experts, patches=[replace(p, scaling=2.0) for p in experts.patches])
    assert len({experts_hash(e) for e in (experts, moved, scaled)}) == 3
    with pytest.raises(CheckpointError, match="with the experts 'mine'; it has none here"):
        Calibrated(guide, known)
    with pytest.raises(CheckpointError, match="it has others here"):
        Calibrated(WithExperts(guide, expert_set(guide, 2)), known)
    with pytest.raises(CheckpointError, match="without experts; it has some here"):
        Calibrated(both, hand_made(guide))


def test_a_calibration_is_for_one_guide_one_network_and_one_view() -> None:
    calibration = hand_made(ShadeGuide())
    with pytest.raises(CheckpointError, match="another network") as caught:
        calibration.check(ShadeGuide("2"))
    assert "ppap calibrate" in caught.value.remedy
    with pytest.raises(CheckpointError, match="for the guide 'shade', not for 'colour'"):
        calibration.check(ColourGuide())
    calibration.check_view(True)
    with pytest.raises(OptionError, match="predicted clean images; it was calibrated on noised"):
        calibration.check_view(False)
    partial = replace(calibration, ranges=calibration.ranges[:1])
    with pytest.raises(CheckpointError, match="no range for log-SNR"):
        partial.inverse_temperature(NOISIER)


def test_a_calibration_is_stored_and_read_as_it_was(tmp_path: Path) -> None:
    guide = ShadeGuide("2")
    found = measured(guide, 20)
    found.save(tmp_path / "calibration.json")
    for path in (tmp_path, tmp_path / "calibration.json"):
        read = load_calibration(path, guide)
        assert read == found
    with pytest.raises(CheckpointError, match="another network"):
        load_calibration(tmp_path, ShadeGuide("3"))
    with pytest.raises(OutputError):
        found.save(tmp_path / "calibration.json" / "below.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 9}, "'format': input should be 1, not 9"),
        ({"view": "heard"}, "'view'"),
        ({"guide": 3}, "'guide': input should be a valid string, not 3"),
        ({"experts": 3}, "'experts'"),
        ({"ranges": []}, "'ranges'"),
        ({"ranges": 3}, "'ranges'"),
        ({"ranges": [{}]}, "'ranges.0.low': field required; and 14 more"),
    ],
)
def test_damaged_calibrations_are_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    values = hand_made(ShadeGuide()).to_dict() | change
    (tmp_path / "calibration.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=message):
        load_calibration(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("inverse_temperature", 0.0, "'ranges.1.inverse_temperature'"),
        ("inverse_temperature", "1", "valid number, not '1'"),
        ("ece", None, "'ranges.1.ece'"),
        ("low", math.inf, "no number of JSON"),
        ("low", 100.0, "a range from 100.0 to"),
        ("high", None, "overlap"),
        ("bins", [[1.0]], "'ranges.1.bins.0'"),
        ("bins", 10**4000, "300 digits"),
    ],
)
def test_damaged_ranges_are_refused(key: str, value: Any, message: str, tmp_path: Path) -> None:
    values = hand_made(ShadeGuide()).to_dict()
    values["ranges"][1][key] = value
    (tmp_path / "calibration.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=message):
        load_calibration(tmp_path)


def test_what_is_no_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no file"):
        load_calibration(tmp_path)
    for text in ("{", "[]", "3", "[" * 100_000, '{"a":' * 300, "", "\0"):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(CheckpointError, match="no calibration"):
            load_calibration(tmp_path / "x.json")


# Images from a folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, value in (("dark", 60), ("light", 200)):
        for k in range(3):
            path = tmp_path / "images" / name / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (10, 8), (value + k, value, value)).save(path)
    return tmp_path / "images"


def test_labels_are_names_of_folders(folder: Path) -> None:
    made = from_folder(ShadeGuide(), folder, (8, 8), 500, 0, labels=True)
    assert made.pixels.shape == (6, 3, 8, 8)
    assert made.truth is not None
    assert made.truth.argmax(dim=1).tolist() == [0, 0, 0, 2, 2, 2]
    few = from_folder(ShadeGuide(), folder, (8, 8), 4, 0, labels=True)
    assert len(few) == 4
    assert from_folder(ShadeGuide(), folder, (8, 8), 4, 0, labels=False).truth is None


def test_folders_without_what_is_needed_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no folder"):
        from_folder(ShadeGuide(), tmp_path / "none", (8, 8), 5, 0, labels=False)
    Image.new("RGB", (8, 8)).save(folder / "stray.png")
    assert len(from_folder(ShadeGuide(), folder, (8, 8), 9, 0, labels=False)) == 7
    with pytest.raises(OptionError, match=r"stray.png' lies in no folder of a class"):
        from_folder(ShadeGuide(), folder, (8, 8), 9, 0, labels=True)
    (folder / "stray.png").unlink()
    (folder / "dark").rename(folder / "pink")
    with pytest.raises(TargetError, match="pink"):
        from_folder(ShadeGuide(), folder, (8, 8), 9, 0, labels=True)
    for path in (folder / "pink").iterdir():
        path.unlink()
    for k in range(2):
        (folder / "light" / f"{k}.png").unlink()
    with pytest.raises(OptionError, match="holds 1 images"):
        from_folder(ShadeGuide(), folder, (8, 8), 9, 0, labels=False)


# The command, in this world


@pytest.fixture
def plugged(monkeypatch: pytest.MonkeyPatch) -> None:
    """``ppap`` knows this world alone, and resamples little: that takes most of the time."""
    monkeypatch.setattr(measurement, "_RESAMPLINGS", 10)
    plugin = ModuleType("calibration_world")
    plugin.ppap_interface = 1  # type: ignore[attr-defined]
    plugin.ShadeGuide, plugin.world = ShadeGuide, small_gaussian  # type: ignore[attr-defined]

    @hookimpl
    def ppap_backbones() -> list[Entry]:
        return [Entry("gaussian", "calibration_world:world", "Gaussian pixels")]

    @hookimpl
    def ppap_guides() -> list[Entry]:
        return [Entry("shade", "calibration_world:ShadeGuide", "shades")]

    plugin.ppap_backbones, plugin.ppap_guides = ppap_backbones, ppap_guides  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "calibration_world", plugin)
    found = Registry([metadata.EntryPoint("calibration_world", "calibration_world", "ppap")])
    monkeypatch.setattr("ppap_host.plugins.registry.registry", lambda: found)
    monkeypatch.setattr("ppap_host.runs.harvesting.registry", lambda: found)


@pytest.mark.usefixtures("plugged")
@pytest.mark.parametrize(("view", "count"), [("noised", 6), ("predicted", 1)])
def test_the_command_makes_its_own_images(
    view: str, count: int, ppap_here: Any, tmp_path: Path
) -> None:
    arguments = (
        "calibrate", "shade", "--backbone", "gaussian", "--view", view, "--num", 12,
        "--ranges", count, "--levels", 1, "--model", "2", "--device", "cpu", "--json",
    )  # fmt: skip
    outcome = ppap_here(*arguments, "--out", "one")
    assert outcome.code == 0, outcome.err
    printed = json.loads(outcome.out)
    assert printed["images"]["seed"] == 1_000_000
    assert printed["backbone"]["name"] == "gaussian"
    assert len(printed["ranges"]) == count
    read = load_calibration(tmp_path / "one", ShadeGuide("2"))
    assert read.to_dict() == printed
    assert ppap_here(*arguments, "--out", "two").code == 0
    for name in ("calibration.json", "reliability.png", "ece.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.usefixtures("plugged")
def test_the_command_reads_labelled_images(ppap_here: Any, folder: Path, tmp_path: Path) -> None:
    outcome = ppap_here(
        "calibrate", "shade", "-b", "gaussian", "--images", folder, "--labels", "--out", "x",
        "--device", "cpu", "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    printed = json.loads(outcome.out)
    assert (printed["truth"], printed["images"]["used"]) == ("labels", 6)
    assert str(tmp_path) not in outcome.out


@pytest.mark.usefixtures("plugged")
def test_the_command_says_what_does_not_go_together(ppap_here: Any, folder: Path) -> None:
    start = ("calibrate", "shade", "--out", "x")
    expert_set(ShadeGuide()).save(Path("e.safetensors"))
    for arguments, message in (
        (("--view", "seen"), "Unknown view 'seen'"),
        (("-b", "gaussian", "--view", "predicted", "--experts", "e.safetensors"), "on noised im"),
        (("--harvest", "h", "--labels"), "--harvest and --labels exclude"),
        (("--harvest", "h", "--images", folder), "--harvest and --images exclude"),
        (("--harvest", "h"), "There is no folder"),
        (("-b", "gaussian", "--labels"), "no labelled images"),
        (("-b", "gaussian", "--ranges", 0), "for '--ranges'"),
    ):
        outcome = ppap_here(*start, *arguments)
        assert outcome.code == 2
        assert message in outcome.err
    assert not Path("x").exists()
