"""The tutorial, as its reader does it: every block pasted into one shell, from an empty folder."""

from __future__ import annotations

import json
import os
import re
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("pty", reason="the page's shell is bash in a terminal")

from installation import TYPES_READ, Installation
from walkthrough import PAGE, Step, Stopped, checkout, pictures, steps, walk

TEXT = PAGE.read_text(encoding="utf-8")


def reader(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """An empty folder beside a checkout, and the environment of a shell without a network.

    The virtual environment is there already, with torch in it: the page's own command keeps it.
    """
    folder = tmp_path / "work"
    folder.mkdir()
    checkout(folder)
    installation = Installation.make(folder / "my-plugin" / ".venv")
    variables = {k: v for k, v in installation.variables.items() if k != "VIRTUAL_ENV"}
    path = variables["PATH"].split(os.pathsep)[1:]
    base = str(Path(sys.base_prefix) / "bin")
    return folder, variables | {
        "PATH": os.pathsep.join([base, *path]),
        "OMP_WAIT_POLICY": "PASSIVE",
        "MYPY_CACHE_DIR": str(TYPES_READ),
    }


def light(folder: Path, run: str, measure: str) -> list[float]:
    """A measure of the light for every image of a run of the page."""
    record = json.loads((folder / "ppap-out" / run / "run.json").read_text(encoding="utf-8"))
    return [image["measures"]["light"][measure] for image in record["images"]]


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a beginner's whole afternoon
def test_the_tutorial_leads_from_an_empty_folder_to_a_plugin(tmp_path: Path) -> None:
    page = steps(TEXT)
    folder, variables = reader(tmp_path)
    plugin = walk(page, folder, variables)

    assert [(step.line, line) for step in page for line in step.missing()] == []
    assert plugin == folder / "my-plugin" / "ppap-plugin-light"

    # What the page says of the network: right about clean pictures, and hardly about noise.
    said = next(step.output for step in page if "ppap_plugin_light.train" in step.commands)
    right = [int(share) / 100 for share in re.findall(r"right in (\d+)%", said or "")]
    assert right[0] > 0.9
    assert right[-1] < right[0] - 0.2

    # What it says of the runs: x0 and experts bring light from the left, naive at the same strength
    # does less, and a network that is shown noise is content with noise.
    left, experts = (light(plugin, run, "light-off") for run in ("left", "experts-left"))
    naive = light(plugin, "naive", "light-off")
    assert sum(left) / len(left) < sum(naive) / len(naive) / 2
    assert sum(experts) / len(experts) < sum(naive) / len(naive) / 2
    assert light(plugin, "naive-256", "same-side") == [1.0, 1.0]
    for run in ("lit-left", "lit-right"):
        assert light(plugin, run, "same-side") == [1.0, 1.0]

    # What would be published: all that a user needs, and nothing that was made on the way.
    wheel, sdist = next(plugin.glob("dist/*.whl")), next(plugin.glob("dist/*.tar.gz"))
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
    weights = {"light.safetensors", "light-shapes-5.safetensors"}
    assert {f"ppap_plugin_light/weights/{name}" for name in weights} <= names
    with tarfile.open(sdist) as packed:
        tops = {name.split("/")[1] for name in packed.getnames()}
    assert not tops & {"ppap-out", "dist", ".venv"}
    assert {"LICENSE", "README.md", "src", "tests"} <= tops

    # What is checked at every push was done on the way.
    workflow = (plugin / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    pasted = {line for step in page for line in step.commands.splitlines()}
    checks = [line for line in re.findall(r"- run: (.*)", workflow) if "torch" not in line]
    assert len(checks) == 6
    assert {check.removesuffix(" --kind guide") for check in checks} <= pasted


def test_every_picture_of_the_tutorial_is_there_and_made_by_its_commands() -> None:
    shown = re.findall(r"!\[[^\]]+\]\((tutorial/[^)]+)\)", TEXT)
    made = pictures(TEXT)
    assert [PAGE.parent / name for name in shown] == list(made)
    for picture, file in made.items():
        assert picture.exists()
        folder = file.removesuffix("/sheet.png")
        assert any(f"--out {folder}\n" in step.commands for step in steps(TEXT))


def walked(text: str, folder: Path, timeout: float = 30) -> list[Step]:
    """A page that was gone through."""
    page = steps(text)
    walk(page, folder, {"PATH": os.defpath}, timeout)
    return page


def test_the_steps_share_one_shell(tmp_path: Path) -> None:
    text = (
        "```bash\nmkdir new && cd new\nword=hello\n```\n```bash\necho $word from ${PWD##*/}\n```\n"
    )
    page = steps(text)
    assert walk(page, tmp_path, {"PATH": os.defpath}, 30) == (tmp_path / "new").resolve()
    assert [step.output for step in page] == ["", "hello from new\n"]


def test_a_failed_command_in_the_middle_of_a_step_stops_it(tmp_path: Path) -> None:
    with pytest.raises(Stopped, match=r"step of line 4 ended with 1(.|\n)*before"):
        walked("```bash\ntrue\n```\n```bash\necho before\nfalse\necho after\n```\n", tmp_path)


def test_a_command_that_should_fail_must(tmp_path: Path) -> None:
    fails = "<!-- tutorial: fails -->\n```bash\n{}\n```\n"
    walked(fails.format("false"), tmp_path)
    with pytest.raises(Stopped, match="It does not fail"):
        walked(fails.format("true"), tmp_path)


def test_a_question_that_the_page_does_not_answer_stops_it(tmp_path: Path) -> None:
    with pytest.raises(Stopped, match=r"a question(.|\n)*Author"):
        walked("```bash\nread -p 'Author: ' author\n```\n", tmp_path, timeout=2)


SHOWN = "```bash\nprintf 'one\\ntwo 2.5\\nthree\\n'\n```\n<!-- tutorial: {} -->\n```text\n{}\n```\n"


@pytest.mark.parametrize(
    ("mark", "lines", "missing"),
    [
        ("shown", "one\n...\nthree", []),
        ("shown", "three\none", ["one"]),
        ("shown", "two 2", ["two 2"]),
        ("shown, numbers differ", "two 7", []),
        ("shown, numbers differ", "too 2.5", ["too 2.5"]),
    ],
)
def test_what_is_shown_must_be_printed(
    mark: str, lines: str, missing: list[str], tmp_path: Path
) -> None:
    (step,) = walked(SHOWN.format(mark, lines), tmp_path)
    assert step.missing() == missing


@pytest.mark.parametrize("mark", ["shown", "fail"])
def test_comments_that_mean_nothing_are_refused(mark: str) -> None:
    with pytest.raises(ValueError, match="line 2"):
        steps(f"<!-- tutorial: {mark} -->\n```bash\ntrue\n```\n")
