"""102flowers.tgz and imagelabels.mat with two pictures of each of their 102 classes."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
from scipy.io import savemat  # type: ignore[import-untyped]

from support.makers.paint import Colour, Made, colour, jpeg, tar


def make(folder: Path) -> Made:
    labels = [number for number in range(1, 103) for _ in range(2)]
    random.Random(5).shuffle(labels)
    tar(folder / "102flowers.tgz", {f"jpg/image_{at:05d}.jpg": jpeg(colour(at)) for at in range(1, len(labels) + 1)})
    savemat(folder / "imagelabels.mat", {"labels": np.array([labels], dtype=np.uint8)}, do_compression=True)
    colours: dict[str, list[Colour]] = {}
    for at, label in enumerate(labels, start=1):
        colours.setdefault(f"{label:03d}", []).append(colour(at))
    return Made({"images": len(labels), "size": 8}, colours)
