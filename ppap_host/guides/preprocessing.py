"""What a vision network wants done to an image, repeated in differentiable torch.

Libraries prepare images with Pillow or in 8 bits, through which no gradient flows. A guide repeats
the same steps on tensors: :class:`Preparation` holds plain numbers and does them, and
:func:`read_processor` takes these numbers from an image processor in the manner of transformers,
which is only looked at, never imported or called.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ppap_host.files.errors import CheckpointError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Of ImageNet's pixels in [0, 1], a channel each."""

IMAGENET_STD = (0.229, 0.224, 0.225)
"""Standard deviation of the same."""

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
        keep_aspect_ratio: scale both sides alike towards ``size``, by the factor nearer to one.
        multiple_of: each side is rounded to a multiple of this, then cut to a whole number
            (ZoeDepth's own value is 1 / 32).
        mode: of torch's interpolation, "bilinear" or "bicubic".
        align_corners: the corners' pixels stay where they are, and nothing is antialiased.
        scale: from the 8-bit range to what ``mean`` and ``std`` refer to, usually 1 / 255.
        offset: added after ``scale``.
        mean, std: a number a channel, in the network's order.
        swapped: whether the network wants blue first.
    """

    size: tuple[int, int] | None = None
    shortest_edge: int | None = None
    keep_aspect_ratio: bool = False
    multiple_of: float = 1.0
    mode: str = "bilinear"
    align_corners: bool = False
    scale: float = 1 / 255
    offset: float = 0.0
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    swapped: bool = False

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
            # In whole numbers: a factor times the shorter side may fall just below the edge.
            short, edge = min(height, width), self.shortest_edge
            sides = height * edge // short, width * edge // short
        m = self.multiple_of
        rounded = [round(side / m) * m for side in sides]
        return int(max(m, 1, rounded[0])), int(max(m, 1, rounded[1]))

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
    size, edge = None, None
    if processor.do_resize:
        wanted = getattr(processor, "size", None)
        size, edge = _sides(wanted, getattr(processor, "default_to_square", True))
        resample = getattr(processor, "resample", 2)
        mode = torch_mode(resample)
        if (size is None and edge is None) or mode is None:
            raise CheckpointError(
                f"The image processor {type(processor).__name__} of the model {name!r} resizes "
                f"to {wanted or 'no size'} with filter {resample}, which is not supported.",
                remedy="Use a model whose preprocessor_config.json gives a height and a width or a "
                "shortest edge, and bilinear or bicubic resampling.",
            )
        found = replace(
            found,
            keep_aspect_ratio=bool(getattr(processor, "keep_aspect_ratio", False)),
            multiple_of=float(getattr(processor, "ensure_multiple_of", None) or 1),
            mode=mode,
            align_corners=type(processor).__name__.startswith("ZoeDepth"),
        )
    window = _window(processor, edge) if fit_crop else None
    if window is not None:
        return replace(found, size=window, keep_aspect_ratio=False)
    return replace(found, size=size, shortest_edge=edge)


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
        size, side = _sides(getattr(processor, "crop_size", None), True)
        return size or (None if side is None else (side, side))
    if edge is not None and getattr(processor, "crop_pct", None) is not None:
        # ConvNeXt's processor: a square of this side, cut out or, from 384 on, squashed into.
        return edge, edge
    return None


def _sides(wanted: Any, square: bool) -> tuple[tuple[int, int] | None, int | None]:
    """((height, width), shortest edge) that is asked for; the one that is not, is None."""
    if isinstance(wanted, int):
        return ((wanted, wanted), None) if square else (None, wanted)
    if isinstance(wanted, Sequence) and not isinstance(wanted, str):
        return (int(wanted[0]), int(wanted[-1])) if len(wanted) in (1, 2) else None, None
    height, width = _entry(wanted, "height"), _entry(wanted, "width")
    if height and width:
        return (height, width), None
    if _entry(wanted, "longest_edge"):
        return None, None  # a bound on the other side, which no caller here needs
    return None, _entry(wanted, "shortest_edge")


def _entry(size: Any, side: str) -> int | None:
    value = size.get(side) if hasattr(size, "get") else getattr(size, side, None)
    return int(value) if value else None


def _three(values: Any) -> tuple[float, float, float]:
    if isinstance(values, int | float):
        return float(values), float(values), float(values)
    first, second, third = (float(v) for v in values)
    return first, second, third
