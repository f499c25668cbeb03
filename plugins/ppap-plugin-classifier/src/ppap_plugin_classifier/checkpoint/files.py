"""What the loaders of all libraries share."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ppap_host.files.errors import CheckpointError
from ppap_host.files.models import first_line
from ppap_host.guides.labels import Labels
from ppap_host.guides.preprocessing import Preparation
from ppap_plugin_classifier.labels import named, numbered

REMEDY = (
    "Give --model the name of a timm classifier (resnet18.a1_in1k), a hub name (owner/name), a "
    "folder with config.json and model.safetensors, ARCHITECTURE:weights.safetensors, or "
    "torchvision:ARCHITECTURE."
)
"""The ways to write a model, for messages."""

MULTI_LABEL = "multi_label_classification"
"""What a ``config.json`` calls a network whose classes do not exclude each other."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded classifier.

    Attributes:
        network: frozen, in evaluation mode; prepared pixels [b, 3, h, w] to logits [b, c].
        preparation: what it wants done to an image.
        labels: as many as the network has classes.
        files: what was read.
        exclusive: whether the classes exclude each other, so that their probabilities are a
            softmax; otherwise each has a sigmoid of its own.
        remarks: what had to be chosen or guessed, a sentence each.
    """

    network: nn.Module
    preparation: Preparation
    labels: Labels
    files: tuple[Path, ...]
    exclusive: bool = True
    remarks: tuple[str, ...] = ()


class YesOrNo(nn.Module):
    """A classifier with one logit z as one of two classes, no and yes: the logits (0, z).

    Their softmax is the sigmoid of z.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 2"]:
        """Logits of no and yes."""
        yes: Tensor = self.network(pixels)
        return torch.cat([torch.zeros_like(yes), yes], dim=1)


def finished(
    name: str,
    network: nn.Module,
    preparation: Preparation,
    names: Sequence[str] | None,
    files: Sequence[Path],
    *,
    classes: int,
    keys: Sequence[str] = (),
    problem: object = None,
    remarks: Sequence[str] = (),
) -> Checkpoint:
    """A checkpoint, with the kind of its head decided.

    Args:
        name: what the user wrote, for messages.
        names: of the classes; None if they have none. One output may have a name for yes, or one
            for no and one for yes.
        classes: how many outputs there are.
        keys: further names.
        problem: the ``problem_type`` that its configuration gives.

    Raises:
        CheckpointError: its outputs are no classes.
    """
    if problem == "regression":
        raise CheckpointError(
            f"The model {name!r} does not choose between classes: it is a regression.",
            remedy="Use a model for classification.",
        )
    told = list(remarks)
    frozen = network.float().eval().requires_grad_(False)
    if problem not in (None, "", MULTI_LABEL, "single_label_classification"):
        raise CheckpointError(
            f"The model {name!r} says that its problem_type is {problem!r}, which is not known.",
            remedy=f"Write single_label_classification or {MULTI_LABEL} in its config.json.",
        )
    if classes == 1:
        frozen = YesOrNo(frozen).eval()
        both = list(names or ())
        both = [f"not {both[0]}", both[0]] if len(both) == 1 else both or ["negative", "positive"]
        told.append(
            f"{name!r} has one output, which is taken for the logit of {both[1]!r}; class 0 is "
            f"{both[0]!r} and class 1 {both[1]!r}."
        )
        return Checkpoint(frozen, preparation, Labels(both), tuple(files), True, tuple(told))
    labels = numbered(classes) if names is None else named(names, keys)
    exclusive = problem != MULTI_LABEL
    if not exclusive:
        told.append(f"{name!r} gives each class a probability of its own (multi-label).")
    return Checkpoint(frozen, preparation, labels, tuple(files), exclusive, tuple(told))


def library(name: str, package: str) -> Any:
    """A library that only some models need.

    Args:
        name: of the module.
        package: what to install for it.

    Raises:
        CheckpointError: it is not installed, or cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise CheckpointError(
            f"This model needs {name}, which cannot be imported ({first_line(error)}).",
            remedy=f"Install it: pip install {package!r}.",
        ) from error
