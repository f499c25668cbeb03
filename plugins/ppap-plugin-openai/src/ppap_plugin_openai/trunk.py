"""The U-Net that ADM and GLIDE share: what its files hold, and where it goes in diffusers' blocks.

Both come from Dhariwal & Nichol, "Diffusion Models Beat GANs on Image Synthesis" (arXiv
2105.05233), section 3; GLIDE (Nichol et al., arXiv 2112.10741) adds text to every attention block.
A :class:`Trunk` describes one such network with every default resolved, :func:`contracting_half`
and :func:`expanding_half` list the tensors of its file as :class:`Entry`, and :func:`rearranged`
turns a file's tensors into a network's parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor, nn

from ppap_host.files.errors import OptionError

Shape = tuple[int, ...]

GROUPS: Final = 32
NORM_EPS: Final = 1e-5

# Which multipliers a resolution gets when the `channel_mult` flag is empty. The upsamplers take
# theirs from a table of their own, which differs at 512.
CHANNEL_MULT: Final[Mapping[int, tuple[float, ...]]] = {
    64: (1, 2, 3, 4),
    128: (1, 1, 2, 3, 4),
    256: (1, 1, 2, 2, 4, 4),
    512: (0.5, 1, 1, 2, 2, 4, 4),
}
UPSAMPLER_CHANNEL_MULT: Final[Mapping[int, tuple[float, ...]]] = {
    64: (1, 2, 3, 4),
    256: (1, 1, 2, 2, 4, 4),
    512: (1, 1, 2, 2, 4, 4),
}


@dataclass(frozen=True, kw_only=True)
class Trunk:
    """A U-Net, or the contracting half of one, with every default resolved.

    ``level_channels`` and ``level_attention`` run from full resolution to the coarsest level;
    ``text_channels`` is the width of the text whose keys and values join the image's, if any does.
    """

    image_size: int
    in_channels: int
    out_channels: int
    base_channels: int
    level_channels: tuple[int, ...]
    level_attention: tuple[bool, ...]
    num_res_blocks: int
    num_heads: int
    num_heads_upsample: int
    num_head_channels: int
    use_scale_shift_norm: bool
    resblock_updown: bool
    use_new_attention_order: bool
    dropout: float
    num_classes: int | None
    text_channels: int | None = None

    @property
    def time_channels(self) -> int:
        return 4 * self.base_channels

    def heads(self, channels: int, *, decoder: bool = False) -> int:
        """Attention heads at a width; the head width, where given, decides alone."""
        if self.num_head_channels != -1:
            return channels // self.num_head_channels
        if decoder and self.num_heads_upsample != -1:
            return self.num_heads_upsample
        return self.num_heads

    def check(self) -> None:
        """Raise :class:`OptionError` where the flags describe no network."""
        counts = {
            "image_size": self.image_size,
            "num_channels": self.base_channels,
            "num_res_blocks": self.num_res_blocks,
        }
        for name, count in counts.items():
            if count < 1:
                raise OptionError(f"{name} is {count}; it must be at least 1.")
        shrink = 2 ** (len(self.level_channels) - 1)
        if self.image_size % shrink:
            raise OptionError(
                f"image_size {self.image_size} cannot be halved "
                f"{len(self.level_channels) - 1} times, once for each step of channel_mult."
            )
        for channels in self.level_channels:
            if channels < 1 or channels % GROUPS:
                raise OptionError(
                    f"num_channels and channel_mult give a level of {channels} channels, "
                    f"which {GROUPS} normalisation groups do not divide."
                )
        with_attention = {
            channels
            for channels, attends in zip(self.level_channels, self.level_attention, strict=True)
            if attends
        } | {self.level_channels[-1]}
        for channels in sorted(with_attention):
            if self.num_head_channels != -1:
                parts = {"num_head_channels": self.num_head_channels}
            else:
                parts = {
                    "num_heads": self.heads(channels),
                    "num_heads_upsample": self.heads(channels, decoder=True),
                }
            for name, part in parts.items():
                if part < 1 or channels % part:
                    raise OptionError(
                        f"{name} {part} does not divide the {channels} channels of an "
                        "attention block."
                    )


def default_channel_mult(
    image_size: int, table: Mapping[int, tuple[float, ...]]
) -> tuple[float, ...]:
    if image_size not in table:
        raise OptionError(
            f"There is no default channel_mult for image_size {image_size}.",
            remedy=f"Give channel_mult, or one of the sizes {', '.join(map(str, table))}.",
        )
    return table[image_size]


@dataclass(frozen=True)
class Entry:
    """A tensor of the published file.

    Attributes:
        name: its name in the file.
        shape: its shape in the file.
        targets: the parameter it becomes, or those that its rows are dealt out to.
        interleaved_heads: 0 where the rows of queries, keys and values lie in three blocks;
            else the number of heads, each with queries, keys and values of its own in turn.
            Of text there are only keys and values.
    """

    name: str
    shape: Shape
    targets: tuple[str, ...]
    interleaved_heads: int = 0


def weight_and_bias(name: str, target: str, shape: Shape) -> Iterator[Entry]:
    yield Entry(f"{name}.weight", shape, (f"{target}.weight",))
    yield Entry(f"{name}.bias", shape[:1], (f"{target}.bias",))


def _residual_block(
    name: str, target: str, trunk: Trunk, channels: int, out: int
) -> Iterator[Entry]:
    modulation = 2 * out if trunk.use_scale_shift_norm else out
    yield from weight_and_bias(f"{name}.in_layers.0", f"{target}.norm1", (channels,))
    yield from weight_and_bias(f"{name}.in_layers.2", f"{target}.conv1", (out, channels, 3, 3))
    yield from weight_and_bias(
        f"{name}.emb_layers.1", f"{target}.time_emb_proj", (modulation, trunk.time_channels)
    )
    yield from weight_and_bias(f"{name}.out_layers.0", f"{target}.norm2", (out,))
    yield from weight_and_bias(f"{name}.out_layers.3", f"{target}.conv2", (out, out, 3, 3))
    if channels != out:
        yield from weight_and_bias(
            f"{name}.skip_connection", f"{target}.conv_shortcut", (out, channels, 1, 1)
        )


def _attention_block(
    name: str, target: str, trunk: Trunk, channels: int, *, decoder: bool = False
) -> Iterator[Entry]:
    heads = 0 if trunk.use_new_attention_order else trunk.heads(channels, decoder=decoder)
    yield from weight_and_bias(f"{name}.norm", f"{target}.group_norm", (channels,))
    for part, shape in (("weight", (3 * channels, channels, 1)), ("bias", (3 * channels,))):
        targets = tuple(f"{target}.to_{role}.{part}" for role in "qkv")
        yield Entry(f"{name}.qkv.{part}", shape, targets, heads)
    if trunk.text_channels is not None:
        text = (2 * channels, trunk.text_channels, 1)
        for part, shape in (("weight", text), ("bias", text[:1])):
            targets = tuple(f"{target}.add_{role}_proj.{part}" for role in "kv")
            yield Entry(f"{name}.encoder_kv.{part}", shape, targets, heads)
    yield from weight_and_bias(f"{name}.proj_out", f"{target}.to_out.0", (channels, channels, 1))


def _resampler(
    name: str, target: str, trunk: Trunk, channels: int, convolution: str
) -> Iterator[Entry]:
    if trunk.resblock_updown:
        yield from _residual_block(name, target, trunk, channels, channels)
    else:
        yield from weight_and_bias(
            f"{name}.{convolution}", f"{target}.conv", (channels, channels, 3, 3)
        )


def skip_channels(trunk: Trunk) -> list[int]:
    """Widths of the contracting half's outputs, in order: one for each of its blocks."""
    skips = [trunk.level_channels[0]]
    for level, channels in enumerate(trunk.level_channels):
        last = level == len(trunk.level_channels) - 1
        skips += [channels] * (trunk.num_res_blocks + (not last))
    return skips


