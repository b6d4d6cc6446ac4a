"""Published pickles, read without running anything in them; damaged and malicious ones, refused in one line."""

from __future__ import annotations

import io
import operator
import os
import pickle
import struct
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metarun.data.read.safe_pickle import Encoding, load_pickle, read_pickle
from metarun.data.store.pool import DataError

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
IMAGES = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)
OBJECTS = np.empty((3, 2), dtype=object, order="F")
OBJECTS.T.reshape(-1)[:] = None
for place, item in enumerate(["text", [1, 2], IMAGES[0], (IMAGES[1], b"x"), {"a": [IMAGES]}]):
    OBJECTS[place // 2, place % 2] = item
PUBLISHED = {
    "image_data": IMAGES,
    "class_dict": OrderedDict([("n01532829", [0, 1, 2]), ("n01558993", list(range(300)))]),
    "labels": [7, -1, 2**40, 3.5, True, None],
    "names": ("a", b"\x00\xff", "caf\xe9"),
    "arrays": [
        np.arange(5, dtype=">i4"),
        np.asfortranarray(IMAGES[0, :, :, 0]),
        np.array(["ab", "c"]),
        np.array([b"ab", b"c"]),
        np.array(3.5),
        np.zeros((0, 3)),
        np.array([True, False]),
        IMAGES[:, ::2],
    ],
    "number": np.float32(1.5),
    "type": np.dtype("uint8"),
    3: np.int64(-4),
    (1, "a"): OBJECTS,
}


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) and one.dtype.hasobject:
        return one.shape == other.shape and equal(list(one.reshape(-1)), list(other.reshape(-1)))
    if isinstance(one, np.ndarray):
        assert type(other) is np.ndarray
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(equal, one, other))
    return type(one) is type(other) and bool(one == other)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_published_pickles_hold(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "cache.pkl"
    for value in (PUBLISHED, IMAGES, [IMAGES] * 3, OBJECTS, b"", {}, np.asfortranarray(IMAGES)):
        path.write_bytes(pickle.dumps(value, protocol))
        assert equal(value, load_pickle(path))
        assert equal(value, read_pickle(io.BytesIO(path.read_bytes()), "inside"))


def test_the_same_array_twice_and_a_list_that_holds_itself(tmp_path: Path) -> None:
    circle: list[Any] = [IMAGES, IMAGES]
    circle += [circle, (1, IMAGES), *((number, IMAGES[0]) for number in range(1000))]
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(circle))
    found = load_pickle(tmp_path / "a.pkl")
    assert isinstance(found, list)
    assert found[2] is found
    assert found[0] is found[1] is found[3][1]
    assert [part[0] for part in found[4:]] == list(range(1000))


def python2(key: bytes, array: np.ndarray[Any, Any]) -> bytes:
    """{key: array} as Python 2 and numpy 1 wrote it, protocol 2: texts are bytes."""

    def text(content: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(content)) + content

    shape = b"(" + b"".join(b"J" + struct.pack("<i", side) for side in array.shape) + b"t"
    dtype = b"cnumpy\ndtype\n(" + text(array.dtype.str[1:].encode()) + b"K\x00K\x01tR"
    dtype += b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    start = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + text(b"b") + b"tR"
    filled = start + b"(K\x01" + shape + dtype + b"\x89" + text(array.tobytes()) + b"tb"
    return b"\x80\x02}" + text(key) + filled + b"s."


@pytest.mark.parametrize(("encoding", "key"), [("latin1", "data"), ("bytes", b"data")])
def test_pickles_of_python_2(tmp_path: Path, encoding: Encoding, key: str | bytes) -> None:
    written = python2(b"data", IMAGES)
    assert np.array_equal(pickle.loads(written, encoding="latin1")["data"], IMAGES)  # it is what it pretends to be
    (tmp_path / "train").write_bytes(written)
    assert equal({key: IMAGES}, load_pickle(tmp_path / "train", encoding))


