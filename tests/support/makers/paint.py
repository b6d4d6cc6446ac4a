"""Pictures that can be told apart after JPEG, and archives whose members lie in no order."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from metarun.data.splits.class_list import class_list

STEPS, WIDTH = 14, 17  # colours of each channel, and how far they lie apart
WALL = (128, 128, 128)  # around what a bounding box holds

Colour = tuple[int, int, int]


class Made(NamedTuple):
    values: dict[str, Any]  # of the source, in place of the published ones
    colours: dict[str, list[Colour]]  # of each class's pictures, in order of their names


def colour(number: int) -> Colour:
    """The number's digits to base STEPS."""
    assert number < STEPS**3, f"{number} of {STEPS**3} colours"
    return (WIDTH * (number % STEPS) + 8, WIDTH * (number // STEPS % STEPS) + 8, WIDTH * (number // STEPS**2) + 8)


def jpeg(paint: Colour, size: tuple[int, int] = (8, 8), box: tuple[int, int, int, int] | None = None) -> bytes:
    """All of one colour, or the box of it and WALL around; in multiples of 8 pixels nothing runs into the next."""
    picture = Image.new("RGB", size, WALL if box else paint)
    if box:
        picture.paste(paint, box)
    content = io.BytesIO()
    picture.save(content, "jpeg", quality=95, subsampling=0)
    return content.getvalue()


def all_classes(name: str) -> list[str]:
    return sorted(each for names in class_list(name).values() for each in names)


def tar(path: Path, files: Mapping[str, bytes], order: int = 1) -> None:
    """A .tar.gz of these files and of their folders, shuffled."""
    names = sorted(files)
    random.Random(order).shuffle(names)
    folders = sorted({str(parent) for name in names for parent in Path(name).parents} - {"."})
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.GzipFile(path, "wb", compresslevel=1, mtime=0) as file, tarfile.open(fileobj=file, mode="w") as archive:
        for folder in folders:
            info = tarfile.TarInfo(folder)
            info.type = tarfile.DIRTYPE
            archive.addfile(info)
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(files[name])
            archive.addfile(info, io.BytesIO(files[name]))
