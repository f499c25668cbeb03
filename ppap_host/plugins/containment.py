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

from ppap_host.files.errors import PluginWarning

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
    all_messages, all_modules = (
        getattr(wanted, "pattern", wanted) in (None, "", ".*") for wanted in (message, module)
    )
    return all_messages and all_modules and category.__module__ == builtins.__name__


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


def _images() -> tuple[int | None, bool]:
    from PIL import Image, ImageFile

    return Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES


def _set_images(value: tuple[int | None, bool]) -> None:
    from PIL import Image, ImageFile

    Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = value


def _cuda_states() -> Any:
    torch = _torch()
    return torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None


def _set_cuda_states(states: Any) -> None:
    if states is not None:
        _torch().cuda.set_rng_state_all(states)


def _same_cuda_states(a: Any, b: Any) -> bool:
    # None: graphics cards were not in use yet.
    return a is None or b is None or all(map(_torch().equal, a, b))


def _autocast() -> tuple[bool, ...]:
    return tuple(_torch().is_autocast_enabled(kind) for kind in ("cpu", "cuda"))


def _set_autocast(value: tuple[bool, ...]) -> None:
    for kind, enabled in zip(("cpu", "cuda"), value, strict=True):
        _torch().set_autocast_enabled(kind, enabled)


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


VARIABLES = Setting(
    "environment variables of the number of threads and devices",
    lambda: {name: os.environ.get(name) for name in _VARIABLES}, _set_variables,
)  # fmt: skip
"""Read by libraries when they are imported, and never again."""

SETTINGS: tuple[Setting, ...] = (
    Setting("the warning filters", lambda: list(warnings.filters), _set_filters,
            _same_filters),
    Setting("the handler of Ctrl-C", lambda: signal.getsignal(signal.SIGINT), _set_interrupt),
    Setting("the working directory", _working_directory, _set_working_directory),
    VARIABLES,
    Setting("the root logger", lambda: (logging.root.level, list(logging.root.handlers)),
            _set_logger),
    Setting("which messages are logged at all", lambda: logging.root.manager.disable,
            logging.disable),
    Setting("what is done with uncaught errors", lambda: sys.excepthook,
            lambda value: setattr(sys, "excepthook", value)),
    Setting("which images Pillow reads", _images, _set_images, module="PIL.ImageFile"),
    Setting("the random generator of Python", random.getstate, random.setstate, draws=True),
    Setting("the random generator of numpy", lambda: _numpy().random.get_state(),
            lambda value: _numpy().random.set_state(value), _same_arrays, "numpy", draws=True),
    Setting("the error handling of numpy", lambda: _numpy().geterr(),
            lambda value: _numpy().seterr(**value), module="numpy"),
    Setting("the random generator of torch", lambda: _torch().get_rng_state(),
            lambda value: _torch().set_rng_state(value),
            lambda a, b: bool(_torch().equal(a, b)), "torch", draws=True),
    Setting("the random generators of graphics cards", _cuda_states, _set_cuda_states,
            _same_cuda_states, "torch", draws=True),
    Setting("automatic mixed precision", _autocast, _set_autocast, module="torch"),
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

_MODULES = sorted({setting.module for setting in SETTINGS})


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
            text = plain(self.printed)
            shown = text if len(text) <= PRINTED_SHOWN else text[: PRINTED_SHOWN - 3] + "..."
            told.append(f"prints to standard output ({shown!r}), which went to standard error")
        if self.changed:
            told.append(f"changes {', '.join(self.changed)}, which was undone")
        return "; ".join(told)


class _Diverted:
    """Standard output while a plugin's code runs: hands everything to standard error.

    Other threads, and whoever keeps it for later, write to standard output as before.
    """

    def __init__(self, conduct: Conduct, before: Any) -> None:
        self._conduct, self._before = conduct, before
        self._thread: int | None = threading.get_ident()

    def release(self) -> None:
        """Lets everything through from now on."""
        self._thread = None

    def _stream(self) -> Any:
        if threading.get_ident() != self._thread:
            return self._before
        return sys.stderr or _NOWHERE

    def write(self, text: str) -> int:
        if threading.get_ident() == self._thread:
            room = 4 * PRINTED_SHOWN - len(self._conduct.printed)
            self._conduct.printed += text[: max(room, 0)]
        written: int = self._stream().write(text)
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream(), name)


_NOWHERE = io.StringIO()
"""For programs without a standard error, such as those without a console."""


