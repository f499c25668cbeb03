"""Palettes: read, found, drawn, printed."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from ppap_host.files.errors import TargetError
from ppap_host.files.images import to_tensor
from typer.testing import CliRunner

from ppap_plugin_palette import palettes
from ppap_plugin_palette.cli import app
from ppap_plugin_palette.colour import OKLab


def flag(path: Path) -> Path:
    """Three quarters navy, a quarter orange, and a red dot of one per cent."""
    image = Image.new("RGB", (40, 20), "navy")
    image.paste("orange", (30, 0, 40, 20))
    image.paste("red", (2, 2, 6, 4))
    image.save(path)
    return path


def test_colours_have_equal_shares_unless_they_are_weighted() -> None:
    assert palettes.parse("navy, #ffcc00").shares.tolist() == [0.5, 0.5]
    weighted = palettes.parse("Navy : 3,#fc0:1,")
    assert weighted.shares.tolist() == [0.75, 0.25]
    assert weighted.hexes() == ["#000080", "#ffcc00"]


@pytest.mark.parametrize(
    ("text", "message", "remedy"),
    [
        ("", "has no colours", "navy,#ffcc00"),
        (" , ", "has no colours", "navy,#ffcc00"),
        ("navy,ornage", "'ornage'.*no colour", "'orange'"),
        ("navy,#12345", "'#12345'.*no colour", "navy,#ffcc00"),
        ("navy:much", "'much' is no weight", "navy:2"),
        ("navy:0", "'0' is no weight", "navy:2"),
        ("navy:nan", "'nan' is no weight", "navy:2"),
        ("navy:", "'' is no weight", "navy:2"),
    ],
)
def test_what_is_no_palette_is_refused_with_a_remedy(text: str, message: str, remedy: str) -> None:
    with pytest.raises(TargetError, match=message) as error:
        palettes.parse(text)
    assert remedy in error.value.remedy


def test_bars_are_as_wide_as_the_shares_to_a_pixel() -> None:
    palette = palettes.parse("navy:1,orange:2,teal:997")
    counts = palettes.draw(palette.bars(32, 32)).getcolors()
    assert counts is not None
    assert {count for count, _ in counts} == {1, 2, 1021}


def test_shades_differ_in_light_alone() -> None:
    bars = palettes.parse("teal").bars(8, 8)
    shades = palettes.shaded(bars)
    assert shades[0, 0, 0] > bars[0, 0, 0] > shades[0, -1, 0]
    torch.testing.assert_close(shades[1:] / shades[0], bars[1:] / bars[0])


def test_the_palette_of_a_picture_has_its_colours_and_shares(tmp_path: Path) -> None:
    picture = to_tensor(Image.open(flag(tmp_path / "flag.png")))
    lab = OKLab()((picture + 1) / 2)[0]
    palette = palettes.find(lab, 3)
    assert palette.text() == "#000080:74,#ff0000:1,#ffa500:25"
    assert palettes.find(lab, 8).text() == palette.text(), "there are no more colours than three"
    assert len(palettes.find(lab, 2).shares) == 2


def test_the_command_prints_what_a_target_reads(tmp_path: Path) -> None:
    picture, out = str(flag(tmp_path / "flag.png")), tmp_path / "swatches.png"
    result = CliRunner().invoke(app, [picture, "-n", "3", "--out", str(out)])
    assert result.exit_code == 0
    assert palettes.parse(result.stdout).hexes() == ["#000080", "#ff0000", "#ffa500"]
    assert len(Image.open(out).getcolors()) == 3


def test_the_command_prints_json(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [str(flag(tmp_path / "flag.png")), "--json"])
    record = json.loads(result.stdout)
    assert record["target"] == "#000080:74,#ff0000:1,#ffa500:25"
    assert record["colours"][2] == {"hex": "#ffa500", "share": 0.25}


def test_the_command_refuses_what_is_no_picture(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [str(tmp_path / "nothing.png")])
    assert isinstance(result.exception, TargetError)
