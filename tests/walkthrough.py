"""Goes through the tutorial as its reader does: its commands, one after the other, in a terminal.

``python tests/walkthrough.py`` does it for real: a fresh virtual environment, packages from the
index, and the time of each block printed at the end. With ``--pictures`` it then replaces the
pictures of the page, ``docs/tutorial/*.png``, by those that were made. The tests do the same
without a network.

What is expected is in comments of the page. Above a block of commands,

    <!-- tutorial: fails -->

says that its last command does. Above a block of text,

    <!-- tutorial: shown -->
    <!-- tutorial: shown, numbers differ -->

say that these lines are in the output of the commands above it, in this order; a line of three
dots stands for any others. And where a picture is,

    <!-- tutorial: picture tutorial/NAME.png = FILE -->

names the file that the commands write, relative to where the page has led.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import re
import resource
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from installation import ROOT, copy_of_project
from processes import plain_environment
from scripts import script
from shown import Block, blocks

PAGE = ROOT / "docs" / "tutorial.md"

_COMMENT = re.compile(r"<!-- tutorial: (.*) -->")
_PICTURE = re.compile(r"^<!-- tutorial: picture (\S+) = (\S+) -->$", re.MULTILINE)
_ANSI = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|\][^\x07]*\x07|[()][A-Z0-9])")
_MARK = "\x1e"
"""Record separator: between the outputs of blocks."""


@dataclass
class Step:
    """A block of commands of the page, and what is expected of it.

    Attributes:
        line: of its fence.
        commands: as shown.
        fails: whether its last command does.
        shown: the blocks of text that show its output, and whether their numbers differ.
        output: what it printed; None before it ran.
        seconds: how long it took.
    """

    line: int
    commands: str
    fails: bool
    shown: list[tuple[Block, bool]] = field(default_factory=list)
    output: str | None = None
    seconds: float = 0.0

    def missing(self) -> list[str]:
        """The lines that the page shows and the commands did not print."""
        found = []
        for block, numbers_differ in self.shown:
            printed = iter([_plain(p, numbers_differ) for p in (self.output or "").splitlines()])
            for line in block.text.splitlines():
                wanted = _plain(line, numbers_differ)
                if wanted != "..." and wanted not in printed:  # goes on behind the last one found
                    found.append(line)
                    break
        return found


def _plain(line: str, numbers_differ: bool) -> str:
    """A line as it is compared."""
    line = _ANSI.sub("", line).strip()
    return re.sub(r"\d+(\.\d+)?", "#", line) if numbers_differ else line


def steps(text: str) -> list[Step]:
    """The steps of a page.

    Raises:
        ValueError: a comment is not understood, or a text stands before all commands.
    """
    found: list[Step] = []
    for block in blocks(text):
        marks = [m[1] for comment in block.comments if (m := _COMMENT.fullmatch(comment))]
        known = {"bash": {"fails"}, "text": {"shown", "shown, numbers differ"}}
        if unknown := set(marks) - known.get(block.language, set()):
            raise ValueError(f"line {block.line}: {unknown} is not known above this block")
        if block.language == "bash":
            found.append(Step(block.line, block.text, "fails" in marks))
        elif marks:
            found[-1].shown.append((block, "shown, numbers differ" in marks))
    return found


def pictures(text: str) -> dict[Path, str]:
    """The pictures of a page: where they are, and the files that they are made as."""
    return {ROOT / "docs" / at: made for at, made in _PICTURE.findall(text)}


def checkout(folder: Path) -> None:
    """What the page takes for granted beside its folder: the repository, named ``ppap``."""
    copy_of_project(ROOT, folder / "copy").rename(folder / "ppap")
    (folder / "copy").rmdir()
    copy_of_project(ROOT / "plugins" / "ppap-plugin-depth", folder / "ppap" / "plugins")


class Stopped(Exception):
    """A step that did not end as it should; says which, and what it printed last."""


def walk(
    page: list[Step], folder: Path, variables: Mapping[str, str], timeout: float = 1800
) -> Path:
    """Pastes all steps into one shell in a terminal; fills in their outputs and times.

    Args:
        folder: where the reader begins.
        variables: the environment of the shell.
        timeout: seconds for all steps together.

    Returns:
        The folder in which the last step ended.

    Raises:
        Stopped: a command failed that should not, or did not fail and should, or asked for what
            the page does not say.
    """
    with tempfile.TemporaryDirectory(prefix="ppap-steps-") as name:
        lines = ["set -eo pipefail"]
        for k, step in enumerate(page):
            path = Path(name) / f"{k}.sh"
            path.write_text(step.commands, encoding="utf-8")
            lines.append(f"printf '{_MARK}'")
            run = f"source '{path}'"
            if step.fails:
                run = f"if {run}; then echo 'It does not fail.'; exit 99; fi"
            lines.append(run)
        ended = Path(name) / "folder"
        lines += [f"printf '{_MARK}'", f"pwd > '{ended}'"]
        (Path(name) / "all.sh").write_text("\n".join(lines) + "\n", encoding="utf-8")
        code = _in_terminal(["bash", str(Path(name) / "all.sh")], page, folder, variables, timeout)
        if code:
            begun = [step for step in page if step.output is not None]
            last, printed = begun[-1], (begun[-1].output or "")[-3000:]
            raise Stopped(
                f"the step of line {last.line} ended with {code}:\n{last.commands}\n{printed}"
            )
        return Path(ended.read_text(encoding="utf-8").strip())


def _in_terminal(
    command: list[str], page: list[Step], folder: Path, variables: Mapping[str, str], timeout: float
) -> int | str:
    """Runs the shell in a terminal of its own; how it ended."""
    ours, theirs = pty.openpty()
    # As wide as no line is long.
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 400, 0, 0))
    shell = subprocess.Popen(
        command, cwd=folder, env=dict(variables) | {"TERM": "dumb"}, start_new_session=True,
        stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    at, began, deadline = -1, time.monotonic(), time.monotonic() + timeout
    printed = b""
    try:
        while time.monotonic() < deadline:
            if not select.select([ours], [], [], 1.0)[0]:
                continue
            try:
                chunk = os.read(ours, 65536)
            except OSError:  # how Linux says that nobody has the terminal open any more
                chunk = b""
            if not chunk:
                return shell.wait()
            first, *others = chunk.split(_MARK.encode())
            printed += first
            for other in others:
                now = time.monotonic()
                if at >= 0:
                    page[at].output, page[at].seconds = _text(printed), now - began
                at, began, printed = at + 1, now, other
        return f"a question, or no end after {timeout} s"
    finally:
        if 0 <= at < len(page):
            page[at].output, page[at].seconds = _text(printed), time.monotonic() - began
        if shell.poll() is None:
            os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()
        os.close(ours)


def _text(printed: bytes) -> str:
    return printed.decode("utf-8", errors="replace").replace("\r\n", "\n")


def main() -> None:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description="Goes through the tutorial with a real pip.")
    parser.add_argument("--pictures", action="store_true", help="replace those of the page")
    parser.add_argument("--keep", type=Path, help="an empty folder to work in, and leave there")
    options = parser.parse_args()
    text = PAGE.read_text(encoding="utf-8")
    page = steps(text)
    kept = plain_environment()
    del kept["OMP_NUM_THREADS"]  # a reader has all cores
    own = Path(sys.executable).parent
    path = [p for p in kept["PATH"].split(os.pathsep) if Path(p) != own]
    kept = {k: v for k, v in kept.items() if k != "VIRTUAL_ENV"}
    kept |= {"PATH": os.pathsep.join([str(Path(sys.base_prefix) / "bin"), *path])}
    with tempfile.TemporaryDirectory(prefix="ppap-tutorial-") as name:
        folder = Path(name) if options.keep is None else options.keep.resolve()
        checkout(folder)
        try:
            ended = walk(page, folder, kept | {"PIP_NO_CACHE_DIR": "1"}, timeout=3600)
        finally:
            for step in page:
                if step.output is not None:
                    first = step.commands.splitlines()[0]
                    print(f"{step.seconds:7.1f} s  line {step.line:3}  {first[:70]}")
            used = resource.getrusage(resource.RUSAGE_CHILDREN)
            cores = f"{used.ru_utime + used.ru_stime:.0f} s of processor time"
            print(f"{sum(step.seconds for step in page):7.1f} s  all, {cores}")
        for step in page:
            for line in step.missing():
                print(f"not printed by the step of line {step.line}: {line}")
        if options.pictures:
            for picture, made in pictures(text).items():
                picture.parent.mkdir(exist_ok=True)
                shutil.copyfile(ended / made, picture)
                script("make_pictures").shrink(picture)
                print(f"wrote {picture.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
