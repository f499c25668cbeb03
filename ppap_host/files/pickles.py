"""Reads pickles, and what torch saves with them, as data.

A pickle is a program for a small stack machine, and Python's own reader lets it import and call
what it likes. The machine here knows containers, numbers and strings; a name stays a
:class:`Name`, a call stays a :class:`Call`, and nothing is imported, called or set. So a training
checkpoint with objects of any library in it can be read for its tensors, which
``torch.load(weights_only=True)`` refuses as a whole.

The machine has a budget: a pickle of a megabyte can ask for hours of work and all the memory there
is. Nothing here copies a tensor before the file is known to hold its numbers.

:func:`read_saved` reads a file of ``torch.save``, :func:`read_pickle` a plain pickle, and
:class:`Tensors` makes tensors of the calls that stand for them. Tensors of a plain pickle hold
their bytes as files within the file, each with pickles of its own, which :func:`read_storage` reads
in the same way; ``torch.storage._load_from_bytes``, which is named there, would open them with an
unrestricted reader.
"""

# Long because it reads the opcodes of a pickle without running one, each with its budget.
from __future__ import annotations

import io
import math
import mmap
import pickletools
import struct
import zipfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
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
        items: keys and values that should be put into the result, if it is some kind of table.
    """

    function: str
    arguments: tuple[Any, ...]
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, slots=True)
class Reference:
    """A persistent id: something that lies outside the pickle."""

    key: Any


MOST_STEPS: Final = 5_000_000
"""Of the machine for one pickle. A training checkpoint of a thousand tensors has some 200,000."""

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
# Of larger integers any number can be made that hash alike, so that a dictionary takes a day.
_LARGEST_KEY: Final = 2**60
# Nothing that holds numbers names these; a file that does was made to be run.
_NEVER: Final = {
    "_io", "_pickle", "bdb", "code", "codeop", "commands", "ctypes", "importlib", "io", "marshal",
    "nt", "os", "pdb", "pickle", "posix", "pty", "pydoc", "runpy", "shutil", "socket", "subprocess",
    "sys", "timeit", "webbrowser",
}  # fmt: skip
_NEVER_BUILT_IN: Final = {
    "__import__", "apply", "breakpoint", "compile", "delattr", "eval", "exec", "execfile", "file",
    "getattr", "globals", "input", "locals", "open", "setattr", "vars",
}  # fmt: skip


class _Machine:
    """The stack of one pickle; :meth:`run` is its program."""

    def __init__(self, names: Collection[str] | None, references: bool) -> None:
        self.names, self.references = names, references
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.steps = 0

    def spend(self, steps: int) -> None:
        """Takes these from the budget."""
        self.steps += steps
        if self.steps > MOST_STEPS:
            raise RefusedError(f"it asks for more than {MOST_STEPS:,} steps of work")

    def run(self, file: Bytes) -> Any:
        """The value of the pickle that begins here; the file is left just behind it."""
        argument: Any
        for opcode, argument, _ in pickletools.genops(cast(IO[bytes], file)):
            self.spend(1)
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
            elif code == "PERSID":
                self.refer(argument)
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
        """Adds to the list on the top; what an unknown object would make of it is unknown."""
        top = self.top((list, Call))
        if isinstance(top, list):
            top.extend(items)

    def add(self, items: list[Any]) -> None:
        """Adds to the set on the top."""
        self.top(set).update(self.keys(items))

    def store(self, items: list[Any]) -> None:
        """Adds keys and values, in turn, to the dictionary or the object on the top."""
        top = self.top((dict, Call))
        (top.items if isinstance(top, Call) else top).update(self.pairs(items))

    def name(self, module: str, attribute: str) -> None:
        """Puts a name on the stack if it is allowed."""
        path = f"{module}.{attribute}"
        if self.names is not None:
            wrong = path not in self.names
        else:
            root, first = module.partition(".")[0], attribute.partition(".")[0]
            built_in = root in ("builtins", "__builtin__")
            wrong = root in _NEVER or (built_in and first in _NEVER_BUILT_IN)
        if wrong:
            raise RefusedError(f"it names {path[:200]!r}, which such files do not need")
        self.push(Name(path))

    def keys(self, keys: list[Any]) -> list[Any]:
        """Keys of a dictionary or a set: hashing anything deeper could exhaust the interpreter."""
        for key in keys:
            if not isinstance(key, _KEYS) or (isinstance(key, int) and abs(key) > _LARGEST_KEY):
                raise RefusedError(f"a {type(key).__name__} is used as a key")
        return keys

    def pairs(self, items: list[Any]) -> dict[Any, Any]:
        """The dictionary of keys and values in turn.

        Where anything may be named, entries with other keys are left out: no tensor has one.
        """
        pairs = list(zip(items[::2], items[1::2], strict=True))
        if self.names is None:
            pairs = [(key, value) for key, value in pairs if isinstance(key, _KEYS)]
        return dict(zip(self.keys([key for key, _ in pairs]), (v for _, v in pairs), strict=True))

    def stack_global(self) -> None:
        """Puts the name that the two strings on the top are."""
        module, attribute = self.last(2)
        if not isinstance(module, str) or not isinstance(attribute, str):
            raise RefusedError("a name is no string")
        self.name(module, attribute)

    def _callable(self) -> Name:
        """Takes off what is to be called; torch's older format refers to the classes of modules."""
        function = self.pull((Name, Reference))
        if isinstance(function, Reference):
            word, function, *_ = function.key
            if word != "module" or not isinstance(function, Name):
                raise RefusedError("a Reference is where it does not belong")
        return cast(Name, function)

    def reduce(self) -> None:
        """Puts the call of a name, or the dictionary that it would return."""
        arguments, function = self.pull(tuple), self._callable()
        if function.path == _ORDERED_DICT:
            # Of pairs, in protocol 1 and older.
            pairs = arguments[0] if arguments else ()
            if not isinstance(pairs, list | tuple):
                raise RefusedError("a dictionary is made of something else than pairs")
            self.spend(len(pairs))
            self.push(self.pairs([part for key, value in pairs for part in (key, value)]))
        else:
            self.push(Call(function.path, arguments))

    def new_with_keywords(self) -> None:
        """Puts the call of a name with further arguments by name."""
        keywords, arguments, function = self.pull(dict), self.pull(tuple), self._callable()
        self.push(Call(function.path, (*arguments, keywords)))

    def build(self) -> None:
        """Notes a call's state; attributes of a dictionary are nothing that a network needs."""
        state = self.stack.pop()
        if isinstance(self.top((Call, dict)), Call):
            self.stack[-1].state = state

    def refer(self, key: Any) -> None:
        """Puts a reference."""
        if not self.references:
            raise RefusedError("it refers to another file")
        self.push(Reference(key))


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
    "FROZENSET": lambda m: m.push(frozenset(m.keys(m.marked()))),
    "DICT": lambda m: m.push(m.pairs(m.marked())),
    "SETITEM": lambda m: m.store(m.last(2)),
    "SETITEMS": lambda m: m.store(m.marked()),
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.reduce,
    "NEWOBJ_EX": _Machine.new_with_keywords,
    "BUILD": _Machine.build,
    "BINPERSID": lambda m: m.refer(m.stack.pop()),
}


