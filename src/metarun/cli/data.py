"""`metarun data`: lists the data sets and says which are here, fetches them, and checks them by reading every item."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metarun.config.compose import compose, read_choice
from metarun.config.convert import dataclass_from, target_class, values_of
from metarun.config.places import groups
from metarun.config.renamed import tell
from metarun.data.fetch.editions import Edition, data_folder, edition_on_disk, fetch_edition
from metarun.data.sources.mixture import Mixture
from metarun.data.sources.packed_source import OwnFiles, PackedSource, PublishedPictures
from metarun.data.sources.source import Source
from metarun.data.store.contents import Contents, DuplicateFinder
from metarun.data.store.pack import across_splits, is_whole
from metarun.data.store.pool import DataError, Pool, cache_root
from metarun.errors import SHOWN_NAMES, ConfigError, nearest
from metarun.track.console import say, show_table

ACTIONS = ("list", "fetch", "check")
COLUMNS = ("name", "train/val/test", "images", "download", "licence", "here")


class Finding(NamedTuple):
    """The result of one check."""

    good: bool | None  # None: worth a note, neither good nor bad
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
        return _show_list()
    if not rest or "=" in rest[0]:
        raise ConfigError(
            f"data {action}: name a data set ({', '.join(_data_sets())}), as in: metarun data {action} omniglot"
        )
    name, *words = rest
    if name not in _data_sets():
        known = ", ".join(_data_sets())
        raise ConfigError(f"data {action} {name}: no such data set{nearest(name, _data_sets())} ({known})")
    composed = compose([f"data={name}", *words])
    tell(composed.renamed)
    spec = values_of(composed.plain, "data")
    if target_class(spec, "data") is Mixture:
        say(f"{name}: takes its items from other data sets ({', '.join(_members(spec))}); {action} these by name")
        return 0
    source = _built(spec)
    try:
        return _fetch(name, source) if action == "fetch" else _run_checks(name, source)
    except DataError as problem:
        raise ConfigError(f"data={name}: {problem}") from problem


def _data_sets() -> list[str]:
    return groups()["data"]


def _members(spec: Mapping[str, object]) -> list[str]:
    """The names of the data sets of a mixture."""
    sources = spec["sources"]
    return list(map(str, sources)) if isinstance(sources, Iterable) else []


def _built(spec: Mapping[str, object]) -> Source:
    source: object = dataclass_from(target_class(spec, "data"), spec, "data")
    if not isinstance(source, Source):
        raise ConfigError(f"data._target_={spec['_target_']}: is no Source; derive it from data.sources.source.Source")
    return source


def _show_list() -> int:
    rows = []
    for name in _data_sets():
        try:
            rows.append(_list_row(name, read_choice("data", name)))
        except Exception as problem:  # a source that is still being written does not hide the others
            rows.append((name, "", "", "", f"cannot be used: {str(problem).splitlines()[0]}", ""))
    show_table("Data sets", COLUMNS, rows)
    say("Classes are those before rotations. More on each: docs/data/NAME.md")
    return 0


def _list_row(name: str, spec: Mapping[str, object]) -> tuple[str, ...]:
    if target_class(spec, "data") is Mixture:
        return name, "", "", "", "", " + ".join(_members(spec))
    source = _built(spec)
    counts = "/".join(str(count) for count in source.counts().values())
    if not isinstance(source, PublishedPictures):
        return name, counts, "", "", "", "yours" if isinstance(source, OwnFiles) else "computed"
    facts = source.facts
    here = "packed" if _is_packed(source) else "yes" if edition_on_disk(source) else "no"
    return name, counts, f"{facts.images:,}", _megabytes(facts.megabytes), facts.licence, here


def _is_packed(source: PackedSource) -> bool:
    """Whether there is a packed file of this data set, whatever its values are."""
    file_name = re.compile(rf"{re.escape(source.pack_name)}-[0-9a-f]{{12}}\.npy")
    return any(file_name.fullmatch(path.name) for path in cache_root().glob("*.npy"))


def _megabytes(count: float) -> str:
    return f"{count / 1000:.1f} GB" if count >= 1000 else f"{count:.0f} MB"


def _fetch(name: str, source: Source) -> int:
    if not isinstance(source, PublishedPictures):
        way = "your own files; set data.path" if isinstance(source, OwnFiles) else "computed as they are used"
        say(f"{name}: nothing to fetch, its items are {way}")
        return 0
    before = edition_on_disk(source)
    edition = before or fetch_edition(source, say)
    files = ", ".join(file.path for file in edition.files)
    say(f"{name}: {'already there' if before else 'fetched'}: {files} in {data_folder(source)}")
    return 0


def _run_checks(name: str, source: Source) -> int:
    if not isinstance(source, PackedSource):
        say(f"{name}: nothing to check, its items are computed as they are used")
        return 0
    failed = 0
    for finding in _findings(source):
        failed += finding.good is False
        say(str(finding))
    say(f"{name}: {f'{failed} checks failed' if failed else 'all is well'}")
    return 1 if failed else 0


def _findings(source: PackedSource) -> Iterator[Finding]:
    edition = edition_on_disk(source) if isinstance(source, PublishedPictures) else None
    if isinstance(source, PublishedPictures) and edition:
        yield from _check_files(source, edition)
    try:
        pool = source.load(say)
    except DataError as problem:
        yield Finding(False, str(problem))
        return
    yield from _check_sizes(source, pool)
    yield from _check_splits(pool)
    yield _check_packed_file(pool)


def _check_packed_file(pool: Pool) -> Finding:
    if not isinstance(pool.items, np.memmap) or pool.items.filename is None:
        return Finding(True, "nothing is packed; the items are in memory")
    path = Path(pool.items.filename)
    whole, size = is_whole(path), _megabytes(path.stat().st_size / 1e6)
    state = "is as it was written" if whole else "is damaged; delete it, and the next run packs again"
    return Finding(whole, f"packed file {path} ({size}) {state}")


def _check_files(source: PublishedPictures, edition: Edition) -> Iterator[Finding]:
    for file in edition.files:
        path = data_folder(source) / file.path
        if file.md5 is None or not path.is_file():
            continue
        with path.open("rb") as content:
            found = hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if found == file.md5:
            yield Finding(True, f"{file.path} has the published bytes")
        else:
            yield Finding(None, f"{file.path} has other bytes than published, as a repacked archive would")


def _check_sizes(source: PackedSource, pool: Pool) -> Iterator[Finding]:
    published = isinstance(source, PublishedPictures)
    items, classes = len(pool.items), len(pool.names)
    expected = source.facts.images if isinstance(source, PublishedPictures) else items
    verdict = f"and not {expected}" if items != expected else "as published" if published else "counted"
    yield Finding(items == expected, f"{items} items of {classes} classes, {verdict}")
    found = {split: len(numbers) for split, numbers in pool.splits.items()}
    counts = source.counts() or found
    shown = ", ".join(f"{split} {count}" for split, count in found.items())
    wanted = "" if found == counts else f", and not {', '.join(f'{split} {count}' for split, count in counts.items())}"
    yield Finding(found == counts, f"classes of each split: {shown}{wanted}")
    empty = [pool.names[number] for number in np.flatnonzero(np.diff(pool.bounds) == 0)[:SHOWN_NAMES]]
    yield Finding(not empty, f"classes without items: {', '.join(empty)}" if empty else "every class has items")


def _check_splits(pool: Pool) -> Iterator[Finding]:
    """What Pack.pool has ensured, looked at once more in the pool that tasks are made of."""
    split_of = {number: split for split, numbers in pool.splits.items() for number in numbers}
    distinct = len(split_of) == sum(len(numbers) for numbers in pool.splits.values())
    yield Finding(distinct, "no class is in two splits" if distinct else "a class is in two splits")
    counts = tuple(int(count) for count in np.diff(pool.bounds))
    finder = DuplicateFinder(Contents(pool.names, counts, pool.items.shape[1:], iter(())))
    for number in range(len(counts)):
        finder.add(pool.items_of(number))
    found = across_splits(finder.found, split_of)
    if found:
        pairs = "; ".join(f"{pool.names[pair.first]} and {pool.names[pair.second]}" for pair in found[:SHOWN_NAMES])
        yield Finding(False, f"{len(found)} items lie in two splits: {pairs}")
        return
    alike = len(finder.found)
    rest = f" ({alike} pairs of classes of one split share one)" if alike else ""
    yield Finding(True, f"no item is in two splits{rest}")
