"""Splits of a user's own data: drawn by a seed, or read from a file of class names as every run writes one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from unicodedata import normalize

from metarun.data.splits import SPLITS
from metarun.data.store.pool import DataError
from metarun.errors import first_few

if TYPE_CHECKING:  # types.py imports torch
    from metarun.types import Split

FEWEST_CLASSES = 2  # of a split: one class leaves nothing to tell apart


class SplitShares(NamedTuple):
    """How a split is drawn: the seed, and the shares of the classes that validation and test get."""

    seed: int
    val: float
    test: float

    def check(self) -> None:
        for name, share in (("val_share", self.val), ("test_share", self.test)):
            if not 0.0 < share < 1.0:
                raise ValueError(f"{name}={share}: is a share of the classes; use more than 0 and less than 1")
        if self.val + self.test >= 1.0:
            raise ValueError(f"val_share={self.val}: with test_share={self.test} leaves nothing for training")


def split_text(names: Mapping[Split, Sequence[str]]) -> str:
    """A split as the text of a file that `read_split` reads."""
    lines = (f'"{split}": {json.dumps(list(names[split]))}' for split in SPLITS)
    return "{" + ",\n ".join(lines) + "}\n"


def draw_split(names: Sequence[str], groups: Sequence[str], shares: SplitShares, where: str) -> dict[Split, list[str]]:
    """A split drawn by the seed: class by class, or with `groups` all classes of a group together.

    The order of the draw depends on each name and the seed alone, so that one more class moves few of the others.
    """
    units = groups or names
    queue = sorted(set(units), key=lambda unit: hashlib.sha256(f"{shares.seed}/{unit}".encode()).digest())
    count, fewest, what = len(queue), 1 if groups else FEWEST_CLASSES, "groups" if groups else "classes"
    if count < len(SPLITS) * fewest:
        raise DataError(
            f"{where} has {count} {what} ({first_few(sorted(queue))}); train, val and test need {fewest} or more each: "
            f"add {what} until there are {len(SPLITS) * fewest} or more"
        )
    test = min(max(int(count * shares.test + 0.5), fewest), count - 2 * fewest)
    val = min(max(int(count * shares.val + 0.5), fewest), count - test - fewest)
    split_of: dict[str, Split] = dict.fromkeys(queue, "train")
    split_of |= dict.fromkeys(queue[:test], "test")
    split_of |= dict.fromkeys(queue[test : test + val], "val")
    splits: dict[Split, list[str]] = {split: [] for split in SPLITS}
    for name, unit in zip(names, units, strict=True):
        splits[split_of[unit]].append(name)
    return check_split_sizes(splits, f"{where}, split by data.split_seed={shares.seed}")


def check_split_sizes(splits: dict[Split, list[str]], where: str) -> dict[Split, list[str]]:
    """The same splits; DataError if one has fewer than two classes."""
    for split, listed in splits.items():
        if len(listed) < FEWEST_CLASSES:
            sizes = ", ".join(f"{len(splits[each])} {each}" for each in SPLITS)
            raise DataError(
                f"{where} has {sizes} classes; {split} needs {FEWEST_CLASSES} or more: add classes or move some"
            )
    return splits


def read_split(path: str, names: Sequence[str], where: str) -> dict[Split, list[str]]:
    """A split from a file {"train": [names], "val": [names], "test": [names]} that has each of `names` once."""
    key, form = f"data.split={path}", '{"train": [...], "val": [...], "test": [...]}'
    try:
        found = json.loads(Path(path).expanduser().read_bytes())
    except OSError as problem:
        raise DataError(f"{key}: cannot be read ({problem.strerror}); null draws a split by a seed") from problem
    except (ValueError, RecursionError) as problem:
        raise DataError(f"{key}: is no JSON ({problem}); need {form}") from problem
    if not isinstance(found, Mapping) or set(found) != set(SPLITS) or not all(map(_is_list_of_names, found.values())):
        raise DataError(f"{key}: need {form}, each a list of class names")
    known = {normalize("NFC", name): name for name in names} | {name: name for name in names}
    split_of: dict[str, str] = {}
    splits: dict[Split, list[str]] = {split: [] for split in SPLITS}
    unknown: list[str] = []
    for split in SPLITS:
        for listed in found[split]:
            name = known.get(listed, known.get(normalize("NFC", listed)))
            if name is None:
                unknown.append(listed)
                continue
            if name in split_of:
                raise DataError(
                    f"{key}: names {name} twice, in {split_of[name]} and in {split}; a class is in one split"
                )
            split_of[name] = split
            splits[split].append(name)
    if unknown:
        raise DataError(
            f"{key}: names {len(unknown)} classes that are not in {where} ({first_few(unknown)}); "
            f"there are {len(names)}, such as {names[0]}"
        )
    missed = [name for name in names if name not in split_of]
    if missed:
        raise DataError(f"{key}: misses {len(missed)} classes of {where} ({first_few(missed)}); name each in one split")
    return check_split_sizes(splits, key)


def _is_list_of_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def split_file_digest(path: str | None) -> str:
    """A digest of a split file's bytes; "" if there is no file or it cannot be read."""
    try:
        return hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest() if path else ""
    except OSError:
        return ""
