"""Opens a data source on a device: labelled items, a mixture of several sources, or functions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarun.data.sources.mixture import Mixture
from metarun.data.splits import SPLITS
from metarun.data.store.pack import advise_random_access
from metarun.data.store.pool import DataError, Items, Pool, Say
from metarun.data.tasks.augment import Augment
from metarun.data.tasks.contracts import (
    ClassificationData,
    ClassSource,
    FeatureSource,
    FunctionSource,
    ImageSource,
    SplitCapacity,
    TaskData,
    Tasks,
    TaskShape,
)
from metarun.data.tasks.labelled import LabelledItems, SplitClasses
from metarun.data.tasks.mixture import MixtureData
from metarun.data.tasks.sampler import BatchSampler, EpisodeSampler
from metarun.types import Kind, Split

GPU_SHARE = 0.5  # the largest share of a GPU's free memory that items may fill
STATISTICS_ROWS = 65536  # rows read at a time for statistics

DataSource = ClassSource | FunctionSource | Mixture


@dataclass(frozen=True)
class LabelledData:
    """A data set of labelled items on a device (a ClassificationData)."""

    name: str
    items: LabelledItems
    class_names: dict[Split, tuple[str, ...]]
    augment: Augment | None  # for training
    kind: Kind = "classes"

    @property
    def item_shape(self) -> tuple[int, ...]:
        return self.items.item_shape

    @property
    def num_training_classes(self) -> int:
        return len(self.items.splits["train"].classes)

    def capacities(self, split: Split) -> tuple[SplitCapacity, ...]:
        found = self.items.splits[split]
        sizes = tuple(found.group_sizes.tolist())
        return (SplitCapacity(len(found.classes), found.fewest_items, found.smallest_class, sizes),)

    def tasks(self, split: Split, shape: TaskShape, seed: int) -> Tasks:
        return EpisodeSampler(self.items, split, shape, seed, self.augment if split == "train" else None)

    def batches(self, shape: TaskShape, seed: int) -> Tasks:
        return BatchSampler(self.items, "train", shape, seed, self.augment)

    def member_names(self, split: Split) -> tuple[str, ...]:
        return (self.name,)

    def as_pixels(self, x: Tensor) -> Tensor | None:
        if self.items.rows.dtype != torch.uint8:
            return None
        return ((x * self.items.std + self.items.mean).clamp(0, 1) * 255).round().to(torch.uint8)


def open_source(
    source: DataSource, device: torch.device, dtype: torch.dtype, say: Say, augment: Augment | None, name: str
) -> TaskData:
    """Any source on a device. `name`: its name in the configuration."""
    if isinstance(source, FunctionSource):
        return source.open(device, dtype)
    return open_labelled(source, device, dtype, say, augment, name)


def open_labelled(
    source: ClassSource | Mixture,
    device: torch.device,
    dtype: torch.dtype,
    say: Say,
    augment: Augment | None,
    name: str,
) -> ClassificationData:
    if isinstance(source, Mixture):
        return open_mixture(source, device, dtype, say, augment)
    return open_classes(source, device, dtype, say, augment, name)


def open_mixture(
    source: Mixture, device: torch.device, dtype: torch.dtype, say: Say, augment: Augment | None
) -> MixtureData:
    members = {
        name: open_classes(source.sources[name], device, dtype, say, augment, name)
        for name in dict.fromkeys((*source.train, *source.val, *source.test))
    }
    widths = [member.item_shape for member in members.values() if len(member.item_shape) == 1]
    if widths and (len(set(widths)) > 1 or len(widths) < len(members)):
        shapes = ", ".join(f"{name} {list(member.item_shape)}" for name, member in members.items())
        raise DataError(f"data sets of different features do not mix ({shapes})")
    return MixtureData(source, {**members})


def open_classes(
    source: ClassSource,
    device: torch.device,
    dtype: torch.dtype,
    say: Say,
    augment: Augment | None = None,
    name: str = "",
) -> LabelledData:
    pool = source.load(say)
    first_row, num_items = (torch.from_numpy(part).to(device) for part in (pool.bounds[:-1], np.diff(pool.bounds)))
    rotations = source.rotations if isinstance(source, ImageSource) else "none"
    rotated = {"none": (), "train": ("train",), "all": SPLITS}[rotations]
    splits = {split: _split_classes(pool, split, 4 if split in rotated else 1, device) for split in SPLITS}
    class_names = {split: tuple(pool.names[number] for number in pool.splits[split]) for split in SPLITS}
    mean, std = (value.to(device=device, dtype=dtype) for value in _mean_and_std(source, pool))
    items = LabelledItems(_rows_on(device, pool.items), first_row, num_items, splits, mean, std)
    return LabelledData(name, items, class_names, augment)


def _split_classes(pool: Pool, split: Split, orientations: int, device: torch.device) -> SplitClasses:
    """`orientations`: 4 if three rotated copies of each class count as classes, else 1."""
    stored = pool.splits[split]
    numbers = torch.tensor(stored, dtype=torch.int64)
    pairs = [torch.stack([numbers, torch.full_like(numbers, turns)], dim=1) for turns in range(orientations)]
    number_of = {name: place for place, name in enumerate(dict.fromkeys(pool.groups[n] for n in stored))}
    group = torch.tensor([number_of[pool.groups[n]] for n in stored], dtype=torch.int64)
    # A rotated alphabet is another alphabet.
    groups = torch.cat([group + turns * len(number_of) for turns in range(orientations)])
    counts = np.diff(pool.bounds)[list(stored)]
    if not len(counts):
        return SplitClasses(torch.cat(pairs).to(device), groups.to(device), "", 0, 0)
    smallest = pool.names[stored[int(counts.argmin())]]
    return SplitClasses(torch.cat(pairs).to(device), groups.to(device), smallest, int(counts.min()), int(counts.max()))


def _rows_on(device: torch.device, items: NDArray[np.generic]) -> Tensor:
    """The items on a GPU if they fit; else on the host. A memory map stays one: only the rows in use are read."""
    view = items.view()
    if isinstance(items, np.memmap) and items.mode == "r":
        view = np.memmap(str(items.filename), items.dtype, "c", items.offset, items.shape)  # torch wants it writable
        advise_random_access(view)
    elif not view.flags.writeable:
        view = view.copy()
    host = torch.from_numpy(view)
    if device.type != "cuda":
        return host
    free, _ = torch.cuda.mem_get_info(device)
    return host.to(device) if items.nbytes < GPU_SHARE * free else host


def _mean_and_std(source: ClassSource, pool: Pool) -> tuple[Tensor, Tensor]:
    """What normalises items: the source's own numbers for images; statistics of the training rows for features."""
    width = pool.items.shape[1]
    if pool.items.dtype == np.uint8:
        assert isinstance(source, ImageSource), f"{type(source).__name__} has images, and no mean, std and rotations"
        mean, std = (torch.as_tensor(value, dtype=torch.float64) for value in (source.mean, source.std))
        return mean.broadcast_to(width)[:, None, None], std.broadcast_to(width)[:, None, None]
    if not isinstance(source, FeatureSource) or source.standardise == "none":
        return torch.zeros(width, dtype=torch.float64), torch.ones(width, dtype=torch.float64)
    blocks = [block for number in pool.splits["train"] for block in _blocks(pool.items_of(number))]
    num_rows = sum(map(len, blocks))
    centre = sum((block.sum(0, dtype=np.float64) for block in blocks), np.zeros(width)) / num_rows
    squares = sum((np.square(block - centre).sum(0) for block in blocks), np.zeros(width))
    spread = np.sqrt(squares / num_rows)
    return torch.from_numpy(centre), torch.from_numpy(np.where(spread > 0, spread, 1.0))  # a constant column stays 0


def _blocks(rows: Items) -> list[Items]:
    return [rows[start : start + STATISTICS_ROWS] for start in range(0, len(rows), STATISTICS_ROWS)]
