"""Models of smp: their encoders' own preprocessing, least sizes, and what a folder may not say."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from ppap_plugin_segmentation.from_smp import encoders_own
from ppap_plugin_segmentation.guide import SegmentationGuide
from segmentation_models_pytorch.encoders import encoders, get_preprocessing_params
from segmentation_models_pytorch.encoders._preprocessing import preprocess_input
from timm.models import get_pretrained_cfg
from torch import nn

from ppap_host.files.errors import CheckpointError
from ppap_host.files.images import from_tensor, to_tensor
from ppap_host.guides.preprocessing import accepted, on_grid

TINY: dict[str, Any] = dict(
    encoder_name="tu-resnet10t", encoder_weights=None, stem_width=8, channels=(8, 16, 24, 32),
    classes=3,
)  # fmt: skip
OF_TIMM = [
    "tu-xception41", "tu-resnet10t", "tu-tf_efficientnet_lite0", "tu-tf_efficientnet_b0.ap_in1k",
    "tu-vit_base_patch16_224.augreg_in21k", "tu-convnext_atto", "tu-dpn68", "tu-mobileone_s0",
]  # fmt: skip


def saved(folder: Path, make: Callable[[], Any], **config: Any) -> Path:
    torch.manual_seed(0)
    make().save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


# Preprocessing


@pytest.mark.parametrize("encoder", OF_TIMM)
def test_encoders_of_timm_are_prepared_as_smp_prepares_them(encoder: str) -> None:
    theirs = get_preprocessing_params(encoder)
    preparation = encoders_own(encoder)
    x = torch.rand(1, 3, 8, 8, dtype=torch.float64) * 2 - 1
    pixels = ((x[0] + 1) / 2).movedim(0, -1).numpy() * 255  # as smp is given them
    expected = torch.from_numpy(preprocess_input(pixels, **theirs)).movedim(-1, 0)
    torch.testing.assert_close(preparation(x)[0], expected)


@pytest.mark.parametrize("encoder", encoders)
def test_smps_own_encoders_are_normalised_as_the_networks_they_come_from(encoder: str) -> None:
    """smp keeps these numbers on the hub; timm has the same networks, with their numbers."""
    own = {
        "inceptionresnetv2": "inception_resnet_v2", "inceptionv4": "inception_v4",
        "xception": "legacy_xception", "dpn68b": "dpn98", "mobilenet_v2": "mobilenetv2_100",
    }  # fmt: skip
    for weights in encoders[encoder]["pretrained_settings"]:
        name = own.get(encoder, encoder.removeprefix("timm-"))
        if name.startswith("efficientnet-"):
            tag = {"advprop": ".ap_in1k", "noisy-student": ".ns_jft_in1k"}.get(weights, "")
            tag = ".ra_in1k" if name.endswith("b8") and weights == "imagenet" else tag
            name = f"tf_{name.replace('-', '_')}{tag}"
        cfg = get_pretrained_cfg(name) if name.partition(".")[0] in _timms() else None
        expected = (cfg.mean, cfg.std) if cfg else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        found = encoders_own(encoder, weights)
        assert found.mean == pytest.approx(expected[0]), (encoder, weights)
        assert found.std == pytest.approx(expected[1], abs=1e-4), (encoder, weights)


def _timms() -> set[str]:
    import timm

    return set(timm.list_models())


def test_without_a_description_the_encoders_own_is_used_and_said(tmp_path: Path) -> None:
    def make() -> nn.Module:
        made: nn.Module = smp.Unet(
            "tu-xception41", encoder_weights=None, classes=4, encoder_depth=2,
            decoder_channels=(8, 8),
        )  # fmt: skip
        return made

    guide = SegmentationGuide(str(saved(tmp_path, make)))
    assert "mean 0.5, 0.5, 0.5" in " ".join(guide.remarks())
    again = smp.from_pretrained(str(tmp_path)).eval()
    picture = from_tensor(torch.rand(1, 3, 64, 64) * 2 - 1)[0]
    prepared = smp.encoders.get_preprocessing_fn("tu-xception41")(np.asarray(picture))
    with torch.no_grad():
        theirs = again(torch.from_numpy(prepared).movedim(-1, 0)[None].float())
        torch.testing.assert_close(guide.see(to_tensor(picture)), theirs, atol=1e-4, rtol=1e-3)


def test_a_description_without_normalisation_is_said(tmp_path: Path) -> None:
    folder = saved(tmp_path, lambda: smp.Unet(**TINY))
    steps = [{"__class_fullname__": "Resize", "height": 64, "width": 64, "interpolation": 1}]
    (folder / "albumentations_config_eval.json").write_text(
        json.dumps({"transform": {"transforms": steps}})
    )
    guide = SegmentationGuide(str(folder))
    assert "how images are normalised" in " ".join(guide.remarks())
    assert guide.prepare(torch.zeros(1, 3, 100, 50)).shape[-2:] == (64, 64)


# Sizes


def every_pixel_counts(guide: SegmentationGuide, size: tuple[int, int]) -> None:
    x = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1)).mul(2).sub(1)
    x.requires_grad_()
    output = guide.see(x)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
    (gradient,) = torch.autograd.grad((output * weights).sum(), x)
    seen = gradient.abs().sum(dim=1)[0] > 0
    assert seen.any(dim=0).all() and seen.any(dim=1).all()


@pytest.mark.parametrize(
    ("kind", "said"),
    [("PAN", "at least"), ("DPT", "alone"), ("Unet", ""), ("FPN", ""), ("PSPNet", ""),
     ("Linknet", ""), ("UnetPlusPlus", "")],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_networks_with_a_least_size_get_images_enlarged(
    tmp_path: Path, kind: str, said: str
) -> None:
    def make() -> nn.Module:
        if kind == "DPT":
            made: nn.Module = smp.DPT(
                "tu-vit_tiny_patch16_224", encoder_weights=None, classes=3, img_size=96,
                embed_dim=16, num_heads=2, decoder_intermediate_channels=(8, 8, 8, 8),
                decoder_fusion_channels=8,
            )  # fmt: skip
        else:
            made = getattr(smp, kind)(**TINY)
        return made

    guide = SegmentationGuide(str(saved(tmp_path, make)))
    remarks = [r for r in guide.remarks() if "normalised" not in r]
    assert bool(remarks) == bool(said) and said in " ".join(remarks)
    for size in ((64, 64), (50, 71), (128, 64)):
        every_pixel_counts(guide, size)


def test_the_least_size_is_the_librarys(tmp_path: Path) -> None:
    guide = SegmentationGuide(str(saved(tmp_path, lambda: smp.PAN(**TINY))))
    theirs = smp.from_pretrained(str(tmp_path)).eval()
    least = guide.prepare(torch.zeros(1, 3, 32, 32)).shape[-1]
    with torch.no_grad():
        theirs(torch.zeros(1, 3, least, least))
        with pytest.raises(RuntimeError):
            theirs(torch.zeros(1, 3, least - 16, least - 16))


class Picky(nn.Module):
    """Takes images that fit a rule."""

    def __init__(self, fits: Callable[[int, int], bool]) -> None:
        super().__init__()
        self.layer, self.fits = nn.Conv2d(3, 2, 1), fits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.fits(*x.shape[-2:]):
            raise AssertionError(f"Input {x.shape} does not match.")
        out: torch.Tensor = self.layer(x)
        return out


@pytest.mark.parametrize(
    ("fits", "given", "said"),
    [
        (lambda h, w: min(h, w) >= 100, {(64, 64): (104, 104), (120, 160): (120, 160)}, "least"),
        (lambda h, w: (h, w) == (72, 72), {(64, 64): (72, 72), (90, 40): (72, 72)}, "alone"),
        (lambda h, w: h % 48 == w % 48 == 0, {(64, 64): (96, 96), (40, 90): (48, 96)}, "multiples"),
        (lambda h, w: True, {(64, 64): (64, 64), (20, 30): (24, 32)}, ""),
    ],
    ids=["least", "one", "multiples", "any"],
)
def test_what_a_network_takes_is_found(
    fits: Callable[[int, int], bool], given: dict[tuple[int, int], tuple[int, int]], said: str
) -> None:
    from ppap_host.guides.preprocessing import Preparation

    remarks: list[str] = []
    preparation = Preparation(multiple_of=8, rounding="up")
    found = accepted(Picky(fits), preparation, "x", remarks)
    for size, expected in given.items():
        assert found.output_size(*size) == expected
    assert said in " ".join(remarks) and bool(said) == bool(remarks)
    assert on_grid(found, None) == found
    for sized in (preparation, replace(preparation, size=(64, 64))):
        with pytest.raises(CheckpointError, match="cannot run in its own library"):
            accepted(Picky(lambda h, w: False), sized, "x")


def test_a_network_of_one_size_is_found_where_the_shorter_side_is_asked_for() -> None:
    from ppap_host.guides.preprocessing import Preparation

    remarks: list[str] = []
    preparation = Preparation(shortest_edge=64)
    found = accepted(Picky(lambda h, w: (h, w) == (64, 64)), preparation, "x", remarks)
    assert found.output_size(40, 90) == (64, 64) and "64 x 64 pixels alone" in remarks[0]
    assert accepted(Picky(lambda h, w: min(h, w) == 64), preparation, "x") == preparation


# What a folder may not say


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"encoder_name": "tu-hf-hub:timm/resnet18.a1_in1k"}, "elsewhere"),
        ({"encoder_name": "tu-local-dir:/tmp/x"}, "elsewhere"),
        ({"encoder_name": ["x"]}, "elsewhere"),
        ({"checkpoint_path": "/tmp/w.pth"}, "elsewhere"),
        ({"pretrained_cfg_overlay": {"url": "http://localhost:1/w"}}, "elsewhere"),
        ({"classes": 10**8}, "far larger"),
        ({"classes": 10**12}, "cannot be meant"),
        ({"classes": "3"}, "'3' classes"),
        ({"stem_width": 10**6}, "far larger"),
        ({"encoder_depth": 10**7}, "cannot be meant"),
    ],
    ids=range(10),
)
def test_what_is_elsewhere_or_cannot_be_meant_is_refused(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    folder = saved(tmp_path, lambda: smp.Unet(**TINY), **change)
    with pytest.raises(CheckpointError, match=words) as caught:
        SegmentationGuide(str(folder))
    assert caught.value.remedy


@pytest.mark.parametrize("prefix", ["model.", "module.", "net."])
def test_prefixes_are_taken_off(tmp_path: Path, prefix: str) -> None:
    from safetensors.torch import load_file, save_file

    folder = saved(tmp_path, lambda: smp.Unet(**TINY))
    state = load_file(folder / "model.safetensors")
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = SegmentationGuide(str(folder)).see(x)
        save_file({f"{prefix}{k}": v for k, v in state.items()}, folder / "model.safetensors")
        guide = SegmentationGuide(str(folder))
        torch.testing.assert_close(guide.see(x), expected)
    assert prefix in " ".join(guide.remarks())


def test_networks_that_look_at_numbers_while_they_are_made_are_loaded(tmp_path: Path) -> None:
    """As smp's mix transformers do, which the meta device has not got."""
    guide = SegmentationGuide(
        str(saved(tmp_path, lambda: smp.Segformer("mit_b0", encoder_weights=None, classes=4)))
    )
    again = smp.from_pretrained(str(tmp_path)).eval()
    x = guide.prepare(torch.rand(1, 3, 64, 64) * 2 - 1)
    with torch.no_grad():
        torch.testing.assert_close(guide.network()(x), again(x))


