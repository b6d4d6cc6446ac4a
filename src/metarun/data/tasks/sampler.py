"""From the number of a task to its episode: which classes, which items, in which order, as which pixels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from metarun.data.splits import SPLITS
from metarun.data.tasks import random_bits
from metarun.data.tasks.augment import Augment
from metarun.data.tasks.contracts import SameShapeTasks, TaskShape, all_same_shape
from metarun.data.tasks.labelled import LabelledItems, SplitClasses
from metarun.types import Batch, Episode, Split

CLASS_STREAM, ITEM_STREAM, NOISE_STREAM, BATCH_STREAM = 1, 2, 3, 4
SHAPE_STREAM, GROUP_STREAM, BALANCE_STREAM, ORDER_STREAM, PASS_STREAM = 5, 6, 7, 8, 9
LARGE_CLASS = 4096  # items; above, a draw that orders all items of a class costs more than the step it feeds


@dataclass(frozen=True)
class EpisodeSampler:
    """The tasks of one split of labelled items."""

    items: LabelledItems
    split: Split
    shape: TaskShape
    seed: int
    augment: Augment | None  # None: items as they are

    def __call__(self, index_T: Tensor) -> Episode:
        number_T = self.task_numbers(index_T)
        if self.shape.has_one_shape:
            return self.episode(number_T, self.shape.ways_range[0], self.shape.shots_range[0])
        ways_T, shots_T = self.ways_and_shots(number_T)
        shapes = set(zip(ways_T.tolist(), shots_T.tolist(), strict=True))
        assert len(shapes) == 1, f"tasks of {len(shapes)} shapes cannot be stacked"
        return self.episode(number_T, *shapes.pop())

    def by_shape(self, index_T: Tensor) -> list[SameShapeTasks]:
        if self.shape.has_one_shape:
            return all_same_shape(self, self.shape, index_T)
        number_T = self.task_numbers(index_T)
        ways_T, shots_T = self.ways_and_shots(number_T)
        found = []
        for ways, shots in sorted(set(zip(ways_T.tolist(), shots_T.tolist(), strict=True))):
            places = ((ways_T == ways) & (shots_T == shots)).nonzero()[:, 0]
            episode = self.episode(number_T[places], ways, shots)
            found.append(SameShapeTasks(places.cpu(), episode, ways, shots))
        return found

    def episode(self, number_T: Tensor, ways: int, shots: int) -> Episode:
        """Tasks of one shape, stacked."""
        chosen_TN = self.choose_classes(number_T, ways)
        class_TN, quarter_turns_TN = self.classes.classes[chosen_TN].unbind(-1)
        most_shots = shots + self.shape.imbalance
        item_TNI = self.choose_items(number_T, class_TN, most_shots + self.shape.queries)
        row_TNI = self.items.first_row[class_TN][..., None] + item_TNI
        y_N = torch.arange(ways, device=row_TNI.device)
        query_y_TQ = y_N.repeat_interleave(self.shape.queries).expand(len(number_T), -1)
        support_y_TS = y_N.repeat_interleave(shots).expand(len(number_T), -1)
        support_row_TS = row_TNI[..., :most_shots].flatten(1)
        if self.shape.imbalance:
            support_y_TS, place_TS = self.imbalanced_support(number_T, ways, shots)
            support_row_TS = support_row_TS.gather(1, support_y_TS * most_shots + place_TS)
        query_row_TQ = row_TNI[..., most_shots:].flatten(1)
        row_TB, y_TB = torch.cat([support_row_TS, query_row_TQ], 1), torch.cat([support_y_TS, query_y_TQ], 1)
        x_TB = self.network_inputs(number_T, row_TB, quarter_turns_TN.gather(1, y_TB))
        num_support = support_row_TS.shape[1]
        support_x, query_x = x_TB[:, :num_support].contiguous(), x_TB[:, num_support:].contiguous()
        support = Batch(support_x, self.with_label_noise(support_y_TS, number_T, ways))
        return Episode(support, Batch(query_x, query_y_TQ), number_T)

    def network_inputs(self, number_T: Tensor, row_TB: Tensor, quarter_turns_TB: Tensor) -> Tensor:
        """x_TBCHW or x_TBD of these rows: read, turned, scaled to [0, 1], augmented, normalised, in this order."""
        items = self.items
        stored = items.rows.index_select(0, row_TB.flatten().to(items.rows.device)).to(items.device)
        x_TB = stored.view(*row_TB.shape, *items.item_shape)
        if self.has_rotations:
            source_TB = self.rotated_pixels[quarter_turns_TB][:, :, None].expand(*x_TB.shape[:-2], -1)
            x_TB = x_TB.flatten(-2).gather(-1, source_TB).view(x_TB.shape)
        pixels = x_TB.dtype == torch.uint8
        x_TB = x_TB.to(items.mean.dtype)
        if pixels:
            x_TB = x_TB / 255
        if self.augment is not None:
            x_TB = self.augment.apply(x_TB, self.seed, self.split_number, number_T)
        return (x_TB - items.mean) / items.std

    @property
    def split_number(self) -> int:
        """The split as an input of random numbers."""
        return SPLITS.index(self.split)

    @property
    def classes(self) -> SplitClasses:
        return self.items.splits[self.split]

    @cached_property
    def has_rotations(self) -> bool:
        return bool(self.classes.classes[:, 1].any())

    @cached_property
    def rotated_pixels(self) -> Tensor:
        """[4, H * W]: the stored pixel that each pixel of an image turned by r quarters shows."""
        (*_, height, width), device = self.items.item_shape, self.items.device
        assert height == width, f"classes turned by 90 degrees of images {height} x {width}"
        grid = torch.arange(height * width, device=device).view(height, width)
        return torch.stack([torch.rot90(grid, quarter_turns).flatten() for quarter_turns in range(4)])

    def task_numbers(self, index_T: Tensor) -> Tensor:
        """Numbers of the tasks at these places of the sequence: the same, unless the number of tasks is limited."""
        if self.shape.tasks is None:
            return index_T.to(self.items.device)
        if self.shape.order == "cyclic":
            return (index_T % self.shape.tasks).to(self.items.device)
        return self.shuffled_passes(index_T, self.shape.tasks, ORDER_STREAM)

    def shuffled_passes(self, index_T: Tensor, count: int, stream: int) -> Tensor:
        """Places in a sequence that repeats the numbers below `count`, in a new order in every pass -> numbers."""
        pass_T, place_T = index_T.cpu() // count, index_T.cpu() % count
        result_T = torch.empty_like(place_T)
        for number in set(pass_T.tolist()):
            order = random_bits.permutation(self.seed, self.split_number, number, stream, count)
            result_T = torch.where(pass_T == number, order[place_T], result_T)
        return result_T.to(self.items.device)

    def ways_and_shots(self, number_T: Tensor) -> tuple[Tensor, Tensor]:
        """Ways and shots of each task, where they differ."""
        u_T2 = random_bits.uniform_floats(self.seed, self.split_number, number_T, SHAPE_STREAM, 2)
        (least, most), (fewest, largest) = self.shape.ways_range, self.shape.shots_range
        ways_T = least + (u_T2[:, 0] * (most - least + 1)).long()
        if self.shape.sampler == "group_as_task":
            ways_T = self.classes.group_sizes[self.group_of_task(number_T)]
        return ways_T, fewest + (u_T2[:, 1] * (largest - fewest + 1)).long()

    def choose_classes(self, number_T: Tensor, ways: int) -> Tensor:
        """[T, N]: rows of the classes of the split."""
        classes = self.classes
        if self.shape.sampler == "uniform":
            bits = random_bits.bits(self.seed, self.split_number, number_T, CLASS_STREAM, len(classes.classes))
            return random_bits.distinct(bits, ways)
        order, start = classes.classes_by_group
        if self.shape.sampler == "group_as_task":
            return order[start[self.group_of_task(number_T)][:, None] + torch.arange(ways, device=order.device)]
        large_enough = (classes.group_sizes >= ways).nonzero()[:, 0]
        u_T = random_bits.uniform_floats(self.seed, self.split_number, number_T, GROUP_STREAM, 1)[:, 0]
        group_T = large_enough[(u_T * len(large_enough)).long()]
        largest = int(classes.group_sizes.max())
        bits = random_bits.bits(self.seed, self.split_number, number_T, CLASS_STREAM, largest)
        return order[start[group_T][:, None] + random_bits.distinct_below(bits, classes.group_sizes[group_T], ways)]

    def group_of_task(self, number_T: Tensor) -> Tensor:
        """sampler=group_as_task: each task is one group. All groups come once, in random order, before one repeats."""
        return self.shuffled_passes(number_T, len(self.classes.group_sizes), PASS_STREAM)

    def choose_items(self, number_T: Tensor, class_TN: Tensor, count: int) -> Tensor:
        """[T, N, count]: numbers of different items of each class."""
        most, num_items_TN = self.classes.most_items, self.items.num_items[class_TN]
        key = (self.seed, self.split_number, number_T, ITEM_STREAM)
        if most > LARGE_CLASS:
            return random_bits.distinct_of_many(*key, num_items_TN, count)
        bits_TNI = random_bits.bits(*key, class_TN.shape[1] * most).view(*class_TN.shape, most)
        if self.classes.fewest_items == most:
            return random_bits.distinct(bits_TNI, count)
        return random_bits.distinct_below(bits_TNI, num_items_TN, count)

    def imbalanced_support(self, number_T: Tensor, ways: int, shots: int) -> tuple[Tensor, Tensor]:
        """Labels [T, S] and the place of each item in its class.

        Classes come in pairs: what one has more than `shots`, the other has less, so that S stays ways * shots.
        """
        spread, pairs = self.shape.imbalance, ways // 2
        u_TP = random_bits.uniform_floats(self.seed, self.split_number, number_T, BALANCE_STREAM, pairs)
        more_TP = (u_TP * (2 * spread + 1)).long() - spread
        odd = more_TP.new_zeros(len(number_T), ways % 2)
        shots_TN = shots + torch.cat([torch.stack([more_TP, -more_TP], dim=-1).flatten(1), odd], dim=1)
        place_S = torch.arange(ways * shots, device=shots_TN.device)
        end_TN = shots_TN.cumsum(1)
        y_TS = torch.searchsorted(end_TN, place_S.expand(len(number_T), -1).contiguous(), right=True)
        return y_TS, place_S - (end_TN - shots_TN).gather(1, y_TS)

    def with_label_noise(self, y_TS: Tensor, number_T: Tensor, ways: int) -> Tensor:
        """Each label becomes, with probability `label_noise`, one of the other labels, all equally likely."""
        if not self.shape.label_noise:
            return y_TS
        u_TB = random_bits.uniform_floats(self.seed, self.split_number, number_T, NOISE_STREAM, 2 * y_TS.shape[1])
        wrong_TS, which_TS = u_TB.chunk(2, dim=1)
        other_TS = (y_TS + 1 + (which_TS * (ways - 1)).long()) % ways
        return torch.where(wrong_TS < self.shape.label_noise, other_TS, y_TS)


@dataclass(frozen=True)
class BatchSampler(EpisodeSampler):
    """Batches of training items of any classes, labelled by class number among all training classes.

    A batch has as many items as a task. It comes as an episode, but its cut into support and query means nothing.
    """

    def episode(self, number_T: Tensor, ways: int, shots: int) -> Episode:
        count = ways * (shots + self.shape.queries)
        classes = self.classes.classes
        u = random_bits.uniform_floats(self.seed, self.split_number, number_T, BATCH_STREAM, 2 * count)
        u_TB, v_TB = u.chunk(2, dim=1)
        y_TB = (u_TB * len(classes)).long()
        class_TB, quarter_turns_TB = classes[y_TB].unbind(-1)
        row_TB = self.items.first_row[class_TB] + (v_TB * self.items.num_items[class_TB]).long()
        x_TB = self.network_inputs(number_T, row_TB, quarter_turns_TB)
        cut = ways * shots
        return Episode(Batch(x_TB[:, :cut], y_TB[:, :cut]), Batch(x_TB[:, cut:], y_TB[:, cut:]), number_T)
