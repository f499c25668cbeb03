"""The two U-Nets of Karras et al., "Elucidating the Design Space of Diffusion-Based Generative
Models" (2022, arXiv 2206.00364), for evaluation.

:class:`SongUNet` is the family of Song et al. (2021): DDPM++ (positional embedding, plain encoder)
and NCSN++ (Fourier embedding, residual encoder, smooth resampling). :class:`DhariwalUNet` is ADM
(Dhariwal and Nichol, 2021). Both are described in appendix F.2 and table 7 of the paper.

Modules are named as in NVlabs/edm, so that a published state dict loads as it is, buffers included.
There is no dropout here: the networks are never trained. A fresh one has random weights that serve
to test it.

Tables (resampling filters, Fourier frequencies) are buffers in float32; a lower precision is given
to the parameters alone (:meth:`UNet.dtype`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

EmbeddingType = Literal["positional", "fourier"]
EncoderType = Literal["standard", "skip", "residual"]
DecoderType = Literal["standard", "skip"]

Number = int | float
"""What the files record whole numbers or fractions for, as it came."""

SONG_EPS = 1e-6
ADM_EPS = 1e-5
ADM_HEAD_CHANNELS = 64
_HALF = math.sqrt(0.5)


def _norm(channels: int, eps: float) -> nn.GroupNorm:
    """32 groups, or fewer so that each has at least four channels."""
    return nn.GroupNorm(min(32, channels // 4), channels, eps)


class PositionalEmbedding(nn.Module):
    """Cosines, then sines, of a number at geometrically falling frequencies (Ho et al., 2020).

    Args:
        num_channels: width of the embedding, even.
        max_positions: the ratio of the highest to the lowest frequency.
        endpoint: whether the lowest frequency is just 1 / ``max_positions``, or one step above.
    """

    def __init__(
        self, num_channels: int, max_positions: int = 10000, endpoint: bool = False
    ) -> None:
        super().__init__()
        self.num_channels, self.max_positions, self.endpoint = num_channels, max_positions, endpoint

    def forward(self, x: Float[Tensor, " b"]) -> Float[Tensor, "b c"]:
        """The embedding, in the precision of ``x``."""
        count = self.num_channels // 2
        position = torch.arange(count, dtype=torch.float32, device=x.device)
        frequencies = (1 / self.max_positions) ** (position / (count - self.endpoint))
        phase = x[:, None] * frequencies.to(x.dtype)
        return torch.cat([phase.cos(), phase.sin()], dim=1)


class FourierEmbedding(nn.Module):
    """Cosines, then sines, of a number at random but fixed frequencies (Song et al., 2021).

    Args:
        num_channels: width of the embedding, even.
        scale: standard deviation of the frequencies, in cycles per unit.
    """

    freqs: Tensor

    def __init__(self, num_channels: int, scale: Number = 16) -> None:
        super().__init__()
        self.register_buffer("freqs", scale * torch.randn(num_channels // 2))

    def forward(self, x: Float[Tensor, " b"]) -> Float[Tensor, "b c"]:
        """The embedding, in the precision of ``x``."""
        phase = x[:, None] * (2 * math.pi * self.freqs).to(x.dtype)
        return torch.cat([phase.cos(), phase.sin()], dim=1)


class ResampledConv(nn.Module):
    """A convolution, with its input enlarged or its output shrunk by two through a filter.

    Args:
        kernel: side of the square kernel, odd; 0 for resampling alone.
        up, down: whether to double or halve height and width; at most one of them.
        resample_filter: one axis of the separable filter, of even length; scaled to sum 1.
        fused_resample: whether the filter borders on the convolution without zeros padded in
            between; the result differs along the edges.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    resample_filter: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        up: bool = False,
        down: bool = False,
        resample_filter: Sequence[Number] = (1, 1),
        fused_resample: bool = False,
    ) -> None:
        super().__init__()
        self.up, self.down, self.fused_resample = up, down, fused_resample
        if kernel:
            spread = 1 / math.sqrt(in_channels * kernel**2)
            weight = spread * torch.randn(out_channels, in_channels, kernel, kernel)
            self.weight = nn.Parameter(weight)
            self.bias = nn.Parameter(torch.zeros(out_channels))
        else:
            self.weight = self.bias = None
        taps = torch.tensor(resample_filter, dtype=torch.float32)
        square = torch.outer(taps, taps) / taps.sum() ** 2
        self.register_buffer("resample_filter", square[None, None] if up or down else None)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d H W"]:
        """The convolution of ``x``, at its own size, twice or half of it."""
        edge = 0 if self.weight is None else self.weight.shape[-1] // 2
        if self.resample_filter is None:
            return self._convolved(x, edge)
        reach = (self.resample_filter.shape[-1] - 1) // 2
        if self.fused_resample and self.weight is not None:
            if self.up:
                x = self._enlarged(x, max(reach - edge, 0))
                return self._convolved(x, max(edge - reach, 0))
            return self._shrunk(self._convolved(x, edge + reach), 0)
        x = self._enlarged(x, reach) if self.up else self._shrunk(x, reach)
        return self._convolved(x, edge)

    def _convolved(self, x: Tensor, padding: int) -> Tensor:
        if self.weight is None:
            return x
        return F.conv2d(x, self.weight, self.bias, padding=padding)

    def _enlarged(self, x: Tensor, padding: int) -> Tensor:
        # Every second pixel of the input to the filter is a zero: four times the filter keeps the
        # brightness.
        filters = 4 * self._filters(x)
        return F.conv_transpose2d(x, filters, stride=2, padding=padding, groups=x.shape[1])

    def _shrunk(self, x: Tensor, padding: int) -> Tensor:
        return F.conv2d(x, self._filters(x), stride=2, padding=padding, groups=x.shape[1])

    def _filters(self, x: Tensor) -> Tensor:
        """The filter once for each channel of ``x``."""
        assert self.resample_filter is not None
        return self.resample_filter.to(x.dtype).expand(x.shape[1], -1, -1, -1)


