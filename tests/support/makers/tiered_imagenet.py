"""tiered-ImageNet in small: lists of PNG images as OpenCV gave them to Python 2, and their labels."""

from __future__ import annotations

import io
import random
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from metarun.types import Split
from support.makers.cifar import python2

Strings = Literal["per label", "per image", "none"]
SIDE = 84
SPLITS: tuple[Split, ...] = ("train", "val", "test")


class Class(NamedTuple):
    name: str
    group: str
    images: int


# names in no order; two classes of one name in two splits, as ImageNet's two cranes
CLASSES: dict[Split, tuple[Class, ...]] = {
    "train": (
        Class("tench", "fish", 5),
        Class("crane", "machine", 3),
        Class("drill", "machine", 4),
        Class("ray", "fish", 2),
    ),
    "val": (Class("sloth", "mammal", 2), Class("crane", "bird", 6)),
    "test": (Class("oak", "tree", 3), Class("elm", "tree", 2), Class("bus", "vehicle", 4)),
}


def picture(split: str, name: str, copy: int) -> NDArray[np.uint8]:
    seed = [*f"{split}/{name}".encode(), copy]
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def rows(split: Split) -> list[tuple[Class, int]]:
    """Which image is where in a split's list."""
    found = [(one, copy) for one in CLASSES[split] for copy in range(one.images)]
    random.Random(split).shuffle(found)
    return found


def images(split: Split) -> list[NDArray[np.uint8]]:
    """Encoded pictures, [bytes, 1], as cv2.imencode returns them."""
    encoded = []
    for one, copy in rows(split):
        png = io.BytesIO()
        Image.fromarray(picture(split, one.name, copy)).save(png, "png", compress_level=1)
        encoded.append(np.frombuffer(png.getvalue(), np.uint8).reshape(-1, 1))
    return encoded


def labels(split: Split, strings: Strings) -> dict[str, object]:
    names = [one.name for one in CLASSES[split]]
    groups = list(dict.fromkeys(one.group for one in CLASSES[split]))
    found: dict[str, object] = {
        "label_specific": np.array([names.index(one.name) for one, _ in rows(split)]),
        "label_general": np.array([groups.index(one.group) for one, _ in rows(split)]),
    }
    if strings == "per label":
        found |= {"label_specific_str": names, "label_general_str": groups}
    elif strings == "per image":
        found |= {"label_specific_str": [one.name for one, _ in rows(split)]}
        found |= {"label_general_str": [one.group for one, _ in rows(split)]}
    return found


def files(strings: Strings = "per label", prefix: str = "") -> dict[str, bytes]:
    made = {f"{prefix}{split}_images_png.pkl": python2(images(split)) for split in SPLITS}
    return made | {f"{prefix}{split}_labels.pkl": python2(labels(split, strings)) for split in SPLITS}
