"""The backbone ``diffusers``: a pipeline that runs itself, or its networks in the host's loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from ppap_host.backbones.backbone import Backbone, Condition, Prediction
from ppap_host.backbones.noise import NoiseLevel, Walk
from ppap_host.files.errors import CheckpointError, DeviceError, OptionError
from ppap_host.pipelines.arguments import is_pipeline
from ppap_host.pipelines.families import Family, family_named, supported
from ppap_host.pipelines.running import PipelineSteps, device_of, dtype_of
from ppap_host.pipelines.schedules import (
    as_rows,
    fixed_variance_of,
    learned_variance,
    schedule_of,
)
from ppap_host.pipelines.steering import bounds, networks_of, scheduler_of
from ppap_host.runs.config import RunConfig


class PipelineBackbone(Backbone):
    """A pipeline of diffusers, classic or modular.

    A run lets it take its own steps (:meth:`own_steps`), whatever its kind. The host's samplers,
    harvests and whoever asks for predictions use its networks, conditioning and decoder instead, on
    the noise levels of its scheduler, which is for the kinds of
    :data:`ppap_host.pipelines.families.FAMILIES`.

    Args:
        pipe: a pipeline in memory; its networks are frozen once the host's loop uses them.
        files: that it was read from.
        remarks: what had to be chosen among them, a sentence each.
        names: of the checkpoint, from which a distilled one may be known.
        offload: moves networks to the device while they compute, instead of :meth:`to`.
        view: how guides see the pictures: ``decoder`` (a small autoencoder in memory) and
            ``shrink``, as :class:`~ppap_host.pipelines.steer.steer` takes them.

    Raises:
        CheckpointError: its scheduler's levels cannot be known.
        OptionError: it has no scheduler.
    """

    name = "diffusers"
    least_cfg = 1.0
    default_batch = 1

    def __init__(
        self,
        pipe: Any,
        files: Sequence[Path] = (),
        remarks: Sequence[str] = (),
        *,
        names: Sequence[str] = (),
        offload: str = "none",
        view: Mapping[str, Any] | None = None,
    ) -> None:
        self._view = dict(view or {})
        if not is_pipeline(pipe):
            raise CheckpointError(
                f"A {type(pipe).__name__} is no pipeline of diffusers.",
                remedy="Give a pipeline in memory, or its hub name or folder.",
            )
        self.pipe, self._offload = pipe, offload
        scheduler = scheduler_of(pipe)
        schedule_of(scheduler)
        self._names = [*names, str(getattr(pipe.config, "_name_or_path", "") or "")]
        self.fixed_variance = fixed_variance_of(scheduler)
        self._learned = learned_variance(scheduler)
        self._files, self._remarks = tuple(files), tuple(remarks)
        self.device, self.dtype = device_of(pipe), dtype_of(pipe)

    @cached_property
    def family(self) -> Family:
        """How the host's loop uses its networks.

        Raises:
            OptionError: it knows no such pipeline, or not with these networks.
        """
        made = family_named(type(self.pipe).__name__)
        if made is None:
            raise OptionError(
                f"The host's own samplers do not know {type(self.pipe).__name__}; they know "
                f"{supported()}.",
                remedy="Leave out --sampler: the pipeline takes its own steps.",
            )
        if self._view:
            raise OptionError(
                f"{' and '.join(self._view)} belong to pipelines that take their own steps.",
                remedy="Leave out --sampler, or leave them out.",
            )
        for module in networks_of(self.pipe):
            module.requires_grad_(False).eval()
        return made(self.pipe)

    def own_steps(self, config: RunConfig, pictures: Mapping[str, Image.Image]) -> PipelineSteps:
        """The pipeline made ready for a run; a copy of it with schedulers of its own.

        Raises:
            PpapError: it cannot be called or guided so.
        """
        if isinstance(config.backbone, str):  # ours, and read for this run
            for module in networks_of(self.pipe):
                if self._asks_for_float32(module):
                    nn.Module.to(module, dtype=self.dtype)
        return PipelineSteps(
            self.pipe, config, pictures, self._names, self._files, self._remarks, self._view
        )

    @cached_property
    def state_shape(self) -> tuple[int, int, int]:  # type: ignore[override]
        """(channels, height, width) of a state at the size the network was trained for."""
        return self.family.state_shape

    @cached_property
    def default_cfg(self) -> float:  # type: ignore[override]
        """The pipeline's own default."""
        return self.family.default_cfg

    @cached_property
    def clip(self) -> tuple[float, float] | None:  # type: ignore[override]
        """What a pixel model's x_0 is clipped to, as its scheduler does."""
        return None if self.family.latent else bounds(self.pipe.scheduler)

    def walk(self, steps: int | str) -> Walk:
        """The levels that the pipeline's scheduler visits in so many steps, then the clean image.

        Networks with discrete steps also take a spacing such as "ddim25" or "10,10,10".
        """
        return self.family.schedule.walk(steps)

    def levels(self) -> tuple[NoiseLevel, ...]:
        """The levels of its training; a grid of a thousand for continuous schedules."""
        if family_named(type(self.pipe).__name__) is None:
            return schedule_of(scheduler_of(self.pipe)).levels()
        return self.family.schedule.levels()

    def encode_prompts(self, prompts: Sequence[str]) -> Condition:
        """By the pipeline's own text encoders."""
        if not self.family.reads_text:
            return super().encode_prompts(prompts)
        with torch.no_grad():
            condition = self.family.encode(prompts)
        return {key: rows.to(self.family.net.device) for key, rows in condition.items()}

    def predict(
        self, x: Float[Tensor, "b ..."], level: NoiseLevel, condition: Condition
    ) -> Prediction:
        """Noise, and the variance coefficient where the scheduler says that it was learned."""
        if self.family.reads_text and not condition:
            condition = self.encode_prompts([""] * len(x))
        schedule = self.family.schedule
        shown = schedule.network_input(x, level).to(self.dtype)
        out = self.family.network(shown, as_rows(level, x), condition).to(x.dtype)
        channels = x.shape[1]
        eps = schedule.eps(x, out[:, :channels], level)
        return Prediction(eps, out[:, channels:] if self._learned else None, out)

    def decode(self, x0: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """RGB in about [-1, 1] by the pipeline's autoencoder; the identity for pixels."""
        if self.family.autoencoder is None:
            return x0
        return self.family.autoencoder.decode(x0)

    @property
    def decoded_shape(self) -> tuple[int, ...]:
        """Of the pixels, or of the autoencoder's RGB."""
        return tuple(self.state_shape) if self.family.autoencoder is None else (3, *self.image_size)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the images it makes."""
        return self.family.image_size

    def to(self, device: torch.device, dtype: torch.dtype) -> PipelineBackbone:
        """Moves all networks, none of them through another number format.

        With an ``offload`` they stay in memory and come to the device while they compute.

        Raises:
            DeviceError: there is nothing to offload from.
        """
        for module in networks_of(self.pipe):
            # nn.Module's own `to`: diffusers' override warns about changes of precision.
            if not (dtype == torch.float16 and self._asks_for_float32(module)):
                nn.Module.to(module, dtype=dtype)
            if self._offload == "none":
                nn.Module.to(module, device=device)
        if "decoder" in self._view:
            nn.Module.to(self._view["decoder"], device=device, dtype=dtype)
        if self._offload != "none":
            offloaded(self.pipe, self._offload, device)
        self.device, self.dtype = device, dtype
        return self

    def _asks_for_float32(self, module: nn.Module) -> bool:
        """Whether it is the autoencoder, and its configuration says that it overflows in float16.

        The host's loop heeds that; pipelines that take their own steps have their own ways with it.
        """
        return module is getattr(self.pipe, "vae", None) and bool(
            getattr(module, "config", {}).get("force_upcast")
        )

    def files(self) -> Sequence[Path]:
        """Configurations and weights; none for a pipeline in memory."""
        return self._files

    def remarks(self) -> Sequence[str]:
        """What had to be chosen among them."""
        return self._remarks


def offloaded(pipe: Any, how: str, device: torch.device) -> None:
    """Lets networks stay in memory and come to the device while they compute.

    Args:
        how: "model", whole networks, or "sequential", layer by layer.

    Raises:
        DeviceError: the device is the memory itself.
    """
    if device.type == "cpu":
        raise DeviceError(
            f"--offload {how} moves networks between memory and a graphics card, and the run is on "
            "the CPU.",
            remedy="Leave it out, or give --device cuda.",
        )
    if how == "model":
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.enable_sequential_cpu_offload(device=device)
