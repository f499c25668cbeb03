"""The conformance kit: named checks that a guide, a backbone or a recipe does what the host needs.

    import pytest
    from ppap_host.testing import check_guide

    @pytest.mark.parametrize("check", check_guide(MyGuide, target="a cat"), ids=str)
    def test_my_guide(check):
        check()

A check that finds a fault raises :class:`ConformanceError`, which says what is wrong, why it
matters and how to mend it. One that cannot be made raises :class:`CannotCheck`, which pytest counts
as a skipped test and shows with its reason. On the command line: ``ppap plugin check NAME``.
"""

from ppap_host.testing.backbones import check_backbone
from ppap_host.testing.checks import CannotCheck, Check, ConformanceError, Result
from ppap_host.testing.guides import check_guide
from ppap_host.testing.recipes import check_recipe
from ppap_host.testing.worlds import GaussianWorld, PullGuide, pictures, samples

__all__ = [
    "CannotCheck",
    "Check",
    "ConformanceError",
    "GaussianWorld",
    "PullGuide",
    "Result",
    "check_backbone",
    "check_guide",
    "check_recipe",
    "pictures",
    "samples",
]
