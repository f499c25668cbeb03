"""The command line on a terminal of 80 columns, in a pipe, in a log file, and where none works."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from processes import Outcome, plain_environment, run_process
from rich.cells import cell_len
from terminals import Screen, on_terminal

from ppap_host import cli
from ppap_host.cli import output, progress, tables
from ppap_host.cli.help import GENERAL, paragraphs
from ppap_host.cli.output import clean, in_one_line

Call = Callable[..., Outcome]
ESCAPE = "\x1b"


def ppap_on_terminal(folder: Path, *arguments: object, **settings: Any) -> Screen:
    return on_terminal(
        [sys.executable, "-m", "ppap_host", *map(str, arguments)], folder, **settings
    )


def commands(command: Any = None, path: str = "ppap") -> Iterator[tuple[str, Any]]:
    """All commands by what is typed, those of installed plugins included."""
    command = command or typer.main.get_command(cli.app)
    loaded = command.loaded() if isinstance(command, cli.PluginCommand) else command
    members = getattr(loaded, "commands", {})
    if not members:
        yield path, loaded
    for name, member in members.items():
        if not member.hidden:
            yield from commands(member, f"{path} {name}")


COMMANDS = dict(commands())
OWN = {name: c for name, c in COMMANDS.items() if "bench" not in str(c.callback.__module__)}


# Help


def test_one_letter_means_one_thing_in_all_commands() -> None:
    meanings: dict[str, set[str]] = {}
    for command in COMMANDS.values():
        for param in command.params:
            letters = [name for name in param.opts if re.fullmatch(r"-\w", name)]
            for letter in letters:
                meanings.setdefault(letter, set()).add(max(param.opts, key=len))
    assert {letter: names for letter, names in meanings.items() if len(names) > 1} == {}
    assert {"-n", "-o", "-q", "-v"} <= set(meanings)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_panel_and_words_for_its_value(name: str) -> None:
    for param in COMMANDS[name].params:
        if param.param_type_name == "option":
            assert param.rich_help_panel, param.name
            assert param.is_flag or param.metavar, param.name
        else:
            assert param.metavar, param.name


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_the_general_options(name: str) -> None:
    taken = {option for param in COMMANDS[name].params for option in param.opts}
    assert {"-q", "--quiet", "-v", "--verbose", "--debug"} <= taken


@pytest.fixture(scope="module")
def helped(tmp_path_factory: pytest.TempPathFactory) -> Screen:
    return ppap_on_terminal(tmp_path_factory.mktemp("help"), "run", "--help")


def panels(lines: list[str]) -> dict[str, list[str]]:
    """Title -> lines of each panel; checks that all are whole."""
    found: dict[str, list[str]] = {}
    for line in lines:
        if opened := re.fullmatch(r"╭─ (.+?) ─+╮", line):
            title = opened[1]
            found[title] = []
        elif line.startswith("│"):
            assert line.endswith(" │")
            found[title].append(line[2:-2])
        else:
            assert not line or line.startswith(("Usage: ", "  ", "╰"))
            continue
        assert len(line) == 80
    return found


def test_help_stands_in_panels_and_what_is_common_comes_first(helped: Screen) -> None:
    assert helped.code == 0
    found = panels(helped.lines)
    assert next(iter(found)) == "Common options" and list(found)[-1] == GENERAL
    first = " ".join(found["Common options"])
    for option in ("--guide", "--target", "--scale", "--prompt", "--num", "--steps", "--out"):
        assert option in first


def test_nothing_of_help_is_cut(helped: Screen) -> None:
    shown = " ".join(
        " ".join(line[28:].split()) for part in panels(helped.lines).values() for line in part
    )
    for param in COMMANDS["ppap run"].params:
        for word in (param.help or "").split():
            assert word in shown, word
    for word in [
        "This",
        "belongs",
        "to",
        "each",
        "--guide:",
        "ppap",
        "run",
        "--guide",
        "depth",
        "--scale",
        "1.5",
    ][-6:]:
        assert word in helped.text


def test_summaries_of_commands_are_whole(tmp_path: Path) -> None:
    screen = ppap_on_terminal(tmp_path, "--help")
    shown = " ".join(" ".join(line.strip("│ ").split()) for line in screen.lines)
    root: Any = typer.main.get_command(cli.app)
    for name, command in root.commands.items():
        if not command.hidden:
            (_, summary), *_ = paragraphs(command.help)
            words = re.escape(f"{name} {summary}").replace(r"\ ", r"\s+")
            assert re.search(words, shown), summary


def test_commands_in_help_can_be_copied(tmp_path: Path) -> None:
    screen = ppap_on_terminal(tmp_path, "tune", "--help")
    assert "torchrun --nproc_per_node 2 -m ppap_host tune depth --harvest harvest \\" in screen.text
    assert all(len(line) <= 80 for line in screen.lines)


@pytest.mark.parametrize("name", OWN)
def test_help_in_a_pipe_is_plain(name: str, ppap_here: Call) -> None:
    text = ppap_here(*name.split()[1:], "--help").out
    assert text.startswith(f"Usage: {name} [OPTIONS]")
    assert not set(text) & {ESCAPE, "│", "╭"}
    assert "General:\n" in text and not re.search(r"<(?!next\b)", text)


def test_a_terminal_without_a_width_gets_help(
    ppap_here: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "3")
    assert "recipes" in ppap_here("list", "--help").out


def test_nobody_is_asked_where_there_is_no_input(tmp_path: Path) -> None:
    outcome = shell("PPAP plugin new edges <&-", tmp_path)
    assert outcome.code == 0 and outcome.out.startswith("Wrote ppap-plugin-edges")


def test_a_narrow_terminal_gets_narrow_help(tmp_path: Path) -> None:
    screen = ppap_on_terminal(tmp_path, "list", "--help", columns=50)
    assert all(len(line) <= 50 for line in screen.lines)
    assert {len(line) for line in screen.lines if line.startswith("│")} == {50}


# Tables


@pytest.mark.parametrize(
    "arguments",
    [("list",), ("list", "guides"), ("weights",), ("experts", "show", "classifier-shapes-10")],
)
def test_tables_are_whole_at_80_columns(
    arguments: tuple[str, ...], ppap: Call, tmp_path: Path
) -> None:
    screen, piped = ppap_on_terminal(tmp_path, *arguments), ppap(*arguments)
    assert (screen.code, piped.code) == (0, 0)
    assert "…" not in screen.text
    for line in screen.lines:
        if line.startswith(("┃", "│")):
            assert cell_len(line) <= 80 and line.endswith(("┃", "│"))
    # Whatever stands in the pipe stands on the screen, perhaps broken between words.
    shown = set(re.sub(r"[│┃]", " ", screen.text).split())
    squeezed = re.sub(r"[\s│┃]", "", screen.text)
    assert {
        w for w in piped.out.split() if w not in shown and (len(w) < 30 or w not in squeezed)
    } == set()
    assert not set(piped.out) & {ESCAPE, "│", "┃", "━"}


words = st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=12)
sentences = st.lists(words, max_size=6).map(" ".join)
names = st.text(st.sampled_from("abc-漢0"), min_size=1, max_size=100)


@settings(deadline=None)
@given(st.data())
def test_no_table_loses_a_character(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 9))
    columns = [
        tables.Column(
            data.draw(words), number=data.draw(st.booleans()), prose=data.draw(st.booleans())
        )
        for _ in range(count)
    ]
    cells = [sentences if column.prose else names for column in columns]
    rows = [[data.draw(cell) for cell in cells] for _ in range(data.draw(st.integers(1, 4)))]
    with pytest.MonkeyPatch.context() as patch:
        shown = _drawn(patch, columns, rows)
    for line in shown.splitlines():
        assert cell_len(line) <= 80
    by_column = _by_column(shown, count, columns)
    for i in range(count):
        wanted = "".join("".join(row[i].split()) for row in rows)
        assert by_column[i] == wanted


def test_two_columns_that_do_not_fit_beside_each_other_lose_nothing() -> None:
    columns, row = [tables.Column("one"), tables.Column("two")], ["a" * 30, "b" * 29 + "漢" * 8]
    with pytest.MonkeyPatch.context() as patch:
        assert _by_column(_drawn(patch, columns, [row]), 2, columns) == row


def _drawn(patch: pytest.MonkeyPatch, columns: list[tables.Column], rows: list[list[str]]) -> str:
    import io

    from rich.console import Console

    stream = io.StringIO()
    patch.setattr(tables, "is_terminal", lambda stream: True)
    patch.setattr(
        tables,
        "console",
        lambda: Console(file=stream, width=80, markup=False, emoji=False, highlight=False),
    )
    tables.show_table(columns, rows)
    return stream.getvalue()


def _by_column(shown: str, count: int, columns: list[tables.Column]) -> list[str]:
    """The content of each column, blanks left out; the first column is shown in every part."""
    found: list[str] = [""] * count
    seen = 0
    for part in re.split(r"(?m)^┏.*$", shown)[1:]:
        body = [line for line in part.split("┡")[1].splitlines() if line.startswith("│")]
        parts = [line[1:-1].split("│") for line in body]
        width = len(parts[0])
        for line in parts:
            for place, cell in enumerate(line):
                which = 0 if place == 0 else seen + place
                if place or not seen:
                    found[which] += "".join(cell.split())
        seen += width - 1
    return found


RESULT = """
import sys
from pathlib import Path
from ppap_host.cli.run import finish
from ppap_host.runs.run import Result
guides = ["a-guide-with-a-name-that-is-really-long", "depth", "segmentation [/bold]\\x1b[31m"]
measures = {g: {"abs-rel": 0.1, "delta<1.25": 0.98765, "pixel-accuracy": 0.5} for g in guides}
images = [{"file": f"{k:05d}.png", "measures": measures} for k in range(int(sys.argv[1]))]
seconds = {"load": 2.04, "hash": 0.01, "sample": 75.2, "measure": 0.5, "write": 0.3}
record = {"images": images, "seconds": seconds, "failed": {}, "target_measures": {}}
finish(Result(record, Path("out/000")), "--json" in sys.argv)
"""


def test_the_result_of_three_guides_is_whole_at_80_columns(tmp_path: Path) -> None:
    screen = on_terminal([sys.executable, "-c", RESULT, "2"], tmp_path)
    assert screen.code == 0
    assert "a-guide-with-a-name-that-is-really-long" in screen.text
    assert r"segmentation [/bold]\x1b[31m" in screen.text
    assert screen.text.count("0.9877") == 3 * 3  # twice, and the mean, of each guide
    assert "out/000 (continued)" in screen.text and "…" not in screen.text
    assert "Took 1 min 18 s: loading 2.0 s, sampling 1 min 15 s" in screen.text
    sheet = tmp_path / "out/000/sheet.png"
    assert "".join(screen.lines[-2:]).endswith(f"Sheet: {sheet}")
    assert screen.links == {str(sheet): sheet.as_uri()}


def test_the_result_in_a_pipe_is_text_that_names_files_whole(tmp_path: Path) -> None:
    outcome = run_process([sys.executable, "-c", RESULT, "100"], tmp_path)
    assert (outcome.code, outcome.err) == (0, "")
    assert ESCAPE not in outcome.out and not outcome.out.lstrip().startswith(("{", "["))
    lines = outcome.out.splitlines()
    assert lines[-1] == f"Sheet: {tmp_path / 'out/000/sheet.png'}"
    assert "and 76 more images, all of them in run.json" in lines
    assert lines[-4].split()[0] == "mean" and len(lines) < 40


def test_json_comes_alone_and_only_if_asked(tmp_path: Path) -> None:
    outcome = run_process([sys.executable, "-c", RESULT, "1", "--json"], tmp_path)
    record = json.loads(outcome.out)
    assert len(record["images"]) == 1
    assert ESCAPE not in outcome.out


# Progress

SLOW = """
import sys, time
from ppap_host.cli import progress
progress.FIRST, progress.EVERY = 0.2, 0.3
with progress.progress_bar() as watch:
    watch("loading \\x1b[31m[/x]\\nmodels", 0, 1)
    time.sleep(1.2)
    for done in range(5):
        watch("sampling", done * 20, 100)
        time.sleep(0.3)
