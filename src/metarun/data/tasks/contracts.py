"""Contracts between data sources, data sets on a device and runs: the shape of a task, and who answers for what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from metarun.data.sources.source import Rotations
from metarun.data.store.pool import Pool, Say
from metarun.errors import ConfigError
from metarun.types import Episode, Kind, Split

CountRange = int | tuple[int, int]
"""One number for all tasks, or the smallest and the largest number; each task draws its own."""

ClassSampler = Literal["uniform", "within_group", "group_as_task"]
"""How a task chooses its classes. "uniform": any classes of the split. "within_group": all from one group (an alphabet,
a superclass), any classes of it. "group_as_task": all classes of one group, always with the same labels."""

TaskOrder = Literal["cyclic", "shuffled"]
"""The order in which a limited number of tasks is repeated. "shuffled": a new order in every pass."""


@dataclass(frozen=True)
class TaskShape:
    """What the tasks of a split look like: the values of `task=...`."""

    ways: CountRange
    shots: CountRange
    queries: int  # per class
    label_noise: float  # probability that a support label is wrong
    imbalance: int  # a class has between shots - imbalance and shots + imbalance items in the support set
    sampler: ClassSampler
    tasks: int | None  # number of different tasks; None: every task is a new one
    order: TaskOrder  # of these tasks

    def check(self, prefix: str) -> None:
        """ValueError if a value is impossible, whatever the data. `prefix` is put before the name of the value."""
        for name, count in (("ways", self.ways), ("shots", self.shots)):
            low, high = _both_ends(count)
            if low < 1:
                raise ValueError(f"{prefix}{name}={range_text(count)}: need at least 1")
            if low > high:
                raise ValueError(f"{prefix}{name}={range_text(count)}: the smaller number comes first")
        if self.queries < 1:
            raise ValueError(f"{prefix}queries={self.queries}: need at least 1")
        if not 0 <= self.label_noise < 1:
            raise ValueError(f"{prefix}label_noise={self.label_noise}: is a probability; use 0 <= label_noise < 1")
        if self.label_noise and self.ways_range[0] == 1:
            raise ValueError(f"{prefix}label_noise={self.label_noise}: one way has no other label; set it to 0.0")
        if not 0 <= self.imbalance < self.shots_range[0]:
            most = self.shots_range[0] - 1
            raise ValueError(f"{prefix}imbalance={self.imbalance}: a class keeps at least one item; use 0 to {most}")
        if self.tasks is not None and self.tasks < 1:
            raise ValueError(f"{prefix}tasks={self.tasks}: need at least 1, or null for ever new ones")

    @property
    def ways_range(self) -> tuple[int, int]:
        """Smallest and largest number of ways."""
        return _both_ends(self.ways)

    @property
    def shots_range(self) -> tuple[int, int]:
        """Smallest and largest number of shots."""
        return _both_ends(self.shots)

    @property
    def has_one_shape(self) -> bool:
        """Whether all tasks have the same ways and shots."""
        return len({*self.ways_range}) == 1 and len({*self.shots_range}) == 1

    @property
    def items_needed(self) -> int:
        """The largest number of items that a task takes from one class."""
        return self.shots_range[1] + self.imbalance + self.queries


def _both_ends(count: CountRange) -> tuple[int, int]:
    return (count, count) if isinstance(count, int) else count


def range_text(count: CountRange) -> str:
    """As in YAML: 5, or [5,20]."""
    return str(count) if isinstance(count, int) else f"[{count[0]},{count[1]}]"


def shape_name(shape: TaskShape) -> str:
    """For file names: 5w1s, or 5-20w1-5s where tasks differ."""
    ways, shots = (range_text(count).strip("[]").replace(",", "-") for count in (shape.ways, shape.shots))
    return f"{ways}w{shots}s"


@dataclass(frozen=True)
class SplitCapacity:
    """The largest tasks that a split can give. None: no limit (tasks are functions)."""

    classes: int | None
    items: int | None  # of the class with the fewest items
    smallest_class: str = ""  # its name
    group_sizes: tuple[int, ...] = ()  # number of classes of each group


class SameShapeTasks(NamedTuple):
    """Those of the requested tasks that have the same ways and shots, stacked."""

    places: Tensor  # int64 on the CPU: where each task stands among the requested ones
    episode: Episode
    ways: int
    shots: int


class Tasks(Protocol):
    """All tasks of one split, by number. Task i is the same task whichever tasks are requested with it."""

    def __call__(self, index_T: Tensor) -> Episode:
        """Tasks that have one shape, stacked; AssertionError if they have several."""
        ...

    def by_shape(self, index_T: Tensor) -> list[SameShapeTasks]:
        """Tasks of any shapes, one entry for each shape."""
        ...


class TaskData(Protocol):
    """A data set on a device, which gives tasks."""

    @property
    def kind(self) -> Kind: ...

    @property
    def item_shape(self) -> tuple[int, ...]:
        """The shape of one x: (C, H, W) or (D,)."""
        ...

    def capacities(self, split: Split) -> tuple[SplitCapacity, ...]:
        """One for each member of a mixture. A task shape must fit all of them."""
        ...

    def tasks(self, split: Split, shape: TaskShape, seed: int) -> Tasks: ...


class ClassificationData(TaskData, Protocol):
    """A data set of labelled items, or a mixture of several."""

    @property
    def class_names(self) -> dict[Split, tuple[str, ...]]:
        """The classes of each split, without their rotated copies."""
        ...

    @property
    def num_training_classes(self) -> int:
        """Rotated copies included."""
        ...

    def batches(self, shape: TaskShape, seed: int) -> Tasks:
        """Training items of any classes, as many as a task has, labelled by class number among all training classes."""
        ...

    def member_names(self, split: Split) -> tuple[str, ...]:
        """The data sets of a mixture: task i comes from number i modulo their count. Otherwise the one name."""
        ...

    def as_pixels(self, x: Tensor) -> Tensor | None:
        """Network inputs back to uint8 images; None if they are features."""
        ...


@runtime_checkable
class ImageSource(Protocol):
    """A file in sources/ whose items are images."""

    kind: ClassVar[Kind]

    @property
    def mean(self) -> float | tuple[float, ...]:
        """Of x / 255; one number, or one for each channel."""
        ...

    @property
    def std(self) -> float | tuple[float, ...]: ...

    @property
    def rotations(self) -> Rotations: ...

    def load(self, say: Say) -> Pool: ...


@runtime_checkable
class FeatureSource(Protocol):
    """A file in sources/ whose items are rows of features."""

    kind: ClassVar[Kind]

    @property
    def standardise(self) -> Literal["columns", "none"]:
        """ "columns": each feature gets mean 0 and variance 1 over the items of the training classes."""
        ...

    def load(self, say: Say) -> Pool: ...


ClassSource = ImageSource | FeatureSource
"""A source of labelled items."""


@runtime_checkable
class FunctionSource(Protocol):
    """A source whose tasks are functions, drawn as they are needed; nothing is loaded."""

    kind: ClassVar[Kind]

    def open(self, device: torch.device, dtype: torch.dtype) -> TaskData: ...


def all_same_shape(tasks: Callable[[Tensor], Episode], shape: TaskShape, index_T: Tensor) -> list[SameShapeTasks]:
    """What Tasks.by_shape answers if all tasks have one shape."""
    places = torch.arange(len(index_T))
    return [SameShapeTasks(places, tasks(index_T), shape.ways_range[0], shape.shots_range[0])]


def check_fit(prefix: str, shape: TaskShape, split: Split, capacity: SplitCapacity) -> None:
    """ConfigError if a split cannot give such tasks. `prefix`: the place of the shape in the configuration."""
    if capacity.classes is not None:
        _check_ways(prefix, shape, split, capacity, capacity.classes)
    if capacity.items is not None and shape.items_needed > capacity.items:
        imbalance = f", {prefix}.imbalance={shape.imbalance}" if shape.imbalance else ""
        raise ConfigError(
            f"{prefix}.shots={range_text(shape.shots)}, {prefix}.queries={shape.queries}{imbalance}: "
            f"class {capacity.smallest_class} of the {split} split has {capacity.items} items; "
            f"use shots + queries <= {capacity.items - shape.imbalance}"
        )


def _check_ways(prefix: str, shape: TaskShape, split: Split, capacity: SplitCapacity, classes: int) -> None:
    (least, most), ways = shape.ways_range, f"{prefix}.ways={range_text(shape.ways)}"
    if most > classes:
        raise ConfigError(f"{ways}: the {split} split has {classes} classes; use at most {classes}")
    largest, smallest = max(capacity.group_sizes), min(capacity.group_sizes)
    if shape.sampler == "within_group" and most > largest:
        raise ConfigError(
            f"{ways}, {prefix}.sampler=within_group: the largest group of the {split} split has {largest} classes; "
            f"use at most {largest}"
        )
    if shape.sampler == "group_as_task" and not (least <= smallest and largest <= most):
        needed = f"{smallest}" if smallest == largest else f"[{smallest},{largest}]"
        raise ConfigError(
            f"{ways}, {prefix}.sampler=group_as_task: a task takes all classes of a group, and the groups of the "
            f"{split} split have {smallest} to {largest}; set {prefix}.ways={needed}"
        )


def check_functions(prefix: str, shape: TaskShape, data: str) -> None:
    """ConfigError if the shape asks tasks that are functions for classes, labels, or several shapes."""
    for name, count in (("ways", shape.ways), ("shots", shape.shots)):
        if not isinstance(count, int):
            raise ConfigError(f"{prefix}.{name}={range_text(count)}: data={data} has tasks of one shape; give one")
    if shape.label_noise:
        raise ConfigError(f"{prefix}.label_noise={shape.label_noise}: data={data} has no labels; set it to 0.0")
    if shape.imbalance:
        raise ConfigError(f"{prefix}.imbalance={shape.imbalance}: data={data} has no classes; set it to 0")
    if shape.sampler != "uniform":
        raise ConfigError(f"{prefix}.sampler={shape.sampler}: data={data} has no classes; set it to uniform")
    if shape.tasks is not None:
        raise ConfigError(f"{prefix}.tasks={shape.tasks}: data={data} has no classes; set it to null")
