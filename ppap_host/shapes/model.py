"""The networks of the built-in backbone: a small text-conditional U-Net and its text encoder.

The U-Net is diffusers' :class:`~diffusers.UNet2DConditionModel` in the shape of GLIDE (Nichol et
al., 2021, section 4.1): text tokens enter the attention's keys and values beside the image's, the
pooled caption is added to the time embedding, and the output holds the predicted noise, as
velocity, and the learned variance of Nichol and Dhariwal (2021). It works on 2 x 2 pixel patches
folded into channels, which on a CPU buys twice the network for the same time; two convolutions over
the unfolded pixels take out the grid that the patches leave.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from ppap_host.files.errors import OptionError, nearest
from ppap_host.shapes.scenes import VOCABULARY

IMAGE_SIZE = 64
PATCH = 2
FIRST_STEP = 12
"""Least noise that the networks know: they are told this step for every one below it, whose weight
in the objective is next to nothing. Of 64 renders, what they then take for x_0 at step 0 is off by
0.91 sigma instead of 1.18, and without the faint stripes (0.1 instead of 2.6 thousandths) that made
power at the horizontal Nyquist frequency 1.8 times its neighbours'."""
MAX_WORDS = 16
TEXT_WIDTH = 128
PAD = "<pad>"


class WordTokenizer:
    """Turns captions into word indices; index 0 is padding.

    Args:
        words: the vocabulary, in the order the text encoder was trained with.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = [PAD, *words]
        self._index = {word: i for i, word in enumerate(self.words)}

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """Word indices of ``captions``, int64 [b, MAX_WORDS]; an empty caption is all padding.

        Raises:
            OptionError: a word is not in the vocabulary, or a caption is too long.
        """
        rows = torch.zeros(len(captions), MAX_WORDS, dtype=torch.int64)
        for row, caption in zip(rows, captions, strict=True):
            words = caption.lower().replace(",", " , ").replace(".", " ").split()
            for word in words:
                if word not in self._index:
                    close = nearest(word, self.words[1:], 1)
                    raise OptionError(
                        f"The backbone 'shapes' does not know the word {word!r} "
                        f"of the prompt {caption!r}.",
                        remedy=(f"Did you mean {close[0]!r}? " if close else "")
                        + f"It knows: {' '.join(w for w in self.words[1:] if w != ',')}.",
                    )
            if len(words) > MAX_WORDS:
                raise OptionError(
                    f"The prompt {caption!r} has {len(words)} words.",
                    remedy=f"The backbone 'shapes' reads at most {MAX_WORDS}; shorten it.",
                )
            row[: len(words)] = torch.tensor([self._index[w] for w in words], dtype=torch.int64)
        return rows


class CaptionEncoder(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A two-layer transformer over word embeddings.

    No padding mask: as in GLIDE, padding is a learned token that may be attended to, so the empty
    caption of classifier-free guidance is an input like any other.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, words: list[str], width: int = TEXT_WIDTH, layers: int = 2) -> None:
        super().__init__()
        self.token = nn.Embedding(len(words) + 1, width)
        self.position = nn.Parameter(0.02 * torch.randn(MAX_WORDS, width))
        layer = nn.TransformerEncoderLayer(
            width, nhead=4, dim_feedforward=4 * width, dropout=0.0, activation="gelu",
            batch_first=True, norm_first=True,
        )  # fmt: skip
        self.blocks = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Encodes int64 [b, MAX_WORDS] into states [b, MAX_WORDS, width] and pooled [b, width].

        Pooled is the mean over the words; over the padding where there is no word.
        """
        states = self.norm(self.blocks(self.token(tokens) + self.position))
        empty = (tokens == 0).all(dim=1, keepdim=True)
        counts = ((tokens != 0) | empty).to(states.dtype).unsqueeze(-1)
        return states, (states * counts).sum(dim=1) / counts.sum(dim=1)


def build_unet(channels: tuple[int, ...] = (48, 80, 128, 192)) -> UNet2DConditionModel:
    """The untrained U-Net: 64 x 64 RGB seen as 32 x 32 with 12 channels; 24 channels out."""
    plain, text = len(channels) - 2, 2
    config: dict[str, Any] = dict(
        sample_size=IMAGE_SIZE // PATCH,
        in_channels=3 * PATCH**2,
        out_channels=6 * PATCH**2,
        block_out_channels=channels,
        layers_per_block=1,
        norm_num_groups=16,
        down_block_types=("DownBlock2D",) * plain + ("SimpleCrossAttnDownBlock2D",) * text,
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D",) * text + ("UpBlock2D",) * plain,
        attention_head_dim=32,
        cross_attention_dim=TEXT_WIDTH,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=TEXT_WIDTH,
        resnet_time_scale_shift="scale_shift",
    )
    return UNet2DConditionModel(**config)


class Refiner(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Two convolutions at full resolution, added to what the U-Net says of every pixel.

    They see the pixels and the U-Net's output across the borders of the patches. Untrained it adds
    nothing.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.enter = nn.Conv2d(9, width, 3, padding=1)
        self.leave = nn.Conv2d(width, 6, 3, padding=1)
        for parameter in self.leave.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, out: Tensor) -> Tensor:
        """The better ``out`` [b, 6, h, w] for the noisy image ``x`` [b, 3, h, w]."""
        hidden = nn.functional.silu(self.enter(torch.cat([x.to(out.dtype), out], dim=1)))
        refined: Tensor = out + self.leave(hidden)
        return refined


class Networks(nn.Module):
    """What is trained together: U-Net, refiner and caption encoder."""

    def __init__(self, unet: UNet2DConditionModel, refiner: Refiner, text: CaptionEncoder) -> None:
        super().__init__()
        self.unet, self.refiner, self.text = unet, refiner, text

    @classmethod
    def untrained(cls) -> Networks:
        """With random weights, in the architecture of the shipped backbone."""
        return cls(build_unet(), Refiner(), CaptionEncoder(list(VOCABULARY)))

    def predict(
        self, x: Tensor, timestep: Tensor, states: Tensor, pooled: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What they say of ``x`` [b, 3, h, w] at ``timestep`` [b], given an encoded caption.

        Returns:
            alpha * eps - sigma * x_0 (Salimans and Ho, 2022, section 4), [b, 3, h, w], from which
            the predicted noise follows as sigma * x + alpha * velocity; and the interpolation
            coefficient of Nichol and Dhariwal (2021), eq. 15, mapped to [-1, 1], [b, 3, h, w].
        """
        patches = nn.functional.pixel_unshuffle(x, PATCH)
        told = timestep.clamp(min=FIRST_STEP)
        out = self.unet(patches, told, encoder_hidden_states=states, class_labels=pooled).sample
        velocity, v = self.refiner(x, nn.functional.pixel_shuffle(out, PATCH)).chunk(2, dim=1)
        return velocity, v

    def forward(self, x: Tensor, timestep: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`predict` from the words of the captions, int64 [b, MAX_WORDS]."""
        return self.predict(x, timestep, *self.text(tokens))
