"""Writes made-up molecules with assay results, an example for data=arrays with groups: 40 assays, each one a task.

A molecule is a chain of pieces, written like SMILES; its fingerprint has a bit for each piece and for each pair of
neighbours. An assay is active by a hidden rule over a few bits; a tenth of its answers are wrong. Several assays test
the same molecule.

    python scripts/examples/molecules.py molecules.parquet
    metarun data=arrays data.path=molecules.parquet data.y=active data.group=assay data.duplicates=warn \\
        model=mlp task=5w5s task.ways=2 task.sampler=group_as_task
"""

from __future__ import annotations

import argparse
import importlib
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

PIECES = (
    "C",
    "CC",
    "C(=O)",
    "N",
    "O",
    "S",
    "c1ccccc1",
    "C#N",
    "C(F)(F)F",
    "Cl",
    "C=C",
    "S(=O)(=O)",
    "c1ccncc1",
    "C(O)",
)
PAIRS = [(first, second) for first in PIECES for second in PIECES if first < second]
LENGTHS = (4, 9)  # fewest and most pieces of a molecule
RULE_BITS = 3  # pieces in the rule of an assay
ANSWERS = ("inactive", "active")


def fingerprint(pieces: list[str]) -> list[int]:
    """A bit for each piece in the molecule, then a bit for each pair of neighbours."""
    beside = {tuple(sorted(pair)) for pair in pairwise(pieces)}
    return [*(int(piece in pieces) for piece in PIECES), *(int(pair in beside) for pair in PAIRS)]


def answers(prints: list[list[int]], wrong: float, draw: random.Random) -> list[str]:
    """Half of the molecules are active: those with the highest weighted sum of a few pieces; the weights are hidden."""
    weights = {bit: draw.choice((-1.0, 1.0)) for bit in draw.sample(range(len(PIECES)), RULE_BITS)}
    scores = [sum(weight * each[bit] for bit, weight in weights.items()) + 0.1 * draw.random() for each in prints]
    middle = sorted(scores)[len(scores) // 2]
    return [ANSWERS[(score >= middle) != (draw.random() < wrong)] for score in scores]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help=".parquet to write")
    parser.add_argument("--assays", type=int, default=40, help="number of assays")
    parser.add_argument("--molecules", type=int, default=400, help="number of molecules")
    parser.add_argument("--tested", type=int, default=80, help="molecules tested by each assay")
    parser.add_argument("--wrong", type=float, default=0.1, help="share of wrong answers")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    draw = random.Random(args.seed)
    molecules = [draw.choices(PIECES, k=draw.randint(*LENGTHS)) for _ in range(args.molecules)]
    columns: dict[str, list[Any]] = {"assay": [], "smiles": [], "active": [], "fingerprint": []}
    for assay in range(args.assays):
        tested = draw.sample(molecules, args.tested)
        prints = [fingerprint(pieces) for pieces in tested]
        columns["assay"] += [f"assay{assay + 1:02d}"] * args.tested
        columns["smiles"] += ["".join(pieces) for pieces in tested]
        columns["active"] += answers(prints, args.wrong, draw)
        columns["fingerprint"] += prints
    pyarrow: Any = importlib.import_module("pyarrow")
    parquet: Any = importlib.import_module("pyarrow.parquet")
    kinds = {"fingerprint": pyarrow.list_(pyarrow.int8())}
    parquet.write_table(
        pyarrow.table({name: pyarrow.array(each, kinds.get(name)) for name, each in columns.items()}), args.out
    )
    print(f"{args.out}: {args.assays} assays of {args.tested} molecules, {len(PIECES) + len(PAIRS)} bits each")


if __name__ == "__main__":
    main()
