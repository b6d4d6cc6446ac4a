"""mini-ImageNet in small: all classes, few images each; as three pickles, in an archive, as lists and JPEG files."""

from __future__ import annotations

import csv
import io
import pickle
import random
import tarfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from metarun.data.splits.class_list import class_list
from metarun.types import Split
from support.makers.cifar import python2

LISTS = class_list("mini_imagenet_ravi")
NAMES = sorted(name for names in LISTS.values() for name in names)
SIDE = 84


def picture(name: str, copy: int) -> NDArray[np.uint8]:
    """Noise of its own for every image: [84, 84, 3]."""
    seed = [NAMES.index(name), copy]
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def smooth(name: str, copy: int) -> Image.Image:
    """A picture that JPEG keeps: a colour that is the class, and a slope that is the copy; of the copy's size."""
    number = NAMES.index(name)
    height, width = 100 + 10 * copy, 130
    slope = np.linspace(0, 20 * copy, width)
    red, green, blue = 20 + 40 * (number % 5), 20 + 40 * (number // 5 % 5), 20 + 40 * (number // 25)
    pixels = np.stack([np.broadcast_to(colour + slope, (height, width)) for colour in (red, green, blue)], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def record(names: list[str], per_class: int) -> dict[str, object]:
    """image_data and class_dict; images in no order."""
    rows = [(name, copy) for name in names for copy in range(per_class)]
    random.Random(1).shuffle(rows)
    classes = {name: [rows.index((name, copy)) for copy in range(per_class)] for name in reversed(names)}
    return {"image_data": np.stack([picture(*row) for row in rows]), "class_dict": classes}


def caches(per_class: int, called: str, lists: dict[Split, list[str]] = LISTS) -> dict[str, bytes]:
    """The three pickles by file name; `called`: "val", "validation"."""
    made = {}
    for split, names in lists.items():
        content = record(names, per_class)
        name = f"mini-imagenet-cache-{called if split == 'val' else split}.pkl"
        made[name] = python2(content) if split == "test" else pickle.dumps(content)  # of either Python
    return made


def archive(path: Path, made: dict[str, bytes]) -> None:
    """test before train before val, as an alphabet would not have it."""
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for name in sorted(made, key=lambda name: (name.endswith("val.pkl"), "train" in name)):
            info = tarfile.TarInfo(name)
            info.size = len(made[name])
            tar.addfile(info, io.BytesIO(made[name]))


def lists_and_images(folder: Path, per_class: int) -> None:
    (folder / "images").mkdir(parents=True)
    for split, names in LISTS.items():
        with (folder / f"{split}.csv").open("w", newline="") as file:
            lines = csv.writer(file)
            lines.writerow(["filename", "label"])
            for copy in reversed(range(per_class)):
                for name in names:
                    image = f"{name}{copy + 1:08d}.jpg"
                    lines.writerow([image, name])
                    smooth(name, copy).save(folder / "images" / image, quality=95)
