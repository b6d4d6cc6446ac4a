"""Which class belongs to which split: published lists, and the split file of a user's own data."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # types.py imports torch
    from metarun.types import Split

SPLITS: tuple[Split, ...] = ("train", "val", "test")
