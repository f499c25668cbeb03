"""A guide gets the experts that fit it, and is never given others, or none, in silence."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from teaching import world
from worlds import ColourGuide, small_gaussian

from ppap_host.backbones.noise import EVERYWHERE, NoiseRange
from ppap_host.experts.harvest import HarvestConfig
from ppap_host.experts.sets import ExpertSet, View, WithExperts
from ppap_host.experts.tuning import TuningConfig, tune
from ppap_host.files.errors import CheckpointError, OptionError, UnknownNameError
from ppap_host.plugins.hookspecs import Entry
from ppap_host.plugins.registry import Registry
from ppap_host.recipes.presets import PPAP, X0
from ppap_host.recipes.recipe import Move
from ppap_host.runs.choice import Choice, choose, fitting_set
from ppap_host.runs.config import GuideConfig, RunConfig
from ppap_host.runs.harvesting import harvest


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experts")
    made = harvest(
        HarvestConfig("gaussian", num=20, shard=20, steps=3, device="cpu"),
        folder / "harvest",
        found=world(),
    )
    config = TuningConfig(experts=2, rank=1, steps=2, batch=8)
    guide = ColourGuide()
    tuned = tune(guide, made.lesson(guide), small_gaussian().levels(), config)
    tuned.save(folder / "experts.safetensors")
    return folder


@pytest.fixture
def installed(experts: Path) -> Registry:
    """The same world, with a plugin that ships the expert set."""

    class Shipping:
        ppap_interface = 1

        @staticmethod
        def ppap_expert_sets() -> list[Entry]:
            return [Entry("colour-gaussian-2", "test_expert_choice_shipped:path", "two experts")]

    import sys
    import types

    from ppap_host.plugins.hookspecs import hookimpl

    module = types.ModuleType("test_expert_choice_shipped")
    module.path = lambda: experts / "experts.safetensors"  # type: ignore[attr-defined]
    module.ppap_interface = 1  # type: ignore[attr-defined]
    module.ppap_expert_sets = hookimpl(Shipping.ppap_expert_sets)  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    points = [
        metadata.EntryPoint("teaching", "teaching", "ppap"),
        metadata.EntryPoint("shipping", module.__name__, "ppap"),
    ]
    return Registry(points)


def chosen(
    found: Registry,
    recipe: str | None = None,
    experts: str | None = None,
    model: str | None = None,
    interval: str | None = None,
    size: int = 8,
) -> Choice:
    backbone = small_gaussian()
    backbone.state_shape = (3, size, size)
    config = GuideConfig("colour", "0.5", experts=experts, interval=interval)
    return choose(config, recipe, ColourGuide(model), backbone, backbone.walk(10), found)


def test_a_registered_set_that_fits_is_used_and_named(installed: Registry, experts: Path) -> None:
    choice = chosen(installed)
    assert isinstance(choice.guide, WithExperts)
    assert (choice.recipe.name, choice.experts) == ("ppap", "colour-gaussian-2")
    assert choice.files == (experts / "experts.safetensors",)


def test_without_a_set_the_recipe_is_one_that_needs_none(installed: Registry) -> None:
    for choice in (
        chosen(world()),
        chosen(installed, experts="none"),
        chosen(installed, model="1"),  # another network: the set does not fit
        chosen(installed, size=16),
    ):
        assert not isinstance(choice.guide, WithExperts)
        assert (choice.recipe.name, choice.experts) == ("x0", None)


def test_a_named_recipe_is_kept(installed: Registry) -> None:
    assert chosen(installed, "x0").experts is None
    assert chosen(installed, "naive").experts is None
    assert chosen(installed, "ppap").experts == "colour-gaussian-2"


def test_a_set_can_be_given_by_name_file_or_folder(installed: Registry, experts: Path) -> None:
    for text in ("colour-gaussian-2", str(experts), str(experts / "experts.safetensors")):
        choice = chosen(installed, experts=text)
        assert (choice.recipe.name, choice.experts) == ("ppap", text)
        assert isinstance(choice.guide, WithExperts)
    assert isinstance(chosen(installed, "naive", str(experts)).guide, WithExperts)


def test_a_mismatch_names_both_sides(installed: Registry, experts: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"network") as caught:
        chosen(installed, experts=str(experts), model="1")
    tuned_on = ExpertSet.load(experts / "experts.safetensors").metadata["network_sha256"]
    assert tuned_on[:12] in caught.value.message
    with pytest.raises(CheckpointError, match=r"8 x 8.*16 x 16"):
        chosen(installed, experts=str(experts), size=16)
    half = ExpertSet.load(experts / "experts.safetensors")
    half = ExpertSet(half.ranges[:1], half.patches[:1], half.metadata)
    half.metadata["quality"] = half.metadata["quality"][:1]
    half.save(tmp_path / "half.safetensors")
    with pytest.raises(CheckpointError, match="No expert serves log-SNR"):
        chosen(installed, experts=str(tmp_path / "half.safetensors"))
    served = half.ranges[0]
    chosen(installed, experts=str(tmp_path / "half.safetensors"), interval=f"{served.low}:")


@pytest.fixture
def predicted(experts: Path, tmp_path: Path) -> Path:
    """The same set, as if it had been tuned on predictions."""
    experts_of_predictions = ExpertSet.load(experts / "experts.safetensors")
    experts_of_predictions.metadata["view"] = "predicted"
    path = tmp_path / "predicted.safetensors"
    experts_of_predictions.save(path)
    return path


def test_experts_of_predictions_are_used_where_predictions_are_shown_if_named(
    installed: Registry, predicted: Path
) -> None:
    for recipe in (None, "x0", "x0-through"):
        choice = chosen(installed, recipe, str(predicted))
        assert isinstance(choice.guide, WithExperts)
        assert choice.guide.knows_predictions
        assert choice.recipe.name == (recipe or "x0")
        assert choice.recipe.sees_predictions


@pytest.mark.parametrize("recipe", ["ppap", "naive"])
def test_experts_of_predictions_are_never_shown_noise(
    installed: Registry, predicted: Path, recipe: str
) -> None:
    with pytest.raises(OptionError, match=r"noised images.*predicted clean ones") as caught:
        chosen(installed, recipe, str(predicted))
    assert "--recipe x0" in caught.value.remedy


def test_a_recipe_that_shows_both_takes_experts_of_noise_alone(
    installed: Registry, experts: Path, predicted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = replace(PPAP, name="both", also=(Move(X0.view, X0.place),), needs_experts=False)
    assert both.sees_noise and both.sees_predictions
    load = Registry.load
    monkeypatch.setattr(
        Registry,
        "load",
        lambda self, kind, name: both if name == "both" else load(self, kind, name),
    )
    choice = chosen(installed, "both", str(experts))
    assert isinstance(choice.guide, WithExperts)
    assert not choice.guide.knows_predictions
    with pytest.raises(OptionError, match="noised images"):
        chosen(installed, "both", str(predicted))


def test_a_registered_set_is_found_by_its_view(
    installed: Registry, experts: Path, predicted: Path
) -> None:
    def found(view: View) -> object:
        return fitting_set(ColourGuide(), small_gaussian(), installed, view=view)

    assert found("noised") is not None
    assert found("predicted") is None
    shipped = experts / "experts.safetensors"
    before = shipped.read_bytes()
    try:
        shipped.write_bytes(predicted.read_bytes())
        assert found("noised") is None
        assert found("predicted") is not None
        # Where nobody names experts of predictions, x0 keeps the plain network.
        choice = chosen(installed)
        assert (choice.recipe.name, choice.experts) == ("x0", None)
        with pytest.raises(OptionError, match="No expert set is installed"):
            chosen(installed, "ppap")
    finally:
        shipped.write_bytes(before)


@pytest.mark.parametrize(
    ("key", "value", "fits"),
    [
        ("backbone", {"files": {}}, True),
        ("backbone", {"files": {"unet": "f" * 64}}, False),
        ("harvest", {"backbone": "gaussian"}, True),
        ("harvest", {"backbone": "another"}, False),
        ("image_size", [16, 16], False),
        ("guide", "another", False),
    ],
)
def test_a_registered_set_is_for_one_guide_on_one_backbone(
    installed: Registry, experts: Path, key: str, value: Any, fits: bool
) -> None:
    shipped = experts / "experts.safetensors"
    before, changed = shipped.read_bytes(), ExpertSet.load(shipped)
    changed.metadata[key] = value
    try:
        changed.save(shipped)
        assert (fitting_set(ColourGuide(), small_gaussian(), installed) is not None) == fits
    finally:
        shipped.write_bytes(before)
    counted = [fitting_set(ColourGuide(), small_gaussian(), installed, n) for n in (2, 3)]
    assert [found is not None for found in counted] == [True, False]


def test_what_excludes_each_other_is_refused(installed: Registry, experts: Path) -> None:
    with pytest.raises(OptionError, match="`experts` is none"):
        chosen(installed, "ppap", "none")
    with pytest.raises(OptionError, match="would never be asked") as never:
        chosen(installed, "x0", str(experts))
    assert "--recipe ppap" in never.value.remedy
    with pytest.raises(OptionError, match="needs one") as caught:
        chosen(world(), "ppap")
    assert "ppap tune colour" in caught.value.remedy
    with pytest.raises(UnknownNameError, match="colour-gaussian-3"):
        chosen(installed, experts="colour-gaussian-3")
    with pytest.raises(CheckpointError):
        chosen(installed, experts="missing/experts.safetensors")


def test_intervals_are_read_and_refused() -> None:
    assert NoiseRange.read("-4:6") == NoiseRange(-4.0, 6.0)
    assert NoiseRange.read(":") == EVERYWHERE
    assert NoiseRange.read("2:").low == 2.0
    for text in ("", "3", "a:b", "6:-4", "1:1", "nan:3"):
        with pytest.raises(OptionError, match=r"'interval' in GuideConfig.*LOW:HIGH"):
            GuideConfig("colour", interval=text)
        with pytest.raises(OptionError, match=r"'cfg_interval' in RunConfig.*LOW:HIGH"):
            RunConfig(cfg_interval=text)


def test_the_metadata_is_readable_without_the_tensors(experts: Path) -> None:
    described = ExpertSet.read_metadata(experts / "experts.safetensors")
    assert described["guide"] == "colour"
    json.dumps(described)
