"""EluCD's two temperatures of a classifier's loss."""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor

from ppap_host.files.errors import OptionError
from ppap_host.guides.guide import Guide, Wrapped


class Tempered(Wrapped):
    """A classifier's guide with its logits multiplied apart in joint and marginal.

    EluCD (Ma et al., 2024, arXiv 2310.11311, section 3.3) reads log p(y | x) as the difference of
    an energy of class and image and one of the image, and weighs the latter less, so that the
    gradient keeps pointing at the class when the classifier is sure of it already. Its code divides
    two sums of exponentials, which overflows; here they never leave the logarithm. Only the loss
    differs: what the guide sees, its targets and its measures are the guide's.

    Args:
        guide: whose output is logits, whose targets are rows of probabilities, and whose loss is
            their cross entropy.
        joint: factor on the logits of the target, positive.
        marginal: factor on the logits of all classes, not negative; at 0 their term is the constant
            log of the number of classes.

    Raises:
        OptionError: a factor is not finite, or out of its range.
    """

    def __init__(self, guide: Guide, joint: float, marginal: float) -> None:
        if not 0 < joint < math.inf:
            raise OptionError(
                f"The joint temperature must be positive and finite, not {joint:g}.",
                remedy="It multiplies the logits of the target; 1 is the plain classifier's.",
            )
        if not 0 <= marginal < math.inf:
            raise OptionError(
                f"The marginal temperature must be finite and not negative, not {marginal:g}.",
                remedy="It multiplies the logits of all classes; 1 is the plain classifier's.",
            )
        super().__init__(guide)
        self.joint, self.marginal = joint, marginal

    def loss(
        self, output: Float[Tensor, "b c"], target: Float[Tensor, "rows c"]
    ) -> Float[Tensor, " b"]:
        """-(joint sum_c p_c l_c - log sum_c exp(marginal l_c)) in nats, of logits l."""
        loss = self.guide.loss(self.marginal * output, target)
        if self.joint != self.marginal:  # what the first term lacks, as probabilities sum to 1
            loss = loss - (self.joint - self.marginal) * (target.to(output) * output).sum(dim=1)
        return loss

    def tempered(self, joint: float, marginal: float) -> Guide:
        """The guide at these temperatures in place of its present ones."""
        return self.guide.tempered(joint, marginal)
