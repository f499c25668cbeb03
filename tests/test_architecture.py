"""The house is as ``docs/architecture.md`` draws it: rooms, the order of imports, no circles."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HOST = ROOT / "ppap_host"
PAGE = ROOT / "docs" / "architecture.md"
FRONT = {"__init__", "__main__"}
"""May import any room."""

FILES = sorted(
    path for path in HOST.rglob("*.py") if "templates" not in path.parts and path.name != "py.typed"
)


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def drawn_rooms() -> list[str]:
    """The rooms in the order of the drawing, from the ground up."""
    block = re.search(r"```text\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert block is not None
    return [line.split("/")[0].strip() for line in block[1].splitlines() if "/ " in line]


def imports(path: Path, everywhere: bool = True) -> set[str]:
    """Modules of the host that a file imports; those inside functions only if ``everywhere``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped: set[ast.AST] = set()
    if not everywhere:
        for node in ast.walk(tree):
            typed = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            if typed or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                skipped.update(ast.walk(node))
    found = set()
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in MODULES else node.module)
    return {name for name in found if name.split(".")[0] == "ppap_host"}


def test_the_drawing_names_every_room() -> None:
    there = {path.parent.name for path in HOST.glob("*/__init__.py")}
    assert set(drawn_rooms()) == there
    assert not [p for p in HOST.glob("*.py") if p.stem not in FRONT]


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_a_room_imports_only_rooms_below_it(path: Path) -> None:
    own = room_of(module_of(path))
    if own in FRONT:
        return
    order = drawn_rooms()
    allowed = set(order[: order.index(own) + 1])
    assert {room_of(name) for name in imports(path)} <= allowed


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_the_host_knows_no_plugin_and_no_vision_library(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for line in re.findall(r"^\s*(?:from|import) (\w+)", text, re.M):
        assert not line.startswith("ppap_plugin"), line
        assert line not in {"timm", "segmentation_models_pytorch", "matplotlib", "torchvision"}


def test_no_files_import_each_other_in_a_circle() -> None:
    edges = {name: imports(path, everywhere=False) - {name} for name, path in MODULES.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        if name in done:
            return
        for other in edges.get(name, ()):
            visit(other, (*trail, name))
        done.add(name)

    for name in edges:
        visit(name, ())


LONG = 500


@pytest.mark.parametrize(
    "path", [p for p in FILES if len(p.read_text("utf-8").splitlines()) > LONG], ids=module_of
)
def test_a_long_room_says_why(path: Path) -> None:
    first = next(
        (line for line in path.read_text("utf-8").splitlines() if line.startswith("#")), ""
    )
    assert first.startswith("# Long because "), f"{module_of(path)} has no reason for its length"