def read_pickle(
    file: Bytes, names: Collection[str] | None = None, *, references: bool = False
) -> Any:
    """The value of the pickle at the start of a file, without running anything.

    Args:
        file: is left just behind the pickle.
        names: dotted paths of what it may name; None for anything but what could only be meant to
            be run.
        references: whether it may hold persistent ids.

    Returns:
        Containers, numbers, strings, and inert :class:`Name`, :class:`Call` and :class:`Reference`.

    Raises:
        RefusedError: it names, or does, something else, or asks for too much work.
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
    "torch.BoolStorage": torch.bool,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.ComplexDoubleStorage": torch.complex128,
    "torch.storage.UntypedStorage": torch.uint8,
}
"""What storages hold, by their names in a pickle; those without a type hold bytes."""

_MAGIC: Final = 0x1950A86A20F9469CFC6C
_PROTOCOL: Final = 1001
_ZIP: Final = b"PK\x03\x04"


class Tensors:
    """Makes the tensors that calls stand for, as views of their storages.

    Args:
        storages: finds the numbers of a reference, 1-d.
        whole: whether to refuse tensors that speak of more numbers than their storage has. Strides
            of 0 make any size out of one number, which costs nothing until it is copied.

    Attributes:
        FUNCTIONS: the names of what makes tensors.
    """

    FUNCTIONS: Final = frozenset(
        {
            "torch._utils._rebuild_parameter",
            "torch._utils._rebuild_parameter_with_state",
            "torch._utils._rebuild_tensor",
            "torch._utils._rebuild_tensor_v2",
            "torch._utils._rebuild_tensor_v3",
            "torch._tensor._rebuild_from_type_v2",
        }
    )

    def __init__(
        self, storages: Callable[[Reference], Tensor] | None = None, *, whole: bool = False
    ) -> None:
        self._referred, self._whole = storages, whole
        # By identity: the calls are alive as long as what they came in.
        self._read: dict[int, tuple[Any, Tensor]] = {}

    def __call__(self, value: Any) -> Tensor:
        """The tensor that a call stands for.

        Raises:
            RefusedError: it stands for something else, or reaches beyond its storage.
            Exception: its storage is damaged; there is no telling how.
        """
        for _ in range(4):  # a parameter of a subclass is a call within calls
            if not isinstance(value, Call) or value.function not in self.FUNCTIONS:
                raise RefusedError("something else is where a tensor should be")
            if value.function == "torch._tensor._rebuild_from_type_v2":
                function, _, arguments, *_ = value.arguments
                if not isinstance(function, Name) or not isinstance(arguments, tuple):
                    raise RefusedError("a tensor is of a kind that is not known")
                value = Call(function.path, arguments)
            elif "_parameter" in value.function:
                value = value.arguments[0]
            else:
                return self._view(value)
        raise RefusedError("a tensor is of a kind that is not known")

    def _view(self, call: Call) -> Tensor:
        holder, offset, size, stride, *rest = call.arguments
        numbers = self._storage(holder)
        if call.function.endswith("_v3"):
            dtype = rest[2].path.removeprefix("torch.") if isinstance(rest[2], Name) else ""
            if dtype.partition("_")[0].rstrip("0123456789") not in (
                "float",
                "bfloat",
                "int",
                "uint",
            ):
                raise RefusedError("a tensor is of a kind that is not known")
            numbers = numbers.view(getattr(torch, dtype))
        size, stride = (v.arguments[0] if isinstance(v, Call) else v for v in (size, stride))
        plain = isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride)
        if not plain or not all(
            isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**60
            for n in (offset, *size, *stride)
        ):
            raise RefusedError("a tensor has no proper shape")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        count = math.prod(size)
        if (count and last >= numbers.numel()) or (self._whole and count > numbers.numel()):
            raise RefusedError("a tensor is larger than its storage")
        return numbers.as_strided(size, stride, offset)

    def _storage(self, holder: Any) -> Tensor:
        """Its numbers, read once however often they are asked for."""
        if id(holder) not in self._read:
            if isinstance(holder, Reference) and self._referred is not None:
                numbers = self._referred(holder)
            elif isinstance(holder, Call) and holder.function == STORAGE:
                (blob,) = holder.arguments
                if not isinstance(blob, bytes):
                    raise RefusedError("something else is where a storage should be")
                if id(blob) not in self._read:
                    self._read[id(blob)] = blob, read_storage(blob)
                numbers = self._read[id(blob)][1]
            else:
                raise RefusedError("something else is where a storage should be")
            self._read[id(holder)] = holder, numbers
        return self._read[id(holder)][1]


STORAGE: Final = "torch.storage._load_from_bytes"
"""What holds a storage in a plain pickle."""


def read_storage(blob: bytes) -> Tensor:
    """One storage as torch writes it into a plain pickle, 1-d, on the CPU.

    Both formats of ``torch.save`` are read: the older one, a sequence of pickles with the numbers
    behind them, and archives.

    Raises:
        RefusedError: it is something else than one plain storage.
        Exception: it is damaged.
    """
    return _archived_storage(blob) if blob.startswith(_ZIP) else _serial_storage(blob)


def _serial_storage(blob: bytes) -> Tensor:
    file = io.BytesIO(blob)
    if read_pickle(file, ()) != _MAGIC:
        raise RefusedError("a storage is in a format that is not known")
    _check_preamble(file)
    key, dtype, count = _described(read_pickle(file, DTYPES, references=True))
    if read_pickle(file, ()) != [key]:
        raise RefusedError("it holds more than one storage in one")
    if struct.unpack("<q", file.read(8)) != (count,):
        raise RefusedError("a storage has two sizes")
    return _numbers(file.read(), dtype, count)


def _check_preamble(file: Bytes) -> None:
    """Reads what follows the magic number in torch's older format."""
    if read_pickle(file, ()) != _PROTOCOL:
        raise RefusedError("it is in a format that is not known")
    if read_pickle(file, ()).get("little_endian") is not True:
        raise RefusedError("it was written on a big-endian machine")


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
    if kind.path not in DTYPES:
        raise RefusedError(f"a storage is of the kind {kind.path[:200]}, which is not known")
    return key, DTYPES[kind.path], count


