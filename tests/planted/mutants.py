"""Mutation testing: the operators of cosmic-ray, and a runner that is fast enough for torch.

``python tests/planted/mutants.py [--seed 0] [--number 120] [--outside 20] [--write] [WORD ...]``

A random sample of all mutants of the modules in ``TESTS`` (with words: of those whose names hold
one). Tests run once as things are, to see how long each takes and which functions it calls. Then
every mutant runs in a fork, where the code of the changed function takes the place of the
function's own, and of the tests of its module only those that call that function run, the quickest
first, until one fails. What stands outside of functions (defaults, tables, presets) is changed in a
copy of the tree, as planted faults are, and costs an import. Annotations, messages and
``__repr__`` are left alone.

Survivors are printed with the line that was changed. Those that change nothing are named in
``EQUIVALENT`` with the reason. ``--write`` makes ``docs/mutants.md``.
"""

from __future__ import annotations

import argparse
import ast
import json
import marshal
import os
import random
import resource
import sys
import tempfile
import time
import types
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from planted.__main__ import copied, import_what_takes_long, start
from planted.equivalent import EQUIVALENT

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "mutants.md"
_METHODS = (
    "equations/test_parts.py", "equations/test_choices.py",
    "equations/test_methods.py::test_a_preset_is_its_papers_method",
)  # fmt: skip
_RECIPES = tuple(
    f"test_presets.py::test_{name}"
    for name in (
        "every_parameter_leads_somewhere_and_starts_within_its_bounds",
        "a_setting_that_makes_no_sense_is_refused", "every_k_steps_a_guide_is_called",
        "a_recipe_says_how_often_it_asks_the_backbone",
        "moves_whose_parts_do_not_go_together_are_refused",
        "recurrence_evaluates_the_backbone_again_and_iterations_only_the_guide",
    )
)  # fmt: skip
TESTS = {
    "backbones/noise": ("equations/test_schedules.py", "equations/test_patches.py", *_METHODS),
    "recipes/*": (*_METHODS, *_RECIPES, "test_relative_strength.py"),
    "sampling/*": (
        *_METHODS, "test_relative_strength.py", "test_sampling.py", "test_streams.py",
        "test_balance.py",
    ),
    "experts/patches": ("equations/test_patches.py", "test_experts.py"),
    "experts/sets": ("equations/test_patches.py", "test_experts.py", "test_expert_choice.py"),
    "experts/calibration": ("test_calibration.py",),
    "experts/cost": ("test_cost.py",),
    "experts/*": ("equations/test_teaching.py",),
}  # fmt: skip
"""The modules of the host that are mutated, and the tests that concern them, where they are quick;
the first pattern that fits counts. They run without the reference vectors."""

OPERATORS = (
    "NumberReplacer", "AddNot", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr",
    "ReplaceOrWithAnd", "ReplaceBreakWithContinue", "ReplaceContinueWithBreak",
    "ZeroIterationForLoop",
    "ReplaceBinaryOperator_Add_Sub", "ReplaceBinaryOperator_Sub_Add",
    "ReplaceBinaryOperator_Mul_Div", "ReplaceBinaryOperator_Div_Mul",
    "ReplaceBinaryOperator_Pow_Mul", "ReplaceBinaryOperator_FloorDiv_Div",
    "ReplaceBinaryOperator_Mod_Div", "ReplaceBinaryOperator_BitOr_BitAnd",
    "ReplaceUnaryOperator_USub_UAdd", "ReplaceUnaryOperator_Delete_Not",
    "ReplaceUnaryOperator_Delete_Invert",
    "ReplaceComparisonOperator_Lt_LtE", "ReplaceComparisonOperator_LtE_Lt",
    "ReplaceComparisonOperator_Gt_GtE", "ReplaceComparisonOperator_GtE_Gt",
    "ReplaceComparisonOperator_Lt_Gt", "ReplaceComparisonOperator_Gt_Lt",
    "ReplaceComparisonOperator_Eq_NotEq", "ReplaceComparisonOperator_NotEq_Eq",
    "ReplaceComparisonOperator_Is_IsNot", "ReplaceComparisonOperator_IsNot_Is",
)  # fmt: skip
BUDGET = 20.0
"""Seconds of a processor for the tests of one mutant as things are: more of them are not run. A
mutant that takes three times as long as its tests did counts as caught."""


