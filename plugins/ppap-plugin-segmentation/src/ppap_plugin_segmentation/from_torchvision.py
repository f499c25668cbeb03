"""Loads the segmentation models of torchvision: FCN, DeepLabV3 and LR-ASPP."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from ppap_host.files.checkpoints import read_state_dict, renamed, require_layout
from ppap_host.files.errors import CheckpointError, nearest
from ppap_host.files.models import own_path
from ppap_host.guides.preprocessing import Preparation, accepted
from ppap_plugin_segmentation.files import LABELS, class_names, explained, three
from ppap_plugin_segmentation.model import Checkpoint, SegmentationNetwork

PREFIX = "torchvision:"
_FORM = (
    "Write torchvision:ARCHITECTURE, such as torchvision:deeplabv3_resnet50, with .WEIGHTS behind "
    "it for other weights than torchvision's default or :FILE for weights of your own."
)


def load_torchvision(name: str) -> Checkpoint:
    """Loads a segmentation model of torchvision.

    Args:
        name: ``torchvision:ARCHITECTURE``, with ``.WEIGHTS`` behind it for other weights than
            torchvision's default, and with ``:FILE`` for a state dict of one's own, of any number
            of classes. Preprocessing is that of the weights. The classes of a file are named by a
            ``labels.json`` beside it, else as those of the weights if it has as many, else
            numbered. An auxiliary classifier is left out, whether it is in the file or not.

    Raises:
        CheckpointError: torchvision is missing or knows no such model or weights, these cannot be
            downloaded or read, or they are no weights of this model.
    """
    with explained(name):
        from torchvision.models import list_models, segmentation  # type: ignore[import-untyped]

    chosen, sign, file = name.removeprefix(PREFIX).partition(":")
    architecture, _, tag = chosen.partition(".")
    known = sorted(list_models(module=segmentation))
    if architecture not in known or (sign and not file):
        close = nearest(architecture, known)
        hint = f"Did you mean {' or '.join(close)}? " if close else ""
        raise CheckpointError(
            f"The model {name!r} names no segmentation model of torchvision"
            f"{' and file' if architecture in known else ''}.",
            remedy=f"{hint}{_FORM} Its architectures: {', '.join(known)}.",
        )
    weights = _weights(name, architecture, tag)
    path = own_path(file) if file else _downloaded(name, weights)
    categories = tuple(str(label) for label in weights.meta["categories"])
    remarks: list[str] = []
    whole = read_state_dict(path, remarks)
    whole = renamed(whole, _layout(architecture, len(categories)), remarks)
    # A network in evaluation neither counts batches nor uses its auxiliary classifier.
    state = {
        key: value
        for key, value in whole.items()
        if not (key.startswith("aux_classifier.") or key.endswith(".num_batches_tracked"))
    }
    last = [key for key in _layout(architecture, len(categories)) if key.endswith(".weight")][-1]
    count = len(state[last]) if last in state and state[last].ndim else len(categories)
    require_layout(
        state,
        _layout(architecture, count),
        lambda shapes: [other for other in known if _layout(other, count) == shapes],
    )
    model = _built(architecture, count)
    model.load_state_dict(state, strict=False)
    named = path.parent / LABELS
    described = bool(file) and named.is_file()
    labels = categories
    if described or count != len(categories):
        labels = class_names(name, named if described else None, count)
    network = SegmentationNetwork(model, _out).float().eval().requires_grad_(False)
    preparation = accepted(network, _preparation(name, weights.transforms()), name, remarks)
    files = (path, named) if described else (path,)
    return Checkpoint(network, preparation, labels, files, remarks=tuple(remarks))


def _out(output: Any) -> Tensor:
    logits: Tensor = output["out"]
    return logits


def _built(architecture: str, count: int) -> nn.Module:
    """The untrained network; nothing is downloaded."""
    from torchvision.models import get_model

    model: nn.Module = get_model(
        architecture, weights=None, weights_backbone=None, num_classes=count, aux_loss=False
    )
    return model


def _layout(architecture: str, count: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors that matter, by name, the last classifier's at the end."""
    with torch.device("meta"):
        state: Mapping[str, Tensor] = _built(architecture, count).state_dict()
    return {
        key: tuple(value.shape)
        for key, value in state.items()
        if not key.endswith(".num_batches_tracked")
    }


def _weights(name: str, architecture: str, tag: str) -> Any:
    """What torchvision knows about published weights: where they are, classes, preprocessing."""
    from torchvision.models import get_model_weights

    published = get_model_weights(architecture)
    if not tag:
        return published.DEFAULT
    if tag not in published.__members__:
        raise CheckpointError(
            f"The model {name!r} asks for weights that torchvision has not got: {tag!r}.",
            remedy=f"For {architecture} it has: {', '.join(published.__members__)}.",
        )
    found: Any = published[tag]
    return found


def _downloaded(name: str, weights: Any) -> Path:
    """The file of published weights in torch's cache, fetched if it is not there."""
    file = str(os.path.basename(urlparse(str(weights.url)).path))
    path = Path(torch.hub.get_dir()) / "checkpoints" / file
    if not path.is_file():
        try:
            weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
        except Exception as error:
            # Whatever the network, the disk or the check of the file had to say.
            raise CheckpointError(
                f"The weights of the model {name!r} cannot be downloaded: {error}",
                remedy=f"Download {weights.url} and give it as torchvision:ARCHITECTURE:FILE.",
            ) from error
    return path


def _preparation(name: str, preset: Any) -> Preparation:
    """What the transforms of torchvision's weights do, but for the crop that none of them has."""
    with explained(name):
        sides = [int(side) for side in preset.resize_size or ()]
        return Preparation(
            size=(sides[0], sides[1]) if len(sides) == 2 else None,
            shortest_edge=sides[0] if len(sides) == 1 else None,
            mode=str(preset.interpolation.value),
            mean=three(preset.mean),
            std=three(preset.std),
        )
