"""What --model may say to the guides, and what is said back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from ppap_plugin_restore.guide import (
    RestorationGuide,
    colourise,
    deblur,
    inpainting,
    motion_deblur,
    super_resolution,
)
from ppap_plugin_restore.operators import BoxDownsample, GaussianBlur, MotionBlur
from ppap_plugin_restore.options import Options
from ppap_plugin_restore.problems import SuperResolution

from ppap_host.files.errors import OptionError

Factory = Callable[[str | None], RestorationGuide]
FACTORIES: list[Factory] = [super_resolution, inpainting, deblur, motion_deblur, colourise]


def test_defaults() -> None:
    size = (64, 64)
    boxes = super_resolution().problem.operator(size)
    gaussian = deblur().problem.operator(size)
    motion = motion_deblur("").problem.operator(size)
    assert isinstance(boxes, BoxDownsample)
    assert isinstance(gaussian, GaussianBlur)
    assert isinstance(motion, MotionBlur)
    assert boxes.factor == 4
    assert gaussian.sigma == 1.5
    assert (motion.length, motion.angle) == (9, 45)


def test_blurs_grow_with_the_images_unless_their_width_is_given() -> None:
    for model, wide in ((None, 6.0), ("sigma=2", 2.0)):
        operator = deblur(model).problem.operator((256, 300))
        assert isinstance(operator, GaussianBlur)
        assert operator.sigma == wide
    for model, long in ((None, 36.0), ("length=7", 7.0)):
        operator = motion_deblur(model).problem.operator((256, 300))
        assert isinstance(operator, MotionBlur)
        assert operator.length == long


def test_options_are_separated_by_commas_and_may_have_spaces() -> None:
    motion = motion_deblur(" length = 7.5 , angle=-30,measure=YES ")
    operator = motion.problem.operator((64, 64))
    assert isinstance(operator, MotionBlur)
    assert (operator.length, operator.angle, motion.problem.measures) == (7.5, -30, True)


def test_a_path_may_hold_commas_and_equals_signs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a=b.png", "a,b.png"):
        Image.new("L", (4, 4)).save(name)
        assert Options("inpainting", f"mask={name},box=1", ("mask", "box")).path("mask") == Path(
            name
        )


@pytest.mark.parametrize("factory", FACTORIES, ids=lambda f: f.__name__)
def test_a_network_or_an_unknown_key_is_refused_with_what_there_is(factory: Factory) -> None:
    with pytest.raises(OptionError, match="no option of the guide") as caught:
        factory("some/network")
    assert "measure" in caught.value.remedy
    with pytest.raises(OptionError, match="the option 'measrue', which the guide") as caught:
        factory("measrue=yes")
    assert "Did you mean 'measure'?" in caught.value.remedy


@pytest.mark.parametrize(
    ("factory", "model", "said"),
    [
        (super_resolution, "factor=1", "whole number from 2 on"),
        (super_resolution, "factor=2.5", "whole number from 2 on"),
        (super_resolution, "factor=-4", "whole number from 2 on"),
        (super_resolution, "factor=", "key=value"),
        (super_resolution, "factor=4,factor=8", "Leave out one"),
        (super_resolution, "measure=perhaps", "measure=yes"),
        (deblur, "sigma=0", "from 0.1 on"),
        (deblur, "sigma=nan", "from 0.1 on"),
        (deblur, "sigma=inf", "from 0.1 on"),
        (deblur, "sigma=wide", "from 0.1 on"),
        (motion_deblur, "length=0", "from 1.5 on"),
        (motion_deblur, "angle=inf", "that is finite"),
        (inpainting, "box=1", "from 0.01 to 0.99"),
        (inpainting, "mask=absent.png", "no such file"),
        (inpainting, "mask=" + "x" * 5000, "no such file"),
        (colourise, "factor=2", "Known: measure"),
    ],
)
def test_values_out_of_range_are_refused_with_the_range(
    factory: Factory, model: str, said: str
) -> None:
    with pytest.raises(OptionError) as caught:
        factory(model)
    assert said in caught.value.remedy


def test_mask_and_box_exclude_each_other(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "mask.png")
    with pytest.raises(OptionError, match="both mask and box"):
        inpainting(f"mask={tmp_path / 'mask.png'},box=0.3")


def test_a_factor_that_does_not_divide_the_images_is_refused() -> None:
    with pytest.raises(OptionError, match=r"factor 5 .* 64 x 60"):
        SuperResolution("factor=5").operator((60, 64))
