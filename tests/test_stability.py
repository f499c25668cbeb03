"""What plugins rely on changes on purpose or not at all."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import griffe
import pytest
from examples import EXAMPLES
from test_docs import DOCS, ROOT, script

from ppap_host.plugins import hookspecs
from ppap_host.plugins.plugin import ANSWERS
from ppap_host.plugins.scaffold import KINDS, Scaffold

HOST = "ppap_host"


@pytest.fixture(scope="module")
def interface() -> ModuleType:
    """``docs/interface.py``."""
    return script("interface")


@pytest.fixture(scope="module")
def things(interface: ModuleType) -> dict[str, list[griffe.Object]]:
    """All public names by module."""
    host = interface.package()
    return {name: list(interface.public(host, name)) for name in interface.MODULES}


def test_the_interface_is_the_one_that_is_written_down(interface: ModuleType) -> None:
    assert interface.described() == interface.FILE.read_text(encoding="utf-8"), (
        "The interface of plugins has changed. If every plugin of this version works as before, "
        "run `python docs/interface.py` and say in CHANGELOG.md what is new; if not, see "
        "docs/stability.md first."
    )


def test_a_changed_signature_would_be_seen(interface: ModuleType) -> None:
    host = interface.package()
    before = interface.line(host["guides.guide.Guide.understand"])
    assert before == "abstract def understand(given: Given, size: tuple[int, int]) -> Target"
    host["guides.guide.Guide.understand"].parameters["size"].annotation = "int"
    changed = interface.line(host["guides.guide.Guide.understand"])
    assert changed != before
    host["guides.guide.Guide.understand"].labels.discard("abstractmethod")
    assert interface.line(host["guides.guide.Guide.understand"]) != changed


def test_every_public_name_is_documented_and_typed(
    interface: ModuleType, things: dict[str, list[griffe.Object]]
) -> None:
    bare = []
    for found in things.values():
        for thing in found:
            # What a class inherits is documented where it comes from.
            own = interface.members(thing) if thing.is_class else ()
            documented = [m for m in own if m.is_function and m.name not in interface.SPOKEN]
            bare += [
                one.path
                for one in (thing, *documented)
                if not one.has_docstring and (one.is_function or one.is_class)
            ]
            for function in (m for m in (thing, *own) if m.is_function):
                bare += [
                    f"{function.path}({parameter.name})"
                    for parameter in function.parameters
                    if parameter.annotation is None and parameter.name not in ("self", "cls")
                ]
                if function.returns is None and function.name != "__init__":
                    bare.append(f"{function.path} -> ?")
    assert not bare


def test_every_hook_is_in_the_interface(things: dict[str, list[griffe.Object]]) -> None:
    hooks = {thing.name for thing in things["plugins.hookspecs"] if thing.name.startswith("ppap_")}
    assert hooks == set(ANSWERS)
    assert hooks == {name for name in vars(hookspecs) if name.startswith("ppap_")}


def test_the_page_names_every_module_of_the_interface(interface: ModuleType) -> None:
    page = (DOCS / "stability.md").read_text(encoding="utf-8")
    for module in interface.MODULES:
        assert f"`{HOST}.{module}`" in page
    assert f"interface-{hookspecs.INTERFACE}.txt" in page


def imported(source: str) -> Iterator[tuple[str, str]]:
    """What a module takes from the host: (module, name)."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == HOST:
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((a.name, "") for a in node.names if a.name.split(".")[0] == HOST)


# Training scripts and measurements work on the host's own world and loop, and are no plugin code.
TOOLS = ("train.py", "memory.py")


@pytest.mark.parametrize(
    "path",
    [
        path
        for folder in (EXAMPLES, ROOT / "plugins")
        for path in sorted(folder.glob("*/src/**/*.py"))
        if path.name not in TOOLS
        and "ppap_plugin_bench" not in path.parts  # released with the host
    ],
    ids=lambda path: f"{path.parent.name}/{path.name}",
)
def test_plugins_use_nothing_but_the_interface(
    path: Path, things: dict[str, list[griffe.Object]]
) -> None:
    allowed = {(f"{HOST}.{m}", thing.name) for m, found in things.items() for thing in found}
    assert set(imported(path.read_text(encoding="utf-8"))) <= allowed


@pytest.mark.parametrize("kind", KINDS)
def test_the_scaffold_uses_nothing_but_the_interface(
    kind: str, things: dict[str, list[griffe.Object]]
) -> None:
    allowed = {(f"{HOST}.{m}", thing.name) for m, found in things.items() for thing in found}
    files = Scaffold("edges", kind, "A", "B", "mit").files()
    taken = {
        one for path, text in files.items() if str(path).endswith(".py") for one in imported(text)
    }
    assert taken
    assert taken <= allowed
