"""What the guides of this plugin share: a CLIP's eyes, and pictures as targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ppap_host.guides.guide import Guide, PatchPlan, default_patch_plan
from ppap_host.guides.targets import Given, Photo
from ppap_plugin_clip.checkpoint import Checkpoint


class ClipEyes(Guide):
    """A guide that looks at images with the vision tower of a CLIP.

    Args:
        checkpoint: whose preprocessing and files are meant.
        network: made of its vision tower.
    """

    def __init__(self, checkpoint: Checkpoint, network: nn.Module) -> None:
        self._network = network.eval().requires_grad_(False)
        self._preparation = checkpoint.preparation
        self._files = checkpoint.files
        self._remarks = checkpoint.remarks

    def network(self) -> nn.Module:
        """Maps prepared pixels [b, 3, s, s] to what the guide compares."""
        return self._network

    def prepare(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 s s"]:
        """The whole picture, squashed into the network's square and normalised for it."""
        return self._preparation(x)

    def patch_plan(self, network: nn.Module) -> PatchPlan:
        """Everything that is cheap but for the class token, which noise does not move."""
        plan = default_patch_plan(network)
        kept = tuple(name for name in plan.direct if not name.endswith("class_embedding"))
        return replace(plan, direct=kept)

    def files(self) -> Sequence[Path]:
        """Weights, configuration and vocabulary."""
        return self._files

    def remarks(self) -> Sequence[str]:
        """What had to be chosen or guessed when the checkpoint was read."""
        return self._remarks

    def _look_at(self, given: Given, size: tuple[int, int]) -> tuple[Photo, Tensor]:
        """A picture as it is compared, and the network's output for it, batch of one.

        Raises:
            TargetError: it cannot be read.
        """
        photo = given.photo(size)
        parameter = next(self._network.parameters())
        wide = torch.promote_types(parameter.dtype, torch.float32)
        with torch.no_grad():
            return photo, self.see(photo.pixels.to(parameter.device, wide))
