"""Sinusoids on a device: the tasks of a source of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metarun.data.sources.sine import Sine
from metarun.data.splits import SPLITS
from metarun.data.tasks import random_bits as draw
from metarun.data.tasks.contracts import Part, Room, Tasks, TaskShape, whole
from metarun.types import Batch, Episode, Kind, Split

WAVE_STREAM, X_STREAM = 1, 2


@dataclass(frozen=True)
class SineData:
    source: Sine
    device: torch.device
    dtype: torch.dtype
    kind: Kind = "values"
    item: tuple[int, ...] = (1,)

    def rooms(self, split: Split) -> tuple[Room, ...]:
        return (Room(None, None),)

    def tasks(self, split: Split, shape: TaskShape, seed: int) -> Tasks:
        return SineTasks(self, SPLITS.index(split), shape, seed)


@dataclass(frozen=True)
class SineTasks:
    data: SineData
    split: int
    shape: TaskShape
    seed: int

    def __call__(self, index_T: Tensor) -> Episode:
        index_T = index_T.to(self.data.device)
        (ways, _), (shots, _) = self.shape.ways_span, self.shape.shots_span
        support = ways * shots
        count = support + ways * self.shape.queries
        u_TX = draw.uniform(self.seed, self.split, index_T, X_STREAM, count)
        x_TX = _between(self.data.source.x, u_TX)
        y_TX = self.wave(index_T, x_TX)
        x, y = (v.to(self.data.dtype)[..., None] for v in (x_TX, y_TX))
        return Episode(Batch(x[:, :support], y[:, :support]), Batch(x[:, support:], y[:, support:]), index_T)

    def parts(self, index_T: Tensor) -> list[Part]:
        return whole(self, self.shape, index_T)

    def wave(self, index_T: Tensor, x_TX: Tensor) -> Tensor:
        """The function of each task, at any x."""
        u_T2 = draw.uniform(self.seed, self.split, index_T, WAVE_STREAM, 2)
        amplitude_T = _between(self.data.source.amplitude, u_T2[:, 0])
        phase_T = _between(self.data.source.phase, u_T2[:, 1])
        return amplitude_T[:, None] * torch.sin(x_TX - phase_T[:, None])


def _between(span: tuple[float, float], u: Tensor) -> Tensor:
    return span[0] + (span[1] - span[0]) * u