class UNetBlock(nn.Module):
    """A residual block told of noise level and class, with or without self-attention.

    Two convolutions, each behind group normalisation and SiLU; the embedding moves the second
    normalisation. Resampling takes place in the first convolution and on the way past the block.

    Args:
        emb_channels: width of the embedding.
        up, down: whether to double or halve height and width.
        attention: whether self-attention follows.
        num_heads: of the attention; None gives one for every ``channels_per_head`` channels.
        skip_scale: factor of each sum of a branch and its input.
        eps: of the group normalisations.
        resample_filter: see :class:`ResampledConv`.
        resample_proj: whether resampling past the block has a convolution.
        adaptive_scale: whether the embedding scales and shifts, or only shifts.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        *,
        up: bool = False,
        down: bool = False,
        attention: bool = False,
        num_heads: int | None = None,
        channels_per_head: int = ADM_HEAD_CHANNELS,
        skip_scale: Number = 1.0,
        eps: float = ADM_EPS,
        resample_filter: Sequence[Number] = (1, 1),
        resample_proj: bool = False,
        adaptive_scale: bool = True,
    ) -> None:
        super().__init__()
        self.skip_scale, self.adaptive_scale = skip_scale, adaptive_scale
        resampling: dict[str, Any] = dict(up=up, down=down, resample_filter=resample_filter)
        self.norm0 = _norm(in_channels, eps)
        self.conv0 = ResampledConv(in_channels, out_channels, 3, **resampling)
        self.affine = nn.Linear(emb_channels, out_channels * (2 if adaptive_scale else 1))
        self.norm1 = _norm(out_channels, eps)
        self.conv1 = ResampledConv(out_channels, out_channels, 3)
        self.skip: ResampledConv | None = None
        if out_channels != in_channels or up or down:
            kernel = 1 if resample_proj or out_channels != in_channels else 0
            self.skip = ResampledConv(in_channels, out_channels, kernel, **resampling)
        # Where a level is narrower than a head, the published networks have no attention.
        self.num_heads = 0
        if attention:
            self.num_heads = out_channels // channels_per_head if num_heads is None else num_heads
        if self.num_heads:
            self.norm2 = _norm(out_channels, eps)
            self.qkv = ResampledConv(out_channels, 3 * out_channels, 1)
            self.proj = ResampledConv(out_channels, out_channels, 1)

    def forward(
        self, x: Float[Tensor, "b c h w"], emb: Float[Tensor, "#b e"]
    ) -> Float[Tensor, "b d H W"]:
        """The block's output; ``emb`` may be one row for the whole batch."""
        past = x if self.skip is None else self.skip(x)
        y: Tensor = self.conv0(F.silu(self.norm0(x)))
        moved = self.affine(emb)[:, :, None, None]
        if self.adaptive_scale:
            scale, shift = moved.chunk(2, dim=1)
            y = shift + (1 + scale) * self.norm1(y)
        else:
            y = self.norm1(y + moved)
        y = self.skip_scale * (past + self.conv1(F.silu(y)))
        return self.skip_scale * (y + self._attention(y)) if self.num_heads else y

    def _attention(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        # A head's channels come as query, key, value, query, key, value, ...
        heads = self.qkv(self.norm2(x)).reshape(b, self.num_heads, c // self.num_heads, 3, h * w)
        query, key, value = heads.transpose(2, 4).unbind(3)
        attended = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.proj(attended.transpose(2, 3).reshape(b, c, h, w))
        return out


class UNet(nn.Module, ABC):
    """What both U-Nets have in common: the path of blocks down and up again.

    ``enc`` and ``dec`` hold the blocks by their published names, such as ``32x32_block0``. A level
    k is 2**k times coarser than the image.

    Args:
        img_resolution: height and width of the images, in pixels.
        num_blocks: residual blocks of each level on the way down; there is one more on the way up.
        widths: channels of each level, finest first.
    """

    def __init__(self, img_resolution: int, num_blocks: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.sizes = [img_resolution >> level for level in range(len(widths))]
        self.num_blocks, self.widths = num_blocks, tuple(widths)
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()

    @abstractmethod
    def block(
        self,
        in_channels: int,
        out_channels: int,
        *,
        up: bool = False,
        down: bool = False,
        attention: bool = False,
    ) -> UNetBlock:
        """A residual block of this family."""

    @abstractmethod
    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        noise_labels: Float[Tensor, "#b"],
        class_labels: Float[Tensor, "#b k"] | None,
        augment_labels: Float[Tensor, "#b a"] | None = None,
    ) -> Float[Tensor, "b d h w"]:
        """The raw output F of the network.

        Args:
            x: noisy images times c_in, in :meth:`dtype`.
            noise_labels: c_noise, one for the batch or one an image.
            class_labels: one-hot rows, zeros for none; None if the network knows no classes.
            augment_labels: what was done to the images in training; None for nothing, zeros.
        """

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters, in which it computes."""
        return next(self.parameters()).dtype

    def _build(
        self,
        in_channels: int,
        stem: int,
        attention: Sequence[bool],
        *,
        attention_up: Literal["every block", "last block"],
    ) -> None:
        """Fills ``enc`` and ``dec`` with the main path.

        Args:
            stem: channels of the first convolution.
            attention: whether there is any at each level.
        """
        self.enc[f"{self.sizes[0]}x{self.sizes[0]}_conv"] = ResampledConv(in_channels, stem, 3)
        skips, width = [stem], stem
        for level, size in enumerate(self.sizes):
            if level:
                self.enc[f"{size}x{size}_down"] = self.block(width, width, down=True)
                skips.append(width)
            for k in range(self.num_blocks):
                block = self.block(width, self.widths[level], attention=attention[level])
                self.enc[f"{size}x{size}_block{k}"] = block
                width = self.widths[level]
                skips.append(width)
        for level, size in reversed(list(enumerate(self.sizes))):
            if level == len(self.sizes) - 1:
                self.dec[f"{size}x{size}_in0"] = self.block(width, width, attention=True)
                self.dec[f"{size}x{size}_in1"] = self.block(width, width)
            else:
                self.dec[f"{size}x{size}_up"] = self.block(width, width, up=True)
            for k in range(self.num_blocks + 1):
                here = attention[level]
                if attention_up == "last block":
                    here = here and k == self.num_blocks
                block = self.block(width + skips.pop(), self.widths[level], attention=here)
                self.dec[f"{size}x{size}_block{k}"] = block
                width = self.widths[level]

    @abstractmethod
    def _beside(self, size: int, x: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Joins features that have just been shrunk with a shrunken image.

        Args:
            size: height and width that ``x`` has.
            image: what runs beside the main path, still twice as large; at first the input.

        Returns:
            The features to go on with, and what runs beside them now.
        """

    def _down(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        """The features of every part of the way down, the last one coarsest."""
        image, features = x, []
        for level, size in enumerate(self.sizes):
            part = f"{size}x{size}_"
            if level:
                x, image = self._beside(size, self.enc[f"{part}down"](x, emb), image)
            else:
                x = self.enc[f"{part}conv"](x)
            features.append(x)
            for k in range(self.num_blocks):
                x = self.enc[f"{part}block{k}"](x, emb)
                features.append(x)
        return features

    def _up(self, features: list[Tensor], emb: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Comes up level by level and yields (level, features); takes ``features`` off its list."""
        x = features[-1]
        for level, size in reversed(list(enumerate(self.sizes))):
            part = f"{size}x{size}_"
            if level == len(self.sizes) - 1:
                x = self.dec[f"{part}in1"](self.dec[f"{part}in0"](x, emb), emb)
            else:
                x = self.dec[f"{part}up"](x, emb)
            for k in range(self.num_blocks + 1):
                x = self.dec[f"{part}block{k}"](torch.cat([x, features.pop()], dim=1), emb)
            yield level, x


class SongUNet(UNet):
    """DDPM++ and NCSN++ (Song et al., 2021; Karras et al., 2022, table 7, first two columns).

    Args:
        img_resolution: height and width of the images, in pixels.
        in_channels, out_channels: of the images.
        label_dim: number of classes, 0 for none.
        augment_dim: length of the augmentation labels, 0 for none.
        model_channels: base width.
        channel_mult: width of each level as a multiple of it, finest first.
        channel_mult_emb: width of the embedding of noise level and class, as a multiple of it.
        num_blocks: residual blocks of each level.
        attn_resolutions: sizes in pixels at which there is attention.
        embedding_type: of the noise level; "positional" for DDPM++, "fourier" for NCSN++.
        channel_mult_noise: width of that embedding; 1 for DDPM++, 2 for NCSN++.
        encoder_type: what runs beside the way down; "standard" is nothing, NCSN++ is "residual".
        decoder_type: "skip" adds up an image from all levels on the way up.
        resample_filter: (1, 1) for DDPM++, (1, 3, 3, 1) for NCSN++.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        embedding_type: EmbeddingType = "positional",
        channel_mult_noise: int = 1,
        encoder_type: EncoderType = "standard",
        decoder_type: DecoderType = "standard",
        resample_filter: Sequence[Number] = (1, 1),
    ) -> None:
        super().__init__(img_resolution, num_blocks, [model_channels * m for m in channel_mult])
        self.encoder_type, self.decoder_type = encoder_type, decoder_type
        self._resample_filter = tuple(resample_filter)
        self._emb_channels = model_channels * channel_mult_emb
        noise_channels = model_channels * channel_mult_noise
        self.map_noise: nn.Module
        if embedding_type == "positional":
            self.map_noise = PositionalEmbedding(noise_channels, endpoint=True)
        else:
            self.map_noise = FourierEmbedding(noise_channels)
        self.map_label = nn.Linear(label_dim, noise_channels) if label_dim else None
        self.map_augment = (
            nn.Linear(augment_dim, noise_channels, bias=False) if augment_dim else None
        )
        self.map_layer0 = nn.Linear(noise_channels, self._emb_channels)
        self.map_layer1 = nn.Linear(self._emb_channels, self._emb_channels)
        attention = [size in attn_resolutions for size in self.sizes]
        self._build(in_channels, model_channels, attention, attention_up="last block")
        self._build_beside(in_channels)
        self._build_heads(out_channels)

    def _build_beside(self, in_channels: int) -> None:
        taps, image = self._resample_filter, in_channels
        for level, size in enumerate(self.sizes[1:], start=1):
            # The width that arrives from the level above: shrinking does not change it.
            width, part = self.widths[level - 1], f"{size}x{size}_aux_"
            if self.encoder_type == "skip":
                down = ResampledConv(image, image, 0, down=True, resample_filter=taps)
                self.enc[f"{part}down"] = down
                self.enc[f"{part}skip"] = ResampledConv(image, width, 1)
            elif self.encoder_type == "residual":
                self.enc[f"{part}residual"] = ResampledConv(
                    image, width, 3, down=True, resample_filter=taps, fused_resample=True
                )
                image = width

    def _build_heads(self, out_channels: int) -> None:
        taps, coarsest = self._resample_filter, len(self.sizes) - 1
        for level, size in enumerate(self.sizes):
            part = f"{size}x{size}_aux_"
            if self.decoder_type == "skip" and level < coarsest:
                up = ResampledConv(out_channels, out_channels, 0, up=True, resample_filter=taps)
                self.dec[f"{part}up"] = up
            if self.decoder_type == "skip" or level == 0:
                self.dec[f"{part}norm"] = _norm(self.widths[level], SONG_EPS)
                self.dec[f"{part}conv"] = ResampledConv(self.widths[level], out_channels, 3)

    def block(
        self,
        in_channels: int,
        out_channels: int,
        *,
        up: bool = False,
        down: bool = False,
        attention: bool = False,
    ) -> UNetBlock:
        """One head, sums scaled to keep their variance, the embedding only shifts."""
        return UNetBlock(
            in_channels,
            out_channels,
            self._emb_channels,
            up=up,
            down=down,
            attention=attention,
            num_heads=1,
            skip_scale=_HALF,
            eps=SONG_EPS,
            resample_filter=self._resample_filter,
            resample_proj=True,
            adaptive_scale=False,
        )

    def _beside(self, size: int, x: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        part = f"{size}x{size}_aux_"
        if self.encoder_type == "residual":
            x = _HALF * (x + self.enc[f"{part}residual"](image))
            return x, x
        if self.encoder_type == "skip":
            image = self.enc[f"{part}down"](image)
            x = x + self.enc[f"{part}skip"](image)
        return x, image

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        noise_labels: Float[Tensor, "#b"],
        class_labels: Float[Tensor, "#b k"] | None,
        augment_labels: Float[Tensor, "#b a"] | None = None,
    ) -> Float[Tensor, "b d h w"]:
        """See :meth:`UNet.forward`."""
        # Trained with sines before cosines.
        cosines, sines = self.map_noise(noise_labels).chunk(2, dim=1)
        emb = torch.cat([sines, cosines], dim=1).to(x.dtype)
        if self.map_label is not None and class_labels is not None:
            # A one-hot row has unit variance an element at this scale.
            scale = math.sqrt(self.map_label.in_features)
            emb = emb + self.map_label(scale * class_labels.to(x.dtype))
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels.to(x.dtype))
        emb = F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))
        features = self._down(x, emb)
        image: Tensor | None = None
        for level, y in self._up(features, emb):
            part = f"{self.sizes[level]}x{self.sizes[level]}_aux_"
            if image is not None:
                image = self.dec[f"{part}up"](image)
            if self.decoder_type == "skip" or level == 0:
                own = self.dec[f"{part}conv"](F.silu(self.dec[f"{part}norm"](y)))
                image = own if image is None else image + own
        assert image is not None
        return image