def _numbers(data: bytes, dtype: torch.dtype, count: int) -> Tensor:
    if len(data) != count * dtype.itemsize:
        raise RefusedError(f"a storage of {count} numbers has {len(data)} bytes")
    if not count:
        return torch.empty(0, dtype=dtype)
    # A copy that may be written to: a view of bytes may not.
    return torch.frombuffer(bytearray(data), dtype=dtype)


class TorchScriptError(RefusedError):
    """A file holds a compiled program."""


def read_saved(path: Path) -> tuple[Any, Tensors]:
    """What a file of ``torch.save``, or a plain pickle with tensors, holds.

    Args:
        path: of an archive, of the older sequence of pickles, or of one pickle.

    Returns:
        Containers, numbers, strings, and calls; and what makes tensors of the latter. Tensors are
        backed by the file, which is mapped into memory.

    Raises:
        TorchScriptError: it is a program of ``torch.jit`` or ``torch.export``.
        RefusedError: it is something else.
        Exception: it is damaged; there is no telling how.
    """
    size = path.stat().st_size
    mapped = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=size)
    whole = torch.empty(0, dtype=torch.uint8).set_(cast(torch.UntypedStorage, mapped))
    with path.open("rb") as file:
        if file.read(4) == _ZIP:
            return _archive(file, size, whole)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            first = read_pickle(view, references=True)
            if first != _MAGIC:
                return first, Tensors()
            return _sequence(view, whole)


