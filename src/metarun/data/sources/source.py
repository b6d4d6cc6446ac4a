"""What every data source answers to the commands and the configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:  # types.py imports torch, and data sets are listed without it
    from metarun.types import Kind, Split

Rotations = Literal["none", "train", "all"]
"""Splits in which every class gets three more classes: its images turned by 90, 180 and 270 degrees."""


class Source:
    """A data set as its YAML describes it. Subclasses are frozen dataclasses whose fields are the keys of the YAML."""

    kind: ClassVar[Kind]
    places: ClassVar[tuple[str, ...]] = ()  # fields that say where the data lies; left out of a run's signature

    def counts(self) -> dict[Split, int]:
        """The number of classes of each split, before rotations; empty where only loading can tell."""
        return {}

    def identity(self) -> str | None:
        """A digest of the user's own files, "" if they cannot be read; None: the fields describe the data fully."""
        return None
