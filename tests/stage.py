"""Where the commands of a page run: a folder with all that a reader of the page is said to have."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import forks
import offline
from processes import Outcome, plain_environment
from shown import ROOT, Commands, ShownError, is_option, look_up, taken

LIMIT = 600
"""Seconds that a block may take, on a machine that does other things as well."""

_CHECKOUT = ("plugins", "ppap_host", "pyproject.toml", "docs/examples")
_ALWAYS = ("photo.jpg", "room.jpg", "mask.png", "prompts.txt", "photos")


def stand_in_environment(stand_ins: Path) -> dict[str, str]:
    """The environment of the tests, with the caches of the hub and of torch replaced."""
    return plain_environment() | {
        "HF_HOME": str(stand_ins / "hub"),
        "HF_HUB_OFFLINE": "1",
        "TORCH_HOME": str(stand_ins / "torch"),
        "TOKENIZERS_PARALLELISM": "false",
        "MPLCONFIGDIR": str(stand_ins / "matplotlib"),
        offline.FILES: str(stand_ins / "files"),
    }


@dataclass(frozen=True)
class Stage:
    """The folder of one page.

    Attributes:
        folder: empty but for what :meth:`make` puts there.
        environment: of the commands.
    """

    folder: Path
    environment: dict[str, str]

    @classmethod
    def make(
        cls, folder: Path, stand_ins: Path, programs: Path, blocks: Sequence[Commands]
    ) -> Stage:
        """A folder that looks like a checkout, with the files that the blocks take for granted.

        Args:
            folder: to be made; its parent keeps the home folder beside it.
            stand_ins: from :func:`stand_ins.make`.
            programs: from :func:`forks.served`.
            blocks: of the page. What they fetch (``curl``, ``ppap weights``) is not there yet.
        """
        home, site = folder.parent / "home", folder.parent / "site"
        for new in (folder / "docs" / "images", home, site):
            new.mkdir(parents=True)
        shutil.copyfile(ROOT / "docs/images/target.png", folder / "docs/images/target.png")
        for part in _CHECKOUT:
            (folder / part).symlink_to(ROOT / part)
        data = home / "data"
        _furnish(folder, data / "ppap" / "weights", stand_ins / "files", blocks)
        environment = stand_in_environment(stand_ins) | {
            "HOME": str(home),
            "XDG_DATA_HOME": str(data),
            "PATH": os.pathsep.join([str(programs), os.environ.get("PATH", "")]),
            "PYTHONPATH": str(site),
            offline.SITE: str(site),
            # Where torchrun's processes meet, unless the page says it: one place for each test.
            "PET_MASTER_PORT": str(_free_port()),
        }
        return cls(folder, environment)

    def play(self, block: Commands) -> None:
        """Does with a block what its mark says.

        Raises:
            AssertionError: a command fails; says which, how, and what it printed.
        """
        if block.kind == "not run":
            return
        for option in filter(is_option, block.options):
            if not any(taken(a, [option]) for a in block.ppap()):
                raise AssertionError(f"{block.where}: no command of the block takes {option}")
        if block.kind == "looked up":
            for arguments in block.ppap():
                try:
                    look_up(arguments)
                except ShownError as error:
                    raise AssertionError(f"{block.where}: {error}") from None
            return
        outcome = self.run(block.text, block.options)
        if outcome.code:
            tail = "\n".join((outcome.out[-2000:] + outcome.err).splitlines()[-80:])
            raise AssertionError(
                f"{block.where}: exit status {outcome.code} of\n\n{block.text}\n{tail}"
            )

    def run(self, text: str, options: Sequence[str] = ()) -> Outcome:
        """Runs shell commands; what is traced (``+ command``) and printed goes to ``err``."""
        process = subprocess.Popen(
            ["bash", "-euxo", "pipefail", "-c", text],
            cwd=self.folder,
            env=self.environment | {forks.APPENDED: json.dumps(list(options))},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            start_new_session=True,
        )
        try:
            out, err = process.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            # With all that it has started, or their pipes stay open.
            os.killpg(process.pid, 9)
            out, err = process.communicate()
            return Outcome(124, out, f"{err}\nstopped after {LIMIT} s")
        return Outcome(process.returncode, out, err)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _furnish(folder: Path, weights: Path, files: Path, blocks: Sequence[Commands]) -> None:
    from ppap_host.plugins.registry import registry

    text = "".join(block.text for block in blocks)
    published = [file for claims in registry().published_files().values() for _, file in claims]
    fetched = {file.file for file in published if file.url in text}
    for file in published:
        if re.search(rf"ppap weights {re.escape(file.name)}(?![\w-])", text):
            fetched.add(file.file)
            # As if it had been fetched before: there is no network.
            (weights / file.group).mkdir(parents=True, exist_ok=True)
            (weights / file.group / file.file).symlink_to(files / file.file)
    models = {path.parent.relative_to(files).as_posix() for path in files.rglob("*.json")}
    plain = {path.name for path in files.iterdir() if path.is_file()}
    for name in sorted({*models, *plain, *_ALWAYS} - {"."} - fetched):
        # Whole words, or a folder of some page would be taken for a model.
        used = re.search(rf"(?<![\w./-]){re.escape(name.removesuffix('.json'))}(?![\w/-])", text)
        if name in _ALWAYS or used:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to(files / name)
