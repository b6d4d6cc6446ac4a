"""The choice of several data sets whose tasks take turns: task i comes from number i modulo their count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from metarun.data.sources.source import Source

if TYPE_CHECKING:  # data sets are listed without torch
    from metarun.types import Kind, Split


@dataclass(frozen=True)
class Mixture(Source):
    """Names of the data sets of each split. Images of all of them are brought to one size and number of channels."""

    kind: ClassVar[Kind] = "classes"

    sources: Any  # Mapping[str, ClassSource]: the data sets that a split may name, built by config/schema.py
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    size: int  # pixels, of both sides
    channels: int

    def __post_init__(self) -> None:
        for split, names in (("train", self.train), ("val", self.val), ("test", self.test)):
            unknown = [name for name in names if name not in self.sources]
            if unknown or not names:
                known = ", ".join(self.sources)
                raise ValueError(f"{split}={list(names)}: name one or more of data.sources ({known})")
        if self.channels not in (1, 3):
            raise ValueError(f"channels={self.channels}: use 1 (grey) or 3")
        if self.size < 1:
            raise ValueError(f"size={self.size}: use 1 pixel or more")

    def members(self, split: Split) -> tuple[str, ...]:
        """The names of the data sets of this split, in the order in which they take turns."""
        return {"train": self.train, "val": self.val, "test": self.test}[split]
