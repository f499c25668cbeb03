"""Any segmentation checkpoint loads by folder, answers as its library does, and gives gradients."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from ppap_plugin_segmentation.checkpoint import load_checkpoint
from ppap_plugin_segmentation.from_smp import read_albumentations
from ppap_plugin_segmentation.guide import SegmentationGuide
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    SegformerModel,
)

from ppap_host.files.errors import CheckpointError, PpapError
from ppap_host.guides.preprocessing import Preparation, read_processor

TINY: dict[str, Any] = dict(encoder_name="tu-resnet10t", encoder_weights=None, stem_width=8,
                            channels=(8, 16, 24, 32))  # fmt: skip
SEGFORMER: dict[str, Any] = dict(
    num_encoder_blocks=4, depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16],
    num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=16, num_labels=3,
    id2label={0: "sky", 1: "road", 2: "car"}, label2id={"sky": 0, "road": 1, "car": 2},
)  # fmt: skip
NORMALIZE = {"__class_fullname__": "Normalize", "mean": [0.1, 0.2, 0.3], "std": [1, 2, 4]}


def _smp(name: str) -> nn.Module:
    return {
        "unet": lambda: smp.Unet(
            **TINY, classes=4, encoder_depth=3, decoder_channels=(12, 8, 8),
            decoder_use_norm="identity",
        ),
        "fpn": lambda: smp.FPN(
            **TINY, classes=3, decoder_pyramid_channels=32, decoder_segmentation_channels=32
        ),
        "deeplab": lambda: smp.DeepLabV3(**TINY, classes=5, decoder_channels=16),
        "binary": lambda: smp.Unet(
            **TINY, classes=1, encoder_depth=3, decoder_channels=(12, 8, 8), activation="sigmoid"
        ),
        "classifying": lambda: smp.Unet(
            **TINY, classes=2, encoder_depth=3, decoder_channels=(12, 8, 8),
            aux_params={"classes": 7},
        ),
    }[name]()  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("segmentation")
    for name in ("unet", "fpn", "deeplab", "binary", "classifying"):
        _smp(name).save_pretrained(root / name)  # type: ignore[operator]
    (root / "unet" / "labels.json").write_text('["sky", "road", "car", "tree"]')
    SegformerForSemanticSegmentation(SegformerConfig(**SEGFORMER)).save_pretrained(
        root / "segformer"
    )
    SegformerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(root / "segformer")
    return {folder.name: folder for folder in root.iterdir()}


@pytest.fixture
def copied(folders: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a folder that a test may damage."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(folders[name], tmp_path / name))

    return copy


@pytest.mark.parametrize("name", ["unet", "fpn", "deeplab"])
def test_a_saved_smp_model_answers_as_before(folders: dict[str, Path], name: str) -> None:
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    again = smp.from_pretrained(str(folders[name])).eval()
    with torch.no_grad():
        expected = again(x)
        found = SegmentationGuide(str(folders[name])).network()(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_saved_segformer_answers_as_before_at_its_own_resolution(
    folders: dict[str, Path],
) -> None:
    x = torch.rand(2, 3, 64, 64)
    model = SegformerForSemanticSegmentation.from_pretrained(folders["segformer"]).eval()
    guide = SegmentationGuide(str(folders["segformer"]))
    with torch.no_grad():
        found = guide.network()(x)
        torch.testing.assert_close(found, model(pixel_values=x).logits, rtol=0, atol=0)
    assert found.shape == (2, 3, 16, 16)
    assert guide.labels == ("sky", "road", "car")


def test_a_single_output_becomes_background_and_foreground(folders: dict[str, Path]) -> None:
    guide = SegmentationGuide(str(folders["binary"]))
    assert guide.labels == ("background", "foreground")
    x = torch.rand(1, 3, 32, 32)
    again = smp.from_pretrained(str(folders["binary"])).eval()
    with torch.no_grad():
        seen = guide.network()(x).softmax(dim=1)
        # The saved model ends in a sigmoid.
        torch.testing.assert_close(seen[:, 1:], again(x))


def test_a_classification_head_is_left_aside(folders: dict[str, Path]) -> None:
    guide = SegmentationGuide(str(folders["classifying"]))
    assert guide.network()(torch.rand(1, 3, 32, 32)).shape == (1, 2, 32, 32)


@pytest.mark.parametrize("size", [(64, 64), (50, 71)])
@pytest.mark.parametrize("name", ["unet", "fpn", "deeplab", "binary", "segformer"])
def test_gradients_reach_every_image_alone(
    folders: dict[str, Path], name: str, size: tuple[int, int]
) -> None:
    guide = SegmentationGuide(str(folders[name]))
    torch.manual_seed(1)
    x = torch.rand(2, 3, *size).mul(2).sub(1).requires_grad_()
    with torch.no_grad():
        target = guide.as_target(guide.see(torch.rand(1, 3, *size)))
    losses = guide.loss(guide.see(x), target)
    assert losses.shape == (2,)
    (gradient,) = torch.autograd.grad(losses[0], x)
    assert torch.isfinite(gradient).all()
    assert gradient[0].norm() > 0
    assert gradient[1].abs().max() == 0


def test_labels_come_from_labels_json_or_are_numbers(folders: dict[str, Path]) -> None:
    assert SegmentationGuide(str(folders["unet"])).labels == ("sky", "road", "car", "tree")
    assert SegmentationGuide(str(folders["fpn"])).labels == ("class 0", "class 1", "class 2")


def test_labels_may_be_a_table_as_on_the_hub(copied: Callable[[str], Path]) -> None:
    folder = copied("fpn")
    (folder / "labels.json").write_text('{"2": "c", "0": "a", "1": "b"}')
    assert SegmentationGuide(str(folder)).labels == ("a", "b", "c")
    (copied("binary") / "labels.json").write_text('["crack"]')
    assert SegmentationGuide(str(folder.parent / "binary")).labels == ("background", "crack")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('["a", "b"]', "2 names for 3 classes"),
        ('{"0": "a", "2": "c", "3": "d"}', "no list of names"),
        ("7", "no list of names"),
        ("[", "no readable JSON"),
    ],
)
def test_wrong_labels_are_said(copied: Callable[[str], Path], text: str, complaint: str) -> None:
    folder = copied("fpn")
    (folder / "labels.json").write_text(text)
    with pytest.raises(CheckpointError, match=complaint):
        SegmentationGuide(str(folder))


def test_weights_stay_frozen_and_files_are_named(folders: dict[str, Path]) -> None:
    guide = SegmentationGuide(str(folders["unet"]))
    assert not any(p.requires_grad for p in guide.network().parameters())
    assert not guide.network().training
    assert guide.network() is guide.network()
    assert {f.name for f in guide.files()} == {"config.json", "labels.json", "model.safetensors"}


def test_no_weights_of_the_encoder_are_downloaded(
    copied: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied("fpn")
    config = json.loads((folder / "config.json").read_text())
    # As a model that started from them was saved.
    config["encoder_weights"] = "imagenet"
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SegmentationGuide(str(folder))


# --- preprocessing


@pytest.mark.parametrize(
    ("asked", "given"),
    [((64, 64), (64, 64)), ((70, 100), (96, 128)), ((16, 1), (32, 32)), ((48, 80), (64, 96))],
)
def test_sides_become_the_next_larger_multiple(
    asked: tuple[int, int], given: tuple[int, int]
) -> None:
    assert Preparation(multiple_of=32, rounding="up").output_size(*asked) == given


def test_smp_nets_get_multiples_of_their_stride(folders: dict[str, Path]) -> None:
    x = torch.zeros(1, 3, 100, 60)
    assert SegmentationGuide(str(folders["unet"])).prepare(x).shape[-2:] == (104, 64)
    assert SegmentationGuide(str(folders["fpn"])).prepare(x).shape[-2:] == (128, 64)


def test_smp_nets_without_a_description_are_shown_imagenets_normalisation(
    folders: dict[str, Path],
) -> None:
    white = SegmentationGuide(str(folders["unet"])).prepare(torch.ones(1, 3, 32, 32))
    expected = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(white[0, :, 0, 0], expected)


def test_an_albumentations_description_is_followed(copied: Callable[[str], Path]) -> None:
    folder = copied("unet")
    steps = [
        {"__class_fullname__": "Resize", "height": 40, "width": 48, "interpolation": 2},
        {**NORMALIZE, "max_pixel_value": 1.0},
        {"__class_fullname__": "albumentations.pytorch.transforms.ToTensorV2"},
    ]
    path = folder / "albumentations_config_eval.json"
    path.write_text(json.dumps({"transform": {"transforms": steps}}))
    guide = SegmentationGuide(str(folder))
    white = guide.prepare(torch.ones(1, 3, 64, 64))
    assert white.shape == (1, 3, 40, 48)
    torch.testing.assert_close(
        white[0, :, 0, 0], torch.tensor([254.9, (255 - 0.2) / 2, (255 - 0.3) / 4])
    )
    assert path in guide.files()


def test_the_short_side_may_be_asked_for() -> None:
    steps = [{"__class_fullname__": "SmallestMaxSize", "max_size": 32, "interpolation": 1}]
    found = read_albumentations("test", {"transform": {"transforms": steps}})
    assert found.output_size(64, 96) == (32, 48)


@pytest.mark.parametrize(
    "steps",
    [
        [{"__class_fullname__": "CLAHE"}],
        [{"__class_fullname__": "Resize", "height": 40}],
        [{"__class_fullname__": "Resize", "height": 4, "width": 4, "interpolation": 0}],
        [{**NORMALIZE, "normalization": "image"}],
        [{**NORMALIZE, "mean": [0.5]}],
        "nonsense",
    ],
)
def test_other_transforms_are_refused(steps: Any) -> None:
    with pytest.raises(CheckpointError, match="not understood"):
        read_albumentations("test", {"transform": {"transforms": steps}})


def test_strange_image_processors_are_refused() -> None:
    odd = SimpleNamespace(do_resize=True, size={"longest_edge": 40}, resample=2, rescale_factor=1)
    with pytest.raises(CheckpointError, match="longest_edge"):
        read_processor("test", odd)


# --- what cannot be loaded


def test_a_folder_without_configuration_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_checkpoint(str(tmp_path))


@pytest.mark.parametrize("text", ["{", "[]", '{"classes": 3}'])
def test_a_configuration_of_neither_library_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"_model_class": "Ynet"}, "Ynet"),
        ({"_model_class": "create_model"}, "create_model"),
        ({"in_channels": 4}, "4 channels"),
        ({"activation": "sigmoid"}, "sigmoid"),
        ({"encoder_name": "no-such-encoder"}, "no-such-encoder"),
        ({"classes": 9}, "size mismatch"),
        ({"decoder_channels": [12, 8]}, "unet"),
    ],
)
def test_wrong_smp_configurations_are_said(
    copied: Callable[[str], Path], change: dict[str, Any], complaint: str
) -> None:
    folder = copied("unet")
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=complaint) as caught:
        load_checkpoint(str(folder))
    assert caught.value.remedy


def test_missing_weights_of_an_smp_model_are_said(copied: Callable[[str], Path]) -> None:
    from safetensors.torch import load_file, save_file

    folder = copied("unet")
    state = load_file(folder / "model.safetensors")
    lost = next(name for name in state if name.startswith("segmentation_head"))
    del state[lost]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=lost):
        load_checkpoint(str(folder))


def test_pickled_weights_of_an_smp_model_are_never_opened(copied: Callable[[str], Path]) -> None:
    folder = copied("unet")
    state = SegmentationGuide(str(folder)).network().model.state_dict()  # type: ignore[union-attr,operator]
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="safetensors"):
        load_checkpoint(str(folder))


def test_damaged_weights_of_an_smp_model_are_said(copied: Callable[[str], Path]) -> None:
    folder = copied("unet")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError):
        load_checkpoint(str(folder))


def test_other_kinds_of_transformers_are_refused(tmp_path: Path) -> None:
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
                        intermediate_size=8, vocab_size=10)  # fmt: skip
    BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(PpapError):
        load_checkpoint(str(tmp_path))


def test_backbone_without_segmentation_head_is_refused(tmp_path: Path) -> None:
    SegformerModel(SegformerConfig(**SEGFORMER)).save_pretrained(tmp_path)
    SegformerImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="lacks"):
        load_checkpoint(str(tmp_path))
