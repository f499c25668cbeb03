"""The guide ``segmentation``: what is where, by a semantic segmentation network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from PIL.Image import Image
from torch import Tensor, nn

from ppap_host.guides.guide import Guide, PatchPlan, default_patch_plan
from ppap_host.guides.targets import Given, Target
from ppap_plugin_segmentation.checkpoint import load_checkpoint
from ppap_plugin_segmentation.colors import colored
from ppap_plugin_segmentation.labelmaps import Conventions, read_labels
from ppap_plugin_segmentation.losses import cross_entropy, divergence, measures, outcomes
from ppap_plugin_segmentation.shipped import BUNDLED
from ppap_plugin_segmentation.targets import one_class, one_hot, split_class

EXPERT_RANK = 4
"""Rank of an expert's factors: less than a tenth of the bundled network's parameters."""


class SegmentationGuide(Guide):
    """Segments of the scene.

    The network's output is the logits of its classes, [b, C, h, w], at its own resolution. For
    networks that classify masks they are the log of the normalised per-class scores
    (:func:`~ppap_plugin_segmentation.queries.log_scores`).

    Args:
        model: a local folder or a hub name of a model that segmentation-models-pytorch saved (Unet,
            FPN, DeepLabV3 ...) or of one for transformers' semantic segmentation (SegFormer ...,
            MaskFormer, Mask2Former, EoMT), or one of torchvision,
            ``torchvision:deeplabv3_resnet50``; None for the one that knows the built-in world.

    Attributes:
        labels: names of the network's classes.
        conventions: how it reads label maps.

    Raises:
        CheckpointError: there is no such model, it is no segmentation model, or it is incomplete.
    """

    name = "segmentation"
    # By the judged mIoU of 16 images in 25 steps (docs/recipes.md, Scale).
    default_scale: Mapping[str, float] = {"": 4.0, "ppap": 5.0, "x0": 8.0}
    averages_pixels = True
    target_kinds = ("photo", "labels", "mask")
    tuning_steps = 500

    def __init__(self, model: str | None = None) -> None:
        checkpoint = load_checkpoint(str(BUNDLED) if model is None else model)
        self._network = checkpoint.network
        self._preparation = checkpoint.preparation
        self._files = checkpoint.files
        self._remarks = checkpoint.remarks
        self.labels = checkpoint.labels
        self.conventions = Conventions(
            checkpoint.labels, checkpoint.reduce_labels, checkpoint.ignored, sure=model is None
        )

    def network(self) -> nn.Module:
        """Maps prepared pixels [b, 3, h', w'] to logits [b, C, h, w]."""
        return self._network

    def prepare(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        """Resized and normalised as the checkpoint says, to sides that its network can take."""
        return self._preparation(x)

    def patch_plan(self, network: nn.Module) -> PatchPlan:
        """Every convolution and linear layer at rank 4, every bias and normalisation parameter."""
        return default_patch_plan(network, EXPERT_RANK)

    def understand(self, given: Given, size: tuple[int, int]) -> Target:
        """Understands a photograph, a label map, or the mask of one class.

        - A photograph is segmented by the network; the target is its probabilities.
        - A label map holds indices of classes, or colours of a palette: see
          :func:`~ppap_plugin_segmentation.labelmaps.read_labels`, also for how it is told from a
          photograph.
        - ``cone=mask.png``, or ``mask,of=cone:mask.png``, wants cones where the mask is white and
          none elsewhere, and leaves open what is there instead. A class goes by its name or its
          number.

        The value is [1, C, h, w], explained in :mod:`ppap_plugin_segmentation.targets`.

        Raises:
            TargetError: it cannot be read, names an unknown class, or holds an index that is none.
        """
        named = split_class(given, self.labels)
        if named is not None:
            index, inner = named
            mask = inner.mask(size, ("of",))
            value = one_class(mask.share, index, len(self.labels))
            pictures = {f"where {self.labels[index]} is to be": self._wanted(value)}
            then = f"white is where {self.labels[index]!r} is to be"
            return replace(mask, given=given).target(self._placed(value), pictures, then)
        doubts: tuple[str, ...] = ()
        if given.kind != "photo":
            labels, doubts = read_labels(given, size, self.conventions)
            if labels is not None:
                value = one_hot(labels.indices, len(self.labels))
                return labels.target(self._placed(value), {"its segments": self._wanted(value)})
        photo = given.photo(size)
        pixels = self._placed(photo.pixels)
        photo = photo.doubting(*doubts, *self.doubts(pixels, given.source))
        with torch.no_grad():
            output = self.see(pixels)
        pictures = {"target": photo.image, "its segments": self.picture(output)[0]}
        return photo.target(
            self.as_target(output), pictures, "its segments are what the network sees"
        )

    def _placed(self, value: Tensor) -> Tensor:
        parameter = next(self._network.parameters())
        return value.to(parameter.device, torch.promote_types(parameter.dtype, torch.float32))

    def _wanted(self, value: Float[Tensor, "1 c h w"]) -> Image:
        """A target in colours; what is left open is white."""
        found = outcomes(value)
        return colored(found.masked_fill(found >= len(self.labels), -1), len(self.labels))[0]

    def as_target(self, output: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The probabilities that the network sees."""
        return output.float().softmax(dim=1).to(output.dtype)

    def loss(
        self, output: Float[Tensor, "b c h w"], target: Float[Tensor, "one c h2 w2"]
    ) -> Float[Tensor, " b"]:
        """Cross entropy, less the target's own entropy, mean over the compared pixels.

        For a mask of one class, the binary cross entropy of that class. A target of another size
        than the output is resized to it; there may be one for each image or one for all.
        """
        return cross_entropy(output, target)

    def distance(
        self, student: Float[Tensor, "b c h w"], teacher: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, " b"]:
        """Kullback-Leibler divergence of the student from the teacher, mean over pixels."""
        return divergence(student, teacher)

    def from_labels(self, labels: Int[Tensor, "b h w"]) -> Float[Tensor, "b c h w"]:
        """Logits of a network that is sure of these class indices (to within 1e-6).

        Raises:
            ValueError: an index is no class.
        """
        count = len(self.labels)
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < count:
            raise ValueError(f"Labels must be from 0 to {count - 1}.")
        return one_hot(labels, count) * (16 + math.log(count))

    def picture(self, output: Float[Tensor, "b c h w"]) -> list[Image]:
        """The likeliest class of each pixel, each class in its own colour."""
        return colored(output.argmax(dim=1), len(self.labels))

    def measure(
        self, output: Float[Tensor, "b c h w"], target: Float[Tensor, "one c h2 w2"]
    ) -> dict[str, list[float]]:
        """Mean intersection over union ("miou") and "pixel-accuracy".

        The mean goes over the classes in the target or in the output; for a mask of one class it is
        that class's IoU.
        """
        return measures(output.detach(), target.detach())

    def files(self) -> Sequence[Path]:
        """Weights and configuration that were read, and the names of the classes."""
        return self._files

    def remarks(self) -> Sequence[str]:
        """What had to be chosen or guessed when the checkpoint was read."""
        return self._remarks
