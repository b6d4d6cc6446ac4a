"""Finds the classes of pictures below a folder, and their splits, by the names of the folders."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from unicodedata import normalize

from metarun.data.splits import SPLITS
from metarun.data.store.pool import DataError
from metarun.errors import first_few

if TYPE_CHECKING:  # types.py imports torch
    from metarun.types import Split

PICTURE_FORMATS = """apng avif bmp bw cur dds dib gif icns ico j2c j2k jfif jp2 jpc jpe jpeg jpf jpg jpx pbm pcx pgm
    png pnm ppm psd qoi ras rgb rgba sgi tga tif tiff webp xbm xpm"""  # suffixes of formats that Pillow reads
SUFFIXES = frozenset(PICTURE_FORMATS.split())
SPLIT_NAMES: dict[str, Split] = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
IGNORED_NAMES = ("__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini")  # of unpackers and file managers; and .names
DEEPEST = 4  # levels of folders that are searched: split, group, class, and one to find pictures that lie too deep


class PictureFile(NamedTuple):
    path: str  # below the root
    size: int  # bytes; -1: a link that leads nowhere
    mtime_ns: int


class FolderTree(NamedTuple):
    """A folder and what lies in it."""

    name: str  # as the name of a class
    path: Path
    pictures: tuple[PictureFile, ...]
    others: tuple[str, ...]  # files that are no pictures
    folders: tuple[FolderTree, ...]

    def walk(self) -> Iterator[FolderTree]:
        yield self
        for folder in self.folders:
            yield from folder.walk()


class PictureClass(NamedTuple):
    name: str  # "robin", or "birds/robin"
    group: str  # "" if no class of the data set has a group
    pictures: tuple[PictureFile, ...]


class ClassListing(NamedTuple):
    classes: tuple[PictureClass, ...]  # in order of name
    splits: dict[Split, list[str]]  # empty unless there are folders train, val and test
    left_out: tuple[str, ...]  # one sentence for each kind of file that is not used


def list_classes(root: Path) -> ClassListing:
    if not root.is_dir():
        raise DataError(f"data.path={root}: is a file; need a folder with one folder of pictures per class")
    tree = _read_tree(root, root, ())
    if not tree.folders:
        held = "pictures and no class folders" if tree.pictures else "no folders"
        raise DataError(f"data.path={root}: has {held}; put each class's pictures into a folder with the class's name")
    tops = _split_folders(tree)
    found = {split: list(_classes_in(top)) for split, top in tops.items()} or {"train": list(_classes_in(tree))}
    classes = [each for listed in found.values() for each in listed]
    _check_names(classes)
    splits: dict[Split, list[str]] = {split: sorted(each.name for each in found[split]) for split in tops}
    if any(each.group for each in classes):  # a class beside groups is a group of its own
        classes = [each._replace(group=each.group or each.name) for each in classes]
    return ClassListing(tuple(sorted(classes)), splits, tuple(_unused_files(tree, tops)))


def _read_tree(folder: Path, root: Path, above: tuple[tuple[int, int], ...]) -> FolderTree:
    """Follows links, except one to a folder that contains it; `above` identifies these folders."""
    pictures, others, folders = [], [], []
    try:
        here = _device_and_inode(folder)
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as problem:
        raise DataError(f"{printable(str(folder))} cannot be read ({problem.strerror})") from problem
    for entry in entries:
        if entry.name.startswith(".") or entry.name in IGNORED_NAMES:
            continue
        if _is_folder(entry):
            inside = len(above) < DEEPEST and _device_and_inode(entry.path) not in (*above, here)
            folders += [_read_tree(folder / entry.name, root, (*above, here))] if inside else []
        elif entry.name.rpartition(".")[2].lower() in SUFFIXES and "." in entry.name:
            pictures.append(_picture_file(entry, os.path.relpath(entry.path, root)))
        else:
            others.append(os.path.relpath(entry.path, root))
    return FolderTree(_class_name(folder.name), folder, tuple(pictures), tuple(others), tuple(folders))


def _device_and_inode(folder: Path | str) -> tuple[int, int]:
    about = os.stat(folder)
    return about.st_dev, about.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _picture_file(entry: os.DirEntry[str], path: str) -> PictureFile:
    try:
        about = entry.stat()
    except OSError:
        return PictureFile(path, -1, 0)
    return PictureFile(path, about.st_size, about.st_mtime_ns)


def _split_folders(tree: FolderTree) -> dict[Split, FolderTree]:
    """The folders train, val and test; empty if there are none, or if they are classes with these names."""
    named = [folder for folder in tree.folders if folder.name.casefold() in SPLIT_NAMES]
    if not any(folder.folders for folder in named) and not len(named) == len(tree.folders) > 1:
        return {}
    others = [folder.name for folder in tree.folders if folder not in named]
    if others:
        listed = ", ".join(folder.name for folder in named)
        raise DataError(
            f"data.path={tree.path}: has {listed} and beside them {first_few(others)}; keep one or the other"
        )
    found: dict[Split, FolderTree] = {}
    for folder in named:
        split = SPLIT_NAMES[folder.name.casefold()]
        if split in found:
            raise DataError(f"data.path={tree.path}: has {found[split].name} and {folder.name}; keep one of them")
        if not folder.folders:
            raise DataError(f"{folder.path} has no class folders; put one folder of pictures per class into it")
        found[split] = folder
    missing = [split for split in SPLITS if split not in found]
    if missing:
        raise DataError(
            f"data.path={tree.path}: has {', '.join(found)} and no {' and no '.join(missing)}; add it, "
            "or put all classes into one folder, to be split by data.split_seed"
        )
    return {split: found[split] for split in SPLITS}


def _classes_in(top: FolderTree) -> Iterator[PictureClass]:
    for folder in top.folders:
        inside = [each for each in folder.folders if any(tree.pictures for tree in each.walk())]
        if folder.pictures and inside:
            raise DataError(
                f"{folder.path} has pictures and a folder of pictures ({inside[0].name}); make it a class or a group"
            )
        if folder.pictures or not folder.folders:
            yield _picture_class(folder, "")
        for each in folder.folders if not folder.pictures else ():
            yield _picture_class(each, folder.name)


def _picture_class(folder: FolderTree, group: str) -> PictureClass:
    name = f"{group}/{folder.name}" if group else folder.name
    deeper = [tree.path for each in folder.folders for tree in each.walk() if tree.pictures]
    if deeper:
        raise DataError(f"{deeper[0]} has pictures one folder too deep; need class folders, or groups of class folders")
    if not folder.pictures:
        others = [os.path.basename(path) for path in folder.others]
        held = f", and its files are no pictures ({first_few(others)})" if others else ""
        raise DataError(f"class {name} has no pictures: {folder.path}{held}; add pictures or remove the folder")
    return PictureClass(name, group, folder.pictures)


def _check_names(classes: Sequence[PictureClass]) -> None:
    """Refuses two names that a person, or another operating system, takes for the same."""
    for what in ("class", "group"):
        seen: dict[str, tuple[str, str]] = {}
        for each in classes:
            folder = printable(os.path.dirname(each.pictures[0].path))
            name = each.name if what == "class" else each.group
            other, where = seen.setdefault(normalize("NFC", name).casefold(), (name, folder))
            if what == "class" and other == name and where != folder:
                spelt = ascii if normalize("NFC", where) == normalize("NFC", folder) else str
                raise DataError(
                    f"class {name} is in {spelt(where)} and in {spelt(folder)}; move its pictures into one of them: "
                    "in few-shot learning the splits have different classes"
                )
            if other != name:
                raise DataError(f"{where} and {folder} are one {what} to some machines; rename one or merge them")


def _unused_files(tree: FolderTree, tops: dict[Split, FolderTree]) -> Iterator[str]:
    others = [printable(path) for each in tree.walk() for path in each.others]
    if others:
        told = "1 file is no picture and was" if len(others) == 1 else f"{len(others)} files are no pictures and were"
        yield f"{told} left out: {first_few(others)}"
    stray = [printable(picture.path) for each in (tree, *tops.values()) for picture in each.pictures]
    if stray:
        told = "1 picture lies in no class folder and was"
        told = told if len(stray) == 1 else f"{len(stray)} pictures lie in no class folder and were"
        yield f"{told} left out: {first_few(stray)}"


def _class_name(raw: str) -> str:
    """One spelling of a name whose bytes differ between macOS and Linux."""
    return normalize("NFC", printable(raw))


def printable(path: str) -> str:
    """A path as text that can be printed and written, whatever bytes it has on the disk."""
    return os.fsencode(path).decode("utf-8", "replace")
