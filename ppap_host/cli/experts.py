"""``ppap experts``: what is in expert sets, whether they fit, and joining them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ppap_host.cli.output import for_people, print_json

if TYPE_CHECKING:
    from ppap_host.experts.sets import ExpertSet

app = typer.Typer(help="Show, verify and join sets of experts.", no_args_is_help=True)

_SET = "A safetensors file, a folder of `ppap tune`, or a registered name (`ppap list`)."


@app.callback()
def _group() -> None:
    """Show, verify and join sets of experts."""


@app.command()
def show(
    experts: Annotated[str, typer.Argument(metavar="PATH|NAME", help=_SET)],
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Show a set: its noise ranges, sizes, measured quality and where it comes from.

    Ranges are in log-SNR, log(alpha^2 / sigma^2), half-open, from clean to noisy.
    """
    from ppap_host.experts.sets import ExpertSet
    from ppap_host.plugins.registry import registry
    from ppap_host.runs.choice import expert_set_path

    path = expert_set_path(experts, registry())
    described = ExpertSet.load(path).describe() | {"file": str(path)}
    if for_people(as_json):
        _show(described)
    else:
        print_json(described)


@app.command()
def verify(
    experts: Annotated[str, typer.Argument(metavar="PATH|NAME", help=_SET)],
    guide_model: Annotated[
        str | None,
        typer.Option("--guide-model", help="The guide's model, if not the one the set names."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Verify a set against its guide: the network's hash, every shape, finite values."""
    from ppap_host.experts.sets import ExpertSet
    from ppap_host.files.errors import CheckpointError
    from ppap_host.plugins.loading import load_guide
    from ppap_host.plugins.registry import registry
    from ppap_host.runs.choice import expert_set_path

    path = expert_set_path(experts, registry())
    found = ExpertSet.load(path)
    name = found.metadata.get("guide")
    if name is None or found.metadata.get("network_sha256") is None:
        raise CheckpointError(
            f"{str(path)!r} does not say which guide and network it is for.",
            remedy="Tune it again, or ask whoever made it.",
        )
    model = guide_model if guide_model is not None else found.metadata.get("model")
    guide = load_guide(registry(), name, model)
    network = guide.network()
    found.check(network, guide.name)
    for i, patch in enumerate(found.patches):
        for what, tensors in (("", patch.tensors()), ("merged ", patch.merged(network))):
            for key, tensor in tensors.items():
                if not tensor.isfinite().all():
                    raise CheckpointError(
                        f"Expert {i} of {str(path)!r} has values that are not finite in its "
                        f"{what}{key!r}.",
                        remedy="Its tuning diverged or the file is damaged; use another set.",
                    )
    sha256 = found.metadata["network_sha256"]
    if for_people(as_json):
        print(
            f"OK: {len(found.patches)} experts fit the guide {name!r}, network {sha256[:12]}..., "
            f"on {found.view} images."
        )
        return
    print_json(
        {
            "ok": True,
            "file": str(path),
            "guide": name,
            "model": model,
            "network_sha256": sha256,
            "experts": len(found.patches),
            "view": found.view,
        }
    )


@app.command()
def merge(
    experts: Annotated[list[str], typer.Argument(metavar="PATH|NAME...", help=_SET)],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.")],
) -> None:
    """Join sets with disjoint noise ranges into one.

    They must have been tuned on the same network, image size and view.
    """
    from ppap_host.experts.sets import ExpertSet, joined
    from ppap_host.files.hashes import sha256_file
    from ppap_host.plugins.registry import registry
    from ppap_host.runs.choice import expert_set_path

    paths = [expert_set_path(text, registry()) for text in experts]
    whole = joined({str(path): ExpertSet.load(path) for path in paths})
    whole.metadata["merged_from"] = [
        {"file": path.name, "sha256": sha256_file(path)} for path in dict.fromkeys(paths)
    ]
    whole.save(out)
    _say_written(whole, out)


def _say_written(experts: ExpertSet, out: Path) -> None:
    if for_people(False):
        print(f"{out}: {len(experts.ranges)} experts")
    else:
        print_json({"file": str(out), "experts": len(experts.ranges)})


def _show(described: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    experts, trainable = described.pop("experts"), described.pop("trainable")
    qualities = [_measures(expert["quality"]) for expert in experts]
    measures = list(dict.fromkeys(key for quality in qualities for key in quality))
    table = Table("log-SNR", title=escape(described.pop("file")), title_justify="left")
    for heading in ("trainable", "share", *map(escape, measures)):
        table.add_column(heading, justify="right")
    for expert, quality in zip(experts, qualities, strict=True):
        low, high = expert["log_snr"]
        low, high = (
            "-inf" if low is None else f"{low:.2f}",
            "inf" if high is None else f"{high:.2f}",
        )
        table.add_row(
            escape(f"[{low}, {high})"),
            *_numbers(expert["trainable"], expert["share"]),
            *(quality.get(measure, "") for measure in measures),
        )
    table.add_section()
    table.add_row("all", *_numbers(trainable["total"], trainable["share"]))
    console.print(table)
    origin = Table(show_header=False, box=None)
    for key, value in described.items():
        origin.add_row(key.replace("_", " "), escape(_short(value)))
    console.print(origin)


def _measures(quality: dict[str, Any], of: str = "") -> dict[str, str]:
    """What was measured as columns of a table: whose and what -> value.

    A standard error is that of the distance beside it.
    """
    columns: dict[str, str] = {}
    for key, value in quality.items():
        if isinstance(value, dict):
            columns |= _measures(value, f"{key} ".replace("_", " "))
        elif isinstance(value, int | float) and key != "standard_error":
            columns[f"{of}{key}"] = _short(value)
    if f"{of}distance" in columns and "standard_error" in quality:
        columns[f"{of}distance"] += f" ± {quality['standard_error']:.1g}"
    return columns


def _numbers(count: int, share: float | None) -> tuple[str, str]:
    return f"{count:,}", "" if share is None else f"{share:.2%}"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_short(part)}" for key, part in value.items())
    if isinstance(value, list):
        return ", ".join(_short(part) for part in value)
    return "none" if value is None else str(value)
