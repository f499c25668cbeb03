"""The documentation says what is true today: generated parts, commands, code and the example."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from examples import EXAMPLES, installed
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from ppap_host import run as run_module
from ppap_host.backbone import Backbone, Condition, Prediction
from ppap_host.cli import app
from ppap_host.errors import OptionError, TargetError
from ppap_host.guide import Guide
from ppap_host.names import SAMPLER_SUMMARIES
from ppap_host.noise import DiscreteSchedule, NoiseLevel, Walk, cosine_betas
from ppap_host.registry import Registry
from ppap_host.sampling import Evaluator, Guidance, Health

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
EXAMPLE = EXAMPLES / "ppap-plugin-brightness"


def script(name: str) -> ModuleType:
    """A script of the docs folder as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced blocks of these languages on a page, in order."""
    found, lines, language = [], [], None
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("```") and language is None:
            language, lines = line.removeprefix("```"), []
        elif line == "```":
            if language in languages:
                found.append("\n".join([*lines, ""]))
            language = None
        else:
            lines.append(line)
    return found


def commands(start: str) -> Iterator[tuple[str, str]]:
    """Every shown command that begins with ``start``: (page, command)."""
    for page in PAGES:
        for block in blocks(page, "bash", ""):
            for line in block.splitlines():
                for part in line.split(" && "):
                    if part.startswith(start):
                        yield page.name, part.split(" > ")[0]


def words(help_page: str) -> list[str]:
    """A help page without its layout, which is Typer's and changes with its version."""
    # A summary that was cut short to fit its line depends on the layout, too.
    whole = "\n".join(line for line in help_page.splitlines() if not line.endswith("..."))
    text = re.sub(r"<[^>]*>|\[[^\]]*\]|[*╭╮╰╯│─|]", " ", whole)
    ours = [w for w in text.split() if not re.fullmatch(r"[A-Z]+(\.\.\.)?|\{\w+\}|\w+\.\.\.", w)]
    start = ours.index("ppap") if "ppap" in ours else 0
    completion = {"--install-completion", "--show-completion"}
    return [w for w in ours[start:] if w not in completion]


def test_generated_parts_are_up_to_date() -> None:
    for path, text in script("generate").pages().items():
        old = path.read_text(encoding="utf-8")
        same = words(old) == words(text) if path.name == "cli.md" else old == text
        assert same, f"{path.name} is out of date: run `python docs/generate.py`"


def test_the_concepts_page_has_every_sampler() -> None:
    text = (DOCS / "concepts.md").read_text(encoding="utf-8")
    table = text.split("## Sampler")[1].split("## ")[0]
    assert set(re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)) == set(SAMPLER_SUMMARIES)


def test_every_picture_is_made_by_a_shown_command() -> None:
    made = {recording.picture for recording in script("make_pictures").recordings()}
    there = {f"images/{path.name}" for path in (DOCS / "images").iterdir()}
    assert there == made


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_picture_that_a_page_shows_exists(page: Path) -> None:
    for link in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).is_file()


@pytest.mark.parametrize(
    ("page", "command"), [c for c in commands("ppap run") if "--config" not in c[1]]
)
def test_every_shown_run_is_understood(page: str, command: str) -> None:
    outcome = CliRunner().invoke(app, [*shlex.split(command)[1:], "--print-config"])
    assert outcome.exit_code == 0, outcome.output


@pytest.mark.parametrize(("page", "command"), list(commands("ppap shapes")))
def test_every_shown_shapes_command_has_the_options_it_uses(page: str, command: str) -> None:
    parts = shlex.split(command)[1:]
    told = CliRunner().invoke(app, [*parts[:2], "--help"], env={"COLUMNS": "100"}).output
    for option in (p for p in parts if p.startswith("--")):
        assert option in told


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_shown_python_is_valid_and_imports_what_exists(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(block, page.name, "exec")
        imports = [line for line in block.splitlines() if re.match(r"(from|import) ", line)]
        exec("\n".join(imports), {})


def test_the_readmes_python_runs(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def fake(config: Any, out: Path) -> run_module.RunResult:
        assert config.guides[0].target == "docs/images/target.png"
        entry = {"file": "00000.png", "measures": {"depth": {"abs-rel": 0.1}}}
        return run_module.RunResult({"images": [entry]}, out, [Image.new("RGB", (64, 64))])

    monkeypatch.setattr(run_module, "run", fake)
    _, block = blocks(ROOT / "README.md", "python")
    exec(block, {})
    assert capsys.readouterr().out == "00000.png (64, 64) {'depth': {'abs-rel': 0.1}}\n"


def test_the_readmes_two_lines_for_a_script_of_diffusers_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ppap_host

    def callback(pipe: Any, guides: list[str], targets: list[str]) -> Any:
        return lambda: (pipe, guides, targets)

    class Result:
        images = ["picture"]  # noqa: RUF012

    asked = []

    def pipe(prompt: str, callback_on_step_end: Any) -> Result:
        asked.append((prompt, callback_on_step_end()))
        return Result()

    monkeypatch.setattr(ppap_host, "diffusers_callback", callback)
    block, _ = blocks(ROOT / "README.md", "python")
    names: dict[str, Any] = {"pipe": pipe}
    exec(block, names)
    assert names["image"] == "picture"
    assert asked == [("a dog", (pipe, ["depth"], ["room.jpg"]))]


def test_the_plugin_page_shows_every_file_of_the_example() -> None:
    text = (DOCS / "plugins.md").read_text(encoding="utf-8")
    shown = re.findall(r'^--8<-- "(.+)"$', text, re.MULTILINE)
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
