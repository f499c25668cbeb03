"""The reference says what the code says: commands and docstrings; and it needs no network."""

from __future__ import annotations

import logging
import pkgutil
import re
from importlib import import_module
from pathlib import Path
from textwrap import dedent
from typing import Annotated, Any

import griffe
import pytest
import typer
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort
from scripts import DOCS, script
from typer.testing import CliRunner

from ppap_host import recipes
from ppap_host.cli import app
from ppap_host.recipes import presets
from ppap_host.recipes.recipe import Recipe

GENERATE = script("generate")
DOCSTRINGS = script("docstrings")
SELF_CONTAINED = script("self_contained")
COMMANDS = [name for name, command in GENERATE.COMMANDS.items() if command.callback]


# The pages of commands


@pytest.mark.parametrize("name", COMMANDS)
def test_a_page_has_every_option_that_the_help_of_its_command_has(name: str) -> None:
    told = CliRunner().invoke(app, [*name.split(), "--help"], env={"COLUMNS": "200"}).output
    page = (DOCS / "commands" / f"{name.split()[0]}.md").read_text(encoding="utf-8")
    (part,) = re.findall(rf"<!-- generated: command {name} -->(.*?)<!-- end -->", page, re.S)
    listed = re.findall(r"^ *(?:-\w, )?(--[a-z][\w-]*)", told, re.MULTILINE)
    assert "--help" in listed
    # What every command takes stands on one page for all of them.
    for option in set(listed) - {"--quiet", "--verbose", "--debug"}:
        assert f"| `{option}`" in part


@pytest.mark.parametrize("page", sorted((DOCS / "commands").glob("*.md")), ids=lambda p: p.stem)
def test_every_page_of_a_command_tells_its_exit_codes(page: Path) -> None:
    text = page.read_text(encoding="utf-8").partition("## Exit codes")[2]
    assert re.search(r"^\| 0 \| \w", text, re.MULTILINE)


def test_commands_of_other_plugins_are_not_the_projects_to_document() -> None:
    assert {"run", "bench", "search", "shapes"} <= set(GENERATE.COMMANDS)
    assert "palette" not in GENERATE.COMMANDS


def test_a_command_without_a_page_is_given_one_with_a_place_for_each_part() -> None:
    page = GENERATE.with_tables(GENERATE.with_all_commands("", "shapes"))
    assert re.findall(r"^#+ .*", page, re.MULTILINE) == [
        "# ppap shapes", "## ppap shapes render", "## ppap shapes evaluate",
    ]  # fmt: skip
    assert "| `--seed` |" in page


def test_what_is_written_by_hand_stays() -> None:
    by_hand = "# ppap list\n\n{}\n\nRead this.\n"
    page = by_hand.format("<!-- generated: command list -->\nold\n<!-- end -->")
    new = GENERATE.with_tables(GENERATE.with_all_commands(page, "list"))
    found = re.sub(r"<!-- generated.*?<!-- end -->", "{}", new, flags=re.DOTALL)
    assert (found, "old" in new) == (by_hand, False)


def sample(
    name: Annotated[list[str], typer.Argument(metavar="PATH|NAME", help="A file.")],
    size: Annotated[int, typer.Option("--size", "-s", min=8, max=64, help="In pixels.")] = 32,
    rate: Annotated[float | None, typer.Option(min=0, help="A rate; default: the guide's.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where. [default: made in --work]")] = None,
    seed: Annotated[int, typer.Option(help="A seed.")] = 0,
    kind: Annotated[list[str] | None, typer.Option(help="<this> or that. [default: that]")] = None,
    plain: Annotated[bool, typer.Option("--plain/--fancy", help="How.")] = False,
) -> None:
    """A command with one of each."""


