"""OpenAI's ablated diffusion models (ADM) and noise-aware classifiers, from their own files.

The models are those of Dhariwal & Nichol, "Diffusion Models Beat GANs on Image Synthesis"
(arXiv 2105.05233): the U-Net of section 3 with its improvements, and the classifier of section
4.3, which is the contracting half of the same U-Net under a pooling head. Their weights come as
plain state dicts named after the modules of openai/guided-diffusion. Here they are loaded
unchanged into diffusers' blocks:

* :class:`ADMConfig` and :class:`ADMClassifierConfig` hold the flags a file was trained with;
  :data:`PUBLISHED_ADM` and :data:`PUBLISHED_CLASSIFIERS` hold those of every published file.
* :func:`load_adm` returns a :class:`diffusers.UNet2DModel`, :func:`load_adm_classifier` an
  :class:`ADMClassifier`.
* :func:`published_layout` names every tensor a file must hold, :func:`convert_state_dict`
  turns a file's tensors into the network's.

All networks take the noisy image ``x_t`` as (b, 3, h, w) on the pixel scale -1..1 (before noise)
and the *original* timestep 0..999, never an index into a respaced process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, Literal, cast, get_args

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn
from torch.nn import functional as F

from ppap_host.files.errors import OptionError
from ppap_plugin_openai.flags import COMPUTE_FLAGS, DIFFUSION_FLAGS, flag_value, refuse_unknown
from ppap_plugin_openai.loading import convert, load_network
from ppap_plugin_openai.trunk import (
    CHANNEL_MULT,
    GROUPS,
    NORM_EPS,
    UPSAMPLER_CHANNEL_MULT,
    Entry,
    Shape,
    Trunk,
    contracting_half,
    default_channel_mult,
    expanding_half,
    finish,
    skip_channels,
    weight_and_bias,
)

Pool = Literal["attention", "adaptive", "spatial", "spatial_v2"]

NUM_CLASSES: Final = 1000
"""ImageNet classes: what every class-conditional ADM and every published classifier knows."""

PUBLISHED_URL: Final = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/"
"""Where the published files lie; append :attr:`PublishedADM.file`."""

_SPATIAL_WIDTH: Final = 2048


# --------------------------------------------------------------------------------------------
# Configurations
# --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ADMConfig:
    """The flags of an ADM U-Net, by their names on guided-diffusion's command line.

    Defaults are that command line's. The published settings are in :data:`PUBLISHED_ADM`.

    Attributes:
        image_size: height and width of the images, in pixels (an upsampler's ``large_size``).
        num_channels: base width; the timestep embedding is four times as wide.
        num_res_blocks: residual blocks at each level of the contracting half.
        num_heads: attention heads of every block, where ``num_head_channels`` is -1.
        num_heads_upsample: the same for the expanding half; -1 for ``num_heads``.
        num_head_channels: width of a head; if it is not -1, the numbers of heads mean nothing.
        attention_resolutions: image resolutions, in pixels, at which attention takes place.
        channel_mult: width of each level as a multiple of ``num_channels``, finest level first;
            empty for the default of the image size.
        dropout: probability in the residual blocks; matters in training only.
        class_cond: whether the network takes one of 1000 class labels.
        use_scale_shift_norm: whether the timestep modulates the second normalisation
            (adaptive group normalisation, section 3.1) or is added before it.
        resblock_updown: whether residual blocks do the resampling (as in BigGAN) or
            convolutions.
        use_new_attention_order: how the file orders queries, keys and values; see
            :func:`convert_state_dict`. It cannot be told from the shapes.
        learn_sigma: whether three more output channels carry the variance.
        small_size: for an upsampler, height and width of the image to be enlarged; None
            otherwise.

    Raises:
        OptionError: if the flags describe no network.
    """

    image_size: int = 64
    num_channels: int = 128
    num_res_blocks: int = 2
    num_heads: int = 4
    num_heads_upsample: int = -1
    num_head_channels: int = -1
    attention_resolutions: tuple[int, ...] = (16, 8)
    channel_mult: tuple[float, ...] = ()
    dropout: float = 0.0
    class_cond: bool = False
    use_scale_shift_norm: bool = True
    resblock_updown: bool = False
    use_new_attention_order: bool = False
    learn_sigma: bool = False
    small_size: int | None = None

    def __post_init__(self) -> None:
        table = CHANNEL_MULT if self.small_size is None else UPSAMPLER_CHANNEL_MULT
        mult = self.channel_mult or default_channel_mult(self.image_size, table)
        object.__setattr__(self, "channel_mult", mult)
        self._trunk().check()

    @classmethod
    def from_flags(cls, flags: Mapping[str, Any]) -> ADMConfig:
        """Read the flags of guided-diffusion's scripts.

        Args:
            flags: flag names (without dashes) and values. Lists may be written as the command
                line does ("32,16,8") or as sequences of numbers. ``large_size`` and
                ``small_size`` describe an upsampler. Flags of the diffusion process
                (``noise_schedule``, ...) and of the computation (``use_fp16``,
                ``use_checkpoint``) are skipped: they change no weight.

        Raises:
            OptionError: if a flag is unknown, has a value of the wrong kind, or the flags
                describe no network.
        """
        values = {
            name: value
            for name, value in flags.items()
            if name not in DIFFUSION_FLAGS | COMPUTE_FLAGS
        }
        if "large_size" in values:
            if "image_size" in values or "small_size" not in values:
                raise OptionError(
                    "large_size describes an upsampler: it goes with small_size, not with "
                    "image_size."
                )
            values["image_size"] = values.pop("large_size")
        known = {field.name: field.default for field in fields(cls)}
        refuse_unknown("ADM", values, known)
        return cls(**{name: flag_value(name, value, known) for name, value in values.items()})

    @property
    def in_channels(self) -> int:
        """3, or 6 for an upsampler.

        An upsampler's input is the noisy image followed by the small image enlarged to the same
        size (bilinear interpolation, corners not aligned), joined along the channels.
        """
        return 3 if self.small_size is None else 6

    @property
    def out_channels(self) -> int:
        """3 (predicted noise), or 6 with the interpolation value v of a learned variance."""
        return 6 if self.learn_sigma else 3

    def _trunk(self) -> Trunk:
        # Level k is 2**k times coarser than the image. guided-diffusion rounds the same way.
        if min(self.attention_resolutions, default=1) < 1:
            raise OptionError("attention_resolutions must be at least 1 pixel each.")
        factors = {self.image_size // resolution for resolution in self.attention_resolutions}
        return Trunk(
            image_size=self.image_size,
            in_channels=self.in_channels,
            out_channels=self.out_channels,
            base_channels=self.num_channels,
            level_channels=tuple(int(m * self.num_channels) for m in self.channel_mult),
            level_attention=tuple(2**k in factors for k in range(len(self.channel_mult))),
            num_res_blocks=self.num_res_blocks,
            num_heads=self.num_heads,
            num_heads_upsample=self.num_heads_upsample,
            num_head_channels=self.num_head_channels,
            use_scale_shift_norm=self.use_scale_shift_norm,
            resblock_updown=self.resblock_updown,
            use_new_attention_order=self.use_new_attention_order,
            dropout=self.dropout,
            num_classes=NUM_CLASSES if self.class_cond else None,
        )


@dataclass(frozen=True, kw_only=True)
class ADMClassifierConfig:
    """The settings of a noise-aware classifier, by the names of its constructor.

    Attributes:
        image_size: height and width of the images, in pixels.
        in_channels: channels of the images.
        model_channels: base width; the timestep embedding is four times as wide.
        out_channels: number of classes.
        num_res_blocks: residual blocks at each level.
        attention_resolutions: where attention takes place, as *downsampling factors* (2 is half
            the image's resolution), unlike :attr:`ADMConfig.attention_resolutions`.
        channel_mult: width of each level as a multiple of ``model_channels``, finest first.
        dropout: probability in the residual blocks; matters in training only.
        num_heads: attention heads of every block, where ``num_head_channels`` is -1.
        num_head_channels: width of a head; if it is not -1, ``num_heads`` means nothing. The
            attention pool needs it.
        use_scale_shift_norm: as in :class:`ADMConfig`.
        resblock_updown: as in :class:`ADMConfig`.
        use_new_attention_order: as in :class:`ADMConfig`; the attention pool has an order of
            its own and is not concerned.
        pool: what turns features into logits; see :class:`ADMClassifier`.

    Raises:
        OptionError: if the settings describe no network.
    """

    image_size: int
    model_channels: int
    num_res_blocks: int
    attention_resolutions: tuple[int, ...]
    in_channels: int = 3
    out_channels: int = NUM_CLASSES
    channel_mult: tuple[float, ...] = (1, 2, 4, 8)
    dropout: float = 0.0
    num_heads: int = 1
    num_head_channels: int = -1
    use_scale_shift_norm: bool = False
    resblock_updown: bool = False
    use_new_attention_order: bool = False
    pool: Pool = "adaptive"

    def __post_init__(self) -> None:
        if self.pool not in get_args(Pool):
            raise OptionError(
                f"{self.pool!r} is no classifier pool.",
                remedy=f"Known: {', '.join(get_args(Pool))}.",
            )
        if not self.channel_mult:
            raise OptionError("channel_mult of a classifier is empty.")
        self._trunk().check()
        if self.pool == "attention" and self.num_head_channels == -1:
            raise OptionError("The attention pool needs num_head_channels.")

    @classmethod
    def from_flags(cls, flags: Mapping[str, Any]) -> ADMClassifierConfig:
        """Read a classifier's flags, in either of guided-diffusion's two vocabularies.

        Args:
            flags: the command line's flags (``image_size`` and ``classifier_width``,
                ``classifier_depth``, ...; missing ones take the command line's defaults), or
                the arguments of ``EncoderUNetModel`` (told by ``model_channels``; a
                ``constructor`` entry may name it). Flags of the diffusion process, of the
                computation and of the guidance strength are skipped.

        Raises:
            OptionError: if a flag is unknown or missing, has a value of the wrong kind, or the
                flags describe no network.
        """
        if "model_channels" in flags or "constructor" in flags:
            return cls._from_arguments(flags)
        return cls._from_command_line(flags)

    @classmethod
    def _from_arguments(cls, flags: Mapping[str, Any]) -> ADMClassifierConfig:
        values = dict(flags)
        constructor = values.pop("constructor", "EncoderUNetModel")
        if constructor != "EncoderUNetModel":
            raise OptionError(f"{constructor!r} is no constructor of an ADM classifier.")
        # The half U-Net has no expanding half for `num_heads_upsample` to act on.
        for name in COMPUTE_FLAGS | {"num_heads_upsample"}:
            values.pop(name, None)
        known = {
            "image_size": 0,
            "in_channels": 3,
            "model_channels": 0,
            "out_channels": 0,
            "num_res_blocks": 0,
            "attention_resolutions": (),
        } | {
            name: getattr(cls, name)
            for name in (
                "channel_mult",
                "dropout",
                "num_heads",
                "num_head_channels",
                "use_scale_shift_norm",
                "resblock_updown",
                "use_new_attention_order",
                "pool",
            )
        }
        refuse_unknown("classifier", values, known)
        missing = [
            name
            for name in ("image_size", "model_channels", "num_res_blocks", "attention_resolutions")
            if name not in values
        ]
        if missing:
            raise OptionError(f"The classifier's flags lack {', '.join(missing)}.")
        return cls(**{name: flag_value(name, value, known) for name, value in values.items()})

    @classmethod
    def _from_command_line(cls, flags: Mapping[str, Any]) -> ADMClassifierConfig:
        skipped = DIFFUSION_FLAGS | {"classifier_use_fp16", "classifier_scale"}
        known: dict[str, Any] = {
            "image_size": 64,
            "classifier_width": 128,
            "classifier_depth": 2,
            "classifier_attention_resolutions": (32, 16, 8),
            "classifier_use_scale_shift_norm": True,
            "classifier_resblock_updown": True,
            "classifier_pool": "attention",
        }
        given = {name: value for name, value in flags.items() if name not in skipped}
        refuse_unknown("classifier", given, known)
        values = known | {name: flag_value(name, value, known) for name, value in given.items()}
        size = values["image_size"]
        resolutions = values["classifier_attention_resolutions"]
        if min(resolutions, default=1) < 1:
            raise OptionError("classifier_attention_resolutions must be at least 1 pixel each.")
        return cls(
            image_size=size,
            model_channels=values["classifier_width"],
            num_res_blocks=values["classifier_depth"],
            attention_resolutions=tuple(size // resolution for resolution in resolutions),
            channel_mult=default_channel_mult(size, CHANNEL_MULT),
            num_head_channels=64,
            use_scale_shift_norm=values["classifier_use_scale_shift_norm"],
            resblock_updown=values["classifier_resblock_updown"],
            pool=values["classifier_pool"],
        )

    def _trunk(self) -> Trunk:
        return Trunk(
            image_size=self.image_size,
            in_channels=self.in_channels,
            out_channels=self.out_channels,
            base_channels=self.model_channels,
            level_channels=tuple(int(m * self.model_channels) for m in self.channel_mult),
            level_attention=tuple(
                2**k in self.attention_resolutions for k in range(len(self.channel_mult))
            ),
            num_res_blocks=self.num_res_blocks,
            num_heads=self.num_heads,
            num_heads_upsample=-1,
            num_head_channels=self.num_head_channels,
            use_scale_shift_norm=self.use_scale_shift_norm,
            resblock_updown=self.resblock_updown,
            use_new_attention_order=self.use_new_attention_order,
            dropout=self.dropout,
            num_classes=None,
        )


# --------------------------------------------------------------------------------------------
# What has been published
# --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PublishedADM:
    """A published diffusion model.

    Attributes:
        file: name of the file under :data:`PUBLISHED_URL`.
        config: the network's flags.
        noise_schedule: the schedule of the 1000 steps it was trained with.
    """

    file: str
    config: ADMConfig
    noise_schedule: Literal["linear", "cosine"] = "linear"


@dataclass(frozen=True)
class PublishedClassifier:
    """A published noise-aware classifier, trained with the model of its resolution.

    Attributes:
        file: name of the file under :data:`PUBLISHED_URL`.
        config: the network's settings.
        noise_schedule: of that model, and so of the noise it knows.
    """

    file: str
    config: ADMClassifierConfig
    noise_schedule: Literal["linear", "cosine"] = "linear"


def _large(image_size: int, **flags: Any) -> ADMConfig:
    """The flags that all networks of 128 pixels and more have in common, and its own."""
    common: dict[str, Any] = {
        "num_channels": 256,
        "num_res_blocks": 2,
        "attention_resolutions": (32, 16, 8),
        "use_scale_shift_norm": True,
        "resblock_updown": True,
        "learn_sigma": True,
    }
    return ADMConfig(image_size=image_size, **(common | flags))


_LSUN: Final = _large(256, num_head_channels=64, dropout=0.1)

PUBLISHED_ADM: Final[Mapping[str, PublishedADM]] = {
    "adm-64-cond": PublishedADM(
        "64x64_diffusion.pt",
        ADMConfig(
            image_size=64,
            num_channels=192,
            num_res_blocks=3,
            num_head_channels=64,
            attention_resolutions=(32, 16, 8),
            dropout=0.1,
            class_cond=True,
            use_scale_shift_norm=True,
            resblock_updown=True,
            use_new_attention_order=True,
            learn_sigma=True,
        ),
        noise_schedule="cosine",
    ),
    "adm-128-cond": PublishedADM("128x128_diffusion.pt", _large(128, num_heads=4, class_cond=True)),
    "adm-256-cond": PublishedADM(
        "256x256_diffusion.pt", _large(256, num_head_channels=64, class_cond=True)
    ),
    "adm-256-uncond": PublishedADM(
        "256x256_diffusion_uncond.pt", _large(256, num_head_channels=64)
    ),
    "adm-512-cond": PublishedADM(
        "512x512_diffusion.pt", _large(512, num_head_channels=64, class_cond=True)
    ),
    "adm-64-256-upsampler": PublishedADM(
        "64_256_upsampler.pt",
        _large(256, small_size=64, num_channels=192, num_heads=4, class_cond=True),
    ),
    "adm-128-512-upsampler": PublishedADM(
        "128_512_upsampler.pt",
        _large(
            512,
            small_size=128,
            num_channels=192,
            num_head_channels=64,
            attention_resolutions=(32, 16),
            class_cond=True,
        ),
    ),
    "adm-lsun-bedroom": PublishedADM("lsun_bedroom.pt", _LSUN),
    "adm-lsun-cat": PublishedADM("lsun_cat.pt", _LSUN),
    "adm-lsun-horse": PublishedADM("lsun_horse.pt", _LSUN),
    "adm-lsun-horse-nodropout": PublishedADM(
        "lsun_horse_nodropout.pt", _large(256, num_head_channels=64)
    ),
}
"""Every published diffusion model, from guided-diffusion's README."""

PUBLISHED_CLASSIFIERS: Final[Mapping[str, PublishedClassifier]] = {
    f"adm-{size}-classifier": PublishedClassifier(
        f"{size}x{size}_classifier.pt",
        ADMClassifierConfig.from_flags({"image_size": size, "classifier_depth": depth}),
        noise_schedule="cosine" if size == 64 else "linear",
    )
    for size, depth in ((64, 4), (128, 2), (256, 2), (512, 2))
}
"""Every published noise-aware classifier, from guided-diffusion's README."""


# --------------------------------------------------------------------------------------------
# The file's tensors, and where each one goes
# --------------------------------------------------------------------------------------------


def _pooling_head(config: ADMClassifierConfig) -> Iterator[Entry]:
    trunk = config._trunk()
    width, classes = trunk.level_channels[-1], trunk.out_channels
    if config.pool == "attention":
        yield from weight_and_bias("out.0", "head.0", (width,))
        yield Entry(
            "out.2.positional_embedding",
            (width, _positions(trunk)),
            ("head.2.positional_embedding",),
        )
        yield from weight_and_bias("out.2.qkv_proj", "head.2.to_qkv", (3 * width, width, 1))
        yield from weight_and_bias("out.2.c_proj", "head.2.to_out", (classes, width, 1))
    elif config.pool == "adaptive":
        yield from weight_and_bias("out.0", "head.0", (width,))
        yield from weight_and_bias("out.3", "head.3", (classes, width, 1, 1))
    else:
        features = sum(skip_channels(trunk)) + width
        yield from weight_and_bias("out.0", "head.0", (_SPATIAL_WIDTH, features))
        if config.pool == "spatial_v2":
            yield from weight_and_bias("out.1", "head.1", (_SPATIAL_WIDTH,))
        last = 3 if config.pool == "spatial_v2" else 2
        yield from weight_and_bias(f"out.{last}", f"head.{last}", (classes, _SPATIAL_WIDTH))


def _positions(trunk: Trunk) -> int:
    """Positions the attention pool sees: the coarsest level's pixels and their mean."""
    side: int = trunk.image_size // 2 ** (len(trunk.level_channels) - 1)
    return side**2 + 1


def _entries(config: ADMConfig | ADMClassifierConfig) -> list[Entry]:
    trunk = config._trunk()
    if isinstance(config, ADMConfig):
        return [*contracting_half(trunk), *expanding_half(trunk)]
    return [*contracting_half(trunk), *_pooling_head(config)]


def published_layout(config: ADMConfig | ADMClassifierConfig) -> dict[str, Shape]:
    """Name and shape of every tensor in the file of a configuration, in the file's order."""
    return {entry.name: entry.shape for entry in _entries(config)}


# --------------------------------------------------------------------------------------------
# Networks
# --------------------------------------------------------------------------------------------


def build_adm(config: ADMConfig) -> UNet2DModel:
    """A U-Net of a configuration, with diffusers' random initial weights.

    ``unet(x, t, class_labels=y).sample`` maps x of shape (b, :attr:`ADMConfig.in_channels`, h, w)
    and original timesteps t of shape (b,), whole or fractional, to
    (b, :attr:`ADMConfig.out_channels`, h, w): the predicted noise and, with ``learn_sigma``, the
    value v, nominally in -1..1, that interpolates the log-variance (arXiv 2102.09672, section
    3.1). Class labels y of shape (b,), 0..999, are given exactly if the model has ``class_cond``.

    diffusers' options cannot express two things, which are set on the finished network: a number
    of heads that is the same at every width, and a timestep embedding that is not as wide as the
    first level. Such a network's ``unet.config`` does not describe it, so keep it in the
    published format rather than with ``save_pretrained``.
    """
    return _build_unet(config._trunk())


def _build_unet(trunk: Trunk) -> UNet2DModel:
    updown = trunk.resblock_updown
    down = "ResnetDownsampleBlock2D" if updown else "DownBlock2D"
    up = "ResnetUpsampleBlock2D" if updown else "UpBlock2D"
    unet: UNet2DModel = UNet2DModel(
        sample_size=trunk.image_size,
        in_channels=trunk.in_channels,
        out_channels=trunk.out_channels,
        # Cosines first, frequencies 10000^(-k/half) with k = 0..half-1.
        time_embedding_type="positional",
        flip_sin_to_cos=True,
        freq_shift=0,
        time_embedding_dim=trunk.time_channels,
        down_block_types=tuple(
            "AttnDownBlock2D" if attends else down for attends in trunk.level_attention
        ),
        up_block_types=tuple(
            "AttnUpBlock2D" if attends else up for attends in reversed(trunk.level_attention)
        ),
        block_out_channels=trunk.level_channels,
        layers_per_block=trunk.num_res_blocks,
        downsample_padding=1,
        downsample_type="resnet" if updown else "conv",
        upsample_type="resnet" if updown else "conv",
        dropout=trunk.dropout,
        act_fn="silu",
        attention_head_dim=None if trunk.num_head_channels == -1 else trunk.num_head_channels,
        norm_num_groups=GROUPS,
        # Left out, diffusers drops the middle attention's normalisation with scale_shift.
        attn_norm_num_groups=GROUPS,
        norm_eps=NORM_EPS,
        resnet_time_scale_shift="scale_shift" if trunk.use_scale_shift_norm else "default",
        num_class_embeds=trunk.num_classes,
    )
    finish(unet, trunk)
    return unet


class AttentionPool(nn.Module):
    """Multi-head attention of the mean feature to all positions, then a linear map.

    The head of Dhariwal & Nichol's classifier (section 4.3), after CLIP's (arXiv 2103.00020,
    section 2.4): the mean is prepended to the pixels' features, learned positions are added, and
    what the mean gathers is the result. Only that one query is computed.

    Args:
        channels: width of the features.
        positions: number of pixels and one more.
        heads: number of attention heads.
        out_channels: width of the result.
    """

    def __init__(self, channels: int, positions: int, heads: int, out_channels: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(channels, positions) / channels**0.5)
        self.to_qkv = nn.Linear(channels, 3 * channels)
        self.to_out = nn.Linear(channels, out_channels)

    def forward(self, features: Tensor) -> Tensor:
        """Map features of shape (b, channels, h, w) to (b, out_channels)."""
        pixels = features.flatten(2)
        tokens = torch.cat([pixels.mean(dim=2, keepdim=True), pixels], dim=2)
        tokens = (tokens + self.positional_embedding).transpose(1, 2)
        # Unlike the blocks' legacy order, the rows here are all queries, all keys, all values.
        query, key, value = (
            self.to_qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )
        gathered = F.scaled_dot_product_attention(query[:, :, :1], key, value)
        pooled: Tensor = self.to_out(gathered.flatten(1))
        return pooled


class ADMClassifier(nn.Module):
    """A noise-aware classifier: the contracting half of a U-Net under a pooling head.

    Dhariwal & Nichol, arXiv 2105.05233, section 4.3; randomly initialised here, see
    :func:`load_adm_classifier`. The heads, by :attr:`ADMClassifierConfig.pool`:

    * ``attention``: :class:`AttentionPool` on the middle's normalised output (all published
      classifiers);
    * ``adaptive``: the mean over the pixels of the same, and a linear map;
    * ``spatial``, ``spatial_v2``: the mean over the pixels of every block's output, joined, and
      a perceptron of one hidden layer, with ReLU, or with group normalisation and SiLU.
    """

    def __init__(self, config: ADMClassifierConfig) -> None:
        super().__init__()
        self.config = config
        trunk = config._trunk()
        # The contracting half is the U-Net's; its other half is built and dropped.
        unet = _build_unet(trunk)
        self.time_proj = unet.time_proj
        self.time_embedding = unet.time_embedding
        self.conv_in = unet.conv_in
        self.down_blocks = unet.down_blocks
        self.mid_block = cast(nn.Module, unet.mid_block)
        self.head = _build_head(config)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Classify noisy images.

        Args:
            x: noisy images x_t, (b, in_channels, image_size, image_size), on the pixel scale
                -1..1 before noise.
            t: original timesteps, whole or fractional, 0..999, (b,).

        Returns:
            Logits, (b, out_channels).
        """
        embedded = self.time_proj(t).to(self.conv_in.weight.dtype)
        time = self.time_embedding(embedded)
        hidden = self.conv_in(x)
        outputs = [hidden]
        for block in self.down_blocks:
            hidden, block_outputs = block(hidden, time)
            outputs.extend(block_outputs)
        hidden = self.mid_block(hidden, time)
        if self.config.pool.startswith("spatial"):
            outputs.append(hidden)
            hidden = torch.cat([output.mean(dim=(2, 3)) for output in outputs], dim=1)
        logits: Tensor = self.head(hidden)
        return logits


def _build_head(config: ADMClassifierConfig) -> nn.Sequential:
    trunk = config._trunk()
    width, classes = trunk.level_channels[-1], trunk.out_channels
    features = sum(skip_channels(trunk)) + width
    if config.pool == "attention":
        return nn.Sequential(
            nn.GroupNorm(GROUPS, width, eps=NORM_EPS),
            nn.SiLU(),
            AttentionPool(width, _positions(trunk), trunk.heads(width), classes),
        )
    if config.pool == "adaptive":
        return nn.Sequential(
            nn.GroupNorm(GROUPS, width, eps=NORM_EPS),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(width, classes, kernel_size=1),
            nn.Flatten(),
        )
    hidden: Sequence[nn.Module] = (
        (nn.ReLU(),)
        if config.pool == "spatial"
        else (nn.GroupNorm(GROUPS, _SPATIAL_WIDTH, eps=NORM_EPS), nn.SiLU())
    )
    return nn.Sequential(
        nn.Linear(features, _SPATIAL_WIDTH), *hidden, nn.Linear(_SPATIAL_WIDTH, classes)
    )


# --------------------------------------------------------------------------------------------
# From files to networks
# --------------------------------------------------------------------------------------------


def load_adm(
    path: str | os.PathLike[str], config: ADMConfig, remarks: list[str] | None = None
) -> UNet2DModel:
    """Load a U-Net that guided-diffusion has saved.

    Args:
        path: a state dict, as ``torch.save`` or safetensors writes it, in any floating-point
            format, or a training checkpoint. Nothing in the file is ever run.
        config: the flags it was trained with.
        remarks: what had to be chosen in the file is added here, a sentence each.

    Returns:
        The network of :func:`build_adm` in float32 on the CPU, in evaluation mode, its
        parameters frozen and independent of the file.

    Raises:
        CheckpointError: if the file is missing or damaged, or does not fit the configuration;
            it then names the first tensors that differ and, if the file has the shapes of a
            published one, which one that is.
    """
    entries = _entries(config)
    return load_network(path, lambda: build_adm(config), entries, PUBLISHED_URL, remarks)


def load_adm_classifier(
    path: str | os.PathLike[str], config: ADMClassifierConfig, remarks: list[str] | None = None
) -> ADMClassifier:
    """Load a noise-aware classifier that guided-diffusion has saved.

    Args:
        path, remarks: as for :func:`load_adm`.
        config: the settings it was trained with.

    Returns:
        The network in float32 on the CPU, in evaluation mode, its parameters frozen and
        independent of the file.

    Raises:
        CheckpointError: as :func:`load_adm` does.
    """
    entries = _entries(config)
    return load_network(path, lambda: ADMClassifier(config), entries, PUBLISHED_URL, remarks)


def convert_state_dict(
    state: Mapping[str, Tensor], config: ADMConfig | ADMClassifierConfig
) -> dict[str, Tensor]:
    """Rename and rearrange a published state dict for the network built here.

    The values are unchanged. Three things differ besides the names: attention's 1-d
    convolutions of kernel size 1 are linear maps here; their joint output is dealt out to
    queries, keys and values; and those rows come in one of two orders. The legacy order gives
    each head its queries, keys and values in turn, the new one (``use_new_attention_order``)
    puts all heads' queries first, then all keys, then all values.

    Args:
        state: tensors by their published names.
        config: the configuration they belong to.

    Returns:
        New float32 tensors, which share no memory with ``state`` or each other, for
        ``load_state_dict`` of :func:`build_adm`'s network or of :class:`ADMClassifier`.

    Raises:
        CheckpointError: if names, shapes or number formats do not fit the configuration.
    """
    return convert(state, _entries(config), PUBLISHED_URL)


def identify(shapes: Mapping[str, Shape]) -> list[str]:
    """Published configurations that a file may belong to, judged by its names and shapes alone.

    Args:
        shapes: shape of each tensor by its published name.

    Returns:
        Names from :data:`PUBLISHED_ADM` and :data:`PUBLISHED_CLASSIFIERS`: none, one, or several
        where they share a layout, as the LSUN models and the unconditional ImageNet model do.
    """
    published: dict[str, ADMConfig | ADMClassifierConfig] = {
        **{name: entry.config for name, entry in PUBLISHED_ADM.items()},
        **{name: entry.config for name, entry in PUBLISHED_CLASSIFIERS.items()},
    }
    return [name for name, config in published.items() if published_layout(config) == shapes]
