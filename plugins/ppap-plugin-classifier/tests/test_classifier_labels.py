"""Which class a text means."""

from __future__ import annotations

import pytest
from ppap_plugin_classifier.checkpoint.from_timm import read_labels
from ppap_plugin_classifier.labels import Labels

from ppap_host.files.errors import TargetError


@pytest.fixture(scope="module")
def imagenet() -> Labels:
    return read_labels("test", {"num_classes": 1000})


@pytest.fixture
def few() -> Labels:
    return Labels(["red cube", "blue cube", "red cone"])


@pytest.mark.parametrize("text", ["blue cube", "Blue Cube", " blue  cube ", "blue_cube", "1", "+1"])
def test_a_class_by_name_or_number(few: Labels, text: str) -> None:
    assert few.find(text) == 1


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("golden retriever", 207),
        ("GOLDEN-RETRIEVER", 207),
        ("207", 207),
        ("n02099601", 207),
        ("Carassius auratus", 1),
        ("goldfish", 1),
        ("goldfish, Carassius auratus", 1),
    ],
)
def test_imagenet_by_any_synonym(imagenet: Labels, text: str, index: int) -> None:
    assert imagenet.find(text) == index


def test_namesakes_are_told_apart(imagenet: Labels) -> None:
    with pytest.raises(TargetError, match="means 2 classes") as caught:
        imagenet.find("crane")
    assert "134" in caught.value.message and "517" in caught.value.message
    assert "number" in caught.value.remedy


def test_a_whole_name_comes_before_a_synonym() -> None:
    labels = Labels(["mouth organ, harp", "harp", "organ"])
    assert labels.find("harp") == 1
    assert labels.find("mouth organ") == 0


def test_a_name_made_of_digits_comes_before_a_number() -> None:
    assert Labels(["1", "0"]).find("0") == 1


@pytest.mark.parametrize("text", ["3", "-1", "99999999999999999999"])
def test_a_number_out_of_range_is_said(few: Labels, text: str) -> None:
    with pytest.raises(TargetError, match=f"no class {text}") as caught:
        few.find(text)
    assert "0 to 2" in caught.value.remedy


@pytest.mark.parametrize(
    ("text", "meant"), [("red cuve", "red cube"), ("blu cube", "blue cube"), ("cone", "red cone")]
)
def test_near_misses_get_suggestions(few: Labels, text: str, meant: str) -> None:
    with pytest.raises(TargetError, match="No class is called") as caught:
        few.find(text)
    assert f"Did you mean {meant!r}" in caught.value.remedy or repr(meant) in caught.value.remedy
    assert "Known: red cube, blue cube, red cone." in caught.value.remedy


def test_many_classes_are_not_all_listed(imagenet: Labels) -> None:
    with pytest.raises(TargetError) as caught:
        imagenet.find("retriever")
    assert "'golden retriever'" in caught.value.remedy
    assert "1000 classes" in caught.value.remedy
    assert len(caught.value.remedy) < 500


@pytest.mark.parametrize("text", ["", "   ", "qqqqqqqqqqqqqqqqqqqqqq", "-", "1.5", "²"])
def test_nonsense_is_said_without_far_fetched_suggestions(few: Labels, text: str) -> None:
    with pytest.raises(TargetError, match="No class is called") as caught:
        few.find(text)
    assert "Did you mean" not in caught.value.remedy


def test_a_checkpoint_without_names_has_numbers() -> None:
    labels = read_labels("test", {"num_classes": 7})
    assert labels.find("6") == 6
    assert labels.find("class 3") == 3
    assert len(labels) == 7