"""


def test_a_log_shows_a_sign_of_life_at_least_every_30_seconds() -> None:
    assert progress.FIRST <= 5
    assert progress.EVERY <= 25  # the rest is for a machine that is busy


def test_a_log_has_a_line_at_intervals_also_while_nothing_is_told(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("w") as file:
        subprocess.run(
            [sys.executable, "-c", SLOW],
            stdout=file,
            stderr=file,
            env=plain_environment(),
            check=True,
        )
    lines = log.read_text().splitlines()
    assert ESCAPE not in log.read_text()
    loading = [line for line in lines if line.startswith(r"loading \x1b[31m[/x]\nmodels: 0:0")]
    assert len(loading) >= 3 and loading[0].endswith("0:00 elapsed")
    sampling = [line for line in lines if line.startswith("sampling: ")]
    assert len(sampling) >= 3
    assert re.fullmatch(r"sampling: \d+%, 0:0\d elapsed, about 0:0\d left", sampling[-1])
    assert loading + sampling == lines


def test_a_terminal_has_a_bar_that_says_what_its_times_are(tmp_path: Path) -> None:
    screen = on_terminal([sys.executable, "-c", SLOW], tmp_path)
    (line,) = screen.lines
    assert re.fullmatch(
        r"sampling ━* *80% 0:0\d elapsed.*", line.replace("╸", "━").replace("╺", "━")
    )
    assert r"loading \x1b[31m[/x]\nmodels" in re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", screen.written)
    assert "\x1b[31m[/x]" not in screen.written


def test_short_commands_say_nothing_on_the_way(ppap: Call, tmp_path: Path) -> None:
    outcome = run_process(
        [
            sys.executable,
            "-c",
            "from ppap_host.cli.progress import progress_bar\n"
            "with progress_bar() as watch: watch('a', 0, 1)",
        ],
        tmp_path,
    )
    assert outcome == Outcome(0, "", "")


@pytest.mark.parametrize("option", ["-q", "--quiet"])
def test_quiet_shows_neither_progress_nor_remarks(
    option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "FIRST", 0.01)
    monkeypatch.setattr(output.VOICE, "quiet", True)
    with progress.progress_bar() as watch:
        watch("sampling", 1, 2)
        time.sleep(0.1)
    output.remark("by the way")
    output.warn("be careful")
    assert capsys.readouterr() == ("", "Warning: be careful\n")


@pytest.mark.parametrize("place", ["before", "behind"])
def test_general_options_stand_before_or_behind_the_command(place: str, ppap_here: Call) -> None:
    for option, kept in (("-q", "quiet"), ("--verbose", "verbose"), ("--debug", "debug")):
        words = [option, "list", "experts"] if place == "before" else ["list", "experts", option]
        assert ppap_here(*words).code == 0
        assert getattr(output.VOICE, kept)
        assert ppap_here("list", "experts").code == 0
        assert not getattr(output.VOICE, kept)


def test_a_value_that_looks_like_a_general_option_stays_a_value(ppap_here: Call) -> None:
    told = ppap_here("run", "--prompt", "--debug", "--print-config").out
    assert 'prompt = "--debug"' in told


# --open


def test_open_shows_the_sheet(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    opener = programs / "xdg-open"
    opener.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/opened\n')
    opener.chmod(0o755)
    env = plain_environment() | {"PATH": f"{programs}:{os.environ['PATH']}", "DISPLAY": ":0"}
    script = RESULT.replace('"--json" in sys.argv', "False, True")
    assert run_process([sys.executable, "-c", script, "1"], tmp_path, env).code == 0
    for _ in range(100):
        if (tmp_path / "opened").exists() and (tmp_path / "opened").read_text():
            break
        time.sleep(0.1)
    assert (tmp_path / "opened").read_text() == f"{tmp_path}/out/000/sheet.png\n"


def test_where_nothing_can_open_the_sheet_that_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(typer, "launch", lambda path: 1)
    output.open_file(Path("/tmp/x\x1b.png"))
    assert capsys.readouterr().err == "Warning: Nothing here can open '/tmp/x\\x1b.png'.\n"


# Text that is not ours

NASTY = "a\x1b[31mred\x1b]0;title\x07\n[/x][bold]:smile:\r\x9b2J\u202e\udce9\x00"


def test_nothing_that_steers_a_terminal_gets_through() -> None:
    assert clean(NASTY) == (
        r"a\x1b[31mred\x1b]0;title\x07\n[/x][bold]:smile:\r\x9b2J\u202e\xe9\x00"
    )
    assert clean("漢字 café 👩‍🎨 نص ½") == "漢字 café 👩‍🎨 نص ½"
    assert in_one_line("a\n  b\r\nc \x1b") == r"a b c \x1b"


@given(st.text())
def test_clean_text_is_printable_on_one_line(text: str) -> None:
    shown = clean(text)
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\ud800-\udfff]", shown)
    shown.encode()
    assert clean(shown) == shown


@given(st.text())
def test_json_for_a_terminal_is_the_same_json(text: str) -> None:
    shown = output.as_json({text: [text]})
    assert json.loads(shown) == {text: [text]}
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]", shown)


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "--guide", NASTY[:-1], "--target", "x"),
        ("run", "--guide", "depth", "--target", NASTY[:-1] + ".png"),
        ("run", "--config", NASTY[:-1]),
        ("run", "--nmu" + NASTY[:-1]),
        ("run", NASTY[:-1]),
        ("run", "--num", NASTY[:-1]),
        ("run", "--scale", NASTY[:-1]),
        ("list", NASTY[:-1]),
        ("rerun", NASTY[:-1]),
        ("weights", NASTY[:-1]),
        ("experts", "show", NASTY[:-1]),
        ("tune", NASTY[:-1]),
        ("plugin", "check", NASTY[:-1]),
        ("shapes", "render", "--out", "o", "--num", NASTY[:-1]),
        (NASTY[:-1],),
    ],
    ids=lambda arguments: " ".join(arguments)[:20].split("a\x1b")[0],
)
def test_names_with_escape_bytes_are_shown_and_not_obeyed(
    arguments: tuple[str, ...], ppap_here: Call
) -> None:
    for debug in ((), ("--debug",)):
        outcome = ppap_here(*debug, *arguments)
        assert (outcome.code, outcome.out) == (2, "")
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]", outcome.err)
        assert outcome.err.count("\n") == 1 or debug


def test_a_record_with_escape_bytes_is_shown_and_not_obeyed(
    tmp_path: Path, ppap_here: Call
) -> None:
    record = {
        "format": 1,
        "config": {},
        "images": [{"index": 0, "pixels_sha256": "0"}],
        "targets": [{"guide": 0, "given": NASTY, "copy": "x", "sha256": NASTY}],
        "versions": {},
        "model_files": {},
    }
    (tmp_path / "run.json").write_text(json.dumps(record))
    outcome = ppap_here("rerun", "run.json")
    assert outcome.code in (1, 2)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]", outcome.err)


def test_the_words_of_a_plugin_are_not_obeyed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ppap_here: Call
) -> None:
    from ppap_host.plugins.hookspecs import Entry
    from ppap_host.plugins.registry import Plugin, Registry

    world = Registry([])
    plugin = Plugin("nasty", NASTY, NASTY, "x", problem=NASTY)
    world.plugins.append(plugin)
    world._claims["guide"]["nasty"] = [(plugin, Entry("nasty", "x:y", NASTY))]
    monkeypatch.setattr("ppap_host.plugins.registry.registry", lambda: world)
    for arguments in (("list",), ("list", "--json"), ("list", "guides")):
        outcome = ppap_here(*arguments)
        assert (outcome.code, outcome.err) == (0, "")
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]", outcome.out)
        assert "[/x][bold]:smile:" in outcome.out
    told = cli.complete.of("guide")("na")
    assert told == [("nasty", clean(NASTY).replace("[", "(").replace("]", ")"))]


def test_a_warning_with_escape_bytes_is_one_clean_line(
    ppap_here: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    import warnings

    def warns(found: object) -> dict[str, list[Any]]:
        warnings.warn(f"of a library {NASTY}", UserWarning, stacklevel=1)
        return {kind: [] for kind in cli.list_command.KINDS.values()}

    monkeypatch.setattr("ppap_host.cli.list._things", warns)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        outcome = ppap_here("list")
    (line,) = outcome.err.splitlines()
    assert line.startswith(r"Warning: of a library a\x1b[31mred")
    assert re.search(r"\(.*test_terminal.py, line \d+\)$", line)


# Streams

WRITES_MUCH = """
import sys
from ppap_host import cli
real = cli.list_command._things
def many(found):
    things = real(found)
    things["guide"] = things["guide"][:1] * 20000
    return things
