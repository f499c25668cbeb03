"""``python -m robustness.soak --minutes N``: jobs that are killed, stopped, starved and doubled.

Run, harvest, tune and search are begun again and again, several at once, and meet ``kill -9``,
SIGTERM, a disk without room, and the same command beside them in the same folder, at random times.
Whatever was left is gone on with, until the job ends. Its result must then be that of the same job
undisturbed, byte for byte but for the seconds that it took.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_USUAL = ("--device", "cpu", "--seed", "5")
JOBS: dict[str, tuple[str, ...]] = {
    "run": ("run", "--num", "4", "--batch", "1", "--steps", "6", "--guide", "classifier",
            "--target", "red cube", "--no-unguided", "--out", "run", *_USUAL),
    "harvest": ("harvest", "--num", "12", "--shard", "2", "--batch", "2", "--steps", "4", "--out",
                "harvest", *_USUAL),
    "tune": ("tune", "classifier", "--harvest", "material", "--out", "tune", "--steps", "12",
             "--batch", "2", "--experts", "2", *_USUAL),
    "search": ("search", "--guide", "classifier", "--target", "red cube", "--work", "search",
               "--budget", "3", "--num", "2", "--steps", "3", *_USUAL),
}  # fmt: skip
MATERIAL = ("harvest", "--num", "8", "--shard", "2", "--batch", "2", "--steps", "2", "--out",
            "material", *_USUAL)  # fmt: skip
DISTURBANCES = ("kill -9", "SIGTERM", "no room on the disk", "the same command beside it")
_SAID = re.compile(r"No space left|at work|already holds|too large|Interrupted|stopped|terminated")
_HANGS = 300.0
"""Seconds after which a job hangs; more on a machine where it takes long undisturbed."""


def main() -> int:
    """Soaks; 1 if a result was another one, or a command ended in a way that it must not."""
    parser = argparse.ArgumentParser(prog="robustness.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--jobs", type=int, default=2, help="Jobs at once.")
    parser.add_argument("--seed", type=int, default=0, help="Of when what happens.")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    from robustness.__main__ import import_all

    import_all()
    ends, rng = time.monotonic() + 60 * options.minutes, random.Random(options.seed)
    done: Counter[str] = Counter()
    met: Counter[str] = Counter()
    wrong: list[str] = []
    with _disk() as disk:
        whole = disk / "whole"
        whole.mkdir()
        usual = {}
        for name, command in {"material": MATERIAL, **JOBS}.items():
            began = time.monotonic()
            code = os.waitpid(_begin(command, whole), 0)[1]
            assert code == 0, (name, _log_of(whole).read_text()[-2000:])
            usual[name] = time.monotonic() - began
        print(", ".join(f"{n} {s:.0f} s" for n, s in usual.items()), "undisturbed", flush=True)
        going: list[Iterator[None]] = []
        number = 0
        while True:
            while len(going) < options.jobs and time.monotonic() < ends:
                name = rng.choice(list(JOBS))
                folder = disk / f"{number:04d}-{name}"
                going.append(_life(name, folder, whole, usual[name], rng, done, met, wrong))
                number += 1
            if not going:
                break
            told = len(wrong)
            going = [life for life in going if next(life, life) is not life]
            for line in wrong[told:]:
                print(line, flush=True)
            time.sleep(0.02)
    print("| job | ended as undisturbed |\n|---|---|")
    for name in JOBS:
        print(f"| {name} | {done[name]} |")
    print("| what happened | times |\n|---|---|")
    for name in DISTURBANCES:
        print(f"| {name} | {met[name]} |")
    print(*wrong, f"{sum(done.values())} results, {len(wrong)} wrong", sep="\n")
    return int(bool(wrong))


@contextmanager
def _disk() -> Iterator[Path]:
    """A disk of its own, which can be filled."""
    place = Path(tempfile.mkdtemp(prefix="soak-"))
    mount = ["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", str(place)]
    mounted = not subprocess.run(mount, capture_output=True).returncode
    logs = _log_of(place / "job").parent
    logs.mkdir()
    if not mounted:
        print("No disk can be mounted here, so none is filled.")
    try:
        yield place
    finally:
        if mounted:
            subprocess.run(["umount", str(place)], check=False)
        for folder in (place, logs):
            shutil.rmtree(folder, ignore_errors=True)


def _log_of(folder: Path) -> Path:
    """Where a job's words go: not on the disk that is filled, where they would be lost."""
    return folder.parent.with_name(f"{folder.parent.name}-logs") / folder.name


