"""From a task's number to its episode: which classes, which images, in which order, gathered on the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from metarun.data import draw
from metarun.data.pool import Pool
from metarun.types import Batch, Episode, Kind, Split

SPLITS: tuple[Split, ...] = ("train", "val", "test")
CLASS_STREAM, IMAGE_STREAM, NOISE_STREAM, BATCH_STREAM = 1, 2, 3, 4


@dataclass(frozen=True)
class TaskShape:
    ways: int
    shots: int
    queries: int  # per class
    label_noise: float  # chance of a support label to be wrong


@dataclass(frozen=True)
class Room:
    """What a split can hold: a task needs ways <= classes and shots + queries <= images. None: no limit (functions)."""

    classes: int | None
    images: int | None


class Tasks(Protocol):
    """All tasks of one split. Task i is the same whatever is asked for beside it."""

    def __call__(self, index_T: Tensor) -> Episode: ...


class Data(Protocol):
    """A data set on a device."""

    @property
    def kind(self) -> Kind: ...

    @property
    def item(self) -> tuple[int, ...]:
        """The shape of one x."""
        ...

    def room(self, split: Split) -> Room: ...

    def tasks(self, split: Split, shape: TaskShape, seed: int) -> Tasks: ...


class ImageSource(Protocol):
    """What a file in sources/ answers to become image tasks."""

    kind: ClassVar[Kind]

    @property
    def mean(self) -> float | tuple[float, ...]: ...

    @property
    def std(self) -> float | tuple[float, ...]: ...

    @property
    def rotations(self) -> Literal["none", "train", "all"]: ...

    def load(self, say: Callable[[str], None]) -> Pool: ...


class FunctionSource(Protocol):
    """A source that draws its tasks itself."""

    kind: ClassVar[Kind]

    def open(self, device: torch.device, dtype: torch.dtype) -> Data: ...


@dataclass(frozen=True)
class ImageData:
    """The one uint8 store on the device, and the classes of each split: (class, quarter turns)."""

    store: Tensor  # [classes, images, C, H, W]
    classes: dict[Split, Tensor]  # [count, 2]
    mean: Tensor  # [C, 1, 1]
    std: Tensor
    kind: Kind = "classes"

    @property
    def item(self) -> tuple[int, ...]:
        return tuple(self.store.shape[2:])

    def room(self, split: Split) -> Room:
        return Room(len(self.classes[split]), self.store.shape[1])

    def tasks(self, split: Split, shape: TaskShape, seed: int) -> Tasks:
        return ImageTasks(self, split, shape, seed, _quarter_turns(self.item).to(self.store.device))

    def batches(self, shape: TaskShape, seed: int) -> Tasks:
        """As many training images as a task has, of any classes, labelled by the number of their class."""
        return Batches(self, "train", shape, seed, _quarter_turns(self.item).to(self.store.device))


def open_images(source: ImageSource, device: torch.device, dtype: torch.dtype, say: Callable[[str], None]) -> ImageData:
    pool = source.load(say)
    channels = pool.images.shape[2]
    turned = {"none": (), "train": ("train",), "all": SPLITS}[source.rotations]
    classes: dict[Split, Tensor] = {}
    for split in SPLITS:
        turns = 4 if split in turned else 1
        numbers = torch.tensor(pool.splits[split], dtype=torch.int64)
        pairs = [torch.stack([numbers, torch.full_like(numbers, turn)], dim=1) for turn in range(turns)]
        classes[split] = torch.cat(pairs).to(device)

    def per_channel(value: float | tuple[float, ...]) -> Tensor:
        return torch.as_tensor(value, dtype=dtype, device=device).broadcast_to(channels)[:, None, None]

    store = torch.from_numpy(np.array(pool.images)).to(device)  # a copy: the pool may be a read-only map
    return ImageData(store, classes, per_channel(source.mean), per_channel(source.std))


def _quarter_turns(item: tuple[int, ...]) -> Tensor:
    """Row r: where pixel i of an image turned r times by 90 degrees comes from."""
    height, width = item[1:]
    grid = torch.arange(height * width).view(height, width)
    turns = 4 if height == width else 1
    return torch.stack([torch.rot90(grid, turn).flatten() for turn in range(turns)])


@dataclass(frozen=True)
class ImageTasks:
    data: ImageData
    split: Split
    shape: TaskShape
    seed: int
    turns: Tensor  # [4, H * W]

    def __call__(self, index_T: Tensor) -> Episode:
        index_T = index_T.to(self.data.store.device)
        x_TNI = self.images(*self.pick(index_T))
        shots = self.shape.shots
        support, query = self._batch(x_TNI[:, :, :shots]), self._batch(x_TNI[:, :, shots:])
        return Episode(support._replace(y=self._noisy(support.y, index_T)), query, index_T)

    def images(self, class_TN: Tensor, turn_TN: Tensor, image_TNI: Tensor) -> Tensor:
        x_TNI = self._turn(self.data.store[class_TN[:, :, None], image_TNI], turn_TN)
        return (x_TNI.to(self.data.mean.dtype) / 255 - self.data.mean) / self.data.std

    def pick(self, index_T: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Classes and their turns [T, N], and images [T, N, shots + queries], of each task."""
        split = SPLITS.index(self.split)
        classes, images = self.data.classes[self.split], self.data.store.shape[1]
        class_bits = draw.bits(self.seed, split, index_T, CLASS_STREAM, len(classes))
        chosen_TN = classes[draw.choose(class_bits, self.shape.ways)]
        image_bits = draw.bits(self.seed, split, index_T, IMAGE_STREAM, self.shape.ways * images)
        image_bits = image_bits.view(len(index_T), self.shape.ways, images)
        image_TNI = draw.choose(image_bits, self.shape.shots + self.shape.queries)
        return chosen_TN[..., 0], chosen_TN[..., 1], image_TNI

    def _noisy(self, y_TS: Tensor, index_T: Tensor) -> Tensor:
        """Each label on its own, with probability `label_noise`, becomes one of the others, all equally likely."""
        if not self.shape.label_noise:
            return y_TS
        shape = (self.seed, SPLITS.index(self.split), index_T, NOISE_STREAM, 2 * y_TS.shape[1])
        wrong_TS, which_TS = draw.uniform(*shape).chunk(2, dim=1)
        others = self.shape.ways - 1
        other_TS = (y_TS + 1 + (which_TS * others).long()) % self.shape.ways
        return torch.where(wrong_TS < self.shape.label_noise, other_TS, y_TS)

    def _turn(self, x_TNI: Tensor, turn_TN: Tensor) -> Tensor:
        if self.turns.shape[0] == 1:
            return x_TNI
        source = self.turns[turn_TN][:, :, None, None].expand(*x_TNI.shape[:-2], -1)
        return x_TNI.flatten(-2).gather(-1, source).view(x_TNI.shape)

    def _batch(self, x_TNK: Tensor) -> Batch:
        tasks, ways, count = x_TNK.shape[:3]
        y = torch.arange(ways, device=x_TNK.device).repeat_interleave(count)
        return Batch(x_TNK.flatten(1, 2).contiguous(), y.expand(tasks, -1))


@dataclass(frozen=True)
class Batches(ImageTasks):
    """Batch i is the same whatever is asked for beside it; its cut into support and query means nothing."""

    def __call__(self, index_T: Tensor) -> Episode:
        index_T = index_T.to(self.data.store.device)
        shape, split = self.shape, SPLITS.index(self.split)
        count = shape.ways * (shape.shots + shape.queries)
        classes = self.data.classes[self.split]
        u_TB, v_TB = draw.uniform(self.seed, split, index_T, BATCH_STREAM, 2 * count).chunk(2, dim=1)
        y_TB = (u_TB * len(classes)).long()
        image_TB = (v_TB * self.data.store.shape[1]).long()
        x_TB = self.images(classes[y_TB][..., 0], classes[y_TB][..., 1], image_TB[..., None]).squeeze(2)
        first = shape.ways * shape.shots
        return Episode(Batch(x_TB[:, :first], y_TB[:, :first]), Batch(x_TB[:, first:], y_TB[:, first:]), index_T)
