"""What a task is asked to look like, and what a data set answers: the contracts between sources, runs and engines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from metarun.data.store.pool import Pool
from metarun.types import Episode, Kind, Split

Span = int | tuple[int, int]  # a number, or the smallest and the largest of those that a task may have
ClassSampler = Literal["uniform", "within_group", "group_as_task"]
"""uniform: any classes of the split. within_group: all of one group (an alphabet, a superclass), and any of it.
group_as_task: a task is one whole group, its classes always labelled alike."""
Order = Literal["cyclic", "shuffled"]


@dataclass(frozen=True)
class TaskShape:
    ways: Span
    shots: Span
    queries: int  # per class
    label_noise: float  # chance of a support label to be wrong
    imbalance: int  # a class has between shots - imbalance and shots + imbalance items in the support set
    sampler: ClassSampler
    tasks: int | None  # how many different ones there are; None: every task is a new one
    order: Order  # in which they come again

    def check(self, prefix: str) -> None:
        """`prefix`: of the names in an error."""
        for name, span in (("ways", self.ways), ("shots", self.shots)):
            low, high = _span(span)
            if low < 1:
                raise ValueError(f"{prefix}{name}={shown(span)}: need at least 1")
            if low > high:
                raise ValueError(f"{prefix}{name}={shown(span)}: the smaller number comes first")
        if self.queries < 1:
            raise ValueError(f"{prefix}queries={self.queries}: need at least 1")
        if not 0 <= self.label_noise < 1:
            raise ValueError(f"{prefix}label_noise={self.label_noise}: is a probability; use 0 <= label_noise < 1")
        if self.label_noise and self.ways_span[0] == 1:
            raise ValueError(f"{prefix}label_noise={self.label_noise}: one way has no other label; set it to 0.0")
        if not 0 <= self.imbalance < self.shots_span[0]:
            most = self.shots_span[0] - 1
            raise ValueError(f"{prefix}imbalance={self.imbalance}: a class keeps at least one item; use 0 to {most}")
        if self.tasks is not None and self.tasks < 1:
            raise ValueError(f"{prefix}tasks={self.tasks}: need at least 1, or null for ever new ones")

    @property
    def ways_span(self) -> tuple[int, int]:
        return _span(self.ways)

    @property
    def shots_span(self) -> tuple[int, int]:
        return _span(self.shots)

    @property
    def items_needed(self) -> int:
        """The most items a class gives to one task."""
        return self.shots_span[1] + self.imbalance + self.queries


def shown(span: Span) -> str:
    return str(span) if isinstance(span, int) else f"[{span[0]},{span[1]}]"


def shape_name(shape: TaskShape) -> str:
    """5w1s; of spans 5-20w1-5s."""
    ways, shots = (shown(span).strip("[]").replace(",", "-") for span in (shape.ways, shape.shots))
    return f"{ways}w{shots}s"


def _span(value: Span) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


@dataclass(frozen=True)
class Room:
    """What a split can hold. None: no limit (functions)."""

    classes: int | None
    items: int | None  # of its smallest class
    smallest: str = ""  # the name of that class
    groups: tuple[int, ...] = ()  # classes of each group


class Part(NamedTuple):
    """Tasks of one shape out of those asked for, and their places among them."""

    places: Tensor
    episode: Episode
    ways: int
    shots: int


class Tasks(Protocol):
    """All tasks of one split. Task i is the same whatever is asked for beside it."""

    def __call__(self, index_T: Tensor) -> Episode:
        """Tasks of one shape, stacked."""
        ...

    def parts(self, index_T: Tensor) -> list[Part]:
        """Tasks of any shapes, those of one shape together."""
        ...


class Data(Protocol):
    """A data set on a device."""

    @property
    def kind(self) -> Kind: ...

    @property
    def item(self) -> tuple[int, ...]:
        """The shape of one x."""
        ...

    def rooms(self, split: Split) -> tuple[Room, ...]:
        """A task must fit into each: it may come from any."""
        ...

    def tasks(self, split: Split, shape: TaskShape, seed: int) -> Tasks: ...


class Classes(Data, Protocol):
    """A data set of labelled items."""

    @property
    def names(self) -> dict[Split, tuple[str, ...]]:
        """The classes of each split, before rotations."""
        ...

    @property
    def training_classes(self) -> int:
        """Rotations included."""
        ...

    def batches(self, shape: TaskShape, seed: int) -> Tasks:
        """As many training items as a task has, of any classes, labelled by the number of their class."""
        ...

    def parts_of(self, split: Split) -> tuple[str, ...]:
        """The data sets that take turns: task i is of number i modulo their count. One name: itself."""
        ...

    def pixels(self, x: Tensor) -> Tensor | None:
        """x as uint8 pictures again; None where it is none."""
        ...


class ClassSource(Protocol):
    """What a file in sources/ answers to become tasks of labelled items.

    Pictures need `mean` and `std` of x / 255 (a number, or one a channel) and `rotations`, features `standardise`.
    """

    kind: ClassVar[Kind]

    def load(self, say: Callable[[str], None]) -> Pool: ...


class FunctionSource(Protocol):
    """A source that draws its tasks itself."""

    kind: ClassVar[Kind]

    def open(self, device: torch.device, dtype: torch.dtype) -> Data: ...


def whole(tasks: Tasks, shape: TaskShape, index_T: Tensor) -> list[Part]:
    """The parts of tasks that have one shape."""
    return [Part(torch.arange(len(index_T)), tasks(index_T), shape.ways_span[0], shape.shots_span[0])]
