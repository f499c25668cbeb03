"""Guide: the interface of a guidance model, and the target it steers towards."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor, nn

from ppap_host.backbones.noise import NoiseLevel
from ppap_host.files.errors import OptionError
from ppap_host.guides.operators import LinearOperator


@dataclass(frozen=True)
class Target:
    """What a guide should see in the result.

    Attributes:
        text: the target as the user gave it.
        value: what the guide's loss compares with, batch of one (e.g. depth [1, h, w]).
        pictures: what people are shown of it: label -> image.
        files: the files it was read from, for the run's record.
    """

    text: str
    value: Tensor
    pictures: Mapping[str, Image] = field(default_factory=dict)
    files: Sequence[Path] = ()


@dataclass(frozen=True)
class PatchPlan:
    """Which parameters of a guide's network an expert may change.

    Attributes:
        rank: of the low-rank factors.
        low_rank: names of the weights (convolutions and linear layers) that get factors.
        direct: names of the parameters that are trained as they are (biases, normalisation).
    """

    rank: int
    low_rank: tuple[str, ...]
    direct: tuple[str, ...]


_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)  # fmt: skip  # noqa: E501


def default_patch_plan(network: nn.Module, rank: int = 8) -> PatchPlan:
    """Factors for every weight of a layer, everything else that is small trained as it is.

    Small are biases, normalisation parameters, per-channel scales and tables of relative positions.
    Embeddings, class tokens and absolute positions stay frozen: noise does not move them.
    """
    low_rank, direct = [], []
    for prefix, module in network.named_modules():
        parametrised = isinstance(module, nn.utils.parametrize.ParametrizationList)
        for name, parameter in module.named_parameters(recurse=False):
            full = f"{prefix}.{name}" if prefix else name
            if isinstance(module, _NORMS) or parameter.ndim <= 1 or "bias" in name:
                direct.append(full)
            elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
                continue
            elif "weight" in name or (parametrised and name.startswith("original")):
                low_rank.append(full)
    return PatchPlan(rank, tuple(low_rank), tuple(direct))


class Guide(ABC):
    """A guidance model as the sampler sees it.

    The host owns device and precision: it moves :meth:`network` and calls the rest with tensors on
    the same device. Images are RGB in [-1, 1].

    Attributes:
        name: what the user calls it.
        default_scale: guidance strength used when the user names none, per recipe name; the entry
            ``""`` serves every recipe without one of its own.
        averages_pixels: whether :meth:`loss` is a mean over pixels. Every pixel then has its own
            small part in the gradient, whose length shrinks with the root of their number; the host
            undoes that, so that scales of such guides and of those of labels are of one order.
        tuning_steps: optimiser steps of 32 images that each of its experts needs, where the user
            names no number.
        knows_predictions: whether :meth:`see` is told the level at which a clean image was
            predicted, and not only that of a noised one.
    """

    name: str
    default_scale: Mapping[str, float] = {"": 1.0}
    averages_pixels: bool = False
    tuning_steps: int = 250
    knows_predictions: bool = False

    @abstractmethod
    def network(self) -> nn.Module:
        """The frozen off-the-shelf model, in evaluation mode; the same object at every call."""

    @abstractmethod
    def read_target(self, text: str, size: tuple[int, int]) -> Target:
        """Understands a target: a label, or the path of an image or a map.

        Args:
            text: as the user gave it.
            size: (height, width) in pixels of the images to be made; a picture is cropped to their
                aspect ratio (:func:`ppap_host.files.images.read_rgb` does it). Images of another
                size
                may be compared with the target, too: those of the stages of a cascade.

        Raises:
            TargetError: it cannot be read or means nothing to this guide; says what would.
        """

    @abstractmethod
    def prepare(self, x: Float[Tensor, "b 3 h w"]) -> Tensor:
        """From RGB in [-1, 1] to what the network expects (size, normalisation), differentiable."""

    @abstractmethod
    def loss(self, output: Tensor, target: Tensor) -> Float[Tensor, " b"]:
        """Guidance loss of each image; lower is closer to the target."""

    @abstractmethod
    def distance(self, student: Tensor, teacher: Tensor) -> Float[Tensor, " b"]:
        """Distillation loss of each image between two outputs of the network (PPAP, eq. 8)."""

    def as_target(self, output: Tensor) -> Tensor:
        """A target's value that asks for what the network sees: from its output for images.

        The default is for guides whose targets are outputs of the network.
        """
        return output

    def from_labels(self, labels: Tensor) -> Tensor:
        """Ground truth as an output of the network, to learn from instead of a teacher.

        Only the supervised baselines of a benchmark need it.

        Args:
            labels: what the guide is about: class indices [b], depth in metres [b, h, w], or class
                indices of pixels [b, h, w].

        Raises:
            OptionError: the guide has no such form.
        """
        raise OptionError(
            f"The guide {self.name!r} cannot learn from labels.",
            remedy="Use a harvest: the network itself is the teacher.",
        )

    def logits(self, output: Tensor) -> Float[Tensor, "b k"]:
        """The unnormalised log probabilities of the classes, for guides that tell classes apart.

        Raises:
            OptionError: the guide knows no classes.
        """
        raise OptionError(
            f"The guide {self.name!r} knows no classes.",
            remedy="Calibration is for guides that give probabilities of classes.",
        )

    def tempered(self, joint: float, marginal: float) -> Guide:
        """The guide whose loss is -(joint * l_y - log sum_k exp(marginal * l_k)) of its logits l.

        EluCD's two temperatures (Ma et al., 2024, section 3.3), which multiply the logits: at 1 and
        1 it is the cross entropy. A guide that knows no classes has none and returns itself.
        """
        return self

    def operator(self, target: Tensor) -> LinearOperator | None:
        """The linear measurement whose result ``target`` is, for guides that are one."""
        return None

    @abstractmethod
    def picture(self, output: Tensor) -> list[Image]:
        """What the guide sees, for people: one picture an image."""

    @abstractmethod
    def measure(self, output: Tensor, target: Tensor) -> dict[str, list[float]]:
        """How well each image meets the target, in the field's usual measures, by name."""

    def see(self, x: Float[Tensor, "b 3 h w"], level: NoiseLevel | None = None) -> Tensor:
        """The network's output for images ``x``, computed in the network's own precision.

        Args:
            x: RGB in [-1, 1], or a noised x_t at unit variance scale.
            level: the noise level of ``x``, None for clean images. Off-the-shelf networks cannot
                use it; noise-aware ones override this method.
        """
        return self.through(self.network(), x)

    def through(self, network: Callable[[Tensor], Tensor], x: Float[Tensor, "b 3 h w"]) -> Tensor:
        """The output of a form of the network, such as a patched one, for images ``x``."""
        prepared = self.prepare(x)
        own = next((p.dtype for p in self.network().parameters()), prepared.dtype)
        return network(prepared.to(own)).to(x.dtype)

    def usual_scale(self, recipe: str) -> float:
        """The strength for a recipe where the user names none (:attr:`default_scale`)."""
        return self.default_scale.get(recipe, self.default_scale.get("", 1.0))

    def patch_plan(self, network: nn.Module) -> PatchPlan:
        """What experts on this guide may change; by default everything that is cheap."""
        return default_patch_plan(network)

    def to(self, device: torch.device, dtype: torch.dtype) -> Guide:
        """Moves the network; returns the guide itself."""
        self.network().to(device, dtype)
        return self

    def files(self) -> Sequence[Path]:
        """The model files it was read from, for the run's record."""
        return ()

    def remarks(self) -> Sequence[str]:
        """What had to be chosen, guessed or left out when they were read, a sentence each."""
        return ()


