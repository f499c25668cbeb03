"""The scripts that make the pictures of the documentation do what their pages say."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from scripts import DOCS, script

FIGURES = ("guidance", "noise", "gradient", "recipes", "scale")
PAGE = """
<!-- pictures: need this -->
```bash
python -c "from PIL import Image; Image.new('RGB', (8, 8), 'red').save('red.png')"
```

<!-- picture: images/one.png = one.png -->
<!-- commands: shortened --num 1 -->
```bash
cp red.png one.png
```

<!-- picture: images/two.png = two.png -->
```bash
cp never-made.png two.png
```
"""


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script that makes pictures, on a folder of documentation with one page below it."""
    module = script("make_pictures")
    monkeypatch.setattr(module, "DOCS", tmp_path)
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "page.md").write_text(PAGE, encoding="utf-8")
    return module


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(DOCS)
    return script("figures")


def test_a_picture_is_made_with_what_it_needs_and_without_the_others(
    pictures: ModuleType, tmp_path: Path
) -> None:
    pictures.main(["one"])
    made = tmp_path / "images"
    assert [path.name for path in made.iterdir()] == ["one.png"]
    assert Image.open(made / "one.png").getpixel((0, 0)) == (255, 0, 0)


def test_a_picture_that_no_page_has_is_refused(
    pictures: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        pictures.main(["three"])
    assert "no block makes three" in capsys.readouterr().err


def test_a_picture_named_webp_keeps_its_colours(tmp_path: Path) -> None:
    rows, columns = np.mgrid[0:255:64j, 0:255:64j]
    shaded = np.stack([rows, columns, 0 * rows + 120], axis=2).astype(np.uint8)
    Image.fromarray(shaded).save(tmp_path / "made.png")
    script("make_pictures").put(tmp_path / "made.png", tmp_path / "kept.webp")
    with Image.open(tmp_path / "kept.webp") as image:
        assert image.format == "WEBP"
        off = np.abs(np.asarray(image.convert("RGB")).astype(int) - shaded)
    assert off.mean() < 2


def test_a_large_picture_gets_a_palette_and_a_small_one_stays_as_it_is(tmp_path: Path) -> None:
    shrink = script("make_pictures").shrink
    small, large = tmp_path / "small.png", tmp_path / "large.png"
    grain = np.random.default_rng(0).integers(0, 8, (256, 256, 3))
    rows, columns = np.mgrid[0:248:256j, 0:248:256j]
    shaded = (np.stack([rows, columns, 0 * rows + 120], axis=2) + grain).astype(np.uint8)
    Image.fromarray(shaded).save(large)
    Image.fromarray(shaded[:16, :16]).save(small)
    before = small.read_bytes()
    shrink(small)
    shrink(large)
    assert small.read_bytes() == before
    with Image.open(large) as image:
        assert image.mode == "P"
        shown = np.asarray(image.convert("RGB"), dtype=float)
    # Dithered: what a palette of 256 colours gets wrong evens out over a few pixels.
    blocks = (shown - shaded).reshape(32, 8, 32, 8, 3).mean(axis=(1, 3))
    assert np.abs(blocks).mean() < 3


def test_every_figure_is_on_the_page_of_concepts_with_the_command_that_draws_it(
    figures: ModuleType,
) -> None:
    page = (DOCS / "concepts.md").read_text(encoding="utf-8")
    shown = re.findall(r"!\[[^\]]+\]\(figures/(\w+)\.png\)\n\n(\*.+\*)\n", page)
    assert all(f"`python docs/figures.py {name}`" in caption for name, caption in shown)
    there = {path.name for path in (DOCS / "figures").iterdir()}
    assert there == {f"{name}.png" for name, _ in shown}
    assert {name for name, _ in shown} == set(figures.FIGURES) == set(FIGURES)


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_drawn_from_runs_of_today(
    name: str, figures: ModuleType, tmp_path: Path
) -> None:
    figures.main([name, "--out", str(tmp_path), "--steps", "3", "--num", "2"])
    with (
        Image.open(tmp_path / f"{name}.png") as drawn,
        Image.open(DOCS / "figures" / f"{name}.png") as shown,
    ):
        assert drawn.size == shown.size
        # The runs are shorter than those of the page, so they look different.
        assert drawn.convert("RGB").tobytes() != shown.convert("RGB").tobytes()


def test_a_figure_that_there_is_not_is_refused(
    figures: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        figures.main(["picture"])
    assert "there is no figure picture" in capsys.readouterr().err


def test_the_pictures_of_the_documentation_stay_small() -> None:
    sizes = [
        p.stat().st_size for folder in ("images", "figures") for p in (DOCS / folder).iterdir()
    ]
    assert max(sizes) < 200_000
    assert sum(sizes) < 2_500_000
