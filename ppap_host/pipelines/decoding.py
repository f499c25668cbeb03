"""How a pipeline's state becomes a picture: unpacked, brought to its autoencoder's scale, decoded.

What a pipeline needs is read from its components and from the state that it steps, not from the
name of its class; where two families mean different things by the same shape, the difference is one
line here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from diffusers import DiffusionPipeline, ModularPipeline
from diffusers.modular_pipelines.modular_pipeline import PipelineState
from torch import Tensor
from torch.nn import functional as F

from ppap_host.files.errors import OptionError
from ppap_host.pipelines.autoencoder import LentAutoencoder, small_decoder

_DECODERS = ("vae", "movq", "vqgan", "vqvae")
"""What pipelines call their autoencoder."""

_CHANNELS_LAST = ("Kandinsky5",)
_FRAMES_FIRST = ("CogVideoX", "ConsisID", "StableVideoDiffusion")
_FRAMES_IN_BATCH = ("TextToVideoSD", "VideoToVideoSD", "I2VGenXL")
_PATCH_FIRST = ("Ideogram4",)
_MODEL_FIRST = ("WanAnimate2",)
_UNSCALED = ("GlmImage",)
"""Pipelines, by how their names begin, that have their states in another order than the others: the
channels at the end, the frames before the channels, the frames as rows of the batch, a patch's
pixels before its channels; whose first frame is the place of the picture that the video follows,
and no part of it; or that leave the scaling of an autoencoder aside which has a mean and a standard
deviation."""


@dataclass(frozen=True)
class Layout:
    """How the entries of a state are put in rows and columns.

    Attributes:
        index: for each entry of a picture's state [c, f, h, w] its place in the pipeline's state.
        shape: of the pipeline's state, without the batch.
        video: whether the state has frames.
        in_batch: whether the first of ``shape``, the frames, are rows of the pipeline's batch.
    """

    index: Tensor
    shape: tuple[int, ...]
    video: bool = False
    in_batch: bool = False

    @property
    def plane(self) -> tuple[int, int, int]:
        """(channels times frames, height, width): what recipes and solvers work on."""
        channels, frames, height, width = self.index.shape
        return channels * frames, height, width

    def laid_out(self, state: Tensor) -> Tensor:
        """[b, c f, h, w] from the pipeline's state [b, ...]; linear."""
        flat = state.reshape(-1, torch.Size(self.shape).numel())
        return flat[:, self.index.flatten().to(flat.device)].view(len(flat), *self.plane)

    def put_back(self, rows: Tensor) -> Tensor:
        """The pipeline's state [b, ...] from [b, c f, h, w]; zero where it has nothing of it."""
        flat = rows.new_zeros(len(rows), torch.Size(self.shape).numel())
        flat[:, self.index.flatten().to(flat.device)] = rows.reshape(len(rows), -1)
        return flat.view(-1, *self.shape[1 if self.in_batch else 0 :])

    def frames(self, rows: Tensor) -> Tensor:
        """[b, c, f, h, w] from [b, c f, h, w]."""
        channels, frames, height, width = self.index.shape
        return rows.view(len(rows), channels, frames, height, width)


