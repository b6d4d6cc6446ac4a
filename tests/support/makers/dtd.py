"""dtd-r1.0.1.tar.gz with two pictures of each of its 47 classes."""

from __future__ import annotations

from pathlib import Path

from support.makers.paint import Made, all_classes, colour, jpeg, tar


def make(folder: Path) -> Made:
    files = {"dtd/images/waffled/.directory": b"[Dolphin]\n", "dtd/labels/train1.txt": b"banded/banded_0002.jpg\n"}
    names = all_classes("dtd")
    for place, name in enumerate(names):
        for each in range(2):
            files[f"dtd/images/{name}/{name}_{each + 1:04d}.jpg"] = jpeg(colour(2 * place + each))
    tar(folder / "dtd-r1.0.1.tar.gz", files)
    colours = {name: [colour(2 * place), colour(2 * place + 1)] for place, name in enumerate(names)}
    return Made({"images": 2 * len(names), "size": 8}, colours)
