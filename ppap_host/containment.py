"""Keeps what a plugin's code does to the whole process from reaching anybody else.

Standard output carries results, often JSON for another program. Default dtypes, thread counts,
random generators and warning filters are everybody's: a plugin that changes one changes the images
of all others, and no record says so. So plugins are imported, made and asked inside
:func:`contained`, which puts back what was changed and tells what it was.
"""

from __future__ import annotations

import builtins
import importlib.machinery
import io
import logging
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any

from ppap_host.errors import PluginWarning

PRINTED_SHOWN = 60
"""How many characters of what was printed are told."""


@dataclass(frozen=True)
class Setting:
    """A setting of the process.

    Attributes:
        what: it is called in messages.
        read: its value.
        restore: puts a value back; may raise RuntimeError where that cannot be done any more.
        same: whether two values are the same.
        module: what must have been imported for it to exist; "" if it always does.
        draws: whether it is the state of a random generator.
    """

    what: str
    read: Callable[[], Any]
    restore: Callable[[Any], None]
    same: Callable[[Any, Any], bool] = lambda a, b: bool(a == b)
    module: str = ""
    draws: bool = False


_VARIABLES = (
    "CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG", "MKL_NUM_THREADS", "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
)  # fmt: skip
"""Environment variables that decide on what, and on how many threads, everybody computes."""


def _set_variables(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _working_directory() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:  # somebody removed it
        return None


def _set_working_directory(folder: str | None) -> None:
    if folder is not None:
        os.chdir(folder)


def _set_interrupt(handler: Any) -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, handler)


def _is_for_everybody(entry: Any) -> bool:
    """Whether a warning filter is for a built-in category, every message and every module.

    A library may silence its own warnings, or one message; that is left alone.
    """
    _, message, category, module, _ = entry
    return message is None and module is None and category.__module__ == builtins.__name__


def _same_filters(a: list[Any], b: list[Any]) -> bool:
    return list(filter(_is_for_everybody, a)) == list(filter(_is_for_everybody, b))


def _set_filters(saved: list[Any]) -> None:
    added = [f for f in warnings.filters if f not in saved and not _is_for_everybody(f)]
    warnings.filters[:] = [*added, *saved]  # type: ignore[index]
    with warnings.catch_warnings():
        pass  # leaving it makes Python look at the filters again


def _set_logger(value: tuple[int, list[logging.Handler]]) -> None:
    logging.root.setLevel(value[0])
    logging.root.handlers[:] = value[1]


def _torch() -> Any:
    import torch

    return torch


def _numpy() -> Any:
    import numpy

    return numpy


def _restore_device(device: Any) -> None:
    # None, not "cpu": a default device that was named stays in the way of `with torch.device`.
    _torch().set_default_device(None if device.type == "cpu" else device)


def _cudnn() -> tuple[bool, bool]:
    cudnn = _torch().backends.cudnn
    return cudnn.benchmark, cudnn.deterministic


def _set_cudnn(value: tuple[bool, bool]) -> None:
    cudnn = _torch().backends.cudnn
    cudnn.benchmark, cudnn.deterministic = value


def _determinism() -> tuple[bool, bool]:
    torch = _torch()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    return torch.are_deterministic_algorithms_enabled(), warn_only


def _same_arrays(a: Any, b: Any) -> bool:
    """Whether two states of numpy's generator are equal."""
    return all(_numpy().array_equal(one, other) for one, other in zip(a, b, strict=True))


SETTINGS: tuple[Setting, ...] = (
    Setting("the warning filters", lambda: list(warnings.filters), _set_filters,
            _same_filters),
    Setting("the handler of Ctrl-C", lambda: signal.getsignal(signal.SIGINT), _set_interrupt),
    Setting("the working directory", _working_directory, _set_working_directory),
    Setting("environment variables of the number of threads and devices",
            lambda: {name: os.environ.get(name) for name in _VARIABLES}, _set_variables),
    Setting("the root logger", lambda: (logging.root.level, list(logging.root.handlers)),
            _set_logger),
    Setting("the random generator of Python", random.getstate, random.setstate, draws=True),
    Setting("the random generator of numpy", lambda: _numpy().random.get_state(),
            lambda value: _numpy().random.set_state(value), _same_arrays, "numpy", draws=True),
    Setting("the error handling of numpy", lambda: _numpy().geterr(),
            lambda value: _numpy().seterr(**value), module="numpy"),
    Setting("the random generator of torch", lambda: _torch().get_rng_state(),
            lambda value: _torch().set_rng_state(value),
            lambda a, b: bool(_torch().equal(a, b)), "torch", draws=True),
    Setting("the default dtype of torch", lambda: _torch().get_default_dtype(),
            lambda value: _torch().set_default_dtype(value), module="torch"),
    Setting("the default device of torch", lambda: _torch().get_default_device(),
            _restore_device, module="torch"),
    Setting("the thread count of torch", lambda: _torch().get_num_threads(),
            lambda value: _torch().set_num_threads(value), module="torch"),
    Setting("the thread count of torch between operators",
            lambda: _torch().get_num_interop_threads(),
            lambda value: _torch().set_num_interop_threads(value), module="torch"),
    Setting("whether torch records gradients", lambda: _torch().is_grad_enabled(),
            lambda value: _torch().set_grad_enabled(value), module="torch"),
    Setting("whether torch is deterministic", _determinism,
            lambda value: _torch().use_deterministic_algorithms(value[0], warn_only=value[1]),
            module="torch"),
    Setting("the precision of torch's matrix products",
            lambda: _torch().get_float32_matmul_precision(),
            lambda value: _torch().set_float32_matmul_precision(value), module="torch"),
    Setting("how cuDNN chooses algorithms", _cudnn, _set_cudnn, module="torch"),
    Setting("torch.load", lambda: _torch().load,
            lambda value: setattr(_torch(), "load", value), module="torch"),
)  # fmt: skip
"""What is put back after a plugin's code ran."""

