"""Other people's pickles without running them: an interpreter for the opcodes that build numpy
arrays, dicts, lists, tuples, strings, bytes and numbers. Whatever else a file asks for is refused
before anything is called.

`pickletools` splits the file into opcodes; every length is bounded by the file's own, and so are
the number of opcodes, the depth of containers and the kinds of keys (many numbers, and tuples of
them, can be made to fall on one place of a dict, and a deep tuple overflows the stack when it is
hashed).
"""

import codecs
import math
import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from core import reading
from core.errors import UserError

MOST_DEPTH = 4          # of containers: a list of pairs, a dict of lists
MOST_OPCODES = 3_000_000    # a quarter of a minute's; a tensor takes some 30
MOST_GROWTH = 8         # bytes of values made, for each byte of the file
MARK = object()


class Unsafe(ValueError):
    """Something that no data needs."""


class Global(str):
    """A name that a file wants imported; only `CALLS` knows what to do with one."""


class Pending:
    """A numpy dtype or array that its BUILD opcode has yet to fill."""

    def __init__(self, kind: str, code: str = "") -> None:
        self.kind, self.code, self.value = kind, code, None

    def build(self, state: Any) -> None:
        if self.kind == "dtype":            # (version, byte order, ...)
            order = state[1] if state[1] in "<>|=" else "|"
            self.value = plain_dtype(self.code).newbyteorder("=" if order == "|" else order)
        else:                               # (version, shape, dtype, fortran order, bytes)
            _, shape, dtype, fortran, data = state
            self.value = array_of(data, dtype, shape, "F" if fortran else "C")


def read(path: Path) -> Any:
    """What the pickle at `path` holds. Raises UserError for anything but plain data."""
    with reading.regular(path) as file:
        try:
            return resolve(interpret(file, 1000 + MOST_GROWTH * file.size))
        except (UserError, MemoryError):
            raise
        except Unsafe as error:
            raise UserError(f"{path}: refused, for it asks for {error}; only arrays, dicts, lists, "
                            "tuples, strings, bytes and numbers are read") from None
        except Exception:
            raise UserError(f"{path} is not a whole pickle of plain data") from None


def interpret(file: BinaryIO, left: int, calls: dict[str, Any] | None = None,
              stored: Callable[[Any], Any] | None = None) -> Any:
    """The object that the pickle at the file's position describes, arrays still `Pending`; the file
    is left behind it. It makes at most `left` bytes of values.

    `calls` are the functions it may ask for, by name; `stored` gives what a persistent id stands
    for. Raises Unsafe, and ValueError and others for what is no pickle.
    """
    calls = CALLS if calls is None else calls
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        at = marks.pop()
        items = stack[at + 1 :]
        del stack[at:]
        return items

    def made(value: Any) -> Any:
        """Bytes and arrays count against the file's size: one shared string makes many."""
        nonlocal left
        left -= getattr(value, "nbytes", None) or (
            len(value) if isinstance(value, (bytes, bytearray)) else 0)
        if left < 0:
            raise Unsafe("more bytes than it could hold")
        return value

    for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        name = opcode.name
        if number == MOST_OPCODES:
            raise Unsafe(f"more than {MOST_OPCODES:,} steps")
        if name in LITERALS:
            stack.append(argument)
        elif name in ("PROTO", "FRAME"):
            continue
        elif name == "STOP":
            return stack.pop()
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name == "MARK":
            marks.append(len(stack))
            stack.append(MARK)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[key_of(int(argument))] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[int(argument)])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "TUPLE":
            stack.append(tuple(since_mark()))
        elif name == "LIST":
            stack.append(since_mark())
        elif name == "DICT":
            items = since_mark()
            stack.append(dict(pairs(items)))
        elif name == "APPEND":
            item = stack.pop()
            own(stack[-1], list).append(item)
        elif name == "APPENDS":
            items = since_mark()
            own(stack[-1], list).extend(items)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            own(stack[-1], dict)[key_of(key)] = value
        elif name == "SETITEMS":
            items = since_mark()
            own(stack[-1], dict).update(pairs(items))
        elif name == "GLOBAL":
            stack.append(known(argument.replace(" ", "."), calls))
        elif name == "STACK_GLOBAL":
            attribute, module = own(stack.pop(), str), own(stack.pop(), str)
            stack.append(known(f"{module}.{attribute}", calls))
        elif name == "REDUCE":
            arguments, function = stack.pop(), own(stack.pop(), Global)
            stack.append(made(calls[function](*own(arguments, tuple))))
        elif name == "BUILD":
            state = stack.pop()
            if type(stack[-1]) is not dict:         # an OrderedDict's attributes say nothing
                own(stack[-1], Pending).build(state)
                made(stack[-1].value)
        elif name == "BINPERSID" and stored is not None:
            stack.append(stored(stack.pop()))
        else:
            raise Unsafe(f"the opcode {name}")
    raise ValueError("no end")


