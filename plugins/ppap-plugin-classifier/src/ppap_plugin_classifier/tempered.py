"""A classifier's guide at EluCD's two temperatures."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from ppap_host.guide import Guide, Wrapped
from ppap_plugin_classifier.losses import check_temperatures, joint_and_marginal


class Tempered(Wrapped):
    """A classifier's guide with its logits multiplied apart in joint and marginal.

    EluCD (Ma et al., 2024, arXiv 2310.11311, section 3.3) reads log p(y | x) as the difference of
    an energy of class and image and one of the image, and weighs the latter less, so that the
    gradient keeps pointing at the class when the classifier is sure of it already. Only the loss
    differs: what the guide sees, its targets and its measures are the guide's.

    Args:
        guide: whose output is logits and whose targets are rows of probabilities.
        joint: factor on the logits of the target, positive.
        marginal: factor on the logits of all classes; 0 leaves a constant of them.

    Raises:
        OptionError: the factors make no sense.
    """

    def __init__(self, guide: Guide, joint: float, marginal: float) -> None:
        check_temperatures(joint, marginal)
        super().__init__(guide)
        self.joint, self.marginal = joint, marginal

    def loss(
        self, output: Float[Tensor, "b c"], target: Float[Tensor, "one c"]
    ) -> Float[Tensor, " b"]:
        """See :func:`ppap_plugin_classifier.losses.joint_and_marginal`."""
        return joint_and_marginal(output, target, self.joint, self.marginal)

    def tempered(self, joint: float, marginal: float) -> Guide:
        """The guide at these temperatures in place of its present ones."""
        return self.guide.tempered(joint, marginal)
