"""`metarun data`: which data sets there are and which are here, fetched with progress, checked by reading all of it."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from metarun.config.compose import compose, read_choice
from metarun.config.convert import dataclass_from, target_class, values_of
from metarun.config.places import groups
from metarun.config.renamed import tell
from metarun.data.fetch.editions import Edition, Published, home, obtain, present
from metarun.data.store.contents import Contents, Twins
from metarun.data.store.pack import is_whole
from metarun.data.store.pool import DataError, Pool, cache_root
from metarun.errors import ConfigError, nearest
from metarun.track.console import say, show_table

ACTIONS = ("list", "fetch", "check")
COLUMNS = ("name", "train/val/test", "images", "download", "licence", "here")
SHOWN = 3  # examples in a line


class Finding(NamedTuple):
    good: bool | None  # None: neither good nor bad
    text: str

    def __str__(self) -> str:
        return f"{ {True: 'ok', False: 'FAILED', None: 'note'}[self.good]:<7} {self.text}"


def data(words: list[str]) -> int:
    action, *rest = words or [""]
    if action not in ACTIONS:
        hint = nearest(action, ACTIONS) if action else ""
        raise ConfigError(f"data {action or '(nothing)'}: no such action{hint}; use list, fetch NAME or check NAME")
    if action == "list":
        if rest:
            raise ConfigError(f"data list {rest[0]}: takes no more words; use metarun data check NAME")
        return _list()
    if not rest or "=" in rest[0]:
        raise ConfigError(
            f"data {action}: name a data set ({', '.join(_names())}), as in: metarun data {action} omniglot"
        )
    name, *words = rest
    if name not in _names():
        raise ConfigError(f"data {action} {name}: no such data set{nearest(name, _names())} ({', '.join(_names())})")
    source = _source(name, words)
    try:
        return _fetch(name, source) if action == "fetch" else _check(name, source)
    except DataError as problem:
        raise ConfigError(f"data={name}: {problem}") from problem


def _names() -> list[str]:
    return groups()["data"]


def _source(name: str, words: Sequence[str]) -> Any:
    composed = compose([f"data={name}", *words])
    tell(composed.renamed)
    return _built(values_of(composed.plain, "data"))


def _built(spec: Mapping[str, object]) -> Any:
    return dataclass_from(target_class(spec, "data"), spec, "data")


def _published(source: object) -> Published | None:
    return cast(Published, source) if hasattr(source, "facts") else None


def _list() -> int:
    rows = []
    for name in _names():
        try:
            rows.append(_row(name, _built(read_choice("data", name))))
        except Exception as problem:  # one that is being written does not hide the others
            rows.append((name, "", "", "", f"cannot be used: {str(problem).splitlines()[0]}", ""))
    show_table("Data sets", COLUMNS, rows)
    say("Classes are those before rotations. More on each: docs/data/NAME.md")
    return 0


def _row(name: str, source: Any) -> tuple[str, ...]:
    published = _published(source)
    counts = "/".join(str(count) for count in source.counts().values()) if hasattr(source, "counts") else ""
    if published is None:
        here = "yours" if hasattr(source, "path") else "computed"
        return name, counts, "", "", "", here
    facts = published.facts
    here = "packed" if _packs(name, source) else "yes" if present(published) else "no"
    return name, counts, f"{facts.images:,}", _megabytes(facts.megabytes), facts.licence, here


def _packs(name: str, source: object) -> list[Path]:
    """Packed files of this data set, of any values."""
    module = type(source).__module__.rpartition(".")[2]
    stem = re.compile(rf"({re.escape(name)}|{re.escape(module)})-[0-9a-f]{{12}}\.npy")
    return [path for path in cache_root().glob("*.npy") if stem.fullmatch(path.name)]


def _megabytes(count: float) -> str:
    return f"{count / 1000:.1f} GB" if count >= 1000 else f"{count:.0f} MB"


def _fetch(name: str, source: object) -> int:
    published = _published(source)
    if published is None:
        way = "your own files; set data.path" if hasattr(source, "path") else "computed as they are used"
        say(f"{name}: nothing to fetch, its items are {way}")
        return 0
    before = present(published)
    edition = before or obtain(published, say)
    files = ", ".join(file.path for file in edition.files)
    say(f"{name}: {'already there' if before else 'fetched'}: {files} in {home(published)}")
    return 0


def _check(name: str, source: Any) -> int:
    if not hasattr(source, "load"):
        say(f"{name}: nothing to check, its items are computed as they are used")
        return 0
    failed = 0
    for finding in _findings(source):
        failed += finding.good is False
        say(str(finding))
    say(f"{name}: {f'{failed} checks failed' if failed else 'all is well'}")
    return 1 if failed else 0


def _findings(source: Any) -> Iterator[Finding]:
    published = _published(source)
    edition = present(published) if published else None
    if published and edition:
        yield from _files(published, edition)
    try:
        pool: Pool = source.load(say)
    except DataError as problem:
        yield Finding(False, str(problem))
        return
    yield from _sizes(source, pool)
    yield from _apart(pool)
    path = getattr(pool.items, "filename", None)
    if path is None:
        yield Finding(True, "nothing is packed; the items are in memory")
    else:
        size = _megabytes(os.path.getsize(path) / 1e6)
        whole = is_whole(Path(path))
        told = "is as it was written" if whole else "is damaged; delete it, and the next run packs anew"
        yield Finding(whole, f"packed file {path} ({size}) {told}")


def _files(source: Published, edition: Edition) -> Iterator[Finding]:
    for file in edition.files:
        path = home(source) / file.path
        if file.md5 is None or not path.is_file():
            continue
        with path.open("rb") as opened:
            found = hashlib.file_digest(opened, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if found == file.md5:
            yield Finding(True, f"{file.path} has the published bytes")
        else:
            yield Finding(None, f"{file.path} has other bytes than published, as one packed anew would")


def _sizes(source: Any, pool: Pool) -> Iterator[Finding]:
    published = _published(source)
    items, classes = len(pool.items), len(pool.names)
    expected = published.facts.images if published else items
    told = f"and not {expected}" if items != expected else "as published" if published else "counted"
    yield Finding(items == expected, f"{items} items of {classes} classes, {told}")
    found = {str(split): len(numbers) for split, numbers in pool.splits.items()}
    counts = {str(split): count for split, count in source.counts().items()} if hasattr(source, "counts") else found
    shown = ", ".join(f"{split} {count}" for split, count in found.items())
    wanted = "" if found == counts else f", and not {', '.join(f'{split} {count}' for split, count in counts.items())}"
    yield Finding(found == counts, f"classes of each split: {shown}{wanted}")
    empty = [pool.names[number] for number in np.flatnonzero(np.diff(pool.bounds) == 0)[:SHOWN]]
    yield Finding(not empty, f"classes without items: {', '.join(empty)}" if empty else "every class has items")


def _apart(pool: Pool) -> Iterator[Finding]:
    """What Pack.pool promises, looked at again in what tasks are made of."""
    of = {number: split for split, numbers in pool.splits.items() for number in numbers}
    distinct = len(of) == sum(len(numbers) for numbers in pool.splits.values())
    yield Finding(distinct, "no class is in two splits" if distinct else "a class is in two splits")
    counts = tuple(int(count) for count in np.diff(pool.bounds))
    twins = Twins(Contents(pool.names, counts, pool.items.shape[1:], iter(())))
    for number in range(len(counts)):
        twins.seen(pool.of(number))
    found = [twin for twin in twins.found if of.get(twin.first) != of.get(twin.second)]
    found = [twin for twin in found if twin.first in of and twin.second in of]
    pairs = "; ".join(f"{pool.names[twin.first]} and {pool.names[twin.second]}" for twin in found[:SHOWN])
    alike = len(twins.found) - len(found)
    rest = f" ({alike} pairs of classes of one split share one)" if alike else ""
    yield Finding(
        not found, f"{len(found)} items lie in two splits: {pairs}" if found else f"no item is in two splits{rest}"
    )
