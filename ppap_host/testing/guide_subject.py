"""A guide under test, and what several of its checks look at."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from ppap_host.files.errors import PpapError
from ppap_host.files.images import from_tensor
from ppap_host.guides.guide import Guide
from ppap_host.guides.targets import Target
from ppap_host.plugins.containment import Conduct, contained, in_a_line
from ppap_host.testing.checks import CannotCheck, Fault
from ppap_host.testing.worlds import GaussianWorld, pictures

CPU = torch.device("cpu")
IMAGES = 3
"""How many images most checks show at once."""


class GuideUnderTest:
    """What is checked, made when it is first needed.

    Args:
        make: returns the guide, a new one at every call.
        text: a target that it understands, None to try a picture.
        size: (height, width) of the images it is shown.
        trained: whether its weights mean anything.
        seed: of all draws.
    """

    def __init__(
        self,
        make: Callable[[], Guide],
        text: str | None,
        size: tuple[int, int],
        trained: bool,
        seed: int,
    ) -> None:
        self._make, self.text, self.size = make, text, size
        self.trained, self.seed = trained, seed
        self.conducts: list[Conduct] = []

    def make(self) -> Guide:
        """Calls the factory; what that did to the process is undone, and kept for its check."""
        with contained(draws=False) as conduct:
            # Another state each time, or two guides with random weights would have the same.
            torch.manual_seed(len(self.conducts))
            guide = self._make()
        self.conducts.append(conduct)
        return guide

    @cached_property
    def guide(self) -> Guide:
        """The guide, its network frozen as the host does it; not to be moved."""
        return self.fresh()

    def fresh(self) -> Guide:
        """Another one."""
        try:
            guide = self.make()
            guide.network().requires_grad_(False)
        except Exception as error:
            raise CannotCheck(f"the guide cannot be made ({in_a_line(error)})") from error
        return guide

    @cached_property
    def x(self) -> Tensor:
        """Images that differ from each other."""
        return pictures(IMAGES, self.size, self.seed)

    @cached_property
    def output(self) -> Tensor:
        """What the guide sees in them."""
        with torch.no_grad():
            return self.guide.see(self.x).detach()

    @cached_property
    def target(self) -> Tensor:
        """A target's value: what the guide sees in another picture."""
        return self.own_target(self.guide, self.other())

    def other(self, count: int = 1) -> Tensor:
        """Images that are none of :attr:`x`."""
        return pictures(count, self.size, self.seed + 1)

    def own_target(self, guide: Guide, x: Tensor) -> Tensor:
        """The target that asks for what a guide sees in images."""
        with torch.no_grad():
            return guide.as_target(guide.see(x)).detach()

    def read(self, guide: Guide) -> Target:
        """The target that was named, or else that of a picture.

        Raises:
            CannotCheck: none was named, and the guide does not take this picture for one.
        """
        if self.text is not None:
            return guide.read_target(self.text, self.size)
        with TemporaryDirectory() as folder:
            path = Path(folder) / "picture.png"
            from_tensor(self.other())[0].save(path)
            try:
                return guide.read_target(str(path), self.size)
            except PpapError as error:
                raise CannotCheck(
                    "no target is known; name one with target= (--target on the command line). "
                    f"Of a picture the guide says: {error}"
                ) from error

    def loss(self, guide: Guide, x: Tensor, target: Tensor) -> Tensor:
        """Of each image."""
        return guide.loss(guide.see(x), target)

    def gradient(self, guide: Guide, x: Tensor, target: Tensor) -> Tensor:
        """Of the summed loss with respect to the images.

        Raises:
            Fault: there is none.
        """
        x = x.detach().clone().requires_grad_(True)
        loss = self.loss(guide, x, target).sum()
        if not loss.requires_grad:
            raise Fault("The loss does not depend on the images: no gradient reaches them.")
        (found,) = torch.autograd.grad(loss, x, allow_unused=True)
        if found is None:
            raise Fault("No gradient reaches the images.")
        return found

    def noise_aware(self) -> bool:
        """Whether it sees an image otherwise if it is told its noise."""
        noisy = GaussianWorld((8, 8)).levels()[700]
        with torch.no_grad():
            return not torch.equal(self.guide.see(self.x, noisy), self.output)
