"""The guide does all that the host takes for granted, with either statistic."""

import pytest
from ppap_host.guides.guide import Guide
from ppap_host.testing import Check, check_guide

from ppap_plugin_palette.guide import PaletteGuide


def of_moments() -> Guide:
    return PaletteGuide(model="moments")


@pytest.mark.parametrize("check", check_guide(PaletteGuide, target="navy:3,orange"), ids=str)
def test_the_guide_conforms_with_colours(check: Check) -> None:
    check()


@pytest.mark.parametrize("check", check_guide(of_moments), ids=str)
def test_the_guide_conforms_with_a_picture_and_moments(check: Check) -> None:
    check()
