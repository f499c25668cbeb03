"""The command line: answers on standard output, one line for an error, exit codes, no torch."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import Outcome, run_process

from ppap_host.cli.list import KINDS
from ppap_host.files.errors import PpapError
from ppap_host.files.images import from_tensor, read_rgb
from ppap_host.plugins.registry import Registry
from ppap_host.shapes.renderer import render
from ppap_host.shapes.scenes import CLASS_NAMES, SEGMENTS, sample_scenes

Call = Callable[..., Outcome]


def refused(outcome: Outcome, *said: str) -> None:
    """An error as users should see it: one line that says what and what to do."""
    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err.startswith("Error: ")
    assert outcome.err.count("\n") == 1
    assert "Traceback" not in outcome.err
    assert "\x1b" not in outcome.err
    for part in said:
        assert part in outcome.err


# Help and lists


def test_help_names_every_command(ppap: Call) -> None:
    outcome = ppap("--help")
    assert (outcome.code, outcome.err) == (0, "")
    for command in ("run", "rerun", "list", "doctor", "shapes"):
        assert re.search(rf"^  {command}  ", outcome.out, re.MULTILINE)


@pytest.mark.parametrize("command", ["run", "rerun", "list", "doctor", "shapes", "shapes render"])
def test_every_command_has_help(ppap_here: Call, command: str) -> None:
    for option in ("--help", "-h"):
        outcome = ppap_here(*command.split(), option)
        assert (outcome.code, outcome.err) == (0, "")
        assert f"Usage: ppap {command}" in outcome.out


def test_every_option_of_run_is_explained(ppap_here: Call) -> None:
    from dataclasses import fields

    from ppap_host.runs.config import RunConfig

    text = ppap_here("run", "--help").out
    for field in fields(RunConfig):
        unlike = {
            "guides": "guide", "class_index": "class", "backbone_options": "backbone-option",
        }  # fmt: skip
        option = f"--{unlike.get(field.name, field.name.replace('_', '-'))}"
        (told,) = re.findall(
            rf"^ +(?:-\w, )?{option}(?![-\w])(.*(?:\n {{9,}}.*)*)$", text, re.MULTILINE
        )
        assert len(told.split()) > 2, told


def test_the_defaults_that_help_names_are_the_defaults(ppap_here: Call) -> None:
    from dataclasses import fields

    from ppap_host.runs.config import RunConfig

    text = " ".join(ppap_here("run", "--help").out.split())
    for field in fields(RunConfig):
        shown = re.search(rf"--{field.name} (?:(?!--).)*?\[default: ([^\]]+)\]", text)
        if shown:
            assert shown[1] == f"{field.default:g}" if field.type == "float" else str(field.default)


def test_a_path_that_is_empty_is_not_the_folder_one_stands_in(ppap_here: Call) -> None:
    for words in (
        "run --out", "run --checkpoint=", "run --config", "harvest --out", "harvest -o x --prompts",
        "tune classifier --model", "tune classifier --harvest", "experts merge a --out",
        "shapes render --out", "plugin new haze --out", "weights --out",
    ):  # fmt: skip
        outcome = ppap_here(*words.removesuffix("=").split(), "")
        assert outcome.code == 2, outcome.err
        assert f"{words.split()[-1].removesuffix('=')} is empty" in outcome.err
    assert "is empty" in ppap_here("rerun", "").err


def test_version(ppap_here: Call) -> None:
    outcome = ppap_here("--version")
    assert outcome.code == 0
    assert re.fullmatch(r"ppap-host \d+\.\d+\.\d+\S*\n", outcome.out)


def test_list_as_json(ppap_here: Call) -> None:
    asked = ppap_here("list", "--json")
    assert (asked.code, asked.err) == (0, "")
    found = json.loads(asked.out)
    assert set(found) == {*KINDS.values()}
    assert "shapes" in [row["name"] for row in found["backbone"]]
    assert {"naive", "x0", "x0-through"} <= {row["name"] for row in found["recipe"]}
    for kind in ("guide", "backbone", "recipe", "sampler"):
        for row in found[kind]:
            assert row["summary"]
            assert row["from"]


def test_list_names_the_samplers_that_there_are(ppap_here: Call) -> None:
    from ppap_host.sampling.names import DIFFUSERS, SAMPLER_SUMMARIES

    rows = json.loads(ppap_here("list", "--json").out)["sampler"]
    assert {row["name"] for row in rows} == {*SAMPLER_SUMMARIES, *DIFFUSERS}


def test_list_in_a_pipe_has_a_line_for_each_thing(ppap_here: Call) -> None:
    found, lines = json.loads(ppap_here("list", "--json").out), ppap_here("list").out.splitlines()
    for kind, rows in found.items():
        begins = lines.index(f"{kind}s") if rows else 0
        for row in rows:
            (line,) = (
                line for line in lines[begins + 2 : begins + 2 + len(rows)]
                if line.split()[0] == row["name"]
            )  # fmt: skip
            assert row.get("summary", "") in line and row.get("reason", "") in line


@pytest.mark.parametrize("kind", list(KINDS))
def test_one_kind_can_be_listed(ppap_here: Call, kind: str) -> None:
    every = json.loads(ppap_here("list", "--json").out)[KINDS[kind]]
    for name in (kind, KINDS[kind]):
        outcome = ppap_here("list", name, "--json")
        assert (outcome.code, json.loads(outcome.out)) == (0, every)
    assert ppap_here("list", kind).out.splitlines()[0] in (
        f"{KINDS[kind]}s", f"no {KINDS[kind]}s installed"
    )  # fmt: skip


def test_a_kind_that_there_is_not(ppap_here: Call) -> None:
    refused(ppap_here("list", "gides"), "Unknown kind 'gides'. Did you mean 'guides'")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(ppap_here: Call, shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The shell is found among the parent processes, where a test may have none.
    monkeypatch.setattr("shellingham.detect_shell", lambda: (shell, f"/bin/{shell}"))
    outcome = ppap_here("--show-completion")
    assert outcome.code == 0
    assert "_PPAP_COMPLETE" in outcome.out


# Start-up


@pytest.mark.parametrize(
    "command",
    [
        "--help",
        "--version",
        "run --help",
        "list --json",
        "run --print-config",
        "run -g a -t x -t y",
        "weights --help",
        "weights",
        "weights toy --show",
    ],
)
def test_light_commands_do_not_import_heavy_libraries(tmp_path: Path, command: str) -> None:
    code = (
        "import contextlib, sys\n"
        f"sys.argv = ['ppap', *{command.split()!r}]\n"
        "from ppap_host.cli import main\n"
        "with contextlib.suppress(SystemExit):\n"
        "    main()\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy', 'PIL', 'torchvision'}\n"
        "heavy |= {'requests', 'filelock'}\n"
        "print('heavy:', *sorted(heavy & set(sys.modules)))\n"
    )
    outcome = run_process([sys.executable, "-c", code], tmp_path)
    assert outcome.code == 0
    assert outcome.out.endswith("heavy:\n")


# Errors


def test_an_unknown_guide_is_answered_with_the_nearest(ppap_here: Call) -> None:
    outcome = ppap_here("run", "--guide", "dpeth", "--target", "x.png")
    refused(outcome, "Unknown guide 'dpeth'.", "Did you mean 'depth'?")


def test_a_guide_that_is_not_installed_is_answered_with_its_command(
    ppap_here: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = Registry([])
    monkeypatch.setattr("ppap_host.plugins.registry.registry", lambda: bare)
    said = "Install it with `pip install ppap-plugin-depth`."
    refused(ppap_here("run", "-g", "depth", "-t", "x.png"), "Unknown guide 'depth'.", said)
    refused(ppap_here("run", "-g", "dpeth", "-t", "x.png"), "`pip install ppap-plugin-depth`")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--backbone shape", "Unknown backbone 'shape'. Did you mean 'shapes'?"),
        ("--sampler ddimm", "Unknown sampler 'ddimm'. Did you mean 'ddim'"),
        ("--device tpu", "Unknown device 'tpu'. Give auto, cpu, cuda"),
        ("--dtype float23", "Unknown dtype 'float23'. Did you mean 'float32'"),
        ("--num 0", "'num' in the command line is 0."),
        ("--batch 0", "'batch' in the command line is 0."),
        ("--seed -1", "'seed' in the command line is -1."),
        ("--cfg nan", "'cfg' in the command line is nan. It must be a finite number."),
        ("--target x.png", "0 --guide but 1 --target: --guide ??? --target x.png."),
        ("-g depth -g depth -t a.png", "2 --guide but 1 --target"),
        ("-g depth -t a.png -t b.png", "1 --guide but 2 --target"),
        ("-g depth -t a.png -s 1 -s 2", "1 --guide but 2 --scale"),
        ("--config none.toml", "There is no file 'none.toml'"),
    ],
)
def test_mistaken_options(ppap_here: Call, tmp_path: Path, arguments: str, said: str) -> None:
    refused(ppap_here("run", *arguments.split()), said)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_an_unknown_recipe_of_a_guide(ppap_here: Call) -> None:
    refused(
        ppap_here("run", "-g", "a", "-t", "b", "--recipe", "x1"),
        "Unknown recipe 'x1'.",
        "Did you mean 'x0'",
    )


@pytest.mark.parametrize("mistake", ["--nmu 3", "--num many", "--scale strong", "more", "--guide"])
def test_malformed_commands_exit_with_2_and_nothing_on_standard_output(
    ppap_here: Call, mistake: str
) -> None:
    outcome = ppap_here("run", *mistake.split())
    assert (outcome.code, outcome.out) == (2, "")
    assert "Traceback" not in outcome.err
    assert mistake.split()[0] in outcome.err.splitlines()[-1]


def test_an_unknown_command(ppap_here: Call) -> None:
    outcome = ppap_here("rnu")
    assert (outcome.code, outcome.out) == (2, "")
    assert "rnu" in outcome.err


def test_brackets_and_odd_letters_of_a_message_come_through(ppap_here: Call) -> None:
    refused(ppap_here("run", "-c", "[red]{}:smile:漢.toml"), "'[red]{}:smile:漢.toml'")


def test_a_long_message_stays_on_one_line(ppap: Call) -> None:
    refused(ppap("run", "-c", "x" * 120 + " " + "y" * 120 + ".toml"), "x" * 120 + " " + "y" * 120)


def test_debug_shows_the_traceback(ppap: Call) -> None:
    outcome = ppap("--debug", "run", "-g", "a", "-t", "b", "-t", "c")
    assert outcome.code != 0
    assert outcome.out == ""
    assert "Traceback (most recent call last)" in outcome.err
    assert "OptionError: 1 --guide but 2 --target" in outcome.err


def test_a_mistake_of_the_host_itself_is_not_hidden(
    ppap_here: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def oh(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("ppap_host.runs.config.read_toml", oh)
    outcome = ppap_here("run", "-c", "x.toml")
    assert (outcome.code, outcome.out) == (1, "")
    assert "Traceback (most recent call last)" in outcome.err
    assert "ZeroDivisionError" in outcome.err and "please report it" in outcome.err


# Records that cannot be repeated


def record(**changes: object) -> dict[str, object]:
    return {
        "format": 1,
        "config": {"num": 1},
        "images": [{"index": 0, "file": "00000.png", "pixels_sha256": "0" * 64}],
        "targets": [],
        "versions": {},
        "model_files": {},
    } | changes


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "no sound record"),
        ("[]", "no sound record"),
        ("{}", "holds no record"),
        ("[1, 2", "no sound record"),
        (json.dumps(record(format=99)), "has format 99, this version reads 1"),
        (json.dumps(record(images=[])), "names no finished image"),
        (json.dumps(record(images=None)), "names no finished image"),
        (json.dumps(record(targets=None)), "'targets'"),
        (json.dumps(record(config=[])), "'config'"),
        (json.dumps(record(config={"nmu": 1})), "Unknown option 'nmu'"),
    ],
)
def test_a_damaged_record(ppap_here: Call, tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "run.json").write_text(content)
    refused(ppap_here("rerun", "run.json"), said, "run.json")
    refused(ppap_here("rerun", "."), said)


def test_a_picture_without_a_record(ppap_here: Call, tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    refused(ppap_here("rerun", "x.png"), "'x.png' carries no record", "run.json beside it")


def test_no_record_at_all(ppap_here: Call) -> None:
    refused(ppap_here("rerun", "none.png"), "There is no file 'none.png'")
    refused(ppap_here("rerun", "x" * 300), "There is no file")
    refused(ppap_here("rerun", "."), "There is no file 'run.json'")


def test_a_target_that_is_gone(ppap_here: Call, tmp_path: Path) -> None:
    target = {"guide": 0, "given": "gone.png", "copy": "targets/0-0.png", "sha256": "ab" * 32}
    (tmp_path / "run.json").write_text(json.dumps(record(targets=[target])))
    refused(ppap_here("rerun", "run.json"), "'gone.png' is gone", "abababababab")


# ppap shapes render


@pytest.fixture
def scenes(ppap_here: Call, tmp_path: Path) -> Path:
    outcome = ppap_here("shapes", "render", "--out", "s", "-n", "18", "--seed", "5", "--size", "48")
    assert outcome.code == 0
    assert outcome.out == f"18 scenes: {tmp_path / 's'}\nSheet: {tmp_path / 's' / 'sheet.png'}\n"
    return tmp_path / "s"


def test_rendered_scenes_are_those_of_the_renderer(scenes: Path) -> None:
    sampled = sample_scenes(5, 0, 18)
    view = render(sampled, 48)
    described = json.loads((scenes / "scenes.json").read_text())
    assert (described["seed"], described["size"]) == (5, 48)
    assert described["classes"] == list(CLASS_NAMES)
    assert described["segments"] == list(SEGMENTS)
    assert "millimetres" in described["depth_unit"]
    assert len(described["scenes"]) == 18
    for k, (row, picture, caption) in enumerate(
        zip(described["scenes"], from_tensor(view.rgb), sampled.captions(), strict=True)
    ):
        assert row["label"] == int(sampled.labels[k])
        assert row["class"] == CLASS_NAMES[row["label"]]
        assert row["caption"] == caption
        assert read_rgb(scenes / row["file"]).tobytes() == picture.tobytes()
        depth = np.asarray(Image.open(scenes / row["depth"]))
        assert depth.dtype == np.uint16
        np.testing.assert_allclose(depth, view.depth[k, 0].numpy() * 1000, atol=0.501)
        with Image.open(scenes / row["segmentation"]) as segments:
            assert segments.mode == "P"
            np.testing.assert_array_equal(np.asarray(segments), view.segmentation[k].numpy())


def test_rendering_leaves_what_it_describes_and_a_sheet(scenes: Path) -> None:
    rows = json.loads((scenes / "scenes.json").read_text())["scenes"]
    files = {row[key] for row in rows for key in ("file", "depth", "segmentation")}
    assert len(files) == 3 * 18
    assert {p.name for p in scenes.iterdir()} == files | {"scenes.json", "sheet.png"}


def test_rendering_again_gives_the_same_bytes(ppap_here: Call, scenes: Path) -> None:
    ppap_here("shapes", "render", "--out", "again", "-n", "18", "--seed", "5", "--size", "48")
    for path in scenes.iterdir():
        assert (scenes.parent / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_scene_does_not_depend_on_how_many_there_are(ppap_here: Call, scenes: Path) -> None:
    ppap_here("shapes", "render", "--out", "few", "-n", "2", "--seed", "5", "--size", "48")
    few = scenes.parent / "few"
    for name in ("00001.png", "00001-depth.png", "00001-segmentation.png"):
        assert (few / name).read_bytes() == (scenes / name).read_bytes()


def test_rendering_overwrites_nothing(ppap_here: Call, scenes: Path) -> None:
    before = {p.name: p.stat().st_mtime_ns for p in scenes.iterdir()}
    refused(ppap_here("shapes", "render", "--out", "s", "-n", "1"), "already holds scenes", "--out")
    assert {p.name: p.stat().st_mtime_ns for p in scenes.iterdir()} == before


def test_rendering_into_a_file(ppap_here: Call, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    refused(ppap_here("shapes", "render", "--out", "file", "-n", "1"), "--out")
    assert (tmp_path / "file").read_text() == "mine"
    refused(ppap_here("shapes", "render", "--out", "x" * 300, "-n", "1"), "Cannot write")


@pytest.mark.parametrize("option", ["--num 0", "--size 8", "--size 9999", "--seed -1"])
def test_rendering_out_of_range(ppap_here: Call, tmp_path: Path, option: str) -> None:
    outcome = ppap_here("shapes", "render", "--out", "s", *option.split())
    assert (outcome.code, outcome.out) == (2, "")
    assert option.split()[0] in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_every_error_of_the_host_has_a_code_that_is_no_success() -> None:
    assert all(kind.exit_code == 2 for kind in (PpapError, *PpapError.__subclasses__()))
