"""``ppap plugin new``: what it writes runs, is tested, and passes lint, types and the kit."""

from __future__ import annotations

import ast
import datetime
import os
import re
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from installation import ROOT, TYPES_READ, build
from processes import Outcome, plain_environment
from typer.testing import CliRunner

from conftest import Call
from ppap_host.cli import app
from ppap_host.cli import plugin as plugin_commands
from ppap_host.files import images
from ppap_host.files.errors import OptionError, OutputError, PluginError
from ppap_host.guides.guide import Guide
from ppap_host.plugins import scaffold
from ppap_host.plugins.registry import Registry
from ppap_host.plugins.scaffold import KINDS, PluginKind, Scaffold, registered_as
from ppap_host.testing import pictures

AWKWARD = 'A "quoted" \\ it\'s § {braced} $name ünï'
LONGEST = "abcdefghijklmnopqrstuvwxyz-1"
KNOWN_GAPS = {"temperatures", "operator", "condition"}
"""Checks that these plugins have nothing for: no classes, no linear measurement, no condition."""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[PluginKind, Path]:
    """A plugin of each kind."""
    folder = tmp_path_factory.mktemp("scaffold")
    for kind in KINDS:
        scaffold.write(Scaffold(f"my-{kind}", kind, "Ada"), folder / kind)
    return {kind: folder / kind for kind in KINDS}


