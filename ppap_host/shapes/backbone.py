"""The built-in backbone: text-conditional pixel diffusion of the ``shapes`` world."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor

from ppap_host.backbones.backbone import Backbone, Condition, Prediction
from ppap_host.backbones.noise import (
    CLEAN,
    DiscreteSchedule,
    NoiseLevel,
    NoiseRange,
    Walk,
    cosine_betas,
)
from ppap_host.files.errors import CheckpointError
from ppap_host.files.models import from_pretrained, own_path
from ppap_host.shapes.model import IMAGE_SIZE, CaptionEncoder, Networks, Refiner, WordTokenizer

WEIGHTS = Path(__file__).parent / "weights" / "backbone"
_TRAIN_STEPS = 1000
_NOISIEST = 998
"""Sampling starts here. At the cosine schedule's last step alpha is 5e-5, so x_0, which is
(x - sigma eps) / alpha, would enlarge rounding errors 20,000 times, and images would depend on the
batch they are made in. A start that is less noisy shows: pure noise has no mean, where x_t has
alpha times the image's (Lin et al., 2024, https://arxiv.org/abs/2305.08891, section 3.4)."""
_CLEANEST = 25
"""The last step before the clean image. What is below it had next to no weight in the training."""
_IN_TIME = 0.4
"""How much of the way from one level of a walk to the next is measured in time, the rest in
log-SNR. Where a room's brightness and colours are decided, above step 950, log-SNR falls by half of
what it falls in all, and one of 25 steps that are even in time goes over all of that."""

_PARTS = {"unet": UNet2DConditionModel, "refiner": Refiner, "text_encoder": CaptionEncoder}


class ShapesBackbone(Backbone):
    """Rooms with coloured solids, 64 x 64 RGB, from a caption.

    Predicts noise (as velocity) and learned variance on the cosine schedule of Nichol and Dhariwal
    (2021) with 1000 steps. The folder is diffusers' format: ``unet``, ``refiner``,
    ``text_encoder`` and ``scheduler``.

    Args:
        checkpoint: folder of another training of the same architecture; None takes the shipped one.

    Raises:
        CheckpointError: the folder does not hold such a model.
    """

    name = "shapes"
    state_shape = (3, IMAGE_SIZE, IMAGE_SIZE)
    default_cfg = 4.0
    default_cfg_interval = NoiseRange(-math.inf, 0.0)  # where it is decided what there is
    default_steps = 25
    default_sampler = "dpm++"
    default_eta = 1.0

    def __init__(self, checkpoint: str | None = None) -> None:
        folder = WEIGHTS if checkpoint is None else own_path(checkpoint)
        loading = dict(use_safetensors=True, low_cpu_mem_usage=False, torch_dtype=torch.float32)
        try:
            unet, refiner, text = (
                from_pretrained(kind, folder / part, **loading) for part, kind in _PARTS.items()
            )
        except Exception as error:
            raise CheckpointError(
                f"{str(folder)!r} holds no 'shapes' backbone ({type(error).__name__}).",
                remedy=f"Give a folder with {', '.join(_PARTS)} in diffusers' format.",
            ) from error
        self._folder: Path | None = folder
        # A sixth less time on a CPU than with channels first.
        networks = Networks(unet, refiner, text).to(memory_format=torch.channels_last)
        self._set_up(networks.requires_grad_(False))

    @classmethod
    def of(cls, networks: Networks) -> ShapesBackbone:
        """A backbone around networks in memory, such as those in training."""
        backbone = cls.__new__(cls)
        backbone._folder = None
        backbone._set_up(networks)
        return backbone

    def _set_up(self, networks: Networks) -> None:
        self.networks = networks.eval()
        self._tokenizer = WordTokenizer(networks.text.config.words)
        self._schedule = DiscreteSchedule.from_betas(cosine_betas(_TRAIN_STEPS))
        parameter = next(networks.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype

    @property
    def schedule(self) -> DiscreteSchedule:
        """The schedule it was trained on."""
        return self._schedule

    def walk(self, steps: int | str) -> Walk:
        """From step 998 to step 25 of the cosine schedule, even in a mean of time and log-SNR.

        A spacing that is not just a number is one of time
        (:func:`~ppap_host.backbones.noise.respace`).
        """
        walked = DiscreteSchedule(self._schedule.alphas_cumprod[: _NOISIEST + 1])
        levels = walked.levels()[_CLEANEST:]
        if isinstance(steps, str) or not 1 < steps <= len(levels):
            return walked.walk(steps)
        at = np.array([(level.time, level.log_snr) for level in levels])
        along = (at - at[-1]) / (at[0] - at[-1]) @ (_IN_TIME, 1 - _IN_TIME)
        order = np.arange(steps)
        nearest = abs(along - order[:, None] / (steps - 1)).argmin(axis=1)
        # Of many steps, several are nearest to one level: each goes to one of its own.
        kept = np.maximum(np.minimum.accumulate(nearest + order) - order, order[::-1])
        return Walk((*(levels[i] for i in kept), CLEAN))

    def levels(self) -> tuple[NoiseLevel, ...]:
        """All 1000 steps of the cosine schedule, those that sampling leaves out included."""
        return self._schedule.levels()

    def encode_prompts(self, prompts: Sequence[str]) -> Condition:
        """Token states [b, 16, 128] and pooled captions [b, 128]."""
        with torch.no_grad():
            states, pooled = self.networks.text(self._tokenizer(prompts).to(self.device))
        return {"states": states, "pooled": pooled}

    def predict(
        self, x: Float[Tensor, "b 3 h w"], level: NoiseLevel, condition: Condition
    ) -> Prediction:
        """Noise and variance coefficient; ``x`` on the variance-preserving line."""
        time = torch.full((len(x),), level.time, device=x.device)
        given = x.to(self.dtype, memory_format=torch.channels_last)
        velocity, v = self.networks.predict(given, time, condition["states"], condition["pooled"])
        eps = level.sigma * x + level.alpha * velocity.to(x.dtype)
        # Between the two bounds of the variance; a network may say a little more or less.
        return Prediction(eps, v.to(x.dtype).clamp(-1, 1))

    def to(self, device: torch.device, dtype: torch.dtype) -> ShapesBackbone:
        """Moves the networks."""
        self.networks.to(device=device, dtype=dtype)
        self.device, self.dtype = device, dtype
        return self

    def files(self) -> Sequence[Path]:
        """Configuration and weights; none for networks in memory."""
        if self._folder is None:
            return ()
        return sorted(p for p in self._folder.rglob("*") if p.is_file())


def save_backbone(networks: Networks, folder: Path) -> None:
    """Writes the networks in half precision, in diffusers' folder format."""
    networks.half()
    for part in _PARTS:
        getattr(networks, part.removesuffix("_encoder")).save_pretrained(folder / part)
    scheduler = {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": _TRAIN_STEPS,
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "v_prediction",
        "variance_type": "learned_range",
        "clip_sample": True,
    }
    (folder / "scheduler").mkdir(parents=True, exist_ok=True)
    text_of = json.dumps(scheduler, indent=2, sort_keys=True) + "\n"
    (folder / "scheduler" / "scheduler_config.json").write_text(text_of)
