"""What each kind of diffusers pipeline has of its own: its conditioning and its network's inputs.

A new kind is one class: how prompts become a condition, and how the network is called.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ppap_host.backbones.backbone import Condition
from ppap_host.files.errors import OptionError
from ppap_host.pipelines.autoencoder import Autoencoder
from ppap_host.pipelines.schedules import schedule_of

_SHOWN: dict[str, tuple[str, tuple[str, ...]]] = {
    "time_cond_proj_dim": ("the scale of guidance", ()),
    "guidance_embeds": ("the scale of guidance", ()),
    "class_embed_type": ("a class", ()),
    "num_class_embeds": ("a class", ()),
    "encoder_hid_dim_type": ("the picture of an IP-Adapter", ("text_proj",)),
    "addition_embed_type": ("sizes or pictures", ("text",)),
}
"""Settings of networks by which they are shown more than state, time and text: what, and the values
that ask for nothing more."""


class Family(ABC):
    """One kind of pipeline. Concrete families are final.

    Args:
        pipe: a pipeline of one of :attr:`pipelines`.

    Attributes:
        pipelines: names of diffusers' classes it serves.
        network_name: of the pipeline's component that denoises.
        latent: whether states are latents of the pipeline's autoencoder, not pixels.
        reads_text: whether it is conditioned on prompts.
        left_out: components that have no part in making an image and are not loaded.
        shown: values of :data:`_SHOWN` that it serves.
    """

    pipelines: ClassVar[tuple[str, ...]]
    network_name: ClassVar[str] = "unet"
    latent: ClassVar[bool] = True
    reads_text: ClassVar[bool] = True
    left_out: ClassVar[tuple[str, ...]] = ()
    shown: ClassVar[tuple[str, ...]] = ()

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.net: Any = getattr(pipe, self.network_name)
        self._check()
        self.autoencoder = Autoencoder(pipe.vae) if self.latent else None
        self.schedule = schedule_of(pipe.scheduler, self.shift())

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> Condition:
        """The condition for one prompt an image, by the pipeline's own text encoders."""

    @abstractmethod
    def network(self, x: Tensor, time: Float[Tensor, " b"], condition: Condition) -> Tensor:
        """The network's output for its input ``x``; further channels hold a variance."""

    def shift(self) -> float | None:
        """mu of a scheduler whose levels depend on the size of the image, None for others."""
        return None

    def _check(self) -> None:
        """Whether the network is shown nothing but what it is given here.

        Raises:
            OptionError: its configuration says otherwise; a pipeline of the same class may know.
        """
        config, channels = self.net.config, self.state_shape[0]
        shown = [
            what
            for key, (what, without) in _SHOWN.items()
            if config.get(key) not in (None, False, *without, *self.shown)
        ]
        processors = getattr(self.net, "attn_processors", {}).values()
        if any("IPAdapter" in type(processor).__name__ for processor in processors):
            shown.append("the picture of an IP-Adapter")
        if self.latent and channels != self.pipe.vae.config.latent_channels:
            shown.append(f"{channels} channels instead of latents alone")
        if shown:
            raise OptionError(
                f"The network of this {type(self.pipe).__name__} is also shown "
                f"{' and '.join(dict.fromkeys(shown))}, and the host's own samplers do not.",
                remedy="Leave out --sampler: the pipeline takes its own steps.",
            )

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of a state at the size the network was trained for."""
        size = self.net.config.sample_size
        if size is None:
            raise OptionError(
                f"The network of this {type(self.pipe).__name__} does not say for what size it is.",
                remedy="Leave out --sampler, and give --height and --width.",
            )
        height, width = (size, size) if isinstance(size, int) else size
        return int(self.net.config.in_channels), int(height), int(width)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the images in pixels."""
        factor = 1 if self.autoencoder is None else self.autoencoder.factor
        _, height, width = self.state_shape
        return height * factor, width * factor

    @property
    def default_cfg(self) -> float:
        """The pipeline's own default of ``guidance_scale``; 1 where it has none."""
        return float(self._default("guidance_scale", 1.0))

    @property
    def _cleans(self) -> bool:
        """Whether the pipeline's call cleans its prompts before they are encoded."""
        return bool(self._default("clean_caption", False))

    def _default(self, name: str, without: Any) -> Any:
        """Of an argument of the pipeline's call; ``without`` where it has no such argument."""
        found = inspect.signature(type(self.pipe).__call__).parameters.get(name)
        return without if found is None else found.default


class PixelDDPM(Family):
    """Unconditional pixel models (Ho et al., 2020)."""

    pipelines = ("DDPMPipeline", "DDIMPipeline")
    latent = False
    reads_text = False

    def encode(self, prompts: Sequence[str]) -> Condition:
        """Nothing: there is no condition."""
        return {}

    def network(self, x: Tensor, time: Float[Tensor, " b"], condition: Condition) -> Tensor:
        """The U-Net's output."""
        out: Tensor = self.net(x, time).sample
        return out


class StableDiffusion(Family):
    """Stable Diffusion 1 and 2 (Rombach et al., 2022)."""

    pipelines = ("StableDiffusionPipeline",)
    left_out = ("safety_checker", "feature_extractor", "image_encoder")

    def encode(self, prompts: Sequence[str]) -> Condition:
        """Token states of CLIP's text encoder."""
        text, _ = self.pipe.encode_prompt(list(prompts), self.net.device, 1, False)
        return {"text": text}

    def network(self, x: Tensor, time: Float[Tensor, " b"], condition: Condition) -> Tensor:
        """The U-Net's output."""
        out: Tensor = self.net(x, time, encoder_hidden_states=condition["text"]).sample
        return out


