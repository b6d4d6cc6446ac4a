"""Writes a made-up table of measurements, an example for data=arrays: 30 classes; the last column is the label.

Columns have very different units; some are noise, and one is constant.

    python scripts/examples/table.py table.npy
    metarun data=arrays data.path=table.npy data.label_column=-1 model=mlp task=5w5s
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np

INFORMATIVE, NOISE = 12, 4  # number of columns
SPREAD = 0.35  # standard deviation within a class; that of the class means is 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help=".npy to write")
    parser.add_argument("--classes", type=int, default=30)
    parser.add_argument("--per-class", type=int, default=25, help="rows of each class")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    draw = random.Random(args.seed)
    units = [10.0 ** draw.randint(-3, 4) for _ in range(INFORMATIVE + NOISE)]
    rows = []
    for label in range(args.classes):
        centre = [draw.gauss(0.0, 1.0) for _ in range(INFORMATIVE)]
        for _ in range(args.per_class):
            values = [draw.gauss(middle, SPREAD) for middle in centre] + [draw.gauss(0.0, 1.0) for _ in range(NOISE)]
            rows.append([*(unit * value for unit, value in zip(units, values, strict=True)), 1.0, float(label)])
    table = np.array(rows)[sorted(range(len(rows)), key=lambda _: draw.random())]
    np.save(args.out, table)
    print(f"{args.out}: {len(table)} rows of {args.classes} classes, {table.shape[1] - 1} columns and the label")


if __name__ == "__main__":
    main()
