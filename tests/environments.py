"""Throw-away environments with real distributions in them, made without a network."""

from __future__ import annotations

import csv
import io
import json
import os
import site
import sys
import sysconfig
import textwrap
import venv
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from installer import install
from installer.destinations import SchemeDictionaryDestination
from installer.sources import WheelFile
from installer.utils import get_launcher_kind
from processes import Outcome, plain_environment, run_process


def build_wheel(
    folder: Path,
    name: str,
    modules: Mapping[str, str],
    entry_points: Mapping[str, Mapping[str, str]],
    version: str = "1.0",
) -> Path:
    """Writes a wheel.

    Args:
        modules: file name -> source.
        entry_points: group -> name -> value.
    """
    stem = f"{name.replace('-', '_')}-{version}"
    groups = [
        f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in points.items())
        for group, points in entry_points.items()
    ]
    info = f"{stem}.dist-info"
    files = {file: textwrap.dedent(source) for file, source in modules.items()} | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
        f"{info}/entry_points.txt": "\n".join(groups),
    }
    listed = io.StringIO()
    csv.writer(listed, lineterminator="\n").writerows(
        [(file, "", "") for file in (*files, f"{info}/RECORD")]
    )
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for file, content in files.items():
            wheel.writestr(file, content)
        wheel.writestr(f"{info}/RECORD", listed.getvalue())
    return path


@dataclass(frozen=True)
class Environment:
    """A virtual environment that also sees what the running interpreter sees."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Environment:
        """Makes one with no package of its own."""
        on_windows = os.name == "nt"
        venv.EnvBuilder(symlinks=not on_windows, with_pip=False).create(folder)
        environment = cls(folder)
        # Not --system-site-packages: the running interpreter may be a virtual environment itself.
        # addsitedir, not a plain path, so that its editable installs are seen too.
        lines = [f"import site; site.addsitedir({path!r})" for path in site.getsitepackages()]
        (environment.packages / "parent.pth").write_text("\n".join(lines) + "\n")
        return environment

    @property
    def scheme(self) -> dict[str, str]:
        """Where this environment keeps what."""
        base = {"base": str(self.folder), "platbase": str(self.folder)}
        return sysconfig.get_paths(scheme="venv", vars=base | {"installed_base": str(self.folder)})

    @property
    def packages(self) -> Path:
        """Its site-packages."""
        return Path(self.scheme["purelib"])

    @property
    def python(self) -> str:
        """Its interpreter."""
        return str(Path(self.scheme["scripts"]) / Path(sys.executable).name)

    def install(self, wheel: Path) -> None:
        """Installs a wheel as pip would, dependencies apart."""
        destination = SchemeDictionaryDestination(
            self.scheme, interpreter=self.python, script_kind=get_launcher_kind()
        )
        with WheelFile.open(wheel) as source:
            install(source, destination, additional_metadata={"INSTALLER": b"tests"})

    def run(
        self,
        *command: str,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 300,
    ) -> Outcome:
        """Runs a command, at most ``timeout`` seconds long.

        Args:
            cwd: where; in its own folder if left out.
            env: variables beside the plain environment.
        """
        variables = plain_environment() | dict(env or {})
        return run_process(list(command), cwd or self.folder, variables, timeout)

    def ppap(self, *arguments: str) -> Outcome:
        """Runs its ``ppap``."""
        return self.run(self.python, "-m", "ppap_host", *arguments)

    def ppap_in_turn(self, *calls: tuple[str, ...]) -> list[Outcome]:
        """Runs its ``ppap`` several times in one process, which imports torch once."""
        code = f"""
            import contextlib, io, json, sys
            from ppap_host.cli import main
            outcomes = []
            for call in {calls!r}:
                sys.argv = ["ppap", *call]
                code, out, err = 0, io.StringIO(), io.StringIO()
                with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                    try:
                        main()
                    except SystemExit as stop:
                        code = stop.code or 0
                outcomes.append((code, out.getvalue(), err.getvalue()))
            print(json.dumps(outcomes))
        """
        return [Outcome(*outcome) for outcome in json.loads(self.evaluate(code))]

    def evaluate(self, code: str) -> str:
        """What its interpreter prints for ``code``."""
        return self.run(self.python, "-c", textwrap.dedent(code)).success().out