@dataclass
class Mutant:
    """One change.

    Attributes:
        functions: qualified names of those that it changes; none: it stands outside of functions.
        outcome: "caught", "survived", "equivalent" or "not called".
    """

    file: str
    operator: str
    line: int
    before: str
    after: str
    functions: tuple[str, ...]
    outcome: str = ""

    @property
    def harmless(self) -> str:
        """Why it changes nothing, "" if that is not known."""
        return EQUIVALENT.get((self.file.removeprefix("ppap_host/"), self.after), "")


def tests_of(file: Path) -> tuple[str, ...]:
    """The tests that concern a module, or their files, from the root."""
    name = str(file.relative_to(ROOT / "ppap_host").with_suffix(""))
    found = next(tests for pattern, tests in TESTS.items() if fnmatch(name, pattern))
    return tuple(f"tests/{test}" for test in found)


def mutated() -> list[Path]:
    """All modules that are."""
    found = {f for pattern in TESTS for f in (ROOT / "ppap_host").glob(f"{pattern}.py")}
    return sorted(f for f in found if f.name != "__init__.py")


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


Span = tuple[tuple[int, int], tuple[int, int]]


def _span(node: Any) -> Span:
    return (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)


def spans(source: str) -> tuple[list[Span], list[Span]]:
    """What is left alone, and what lies within functions."""
    alone, within = [], []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            alone += [_span(d) for d in node.decorator_list]
            within.append((_span(node.body[0])[0], _span(node)[1]))
        parts = [getattr(node, name, None) for name in ("annotation", "returns")]
        whole = isinstance(node, ast.Raise | ast.Import | ast.ImportFrom | ast.JoinedStr)
        if whole or getattr(node, "name", "") == "__repr__":
            parts.append(node)
        alone += [_span(part) for part in parts if isinstance(part, ast.AST)]
    return alone, within


def places(file: Path) -> Iterator[tuple[Path, str, int, bool]]:
    """Where a file can be mutated: operator, number of the occurrence, whether in a function."""
    from cosmic_ray import plugins
    from cosmic_ray.ast import ast_nodes, get_ast

    source = file.read_text(encoding="utf-8")
    alone, within = spans(source)
    nodes = list(ast_nodes(get_ast(source)))
    for name in OPERATORS:
        operator = plugins.get_operator(f"core/{name}")()
        found = (place for node in nodes for place in operator.mutation_positions(node))
        for occurrence, (begins, *_) in enumerate(found):
            if not any(low <= begins < high for low, high in alone):
                inside = any(low <= begins < high for low, high in within)
                yield file, name, occurrence, inside


def mutant(file: Path, name: str, occurrence: int) -> tuple[Mutant, str] | None:
    """A mutant and its text; None where it is no program, or the same one."""
    from cosmic_ray import plugins
    from cosmic_ray.mutating import mutate_code

    source = file.read_text(encoding="utf-8")
    text = mutate_code(source, plugins.get_operator(f"core/{name}")(), occurrence)
    try:
        theirs = functions_of(code := compile(text, str(file), "exec"))
    except SyntaxError:
        return None
    own = functions_of(plain := compile(source, str(file), "exec"))
    if same(plain, code):
        return None
    lines = zip(source.splitlines(), text.splitlines(), strict=False)
    line, before, after = next(
        (n, a.strip(), b.strip()) for n, (a, b) in enumerate(lines, 1) if a != b
    )
    changed = tuple(n for n in own if n in theirs and not same(own[n], theirs[n]))
    return Mutant(str(file.relative_to(ROOT)), name, line, before, after, changed), text