def _archive(file: IO[bytes], size: int, whole: Tensor) -> tuple[Any, Tensors]:
    with zipfile.ZipFile(file) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        inner = {name.partition("/")[2] for name in entries}
        if inner & {"constants.pkl", "serialized_exported_program.json", "archive_format"}:
            raise TorchScriptError("it is a program that torch has compiled or exported")
        # torch does not compress: what is larger than the file is nothing of its making.
        if sum(info.file_size for info in entries.values()) > size:
            raise RefusedError("it unpacks to more than it is")
        index = [name for name in entries if name.endswith("/data.pkl")]
        if len(index) != 1:
            what = "arrays of NumPy" if any(n.endswith(".npy") for n in entries) else "other files"
            raise RefusedError(f"it is an archive of {what}")
        root = index[0].removesuffix("data.pkl")
        if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") != b"little":
            raise RefusedError("it was written on a big-endian machine")
        content = read_pickle(io.BytesIO(archive.read(index[0])), references=True)

    def numbers(reference: Reference) -> Tensor:
        key, dtype, count = _described(reference)
        info = entries.get(f"{root}data/{key}")
        if info is None or info.compress_type != zipfile.ZIP_STORED:
            raise RefusedError(f"the storage {key[:20]!r} is not in it")
        if info.file_size != count * dtype.itemsize:
            raise RefusedError(f"a storage of {count} numbers has {info.file_size} bytes")
        # The name and what is written behind it may be longer there than in the table of contents.
        header = whole[info.header_offset : info.header_offset + 30].numpy().tobytes()
        name, extra = struct.unpack("<HH", header[26:30])
        start = info.header_offset + 30 + name + extra
        return _placed(whole, start, count, dtype)

    return content, Tensors(numbers)


def _sequence(file: mmap.mmap, whole: Tensor) -> tuple[Any, Tensors]:
    """torch's older format: pickles, and behind them the numbers of each storage."""
    _check_preamble(file)
    content = read_pickle(file, references=True)
    keys = read_pickle(file, ())
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise RefusedError("it does not say which storages it holds")
    position, starts = file.tell(), {}
    dtypes: dict[str, torch.dtype] = {}
    for reference in _references(content):
        if reference.key[0] != "module":
            key, dtype, _ = _described(reference)
            dtypes[key] = dtype
    for key in keys:
        if key not in dtypes:
            raise RefusedError("it holds a storage that belongs to nothing")
        (count,) = struct.unpack("<q", whole[position : position + 8].numpy().tobytes())
        starts[key] = position + 8, count
        position += 8 + count * dtypes[key].itemsize
    if position > whole.numel():
        raise RefusedError("it is cut short")

    def numbers(reference: Reference) -> Tensor:
        key, dtype, count = _described(reference)
        start, there = starts[key]
        if there != count:
            raise RefusedError("a storage has two sizes")
        return _placed(whole, start, count, dtype)

    return content, Tensors(numbers)


def _references(content: Any) -> list[Reference]:
    """All that a pickle's value refers to, however deep it lies."""
    found, waiting, seen = [], [content], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Reference):
            found.append(value)
        elif isinstance(value, dict | list | tuple | Call) and id(value) not in seen:
            seen.add(id(value))
            if isinstance(value, dict):
                waiting += value.values()
            elif isinstance(value, Call):
                waiting += [value.arguments, value.state, value.items]
            else:
                waiting += value
    return found


def _placed(whole: Tensor, start: int, count: int, dtype: torch.dtype) -> Tensor:
    """Numbers within a mapped file."""
    stop = start + count * dtype.itemsize
    if stop > whole.numel():
        raise RefusedError("the file is cut short")
    if not count:
        return torch.empty(0, dtype=dtype)
    storage = cast(torch.UntypedStorage, whole.untyped_storage()[start:stop])
    return torch.empty(0, dtype=dtype).set_(storage, 0, (count,), (1,))