def contracting_half(trunk: Trunk) -> Iterator[Entry]:
    """Timestep and class embedding, the levels going down, and the middle."""
    time, base = trunk.time_channels, trunk.base_channels
    yield from weight_and_bias("time_embed.0", "time_embedding.linear_1", (time, base))
    yield from weight_and_bias("time_embed.2", "time_embedding.linear_2", (time, time))
    if trunk.num_classes is not None:
        yield Entry("label_emb.weight", (trunk.num_classes, time), ("class_embedding.weight",))

    width = trunk.level_channels[0]
    yield from weight_and_bias("input_blocks.0.0", "conv_in", (width, trunk.in_channels, 3, 3))
    block = 1
    for level, channels in enumerate(trunk.level_channels):
        target = f"down_blocks.{level}"
        for layer in range(trunk.num_res_blocks):
            name = f"input_blocks.{block}"
            yield from _residual_block(
                f"{name}.0", f"{target}.resnets.{layer}", trunk, width, channels
            )
            width = channels
            if trunk.level_attention[level]:
                yield from _attention_block(
                    f"{name}.1", f"{target}.attentions.{layer}", trunk, width
                )
            block += 1
        if level < len(trunk.level_channels) - 1:
            yield from _resampler(
                f"input_blocks.{block}.0", f"{target}.downsamplers.0", trunk, width, "op"
            )
            block += 1

    yield from _residual_block("middle_block.0", "mid_block.resnets.0", trunk, width, width)
    yield from _attention_block("middle_block.1", "mid_block.attentions.0", trunk, width)
    yield from _residual_block("middle_block.2", "mid_block.resnets.1", trunk, width, width)