def sample(files: Sequence[Path], seed: int, number: int, outside: int) -> list[tuple[Mutant, str]]:
    """So many mutants within functions, and so many outside of them."""
    everywhere = [place for file in files for place in places(file)]
    random.Random(seed).shuffle(everywhere)
    print(f"A sample of {len(everywhere)} mutants.", flush=True)
    found, seen, wanted = [], set(), {True: number, False: outside}
    for file, name, occurrence, inside in everywhere:
        if not wanted[inside]:
            continue
        made = mutant(file, name, occurrence)
        if made is not None and made[1] not in seen and bool(made[0].functions) == inside:
            seen.add(made[1])
            wanted[inside] -= 1
            found.append(made)
    return found


class Noting(ast.NodeTransformer):
    """Has every function begin by noting that it was called; inner ones belong to it."""

    def __init__(self, file: Path) -> None:
        self._file, self._inside = str(file), list[str]()

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        self._inside.append(node.name)
        self.generic_visit(node)
        self._inside.pop()
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        called = (self._file, ".".join([*self._inside, node.name]))
        node.body[:0] = ast.parse(f"__called__.add({called!r})").body
        return node


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


def replace_code(file: Path, text: str | ast.Module, names: Sequence[str] | None = None) -> None:
    """Functions of a module that is in use do what this text says; all of them without names."""
    theirs = functions_of(compile(text, str(file), "exec"))
    for name, functions in live(sys.modules[module_of(file)]).items():
        for function in functions if name in theirs and (names is None or name in names) else ():
            if len(function.__code__.co_freevars) == len(theirs[name].co_freevars):
                function.__code__ = theirs[name]


def module_of(file: Path) -> str:
    """The name a file is imported by."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


class Loop:
    """A plugin of pytest: runs mutants within functions in place of the tests."""

    def __init__(self, chosen: Sequence[tuple[Mutant, str]]) -> None:
        self.chosen = chosen

    def pytest_runtestloop(self, session: Any) -> bool:
        from _pytest.runner import runtestprotocol

        def passes(item: Any) -> bool:
            return all(not r.failed for r in runtestprotocol(item, log=False, nextitem=None))

        called: set[tuple[str, str]] = set()
        files = {ROOT / mutant.file for mutant, _ in self.chosen}
        for file in files:
            __import__(module_of(file))
            vars(sys.modules[module_of(file)])["__called__"] = called
            text = Noting(file).visit(ast.parse(file.read_text(encoding="utf-8")))
            replace_code(file, ast.fix_missing_locations(text))
        callers: dict[tuple[str, str], list[tuple[float, int]]] = defaultdict(list)
        for k, item in enumerate(session.items):
            called.clear()
            began = time.process_time()
            if not passes(item):
                print(f"fails by itself: {item.nodeid}", flush=True)
                continue
            for name, function in called:
                if item.nodeid.startswith(tests_of(Path(name))):
                    callers[name, function].append((time.process_time() - began, k))
        print(f"{len(session.items)} tests in {time.process_time():.0f} s.", flush=True)
        for file in files:
            replace_code(file, file.read_text(encoding="utf-8"))
        for mutant, text in self.chosen:
            file, left, tests = ROOT / mutant.file, BUDGET, []
            for seconds, k in sorted({t for f in mutant.functions for t in callers[str(file), f]}):
                left -= seconds
                tests += [k] if left > 0 or not tests else []
            if not tests:
                mutant.outcome = "not called"
                tell(mutant)
                continue
            pid = os.fork()
            if not pid:
                code = 1
                try:
                    null = os.open(os.devnull, os.O_WRONLY)
                    os.dup2(null, 1)
                    os.dup2(null, 2)
                    most = int(3 * (BUDGET - max(left, 0)) + 10)
                    resource.setrlimit(resource.RLIMIT_CPU, (most, most))
                    replace_code(file, text, mutant.functions)
                    code = int(not all(passes(session.items[k]) for k in tests))
                finally:
                    os._exit(code)
            mutant.outcome = "caught" if os.waitpid(pid, 0)[1] else "survived"
            tell(mutant)
        return True


def outside(chosen: Sequence[tuple[Mutant, str]]) -> None:
    """Runs those outside of functions, each in a tree of its own."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        tree, log = copied(Path(name)), Path(name) / "log"
        for mutant, text in chosen:
            (tree / mutant.file).write_text(text, encoding="utf-8")
            pid, _ = start(None, tests_of(ROOT / mutant.file), tree, log)
            mutant.outcome = "caught" if os.waitpid(pid, 0)[1] else "survived"
            (tree / mutant.file).write_bytes((ROOT / mutant.file).read_bytes())
            tell(mutant)


