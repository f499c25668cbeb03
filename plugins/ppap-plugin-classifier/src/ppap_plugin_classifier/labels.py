"""What a classifier's classes are called, with all that is known of ImageNet's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from ppap_host.guides.labels import Labels, plain

_ENOUGH = 0.9
"""From this share of names on that are ImageNet's, they are taken for ImageNet's."""


def numbered(classes: int) -> Labels:
    """For a checkpoint that does not name its classes: ImageNet's if there are as many.

    Which ImageNet it is, timm tells by their number.
    """
    from timm.data import infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": classes})
    if subset is None:
        return Labels.numbered(classes)
    info = _imagenet(subset)
    return Labels(
        info.label_descriptions(),
        info.label_names(),
        details=info.label_descriptions(detailed=True),
    )


def named(names: Sequence[str], keys: Sequence[str] = ()) -> Labels:
    """For a checkpoint that names its classes, in the order of its outputs.

    Where nearly all are ImageNet's, by WordNet's keys or by names, they get what else ImageNet's
    classes are called: published models say "ashcan" alone, and people "trash can".

    Args:
        keys: a further name of each class.
    """
    if all(re.fullmatch(r"n\d{8}", name) for name in names):
        known = _imagenet("imagenet-22k")
        synsets = set(known.label_names())
        if all(name in synsets for name in names):
            described = [known.label_name_to_description(name) for name in names]
            return Labels(described, keys or tuple(names))
    found = [_synset(name, k, len(names)) for k, name in enumerate(names)]
    if sum(key is not None for key in found) < max(10, _ENOUGH * len(names)):
        return Labels(names, keys)
    info = _imagenet("imagenet-1k")
    also = [
        () if key is None else tuple(info.label_name_to_description(key).split(","))
        for key in found
    ]
    return Labels(names, keys or tuple(key or "" for key in found), also)


@cache
def _imagenet(subset: str) -> Any:
    from timm.data import ImageNetInfo

    return ImageNetInfo(subset)


@cache
def _by_name() -> dict[str, str | None]:
    """WordNet's keys of ImageNet's 1000 classes by whole and by first name; None for namesakes."""
    info, found = _imagenet("imagenet-1k"), dict[str, str | None]()
    for key in info.label_names():
        whole = info.label_name_to_description(key)
        for name in {plain(whole), plain(whole.split(",")[0])}:
            found[name] = None if name in found else key
    return found


def _synset(name: str, index: int, classes: int) -> str | None:
    """WordNet's key for a class, if its name is one of ImageNet's."""
    for form in (plain(name), plain(name.split(",")[0])):
        key = _by_name().get(form)
        if key is not None:
            return key
    # Two cranes and two maillots are told apart by their place, which a background may move.
    index -= classes - 1000
    if classes not in (1000, 1001) or index < 0:
        return None
    info = _imagenet("imagenet-1k")
    place: str = info.label_names()[index]
    words = set(plain(info.label_name_to_description(place)).replace(",", " ").split())
    return place if words & set(plain(name).split()) else None
