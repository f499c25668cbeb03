"""A guide under test, and what several of its checks look at."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from ppap_host.backbones.backbone import MEDIA
from ppap_host.files.errors import PpapError
from ppap_host.files.images import from_tensor
from ppap_host.guides.guide import Guide
from ppap_host.guides.targets import Target
from ppap_host.plugins.containment import Conduct, contained, in_a_line
from ppap_host.testing.checks import CannotCheck, Fault
from ppap_host.testing.worlds import GaussianWorld, samples

CPU = torch.device("cpu")
IMAGES = 3
"""How many images most checks show at once."""
_FRAMES = 3
"""Of the videos that are shown where no shape is named."""


class GuideUnderTest:
    """What is checked, made when it is first needed.

    Args:
        make: returns the guide, a new one at every call.
        text: a target that it understands, which all checks then ask for; None to try a picture,
            and to ask for what it sees in another sample.
        size: (height, width) of the images it is shown.
        shape: of the samples it is shown, where that are no RGB images of this size.
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
        shape: tuple[int, ...] | None = None,
    ) -> None:
        self._make, self.text, self.size, self._shape = make, text, size, shape
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
    def shape(self) -> tuple[int, ...]:
        """Of a sample that it is shown."""
        if self._shape is not None:
            return self._shape
        channels = self.guide.channels or 3
        usual = {"video": (channels, _FRAMES, *self.size), "audio": (1, 256), "vectors": (8,)}
        return usual.get(self.guide.looks_at or "images", (channels, *self.size))

    @property
    def makes(self) -> str:
        """What it is shown, in a word."""
        return self.guide.looks_at or MEDIA.get(len(self.shape), "arrays")

    def rgb_images(self) -> bool:
        """Whether it is shown RGB images, which experts are tuned on."""
        return self.makes == "images" and self.shape == (3, *self.size)

    @cached_property
    def world(self) -> GaussianWorld:
        """A world of such samples."""
        world = GaussianWorld(shape=self.shape)
        if world.makes != self.makes:
            raise CannotCheck(f"there is no world that makes {self.makes}; name a shape of one")
        return world

    @cached_property
    def x(self) -> Tensor:
        """Samples that differ from each other."""
        return samples(IMAGES, self.shape, self.makes, self.seed)

    @cached_property
    def output(self) -> Tensor:
        """What the guide sees in them."""
        with torch.no_grad():
            return self.guide.see(self.x).detach()

    @property
    def named(self) -> bool:
        """Whether the target was named, or there is none: not made of what the guide sees."""
        return self.text is not None or self.guide.rewards

    @cached_property
    def target(self) -> Tensor:
        """A target's value: the one named, or what the guide sees in another sample."""
        return self.own_target(self.guide, self.other())

    def other(self, count: int = 1) -> Tensor:
        """Samples that are none of :attr:`x`."""
        return samples(count, self.shape, self.makes, self.seed + 1)

    def own_target(self, guide: Guide, x: Tensor) -> Tensor:
        """The target that was named, or else the one that asks for what a guide sees in ``x``."""
        if self.named:
            value = self.read(guide).value.detach()
            return value.to(x.dtype) if value.is_floating_point() else value
        with torch.no_grad():
            return guide.as_target(guide.see(x)).detach()

    def read(self, guide: Guide) -> Target:
        """The target that was named, or else that of a picture.

        Raises:
            CannotCheck: none was named, and the guide does not take this picture for one.
        """
        size = self.world.image_size
        if self.text is not None or guide.rewards:
            return guide.read_target(self.text or "", size)
        if not self.rgb_images():
            raise CannotCheck(
                f"it looks at {self.makes}, and no target is known; name one with target= "
                "(--target on the command line)"
            )
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
        """Of the summed loss with respect to the images; zero of a black box.

        Raises:
            Fault: there is none.
        """
        x = x.detach().clone().requires_grad_(True)
        loss = self.loss(guide, x, target).sum()
        if not guide.differentiable:
            return torch.zeros_like(x)
        if not loss.requires_grad:
            raise Fault("The loss does not depend on the images: no gradient reaches them.")
        (found,) = torch.autograd.grad(loss, x, allow_unused=True)
        if found is None:
            raise Fault("No gradient reaches the images.")
        return found

    def needs_gradient(self) -> None:
        """
        Raises:
            CannotCheck: the guide is a black box.
        """
        if not self.guide.differentiable:
            raise CannotCheck("it is a black box (Guide.differentiable), for recipes by values")

    def noise_aware(self) -> bool:
        """Whether it sees an image otherwise if it is told its noise."""
        noisy = GaussianWorld((8, 8)).levels()[700]
        with torch.no_grad():
            return not torch.equal(self.guide.see(self.x, noisy), self.output)