class _WhenImported(MetaPathFinder):
    """Tells before and after one of some modules is imported, while its importer waits."""

    def __init__(
        self, names: Sequence[str], before: Callable[[], None], after: Callable[[str], None]
    ) -> None:
        self._names, self._before, self._after = names, before, after

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self._names:
            return None
        following = sys.meta_path[sys.meta_path.index(self) + 1 :]
        found = (finder.find_spec(fullname, path, target) for finder in following)
        spec = next(filter(None, found), None)
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            self._before()
            run(module)
            self._after(fullname)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def contained(draws: bool = True) -> Iterator[Conduct]:
    """Runs a plugin's code so that nobody else notices; tells what would have been noticed.

    What the code prints goes to standard error. The :data:`SETTINGS` are put back. Those of a
    library that the code itself imports are put back to what they are when it has been imported.
    Where another thread is inside already, the code runs as it is: the settings are the process's,
    and could not be told apart.

    Args:
        draws: whether drawing from a global random generator is told of. It is undone either way.
            A network's random initial weights are drawn from there, so that it is no fault of a
            factory.

    Raises:
        RuntimeError: the code calls ``sys.exit``, which would end the host without a word.
    """
    conduct = Conduct()
    if not _ONE_AT_A_TIME.acquire(blocking=False):
        yield conduct
        return
    before: dict[str, Any] = {}

    def take(module: str) -> None:
        for setting in SETTINGS:
            if setting.module == module:
                before[setting.what] = setting.read()

    def as_they_were() -> None:
        # A library reads its variables once: putting them back later would be too late.
        if not VARIABLES.same(before[VARIABLES.what], VARIABLES.read()):
            VARIABLES.restore(before[VARIABLES.what])
            conduct.changed.append(VARIABLES.what)

    absent = [module for module in _MODULES if module and module not in sys.modules]
    for module in _MODULES:
        if module not in absent:
            take(module)
    finder = _WhenImported(absent, as_they_were, take)
    if absent:
        sys.meta_path.insert(0, finder)
    diverted = _Diverted(conduct, sys.stdout)
    try:
        with redirect_stdout(diverted):
            yield conduct
    except SystemExit as stop:
        raise RuntimeError(f"it calls sys.exit({stop.code!r})") from stop
    finally:
        diverted.release()
        if absent and finder in sys.meta_path:
            sys.meta_path.remove(finder)
        _put_back(before, conduct, draws)
        _ONE_AT_A_TIME.release()


def _put_back(before: dict[str, Any], conduct: Conduct, draws: bool) -> None:
    """Restores every setting that differs, and tells of it."""
    for setting in SETTINGS:
        if setting.what not in before or setting.same(before[setting.what], setting.read()):
            continue
        told = setting.what
        try:
            setting.restore(before[setting.what])
        except (RuntimeError, OSError) as error:
            told = f"{told} (for good: {in_a_line(error)})"
        # beartype, where it is loaded, draws from Python's generator to check containers.
        if setting.draws and (not draws or ("beartype" in sys.modules and not setting.module)):
            continue
        if told not in conduct.changed:
            conduct.changed.append(told)


class Watch:
    """Runs the methods of a plugin's object contained, and warns once a method.

    Args:
        who: does it, for the warning: "The guide 'depth' of ppap-plugin-depth 1.0".
    """

    def __init__(self, who: str) -> None:
        self._who = who
        self._asked: set[str] = set()
        self._told: set[str] = set()

    @contextmanager
    def __call__(self, method: str) -> Iterator[None]:
        """While one method runs."""
        # What is made when it is first needed, such as a network, may draw its weights then.
        with contained(draws=method in self._asked) as conduct:
            yield
        self._asked.add(method)
        if conduct and method not in self._told:
            self._told.add(method)
            again = ""
            if any("random generator" in what for what in conduct.changed):
                again = ", so that it draws the same numbers every time"
            warn_of(conduct, f"{self._who}, asked for {method}(),", again)


def warn_of(conduct: Conduct, who: str, then: str = "") -> None:
    """Warns of what somebody did, and what comes of it, if there is anything to tell."""
    if conduct:
        warnings.warn(f"{who} {conduct}{then}.", PluginWarning, stacklevel=3)


def in_a_line(error: BaseException) -> str:
    """Type and message of any error, without line breaks, whatever its author made of it."""
    name = type(error).__name__
    try:
        text = str(error)
    except Exception:
        text = ""
    return f"{name}: {plain(text).rstrip('.')}" if text else name


def plain(text: str) -> str:
    """Text that can be printed anywhere, on one line."""
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())
