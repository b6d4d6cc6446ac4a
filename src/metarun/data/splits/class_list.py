"""Published splits: the JSON files beside this module, which list the classes of train, val and test."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # types.py imports torch
    from metarun.types import Split


def class_list(name: str) -> dict[Split, list[str]]:
    """The classes of each split in NAME.json. An entry "Greek/character01..24" stands for 24 classes."""
    found: dict[Split, list[str]] = json.loads((files("metarun.data") / "splits" / f"{name}.json").read_text())
    return {split: [name for entry in entries for name in _expanded(entry)] for split, entries in found.items()}


def _expanded(entry: str) -> list[str]:
    span = re.fullmatch(r"(.*?)(\d+)\.\.(\d+)", entry)
    if not span:
        return [entry]
    return [f"{span[1]}{number:0{len(span[2])}}" for number in range(int(span[2]), int(span[3]) + 1)]
