"""Other people's pickles without running them: an interpreter for the opcodes that build numpy
arrays, dicts, lists, tuples, strings, bytes and numbers. Whatever else a file asks for is refused
before anything is called.

`pickletools` splits the file into opcodes and bounds every length by the file's own.
"""

import codecs
import math
import pickletools
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import UserError

MOST_DEPTH = 4          # of containers: a list of pairs, a dict of lists
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
    try:
        return resolve(interpret(path.read_bytes()))
    except OSError as error:
        raise UserError(f"{path}: {(error.strerror or 'unreadable').lower()}") from None
    except MemoryError:
        raise
    except Unsafe as error:
        raise UserError(f"{path}: refused, for it asks for {error}; only arrays, dicts, lists, "
                        "tuples, strings, bytes and numbers are read") from None
    except Exception:
        raise UserError(f"{path} is not a whole pickle of plain data") from None


def interpret(data: bytes) -> Any:
    """The object that a pickle describes, arrays still `Pending`."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    left = 1000 + MOST_GROWTH * len(data)

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

    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        if name in ("PROTO", "FRAME"):
            continue
        if name == "STOP":
            return stack.pop()
        if name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in LITERALS:
            stack.append(argument)
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name == "MARK":
            marks.append(len(stack))
            stack.append(MARK)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[int(argument)] = stack[-1]
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
            stack.append(dict(zip(items[::2], items[1::2], strict=True)))
        elif name == "APPEND":
            item = stack.pop()
            own(stack[-1], list).append(item)
        elif name == "APPENDS":
            items = since_mark()
            own(stack[-1], list).extend(items)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            own(stack[-1], dict)[key] = value
        elif name == "SETITEMS":
            items = since_mark()
            own(stack[-1], dict).update(zip(items[::2], items[1::2], strict=True))
        elif name == "GLOBAL":
            stack.append(known(argument.replace(" ", ".")))
        elif name == "STACK_GLOBAL":
            attribute, module = own(stack.pop(), str), own(stack.pop(), str)
            stack.append(known(f"{module}.{attribute}"))
        elif name == "REDUCE":
            arguments, function = stack.pop(), own(stack.pop(), Global)
            stack.append(made(CALLS[function](*arguments)))
        elif name == "BUILD":
            state = stack.pop()
            own(stack[-1], Pending).build(state)
            made(stack[-1].value)
        else:
            raise Unsafe(f"the opcode {name}")
    raise ValueError("no end")


def own(value: Any, kind: type) -> Any:
    """`value`, which must be just of this kind."""
    if type(value) is not kind:
        raise Unsafe(f"a {type(value).__name__} in the place of a {kind.__name__}")
    return value


def known(name: str) -> Global:
    name = name.replace("numpy._core.", "numpy.core.")
    if name not in CALLS:
        raise Unsafe(f"'{name}'")
    return Global(name)


def resolve(value: Any, depth: int = 0, done: dict[int, Any] | None = None) -> Any:
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
    if depth == MOST_DEPTH:
        raise Unsafe(f"containers more than {MOST_DEPTH} deep")
    if id(value) not in done:
        if isinstance(value, dict):
            found = {key: resolve(item, depth + 1, done) for key, item in value.items()}
        else:
            found = type(value)(resolve(item, depth + 1, done) for item in value)
        done[id(value)] = found
    return done[id(value)]


# --- numpy -----------------------------------------------------------------------------------


def plain_dtype(code: Any) -> np.dtype:
    dtype = np.dtype(code.decode() if isinstance(code, bytes) else code)
    if dtype.kind not in "biuf":
        raise Unsafe(f"an array of '{dtype}'")
    return dtype


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