GENERATORS = tuple(setting for setting in SETTINGS if setting.draws)


@dataclass
class Conduct:
    """What code did that others would have noticed.

    Attributes:
        printed: to standard output.
        changed: settings that were put back, or "... (for good)" where that could not be done.
    """

    printed: str = ""
    changed: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.printed or self.changed)

    def __str__(self) -> str:
        """As the rest of a sentence that begins with who did it."""
        told = []
        if self.printed:
            text = " ".join(self.printed.split())
            shown = text if len(text) <= PRINTED_SHOWN else text[: PRINTED_SHOWN - 3] + "..."
            told.append(f"prints to standard output ({shown!r}), which went to standard error")
        if self.changed:
            told.append(f"changes {', '.join(self.changed)}, which was undone")
        return "; ".join(told)


class _Diverted(io.TextIOBase):
    """Standard output while a plugin's code runs: hands everything to standard error."""

    def __init__(self, conduct: Conduct) -> None:
        self._conduct = conduct

    def write(self, text: str) -> int:
        if len(self._conduct.printed) < 4 * PRINTED_SHOWN:
            self._conduct.printed += text
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()

    def writable(self) -> bool:
        return True

    @property
    def buffer(self) -> Any:
        """Bytes are not watched, but do not reach standard output either."""
        return sys.stderr.buffer


class _WhenImported(MetaPathFinder):
    """Tells when one of some modules has been imported, before its importer goes on."""

    def __init__(self, names: Sequence[str], then: Callable[[str], None]) -> None:
        self._names, self._then = names, then

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self._names:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            self._then(fullname)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


@contextmanager
def contained(draws: bool = True) -> Iterator[Conduct]:
    """Runs a plugin's code so that nobody else notices; tells what would have been noticed.

    What the code prints goes to standard error. The :data:`SETTINGS` are put back. Those of a
    library that the code itself imports are put back to what they are when it has been imported.

    Args:
        draws: whether drawing from a global random generator is told of. It is undone either way.
            A network's random initial weights are drawn from there, so that it is no fault of a
            factory.
    """
    conduct = Conduct()
    before: dict[str, Any] = {}

    def take(module: str) -> None:
        for setting in SETTINGS:
            if setting.module == module:
                before[setting.what] = setting.read()

    absent = sorted({s.module for s in SETTINGS if s.module and s.module not in sys.modules})
    for module in sorted({s.module for s in SETTINGS} - set(absent)):
        take(module)
    finder = _WhenImported(absent, take)
    if absent:
        sys.meta_path.insert(0, finder)
    try:
        with redirect_stdout(_Diverted(conduct)):
            yield conduct
    finally:
        if absent and finder in sys.meta_path:
            sys.meta_path.remove(finder)
        _put_back(before, conduct, draws)


def _put_back(before: dict[str, Any], conduct: Conduct, draws: bool) -> None:
    """Restores every setting that differs, and tells of it."""
    for setting in SETTINGS:
        if setting.what not in before or setting.same(before[setting.what], setting.read()):
            continue
        told = setting.what
        try:
            setting.restore(before[setting.what])
        except (RuntimeError, OSError) as error:
            told = f"{told} (for good: {' '.join(str(error).split())})"
        # beartype, where it is loaded, draws from Python's generator to check containers.
        if setting.draws and (not draws or ("beartype" in sys.modules and not setting.module)):
            continue
        conduct.changed.append(told)


def warn_of(conduct: Conduct, who: str) -> None:
    """Warns of what somebody did, if there is anything to tell."""
    if conduct:
        warnings.warn(f"{who} {conduct}.", PluginWarning, stacklevel=3)
