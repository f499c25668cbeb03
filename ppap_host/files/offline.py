"""Nothing is fetched that the user did not name.

A record names models, and whoever repeats it has not read them. What a name leads to is known to
the plugin alone (``someone/model``, ``timm:resnet50``, ``torchvision:resnet50`` ...), so the
network itself is closed, whatever a loader makes of the name. What is on this machine already, in
the cache of a hub too, is used.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any
from weakref import WeakSet

from ppap_host.files.errors import CheckpointError

_source: ContextVar[tuple[str, str]] = ContextVar("_source", default=("", ""))

_OF_A_RECORD = (
    "Give the model yourself if you want it: run what the record says with `ppap run --config`, or "
    "ppap.rerun(..., guides=...)."
)


@contextmanager
def nothing_fetched(source: str, remedy: str = _OF_A_RECORD) -> Iterator[None]:
    """Closes the network to this thread, and to all that begin while the context lasts.

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
    others = WeakSet(t for t in threading.enumerate() if t is not threading.current_thread())
    entry = ((source, remedy), others)
    _closed.append(entry)
    try:
        # The hub's client may talk past Python, and has a switch of its own.
        from huggingface_hub import constants

        before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
        try:
            yield
        finally:
            constants.HF_HUB_OFFLINE = before
    finally:
        _closed.remove(entry)
        _source.reset(token)


@cache
def _watch() -> None:
    """Hooks are for good: one for all."""
    sys.addaudithook(_seen)


_closed: list[tuple[tuple[str, str], WeakSet[threading.Thread]]] = []
"""For threads, which do not take their contexts with them: what is closed now, and the threads that
were there before, whose affair it is not."""

_ASKS = {"socket.getaddrinfo": 0, "socket.gethostbyname": 0, "socket.connect": 1}
"""Events by which a process asks the network, and which argument says whom."""


def _seen(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in _ASKS:
        return
    source, remedy = _source.get()
    if not source and _closed:
        me = threading.current_thread()
        source, remedy = next((said for said, others in _closed if me not in others), ("", ""))
    if not source:
        return
    whom = arguments[_ASKS[event]]
    if isinstance(whom, str) and event == "socket.connect":
        return  # a socket of this machine's own
    raise CheckpointError(
        f"{source!r} names a model that is not on this machine, and "
        f"{whom[0] if isinstance(whom, tuple) else whom} was asked for it.",
        remedy=f"Nothing was fetched. {remedy}",
    )
