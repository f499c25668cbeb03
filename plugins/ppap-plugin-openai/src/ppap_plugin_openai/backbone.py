"""ADM as a backbone: guided-diffusion's U-Nets on the host's noise levels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from jaxtyping import Float
from torch import Tensor

from ppap_host.backbone import Backbone, Condition, Prediction
from ppap_host.errors import OptionError
from ppap_host.noise import DiscreteSchedule, NoiseLevel, Walk, cosine_betas, linear_betas

NoiseSchedule = Literal["linear", "cosine"]
_BETAS = {"linear": linear_betas, "cosine": cosine_betas}


class ADMBackbone(Backbone):
    """A guided-diffusion U-Net (Dhariwal and Nichol, 2021) in pixel space.

    The network is given the original step, 0..``diffusion_steps`` - 1, also in a respaced process.

    Args:
        unet: from :func:`ppap_plugin_openai.adm.load_adm`.
        noise_schedule: of its training.
        diffusion_steps: of its training.
        files: that it was read from.
    """

    name = "adm"

    def __init__(
        self,
        unet: UNet2DModel,
        noise_schedule: NoiseSchedule = "linear",
        diffusion_steps: int = 1000,
        files: Sequence[Path] = (),
    ) -> None:
        size = int(unet.config.sample_size)
        self.unet, self.state_shape = unet, (3, size, size)
        self._schedule = DiscreteSchedule.from_betas(_BETAS[noise_schedule](diffusion_steps))
        self._files = tuple(files)
        self._dtype = torch.float32

    def walk(self, steps: int | str) -> Walk:
        """The respaced process; "ddim25", "250" and "10,10,10" as guided-diffusion has them."""
        return self._schedule.walk(steps)

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
            raise OptionError(
                f"The backbone {self.name!r} needs a class from 0 to {known - 1} for every image; "
                "it has no unconditional branch.",
                remedy="Give one with --class, and leave out --cfg.",
            )
        return {"labels": torch.tensor(labels)}

    def predict(
        self, x: Float[Tensor, "b 3 h w"], level: NoiseLevel, condition: Condition
    ) -> Prediction:
        """Noise, and the variance coefficient of networks that learned it."""
        time = torch.full((len(x),), level.time, device=x.device)
        out = self.unet(x.to(self._dtype), time, class_labels=condition.get("labels")).sample
        out = out.to(x.dtype)
        if out.shape[1] == x.shape[1]:
            return Prediction(out)
        eps, v = out.chunk(2, dim=1)
        return Prediction(eps, v)

    def to(self, device: torch.device, dtype: torch.dtype) -> ADMBackbone:
        """Moves the U-Net."""
        self.unet.to(device=device, dtype=dtype)
        self._dtype = dtype
        return self

    def files(self) -> Sequence[Path]:
        """The checkpoint."""
        return self._files
