"""Sinusoid regression (Finn 2017, section 5.1): y = amplitude * sin(x - phase), with a new pair for every task."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from metarun.data.sources.source import Source

if TYPE_CHECKING:  # data sets are listed without torch
    import torch

    from metarun.data.tasks.contracts import TaskData
    from metarun.types import Kind


@dataclass(frozen=True)
class Sine(Source):
    """Each field is the range (low, high) of a uniform distribution."""

    amplitude: tuple[float, float]
    phase: tuple[float, float]
    x: tuple[float, float]

    kind: ClassVar[Kind] = "values"

    def __post_init__(self) -> None:
        for name, (low, high) in {"amplitude": self.amplitude, "phase": self.phase, "x": self.x}.items():
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(f"{name}=[{low}, {high}]: need two finite numbers, the smaller first")

    def open(self, device: torch.device, dtype: torch.dtype) -> TaskData:
        from metarun.data.tasks.sinusoids import SinusoidData

        return SinusoidData(self.amplitude, self.phase, self.x, device, dtype)
