"""Pickles of published data read without running anything: numbers, texts, containers and numpy arrays, nothing else.

The names in a pickle are mapped to functions of this file, never to those they name: numpy's own would believe a
forged type description and take bytes for pointers.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from metarun.data.store.pool import DataError

Encoding = Literal["latin1", "bytes"]  # what the texts of Python 2 become: str, or bytes
BUFFER = 1 << 20
CODE = re.compile(r"[<>|=]?([biufcO]\d{0,2}|[SU]\d+|\?)")
PLAIN = (str, bytes, int, float, bool, type(None), np.generic)


def load(path: Path, encoding: Encoding = "latin1") -> Any:
    """What a pickle of any protocol holds, or a DataError."""
    try:
        with path.open("rb", buffering=BUFFER) as file:
            return read(file, str(path), encoding)
    except OSError as problem:
        raise DataError(f"{path} cannot be read ({problem.strerror or problem})") from problem


def read(file: IO[bytes], where: str, encoding: Encoding = "latin1") -> Any:
    """The same of an open file, such as one inside an archive; `where` names it in an error."""
    try:
        return _plain(_Restricted(file, encoding=encoding).load(), {})
    except _Refused as problem:
        raise DataError(f"{where} is a pickle with {problem}, which no data needs; nothing of it was run") from problem
    except OSError:
        raise
    except Exception as problem:  # a damaged pickle can raise anything
        reason = (str(problem) or type(problem).__name__).splitlines()[0]
        raise DataError(f"{where} is no whole pickle ({reason}); get the file anew") from problem


class _Refused(Exception):
    """Something else than data."""


class _Dtype:
    """A type description, as far as it was read."""

    def __init__(self, code: Any, *_: Any) -> None:
        text = code.decode("ascii") if isinstance(code, bytes) else code
        if not isinstance(text, str) or not CODE.fullmatch(text):
            raise _Refused(f"arrays of type {text!r}")
        self.real: np.dtype[Any] = np.dtype(text)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """(version, byte order, and for types made of others: subtype, names, fields, ...)."""
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        if any(part is not None for part in state[2:5]):
            raise _Refused("arrays of records")
        if order == ">":
            self.real = self.real.newbyteorder(">")
        elif order == "<":
            self.real = self.real.newbyteorder("<")


class _Array:
    """An array that `_plain` puts in place of this. `flat` has its items in the order in which they were written."""

    def __init__(self) -> None:
        self.flat: NDArray[Any] = np.empty(0)
        self.real = self.flat

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, content = state
        self.fill(content, dtype, shape, "F" if fortran else "C")

    def fill(self, content: Any, dtype: Any, shape: Any, order: Literal["C", "F"]) -> None:
        self.flat = _items(content, dtype)
        objects = self.flat.dtype.hasobject  # which numpy lists row by row whatever their order in memory
        self.real = self.flat.reshape(tuple(shape), order="C" if objects else order)


def _items(content: Any, dtype: Any) -> NDArray[Any]:
    if not isinstance(dtype, _Dtype):
        raise _Refused(f"an array of {type(dtype).__name__}")
    if not dtype.real.hasobject:
        return np.frombuffer(content.encode("latin1") if isinstance(content, str) else content, dtype.real)
    if not isinstance(content, list):
        raise _Refused("objects given as bytes")
    flat = np.empty(len(content), dtype=object)
    for number, value in enumerate(content):  # at once, numpy would look into lists that are alike
        flat[number] = value
    return flat


def _array(*_: Any) -> _Array:
    return _Array()


def _array_of(content: Any, dtype: Any, shape: Any, order: Literal["C", "F"], *_: Any) -> _Array:
    made = _Array()
    made.fill(content, dtype, shape, order)
    return made


def _scalar(dtype: Any, content: Any = None) -> Any:
    if not isinstance(dtype, _Dtype) or dtype.real.hasobject:
        raise _Refused("an object as a number")
    return _items(content, dtype)[0]


def _encode(text: Any, codec: Any = "latin1") -> bytes:
    if codec not in ("latin1", "latin-1", b"latin1"):
        raise _Refused(f"the codec {codec!r}")
    made: bytes = text.encode("latin1")
    return made


def _bytes(*words: Any) -> bytes:
    """Of protocols before 3 bytes() stands for an empty text of bytes."""
    if words:
        raise _Refused("the function builtins.bytes")
    return b""


def _nothing(*_: Any) -> Any:
    raise _Refused("an array made by its class")


class _Call:
    """A function that a pickle may call and not alter."""

    __slots__ = ("_work",)

    def __init__(self, work: Callable[..., Any]) -> None:
        self._work = work

    def __call__(self, *words: Any) -> Any:
        return self._work(*words)

    def __setstate__(self, state: Any) -> None:
        raise _Refused("a changed function")


_ALLOWED: dict[str, Callable[..., Any]] = {
    "numpy.ndarray": _nothing,
    "numpy.dtype": _Dtype,
    "_codecs.encode": _encode,
    "collections.OrderedDict": dict,
    "builtins.bytes": _bytes,
    "__builtin__.bytes": _bytes,
    "numpy.core.numeric._frombuffer": _array_of,
    "numpy._core.numeric._frombuffer": _array_of,
}
_ALLOWED |= {f"numpy.{core}.multiarray._reconstruct": _array for core in ("core", "_core")}
_ALLOWED |= {f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")}


class _Restricted(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _ALLOWED:
            raise _Refused(f"the name {module}.{name}")
        return _Call(_ALLOWED[f"{module}.{name}"])


def _plain(value: Any, seen: dict[int, tuple[Any, Any]]) -> Any:
    """The real arrays in place of what stood for them; `seen` keeps alive what its numbers name."""
    if isinstance(value, PLAIN):
        return value
    if id(value) in seen:
        return seen[id(value)][1]
    if isinstance(value, tuple):
        made = tuple(_plain(part, seen) for part in value)
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
            value[key] = _plain(value[key], seen)
    elif isinstance(value, list | _Array):
        real, parts = (value, value) if isinstance(value, list) else (value.real, value.flat)
        seen[id(value)] = value, real
        if isinstance(parts, list) or parts.dtype.hasobject:
            for number, part in enumerate(parts):
                parts[number] = _plain(part, seen)
        return real
    else:
        raise _Refused(f"a {type(value).__name__}")
    return value


def _check_key(key: Any) -> None:
    for part in key if isinstance(key, tuple) else (key,):
        if not isinstance(part, PLAIN):
            raise _Refused(f"a {type(part).__name__} in a key")
