"""Backbone: the interface of a trained diffusion model, and classifier-free guidance over it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ppap_host.backbones.noise import EVERYWHERE, NoiseLevel, NoiseRange, Walk
from ppap_host.files.errors import OptionError

Condition = Mapping[str, Tensor]
"""What a backbone is conditioned on, as batch-first tensors; empty for unconditional models."""

FixedVariance = Literal["large", "small"]

MEDIA: Mapping[int, str] = {1: "vectors", 2: "audio", 3: "images", 4: "video"}
"""What samples of so many sides are, if their backbone says nothing else."""


@dataclass(frozen=True)
class Prediction:
    """What a diffusion network says of x_t.

    Attributes:
        eps: predicted noise, shaped as the state.
        v: the learned variance's interpolation coefficient in [-1, 1] (Nichol and Dhariwal, 2021,
            eq. 15, mapped from [0, 1]), shaped as the state; None if the variance is fixed.
        output: what the network itself says, for solvers that are given that and not the noise
            (:mod:`ppap_host.pipelines.samplers`); further channels hold a variance. None where
            nobody needs it.
        conditional, unconditional: the noise of each branch, where classifier-free guidance has
            asked both.
    """

    eps: Float[Tensor, "b ..."]
    v: Float[Tensor, "b ..."] | None = None
    output: Float[Tensor, "b ..."] | None = None
    conditional: Float[Tensor, "b ..."] | None = None
    unconditional: Float[Tensor, "b ..."] | None = None


class Backbone(ABC):
    """A trained diffusion model with its noise schedule and its conditioning.

    The state x_t is what the sampler works on: RGB in [-1, 1] for pixel models, latents otherwise,
    and as well the frames of a video, the samples of a sound, or a plain vector. A backbone is made
    on the CPU in float32 and moved by :meth:`to`.

    Attributes:
        name: what the user calls it.
        state_shape: of a state: (channels, height, width) of images, (channels, frames, height,
            width) of videos, (channels, samples) of sound, (entries,) of vectors.
        clip: bounds of a clean state that the sampler clips to; None for latents.
        clip_eps: whether the noise follows a clean state that was clipped, as in ADM's code, or
            stays as predicted, as in diffusers' DDIM.
        fixed_variance: which fixed variance the reverse process uses when none is learned.
        default_cfg: classifier-free guidance scale used when the user names none.
        default_cfg_interval: noise levels that it is used at where the user names none.
        least_cfg: the scale up to which there is no classifier-free guidance, as 1 in diffusers,
            where 0 means the plain conditional model; None where 0 ignores the condition.
        cfg_channels: how many of the state's first channels classifier-free guidance changes, None
            for all; the others keep the conditional prediction.
        state_dtype: of the state while it is sampled; what :meth:`predict` computes in is its own
            affair.
        start_temperature: what the initial noise is multiplied with.
        default_batch: how many images are made at a time where the user names no number.
        default_steps: how many steps it takes where the user names none, or a spacing of them.
        default_sampler: the solver where the user names none.
        default_eta: its eta, or DDIM's, where the user names none.
        origin: how it was loaded by name, as options of a run, so that a record can say it.
        device, dtype: where it is and what it computes in; :meth:`to` keeps them up to date.
        class_count: of class-conditional models, whose classes are 0..class_count - 1; None for
            others.
    """

    name: str
    state_shape: tuple[int, ...]
    clip: tuple[float, float] | None = (-1.0, 1.0)
    clip_eps: bool = True
    fixed_variance: FixedVariance = "large"
    default_cfg: float = 1.0
    default_cfg_interval: NoiseRange = EVERYWHERE
    least_cfg: float | None = None
    cfg_channels: int | None = None
    state_dtype: torch.dtype = torch.float32
    class_count: int | None = None
    start_temperature: float = 1.0
    default_batch: int = 8
    default_steps: int | str = 50
    default_sampler: str = "ddim"
    default_eta: float = 0.0
    origin: Mapping[str, Any] | None = None
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32

    def __repr__(self) -> str:
        return f"<backbone {self.name!r}, states {' x '.join(map(str, self.state_shape))}>"

    @abstractmethod
    def walk(self, steps: int | str) -> Walk:
        """The noise levels for a sampling process of ``steps`` steps (a count or a spacing)."""

    @abstractmethod
    def levels(self) -> tuple[NoiseLevel, ...]:
        """The noise levels it was trained on, cleanest first, evenly spread in its own time.

        Experts for this backbone are tuned on draws from them; continuous schedules give a grid of
        about a thousand.
        """

    def level_at(self, s: float) -> NoiseLevel:
        """The level with relative noise s = sigma / alpha, or the nearest one its network knows.

        The default is the nearest of :meth:`levels`.
        """
        known = [level for level in self.levels() if level.alpha]
        return min(known, key=lambda level: abs(level.sigma / level.alpha - s))

    @abstractmethod
    def predict(
        self, x: Float[Tensor, "b ..."], level: NoiseLevel, condition: Condition
    ) -> Prediction:
        """One evaluation of the network at one noise level, differentiable in ``x``."""

    def sampling(
        self, steps: int | str | None = None, sampler: str | None = None, eta: float | None = None
    ) -> tuple[int | str, str, float | None]:
        """Steps, sampler and eta; where one is None, the backbone's own.

        For another sampler than its own and DDIM, an eta that is None stays so.
        """
        sampler = sampler or self.default_sampler
        if eta is None and sampler in (self.default_sampler, "ddim"):
            eta = self.default_eta
        return self.default_steps if steps is None else steps, sampler, eta

    def encode_prompts(self, prompts: Sequence[str]) -> Condition:
        """The condition for one prompt an image; the empty prompt is the unconditional branch.

        Raises:
            OptionError: the backbone reads no text, or not these words.
        """
        if any(prompts):
            raise OptionError(
                f"The backbone {self.name!r} reads no prompts.",
                remedy="Leave out --prompt, or choose a text-conditional backbone (`ppap list`).",
            )
        return {}

    def encode_classes(self, labels: Sequence[int | None]) -> Condition:
        """The condition for one class index an image; None is the unconditional branch.

        Raises:
            OptionError: the backbone knows no classes, not this one, or has no unconditional
                branch.
        """
        if any(label is not None for label in labels):
            raise OptionError(
                f"The backbone {self.name!r} knows no classes.",
                remedy="Leave out --class, or choose a class-conditional backbone (`ppap list`).",
            )
        return {}

    def inpainting(
        self, images: Float[Tensor, "b 3 h w"], known: Float[Tensor, "b 1 h w"]
    ) -> Condition:
        """The condition for filling in these images.

        Args:
            images: RGB in [-1, 1], of :attr:`image_size`; unknown pixels are not looked at.
            known: 1 where a pixel is known, 0 where it is to be filled in.

        Raises:
            OptionError: the backbone was not trained for it.
        """
        raise OptionError(
            f"The backbone {self.name!r} cannot fill in images.",
            remedy="Leave out --image and --mask, or choose a backbone for inpainting "
            "(`ppap list`).",
        )

    def upsampler(self) -> Backbone | None:
        """The model that enlarges the images of this one, if it was given one."""
        return None

    def conditioned_on(self, images: Float[Tensor, "b 3 h w"]) -> Condition:
        """The condition of an upsampler for these smaller images in [-1, 1], one an image.

        Raises:
            OptionError: the backbone enlarges no images.
        """
        raise OptionError(
            f"The backbone {self.name!r} enlarges no images.",
            remedy="Give an upsampler with --upsampler.",
        )

    def decode(self, x0: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """What is made, from a clean state, differentiable; the identity for pixel models.

        Its shape is :attr:`decoded_shape`: RGB in [-1, 1] for images.
        """
        return x0

    @property
    def decoded_shape(self) -> tuple[int, ...]:
        """The shape of what :meth:`decode` gives, without the batch.

        That of the state where :meth:`decode` is the identity, RGB of :attr:`image_size` otherwise.
        A backbone whose decoder makes something else overrides it.
        """
        if type(self).decode is Backbone.decode:
            return tuple(self.state_shape)
        return (3, *self.image_size)

    @property
    def makes(self) -> str:
        """What :meth:`decode` gives, in a word that guides may look at.

        See :attr:`ppap_host.guides.guide.Guide.looks_at`.

        By the rank of :attr:`decoded_shape` images, video, audio, vectors, or else arrays; a
        backbone that makes something of its own says so with a word of its own.
        """
        return MEDIA.get(len(self.decoded_shape), "arrays")

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the images or frames it makes.

        Of anything else the last two sides: (channels, samples) of sound, (1, entries) of vectors.
        """
        height, width = (1, *self.state_shape)[-2:]
        return height, width

    @property
    def latent(self) -> bool:
        """Whether the state is something else than what is made: the latent of an autoencoder."""
        return tuple(self.state_shape) != self.decoded_shape

    @property
    def deviation(self) -> float:
        """Standard deviation of its clean states, over all entries; relative strength measures
        moves with it. By default 0.5 of images in [-1, 1] (sigma_data of Karras et al., 2022) and
        1 of latents, which are scaled to it (Rombach et al., 2022, appendix G)."""
        return 1.0 if self.latent else 0.5

    @abstractmethod
    def to(self, device: torch.device, dtype: torch.dtype) -> Backbone:
        """Moves the networks, and notes it in :attr:`device` and :attr:`dtype`; returns itself."""

    def files(self) -> Sequence[Path]:
        """The model files it was read from, for the run's record."""
        return ()

    def remarks(self) -> Sequence[str]:
        """What had to be chosen, guessed or left out when they were read, a sentence each."""
        return ()


