"""The guide ``depth``: what lies how far away, by a monocular depth network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor, nn

from ppap_host.guides.guide import Guide, PatchPlan, default_patch_plan
from ppap_host.guides.targets import Given, Target
from ppap_plugin_depth.checkpoint import load_checkpoint
from ppap_plugin_depth.colors import colored
from ppap_plugin_depth.losses import (
    metric_loss,
    metric_measures,
    relative_measures,
    resized,
    smooth_invariant,
)
from ppap_plugin_depth.maps import KINDS, holds_numbers, picture_doubt, read_depth

BUNDLED = Path(__file__).parent / "weights" / "shapes-dpt"
"""The small DPT for the built-in world, in transformers' own format."""


class DepthGuide(Guide):
    """Depth of the scene.

    The network's output is a map a picture, [b, h, w], at the network's own resolution: inverse
    depth in an arbitrary unit (relative models) or depth in metres (metric models).

    Args:
        model: a local folder or a hub name of any model for monocular depth estimation that
            transformers knows (DPT, MiDaS hybrids, Depth Anything, ZoeDepth, GLPN); None for the
            one that knows the built-in world.

    Attributes:
        metric: whether the network predicts metres.

    Raises:
        CheckpointError: there is no such model, it is no depth model, or it is incomplete.
    """

    name = "depth"
    # By the judged error of 16 images in 25 steps (docs/recipes.md, Scale).
    default_scale: Mapping[str, float] = {"": 4.0, "ppap": 5.0, "x0": 16.0}
    averages_pixels = True
    target_kinds = ("photo", *KINDS)

    def __init__(self, model: str | None = None) -> None:
        checkpoint = load_checkpoint(str(BUNDLED) if model is None else model)
        self._network = checkpoint.network
        self._bundled = model is None
        self._preparation = checkpoint.preparation
        self._files = checkpoint.files
        self._remarks = checkpoint.remarks
        self.metric = checkpoint.metric

    def network(self) -> nn.Module:
        """Maps prepared pixels [b, 3, h', w'] to a depth map [b, h, w]."""
        return self._network

    def prepare(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        """Resized and normalised as the checkpoint's own image processor does it."""
        return self._preparation(x)

    def understand(self, given: Given, size: tuple[int, int]) -> Target:
        """Understands a photograph, or a map of depth, disparity or inverse depth.

        A photograph's depth is estimated by the network. What holds one number a pixel with more
        than 8 bits is a map; a grey picture of 8 bits counts as a photograph unless its head says
        otherwise. See :func:`~ppap_plugin_depth.maps.read_depth` for units and holes.

        Raises:
            TargetError: it cannot be read, or does not say enough.
        """
        decoded = given.decoded(near=size) if given.kind is None else None
        if given.kind in KINDS or (decoded is not None and holds_numbers(decoded)):
            depth = read_depth(given, size, self.metric)
            value = self._placed(depth.value)
            return depth.target(value, {"its depth": self.picture(value)[0]})
        photo = given.photo(size)
        if decoded is not None and (doubt := picture_doubt(given, decoded)):
            photo = photo.doubting(doubt)
        pixels = self._placed(photo.pixels)
        photo = photo.doubting(*self.doubts(pixels, given.source))
        with torch.no_grad():
            value = self.see(pixels)
        pictures = {"target": photo.image, "its depth": self.picture(value)[0]}
        return photo.target(value, pictures, "its depth is what the network sees")

    def _placed(self, value: Tensor) -> Tensor:
        parameter = next(self._network.parameters())
        return value.to(parameter.device, torch.promote_types(parameter.dtype, torch.float32))

    def loss(
        self, output: Float[Tensor, "b h w"], target: Float[Tensor, "one h2 w2"]
    ) -> Float[Tensor, " b"]:
        """Scale-and-shift-invariant loss of MiDaS in its smooth form, or metric log loss.

        A target of another size than the output is resized to it. Where it is NaN nothing is
        compared.
        """
        fitted = resized(target, output.shape[-2:]).expand_as(output)
        return metric_loss(output, fitted) if self.metric else smooth_invariant(output, fitted)

    def distance(
        self, student: Float[Tensor, "b h w"], teacher: Float[Tensor, "b h w"]
    ) -> Float[Tensor, " b"]:
        """As :meth:`loss`: an expert is as good as the guidance it gives."""
        return self.loss(student, teacher)

    def from_labels(self, labels: Float[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
        """The network's kind of map from depth in metres: inverse for relative models."""
        return labels if self.metric else 1 / labels.clamp_min(1e-3)

    def picture(self, output: Float[Tensor, "b h w"]) -> list[Image]:
        """Depth in colours: near is warm and bright, far is dark."""
        return colored(1 / output.clamp_min(1e-3) if self.metric else output)

    def measure(
        self, output: Float[Tensor, "b h w"], target: Float[Tensor, "one h2 w2"]
    ) -> dict[str, list[float]]:
        """Absolute relative error ("abs-rel") and share of pixels with a depth ratio below 1.25.

        Relative models are aligned by least squares first, as is usual for them.
        """
        fitted = resized(target, output.shape[-2:]).expand_as(output)
        measures = metric_measures if self.metric else relative_measures
        return measures(output.detach(), fitted.detach())

    def patch_plan(self, network: nn.Module) -> PatchPlan:
        """Everything that is cheap; the bundled network is so narrow that only rank 2 is."""
        return default_patch_plan(network, rank=2 if self._bundled else 8)

    def files(self) -> Sequence[Path]:
        """Weights and configuration that were read."""
        return self._files

    def remarks(self) -> Sequence[str]:
        """What had to be chosen or guessed when the checkpoint was read."""
        return self._remarks
