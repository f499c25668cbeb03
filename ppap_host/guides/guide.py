"""Guide: the interface of a guidance model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor, nn

from ppap_host.backbones.backbone import Backbone
from ppap_host.backbones.noise import NoiseLevel
from ppap_host.files.errors import OptionError, TargetError
from ppap_host.guides.familiarity import FILE, Familiarity, load_familiarity
from ppap_host.guides.operators import LinearOperator
from ppap_host.guides.targets import Given, Target, Value


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
    the same device. Images are RGB in [-1, 1]; what else a backbone makes, such as video, is shown
    to guides that look at it (:attr:`looks_at`), and stands for images in what follows.

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
        looks_at: what it is shown, in the words of
            :attr:`~ppap_host.backbones.backbone.Backbone.makes`: images, video, audio, vectors, or
            a backbone's own; None for guides that look at anything.
        channels: of the images or videos that it is shown, 3 for RGB; None for any number.
        rewards: whether it has no target, and its value, minus its loss, is the better the larger
            it is: an aesthetic score, a preference model, a detector.
        differentiable: whether its loss has a gradient in the images. A black box that has none,
            such as the size of a JPEG, serves recipes that choose by values (best-of-n, fk, svdd).
        origin: how it was loaded by name, as settings of a guide, so that a record can say it.
        target_kinds: what the head of a target may name, the first being the usual one
            (:data:`ppap_host.guides.targets.KINDS` and the guide's own); empty for guides whose
            targets are words, which have no heads.
    """

    name: str
    default_scale: Mapping[str, float] = {"": 1.0}
    averages_pixels: bool = False
    tuning_steps: int = 250
    knows_predictions: bool = False
    looks_at: str | None = "images"
    channels: int | None = 3
    rewards: bool = False
    differentiable: bool = True
    origin: Mapping[str, Any] | None = None
    target_kinds: Sequence[str] = ()

    def __repr__(self) -> str:
        return f"<guide {self.name!r}>"

    @abstractmethod
    def network(self) -> nn.Module:
        """The frozen off-the-shelf model, in evaluation mode; the same object at every call."""

    def read_target(self, value: Value | Given, size: tuple[int, int]) -> Target:
        """Understands a target, whatever it is given as; see :meth:`understand`.

        Args:
            value: a text, which may be words or a path and may begin with a head such as
                ``depth,unit=mm:``; a path; a PIL image, a numpy array or a torch tensor; or one of
                these with what is known of it (:func:`ppap_host.guides.targets.target`).
            size: (height, width) in pixels of the images to be made.

        Raises:
            TargetError: it cannot be read or means nothing to this guide; says what would. A guide
                that rewards has none but the empty text.
        """
        if self.rewards:
            return self._no_target(value)
        given = Given.of(value, self.target_kinds)
        found = self.understand(given, size)
        if not isinstance(found, Target):  # a fault of the guide, which the host tells of
            return found
        return replace(found, understood=found.understood or given.text, given=given)

    def _no_target(self, value: Value | Given) -> Target:
        given = Given.of(value)
        if given.value is not None and not (isinstance(given.value, str) and not given.value):
            raise TargetError(
                f"The guide {self.name!r} is a reward, and a reward has no target.",
                remedy="Leave out its target.",
            )
        return Target("", torch.zeros(1, 0), understood="no target: a reward", given=given)

    @abstractmethod
    def understand(self, given: Given, size: tuple[int, int]) -> Target:
        """Reads a target as what this guide compares images with.

        A picture is read by ``given.photo(size)``, whose ``image`` and ``pixels`` are cropped to
        the aspect ratio of the images, and whose ``target(value, pictures)`` is what to return. For
        words there is ``given.words``, and ``given.means_file`` tells which of them is meant.

        Args:
            given: what the user gave.
            size: (height, width) in pixels of the images to be made. Images of another size may be
                compared with the target, too: those of the stages of a cascade.

        Raises:
            TargetError: it cannot be read or means nothing to this guide; says what would.
        """

    @abstractmethod
    def prepare(self, x: Float[Tensor, "b ..."]) -> Tensor:
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
        """What the guide sees, for people: one picture an image, or none if it sees a number."""

    @abstractmethod
    def measure(self, output: Tensor, target: Tensor) -> dict[str, list[float]]:
        """How well each image meets the target, in the field's usual measures, by name.

        Of a reward, its value, larger being better.
        """

    def see(self, x: Float[Tensor, "b ..."], level: NoiseLevel | None = None) -> Tensor:
        """The network's output for images ``x``, computed in the network's own precision.

        Args:
            x: RGB in [-1, 1], or a noised x_t at unit variance scale.
            level: the noise level of ``x``, None for clean images. Off-the-shelf networks cannot
                use it; noise-aware ones override this method.
        """
        return self.through(self.network(), x)

    def through(self, network: Callable[[Tensor], Tensor], x: Float[Tensor, "b ..."]) -> Tensor:
        """The output of a form of the network, such as a patched one, for images ``x``."""
        prepared = self.prepare(_wide(x))
        own = next((p.dtype for p in self.network().parameters()), prepared.dtype)
        return network(prepared.to(own)).to(x.dtype)

    def expert_at(self, level: NoiseLevel | None) -> int | None:
        """Which of its networks sees images at a level (:meth:`see`); None if it has but one."""
        return None

    def usual_scale(self, recipe: str) -> float:
        """The strength for a recipe where the user names none (:attr:`default_scale`)."""
        return self.default_scale.get(recipe, self.default_scale.get("", 1.0))

    def usual_recipe(self, backbone: Backbone) -> str | None:
        """The recipe for a backbone, with settings, where the user names none and no experts.

        None, the default, leaves it to the host: ``x0``.

        Args:
            backbone: tells pixels from latents and what it was trained on
                (:attr:`~ppap_host.backbones.backbone.Backbone.latent`).
        """
        return None

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

    @cached_property
    def familiarity(self) -> Familiarity | None:
        """What its network was trained on, where a file beside its weights says so.

        Raises:
            CheckpointError: the file is damaged.
        """
        folders = dict.fromkeys(path.parent for path in self.files())
        found = [path for folder in folders if (path := folder / FILE).is_file()]
        return load_familiarity(found[0]) if found else None

    def doubts(self, x: Float[Tensor, "1 ..."], name: str) -> tuple[str, ...]:
        """What is odd about a picture that a target is read from, for :attr:`Target.doubts`.

        By default, that the network was trained on nothing like it, where that is known.

        Args:
            x: RGB in [-1, 1].
            name: what a sentence on the picture begins with (:attr:`Given.source`).
        """
        if self.familiarity is None:
            return ()
        prepared, network = self.prepare(_wide(x)), self.network()
        own = next((p.dtype for p in network.parameters()), prepared.dtype)
        distance = float(self.familiarity.distance(network, prepared.to(own)))
        if distance < self.familiarity.limit:
            return ()
        return (
            f"{name} is like nothing that the network of the guide {self.name!r} was trained on, "
            f"{self.familiarity.knows} (its features lie {distance:.1f} away, and "
            f"{self.familiarity.limit:.1f} is far). What it sees there means little: look at the "
            "first row of sheet.png, and name a network that knows such pictures with --model.",
        )