def own(value: Any, kind: type) -> Any:
    """`value`, which must be just of this kind."""
    if type(value) is not kind:
        raise Unsafe(f"a {type(value).__name__} in the place of a {kind.__name__}")
    return value


def key_of(value: Any) -> Any:
    """A key, whose hash is its own: whole numbers of up to 60 bits, text, bytes."""
    if type(value) in (str, bytes) or (type(value) is int and abs(value) < 1 << 60):
        return value
    raise Unsafe("a key that is no text, bytes or number of 60 bits")


def pairs(items: list[Any]) -> list[tuple[Any, Any]]:
    """Keys and values by turns, as pairs."""
    return list(zip(map(key_of, items[::2]), items[1::2], strict=True))


def known(name: str, calls: dict[str, Any]) -> Global:
    name = name.replace("numpy._core.", "numpy.core.")
    if name not in calls:
        raise Unsafe(f"'{name}'")
    return Global(name)


def resolve(value: Any, most: int = MOST_DEPTH, depth: int = 0,
            done: dict[int, Any] | None = None) -> Any:
    """Without `Pending`s, as deep as data are. What is shared stays shared."""
    done = {} if done is None else done
    if isinstance(value, Pending):
        if value.value is None:
            raise ValueError("unfinished")
        return value.value
    if isinstance(value, Global):
        raise Unsafe(f"'{value}' as a value")
    if not isinstance(value, (list, tuple, dict)):
        return value
    if depth == most:
        raise Unsafe(f"containers more than {most} deep")
    if id(value) not in done:
        if isinstance(value, dict):
            found = {key: resolve(item, most, depth + 1, done) for key, item in value.items()}
        else:
            found = type(value)(resolve(item, most, depth + 1, done) for item in value)
        done[id(value)] = found
    return done[id(value)]


# --- numpy -----------------------------------------------------------------------------------


def plain_dtype(code: Any) -> np.dtype:
    word = code.decode() if isinstance(code, bytes) else own(code, str)
    if not re.fullmatch(r"[<>|=]?[biuf]\d{1,2}", word):
        raise Unsafe(f"an array of '{word}'")
    return np.dtype(word)


def array_of(data: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    dtype = resolve(dtype)
    if isinstance(data, str):               # Python 2's bytes
        data = data.encode("latin1")
    if not isinstance(dtype, np.dtype) or not isinstance(data, (bytes, bytearray)):
        raise Unsafe("an array of objects")
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    if len(shape) > 32 or not all(isinstance(n, int) and 0 <= n <= len(data) for n in shape) \
            or math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError("an array of another size than its bytes")
    return np.frombuffer(bytes(data), dtype).reshape(shape, order=order)


CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict}
LITERALS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
            "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
            "BYTEARRAY8", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
CALLS = {
    "numpy.core.multiarray._reconstruct": lambda *_: Pending("array"),
    "numpy.ndarray": None,                  # an argument of _reconstruct
    "numpy.dtype": lambda code, *_: Pending("dtype", code),
    "numpy.core.multiarray.scalar": lambda dtype, data: array_of(data, dtype, (1,), "C")[0],
    "numpy.core.numeric._frombuffer": lambda data, dtype, shape, order: array_of(
        data, dtype, shape, order),
    "_codecs.encode": lambda text, coding="latin1": codecs.encode(
        text, "latin1" if coding == "latin1" else "utf-8"),
}
