"""Label maps of every kind: against the field's own tables and processors, and photographs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.datasets
from numpy.typing import NDArray
from PIL import Image
from ppap_plugin_segmentation.guide import SegmentationGuide
from ppap_plugin_segmentation.labelmaps import Conventions, LabelMap, read_labels
from ppap_plugin_segmentation.palettes import (
    CITYSCAPES_IDS,
    CITYSCAPES_NAMES,
    OPEN,
    PALETTES,
    bit_shuffled,
    palette_named,
)
from transformers import (
    BeitImageProcessor,
    Mask2FormerImageProcessor,
    MaskFormerImageProcessor,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
)

from ppap_host.files.errors import TargetError
from ppap_host.guides.targets import Given

SIZE = (64, 64)
ADE = tuple(f"LABEL_{i}" for i in range(150))
FIVE = ("wall", "floor", "sphere", "cube", "traffic light")
Labels = NDArray[Any]


def regions(count: int, pieces: int = 30, side: int = 64, seed: int = 0) -> Labels:
    """Pieces of ``count`` classes, uint8 [h, w]."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, side, (pieces, 2))
    y, x = np.mgrid[:side, :side]
    nearest = ((points[:, 0, None, None] - y) ** 2 + (points[:, 1, None, None] - x) ** 2).argmin(0)
    return rng.permutation(count)[np.arange(pieces) % count].astype(np.uint8)[nearest]


def read(
    target: Path | str | Labels, conventions: Conventions, size: tuple[int, int] = SIZE
) -> LabelMap | None:
    value = target if isinstance(target, np.ndarray) else str(target)
    return read_labels(Given.of(value, ("photo", "labels", "mask")), size, conventions)[0]


def indices(target: Path | str | Labels, conventions: Conventions) -> Labels:
    found = read(target, conventions)
    assert found is not None
    return found.indices[0].numpy()


# Against the field


def test_the_table_of_cityscapes_is_its_own() -> None:
    own = torchvision.datasets.Cityscapes.classes[:-1]  # the last one is no label: -1
    wanted = [(e.name, e.train_id if e.train_id < 255 else -1, e.color) for e in own]
    assert list(CITYSCAPES_IDS) == wanted
    by_train = {e.train_id: e.name for e in own}
    assert list(CITYSCAPES_NAMES) == [by_train[i] for i in range(19)]


@pytest.mark.parametrize("ids", ["id", "train_id"])
def test_ids_of_cityscapes_are_read_by_its_table(ids: str) -> None:
    """With 255, as torchvision and the published scripts have it, and without."""
    own = torchvision.datasets.Cityscapes.classes[:-1]
    pieces = regions(len(own), pieces=60)
    meant = np.array([e.train_id if e.train_id < 255 else OPEN for e in own])
    stored = np.array([getattr(e, ids) for e in own], np.uint8)
    found = indices(stored[pieces], Conventions(CITYSCAPES_NAMES))
    np.testing.assert_array_equal(found, meant[pieces])


def test_one_more_than_the_train_ids_is_no_label_id_unsaid() -> None:
    """Some give 19 to what is open; of the label ids it is a traffic light."""
    labels = regions(20)
    with pytest.raises(TargetError, match="index 19") as caught:
        read(labels, Conventions(CITYSCAPES_NAMES))
    assert "ids=cityscapes" in caught.value.remedy
    assert "ignore=19" in caught.value.remedy


def test_the_palette_of_voc_is_the_published_one() -> None:
    published = [
        (0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128),
        (0, 128, 128), (128, 128, 128), (64, 0, 0), (192, 0, 0), (64, 128, 0), (192, 128, 0),
        (64, 0, 128), (192, 0, 128), (64, 128, 128), (192, 128, 128), (0, 64, 0), (128, 64, 0),
        (0, 192, 0), (128, 192, 0), (0, 64, 128),
    ]  # fmt: skip
    assert [bit_shuffled(i) for i in range(21)] == published
    assert bit_shuffled(255) == (224, 224, 192)