def _begin(command: tuple[str, ...], folder: Path) -> int:
    """Begins ``ppap`` in a fork, which has imported everything; its process id."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        from ppap_host.cli import main as ppap

        os.setsid()
        os.chdir(folder)
        log = os.open(_log_of(folder), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(log, stream)
        sys.argv = ["ppap", *command]
        ppap()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def _life(
    name: str,
    folder: Path,
    whole: Path,
    usual: float,
    rng: random.Random,
    done: Counter[str],
    met: Counter[str],
    wrong: list[str],
) -> Iterator[None]:
    """A job from its first beginning to its end; yields while it waits."""
    while name == "tune" and list(folder.parent.glob("*.fill")):
        yield  # there is no room to copy what it needs
    folder.mkdir()
    if name == "tune":
        shutil.copytree(whole / "material", folder / "material")
    left = rng.randint(1, 4)
    for attempt in range(100):
        what = rng.choice(DISTURBANCES) if left > 0 else ""
        left -= 1
        pids = {_begin(JOBS[name], folder)}
        at, filler = time.monotonic() + rng.uniform(0, 1.1 * usual), folder.parent / f"{name}.fill"
        began, codes = time.monotonic(), list[int]()
        while pids:
            yield
            if what and time.monotonic() > at:
                met[what] += 1
                if what == "the same command beside it":
                    pids.add(_begin(JOBS[name], folder))
                elif what == "no room on the disk":
                    _fill(filler, rng.randrange(1 << 18))
                else:
                    kind = signal.SIGKILL if what == "kill -9" else signal.SIGTERM
                    for pid in pids:
                        os.kill(pid, kind)
                what = ""
            if time.monotonic() - began > max(_HANGS, 20 * usual):
                wrong.append(f"{folder.name}: hangs")
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)
                began = time.monotonic()
            for pid in list(pids):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    pids.remove(pid)
                    codes.append(os.waitstatus_to_exitcode(status))
        filler.unlink(missing_ok=True)
        said = _log_of(folder).read_text(errors="replace")
        if "Traceback (most recent call last)" in said or 70 in codes:
            wrong.append(f"{folder.name}, attempt {attempt}: {said[-1500:]}")
            return
        if any(code not in (0, 130, -signal.SIGKILL) for code in codes) and not _SAID.search(said):
            wrong.append(f"{folder.name}, attempt {attempt}: {codes}, {said[-500:]}")
            return
        if 0 in codes:
            break
        if name == "run" and (folder / "run" / "run.json").exists():
            # It is not gone on with; what it has finished is kept, and is what it would be.
            wrong += _differences(folder / "run", whole / "run", part=True)
            (folder / "run").rename(folder / f"run-{attempt}")
        _log_of(folder).unlink()
    found = _differences(folder / name, whole / name)
    wrong += [f"{folder.name}: {line}" for line in found]
    done[name] += not found
    shutil.rmtree(folder, ignore_errors=True)


def _fill(path: Path, room: int) -> None:
    """Leaves so many bytes of the disk, if it is one of our own."""
    if not path.parent.is_mount():
        return
    free = os.statvfs(path.parent)
    size = max(free.f_bavail * free.f_frsize - room, 1)
    # Where others write meanwhile there is less than that, and the disk is full all the same.
    with open(path, "wb") as file, suppress(OSError):
        os.posix_fallocate(file.fileno(), 0, size)


def _differences(found: Path, wanted: Path, part: bool = False) -> list[str]:
    """Which files of a folder are others than they should be, or are missing."""
    mine, theirs = _contents(found), _contents(wanted)
    if part:  # of a run: its pictures
        mine = {k: v for k, v in mine.items() if re.fullmatch(r"\d{5}\.png", k)}
        theirs = {k: v for k, v in theirs.items() if k in mine}
    names = sorted(mine.keys() | theirs.keys())
    return [
        f"{name} is another{_where(mine.get(name, b''), theirs.get(name, b''))}"
        for name in names
        if mine.get(name) != theirs.get(name)
    ]


def _where(mine: bytes, theirs: bytes) -> str:
    """What stands where two texts begin to differ; nothing of what is no text."""
    with suppress(UnicodeDecodeError):
        texts = mine.decode(), theirs.decode()
        pairs = enumerate(zip(*texts, strict=False))
        at = next((i for i, (a, b) in pairs if a != b), min(map(len, texts)))
        found, wanted = (text[max(0, at - 60) : at + 120] for text in texts)
        return f": {found!r}, not {wanted!r}"
    return ""


def _contents(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            if path.suffix == ".json":
                data = json.dumps(_untimed(json.loads(data)), sort_keys=True).encode()
            elif path.suffix == ".csv":
                rows = csv.DictReader(data.decode().splitlines())
                data = json.dumps([_untimed(row) for row in rows]).encode()
            found[path.relative_to(folder).as_posix()] = data
    return found


def _untimed(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _untimed(v) for k, v in value.items() if "seconds" not in k}
    return [_untimed(v) for v in value] if isinstance(value, list) else value


if __name__ == "__main__":
    sys.exit(main())
