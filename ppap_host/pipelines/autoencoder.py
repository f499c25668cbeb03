"""Latents to images: an autoencoder as a differentiable decoder that fits in memory."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from jaxtyping import Float
from torch import Tensor, nn

from ppap_host.files.errors import CheckpointError
from ppap_host.pipelines.hooks import frozen
from ppap_host.pipelines.networks import read_network

_REMEDY = (
    "Give the hub name or the folder of a KL autoencoder in diffusers' format with safetensors "
    "weights, such as stabilityai/sd-vae-ft-ema; a hub name is downloaded the first time."
)


class Autoencoder:
    """The decoder of a latent diffusion model (Rombach et al., 2022, section 3.1).

    A diffusion model's latents z belong to the autoencoder's as z / scaling + shift. Where the
    autoencoder has a mean and a standard deviation of its latents, these take part as in Stable
    Diffusion XL, z * std / scaling + mean, and in Flux 2 those of the channels of 2 x 2 patches.

    A guide's gradient goes back through the decoder, whose activations at full resolution are the
    largest thing in memory. ``checkpointing`` keeps only the inputs of its blocks and computes the
    rest again for the gradient, which changes no number. ``tiling`` decodes states larger than the
    autoencoder was trained on in overlapping tiles, which does change them a little.

    Args:
        source: a hub name, a folder in diffusers' format, or a network in memory, which is frozen.
            Names and folders are read when they are first needed, from safetensors only.
        scaling: of the latents, None for what the autoencoder's configuration says.
        shift: of the latents, None for what the autoencoder's configuration says, or else 0.
        checkpointing: trade some 40 per cent more time of the gradient for memory.
        tiling: decode large states in tiles.
    """

    def __init__(
        self,
        source: str | nn.Module,
        *,
        scaling: float | None = None,
        shift: float | None = None,
        checkpointing: bool = True,
        tiling: bool = False,
    ) -> None:
        self._source = source if isinstance(source, str) else None
        self._given: Any = None if isinstance(source, str) else source
        self._network: Any = None
        self._files: tuple[Path, ...] = ()
        self._scaling, self._shift = scaling, shift
        self.checkpointing, self.tiling = checkpointing, tiling

    @property
    def network(self) -> Any:
        """The autoencoder, frozen, in evaluation mode; read now if it was not.

        Raises:
            CheckpointError: it cannot be found or downloaded, or is no KL autoencoder.
        """
        if self._network is None:
            network: Any = self._given
            if self._source is not None:
                network, self._files = read_network(
                    self._source, "autoencoder", _REMEDY, lambda _: AutoencoderKL, torch.float32
                )
            network.requires_grad_(False).eval()
            if self.checkpointing:
                network.enable_gradient_checkpointing()
            if self.tiling:
                network.enable_tiling()
            self._network = network
        return self._network

    @property
    def factor(self) -> int:
        """Pixels of an image along each side of one cell of the state."""
        levels: int = len(self.network.config.block_out_channels)
        return 1 << (levels - 1)

    def decode(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """RGB in about [-1, 1], not clipped, in the number format of ``z``."""
        network = self.network
        own = own_latents(network, z, self._scaling, self._shift).to(network.dtype)
        image: Tensor = network.decode(own).sample
        return image.to(z.dtype)

    def to(self, device: torch.device, dtype: torch.dtype) -> Autoencoder:
        """Moves the network; returns the autoencoder itself.

        It computes in float32 where float16 is asked for: activations of several published
        autoencoders exceed the range of float16.
        """
        if dtype == torch.float16:
            dtype = torch.float32
        # nn.Module's own `to`: diffusers' override warns about changes of precision.
        nn.Module.to(self.network, device=device, dtype=dtype)
        return self

    def files(self) -> Sequence[Path]:
        """Configuration and weights that were read; none before that, or of one in memory."""
        return self._files


class LentAutoencoder:
    """The autoencoder of a pipeline that somebody else owns: used, and left as it was.

    It may be any that diffusers has for pictures or videos.

    Args:
        network: as the pipeline has it.
        scaling: of the latents, None for what the autoencoder's configuration says.
        movable: whether nobody else uses it, so that it goes where the latents are.
        options: further arguments of its ``decode``.

    Attributes:
        channels: of its latents.
    """

    def __init__(
        self,
        network: Any,
        *,
        scaling: float | None = None,
        movable: bool = False,
        **options: Any,
    ) -> None:
        self._network, self._scaling, self._options = network, scaling, options
        self._movable = movable
        self._whole: Any = None
        self._video: bool | None = None
        config = network.config
        names = ("latent_channels", "z_dim", "latent_dim")
        self.channels = int(next((config[n] for n in names if config.get(n)), 0))

    @property
    def network(self) -> Any:
        """What decodes: the pipeline's own, or a copy of it where its own cannot do it.

        A copy in float32 stands for an autoencoder in float16 whose configuration asks for it, and
        one with ordinary weights for one that was loaded under ``torch.inference_mode``.
        """
        whole = self._network.dtype == torch.float16 and self._network.config.get("force_upcast")
        if not whole and not any(p.is_inference() for p in self._network.parameters()):
            return self._network
        if self._whole is None:
            self._whole = copy.deepcopy(self._network)
            if whole:
                nn.Module.to(self._whole, dtype=torch.float32)
        return self._whole

    @property
    def device(self) -> torch.device:
        """Where it computes; its weights may wait elsewhere until it does (offloading)."""
        for module in self.network.modules():
            place = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
            if place is not None:
                return torch.device(place)
        return torch.device(self.network.device)

    @property
    def video(self) -> bool:
        """Whether it decodes [b, c, f, h, w]; found out with a few cells of latents."""
        if self._video is None:
            network = self.network
            size = (1, self.channels, 1, 8, 8)
            z = torch.zeros(size, device=self.device, dtype=network.dtype)
            try:
                with torch.no_grad():
                    self._video = self._decoded(z).ndim == 5
            # Whatever two-dimensional layers say of five dimensions.
            except Exception:
                self._video = False
        return self._video

    def decode(self, z: Tensor) -> Tensor:
        """RGB in about [-1, 1], not clipped, in the number format of ``z``.

        Args:
            z: the pipeline's latents, [b, c, h, w] or [b, c, f, h, w].

        Returns:
            [b, 3, H, W], or [b, 3, F, H, W] for frames.
        """
        frames = z.ndim == 5
        if self._movable and self._network.device != z.device:
            nn.Module.to(self._network, device=z.device)
        if self.video and not frames:
            return self.decode(z[:, :, None])[:, :, 0]
        if frames and not self.video:
            count = z.shape[2]
            each = self.decode(z.transpose(1, 2).flatten(0, 1))
            film: Tensor = each.unflatten(0, (-1, count)).transpose(1, 2)
            return film
        return self._decoded(z)

    def _decoded(self, z: Tensor) -> Tensor:
        network = self.network
        own = own_latents(network, z, self._scaling).to(network.dtype)
        options = dict(self._options)
        if network.config.get("timestep_conditioning"):
            options["temb"] = own.new_zeros(len(own))
        if "num_frames" in inspect.signature(network.decode).parameters:
            options["num_frames"] = 1
        image: Tensor = network.decode(own, return_dict=False, **options)[0]
        if "scale_factor" in network.config and "up_down_scale_factor" in network.config:
            image = 2 * image - 1  # Paella's, which gives pictures in [0, 1]
        picture: Tensor = image.to(z.dtype)
        return picture

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Frozen, and thrifty with what gradients need; afterwards all is as it was."""
        network = self.network
        blocks = [m for m in network.modules() if hasattr(m, "gradient_checkpointing")]
        before = [
            (m, m.gradient_checkpointing, vars(m).get("_gradient_checkpointing_func"))
            for m in blocks
        ]
        if getattr(network, "_supports_gradient_checkpointing", False):
            network.enable_gradient_checkpointing()
        try:
            with frozen([network]):
                yield
        finally:
            for module, flag, function in before:
                module.gradient_checkpointing = flag
                if function is None:
                    vars(module).pop("_gradient_checkpointing_func", None)
                else:
                    module._gradient_checkpointing_func = function


