"""DTD: 47 textures named by an adjective, by 120 images (Cimpoi, Maji, Kokkinos, Mohamed, Vedaldi 2014)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from metarun.data.fetch.editions import ColourPictures, Edition, Facts, home, obtain, tarred
from metarun.data.read import tar_archive
from metarun.data.read.images import Look
from metarun.data.store.contents import Contents
from metarun.data.store.pack import digest, packed
from metarun.data.store.pool import Pool

if TYPE_CHECKING:  # types.py imports torch
    pass

RECIPE = 1  # raise it with every change of how images are packed: it names the cached file


@dataclass(frozen=True)
class Dtd(ColourPictures):
    folder_name: ClassVar[str] = "dtd"
    facts: ClassVar[Facts] = Facts(
        "for research purposes, says its page", 5_640, 600, "https://www.robots.ox.ac.uk/~vgg/data/dtd/"
    )

    md5: str | None
    classes: int
    images: int

    def editions(self) -> tuple[Edition, ...]:
        return tarred(self.mirrors, "dtd-r1.0.1.tar.gz", self.md5, "dtd")

    def load(self, say: Callable[[str], None]) -> Pool:
        key = digest(RECIPE, self.md5, self.classes, self.images, self.size, self.resize, self.fit)
        pack = packed(f"dtd-{key}", lambda: self._contents(say), say)
        return pack.pool(pack.numbers(self.lists(), "the split of Meta-Dataset"), self.duplicates, say)

    def _contents(self, say: Callable[[str], None]) -> Contents:
        path = home(self) / obtain(self, say).files[0].path
        names = tar_archive.names_in(path, _is_image, say)
        classes = tar_archive.classified(names, lambda name: name.split("/")[-2])
        tar_archive.counted(path, classes, self.classes, self.images)
        look = Look(self.size, 3, self.resize, self.fit)
        return tar_archive.contents(
            path, classes, self.size, lambda name, content: look.of(content, f"{path}: {name}"), say
        )


def _is_image(name: str) -> bool:
    """dtd/images/CLASS/NAME.jpg; a file .directory lies among them."""
    parts = name.split("/")
    return len(parts) == 4 and parts[:2] == ["dtd", "images"] and parts[3].endswith(".jpg") and parts[3][0] != "."
