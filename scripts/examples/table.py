"""Write a made-up table of measurements, to try data=arrays on: 30 kinds of things, the last column says which.

Columns have units as different as grams and kilometres, some say nothing, and one is the same in every row.

    python scripts/examples/table.py table.npy
    metarun data=arrays data.path=table.npy data.label_column=-1 model=mlp task=5w5s
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np

TELLING, SILENT = 12, 4  # columns
SPREAD = 0.35  # of one kind's things, where the kinds themselves have 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help=".npy to write")
    parser.add_argument("--kinds", type=int, default=30)
    parser.add_argument("--per-kind", type=int, default=25, help="rows")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    draw = random.Random(chosen.seed)
    units = [10.0 ** draw.randint(-3, 4) for _ in range(TELLING + SILENT)]
    rows = []
    for kind in range(chosen.kinds):
        centre = [draw.gauss(0.0, 1.0) for _ in range(TELLING)]
        for _ in range(chosen.per_kind):
            values = [draw.gauss(middle, SPREAD) for middle in centre] + [draw.gauss(0.0, 1.0) for _ in range(SILENT)]
            rows.append([*(unit * value for unit, value in zip(units, values, strict=True)), 1.0, float(kind)])
    table = np.array(rows)[sorted(range(len(rows)), key=lambda _: draw.random())]
    np.save(chosen.out, table)
    print(f"{chosen.out}: {len(table)} rows of {chosen.kinds} kinds, {table.shape[1] - 1} columns and the label")


if __name__ == "__main__":
    main()
