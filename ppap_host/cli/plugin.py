"""``ppap plugin``: for those who write plugins."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from ppap_host.cli import complete, options
from ppap_host.cli.help import Application
from ppap_host.cli.options import (
    MODEL,
    AsJson,
    BackboneOption,
    Checkpoint,
    Upsampler,
    Vae,
    backbone_options,
    option,
)
from ppap_host.cli.output import clean, in_one_line, is_terminal, print_json, tell
from ppap_host.cli.progress import progress_bar
from ppap_host.files.errors import OptionError, PpapError

if TYPE_CHECKING:
    from ppap_host.plugins.scaffold import Scaffold
    from ppap_host.testing.checks import Result

app = Application("For those who write plugins.")

T = TypeVar("T")

_MARKS = {"passed": "✓", "failed": "✗", "not made": "–"}
_KINDS = complete.among(("guide", "backbone", "recipe"))


@app.command()
def check(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="A guide, backbone or recipe, or a distribution: all that it "
            "offers.",
        ),
    ],
    kind: Annotated[str | None, option(
        "guide, backbone or recipe, if NAME is several.",
        metavar="KIND", autocompletion=_KINDS,
    )] = None,
    target: Annotated[str | None, option(
        "A target of the guide; without one a picture is tried.",
        "--target", "-t", metavar="LABEL|FILE",
    )] = None,
    model: Annotated[
        str | None, option("Of the guide.", "--model", "-m", metavar="FILE|FOLDER|HUB-NAME")
    ] = None,
    size: Annotated[int, option(
        "Of a side of the images that a guide is shown.",
        metavar="PIXELS", min=8, max=4096,
    )] = 64,
    shape: Annotated[str | None, option(
        "Of what a guide is shown that is no image, such as 1,16000 of sound.",
        metavar="N,N,...",
    )] = None,
    prompt: Annotated[str | None, option(
        "A prompt that the backbone understands.",
        "--prompt", "-p", panel=MODEL, metavar="TEXT",
    )] = None,
    checkpoint: Checkpoint = None,
    vae: Vae = None,
    upsampler: Upsampler = None,
    backbone_option: BackboneOption = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Check that a guide, backbone or recipe does what the host needs.

    A line a check: ✓ holds, ✗ does not, – cannot be told, and why. What does not hold is explained:
    what is wrong, why it matters, how to mend it. The exit code is 1 if a check fails, or if none
    could be made.
    """
    from ppap_host.plugins.containment import contained
    from ppap_host.plugins.registry import registry
    from ppap_host.testing.offers import CHECKED, Settings, checks_of, offers

    wanted = next((k for k in CHECKED if k == kind), None)
    if kind is not None and wanted is None:
        raise OptionError(f"--kind {kind!r} is unknown.", remedy=f"Give {', '.join(CHECKED)}.")
    settings = Settings(
        target, model, checkpoint,
        backbone_options(backbone_option, vae=vae, upsampler=upsampler), prompt, (size, size),
        _shape(shape),
    )  # fmt: skip
    rows, results = [], []
    with progress_bar() as watch:
        watch("loading libraries", 0, 1)
        for one, its_name in offers(registry(), name, wanted):
            if not as_json:
                tell(f"{one} {its_name}")
            for made in checks_of(registry(), one, its_name, settings):
                watch(f"checking {one} {its_name}: {made.name}", 0, 1)
                with contained():  # what a check makes a plugin print is no result
                    result = made.result()
                results.append(result)
                rows.append({"kind": one, "name": its_name} | _row(result))
                if not as_json:
                    _show(result, made.about)
                if made.name == "made" and result.outcome != "passed":
                    break  # all others would say the same
    if as_json:
        print_json(rows)
    else:
        counts = {outcome: sum(r.outcome == outcome for r in results) for outcome in _MARKS}
        tell(", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
    outcomes = {result.outcome for result in results}
    if "failed" in outcomes or "passed" not in outcomes:
        raise typer.Exit(1)


def _shape(text: str | None) -> tuple[int, ...] | None:
    """The shape of a sample.

    Raises:
        OptionError: the text is none.
    """
    if text is None:
        return None
    sides = text.split(",")
    if not all(side.strip().isdigit() and int(side) for side in sides):
        raise OptionError(
            f"--shape {text!r} is no shape.",
            remedy="Give the sides without the batch, such as 3,8,32,32 of a video.",
        )
    return tuple(map(int, sides))


def _row(result: Result) -> dict[str, Any]:
    """A result as JSON values."""
    row: dict[str, Any] = {"check": result.check, "outcome": result.outcome}
    if result.error is not None:
        error = result.error
        row |= {"what": error.what, "why": error.why, "remedy": error.remedy}
    if result.reason:
        row["reason"] = result.reason
    return row | {"seconds": round(result.seconds, 3)}


def _show(result: Result, about: str) -> None:
    tell(f"  {_MARKS[result.outcome]} {result.check}: {about}")
    if result.reason:
        tell(f"      Not made: {in_one_line(result.reason)}")
    if result.error is not None:
        tell(f"      {in_one_line(result.error.what)}")
        tell(f"      Why it matters: {in_one_line(result.error.why)}")
        tell(f"      How to mend it: {in_one_line(result.error.remedy)}")


@app.command()
def new(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="What users will call it, such as edges.")
    ],
    kind: Annotated[str | None, option(
        "guide, backbone, recipe or reward.",
        metavar="KIND", autocompletion=complete.among(("guide", "backbone", "recipe", "reward")),
        show_default="guide",
    )] = None,
    reward: Annotated[
        bool, option("A reward: a guide without a target, larger is better.", "--reward")
    ] = False,
    author: Annotated[
        str | None, option("For its metadata.", metavar="NAME", show_default="who git says you are")
    ] = None,
    summary: Annotated[
        str | None, option("What it does, one line for `ppap list`.", metavar="TEXT")
    ] = None,
    licence: Annotated[str, option(
        "apache-2.0 or mit.",
        "--licence", "--license", metavar="NAME",
        autocompletion=complete.among(("apache-2.0", "mit")),
    )] = "apache-2.0",
    out: Annotated[
        Path | None, options.out("Folder to make.", show_default="ppap-plugin-NAME")
    ] = None,
    yes: Annotated[
        bool, option("Ask nothing: defaults for what is not given.", "--yes", "-y")
    ] = False,
) -> None:  # fmt: skip
    """Write a new plugin: a distribution that runs, with tests, to be changed into your own.

    A guide steers by an edge filter, a backbone denoises by a formula, a recipe has a part of its
    own, a reward likes colours; each passes `ppap plugin check` as it is. On a terminal you are
    asked for what is missing.
    """
    from ppap_host.plugins.registry import registry
    from ppap_host.plugins.scaffold import (
        KINDS,
        PREFIX,
        SUMMARIES,
        Scaffold,
        checked_kind,
        checked_licence,
        checked_name,
        registered_as,
        require_free,
        require_new,
        write,
    )

    # All that can be wrong is said before anything is asked.
    name, its_licence = checked_name(name), checked_licence(licence)
    folder = Path(PREFIX + name) if out is None else out
    require_new(folder)
    require_free(registry(), name)
    if reward and kind not in (None, "reward", "guide"):
        raise OptionError(f"A {kind} is no reward.", remedy="Leave out --kind or --reward.")
    kind = "reward" if reward else kind
    asks = not yes and _on_a_terminal()
    if kind is None:
        kind = _ask(f"Kind ({', '.join(KINDS)})", KINDS[0], checked_kind) if asks else KINDS[0]
    its_kind = checked_kind(kind)
    require_free(registry(), name, registered_as(its_kind))

    def told(author: str, summary: str) -> Scaffold:
        scaffold = Scaffold(name, its_kind, author, summary, its_licence)
        scaffold.files()
        return scaffold

    told(author or "", summary or "")
    if author is None:
        author = _git_user() or f"The authors of {PREFIX}{name}"
        if asks:
            author = _ask("Author", author, lambda text: told(text, "").author)
    if summary is None:
        summary = SUMMARIES[its_kind]
        if asks:
            summary = _ask("What it does, in one line", summary, lambda t: told("", t).summary)
    scaffold = Scaffold(name, its_kind, author, summary, its_licence)
    files = write(scaffold, folder)
    tell(f"Wrote {folder}: the {its_kind} {name!r} in {len(files)} files. Next:")
    for line in _next_steps(scaffold, folder):
        tell(f"  {line}")


