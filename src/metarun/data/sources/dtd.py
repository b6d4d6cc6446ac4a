"""DTD: 47 textures named by an adjective, by 120 images (Cimpoi, Maji, Kokkinos, Mohamed, Vedaldi 2014)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from metarun.data import archive
from metarun.data.contents import Contents
from metarun.data.pack import Copies, digest, packed
from metarun.data.pictures import Filter, Fit, Look
from metarun.data.pool import Pool
from metarun.data.published import Edition, Facts, File, at, class_list, home, obtain

if TYPE_CHECKING:  # types.py imports torch
    from metarun.types import Kind, Split

RECIPE = 1  # raise it with every change of how images are packed: it names the cached file


@dataclass(frozen=True)
class Dtd:
    kind: ClassVar[Kind] = "classes"
    places: ClassVar[tuple[str, ...]] = ("root", "mirrors")
    folder_name: ClassVar[str] = "dtd"
    facts: ClassVar[Facts] = Facts(
        "for research purposes, says its page", 5_640, 600, "https://www.robots.ox.ac.uk/~vgg/data/dtd/"
    )

    root: str | None
    mirrors: tuple[str, ...]
    md5: str | None
    classes: int
    images: int
    size: int  # pixels
    resize: Filter
    fit: Fit
    copies: Copies
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rotations: Literal["none", "train", "all"]

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size={self.size}: use 1 pixel or more")

    def counts(self) -> dict[Split, int]:
        return {split: len(names) for split, names in class_list("dtd").items()}

    def editions(self) -> tuple[Edition, ...]:
        name = "dtd-r1.0.1.tar.gz"
        return (
            Edition("archive", (File(name, at(self.mirrors, name), self.md5),)),
            Edition("unpacked", (File("dtd/"),)),
        )

    def load(self, say: Callable[[str], None]) -> Pool:
        key = digest(RECIPE, self.md5, self.classes, self.images, self.size, self.resize, self.fit)
        pack = packed(f"dtd-{key}", lambda: self._contents(say), say)
        return pack.pool(pack.numbers(class_list("dtd"), "the split of Meta-Dataset"), self.copies, say)

    def _contents(self, say: Callable[[str], None]) -> Contents:
        path = home(self) / obtain(self, say).files[0].path
        names = archive.names_in(path, _is_image, say)
        classes = archive.classified(names, lambda name: name.split("/")[-2])
        archive.counted(path, classes, self.classes, self.images)
        look = Look(self.size, 3, self.resize, self.fit)
        return archive.contents(
            path, classes, self.size, lambda name, content: look.of(content, f"{path}: {name}"), say
        )


def _is_image(name: str) -> bool:
    """dtd/images/CLASS/NAME.jpg; a file .directory lies among them."""
    parts = name.split("/")
    return len(parts) == 4 and parts[:2] == ["dtd", "images"] and parts[3].endswith(".jpg") and parts[3][0] != "."
