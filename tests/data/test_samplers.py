"""How tasks are drawn: within groups, of unequal classes, of varied shapes, in passes; each against a plain count."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from metarun.cli.main import main
from metarun.data.sources.source import Rotations
from metarun.data.splits import SPLITS
from metarun.data.store.pool import Pool
from metarun.data.tasks import random_bits, sampler
from metarun.data.tasks.opening import LabelledData, open_classes
from metarun.train.loop import mean_over_shapes
from metarun.train.state import learned
from metarun.types import Split
from support.engines import vmap_engine
from support.grouped import Grouped
from support.runs import TINY, only_run
from support.shapes import shape
from support.small import ALGOS, SEED, distance, episodes, network


def opened() -> LabelledData:
    return open_classes(Grouped(), torch.device("cpu"), torch.float64, lambda _: None)


def owners(data: LabelledData, x: Tensor) -> Tensor:
    """The class number of each item."""
    end = (data.items.first_row + data.items.num_items).double()
    return torch.searchsorted(end, x[..., 0].contiguous(), right=True)


def names(data: LabelledData) -> list[str]:
    return [name for split in SPLITS for name in data.class_names[split]]


@pytest.mark.parametrize("split", SPLITS)
def test_items_of_unequal_classes_are_all_used_and_never_twice(split: Split) -> None:
    data, few = opened(), shape(3, 1, 2)
    episode = data.tasks(split, few, 0)(torch.arange(3000))
    x = torch.cat([episode.support.x, episode.query.x], dim=1)
    assert all(len(set(task.tolist())) == 9 for task in x[..., 0])
    seen = set(x.flatten().int().tolist())
    rows = [
        int(data.items.first_row[c]) + i
        for c in data.items.splits[split].classes[:, 0]
        for i in range(int(data.items.num_items[c]))
    ]
    assert seen == set(rows)
    drawn = Counter(owners(data, episode.support.x).flatten().tolist())
    expected = 9000 / len(data.items.splits[split].classes)
    assert all(abs(count - expected) < 5 * expected**0.5 for count in drawn.values())  # classes, not items, are equal
    for number in drawn:  # and within a class its items are
        mine = x.flatten()[(owners(data, x) == number).flatten()]
        per_item = torch.bincount(
            (mine - data.items.first_row[number]).long(), minlength=int(data.items.num_items[number])
        )
        mid = per_item.double().mean()
        assert (per_item - mid).abs().max() < 5 * mid**0.5


def test_a_huge_class_is_drawn_from_as_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "LARGE_CLASS", 1)
    test_items_of_unequal_classes_are_all_used_and_never_twice("train")


def test_few_of_many_are_different_and_in_random_order() -> None:
    sizes = torch.tensor([[5, 6, 1000]])
    picked = random_bits.distinct_of_many(1, 0, torch.arange(4000), 3, sizes.expand(4000, -1), 5)
    assert (picked < sizes[..., None]).all()
    assert (picked >= 0).all()
    assert all(len(set(row.tolist())) == 5 for task in picked for row in task)
    orders = Counter(tuple(row.tolist()) for row in picked[:, 0])
    assert len(orders) == 120  # all orders of 0 to 4
    assert max(orders.values()) < 3 * min(orders.values()) + 30
    left = Counter(set(range(6)).difference(row.tolist()).pop() for row in picked[:, 1])
    assert all(abs(left[number] - 4000 / 6) < 5 * (4000 / 6) ** 0.5 for number in range(6))


def test_a_task_within_a_group_has_classes_of_one_group_and_every_group_its_turn() -> None:
    data = opened()
    episode = data.tasks("train", shape(4, 1, 1, sampler="within_group"), 0)(torch.arange(900))
    known = names(data)
    groups = [{known[c].split("/")[0] for c in task.tolist()} for task in owners(data, episode.support.x)]
    assert all(len(found) == 1 for found in groups)
    counted = Counter(next(iter(found)) for found in groups)
    assert set(counted) == {"train0", "train1", "train2"}
    assert all(abs(count - 300) < 5 * 300**0.5 for count in counted.values())
    assert len(set(owners(data, episode.support.x).flatten().tolist())) == 15
    large = data.tasks("train", shape(5, 1, 1, sampler="within_group"), 0)(torch.arange(50))
    assert {known[c].split("/")[0] for c in owners(data, large.support.x).flatten().tolist()} == {"train2"}


def test_a_group_as_task_is_the_whole_group_with_its_labels_in_order_once_a_pass() -> None:
    data = opened()
    tasks = data.tasks("train", shape((4, 7), 2, 1, sampler="group_as_task"), 3)
    for start in (0, 3, 9):  # three passes
        groups: list[str] = []
        for part in tasks.by_shape(torch.arange(start, start + 3)):
            for number, task in enumerate(part.episode.support.x):
                found = [names(data)[c] for c in owners(data, task).tolist()]
                group = found[0].split("/")[0]
                expected = [f"{group}/{n}" for n in range(part.ways) for _ in range(2)]
                assert found == expected
                assert part.episode.support.y[number].tolist() == [n for n in range(part.ways) for _ in range(2)]
                groups.append(group)
        assert sorted(groups) == ["train0", "train1", "train2"]
    firsts = [tuple(part.places.tolist()) for s in range(0, 60, 3) for part in tasks.by_shape(torch.arange(s, s + 3))]
    assert len(set(firsts)) > 2  # the order is not the same in every pass


def test_unequal_shots_keep_the_sum_and_the_bounds() -> None:
    data = opened()
    for ways in (3, 4):
        tasks = data.tasks("test", shape(ways, 3, 1, imbalance=2), 0)
        episode = tasks(torch.arange(600))
        assert episode.support.y.shape == (600, 3 * ways)
        counts = torch.stack([(episode.support.y == way).sum(1) for way in range(ways)], dim=1)
        assert counts.min() == 1
        assert counts.max() == 5
        assert (counts.sum(1) == 3 * ways).all()
        assert len(set(map(tuple, counts.tolist()))) > 4
        of = owners(data, episode.support.x)
        query = owners(data, episode.query.x)
        for t in range(600):
            drawn = torch.cat([episode.support.x[t], episode.query.x[t]]).flatten().tolist()
            assert len(set(drawn)) == len(drawn)
            for way in range(ways):
                assert set(of[t][episode.support.y[t] == way].tolist()) == {int(query[t, way])}
            assert episode.support.y[t].tolist() == sorted(episode.support.y[t].tolist())


VARIED = shape((2, 5), (1, 3), 2)


def test_varied_shapes_are_all_drawn_evenly_and_a_task_is_the_same_in_every_company() -> None:
    data = opened()
    tasks = data.tasks("test", VARIED, 0)
    parts = tasks.by_shape(torch.arange(2400))
    assert {(part.ways, part.shots) for part in parts} == {(n, k) for n in (2, 3, 4, 5) for k in (1, 2, 3)}
    assert all(abs(len(part.places) - 200) < 5 * 200**0.5 for part in parts)
    assert sorted(place for part in parts for place in part.places.tolist()) == list(range(2400))
    for part in parts:
        assert part.episode.support.x.shape[1] == part.ways * part.shots
        assert part.episode.query.x.shape[1] == part.ways * 2
        assert part.episode.index.tolist() == part.places.tolist()
        alone = tasks(part.places[-1:])
        assert torch.equal(alone.support.x[0], part.episode.support.x[-1])
        assert torch.equal(alone.query.y[0], part.episode.query.y[-1])
    with pytest.raises(AssertionError, match=r"tasks of \d+ shapes"):
        tasks(torch.arange(20))


class Pictures(Grouped):
    """The same classes of random pictures, in the shape that the small net takes."""

    mean, std = 0.5, 0.25
    rotations: Rotations = "none"

    def load(self, say: object) -> Pool:
        pool = super().load(say)
        item = episodes("conv4-strided").support.x.shape[2:]
        pictures = np.random.default_rng(0).integers(0, 256, (len(pool.items), *item), dtype=np.uint8)
        return pool._replace(items=pictures)


@pytest.mark.parametrize("bn", ["batch", "running"])
def test_a_meta_batch_of_varied_shapes_has_the_mean_gradient_of_its_tasks_one_by_one(bn: str) -> None:
    net, weights = network("conv4-strided")
    algo = ALGOS["protonet"](bn)
    meta = algo.init(net, weights, SEED)
    engine = vmap_engine(chunk=None).build(algo, net)
    data = open_classes(Pictures(), torch.device("cpu"), torch.float64, lambda _: None)
    tasks = data.tasks("test", VARIED, 0)
    parts = tasks.by_shape(torch.arange(12))
    assert len(parts) > 3
    grads, aux = mean_over_shapes([engine.meta_grad(meta, part.episode, 0) for part in parts], parts)
    alone = [engine.meta_grad(meta, tasks(torch.tensor([i])), 0) for i in range(12)]
    for place, gradient in enumerate(learned(grads)):
        expected = torch.stack([learned(one)[place] for one, _ in alone]).mean(0)
        assert distance(gradient, expected) < 1e-10
    assert abs(aux.metrics["loss"] - torch.stack([a.metrics["loss"] for _, a in alone]).mean()) < 1e-12
    for name, value in aux.buffers.items():
        assert distance(value, torch.stack([a.buffers[name] for _, a in alone]).mean(0)) < 1e-10
    assert bool(aux.buffers) == (bn == "running")


def test_a_limited_number_of_tasks_comes_again_in_order_or_shuffled() -> None:
    data = opened()
    ever = data.tasks("train", shape(3, 1, 1), 0)
    cyclic = data.tasks("train", shape(3, 1, 1, tasks=10), 0)
    assert torch.equal(cyclic(torch.arange(25)).support.x[10:20], ever(torch.arange(10)).support.x)
    shuffled = data.tasks("train", shape(3, 1, 1, tasks=10, order="shuffled"), 0)
    orders = [tuple(shuffled(torch.arange(s, s + 10)).index.tolist()) for s in range(0, 50, 10)]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len(set(orders)) == 5
    across = shuffled(torch.arange(7, 13)).index.tolist()
    assert tuple(across) == (orders[0] + orders[1])[7:13]
    assert torch.equal(shuffled(torch.arange(5)).support.x, ever(torch.tensor(orders[0][:5])).support.x)


def test_standardised_features_have_mean_0_and_spread_1_over_the_training_rows_alone() -> None:
    class Scaled(Grouped):
        standardise: Literal["columns", "none"] = "columns"

        def load(self, say: object) -> Pool:
            pool = super().load(say)
            column = pool.items
            return pool._replace(items=np.concatenate([column, 100 - 3 * column, np.ones_like(column)], axis=1))

    data = open_classes(Scaled(), torch.device("cpu"), torch.float64, lambda _: None)
    train = torch.cat(
        [
            torch.arange(int(data.items.first_row[c]), int(data.items.first_row[c] + data.items.num_items[c]))
            for c in range(15)
        ]
    )
    x = (data.items.rows[train].double() - data.items.mean) / data.items.std
    assert torch.allclose(x.mean(0), torch.zeros(3, dtype=x.dtype), atol=1e-12)
    assert torch.allclose(x[:, :2].var(0, correction=0), torch.ones(2, dtype=x.dtype), atol=1e-12)
    assert (x[:, 2] == 0).all()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["task.ways=[5,3]"], ["task.ways=[5,3]", "the smaller number comes first"]),
        (["task.ways=[3,5]"], ["task.ways=[3,5]", "algo=maml learns a head", "protonet"]),
        (["algo=protonet", "task.ways=[3,500]"], ["ways=[3,500]", "classes; use at most"]),
        (["task.shots=2", "task.imbalance=2"], ["task.imbalance=2", "use 0 to 1"]),
        (["task.shots=12", "task.imbalance=5"], ["shots=12", "imbalance=5", "20 items", "shots + queries <= 15"]),
        (["task.sampler=within_group", "task.ways=30"], ["within_group", "largest group", "22 classes"]),
        (["task.sampler=group_as_task"], ["group_as_task", "set task.train.ways=22"]),
        (["task.sampler=alphabet"], ["task.sampler=alphabet", "no such choice", "within_group"]),
        (["task.train.tasks=0"], ["task.train.tasks=0", "null for ever new ones"]),
        (["data=sine", "task.shots=[5,10]"], ["task.shots=[5,10]", "data=sine has tasks of one shape"]),
        (["data=sine", "task.sampler=within_group"], ["sampler=within_group", "no classes; set it to uniform"]),
        (["data=sine", "task.train.tasks=100"], ["task.train.tasks=100", "set it to null"]),
        (["augment.flip=2.0"], ["augment.flip=2.0", "0 <= flip <= 1"]),
        (["augment.crop=-1"], ["augment.crop=-1", "0 pixels or more"]),
    ],
)
def test_what_cannot_be_is_said_before_anything_starts(
    words: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", "track=local", *words]) == 2
    said = capsys.readouterr().err
    assert all(part in said for part in parts), said


@pytest.mark.parametrize(
    "words",
    [
        ["algo=protonet", "task.ways=[3,6]", "task.shots=[1,3]"],
        ["algo=protonet", "task.sampler=group_as_task", "task.ways=22"],
        ["task.sampler=within_group", "task.shots=3", "task.imbalance=2", "task.train.tasks=7"],
    ],
)
def test_whole_runs(words: list[str], tmp_path: Path) -> None:
    assert main([*TINY, f"out={tmp_path}", *words]) == 0
    run = only_run(tmp_path)
    assert len((run / "test_scores.csv").read_text().splitlines()) == 7
    assert (run / "episodes.png").stat().st_size > 1000
