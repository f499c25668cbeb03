"""The guide ``style``: how another picture is painted, wherever in it, by CLIP's patch tokens."""

from __future__ import annotations

import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor

from ppap_host.files.errors import TargetError
from ppap_host.guides.targets import Given, Target
from ppap_plugin_clip.base import ClipEyes
from ppap_plugin_clip.checkpoint import load_checkpoint
from ppap_plugin_clip.losses import gram, gram_distance
from ppap_plugin_clip.networks import LAYER, PatchTokens
from ppap_plugin_clip.pictures import Axes, patch_map


class StyleGuide(ClipEyes):
    """The style of a picture, as FreeDoM measures it (Yu et al., 2023, section 4.2).

    The network's output are the tokens of an image's n patches, [b, n, c], after an early layer.
    A target's value is their Gram matrix, [1, c, c].

    Args:
        model: a local folder or a hub name of a CLIP of transformers. There is none of its own.
        layer: of the encoder, counted from 1.

    Raises:
        CheckpointError: no model is given, there is no such model, it is no CLIP, or it is
            incomplete.
    """

    name = "style"
    target_kinds = ("photo",)
    averages_pixels = True  # a Gram matrix is a mean over the patches

    def __init__(self, model: str | None = None, layer: int = LAYER) -> None:
        checkpoint = load_checkpoint(self.name, model)
        super().__init__(checkpoint, PatchTokens(checkpoint.vision, layer))
        # What the colours of `picture` mean: those of the last target that was read.
        self._axes: Axes | None = None

    def understand(self, given: Given, size: tuple[int, int]) -> Target:
        """Understands the path of an image.

        Raises:
            TargetError: it is missing or cannot be read.
        """
        if not given.means_file:
            raise TargetError(
                f"The target {given.text!r} of the guide 'style' is no file.",
                remedy="Give the path of a picture in the style you want. For words there is the "
                "guide 'clip'.",
            )
        photo, tokens = self._look_at(given, size)
        self._axes = Axes.of(tokens[0].float())
        pictures = {"target": photo.image, "its patches": self.picture(tokens)[0]}
        return photo.target(self.as_target(tokens), pictures)

    def as_target(self, output: Float[Tensor, "b n c"]) -> Float[Tensor, "b c c"]:
        """The Gram matrices of what the network sees, in single precision at least."""
        return gram(output)

    def loss(
        self, output: Float[Tensor, "b n c"], target: Float[Tensor, "one c c"]
    ) -> Float[Tensor, " b"]:
        """Frobenius norm of the difference of Gram matrices, as a part of the target's norm."""
        return gram_distance(gram(output), target)

    def distance(
        self, student: Float[Tensor, "b n c"], teacher: Float[Tensor, "b n c"]
    ) -> Float[Tensor, " b"]:
        """As :meth:`loss`, to the teacher's Gram matrices: an expert need not get more right."""
        return self.loss(student, self.as_target(teacher))

    def picture(self, output: Float[Tensor, "b n c"]) -> list[Image]:
        """Maps of the patches: where colours are alike, CLIP sees something alike.

        The colours are the first three principal components of the last target that was read, so
        that an image in its style has its colours. Before there is one, they are each image's own.
        """
        exact = output.detach().float()
        return [patch_map(tokens, self._axes or Axes.of(tokens)) for tokens in exact]

    def measure(
        self, output: Float[Tensor, "b n c"], target: Float[Tensor, "one c c"]
    ) -> dict[str, list[float]]:
        """The loss ("style"): 0 for the style of the target, lower is better."""
        with torch.no_grad():
            return {"style": self.loss(output, target).tolist()}
