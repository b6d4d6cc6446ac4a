"""fgvc-aircraft-2013b.tar.gz with two pictures of each of its 100 variants, with boxes and with the copyright line."""

from __future__ import annotations

from pathlib import Path

from support.makers.paint import Colour, Made, all_classes, colour, jpeg, tar

SIZE, BOX = (32, 44), (8, 8, 24, 16)  # of 44 rows 20 are the copyright line
DATA = "fgvc-aircraft-2013b/data"


def make(folder: Path) -> Made:
    files: dict[str, bytes] = {}
    lists: dict[str, list[str]] = {"train": [], "val": [], "trainval": [], "test": []}
    boxes, number = [], 0
    colours: dict[str, list[Colour]] = {}
    for place, name in enumerate(all_classes("aircraft")):
        colours[name] = []
        for part in ("train" if place % 2 else "val", "test"):
            image, paint = f"{34309 + number:07d}", colour(number)
            files[f"{DATA}/images/{image}.jpg"] = jpeg(paint, SIZE, BOX)
            for listed in (part, *(["trainval"] if part != "test" else [])):
                lists[listed].append(f"{image} {name}\n")
            boxes.append(f"{image} {BOX[0] + 1} {BOX[1] + 1} {BOX[2]} {BOX[3]}\n")  # the first pixel is (1, 1)
            colours[name].append(paint)
            number += 1
    for part, lines in lists.items():
        files[f"{DATA}/images_variant_{part}.txt"] = "".join(sorted(lines)).encode()
        files[f"{DATA}/images_family_{part}.txt"] = b"0034309 Boeing 707\n"
    files[f"{DATA}/variants.txt"] = "".join(f"{name}\n" for name in colours).encode()
    files[f"{DATA}/images_box.txt"] = "".join(boxes).encode()
    tar(folder / "fgvc-aircraft-2013b.tar.gz", files)
    return Made({"images": number, "size": 8}, colours)
