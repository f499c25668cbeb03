"""``ppap experts``: what is in expert sets, whether they fit, and joining them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from ppap_host.cli import complete
from ppap_host.cli.help import Application
from ppap_host.cli.options import AsJson, option, out
from ppap_host.cli.output import counted, print_json, tell, tell_path
from ppap_host.cli.progress import progress_bar
from ppap_host.cli.tables import Column, show_table
from ppap_host.files.errors import OptionError, OutputError

app = Application("Show, verify and join sets of experts.")


def _set(metavar: str = "NAME|FILE|FOLDER") -> Any:
    return typer.Argument(
        metavar=metavar, autocompletion=complete.of("expert set"),
        help="A registered name (`ppap list experts`), a safetensors file, or a folder of "
        "`ppap tune`.",
    )  # fmt: skip


@app.command()
def show(
    experts: Annotated[str, _set()],
    as_json: AsJson = False,
) -> None:
    """Show a set: its noise ranges, sizes, measured quality and where it comes from.

    Ranges are in log-SNR, log(alpha^2 / sigma^2), half-open, from clean to noisy.
    """
    from ppap_host.experts.sets import ExpertSet
    from ppap_host.plugins.registry import registry
    from ppap_host.runs.choice import expert_set_path

    with progress_bar() as watch:
        watch("reading experts", 0, 1)
        path = expert_set_path(experts, registry())
        described = ExpertSet.load(path).describe() | {"file": str(path)}
    if as_json:
        print_json(described)
    else:
        _show(described)


@app.command()
def verify(
    experts: Annotated[str, _set()],
    model: Annotated[str | None, option(
        "The guide's network, if not the one the set names.",
        "--model", "-m", panel="Options", metavar="FILE|FOLDER|HUB-NAME",
    )] = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Verify a set against its guide: the network's hash, every shape, finite values."""
    with progress_bar() as watch:
        watch("reading experts and their guide", 0, 1)
        outcome = _verified(experts, model)
    if as_json:
        print_json(outcome)
    else:
        tell(
            f"OK: {counted(outcome['experts'], 'expert fits', 'experts fit')} the guide "
            f"{outcome['guide']!r}, network {outcome['network_sha256'][:12]}..., on "
            f"{outcome['view']} images."
        )


def _verified(text: str, model: str | None) -> dict[str, Any]:
    """What was found of a set that is sound.

    Raises:
        CheckpointError: it is not.
    """
    from ppap_host.experts.sets import ExpertSet
    from ppap_host.files.errors import CheckpointError
    from ppap_host.files.offline import nothing_fetched
    from ppap_host.plugins.loading import load_guide
    from ppap_host.plugins.registry import registry
    from ppap_host.runs.choice import expert_set_path

    path = expert_set_path(text, registry())
    found = ExpertSet.load(path)
    name = found.metadata.get("guide")
    if name is None or found.metadata.get("network_sha256") is None:
        raise CheckpointError(
            f"{str(path)!r} does not say which guide and network it is for.",
            remedy="Tune it again, or ask whoever made it.",
        )
    named = "" if model is not None else str(path)
    model = model if model is not None else found.metadata.get("model")
    with nothing_fetched(named, "Give the model yourself with --model if you want it."):
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
    return {
        "ok": True,
        "file": str(path),
        "guide": name,
        "model": model,
        "network_sha256": found.metadata["network_sha256"],
        "experts": len(found.patches),
        "view": found.view,
    }


@app.command()
def merge(
    experts: Annotated[list[str], _set("NAME|FILE|FOLDER...")],
    into: Annotated[Path, out("File to write.", panel="Options", metavar="FILE")],
    as_json: AsJson = False,
) -> None:
    """Join sets with disjoint noise ranges into one.

    They must have been tuned on the same network, image size and view.
    """
    from ppap_host.experts.sets import ExpertSet, joined
    from ppap_host.files.hashes import sha256_file
    from ppap_host.plugins.registry import registry
    from ppap_host.runs.choice import expert_set_path

    if os.path.lexists(into):
        raise OutputError(
            f"{str(into)!r} is there already.",
            remedy="Give another file with --out; nothing is overwritten.",
        )
    with progress_bar() as watch:
        watch("joining experts", 0, 1)
        paths = [expert_set_path(text, registry()) for text in experts]
        for path in paths:
            if paths.count(path) > 1:
                raise OptionError(f"{str(path)!r} is given twice.", remedy="Leave one of them out.")
        whole = joined({str(path): ExpertSet.load(path) for path in paths})
        whole.metadata["merged_from"] = [
            {"file": path.name, "sha256": sha256_file(path)} for path in paths
        ]
        whole.save(into)
    if as_json:
        print_json({"file": str(into), "experts": len(whole.ranges)})
    else:
        tell_path(counted(len(whole.ranges), "expert"), into)


def _show(described: dict[str, Any]) -> None:
    experts, trainable = described.pop("experts"), described.pop("trainable")
    qualities = [_measures(expert["quality"]) for expert in experts]
    measures = list(dict.fromkeys(key for quality in qualities for key in quality))
    rows = []
    for expert, quality in zip(experts, qualities, strict=True):
        low, high = expert["log_snr"]
        low, high = (
            "-inf" if low is None else f"{low:.2f}",
            "inf" if high is None else f"{high:.2f}",
        )
        numbers = _numbers(expert["trainable"], expert["share"])
        values = [quality.get(measure, "") for measure in measures]
        rows.append([f"[{low}, {high})", *numbers, *values])
    columns = [Column(title, number=True) for title in ("trainable", "share", *measures)]
    total = ["all", *_numbers(trainable["total"], trainable["share"]), *[""] * len(measures)]
    show_table([Column("log-SNR"), *columns], rows, described.pop("file"), last=[total])
    origin = [(key.replace("_", " "), _short(value)) for key, value in described.items()]
    show_table([Column(""), Column("", prose=True)], origin)


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
    if f"{of}distance" in columns and quality.get("standard_error") is not None:
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
