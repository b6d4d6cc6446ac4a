"""Sinusoid regression (Finn 2017, section 5.1): y = amplitude * sin(x - phase), a new pair for every task."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:  # data sets are listed without torch
    import torch

    from metarun.data.tasks.contracts import Data
    from metarun.types import Kind


@dataclass(frozen=True)
class Sine:
    amplitude: tuple[float, float]
    phase: tuple[float, float]
    x: tuple[float, float]

    kind: ClassVar[Kind] = "values"

    def __post_init__(self) -> None:
        for name in ("amplitude", "phase", "x"):
            low, high = getattr(self, name)
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(f"{name}=[{low}, {high}]: need two finite numbers, the smaller first")

    def open(self, device: torch.device, dtype: torch.dtype) -> Data:
        from metarun.data.tasks.sinusoids import SineData

        return SineData(self, device, dtype)
