"""Networks that classify masks, and torchvision's: scores, preprocessing, experts, and misfits."""

from __future__ import annotations

import copy
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from ppap_plugin_segmentation.checkpoint import load_checkpoint
from ppap_plugin_segmentation.from_torchvision import _downloaded, _weights
from ppap_plugin_segmentation.guide import SegmentationGuide
from ppap_plugin_segmentation.queries import log_scores
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import get_model, get_model_weights
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    MaskFormerImageProcessor,
    SwinConfig,
    SwinModel,
)
from transformers.models.mask2former import modeling_mask2former

from ppap_host.experts.patches import Patch, network_hash
from ppap_host.files.errors import CheckpointError
from ppap_host.files.images import to_tensor
from ppap_host.guides.guide import default_patch_plan
from ppap_host.guides.preprocessing import Preparation

SWIN: dict[str, Any] = dict(
    image_size=64, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2],
    window_size=2,
)  # fmt: skip
NAMES: dict[str, Any] = dict(
    id2label={0: "sky", 1: "road", 2: "car"}, label2id={"sky": 0, "road": 1, "car": 2}
)
STAGES = ["stage1", "stage2", "stage3", "stage4"]
LRASPP, DEEPLAB = "lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large"
BY_MASKS = ["mask2former", "maskformer"]
NO_EOMT = "this transformers has no EoMT"


def _mask2former() -> nn.Module:
    return Mask2FormerForUniversalSegmentation(Mask2FormerConfig(
        backbone_config=dict(model_type="swin", out_features=STAGES, **SWIN), feature_size=32,
        mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=32, encoder_layers=1,
        decoder_layers=2, num_attention_heads=2, dim_feedforward=32, num_queries=5, **NAMES,
    ))  # fmt: skip


def _maskformer() -> nn.Module:
    return MaskFormerForInstanceSegmentation(MaskFormerConfig(
        backbone_config=dict(model_type="swin", out_features=STAGES, **SWIN),
        decoder_config=dict(
            model_type="detr", num_queries=5, d_model=16, encoder_layers=1, decoder_layers=2,
            encoder_ffn_dim=32, decoder_ffn_dim=32, encoder_attention_heads=2,
            decoder_attention_heads=2,
        ),
        fpn_feature_size=32, mask_feature_size=32, **NAMES,
    ))  # fmt: skip


def _torchvision(architecture: str, count: int, **options: Any) -> nn.Module:
    model: nn.Module = get_model(
        architecture, weights=None, weights_backbone=None, num_classes=count, **options
    )
    return model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What --model is given: two folders of transformers, two files for torchvision."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("segmentation")
    square = Mask2FormerImageProcessor(size={"height": 64, "width": 64})
    for name, model, processor in (
        ("mask2former", _mask2former(), square),
        (
            "maskformer",
            _maskformer(),
            MaskFormerImageProcessor(size={"shortest_edge": 64, "longest_edge": 100}),
        ),
    ):
        model.save_pretrained(root / name)  # type: ignore[operator]
        processor.save_pretrained(root / name)
    save_file(_torchvision(LRASPP, 21).state_dict(), root / "lraspp.safetensors")
    # As published: with an auxiliary classifier, in torch's own format.
    torch.save(_torchvision(DEEPLAB, 4, aux_loss=True).state_dict(), root / "deeplab.pth")
    return {name: str(root / name) for name in BY_MASKS} | {
        "lraspp": f"torchvision:{LRASPP}:{root / 'lraspp.safetensors'}",
        "deeplab": f"torchvision:{DEEPLAB}:{root / 'deeplab.pth'}",
    }


ALL = [*BY_MASKS, "lraspp", "deeplab"]


def _small(guide: SegmentationGuide) -> SegmentationGuide:
    """Shown fewer pixels than torchvision's 520, which take their time."""
    preparation = guide._preparation
    if preparation.shortest_edge == 520:
        guide._preparation = Preparation(size=(64, 64))
    return guide


# --- per-class scores of networks that classify masks


