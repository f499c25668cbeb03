"""Every command that the documentation shows does what it is shown for, on small networks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from forks import served
from shown import (
    LEFT_OUT,
    ROOT,
    Commands,
    ShownError,
    blocks,
    check_inline,
    commands,
    counted,
    inline_commands,
    look_up,
    pages,
    shown_pages,
    simple_commands,
    taken,
)
from stage import Stage, stand_in_environment
from stand_ins import make

pytestmark = pytest.mark.skipif(os.name != "posix", reason="pages show commands of a POSIX shell")


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small networks, made once for all workers of the test run."""
    base = tmp_path_factory.getbasetemp()
    if base.name.startswith("popen-"):  # of one of several workers
        base = base.parent
    folder = base / "stand-ins"
    with FileLock(base / "stand-ins.lock"):
        if not folder.exists():
            make(base / "stand-ins.part")
            (base / "stand-ins.part").rename(folder)
    return folder


@pytest.fixture(scope="session")
def programs(stand_ins: Path) -> Iterator[Path]:
    with served(stand_in_environment(stand_ins)) as folder:
        yield folder


Play = Callable[..., Stage]


@pytest.fixture
def play(tmp_path: Path, stand_ins: Path, programs: Path) -> Play:
    """Plays blocks on a stage of their own, and returns it."""

    def on_stage(*every: Commands) -> Stage:
        stage = Stage.make(tmp_path / "page", stand_ins, programs, every)
        for block in every:
            stage.play(block)
        return stage

    return on_stage


@pytest.fixture
def page(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "page.md"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def shown(text: str, *options: str) -> Commands:
    return Commands(Path("page.md"), 1, text, "shortened" if options else "shown", options)


# The pages


@pytest.mark.slow
@pytest.mark.parametrize("path", shown_pages(), ids=name)
def test_every_command_of_a_page_runs(path: Path, play: Play) -> None:
    play(*commands(path))


@pytest.mark.parametrize("path", pages(), ids=name)
def test_every_command_within_the_text_of_a_page_exists(path: Path) -> None:
    for _, arguments in inline_commands(path):
        check_inline(arguments)


def test_commands_within_the_text_are_found() -> None:
    found = [span for path in pages() for span, _ in inline_commands(path)]
    assert "ppap list" in found and len(found) > 20


def test_what_is_left_out_is_there_and_left_out() -> None:
    for left in LEFT_OUT:
        assert (ROOT / left).exists()
        assert not [path for path in pages() if path.is_relative_to(ROOT / left)]


# How they run


@pytest.mark.slow
def test_a_fork_answers_as_a_program_of_its_own_does(play: Play) -> None:
    stage = play(shown("ppap list\n"))
    plain = {key: value for key, value in stage.environment.items() if key != "PATH"}
    for arguments in (["list", "--json"], ["run", "--guide", "depht", "--target", "x"]):
        real = subprocess.run(
            [sys.executable, "-m", "ppap_host", *arguments],
            cwd=stage.folder, env=plain, capture_output=True, encoding="utf-8", check=False,
        )  # fmt: skip
        quick = subprocess.run(
            ["ppap", *arguments],
            cwd=stage.folder, env=stage.environment, capture_output=True, encoding="utf-8",
            check=False,
        )  # fmt: skip
        assert (quick.returncode, quick.stdout) == (real.returncode, real.stdout)
        assert quick.stderr == real.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("ppap run --strenth 2\n", "No such option: --strenth"),
        ("ppap list\nppap run --guide depht --target photo.jpg\n", "Did you mean 'depth'"),
        ("ppap run --guide depth --target no-such.png --steps 2\n", "no-such.png"),
        ("ppap list | false\n", "exit status 1"),
        ("ppap list --json > list.json && ppap rerun list.json\n", "list.json"),
        ('echo "$undefined"\n', "undefined"),
        ("pip install ppap-plugin-dept\n", "neither of this repository nor needed by it"),
        ("pip install ./plugins/ppap-plugin-dept\n", "is no distribution"),
        ('pip install ".[evaluations]"\n', "has no extra 'evaluations'"),
        ("curl -O https://example.org/256x256_diffusion.pt\n", "no plugin knows"),
    ],
)
def test_a_command_that_fails_is_told(text: str, complaint: str, play: Play) -> None:
    with pytest.raises(AssertionError, match=r"page\.md:1: exit status") as caught:
        play(shown(text))
    assert complaint in str(caught.value)


@pytest.mark.slow
def test_options_are_appended_to_each_command_that_takes_them(play: Play) -> None:
    text = (
        "ppap run --prompt 'a cone' \\\n    --seed 3 --print-config > run.toml\n"
        "ppap list && ppap run --print-config --steps 30 | tee piped.toml\n"
        'for seed in 1 2; do ppap run --seed "$seed" --print-config > "$seed.toml"; done\n'
    )
    text += "python -m ppap_host run --print-config > module.toml\n"
    text += "accelerate launch --cpu -m ppap_host run --print-config > launched.toml\n"
    stage = play(shown(text, "--num", "1", "--steps", "2"))
    for file in ("run", "piped", "1", "2", "module", "launched"):
        written = (stage.folder / f"{file}.toml").read_text()
        assert "num = 1\n" in written and "steps = 2\n" in written


@pytest.mark.slow
def test_a_shortening_that_no_command_takes_is_refused(play: Play) -> None:
    with pytest.raises(AssertionError, match="no command of the block takes --steps"):
        play(shown("ppap list\n", "--steps", "2"))


