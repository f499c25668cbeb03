"""Ascents: how a move goes from the point it starts at along the guide's gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from ppap_host.files.settings import Finite, Positive, Repeats, settings
from ppap_host.recipes.estimate import Estimate

Pull = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From a point [b, ...]: the scaled gradient there, and the loss of each image, [b]."""


@runtime_checkable
class Ascent(Protocol):
    """From a starting point to how far the move goes from it.

    Attributes:
        after: whether it starts from what the recipe's moves before have made of x_0, not from the
            backbone's own prediction.
        steps: how often the gradient is taken.
        rated: whether it has a learning rate, and goes that far whatever the gradient's size is.
            With relative strength the rate follows from the share.
    """

    after: ClassVar[bool] = False
    rated: ClassVar[bool] = False
    steps: int

    @property
    def asks(self) -> int:
        """How often it asks the backbone once more."""
        return 0

    def at_rate(self, rate: float) -> Ascent:
        """The same at another learning rate, in units of the state."""
        return self

    def __call__(self, pull: Pull, start: Tensor, estimate: Estimate) -> Tensor:
        """The way from ``start``, [b, ...]."""


@settings
class Gradient(Ascent):
    """Plain gradient ascent; one step is the gradient itself.

    More steps are the iterations of TFG (Ye et al., 2024, algorithm 1, line 8).
    """

    steps: Repeats = 1

    def __call__(self, pull: Pull, start: Tensor, estimate: Estimate) -> Tensor:
        """The sum of the gradients, each taken where the ones before have led."""
        way, _ = pull(start)
        for _ in range(self.steps - 1):
            gradient, _ = pull(start + way)
            way = way + gradient
        return way


@settings
class Adam(Ascent):
    """Adam from a fresh state at every evaluation, within the backbone's bounds.

    Backward guidance as in the code of Universal Guidance (Bansal et al., 2023, section 3.2): each
    iteration starts from a clipped image; images whose loss is below the cutoff stay where they are
    in that iteration, and when all are, it ends.

    Attributes:
        steps: iterations at most, >= 0.
        rate: Adam's learning rate, in units of the state, > 0; for absolute strength.
        cutoff: the loss from which on an image counts as done.
    """

    steps: Repeats = 5
    rate: Positive = 0.01
    cutoff: Finite = 0.0
    after: ClassVar[bool] = True
    rated: ClassVar[bool] = True

    def at_rate(self, rate: float) -> Adam:
        """The same at another learning rate."""
        return replace(self, rate=rate)

    def __call__(self, pull: Pull, start: Tensor, estimate: Estimate) -> Tensor:
        """The way from ``start`` to the last iterate."""
        point = start.detach().clone().requires_grad_(True)
        optimiser = torch.optim.Adam([point], lr=self.rate)
        for _ in range(self.steps):
            with torch.no_grad():
                if estimate.clip is not None:
                    point.clamp_(*estimate.clip)
                before = point.clone()
            gradient, loss = pull(before)
            # Entries without a gradient must not poison the moments.
            point.grad = -gradient.nan_to_num(0.0, 0.0, 0.0)
            optimiser.step()
            done = loss < self.cutoff
            with torch.no_grad():
                point[done] = before[done]
            if bool(done.all()):
                break
        return point.detach() - start
