"""A mixture of data sets on a device: task i comes from member i modulo their count, in one common item shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from metarun.data.sources.mixture import Mixture
from metarun.data.splits import SPLITS
from metarun.data.tasks.contracts import ClassificationData, SameShapeTasks, SplitCapacity, Tasks, TaskShape
from metarun.types import Batch, Episode, Kind, Split


@dataclass(frozen=True)
class MixtureData:
    """Several data sets as one ClassificationData."""

    source: Mixture
    members: Mapping[str, ClassificationData]
    kind: Kind = "classes"

    @property
    def item_shape(self) -> tuple[int, ...]:
        first = next(iter(self.members.values())).item_shape
        return first if len(first) == 1 else (self.source.channels, self.source.size, self.source.size)

    @property
    def class_names(self) -> dict[Split, tuple[str, ...]]:
        return {
            split: tuple(
                f"{name}/{class_name}"
                for name in self.source.members(split)
                for class_name in self.members[name].class_names[split]
            )
            for split in SPLITS
        }

    def capacities(self, split: Split) -> tuple[SplitCapacity, ...]:
        names = self.source.members(split)
        return tuple(capacity for name in names for capacity in self.members[name].capacities(split))

    @property
    def num_training_classes(self) -> int:
        return sum(self.members[name].num_training_classes for name in self.source.train)

    def tasks(self, split: Split, shape: TaskShape, seed: int) -> Tasks:
        names = self.source.members(split)
        return MixtureTasks(
            self, tuple(self.members[name].tasks(split, shape, seed) for name in names), (0,) * len(names)
        )

    def batches(self, shape: TaskShape, seed: int) -> Tasks:
        members = [self.members[name] for name in self.source.train]
        first_labels = [sum(member.num_training_classes for member in members[:place]) for place in range(len(members))]
        return MixtureTasks(self, tuple(member.batches(shape, seed) for member in members), tuple(first_labels))

    def member_names(self, split: Split) -> tuple[str, ...]:
        return self.source.members(split)

    def as_pixels(self, x: Tensor) -> Tensor | None:
        """Stretched from the darkest to the brightest value, since each member is normalised by numbers of its own."""
        if len(self.item_shape) == 1:
            return None
        low, high = x.amin((-3, -2, -1), keepdim=True), x.amax((-3, -2, -1), keepdim=True)
        return ((x - low) / (high - low).clamp(min=torch.finfo(x.dtype).tiny) * 255).round().to(torch.uint8)

    def to_common_shape(self, x_TB: Tensor) -> Tensor:
        """Images of any member with the size and number of channels of the mixture; features as they are."""
        if len(self.item_shape) == 1 or tuple(x_TB.shape[2:]) == self.item_shape:
            return x_TB
        x = x_TB.flatten(0, 1)
        if x.shape[1] != self.source.channels:
            x = x.mean(1, keepdim=True).expand(-1, self.source.channels, -1, -1)
        side = (self.source.size, self.source.size)
        if tuple(x.shape[2:]) != side:
            x = functional.interpolate(x, side, mode="bilinear", antialias=True, align_corners=False)
        return x.view(*x_TB.shape[:2], *self.item_shape)


@dataclass(frozen=True)
class MixtureTasks:
    """Of n members, task i is task i // n of member i modulo n."""

    data: MixtureData
    members: tuple[Tasks, ...]
    first_labels: tuple[int, ...]  # added to each member's labels: 0 for tasks, its first class number for batches

    def __call__(self, index_T: Tensor) -> Episode:
        found = self.by_shape(index_T)
        assert len(found) == 1, f"tasks of {len(found)} shapes cannot be stacked"
        return found[0].episode

    def by_shape(self, index_T: Tensor) -> list[SameShapeTasks]:
        index_T, device_index_T = index_T.cpu(), index_T
        found: dict[tuple[int, int], list[SameShapeTasks]] = {}
        for number, member in enumerate(self.members):
            own = (index_T % len(self.members) == number).nonzero()[:, 0]
            for group in member.by_shape(index_T[own] // len(self.members)) if len(own) else []:
                places = own[group.places]
                own_index_T = device_index_T[places.to(device_index_T.device)]
                episode = self._of_mixture(group.episode, self.first_labels[number], own_index_T)
                same_shape = found.setdefault((group.ways, group.shots), [])
                same_shape.append(group._replace(places=places, episode=episode))
        return [_joined(groups) for groups in found.values()]

    def _of_mixture(self, episode: Episode, first_label: int, index_T: Tensor) -> Episode:
        """A member's tasks with the mixture's item shape, labels and task numbers."""
        support, query = (
            Batch(self.data.to_common_shape(x), y + first_label) for x, y in (episode.support, episode.query)
        )
        return Episode(support, query, index_T.to(episode.index.device))


def _joined(groups: list[SameShapeTasks]) -> SameShapeTasks:
    """Tasks of one shape that come from several members, in the order of their places."""
    places = torch.cat([group.places for group in groups])
    order = places.argsort()

    def stack(tensors: list[Tensor]) -> Tensor:
        return torch.cat(tensors)[order.to(tensors[0].device)]

    def batch(batches: list[Batch]) -> Batch:
        return Batch(stack([batch.x for batch in batches]), stack([batch.y for batch in batches]))

    episodes = [group.episode for group in groups]
    support, query = batch([episode.support for episode in episodes]), batch([episode.query for episode in episodes])
    index_T = stack([episode.index for episode in episodes])
    return groups[0]._replace(places=places[order], episode=Episode(support, query, index_T))