def test_names_of_another_library_are_said(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder = saved(tmp_path, lambda: smp.Unet(**TINY))
    state = {"decode_head.conv_seg.weight": torch.ones(1), "backbone.layer1.w": torch.ones(1)}
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"None of its 2 names.*MMSegmentation"):
        SegmentationGuide(str(folder))


# Networks of transformers whose pixels are cut into patches, or halved stage by stage


@pytest.mark.parametrize("kind", ["upernet-convnext", "upernet-swin", "segformer"])
def test_no_row_or_column_is_left_out(tmp_path: Path, kind: str) -> None:
    import transformers as t

    torch.manual_seed(0)
    if kind == "segformer":
        model: Any = t.SegformerForSemanticSegmentation(
            t.SegformerConfig(
                num_encoder_blocks=4, depths=[1] * 4, hidden_sizes=[8, 8, 16, 16],
                num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=16, num_labels=3,
            )
        )  # fmt: skip
    else:
        stages = ["stage1", "stage2", "stage3", "stage4"]
        backbone: Any = (
            t.ConvNextConfig(depths=[1] * 4, hidden_sizes=[8, 8, 16, 16], out_features=stages)
            if kind == "upernet-convnext"
            else t.SwinConfig(
                embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=4, out_features=stages
            )
        )
        model = t.UperNetForSemanticSegmentation(
            t.UperNetConfig(
                backbone_config=backbone, hidden_size=16, pool_scales=[1, 2], num_labels=3,
                use_auxiliary_head=False,
            )
        )  # fmt: skip
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.xavier_normal_(parameter)
    model.save_pretrained(tmp_path)
    t.SegformerImageProcessor(do_resize=False).save_pretrained(tmp_path)
    guide = SegmentationGuide(str(tmp_path))
    for size in ((64, 64), (50, 71)):
        every_pixel_counts(guide, size)