def encode(backbone: Backbone, prompts: Sequence[str], classes: Sequence[int | None]) -> Condition:
    """The condition of images with these prompts ("" for none) and classes (None for none).

    Raises:
        OptionError: the backbone reads no prompts or knows no classes, or not these.
    """
    return {**backbone.encode_prompts(prompts), **backbone.encode_classes(classes)}


def repeat_condition(condition: Condition, count: int) -> Condition:
    """A condition given to ``count`` rows: to all of them, or each of its own to as many."""
    return {
        key: rows.expand(count, *rows.shape[1:])
        if len(rows) == 1
        else rows.repeat_interleave(count // len(rows), dim=0)
        for key, rows in condition.items()
    }


@dataclass(frozen=True)
class ClassifierFree:
    """Classifier-free guidance (Ho and Salimans, 2022, eq. 6, with w + 1 = ``scale``).

    eps = eps_uncond + scale * (eps_cond - eps_uncond); the variance is the conditional one, as in
    GLIDE. Both branches run as one doubled batch. At scale 1, and out of the interval of noise
    levels (Kynkaanniemi et al., 2024, "Applying guidance in a limited interval"), only the
    conditional branch runs.

    Attributes:
        condition, unconditional: one row each (or empty), or one an image, repeated as
            :func:`repeat_condition` does.
        scale: 0 ignores the condition, 1 is the plain conditional model.
        both: whether both branches run at every scale.
        interval: noise levels at which ``scale`` holds; it is 1 at all others.
    """

    backbone: Backbone
    condition: Condition
    unconditional: Condition
    scale: float = 1.0
    both: bool = False
    interval: NoiseRange = EVERYWHERE

    def scale_at(self, level: NoiseLevel) -> float:
        """The scale that holds at a level."""
        return self.scale if level.log_snr in self.interval else 1.0

    def __call__(self, x: Float[Tensor, "b ..."], level: NoiseLevel) -> Prediction:
        """The guided prediction for ``x`` at ``level``."""
        n = len(x)
        if self.scale_at(level) != self.scale:
            return replace(self, scale=1.0)(x, level)
        if (self.scale == 1 and not self.both) or not self.condition:
            return self.backbone.predict(x, level, repeat_condition(self.condition, n))
        branches = [repeat_condition(c, n) for c in (self.condition, self.unconditional)]
        both = {key: torch.cat([branch[key] for branch in branches]) for key in self.condition}
        prediction = self.backbone.predict(torch.cat([x, x]), level, both)
        guided = self.backbone.cfg_channels
        eps = self._combined(prediction.eps, guided)
        v = None if prediction.v is None else prediction.v[:n]
        output = prediction.output
        if output is not None:
            output = self._combined(output, x.shape[1] if guided is None else guided)
        alone = (self._combined(prediction.eps, guided, scale) for scale in (1.0, 0.0))
        return Prediction(eps, v, output, *alone)

    def _combined(self, both: Tensor, channels: int | None, scale: float | None = None) -> Tensor:
        """The guided one of two branches, in its first channels; the others are conditional."""
        conditional, unconditional = both.chunk(2)
        scale = self.scale if scale is None else scale
        if scale == 1:
            return conditional
        guided = unconditional
        if scale:
            guided = unconditional + scale * (conditional - unconditional)
        if channels is None or channels == guided.shape[1]:
            return guided
        return torch.cat([guided[:, :channels], conditional[:, channels:]], dim=1)