cli.list_command._things = many
sys.argv = ["ppap", *sys.argv[1:]]
cli.main()
"""


def shell(script: str, folder: Path, env: dict[str, str] | None = None) -> Outcome:
    """Runs a line of bash in which PPAP is the command."""
    return run_process(
        ["bash", "-c", script.replace("PPAP", f"{sys.executable} -m ppap_host")],
        folder,
        plain_environment() | (env or {}),
    )


def test_a_reader_that_goes_away_ends_the_command_in_silence(tmp_path: Path) -> None:
    (tmp_path / "much.py").write_text(WRITES_MUCH)
    for json_or_text in ("", "--json"):
        script = (
            f"{sys.executable} much.py list {json_or_text} | head -n 1; echo ${{PIPESTATUS[0]}}"
        )
        outcome = shell(script, tmp_path)
        assert outcome.out.splitlines()[-1] == "141"
        assert outcome.err == ""


@pytest.mark.parametrize(
    "words",
    [
        "list",
        "list --json",
        "--help",
        "--version",
        "run --print-config",
        "experts show classifier-shapes-1",
        "--show-completion",
    ],
)
@pytest.mark.parametrize("where", ["closed", "full"])
def test_results_that_cannot_be_written_are_an_error(
    words: str, where: str, tmp_path: Path
) -> None:
    if where == "full" and not os.path.exists("/dev/full"):
        pytest.skip("this system has no full device")
    to = ">&-" if where == "closed" else "> /dev/full"
    outcome = shell(f"SHELL=/bin/bash PPAP {words} {to}", tmp_path)
    assert outcome.code == 2, outcome
    (line,) = outcome.err.splitlines()
    assert line.startswith("Error: Cannot write to standard output: ")
    assert ("No space left" if where == "full" else "Bad file descriptor") in line


@pytest.mark.parametrize("to", ["2>&-", "2> /dev/full"])
def test_a_standard_error_that_takes_nothing_stops_nothing(to: str, tmp_path: Path) -> None:
    outcome = shell(f"PPAP run -g depth -t none.png {to}; echo $?", tmp_path)
    assert (outcome.out, outcome.err) == ("2\n", "")
    outcome = shell(f"PPAP -v list experts {to}", tmp_path)
    assert outcome.code == 0 and "classifier-shapes-1" in outcome.out


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "from ppap_host.cli.surroundings import streams\n"
        "with streams(results_alone=True):\n"
        "    number = os.open('precious', os.O_CREAT | os.O_WRONLY)\n"
        "    os.write(1, b'noise of a library'); os.write(2, b'and another')\n"
        "sys.exit(number)\n"
    )
    (tmp_path / "code.py").write_text(code)
    outcome = shell(f"{sys.executable} code.py >&- 2>&- <&-", tmp_path)
    assert outcome.code > 2
    assert (tmp_path / "precious").read_bytes() == b""


ASCII = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}


@pytest.mark.parametrize(
    "env",
    [
        ASCII,
        {"PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"},
        {"PYTHONUTF8": "0", "PYTHONIOENCODING": "latin-1"},
    ],
)
def test_where_not_all_characters_can_be_written_similar_ones_are(
    env: dict[str, str], tmp_path: Path
) -> None:
    code = (
        "import sys\nfrom ppap_host.cli import output, surroundings, tables\n"
        "with surroundings.streams(results_alone=True):\n"
        "    tables.show_table([tables.Column('a')], [['0.1 ± 0.2 – ✓ 漢 \\udce9']], 'mañana…')\n"
        "    output.warn('“so”')\n"
    )
    (tmp_path / "code.py").write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "code.py"],
        capture_output=True,
        check=True,
        cwd=tmp_path,
        env=plain_environment() | env,
    )
    out, err = done.stdout.decode("latin-1"), done.stderr.decode("latin-1")
    assert "0.1 +- 0.2 - + \\u6f22 \\xe9" in out or "0.1 ± 0.2 - + \\u6f22 \\xe9" in out
    assert out.splitlines()[0] in ("ma\\xf1ana...", "mañana...")
    assert err == 'Warning: "so"\n'
    screen = ppap_on_terminal(tmp_path, "list", "guides", env=env)
    assert screen.code == 0 and "depth" in screen.text


def test_a_file_name_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    name = b"caf\xe9.png"
    outcome = subprocess.run(
        [sys.executable.encode(), b"-m", b"ppap_host", b"run", b"-g", b"depth", b"-t", name],
        capture_output=True,
        cwd=tmp_path,
        env=plain_environment(),
        check=False,
    )
    assert outcome.returncode == 2
    assert outcome.stderr.startswith(b"Error: There is no file 'caf")
    assert b"Traceback" not in outcome.stderr
    (tmp_path / os.fsdecode(name)).write_bytes(b"x")
    outcome = subprocess.run(
        [
            sys.executable.encode(),
            b"-m",
            b"ppap_host",
            b"run",
            b"-g",
            b"depth",
            b"-t",
            name,
            b"--print-config",
        ],
        capture_output=True,
        cwd=tmp_path,
        env=plain_environment(),
        check=False,
    )
    assert outcome.returncode == 2 and b"TOML cannot hold it" in outcome.stderr


def test_a_path_for_another_program_is_written_byte_for_byte(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from ppap_host.cli.output import print_path\n"
    code += "print_path(Path(sys.argv[1]))"
    path = b"/tmp/caf\xe9\x1b\n.pt"
    done = subprocess.run(
        [sys.executable.encode(), b"-c", code.encode(), path],
        capture_output=True,
        check=True,
        env=plain_environment(),
    )
    assert done.stdout == path + b"\n"
    screen = on_terminal([sys.executable, "-c", code, "/tmp/\x1b[31m.pt"], tmp_path)
    assert screen.text == r"/tmp/\x1b[31m.pt"


# Folders


def test_a_working_folder_that_is_gone(tmp_path: Path) -> None:
    for words, code in (
        ("run -g depth -t /x.png", 2),
        ("doctor", 2),
        ("list experts", 0),
        ("--help", 0),
        ("run --help", 0),
        ("rerun x", 2),
        ("shapes render -o /tmp/x", 2),
    ):
        (tmp_path / "gone").mkdir(exist_ok=True)
        outcome = shell(f"cd gone && rmdir ../gone && PPAP {words}", tmp_path)
        assert outcome.code == code, outcome
        assert "Traceback" not in outcome.err
        if code:
            assert outcome.err.startswith(
                "Error: The folder that this was started in has been removed."
            )
            assert outcome.err.count("\n") == 1


def test_no_folder_for_temporary_files(
    ppap_here: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nonexistent/folder"])
    from ppap_host.cli.rerun import _scratch
    from ppap_host.files.errors import OutputError

    with pytest.raises(OutputError, match="no folder for temporary files") as caught, _scratch():
        pass
    assert "TMPDIR" in caught.value.remedy and "--out" in caught.value.remedy


# Signals

WAITS = """
import sys, time
from ppap_host import cli

