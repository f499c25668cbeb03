"""Plants the faults of ``faults.py``, one at a time, and asks whether the named tests notice.

``python tests/planted [--jobs 2] [--write] [WORD ...]``, from the root of a checkout. Each fault is
planted in a copy of the tree, and its tests run there in a fork of a process that has imported what
takes long, without the reference vectors. A fault counts as caught when a test *fails*: an error of
collection, of an import or of the time limit is none. The tests must pass where nothing is planted.

With words only faults whose file, description or test holds one of them are planted; with
``--write`` the table in ``docs/planted.md`` is written.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from planted.faults import FAULTS, Fault

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "planted.md"
LIMIT = 300
"""Seconds of a processor for the tests of one fault: others may use the machine as well."""

_PATIENCE = 3600
"""Seconds of a clock, for what waits for ever."""

_NEEDED = ("ppap_host", "plugins", "tests", "pyproject.toml", "conftest.py")
_PASSED, _FAILED = 0, 1
"""What pytest ends with; everything above is an error of another kind."""


def copied(folder: Path) -> Path:
    """The parts of the tree that tests need."""
    skipped = shutil.ignore_patterns("__pycache__", ".*", "*.egg-info", "dist", "build")
    for name in _NEEDED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=skipped)
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def import_what_takes_long() -> None:
    """Everything heavy but the product itself, which is imported after it was changed."""
    import diffusers  # noqa: F401
    import hypothesis  # noqa: F401
    import pytest  # noqa: F401
    import torch._dynamo
    import torch.utils.flop_counter
    import transformers  # noqa: F401
    from safetensors import torch as _  # noqa: F401

    torch.set_num_threads(1)
    ours = [name for name in sys.modules if name.split(".")[0].startswith("ppap")]
    assert not ours, ours


@dataclass
class Running:
    """A fork at work.

    Attributes:
        fault: None for the tree as it is.
    """

    fault: Fault | None
    tree: Path
    log: Path
    began: float


def start(fault: Fault | None, tests: Sequence[str], tree: Path, log: Path) -> tuple[int, Running]:
    """Forks a process that runs the tests in the tree; its number."""
    pid = os.fork()
    if pid:
        return pid, Running(fault, tree, log, time.monotonic())
    code = 99
    try:
        with open(log, "w") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT))
        os.chdir(tree)
        sources = [tree, *sorted(tree.glob("plugins/*/src"))]
        own = [str(ROOT), str(ROOT / "tests"), *map(str, ROOT.glob("plugins/*/src"))]
        sys.path[:] = [*map(str, sources), *(p for p in sys.path if p not in own)]
        sys.dont_write_bytecode = True
        os.environ |= {
            "PPAP_VECTORS": "/nonexistent",
            "PYTHONPATH": os.pathsep.join(map(str, sources)),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        }
        import pytest

        options = ["-q", "-x", "--rootdir", str(tree), "-p", "no:cacheprovider"]
        # Without the checks of shapes, which would catch some faults for the tests.
        options += ["-o", "addopts=--strict-markers --import-mode=importlib"]
        code = int(pytest.main([*options, *(str(tree / test) for test in tests)]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def planted(fault: Fault, tree: Path) -> None:
    """Changes the tree."""
    path = tree / fault.file
    text = path.read_text(encoding="utf-8")
    if text.count(fault.old) != 1:
        raise SystemExit(f"{fault.file} has {text.count(fault.old)} times:\n{fault.old}")
    path.write_text(text.replace(fault.old, fault.new), encoding="utf-8")


def finished(running: dict[int, Running]) -> tuple[Running, int]:
    """Waits for a fork; it and its exit status, 124 where it took too long."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            return running.pop(pid), os.waitstatus_to_exitcode(status)
        for pid, one in running.items():
            if time.monotonic() - one.began > _PATIENCE:
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return running.pop(pid), 124
        time.sleep(0.02)


def run(faults: Sequence[Fault], jobs: int) -> list[str]:
    """What went otherwise than it should."""
    with tempfile.TemporaryDirectory(prefix="planted-") as name:
        trees = []
        for k in range(jobs):
            (Path(name) / str(k)).mkdir()
            trees.append(copied(Path(name) / str(k)))
        import_what_takes_long()
        log = Path(name) / "log"
        tests = list(dict.fromkeys(test for fault in faults for test in fault.tests))
        pid, one = start(None, tests, trees[0], log)
        _, code = finished({pid: one})
        if code != _PASSED:
            return [
                f"Where nothing is planted, the tests end with {code}:\n{log.read_text()[-6000:]}"
            ]
        print(f"{len(tests)} tests pass where nothing is planted.", flush=True)
        wrong: list[str] = []
        running: dict[int, Running] = {}
        waiting, free = list(faults), list(trees)

        def one_more_done() -> None:
            done, code = finished(running)
            assert done.fault is not None
            shutil.copyfile(ROOT / done.fault.file, done.tree / done.fault.file)
            free.append(done.tree)
            verdict = {_PASSED: "NOT NOTICED", _FAILED: "caught"}.get(code, f"ERROR {code}")
            seconds = time.monotonic() - done.began
            print(
                f"{verdict:12} {seconds:5.1f} s  {done.fault.file}: {done.fault.what}", flush=True
            )
            if code != _FAILED:
                tail = done.log.read_text()[-1500:]
                wrong.append(f"{verdict}: {done.fault.file}: {done.fault.what}\n{tail}")

        while waiting:
            while not free:
                one_more_done()
            fault, tree = waiting.pop(0), free.pop()
            planted(fault, tree)
            pid, one = start(fault, fault.tests, tree, Path(name) / f"log-{len(waiting)}")
            running[pid] = one
        while running:
            one_more_done()
        return wrong


def page() -> str:
    """``docs/planted.md``."""
    rows = "\n".join(
        f"| `{f.file.removeprefix('plugins/')}` | {f.what} | "
        + ", ".join(f"`{t.removeprefix('tests/').removeprefix('plugins/')}`" for t in f.tests)
        + " |"
        for f in FAULTS
    )
    return f"""\
# Planted faults

A test that cannot fail is worth nothing. `nox -s planted` therefore puts {len(FAULTS)} faults into the code, one at a time, and asks whether the tests that are named here notice. They run without the reference vectors, and without the checks of shapes. The faults are in `tests/planted/faults.py`, as text that is replaced by other text. This page is written by `nox -s planted -- --write`.

| file | fault | noticed by |
|---|---|---|
{rows}
"""  # noqa: E501


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("words", nargs="*")
    asked = parser.parse_args()
    chosen = [
        f
        for f in FAULTS
        if not asked.words or any(w in f"{f.file} {f.what} {f.tests}" for w in asked.words)
    ]
    began = time.monotonic()
    wrong = run(chosen, max(1, asked.jobs))
    print(f"{len(chosen)} faults in {time.monotonic() - began:.0f} s", flush=True)
    if asked.write and not wrong:
        PAGE.write_text(page(), encoding="utf-8")
    if wrong:
        sys.exit("\n\n".join(wrong))


if __name__ == "__main__":
    main()
