"""Splits of a user's own data: drawn by a seed, or read from the file of names that every run writes beside itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unicodedata import normalize

from metarun.data.store.pool import DataError

if TYPE_CHECKING:  # types.py imports torch
    from metarun.types import Split

PARTS: tuple[Split, ...] = ("train", "val", "test")
FEWEST = 2  # classes of a split: below, there is nothing to tell apart
SHOWN = 3  # examples in a message


class Shares(NamedTuple):
    """How a split is drawn."""

    seed: int
    val: float
    test: float

    def check(self) -> None:
        for name, share in (("val_share", self.val), ("test_share", self.test)):
            if not 0.0 < share < 1.0:
                raise ValueError(f"{name}={share}: is a share of the classes; use more than 0 and less than 1")
        if self.val + self.test >= 1.0:
            raise ValueError(f"val_share={self.val}: with test_share={self.test} leaves nothing for training")


def text(names: Mapping[Any, Sequence[str]]) -> str:
    """A split as `read` takes it."""
    lines = (f'"{part}": {json.dumps(list(names[part]))}' for part in PARTS)
    return "{" + ",\n ".join(lines) + "}\n"


def place(path: str | None, what: str) -> Path:
    """data.path, which has to be set and to exist."""
    if path is None:
        raise DataError(f"data.path=null: say where your {what}, by data.path=...")
    found = Path(path).expanduser().absolute()
    if not found.exists():
        raise DataError(f"data.path={path}: there is no {found}; say where your {what}")
    return found


def some(names: Sequence[str]) -> str:
    """The first few of them."""
    return ", ".join([*names[:SHOWN], *(["..."] if len(names) > SHOWN else [])])


def drawn(names: Sequence[str], groups: Sequence[str], shares: Shares, where: str) -> dict[Split, list[str]]:
    """By the seed alone: of `names` each by itself or, where `groups` are given, each group's classes together.

    A class has its place in a queue by its name and the seed, so that one more class moves few of the others.
    """
    units = groups or names
    queue = sorted(set(units), key=lambda unit: hashlib.sha256(f"{shares.seed}/{unit}".encode()).digest())
    count, fewest, what = len(queue), 1 if groups else FEWEST, "groups" if groups else "classes"
    if count < len(PARTS) * fewest:
        raise DataError(
            f"{where} has {count} {what} ({some(sorted(queue))}); train, val and test need {fewest} or more each: "
            f"add {what} until there are {len(PARTS) * fewest} or more"
        )
    test = min(max(int(count * shares.test + 0.5), fewest), count - 2 * fewest)
    val = min(max(int(count * shares.val + 0.5), fewest), count - test - fewest)
    home = dict.fromkeys(queue[:test], "test") | dict.fromkeys(queue[test : test + val], "val")
    splits: dict[Split, list[str]] = {part: [] for part in PARTS}
    for name, unit in zip(names, units, strict=True):
        splits["val" if home.get(unit) == "val" else "test" if home.get(unit) == "test" else "train"].append(name)
    return whole(splits, f"{where}, split by data.split_seed={shares.seed}")


def whole(splits: dict[Split, list[str]], where: str) -> dict[Split, list[str]]:
    """Splits of two classes or more each."""
    for part, listed in splits.items():
        if len(listed) < FEWEST:
            sizes = ", ".join(f"{len(splits[part])} {part}" for part in PARTS)
            raise DataError(f"{where} has {sizes} classes; {part} needs {FEWEST} or more: add classes or move some")
    return splits


def read(path: str, names: Sequence[str], where: str) -> dict[Split, list[str]]:
    """The split in a file of {"train": [names], "val": [names], "test": [names]}, which has each of `names` once."""
    told, form = f"data.split={path}", '{"train": [...], "val": [...], "test": [...]}'
    try:
        found = json.loads(Path(path).expanduser().read_bytes())
    except OSError as problem:
        raise DataError(f"{told}: cannot be read ({problem.strerror}); null draws a split by a seed") from problem
    except (ValueError, RecursionError) as problem:
        raise DataError(f"{told}: is no JSON ({problem}); need {form}") from problem
    if not isinstance(found, Mapping) or set(found) != set(PARTS) or not all(map(_is_list_of_names, found.values())):
        raise DataError(f"{told}: need {form}, each a list of class names")
    known = {normalize("NFC", name): name for name in names} | {name: name for name in names}
    home: dict[str, str] = {}
    splits: dict[Split, list[str]] = {part: [] for part in PARTS}
    unknown: list[str] = []
    for part in PARTS:
        for listed in found[part]:
            name = known.get(listed, known.get(normalize("NFC", listed)))
            if name is None:
                unknown.append(listed)
                continue
            if name in home:
                raise DataError(f"{told}: names {name} twice, in {home[name]} and in {part}; a class is in one split")
            home[name] = part
            splits[part].append(name)
    if unknown:
        raise DataError(
            f"{told}: names {len(unknown)} classes that are not in {where} ({some(unknown)}); "
            f"there are {len(names)}, such as {names[0]}"
        )
    missed = [name for name in names if name not in home]
    if missed:
        raise DataError(f"{told}: misses {len(missed)} classes of {where} ({some(missed)}); name each in one split")
    return whole(splits, told)


def _is_list_of_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def content(path: str | None) -> str:
    """What a split file holds, for what depends on it; empty where there is none to read."""
    try:
        return hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest() if path else ""
    except OSError:
        return ""
