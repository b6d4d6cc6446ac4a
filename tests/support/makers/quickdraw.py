"""345 .npy files of a few drawings each; a drawing's first pixels are its class's number and its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from support.makers.paint import all_classes

DRAWINGS = 5


def drawing(place: int, each: int) -> NDArray[np.uint8]:
    pixels = np.zeros(784, dtype=np.uint8)
    pixels[:3] = place % 256, place // 256, 10 * each + 1
    pixels[300:320] = 255
    return pixels


def make(folder: Path) -> list[str]:
    """The classes in order."""
    folder.mkdir(parents=True, exist_ok=True)
    names = all_classes("quickdraw")
    for place, name in enumerate(names):
        np.save(folder / f"{name}.npy", np.stack([drawing(place, each) for each in range(DRAWINGS)]))
    return names