def small_decoder(source: str) -> tuple[Any, tuple[Path, ...]]:
    """An ``AutoencoderTiny`` in diffusers' format, such as TAESD, and the files it was read from.

    Raises:
        CheckpointError: there is none of this name.
    """

    def kind_of(described: Mapping[str, Any]) -> Any:
        return AutoencoderTiny if described.get("_class_name") == "AutoencoderTiny" else None

    remedy = "Give the hub name or the folder of an AutoencoderTiny, such as madebyollin/taesd."
    return read_network(source, "small decoder", remedy, kind_of)


def own_latents(
    network: Any, z: Tensor, scaling: float | None = None, shift: float | None = None
) -> Tensor:
    """An autoencoder's latents from those of a diffusion model, [b, c, h, w] or [b, c, f, h, w].

    Args:
        scaling, shift: instead of what the configuration says.
    """
    if hasattr(network, "bn"):
        return _unnormalised(network, z)
    config = network.config
    if scaling is None:
        scaling = float(getattr(config, "scaling_factor", None) or 1.0)
        if getattr(config, "scale_factor", None):  # Paella's, which is a factor, not a divisor
            scaling = 1 / float(config.scale_factor)
    mean, std = (_statistics(network, name, z) for name in ("latents_mean", "latents_std"))
    if mean is not None and std is not None:
        return z * std / scaling + mean
    shift = getattr(config, "shift_factor", None) if shift is None else shift
    return z / scaling + (shift or 0.0)


def _statistics(network: Any, name: str, z: Tensor) -> Tensor | None:
    """Of each channel of the latents, shaped to go with ``z``; None where there are none.

    The autoencoder of Cosmos has them for each channel and frame.
    """
    values = network.config.get(name)
    if values is None:  # the autoencoder of LTX has them among its weights
        values = dict(network.named_buffers(recurse=False)).get(name)
    if values is None:
        return None
    row = z.new_tensor(values) if not isinstance(values, Tensor) else values.to(z)
    row = row.view(1, z.shape[1], -1, *([1] * (z.ndim - 3)))
    if row.shape[2] > 1:
        return row[:, :, : z.shape[2]]
    return row if z.ndim == 5 else row.view(1, -1, 1, 1)


def _unnormalised(network: Any, z: Tensor) -> Tensor:
    """With the statistics of each channel of a patch put back (Flux 2)."""
    norm, side = network.bn, 2
    std = (norm.running_var + float(network.config.get("batch_norm_eps", 1e-5))).sqrt()
    channels = z.shape[1] * side * side
    rows = nn.functional.pixel_unshuffle(z, side)
    if channels != len(std):
        raise CheckpointError(
            f"The autoencoder has statistics of {len(std)} channels for latents of {channels}.",
            remedy="Use the autoencoder that belongs to the pipeline.",
        )
    rows = rows * std.to(z).view(1, -1, 1, 1) + norm.running_mean.to(z).view(1, -1, 1, 1)
    return nn.functional.pixel_shuffle(rows, side)
