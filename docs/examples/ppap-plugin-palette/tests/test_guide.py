"""What the guide understands, asks for and shows."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from ppap_host.files.errors import OptionError, TargetError

from ppap_plugin_palette.guide import STATISTICS, PaletteGuide


def test_a_picture_is_its_own_target(tmp_path: Path) -> None:
    guide = PaletteGuide()
    picture = Image.linear_gradient("L").convert("RGB")
    picture.save(tmp_path / "grey.png")
    target = guide.read_target(str(tmp_path / "grey.png"), (24, 32))
    assert guide.measure(target.value, target.value)["swd"] == [0.0]
    assert guide.measure(target.value, target.value)["intersection"] == [pytest.approx(1.0)]
    assert list(target.pictures) == ["target", "its palette"]
    assert target.files == (tmp_path / "grey.png",)


def test_shares_count_and_places_do_not() -> None:
    guide = PaletteGuide()
    wanted = guide.read_target("navy:3,orange:1", (32, 32)).value
    swapped = guide.read_target("orange:1,navy:3", (32, 32)).value
    other = guide.read_target("navy:1,orange:3", (32, 32)).value
    assert guide.measure(swapped.flip(3), wanted)["swd"][0] < 0.01
    measures = guide.measure(other, wanted)
    assert measures["swd"][0] > 0.1
    assert measures["delta-e"][0] < 0.05, "the colours are right"
    assert measures["intersection"][0] == pytest.approx(0.5, abs=0.02), "half of the pixels are not"


@pytest.mark.parametrize("statistic", STATISTICS)
def test_following_the_gradient_leads_to_the_palette(statistic: str) -> None:
    guide = PaletteGuide(model=statistic)
    target = guide.read_target("navy:2,orange:1", (16, 16)).value
    generator = torch.Generator().manual_seed(0)
    x = (0.2 * torch.randn(1, 3, 16, 16, generator=generator)).requires_grad_()
    optimiser = torch.optim.Adam([x], lr=0.05)
    before = guide.measure(guide.see(x.detach()), target)
    for _ in range(60):
        optimiser.zero_grad()
        guide.loss(guide.see(x), target).sum().backward()
        optimiser.step()
    after = guide.measure(guide.see(x.detach()), target)
    assert after["swd"][0] < before["swd"][0] / 2
    assert after["delta-e"][0] < before["delta-e"][0] / 2


def test_pictures_show_the_palette_in_the_size_of_the_image() -> None:
    guide = PaletteGuide()
    output = guide.read_target("navy:3,orange:1", (40, 24)).value
    (picture,) = guide.picture(output)
    assert picture.size == (24, 40)


@pytest.mark.parametrize("text", ["photos/missing.png", "missing.jpg", "", "sky blue"])
def test_what_is_neither_a_picture_nor_colours_is_refused(text: str) -> None:
    with pytest.raises(TargetError) as error:
        PaletteGuide().read_target(text, (16, 16))
    assert error.value.remedy


def test_an_unknown_statistic_is_refused_with_those_there_are() -> None:
    with pytest.raises(OptionError, match="no statistic 'median'") as error:
        PaletteGuide(model="median")
    assert "distribution or moments" in error.value.remedy
