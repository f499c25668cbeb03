"""The guide ``adm-classifier``: a classifier that is told how noisy its image is."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ppap_plugin_openai import guide as module
from ppap_plugin_openai.adm import (
    PUBLISHED_ADM,
    PUBLISHED_CLASSIFIERS,
    ADMClassifierConfig,
    ADMConfig,
    load_adm,
    load_adm_classifier,
)
from ppap_plugin_openai.backbone import ADMBackbone
from ppap_plugin_openai.guide import ADMClassifierGuide
from torch import Tensor

from ppap_host.backbones.backbone import ClassifierFree
from ppap_host.backbones.noise import DiscreteSchedule, NoiseLevel, cosine_betas, linear_betas
from ppap_host.files.errors import CheckpointError, OptionError, TargetError
from ppap_host.guides.guide import Guide
from ppap_host.plugins.registry import registry
from ppap_host.recipes.presets import NAIVE
from ppap_host.sampling.evaluator import Guidance
from ppap_host.sampling.loop import sample
from ppap_host.sampling.solvers import DDPM
from ppap_host.sampling.streams import ImageNoise

State = Callable[[Any], dict[str, Tensor]]
CONFIG = ADMClassifierConfig(
    image_size=16,
    model_channels=32,
    num_res_blocks=1,
    attention_resolutions=(2,),
    out_channels=5,
    channel_mult=(1, 2),
    num_head_channels=16,
    pool="attention",
)
FLAGS = {
    "model_channels": 32, "image_size": 16, "num_res_blocks": 1, "attention_resolutions": [2],
    "out_channels": 5, "channel_mult": [1, 2], "num_head_channels": 16, "pool": "attention",
    "noise_schedule": "cosine",
}  # fmt: skip


@pytest.fixture
def path(tmp_path: Path, random_state: State) -> Path:
    """A small classifier's file, with its flags beside it."""
    path = tmp_path / "classifier.pt"
    torch.save(random_state(CONFIG), path)
    Path(f"{path}.json").write_text(json.dumps(FLAGS))
    return path


@pytest.fixture
def guide(path: Path) -> ADMClassifierGuide:
    found = registry().make("guide", "adm-classifier", Guide, model=str(path))  # type: ignore[type-abstract]
    assert isinstance(found, ADMClassifierGuide)
    return found


def test_the_network_is_told_the_noise_of_its_image(guide: ADMClassifierGuide, path: Path) -> None:
    classifier = load_adm_classifier(path, CONFIG)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    levels = DiscreteSchedule.from_betas(cosine_betas(1000)).levels()
    for step in (0, 7, 480, 999):
        expected = classifier(x, torch.full((2,), step))
        assert torch.equal(guide.see(x, levels[step]), expected)
    assert torch.equal(guide.see(x), classifier(x, torch.zeros(2)))


def test_another_schedules_levels_are_met_by_their_noise(guide: ADMClassifierGuide) -> None:
    own = DiscreteSchedule.from_betas(cosine_betas(1000)).levels()
    assert [guide.time(level) for level in own] == [level.time for level in own]
    # A variance-exploding level with the noise of step 300, by another name for its time.
    same = own[300]
    other = NoiseLevel(alpha=1.0, sigma=same.sigma / same.alpha, time=-0.25)
    assert guide.time(other) == pytest.approx(300, abs=1e-6)
    linear = DiscreteSchedule.from_betas(linear_betas(1000)).levels()
    times = [guide.time(level) for level in linear]
    assert times == sorted(times)
    assert times[0] >= 0 and times[-1] <= 999


def test_a_class_is_asked_for_by_number_or_by_name(path: Path) -> None:
    guide = ADMClassifierGuide(str(path))
    target = guide.read_target("3", (16, 16))
    assert target.value.tolist() == [[0, 0, 0, 1, 0]]
    assert target.pictures["target"].size == (192, 192)
    with pytest.raises(TargetError, match="No class is called") as caught:
        guide.read_target("goldfish", (16, 16))
    assert "<model>.txt" in caught.value.remedy
    with pytest.raises(TargetError, match="no class 5"):
        guide.read_target("5", (16, 16))

    names = path.with_name("classifier.pt.txt")
    names.write_text("tench\ngoldfish, Carassius auratus\ncrane\ncrane, machine\nray\n")
    guide = ADMClassifierGuide(str(path))
    assert guide.files() == (path, Path(f"{path}.json"), names)
    for text, index in (("Goldfish", 1), ("carassius_auratus", 1), ("4", 4), ("machine", 3)):
        assert guide.read_target(text, (16, 16)).value.argmax() == index
    with pytest.raises(TargetError, match=r"2 classes: 2 is crane; 3 is crane, machine\."):
        guide.read_target("crane", (16, 16))
    with pytest.raises(TargetError, match="No class") as caught:
        guide.read_target("goldfisch", (16, 16))
    assert "goldfish" in caught.value.remedy
    names.write_text("tench\n")
    with pytest.raises(CheckpointError, match="1 class names for 5 classes"):
        ADMClassifierGuide(str(path))
    names.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(CheckpointError, match="no text in UTF-8"):
        ADMClassifierGuide(str(path))