@pytest.mark.parametrize(("name", "count"), [("ade20k", 150), ("coco", 133)])
def test_published_palettes_have_a_colour_for_each_class(name: str, count: int) -> None:
    entries = PALETTES[name].entries
    assert [number for _, _, number in entries] == [*range(count), OPEN]
    colours = {colour for colour, _, number in entries if number >= 0}
    # ADE20K gives one colour twice: to roads and to skyscrapers.
    assert len(colours) == count - (name == "ade20k")


@pytest.mark.parametrize(
    "processor",
    [
        SegformerImageProcessor(do_reduce_labels=True, do_resize=False),
        BeitImageProcessor(do_reduce_labels=True, do_resize=False, do_center_crop=False),
    ],
    ids=["segformer", "beit"],
)
def test_annotations_are_read_as_their_processor_reads_them(processor: Any) -> None:
    annotation = regions(151)
    annotation[:4] = 255
    wanted = processor(
        Image.new("RGB", SIZE), segmentation_maps=Image.fromarray(annotation), return_tensors="np"
    )["labels"][0]
    found = indices(annotation, Conventions(ADE, reduced=True))
    np.testing.assert_array_equal(np.where(found < 0, 255, found), wanted)


@pytest.mark.parametrize("kind", [MaskFormerImageProcessor, Mask2FormerImageProcessor])
def test_annotations_are_read_as_maskformer_reads_them(kind: Any) -> None:
    annotation = regions(21, seed=2)
    processor = kind(do_reduce_labels=True, ignore_index=255, do_resize=False, size_divisor=1)
    read_by = processor(
        Image.new("RGB", SIZE), segmentation_maps=Image.fromarray(annotation), return_tensors="pt"
    )
    found = indices(annotation, Conventions(ADE[:20], reduced=True))
    classes = read_by["class_labels"][0].tolist()
    assert classes == sorted(set(found[found >= 0].tolist()))
    for number, mask in zip(classes, read_by["mask_labels"][0].numpy(), strict=True):
        np.testing.assert_array_equal(found == number, mask == 1)


def test_the_guide_knows_what_its_processor_does(tmp_path: Path) -> None:
    config = SegformerConfig(
        hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=8, num_labels=6, semantic_loss_ignore_index=250,
    )  # fmt: skip
    SegformerForSemanticSegmentation(config).save_pretrained(tmp_path)
    SegformerImageProcessor(do_reduce_labels=True).save_pretrained(tmp_path)
    guide = SegmentationGuide(str(tmp_path))
    annotation = regions(7)
    annotation[:4] = 250
    np.save(tmp_path / "map.npy", annotation)
    target = guide.read_target(tmp_path / "map.npy", SIZE)
    found = target.value[0].argmax(dim=0).numpy()
    there = annotation[4:] > 0
    np.testing.assert_array_equal(found[4:][there], annotation[4:][there] - 1)
    assert (target.value[0, :, :4] < 0).all()
    assert "do_reduce_labels" in target.understood
    plain = guide.read_target(f"labels,reduce=no,ignore=6:{tmp_path / 'map.npy'}", SIZE)
    assert plain.value[0, :, 4:].argmax(dim=0).max() < 6
    # As it was called when most of the published models were saved.
    older = {"feature_extractor_type": "SegformerFeatureExtractor", "reduce_labels": True}
    described = json.loads((tmp_path / "preprocessor_config.json").read_text())
    described.pop("do_reduce_labels"), described.pop("image_processor_type")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(described | older))
    again = SegmentationGuide(str(tmp_path)).read_target(tmp_path / "map.npy", SIZE)
    assert torch.equal(again.value, target.value)


def test_what_a_processor_ignores_is_open_whatever_its_number() -> None:
    found = indices(regions(5), Conventions(FIVE, ignored=(0,)))
    np.testing.assert_array_equal(found, np.where(regions(5) == 0, OPEN, regions(5).astype(int)))


