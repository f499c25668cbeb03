"""Rewards: guides without a target, whose value is the better the larger it is."""

from __future__ import annotations

from abc import abstractmethod

from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor

from ppap_host.guides.guide import Guide, Wrapped
from ppap_host.guides.targets import Given, Target


class RewardGuide(Guide):
    """A guide that gives images a value, such as an aesthetic score, a preference or a detection.

    What is left to write is the network, what it is shown, and how its output is a value. The loss
    is minus the value, in whatever units that has.
    """

    rewards = True

    @abstractmethod
    def value(self, output: Tensor) -> Float[Tensor, " b"]:
        """How good each image is, from the network's output; larger is better, differentiable."""

    def understand(self, given: Given, size: tuple[int, int]) -> Target:
        """Nothing: there is no target (:meth:`~ppap_host.guides.guide.Guide.read_target`)."""
        return self.read_target(given, size)

    def loss(self, output: Tensor, target: Tensor) -> Float[Tensor, " b"]:
        """Minus the value."""
        return -self.value(output)

    def distance(self, student: Tensor, teacher: Tensor) -> Float[Tensor, " b"]:
        """Mean squared difference of two outputs."""
        return (student - teacher).square().reshape(len(student), -1).mean(dim=1)

    def picture(self, output: Tensor) -> list[Image]:
        """Nothing: a value is a number, which stands beside each image."""
        return []

    def measure(self, output: Tensor, target: Tensor) -> dict[str, list[float]]:
        """The value; larger is better."""
        return {"value": self.value(output).tolist()}


class RewardOf(Wrapped):
    """A guide whose loss is a value to be made large."""

    def __init__(self, guide: Guide) -> None:
        super().__init__(guide)
        self.rewards = True

    read_target = Guide.read_target

    def loss(self, output: Tensor, target: Tensor) -> Float[Tensor, " b"]:
        """Minus what the guide says."""
        return -self.guide.loss(output, target)

    def measure(self, output: Tensor, target: Tensor) -> dict[str, list[float]]:
        """What the guide says; larger is better."""
        return {"value": self.guide.loss(output, target).tolist()}