class Decoder:
    """The pictures that a pipeline's states stand for.

    Args:
        pipe: a pipeline of diffusers, classic or modular.
        frames: which frames of a video are looked at: so many, evenly spread, or these.
        small: a smaller autoencoder for the same latents, such as an ``AutoencoderTiny``, or its
            hub name or folder, that decodes instead of the pipeline's own; None for that.
        shrink: pictures are looked at in 1 / shrink of their height and width.

    Raises:
        CheckpointError: there is no such autoencoder.
        OptionError: the pipeline makes no pictures, or the autoencoder is for other latents.
    """

    def __init__(
        self, pipe: Any, frames: int | Sequence[int] = 3, small: Any = None, shrink: int = 1
    ) -> None:
        self.pipe, self._wanted, self._shrink = pipe, frames, shrink
        self._name = type(pipe).__name__
        name, network = _decoder_of(pipe)
        if getattr(pipe, "vocoder", None) is not None and getattr(pipe, "audio_vae", None) is None:
            raise OptionError(
                f"{self._name} makes sound, and guides look at pictures.",
                remedy="Use a pipeline that makes pictures or videos.",
            )
        self.autoencoder: LentAutoencoder | None = None
        if network is not None:
            self.autoencoder = _lent(name, network, self._name.startswith(_UNSCALED))
        self._shown = self.autoencoder if small is None else self._smaller(small)
        self._factor: int | None = None

    def _smaller(self, small: Any) -> LentAutoencoder:
        if isinstance(small, str):
            network, _ = small_decoder(small)
            found = LentAutoencoder(network.requires_grad_(False).eval(), movable=True)
        else:
            found = LentAutoencoder(small)
        own = self.autoencoder
        if own is None or own.video or found.channels != own.channels:
            raise OptionError(
                f"The small decoder is for pictures with latents of {found.channels} channels, "
                f"and those of {self._name} are others.",
                remedy="Give the one that was made for this kind of model, or leave it out.",
            )
        return found

    @staticmethod
    def network_of(pipe: Any) -> Any:
        """The autoencoder of a pipeline as it is, None for pixels."""
        return _decoder_of(pipe)[1]

    @contextmanager
    def lent(self) -> Iterator[None]:
        """The autoencoder made ready; afterwards it is as it was."""
        with nullcontext() if self._shown is None else self._shown.lent():
            yield

    @property
    def factor(self) -> int:
        """Pixels of a picture along each side of one cell of its latents."""
        if self._factor is None:
            self._factor = 1
            if self.autoencoder is not None:
                self._factor = self._decoded_frames(1)[1] // _PROBE
        return self._factor

    def layout(self, state: Tensor, frame: FrameType | None) -> Layout:
        """How the state is put in rows and columns.

        Args:
            state: as the pipeline gives it to its scheduler, [b, ...].
            frame: of the call in which it does; the height and the width of a packed state, which
                has none, are looked up there.

        Raises:
            OptionError: it is no picture's state.
        """
        shape = tuple(state.shape[1:])
        places = torch.arange(torch.Size(shape).numel()).view(shape)
        if state.ndim == 3:
            return self._packed(places, frame)
        if state.ndim == 4:
            self._check(shape[0], state)
            if self._name.startswith(_FRAMES_IN_BATCH):
                count = int(_told(frame, "frames"))
                places = torch.arange(count * places.numel()).view(count, *shape)
                index = places.transpose(0, 1)
                return Layout(index, tuple(places.shape), video=count > 1, in_batch=True)
            if self.autoencoder is not None and shape[0] == 4 * self.autoencoder.channels:
                places = F.pixel_shuffle(places.double(), 2).long()  # patches of 2 x 2 as channels
            return Layout(places[:, None], shape)
        if state.ndim == 6 and len(places) == 1:  # Cosmos 3's, whose batch is always one
            places = places[0]
        if places.ndim == 4:
            order = (0, 1, 2, 3)
            if self._name.startswith(_CHANNELS_LAST):
                order = (3, 0, 1, 2)
            elif self._name.startswith(_FRAMES_FIRST):
                order = (1, 0, 2, 3)
            index = places.permute(order)
            self._check(len(index), state)
            if self._name.startswith(_MODEL_FIRST):
                index = index[:, 1:]
            return Layout(index, shape, video=index.shape[1] > 1)
        raise self._no_picture(state)

    def image_size(self, layout: Layout) -> tuple[int, int]:
        """(height, width) in pixels of the pictures that are looked at."""
        height, width = (max(side // self._shrink, 1) for side in layout.index.shape[2:])
        return height * self.factor, width * self.factor

    def decode(self, rows: Tensor, layout: Layout) -> Tensor:
        """RGB in about [-1, 1], [b n, 3, H, W], from clean states [b, c f, h, w]; differentiable.

        Of a video, the n frames that are looked at, one after the other; of a picture n is 1. Of
        pictures with transparency the colours are looked at.
        """
        return self._decoded(rows, layout)[:, :3]

    def _decoded(self, rows: Tensor, layout: Layout) -> Tensor:
        z = layout.frames(rows)
        if self._shrink > 1:
            height, width = (max(side // self._shrink, 1) for side in z.shape[3:])
            z = F.adaptive_avg_pool3d(z, (z.shape[2], height, width))
        if not layout.video:
            z = z[:, :, 0]
            return z if self._shown is None else self._shown.decode(z)
        wanted = list(self.looked_at(layout))
        if self._shown is None or not self._shown.video:
            z = z[:, :, wanted]
            return self._flat(z if self._shown is None else self._shown.decode(z))
        video = self._shown.decode(z[:, :, : self._needed(max(wanted), layout)])
        return self._flat(video[:, :, wanted])

    def looked_at(self, layout: Layout) -> tuple[int, ...]:
        """Which frames of a video the guide is shown.

        Raises:
            OptionError: there is no such frame.
        """
        count = layout.index.shape[1]
        if self.autoencoder is not None and self.autoencoder.video:
            count = self._frames(count)
        if isinstance(self._wanted, int):
            number = min(max(self._wanted, 1), count)
            if number == 1:
                return (0,)
            return tuple(round(i * (count - 1) / (number - 1)) for i in range(number))
        for wanted in self._wanted:
            if not -count <= wanted < count:
                raise OptionError(
                    f"There is no frame {wanted}: the video has {count}.",
                    remedy=f"Give frames from 0 to {count - 1}.",
                )
        return tuple(wanted % count for wanted in self._wanted)

    def _flat(self, video: Tensor) -> Tensor:
        return video.transpose(1, 2).flatten(0, 1)

    def _frames(self, latent_frames: int) -> int:
        """How many frames so many frames of latents are decoded to."""
        one, two = self._decoded_frames(1)[0], self._decoded_frames(2)[0]
        return one + (latent_frames - 1) * (two - one)

    def _needed(self, frame: int, layout: Layout) -> int:
        """How many frames of latents decide about a frame of the video and those before it."""
        assert self.autoencoder is not None
        count = layout.index.shape[1]
        # Most decoders are causal: a frame depends on no later one.
        if not self.autoencoder.network.config.get("decoder_causal", True):
            return count
        return next(n for n in range(1, count + 1) if self._frames(n) > frame)

    @torch.no_grad()
    def _decoded_frames(self, latent_frames: int) -> tuple[int, int]:
        """(frames, height) of what a few cells of latents are decoded to."""
        assert self.autoencoder is not None
        network = self.autoencoder.network
        size = (1, self.autoencoder.channels, latent_frames, _PROBE, _PROBE)
        own = torch.zeros(size, device=self.autoencoder.device, dtype=network.dtype)
        video = self.autoencoder.decode(own if self.autoencoder.video else own[:, :, 0])
        return (video.shape[2] if video.ndim == 5 else latent_frames), video.shape[-2]

    def _check(self, channels: int, state: Tensor) -> None:
        """Whether states with so many channels are those of pictures."""
        if self.autoencoder is None:
            wanted: tuple[int, ...] = (3,)
        else:
            wanted = (self.autoencoder.channels,)
            if hasattr(self.autoencoder.network, "bn"):
                wanted = (*wanted, 4 * self.autoencoder.channels)
        if channels not in wanted:
            raise self._no_picture(state)

    def _packed(self, places: Tensor, frame: FrameType | None) -> Layout:
        """Tokens [n, c p p], a row of patches after the other, as Flux has them."""
        tokens, width = places.shape
        if self.autoencoder is None:
            raise self._no_picture(places[None])
        told = {name: _told(frame, name) for name in ("height", "width")}
        missing = [name for name, value in told.items() if value is None]
        if missing:
            raise OptionError(
                f"{self._name} packs its states, and nothing says what their "
                f"{' and '.join(missing)} is.",
                remedy="Give the pipeline's call height and width.",
            )
        channels = self.autoencoder.channels
        for patch in (1, 2, 4):
            rows, columns = (int(told[name]) // (self.factor * patch) for name in told)
            if width != channels * patch**2 or not rows * columns or tokens % (rows * columns):
                continue
            count = tokens // (rows * columns)
            grid = places.view(count, rows, columns, width)
            if self._name.startswith(_PATCH_FIRST):
                parts = grid.unflatten(3, (patch, patch, channels)).permute(5, 0, 1, 3, 2, 4)
            else:
                parts = grid.unflatten(3, (channels, patch, patch)).permute(3, 0, 1, 4, 2, 5)
            index = parts.reshape(channels, count, rows * patch, columns * patch)
            return Layout(index, (tokens, width), video=count > 1)
        raise self._no_picture(places[None])

    def _no_picture(self, state: Tensor) -> OptionError:
        by = "no autoencoder" if self.autoencoder is None else "its autoencoder"
        return OptionError(
            f"{self._name} steps a state of shape {list(state.shape)}, and {by} makes "
            f"{'a picture of it' if self.autoencoder is None else 'no picture of it'}.",
            remedy="Use the pipeline that makes the picture, not one that prepares its conditions.",
        )


_PROBE = 8
"""Height and width of the few cells of latents from which a decoder's factor is found."""


def _decoder_of(pipe: Any) -> tuple[str, Any]:
    found = [(name, getattr(pipe, name, None)) for name in _DECODERS]
    return next(((name, network) for name, network in found if network is not None), ("", None))


def _lent(name: str, network: Any, unscaled: bool) -> LentAutoencoder:
    if name == "movq":  # Kandinsky's, whose latents are used as they are
        return LentAutoencoder(network, scaling=1.0, force_not_quantize=True)
    return LentAutoencoder(network, scaling=1.0 if unscaled else None)


def _told(frame: FrameType | None, name: str) -> Any:
    """What the call of a pipeline that ``frame`` is part of knows by a name.

    Classic pipelines have it as a variable of their own, modular ones in what their blocks share.
    """
    while frame is not None:
        local = frame.f_locals
        for found in (local.get(name), *(_held(local.get(h), name) for h in _HOLDERS)):
            if found is not None:
                return found
        if isinstance(local.get("self"), DiffusionPipeline | ModularPipeline):
            return None
        frame = frame.f_back
    return None


_HOLDERS = ("block_state", "state")


def _held(holder: Any, name: str) -> Any:
    return holder.get(name) if isinstance(holder, PipelineState) else getattr(holder, name, None)
