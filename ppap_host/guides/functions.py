"""Guides made from functions and modules: any differentiable loss steers as it is."""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor, nn

from ppap_host.files.errors import OptionError, TargetError
from ppap_host.guides.guide import Guide
from ppap_host.guides.rewards import RewardOf
from ppap_host.guides.targets import Given, Target

Loss = Callable[..., Tensor]
"""From RGB in [-1, 1], [b, 3, h, w], or what else a backbone makes, and perhaps a target, to a loss
or a reward of each image."""


@dataclass(frozen=True)
class Reward:
    """Marks what steers as a value to be made large, without a target (:func:`reward`)."""

    what: Any


def reward(what: Any) -> Reward:
    """Marks a guide, a module or a function as a reward: the larger its value, the better.

    It has no target. Its loss, in events and records, is minus its value.

    Args:
        what: whatever :func:`~ppap_host.runs.script.guidance` takes.
    """
    return Reward(what)


class Function(nn.Module):
    """A function of images as a network without parameters."""

    def __init__(self, function: Loss) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, *target: Tensor) -> Tensor:
        """What the function says of images ``x``."""
        return self.function(x, *target)


class FunctionGuide(Guide):
    """A function or a module as a guide: f(x), or f(x, target) where there is a target.

    It looks at whatever the backbone makes, at images of one channel as grey.

    Args:
        function: differentiable; RGB in [-1, 1], float [b, 3, h, w], to a loss [b]. A target is
            RGB, too, [1, 3, h, w] or one row an image.
        name: what it is called.
        rewards: whether it returns a value to be made large instead of a loss.
        targeted: whether it is given a target.
    """

    target_kinds = ("photo",)
    looks_at = None

    def __init__(
        self, function: Loss | nn.Module, name: str, rewards: bool = False, targeted: bool = False
    ) -> None:
        self.name, self.rewards, self.targeted = name, rewards, targeted
        self._network = function if isinstance(function, nn.Module) else Function(function).eval()

    def network(self) -> nn.Module:
        """The module, or one around the function."""
        return self._network

    def understand(self, given: Given, size: tuple[int, int]) -> Target:
        """A picture, cropped to the images' aspect ratio and resized to them; "" is no target."""
        if given.text == "" and not self.targeted:
            return Target("", torch.zeros(1, 0))
        if not given.means_file:
            raise TargetError(
                f"The function {self.name!r} cannot take the target {given.text!r}.",
                remedy="Give a picture or a tensor; bind other things with functools.partial.",
            )
        photo = given.photo(size)
        return photo.target(photo.pixels, {"target": photo.image})

    def prepare(self, x: Float[Tensor, "b 3 h w"]) -> Tensor:
        """The images as they are."""
        return x

    def through(self, network: Callable[[Tensor], Tensor], x: Float[Tensor, "b 3 h w"]) -> Tensor:
        """What the function says; the images as they are where it needs a target to say it."""
        if self.targeted:
            return x
        return self._asked(network, x)

    def loss(self, output: Tensor, target: Tensor) -> Float[Tensor, " b"]:
        """What the function says, minus that if it rewards.

        Raises:
            OptionError: it does not return one number an image.
        """
        if self.targeted:
            output = self._asked(self._network, output, target)
        return -output if self.rewards else output

    def _asked(self, network: Callable[..., Any], x: Tensor, *target: Tensor) -> Tensor:
        """What the function says of copies, in its own precision: it may write into them."""
        own = next((p.dtype for p in self._network.parameters()), x.dtype)
        said = network(*(given.to(own, copy=True) for given in (x, *target)))
        return self._one_each(said, len(x)).to(x.dtype)

    def _one_each(self, value: Any, count: int) -> Tensor:
        if isinstance(value, Tensor) and value.shape == (count,):
            return value
        got = f"a {type(value).__name__}"
        if isinstance(value, Tensor):
            got = f"a tensor of shape {list(value.shape)}"
        raise OptionError(
            f"{self.name!r} returns {got} for {count} image{'s' * (count > 1)}.",
            remedy=f"It must return one number an image, a tensor of shape [{count}]: reduce over "
            "every dimension but the first, as .mean((1, 2, 3)) does.",
        )

    def distance(self, student: Tensor, teacher: Tensor) -> Float[Tensor, " b"]:
        """Squared difference of what is said of each image."""
        return (student - teacher).square().reshape(len(student), -1).mean(dim=1)

    def picture(self, output: Tensor) -> list[Image]:
        """Nothing: a function says a number."""
        return []

    def measure(self, output: Tensor, target: Tensor) -> dict[str, list[float]]:
        """Its loss, or its value if it rewards."""
        loss = self.loss(output, target)
        values: list[float] = (-loss if self.rewards else loss).tolist()
        return {"value" if self.rewards else "loss": values}


def as_guide(what: Any, name: str, targeted: bool = False) -> Guide:
    """The guide that an object in memory is.

    Args:
        what: a guide, a module, a function, or a :class:`Reward` of one of them.
        name: what it is called, if it is no guide.
        targeted: whether it is given a target.

    Raises:
        OptionError: it is none of them, or cannot be called as it would be.
    """
    rewards = isinstance(what, Reward)
    thing = what.what if isinstance(what, Reward) else what
    if rewards and targeted:
        raise OptionError(
            f"{name!r} is a reward, and a reward has no target.", remedy="Leave out its target."
        )
    if isinstance(thing, type):
        _check_call(thing, name, "", "Give one that is made, or a class that needs no arguments.")
        thing = thing()
    if isinstance(thing, Guide):
        return RewardOf(thing) if rewards and not thing.rewards else thing
    check_steers(thing)
    other = (
        "Leave out its target, or let it take one."
        if targeted
        else "Give a target if that is what it lacks; bind other things with functools.partial."
    )
    _check_call(thing, name, "x, target" if targeted else "x", other)
    return FunctionGuide(thing, name, rewards, targeted)


def check_steers(thing: Any) -> None:
    """Raises OptionError for what is neither a guide nor a module nor a function."""
    if not isinstance(thing, Guide) and not callable(thing):
        raise OptionError(
            f"{reprlib.repr(thing)} cannot steer.",
            remedy="Give the name of a guide, a Guide, a module, or a function of images.",
        )


def _check_call(thing: Any, name: str, arguments: str, remedy: str) -> None:
    """Raises OptionError for what cannot be called so, or is a class that cannot be made."""
    missing = ", ".join(sorted(getattr(thing, "__abstractmethods__", ())))
    if isinstance(thing, type) and missing:
        raise OptionError(f"The class {name!r} lacks {missing}.", remedy="Write what it lacks.")
    try:
        called = inspect.signature(thing.forward if isinstance(thing, nn.Module) else thing)
    except (TypeError, ValueError):  # not every callable tells
        return
    try:
        called.bind(*filter(None, arguments.split(", ")))
    except TypeError as error:
        raise OptionError(
            f"{name!r} is called as {name}({arguments}), and cannot be: {error}.", remedy=remedy
        ) from None
