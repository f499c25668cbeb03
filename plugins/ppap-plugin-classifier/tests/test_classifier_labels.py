"""Which class a text means."""

from __future__ import annotations

import pytest
from ppap_plugin_classifier.labels import named, numbered

from ppap_host.files.errors import TargetError
from ppap_host.guides.labels import Labels


@pytest.fixture(scope="module")
def imagenet() -> Labels:
    return numbered(1000)


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


def test_a_name_that_is_another_ones_synonym_is_refused() -> None:
    labels = Labels(["mouth organ, harp", "harp", "organ"])
    assert labels.find("mouth organ") == 0
    with pytest.raises(TargetError, match=r"0 is mouth organ, harp; 1 is harp\."):
        labels.find("harp")


@pytest.mark.parametrize(
    ("written", "asked"),
    [
        ("caf\u00e9", "cafe\u0301"),  # one letter, or a letter and an accent
        ("cafe\u0301", "CAF\u00c9"),
        ("stra\u00dfe", "STRASSE"),
        ("\u0130stanbul", "i\u0307stanbul"),
        ("\u03bc\u03c5\u03c2", "\u039c\u03a5\u03a3"),  # a sigma at the end of a word
        ("\uff23\uff21\uff34", "cat"),  # full-width letters
        ("\ufb01sh", "fish"),  # a ligature
        ("well\u2010known", "well known"),  # Unicode's own hyphen
        ("sky\u00a0scraper", "sky-scraper"),  # a blank that does not break
    ],
)
def test_forms_of_unicode_make_no_difference(written: str, asked: str) -> None:
    labels = Labels(["other", written])
    assert labels.find(asked) == labels.find(written) == 1


def test_names_that_differ_in_case_alone_are_refused() -> None:
    with pytest.raises(TargetError, match="means 2 classes"):
        Labels(["Cardigan", "cardigan", "dog"]).find("Cardigan")


def torchvisions() -> list[str]:
    from torchvision.models import ResNet18_Weights

    return list(ResNet18_Weights.DEFAULT.meta["categories"])


@pytest.mark.parametrize(
    ("text", "index"),
    [("ashcan", 412), ("trash can", 412), ("Dustbin", 412), ("n02747177", 412), ("crane bird", 134),
     ("tank suit", 639), ("n02012849", 134)],
)  # fmt: skip
def test_imagenets_names_have_their_synonyms_wherever_they_come_from(text: str, index: int) -> None:
    assert named(torchvisions()).find(text) == index
    # With a class of background before the others, as TensorFlow's networks have them.
    assert named(["background", *torchvisions()]).find(text) == index + 1


def test_a_part_of_imagenet_has_its_synonyms_as_well() -> None:
    some = torchvisions()[400:440]
    assert named(some).find("trash can") == 12


def test_other_names_get_no_synonyms_of_imagenet() -> None:
    some = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship",
            "truck"]  # fmt: skip
    labels = named(some)
    assert labels.synonyms == () and labels.keys == ()


def test_wordnets_ids_for_names_are_explained() -> None:
    labels = named(["n02747177", "n02102040", "n01440764"])
    assert labels.find("trash can") == labels.find("n02747177") == labels.find("0") == 0
    assert labels.short(2) == "tench"
    # Eight digits alone are no synset of ImageNet's.
    assert named(["n99999999", "n02102040"]).names == ["n99999999", "n02102040"]


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
    labels = numbered(7)
    assert labels.find("6") == 6
    assert labels.find("class 3") == 3
    assert len(labels) == 7
