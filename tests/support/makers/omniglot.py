"""Omniglot's two archives with made-up drawings."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ARCHIVES = ("images_background.zip", "images_evaluation.zip")
SIDE = 105


def drawing(character: int, drawer: int) -> NDArray[np.uint8]:
    """Black on white, as published: a bar whose place is the character and whose thickness is the drawer."""
    paper = np.full((SIDE, SIDE), 255, dtype=np.uint8)
    paper[10 * character + 5 : 10 * character + 7 + drawer, 20:80] = 0
    return paper


def archive(path: Path, alphabets: dict[str, int], first: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{path.stem}/", "")
        number = first
        for alphabet, characters in alphabets.items():
            for character in range(1, characters + 1):
                for drawer in (3, 1, 4, 2):  # in no order
                    png = io.BytesIO()
                    Image.fromarray(drawing(number, drawer)).convert("1").save(png, "png")
                    name = f"{path.stem}/{alphabet}/character{character:02d}/{number + 1:04d}_{drawer:02d}.png"
                    file.writestr(name, png.getvalue())
                number += 1


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