def test_parameters_are_told_with_their_values_and_defaults() -> None:
    told = list(GENERATE.parameters(sample))
    assert [(p.names, p.values, p.default, p.meaning) for p in told] == [
        ((), "text; repeatable", "", "A file."),
        (("--size", "-s"), "whole number, 8 to 64", "`32`", "In pixels."),
        (("--rate",), "number, at least 0", "the guide's", "A rate."),
        (("--out",), "path", "made in `--work`", "Where."),
        (("--seed",), "whole number", "`0`", "A seed."),
        (("--kind",), "text; repeatable", "`that`", "&lt;this> or that."),
        (("--plain/--fancy",), "flag", "", "How."),
    ]
    assert [p.metavar for p in told if p.required] == ["PATH|NAME..."]


# Docstrings


def visited(monkeypatch: pytest.MonkeyPatch, **modules: str) -> griffe.Module:
    """A package of this source, its docstrings rewritten."""
    monkeypatch.setattr(DOCSTRINGS, "PACKAGES", ("world",))
    extensions = griffe.load_extensions(DOCSTRINGS.Docstrings)
    files = {f"{name}.py": dedent(text) for name, text in modules.items()}
    with griffe.temporary_visited_package(
        "world", files, init=False, extensions=extensions
    ) as package:
        return package


SOURCE = '''
    """Solids, see :class:`Solid` and :func:`world.drawing.draw`."""
    from torch import Tensor

    SIDES = 6
    """Of a cube."""

    class Solid:
        """A solid, not a :class:`Tensor`: "<colour> <shape>" in ``<file>``.

        Attributes:
            low, high: bounds of what :meth:`volume` returns,
                in metres.
            name: as :data:`SIDES` says.
        """

        name: str

        def volume(self):
            """Of :attr:`name`; drawn by :func:`~world.drawing.draw`."""
'''
DRAWING = '''
    """Drawing."""
    def draw():
        """Draws a :class:`~world.solids.Solid` between its :attr:`world.solids.Solid.low` ..."""
'''


def link(target: str, shown: str) -> str:
    return f'<autoref identifier="{target}" optional>`{shown}`</autoref>'


def test_roles_become_links_to_what_they_name(monkeypatch: pytest.MonkeyPatch) -> None:
    world = visited(monkeypatch, solids=SOURCE, drawing=DRAWING, __init__="")
    told = world["solids"].docstring.value
    assert told == (
        f"Solids, see {link('world.solids.Solid', 'Solid')} and "
        f"{link('world.drawing.draw', 'world.drawing.draw')}."
    )
    # An attribute without a docstring of its own is described with its class.
    assert world["solids.Solid.volume"].docstring.value == (
        f"Of {link('world.solids.Solid', 'name')}; drawn by {link('world.drawing.draw', 'draw')}."
    )
    assert link("world.solids.Solid", "world.solids.Solid.low") in (
        world["drawing.draw"].docstring.value
    )


def test_names_of_other_packages_are_code(monkeypatch: pytest.MonkeyPatch) -> None:
    world = visited(monkeypatch, solids=SOURCE, drawing=DRAWING, __init__="")
    assert "A solid, not a `Tensor`:" in world["solids.Solid"].docstring.value


def test_angle_brackets_are_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    world = visited(monkeypatch, solids=SOURCE, drawing=DRAWING, __init__="")
    told = world["solids.Solid"].docstring.value
    assert '"&lt;colour> &lt;shape>" in ``<file>``.' in told


def test_names_that_share_an_entry_get_one_each(monkeypatch: pytest.MonkeyPatch) -> None:
    world = visited(monkeypatch, solids=SOURCE, drawing=DRAWING, __init__="")
    told = world["solids.Solid"].docstring.value
    for name in ("low", "high"):
        entry = rf"^    {name}: bounds of what .*volume.* returns,\n        in metres\.$"
        assert re.search(entry, told, re.MULTILINE)


def test_a_role_that_names_nothing_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        visited(monkeypatch, __init__='"""See :class:`Nobody`."""')
    assert "world: :class:`Nobody` names nothing" in caplog.text


