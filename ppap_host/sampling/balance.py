"""How the gradients of several guides are brought together.

Each guide's gradient has its own scale, found with that guide alone. Their plain sum lets a guide
undo what another has done wherever they disagree, and then the scales would have to be found again
for every combination. Projecting the conflict out leaves each guide free in all directions that do
not hurt the others: a guide that is added takes nothing away from those that were there, and where
guides agree, or do not touch each other, nothing changes at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from jaxtyping import Float
from torch import Tensor

from ppap_host.recipes.gradients import sides

Gradient = Float[Tensor, "b ..."]
Balance = Callable[[Sequence[Tensor]], list[Tensor]]
"""From each guide's scaled gradient to what is applied, image by image, in the same order."""


def plain_sum(gradients: Sequence[Gradient]) -> list[Gradient]:
    """Every gradient as it is."""
    return list(gradients)


def without_conflict(gradients: Sequence[Gradient]) -> list[Gradient]:
    """Each gradient without what points against another one's (Yu et al., 2020, algorithm 1).

    g_i loses its component along g_j for every j with <g_i, g_j> < 0. The others' gradients are
    taken as they were, one after the other in the order of the guides, not in a random one, so that
    a run repeats itself. Gradients of guides that are applied at different places (at x_0, at eps)
    differ by a positive factor, which changes neither the signs nor the projections.
    """
    balanced = []
    for i, gradient in enumerate(gradients):
        for j, other in enumerate(gradients):
            if i != j:
                gradient = _without(gradient, other)
        balanced.append(gradient)
    return balanced


def _without(gradient: Gradient, other: Gradient) -> Gradient:
    inner = (gradient * other).sum(dim=sides(gradient), keepdim=True)
    length = other.square().sum(dim=sides(other), keepdim=True)
    against = inner.clamp(max=0) / length.clamp_min(1e-30)
    return gradient - against * other


BALANCES: Mapping[str, Balance] = {"project": without_conflict, "sum": plain_sum}
"""By the name that the command line knows."""