def expanding_half(trunk: Trunk) -> Iterator[Entry]:
    """The levels going up, and the output."""
    skips = skip_channels(trunk)
    width = trunk.level_channels[-1]
    block = 0
    for up, level in enumerate(reversed(range(len(trunk.level_channels)))):
        channels, attends = trunk.level_channels[level], trunk.level_attention[level]
        target = f"up_blocks.{up}"
        for layer in range(trunk.num_res_blocks + 1):
            name = f"output_blocks.{block}"
            yield from _residual_block(
                f"{name}.0", f"{target}.resnets.{layer}", trunk, width + skips.pop(), channels
            )
            width = channels
            if attends:
                yield from _attention_block(
                    f"{name}.1", f"{target}.attentions.{layer}", trunk, width, decoder=True
                )
            block += 1
        if level > 0:
            # The file puts the resampler into the level's last block, after any attention.
            name = f"output_blocks.{block - 1}.{1 + attends}"
            yield from _resampler(name, f"{target}.upsamplers.0", trunk, width, "conv")
    yield from weight_and_bias("out.0", "conv_norm_out", (width,))
    yield from weight_and_bias("out.2", "conv_out", (trunk.out_channels, width, 3, 3))


def rearranged(tensor: Tensor, entry: Entry) -> dict[str, Tensor]:
    """The parameters that a file's tensor becomes, in float32 and in memory of their own."""
    if tensor.ndim == 3:
        # A 1-d convolution of kernel size 1 is a linear map.
        tensor = tensor.squeeze(2)
    if entry.interleaved_heads:
        by_head = tensor.reshape(entry.interleaved_heads, len(entry.targets), -1, *tensor.shape[1:])
        parts = [part.flatten(0, 1) for part in by_head.unbind(1)]
    else:
        parts = list(tensor.chunk(len(entry.targets)))
    return {
        target: part.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        for target, part in zip(entry.targets, parts, strict=True)
    }


def finish(unet: nn.Module, trunk: Trunk) -> None:
    """Sets on diffusers' network what its options cannot express.

    These are a number of heads that is the same at every width, and a timestep embedding that is
    not as wide as the first level.
    """
    for name, module in unet.named_modules():
        if isinstance(module, Attention):
            heads = trunk.heads(module.inner_dim, decoder=name.startswith("up_blocks"))
            module.heads = module.sliceable_head_dim = heads
            module.scale = (module.inner_dim // heads) ** -0.5
            module.register_forward_hook(_channels_first)
    if trunk.base_channels != trunk.level_channels[0]:
        time_proj = Timesteps(trunk.base_channels, flip_sin_to_cos=True, downscale_freq_shift=0)
        unet.add_module("time_proj", time_proj)
        unet.add_module(
            "time_embedding", TimestepEmbedding(trunk.base_channels, trunk.time_channels)
        )


def _channels_first(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    """Forward hook: lay the result out in memory channel by channel.

    diffusers' attention returns a transposed view, which makes the layers after it work
    channels-last; torch's group normalisation on the CPU is then about ten times less accurate.
    """
    return output.contiguous()