def tell(mutant: Mutant) -> None:
    """Notes what is known to change nothing, and prints what was not caught."""
    if mutant.harmless and mutant.outcome == "survived":
        mutant.outcome = "equivalent"
    if mutant.outcome != "caught":
        where = f"{mutant.file}:{mutant.line}"
        print(f"{mutant.outcome}: {where}: {mutant.before}\n    -> {mutant.after}", flush=True)


def score(mutants: Sequence[Mutant]) -> str:
    """Cells of a table: how many, caught, equivalent, not caught, and the share of the others."""
    count = Counter(m.outcome for m in mutants)
    left = len(mutants) - count["caught"] - count["equivalent"]
    able = len(mutants) - count["equivalent"]
    share = f"{count['caught'] / able:.0%}" if able else ""
    return f"{len(mutants)} | {count['caught']} | {count['equivalent']} | {left} | {share}"


def page(mutants: Sequence[Mutant], command: str) -> str:
    """``docs/mutants.md``."""
    files = sorted({m.file for m in mutants})
    rows = [(f"`{f}`", [m for m in mutants if m.file == f]) for f in files]
    table = "\n".join(f"| {name} | {score(own)} |" for name, own in [*rows, ("all", mutants)])
    left = sorted((m for m in mutants if m.outcome != "caught"), key=lambda m: (m.file, m.line))
    code = "`` {} ``".format
    survivors = "\n".join(
        f"| `{m.file}` | {code(m.after.replace('|', chr(92) + '|'))} | {m.harmless or m.outcome} |"
        for m in left
    )
    return f"""\
# Mutants

[Planted faults](planted.md) are chosen by people. `nox -s mutants` takes a random sample of small changes instead, made by the operators of [cosmic-ray](https://cosmic-ray.readthedocs.io/), and asks for each whether the tests of its module notice, without the reference vectors. Which tests those are is said in `tests/planted/mutants.py`. This page is written by `{command}`.

A mutant is *equivalent* if nothing that the code promises depends on the change; these were read by a person, and the share leaves them out.

| module | mutants | caught | equivalent | not caught | share |
|---|---|---|---|---|---|
{table}

What was not caught, as the line reads with the change:

| module | line | why |
|---|---|---|
{survivors}
"""  # noqa: E501


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--number", type=int, default=120)
    parser.add_argument("--outside", type=int, default=20)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--out", type=Path, default=None, help="all mutants as JSON")
    parser.add_argument("words", nargs="*")
    asked = parser.parse_args()
    files = [
        f
        for f in mutated()
        if not asked.words or any(w in str(f.relative_to(ROOT)) for w in asked.words)
    ]
    chosen = sample(files, asked.seed, asked.number, asked.outside)
    import_what_takes_long()
    outside([one for one in chosen if not one[0].functions])
    os.environ |= {"PPAP_VECTORS": "/nonexistent", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    import pytest

    inner = [one for one in chosen if one[0].functions]
    options = ["-q", "-p", "no:cacheprovider", "-m", "not slow"]
    options += ["-o", "addopts=--strict-markers --import-mode=importlib", "--rootdir", str(ROOT)]
    tests = dict.fromkeys(test for m, _ in inner for test in tests_of(ROOT / m.file))
    if inner:
        pytest.main([*options, *(str(ROOT / test) for test in tests)], plugins=[Loop(inner)])
    mutants = [mutant for mutant, _ in chosen]
    print(f"mutants | caught | equivalent | not caught | share\n{score(mutants)}")
    if asked.out is not None:
        asked.out.write_text(json.dumps([asdict(m) for m in mutants], indent=1))
    if asked.write:
        PAGE.write_text(
            page(mutants, " ".join(["nox -s mutants --", *sys.argv[1:]])), encoding="utf-8"
        )


if __name__ == "__main__":
    main()
