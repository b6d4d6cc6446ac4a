"""Reads pickles of published data and runs nothing: only numbers, texts, containers and numpy arrays are accepted.

The names in a pickle are mapped to functions of this file, never to those that they name: numpy's own functions would
trust a forged type description and take bytes for pointers.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import IO, Literal

import numpy as np
from numpy.typing import NDArray

from metarun.data.store.pool import DataError

Encoding = Literal["latin1", "bytes"]  # how texts of Python 2 are read: as str, or as bytes
BUFFER_BYTES = 1 << 20
TYPE_CODE = re.compile(r"[<>|=]?([biufcO]\d{0,2}|[SU]\d+|\?)")
PLAIN = (str, bytes, int, float, bool, type(None), np.generic)


def load_pickle(path: Path, encoding: Encoding = "latin1") -> object:
    """The value in a pickle file of any protocol."""
    try:
        with path.open("rb", buffering=BUFFER_BYTES) as file:
            return read_pickle(file, str(path), encoding)
    except OSError as problem:
        raise DataError(f"{path} cannot be read ({problem.strerror or problem})") from problem


def read_pickle(file: IO[bytes], where: str, encoding: Encoding = "latin1") -> object:
    """The value in an open pickle, such as one inside an archive; `where` names it in an error."""
    try:
        return _with_real_arrays(_Unpickler(file, encoding=encoding).load(), {})
    except _Refused as problem:
        raise DataError(f"{where} is a pickle with {problem}, which no data needs; nothing of it was run") from problem
    except OSError:
        raise
    except Exception as problem:  # a damaged pickle can raise anything
        reason = (str(problem) or type(problem).__name__).splitlines()[0]
        raise DataError(f"{where} is no whole pickle ({reason}); get the file again") from problem


def as_record(found: object, keys: Collection[str], where: str) -> dict[str, object]:
    """An unpickled dictionary with text as keys, whichever Python wrote it; DataError unless it has these keys."""
    record = {as_text(key): value for key, value in found.items()} if isinstance(found, dict) else {}
    missing = [key for key in keys if key not in record]
    if missing:
        raise DataError(f"{where} has no {' and no '.join(missing)}; put the published file there")
    return record


def as_text(word: object) -> str:
    """A text of Python 2 (bytes) or of Python 3."""
    return word.decode() if isinstance(word, bytes) else str(word)


def as_whole_numbers(values: object, where: str) -> list[int]:
    """An unpickled list or array of whole numbers."""
    try:
        if isinstance(values, np.ndarray):
            return [int(value) for value in values.reshape(-1)]
        if isinstance(values, Iterable):
            return [int(value) for value in values]
    except (TypeError, ValueError) as problem:
        raise DataError(f"{where} is no list of whole numbers; put the published file there") from problem
    raise DataError(f"{where} is no list of whole numbers; put the published file there")


class _Refused(Exception):
    """The pickle holds something else than data."""


class _Dtype:
    """Stands for a numpy dtype while the pickle is read."""

    def __init__(self, code: object, *_: object) -> None:
        text = code.decode("ascii") if isinstance(code, bytes) else code
        if not isinstance(text, str) or not TYPE_CODE.fullmatch(text):
            raise _Refused(f"arrays of type {text!r}")
        self.real: np.dtype[np.generic] = np.dtype(text)

    def __setstate__(self, state: tuple[object, ...]) -> None:
        """(version, byte order, and for types made of others: subtype, names, fields, ...)."""
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        if any(part is not None for part in state[2:5]):
            raise _Refused("arrays of records")
        if order == ">":
            self.real = self.real.newbyteorder(">")
        elif order == "<":
            self.real = self.real.newbyteorder("<")


class _Array:
    """Stands for a numpy array while the pickle is read. `flat` has its items in the order of the pickle."""

    def __init__(self) -> None:
        self.flat: NDArray[np.generic] = np.empty(0)
        self.real: NDArray[np.generic] = self.flat

    def __setstate__(self, state: tuple[object, ...]) -> None:
        _, shape, dtype, fortran, content = state
        self.fill(content, dtype, shape, "F" if fortran else "C")

    def fill(self, content: object, dtype: object, shape: object, order: object) -> None:
        if not isinstance(shape, tuple) or order not in ("C", "F"):
            raise _Refused(f"an array of shape {shape!r} in order {order!r}")
        self.flat = _flat_items(content, dtype)
        objects = self.flat.dtype.hasobject  # numpy pickles objects row by row whatever their order in memory
        self.real = self.flat.reshape(shape, order="F" if order == "F" and not objects else "C")


def _flat_items(content: object, dtype: object) -> NDArray[np.generic]:
    if not isinstance(dtype, _Dtype):
        raise _Refused(f"an array of {type(dtype).__name__}")
    if not dtype.real.hasobject:
        content = content.encode("latin1") if isinstance(content, str) else content
        if not isinstance(content, bytes | bytearray):
            raise _Refused(f"numbers given as {type(content).__name__}")
        return np.frombuffer(content, dtype.real)
    if not isinstance(content, list):
        raise _Refused("objects given as bytes")
    flat: NDArray[np.object_] = np.empty(len(content), dtype=object)
    for number, value in enumerate(content):  # one by one: at once, numpy would look into lists that are alike
        flat[number] = value
    return flat


def _empty_array(*_: object) -> _Array:
    return _Array()


def _array_from_buffer(content: object, dtype: object, shape: object, order: object, *_: object) -> _Array:
    made = _Array()
    made.fill(content, dtype, shape, order)
    return made


def _numpy_scalar(dtype: object, content: object = None) -> object:
    if not isinstance(dtype, _Dtype) or dtype.real.hasobject:
        raise _Refused("an object as a number")
    return _flat_items(content, dtype)[0]


def _encoded(text: str, codec: object = "latin1") -> bytes:
    if codec not in ("latin1", "latin-1", b"latin1"):
        raise _Refused(f"the codec {codec!r}")
    return text.encode("latin1")


def _empty_bytes(*words: object) -> bytes:
    """Protocols before 3 write empty bytes as a call of bytes()."""
    if words:
        raise _Refused("the function builtins.bytes")
    return b""


def _no_array(*_: object) -> object:
    raise _Refused("an array made by its class")


class _Function:
    """A function that a pickle may call but not change."""

    __slots__ = ("_work",)

    def __init__(self, work: Callable[..., object]) -> None:
        self._work = work

    def __call__(self, *words: object) -> object:
        return self._work(*words)

    def __setstate__(self, state: object) -> None:
        raise _Refused("a changed function")


_ALLOWED: dict[str, Callable[..., object]] = {
    "numpy.ndarray": _no_array,
    "numpy.dtype": _Dtype,
    "_codecs.encode": _encoded,
    "collections.OrderedDict": dict,
    "builtins.bytes": _empty_bytes,
    "__builtin__.bytes": _empty_bytes,
    "numpy.core.numeric._frombuffer": _array_from_buffer,
    "numpy._core.numeric._frombuffer": _array_from_buffer,
}
_ALLOWED |= {f"numpy.{core}.multiarray._reconstruct": _empty_array for core in ("core", "_core")}
_ALLOWED |= {f"numpy.{core}.multiarray.scalar": _numpy_scalar for core in ("core", "_core")}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> _Function:
        if f"{module}.{name}" not in _ALLOWED:
            raise _Refused(f"the name {module}.{name}")
        return _Function(_ALLOWED[f"{module}.{name}"])


def _with_real_arrays(value: object, seen: dict[int, tuple[object, object]]) -> object:
    """The same value with numpy's own arrays and dtypes. `seen` keeps the originals alive, so that ids stay unique."""
    if isinstance(value, PLAIN):
        return value
    if id(value) in seen:
        return seen[id(value)][1]
    if isinstance(value, tuple):
        made = tuple(_with_real_arrays(part, seen) for part in value)
        seen[id(value)] = value, made
        return made
    if isinstance(value, bytearray):
        return bytes(value)
    if isinstance(value, _Dtype):
        return value.real
    if isinstance(value, dict):
        seen[id(value)] = value, value
        for key in value:
            _check_key(key)
            value[key] = _with_real_arrays(value[key], seen)
    elif isinstance(value, list):
        seen[id(value)] = value, value
        for number, part in enumerate(value):
            value[number] = _with_real_arrays(part, seen)
    elif isinstance(value, _Array):
        seen[id(value)] = value, value.real
        if value.flat.dtype.hasobject:
            flat = value.flat.view(np.object_)
            for number, part in enumerate(flat):
                flat[number] = _with_real_arrays(part, seen)
        return value.real
    else:
        raise _Refused(f"a {type(value).__name__}")
    return value


def _check_key(key: object) -> None:
    for part in key if isinstance(key, tuple) else (key,):
        if not isinstance(part, PLAIN):
            raise _Refused(f"a {type(part).__name__} in a key")