def _random_queries(spread: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    classes = torch.randn(2, 7, 5, generator=generator) * spread
    return classes, torch.randn(2, 7, 6, 8, generator=generator) * spread


def test_scores_are_those_of_the_papers_normalised() -> None:
    classes, masks = _random_queries(3)
    exact = torch.einsum(
        "bqc,bqhw->bchw", classes.double().softmax(dim=-1)[..., :-1], masks.double().sigmoid()
    )
    found = log_scores(classes, masks).exp()
    torch.testing.assert_close(found, (exact / exact.sum(dim=1, keepdim=True)).float())
    # As logits they are taken for what they are.
    torch.testing.assert_close(log_scores(classes, masks).softmax(dim=1), found)


def test_scores_are_those_of_the_library() -> None:
    classes, _ = _random_queries(3)
    masks = torch.randn(2, 7, 384, 384)  # the library's own size, to which it resizes
    output = SimpleNamespace(class_queries_logits=classes, masks_queries_logits=masks)
    seen = Mask2FormerImageProcessor().post_process_semantic_segmentation(output)
    assert torch.equal(log_scores(classes, masks).argmax(dim=1), torch.stack(seen))


@pytest.mark.parametrize("spread", [1.0, 30.0, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_sure_queries_give_finite_scores_and_gradients(spread: float, dtype: torch.dtype) -> None:
    classes, masks = (q.to(dtype).requires_grad_() for q in _random_queries(spread))
    found = log_scores(classes, masks)
    assert found.dtype == dtype
    assert found.isfinite().all()
    loss = F.cross_entropy(found.float(), torch.ones(2, 6, 8, dtype=torch.int64))
    for gradient in torch.autograd.grad(loss, (classes, masks)):
        assert gradient.isfinite().all()
        assert gradient.abs().max() <= 2


def test_a_class_that_is_nowhere_still_draws() -> None:
    classes = torch.zeros(1, 3, 4)
    classes[..., 2] = -40  # its probability is 4e-18
    masks = torch.full((1, 3, 2, 2), -60.0).requires_grad_()  # and no query is there at all
    classes.requires_grad_()
    wanted = log_scores(classes, masks)[:, 2].sum()
    assert wanted.item() == pytest.approx(4 * (-40 - np.log(2)), rel=1e-4)
    (gradient,) = torch.autograd.grad(wanted, classes)
    torch.testing.assert_close(gradient[0, :, 2].sum(), torch.tensor(4.0), rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", BY_MASKS)
def test_the_network_is_the_librarys(models: dict[str, str], name: str) -> None:
    guide = SegmentationGuide(models[name])
    library = {
        "mask2former": Mask2FormerForUniversalSegmentation,
        "maskformer": MaskFormerForInstanceSegmentation,
    }[name]
    x = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        output = library.from_pretrained(models[name]).eval()(pixel_values=x)
        found = guide.network()(x)
    expected = log_scores(output.class_queries_logits, output.masks_queries_logits)
    torch.testing.assert_close(found, expected)
    assert found.shape == (2, 3, 16, 24)
    assert guide.labels == ("sky", "road", "car")
    names = {f.name for f in guide.files()}
    assert names == {"config.json", "preprocessor_config.json", "model.safetensors"}


def test_eomt_is_read_as_its_library_reads_it(tmp_path: Path) -> None:
    """Its network takes one size alone, whatever its processor says."""
    eomt = pytest.importorskip("transformers.models.eomt", reason=NO_EOMT)
    torch.manual_seed(0)
    config = eomt.EomtConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16,
        image_size=64, patch_size=16, num_blocks=1, num_queries=4, num_upscale_blocks=1, **NAMES,
    )  # fmt: skip
    model = eomt.EomtForUniversalSegmentation(config).eval()
    model.save_pretrained(tmp_path)
    processor = eomt.EomtImageProcessor(size={"shortest_edge": 64, "longest_edge": 64})
    processor.save_pretrained(tmp_path)
    guide = SegmentationGuide(str(tmp_path))
    assert "64 x 64 pixels alone" in " ".join(guide.remarks())
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    with torch.no_grad():
        output = model(**processor(images=picture, return_tensors="pt"))
        found = guide.see(to_tensor(picture))
        oblong = guide.see(torch.zeros(2, 3, 64, 96))
    expected = log_scores(output.class_queries_logits, output.masks_queries_logits)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert oblong.shape == (2, 3, *found.shape[-2:])


def test_a_type_that_transformers_does_not_segment_with_is_called_so(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    transformers.ViTImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="no segmentation model of the type 'vit'"):
        SegmentationGuide(str(tmp_path))


# --- torchvision


@pytest.mark.parametrize(
    ("name", "architecture", "count"), [("lraspp", LRASPP, 21), ("deeplab", DEEPLAB, 4)]
)
def test_a_file_for_torchvision_answers_as_before(
    models: dict[str, str], name: str, architecture: str, count: int
) -> None:
    guide = SegmentationGuide(models[name])
    path = Path(models[name].split(":", 2)[2])
    (file,) = guide.files()
    assert file == path
    model = _torchvision(architecture, count, aux_loss=name == "deeplab").eval()
    if path.suffix == ".pth":
        model.load_state_dict(torch.load(path, weights_only=True))
    else:
        from safetensors.torch import load_file

        model.load_state_dict(load_file(path))
    x = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(guide.network()(x), model(x)["out"], rtol=0, atol=0)
    voc = get_model_weights(architecture).DEFAULT.meta["categories"]
    numbered = [f"class {i}" for i in range(count)]
    assert guide.labels == tuple(voc if count == 21 else numbered)


def test_a_file_may_have_its_names_beside_it(models: dict[str, str], tmp_path: Path) -> None:
    path = Path(shutil.copy(models["deeplab"].split(":", 2)[2], tmp_path))
    (tmp_path / "labels.json").write_text('["sky", "road", "car", "tree"]')
    guide = SegmentationGuide(f"torchvision:{DEEPLAB}:{path}")
    assert guide.labels == ("sky", "road", "car", "tree")
    assert set(guide.files()) == {path, tmp_path / "labels.json"}
    (tmp_path / "labels.json").write_text('["sky"]')
    with pytest.raises(CheckpointError, match="1 names for 4 classes"):
        SegmentationGuide(f"torchvision:{DEEPLAB}:{path}")


@pytest.mark.parametrize("tag", ["", ".COCO_WITH_VOC_LABELS_V1"])
def test_published_weights_are_downloaded_once_as_tensors_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tag: str
) -> None:
    torch.manual_seed(0)
    state = _torchvision(LRASPP, 21).state_dict()
    asked: list[str] = []

    def fetch(url: str, **options: Any) -> dict[str, Tensor]:
        assert options["weights_only"] and options["check_hash"]
        asked.append(url)
        folder = tmp_path / "hub" / "checkpoints"
        folder.mkdir(parents=True)
        torch.save(state, folder / url.rsplit("/", 1)[1])
        return state

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fetch)
    for _ in range(2):
        guide = SegmentationGuide(f"torchvision:{LRASPP}{tag}")
    assert asked == [get_model_weights(LRASPP).DEFAULT.url]
    assert guide.labels[:3] == ("__background__", "aeroplane", "bicycle")
    (file,) = guide.files()
    assert file.parent == tmp_path / "hub" / "checkpoints"
    loaded = guide.network().model.state_dict()  # type: ignore[union-attr,operator]
    assert torch.equal(loaded["classifier.high_classifier.bias"],
                       state["classifier.high_classifier.bias"])  # fmt: skip


def test_a_failed_download_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(url: str, **options: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fail)
    with pytest.raises(CheckpointError, match="no route to host") as caught:
        _downloaded("test", _weights("test", "deeplabv3_resnet50", ""))
    assert "deeplabv3_resnet50_coco-cd0a2569.pth" in caught.value.remedy


@pytest.mark.parametrize(
    ("model", "message", "remedy"),
    [
        ("torchvision:", "names no segmentation model", "deeplabv3_resnet50"),
        ("torchvision:resnet50", "names no segmentation model", "deeplabv3_resnet50"),
        ("torchvision:deeplab_resnet50", "names no", "Did you mean deeplabv3_resnet50"),
        (
            "torchvision:fcn_resnet50:",
            "no segmentation model of torchvision and file",
            "FILE",
        ),
        ("torchvision:fcn_resnet50.IMAGENET", "'IMAGENET'", "COCO_WITH_VOC_LABELS_V1"),
        ("torchvision:fcn_resnet50:nowhere.pth", "no file", ""),
    ],
)
def test_wrong_names_of_torchvision_are_said(model: str, message: str, remedy: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(model)
    assert remedy in caught.value.remedy


def test_weights_of_another_model_are_named(models: dict[str, str]) -> None:
    path = models["lraspp"].split(":", 2)[2]
    with pytest.raises(CheckpointError, match=f"published {LRASPP}"):
        load_checkpoint(f"torchvision:{DEEPLAB}:{path}")


def test_lost_weights_are_named(models: dict[str, str], tmp_path: Path) -> None:
    state = torch.load(models["deeplab"].split(":", 2)[2], weights_only=True)
    del state["classifier.4.bias"]
    torch.save(state, tmp_path / "lost.pth")
    with pytest.raises(CheckpointError, match=r"1 missing: classifier\.4\.bias"):
        load_checkpoint(f"torchvision:{DEEPLAB}:{tmp_path / 'lost.pth'}")


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (Path.touch, (self.path,))


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    torch.save({"classifier.4.weight": Trap(tmp_path / "sprung")}, tmp_path / "trap.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    for name in ("trap.pth", "plain.pth"):
        with pytest.raises(CheckpointError):
            load_checkpoint(f"torchvision:{DEEPLAB}:{tmp_path / name}")
    assert not (tmp_path / "sprung").exists()


# --- preprocessing


def _picture(size: tuple[int, int]) -> Image.Image:
    # Smooth, so that 8-bit rounding and clipping while resizing do not matter.
    coarse = np.random.default_rng(0).integers(60, 190, (6, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)


SIZES = [(64, 64), (60, 90), (90, 61), (200, 150), (49, 147)]


@pytest.mark.parametrize("size", SIZES)
def test_prepare_matches_the_transforms_of_torchvision(
    models: dict[str, str], size: tuple[int, int]
) -> None:
    image = _picture(size)
    expected = get_model_weights(LRASPP).DEFAULT.transforms()(image)[None]
    prepared = SegmentationGuide(models["lraspp"]).prepare(to_tensor(image))
    assert prepared.shape == expected.shape
    torch.testing.assert_close(prepared, expected, atol=1.2 / 255 / 0.22, rtol=0)


# --- guiding and experts


@pytest.mark.parametrize("size", [(64, 64), (256, 256), (40, 72)])
@pytest.mark.parametrize("name", ALL)
def test_gradients_reach_every_image_alone(
    models: dict[str, str], name: str, size: tuple[int, int]
) -> None:
    guide = _small(SegmentationGuide(models[name]))
    torch.manual_seed(1)
    x = torch.rand(2, 3, *size).mul(2).sub(1).requires_grad_()
    with torch.no_grad():
        target = guide.as_target(guide.see(torch.rand(1, 3, *size)))
    losses = guide.loss(guide.see(x), target)
    (gradient,) = torch.autograd.grad(losses[0], x)
    assert torch.isfinite(gradient).all()
    assert gradient[0].norm() > 0
    assert gradient[1].abs().max() == 0


@pytest.mark.parametrize("name", ALL)
def test_a_patch_is_laid_trained_a_step_and_merged(models: dict[str, str], name: str) -> None:
    guide = _small(SegmentationGuide(models[name]))
    network = guide.network()
    before = network_hash(network)
    patch = Patch.fresh(network, default_patch_plan(network, rank=2), seed=1)
    patched = patch.over(network)
    clean = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    noisy = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        teacher = guide.see(clean)
        # Untrained ones see about the same everywhere.
        teacher = teacher + torch.linspace(-1, 1, teacher.shape[1]).view(-1, 1, 1)
        torch.testing.assert_close(guide.through(patched, noisy), guide.see(noisy))
    optimiser = torch.optim.Adam([t.requires_grad_(True) for t in patch.trainable()], lr=1e-4)
    loss = guide.distance(guide.through(patched, noisy), teacher).mean()
    loss.backward()
    optimiser.step()
    with torch.no_grad():
        taught = guide.through(patched, noisy)
        assert guide.distance(taught, teacher).mean() < loss
        alone = copy.deepcopy(network)
        alone.load_state_dict(patch.merged(network), strict=False)
        torch.testing.assert_close(guide.through(alone, noisy), taught)
    assert network_hash(network) == before


# --- what cannot be loaded


@pytest.mark.parametrize("name", BY_MASKS)
def test_pickled_weights_are_never_opened(
    models: dict[str, str], name: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(models[name], tmp_path / name))
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(CheckpointError, match="safetensors"):
        load_checkpoint(str(folder))
    assert not (tmp_path / "sprung").exists()


def test_a_network_without_its_head_is_refused(models: dict[str, str], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models["mask2former"], tmp_path / "headless"))
    SwinModel(SwinConfig(**SWIN)).save_pretrained(tmp_path / "swin")
    shutil.copy(tmp_path / "swin" / "model.safetensors", folder)
    with pytest.raises(CheckpointError, match="None of the 83 weights"):
        load_checkpoint(str(folder))


def test_a_missing_library_is_said(models: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(CheckpointError, match="torchvision") as caught:
        load_checkpoint(models["lraspp"])
    assert "pip install" in caught.value.remedy

    def lacking(*_: Any) -> None:
        raise ImportError("Mask2FormerLoss requires the scipy library")

    monkeypatch.setattr(modeling_mask2former, "requires_backends", lacking)
    with pytest.raises(CheckpointError, match="scipy") as caught:
        load_checkpoint(models["mask2former"])
    assert "pip install" in caught.value.remedy
