"""ADM as a backbone: guided-diffusion's U-Nets on the host's noise levels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ppap_host.backbones.backbone import Backbone, Condition, Prediction
from ppap_host.backbones.noise import DiscreteSchedule, NoiseLevel, Walk, cosine_betas, linear_betas
from ppap_host.files.errors import OptionError

NoiseSchedule = Literal["linear", "cosine", "squaredcos_cap_v2"]
# GLIDE's name for the cosine schedule says that its betas are capped; ADM's are, too.
BETAS = {"linear": linear_betas, "cosine": cosine_betas, "squaredcos_cap_v2": cosine_betas}


def eight_bits(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Images in [-1, 1] on the 256 levels of a file, which upsamplers were trained on.

    Rounds half to even and does not clip, as glide-text2im does between its stages.
    """
    return ((images + 1) * 127.5).round() / 127.5 - 1


class ADMBackbone(Backbone):
    """A guided-diffusion U-Net (Dhariwal and Nichol, 2021) in pixel space.

    The network is given the original step, 0..``diffusion_steps`` - 1, also in a respaced process.

    Args:
        unet: from :func:`ppap_plugin_openai.adm.load_adm`.
        noise_schedule: of its training.
        diffusion_steps: of its training.
        files: that it was read from.
        name: what the user calls it, for errors.
        upsampler: what enlarges its images.
        remarks: what had to be chosen in the files, a sentence each.
    """

    name = "adm"

    def __init__(
        self,
        unet: UNet2DModel,
        noise_schedule: NoiseSchedule = "linear",
        diffusion_steps: int = 1000,
        files: Sequence[Path] = (),
        name: str = "adm",
        upsampler: Backbone | None = None,
        remarks: Sequence[str] = (),
    ) -> None:
        size = int(unet.config.sample_size)
        self.unet, self.state_shape, self.name = unet, (3, size, size), name
        self._schedule = DiscreteSchedule.from_betas(BETAS[noise_schedule](diffusion_steps))
        self._files, self._upsampler = tuple(files), upsampler
        self._remarks = tuple(remarks)
        self.class_count = unet.config.num_class_embeds
        self.dtype, self.device = torch.float32, torch.device("cpu")

    def walk(self, steps: int | str) -> Walk:
        """The respaced process; "ddim25", "250" and "10,10,10" as guided-diffusion has them."""
        return self._schedule.walk(steps)

    def upsampler(self) -> Backbone | None:
        """The one it was given."""
        return self._upsampler

    def levels(self) -> tuple[NoiseLevel, ...]:
        """All steps of its training."""
        return self._schedule.levels()

    def encode_classes(self, labels: Sequence[int | None]) -> Condition:
        """ImageNet indices 0..999 for a class-conditional U-Net, which needs one an image.

        Raises:
            OptionError: the U-Net knows no classes, or knows them and is given none.
        """
        known = self.unet.config.num_class_embeds
        if known is None:
            return super().encode_classes(labels)
        if any(label is None or not 0 <= label < known for label in labels):
            raise self._needs_class(known)
        return {"labels": torch.tensor(labels, device=self.device)}

    def _needs_class(self, known: int) -> OptionError:
        return OptionError(
            f"The backbone {self.name!r} needs a class from 0 to {known - 1} for every image; "
            "it has no unconditional branch.",
            remedy="Give one with --class, and leave out --cfg.",
        )

    def predict(
        self, x: Float[Tensor, "b 3 h w"], level: NoiseLevel, condition: Condition
    ) -> Prediction:
        """Noise, and the variance coefficient of networks that learned it.

        Raises:
            OptionError: the network needs a condition that is not given.
        """
        known = self.unet.config.num_class_embeds
        if known is not None and "labels" not in condition:
            raise self._needs_class(known)
        time = torch.full((len(x),), level.time, device=x.device)
        inputs = self._inputs(x, condition).to(self.dtype)
        out = self.unet(inputs, time, class_labels=condition.get("labels")).sample
        out = out.to(x.dtype)
        if out.shape[1] == x.shape[1]:
            return Prediction(out)
        eps, v = out.chunk(2, dim=1)
        return Prediction(eps, v)

    def _inputs(self, x: Tensor, condition: Condition) -> Tensor:
        """What the U-Net is shown of the image."""
        return x

    def to(self, device: torch.device, dtype: torch.dtype) -> ADMBackbone:
        """Moves the U-Net."""
        # nn.Module's own `to`: diffusers' override warns about every change of precision.
        torch.nn.Module.to(self.unet, device=device, dtype=dtype)
        self.dtype, self.device = dtype, device
        return self

    def files(self) -> Sequence[Path]:
        """The checkpoint."""
        return self._files

    def remarks(self) -> Sequence[str]:
        """What had to be chosen in it."""
        return self._remarks


class ADMUpsampler(ADMBackbone):
    """A guided-diffusion U-Net that enlarges an image (section 4.4 of the paper).

    Its condition is that of :meth:`encode_classes` joined with that of :meth:`conditioned_on`.
    """

    def conditioned_on(self, images: Float[Tensor, "b 3 h w"]) -> Condition:
        """The condition for these smaller images in [-1, 1], one for all or one an image."""
        return {"low_res": eight_bits(images).to(self.device)}

    def _inputs(self, x: Tensor, condition: Condition) -> Tensor:
        low_res = require_low_res(self.name, condition).to(x.dtype)
        enlarged = F.interpolate(low_res, x.shape[2:], mode="bilinear", align_corners=False)
        return torch.cat([x, enlarged], dim=1)


def require_low_res(name: str, condition: Condition) -> Tensor:
    """The smaller images of a condition.

    Raises:
        OptionError: it has none.
    """
    if "low_res" not in condition:
        raise OptionError(
            f"The backbone {name!r} enlarges images and was given none.",
            remedy="Join its condition with conditioned_on(images).",
        )
    return condition["low_res"]
