"""From a task's number to its episode: which classes, which items of them, in which order."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from metarun.data.splits import SPLITS
from metarun.data.tasks import random_bits as draw
from metarun.data.tasks.contracts import Part, TaskShape, whole
from metarun.data.tasks.sections import Section
from metarun.types import Batch, Episode, Split

if TYPE_CHECKING:
    from metarun.data.tasks.labelled import ClassData

CLASS_STREAM, ITEM_STREAM, NOISE_STREAM, BATCH_STREAM = 1, 2, 3, 4
SHAPE_STREAM, GROUP_STREAM, BALANCE_STREAM, ORDER_STREAM, PASS_STREAM = 5, 6, 7, 8, 9
LARGE_CLASS = 4096  # items; above, a draw that orders all items of a class costs more than the step it feeds

permutation = lru_cache(maxsize=4)(draw.permutation)


@dataclass(frozen=True)
class ClassTasks:
    data: ClassData
    split: Split
    shape: TaskShape
    seed: int

    def __call__(self, index_T: Tensor) -> Episode:
        number_T = self.numbers(index_T)
        if self.fixed:
            return self.stacked(number_T, self.shape.ways_span[0], self.shape.shots_span[0])
        kinds = set(zip(*(sizes_T.tolist() for sizes_T in self.sizes(number_T)), strict=True))
        assert len(kinds) == 1, f"tasks of {len(kinds)} shapes cannot be stacked"
        return self.stacked(number_T, *kinds.pop())

    def parts(self, index_T: Tensor) -> list[Part]:
        if self.fixed:
            return whole(self, self.shape, index_T)
        number_T = self.numbers(index_T)
        ways_T, shots_T = self.sizes(number_T)
        found = []
        for ways, shots in sorted(set(zip(ways_T.tolist(), shots_T.tolist(), strict=True))):
            places = ((ways_T == ways) & (shots_T == shots)).nonzero()[:, 0]
            found.append(Part(places.cpu(), self.stacked(number_T[places], ways, shots), ways, shots))
        return found

    @property
    def fixed(self) -> bool:
        """Whether all tasks have one shape."""
        (least, most), (fewest, largest) = self.shape.ways_span, self.shape.shots_span
        return least == most and fewest == largest

    @property
    def key(self) -> int:
        return SPLITS.index(self.split)

    @property
    def section(self) -> Section:
        return self.data.sections[self.split]

    def numbers(self, index_T: Tensor) -> Tensor:
        """Which task is at each place of the sequence."""
        if self.shape.tasks is None:
            return index_T.to(self.data.device)
        if self.shape.order == "cyclic":
            return (index_T % self.shape.tasks).to(self.data.device)
        return self._in_passes(index_T, self.shape.tasks, ORDER_STREAM)

    def _in_passes(self, index_T: Tensor, count: int, stream: int) -> Tensor:
        """All numbers below `count` once, in some order, then all of them once more in another."""
        passes_T, place_T = index_T.cpu() // count, index_T.cpu() % count
        result_T = torch.empty_like(place_T)
        for number in set(passes_T.tolist()):
            order = permutation(self.seed, self.key, number, stream, count)
            result_T = torch.where(passes_T == number, order[place_T], result_T)
        return result_T.to(self.data.device)

    def sizes(self, number_T: Tensor) -> tuple[Tensor, Tensor]:
        """Ways and shots of each task."""
        u_T2 = draw.uniform(self.seed, self.key, number_T, SHAPE_STREAM, 2)
        (least, most), (fewest, largest) = self.shape.ways_span, self.shape.shots_span
        ways_T = least + (u_T2[:, 0] * (most - least + 1)).long()
        if self.shape.sampler == "group_as_task":
            ways_T = self.section.sizes[self.group(number_T)]
        return ways_T, fewest + (u_T2[:, 1] * (largest - fewest + 1)).long()

    def stacked(self, number_T: Tensor, ways: int, shots: int) -> Episode:
        place_TN = self.pick_classes(number_T, ways)
        class_TN, turn_TN = self.section.classes[place_TN].unbind(-1)
        chosen = shots + self.shape.imbalance + self.shape.queries
        item_TNI = self.pick_items(number_T, class_TN, chosen)
        row_TNI = self.data.first[class_TN][..., None] + item_TNI
        first = chosen - self.shape.queries
        y_N = torch.arange(ways, device=row_TNI.device)
        query_y = y_N.repeat_interleave(self.shape.queries).expand(len(number_T), -1)
        support_y = y_N.repeat_interleave(shots).expand(len(number_T), -1)
        support_row = row_TNI[..., :first].flatten(1)
        if self.shape.imbalance:
            support_y, place_TS = self.unequal(number_T, ways, shots)
            support_row = support_row.gather(1, support_y * first + place_TS)
        query_row = row_TNI[..., first:].flatten(1)
        row_TB, y_TB = torch.cat([support_row, query_row], 1), torch.cat([support_y, query_y], 1)
        x_TB = self.made(number_T, row_TB, turn_TN.gather(1, y_TB))
        split = support_row.shape[1]
        support = Batch(x_TB[:, :split].contiguous(), self.noisy(support_y, number_T, ways))
        return Episode(support, Batch(x_TB[:, split:].contiguous(), query_y), number_T)

    def made(self, number_T: Tensor, row_TB: Tensor, turn_TB: Tensor) -> Tensor:
        """Items turned, altered where that is wanted, normalised."""
        x_TB = self.data.unit(self.turned(self.data.gathered(row_TB), turn_TB))
        if self.split == "train" and self.data.augment is not None:
            x_TB = self.data.augment.altered(x_TB, self.seed, self.key, number_T)
        return self.data.normalised(x_TB)

    def pick_classes(self, number_T: Tensor, ways: int) -> Tensor:
        """[T, N]: places among the classes of the split."""
        section = self.section
        if self.shape.sampler == "uniform":
            random_bits = draw.bits(self.seed, self.key, number_T, CLASS_STREAM, len(section.classes))
            return draw.choose(random_bits, ways)
        order, start = section.members
        if self.shape.sampler == "group_as_task":
            return order[start[self.group(number_T)][:, None] + torch.arange(ways, device=order.device)]
        able = (section.sizes >= ways).nonzero()[:, 0]
        u_T = draw.uniform(self.seed, self.key, number_T, GROUP_STREAM, 1)[:, 0]
        group_T = able[(u_T * len(able)).long()]
        random_bits = draw.bits(self.seed, self.key, number_T, CLASS_STREAM, int(section.sizes.max()))
        return order[start[group_T][:, None] + draw.choose_among(random_bits, section.sizes[group_T], ways)]

    def group(self, number_T: Tensor) -> Tensor:
        """Of tasks that are groups: each group once, in some order, then all of them once more."""
        return self._in_passes(number_T, len(self.section.sizes), PASS_STREAM)

    def pick_items(self, number_T: Tensor, class_TN: Tensor, count: int) -> Tensor:
        """[T, N, count]: numbers of different items within each class."""
        section, sizes_TN = self.section, self.data.count[class_TN]
        if section.most > LARGE_CLASS:
            return draw.choose_few(self.seed, self.key, number_T, ITEM_STREAM, sizes_TN, count)
        random_bits = draw.bits(self.seed, self.key, number_T, ITEM_STREAM, class_TN.shape[1] * section.most)
        random_bits = random_bits.view(*class_TN.shape, section.most)
        if section.fewest == section.most:
            return draw.choose(random_bits, count)
        return draw.choose_among(random_bits, sizes_TN, count)

    def unequal(self, number_T: Tensor, ways: int, shots: int) -> tuple[Tensor, Tensor]:
        """Labels [T, S] and the place of each item in its class: what one class has more, another has less."""
        spread, pairs = self.shape.imbalance, ways // 2
        u_TP = draw.uniform(self.seed, self.key, number_T, BALANCE_STREAM, pairs)
        more_TP = (u_TP * (2 * spread + 1)).long() - spread
        odd = more_TP.new_zeros(len(number_T), ways % 2)
        shots_TN = shots + torch.cat([torch.stack([more_TP, -more_TP], dim=-1).flatten(1), odd], dim=1)
        place_S = torch.arange(ways * shots, device=shots_TN.device)
        end_TN = shots_TN.cumsum(1)
        y_TS = torch.searchsorted(end_TN, place_S.expand(len(number_T), -1).contiguous(), right=True)
        return y_TS, place_S - (end_TN - shots_TN).gather(1, y_TS)

    def noisy(self, y_TS: Tensor, number_T: Tensor, ways: int) -> Tensor:
        """Each label on its own, with probability `label_noise`, becomes one of the others, all equally likely."""
        if not self.shape.label_noise:
            return y_TS
        wrong_TS, which_TS = draw.uniform(self.seed, self.key, number_T, NOISE_STREAM, 2 * y_TS.shape[1]).chunk(
            2, dim=1
        )
        other_TS = (y_TS + 1 + (which_TS * (ways - 1)).long()) % ways
        return torch.where(wrong_TS < self.shape.label_noise, other_TS, y_TS)

    def turned(self, x_TB: Tensor, turn_TB: Tensor) -> Tensor:
        turns = self.turns
        if turns.shape[0] == 1:
            return x_TB
        source = turns[turn_TB][:, :, None].expand(*x_TB.shape[:-2], -1)
        return x_TB.flatten(-2).gather(-1, source).view(x_TB.shape)

    @cached_property
    def turns(self) -> Tensor:
        """[4, H * W]: where pixel i of an image turned r quarters comes from; one row where none is turned."""
        item, device = self.data.item, self.data.device
        if not self.section.classes[:, 1].any():
            return torch.zeros(1, 0, dtype=torch.int64, device=device)
        assert item[1] == item[2], f"classes turned by 90 degrees of images {item[1]} x {item[2]}"
        grid = torch.arange(item[1] * item[2], device=device).view(item[1:])
        return torch.stack([torch.rot90(grid, turn).flatten() for turn in range(4)])


@dataclass(frozen=True)
class Batches(ClassTasks):
    """Batch i is the same whatever is asked for beside it; its cut into support and query means nothing."""

    def stacked(self, number_T: Tensor, ways: int, shots: int) -> Episode:
        count = ways * (shots + self.shape.queries)
        classes = self.section.classes
        u_TB, v_TB = draw.uniform(self.seed, self.key, number_T, BATCH_STREAM, 2 * count).chunk(2, dim=1)
        y_TB = (u_TB * len(classes)).long()
        class_TB, turn_TB = classes[y_TB].unbind(-1)
        row_TB = self.data.first[class_TB] + (v_TB * self.data.count[class_TB]).long()
        x_TB = self.made(number_T, row_TB, turn_TB)
        first = ways * shots
        return Episode(Batch(x_TB[:, :first], y_TB[:, :first]), Batch(x_TB[:, first:], y_TB[:, first:]), number_T)
