"""Errors name options on the command line, and arguments in Python; they change nothing else."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipelines import tiny
from typer.testing import CliRunner

import ppap_host as ppap
from ppap_host.cli import app
from ppap_host.files.errors import OptionError, PpapError, foreign, unknown_name
from ppap_host.files.words import ARGUMENTS, typed
from ppap_host.runs.config import RunConfig

ROOT = Path(__file__).parent.parent
FAST = {"num": 1, "steps": 2}


def shown(remedy: str, message: str = "Wrong.") -> str:
    return str(OptionError(message, remedy=remedy)).removeprefix("Wrong. ")


@pytest.mark.parametrize(
    ("text", "in_python"),
    [
        ("Leave out --cfg.", "Leave out `cfg`."),
        ("Add --prompt or --class", "Add `prompt` or `class_index`"),
        ("its own (--scale): give --cfg-interval; or, --eta)",
         "its own (`scale`): give `cfg_interval`; or, `eta`)"),
        ("Give another folder with --out.", "Give another folder with `out`."),
    ],
)  # fmt: skip
def test_options_are_arguments_in_python(text: str, in_python: str) -> None:
    assert shown(text) == in_python
    with typed():
        error = OptionError("--cfg 3 does nothing.", remedy=text)
    assert str(error) == f"--cfg 3 does nothing. {text}"


@pytest.mark.parametrize(
    "text",
    [
        "Make one with `ppap harvest --out FOLDER --cfg 3`.", "on the command line --cfg 3",
        "--cfg.png", "./--cfg", "a--cfg", "x/--cfg/y", "--cfg=3", "--cfg:3", "---cfg", "--",
        "--CFG", "<--cfg>", "**--cfg**", "[--cfg]", '"a --cfg b"', "'a --cfg b'",
        "b'a --cfg b'", r"'it\'s --cfg b'", """"it's --cfg b\"""", "'cut short --cfg ...",
        "--debug shows where", "pip install --upgrade torch", "--print-config",
    ],
)  # fmt: skip
def test_what_is_no_option_of_ours_stays(text: str) -> None:
    assert shown(text) == text


def test_outside_remedies_only_a_message_that_begins_with_an_option_names_any() -> None:
    assert shown("", "a --cfg b.png is damaged (--cfg 3).") == "a --cfg b.png is damaged (--cfg 3)."
    assert shown("", "--cfg 3 goes with --prompt.") == "`cfg` 3 goes with `prompt`."


ODD = st.text("ab '\"`\\-(.,;\n").map(lambda t: t.replace("ab", " --cfg "))


@given(ODD, ODD, ODD)
def test_text_from_outside_is_never_changed(one: str, two: str, three: str) -> None:
    text = f"Use {foreign(one)} with --cfg, not {two!r}, or {foreign(three)} with --steps."
    wanted = text.replace(" with --cfg, not", " with `cfg`, not", 1)
    head, _, tail = wanted.rpartition(" with --steps.")
    assert shown(text) == f"{head} with `steps`.{tail}"


def test_names_that_look_like_options_are_quoted_in_lists() -> None:
    error = unknown_name("label", "x", ["cat", "dog --cfg", "--steps"])
    assert str(error) == "Unknown label 'x'. Known: '--steps', cat, 'dog --cfg'."


def test_a_command_speaks_of_options_and_a_script_of_arguments(tmp_path: Path) -> None:
    told = CliRunner().invoke(app, ["run", "--cfg", "3", "--out", str(tmp_path / "out")])
    assert str(told.exception).startswith("--cfg 3.0 strengthens")
    with pytest.raises(OptionError, match=r"^`cfg` 3\.0 .* Add `prompt` or `class_index`"):
        ppap.sample(cfg=3)


def of_diffusers(door: Callable[..., object], **asked: object) -> Callable[[], object]:
    return lambda: door(tiny("sd"), ppap.guidance("classifier", "red cube", **asked))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: ppap.load_guide("clip"), "Give `model` the hub name"),
        (lambda: ppap.load_guide("classifier", 5), "'model' in ppap.load_guide is 5"),
        (lambda: ppap.load_guide("inpainting", "box=--cfg"), "`model` 'box=--cfg' makes no sense"),
        (lambda: ppap.load_guide("depth", device="cuda:99"), "Use `device` auto"),
        (lambda: ppap.load_backbone("edm"), "give it with `checkpoint`"),
        (lambda: ppap.load_backbone("shapes", 5), "'checkpoint' in ppap.load_backbone is 5"),
        (lambda: ppap.trajectory(cfg_interval="1:2"), "`cfg_interval` says where `cfg` holds"),
        (lambda: ppap.sample("shapes", ppap.guidance("depth"), **FAST), "Add `target`"),
        (lambda: ppap.sample("shapes", ppap.guidance("depth", "a --cfg b.png"), **FAST),
         "There is no file 'a --cfg b.png'"),
        (lambda: ppap.sample("shapes", prompt="a --cfg b", **FAST), "the prompt 'a --cfg b'"),
        (lambda: ppap.sample(mask="m.png"), "with `mask` one of the same picture"),
        (lambda: ppap.sample(out=__file__), "Give a folder with `out`"),
        (of_diffusers(ppap.steer, recipe="daps"), "ppap.sample(pipe, ..., sampler='ddim')"),
        (of_diffusers(ppap.guider), "Use `with ppap.steer(pipe, ...)`"),
        (of_diffusers(ppap.diffusers_callback, stage="both"), "Leave out its stage"),
        (lambda: ppap.sample(tiny("sd"), churn=1, **FAST), "Add `sampler` heun"),
    ],
)  # fmt: skip
def test_every_door_of_python_speaks_of_arguments(wrong: Callable[[], object], says: str) -> None:
    with pytest.raises(PpapError) as caught:
        wrong()
    text = str(caught.value)
    assert says in text
    ours = "|".join(name.replace("_", "-") for name in ARGUMENTS)
    quoted = r"'[^']*'|the command line --\S+"
    assert not re.search(rf"--({ours})\b", re.sub(quoted, "", text)), text


