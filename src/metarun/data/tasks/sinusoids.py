"""Sinusoid regression tasks on a device: y = amplitude * sin(x - phase), one amplitude and phase for each task."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metarun.data.splits import SPLITS
from metarun.data.tasks import random_bits
from metarun.data.tasks.contracts import SameShapeTasks, SplitCapacity, Tasks, TaskShape, all_same_shape
from metarun.types import Batch, Episode, Kind, Split

Interval = tuple[float, float]
WAVE_STREAM, X_STREAM = 1, 2


@dataclass(frozen=True)
class SinusoidData:
    """A family of sinusoids on a device (a TaskData). Amplitude, phase and x are uniform in their intervals."""

    amplitude: Interval
    phase: Interval
    x: Interval
    device: torch.device
    dtype: torch.dtype
    kind: Kind = "values"
    item_shape: tuple[int, ...] = (1,)

    def capacities(self, split: Split) -> tuple[SplitCapacity, ...]:
        return (SplitCapacity(None, None),)

    def tasks(self, split: Split, shape: TaskShape, seed: int) -> Tasks:
        return SinusoidTasks(self, SPLITS.index(split), shape, seed)


@dataclass(frozen=True)
class SinusoidTasks:
    data: SinusoidData
    split_number: int
    shape: TaskShape
    seed: int

    def __call__(self, index_T: Tensor) -> Episode:
        index_T = index_T.to(self.data.device)
        (ways, _), (shots, _) = self.shape.ways_range, self.shape.shots_range
        support = ways * shots
        count = support + ways * self.shape.queries
        x_TB = _within(self.data.x, random_bits.uniform_floats(self.seed, self.split_number, index_T, X_STREAM, count))
        y_TB = self.sinusoids(index_T, x_TB)
        x, y = (v.to(self.data.dtype)[..., None] for v in (x_TB, y_TB))
        return Episode(Batch(x[:, :support], y[:, :support]), Batch(x[:, support:], y[:, support:]), index_T)

    def by_shape(self, index_T: Tensor) -> list[SameShapeTasks]:
        return all_same_shape(self, self.shape, index_T)

    def sinusoids(self, index_T: Tensor, x_TB: Tensor) -> Tensor:
        """The true function of each task, at any x."""
        u_T2 = random_bits.uniform_floats(self.seed, self.split_number, index_T, WAVE_STREAM, 2)
        amplitude_T = _within(self.data.amplitude, u_T2[:, 0])
        phase_T = _within(self.data.phase, u_T2[:, 1])
        return amplitude_T[:, None] * torch.sin(x_TB - phase_T[:, None])


def _within(interval: Interval, u: Tensor) -> Tensor:
    return interval[0] + (interval[1] - interval[0]) * u
