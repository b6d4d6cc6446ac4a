"""Omniglot: 1623 handwritten characters of 50 alphabets, each by 20 drawers (Lake, Salakhutdinov, Tenenbaum 2015)."""

from __future__ import annotations

import hashlib
import io
import os
import random
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from metarun.data.fetch import fetch
from metarun.data.pool import DataError, Pool, cache_root, cached, make_pool

if TYPE_CHECKING:  # types.py imports torch
    from metarun.types import Kind, Split

RECIPE = 1  # raise it with every change of how images are packed: it names the cached file
SPEAK_EVERY_S = 2.0


@dataclass(frozen=True)
class Omniglot:
    kind: ClassVar[Kind] = "classes"
    places: ClassVar[tuple[str, ...]] = ("root", "mirrors")  # where the data lies, which is no part of an experiment

    root: str | None  # folder that holds omniglot/*.zip; None: METARUN_DATA, else data/ in the cache folder
    mirrors: tuple[str, ...]  # folders on the web that hold the two archives
    background_md5: str
    evaluation_md5: str
    background_classes: int
    evaluation_classes: int
    images_per_class: int
    size: int  # pixels
    resize: Literal["nearest", "box", "bilinear", "bicubic", "lanczos"]
    invert: bool  # True: ink 255 on 0; False: as published, ink 0 on 255
    split: Literal["finn", "lake"]
    split_seed: int
    val_classes: int
    finn_test_classes: int
    mean: float
    std: float
    rotations: Literal["none", "train", "all"]

    def __post_init__(self) -> None:
        if min(self.counts().values()) < 1:
            sizes = ", ".join(f"{count} {split}" for split, count in self.counts().items())
            raise ValueError(f"val_classes={self.val_classes}: leaves {sizes} classes; each split needs 1 or more")

    def counts(self) -> dict[Split, int]:
        """Classes of each split, before rotations."""
        total = self.background_classes + self.evaluation_classes
        test = self.finn_test_classes if self.split == "finn" else self.evaluation_classes
        return {"train": total - self.val_classes - test, "val": self.val_classes, "test": test}

    def load(self, say: Callable[[str], None]) -> Pool:
        archives = (self.background_md5, self.evaluation_md5, self.background_classes, self.evaluation_classes)
        contents = _digest(RECIPE, *archives, self.images_per_class)
        packed = _digest(contents, self.size, self.resize, self.invert)
        images = cached(cache_root(), f"omniglot-{packed}", lambda: self._pack(self._archives(say), say), say)
        listed = cached(cache_root(), f"omniglot-{contents}-names", lambda: self._names(self._archives(say)), _unsaid)
        names = tuple(str(name) for name in listed)
        return make_pool(images, names, self._splits(names))

    def _splits(self, names: tuple[str, ...]) -> dict[Split, tuple[int, ...]]:
        """finn: all classes at random. lake: the background classes at random, and the evaluation classes for test."""
        mixed = len(names) if self.split == "finn" else self.background_classes
        draw = random.Random(self.split_seed).random  # of Python's generators only random() is promised never to change
        keys = {number: draw() for number in sorted(range(mixed), key=names.__getitem__)}
        order = [*sorted(keys, key=keys.__getitem__), *range(mixed, len(names))]
        splits: dict[Split, tuple[int, ...]] = {}
        for split, count in self.counts().items():
            splits[split], order = tuple(sorted(order[:count])), order[count:]
        return splits

    def _archives(self, say: Callable[[str], None]) -> tuple[Path, Path]:
        root = self.root or os.environ.get("METARUN_DATA")
        folder = (Path(root).expanduser() if root else cache_root() / "data") / "omniglot"
        background = fetch(folder / "images_background.zip", self.mirrors, self.background_md5, say)
        return background, fetch(folder / "images_evaluation.zip", self.mirrors, self.evaluation_md5, say)

    def _names(self, archives: tuple[Path, Path]) -> NDArray[np.str_]:
        return np.array([name for _, classes in self._members(archives) for name in classes])

    def _members(self, archives: tuple[Path, Path]) -> list[tuple[Path, dict[str, list[str]]]]:
        """Per archive its classes and their images, both in order of name; background before evaluation."""
        found = [(path, _classes(path)) for path in archives]
        for (path, classes), expected in zip(found, (self.background_classes, self.evaluation_classes), strict=True):
            if len(classes) != expected:
                raise DataError(
                    f"{path} has {len(classes)} characters, not {expected}; put the published archive there"
                )
            for name, images in classes.items():
                if len(images) != self.images_per_class:
                    raise DataError(f"{path}: {name} has {len(images)} images, not {self.images_per_class}")
        return found

    def _pack(self, archives: tuple[Path, Path], say: Callable[[str], None]) -> NDArray[np.uint8]:
        """uint8 [classes, images, 1, size, size]."""
        members = self._members(archives)
        flat = [(path, image) for path, classes in members for images in classes.values() for image in images]
        packed = np.empty((len(flat), self.size, self.size), dtype=np.uint8)
        files = {path: zipfile.ZipFile(path) for path in archives}
        due = time.monotonic() + SPEAK_EVERY_S
        try:
            for row, (path, image) in enumerate(flat):
                packed[row] = self._picture(path, files[path], image)
                if time.monotonic() > due:
                    say(f"omniglot: {row + 1} of {len(flat)} images packed (once; cached after)")
                    due = time.monotonic() + SPEAK_EVERY_S
        finally:
            for file in files.values():
                file.close()
        return packed.reshape(-1, self.images_per_class, 1, self.size, self.size)

    def _picture(self, path: Path, file: zipfile.ZipFile, name: str) -> NDArray[np.uint8]:
        from PIL import Image, ImageOps  # late: a warm start reads no picture

        try:
            grey = Image.open(io.BytesIO(file.read(name))).convert(
                "L"
            )  # 1-bit images resize to nearest, whatever is asked
        except (OSError, zipfile.BadZipFile) as problem:
            raise DataError(f"{path}: {name} cannot be read ({problem}); put the published archive there") from problem
        grey = ImageOps.invert(grey) if self.invert else grey
        return np.asarray(grey.resize((self.size, self.size), Image.Resampling[self.resize.upper()]))


def _unsaid(_: str) -> None:
    """For the names: what keeps them from the cache was said of the images."""


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def _classes(path: Path) -> dict[str, list[str]]:
    """The archive's images by class: <anything>/Alphabet/characterNN/IIII_DD.png belongs to Alphabet/characterNN."""
    try:
        with zipfile.ZipFile(path) as file:
            members = sorted(name for name in file.namelist() if name.endswith(".png"))
    except (OSError, zipfile.BadZipFile) as problem:
        raise DataError(f"{path} is no readable zip archive ({problem}); put the published one there") from problem
    classes: dict[str, list[str]] = {}
    for member in members:
        alphabet, character, _ = member.rsplit("/", 2)
        classes.setdefault(f"{alphabet.rsplit('/', 1)[-1]}/{character}", []).append(member)
    return dict(sorted(classes.items()))
