"""What a vision network wants done to an image, repeated in differentiable torch.

Libraries prepare images with Pillow or in 8 bits, through which no gradient flows. A guide repeats
the same steps on tensors: :class:`Preparation` holds plain numbers and does them, and
:func:`read_processor` takes these numbers from an image processor in the manner of transformers,
which is only looked at, never imported or called. :func:`on_grid` and :func:`accepted` see to it
that a network uses every pixel that it is given, and takes the sizes that it is given.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ppap_host.files.errors import CheckpointError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Of ImageNet's pixels in [0, 1], a channel each."""

IMAGENET_STD = (0.229, 0.224, 0.225)
"""Standard deviation of the same."""

LARGEST = 8192
"""Side in pixels up to which a preprocessing is believed."""

# Pillow's numbers and torchvision's words. Torch has no antialiased Lanczos; bicubic is its
# nearest. Nearest neighbours would leave most pixels of a large picture without a gradient.
_MODES = {
    0: "bilinear",
    1: "bicubic",
    2: "bilinear",
    3: "bicubic",
    "nearest": "bilinear",
    "lanczos": "bicubic",
    "bilinear": "bilinear",
    "bicubic": "bicubic",
}


_ROUNDING: dict[str, Callable[[float], int]] = {
    "nearest": lambda x: round(x),
    "up": math.ceil,
    "down": math.floor,
}