def test_a_rerun_speaks_of_arguments(tmp_path: Path) -> None:
    made = ppap.sample(**FAST, out=tmp_path)
    with pytest.raises(OptionError, match=r"^`cfg` 3\.0 strengthens"):
        ppap.rerun(made, cfg=3)
    with pytest.raises(PpapError, match="another folder with `out`"):
        ppap.rerun(made, out=tmp_path)


SHIELDED = re.compile(
    r"(foreign|int|len|type|reprlib\.repr)\(.*|_?[A-Z][A-Z_]+|(.*[.])?remedy|.*\.as_\(.*\)|.* - 1"
    r"|.*(count|size)|', '\.join\(map\(foreign, .*\)\)|(', '|' or ')\.join\([\w.]*[A-Z_]{2,}\)",
    re.DOTALL,
)  # fmt: skip
"""What is put into texts quoted or shielded, or is a number or a constant."""

OURS = {
    # Numbers.
    "config.cfg", "eta", "index", "known[-1]", "self.batch", "self.num", "self.num_heads",
    "self.shard", "shape[0]", "total",
    # What to give instead, in words of the caller.
    "again",
    # Names of arguments, settings, formats and published things, which the code or a library has.
    "' and '.join(self._view)", "' or '.join(close)", "' or '.join(kinds)", "', '.join(entries)",
    "', '.join(get_args(Pool))", "', '.join(known)", "', '.join(map(str, table))",
    "', '.join(names)", "', '.join(self._takes)", "', '.join(self.predictions)",
    "', '.join(settings)", "', '.join(tags)", "architecture", "elsewhere[0]", "field.name", "file",
    "file.url", "files", "found[0]", "guide.looks_at", "guide.name", "kinds[0]", "known", "makes",
    "name", "name.replace('_', '-')", "names[0]", "next(iter(wanted))", "offered or 'nothing'",
    "option", "own", "path", "self._name", "url", "weights.url", "who", "_host(file.url)",
    # Read before, and sound; or made of what is shielded.
    "config.cfg_interval", "config.churn_range", "how", "sha256[:12]", "self._names(30)",
    "self._names(8)", "constant", "by_hand(file, target.parent)",
    "' or '.join(dict.fromkeys(wanted))", "hint", "kind", "message", "more", "subject", "ways",
    "where", "source", "' '.join((w for w in self.words[1:] if w != ','))",
    # They call a file by its name in quotes.
    "decoded.name", "given.source", "self.decoded.name", "self.source",
}  # fmt: skip
"""What is put into them as it is."""


def as_it_is(text: ast.AST) -> Iterator[str]:
    """What a text of the code takes as it is."""
    if isinstance(text, ast.FormattedValue):
        put = ast.unparse(text.value)
        if text.conversion == ord("r") or text.format_spec or SHIELDED.fullmatch(put):
            return
        if not isinstance(text.value, ast.IfExp):
            yield put
    if not isinstance(text, ast.Call):
        for part in ast.iter_child_nodes(text):
            yield from as_it_is(part)


def read_for_options(call: ast.Call) -> Iterator[ast.AST]:
    """What of an error is searched for options: its remedy, and a message that may begin so."""
    yield from (k.value for k in call.keywords if k.arg == "remedy")
    match call.args:
        case [ast.JoinedStr([ast.Constant(str(begin)), *_]) as message] if begin.startswith("--"):
            yield message
        case [ast.JoinedStr([ast.FormattedValue() as first, ast.Constant(str(then)), *_])]:
            if then.startswith(" "):
                yield first


def test_texts_from_outside_are_shielded() -> None:
    """Of errors that Python shows; those of the commands' own modules are read as they are."""
    found = {}
    for path in (*ROOT.glob("ppap_host/**/*.py"), *ROOT.glob("plugins/*/src/**/*.py")):
        if {"cli", "scaffold", "testing", "ppap_plugin_bench"} & set(path.parts):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Error"):
                for text in read_for_options(node):
                    found |= dict.fromkeys(as_it_is(text), f"{path.name}:{node.lineno}")
    assert not found.keys() - OURS, "quote it (!r), or wrap it: foreign(...)"
    assert not OURS - found.keys(), "no longer there"


def test_every_setting_of_a_run_is_an_argument() -> None:
    assert set(RunConfig.__dataclass_fields__) <= set(ARGUMENTS)
