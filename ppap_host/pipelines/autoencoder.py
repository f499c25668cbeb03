"""Latents to images: a KL autoencoder as a differentiable decoder that fits in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor, nn

from ppap_host.files.errors import CheckpointError
from ppap_host.files.models import CONFIG, ModelFolder, from_pretrained

_WHOLE, _HALF = (f"diffusion_pytorch_model{part}.safetensors" for part in ("", ".fp16"))
_REMEDY = (
    "Give the hub name or the folder of a KL autoencoder in diffusers' format with safetensors "
    "weights, such as stabilityai/sd-vae-ft-ema; a hub name is downloaded the first time."
)


class Autoencoder:
    """The decoder of a latent diffusion model (Rombach et al., 2022, section 3.1).

    A diffusion model's latents z belong to the autoencoder's as z / scaling + shift. (Where the
    autoencoder's configuration has a mean and a standard deviation of its latents, these take part
    as in Stable Diffusion XL: z * std / scaling + mean.)

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
                network, self._files = _read(self._source)
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
        own = self._to_its_own(z, network.config).to(network.dtype)
        image: Tensor = network.decode(own).sample
        return image.to(z.dtype)

    def _to_its_own(self, z: Tensor, config: Any) -> Tensor:
        scaling = config.scaling_factor if self._scaling is None else self._scaling
        mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        if mean is not None and std is not None:
            row = (1, -1, 1, 1)
            return z * z.new_tensor(std).view(row) / scaling + z.new_tensor(mean).view(row)
        shift = getattr(config, "shift_factor", None) if self._shift is None else self._shift
        return z / scaling + (shift or 0.0)

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


def _read(source: str) -> tuple[nn.Module, tuple[Path, ...]]:
    """The network, and the files it was read from."""
    folder = ModelFolder(source, "autoencoder", _REMEDY)
    folder.need(CONFIG)
    half = folder.find(_WHOLE) is None and folder.find(_HALF) is not None
    try:
        network: nn.Module = from_pretrained(
            AutoencoderKL, folder.files[0].parent, use_safetensors=True,
            torch_dtype=torch.float32, low_cpu_mem_usage=False, variant="fp16" if half else None,
        )  # fmt: skip
    # diffusers and safetensors each have exceptions of their own; whichever it was, this name does
    # not give an autoencoder.
    except Exception as error:
        raise CheckpointError(
            f"{source!r} gives no autoencoder ({type(error).__name__}).", remedy=_REMEDY
        ) from error
    return network, folder.files
