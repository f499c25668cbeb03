"""Preparing an image for any network: sizes, numbers, and what cannot be understood."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as t
from PIL import Image
from PIL.Image import Resampling

from ppap_host.files.errors import CheckpointError
from ppap_host.files.images import to_tensor
from ppap_host.guides.preprocessing import Preparation, read_processor, torch_mode


def processor(**more: Any) -> SimpleNamespace:
    usual: dict[str, Any] = dict(
        do_resize=True, size={"height": 32, "width": 48}, resample=Resampling.BICUBIC,
        do_rescale=True, rescale_factor=1 / 255, do_normalize=True,
        image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.5, 0.25],
    )  # fmt: skip
    return SimpleNamespace(**(usual | more))


@pytest.mark.parametrize(
    ("preparation", "sizes"),
    [
        (Preparation(), {(40, 72): (40, 72)}),
        (Preparation(size=(32, 48)), {(40, 72): (32, 48), (32, 48): (32, 48)}),
        (Preparation(shortest_edge=48), {(64, 64): (48, 48), (90, 61): (70, 48)}),
        # A factor of 224 / 71 times 71 is a little less than 224.
        (Preparation(shortest_edge=224), {(71, 71): (224, 224), (100, 71): (315, 224)}),
        (
            Preparation(size=(98, 98), keep_aspect_ratio=True, multiple_of=14),
            {(60, 90): (70, 98), (200, 150): (126, 98), (98, 98): (98, 98)},
        ),
        (Preparation(multiple_of=32), {(70, 100): (64, 96), (16, 1): (32, 32)}),
        (Preparation(size=(40, 41), multiple_of=1 / 32), {(9, 9): (40, 41)}),
    ],
)
def test_sizes(preparation: Preparation, sizes: dict[tuple[int, int], tuple[int, int]]) -> None:
    for given, expected in sizes.items():
        assert preparation.output_size(*given) == expected
        assert preparation(torch.zeros(1, 3, *given)).shape[-2:] == expected


def test_numbers_are_scaled_shifted_and_normalised() -> None:
    preparation = Preparation(
        scale=1 / 127.5, offset=-1.0, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0), swapped=True
    )
    red = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64).view(1, 3, 1, 1)
    # Blue first, then in [-1, 1], where 0 stays 0.
    expected = torch.tensor([0.0 - 0.1, (-1 - 0.2) / 2, (1 - 0.3) / 4], dtype=torch.float64)
    torch.testing.assert_close(preparation(red)[0, :, 0, 0], expected)


def test_a_mean_and_a_deviation_of_a_half_change_nothing() -> None:
    half = (0.5, 0.5, 0.5)
    x = torch.rand(2, 3, 8, 8) * 2 - 1
    assert torch.equal(Preparation(mean=half, std=half)(x), x)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("side", [64, 256])
def test_every_pixel_of_a_larger_picture_has_a_gradient(mode: str, side: int) -> None:
    x = torch.zeros(1, 3, side, side, requires_grad=True)
    (gradient,) = torch.autograd.grad(Preparation(size=(32, 32), mode=mode)(x).sum(), x)
    assert (gradient > 0).all()


def test_corners_may_stay_where_they_are() -> None:
    x = torch.linspace(-1, 1, 5).expand(1, 3, 5, 5)
    half = (0.5, 0.5, 0.5)
    prepared = Preparation(size=(9, 9), align_corners=True, mean=half, std=half)(x)
    torch.testing.assert_close(prepared[0, 0, 0], torch.linspace(-1, 1, 9))


def test_a_processor_is_read() -> None:
    found = read_processor("test", processor())
    assert found == Preparation(
        size=(32, 48), mode="bicubic", mean=(0.4, 0.5, 0.6), std=(0.2, 0.5, 0.25)
    )
    plain = read_processor("test", SimpleNamespace(do_resize=False, do_rescale=False))
    assert (plain.size, plain.scale, plain.mean, plain.std) == (None, 1.0, (0.0,) * 3, (1.0,) * 3)
    aspect = read_processor("test", processor(keep_aspect_ratio=True, ensure_multiple_of=14))
    assert aspect.keep_aspect_ratio and aspect.multiple_of == 14


def sides(height: int, width: int) -> dict[str, int]:
    return {"height": height, "width": width}


PROCESSORS: dict[str, Callable[[], Any]] = {
    # Of depth networks.
    "dpt": lambda: t.DPTImageProcessor(size=sides(96, 96)),
    "dpt, bilinear": lambda: t.DPTImageProcessor(
        size=sides(48, 64), resample=Resampling.BILINEAR
    ),
    "dpt, aspect": lambda: t.DPTImageProcessor(
        size=sides(98, 98), keep_aspect_ratio=True, ensure_multiple_of=14,
        image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.25, 0.5],
    ),
    "dpt, untouched": lambda: t.DPTImageProcessor(do_resize=False, do_normalize=False),
    "zoe": lambda: t.ZoeDepthImageProcessor(size=sides(96, 128), do_pad=False),
    # Of segmentation networks.
    "segformer": lambda: t.SegformerImageProcessor(size=sides(96, 96)),
    "segformer, oblong": lambda: t.SegformerImageProcessor(
        size=sides(48, 64), image_std=[0.5, 0.25, 0.5]
    ),
    "segformer, untouched": lambda: t.SegformerImageProcessor(do_resize=False, do_normalize=False),
    "mask2former": lambda: t.Mask2FormerImageProcessor(size=sides(96, 96)),
    "mask2former, edges": lambda: t.Mask2FormerImageProcessor(
        size={"shortest_edge": 80, "longest_edge": 120}
    ),
    # As MaskFormer's first checkpoints have it.
    "maskformer": lambda: t.MaskFormerImageProcessor(size=50, max_size=70, size_divisor=0),
    "maskformer, undivided": lambda: t.MaskFormerImageProcessor(
        size={"shortest_edge": 49, "longest_edge": 300}, size_divisor=1
    ),
    # Of classifiers.
    "vit, oblong": lambda: t.ViTImageProcessor(size=sides(48, 64)),
    "vit, number": lambda: t.ViTImageProcessor(size=40, resample=3, image_std=[0.5, 0.25, 0.3]),
    "vit, untouched": lambda: t.ViTImageProcessor(do_resize=False, do_normalize=False),
    "beit": lambda: t.BeitImageProcessor(size=sides(96, 96), do_center_crop=False),
    "convnext, warped": lambda: t.ConvNextImageProcessor(size={"shortest_edge": 384}),
    "clip": lambda: t.CLIPImageProcessor(size={"shortest_edge": 48}, do_center_crop=False),
    "bit": lambda: t.BitImageProcessor(size={"shortest_edge": 150}, do_center_crop=False),
    "mobilevit": lambda: t.MobileViTImageProcessor(
        size={"shortest_edge": 48}, do_center_crop=False
    ),
    "efficientnet": lambda: t.EfficientNetImageProcessor(size=sides(64, 64)),
    "efficientnet, offset": lambda: t.EfficientNetImageProcessor(
        size=sides(64, 64), rescale_offset=True, rescale_factor=1 / 127.5
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PROCESSORS)
def test_an_image_is_prepared_as_transformers_does_it(name: str) -> None:
    made = PROCESSORS[name]()
    preparation = read_processor("test", made, fit_crop=name == "convnext, warped")
    # One 8-bit step, in the network's units.
    step = 1.2 * preparation.scale / min(preparation.std)
    # Smooth, so that 8-bit rounding and clipping while resizing do not matter.
    coarse = np.random.default_rng(0).integers(60, 190, (6, 7, 3), dtype=np.uint8)
    for width, height in ((64, 64), (90, 60), (61, 90), (150, 200), (147, 49)):
        image = Image.fromarray(coarse).resize((width, height), Resampling.BICUBIC)
        expected = made(images=image, return_tensors="pt")["pixel_values"].float()
        prepared = preparation(to_tensor(image))
        assert prepared.shape == expected.shape
        torch.testing.assert_close(prepared, expected, atol=step, rtol=0)


@pytest.mark.parametrize(
    ("wanted", "more", "size", "edge"),
    [
        (40, {}, (40, 40), None),
        (40, {"default_to_square": False}, None, 40),
        ([40, 50], {}, (40, 50), None),
        ({"shortest_edge": 40}, {}, None, 40),
        (SimpleNamespace(height=40, width=50), {}, (40, 50), None),
    ],
)
def test_sizes_are_written_in_many_ways(
    wanted: Any, more: dict[str, Any], size: Any, edge: Any
) -> None:
    found = read_processor("test", processor(size=wanted, **more))
    assert (found.size, found.shortest_edge) == (size, edge)


@pytest.mark.parametrize(
    ("more", "window"),
    [
        ({"do_center_crop": True, "crop_size": {"height": 24, "width": 20}}, (24, 20)),
        ({"do_center_crop": True, "crop_size": 24}, (24, 24)),
        ({"crop_pct": 0.875}, (40, 40)),
    ],
)
def test_what_would_be_cropped_is_squashed_or_left_whole(
    more: dict[str, Any], window: tuple[int, int]
) -> None:
    cropping = processor(size={"shortest_edge": 40}, **more)
    squashed = read_processor("test", cropping, fit_crop=True)
    assert (squashed.size, squashed.shortest_edge) == (window, None)
    whole = read_processor("test", cropping)
    assert (whole.size, whole.shortest_edge) == (None, 40)


def test_filters_have_stand_ins() -> None:
    modes = [torch_mode(Resampling(k)) for k in range(6)]
    assert modes == ["bilinear", "bicubic", "bilinear", "bicubic", None, None]
    words = ["lanczos", "nearest", "bicubic", "bilinear", "hamming"]
    assert [torch_mode(w) for w in words] == ["bicubic", "bilinear", "bicubic", "bilinear", None]


@pytest.mark.parametrize(
    ("odd", "wrong"),
    [
        (SimpleNamespace(), "does not say how it resizes"),
        (processor(size={"longest_edge": 40}), "longest_edge"),
        (processor(size=None), "no size"),
        (processor(resample=Resampling.HAMMING), "filter"),
        (processor(image_mean=[0.5]), "normalises"),
        (processor(image_std=None), "normalises"),
        (SimpleNamespace(do_resize=False), "rescale_factor"),
    ],
)
def test_strange_processors_are_refused(odd: Any, wrong: str) -> None:
    with pytest.raises(CheckpointError, match=wrong) as caught:
        read_processor("test", odd)
    assert caught.value.remedy