@pytest.fixture
def found(written: dict[PluginKind, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """A registry that finds them as their pyproject.toml declare them."""
    points = []
    for folder in written.values():
        declared = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]
        for name, value in declared["entry-points"]["ppap"].items():
            points.append(metadata.EntryPoint(name, value, "ppap"))
        monkeypatch.syspath_prepend(folder / "src")
    yield Registry(points)
    for module in [n for n in sys.modules if n.startswith("ppap_plugin_my_")]:
        del sys.modules[module]


def run(folder: Path, *command: str) -> Outcome:
    """A Python module as a program, in the plugin's folder."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder, env=plain_environment(), capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("kind", KINDS)
def test_it_has_all_that_a_distribution_has(
    kind: PluginKind, written: dict[PluginKind, Path]
) -> None:
    folder, package = written[kind], f"ppap_plugin_my_{kind}"
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert there >= {
        ".github/workflows/ci.yml", ".gitignore", "LICENSE", "README.md", "pyproject.toml",
        f"src/{package}/__init__.py", f"src/{package}/{kind}.py", f"src/{package}/py.typed",
        f"tests/test_{kind}.py", "tests/test_conformance.py",
    }  # fmt: skip
    assert not [p for p in there if p.endswith(".tmpl")]
    assert "§" not in "".join((folder / p).read_text("utf-8") for p in there)
    project = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["name"] == f"ppap-plugin-my-{kind}"
    assert project["entry-points"] == {"ppap": {f"my-{kind}": package}}
    assert project["authors"] == [{"name": "Ada"}]
    assert project["dependencies"][0].startswith("ppap-host>=0.")
    assert "python-version: ${{ matrix.python }}" in (
        folder / ".github" / "workflows" / "ci.yml"
    ).read_text("utf-8")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "summary"),
    [("a", ""), ("my-thing", AWKWARD), (LONGEST, "x" * 72)],
    ids=["short", "awkward", "long"],
)
def test_ruff_has_nothing_to_say(kind: PluginKind, name: str, summary: str, tmp_path: Path) -> None:
    scaffold.write(Scaffold(name, kind, "Ada", summary), tmp_path / "new")
    for command in (("check",), ("format", "--check", "--diff")):
        outcome = run(tmp_path / "new", "ruff", *command, "--no-cache")
        assert outcome.code == 0, outcome.out + outcome.err


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_types_are_right(kind: PluginKind, written: dict[PluginKind, Path]) -> None:
    outcome = run(written[kind], "mypy", "--cache-dir", str(TYPES_READ))
    assert outcome.code == 0, outcome.out + outcome.err


@pytest.mark.parametrize("kind", KINDS)
def test_the_host_finds_it(kind: PluginKind, found: Registry) -> None:
    assert [plugin.problem for plugin in found.plugins] == [None] * (1 + len(KINDS))
    assert found.load(registered_as(kind), f"my-{kind}")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_its_own_tests_pass_with_the_kit(kind: PluginKind, written: dict[PluginKind, Path]) -> None:
    outcome = run(written[kind], "pytest", "-v", "-p", "no:cacheprovider", "-W", "error")
    assert outcome.code == 0, outcome.out + outcome.err
    checks = re.findall(r"_conforms\[([\w-]+)\] (PASSED|SKIPPED)", outcome.out)
    made, left_out = (
        {check for check, how in checks if how == wanted} for wanted in ("PASSED", "SKIPPED")
    )
    # The reward of the scaffold is a formula, and has nothing to tune.
    untuned = {"patch-plan", "patches", "tuning", "pixel-average"} if kind == "reward" else set()
    assert "made" in made and left_out <= KNOWN_GAPS | untuned


def test_what_work_leaves_in_its_folder_is_not_published(tmp_path: Path) -> None:
    scaffold.write(Scaffold("edges"), tmp_path / "edges")
    for name in ("harvest", "my-run"):
        (tmp_path / "edges" / name).mkdir()
        (tmp_path / "edges" / name / "large.bin").write_bytes(b"images")
    build(tmp_path / "edges", tmp_path / "dist")
    with tarfile.open(next((tmp_path / "dist").glob("*.tar.gz"))) as sdist:
        tops = {name.split("/")[1] for name in sdist.getnames()}
    own = {"LICENSE", "README.md", "pyproject.toml", "src", "tests"}
    assert own <= tops <= own | {".gitignore", "PKG-INFO"}


def test_the_edge_guide_is_drawn_to_edges(found: Registry, tmp_path: Path) -> None:
    guide = found.load("guide", "my-guide")(model=None)
    assert isinstance(guide, Guide)
    one, other = images.from_tensor(pictures(2))
    one.save(tmp_path / "one.png")
    target = guide.read_target(str(tmp_path / "one.png"), (64, 64)).value
    own, off = (
        guide.measure(guide.see(images.to_tensor(image)), target)["edge-rms"][0]
        for image in (one, other)
    )
    assert own == 0 < off


@pytest.mark.parametrize(
    ("kind", "name", "class_name"),
    [
        ("guide", "edges", "EdgesGuide"),
        ("guide", "edge-guide", "EdgeGuide"),
        ("guide", "guide", "GuideGuide"),
        ("backbone", "my-3d-model", "My3dModelBackbone"),
    ],
)
def test_classes_are_named_after_it(kind: PluginKind, name: str, class_name: str) -> None:
    made = Scaffold(name, kind)
    text = next(text for path, text in made.files().items() if path.name == f"{kind}.py")
    classes = [n.name for n in ast.parse(text).body if isinstance(n, ast.ClassDef)]
    assert class_name in classes


def test_what_people_write_arrives_as_it_is(tmp_path: Path) -> None:
    scaffold.write(Scaffold("odd", author=AWKWARD, summary=AWKWARD, licence="mit"), tmp_path / "o")
    project = tomllib.loads((tmp_path / "o" / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["description"] == AWKWARD
    assert project["authors"] == [{"name": AWKWARD}]
    init = ast.parse(
        (tmp_path / "o" / "src" / "ppap_plugin_odd" / "__init__.py").read_text("utf-8")
    )
    texts = [n.value for n in ast.walk(init) if isinstance(n, ast.Constant)]
    assert AWKWARD in texts
    licence = (tmp_path / "o" / "LICENSE").read_text("utf-8")
    assert licence.startswith(
        f"MIT License\n\nCopyright (c) {datetime.date.today().year} {AWKWARD}"
    )


def test_the_apache_licence_is_the_projects_own() -> None:
    ours = (ROOT / "LICENSE").read_text("utf-8")
    assert ours in Scaffold("edges").files().values()


@pytest.mark.parametrize("name", ["", "Edges", "3d", "a_b", "a--b", "-a", "a-", "a b", "ä", "../a"])
def test_odd_names_are_refused(name: str) -> None:
    with pytest.raises(OptionError, match="is no name for a plugin") as caught:
        scaffold.checked_name(name)
    assert "lower case" in caught.value.remedy


def test_a_name_is_suggested_and_the_common_beginning_dropped() -> None:
    with pytest.raises(OptionError, match="For example: soft-edges\\."):
        scaffold.checked_name("Soft_Edges")
    assert scaffold.checked_name("ppap-plugin-edges") == "edges"
    with pytest.raises(OptionError, match="has 29 characters"):
        scaffold.checked_name(LONGEST + "2")


@pytest.mark.parametrize("text", ["two\nlines", "x" * 73, "漢" * 37, "\x07"])
@pytest.mark.parametrize("what", ["author", "summary"])
def test_what_is_no_short_line_is_refused(what: str, text: str) -> None:
    with pytest.raises(OptionError, match=what) as caught:
        Scaffold("edges", **{what: text}).files()  # type: ignore[arg-type]
    assert f"--{what}" in caught.value.remedy


def test_taken_names_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = Registry([])
    with pytest.raises(PluginError, match=r"a recipe 'x0' already, of ppap-host"):
        scaffold.require_free(nothing, "x0", "recipe")
    scaffold.require_free(nothing, "x0", "guide")
    with pytest.raises(PluginError, match=r"'style' is that of ppap-plugin-clip"):
        scaffold.require_free(nothing, "style", "guide")
    with pytest.raises(PluginError, match=r"ppap-plugin-clip is one of the project's own"):
        scaffold.require_free(nothing, "clip")
    installed = Registry()
    with pytest.raises(PluginError, match=r"ppap-plugin-depth \S+ is installed already") as caught:
        scaffold.require_free(installed, "depth")
    assert "pip uninstall ppap-plugin-depth" in caught.value.remedy
    with pytest.raises(PluginError, match=r"a guide 'deblur' already, of ppap-plugin-restore"):
        scaffold.require_free(installed, "deblur", "guide")


def test_what_is_there_already_stays(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("mine")
    for name in ("there", "file"):
        with pytest.raises(OutputError, match="is there already"):
            scaffold.write(Scaffold("edges"), tmp_path / name)
    with pytest.raises(OutputError, match="There is no folder"):
        scaffold.write(Scaffold("edges"), tmp_path / "no" / "such")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "there"]
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("error", [OSError(28, "No space left"), KeyboardInterrupt()])
def test_nothing_is_left_half_written(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, count = os.replace, 0

    def fails_at_the_fifth(*args: Any) -> None:
        nonlocal count
        count += 1
        if count == 5:
            raise error
        replace(*args)

    monkeypatch.setattr(os, "replace", fails_at_the_fifth)
    with pytest.raises((OutputError, KeyboardInterrupt)) as caught:
        scaffold.write(Scaffold("edges"), tmp_path / "edges")
    if isinstance(error, OSError):
        assert "No space left" in str(caught.value)
    assert count == 5
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("as_user")
@pytest.mark.skipif(os.name == "nt", reason="folders have no such permission")
def test_a_folder_without_permission_is_reported(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(OutputError, match="Cannot write"):
        scaffold.write(Scaffold("edges"), tmp_path / "locked" / "edges")


def test_off_a_terminal_it_asks_nothing(ppap_here: Call, tmp_path: Path) -> None:
    outcome = ppap_here("plugin", "new", "edges", "--author", "Ada", "--licence", "MIT")
    assert outcome.code == 0, outcome.err
    assert "pip install -e" in outcome.out
    assert "ppap run --guide edges --target photo.jpg" in outcome.out
    project = tomllib.loads((tmp_path / "ppap-plugin-edges" / "pyproject.toml").read_text("utf-8"))
    assert project["project"]["license"] == "MIT"
    assert project["project"]["description"] == scaffold.SUMMARIES["guide"]
    again = ppap_here("plugin", "new", "edges")
    assert again.code == 2
    assert "'ppap-plugin-edges' is there already" in again.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("Edges",), "is no name"),
        (("depth",), "ppap-plugin-depth"),
        (("edges", "--kind", "guid"), "Did you mean 'guide'?"),
        (("edges", "--licence", "gpl"), "apache-2.0 or mit"),
        (("edges", "--summary", "a\nb"), "--summary"),
        (("edges", "--out", "no/such"), "There is no folder 'no'"),
        (("x0", "--kind", "recipe"), "a recipe 'x0' already, of ppap-host"),
    ],
)
def test_mistakes_end_in_a_sentence(
    arguments: tuple[str, ...], told: str, ppap_here: Call, tmp_path: Path
) -> None:
    outcome = ppap_here("plugin", "new", *arguments)
    assert outcome.code == 2
    assert told in outcome.err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Calls the command as on a terminal, with these answers."""
    monkeypatch.setattr(plugin_commands, "_on_a_terminal", lambda: True)
    monkeypatch.setattr(plugin_commands, "_git_user", lambda: "Grace")
    monkeypatch.chdir(tmp_path)

    def call(answers: str, *arguments: str) -> Any:
        return CliRunner().invoke(app, ["plugin", "new", "mine", *arguments], input=answers)

    return call


def test_on_a_terminal_it_asks_three_questions(asked: Any, tmp_path: Path) -> None:
    outcome = asked("tool\nRecipe\n\n\x07\nsomething short\n")
    assert outcome.exit_code == 0, outcome.output
    assert "--kind 'tool' is unknown. Give guide or backbone or recipe or reward." in outcome.output
    assert outcome.output.count("What it does, in one line") == 2
    project = tomllib.loads((tmp_path / "ppap-plugin-mine" / "pyproject.toml").read_text("utf-8"))
    assert project["project"]["description"] == "something short"
    assert project["project"]["authors"] == [{"name": "Grace"}]
    assert (tmp_path / "ppap-plugin-mine" / "src" / "ppap_plugin_mine" / "recipe.py").exists()


def test_what_was_given_is_not_asked(asked: Any) -> None:
    given = ("--kind", "backbone", "--author", "Ada", "--summary", "clouds")
    outcome = asked("", *given, "--out", "clouds")
    assert outcome.exit_code == 0, outcome.output
    assert "Author" not in outcome.output
    assert "ppap run --backbone mine" in outcome.output


def test_yes_asks_nothing(asked: Any, tmp_path: Path) -> None:
    outcome = asked("", "--yes")
    assert outcome.exit_code == 0, outcome.output
    assert "Grace" in (tmp_path / "ppap-plugin-mine" / "pyproject.toml").read_text("utf-8")


def test_who_stops_answering_gets_nothing(asked: Any, tmp_path: Path) -> None:
    outcome = asked("guide\n")
    assert outcome.exit_code == 1
    assert "Aborted" in outcome.output
    assert list(tmp_path.iterdir()) == []