@pytest.mark.slow
def test_what_pip_installs_from_a_folder_is_found(play: Play) -> None:
    play(
        shown("ppap plugin new edges\npip install -e ./ppap-plugin-edges\nppap list | grep edges\n")
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("ppap run --guide depht --target x\n", "Did you mean 'depth'"),
        ("accelerate launch -m ppap_host tune depth --modle x\n", "No such option: --modle"),
        ("ppap run --recipe tgf:rho=1\n", "Unknown recipe 'tgf'"),
        ("ppap harvest --backbone adm-256 --out x\n", "Unknown backbone 'adm-256'"),
        ("ppap search --guide clip --judge clop=x --work w\n", "Unknown guide 'clop'"),
        ("ppap weights adm-256\n", "Unknown published file 'adm-256'"),
        ("ppap run --guide depth --target a --target b\n", "1 --guide but 2 --target"),
        ("ppap bench recipe\n", "No such command"),
    ],
)
def test_a_looked_up_command_must_be_understood(text: str, complaint: str, play: Play) -> None:
    with pytest.raises(AssertionError) as caught:
        play(Commands(Path("page.md"), 7, text, "looked up", (), "needs published weights"))
    assert complaint in str(caught.value) and "page.md:7" in str(caught.value)


def test_looking_up_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    look_up(["shapes", "render", "--out", "scenes"])
    look_up(["plugin", "new", "edges", "--yes"])
    assert not list(tmp_path.iterdir())


# How they are found


def test_marks_say_what_is_done_with_a_block(page: Callable[[str], Path]) -> None:
    text = """
- a list with
    ```bash
    ppap list
    ```

<!-- picture: images/x.png = x.png -->
<!-- commands: shortened --num 1 --guide "two words" -->
```bash
ppap run
```
<!-- commands: looked up, needs a GPU -->
```bash
ppap harvest --out x
```
<!-- commands: not run, sets up an environment -->
```bash title="set up"
python -m venv .venv
```
````text
```bash
is shown, and no block
```
````
"""
    found = commands(page(text))
    assert [(b.line, b.text, b.kind, b.options, b.reason) for b in found] == [
        (3, "ppap list\n", "shown", (), ""),
        (9, "ppap run\n", "shortened", ("--num", "1", "--guide", "two words"), ""),
        (13, "ppap harvest --out x\n", "looked up", (), "needs a GPU"),
        (17, "python -m venv .venv\n", "not run", (), "sets up an environment"),
    ]


@pytest.mark.parametrize(
    ("mark", "complaint"),
    [
        ("<!-- commands: not run -->", "is none of"),
        ("<!-- commands: looked up, -->", "is none of"),
        ("<!-- commands: shortened -->", "is none of"),
        ("<!-- commands: shortened 3 -->", "is none of"),
        ("<!-- commands: skipped, too slow -->", "is none of"),
        ("<!--commands: not run, too slow-->", "is none of"),
        ("<!-- commands: not run, too slow -->\n", "not directly above"),
        ("<!-- commands: not run, a -->\n<!-- commands: not run, b -->", "one mark"),
        ("<!-- commands: not run, a -->\n<!-- picture: x = y -->", "directly above the fence"),
    ],
)
def test_a_malformed_mark_is_refused(
    mark: str, complaint: str, page: Callable[[str], Path]
) -> None:
    with pytest.raises(ShownError, match=complaint):
        commands(page(f"{mark}\n```bash\nppap list\n```\n"))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("<!-- commands: not run, a -->\n```python\npass\n```\n", "above another block"),
        ("```sh\nppap list\n```\n", "are written ```bash"),
        ("```console\n$ ppap list\n```\n", "are written ```bash"),
        ("```bash\nppap list\n", "does not end"),
    ],
)
def test_commands_that_would_be_missed_are_refused(
    text: str, complaint: str, page: Callable[[str], Path]
) -> None:
    with pytest.raises(ShownError, match=complaint):
        commands(page(text))


@pytest.mark.parametrize("path", pages(), ids=name)
def test_no_page_shows_a_command_in_a_block_without_a_language(path: Path) -> None:
    for block in blocks(path.read_text(encoding="utf-8")):
        if not block.language:
            assert not [w for w in simple_commands(block.text) if w[0] in ("ppap", "pip")]


def test_the_commands_of_a_shell_text_are_told_apart() -> None:
    text = """\
# a comment; it's no command
export N=1 && NAME=x ppap run --target "#202060" \\
    --out a > run.txt 2>> log  # a comment
cat > file <<'EOF'
ppap not-this
EOF
for i in 1 2; do ppap list; done | sort || true
ppap run --checkpoint "$(ppap weights glide)"
"""
    assert simple_commands(text) == [
        ["export", "N=1"],
        ["ppap", "run", "--target", "#202060", "--out", "a", "2"],
        ["cat"],
        ["ppap", "list"],
        ["sort"],
        ["true"],
        ["ppap", "run", "--checkpoint", "$(ppap weights glide)"],
        ["ppap", "weights", "glide"],
    ]


def test_only_options_that_a_command_takes_are_appended_to_it() -> None:
    options = ["--num", "1", "--quick", "--steps", "2"]
    assert taken(["run", "--guide", "depth"], options) == ["--num", "1", "--steps", "2"]
    assert taken(["bench", "ppap", "--out", "x"], options) == ["--quick"]
    assert taken(["list"], options) == []
    assert taken(["run"], ["-n", "1", "--scale", "-3"]) == ["-n", "1", "--scale", "-3"]


def test_commands_are_counted_by_what_is_done_with_them(page: Callable[[str], Path]) -> None:
    text = """
<!-- commands: shortened --num 1 -->
```bash
pip install . && ppap run
ppap list
```
<!-- commands: looked up, needs a GPU -->
```bash
ppap harvest --out x
nvidia-smi
```
"""
    assert counted(page(text)) == {
        "checked": 1, "shortened": 1, "as shown": 1, "looked up": 1, "not run": 1,
    }  # fmt: skip
