"""Moves every pixel of the predicted x_0 by the same amount, up or down."""

from dataclasses import dataclass

from torch import Tensor

from ppap_host.recipes.estimate import Estimate
from ppap_host.recipes.places import CleanPoint
from ppap_host.recipes.recipe import Parameter, Recipe
from ppap_host.recipes.strengths import PosteriorSpread
from ppap_host.recipes.views import Predicted


@dataclass(frozen=True)
class Sign:
    """The sign of the gradient, entry by entry (Goodfellow et al., 2015, eq. 1)."""

    def __call__(self, gradient: Tensor, estimate: Estimate) -> Tensor:
        return gradient.sign()


SIGNED = Recipe(
    name="signed",
    view=Predicted(),
    gradient=(Sign(),),
    place=CleanPoint(),
    strength=PosteriorSpread(factor=0.25),
    limit=2.0,
    parameters=(Parameter("power", ("strength.power",), 0.0, 2.0),),
)
