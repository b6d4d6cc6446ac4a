"""DTD: 47 textures that are described by an adjective (Cimpoi, Maji, Kokkinos, Mohamed, Vedaldi 2014)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from metarun.data.fetch.editions import Edition, Facts, archive_or_folder, data_folder, fetch_edition
from metarun.data.read import tar_archive
from metarun.data.sources.packed_source import ColourPictures
from metarun.data.store.contents import Contents
from metarun.data.store.pool import Say


@dataclass(frozen=True)
class Dtd(ColourPictures):
    recipe: ClassVar[int] = 1
    folder_name: ClassVar[str] = "dtd"
    facts: ClassVar[Facts] = Facts(
        "for research purposes, says its page", 5_640, 600, "https://www.robots.ox.ac.uk/~vgg/data/dtd/"
    )

    md5: str | None
    classes: int
    images: int

    def editions(self) -> tuple[Edition, ...]:
        return archive_or_folder(self.mirrors, "dtd-r1.0.1.tar.gz", self.md5, "dtd")

    def contents(self, say: Say) -> Contents:
        path = data_folder(self) / fetch_edition(self, say).files[0].path
        names = tar_archive.file_names(path, _is_image, say)
        classes = tar_archive.files_by_class(names, lambda name: name.split("/")[-2])
        tar_archive.check_published_counts(path, classes, self.classes, self.images)
        decoder = self.decoder
        return tar_archive.picture_contents(
            path, classes, self.size, lambda name, content: decoder.decode(content, f"{path}: {name}"), say
        )


def _is_image(name: str) -> bool:
    """Whether a file is dtd/images/CLASS/NAME.jpg; some folders also hold a file .directory."""
    parts = name.split("/")
    return len(parts) == 4 and parts[:2] == ["dtd", "images"] and parts[3].endswith(".jpg") and parts[3][0] != "."