def test_every_module_of_the_interface_has_a_page() -> None:
    public = re.findall(
        r"^\| `(ppap_host\.[\w.]+)` \|", (DOCS / "stability.md").read_text("utf-8"), re.MULTILINE
    )
    pages = [page.read_text("utf-8") for page in (DOCS / "reference").glob("*.md")]
    described = {name for p in pages for name in re.findall(r"^::: (\S+)$", p, re.MULTILINE)}
    assert public
    assert set(public) <= described


def test_the_page_of_recipes_has_every_public_name() -> None:
    page = (DOCS / "reference" / "recipes.md").read_text(encoding="utf-8")
    described = set(re.findall(r"^::: ppap_host\.recipes\.\w+\.(\w+)$", page, re.MULTILINE))
    defined = {
        name
        for found in pkgutil.iter_modules(recipes.__path__, "ppap_host.recipes.")
        for name, thing in vars(import_module(found.name)).items()
        if getattr(thing, "__module__", None) == found.name and not name.startswith("_")
    }
    for module, name in re.findall(r"^::: (ppap_host\.recipes\.\w+)\.(\w+)$", page, re.MULTILINE):
        assert hasattr(import_module(module), name)
    assert defined - described <= {"checked_recipe", "split_recipe"}  # of configurations
    named = {n for n, thing in vars(presets).items() if isinstance(thing, Recipe)}
    assert named == set(re.findall(r"`(\w+)`", page)) & named


# What a page loads


@pytest.mark.parametrize(
    "markup",
    [
        '<script src="https://example.org/a.js"></script>',
        '<link rel="stylesheet" href="//example.org/a.css">',
        '<link href="http://example.org" rel="preconnect" crossorigin>',
        '<img alt="" src="https://example.org/a.png">',
        '<img srcset="a.png, https://example.org/b.png 2x">',
        "<style>@import 'https://example.org/a.css';</style>",
        '<p style="background: url(https://example.org/a.png)"></p>',
        '<pre class="mermaid"><code>graph</code></pre>',
    ],
)
def test_what_a_page_loads_from_elsewhere_is_found(markup: str) -> None:
    assert len(SELF_CONTAINED.remote(f"<html><body>{markup}</body></html>")) == 1


@pytest.mark.parametrize(
    "markup",
    [
        '<a href="https://arxiv.org/abs/2212.05973">PPAP</a>',
        '<link rel="canonical" href="https://example.org/page">',
        '<img src="../images/a.png">',
        '<img src="data:image/png;base64,AAAA">',
        "<code>&lt;img src=https://example.org&gt;</code>",
    ],
)
def test_what_stays_here_is_no_fault(markup: str) -> None:
    assert SELF_CONTAINED.remote(markup) == []


def built(folder: Path, page: str, css: str = "") -> None:
    """Builds a site of one page with the project's theme and hook; warnings are errors."""
    (folder / "docs").mkdir()
    (folder / "docs" / "index.md").write_text(page)
    (folder / "docs" / "site.css").write_text(css)
    settings: dict[str, Any] = {
        "site_name": "one page", "docs_dir": str(folder / "docs"), "strict": True,
        "site_dir": str(folder / "site"), "hooks": [str(DOCS / "self_contained.py")],
        "theme": {"name": "material", "font": False}, "plugins": [], "extra_css": ["site.css"],
    }  # fmt: skip
    configuration = folder / "mkdocs.yml"
    configuration.write_text("site_name: one page\n")
    build(load_config(str(configuration), **settings))


def test_a_page_that_stays_here_is_built(tmp_path: Path) -> None:
    built(tmp_path, "# Nothing\n\n[A link](https://arxiv.org/abs/2212.05973)\n")
    assert (tmp_path / "site" / "index.html").exists()


@pytest.mark.parametrize(
    ("page", "css"),
    [
        ("![A picture](https://example.org/a.png)\n", ""),
        ("# Nothing\n", "p { background: url('https://example.org/a.png') }"),
    ],
)
def test_a_page_that_loads_from_elsewhere_breaks_the_build(
    tmp_path: Path, page: str, css: str
) -> None:
    with pytest.raises(Abort):
        built(tmp_path, page, css)