@pytest.mark.parametrize("names", [{0: "LABEL_0"}, {0: "crack"}, {0: "sound", 1: "crack"}])
def test_one_output_is_a_class_against_its_background(
    tmp_path: Path, names: dict[int, str]
) -> None:
    config = SegformerConfig(
        hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=8, num_labels=1,
    )  # fmt: skip
    SegformerForSemanticSegmentation(config).save_pretrained(tmp_path)
    SegformerImageProcessor().save_pretrained(tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(described | {"id2label": names}))
    guide = SegmentationGuide(str(tmp_path))
    assert len(guide.labels) == 2 and guide.labels[1] in ("foreground", "crack")
    mask = np.zeros(SIZE, bool)
    mask[:9] = True
    np.save(tmp_path / "mask.npy", mask)
    target = guide.read_target(f"{guide.labels[1]}={tmp_path / 'mask.npy'}", SIZE)
    np.testing.assert_array_equal(target.value[0, 1].numpy(), mask)
    assert guide.loss(guide.see(torch.zeros(1, 3, *SIZE)), target.value).isfinite().all()


# Photographs and maps


def photographs() -> dict[str, Image.Image]:
    data = pytest.importorskip("skimage.data")
    return {
        name: Image.fromarray(getattr(data, name)()).convert("RGB")
        for name in ("astronaut", "chelsea", "coffee", "camera", "coins", "moon", "brick", "page")
    }