def wait(found):
    try:
        print("ready", file=sys.stderr, flush=True)
        time.sleep(60)
    finally:
        time.sleep(0.5)
        open("record", "w").write("kept")

cli.list_command._things = wait
sys.argv = ["ppap", "list"]
cli.main()
"""


def signalled(folder: Path, *numbers: int, prefix: tuple[str, ...] = ()) -> Outcome:
    child = subprocess.Popen(
        [*prefix, sys.executable, "-c", WAITS],
        cwd=folder,
        env=plain_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    assert child.stderr is not None
    while "ready" not in child.stderr.readline():
        pass
    for number in numbers:
        child.send_signal(number)
        time.sleep(0.1)
    try:
        out, err = child.communicate(timeout=20)
    except subprocess.TimeoutExpired:
        child.kill()
        out, err = child.communicate()
        return Outcome(999, out, err)
    return Outcome(child.returncode, out, err)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_a_command_in_order(number: int, tmp_path: Path) -> None:
    assert signalled(tmp_path, number) == Outcome(130, "", "Interrupted.\n")
    assert (tmp_path / "record").read_text() == "kept"


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_does_not_spoil_what_the_first_one_kept(
    second: int, tmp_path: Path
) -> None:
    outcome = signalled(tmp_path, signal.SIGINT, second)
    assert outcome.code == 130 and "Traceback" not in outcome.err
    assert "once more stops at once" in outcome.err and "Interrupted." in outcome.err
    assert (tmp_path / "record").read_text() == "kept"


def test_a_third_signal_stops_at_once(tmp_path: Path) -> None:
    outcome = signalled(tmp_path, *[signal.SIGINT] * 3)
    assert outcome.code == 130 and "Traceback" not in outcome.err
    assert not (tmp_path / "record").exists()


def test_what_the_caller_ignores_stays_ignored(tmp_path: Path) -> None:
    outcome = signalled(tmp_path, signal.SIGHUP, signal.SIGTERM, prefix=("nohup",))
    assert outcome.code == 130
    assert "once more" not in outcome.err


def test_handlers_of_the_caller_come_back(ppap_here: Call) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    streams = sys.stdout, sys.stderr
    ppap_here("list", "experts")
    assert before == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert streams == (sys.stdout, sys.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_a_cluster_stops_keeps_its_record(number: int, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "ppap_host",
        "run",
        "--num",
        "400",
        "--batch",
        "1",
        "--steps",
        "4",
    ]
    child = subprocess.Popen(
        [*command, "--out", "out"],
        cwd=tmp_path,
        env=plain_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    deadline = time.monotonic() + 250
    while not list(tmp_path.glob("out/0*.png")) and time.monotonic() < deadline:
        assert child.poll() is None
        time.sleep(0.1)
    child.send_signal(number)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, out) == (130, "")
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert record["status"] == "interrupted"
    kept = len(list(tmp_path.glob("out/0*.png")))
    assert len(record["images"]) == kept > 0
    assert err.splitlines()[-1].startswith(f"Interrupted: {kept} finished image")


# Memory


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"
        ),
        RuntimeError("std::bad_alloc"),
        OSError(12, "Cannot allocate memory"),
        ImportError("libx.so: failed to map segment from shared object"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_out_of_memory_is_one_line(
    error: Exception, ppap_here: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plain(found: object) -> None:
        raise error

    def wrapped(found: object) -> None:
        from ppap_host.files.errors import PluginError

        raise PluginError("The plugin fails.", remedy="Tell its authors.") from error

    for how in (plain, wrapped):
        monkeypatch.setattr("ppap_host.cli.list._things", how)
        outcome = ppap_here("list")
        assert (outcome.code, outcome.out) == (2, "")
        (line,) = outcome.err.splitlines()
        assert line.startswith("Error: There is not enough memory")
        assert "--batch" in line


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
def test_a_run_that_needs_more_memory_than_there_is(tmp_path: Path) -> None:
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "import diffusers, torch\n"
        "from diffusers import UNet2DConditionModel\n"
        "import ppap_host.runs.run\n"
        "from ppap_host.cli import main\n"
        "used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "limit = used + (1 << 30)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "sys.argv = 'ppap run --num 4000 --batch 4000 --steps 2 --out o'.split()\n"
        "main()\n"
    )
    outcome = run_process([sys.executable, "-c", code], tmp_path)
    assert (outcome.code, outcome.out) == (2, "")
    assert "Traceback" not in outcome.err
    assert outcome.err.splitlines()[-1].startswith(
        "Error: There is not enough memory: RuntimeError"
    )
    assert not (tmp_path / "o").exists()  # and nothing stands in the way of the next try


# Before anything heavy


TOLD = {
    "run -g depth -t none.png": "There is no file 'none.png'.",
    "run -g depth -t depth:none.png": "There is no file 'none.png'.",
    "run -g depth -t folder.png": "'folder.png' is a folder.",
    "run -g depth -t empty.png": "'empty.png' is empty.",
    "run -g depth -t pipe.png": "'pipe.png' is a pipe",
    "run -g depth -t text.png": "'text.png' is not an image",
    "run -g depth -t photo:text.png": "'text.png' is not an image",
    "run -g depth -t ./none": "There is no file 'none'.",
    "run -g nobody.py:fn": "There is no file 'nobody.py'.",
    "run -g my_loss.py": "'my_loss.py' names no code. Give FILE.py:NAME",
    "run --image none.png --mask full.png": "There is no file 'none.png'.",
    "run -b shapes --checkpoint none.pt": "There is no file 'none.pt'.",
    "run -g depth -t full.png -m ./none": "There is no file './none'.",
    "run -g depth -t full.png -e none.safetensors": "There is no file 'none.safetensors'.",
    "run -g depth -t full.png -e nowhere-5": "Unknown expert set 'nowhere-5'.",
    "run -g depth -t full.png -e e.safetensors": "for the guide 'classifier', not 'depth'",
    "run -g depth -t full.png --calibration nowhere": "There is no file 'nowhere'.",
    "run -g depth -t full.png --out full.png": "'full.png' is a file.",
    "run -g depth -t full.png --out held": "'held' already holds a run.",
    "run -g depth -t full.png --device gpu": "Unknown device 'gpu'.",
    "run -g depth -t full.png --dtype float64": "Unknown dtype 'float64'.",
    "run -g depth -t full.png --sampler eluer": "Unknown sampler 'eluer'.",
    "tune depth --harvest nowhere --out x": "There is no folder 'nowhere'.",
    "tune depth --harvest folder.png --out x": "There is no harvest.json in 'folder.png'.",
    "tune dpeth --harvest x --out y": "Unknown guide 'dpeth'.",
    "harvest --out x --prompts none.txt": "There is no file 'none.txt'.",
    "harvest --out x --sampler eluer": "Unknown sampler 'eluer'.",
    "harvest --out x --backbone nothing": "Unknown backbone 'nothing'.",
    "rerun nowhere": "There is no file 'nowhere'.",
    "calibrate classifier --out kept": "'kept' already holds a calibration.",
    "calibrate classifier --out x --harvest nowhere": "There is no folder 'nowhere'.",
    "search -g depth --work x --sampler eluer": "Unknown sampler 'eluer'.",
    "bench ppap --out x --harvest nowhere": "There is no folder 'nowhere'.",
}
ALL_IN_TURN = """
import contextlib, io, json, os, sys
from ppap_host.cli import main
found = {}
for words in sys.argv[1:]:
    sys.argv = ["ppap", *words.split()]
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.suppress(SystemExit):
        main()
    found[words] = err.getvalue(), "torch" in sys.modules
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def told_early(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, bool]]:
    """What each command says, and whether torch was imported by then."""
    from ppap_host.plugins.registry import registry

    folder = tmp_path_factory.mktemp("early")
    (folder / "folder.png").mkdir()
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("no picture")
    Image.new("RGB", (8, 8)).save(folder / "full.png")
    os.mkfifo(folder / "pipe.png")
    for name, file in (("held", "run.json"), ("kept", "calibration.json")):
        (folder / name).mkdir()
        (folder / name / file).write_text("{}")
    (folder / "e.safetensors").symlink_to(registry().expert_set("classifier-shapes-1"))
    before = sorted(folder.rglob("*"))
    outcome = run_process([sys.executable, "-c", ALL_IN_TURN, *TOLD], folder).success()
    assert sorted(folder.rglob("*")) == before
    found: dict[str, tuple[str, bool]] = json.loads(outcome.out)
    return found


