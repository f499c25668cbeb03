"""The guide with its bundled network: targets, pictures, measures, and how good it is."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import ppap_plugin_classifier
import pytest
import torch
from ppap_plugin_classifier import shipped
from ppap_plugin_classifier.bars import chart, percent
from ppap_plugin_classifier.guide import BUNDLED, ClassifierGuide

from ppap_host.experts.patches import Patch
from ppap_host.files.errors import TargetError
from ppap_host.files.images import contact_sheet, from_tensor
from ppap_host.shapes.renderer import render
from ppap_host.shapes.scenes import CLASS_NAMES, Scenes, sample_scenes

SIZE = (64, 64)


@pytest.fixture(scope="module")
def guide() -> ClassifierGuide:
    return ClassifierGuide()


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return sample_scenes(7002, 0, 96)


@pytest.fixture(scope="module")
def rgb(scenes: Scenes) -> torch.Tensor:
    return render(scenes).rgb


@pytest.fixture
def photo(tmp_path: Path, rgb: torch.Tensor) -> Path:
    path = tmp_path / "room.png"
    from_tensor(rgb[:1])[0].save(path)
    return path


def test_only_expert_sets_that_are_there_are_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipped, "EXPERTS", tmp_path)
    assert ppap_plugin_classifier.ppap_expert_sets() == []
    for name in ("shapes-1", "shapes-5", "shapes-10", "shapes-7"):
        (tmp_path / f"{name}.safetensors").touch()
    offered = ppap_plugin_classifier.ppap_expert_sets()
    assert [entry.name for entry in offered] == [
        "classifier-shapes-5",
        "classifier-shapes-1",
        "classifier-shapes-10",
    ]
    (tmp_path / "shapes-2.safetensors").touch()
    for entry in ppap_plugin_classifier.ppap_expert_sets():
        path = entry.load()()
        assert path == tmp_path / f"{entry.name.removeprefix('classifier-')}.safetensors"


def test_bundled_network_is_small_and_half_precision(guide: ClassifierGuide) -> None:
    assert (BUNDLED / "model.safetensors").stat().st_size < 3e6
    count = sum(p.numel() for p in guide.network().parameters())
    assert 1.0e6 < count < 1.5e6
    measured = json.loads((BUNDLED / "measured.json").read_text())
    assert measured["parameters"] == count
    assert measured["measured"]["accuracy"] >= 0.985


def test_it_sees_the_images_as_they_are(guide: ClassifierGuide, rgb: torch.Tensor) -> None:
    torch.testing.assert_close(guide.prepare(rgb), rgb, atol=0, rtol=0)
    assert guide.prepare(torch.zeros(1, 3, 128, 96)).shape == (1, 3, 64, 64)


def test_accuracy_on_fresh_renders(
    guide: ClassifierGuide, scenes: Scenes, rgb: torch.Tensor
) -> None:
    with torch.no_grad():
        output = guide.see(rgb)
    rights, probabilities = [], []
    for row, label in zip(output, scenes.labels.tolist(), strict=True):
        target = guide.read_target(CLASS_NAMES[label], SIZE)
        measured = guide.measure(row[None], target.value)
        rights += measured["right"]
        probabilities += measured["probability"]
    assert np.mean(rights) > 0.95
    assert np.mean(probabilities) > 0.93


@pytest.mark.parametrize("text", ["red cone", "RED_cone", "18"])
def test_a_label_becomes_a_one_hot_row(guide: ClassifierGuide, text: str) -> None:
    target = guide.read_target(text, SIZE)
    assert target.value.tolist() == [[float(name == "red cone") for name in CLASS_NAMES]]
    assert target.text == text
    assert list(target.files) == []
    assert list(target.pictures) == ["target"]


def test_an_image_becomes_what_is_seen_in_it(
    guide: ClassifierGuide, scenes: Scenes, rgb: torch.Tensor, photo: Path
) -> None:
    target = guide.read_target(str(photo), SIZE)
    assert target.value.shape == (1, 24)
    assert target.value.sum().item() == pytest.approx(1, abs=1e-5)
    assert target.value.min() >= 0
    assert not target.value.requires_grad
    with torch.no_grad():
        seen = guide.see(rgb[:1]).softmax(dim=1)
    # The file is rounded to 8 bits.
    torch.testing.assert_close(target.value, seen, atol=0.02, rtol=0)
    assert target.value.argmax().item() == scenes.labels[0].item()
    assert list(target.pictures) == ["target", "seen as"]
    assert target.pictures["target"].size == (64, 64)
    assert list(target.files) == [photo]


def test_a_file_comes_before_a_class_of_its_name(
    guide: ClassifierGuide, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photo.parent)
    photo.rename("red cone")
    assert list(guide.read_target("red cone", SIZE).files) == [Path("red cone")]
    Path("red cube").mkdir()
    assert list(guide.read_target("red cube", SIZE).files) == []


def test_bad_targets_are_said(guide: ClassifierGuide, tmp_path: Path) -> None:
    text = tmp_path / "words.txt"
    text.write_text("a red cube")
    empty = tmp_path / "empty.png"
    empty.touch()
    for target, wrong in (
        ("red cubes and more", "No class"),
        ("24", "no class 24"),
        ("absent.png", "no file"),
        (str(tmp_path / "absent"), "no file"),
        (str(tmp_path), "folder"),
        (str(text), "not an image"),
        (str(empty), "empty"),
        ("https://example.org/a.png", "address"),
        ("\0", "No class"),
        ("x" * 5000, "No class"),
    ):
        with pytest.raises(TargetError, match=wrong) as caught:
            guide.read_target(target, SIZE)
        assert caught.value.remedy
    with pytest.raises(TargetError) as caught:
        guide.read_target("red cuve", SIZE)
    assert "'red cube'" in caught.value.remedy


def test_loss_of_a_label_and_of_a_soft_target(guide: ClassifierGuide, rgb: torch.Tensor) -> None:
    with torch.no_grad():
        output = guide.see(rgb[:8])
    label = guide.read_target("5", SIZE).value
    torch.testing.assert_close(guide.loss(output, label), -output.log_softmax(dim=1)[:, 5])
    soft = torch.full((1, 24), 1 / 24)
    torch.testing.assert_close(guide.loss(output, soft), -output.log_softmax(dim=1).mean(dim=1))
    # A row an image is as good as one row for all.
    rows = torch.cat([label, soft] * 4)
    both = torch.stack([guide.loss(output, label), guide.loss(output, soft)])
    torch.testing.assert_close(guide.loss(output, rows)[::2], both[0, ::2])
    torch.testing.assert_close(guide.loss(output, rows)[1::2], both[1, 1::2])


def test_distance_tempers_the_teacher_alone(guide: ClassifierGuide) -> None:
    student, teacher = torch.randn(2, 4, 24)
    plain = guide.distance(student, teacher)
    assert plain.shape == (4,) and (plain > 0).all()
    torch.testing.assert_close(guide.distance(teacher, teacher), torch.zeros(4), atol=1e-6, rtol=0)
    other = ClassifierGuide()
    assert other.teacher_temperature == 1.0
    other.teacher_temperature = 0.25
    torch.testing.assert_close(
        other.distance(student, teacher), guide.distance(student, 4 * teacher)
    )
    labels = torch.tensor([0, 23, 7, 7])
    usual = torch.nn.functional.cross_entropy(student, labels, reduction="none")
    for one in (guide, other):
        logits = one.from_labels(labels)
        assert logits.shape == (4, 24)
        torch.testing.assert_close(one.distance(student, logits), usual)


def test_measures_of_a_soft_target_are_of_its_likeliest_class(guide: ClassifierGuide) -> None:
    output = torch.zeros(2, 24)
    output[0, 3], output[1, 4] = 2.0, 2.0
    soft = torch.zeros(1, 24)
    soft[0, 3], soft[0, 4] = 0.6, 0.4
    measured = guide.measure(output, soft)
    high = float(np.exp(2) / (np.exp(2) + 23))
    assert measured["probability"] == pytest.approx([high, 1 / (np.exp(2) + 23)])
    assert measured["right"] == [1.0, 0.0]


def test_an_expert_trains_less_than_a_tenth(guide: ClassifierGuide) -> None:
    network = guide.network()
    share = Patch.fresh(network, guide.patch_plan(network)).count()
    assert share < 0.1 * sum(p.numel() for p in network.parameters())


def test_pictures_show_the_three_likeliest(guide: ClassifierGuide) -> None:
    output = torch.zeros(2, 24)
    output[0, 0], output[0, 1], output[0, 2] = 9.0, 8.0, 7.0
    pictures = guide.picture(output)
    assert [p.size for p in pictures] == [(192, 192)] * 2
    exact = output[0].softmax(dim=0).tolist()
    expected = chart([(CLASS_NAMES[k], exact[k]) for k in range(3)])
    assert np.array_equal(np.asarray(pictures[0]), np.asarray(expected))
    assert contact_sheet([("seen", [("image 0", pictures[0])])], cell=128).width > 128


def test_bars_are_as_long_as_the_probability() -> None:
    def length(probability: float) -> int:
        pixels = np.asarray(chart([("x", probability)])).astype(int)
        blue = (pixels[:, :, 2] - pixels[:, :, 0]) > 60
        return int(blue.sum(axis=1).max())

    lengths = [length(p) for p in (0.0, 0.25, 0.5, 1.0)]
    assert lengths[0] == length(float("nan")) == 0
    assert lengths[2] == pytest.approx(2 * lengths[1], abs=2)
    assert lengths[3] == pytest.approx(2 * lengths[2], abs=2)


def test_a_long_label_stays_in_its_picture() -> None:
    for label in ("Chesapeake Bay retriever of the old school", "x" * 10**6):
        edge = np.asarray(chart([(label, 0.5), ("", 0.3)]))[:, -8:]
        assert (edge == edge[0, 0]).all()


def test_a_probability_that_is_none_has_no_bar_and_is_called_so() -> None:
    none, zero = (np.asarray(chart([("x", p)])) for p in (float("nan"), 0.0))
    assert np.array_equal(none[:, :130], zero[:, :130])
    assert percent(float("nan")) == "nan%"


def test_percentages_never_round_to_certainty() -> None:
    shown = [percent(p) for p in (0.0, 0.004, 0.01, 0.5, 0.986, 0.996, 1.0)]
    assert shown == ["0%", "<1%", "1%", "50%", "99%", ">99%", "100%"]


def test_training_writes_a_network_the_guide_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train = importlib.import_module("ppap_plugin_classifier.train")
    monkeypatch.setattr(train, "FRESH_COUNT", 8)
    out = tmp_path / "out"
    options = f"--work {tmp_path} --out {out} --scenes 8 --images 8 --batch 4 --width 0.25 --seed 3"
    monkeypatch.setattr(sys, "argv", ["train", *options.split()])
    train.main()
    assert len(ClassifierGuide(str(out)).labels) == 24
    report = json.loads((out / "measured.json").read_text())
    assert report["trained_on"]["seed"] == 3 and report["trained_on"]["scenes"] == 8
    assert report["parameters"] < 2e5
    # A finished model is left alone; an unmeasured one is measured, not trained anew.
    before = (out / "model.safetensors").read_bytes()
    capsys.readouterr()
    train.main()
    assert "there already" in capsys.readouterr().out
    (out / "measured.json").unlink()
    train.main()
    assert (out / "model.safetensors").read_bytes() == before
    assert (out / "measured.json").exists()
