"""Reads pickles as data.

A pickle is a program for a small stack machine, and Python's own reader lets it import and call
what it likes. The machine here knows containers, numbers and strings; a name stays a
:class:`Name`, a call stays a :class:`Call`, and nothing is imported, called or set. Names outside a
list are refused at once, wherever in the file they are.

:func:`read_storage` reads the tensors' bytes inside, which torch writes as files within the file,
each with pickles of its own, in the same way. ``torch.storage._load_from_bytes``, which is named in
the outer pickle, would open them with an unrestricted reader.
"""

from __future__ import annotations

import io
import mmap
import pickletools
import struct
import zipfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import IO, Any, Final, cast

import torch
from torch import Tensor

Bytes = io.BytesIO | mmap.mmap
"""What is read from: their reads end where they end, whatever length a damaged file claims."""


class RefusedError(ValueError):
    """A pickle holds something that is not data of the kind that is expected."""


@dataclass(frozen=True, slots=True)
class Name:
    """Something importable that a pickle names; only its name."""

    path: str


@dataclass(eq=False, slots=True)
class Call:
    """A call that a pickle asks for, not made.

    Attributes:
        function: what should be called, a dotted path.
        arguments: with what.
        state: what should be set on the result, None for nothing.
    """

    function: str
    arguments: tuple[Any, ...]
    state: Any = None


@dataclass(frozen=True, eq=False, slots=True)
class Reference:
    """A persistent id: something that lies outside the pickle."""

    key: Any


_PUSH: Final = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
}  # fmt: skip
_CONSTANTS: Final = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_PUT: Final = {"PUT", "BINPUT", "LONG_BINPUT"}
_GET: Final = {"GET", "BINGET", "LONG_BINGET"}
_IGNORED: Final = {"PROTO", "FRAME"}
_ORDERED_DICT: Final = "collections.OrderedDict"
_KEYS: Final = (str, int, float, bytes, type(None))


class _Machine:
    """The stack of one pickle; :meth:`run` is its program."""

    def __init__(self, names: Collection[str], references: bool) -> None:
        self.names, self.references = names, references
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, file: Bytes) -> Any:
        """The value of the pickle that begins here; the file is left just behind it."""
        argument: Any
        for opcode, argument, _ in pickletools.genops(cast(IO[bytes], file)):
            code = opcode.name
            if code == "STOP":
                (value,) = self.stack
                return value
            if code in _PUSH:
                self.stack.append(argument)
            elif code in _CONSTANTS:
                self.stack.append(_CONSTANTS[code])
            elif code in _EMPTY:
                self.stack.append(_EMPTY[code]())
            elif code in _PUT:
                self.memo[argument] = self.stack[-1]
            elif code in _GET:
                self.stack.append(self.memo[argument])
            elif code in _STEPS:
                _STEPS[code](self)
            elif code == "GLOBAL":
                self.name(*argument.split(" ", 1))
            elif code not in _IGNORED:
                raise RefusedError(f"it has the instruction {code}, which such files do not need")
        raise RefusedError("it has no end")

    def pull(self, kind: type | tuple[type, ...] = object) -> Any:
        """Takes the top of the stack off."""
        value = self.stack.pop()
        if not isinstance(value, kind):
            raise RefusedError(f"a {type(value).__name__} is where it does not belong")
        return value

    def top(self, kind: type | tuple[type, ...]) -> Any:
        """The top of the stack."""
        self.stack.append(self.pull(kind))
        return self.stack[-1]

    def marked(self) -> list[Any]:
        """Takes off what was pushed since the last mark."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def push(self, value: Any) -> None:
        """Puts a value on the stack."""
        self.stack.append(value)

    def memoize(self) -> None:
        """Remembers the top under the next number."""
        self.memo[len(self.memo)] = self.stack[-1]

    def mark(self) -> None:
        """Begins a new stack above this one."""
        self.below.append(self.stack)
        self.stack = []

    def last(self, count: int) -> list[Any]:
        """Takes off ``count`` values, the deepest first."""
        return [self.stack.pop() for _ in range(count)][::-1]

    def extend(self, items: list[Any]) -> None:
        """Adds to the list on the top."""
        self.top(list).extend(items)

    def add(self, items: list[Any]) -> None:
        """Adds to the set on the top."""
        self.top(set).update(_keys(items))

    def store(self, items: list[Any]) -> None:
        """Adds keys and values, in turn, to the dictionary on the top."""
        self.top(dict).update(_pairs(items))

    def name(self, module: str, attribute: str) -> None:
        """Puts a name on the stack if it is allowed."""
        path = f"{module}.{attribute}"
        if path not in self.names:
            raise RefusedError(f"it names {path[:200]!r}, which such files do not need")
        self.push(Name(path))

    def stack_global(self) -> None:
        """Puts the name that the two strings on the top are."""
        module, attribute = self.last(2)
        if not isinstance(module, str) or not isinstance(attribute, str):
            raise RefusedError("a name is no string")
        self.name(module, attribute)

    def reduce(self) -> None:
        """Puts the call of a name, or the dictionary that it would return."""
        arguments, function = self.pull(tuple), self.pull(Name)
        if function.path == _ORDERED_DICT:
            # Of pairs, in protocol 1 and older.
            pairs = arguments[0] if arguments else ()
            self.push(_pairs([part for key, value in pairs for part in (key, value)]))
        else:
            self.push(Call(function.path, arguments))

    def build(self) -> None:
        """Notes a call's state; attributes of a dictionary are nothing that a network needs."""
        state = self.stack.pop()
        if isinstance(self.top((Call, dict)), Call):
            self.stack[-1].state = state

    def binpersid(self) -> None:
        """Puts a reference."""
        if not self.references:
            raise RefusedError("it refers to another file")
        self.push(Reference(self.stack.pop()))


