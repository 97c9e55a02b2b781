"""Pickles read as data: nothing that a pickle names is imported, and nothing runs but the few functions of a table.

A pickle is a program for a small machine with a stack and a memo. `pickle` itself lets that program call any function
of any module; here it can build containers, numbers and text, and for all else it has to ask the caller's table. The
operations are those that the standard library's `pickletools` lists and describes, protocols 0 to 5, less the ones that
no data needs.
"""

import io
import pickletools
import re
from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass
from typing import Any

# One byte of a pickle can make an object of 200: this many take 100 MB at the worst. A tensor takes 45, so that a large
# model with its optimiser's state comes to a hundred thousand.
MAX_OPERATIONS = 500_000


class NotData(ValueError):
    """The file is damaged, or is not what is wanted. The message goes on from the file's name."""


class AsksForCode(NotData):
    """The file is no data: something would have to be run for it."""


@dataclass(frozen=True)
class Name:
    """Something that a pickle names. It is looked up in the caller's table when it is called, and nowhere else."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Inert:
    """An object of which nothing is wanted: it takes arguments and a state, and forgets them."""

    def __init__(self, *arguments: object) -> None:
        pass

    def build(self, state: Any) -> None:
        """Takes the state that a pickle gives to an object once it is made. Overridden by what has use for it."""


def read_pickle(
    data: bytes,
    constructors: Mapping[str, Callable[..., object]],
    persistent: Callable[[Any], object] | None = None,
    *,
    start: int = 0,
    max_operations: int = MAX_OPERATIONS,
) -> tuple[object, int]:
    """Reads one pickle.

    Strings of Python 2 come as text, a character for a byte (latin-1). Keys of dictionaries and members of sets are
    numbers, text, bytes or None: hashing a tuple would follow it to any depth.

    Args:
        data: what holds the pickle; more may follow it.
        constructors: what may be called, by "module.name". What it returns can be given a state if it is an `Inert`.
            Any arguments have to be expected; the ordinary exceptions that they cause become `NotData`.
        persistent: makes an object of a persistent id, by which a pickle refers to something beside it.
        start: where in `data` the pickle begins.
        max_operations: how long the pickle may be. This and the size of `data` bound the memory that it can take.

    Returns:
        The object, and the place in `data` behind the pickle. Names that were not called are `Name`s in it.

    Raises:
        AsksForCode: the pickle calls what is not in `constructors`.
        NotData: it is damaged.
    """
    stream = io.BytesIO(data)  # Shares the bytes, and a read of any length returns no more than there are.
    stream.seek(start)
    machine = _Machine(constructors, persistent, max_operations, 2 * len(data))
    operation, argument = _next(stream)
    while operation != "STOP":
        machine.run(operation, argument)
        operation, argument = _next(stream)
    return machine.pop(), stream.tell()


class _Machine:
    def __init__(
        self,
        constructors: Mapping[str, Callable[..., object]],
        persistent: Callable[[Any], object] | None,
        operations: int,
        copies: int,
    ) -> None:
        self._constructors = constructors
        self._persistent = persistent
        self._operations = operations  # How many more may follow, and how many bytes may yet be copied.
        self._copies = copies
        self._stack: list[Any] = []
        self._outer: list[list[Any]] = []  # The stack below each mark.
        self._memo: dict[int, Any] = {}

    def run(self, operation: str, argument: Any) -> None:
        self._spend(1, 0)
        push = self._stack.append
        if operation in _LITERALS:
            return push(argument)
        match operation:
            case "PROTO" | "FRAME":
                pass
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                push({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[operation])
            case "EMPTY_TUPLE" | "EMPTY_LIST" | "EMPTY_DICT" | "EMPTY_SET":
                push({"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}[operation]())
            case "GET" | "BINGET" | "LONG_BINGET":
                if argument not in self._memo:
                    raise NotData(f"is a damaged pickle: it refers to item {argument}, which it does not have")
                push(self._memo[argument])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = self._top(object)
            case "MEMOIZE":
                self._memo[len(self._memo)] = self._top(object)
            case "MARK":
                self._outer.append(self._stack)
                self._stack = []
            case "POP":
                if self._stack:
                    self.pop()
                else:
                    self._pop_mark()
            case "POP_MARK":
                self._pop_mark()
            case "DUP":
                push(self._top(object))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                push(tuple(reversed([self.pop() for _ in range(int(operation[-1]))])))
            case "TUPLE" | "LIST" | "DICT" | "FROZENSET":
                make = {"TUPLE": tuple, "LIST": list, "DICT": _dictionary, "FROZENSET": frozen_set}[operation]
                made = make(self._pop_mark())
                self._stack.append(made)
            case "APPEND":
                item = self.pop()
                self._top(list).append(item)
            case "APPENDS":
                items = self._pop_mark()
                self._top(list).extend(items)
            case "SETITEM":
                value, key = self.pop(), self.pop()
                self._top(dict).update(_dictionary([key, value]))
            case "SETITEMS":
                items = self._pop_mark()
                self._top(dict).update(_dictionary(items))
            case "ADDITEMS":
                items = self._pop_mark()
                self._top(set).update(frozen_set(items))
            case "STACK_GLOBAL":
                name, module = self.pop(), self.pop()
                if not isinstance(name, str) or not isinstance(module, str):
                    raise NotData("is a damaged pickle: a name is not text")
                push(Name(module, name))
            case "REDUCE" | "NEWOBJ":
                arguments, function = self.pop(), self.pop()
                push(self._construct(function, arguments))
            case "BUILD":
                state = self.pop()
                made = self._top(Inert)
                self._call(made.build, (state,), state if isinstance(state, tuple) else (), type(made).__name__)
            case "BINPERSID":
                if self._persistent is None:
                    raise NotData("refers to something outside of its pickle")
                push(self._call(self._persistent, (self.pop(),), (), "a persistent id"))
            case _:
                raise AsksForCode(f"uses {operation}, which no pickle of data does")

    def _spend(self, operations: int, copies: int) -> None:
        self._operations -= operations
        self._copies -= copies
        if self._operations < 0 or self._copies < 0:
            raise NotData("is a pickle that is too long, or unfolds to more than its size")

    def pop(self) -> Any:
        if not self._stack:
            raise NotData("is a damaged pickle: it takes from an empty stack")
        return self._stack.pop()

    def _top(self, kind: type) -> Any:
        if not self._stack or not isinstance(self._stack[-1], kind):
            raise NotData(f"is a damaged pickle: a {kind.__name__} is missing")
        return self._stack[-1]

    def _pop_mark(self) -> list[Any]:
        if not self._outer:
            raise NotData("is a damaged pickle: a mark is missing")
        items, self._stack = self._stack, self._outer.pop()
        return items

    def _construct(self, function: Any, arguments: Any) -> object:
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise NotData("is a damaged pickle: it calls what has no name")
        constructor = self._constructors.get(str(function))
        if constructor is None:
            raise AsksForCode(f"asks for {function}, which is not data")
        return self._call(constructor, arguments, arguments, str(function))

    def _call(self, function: Callable[..., object], arguments: tuple, sizes: tuple, name: str) -> object:
        # A pickle can have one large thing copied over and over, for a few bytes each time. In an honest one each item
        # takes an operation of its own, and each byte goes through two calls at most: a codec's, then an array's.
        for value in sizes:
            if isinstance(value, bytes | bytearray | str):
                self._spend(0, len(value))
            elif isinstance(value, Sized):
                self._spend(len(value), 0)
        try:
            return function(*arguments)
        except NotData:
            raise
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            # Without the error's own words: they may show the arguments, and those have no end to their depth.
            raise NotData(f"is a damaged pickle: {name} is given what it cannot take") from error


def frozen_set(items: Any = ()) -> frozenset:
    """A set of numbers, text, bytes and None. Raises `NotData` if anything else is in it."""
    for item in items:
        if not isinstance(item, str | bytes | int | float | None):
            raise NotData(f"is a pickle with a {type(item).__name__} as a key")
    return frozenset(items)


def _dictionary(items: list[Any]) -> dict[Any, Any]:
    if len(items) % 2:
        raise NotData("is a damaged pickle: a key has no value")
    frozen_set(items[::2])
    return dict(zip(items[::2], items[1::2], strict=True))


def _next(stream: io.BytesIO) -> tuple[str, Any]:
    code = stream.read(1)
    operation = _OPERATIONS.get(code)
    if operation is None:
        raise NotData(f"is no pickle, or a damaged one (0x{code.hex()})" if code else "is a pickle that was cut short")
    try:
        if operation.name in _READERS:
            return operation.name, _READERS[operation.name](stream)
        return operation.name, operation.arg.reader(stream) if operation.arg else None
    except (ValueError, LookupError, OverflowError) as error:
        raise NotData(f"is a pickle that was cut short or is damaged ({operation.name})") from error


def _line(stream: io.BytesIO) -> bytes:
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise ValueError("no end of line")
    return line[:-1]


def _name(stream: io.BytesIO) -> Name:
    return Name(_line(stream).decode(), _line(stream).decode())


def _python2_string(stream: io.BytesIO) -> str:
    """A string as Python 2's `repr` writes it. `pickletools` takes those in ASCII only."""
    line = _line(stream).strip()
    if len(line) < 2 or line[:1] not in (b"'", b'"') or line[:1] != line[-1:]:
        raise ValueError("no quotes")
    return re.sub(rb"\\(x[0-9a-f]{2}|.)", _unescaped, line[1:-1]).decode("latin-1")


def _unescaped(match: re.Match[bytes]) -> bytes:
    code = match[1]
    return bytes.fromhex(code[1:].decode()) if len(code) == 3 else _ESCAPES[code]


_ESCAPES = {b"\\": b"\\", b"'": b"'", b'"': b'"', b"n": b"\n", b"r": b"\r", b"t": b"\t"}
_READERS: dict[str, Callable[[io.BytesIO], Any]] = {"STRING": _python2_string, "GLOBAL": _name}
_OPERATIONS = {operation.code.encode("latin-1"): operation for operation in pickletools.opcodes}
# The operations that push their own argument.
_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "GLOBAL",
}  # fmt: skip
