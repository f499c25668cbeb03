"""Runs cases, each in a fork of one process that has imported everything; POSIX only."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from pathlib import Path

from robustness.cases import Case, Verdict

_ALIEN = (
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn",
    "socket.connect", "pickle.find_class"
)  # fmt: skip
"""Events that mean: something was run, unpickled or fetched."""

_PATIENCE = 10
"""How many times its seconds a case may take where others leave it no more of the machine."""

CANARY = "EXECUTED"
"""File that hostile code writes in its folder when it is run."""


def run_all(
    cases: Iterable[Case], told: Callable[[Verdict], None], processes: int = 2
) -> list[Verdict]:
    """Runs cases, so many at once; ``told`` of each as it ends."""
    verdicts: list[Verdict] = []
    going: dict[int, _Going] = {}
    left = iter(cases)
    with tempfile.TemporaryDirectory(prefix="robust-") as scratch:
        number = 0
        while True:
            while len(going) < processes:
                case = next(left, None)
                if case is None:
                    break
                begun = _Going.begin(case, Path(scratch) / f"{number:05d}")
                going[begun.pid] = begun
                number += 1
            if not going:
                return verdicts
            for pid, one in list(going.items()):
                verdict = one.look()
                if verdict is not None:
                    del going[pid]
                    verdicts.append(verdict)
                    told(verdict)
            time.sleep(0.005)


class _Going:
    """A case under way."""

    def __init__(self, case: Case, folder: Path, before: dict[str, bytes]) -> None:
        self.case, self.folder, self.before = case, folder, before
        self.work = folder / "work"
        self.began = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            _child(case, folder)

    @classmethod
    def begin(cls, case: Case, folder: Path) -> _Going:
        (folder / "work").mkdir(parents=True)
        case.make(folder / "work")
        sys.stdout.flush()
        sys.stderr.flush()
        return cls(case, folder, _files(folder / "work"))

    def look(self) -> Verdict | None:
        """The verdict, once it has ended or its time is over."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        seconds = time.monotonic() - self.began
        hang = ""
        if not pid:
            if seconds < self.case.seconds or (
                seconds < _PATIENCE * self.case.seconds and _busy(self.pid) < self.case.seconds
            ):
                return None
            os.killpg(self.pid, signal.SIGKILL)
            _, status = os.waitpid(self.pid, 0)
            hang = f"after {seconds:.0f} s"
        with_signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        code = os.waitstatus_to_exitcode(status)
        said = (self.folder / "err").read_text(encoding="utf-8", errors="replace")
        verdict = Verdict(self.case, seconds, hang=hang, told=said)
        if with_signal and not hang:
            verdict.hang = f"ended by signal {with_signal}"
        events = (self.folder / "events").read_text(errors="replace")
        verdict.executed = events.partition("\n")[0]
        if (self.work / CANARY).exists():
            verdict.executed = "the canary is dead"
        if "Traceback (most recent call last)" in said:
            verdict.traceback = said.strip().rpartition("\n")[2][:200]
        verdict.lost = self._lost()
        if self.case.codes and code not in self.case.codes and not verdict.hang:
            verdict.unsaid = f"exit code {code}: {said.strip()[-200:]}"
        elif self.case.says is not None and not re.search(self.case.says, said, re.DOTALL):
            verdict.unsaid = f"nothing like {self.case.says!r}: {said.strip()[-200:]}"
        elif self.case.prints is not None:
            printed = (self.folder / "out").read_text(encoding="utf-8", errors="replace")
            if not re.search(self.case.prints, printed, re.DOTALL):
                verdict.unsaid = f"{self.case.prints!r} is printed: {printed.strip()[-200:]!a}"
        shutil.rmtree(self.folder, ignore_errors=True)
        return verdict

    def _lost(self) -> str:
        after = _files(self.work)
        for name, data in self.before.items():
            if not any(fnmatch(name, pattern) for pattern in self.case.writes):
                if name not in after:
                    return f"{name} is gone"
                if after[name] != data:
                    return f"{name} is another"
        return ""


def _busy(pid: int) -> float:
    """Seconds that a process, and what it has waited for, have computed."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _files(folder: Path) -> dict[str, bytes]:
    """Regular files, by name; of large ones the beginning and the size."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                name = path.relative_to(folder).as_posix()
                found[name] = file.read(1 << 20) + str(path.stat().st_size).encode()
    return found


def _child(case: Case, folder: Path) -> None:
    """Runs the command and ends the process."""
    code = 70
    try:
        os.setpgid(0, 0)
        _redirect(folder)
        watching = [True]
        events = os.open(folder / "events", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + case.memory, used + case.memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.chdir(folder / "work")
        inside = str(folder / "work")

        def seen(event: str, arguments: tuple[object, ...]) -> None:
            if not watching[0]:
                return
            alien = event in _ALIEN
            if event == "exec":
                alien = str(getattr(arguments[0], "co_filename", "")).startswith(inside)
            if alien:
                os.write(events, f"{event} {str(arguments)[:150]}\n".encode(errors="replace"))

        sys.addaudithook(seen)
        code = _called(case, Path("."))
        watching[0] = False
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _redirect(folder: Path) -> None:
    for number, name in ((1, "out"), (2, "err")):
        handle = os.open(folder / name, os.O_WRONLY | os.O_CREAT)
        os.dup2(handle, number)
        os.close(handle)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    (folder / "events").touch()


def _called(case: Case, folder: Path) -> int:
    from ppap_host.cli import main
    from ppap_host.files.errors import PpapError

    if callable(case.command):
        try:
            case.command(folder)
        except PpapError as error:
            print(f"Error: {error}", file=sys.stderr)
            return error.exit_code
        return 0
    sys.argv = ["ppap", *case.command]
    try:
        main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0
