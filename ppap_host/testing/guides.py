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
    trained: bool = True,
    seed: int = 0,
) -> list[Check]:
    """The checks of a guide, to be called one by one; nothing is made or loaded before.

    Args:
        make: returns the guide, a new one at every call; its class will do.
        target: a text that it understands as a target; without one a picture is tried.
        size: (height, width) in pixels of the images that it is shown.
        trained: False for random weights: whether tuning helps them is then not checked.
        seed: of all random draws.
    """
    return GUIDE.checks(GuideUnderTest(make, target, size, trained, seed))
