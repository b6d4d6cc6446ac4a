"""Which classes of pictures lie below a folder, and in which splits, by the names of its folders."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from unicodedata import normalize

from metarun.data.splits.split_file import PARTS, some
from metarun.data.store.pool import DataError

if TYPE_CHECKING:  # types.py imports torch
    from metarun.types import Split

PICTURES = """apng avif bmp bw cur dds dib gif icns ico j2c j2k jfif jp2 jpc jpe jpeg jpf jpg jpx pbm pcx pgm png pnm
    ppm psd qoi ras rgb rgba sgi tga tif tiff webp xbm xpm"""  # suffixes of formats that Pillow reads
SUFFIXES = frozenset(PICTURES.split())
SPLIT_NAMES: dict[str, Split] = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
LITTER = ("__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini")  # of unpackers and file managers, like names with a dot
DEEPEST = 4  # folders below the root: split, group, class, and one that is too many


class Picture(NamedTuple):
    path: str  # below the root
    size: int  # bytes; -1 where a link leads nowhere
    mtime_ns: int


class Tree(NamedTuple):
    """A folder, its name as a class would have it."""

    name: str
    path: Path
    pictures: tuple[Picture, ...]
    others: tuple[str, ...]  # files that are no pictures
    folders: tuple[Tree, ...]

    def walk(self) -> Iterator[Tree]:
        yield self
        for folder in self.folders:
            yield from folder.walk()


class Class(NamedTuple):
    name: str  # "robin", or "birds/robin"
    group: str  # "" where no class of the folder has one
    pictures: tuple[Picture, ...]


class Listing(NamedTuple):
    classes: tuple[Class, ...]  # in order of name
    splits: dict[Split, list[str]]  # empty where no folders are called train, val and test
    left_out: tuple[str, ...]  # each a sentence


def listing(root: Path) -> Listing:
    if not root.is_dir():
        raise DataError(f"data.path={root}: is a file; need a folder with one folder of pictures per class")
    tree = _tree(root, root, ())
    if not tree.folders:
        held = "pictures and no class folders" if tree.pictures else "no folders"
        raise DataError(f"data.path={root}: has {held}; put each class's pictures into a folder with the class's name")
    parts = _parts(tree)
    found = {part: list(_classes(folder)) for part, folder in parts.items()} or {"train": list(_classes(tree))}
    classes = [each for listed in found.values() for each in listed]
    _check_names(classes)
    splits: dict[Split, list[str]] = {part: sorted(each.name for each in found[part]) for part in parts}
    if any(each.group for each in classes):  # a class beside groups is its own
        classes = [each._replace(group=each.group or each.name) for each in classes]
    return Listing(tuple(sorted(classes)), splits, tuple(_left_out(tree, parts)))


def _tree(folder: Path, root: Path, above: tuple[tuple[int, int], ...]) -> Tree:
    """Links are followed, but not to a folder that they lie in."""
    pictures, others, folders = [], [], []
    try:
        here = _identity(folder)
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as problem:
        raise DataError(f"{shown(str(folder))} cannot be read ({problem.strerror})") from problem
    for entry in entries:
        if entry.name.startswith(".") or entry.name in LITTER:
            continue
        if _is_folder(entry):
            inside = len(above) < DEEPEST and _identity(entry.path) not in (*above, here)
            folders += [_tree(folder / entry.name, root, (*above, here))] if inside else []
        elif entry.name.rpartition(".")[2].lower() in SUFFIXES and "." in entry.name:
            pictures.append(_picture(entry, os.path.relpath(entry.path, root)))
        else:
            others.append(os.path.relpath(entry.path, root))
    return Tree(_name(folder.name), folder, tuple(pictures), tuple(others), tuple(folders))


def _identity(folder: Path | str) -> tuple[int, int]:
    about = os.stat(folder)
    return about.st_dev, about.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _picture(entry: os.DirEntry[str], path: str) -> Picture:
    try:
        about = entry.stat()
    except OSError:
        return Picture(path, -1, 0)
    return Picture(path, about.st_size, about.st_mtime_ns)


def _parts(tree: Tree) -> dict[Split, Tree]:
    """The folders train, val and test, if that is what they are and not classes of these names."""
    named = [folder for folder in tree.folders if folder.name.casefold() in SPLIT_NAMES]
    if not any(folder.folders for folder in named) and not len(named) == len(tree.folders) > 1:
        return {}
    others = [folder.name for folder in tree.folders if folder not in named]
    if others:
        listed = ", ".join(folder.name for folder in named)
        raise DataError(f"data.path={tree.path}: has {listed} and beside them {some(others)}; keep one or the other")
    parts: dict[Split, Tree] = {}
    for folder in named:
        part = SPLIT_NAMES[folder.name.casefold()]
        if part in parts:
            raise DataError(f"data.path={tree.path}: has {parts[part].name} and {folder.name}; keep one of them")
        if not folder.folders:
            raise DataError(f"{folder.path} has no class folders; put one folder of pictures per class into it")
        parts[part] = folder
    missing = [part for part in PARTS if part not in parts]
    if missing:
        raise DataError(
            f"data.path={tree.path}: has {', '.join(parts)} and no {' and no '.join(missing)}; add it, "
            "or put all classes into one folder, to be split by data.split_seed"
        )
    return {part: parts[part] for part in PARTS}


def _classes(top: Tree) -> Iterator[Class]:
    for folder in top.folders:
        inside = [each for each in folder.folders if any(tree.pictures for tree in each.walk())]
        if folder.pictures and inside:
            raise DataError(
                f"{folder.path} has pictures and a folder of pictures ({inside[0].name}); make it a class or a group"
            )
        if folder.pictures or not folder.folders:
            yield _class(folder, "")
        for each in folder.folders if not folder.pictures else ():
            yield _class(each, folder.name)


def _class(folder: Tree, group: str) -> Class:
    name = f"{group}/{folder.name}" if group else folder.name
    deeper = [tree.path for each in folder.folders for tree in each.walk() if tree.pictures]
    if deeper:
        raise DataError(f"{deeper[0]} has pictures one folder too deep; need class folders, or groups of class folders")
    if not folder.pictures:
        held = f"; what is in it is none ({some([os.path.basename(path) for path in folder.others])})"
        raise DataError(
            f"class {name} has no pictures: {folder.path}{held if folder.others else ''}; fill it or take it away"
        )
    return Class(name, group, folder.pictures)


def _check_names(classes: Sequence[Class]) -> None:
    """Names that a person, or another machine, takes for the same."""
    for what in ("class", "group"):
        seen: dict[str, tuple[str, str]] = {}
        for each in classes:
            folder = shown(os.path.dirname(each.pictures[0].path))
            name = each.name if what == "class" else each.group
            other, where = seen.setdefault(normalize("NFC", name).casefold(), (name, folder))
            if what == "class" and other == name and where != folder:
                spelt = ascii if normalize("NFC", where) == normalize("NFC", folder) else str
                raise DataError(
                    f"class {name} is in {spelt(where)} and in {spelt(folder)}; its pictures belong into one of them: "
                    "in few-shot learning the classes of the splits are different ones"
                )
            if other != name:
                raise DataError(f"{where} and {folder} are one {what} to some machines; rename one or merge them")


def _left_out(tree: Tree, parts: dict[Split, Tree]) -> Iterator[str]:
    others = [shown(path) for each in tree.walk() for path in each.others]
    if others:
        told = "1 file is no picture and was" if len(others) == 1 else f"{len(others)} files are no pictures and were"
        yield f"{told} left out: {some(others)}"
    stray = [shown(picture.path) for each in (tree, *parts.values()) for picture in each.pictures]
    if stray:
        told = "1 picture lies in no class folder and was"
        told = told if len(stray) == 1 else f"{len(stray)} pictures lie in no class folder and were"
        yield f"{told} left out: {some(stray)}"


def _name(raw: str) -> str:
    """One name for what macOS and Linux spell in different bytes."""
    return normalize("NFC", shown(raw))


def shown(path: str) -> str:
    """A name that can be written anywhere, whatever bytes it has on the disk."""
    return os.fsencode(path).decode("utf-8", "replace")
