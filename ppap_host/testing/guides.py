"""What is checked of a guide."""

from __future__ import annotations

from collections.abc import Callable

from ppap_host.guides.guide import Guide
from ppap_host.testing import (
    guide_experts,
    guide_interface,
    guide_losses,
    guide_runs,
    guide_targets,
)
from ppap_host.testing.checks import Check
from ppap_host.testing.guide_subject import GuideUnderTest

GUIDE = (
    guide_interface.CLAIMS
    + guide_targets.CLAIMS
    + guide_losses.CLAIMS
    + guide_experts.CLAIMS
    + guide_runs.CLAIMS
)
"""All that is checked of a guide."""


def check_guide(
    make: Callable[[], Guide],
    target: str | None = None,
    *,
    size: tuple[int, int] = (64, 64),
    shape: tuple[int, ...] | None = None,
    trained: bool = True,
    seed: int = 0,
) -> list[Check]:
    """The checks of a guide, to be called one by one; nothing is made or loaded before.

    Args:
        make: returns the guide, a new one at every call; its class will do.
        target: a text that it understands as a target, which all checks then ask for; without one
            a picture is tried, and checks ask for what the guide sees in another sample. Rewards
            have none.
        size: (height, width) in pixels of the images that it is shown.
        shape: of what it is shown where that are no images of this size, such as (3, 8, 32, 32) of
            a video, (1, 16000) of sound or (2,) of vectors; by default a small one of what
            :attr:`~ppap_host.guides.guide.Guide.looks_at` says.
        trained: False for random weights: whether tuning helps them is then not checked.
        seed: of all random draws.
    """
    return GUIDE.checks(GuideUnderTest(make, target, size, trained, seed, shape))
