"""Real installs without a network: built distributions, and environments for pip to work in."""

from __future__ import annotations

import contextlib
import csv
import ensurepip
import os
import shutil
import site
import sysconfig
import tarfile
import tempfile
import venv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.resources import files
from pathlib import Path

import hatchling.build
import pytest
from environments import Environment
from filelock import FileLock
from installer.scripts import Script
from installer.utils import get_launcher_kind
from packaging.utils import canonicalize_name
from processes import Outcome, plain_environment, run_process

ROOT = Path(__file__).parents[1]
PLUGINS = tuple(sorted(ROOT.glob("plugins/ppap-plugin-*")))
EXAMPLES = tuple(sorted(ROOT.glob("docs/examples/ppap-plugin-*")))
TYPES_READ = ROOT / ".mypy_cache" / "scaffold"
"""For what mypy has read of the libraries: half a minute without, seconds with it."""
LITTER = shutil.ignore_patterns(
    ".*_cache", ".git", ".hypothesis", ".nox", ".venv", "__pycache__", "build", "dist", "site"
)
"""What working in a folder leaves there; of no use for a build, and much of it."""


def copy_of_project(source: Path, into: Path) -> Path:
    """Copies what a project's build may read, without what work has left in its folder.

    Args:
        into: a folder; the copy gets the project's name in it.

    Returns:
        The copy.
    """
    target = into / source.name
    if source != ROOT:
        return Path(shutil.copytree(source, target, ignore=LITTER))
    # The host's folder holds the plugins and the documentation as well.
    shutil.copytree(ROOT / "ppap_host", target / "ppap_host", ignore=LITTER)
    for file in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"):
        shutil.copy2(ROOT / file, target)
    return target


def build(project: Path, into: Path, through_sdist: bool = True) -> None:
    """Builds an sdist and a wheel by the backend that ``python -m build`` would ask.

    Args:
        project: a folder with a ``pyproject.toml``, which the build may litter.
        into: where the files go.
        through_sdist: the wheel is made from the sdist, not from the folder.
    """
    into.mkdir(exist_ok=True)
    with contextlib.chdir(project):
        sdist = hatchling.build.build_sdist(str(into))
    with tempfile.TemporaryDirectory() as name, tarfile.open(into / sdist) as packed:
        packed.extractall(name, filter="data")
        unpacked = Path(name) / sdist.removesuffix(".tar.gz")
        with contextlib.chdir(unpacked if through_sdist else project):
            hatchling.build.build_wheel(str(into))


def make_wheelhouse(folder: Path) -> Path:
    """Fills ``folder`` with an sdist, and a wheel made from it, of the host and every plugin."""
    dist = folder / "wheelhouse"
    for source in (ROOT, *PLUGINS):
        build(copy_of_project(source, folder / "projects"), dist)
    return dist


@pytest.fixture(scope="session")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an sdist and a wheel of the host and every plugin, built once a session."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # Each worker has a folder of its own in it.
    with FileLock(shared / "wheelhouse.lock"):
        folder = shared / "built"
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            make_wheelhouse(folder)
            (folder / "complete").touch()
    return folder / "wheelhouse"


