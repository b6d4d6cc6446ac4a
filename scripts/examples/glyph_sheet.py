"""Draw a contact sheet of the glyphs: some alphabets, and some characters by each of their drawers."""

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
    """[rows, columns, H, W] as one picture, dark ink on light paper."""
    framed = np.pad(images, ((0, 0), (0, 0), (GAP, GAP), (GAP, GAP)))
    rows, columns, height, width = framed.shape
    return 255 - framed.transpose(0, 2, 1, 3).reshape(rows * height, columns * width)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="PNG to write")
    parser.add_argument("--alphabets", type=int, default=8, help="rows of alphabets, each by one drawer")
    parser.add_argument("--characters", type=int, default=8, help="rows of single characters by all their drawers")
    parser.add_argument("--zoom", type=int, default=2)
    parser.add_argument("overrides", nargs="*", help="values instead of those in conf/data/glyphs.yaml, as slant=0.3")
    chosen = parser.parse_args()
    config = OmegaConf.merge(OmegaConf.load(CONF), OmegaConf.from_dotlist(chosen.overrides))
    values: Any = OmegaConf.to_container(config)
    source = Glyphs(**{key: value for key, value in values.items() if key != "_target_"})
    images = source.load(print).items.reshape(-1, source.drawers, source.size, source.size)
    images = 255 - images if source.invert else images
    alphabets = images.reshape(-1, source.characters, *images.shape[1:])
    shown = np.linspace(0, len(alphabets) - 1, chosen.alphabets).astype(int)
    by_alphabet = grid(alphabets[shown, :, np.arange(chosen.alphabets) % source.drawers])
    by_drawer = grid(alphabets[-1, : chosen.characters])
    width = max(by_alphabet.shape[1], by_drawer.shape[1])
    pages = [
        np.pad(page, ((8, 8), (0, width - page.shape[1])), constant_values=255) for page in (by_alphabet, by_drawer)
    ]
    sheet = Image.fromarray(np.concatenate(pages))
    sheet.resize((sheet.width * chosen.zoom, sheet.height * chosen.zoom), Image.Resampling.NEAREST).save(chosen.out)


if __name__ == "__main__":
    main()
