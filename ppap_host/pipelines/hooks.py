"""Methods of one object of somebody else's, taken over for a while.

The object itself is not written to: its class is exchanged for a subclass of the same name whose
method asks the hooks first, and put back afterwards. So a copy of the object, deep or shallow, is
one of the original class and hooked to nothing, another object of the class is left alone, and no
attribute appears in what is saved.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

Hook = Callable[..., Any]
"""Called as hook(object, call, *args, **kwargs), where ``call`` does what the method does."""

_LOCK = threading.RLock()
_HOOKS: dict[int, list[tuple[str, Hook]]] = {}
_KINDS: dict[type, type] = {}
_METHODS = ("__call__", "step", "__setattr__")


@contextmanager
def hooked(thing: Any, method: str, hook: Hook) -> Iterator[None]:
    """Lets ``hook`` stand before a method of one object; the hook that came last is asked first.

    Args:
        method: ``__call__``, ``step`` or ``__setattr__``.
    """
    entry = (method, hook)
    with _LOCK:
        hooks = _HOOKS.setdefault(id(thing), [])
        if not hooks:
            object.__setattr__(thing, "__class__", _hookable(type(thing)))
        hooks.append(entry)
    try:
        yield
    finally:
        with _LOCK:
            hooks.remove(entry)
            if not hooks:
                del _HOOKS[id(thing)]
                object.__setattr__(thing, "__class__", original(type(thing)))


class Hooks(ExitStack):
    """A hook before one method of several objects, once before each, until all are left."""

    def __init__(self, method: str, hook: Hook) -> None:
        super().__init__()
        self._method, self._hook = method, hook
        self._things: list[Any] = []

    def add(self, thing: Any) -> None:
        """Hooks an object, if it has such a method and is not hooked yet."""
        if hasattr(thing, self._method) and not any(thing is known for known in self._things):
            self._things.append(thing)
            self.enter_context(hooked(thing, self._method, self._hook))


@contextmanager
def frozen(networks: Iterable[nn.Module]) -> Iterator[None]:
    """No weight of the networks wants a gradient; afterwards those that did do again."""
    wanted = [p for network in networks for p in network.parameters() if p.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


def original(kind: type) -> type:
    """The class that a class stands for."""
    found: type = vars(kind).get("_stands_for", kind)
    return found


def _hookable(kind: type) -> type:
    """The subclass of a class that asks the hooks of its objects."""
    if kind not in _KINDS:
        own: dict[str, Any] = {
            "__module__": kind.__module__,
            "__qualname__": kind.__qualname__,
            "__doc__": kind.__doc__,
            "__new__": lambda _, *args, **kwargs: kind(*args, **kwargs),
            "__reduce_ex__": _reduced,
            "_stands_for": kind,
        }
        own |= {name: _asking(kind, name) for name in _METHODS if hasattr(kind, name)}
        _KINDS[kind] = type(kind)(kind.__name__, (kind,), own)
    return _KINDS[kind]


def _asking(kind: type, method: str) -> Callable[..., Any]:
    function = getattr(kind, method)

    @functools.wraps(function)
    def asking(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = functools.partial(function, self)
        for name, hook in tuple(_HOOKS.get(id(self), ())):
            if name == method:
                call = functools.partial(hook, self, call)
        return call(*args, **kwargs)

    return asking


def _reduced(self: Any, protocol: Any) -> Any:
    """How a hooked object is copied and pickled: as one of its original class."""
    kind = original(type(self))
    make, args, *rest = super(type(self), self).__reduce_ex__(protocol)
    return (_made, (make, *(kind if a is type(self) else a for a in args)), *rest)


def _made(make: Callable[..., Any], *args: Any) -> Any:
    # pickle takes copyreg.__newobj__ for objects of their own class only.
    return make(*args)
