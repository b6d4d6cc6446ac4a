"""The choice of several data sets that take turns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from metarun.types import Kind, Split


@dataclass(frozen=True)
class Mixture:
    """Names of data sets, each brought to one size and number of channels; `sources` has them all, by name."""

    kind: ClassVar[Kind] = "classes"

    sources: Any
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    size: int
    channels: int

    def __post_init__(self) -> None:
        for split in ("train", "val", "test"):
            names = getattr(self, split)
            unknown = [name for name in names if name not in self.sources]
            if unknown or not names:
                known = ", ".join(self.sources)
                raise ValueError(f"{split}={list(names)}: name one or more of data.sources ({known})")
        if self.channels not in (1, 3):
            raise ValueError(f"channels={self.channels}: use 1 (grey) or 3")
        if self.size < 1:
            raise ValueError(f"size={self.size}: use 1 pixel or more")

    def of(self, split: Split) -> tuple[str, ...]:
        found: tuple[str, ...] = getattr(self, split)
        return found
