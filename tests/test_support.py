"""The page of what can be guided: a sample of it is made again, and it leaves nothing out."""

from __future__ import annotations

import re
from pathlib import Path

import diffusers
import pytest
from memory import row, views
from support import OTHERS, class_row, made, modular_row
from zoo import classes, modular_classes

PAGE = (Path(__file__).parent.parent / "docs" / "backbones" / "support.md").read_text("utf-8")
ROWS = {
    line.split("`")[1]: [cell.strip() for cell in line.split("|")[2:-1]]
    for line in PAGE.splitlines()
    if line.startswith("| `")
}
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    [
        "StableDiffusionPipeline", "FluxImg2ImgPipeline", "IFInpaintingPipeline", "WanPipeline",
        "AnyFlowPipeline", "ZImageModularPipeline",
    ],
)  # fmt: skip
def test_a_sample_of_the_page_comes_out_again(name: str) -> None:
    modular = name.endswith("ModularPipeline")
    row = made(modular_row, name) if modular else made(class_row, getattr(diffusers, name))
    for cell, expected in zip(row.values(), ROWS[name], strict=True):
        assert NUMBER.sub("#", cell) == NUMBER.sub("#", expected)
        numbers = [[float(n) for n in NUMBER.findall(text)] for text in (cell, expected)]
        # Other processors round otherwise.
        assert numbers[0] == pytest.approx(numbers[1], rel=0.02)


@pytest.mark.skipif(
    diffusers.__version__ not in PAGE, reason="the page was made with another diffusers"
)
def test_every_class_is_on_the_page_and_no_cell_is_empty() -> None:
    wanted = {kind.__name__ for kinds in classes().values() for kind in kinds}
    assert set(ROWS) == wanted | set(modular_classes()) | {n for o in OTHERS.values() for n in o}
    assert all(cell for row in ROWS.values() for cell in row)
    equal = [name for name, row in ROWS.items() if row[0].startswith("equal bytes")]
    assert len(equal) > 100
    assert not [name for name, row in ROWS.items() if "apart" in row[0]]


@pytest.mark.filterwarnings("ignore")
def test_memory_is_counted_as_the_page_says() -> None:
    page = (Path(__file__).parent.parent / "docs" / "backbones" / "memory.md").read_text("utf-8")
    for line in (row("Stable Diffusion 1.5", "Depth-Anything-small"), *views()):
        words = [cell for cell in line.split("|") if re.search("[a-z]", cell)]
        (expected,) = (known for known in page.splitlines() if set(words) <= set(known.split("|")))
        numbers = [[float(n) for n in NUMBER.findall(text)] for text in (line, expected)]
        assert numbers[0] == pytest.approx(numbers[1], rel=0.1, abs=0.11)  # other versions
    told = re.findall(r"\| (\d+)% \|", page)
    assert len(told) == 2
    assert all(int(apart) <= 15 for apart in told)
