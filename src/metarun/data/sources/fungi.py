"""FGVCx Fungi 2018: 1394 wild mushrooms of Denmark (Svampe Atlas; Schroeder, Cui 2018)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from metarun.data.fetch.editions import ColourPictures, Edition, Facts, File, at, home, obtain
from metarun.data.read import tar_archive
from metarun.data.read.images import Look
from metarun.data.store.contents import Contents
from metarun.data.store.pack import digest, packed
from metarun.data.store.pool import DataError, Pool, Say

if TYPE_CHECKING:  # types.py imports torch
    pass

RECIPE = 1  # raise it with every change of how images are packed: it names the cached file
IMAGES, LABELS = "fungi_train_val.tgz", "train_val_annotations.tgz"
PARTS = ("train.json", "val.json")


@dataclass(frozen=True)
class Fungi(ColourPictures):
    folder_name: ClassVar[str] = "fungi"
    facts: ClassVar[Facts] = Facts(
        "the competition's terms: non-commercial research and education, no passing on of the images",
        89_760,
        12_900,
        "https://github.com/visipedia/fgvcx_fungi_comp",
    )

    images_md5: str | None
    labels_md5: str | None
    classes: int
    images: int

    def editions(self) -> tuple[Edition, ...]:
        images, labels = ((IMAGES, self.images_md5), (LABELS, self.labels_md5))
        packages = tuple(File(name, at(self.mirrors, name), md5) for name, md5 in (images, labels))
        return Edition("archives", packages), Edition("unpacked", (File("images/"), *map(File, PARTS)))

    def load(self, say: Callable[[str], None]) -> Pool:
        data = (self.images_md5, self.labels_md5, self.classes, self.images)
        key = digest(RECIPE, *data, self.size, self.resize, self.fit)
        pack = packed(f"fungi-{key}", lambda: self._contents(say), say)
        return pack.pool(pack.numbers(self.lists(), "the split of Meta-Dataset"), self.duplicates, say)

    def _contents(self, say: Callable[[str], None]) -> Contents:
        edition = obtain(self, say)
        path, labels = (home(self) / file.path for file in edition.files[:2])
        category = _categories(labels, say)
        classes = tar_archive.classified(category, category.__getitem__)
        tar_archive.counted(labels, classes, self.classes, self.images)
        look = Look(self.size, 3, self.resize, self.fit)
        return tar_archive.contents(
            path, classes, self.size, lambda name, content: look.of(content, f"{path}: {name}"), say
        )


def _categories(labels: Path, say: Say) -> dict[str, str]:
    """Each image's class, named by number and species: two species have two classes each."""
    packed_labels = labels.suffix == ".tgz"
    texts = (
        tar_archive.texts_in(labels, PARTS, say) if packed_labels else [_text(labels.parent / part) for part in PARTS]
    )
    found: dict[str, str] = {}
    for part, text in zip(PARTS, texts, strict=True):
        try:
            about = json.loads(text)
            names = {each["id"]: f"{each['id']:04d}.{each['name'].strip()}" for each in about["categories"]}
            files = {each["id"]: each["file_name"].removeprefix("./") for each in about["images"]}
            of = {files[each["image_id"]]: names[each["category_id"]] for each in about["annotations"]}
        except (ValueError, LookupError, TypeError, AttributeError) as problem:
            told = f"{part} is not the published one ({type(problem).__name__}: {problem})"
            raise DataError(f"{labels}: {told}; put the published annotations there") from problem
        if not len(of) == len(about["images"]) == len(about["annotations"]):
            told = f"{part} has {len(about['images'])} images and {len(about['annotations'])} annotations"
            raise DataError(f"{labels}: {told}, of {len(of)} different files; put the published annotations there")
        if not found.keys().isdisjoint(of):
            raise DataError(
                f"{labels}: {' and '.join(PARTS)} name the same images; put the published annotations there"
            )
        found |= of
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as problem:
        raise DataError(f"{path} cannot be read ({problem}); put the published annotations there") from problem
