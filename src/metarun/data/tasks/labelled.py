"""A data set of labelled items on a device: where they lie, what normalises them, which classes a split has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarun.data.splits import SPLITS
from metarun.data.store.pack import advise
from metarun.data.store.pool import Pool
from metarun.data.tasks.augment import Augment
from metarun.data.tasks.contracts import ClassSource, Room, Tasks, TaskShape
from metarun.data.tasks.sampler import Batches, ClassTasks
from metarun.data.tasks.sections import Section
from metarun.types import Kind, Split

DEVICE_SHARE = 0.5  # of the free memory of a GPU that the items may fill
BLOCK = 65536  # rows read at a time for statistics


@dataclass(frozen=True)
class ClassData:
    """One store of items, where there is room for it, and the classes of each split."""

    items: Tensor  # [rows, *item]: on the device, or on the host where it may be a map of a file
    first: Tensor  # [classes]: the first row of each
    count: Tensor  # [classes]
    sections: dict[Split, Section]
    names: dict[Split, tuple[str, ...]]
    mean: Tensor  # [C, 1, 1] or [D]
    std: Tensor
    augment: Augment | None
    name: str = ""
    kind: Kind = "classes"

    @property
    def item(self) -> tuple[int, ...]:
        return tuple(self.items.shape[1:])

    @property
    def device(self) -> torch.device:
        return self.mean.device

    @property
    def classes(self) -> dict[Split, Tensor]:
        return {split: section.classes for split, section in self.sections.items()}

    def rooms(self, split: Split) -> tuple[Room, ...]:
        section = self.sections[split]
        return (Room(len(section.classes), section.fewest, section.smallest, tuple(section.sizes.tolist())),)

    def tasks(self, split: Split, shape: TaskShape, seed: int) -> Tasks:
        return ClassTasks(self, split, shape, seed)

    def batches(self, shape: TaskShape, seed: int) -> Tasks:
        return Batches(self, "train", shape, seed)

    @property
    def training_classes(self) -> int:
        return len(self.sections["train"].classes)

    def parts_of(self, split: Split) -> tuple[str, ...]:
        return (self.name,)

    def pixels(self, x: Tensor) -> Tensor | None:
        if self.items.dtype != torch.uint8:
            return None
        return ((x * self.std + self.mean).clamp(0, 1) * 255).round().to(torch.uint8)

    def gathered(self, row: Tensor) -> Tensor:
        """The items of these rows, as they are stored, on the device."""
        flat = row.flatten().to(self.items.device)
        return self.items.index_select(0, flat).to(self.device).view(*row.shape, *self.item)

    def unit(self, x: Tensor) -> Tensor:
        """Pictures from 0 to 1, features as they are."""
        return x.to(self.mean.dtype) / 255 if x.dtype == torch.uint8 else x.to(self.mean.dtype)

    def normalised(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def open_classes(
    source: ClassSource,
    device: torch.device,
    dtype: torch.dtype,
    say: Callable[[str], None],
    augment: Augment | None = None,
    name: str = "",
) -> ClassData:
    pool = source.load(say)
    first, count = (torch.from_numpy(part).to(device) for part in (pool.bounds[:-1], np.diff(pool.bounds)))
    rotations = getattr(source, "rotations", "none")
    turned = {"none": (), "train": ("train",), "all": SPLITS}[rotations]
    sections = {split: _section(pool, split, 4 if split in turned else 1, device) for split in SPLITS}
    names = {split: tuple(pool.names[number] for number in pool.splits[split]) for split in SPLITS}
    mean, std = (value.to(device=device, dtype=dtype) for value in _statistics(source, pool))
    return ClassData(_placed(pool.items, device), first, count, sections, names, mean, std, augment, name)


def _section(pool: Pool, split: Split, turns: int, device: torch.device) -> Section:
    numbers = torch.tensor(pool.splits[split], dtype=torch.int64)
    pairs = [torch.stack([numbers, torch.full_like(numbers, turn)], dim=1) for turn in range(turns)]
    known = {name: place for place, name in enumerate(dict.fromkeys(pool.groups[n] for n in pool.splits[split]))}
    group = torch.tensor([known[pool.groups[n]] for n in pool.splits[split]], dtype=torch.int64)
    groups = torch.cat([group + turn * len(known) for turn in range(turns)])  # a turned alphabet is another one
    counts = np.diff(pool.bounds)[list(pool.splits[split])]
    least = int(counts.argmin()) if len(counts) else 0
    smallest = pool.names[pool.splits[split][least]] if len(counts) else ""
    fewest, most = (int(counts.min()), int(counts.max())) if len(counts) else (0, 0)
    return Section(torch.cat(pairs).to(device), groups.to(device), smallest, fewest, most)


def _placed(items: NDArray[Any], device: torch.device) -> Tensor:
    """On a GPU where it fits; else the map itself, of which only what is touched is read."""
    view = items.view()
    if isinstance(items, np.memmap) and items.mode == "r":
        view = np.memmap(str(items.filename), items.dtype, "c", items.offset, items.shape)  # torch wants it writable
        advise(view)
    elif not view.flags.writeable:
        view = view.copy()
    host = torch.from_numpy(view)
    if device.type != "cuda":
        return host
    free, _ = torch.cuda.mem_get_info(device)
    return host.to(device) if items.nbytes < DEVICE_SHARE * free else host


def _statistics(source: ClassSource, pool: Pool) -> tuple[Tensor, Tensor]:
    """What to subtract and divide by: the source's, or of the training rows alone."""
    if pool.items.dtype == np.uint8:
        channels = pool.items.shape[1]
        mean, std = (torch.as_tensor(getattr(source, name), dtype=torch.float64) for name in ("mean", "std"))
        return mean.broadcast_to(channels)[:, None, None], std.broadcast_to(channels)[:, None, None]
    width = pool.items.shape[1]
    if getattr(source, "standardise", "none") == "none":
        return torch.zeros(width, dtype=torch.float64), torch.ones(width, dtype=torch.float64)
    blocks = [block for number in pool.splits["train"] for block in _blocks(pool.of(number))]
    rows = sum(map(len, blocks))
    centre = sum((block.sum(0, dtype=np.float64) for block in blocks), np.zeros(width)) / rows
    squares = sum((np.square(block - centre).sum(0) for block in blocks), np.zeros(width))
    spread = np.sqrt(squares / rows)
    return torch.from_numpy(centre), torch.from_numpy(np.where(spread > 0, spread, 1.0))  # a constant column stays 0


def _blocks(rows: NDArray[Any]) -> list[NDArray[Any]]:
    return [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]
