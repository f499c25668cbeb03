"""GLIDE as a backbone: text-conditional, with inpainting and upsampling."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ppap_host.backbones.backbone import Backbone, Condition, Prediction
from ppap_host.backbones.noise import DiscreteSchedule, NoiseLevel, Walk
from ppap_host.files.errors import CheckpointError, OptionError
from ppap_plugin_openai.backbone import BETAS, eight_bits, require_low_res
from ppap_plugin_openai.glide import GlideNetwork, GlideSchedule
from ppap_plugin_openai.tokens import HUB, PromptTokenizer, padded

UPSAMPLER_TEMPERATURE: Final = 0.997
"""What glide-text2im's notebooks multiply an upsampler's initial noise with: less grain."""


class GlideBackbone(Backbone):
    """GLIDE's base model (Nichol et al., 2022), or its form for inpainting.

    Classifier-free guidance is the host's: it acts on the predicted noise, and the learned variance
    stays the conditional one, as in glide-text2im.

    Args:
        network: from :func:`ppap_plugin_openai.glide.load_glide`.
        vocabulary: where the tokenizer's files are, see
            :meth:`ppap_plugin_openai.tokens.PromptTokenizer.read`; read when the first prompt is
            not empty.
        noise_schedule: of its training; None for the published one of its kind.
        diffusion_steps: of its training.
        files: that it was read from.
        name: what the user calls it, for errors.
        upsampler: what enlarges its images.
        remarks: what had to be chosen in the files, a sentence each.

    Attributes:
        keeps_known: whether the predicted x_0 is replaced by what is known of the image wherever a
            mask says so, as glide-text2im's notebook does.
    """

    name = "glide"
    default_cfg = 3.0
    keeps_known: bool = True
    _usual_schedule: GlideSchedule = "squaredcos_cap_v2"

    def __init__(
        self,
        network: GlideNetwork,
        *,
        vocabulary: str | Path = HUB,
        noise_schedule: GlideSchedule | None = None,
        diffusion_steps: int = 1000,
        files: Sequence[Path] = (),
        name: str | None = None,
        upsampler: Backbone | None = None,
        remarks: Sequence[str] = (),
    ) -> None:
        self.network, self.config = network, network.config
        self.name = self.name if name is None else name
        self.state_shape = (3, self.config.image_size, self.config.image_size)
        betas = BETAS[noise_schedule or self._usual_schedule](diffusion_steps)
        self._schedule = DiscreteSchedule.from_betas(betas)
        self._vocabulary, self._files = vocabulary, tuple(files)
        self._remarks = tuple(remarks)
        self._tokenizer: PromptTokenizer | None = None
        self._upsampler = upsampler
        self.dtype, self.device = torch.float32, torch.device("cpu")

    def walk(self, steps: int | str) -> Walk:
        """The respaced process; "100" and "fast27" as glide-text2im has them."""
        return self._schedule.walk(steps)

    def upsampler(self) -> Backbone | None:
        """The one it was given."""
        return self._upsampler

    def levels(self) -> tuple[NoiseLevel, ...]:
        """All steps of its training."""
        return self._schedule.levels()

    def encode_prompts(self, prompts: Sequence[str]) -> Condition:
        """States of the text encoder, [b, text_ctx, xf_width].

        What exceeds ``text_ctx`` tokens is cut, and the empty prompt is the unconditional branch.

        Raises:
            CheckpointError: the vocabulary is missing or belongs to another network.
        """
        # Padding alone, so that unconditional runs need no vocabulary.
        rows = [self.tokenizer().encode(prompt) if prompt else [] for prompt in prompts]
        return self.encode_tokens(*padded(rows, self.config.text_ctx, self.config.n_vocab - 1))

    def encode_tokens(self, tokens: Int64[Tensor, "b n"], mask: Bool[Tensor, "b n"]) -> Condition:
        """The condition for prompts that are already rows of ``text_ctx`` tokens.

        Args:
            tokens: numbers, padded with the vocabulary's last.
            mask: false where there is padding.
        """
        with torch.no_grad():
            return {"states": self.network.text(tokens.to(self.device), mask.to(self.device))}

    def tokenizer(self) -> PromptTokenizer:
        """What turns prompts into tokens.

        Raises:
            CheckpointError: the vocabulary is missing or belongs to another network.
        """
        if self._tokenizer is None:
            tokenizer = PromptTokenizer.read(self._vocabulary)
            if tokenizer.size != self.config.n_vocab:
                raise CheckpointError(
                    f"{self._vocabulary}: the vocabulary has {tokenizer.size} tokens, and the "
                    f"network of the backbone {self.name!r} {self.config.n_vocab}.",
                    remedy="Give the vocabulary that the network was trained with.",
                )
            self._tokenizer = tokenizer
        return self._tokenizer

    def inpainting(
        self, images: Float[Tensor, "b 3 h w"], known: Float[Tensor, "b 1 h w"]
    ) -> Condition:
        """The condition for filling in these images, to be joined with that of the prompt.

        Args:
            images: RGB in [-1, 1] of the network's size; unknown pixels are not looked at.
            known: 1 where a pixel is known, 0 where it is to be filled in.

        Raises:
            OptionError: the network was not trained for it, or the sizes do not fit.
        """
        if not self.config.inpaint:
            raise OptionError(
                f"The backbone {self.name!r} cannot fill in images.",
                remedy="Choose one for inpainting (`ppap list`).",
            )
        if images.shape[2:] != self.image_size or known.shape[2:] != self.image_size:
            height, width = self.image_size
            raise OptionError(
                f"The backbone {self.name!r} fills in images of {height} x {width} pixels.",
                remedy="Resize image and mask.",
            )
        image, mask = images.to(self.device), known.to(self.device)
        return {"inpaint_image": image * mask, "inpaint_mask": mask}

    def predict(
        self, x: Float[Tensor, "b 3 h w"], level: NoiseLevel, condition: Condition
    ) -> Prediction:
        """Noise and variance coefficient; without a prompt the unconditional ones.

        Raises:
            OptionError: an upsampler is given no image.
        """
        given = dict(condition)
        if "states" not in given:
            given |= {
                key: rows.expand(len(x), *rows.shape[1:])
                for key, rows in self.encode_prompts([""]).items()
            }
        if self.config.super_res:
            require_low_res(self.name, given)
        time = torch.full((len(x),), level.time, device=x.device)
        inputs = {key: rows.to(self.dtype) for key, rows in given.items()}
        out = self.network(x.to(self.dtype), time, **inputs).to(x.dtype)
        eps, v = out.chunk(2, dim=1)
        if self.keeps_known and "inpaint_mask" in given:
            image, mask = (given[f"inpaint_{part}"].to(x.dtype) for part in ("image", "mask"))
            # The noise that belongs to the known pixels, so that x_0 is what they are.
            eps = (1 - mask) * eps + mask * (x - level.alpha * image) / level.sigma
        return Prediction(eps, v)

    def to(self, device: torch.device, dtype: torch.dtype) -> GlideBackbone:
        """Moves text encoder and U-Net."""
        self.network.text.to(device=device, dtype=dtype)
        # nn.Module's own `to`: diffusers' override warns about every change of precision.
        torch.nn.Module.to(self.network.unet, device=device, dtype=dtype)
        self.dtype, self.device = dtype, device
        return self

    def files(self) -> Sequence[Path]:
        """The checkpoint, and the vocabulary once a prompt was read with it."""
        return (*self._files, *(self._tokenizer.files if self._tokenizer else ()))

    def remarks(self) -> Sequence[str]:
        """What had to be chosen in the checkpoint."""
        return self._remarks


class GlideUpsampler(GlideBackbone):
    """GLIDE's upsampler, or its form for inpainting.

    Its condition is that of :meth:`encode_prompts` joined with that of :meth:`conditioned_on`, and
    its sampling starts from noise times :attr:`start_temperature`:

        condition = {**upsampler.encode_prompts([prompt]), **upsampler.conditioned_on(images)}
        start = upsampler.start_temperature * walk.levels[0].scale * noise

    It was trained without an unconditional branch to guide with, hence its ``default_cfg`` of 1.
    """

    name = "glide-upsampler"
    default_cfg = 1.0
    start_temperature = UPSAMPLER_TEMPERATURE
    default_steps = "fast27"
    _usual_schedule: GlideSchedule = "linear"

    def conditioned_on(self, images: Float[Tensor, "b 3 h w"]) -> Condition:
        """The condition for these smaller images in [-1, 1], one for all or one an image.

        The network enlarges them itself (bilinear interpolation).
        """
        return {"low_res": eight_bits(images).to(self.device)}