class DhariwalUNet(UNet):
    """ADM (Dhariwal and Nichol, 2021; Karras et al., 2022, table 7, last column).

    Args:
        img_resolution: height and width of the images, in pixels.
        in_channels, out_channels: of the images; twice as many out if a variance was learned.
        label_dim: number of classes, 0 for none.
        augment_dim: length of the augmentation labels, 0 for none.
        model_channels: base width.
        channel_mult: width of each level as a multiple of it, finest first.
        channel_mult_emb: width of the embedding of noise level and class, as a multiple of it.
        num_blocks: residual blocks of each level.
        attn_resolutions: sizes in pixels at which there is attention, one head for 64 channels.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
    ) -> None:
        super().__init__(img_resolution, num_blocks, [model_channels * m for m in channel_mult])
        self._emb_channels = model_channels * channel_mult_emb
        self.map_noise = PositionalEmbedding(model_channels)
        self.map_augment = (
            nn.Linear(augment_dim, model_channels, bias=False) if augment_dim else None
        )
        self.map_layer0 = nn.Linear(model_channels, self._emb_channels)
        self.map_layer1 = nn.Linear(self._emb_channels, self._emb_channels)
        self.map_label = nn.Linear(label_dim, self._emb_channels, bias=False) if label_dim else None
        attention = [size in attn_resolutions for size in self.sizes]
        self._build(in_channels, self.widths[0], attention, attention_up="every block")
        self.out_norm = _norm(self.widths[0], ADM_EPS)
        self.out_conv = ResampledConv(self.widths[0], out_channels, 3)

    def block(
        self,
        in_channels: int,
        out_channels: int,
        *,
        up: bool = False,
        down: bool = False,
        attention: bool = False,
    ) -> UNetBlock:
        """A head for 64 channels, plain sums, the embedding scales and shifts."""
        return UNetBlock(
            in_channels, out_channels, self._emb_channels, up=up, down=down, attention=attention
        )

    def _beside(self, size: int, x: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        return x, image

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        noise_labels: Float[Tensor, "#b"],
        class_labels: Float[Tensor, "#b k"] | None,
        augment_labels: Float[Tensor, "#b a"] | None = None,
    ) -> Float[Tensor, "b d h w"]:
        """See :meth:`UNet.forward`."""
        emb = self.map_noise(noise_labels).to(x.dtype)
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels.to(x.dtype))
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        if self.map_label is not None and class_labels is not None:
            emb = emb + self.map_label(class_labels.to(x.dtype))
        emb = F.silu(emb)
        features = self._down(x, emb)
        for _, y in self._up(features, emb):
            x = y
        out: Tensor = self.out_conv(F.silu(self.out_norm(x)))
        return out
