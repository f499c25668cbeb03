"""Completion: of the shells, and of the names that options take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from typer import completion

from ppap_host.cli.output import clean

if TYPE_CHECKING:
    from ppap_host.plugins.plugin import Kind

Completion = Callable[[str], list[tuple[str, str]]]
"""Gives the names that begin like what was typed, each with what it is."""


def prepare() -> None:
    """Makes Typer know the shells, which it does by itself only for its own two options.

    Those take twice as long to read as all others together.
    """
    completion.get_completion_inspect_parameters()


def install(ctx: Any, param: Any, value: bool) -> bool:
    """Callback of --install-completion."""
    return bool(completion.install_callback(ctx, param, value))


def show(ctx: Any, param: Any, value: bool) -> bool:
    """Callback of --show-completion."""
    return bool(completion.show_callback(ctx, param, value))


def _beginning(names: Iterable[tuple[str, str]], typed: str) -> list[tuple[str, str]]:
    # Typer takes brackets in what it shows beside a name for Rich's markup.
    return [
        (name, clean(told).replace("[", "(").replace("]", ")"))
        for name, told in names
        if name.startswith(typed)
    ]


def of(kind: Kind) -> Completion:
    """Completes names of guides, backbones, recipes or expert sets."""

    def complete(incomplete: str) -> list[tuple[str, str]]:
        from ppap_host.plugins.registry import registry

        found = registry().names(kind)
        return _beginning(((name, c[0][1].summary) for name, c in found.items()), incomplete)

    return complete


def weights(incomplete: str) -> list[tuple[str, str]]:
    """Completes names of published files of weights."""
    from ppap_host.plugins.registry import registry

    found = registry().published_files()
    return _beginning(((name, c[0][1].summary) for name, c in found.items()), incomplete)


def among(names: Mapping[str, str] | Iterable[str]) -> Completion:
    """Completes one of these words, each perhaps with what it is."""
    pairs = names.items() if isinstance(names, Mapping) else [(name, "") for name in names]

    def complete(incomplete: str) -> list[tuple[str, str]]:
        return _beginning(pairs, incomplete)

    return complete


def balances(incomplete: str) -> list[tuple[str, str]]:
    """Completes ways to balance several guides."""
    from ppap_host.sampling.names import BALANCE_SUMMARIES

    return _beginning(BALANCE_SUMMARIES.items(), incomplete)
