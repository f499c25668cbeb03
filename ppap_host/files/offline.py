"""Nothing is fetched that the user did not name.

A record names models, and whoever repeats it has not read them. What a name leads to is known to
the plugin alone (``someone/model``, ``timm:resnet50``, ``torchvision:resnet50`` ...), so the
network itself is closed, whatever a loader makes of the name. What is on this machine already, in
the cache of a hub too, is used.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

from ppap_host.files.errors import CheckpointError

_source: ContextVar[tuple[str, str]] = ContextVar("_source", default=("", ""))

_OF_A_RECORD = (
    "Give the model yourself if you want it: run what the record says with `ppap run --config`, or "
    "ppap.rerun(..., guides=...)."
)


@contextmanager
def nothing_fetched(source: str, remedy: str = _OF_A_RECORD) -> Iterator[None]:
    """Closes the network to this thread as long as the context lasts.

    Args:
        source: what named the models, for the error; empty to leave the network as it is.
        remedy: how to get what was wanted.

    Raises (whatever asks for the network):
        CheckpointError: says to give the model again.
    """
    if not source:
        yield
        return
    _watch()
    token = _source.set((source, remedy))
    try:
        # The hub's client may talk past Python, and has a switch of its own.
        from huggingface_hub import constants

        before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
        try:
            yield
        finally:
            constants.HF_HUB_OFFLINE = before
    finally:
        _source.reset(token)


@cache
def _watch() -> None:
    """Hooks are for good: one for all."""
    sys.addaudithook(_seen)


def _seen(event: str, arguments: tuple[Any, ...]) -> None:
    source, remedy = _source.get()
    if event == "socket.getaddrinfo" and source:
        raise CheckpointError(
            f"{source!r} names a model that is not on this machine, and {arguments[0]} was asked "
            "for it.",
            remedy=f"Nothing was fetched. {remedy}",
        )
