"""Learning-rate schedules as functions of the step alone, so that a resume needs nothing but the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol


class Schedule(Protocol):
    def factor(self, step: int, total: int) -> float:
        """What the learning rate of meta-step `step` (from 0) of `total` is multiplied by."""
        ...


def _check_final(final: float) -> None:
    if not 0 <= final <= 1:
        raise ValueError(f"final={final}: need a share of the learning rate, 0 to 1")


@dataclass(frozen=True)
class Constant:
    def factor(self, step: int, total: int) -> float:
        return 1.0


@dataclass(frozen=True)
class Linear:
    final: float

    def __post_init__(self) -> None:
        _check_final(self.final)

    def factor(self, step: int, total: int) -> float:
        return 1 - (1 - self.final) * step / total


@dataclass(frozen=True)
class Cosine:
    final: float

    def __post_init__(self) -> None:
        _check_final(self.final)

    def factor(self, step: int, total: int) -> float:
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * step / total)) / 2


@dataclass(frozen=True)
class Step:
    every: int
    gamma: float

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every={self.every}: need at least 1 step between cuts")
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma={self.gamma}: need a factor above 0, at most 1")

    def factor(self, step: int, total: int) -> float:
        return self.gamma ** (step // self.every)
