"""Writes made-up sentences on 48 topics as features, an example for data=arrays: one row a sentence, labelled by topic.

A sentence has words of its topic and words that all topics share. Its features are groups of three letters, hashed to
signed columns as in "Feature Hashing for Large Scale Multitask Learning" (Weinberger et al., ICML 2009).

    python scripts/examples/texts.py texts.npz
    metarun data=arrays data.path=texts.npz model=mlp task=5w1s
"""

from __future__ import annotations

import argparse
import random
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TOPICS = 48
TOPIC_WORDS = 5  # words that belong to one topic
SHARED_WORDS = 60
TEMPLATES = (
    "the {own} was {all} before the {own} could {all}",
    "{all} {own} and {own} are {own}",
    "why does a {own} {all} the {own} {own}",
    "they {all} that {own} {own} will {all} again",
    "no {own} without {own} {own}",
)
CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"


def random_word(draw: random.Random) -> str:
    return "".join(draw.choice(CONSONANTS) + draw.choice(VOWELS) for _ in range(draw.choice((2, 3))))


def random_sentence(own: list[str], shared: list[str], draw: random.Random) -> str:
    words = draw.choice(TEMPLATES).split()
    return " ".join({"{own}": draw.choice(own), "{all}": draw.choice(shared)}.get(each, each) for each in words)


def hashed_features(text: str, columns: int) -> NDArray[np.float32]:
    """Counts of groups of three letters in hashed columns, as a vector of length 1."""
    row = np.zeros(columns, np.float32)
    for start in range(len(text) - 2):
        place, sign = divmod(zlib.crc32(text[start : start + 3].encode()), 2)
        row[place % columns] += 1.0 if sign else -1.0
    length = float(np.linalg.norm(row))
    return row / np.float32(length or 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help=".npz to write")
    parser.add_argument("--per-topic", type=int, default=30, help="sentences of each topic")
    parser.add_argument("--columns", type=int, default=128, help="number of features")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    draw = random.Random(args.seed)
    shared = [random_word(draw) for _ in range(SHARED_WORDS)]
    rows, topics = [], []
    for topic in range(TOPICS):
        own = [random_word(draw) for _ in range(TOPIC_WORDS)]
        for _ in range(args.per_topic):
            rows.append(hashed_features(random_sentence(own, shared, draw), args.columns))
            topics.append(f"topic{topic + 1:02d}")
    np.savez_compressed(args.out, x=np.stack(rows), y=np.array(topics))
    print(f"{args.out}: {len(rows)} sentences about {TOPICS} topics in {args.columns} columns")


if __name__ == "__main__":
    main()
