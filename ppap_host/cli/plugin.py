"""``ppap plugin``: for those who write plugins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ppap_host.cli.options import BackboneOption, Checkpoint, Upsampler, Vae, backbone_options
from ppap_host.cli.output import for_people, print_json
from ppap_host.errors import OptionError

if TYPE_CHECKING:
    from ppap_host.testing.checks import Result

app = typer.Typer(help="For those who write plugins.", no_args_is_help=True)

_MARKS = {"passed": "✓", "failed": "✗", "not made": "–"}


@app.callback()
def _group() -> None:
    """For those who write plugins."""


@app.command()
def check(
    name: Annotated[
        str,
        typer.Argument(help="A guide, backbone or recipe, or a distribution: all that it offers."),
    ],
    kind: Annotated[
        str | None, typer.Option("--kind", help="guide, backbone or recipe, if NAME is several.")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", help="A target of the guide; without one a picture is tried."),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="Of the guide.")] = None,
    size: Annotated[
        int, typer.Option("--size", min=8, help="Side in pixels of the images a guide is shown.")
    ] = 64,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="A prompt that the backbone understands.")
    ] = None,
    checkpoint: Checkpoint = None,
    vae: Vae = None,
    upsampler: Upsampler = None,
    backbone_option: BackboneOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Check that a guide, backbone or recipe does what the host needs.

    A line a check: ✓ holds, ✗ does not, – cannot be told, and why. What does not hold is explained:
    what is wrong, why it matters, how to mend it. The exit code is 1 if a check fails, or if none
    could be made.
    """
    from ppap_host.registry import registry
    from ppap_host.testing.offers import CHECKED, Settings, checks_of, offers

    wanted = next((k for k in CHECKED if k == kind), None)
    if kind is not None and wanted is None:
        raise OptionError(f"--kind {kind!r} is unknown.", remedy=f"Give {', '.join(CHECKED)}.")
    settings = Settings(
        target, model, checkpoint, backbone_options(vae, upsampler, backbone_option), prompt,
        (size, size),
    )  # fmt: skip
    people, rows, results = for_people(as_json), [], []
    for one, its_name in offers(registry(), name, wanted):
        if people:
            print(f"{one} {its_name}")
        for made in checks_of(registry(), one, its_name, settings):
            result = made.result()
            results.append(result)
            rows.append({"kind": one, "name": its_name} | _row(result))
            if people:
                _show(result, made.about)
            if made.name == "made" and result.outcome != "passed":
                break  # all others would say the same
    if people:
        counts = {outcome: sum(r.outcome == outcome for r in results) for outcome in _MARKS}
        print(", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
    else:
        print_json(rows)
    outcomes = {result.outcome for result in results}
    if "failed" in outcomes or "passed" not in outcomes:
        raise typer.Exit(1)


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
    print(f"  {_MARKS[result.outcome]} {result.check}: {about}")
    if result.reason:
        print(f"      Not made: {result.reason}")
    if result.error is not None:
        print(f"      {result.error.what}")
        print(f"      Why it matters: {result.error.why}")
        print(f"      How to mend it: {result.error.remedy}")
