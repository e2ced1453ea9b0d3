"""Check a pickle of tensors by its opcodes, without creating any of its objects.

Torch's reader runs no code from a file, but it trusts sizes: it allocates a storage before it looks for the data. And
CPython hashes tuples by recursion in C: a key that is a tuple nested 100,000 times crashes the process, and hashing one
with repeated parts (a = (b, b), b = (c, c), ...) never ends.
"""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

DEEPEST, LARGEST = 100, 10**6  # most levels and parts of a tuple; repeated parts count each time
DATA = ("data.pkl", "constants.pkl")  # in torch's archives
PICKLES = 5  # in torch's old format: magic number, version, system, the saved object, keys
# Bytes of a number by the name of its storage; 1 for quantised and untyped storages.
WIDTHS = {"Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2}
WIDTHS |= {"ComplexDouble": 16, "ComplexFloat": 8}


class Value(NamedTuple):
    """A value on the stack: a number, a string, a tuple of values, or None for any other object."""

    held: Any = None
    depth: int = 0
    size: int = 1


MARK = Value("the mark")


def find_defect(file: IO[bytes], size: int) -> str | None:
    """Describe what is wrong with a torch file of `size` bytes; None where nothing is found."""
    storages: dict[Any, int] = {}
    try:
        for pickle in _pickles(file, size):
            if text := _scan(pickle, storages):
                return text
            if (promised := sum(storages.values())) > size:
                return f"it declares {promised:,} bytes of tensors, but holds {size:,} bytes"
    except ArchiveTooLarge as error:
        return str(error)
    except Exception:  # not a pickle, or a damaged one, which reading it reports
        return None
    finally:
        file.seek(0)
    return None


class ArchiveTooLarge(ValueError):
    """An archive that would unpack to more than it holds."""


def _pickles(file: IO[bytes], size: int) -> Iterator[Any]:
    file.seek(0)
    if not zipfile.is_zipfile(file):
        file.seek(0)
        for _ in range(PICKLES):
            yield file
        return
    with zipfile.ZipFile(file) as archive:
        if (promised := sum(info.file_size for info in archive.infolist())) > size:
            raise ArchiveTooLarge(f"it would unpack to {promised:,} bytes, but holds {size:,}")
        for name in archive.namelist():
            if name.rpartition("/")[2] in DATA:
                yield archive.read(name)


def _scan(pickle: Any, storages: dict[Any, int]) -> str | None:
    """Follow the stack of one pickle, and describe a tuple that is too deep or too large; None where there is none.

    The bytes of each storage are put into `storages`.
    """
    stack: list[Value] = []
    memo: dict[int, Value] = {}
    argument: Any
    for opcode, argument, _ in pickletools.genops(pickle):
        name = opcode.name
        if name == "MARK":
            stack.append(MARK)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "DUP":
            stack.append(stack[-1])
        elif name in TUPLES:
            count = TUPLES[name]
            made = _tuple(_popped(stack, count) if count is not None else _to_mark(stack))
            if made.depth > DEEPEST or made.size > LARGEST:
                return "it holds a nested tuple that is too deep or too large"
            stack.append(made)
        else:
            if name == "BINPERSID":
                _count_storage(stack[-1].held, storages)
            if pickletools.markobject in opcode.stack_before:
                _to_mark(stack)
                before = opcode.stack_before.index(pickletools.markobject)
            else:
                before = len(opcode.stack_before)
            _popped(stack, before)
            left = Value(argument) if isinstance(argument, (int, str)) else Value()
            stack += [left] * len(opcode.stack_after)
    return None


TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "TUPLE": None}


def _popped(stack: list[Value], count: int) -> list[Value]:
    popped = stack[len(stack) - count :]
    del stack[len(stack) - count :]
    return popped


def _to_mark(stack: list[Value]) -> list[Value]:
    popped = []
    while (top := stack.pop()) is not MARK:
        popped.append(top)
    return popped[::-1]


def _tuple(parts: list[Value]) -> Value:
    depth, size = 1 + max((part.depth for part in parts), default=0), 1 + sum(part.size for part in parts)
    return Value(tuple(part.held for part in parts) if depth == 1 else None, depth, size)


def _count_storage(saved: Any, storages: dict[Any, int]) -> None:
    """Add the bytes of a storage to `storages`.

    Torch saves a storage as ("storage", "torch FloatStorage", key, location, number of elements).
    """
    if isinstance(saved, tuple) and len(saved) >= 5 and isinstance(saved[4], int):
        kind = str(saved[1]).rpartition(" ")[2].removesuffix("Storage")
        storages[saved[2]] = max(storages.get(saved[2], 0), saved[4] * WIDTHS.get(kind, 1))