@pytest.mark.parametrize("words", TOLD)
def test_what_can_be_told_without_torch_is_told_without_torch(
    words: str, told_early: dict[str, tuple[str, bool]]
) -> None:
    err, heavy = told_early[words]
    (line,) = err.splitlines()
    assert line.startswith("Error: ") and TOLD[words] in line
    assert not heavy


# Completion


def completed(ppap: Call, monkeypatch: pytest.MonkeyPatch, *words: str) -> list[str]:
    monkeypatch.setenv("COMP_WORDS", " ".join(["ppap", *words]))
    monkeypatch.setenv("COMP_CWORD", str(len(words)))
    monkeypatch.setenv("_PPAP_COMPLETE", "complete_bash")
    outcome = ppap()
    assert (outcome.code, outcome.err) == (0, "")
    return outcome.out.split()


@pytest.mark.parametrize(
    ("words", "among"),
    [
        (("run", "--guide", "de"), {"depth", "deblur"}),
        (("run", "-r", "x0"), {"x0", "x0-through"}),
        (("run", "--experts", "depth"), {"depth-shapes-5"}),
        (("run", "--backbone", "sh"), {"shapes"}),
        (("run", "--sampler", "ddi"), {"ddim", "ddim-parallel"}),
        (("run", "--balance", ""), {"project", "sum"}),
        (("run", "--device", "c"), {"cpu", "cuda"}),
        (("tune", "cl"), {"classifier", "clip"}),
        (("experts", "show", "segm"), {"segmentation-shapes-5"}),
        (("weights", "adm-256-u"), {"adm-256-uncond"}),
        (("list", "gu"), {"guides"}),
        (("search", "--recipe", "pig"), {"pigdm"}),
        (("bench", "recipes", "--task", "in"), {"inpainting"}),
        (("bench", ""), {"ppap", "recipes", "elucd", "capacity", "strength"}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_values_are_completed(
    words: tuple[str, ...], among: set[str], ppap_here: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(completed(ppap_here, monkeypatch, *words)) == among


def test_completion_says_nothing_where_it_knows_nothing(
    ppap_here: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert completed(ppap_here, monkeypatch, "run", "--guide", "zzz") == []
