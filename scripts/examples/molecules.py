"""Write made-up molecules and what assays say of them, to try data=arrays with groups on: 40 assays, each a task.

A molecule is a chain of pieces in the manner of SMILES; its bits say which pieces and neighbours it has. Every assay
has a rule of its own over a few bits, and a tenth of its answers are wrong. Several assays test the same molecule.

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
LENGTHS = (4, 9)  # pieces of a molecule
RULE_BITS = 3
ANSWERS = ("inactive", "active")


def bits(pieces: list[str]) -> list[int]:
    """Which pieces there are, and which stand side by side."""
    beside = {tuple(sorted(pair)) for pair in pairwise(pieces)}
    return [*(int(piece in pieces) for piece in PIECES), *(int(pair in beside) for pair in PAIRS)]


def answers(prints: list[list[int]], wrong: float, draw: random.Random) -> list[str]:
    """Half and half: active is what has most by a hidden weighing of a few pieces."""
    weights = {bit: draw.choice((-1.0, 1.0)) for bit in draw.sample(range(len(PIECES)), RULE_BITS)}
    scores = [sum(weight * each[bit] for bit, weight in weights.items()) + 0.1 * draw.random() for each in prints]
    middle = sorted(scores)[len(scores) // 2]
    return [ANSWERS[(score >= middle) != (draw.random() < wrong)] for score in scores]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help=".parquet to write")
    parser.add_argument("--assays", type=int, default=40)
    parser.add_argument("--molecules", type=int, default=400)
    parser.add_argument("--tested", type=int, default=80, help="molecules of an assay")
    parser.add_argument("--wrong", type=float, default=0.1, help="share of answers")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    draw = random.Random(chosen.seed)
    shelf = [draw.choices(PIECES, k=draw.randint(*LENGTHS)) for _ in range(chosen.molecules)]
    columns: dict[str, list[Any]] = {"assay": [], "smiles": [], "active": [], "fingerprint": []}
    for assay in range(chosen.assays):
        tested = draw.sample(shelf, chosen.tested)
        prints = [bits(pieces) for pieces in tested]
        columns["assay"] += [f"assay{assay + 1:02d}"] * chosen.tested
        columns["smiles"] += ["".join(pieces) for pieces in tested]
        columns["active"] += answers(prints, chosen.wrong, draw)
        columns["fingerprint"] += prints
    pyarrow: Any = importlib.import_module("pyarrow")
    parquet: Any = importlib.import_module("pyarrow.parquet")
    kinds = {"fingerprint": pyarrow.list_(pyarrow.int8())}
    parquet.write_table(
        pyarrow.table({name: pyarrow.array(each, kinds.get(name)) for name, each in columns.items()}), chosen.out
    )
    print(f"{chosen.out}: {chosen.assays} assays of {chosen.tested} molecules, {len(PIECES) + len(PAIRS)} bits each")


if __name__ == "__main__":
    main()
