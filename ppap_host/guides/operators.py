"""Linear measurements of images, for guides that restore what a measurement has lost."""

from __future__ import annotations

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor


class LinearOperator(ABC):
    """A linear measurement y = A x, the same for every image of a batch.

    Images are RGB in [-1, 1]; measurements have whatever shape they have, batch first.
    """

    @abstractmethod
    def __call__(self, x: Float[Tensor, "b 3 h w"]) -> Tensor:
        """A x: what is measured of the images; differentiable."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Float[Tensor, "b 3 h w"]:
        """A^T y: <A x, y> = <x, A^T y> for every x and y."""

    @abstractmethod
    def pseudo_inverse(self, y: Tensor, ratio: float = 0.0) -> Float[Tensor, "b 3 h w"]:
        """A^T (A A^T + ratio I)^-1 y; with ratio 0 the Moore-Penrose inverse.

        Args:
            ratio: variance of the measurement's noise over that of the image (Song et al., 2023,
                PiGDM, eq. 7: sigma_y^2 / r_t^2), >= 0.
        """