@pytest.mark.parametrize("side", [64, 256])
def test_a_photograph_never_becomes_classes_unsaid(tmp_path: Path, side: int) -> None:
    """Not in any mode, however dark; where it cannot be told, it is asked for."""
    taken, asked = 0, []
    for name, photo in photographs().items():
        small = photo.resize((side, side), Image.Resampling.LANCZOS)
        grey = np.asarray(small.convert("L"))
        modes = {
            "rgb": small, "grey": small.convert("L"), "dark": Image.fromarray(grey // 2),
            "night": Image.fromarray(grey // 6), "few": small.quantize(16),
            "many": small.quantize(64), "web": small.convert("P"),
            "in-palette": small.convert("L").convert("P"),
            "deep": Image.fromarray(grey.astype(np.uint16) * 257),
        }  # fmt: skip
        for mode, picture in modes.items():
            path = tmp_path / f"{name}-{mode}.png"
            picture.save(path)
            try:
                found = read(path, Conventions(ADE))
            except TargetError as error:
                asked.append(error.remedy)
            else:
                taken += found is None
                assert found is None or found.doubts, path.name
    assert all("photo:" in remedy for remedy in asked)
    assert taken > 0.9 * 8 * 9


@pytest.mark.parametrize("pieces", [1, 5, 30, 200])
@pytest.mark.parametrize("side", [16, 64, 500])
@pytest.mark.parametrize("count", [5, 150])
def test_a_label_map_never_becomes_a_photograph(
    tmp_path: Path, pieces: int, side: int, count: int
) -> None:
    """Nor one that has been made smaller without mixing neighbours; doubts are allowed."""
    labels = regions(count, pieces, side)
    for step in (1, 3):
        part = labels[::step, ::step]
        Image.fromarray(part).save(tmp_path / "map.png")
        names = ADE[:count] if count > 5 else FIVE
        found, doubts = read_labels(
            Given.of(str(tmp_path / "map.png"), ("labels",)), part.shape, Conventions(names)
        )
        if found is None:
            assert doubts
        else:
            np.testing.assert_array_equal(found.indices[0].numpy(), part)


# Numbers


@pytest.mark.parametrize("number", [5, 17, 120, 254])
@pytest.mark.parametrize("suffix", ["png", "tiff", "bmp", "gif", "webp", "npy"])
def test_one_index_too_high_is_an_error(tmp_path: Path, number: int, suffix: str) -> None:
    labels = regions(5)
    labels[10:20, 10:20] = number
    path = tmp_path / f"map.{suffix}"
    if suffix == "npy":
        np.save(path, labels)
    else:
        Image.fromarray(labels).save(path, **({"lossless": True} if suffix == "webp" else {}))
    with pytest.raises(TargetError, match=f"index {number}, but the network has 5"):
        read(path, Conventions(FIVE))
    found = indices(f"labels,ignore={number}:{path}", Conventions(FIVE))
    np.testing.assert_array_equal(found, np.where(labels == number, OPEN, labels.astype(int)))


def test_counting_from_one_is_suggested(tmp_path: Path) -> None:
    Image.fromarray(regions(5) + np.uint8(1)).save(tmp_path / "map.png")
    with pytest.raises(TargetError) as caught:
        read(tmp_path / "map.png", Conventions(FIVE))
    assert "labels,reduce=yes" in caught.value.remedy
    found = indices(f"labels,reduce=yes:{tmp_path / 'map.png'}", Conventions(FIVE))
    np.testing.assert_array_equal(found, regions(5))


@pytest.mark.parametrize("open_", [-1, -100, 255, 65535])
def test_what_is_open_by_custom(open_: int) -> None:
    labels = regions(5).astype(np.int64)
    labels[:8] = open_
    found = read(labels, Conventions(FIVE))
    assert found is not None
    assert (found.indices[0, :8] == OPEN).all()
    assert (found.indices[0, 8:] >= 0).all()
    assert "12 % open" in found.understood


def test_nan_is_open_and_infinity_is_refused() -> None:
    labels = regions(5).astype(np.float32)
    labels[:8] = np.nan
    assert (indices(labels, Conventions(FIVE))[:8] == OPEN).all()
    labels[:8] = np.inf
    with pytest.raises(TargetError, match="no class indices"):
        read(labels, Conventions(FIVE))


def test_train_ids_without_a_sign_of_them_are_doubted() -> None:
    city = Conventions(CITYSCAPES_NAMES)
    labels = regions(19)
    found = read(labels, city)
    assert found is not None
    assert "could be label ids" in found.doubts[0]
    labels[:4] = 255
    again = read(labels, city)
    assert again is not None
    assert not again.doubts


def test_label_ids_go_by_name_where_the_network_has_other_classes() -> None:
    names = ("sky", "car", "road")
    ids = {name: number for number, (name, _, _) in enumerate(CITYSCAPES_IDS)}
    labels = np.full(SIZE, ids["building"], np.uint8)
    labels[:20], labels[20:40] = ids["sky"], ids["road"]
    given = Given.of(labels)
    said = Given(labels, "labels", {"ids": "cityscapes"})
    found, _ = read_labels(said, SIZE, Conventions(names))
    assert found is not None
    assert found.indices[0, :, 0].tolist() == [0] * 20 + [2] * 20 + [OPEN] * 24
    with pytest.raises(TargetError, match="index 23"):
        read_labels(given, SIZE, Conventions(names))
    with pytest.raises(TargetError, match="none of the classes of Cityscapes"):
        read_labels(said, SIZE, Conventions(("cat", "dog")))


# Palettes


def test_a_colour_of_two_classes_is_left_open_and_said(tmp_path: Path) -> None:
    pixels = np.zeros((*SIZE, 3), np.uint8)
    pixels[:32], pixels[32:] = (140, 140, 140), (120, 120, 120)
    pixels[:, 60:] = (4, 200, 3)
    Image.fromarray(pixels).save(tmp_path / "map.png")
    found = read(tmp_path / "map.png", Conventions(ADE))
    assert found is not None
    assert found.indices[0, :, 0].tolist() == [OPEN] * 32 + [0] * 32
    assert "stands for several classes" in found.doubts[0]


def test_a_palette_of_another_data_set_is_refused(tmp_path: Path) -> None:
    table = {number: colour for colour, _, number in PALETTES["ade20k"].entries}
    pixels = np.array([table[int(k)] for k in regions(19).flat], np.uint8).reshape(*SIZE, 3)
    Image.fromarray(pixels).save(tmp_path / "map.png")
    city = Conventions(CITYSCAPES_NAMES)
    with pytest.raises(TargetError, match="no palette that fits"):
        read(tmp_path / "map.png", city)
    with pytest.raises(TargetError, match="which the palette 'cityscapes' does not have"):
        read(f"labels,palette=cityscapes:{tmp_path / 'map.png'}", city)
    names = ("cat", "dog", *(f"thing {i}" for i in range(148)))
    with pytest.raises(TargetError, match="of other classes than the network's"):
        read(f"labels,palette=ade20k:{tmp_path / 'map.png'}", Conventions(names))


FORMS = {
    "rgb.txt": "10 0 0\n20 0 0\n30 0 0\n40 0 0\n50 0 0\n",
    "named.txt": "40 0 0 cube\n10 0 0 wall\n20 0 0 floor\n30 0 0 sphere\n50 0 0 traffic light\n",
    "first.csv": "name,r,g,b\nsphere,30,0,0\nwall,10,0,0\nfloor,20,0,0\ncube,40,0,0\n"
                 "traffic light,50,0,0\n",
    "numbered.txt": "3 40 0 0\n0 10 0 0\n1 20 0 0\n2 30 0 0\n4 50 0 0\n",
    "hex.txt": "#0a0000 wall\n#140000 floor\n#1e0000 sphere\n#280000 cube\n#320000 traffic light\n",
    "gimp.gpl": "GIMP Palette\nName: mine\nColumns: 0\n#\n 10  0  0\twall\n 20  0  0\tfloor\n"
                " 30  0  0\tsphere\n 40  0  0\tcube\n 50  0  0\ttraffic light\n",
    "list.json": json.dumps([[10, 0, 0], [20, 0, 0], [30, 0, 0], [40, 0, 0], [50, 0, 0]]),
    "map.json": json.dumps({"cube": [40, 0, 0], "wall": [10, 0, 0], "floor": [20, 0, 0],
                            "sphere": [30, 0, 0], "traffic_light": [50, 0, 0]}),
    "rows.json": json.dumps([{"label": n, "color": [10 * (i + 1), 0, 0]}
                             for i, n in enumerate(FIVE)]),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_palettes_of_ones_own_in_any_form(tmp_path: Path, form: str) -> None:
    labels = regions(5)
    pixels = np.zeros((*SIZE, 3), np.uint8)
    pixels[..., 0] = 10 * (labels + 1)
    Image.fromarray(pixels).save(tmp_path / "map.png")
    (tmp_path / form).write_text(FORMS[form])
    target = f"labels,palette={tmp_path / form}:{tmp_path / 'map.png'}"
    np.testing.assert_array_equal(indices(target, Conventions(FIVE)), labels)
    found = read(target, Conventions(FIVE))
    assert found is not None
    assert list(found.files) == [tmp_path / "map.png", tmp_path / form]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("none.txt", None, "There is no file"),
        ("empty.txt", "", "has no colours"),
        ("words.txt", "nothing here", "has no colours"),
        ("wild.txt", "300 0 0 wall", "not from 0 to 255"),
        ("two.txt", "1 2 3 wall\n4 5 floor", "has no colour of three"),
        ("bad.json", "{", "no palette in JSON"),
        ("deep.json", "[" * 100_000, "no palette in JSON"),
    ],
)
def test_palettes_that_are_none_are_said(
    tmp_path: Path, name: str, text: str | None, said: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(TargetError, match=said) as caught:
        palette_named(name, tmp_path / name)
    assert caught.value.remedy


def test_a_class_of_a_palette_that_the_network_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("10 0 0 wall\n20 0 0 tree\n30 0 0 void\n")
    pixels = np.zeros((*SIZE, 3), np.uint8)
    pixels[..., 0] = 10
    pixels[:9, :, 0] = 30
    Image.fromarray(pixels).save(tmp_path / "map.png")
    target = f"labels,palette={tmp_path / 'own.txt'}:{tmp_path / 'map.png'}"
    assert np.unique(indices(target, Conventions(FIVE))).tolist() == [OPEN, 0]
    pixels[20:40, :, 0] = 20
    Image.fromarray(pixels).save(tmp_path / "map.png")
    with pytest.raises(TargetError, match="is 'tree', which the network does not know"):
        read(target, Conventions(FIVE))


def test_greys_of_a_palette_that_could_be_either_are_asked_for(tmp_path: Path) -> None:
    image = Image.fromarray(regions(4))
    image.putpalette([0, 0, 0, 90, 90, 90, 30, 30, 30, 120, 120, 120])
    image.save(tmp_path / "map.png")
    with pytest.raises(TargetError, match="both its indices and its greys") as caught:
        read(tmp_path / "map.png", Conventions(ADE))
    assert "labels,by=index" in caught.value.remedy
    by_index = f"labels,by=index:{tmp_path / 'map.png'}"
    np.testing.assert_array_equal(indices(by_index, Conventions(ADE)), regions(4))
    by_colour = f"labels,by=colour:{tmp_path / 'map.png'}"
    greys = np.array([0, 90, 30, 120])[regions(4)]
    np.testing.assert_array_equal(indices(by_colour, Conventions(ADE)), greys)


def test_things_in_memory_are_read_as_files_are() -> None:
    labels = regions(5)
    wanted = torch.from_numpy(labels.astype(np.int64))[None]
    guide = SegmentationGuide()
    for value in (
        labels, labels.astype(np.int64), labels.astype(np.float32), Image.fromarray(labels),
        torch.from_numpy(labels), wanted, wanted[None],
    ):  # fmt: skip
        target = guide.read_target(value, SIZE)
        torch.testing.assert_close(target.value.argmax(dim=1), wanted)
    mask = guide.read_target(Given(labels == 2, "mask", {"of": "cone"}), SIZE)
    assert mask.value[0, -1].sum() == (labels == 2).sum()


@pytest.mark.parametrize("side", [48, 90, 100])
@pytest.mark.parametrize("filter", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
def test_numbers_that_were_smoothed_are_refused(side: int, filter: Image.Resampling) -> None:
    conventions = Conventions(ADE)
    sharp = Image.fromarray(regions(6, 12) + 3)
    smooth = np.asarray(sharp.resize((side, side), filter))
    with pytest.raises(TargetError, match="mostly numbers between theirs"):
        read(smooth, conventions)
    given = Given(smooth, "labels")
    found, _ = read_labels(given, SIZE, conventions)
    assert found is not None and any("between theirs" in doubt for doubt in found.doubts)
    nearest = read(np.asarray(sharp.resize((side, side), Image.Resampling.NEAREST)), conventions)
    assert nearest is not None and not any("between theirs" in doubt for doubt in nearest.doubts)


def test_pieces_of_any_shape_are_not_taken_for_smoothed() -> None:
    """Many small pieces, and classes in their order, as of heights."""
    y, x = np.mgrid[:64, :64]
    heights = ((np.hypot(y - 20, x - 30) // 8) % 9).astype(np.uint8)
    for labels in (regions(6, 60), regions(150, 60), regions(19, 200, 128), heights):
        found = read(labels, Conventions(ADE))
        assert found is not None and not any("between" in doubt for doubt in found.doubts)


def test_numbers_that_were_multiplied_are_doubted() -> None:
    labels = regions(6)
    for times, doubted in ((1, False), (2, False), (20, True)):
        found = read(labels * np.uint8(times), Conventions(ADE))
        assert found is not None
        assert any(f"multiples of {times}" in doubt for doubt in found.doubts) == doubted
    said, _ = read_labels(Given(labels * 20, "labels", {"ids": "train"}), SIZE, Conventions(ADE))
    assert said is not None and not said.doubts


def test_numbers_for_networks_of_coco_may_have_its_gaps() -> None:
    stuff = Conventions(tuple(f"LABEL_{i}" for i in range(171)))
    labels = regions(6) + 30
    labels[:5] = 255
    found = read(labels, stuff)
    assert found is not None and "up to 182" in found.doubts[0]
    said, _ = read_labels(Given(labels, "labels", {"ids": "train"}), SIZE, stuff)
    assert said is not None and not said.doubts
    labels[5:20] = 181
    with pytest.raises(TargetError) as caught:
        read(labels, stuff)
    assert "have gaps" in caught.value.remedy


@pytest.mark.parametrize("kind", [np.uint8, np.float32, np.bool_])
@pytest.mark.parametrize("things", [3, 4])
def test_one_of_several_channels_is_no_picture(kind: Any, things: int) -> None:
    ones = np.eye(things)[regions(things)].astype(kind)
    with pytest.raises(TargetError, match="one number a pixel"):
        read(ones, Conventions(ADE))


def test_smoothed_numbers_of_many_classes_are_no_photograph_in_silence() -> None:
    smooth = Image.fromarray(regions(150, 40)).resize((256, 256), Image.Resampling.BICUBIC)
    found, doubts = read_labels(Given(smooth), SIZE, Conventions(ADE))
    assert found is None and "a few flat colours" in doubts[0]