_EMPTY: Final[Mapping[str, Callable[[], Any]]] = {
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_STEPS: Final[Mapping[str, Callable[[_Machine], Any]]] = {
    "MARK": _Machine.mark,
    "POP": _Machine.pull,
    "POP_MARK": _Machine.marked,
    "DUP": lambda m: m.push(m.stack[-1]),
    "MEMOIZE": _Machine.memoize,
    "TUPLE": lambda m: m.push(tuple(m.marked())),
    "TUPLE1": lambda m: m.push(tuple(m.last(1))),
    "TUPLE2": lambda m: m.push(tuple(m.last(2))),
    "TUPLE3": lambda m: m.push(tuple(m.last(3))),
    "LIST": lambda m: m.push(m.marked()),
    "APPEND": lambda m: m.extend(m.last(1)),
    "APPENDS": lambda m: m.extend(m.marked()),
    "ADDITEMS": lambda m: m.add(m.marked()),
    "FROZENSET": lambda m: m.push(frozenset(_keys(m.marked()))),
    "DICT": lambda m: m.push(_pairs(m.marked())),
    "SETITEM": lambda m: m.store(m.last(2)),
    "SETITEMS": lambda m: m.store(m.marked()),
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.reduce,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.binpersid,
}


def _keys(keys: list[Any]) -> list[Any]:
    """Keys of a dictionary or a set: hashing anything deeper could exhaust the interpreter."""
    for key in keys:
        if not isinstance(key, _KEYS):
            raise RefusedError(f"a {type(key).__name__} is used as a key")
    return keys


def _pairs(items: list[Any]) -> dict[Any, Any]:
    """The dictionary of keys and values in turn."""
    return dict(zip(_keys(items[::2]), items[1::2], strict=True))


def read_pickle(file: Bytes, names: Collection[str], *, references: bool = False) -> Any:
    """The value of the pickle at the start of a file, without running anything.

    Args:
        file: is left just behind the pickle.
        names: dotted paths of what it may name.
        references: whether it may hold persistent ids.

    Returns:
        Containers, numbers, strings, and inert :class:`Name`, :class:`Call` and :class:`Reference`.

    Raises:
        RefusedError: it names, or does, something else.
        Exception: it is damaged; there is no telling how.
    """
    return _Machine(names, references).run(file)


DTYPES: Final = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
}
_MAGIC: Final = 0x1950A86A20F9469CFC6C
_PROTOCOL: Final = 1001
_ZIP: Final = b"PK\x03\x04"


def read_storage(blob: bytes) -> Tensor:
    """One storage as torch writes it into a pickle, 1-d, on the CPU.

    Both formats of ``torch.save`` are read: the older one, a sequence of pickles with the numbers
    behind them, and archives.

    Raises:
        RefusedError: it is something else than one plain storage.
        Exception: it is damaged.
    """
    return _archived_storage(blob) if blob.startswith(_ZIP) else _serial_storage(blob)


def _serial_storage(blob: bytes) -> Tensor:
    file = io.BytesIO(blob)
    if read_pickle(file, ()) != _MAGIC or read_pickle(file, ()) != _PROTOCOL:
        raise RefusedError("a storage is in a format that is not known")
    if read_pickle(file, ()).get("little_endian") is not True:
        raise RefusedError("a storage was written on a big-endian machine")
    key, dtype, count = _described(read_pickle(file, DTYPES, references=True))
    if read_pickle(file, ()) != [key]:
        raise RefusedError("it holds more than one storage in one")
    if struct.unpack("<q", file.read(8)) != (count,):
        raise RefusedError("a storage has two sizes")
    return _numbers(file.read(), dtype, count)


def _archived_storage(blob: bytes) -> Tensor:
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
        # torch does not compress: what is larger than the blob is no storage of its making.
        if sum(sizes.values()) > len(blob):
            raise RefusedError("a storage is larger than the file that it is in")
        (index,) = (name for name in sizes if name.endswith("/data.pkl"))
        root = index.removesuffix("data.pkl")
        if f"{root}byteorder" in sizes and archive.read(f"{root}byteorder") != b"little":
            raise RefusedError("a storage was written on a big-endian machine")
        described = read_pickle(io.BytesIO(archive.read(index)), DTYPES, references=True)
        key, dtype, count = _described(described)
        return _numbers(archive.read(f"{root}data/{key}"), dtype, count)


def _described(storage: Any) -> tuple[str, torch.dtype, int]:
    """Key, dtype and number of elements that a storage's own pickle tells."""
    if not isinstance(storage, Reference) or not isinstance(storage.key, tuple):
        raise RefusedError("a storage holds something else than numbers")
    word, kind, key, _, count, *view = storage.key
    plain = word == "storage" and isinstance(kind, Name) and view in ([], [None])
    if not plain or not isinstance(key, str) or not isinstance(count, int) or count < 0:
        raise RefusedError("a storage is not plain")
    return key, DTYPES[kind.path], count


def _numbers(data: bytes, dtype: torch.dtype, count: int) -> Tensor:
    if len(data) != count * dtype.itemsize:
        raise RefusedError(f"a storage of {count} numbers has {len(data)} bytes")
    if not count:
        return torch.empty(0, dtype=dtype)
    # A copy that may be written to: a view of bytes may not.
    return torch.frombuffer(bytearray(data), dtype=dtype)