class Calls:
    def __init__(self, what: Any, *words: Any) -> None:
        self.what = what, words

    def __reduce__(self) -> Any:
        return self.what


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("held", ["alone", "array", "key"])
def test_nothing_is_run(tmp_path: Path, protocol: int, held: str) -> None:
    made = tmp_path / "made"
    command = f"touch {made}"
    for attack in (
        Calls(os.system, command),
        Calls(eval, f"open({str(made)!r}, 'w')"),
        Calls(exec, f"open({str(made)!r}, 'w')"),
        Calls(open, str(made), "w"),
        Calls(np.load, str(made)),
        Calls(operator.attrgetter("system"), "os"),
        Calls(np.fromfile, str(made)),
        Calls(__import__, "os"),
        Path(made),
    ):
        value: Any = {"alone": attack, "key": {attack: 1}}.get(held)
        if held == "array":
            value = np.array([attack, 1], dtype=object)
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(value, protocol))
        with pytest.raises(DataError, match=r"with the name [a-z_]+\.[A-Za-z_.]+, which no data needs; nothing"):
            load_pickle(tmp_path / "a.pkl")
        assert not made.exists()


def forged(*words: Any, state: Any = None) -> bytes:
    """numpy's own functions, called with what numpy never writes."""

    class Forged:
        def __reduce__(self) -> Any:
            return (*words, state) if state is not None else words

    return pickle.dumps(Forged(), 2)


POINTERS = b"A" * 64
RECONSTRUCT = np.zeros(1).__reduce__()[0]
SCALAR = np.float64(1).__reduce__()[0]
FROMBUFFER = np.zeros(1).__reduce_ex__(5)[0]


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        (forged(RECONSTRUCT, (np.ndarray, (0,), b"b"), state=(1, (8,), np.dtype("O"), False, POINTERS)), "as bytes"),
        (forged(FROMBUFFER, (POINTERS, np.dtype("O"), (8,), "C")), "given as bytes"),
        (forged(SCALAR, (np.dtype("O"), POINTERS)), "an object as a number"),
        (forged(np.ndarray, ((8,), np.dtype("O"), POINTERS)), "made by its class"),
        (forged(np.dtype, ([("a", "O")],)), "arrays of type"),
        (forged(np.dtype, ("V8",), state=(3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0)), "of type 'V8'"),
        (forged(np.dtype, ("u1",), state=(3, "|", None, ("a",), {}, 8, 1, 0)), "arrays of records"),
        (forged(np.dtype, ("u1",), state=(3, "|", (np.dtype("O"), (2,)), None, None, 8, 1, 0)), "arrays of records"),
        (forged(bytes, (10**12,)), "builtins.bytes"),
        (pickle.dumps({1, 2}), "a set"),
        (b"cnumpy\nndarray\n.", "a _Function"),
        (b"cnumpy\ndtype\n(NI1\ntb.", "a changed function"),
        (b"\x80\x02cnumpy\ndtype\nN}U\x04realI1\ns\x86b.", "a changed function"),
    ],
)
def test_forged_arrays(tmp_path: Path, attack: bytes, reason: str) -> None:
    (tmp_path / "a.pkl").write_bytes(attack)
    with pytest.raises(DataError, match=reason):
        load_pickle(tmp_path / "a.pkl")


def test_forged_lengths(tmp_path: Path) -> None:
    for attack in (
        forged(RECONSTRUCT, (np.ndarray, (0,), b"b"), state=(1, (10**12,), np.dtype("u1"), False, b"few")),
        b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b".",
        b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b".",
        b"(" * 10 + b"." * 3,
    ):
        (tmp_path / "a.pkl").write_bytes(attack)
        with pytest.raises(DataError, match=r"a.pkl is (no whole pickle|a pickle with)"):
            load_pickle(tmp_path / "a.pkl")


def test_lists_nested_without_end(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(b"]" * 100_000 + b"a" * 99_999 + b".")
    with pytest.raises(DataError, match=r"is no whole pickle .*recursion"):
        load_pickle(tmp_path / "a.pkl")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_damaged_pickle_is_a_data_error(tmp_path: Path, protocol: int) -> None:
    whole = pickle.dumps(PUBLISHED, protocol)
    path = tmp_path / "a.pkl"
    for length in range(0, len(whole), 41):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"a.pkl is (no whole pickle|a pickle with)"):
            load_pickle(path)
    for place in range(0, len(whole) if protocol > 1 else 0, 17):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x15]) + whole[place + 1 :])
        with suppress(DataError):  # a changed number is still a number
            load_pickle(path)
    path.write_bytes(b"<!DOCTYPE html><html>")
    with pytest.raises(DataError, match="no whole pickle"):
        load_pickle(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.pkl cannot be read \(No such file or directory\)"):
        load_pickle(tmp_path / "nowhere.pkl")