class StableDiffusionXL(Family):
    """Stable Diffusion XL (Podell et al., 2023), told that the image has its full size, uncropped.

    The unconditional branch of most checkpoints is not an empty prompt but zeros.
    """

    pipelines = ("StableDiffusionXLPipeline",)
    shown = ("text_time",)
    left_out = ("feature_extractor", "image_encoder")

    def encode(self, prompts: Sequence[str]) -> Condition:
        """Token states of both text encoders, the pooled state, and the sizes."""
        text, _, pooled, _ = self.pipe.encode_prompt(
            list(prompts), device=self.net.device, do_classifier_free_guidance=False
        )
        if self.pipe.config.force_zeros_for_empty_prompt:
            says = torch.tensor([bool(prompt) for prompt in prompts], device=text.device)
            text, pooled = text * says[:, None, None], pooled * says[:, None]
        size = self.image_size
        sizes = self.pipe._get_add_time_ids(
            size, (0, 0), size, text.dtype, text_encoder_projection_dim=pooled.shape[-1]
        ).to(text.device)
        return {"text": text, "pooled": pooled, "sizes": sizes.expand(len(text), -1)}

    def network(self, x: Tensor, time: Float[Tensor, " b"], condition: Condition) -> Tensor:
        """The U-Net's output."""
        added = {"text_embeds": condition["pooled"], "time_ids": condition["sizes"]}
        out: Tensor = self.net(
            x, time, encoder_hidden_states=condition["text"], added_cond_kwargs=added
        ).sample
        return out


class DeepFloydIF(Family):
    """The first stage of DeepFloyd IF: 64 x 64 pixels, learned variance."""

    pipelines = ("IFPipeline",)
    latent = False
    left_out = ("safety_checker", "feature_extractor", "watermarker")

    def encode(self, prompts: Sequence[str]) -> Condition:
        """Token states of T5."""
        text, _ = self.pipe.encode_prompt(
            list(prompts),
            do_classifier_free_guidance=False,
            device=self.net.device,
            clean_caption=self._cleans,
        )
        return {"text": text}

    def network(self, x: Tensor, time: Float[Tensor, " b"], condition: Condition) -> Tensor:
        """The U-Net's output: noise and variance."""
        out: Tensor = self.net(x, time, encoder_hidden_states=condition["text"]).sample
        return out


class PixArt(Family):
    """PixArt-alpha and PixArt-Sigma (Chen et al., 2023 and 2024)."""

    pipelines = ("PixArtAlphaPipeline", "PixArtSigmaPipeline")
    network_name = "transformer"

    def encode(self, prompts: Sequence[str]) -> Condition:
        """Token states of T5 and which of them count; sizes where the network is told them."""
        text, mask, _, _ = self.pipe.encode_prompt(
            list(prompts),
            do_classifier_free_guidance=False,
            device=self.net.device,
            clean_caption=self._cleans,
        )
        condition = {"text": text, "mask": mask}
        if self.net.use_additional_conditions:
            height, width = self.image_size
            row = text.new_ones(len(text), 1)
            condition["size"] = row * text.new_tensor([height, width])
            condition["aspect"] = row * (height / width)
        return condition

    def network(self, x: Tensor, time: Float[Tensor, " b"], condition: Condition) -> Tensor:
        """The transformer's output: noise, and a variance that the pipeline does not use."""
        out: Tensor = self.net(
            x,
            encoder_hidden_states=condition["text"],
            encoder_attention_mask=condition["mask"],
            timestep=time,
            added_cond_kwargs={
                "resolution": condition.get("size"),
                "aspect_ratio": condition.get("aspect"),
            },
        ).sample
        return out


class StableDiffusion3(Family):
    """Stable Diffusion 3 and 3.5 (Esser et al., 2024): flow matching."""

    pipelines = ("StableDiffusion3Pipeline",)
    network_name = "transformer"
    left_out = ("feature_extractor", "image_encoder")

    def encode(self, prompts: Sequence[str]) -> Condition:
        """Token states of all text encoders that are there, and CLIP's pooled states."""
        text, _, pooled, _ = self.pipe.encode_prompt(
            list(prompts),
            prompt_2=None,
            prompt_3=None,
            device=self.net.device,
            do_classifier_free_guidance=False,
        )
        return {"text": text, "pooled": pooled}

    def network(self, x: Tensor, time: Float[Tensor, " b"], condition: Condition) -> Tensor:
        """The transformer's output: the velocity."""
        out: Tensor = self.net(
            hidden_states=x,
            timestep=time,
            encoder_hidden_states=condition["text"],
            pooled_projections=condition["pooled"],
        ).sample
        return out

    def shift(self) -> float | None:
        """Linear in the number of tokens, as the pipeline computes it."""
        from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import (
            calculate_shift,
        )

        config = self.pipe.scheduler.config
        if not config.get("use_dynamic_shifting"):
            return None
        _, height, width = self.state_shape
        patch = int(self.net.config.patch_size)
        return float(
            calculate_shift(
                (height // patch) * (width // patch),
                config.get("base_image_seq_len", 256),
                config.get("max_image_seq_len", 4096),
                config.get("base_shift", 0.5),
                config.get("max_shift", 1.16),
            )
        )


FAMILIES: tuple[type[Family], ...] = (
    PixelDDPM,
    StableDiffusion,
    StableDiffusionXL,
    DeepFloydIF,
    PixArt,
    StableDiffusion3,
)
"""All kinds of pipelines that are known."""


def supported() -> str:
    """The names of all pipelines that are known, for messages."""
    return ", ".join(name for family in FAMILIES for name in family.pipelines)


def family_named(pipeline: str) -> type[Family] | None:
    """The family that serves diffusers' class of this name, if there is one."""
    return next((family for family in FAMILIES if pipeline in family.pipelines), None)