@dataclass(frozen=True)
class Preparation:
    """Resizing and normalisation of one network.

    The whole picture is resized and nothing is cut away or padded, since a guide must see every
    pixel that it steers, and no other. Resizing antialiases, so that every pixel has a gradient,
    whatever the sizes. Overshoot is not clipped to the 8-bit range, since that would cut the
    gradient.

    The aspect ratio is lost with ``size`` alone, and kept with ``shortest_edge`` or
    ``keep_aspect_ratio``.

    Attributes:
        size: (height, width) in pixels that is asked for; None, without a ``shortest_edge``, keeps
            the image's.
        shortest_edge: the shorter side in pixels, in place of ``size``; the other one follows, cut
            to a whole number.
        longest_edge: the longer side that ``shortest_edge`` may lead to at most.
        least: the shorter side that is given at least, in pixels; smaller images are enlarged.
        keep_aspect_ratio: scale both sides alike towards ``size``, by the factor nearer to one.
        multiple_of: each side is brought to a multiple of this, then cut to a whole number
            (ZoeDepth's own value is 1 / 32).
        rounding: which multiple that is: the nearest, as Python rounds, or the next larger or
            smaller one.
        mode: of torch's interpolation, "bilinear" or "bicubic".
        align_corners: the corners' pixels stay where they are, and nothing is antialiased.
        scale: from the 8-bit range to what ``mean`` and ``std`` refer to, usually 1 / 255.
        offset: added after ``scale``.
        mean, std: a number a channel, in the network's order.
        swapped: whether the network wants blue first.

    Raises:
        CheckpointError: a number cannot be meant.
    """

    size: tuple[int, int] | None = None
    shortest_edge: int | None = None
    longest_edge: int | None = None
    least: int = 1
    keep_aspect_ratio: bool = False
    multiple_of: float = 1.0
    rounding: Literal["nearest", "up", "down"] = "nearest"
    mode: str = "bilinear"
    align_corners: bool = False
    scale: float = 1 / 255
    offset: float = 0.0
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    swapped: bool = False

    def __post_init__(self) -> None:
        sides = [*(self.size or ()), self.shortest_edge, self.longest_edge, self.least]
        numbers = [self.scale, self.offset, *self.mean, *self.std, self.multiple_of]
        if (
            not all(side is None or 0 < side <= LARGEST for side in sides)
            or not all(math.isfinite(number) for number in numbers)
            or not (min(self.std) > 0 and 0 < self.multiple_of <= LARGEST)
        ):
            raise CheckpointError(
                f"A preprocessing cannot be meant: sizes {sides}, mean {self.mean}, deviation "
                f"{self.std}.",
                remedy="Mend the model's preprocessor_config.json or config.json.",
            )

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that the network is given for an image of this size."""
        sides: tuple[float, float] = (height, width)
        if self.size is not None:
            scales = self.size[0] / height, self.size[1] / width
            if self.keep_aspect_ratio:
                # The processors' rule: the smaller change wins, a tie goes to the height.
                by_width = abs(1 - scales[1]) < abs(1 - scales[0])
                factor = scales[1] if by_width else scales[0]
                sides = height * factor, width * factor
            else:
                sides = self.size
        elif self.shortest_edge is not None:
            sides = self._by_edges(height, width, self.shortest_edge)
        if min(sides) < self.least:
            factor = self.least / min(sides)
            sides = math.ceil(sides[0] * factor), math.ceil(sides[1] * factor)
        m = self.multiple_of
        whole = _ROUNDING[self.rounding]
        height, width = (int(max(m, 1, whole(side / m) * m)) for side in sides)
        return height, width

    def _by_edges(self, height: int, width: int, wanted: int) -> tuple[int, int]:
        short, long = sorted((height, width))
        edge: float = wanted
        if self.longest_edge is not None and long / short * edge > self.longest_edge:
            edge = self.longest_edge * short / long
        # The longer side is cut, not rounded, as transformers and torchvision do it.
        sides = round(edge), int(edge * long / short)
        return sides if height <= width else sides[::-1]

    def __call__(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        """Network input from RGB in [-1, 1]."""
        size = self.output_size(x.shape[-2], x.shape[-1])
        if size != tuple(x.shape[-2:]):
            if self.align_corners:
                x = F.interpolate(x, size, mode=self.mode, align_corners=True)
            else:
                x = F.interpolate(x, size, mode=self.mode, antialias=True)
        if self.swapped:
            x = x.flip(1)
        # One multiplication and one addition: exact where mean and deviation are a half.
        half = 127.5 * self.scale
        factor = x.new_tensor([half / s for s in self.std])
        shift = [(half + self.offset - m) / s for m, s in zip(self.mean, self.std, strict=True)]
        return x * factor.view(3, 1, 1) + x.new_tensor(shift).view(3, 1, 1)


def torch_mode(resample: Any) -> str | None:
    """Torch's antialiased interpolation for a filter, or None if there is none like it.

    Lanczos becomes bicubic, and nearest neighbours bilinear.

    Args:
        resample: a number or enumeration of Pillow, or a word or enumeration of torchvision.
    """
    return _MODES.get(getattr(resample, "value", resample))


def read_processor(name: str, processor: Any, *, fit_crop: bool = False) -> Preparation:
    """The preprocessing that an image processor of transformers is configured for.

    Args:
        name: of the model, for messages.
        processor: any object with a processor's attributes, such as ``do_resize`` and ``size``.
        fit_crop: what becomes of a processor that cuts a window out of the resized picture. True,
            for networks whose input has a fixed size: the whole picture is squashed into the
            window. False: it is resized as before the cut, and nothing is cut.

    Raises:
        CheckpointError: it resizes or normalises in a way that is not understood.
    """
    if not hasattr(processor, "do_resize"):
        raise CheckpointError(
            f"The image processor {type(processor).__name__} of the model {name!r} does not say "
            "how it resizes.",
            remedy="Use a model with an ordinary preprocessor_config.json.",
        )
    found = _normalised(name, processor)
    try:
        return _resized(name, processor, found, fit_crop)
    except (TypeError, ValueError, OverflowError):  # words for numbers
        raise _unresizable(name, processor) from None


def _resized(name: str, processor: Any, found: Preparation, fit_crop: bool) -> Preparation:
    """The preparation with the part that changes sizes."""
    kind = type(processor).__name__
    size, edge = None, None
    divisor = getattr(processor, "size_divisor", None)
    if kind.startswith("GLPN") and divisor:
        # It resizes to no size of its own, but down to a multiple.
        return replace(found, mode=_mode(name, processor), multiple_of=divisor, rounding="down")
    if processor.do_resize:
        wanted = getattr(processor, "size", None)
        size, edge, most = _sides(wanted, getattr(processor, "default_to_square", True))
        if size is None and edge is None:
            raise _unresizable(name, processor)
        found = replace(
            found,
            longest_edge=None if size else most,
            keep_aspect_ratio=bool(getattr(processor, "keep_aspect_ratio", False)),
            multiple_of=float(getattr(processor, "ensure_multiple_of", None) or 1),
            mode=_mode(name, processor),
            align_corners=kind.startswith("ZoeDepth"),
        )
    # MaskFormer's enlarges to a multiple, and DPT's pads to one, for networks with patches of 14
    # pixels. Padding would show the network what is not in the picture, so it is enlarged as well.
    pads = kind.startswith("DPT") and getattr(processor, "do_pad", False)
    if divisor and (
        pads or (processor.do_resize and kind.startswith(("MaskFormer", "Mask2Former")))
    ):
        found = replace(found, multiple_of=float(divisor), rounding="up")
    window = _window(processor, edge) if fit_crop else None
    if window is not None:
        return replace(found, size=window, longest_edge=None, keep_aspect_ratio=False)
    return replace(found, size=size, shortest_edge=edge)


def on_grid(preparation: Preparation, config: Any) -> Preparation:
    """The preparation for a network that cuts images into patches without looking at the rest.

    A vision transformer drops what is over a whole number of patches, so that the last rows and
    columns would have no gradient. Sides that are no such multiples become the next larger ones.

    Args:
        config: of a model of transformers, or of the backbone in it.
    """
    inside = getattr(config, "backbone_config", None)
    part: Any = config if inside is None else inside
    patch, kind = getattr(part, "patch_size", None), str(getattr(part, "model_type", ""))
    if not isinstance(patch, int) or patch < 1 or kind.startswith(_PADS):
        return preparation
    # Each stage of a ConvNeXt but the first halves what is left, and cuts the rest.
    grid = patch * 2 ** (len(part.depths) - 1) if "convnext" in kind else patch
    given = preparation.multiple_of
    if grid == 1 or (given >= 1 and given == int(given) and int(given) % grid == 0):
        return preparation
    return replace(preparation, multiple_of=float(grid), rounding="up")


# These pad what is over a whole number of patches themselves.
_PADS = ("swin", "maskformer-swin", "segformer", "mobilevit", "donut", "hiera")

LEAST_TRIED, LARGEST_TRIED = 32, 1024
"""Sides in pixels between which :func:`accepted` looks for what a network takes."""


def accepted(
    network: nn.Module, preparation: Preparation, name: str, remarks: list[str] | None = None
) -> Preparation:
    """The preparation, changed so that the network takes images of any size.

    Some networks need a least size, or take one size alone, and say so by an error deep inside when
    they are shown another. A preparation that asks for a size stays as it is. Where none is asked
    for, the network is shown the smallest image; if that fails, others are tried on the meta
    device, where nothing is computed.

    Args:
        name: of the model, for messages.
        remarks: what is changed is added here, a sentence.

    Raises:
        CheckpointError: the network fails whatever it is shown.
    """
    smallest = preparation.output_size(LEAST_TRIED, LEAST_TRIED)
    takes = _trial(network)
    sized = preparation.size is not None or preparation.shortest_edge is not None
    if sized and takes(smallest) in (None, _UNKNOWN):
        oblong = preparation.output_size(LEAST_TRIED, 2 * LEAST_TRIED)
        if oblong == smallest or takes(oblong) in (None, _UNKNOWN):
            return preparation
        _note(remarks, name, f"images of {smallest[1]} x {smallest[0]} pixels alone")
        return replace(preparation, size=smallest, shortest_edge=None, keep_aspect_ratio=False)
    failed = _tried(lambda: network(torch.zeros(1, 3, *smallest)))
    if failed is None:
        return preparation
    step = preparation.output_size(1, 1)[0]
    for side in range(smallest[0], 0 if sized else LARGEST_TRIED + 1, step):
        wrong = takes((side, side))
        if wrong == _UNKNOWN:
            return preparation
        if wrong is None:
            return _from_least(takes, preparation, side, step, name, remarks)
    shown = f"{smallest[1]} x {smallest[0]}" if sized else f"up to {LARGEST_TRIED}"
    raise CheckpointError(
        f"The network of {name!r} cannot run in its own library, shown an image of {shown} pixels: "
        f"{failed}",
        remedy="Mend the model's configuration, try another version of that library, or give "
        "another --model.",
    )


def _note(remarks: list[str] | None, name: str, what: str) -> None:
    if remarks is not None:
        remarks.append(
            f"The network of {name!r} takes {what}; images of other sizes are resized for it."
        )


def _from_least(
    takes: Callable[[tuple[int, int]], str | None],
    preparation: Preparation,
    side: int,
    step: int,
    name: str,
    remarks: list[str] | None,
) -> Preparation:
    """For a network that takes squares of this side, and none that are smaller."""

    def both(other: int) -> bool:
        return takes((other, other)) is None and takes((side, other)) is None

    if both(side + step):
        _note(remarks, name, f"images of at least {side} pixels a side")
        return replace(preparation, least=side)
    if both(2 * side):
        _note(remarks, name, f"multiples of {side} pixels alone")
        return replace(preparation, multiple_of=float(side), rounding="up")
    _note(remarks, name, f"images of {side} x {side} pixels alone")
    return replace(preparation, size=(side, side), keep_aspect_ratio=False)


_UNKNOWN = "?"


def _trial(network: nn.Module) -> Callable[[tuple[int, int]], str | None]:
    """Whether a network takes an image of a size, as :func:`_tried`, on the meta device.

    A copy is tried: libraries leave hooks behind where a network has run.
    """
    known: dict[int, Any] = {id(b): torch.empty_like(b, device="meta") for b in network.buffers()}
    for weight in network.parameters():
        empty = torch.empty_like(weight, device="meta")
        known[id(weight)] = nn.Parameter(empty, requires_grad=weight.requires_grad)
    copied = copy.deepcopy(network, known)

    def takes(size: tuple[int, int]) -> str | None:
        return _tried(lambda: copied(torch.empty(1, 3, *size, device="meta")))

    return takes


def _tried(call: Callable[[], Any]) -> str | None:
    """What is wrong with a call of a network; None if nothing is, "?" if that cannot be told."""
    try:
        with torch.no_grad():
            call()
    except NotImplementedError:  # it looks at numbers
        return _UNKNOWN
    except Exception as error:  # whatever the library makes of it
        text = " ".join(str(error).split())
        return _UNKNOWN if "meta" in text.lower() else f"{type(error).__name__}: {text[:200]}"
    return None


def _mode(name: str, processor: Any) -> str:
    """Torch's word for the processor's filter."""
    mode = torch_mode(getattr(processor, "resample", 2))
    if mode is None:
        raise _unresizable(name, processor)
    return mode


def _unresizable(name: str, processor: Any) -> CheckpointError:
    wanted, resample = (getattr(processor, part, None) for part in ("size", "resample"))
    return CheckpointError(
        f"The image processor {type(processor).__name__} of the model {name!r} resizes "
        f"to {wanted or 'no size'} with filter {resample}, which is not supported.",
        remedy="Use a model whose preprocessor_config.json gives a height and a width or a "
        "shortest edge, and bilinear or bicubic resampling.",
    )


def _normalised(name: str, processor: Any) -> Preparation:
    """The part that changes numbers, not sizes."""
    # Where mean and deviation are not used, the processor may have none.
    normalise = bool(getattr(processor, "do_normalize", False))
    rescale = getattr(processor, "do_rescale", True)
    try:
        std = _three(processor.image_std) if normalise else (1.0, 1.0, 1.0)
        if getattr(processor, "include_top", False):
            # EfficientNet's processor divides by the deviation once more.
            a, b, c = _three(processor.image_std)
            std = (std[0] * a, std[1] * b, std[2] * c)
        return Preparation(
            scale=float(processor.rescale_factor) if rescale else 1.0,
            offset=-1.0 if rescale and getattr(processor, "rescale_offset", False) else 0.0,
            mean=_three(processor.image_mean) if normalise else (0.0, 0.0, 0.0),
            std=std,
            swapped=bool(getattr(processor, "do_flip_channel_order", False)),
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"The image processor {type(processor).__name__} of the model {name!r} does not say "
            f"how it normalises RGB images ({error}).",
            remedy="Use a model whose preprocessor_config.json gives a rescale_factor, and an "
            "image_mean and image_std of three channels.",
        ) from None


def _window(processor: Any, edge: int | None) -> tuple[int, int] | None:
    """(height, width) of what the processor cuts out at the end; None if it does not."""
    if getattr(processor, "do_center_crop", False):
        size, side, _ = _sides(getattr(processor, "crop_size", None), True)
        return size or (None if side is None else (side, side))
    if edge is not None and getattr(processor, "crop_pct", None) is not None:
        # ConvNeXt's processor: a square of this side, cut out or, from 384 on, squashed into.
        return edge, edge
    return None


def _sides(wanted: Any, square: bool) -> tuple[tuple[int, int] | None, int | None, int | None]:
    """((height, width), shortest edge, longest edge) that are asked for; None for those not."""
    if isinstance(wanted, int):
        return ((wanted, wanted), None, None) if square else (None, wanted, None)
    if isinstance(wanted, Sequence) and not isinstance(wanted, str):
        size = (int(wanted[0]), int(wanted[-1])) if len(wanted) in (1, 2) else None
        return size, None, None
    height, width = _entry(wanted, "height"), _entry(wanted, "width")
    size = (height, width) if height and width else None
    return size, None if size else _entry(wanted, "shortest_edge"), _entry(wanted, "longest_edge")


def _entry(size: Any, side: str) -> int | None:
    value = size.get(side) if hasattr(size, "get") else getattr(size, side, None)
    return int(value) if value else None


def _three(values: Any) -> tuple[float, float, float]:
    if isinstance(values, int | float):
        return float(values), float(values), float(values)
    first, second, third = (float(v) for v in values)
    return first, second, third
