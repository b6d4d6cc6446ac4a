"""FGVCx Fungi 2018: 1394 wild mushrooms of Denmark (Svampe Atlas; Schroeder, Cui 2018)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from metarun.data.fetch.editions import Edition, Facts, PublishedFile, data_folder, fetch_edition, mirror_urls
from metarun.data.read import tar_archive
from metarun.data.sources.packed_source import ColourPictures
from metarun.data.store.contents import Contents
from metarun.data.store.pool import DataError, Say

IMAGE_ARCHIVE, ANNOTATION_ARCHIVE = "fungi_train_val.tgz", "train_val_annotations.tgz"
ANNOTATION_FILES = ("train.json", "val.json")


@dataclass(frozen=True)
class Fungi(ColourPictures):
    recipe: ClassVar[int] = 1
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
        sums = {IMAGE_ARCHIVE: self.images_md5, ANNOTATION_ARCHIVE: self.labels_md5}
        archives = tuple(PublishedFile(name, mirror_urls(self.mirrors, name), md5) for name, md5 in sums.items())
        unpacked = (PublishedFile("images/"), *map(PublishedFile, ANNOTATION_FILES))
        return Edition("archives", archives), Edition("unpacked", unpacked)

    def contents(self, say: Say) -> Contents:
        edition = fetch_edition(self, say)
        path, annotations = (data_folder(self) / file.path for file in edition.files[:2])
        category_of = _categories(annotations, say)
        classes = tar_archive.files_by_class(category_of, category_of.__getitem__)
        tar_archive.check_published_counts(annotations, classes, self.classes, self.images)
        decoder = self.decoder
        return tar_archive.picture_contents(
            path, classes, self.size, lambda name, content: decoder.decode(content, f"{path}: {name}"), say
        )


def _categories(annotations: Path, say: Say) -> dict[str, str]:
    """The class of each image, as number and species: two species have two classes each."""
    if annotations.suffix == ".tgz":
        texts = tar_archive.read_texts(annotations, ANNOTATION_FILES, say)
    else:
        texts = [_annotation_text(annotations.parent / name) for name in ANNOTATION_FILES]
    found: dict[str, str] = {}
    for file, text in zip(ANNOTATION_FILES, texts, strict=True):
        try:
            record = json.loads(text)
            names = {each["id"]: f"{each['id']:04d}.{each['name'].strip()}" for each in record["categories"]}
            files = {each["id"]: each["file_name"].removeprefix("./") for each in record["images"]}
            category_of = {files[each["image_id"]]: names[each["category_id"]] for each in record["annotations"]}
        except (ValueError, LookupError, TypeError, AttributeError) as problem:
            reason = f"{file} is not the published one ({type(problem).__name__}: {problem})"
            raise DataError(f"{annotations}: {reason}; put the published annotations there") from problem
        if not len(category_of) == len(record["images"]) == len(record["annotations"]):
            counts = f"{len(record['images'])} images and {len(record['annotations'])} annotations"
            raise DataError(
                f"{annotations}: {file} has {counts}, of {len(category_of)} different files; "
                "put the published annotations there"
            )
        if not found.keys().isdisjoint(category_of):
            raise DataError(
                f"{annotations}: {' and '.join(ANNOTATION_FILES)} name the same images; "
                "put the published annotations there"
            )
        found |= category_of
    return found


def _annotation_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as problem:
        raise DataError(f"{path} cannot be read ({problem}); put the published annotations there") from problem