P = ParamSpec("P")
R = TypeVar("R")


def _wide(x: Tensor) -> Tensor:
    """In float32 at least: resizing has no half-precision form on the CPU, and needs the digits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _passed_on(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """The method of a guide that does as the guide inside does."""
    name = method.__name__

    def passed(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        answer: R = getattr(self.guide, name)(*args, **kwargs)
        return answer

    passed.__name__, passed.__doc__ = name, "As the guide."  # it is not abstract, as `wraps` says
    return passed


class Wrapped(Guide):
    """A guide that is another one with something changed; everything else is passed on.

    Attributes:
        guide: the other one.
    """

    def __init__(self, guide: Guide) -> None:
        self.guide = guide
        self.name, self.default_scale = guide.name, guide.default_scale
        self.averages_pixels, self.tuning_steps = guide.averages_pixels, guide.tuning_steps
        self.knows_predictions, self.origin = guide.knows_predictions, guide.origin
        self.target_kinds, self.rewards = guide.target_kinds, guide.rewards
        self.looks_at, self.channels = guide.looks_at, guide.channels
        self.differentiable = guide.differentiable

    network = _passed_on(Guide.network)
    read_target = _passed_on(Guide.read_target)
    understand = _passed_on(Guide.understand)
    prepare = _passed_on(Guide.prepare)
    see = _passed_on(Guide.see)
    through = _passed_on(Guide.through)
    loss = _passed_on(Guide.loss)
    distance = _passed_on(Guide.distance)
    picture = _passed_on(Guide.picture)
    measure = _passed_on(Guide.measure)
    as_target = _passed_on(Guide.as_target)
    from_labels = _passed_on(Guide.from_labels)
    logits = _passed_on(Guide.logits)
    operator = _passed_on(Guide.operator)
    expert_at = _passed_on(Guide.expert_at)
    usual_scale = _passed_on(Guide.usual_scale)
    usual_recipe = _passed_on(Guide.usual_recipe)
    patch_plan = _passed_on(Guide.patch_plan)
    files = _passed_on(Guide.files)
    remarks = _passed_on(Guide.remarks)
    doubts = _passed_on(Guide.doubts)

    def to(self, device: torch.device, dtype: torch.dtype) -> Guide:
        """Moves the guide; returns the wrapped one."""
        self.guide.to(device, dtype)
        return self

    def tempered(self, joint: float, marginal: float) -> Guide:
        """The guide at these temperatures, wrapped alike."""
        tempered = copy(self)
        tempered.guide = self.guide.tempered(joint, marginal)
        return tempered


def bare(guide: Guide) -> Guide:
    """What is within all that is wrapped around a guide."""
    while isinstance(guide, Wrapped):
        guide = guide.guide
    return guide
