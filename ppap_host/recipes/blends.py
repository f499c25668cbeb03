"""Blends: how the two branches of classifier-free guidance become one prediction."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from ppap_host.recipes.estimate import Estimate


@runtime_checkable
class Blend(Protocol):
    """In the place of eps_u + cfg (eps_c - eps_u), such as a projection or a rescaling of it.

    It is asked wherever the backbone is, and only where there are two branches.
    """

    def __call__(self, estimate: Estimate) -> Tensor:
        """The noise that the step goes by, [b, ...], differentiable.

        Args:
            estimate: with the noise of either branch (:attr:`Estimate.conditional`,
                :attr:`Estimate.unconditional`), that of plain guidance (:attr:`Estimate.eps`), its
                scale at this level (:attr:`Estimate.scale`), and a memory from step to step.
        """
