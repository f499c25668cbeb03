"""Mutation testing: the operators of cosmic-ray, and a runner that is fast enough for torch.

``python tests/planted/mutants.py [--jobs 2] [--every K] [--out FILE] MODULE.py ... -- TEST ...``

The tests are collected once, and run once to see which functions each of them calls. Then every
mutant runs in a fork, where the code of the changed function takes the place of the function's own,
and only the tests that call that function run, the quickest first. What stands outside of functions
(defaults, tables, presets) is mutated in a copy of the tree, as planted faults are, and costs an
import. Survivors are printed with the line that was changed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import marshal
import os
import signal
import sys
import time
import types
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OPERATORS = (
    "NumberReplacer", "AddNot", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr",
    "ReplaceOrWithAnd", "ReplaceBreakWithContinue", "ReplaceContinueWithBreak",
    "ZeroIterationForLoop",
    "ReplaceBinaryOperator_Add_Sub", "ReplaceBinaryOperator_Sub_Add",
    "ReplaceBinaryOperator_Mul_Div", "ReplaceBinaryOperator_Div_Mul",
    "ReplaceBinaryOperator_Pow_Mul", "ReplaceBinaryOperator_FloorDiv_Div",
    "ReplaceBinaryOperator_Mod_Div", "ReplaceBinaryOperator_BitOr_BitAnd",
    "ReplaceBinaryOperator_MatMul_Mul",
    "ReplaceUnaryOperator_USub_UAdd", "ReplaceUnaryOperator_Delete_Not",
    "ReplaceComparisonOperator_Lt_LtE", "ReplaceComparisonOperator_LtE_Lt",
    "ReplaceComparisonOperator_Gt_GtE", "ReplaceComparisonOperator_GtE_Gt",
    "ReplaceComparisonOperator_Lt_Gt", "ReplaceComparisonOperator_Gt_Lt",
    "ReplaceComparisonOperator_Eq_NotEq", "ReplaceComparisonOperator_NotEq_Eq",
    "ReplaceComparisonOperator_Is_IsNot", "ReplaceComparisonOperator_IsNot_Is",
)  # fmt: skip
LIMIT = 120
"""Seconds for one mutant; what does not end by then counts as caught."""


@dataclass
class Mutant:
    """One change.

    Attributes:
        functions: qualified names of those that it changes; none: it stands outside of functions.
        outcome: "caught", "survived", "out of time" or "not called".
    """

    file: str
    operator: str
    line: int
    before: str
    after: str
    functions: tuple[str, ...]
    outcome: str = ""


def functions_of(code: types.CodeType) -> dict[str, types.CodeType]:
    """The code of a module's functions and methods by qualified name; inner ones belong to them."""
    found: dict[str, types.CodeType] = {}

    def look(code: types.CodeType) -> None:
        for inner in (c for c in code.co_consts if isinstance(c, types.CodeType)):
            name = inner.co_qualname
            if inner.co_flags & 0x02 and "<locals>" not in name and "<" not in inner.co_name:
                found[name] = inner
            elif "<locals>" not in name:
                look(inner)

    look(code)
    return found


def same(a: types.CodeType, b: types.CodeType) -> bool:
    """Whether they do the same, wherever they stand."""
    return marshal.dumps(_stripped(a)) == marshal.dumps(_stripped(b))


def _stripped(code: types.CodeType) -> types.CodeType:
    consts = tuple(_stripped(c) if isinstance(c, types.CodeType) else c for c in code.co_consts)
    return code.replace(
        co_consts=consts, co_firstlineno=1, co_linetable=b"", co_filename="", co_exceptiontable=b""
    )


def mutants(file: Path, every: int) -> Iterator[tuple[Mutant, str]]:
    """All mutants of a file, with its text; one of ``every``."""
    from cosmic_ray import plugins
    from cosmic_ray.mutating import mutate_code

    source = file.read_text(encoding="utf-8")
    own = functions_of(compile(source, str(file), "exec"))
    seen = {source}
    count = 0
    for name in OPERATORS:
        try:
            operator = plugins.get_operator(f"core/{name}")()
        except KeyError:
            continue
        occurrence = 0
        while True:
            text = mutate_code(source, operator, occurrence)
            occurrence += 1
            if text is None:
                break
            if text in seen:
                continue
            seen.add(text)
            try:
                code = compile(text, str(file), "exec")
            except SyntaxError:
                continue
            lines = zip(source.splitlines(), text.splitlines(), strict=False)
            line, before, after = next(
                (n, a.strip(), b.strip()) for n, (a, b) in enumerate(lines, 1) if a != b
            )
            if before.startswith(("from __future__", "import ", "from ", "@", '"')):
                continue
            theirs = functions_of(code)
            changed = tuple(n for n in own if n in theirs and not same(own[n], theirs[n]))
            count += 1
            if count % every == 0:
                yield Mutant(str(file.relative_to(ROOT)), name, line, before, after, changed), text


