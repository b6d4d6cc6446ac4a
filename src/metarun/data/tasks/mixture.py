"""Several data sets taking turns: trained together, tested apart; each task is of one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from metarun.data.sources.mixture import Mixture
from metarun.data.store.pool import DataError
from metarun.data.tasks.augment import Augment
from metarun.data.tasks.contracts import Part, Room, Tasks, TaskShape
from metarun.data.tasks.labelled import ClassData, open_classes
from metarun.types import Batch, Episode, Kind, Split


@dataclass(frozen=True)
class MixtureData:
    source: Mixture
    members: dict[str, ClassData]
    kind: Kind = "classes"

    @property
    def item(self) -> tuple[int, ...]:
        first = next(iter(self.members.values())).item
        return first if len(first) == 1 else (self.source.channels, self.source.size, self.source.size)

    @property
    def names(self) -> dict[Split, tuple[str, ...]]:
        return {
            split: tuple(f"{name}/{cls}" for name in self.source.of(split) for cls in self.members[name].names[split])
            for split in ("train", "val", "test")
        }

    def rooms(self, split: Split) -> tuple[Room, ...]:
        return tuple(room for name in self.source.of(split) for room in self.members[name].rooms(split))

    @property
    def training_classes(self) -> int:
        return sum(self.members[name].training_classes for name in self.source.train)

    def tasks(self, split: Split, shape: TaskShape, seed: int) -> Tasks:
        names = self.source.of(split)
        return Turns(self, tuple(self.members[name].tasks(split, shape, seed) for name in names), (0,) * len(names))

    def batches(self, shape: TaskShape, seed: int) -> Tasks:
        members = [self.members[name] for name in self.source.train]
        before = [sum(member.training_classes for member in members[:place]) for place in range(len(members))]
        return Turns(self, tuple(member.batches(shape, seed) for member in members), tuple(before))

    def parts_of(self, split: Split) -> tuple[str, ...]:
        return self.source.of(split)

    def pixels(self, x: Tensor) -> Tensor | None:
        """Each data set is normalised by numbers of its own: stretched from the darkest to the brightest instead."""
        if len(self.item) == 1:
            return None
        low, high = x.amin((-3, -2, -1), keepdim=True), x.amax((-3, -2, -1), keepdim=True)
        return ((x - low) / (high - low).clamp(min=torch.finfo(x.dtype).tiny) * 255).round().to(torch.uint8)

    def fitted(self, x_TB: Tensor) -> Tensor:
        """Pictures of any member in the one shape of all."""
        if len(self.item) == 1 or tuple(x_TB.shape[2:]) == self.item:
            return x_TB
        x = x_TB.flatten(0, 1)
        if x.shape[1] != self.source.channels:
            x = x.mean(1, keepdim=True).expand(-1, self.source.channels, -1, -1)
        side = (self.source.size, self.source.size)
        if tuple(x.shape[2:]) != side:
            x = functional.interpolate(x, side, mode="bilinear", antialias=True, align_corners=False)
        return x.view(*x_TB.shape[:2], *self.item)


@dataclass(frozen=True)
class Turns:
    """Task i is task i // n of member i modulo n."""

    data: MixtureData
    members: tuple[Tasks, ...]
    before: tuple[int, ...]  # what each member's labels start from

    def __call__(self, index_T: Tensor) -> Episode:
        parts = self.parts(index_T)
        assert len(parts) == 1, f"tasks of {len(parts)} shapes cannot be stacked"
        return parts[0].episode

    def parts(self, index_T: Tensor) -> list[Part]:
        found: dict[tuple[int, int], list[Part]] = {}
        for number, tasks in enumerate(self.members):
            mine = (index_T.cpu() % len(self.members) == number).nonzero()[:, 0]
            for part in tasks.parts(index_T.cpu()[mine] // len(self.members)) if len(mine) else []:
                places = mine[part.places]
                episode = self._fitted(part.episode, self.before[number], index_T[places.to(index_T.device)])
                found.setdefault((part.ways, part.shots), []).append(part._replace(places=places, episode=episode))
        return [_joined(parts) for parts in found.values()]

    def _fitted(self, episode: Episode, before: int, index_T: Tensor) -> Episode:
        support, query = (Batch(self.data.fitted(x), y + before) for x, y in (episode.support, episode.query))
        return Episode(support, query, index_T.to(episode.index.device))


def _joined(parts: list[Part]) -> Part:
    """Parts of one shape as one, in the order of their places."""
    places = torch.cat([part.places for part in parts])
    order = places.argsort()

    def put(tensors: list[Tensor]) -> Tensor:
        return torch.cat(tensors)[order.to(tensors[0].device)]

    sides = zip(*((part.episode.support, part.episode.query) for part in parts), strict=True)
    support, query = (Batch(put([batch.x for batch in side]), put([batch.y for batch in side])) for side in sides)
    index_T = put([part.episode.index for part in parts])
    return parts[0]._replace(places=places[order], episode=Episode(support, query, index_T))


def open_mixture(
    source: Mixture, device: torch.device, dtype: torch.dtype, say: Callable[[str], None], augment: Augment | None
) -> MixtureData:
    members = {
        name: open_classes(source.sources[name], device, dtype, say, augment, name)
        for name in dict.fromkeys((*source.train, *source.val, *source.test))
    }
    widths = {name: member.item for name, member in members.items() if len(member.item) == 1}
    if widths and len({*widths.values()}) + (len(widths) < len(members)) > 1:
        shown = ", ".join(f"{name} {list(member.item)}" for name, member in members.items())
        raise DataError(f"data sets of different features do not mix ({shown})")
    return MixtureData(source, members)