def _on_a_terminal() -> bool:
    """Whether somebody can be asked."""
    return is_terminal(sys.stdin) and is_terminal(sys.stderr)


def _ask(question: str, default: str, checked: Callable[[str], T]) -> T:
    """What is answered; asks again until it makes sense."""

    def understood(text: str) -> T:
        try:
            return checked(text)
        except PpapError as error:
            raise typer.BadParameter(in_one_line(error)) from None

    answer: T = typer.prompt(question, default=default, value_proc=understood, err=True)
    return answer


def _git_user() -> str:
    """The name that git writes into commits, "" if there is none."""
    try:
        told = subprocess.run(
            ["git", "config", "user.name"],
            capture_output=True, encoding="utf-8", timeout=10, check=False,
        )  # fmt: skip
    except (OSError, UnicodeError, subprocess.TimeoutExpired):
        return ""
    return clean(told.stdout.strip())


def _next_steps(scaffold: Scaffold, folder: Path) -> list[str]:
    """The commands that one gives first."""
    name = scaffold.name
    runs = {
        "guide": f"ppap run --guide {name} --target photo.jpg",
        "backbone": f"ppap run --backbone {name} --guide depth --target photo.jpg",
        "recipe": f"ppap run --recipe {name} --guide depth --target photo.jpg",
        "reward": f"ppap run --guide {name}",
    }
    return [
        f'cd {shlex.quote(str(folder))} && pip install -e ".[test]"',
        f"ppap plugin check {name}",
        "pytest",
        runs[scaffold.kind],
    ]
