"""Draws a folder of pictures, an example for data=folder: 24 classes of shapes in many formats, modes and sizes.

python scripts/examples/pictures.py shapes
metarun data=folder data.path=shapes data.size=28 task=5w1s
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond", "bars", "dots")
COLOURS = {  # (lowest, highest) red, green, blue
    "cold": ((0, 70), (60, 160), (200, 255)),
    "leafy": ((20, 110), (140, 210), (0, 90)),
    "warm": ((200, 255), (60, 160), (0, 70)),
}
FORMATS = (  # file format, Pillow mode
    ("png", "RGB"),
    ("jpg", "RGB"),
    ("gif", "P"),
    ("bmp", "RGB"),
    ("webp", "RGB"),
    ("tif", "CMYK"),
    ("png", "RGBA"),
)
SIDES = (40, 96)  # shortest and longest side in pixels
QUALITY = 92  # of jpg and webp


def polygons(shape: str, side: int) -> list[list[tuple[float, float]]]:
    """The polygons of a shape, centred at 0."""
    half, third = side / 2, side / 6
    bar = [(-half, -third / 2), (half, -third / 2), (half, third / 2), (-half, third / 2)]
    dot = [(-third, -third), (third, -third), (third, third), (-third, third)]
    corners = [(x, y) for x in (-half + third, half - third) for y in (-half + third, half - third)]
    return {
        "square": [[(-half, -half), (half, -half), (half, half), (-half, half)]],
        "triangle": [[(0, -half), (half, half), (-half, half)]],
        "cross": [bar, [(y, x) for x, y in bar]],
        "diamond": [[(0, -half), (third, 0), (0, half), (-third, 0)]],
        "bars": [[(x, y + offset) for x, y in bar] for offset in (-2 * third, 0, 2 * third)],
        "dots": [[(x + left, y + top) for x, y in dot] for left, top in corners],
    }[shape]


def picture(shape: str, colour: str, draw: random.Random) -> Image.Image:
    width, height = draw.randint(*SIDES), draw.randint(*SIDES)
    ink = tuple(draw.randint(low, high) for low, high in COLOURS[colour])
    paper = tuple(draw.randint(225, 255) for _ in range(3))
    made = Image.new("RGB", (width, height), paper)
    pen = ImageDraw.Draw(made)
    side = int(min(width, height) * draw.uniform(0.55, 0.8))
    x, y = (length / 2 + draw.uniform(-0.06, 0.06) * length for length in (width, height))
    box = (x - side / 2, y - side / 2, x + side / 2, y + side / 2)
    if shape == "circle":
        pen.ellipse(box, fill=ink)
    elif shape == "ring":
        pen.ellipse(box, outline=ink, width=max(side // 6, 1))
    else:
        for polygon in polygons(shape, side):
            pen.polygon([(x + left, y + top) for left, top in polygon], fill=ink)
    return made


def write_classes(folder: Path, per_class: int, seed: int) -> None:
    for number, (colour, shape) in enumerate((colour, shape) for colour in COLOURS for shape in SHAPES):
        home = folder / colour / shape
        home.mkdir(parents=True, exist_ok=True)
        draw = random.Random(1000 * seed + number)
        for place in range(per_class):
            suffix, mode = FORMATS[place % len(FORMATS)]
            options: dict[str, Any] = {"quality": QUALITY} if suffix in ("jpg", "webp") else {}
            picture(shape, colour, draw).convert(mode).save(home / f"{place:03d}.{suffix}", **options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--per-class", type=int, default=20, help="pictures of each class")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    write_classes(args.out, args.per_class, args.seed)
    print(f"{args.out}: {len(COLOURS) * len(SHAPES)} classes of {args.per_class} pictures")


if __name__ == "__main__":
    main()
