"""What pages ask of ``pip`` and ``curl``, without a network and without changing an environment."""

from __future__ import annotations

import os
import re
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from ppap_host.plugins.registry import registry

ROOT = Path(__file__).parents[1]
FILES, SITE = "SHOWN_FILES", "SHOWN_SITE"
"""Environment variables: the folder of the stand-ins, and one that is in PYTHONPATH."""

_OTHERS = {"build", "mkdocs-material", "nox", "sentencepiece", "twine", "uv"}
"""What developers and some published models need beside what the distributions do."""
_SWITCHES = {"-U", "--upgrade", "-q", "--quiet", "--force-reinstall", "--no-deps"}


def pip(arguments: list[str]) -> None:
    """Checks what is to be installed; makes importable what the environment does not have yet.

    Raises:
        SystemExit: a folder is no distribution, or a requirement is neither one of this repository
            nor something that one of them needs.
    """
    if arguments[:1] != ["install"]:
        sys.exit(f"pip {' '.join(arguments)}: only `pip install` is understood")
    for word in arguments[1:]:
        if word in ("-e", "--editable") or word in _SWITCHES:
            continue
        if word.startswith("-"):
            sys.exit(f"pip install: the option {word} is not understood")
        if word.endswith(".whl"):
            _unpack(Path(word))
        elif word.startswith((".", "/")):
            folder, extras = re.fullmatch(r"(.*?)(?:\[(.*)\])?", word).groups()  # type: ignore[union-attr]
            _from_folder(Path(folder), extras or "")
        else:
            _by_name(word)


def _from_folder(folder: Path, extras: str) -> None:
    try:
        project = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]
    except OSError:
        sys.exit(f"pip install: {folder} is no distribution: it has no pyproject.toml")
    _check_extras(str(folder), extras.split(","), project.get("optional-dependencies", {}))
    for requirement in project.get("dependencies", []):
        _by_name(requirement)
    if not _is_there(project["name"]):
        _link(folder, project)


def _link(folder: Path, project: dict[str, Any]) -> None:
    """As an editable installation: the packages in place, and what metadata says of them."""
    site, name = Path(os.environ[SITE]), project["name"].replace("-", "_")
    for package in (folder / "src").iterdir():
        (site / package.name).symlink_to(package.resolve())
    version = project.get("version", "0")
    info = site / f"{name}-{version}.dist-info"
    info.mkdir()
    described = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {version}\n"
    (info / "METADATA").write_text(described, encoding="utf-8")
    groups = project.get("entry-points", {}) | {"console_scripts": project.get("scripts", {})}
    lines = [
        line
        for group, points in groups.items()
        for line in (f"[{group}]", *(f"{key} = {value}" for key, value in points.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join([*lines, ""]), encoding="utf-8")


def _unpack(wheel: Path) -> None:
    if not wheel.is_file():
        sys.exit(f"pip install: there is no wheel {wheel}")
    with zipfile.ZipFile(wheel) as content:
        content.extractall(os.environ[SITE])


def _by_name(text: str) -> None:
    try:
        requirement = Requirement(text)
    except InvalidRequirement as error:
        sys.exit(f"pip install: {error}")
    own = _own()
    name = canonicalize_name(requirement.name)
    if name in own:
        _check_extras(name, requirement.extras, own[name].get("optional-dependencies", {}))
    elif name not in _OTHERS and name not in _needed(own) and not _is_there(name):
        sys.exit(f"pip install: {name} is neither of this repository nor needed by it")


def _check_extras(name: str, extras: Any, known: dict[str, Any]) -> None:
    for extra in filter(None, extras):
        if extra.strip() not in known:
            sys.exit(f"pip install: {name} has no extra {extra!r}, only {', '.join(known)}")


def _own() -> dict[str, dict[str, Any]]:
    """The distributions of this repository: their pyproject's tables, by their names."""
    files = [ROOT / "pyproject.toml", *ROOT.glob("plugins/*/pyproject.toml")]
    files += ROOT.glob("docs/examples/*/pyproject.toml")
    tables = [tomllib.loads(file.read_text("utf-8"))["project"] for file in files]
    return {canonicalize_name(table["name"]): table for table in tables}


def _needed(own: dict[str, dict[str, Any]]) -> set[str]:
    lists = [table.get("dependencies", []) for table in own.values()]
    lists += [e for table in own.values() for e in table.get("optional-dependencies", {}).values()]
    return {canonicalize_name(Requirement(text).name) for entry in lists for text in entry}


def _is_there(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def curl(arguments: list[str]) -> None:
    """Puts the stand-in of a published file into the folder.

    Raises:
        SystemExit: no plugin says that there is such a file.
    """
    if len(arguments) != 2 or arguments[0] not in ("-O", "-LO"):
        sys.exit(f"curl {' '.join(arguments)}: only `curl -O URL` is understood")
    claims = [file for found in registry().published_files().values() for _, file in found]
    files = [file.file for file in claims if file.url == arguments[1]]
    if not files:
        sys.exit(f"curl: no plugin knows the published file {arguments[1]}")
    Path(files[0]).symlink_to(Path(os.environ[FILES]) / files[0])