def live(module: types.ModuleType) -> dict[str, list[types.FunctionType]]:
    """The functions of a module that is in use, by qualified name."""
    found: dict[str, list[types.FunctionType]] = defaultdict(list)

    def add(value: Any) -> None:
        if isinstance(value, property):
            for part in (value.fget, value.fset):
                add(part)
            return
        value = getattr(value, "__func__", value)
        while hasattr(value, "__wrapped__"):
            value = value.__wrapped__
        if isinstance(value, types.FunctionType) and value.__module__ == module.__name__:
            found[value.__code__.co_qualname].append(value)

    def look(holder: Any, seen: set[int]) -> None:
        for value in list(vars(holder).values()):
            add(value)
            own = isinstance(value, type) and value.__module__ == module.__name__
            if own and id(value) not in seen:
                seen.add(id(value))
                look(value, seen)

    look(module, set())
    return found


def module_of(file: str) -> str:
    """The name a file is imported by."""
    parts = Path(file).with_suffix("").parts
    parts = parts[parts.index("src") + 1 :] if "src" in parts else parts
    return ".".join(parts).removesuffix(".__init__")


class Loop:
    """A plugin of pytest: runs all mutants in place of the tests."""

    def __init__(self, files: Sequence[Path], every: int, jobs: int, out: Path | None) -> None:
        self.files, self.every, self.jobs, self.out = files, every, jobs, out

    def pytest_runtestloop(self, session: Any) -> bool:
        from _pytest.runner import runtestprotocol

        def passes(item: Any) -> bool:
            return all(not r.failed for r in runtestprotocol(item, log=False, nextitem=None))

        callers: dict[tuple[str, str], list[tuple[float, int]]] = defaultdict(list)
        wanted = {str(f) for f in self.files}
        for k, item in enumerate(session.items):
            called: set[tuple[str, str]] = set()

            def look(frame: Any, event: str, _: Any, called: Any = called) -> None:
                code = frame.f_code
                if event == "call" and code.co_filename in wanted:
                    name = code.co_qualname.split(".<locals>")[0]
                    called.add((code.co_filename, name))

            began = time.monotonic()
            sys.setprofile(look)
            fine = passes(item)
            sys.setprofile(None)
            if not fine:
                print(f"fails by itself: {item.nodeid}", flush=True)
                continue
            for one in called:
                callers[one].append((time.monotonic() - began, k))
        results: list[Mutant] = []
        running: dict[int, tuple[Mutant, float]] = {}

        def reap() -> None:
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid:
                    mutant, _ = running.pop(pid)
                    code = os.waitstatus_to_exitcode(status)
                    mutant.outcome = {0: "survived"}.get(code, "caught")
                    results.append(mutant)
                    if not code:
                        print(f"{mutant.file}:{mutant.line}: {mutant.after}", flush=True)
                    return
                for pid, (mutant, began) in list(running.items()):
                    if time.monotonic() - began > LIMIT:
                        os.kill(pid, signal.SIGKILL)
                        os.waitpid(pid, 0)
                        del running[pid]
                        mutant.outcome = "out of time"
                        results.append(mutant)
                        return
                time.sleep(0.01)

        for file in self.files:
            module = sys.modules.get(module_of(str(file.relative_to(ROOT))))
            for mutant, text in mutants(file, self.every):
                chosen = sorted({t for f in mutant.functions for t in callers[str(file), f]})
                if not mutant.functions:
                    mutant.outcome = "outside"
                    results.append(mutant)
                    continue
                if not chosen or module is None:
                    mutant.outcome = "not called"
                    results.append(mutant)
                    continue
                while len(running) >= self.jobs:
                    reap()
                pid = os.fork()
                if pid:
                    running[pid] = mutant, time.monotonic()
                    continue
                code = 1
                try:
                    null = os.open(os.devnull, os.O_WRONLY)
                    os.dup2(null, 1)
                    os.dup2(null, 2)
                    theirs, ours = functions_of(compile(text, str(file), "exec")), live(module)
                    for name in mutant.functions:
                        for function in ours[name]:
                            function.__code__ = theirs[name]
                    code = int(not all(passes(session.items[k]) for _, k in chosen))
                finally:
                    os._exit(code)
        while running:
            reap()
        self.report(results)
        return True

    def report(self, results: list[Mutant]) -> None:
        for file in sorted({m.file for m in results}):
            own = [m for m in results if m.file == file and m.outcome != "outside"]
            caught = sum(m.outcome in ("caught", "out of time") for m in own)
            print(f"{file}: {caught} of {len(own)} caught")
            for m in sorted(own, key=lambda m: m.line):
                if m.outcome in ("survived", "not called"):
                    print(f"  {m.outcome}: {m.line}: {m.before}\n      -> {m.after}")
        counted = [m for m in results if m.outcome != "outside"]
        caught = sum(m.outcome in ("caught", "out of time") for m in counted)
        print(f"{caught} of {len(counted)} mutants caught")
        if self.out is not None:
            self.out.write_text(json.dumps([asdict(m) for m in results], indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("files", nargs="+")
    arguments = sys.argv[1:]
    cut = arguments.index("--")
    asked = parser.parse_args(arguments[:cut])
    assert importlib.util.find_spec("cosmic_ray"), "pip install cosmic-ray"
    os.environ |= {"PPAP_VECTORS": "/nonexistent", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    import pytest
    import torch

    torch.set_num_threads(1)
    loop = Loop([(ROOT / f).resolve() for f in asked.files], asked.every, asked.jobs, asked.out)
    options = ["-q", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib"]
    sys.exit(pytest.main([*options, *arguments[cut + 1 :]], plugins=[loop]))


if __name__ == "__main__":
    main()
