"""The documentation says what is true today: generated parts, commands, code and the example."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from examples import EXAMPLES, installed
from PIL import Image
from scripts import DOCS, script
from shown import blocks
from torch import Tensor

from ppap_host.backbones.backbone import Backbone, Condition, Prediction
from ppap_host.backbones.noise import DiscreteSchedule, NoiseLevel, Walk, cosine_betas
from ppap_host.files.errors import OptionError, TargetError
from ppap_host.guides.guide import Guide
from ppap_host.plugins.registry import Registry
from ppap_host.sampling.evaluator import Evaluator, Guidance, Health
from ppap_host.sampling.names import SAMPLER_SUMMARIES

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
ALL_PAGES = [p for p in (*PAGES[:2], *sorted(DOCS.rglob("*.md"))) if EXAMPLES not in p.parents]
EXAMPLE = EXAMPLES / "ppap-plugin-brightness"


def python_blocks(page: Path) -> list[str]:
    """The fenced blocks of Python on a page, in order."""
    every = blocks(page.read_text(encoding="utf-8"))
    return [block.text for block in every if block.language == "python"]


def test_what_hangs_on_the_backbone_is_made_again_by_a_step() -> None:
    remake = script("remake")
    kept = {path.resolve() for step in remake.STEPS for path in step.puts.values()}
    experts = {
        path
        for guide in remake.NETWORKS
        for path in remake.weights(guide).glob("*/*-?*.safetensors")
    }
    assert experts and experts <= kept
    assert len({step.name for step in remake.STEPS}) == len(remake.STEPS)
    # What is made by other commands: of networks that are trained for hours, of no backbone, or
    # where several folders go into one file.
    others = ("batches", "calibration", "capacity", "elucd", "targets")
    results = {p for p in remake.RESULTS.iterdir() if not p.name.startswith(others)}
    assert results == {path for path in kept if path.parent == remake.RESULTS}


def test_generated_parts_are_up_to_date() -> None:
    for path, text in script("generate").pages().items():
        there = path.exists() and path.read_text(encoding="utf-8")
        assert there == text, f"{path} is out of date: run `python docs/generate.py`"


def test_the_concepts_page_has_every_sampler() -> None:
    text = (DOCS / "concepts.md").read_text(encoding="utf-8")
    table = text.split("## Sampler")[1].split("## ")[0]
    assert set(re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)) == set(SAMPLER_SUMMARIES)


def test_every_picture_is_made_by_a_shown_command() -> None:
    made = {r.picture for r in script("make_pictures").recordings() if r.picture is not None}
    there = {f"images/{path.name}" for path in (DOCS / "images").iterdir()}
    assert there <= made
    assert all((DOCS / picture).is_file() for picture in made)


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_picture_that_a_page_shows_exists(page: Path) -> None:
    for link in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).is_file()


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_shown_python_is_valid_and_imports_what_exists(page: Path) -> None:
    for block in python_blocks(page):
        compile(block, page.name, "exec")
        imports = [line for line in block.splitlines() if re.match(r"(from|import) ", line)]
        exec("\n".join(imports), {})


def test_the_readmes_python_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    _, block = python_blocks(ROOT / "README.md")
    monkeypatch.chdir(tmp_path)
    shown = block.replace("docs/images/target.png", str(DOCS / "images" / "target.png"))
    exec(shown.replace("seed=7", "seed=7, steps=2, num=1"), {})
    assert "abs-rel" in capsys.readouterr().out
    assert (tmp_path / "from-python" / "sheet.png").is_file()


def test_the_readmes_lines_for_a_script_of_diffusers_run(monkeypatch: pytest.MonkeyPatch) -> None:
    import ppap_host

    class Result:
        images = ["picture"]  # noqa: RUF012

    asked: list[Any] = []

    @contextmanager
    def steered(pipe: Any, guidance: Any) -> Iterator[None]:
        asked.append((pipe, guidance.name, guidance.target))
        yield
        asked.append("left")

    def pipe(prompt: str) -> Result:
        asked.append(prompt)
        return Result()

    monkeypatch.setattr(ppap_host, "steer", steered)
    block, _ = python_blocks(ROOT / "README.md")
    names: dict[str, Any] = {"pipe": pipe}
    exec(block, names)
    assert names["image"] == "picture"
    assert asked == [(pipe, "depth", "room.jpg"), "a dog", "left"]


def test_the_plugin_page_shows_every_file_of_the_example() -> None:
    text = (DOCS / "plugins.md").read_text(encoding="utf-8")
    shown = re.findall(rf'^--8<-- "({EXAMPLE.name}/.+)"$', text, re.MULTILINE)
    there = [p for p in EXAMPLE.rglob("*") if p.suffix in (".py", ".toml")]
    assert sorted(shown) == sorted(p.relative_to(EXAMPLE.parent).as_posix() for p in there)


class GreyBackbone(Backbone):
    """Predicts a share of x_t as noise: enough to take a guided step."""

    name = "grey"
    state_shape = (3, 16, 16)

    def walk(self, steps: int | str) -> Walk:
        return DiscreteSchedule.from_betas(cosine_betas(1000)).walk(steps)

    def levels(self) -> tuple[NoiseLevel, ...]:
        return DiscreteSchedule.from_betas(cosine_betas(1000)).levels()

    def predict(self, x: Tensor, level: NoiseLevel, condition: Condition) -> Prediction:
        return Prediction(x * level.sigma)

    def to(self, device: torch.device, dtype: torch.dtype) -> Backbone:
        return self


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    with installed(EXAMPLE.name, monkeypatch) as found:
        yield found


def test_the_example_plugin_registers_its_guide(example: Registry) -> None:
    assert [plugin.problem for plugin in example.plugins] == [None, None]
    guide = example.load("guide", "brightness")(model=None)
    assert isinstance(guide, Guide)
    with pytest.raises(OptionError):
        example.load("guide", "brightness")(model="some/network")


def test_the_example_reads_colours_and_images(example: Registry, tmp_path: Path) -> None:
    guide = example.load("guide", "brightness")(model=None)
    Image.new("RGB", (30, 20), (255, 0, 51)).save(tmp_path / "image.png")
    for text in ("#ff0033", str(tmp_path / "image.png")):
        target = guide.read_target(text, (16, 16))
        torch.testing.assert_close(target.value, torch.tensor([[1.0, 0.0, 0.2]]))
        assert list(target.pictures) == ["target", "its mean colour"]
    with pytest.raises(TargetError, match="neither a colour nor an image"):
        guide.read_target("no such thing", (16, 16))


@pytest.mark.parametrize("recipe", ["naive", "x0", "x0-through"])
def test_a_step_guided_by_the_example_comes_nearer_to_its_target(
    example: Registry, recipe: str
) -> None:
    guide = example.load("guide", "brightness")(model=None)
    target = guide.read_target("#c08040", (16, 16)).value
    backbone = GreyBackbone()
    level = backbone.walk(10).levels[5]
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def differences(scale: float) -> Tensor:
        guidance = [Guidance(guide, target, example.load("recipe", recipe), scale)]
        health = Health()
        evaluate = Evaluator(
            backbone, lambda x, level: backbone.predict(x, level, {}), guidance,
            ancestral=False, health=health,
        )  # fmt: skip
        output = guide.see(evaluate(x, level).x0)
        assert not health.skipped
        assert len(guide.picture(output)) == len(x)
        return torch.tensor(guide.measure(output, target)["difference"])

    scale = guide.default_scale[""]
    assert (differences(scale) < differences(0.0)).all()