class Wrapped(Guide):
    """A guide that is another one with something changed; everything else is passed on.

    Attributes:
        guide: the other one.
    """

    def __init__(self, guide: Guide) -> None:
        self.guide = guide
        self.name, self.default_scale = guide.name, guide.default_scale
        self.averages_pixels, self.tuning_steps = guide.averages_pixels, guide.tuning_steps
        self.knows_predictions = guide.knows_predictions

    def see(self, x: Tensor, level: NoiseLevel | None = None) -> Tensor:
        """As the guide."""
        return self.guide.see(x, level)

    def through(self, network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """As the guide."""
        return self.guide.through(network, x)

    def to(self, device: torch.device, dtype: torch.dtype) -> Guide:
        """Moves the guide; returns the wrapped one."""
        self.guide.to(device, dtype)
        return self

    def network(self) -> nn.Module:
        """The guide's network."""
        return self.guide.network()

    def read_target(self, text: str, size: tuple[int, int]) -> Target:
        """As the guide."""
        return self.guide.read_target(text, size)

    def prepare(self, x: Tensor) -> Tensor:
        """As the guide."""
        return self.guide.prepare(x)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """As the guide."""
        return self.guide.loss(output, target)

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """As the guide."""
        return self.guide.distance(student, teacher)

    def picture(self, output: Tensor) -> list[Image]:
        """As the guide."""
        return self.guide.picture(output)

    def measure(self, output: Tensor, target: Tensor) -> dict[str, list[float]]:
        """As the guide."""
        return self.guide.measure(output, target)

    def as_target(self, output: Tensor) -> Tensor:
        """As the guide."""
        return self.guide.as_target(output)

    def from_labels(self, labels: Tensor) -> Tensor:
        """As the guide."""
        return self.guide.from_labels(labels)

    def logits(self, output: Tensor) -> Tensor:
        """As the guide."""
        return self.guide.logits(output)

    def tempered(self, joint: float, marginal: float) -> Guide:
        """The guide at these temperatures, wrapped alike."""
        tempered = copy(self)
        tempered.guide = self.guide.tempered(joint, marginal)
        return tempered

    def operator(self, target: Tensor) -> LinearOperator | None:
        """As the guide."""
        return self.guide.operator(target)

    def usual_scale(self, recipe: str) -> float:
        """As the guide."""
        return self.guide.usual_scale(recipe)

    def patch_plan(self, network: nn.Module) -> PatchPlan:
        """As the guide."""
        return self.guide.patch_plan(network)

    def files(self) -> Sequence[Path]:
        """As the guide."""
        return self.guide.files()

    def remarks(self) -> Sequence[str]:
        """As the guide."""
        return self.guide.remarks()