def test_noise_at_another_size_is_another_noise(guide: ADMClassifierGuide) -> None:
    with pytest.raises(TargetError, match="16 x 16 pixels; these images have 64 x 64"):
        guide.read_target("1", (64, 64))


def test_loss_is_the_log_likelihood_and_distance_a_divergence(guide: ADMClassifierGuide) -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0, 0.5, 0.0], [0.0, 3.0, 0.0, 0.0, 0.0]])
    target = guide.read_target("1", (16, 16)).value
    assert torch.allclose(guide.loss(logits, target), -logits.log_softmax(1)[:, 1])
    assert torch.allclose(guide.distance(logits, logits), torch.zeros(2), atol=1e-6)
    assert (guide.distance(logits, logits.flip(0)) > 0.1).all()
    assert torch.allclose(guide.as_target(logits).sum(1), torch.ones(2))
    measures = guide.measure(logits, target)
    assert measures["right"] == [0.0, 1.0]
    assert measures["probability"] == pytest.approx(logits.softmax(1)[:, 1].tolist())
    assert [picture.size for picture in guide.picture(logits)] == [(192, 192)] * 2


def test_it_steers_an_adm_towards_its_class(
    guide: ADMClassifierGuide, tmp_path: Path, random_state: State
) -> None:
    config = ADMConfig(
        image_size=16, num_channels=32, num_res_blocks=1, channel_mult=(1, 2),
        attention_resolutions=(8,), learn_sigma=True,
    )  # fmt: skip
    torch.save(random_state(config), tmp_path / "adm.pt")
    backbone = ADMBackbone(load_adm(tmp_path / "adm.pt", config))
    target = guide.read_target("2", backbone.image_size).value

    def probability(*guidance: Guidance) -> Tensor:
        x = sample(
            backbone,
            ClassifierFree(backbone, {}, {}),
            backbone.walk(8),
            DDPM(),
            ImageNoise(0, [0, 1], backbone.state_shape),
            guidance,
        )
        return torch.tensor(guide.measure(guide.see(x), target)["probability"])

    guided = probability(Guidance(guide, target, NAIVE, 30.0))
    assert (guided > probability()).all()


@pytest.mark.parametrize("name", PUBLISHED_CLASSIFIERS)
def test_the_published_classifiers_are_told_by_their_tensors(
    name: str, tmp_path: Path, weightless_state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = PUBLISHED_CLASSIFIERS[name]
    path = tmp_path / "any-name.pt"
    torch.save(weightless_state(entry.config), path)
    config, schedule = module._identified(path)
    assert config == entry.config
    assert schedule == ("cosine" if name == "adm-64-classifier" else "linear")


def test_what_is_no_classifier_is_refused(
    tmp_path: Path, random_state: State, weightless_state: State
) -> None:
    with pytest.raises(CheckpointError, match="ships no weights") as caught:
        ADMClassifierGuide()
    assert "256x256_classifier.pt" in caught.value.remedy
    path = tmp_path / "model.pt"
    torch.save(weightless_state(PUBLISHED_ADM["adm-128-cond"].config), path)
    with pytest.raises(CheckpointError, match=r"no classifier. .* published adm-128-cond"):
        ADMClassifierGuide(str(path))
    torch.save(random_state(replace(CONFIG, out_channels=7)), path)
    with pytest.raises(CheckpointError, match="none of the published") as caught:
        ADMClassifierGuide(str(path))
    assert "model.pt.json" in caught.value.remedy
    Path(f"{path}.json").write_text(json.dumps(FLAGS))
    with pytest.raises(CheckpointError, match=r"out\.2\.c_proj\.weight is \(7, 64, 1\)"):
        ADMClassifierGuide(str(path))
    Path(f"{path}.json").write_text(json.dumps(FLAGS | {"noise_schedule": "sigmoid"}))
    with pytest.raises(OptionError, match="sigmoid"):
        ADMClassifierGuide(str(path))
