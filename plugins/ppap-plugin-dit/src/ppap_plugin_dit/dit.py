"""Diffusion transformers (DiT) from facebookresearch/DiT's own files.

The network is that of Peebles and Xie, "Scalable Diffusion Models with Transformers" (ICCV 2023,
arXiv 2212.09748), section 3.2 with adaLN-Zero blocks. Its files are loaded unchanged into
diffusers' :class:`~diffusers.DiTTransformer2DModel`, of which two things are set as the published
network has them: the frequencies of the timestep embedding end at 1 / 10000^(127 / 128), not at
1 / 10000 (``downscale_freq_shift`` 0), and all normalisations have epsilon 1e-6. With diffusers'
own defaults the output of converted weights is off by up to a fourth of its size.

* :class:`DiTConfig` holds the arguments of the published constructor, :data:`PUBLISHED` those of
  the two published files.
* :func:`read_dit` reads a file, :func:`infer_config` tells its configuration from the shapes,
  :func:`load_dit` returns the network.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import DiTTransformer2DModel
from diffusers.models.attention import FeedForward
from diffusers.models.embeddings import Timesteps
from torch import Tensor

from ppap_host.files.checkpoints import read_state_dict, renamed, require_layout
from ppap_host.files.errors import CheckpointError, OptionError, nearest
from ppap_host.files.models import read_json

Shape = tuple[int, ...]

PUBLISHED_URL: Final = "https://dl.fbaipublicfiles.com/DiT/models/"
"""Where the published files lie; append the name of :data:`PUBLISHED`."""

FREQUENCIES: Final = 256
"""Width of the sinusoidal timestep embedding, the same in every DiT."""

# Attention heads of the paper's networks (table 1) by width and depth: S, B, L and XL.
_HEADS: Final[Mapping[tuple[int, int], int]] = {
    (384, 12): 6,
    (768, 12): 12,
    (1024, 24): 16,
    (1152, 28): 16,
}


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """What a DiT is built from; defaults are those of DiT-XL/2 for 256 x 256 pixels.

    Attributes:
        input_size: height and width of the latents.
        patch_size: height and width of a token in latents.
        in_channels: of the latents.
        hidden_size: width of the tokens.
        depth: number of blocks.
        num_heads: attention heads of every block.
        mlp_size: width inside a block's feed-forward part.
        num_classes: class labels, 0 to ``num_classes`` - 1.
        null_class: whether one more label, ``num_classes``, stands for no class. Networks trained
            with label dropout have it.
        learn_sigma: whether the network learned the variance as well.

    Raises:
        OptionError: the values describe no network.
    """

    input_size: int = 32
    patch_size: int = 2
    in_channels: int = 4
    hidden_size: int = 1152
    depth: int = 28
    num_heads: int = 16
    mlp_size: int = 4608
    num_classes: int = 1000
    null_class: bool = True
    learn_sigma: bool = True

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is not type(field.default) or (type(value) is int and value < 1):
                raise OptionError(f"{field.name} of a DiT cannot be {value!r}.")
        if self.input_size % self.patch_size:
            raise OptionError(
                f"Patches of {self.patch_size} do not cover latents of {self.input_size}."
            )
        if self.hidden_size % self.num_heads:
            raise OptionError(
                f"{self.num_heads} attention heads do not divide the width {self.hidden_size}."
            )
        if self.hidden_size % 4:
            raise OptionError(f"The width {self.hidden_size} is no multiple of 4.")

    @classmethod
    def from_arguments(
        cls, arguments: Mapping[str, Any], base: DiTConfig | None = None
    ) -> DiTConfig:
        """From arguments of the published constructor, by their names there.

        Args:
            arguments: any of ``input_size``, ``patch_size``, ``in_channels``, ``hidden_size``,
                ``depth``, ``num_heads``, ``mlp_ratio``, ``class_dropout_prob``, ``num_classes`` and
                ``learn_sigma``.
            base: what the others are, by default DiT-XL/2's.

        Raises:
            OptionError: a name is unknown, or the values describe no network.
        """
        values = dict(arguments)
        base = cls() if base is None else base
        ratio = values.pop("mlp_ratio", None)
        dropout = values.pop("class_dropout_prob", None)
        known = {field.name for field in fields(cls)} - {"mlp_size", "null_class"}
        unknown = sorted(values.keys() - known)
        if unknown:
            names = sorted(known | {"mlp_ratio", "class_dropout_prob"})
            close = nearest(unknown[0], names)
            raise OptionError(
                f"{unknown[0]!r} is no argument of a DiT.",
                remedy=f"{f'Did you mean {close[0]!r}? ' if close else ''}Known: "
                f"{', '.join(names)}.",
            )
        for name, value in (("mlp_ratio", ratio), ("class_dropout_prob", dropout)):
            if value is not None and (not _is_number(value) or not 0 <= value < 1024):
                raise OptionError(f"{name} of a DiT cannot be {value!r}.")
        if ratio is None and base.mlp_size == 4 * base.hidden_size:
            ratio = 4.0
        if ratio is not None:
            width = values.get("hidden_size", base.hidden_size)
            values["mlp_size"] = int(width * ratio) if isinstance(width, int) else 0
        if dropout is not None:
            null_class = dropout > 0
            if "num_classes" not in values and null_class != base.null_class:
                # What the shapes told were the rows of the table, the null class among them.
                values["num_classes"] = base.num_classes + base.null_class - null_class
            values["null_class"] = null_class
        return replace(base, **values)


PUBLISHED: Final[Mapping[str, DiTConfig]] = {
    "DiT-XL-2-256x256.pt": DiTConfig(),
    "DiT-XL-2-512x512.pt": DiTConfig(input_size=64),
}
"""Published files and what they hold."""


def published_layout(config: DiTConfig) -> dict[str, Shape]:
    """Name and shape of every tensor in a published file of this configuration."""
    d, p, c = config.hidden_size, config.patch_size, config.in_channels
    tokens = (config.input_size // p) ** 2
    layout: dict[str, Shape] = {
        "pos_embed": (1, tokens, d),
        "x_embedder.proj.weight": (d, c, p, p),
        "x_embedder.proj.bias": (d,),
        "t_embedder.mlp.0.weight": (d, FREQUENCIES),
        "t_embedder.mlp.0.bias": (d,),
        "t_embedder.mlp.2.weight": (d, d),
        "t_embedder.mlp.2.bias": (d,),
        "y_embedder.embedding_table.weight": (config.num_classes + config.null_class, d),
    }
    linear = {
        "attn.qkv": (3 * d, d),
        "attn.proj": (d, d),
        "mlp.fc1": (config.mlp_size, d),
        "mlp.fc2": (d, config.mlp_size),
        "adaLN_modulation.1": (6 * d, d),
    }
    out = p * p * c * (2 if config.learn_sigma else 1)
    parts = {f"blocks.{i}.{k}": s for i in range(config.depth) for k, s in linear.items()}
    parts |= {"final_layer.linear": (out, d), "final_layer.adaLN_modulation.1": (2 * d, d)}
    for name, shape in parts.items():
        layout |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return layout


def identify(shapes: Mapping[str, Shape]) -> Sequence[str]:
    """The published files whose tensors have these shapes."""
    return [name for name, config in PUBLISHED.items() if published_layout(config) == shapes]


def read_dit(path: str | os.PathLike[str], remarks: list[str] | None = None) -> dict[str, Tensor]:
    """The named tensors of a DiT's file: plain, or those under "ema" of a training checkpoint.

    Args:
        remarks: what had to be chosen in the file is added here, a sentence each.

    Returns:
        Tensors on the CPU, which may be backed by the file.

    Raises:
        CheckpointError: the file is missing, unreadable, damaged, cut short, or holds something
            else.
    """
    state = read_state_dict(path, remarks)
    # Of any DiT there are all of these.
    return renamed(state, published_layout(DiTConfig(depth=1)), remarks)


def infer_config(shapes: Mapping[str, Shape], num_heads: int | None = None) -> DiTConfig:
    """The configuration that a file's tensors have.

    Whether the last row of the class table stands for no class cannot be told; it is taken to, as
    in every published training.

    Args:
        num_heads: of every block, None for those of the paper's network of this width and depth.

    Raises:
        CheckpointError: these are not the tensors of a DiT, or the heads cannot be known.
    """
    expected = {
        "pos_embed": 3,
        "x_embedder.proj.weight": 4,
        "y_embedder.embedding_table.weight": 2,
        "blocks.0.mlp.fc1.weight": 2,
        "final_layer.linear.weight": 2,
    }
    for name, dimensions in expected.items():
        if len(shapes.get(name, ())) == dimensions:
            continue
        if any(key.startswith("transformer_blocks.") for key in shapes):
            raise CheckpointError(
                "The tensors have the names of diffusers' conversion of a DiT.",
                remedy=f"Give the original file ({PUBLISHED_URL}).",
            )
        found = "is missing" if name not in shapes else f"has the shape {shapes[name]}"
        raise CheckpointError(
            f"The tensors are not those of a DiT: {name!r} {found}.",
            remedy=f"Give a file of facebookresearch/DiT ({PUBLISHED_URL}).",
        )
    d, c, p, _ = shapes["x_embedder.proj.weight"]
    depth = len({m[1] for m in (re.match(r"blocks\.(\d+)\.", key) for key in shapes) if m})
    heads = _HEADS.get((d, depth)) if num_heads is None else num_heads
    if heads is None:
        raise CheckpointError(
            f"A DiT of width {d} and depth {depth} is none of the paper's, and the number of its "
            "attention heads cannot be told from its tensors.",
            remedy='Write {"num_heads": ...} to a JSON file beside the checkpoint, '
            "model.pt.json for model.pt.",
        )
    try:
        return DiTConfig(
            input_size=math.isqrt(shapes["pos_embed"][1]) * p,
            patch_size=p,
            in_channels=c,
            hidden_size=d,
            depth=depth,
            num_heads=heads,
            mlp_size=shapes["blocks.0.mlp.fc1.weight"][0],
            num_classes=shapes["y_embedder.embedding_table.weight"][0] - 1,
            learn_sigma=shapes["final_layer.linear.weight"][0] > c * p * p,
        )
    except OptionError as error:
        raise CheckpointError(f"The tensors' shapes give no DiT. {error}") from error


def read_arguments(checkpoint: str | os.PathLike[str]) -> dict[str, Any]:
    """What a JSON file beside a checkpoint says of it, if any: ``name.pt.json`` for ``name.pt``.

    Raises:
        CheckpointError: there is one, but it holds no JSON object.
    """
    path = Path(f"{checkpoint}.json")
    if not os.path.isfile(path):
        return {}
    arguments = read_json(path)
    if not isinstance(arguments, dict):
        raise CheckpointError(f'{path}: must hold an object such as {{"num_heads": 16}}.')
    return arguments


def load_dit(
    path: str | os.PathLike[str],
    config: DiTConfig | None = None,
    remarks: list[str] | None = None,
) -> tuple[Any, DiTConfig]:
    """The network in a file of facebookresearch/DiT.

    Args:
        path: plain or training checkpoint; see :func:`read_dit`.
        config: what it must be; None tells it from the tensors and :func:`read_arguments`.
        remarks: what had to be chosen in the file is added here, a sentence each.

    Returns:
        A :class:`~diffusers.DiTTransformer2DModel` in float32 on the CPU, in evaluation mode, its
        parameters frozen and independent of the file; and its configuration.

    Raises:
        CheckpointError: the file cannot be read or does not fit; it then names the first tensors
            that differ and, if they are those of a published file, which one.
    """
    state = read_dit(path, remarks)
    try:
        if config is None:
            config = _config_of(state, path)
        require_layout(state, published_layout(config), identify, PUBLISHED_URL)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error.message}", remedy=error.remedy) from error
    network = build_dit(config)
    network.load_state_dict(convert_state_dict(state, config), strict=True, assign=True)
    network.pos_embed.pos_embed = _copied(state["pos_embed"])
    return network.requires_grad_(False).eval(), config


def _config_of(state: Mapping[str, Tensor], path: str | os.PathLike[str]) -> DiTConfig:
    arguments = read_arguments(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    heads = arguments.get("num_heads")
    if heads is not None and (not isinstance(heads, int) or isinstance(heads, bool) or heads < 1):
        raise CheckpointError(f"num_heads in the JSON file beside it cannot be {heads!r}.")
    told = infer_config(shapes, heads)
    try:
        config = DiTConfig.from_arguments(arguments, told)
    except OptionError as error:
        raise CheckpointError(f"The JSON file beside it is wrong. {error}") from error
    for field in fields(config):
        said, seen = getattr(config, field.name), getattr(told, field.name)
        if said != seen and field.name not in ("num_classes", "null_class"):
            raise CheckpointError(
                f"The JSON file beside it gives {field.name} as {said}, its tensors as {seen}.",
                remedy="What the tensors tell may be left out of that file.",
            )
    return config


def build_dit(config: DiTConfig) -> Any:
    """The network without weights (on the meta device, where nothing is computed)."""
    d = config.hidden_size
    with torch.device("meta"):
        network = DiTTransformer2DModel(
            num_attention_heads=config.num_heads,
            attention_head_dim=d // config.num_heads,
            in_channels=config.in_channels,
            out_channels=config.in_channels * (2 if config.learn_sigma else 1),
            num_layers=config.depth,
            sample_size=config.input_size,
            patch_size=config.patch_size,
            # diffusers adds a row for the null class by itself.
            num_embeds_ada_norm=config.num_classes + config.null_class - 1,
            norm_eps=1e-6,
        )
        shared = network.transformer_blocks[0].norm1.emb
        shared.time_proj = Timesteps(FREQUENCIES, flip_sin_to_cos=True, downscale_freq_shift=0)
        for block in network.transformer_blocks:
            # The published network embeds time and class once; diffusers has a copy a block.
            block.norm1.emb = shared
            if config.mlp_size != 4 * d:
                block.ff = FeedForward(
                    d, inner_dim=config.mlp_size, activation_fn="gelu-approximate"
                )
    return network


def convert_state_dict(state: Mapping[str, Tensor], config: DiTConfig) -> dict[str, Tensor]:
    """The network's tensors from a file's, copied, in float32; all but the fixed positions."""
    fixed = {
        "pos_embed.proj": "x_embedder.proj",
        "proj_out_1": "final_layer.adaLN_modulation.1",
        "proj_out_2": "final_layer.linear",
    }
    embedders = {
        "timestep_embedder.linear_1.weight": "t_embedder.mlp.0.weight",
        "timestep_embedder.linear_1.bias": "t_embedder.mlp.0.bias",
        "timestep_embedder.linear_2.weight": "t_embedder.mlp.2.weight",
        "timestep_embedder.linear_2.bias": "t_embedder.mlp.2.bias",
        "class_embedder.embedding_table.weight": "y_embedder.embedding_table.weight",
    }
    in_block = {
        "norm1.linear": "adaLN_modulation.1",
        "attn1.to_out.0": "attn.proj",
        "ff.net.0.proj": "mlp.fc1",
        "ff.net.2": "mlp.fc2",
    }
    shared = {ours: _copied(state[theirs]) for ours, theirs in embedders.items()}
    out: dict[str, Tensor] = {}
    for kind in ("weight", "bias"):
        out |= {f"{k}.{kind}": _copied(state[f"{v}.{kind}"]) for k, v in fixed.items()}
        for i in range(config.depth):
            ours, theirs = f"transformer_blocks.{i}", f"blocks.{i}"
            for k, v in in_block.items():
                out[f"{ours}.{k}.{kind}"] = _copied(state[f"{theirs}.{v}.{kind}"])
            rows = state[f"{theirs}.attn.qkv.{kind}"].chunk(3)
            for name, part in zip(("to_q", "to_k", "to_v"), rows, strict=True):
                out[f"{ours}.attn1.{name}.{kind}"] = _copied(part)
    for i in range(config.depth):
        out |= {f"transformer_blocks.{i}.norm1.emb.{k}": v for k, v in shared.items()}
    return out


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.float32, copy=True).contiguous()


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