@dataclass(frozen=True)
class Installation(Environment):
    """A virtual environment with a real pip, every library at hand, and nothing of ppap.

    pip finds the distributions of a wheelhouse and nothing else, as no network is there. All that
    the running interpreter can import is linked into the environment, ppap's distributions
    excepted, so that their dependencies are met. The libraries' commands (``pytest``, ``ruff``) are
    there as well. It takes about a second to make one.

    ::

        def test_a_plugin_brings_the_host(wheelhouse: Path, tmp_path: Path) -> None:
            installation = Installation.make(tmp_path / "venv", wheelhouse)
            installation.pip("install", "ppap-plugin-depth").success()
            assert "depth" in installation.ppap("list").success().out
            installation.pip("install", "--editable", ".[test]", cwd=checkout).success()
            installation.run("pytest", cwd=checkout).success()
            installation.run("bash", "-euo", "pipefail", "-c", block).success()
            installation.pip("uninstall", "--yes", "ppap-plugin-depth").success()

    ``wheelhouse`` is the fixture above, or any folder with wheels and sdists. pip builds source
    trees with the linked hatchling. Commands run in an empty home folder unless told otherwise.
    """

    wheelhouse: Path | None = None

    @classmethod
    def make(cls, folder: Path, wheelhouse: Path | None = None) -> Installation:
        """Makes one in an empty or absent folder."""
        # Not with_pip=True: it may bring an old setuptools, which would hide the linked one.
        venv.EnvBuilder(symlinks=os.name != "nt", with_pip=False).create(folder)
        made = cls(folder, wheelhouse)
        made.install(bundled_pip())
        made.home.mkdir()
        lines = []
        for number, packages in enumerate(folders_of_packages()):
            # A folder for each, in their order: namespace packages may lie in several of them.
            links = folder / "libraries" / str(number)
            link_packages(packages, links)
            made.add_commands(packages)
            lines.append(f"import site; site.addsitedir({str(links)!r})\n")
        (made.packages / "libraries.pth").write_text("".join(lines), "utf-8")
        return made

    @property
    def home(self) -> Path:
        """The home folder of whoever works in it."""
        return self.folder / "home"

    @property
    def commands(self) -> Path:
        """Where its programs are."""
        return Path(self.scheme["scripts"])

    @property
    def variables(self) -> dict[str, str]:
        """The environment in which its commands run."""
        plain = plain_environment()
        kept = {k: v for k, v in plain.items() if not k.startswith(("PIP_", "UV_", "XDG_"))}
        # A command that is not here must not be found in the environment that runs the tests, nor
        # in one from which they were started.
        folders = [folder for folder in kept.get("PATH", "").split(os.pathsep) if folder]
        path = [f for f in folders if not Path(f, os.pardir, "pyvenv.cfg").exists()]
        home = str(self.home)
        return (
            kept
            | {
                "PATH": os.pathsep.join([str(self.commands), *path]),
                "VIRTUAL_ENV": str(self.folder),
                "HOME": home,
                "USERPROFILE": home,
                "LOCALAPPDATA": home,
                "PIP_CONFIG_FILE": os.devnull,
                "PIP_DISABLE_PIP_VERSION_CHECK": "1",
                "PIP_NO_INDEX": "1",
                "PIP_ROOT_USER_ACTION": "ignore",
                # As pip reads it: the value that the option --no-build-isolation sets.
                "PIP_NO_BUILD_ISOLATION": "false",
            }
            | ({"PIP_FIND_LINKS": self.wheelhouse.as_uri()} if self.wheelhouse else {})
        )

    def run(
        self,
        *command: str,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 300,
    ) -> Outcome:
        """Runs a command with its programs first in the path, at most ``timeout`` seconds long.

        Args:
            command: a program's name or path, and its arguments.
            cwd: where; in the home folder if left out.
            env: variables beside its own.

        Raises:
            FileNotFoundError: there is no such program, here or in the system.
        """
        variables = self.variables | dict(env or {})
        program = shutil.which(command[0], path=variables["PATH"])
        if program is None:
            raise FileNotFoundError(f"No program {command[0]!r} in {variables['PATH']}")
        return run_process([program, *command[1:]], cwd or self.home, variables, timeout)

    def pip(self, *arguments: str, cwd: Path | None = None) -> Outcome:
        """Runs its ``pip``."""
        return self.run(str(self.commands / "pip"), *arguments, cwd=cwd)

    def ppap(self, *arguments: str, cwd: Path | None = None) -> Outcome:
        """Runs its ``ppap``, the installed program.

        Raises:
            FileNotFoundError: the host is not installed.
        """
        return self.run(str(self.commands / "ppap"), *arguments, cwd=cwd)

    def add_commands(self, packages: Path) -> None:
        """Adds the commands that the libraries in a folder of packages have installed."""
        for library in metadata.distributions(path=[str(packages)]):
            if of_ppap_or_pip(library):
                continue
            names = set()
            for point in library.entry_points.select(group="console_scripts"):
                script = Script(point.name, point.module, point.attr, "console")
                name, content = script.generate(self.python, get_launcher_kind())
                (self.commands / name).write_bytes(content)
                (self.commands / name).chmod(0o755)
                names.add(name)
            for path in recorded(library):
                # ruff and uv, for instance, are no Python; scripts that are would need another
                # interpreter in their first line.
                file = packages / path
                if (
                    path.startswith("..")
                    and file.parent.name == self.commands.name
                    and file.exists()
                ):
                    with file.open("rb") as opened:
                        if file.name not in names and opened.read(2) != b"#!":
                            link(file, self.commands / file.name)


def bundled_pip() -> Path:
    """The wheel of pip that comes with Python; the running environment may hold none."""
    # Systems with a folder of wheels of their own say where it is.
    own = sysconfig.get_config_var("WHEEL_PKG_DIR")
    folder = Path(own) if own else Path(str(files(ensurepip))) / "_bundled"
    return max(folder.glob("pip-*.whl"))


def folders_of_packages() -> list[Path]:
    """Where the running interpreter looks for what is installed, the first come first."""
    folders = site.getsitepackages()
    if site.ENABLE_USER_SITE:
        folders = [site.getusersitepackages(), *folders]
    return [folder for folder in map(Path, dict.fromkeys(folders)) if folder.is_dir()]


def of_ppap_or_pip(distribution: metadata.Distribution) -> bool:
    """Whether a distribution is ppap's host, one of its plugins, or pip."""
    name = canonicalize_name(distribution.name)
    return name == "pip" or name.startswith("ppap-")


def recorded(distribution: metadata.Distribution) -> Iterable[str]:
    """The files of a distribution as written in its record, relative to its folder."""
    # Not .files, which asks the disk about each of the thousands that torch has.
    return (
        row[0] for row in csv.reader((distribution.read_text("RECORD") or "").splitlines()) if row
    )


def link_packages(packages: Path, links: Path) -> None:
    """Links all that is in a folder of packages, except what is ppap's or pip's, into another."""
    links.mkdir(parents=True)
    left_out = {"__pycache__"}
    for distribution in metadata.distributions(path=[str(packages)]):
        if of_ppap_or_pip(distribution):
            left_out |= {path.split("/")[0] for path in recorded(distribution)}
    for entry in packages.iterdir():
        if entry.name not in left_out:
            link(entry, links / entry.name)


def link(source: Path, target: Path) -> None:
    """Puts a file or a folder in another place, as a link where anybody may make one."""
    if os.name != "nt":
        target.symlink_to(source)
    elif source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy2(source, target)
