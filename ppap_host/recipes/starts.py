"""Starts: the initial noise of a run, made better for what a guide says of the image at its end."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ppap_host.files.settings import NotNegative, Repeats, settings

Pull = Callable[[Tensor], Tensor]
"""From initial noise [b, ...] to the gradient of minus the guide's loss of its image, as it."""


@settings
class NoiseAscent:
    """Follows the gradient of the finished image's loss with respect to the initial noise.

    DOODL (Wallace et al., 2023), ReNO (Eyring et al., 2024) and DNO (Tang et al., 2024): the
    gradient goes back through all steps of the sampler, which is cheap where these are few. Noise
    keeps its length, so that it stays what the backbone was trained on.

    Attributes:
        iterations: runs through the sampler, >= 0.
        rate: root mean square of a move, in units of the noise; the user's scale multiplies it.
    """

    iterations: Repeats = 5
    rate: NotNegative = 0.1

    def __call__(self, x: Tensor, scale: float, pull: Pull) -> Tensor:
        """The noise that the run starts from.

        Args:
            x: initial noise.
            scale: the user's.
        """
        axes = tuple(range(1, x.ndim))
        length = torch.linalg.vector_norm(x, dim=axes, keepdim=True)
        for _ in range(self.iterations):
            gradient = pull(x).nan_to_num(0.0, 0.0, 0.0)
            size = gradient.square().mean(dim=axes, keepdim=True).sqrt().clamp_min(1e-30)
            moved = x + self.rate * scale * length / x[0].numel() ** 0.5 * gradient / size
            moved = moved * (length / torch.linalg.vector_norm(moved, dim=axes, keepdim=True))
            x = torch.where(moved.isfinite(), moved, x)
        return x
