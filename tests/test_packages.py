"""The distributions: what is declared, what is built, and what an install leaves behind."""

from __future__ import annotations

import ast
import json
import random
import re
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

import installation
import pytest
from installation import EXAMPLES, PLUGINS, ROOT, Installation, build, copy_of_project
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from processes import Outcome, run_process
from safetensors import safe_open

RELEASED = (ROOT, *PLUGINS)
"""The folders of what is released: the host and its plugins."""

NOT_IMPORTED = {("ppap-plugin-segmentation", "scipy"), ("ppap-host", "scipy")}
"""Asked for by a library when it does what the distribution wants of it."""


@cache
def project(folder: Path) -> dict[str, Any]:
    """The table ``project`` of a folder's ``pyproject.toml``."""
    declared: dict[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))
    return dict(declared["project"])


def name_of(folder: Path) -> str:
    return str(project(folder)["name"])


def package_of(folder: Path) -> Path:
    """The folder of its import package."""
    module = name_of(folder).replace("-", "_")
    return folder / module if folder == ROOT else folder / "src" / module


def sources(folder: Path) -> dict[str, Path]:
    """The files of its import package, by their names in a wheel."""
    package = package_of(folder)
    return {
        path.relative_to(package.parent).as_posix(): path
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def requirements(folder: Path) -> dict[str, Requirement]:
    """What it depends on, by canonical name."""
    found = map(Requirement, project(folder)["dependencies"])
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def optional(folder: Path) -> set[str]:
    """What its extras depend on."""
    extras = project(folder).get("optional-dependencies", {}).values()
    return {canonicalize_name(Requirement(text).name) for extra in extras for text in extra}


@cache
def modules_of_distributions() -> dict[str, set[str]]:
    """Top-level module -> the distributions that it may come from."""
    found = {
        module: {str(canonicalize_name(name)) for name in names}
        for module, names in metadata.packages_distributions().items()
    }
    # Editable installs, as of this repository, do not say what they hold, nor does this wheel.
    found["OpenEXR"] = {"openexr"}
    return found | {package_of(f).name: {name_of(f)} for f in (*RELEASED, *EXAMPLES)}


def imported(folder: Path) -> set[str]:
    """The top-level modules that its package imports, its own and Python's apart."""
    found = set()
    for name, path in sources(folder).items():
        if name.endswith(".py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Import):
                    found |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    found.add(node.module or "")
    tops = {name.split(".")[0] for name in found}
    return tops - sys.stdlib_module_names - {package_of(folder).name}


def named_in_strings(folder: Path) -> set[str]:
    """The top-level modules that it may import by a name in a string."""
    found = set()
    for name, path in sources(folder).items():
        if name.endswith(".py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.add(node.value.split(".")[0])
    return found


# What is declared


@pytest.mark.parametrize("folder", [*RELEASED, *EXAMPLES], ids=name_of)
def test_a_package_declares_all_that_it_imports(folder: Path) -> None:
    declared = requirements(folder).keys() | optional(folder)
    origins = modules_of_distributions()
    undeclared = {
        module
        for module in imported(folder)
        if not origins.get(module, {f"nothing has {module}"}) & declared
    }
    assert undeclared == set()


@pytest.mark.parametrize("folder", RELEASED, ids=name_of)
def test_a_package_declares_nothing_else(folder: Path) -> None:
    used = imported(folder) | named_in_strings(folder)
    origins = modules_of_distributions()
    wanted = {origin for module in used for origin in origins.get(module, ())}
    idle = (requirements(folder).keys() | optional(folder)) - wanted
    assert {(name_of(folder), name) for name in idle} <= NOT_IMPORTED


@pytest.mark.parametrize("folder", PLUGINS, ids=name_of)
def test_a_plugin_asks_for_the_libraries_that_the_host_asks_for(folder: Path) -> None:
    host = requirements(ROOT)
    asked = requirements(folder)
    assert name_of(ROOT) in asked
    assert [str(r) for r in asked.values() if not r.specifier] == []
    assert {n: str(r) for n, r in asked.items() if n in host} == {
        name: str(host[name]) for name in asked if name in host
    }


@pytest.mark.parametrize("folder", RELEASED, ids=name_of)
def test_a_package_says_what_an_index_shows(folder: Path) -> None:
    declared, host = project(folder), project(ROOT)
    for key in ("version", "requires-python", "license", "license-files", "authors", "classifiers"):
        assert declared[key] == host[key], key
    assert 20 < len(declared["description"]) < 140
    assert len(set(declared["keywords"])) == len(declared["keywords"]) >= 4
    assert (folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert (package_of(folder) / "py.typed").is_file()


@pytest.mark.parametrize("folder", PLUGINS, ids=name_of)
def test_a_plugins_readme_needs_no_other_file(folder: Path) -> None:
    text = (folder / "README.md").read_text("utf-8")
    assert text.startswith(f"# {name_of(folder)}\n")
    links = re.findall(r"\]\(([^)]*)\)|\b(?:src|href)=[\"']([^\"']*)", text)
    assert [
        link for pair in links for link in pair if link and not link.startswith("https://")
    ] == []


@pytest.mark.parametrize("folder", RELEASED, ids=name_of)
def test_shipped_weights_say_where_they_come_from(folder: Path) -> None:
    for name, path in sources(folder).items():
        if path.suffix != ".safetensors":
            continue
        weights = next(parent for parent in path.parents if parent.name == "weights")
        card = (weights / "README.md").read_text("utf-8")
        assert "Apache-2.0" in card
        patterns = re.findall(r"^\| `([^`]+)` \|", card, flags=re.MULTILINE)
        inside = path.relative_to(weights).as_posix()
        assert any(fnmatch(inside, f"{p}*" if p.endswith("/") else p) for p in patterns), name
        with safe_open(path, "np") as file:
            record = (file.metadata() or {}).get("ppap")
        if path.parent.name == "experts":
            assert json.loads(record or "{}")["licence"] == project(folder)["license"]


# What is built


def files_of(archive: Path) -> dict[str, str]:
    """Name -> hash of the content, for a wheel's or an sdist's files."""
    found: dict[str, str] = {}
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            names = [info.filename for info in wheel.infolist() if not info.is_dir()]
            found = {name: sha256(wheel.read(name)).hexdigest() for name in names}
    else:
        with tarfile.open(archive) as sdist:
            for member in sdist.getmembers():
                if not member.isdir():
                    content = sdist.extractfile(member)
                    assert content is not None, f"{member.name} is a link"
                    names = [*found, member.name]
                    found[member.name] = sha256(content.read()).hexdigest()
    assert len(names) == len(found), "a file is there twice"
    return found


def stem(folder: Path) -> str:
    return f"{package_of(folder).name}-{project(folder)['version']}"


def wheel_of(folder: Path, dist: Path) -> Path:
    return dist / f"{stem(folder)}-py3-none-any.whl"


def sdist_of(folder: Path, dist: Path) -> Path:
    return dist / f"{stem(folder)}.tar.gz"


def hashes(paths: dict[str, Path]) -> dict[str, str]:
    return {name: sha256(path.read_bytes()).hexdigest() for name, path in paths.items()}


@pytest.mark.slow
@pytest.mark.parametrize("folder", RELEASED, ids=name_of)
def test_a_wheel_holds_its_sources_its_weights_and_its_licence(
    folder: Path, wheelhouse: Path
) -> None:
    found = files_of(wheel_of(folder, wheelhouse))
    info = f"{stem(folder)}.dist-info"
    licence = {f"{info}/licenses/LICENSE": ROOT / "LICENSE"}
    written = {f"{info}/{file}" for file in ("METADATA", "WHEEL", "RECORD", "entry_points.txt")}
    assert {n: h for n, h in found.items() if n not in written} == hashes(sources(folder) | licence)
    assert written <= found.keys()


@pytest.mark.slow
@pytest.mark.parametrize("folder", RELEASED, ids=name_of)
def test_an_sdist_holds_what_its_wheel_is_built_from(folder: Path, wheelhouse: Path) -> None:
    found = files_of(sdist_of(folder, wheelhouse))
    wanted = (
        sources(folder) if folder == ROOT else {f"src/{n}": p for n, p in sources(folder).items()}
    )
    wanted |= {file: folder / file for file in ("LICENSE", "README.md", "pyproject.toml")}
    if folder == ROOT:
        wanted["CHANGELOG.md"] = ROOT / "CHANGELOG.md"
    root = stem(folder)
    del found[f"{root}/PKG-INFO"]
    assert found == hashes({f"{root}/{name}": path for name, path in wanted.items()})


LITTER = (
    "LICENSE", "README.md", "notes.txt", "dist/old.whl", "training/run/model.safetensors",
    "tests/test_it.py", "tests/__pycache__/test_it.pyc", ".pytest_cache/README.md",
    "ppap_host/copy.py", "src/copy.py",
)  # fmt: skip
"""What may lie beside a project's files, in a folder of the repository or of its own."""


@pytest.mark.slow
@pytest.mark.parametrize("folder", RELEASED, ids=name_of)
def test_what_lies_beside_the_sources_changes_nothing(
    folder: Path, wheelhouse: Path, tmp_path: Path
) -> None:
    """A wheel built from the tree has the same bytes as the one that went through the sdist."""
    copy = copy_of_project(folder, tmp_path)
    package = copy / package_of(folder).relative_to(folder)
    strays = [copy / "plugins" / "other" / file for file in LITTER]
    strays += [copy / file for file in LITTER[2:-2]]
    strays += [package / "__pycache__" / "old.cpython-311.pyc"]
    for stray in strays:
        stray.parent.mkdir(parents=True, exist_ok=True)
        stray.write_text("stray")
    build(copy, tmp_path / "dist", through_sdist=False)
    for archive in (wheel_of, sdist_of):
        built = files_of(archive(folder, tmp_path / "dist"))
        assert built == files_of(archive(folder, wheelhouse))


@pytest.mark.slow
def test_an_index_would_take_them_all(wheelhouse: Path) -> None:
    archives = sorted(str(path) for path in wheelhouse.iterdir())
    assert len(archives) == 2 * len(RELEASED)
    command = [sys.executable, "-m", "twine", "--no-color", "check", "--strict", *archives]
    outcome = run_process(command, wheelhouse).success()
    assert outcome.out.count("PASSED") == len(archives)


@pytest.mark.slow
def test_nothing_in_them_names_the_machine_that_built_them(wheelhouse: Path) -> None:
    places = (str(ROOT).encode(), str(wheelhouse.parent).encode())
    for folder in RELEASED:
        with zipfile.ZipFile(wheel_of(folder, wheelhouse)) as wheel:
            assert [n for n in wheel.namelist() if any(p in wheel.read(n) for p in places)] == []


@pytest.mark.slow
@pytest.mark.parametrize("folder", EXAMPLES, ids=name_of)
def test_an_example_builds(folder: Path, tmp_path: Path) -> None:
    build(copy_of_project(folder, tmp_path), tmp_path / "dist")
    found = files_of(wheel_of(folder, tmp_path / "dist"))
    assert hashes(sources(folder)).items() <= found.items()
    assert {n for n in found if "dist-info" not in n} == sources(folder).keys()


# What an install leaves behind


@pytest.fixture(scope="module")
def installed(wheelhouse: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """An installation, empty between the tests."""
    return Installation.make(tmp_path_factory.mktemp("installed") / "venv", wheelhouse)


@pytest.fixture
def empty(installed: Installation) -> Iterator[Installation]:
    """The installation with nothing of ppap in it, before and after."""
    before = contents(installed)
    yield installed
    there = [d["name"] for d in listed(installed) if d["name"].startswith("ppap-")]
    if there:
        installed.pip("uninstall", "--yes", *there).success()
    assert contents(installed) == before


def contents(installation: Installation) -> set[str]:
    """Every file and folder of it, apart from the libraries, the home folder and byte code."""
    base = installation.folder
    return {
        path.relative_to(base).as_posix()
        for part in base.iterdir()
        if part.name not in ("home", "libraries", "lib64")
        for path in part.rglob("*")
        # Byte code of pip itself comes and goes.
        if not ("__pycache__" in path.parts and "pip" in path.parts)
    }


def listed(installation: Installation) -> list[dict[str, str]]:
    """What pip says is there."""
    found: list[dict[str, str]] = json.loads(
        installation.pip("list", "--format", "json").success().out
    )
    return found


def states(outcome: Outcome) -> dict[str, str]:
    """Distribution -> what the host says of it."""
    plugins = json.loads(outcome.success().out)["plugin"]
    return {plugin["distribution"]: plugin["status"] for plugin in plugins}


ALL_WELL = {name_of(folder): "ok" for folder in RELEASED}


def orders(dist: Path) -> list[list[list[Path]]]:
    """What is installed one after the other, each time all of the released packages.

    The host first, the host last, and the host in the midst of its plugins; then every third comes
    from its sdist.
    """
    host, plugins = wheel_of(ROOT, dist), [wheel_of(folder, dist) for folder in PLUGINS]
    mixed = list(RELEASED)
    random.Random(6).shuffle(mixed)
    assert mixed.index(ROOT) not in (0, len(mixed) - 1)
    at = mixed.index(ROOT)
    found = [(wheel_of if n % 3 else sdist_of)(folder, dist) for n, folder in enumerate(mixed)]
    return [
        [[host], plugins],
        [plugins, [host]],
        [found[:at], [found[at]], found[at + 1 :]],
    ]


@pytest.mark.slow
def test_the_order_of_installing_makes_no_difference(empty: Installation, wheelhouse: Path) -> None:
    left = []
    for order in orders(wheelhouse):
        for archives in order:
            # Byte code takes half of the time; the next test has it.
            empty.pip("install", "--no-deps", "--no-compile", *map(str, archives)).success()
        left.append(contents(empty))
        if len(left) == 1:  # the others are the same files
            assert states(empty.ppap("list", "--json")) == ALL_WELL
            empty.pip("check").success()
        empty.pip("uninstall", "--yes", *ALL_WELL).success()
    assert left[0] == left[1] == left[2]


@pytest.mark.slow
def test_a_plugin_brings_the_host_and_leaves_it(empty: Installation) -> None:
    empty.pip("install", "ppap-plugin-depth").success()
    empty.pip("check").success()
    assert states(empty.ppap("list", "--json")).keys() == {"ppap-host", "ppap-plugin-depth"}
    empty.pip("install", "ppap-plugin-restore").success()
    empty.pip("uninstall", "--yes", "ppap-plugin-depth").success()
    assert states(empty.ppap("list", "--json")).keys() == {"ppap-host", "ppap-plugin-restore"}
    empty.pip("uninstall", "--yes", "ppap-host").success()
    lacking = empty.pip("check")
    assert lacking.code == 1
    assert "ppap-plugin-restore 0.1.0 requires ppap-host, which is not installed" in lacking.out
    with pytest.raises(FileNotFoundError, match="No program"):
        empty.ppap("list")


# The tool for it


def lay_out(folder: Path, name: str, files: dict[str, str], record: tuple[str, ...] = ()) -> None:
    """Puts a distribution into a folder of packages as an installer would."""
    info = f"{name.replace('-', '_')}-1.0.dist-info"
    files = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/RECORD": "".join(f"{file},,\n" for file in (*files, f"{info}/METADATA", *record)),
    }
    for file, content in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(content)


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for what the running environment has installed, in two folders of packages."""
    first, second = tmp_path / "lib" / "one" / "site", tmp_path / "lib" / "two" / "site"
    entry = {
        "ppap_host-1.0.dist-info/entry_points.txt": "[console_scripts]\nppap = ppap_host:main\n"
    }
    editable = {"_editable_impl_ppap_host.pth": f"{tmp_path}\n"}
    lay_out(first, "ppap-host", editable | entry, ("../../../bin/ppap",))
    lay_out(first, "ppap-plugin-mine", {"ppap_plugin_mine/__init__.py": ""})
    lay_out(first, "pip", {"pip/__init__.py": "raise SystemExit('not this one')"})
    lay_out(
        first,
        "greeter",
        {
            "greeter/__init__.py": "def main(): print('hello')",
            "greeter.pth": "import sys; sys.greeted = True\n",
            "shared/one.py": "",
            "greeter-1.0.dist-info/entry_points.txt": "[console_scripts]\ngreet = greeter:main\n",
        },
        ("../../../bin/greet", "../../../bin/tool", "../../../share/man/man1/tool.1"),
    )
    lay_out(second, "shared-two", {"shared/two.py": ""})
    lay_out(second, "greeter-old", {"greeter/__init__.py": "raise ImportError('hidden')"})
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "tool").write_bytes(b"\x7fELF")
    monkeypatch.setattr(installation, "folders_of_packages", lambda: [first, second])
    return first


@pytest.mark.skipif(sys.platform == "win32", reason="programs have other names and places")
def test_an_installation_has_every_library_and_nothing_of_ppap(
    running: Path, tmp_path: Path
) -> None:
    made = Installation.make(tmp_path / "a folder" / "venv")
    assert {d["name"] for d in listed(made)} == {"greeter", "greeter-old", "pip", "shared-two"}
    assert (
        made.evaluate("import greeter, shared.one, shared.two, sys; print(sys.greeted)") == "True\n"
    )
    assert made.run("greet").success().out == "hello\n"
    assert {"pip", "greet", "tool", "python"} <= {path.name for path in made.commands.iterdir()}
    assert made.run("python", "-c", "import sys; print(sys.prefix)").out.strip() == str(made.folder)
    assert made.run("bash", "-c", "pwd").out.strip() == str(made.home)
    with pytest.raises(FileNotFoundError, match="No program 'ppap'"):
        made.run("ppap", "list")


@pytest.mark.skipif(sys.platform == "win32", reason="libraries are copied there")
def test_an_installation_cannot_harm_the_libraries_that_it_shares(
    running: Path, tmp_path: Path
) -> None:
    made = Installation.make(tmp_path / "venv")
    made.pip("uninstall", "--yes", "greeter")
    assert (running / "greeter" / "__init__.py").is_file()
    assert (running / "shared" / "one.py").is_file()
    assert (running / "greeter-1.0.dist-info" / "RECORD").is_file()
    assert (running / "greeter.pth").is_file()
