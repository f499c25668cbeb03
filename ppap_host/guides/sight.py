"""What a guide is shown of what a backbone makes, and whether the two go together at all."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ppap_host.backbones.backbone import Backbone
from ppap_host.files.errors import OptionError
from ppap_host.files.images import in_rgb
from ppap_host.guides.guide import Guide

PICTURES = ("images", "video")
"""What has colours, in its first dimension after the batch."""


def shown(guide: Guide, backbone: Backbone) -> Callable[[Tensor], Tensor]:
    """From a clean state of the backbone to what the guide looks at; differentiable.

    That is what :meth:`~ppap_host.backbones.backbone.Backbone.decode` gives. Guides for colours
    are shown pictures of one channel as grey.

    Raises:
        OptionError: the guide looks at something else than the backbone makes.
    """
    fit = fitting(guide, backbone)
    return backbone.decode if fit is None else lambda state: fit(backbone.decode(state))


def fitting(guide: Guide, backbone: Backbone) -> Callable[[Tensor], Tensor] | None:
    """From what the backbone makes to what the guide is shown of it; None where that is the same.

    Raises:
        OptionError: as :func:`shown`.
    """
    makes, shape = backbone.makes, backbone.decoded_shape
    if guide.looks_at not in (None, makes):
        raise OptionError(
            f"The guide {guide.name!r} looks at {guide.looks_at}, and the backbone "
            f"{backbone.name!r} makes {_called(makes, shape)}.",
            remedy=f"Use a guide that looks at {makes} (Guide.looks_at), or a backbone that makes "
            f"{guide.looks_at}.",
        )
    if makes not in PICTURES or guide.channels in (None, shape[0]):
        return None
    if shape[0] == 1 and guide.channels == 3:
        return in_rgb
    if guide.looks_at is None:
        return None
    raise OptionError(
        f"The guide {guide.name!r} looks at {makes} of {guide.channels} channels, and the backbone "
        f"{backbone.name!r} makes {_called(makes, shape)}.",
        remedy=f"Use a guide for {shape[0]} channels (Guide.channels).",
    )


def _called(makes: str, shape: tuple[int, ...]) -> str:
    return f"{makes} of shape {list(shape)}"
