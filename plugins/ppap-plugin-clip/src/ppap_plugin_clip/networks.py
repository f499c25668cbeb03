"""The parts of a CLIP that look at images, as plain functions of pixels."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

LAYER = 3
"""The encoder layer whose tokens FreeDoM compares (Yu et al., 2023, section 4.2)."""


class ImageEmbedding(nn.Module):
    """Vision tower and projection: what the image has in common with texts.

    Args:
        vision: the vision tower of a CLIP of transformers.
        projection: into the space that images and texts share.
    """

    def __init__(self, vision: nn.Module, projection: nn.Module) -> None:
        super().__init__()
        self.vision, self.projection = vision, projection

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """The projected embedding, of any length, as ``CLIPModel.get_image_features`` gives it."""
        embedding: Tensor = self.projection(self.vision(pixel_values=pixels).pooler_output)
        return embedding


class PatchTokens(nn.Module):
    """The vision tower up to a layer: a token for each patch of the image.

    Args:
        vision: the vision tower of a CLIP of transformers. What comes after ``layer`` is taken out
            of it, so that it is neither computed nor patched by experts.
        layer: counted from 1; the last one if there are fewer.
    """

    def __init__(self, vision: Any, layer: int = LAYER) -> None:
        super().__init__()
        vision.encoder.layers = vision.encoder.layers[:layer]
        vision.post_layernorm = nn.Identity()
        self.vision = vision

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n c"]:
        """The layer's tokens, row by row, without the one that stands for the whole image."""
        tokens: Tensor = self.vision(pixel_values=pixels).last_hidden_state
        return tokens[:, 1:]
