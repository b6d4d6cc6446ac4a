"""Draws a contact sheet of the glyphs: rows of alphabets, then rows of single characters by all their drawers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf
from PIL import Image

from metarun.data.sources.glyphs import Glyphs

CONF = Path(__file__).parents[2] / "conf/data/glyphs.yaml"
GAP = 2  # pixels between images


def grid(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Joins images [rows, columns, H, W] into one picture, dark ink on light paper."""
    framed = np.pad(images, ((0, 0), (0, 0), (GAP, GAP), (GAP, GAP)))
    rows, columns, height, width = framed.shape
    return 255 - framed.transpose(0, 2, 1, 3).reshape(rows * height, columns * width)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="PNG to write")
    parser.add_argument("--alphabets", type=int, default=8, help="number of alphabets, each by one drawer")
    parser.add_argument("--characters", type=int, default=8, help="number of single characters, each by all drawers")
    parser.add_argument("--zoom", type=int, default=2, help="size of a pixel")
    parser.add_argument("overrides", nargs="*", help="values in place of conf/data/glyphs.yaml: slant=0.3")
    args = parser.parse_args()
    config = OmegaConf.merge(OmegaConf.load(CONF), OmegaConf.from_dotlist(args.overrides))
    values: Any = OmegaConf.to_container(config)
    source = Glyphs(**{key: value for key, value in values.items() if key != "_target_"})
    images = source.load(print).items.astype(np.uint8).reshape(-1, source.drawers, source.size, source.size)
    images = 255 - images if source.invert else images
    alphabets = images.reshape(-1, source.characters, *images.shape[1:])
    shown = np.linspace(0, len(alphabets) - 1, args.alphabets).astype(int)
    by_alphabet = grid(alphabets[shown, :, np.arange(args.alphabets) % source.drawers])
    by_drawer = grid(alphabets[-1, : args.characters])
    width = max(by_alphabet.shape[1], by_drawer.shape[1])
    pages = [
        np.pad(page, ((8, 8), (0, width - page.shape[1])), constant_values=255) for page in (by_alphabet, by_drawer)
    ]
    sheet = Image.fromarray(np.concatenate(pages))
    sheet.resize((sheet.width * args.zoom, sheet.height * args.zoom), Image.Resampling.NEAREST).save(args.out)
    print(f"{args.out}: {args.alphabets} alphabets, then {args.characters} characters by {source.drawers} drawers")


if __name__ == "__main__":
    main()
