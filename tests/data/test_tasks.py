"""Episodes: the same task for the same number, made of what the split holds and nothing else."""

from __future__ import annotations

import math

import pytest
import torch

from metarun.data.sources.sine import Sine
from metarun.data.sources.source import Rotations
from metarun.data.splits import SPLITS
from metarun.data.tasks.opening import LabelledData
from metarun.data.tasks.sampler import EpisodeSampler
from metarun.data.tasks.sinusoids import SinusoidTasks
from metarun.types import Split
from support.labelled import CPU, IMAGES, SIZE, opened
from support.shapes import shape


def codes(data: LabelledData, x: torch.Tensor) -> torch.Tensor:
    """Back to the byte in the middle of each image."""
    return ((x * data.items.std + data.items.mean) * 255).round()[..., 0, SIZE // 2, SIZE // 2].long()


def classes_of(data: LabelledData) -> dict[Split, torch.Tensor]:
    return {split: found.classes for split, found in data.items.splits.items()}


SHAPE = shape(5, 2, 3)
WAYS, SHOTS, QUERIES = 5, 2, 3


def test_a_task_is_the_same_in_every_company() -> None:
    tasks = opened("all").tasks("train", SHAPE, seed=4)
    together = tasks(torch.arange(40))
    for i in (0, 17, 39):
        alone = tasks(torch.tensor([i]))
        assert torch.equal(alone.support.x[0], together.support.x[i])
        assert torch.equal(alone.query.x[0], together.query.x[i])


@pytest.mark.parametrize("split", SPLITS)
def test_classes_are_of_the_split_and_images_are_used_once(split: Split) -> None:
    data = opened()
    episode = data.tasks(split, SHAPE, seed=0)(torch.arange(200))
    allowed = set(classes_of(data)[split][:, 0].tolist())
    seen: set[int] = set()
    for t in range(200):
        support, query = codes(data, episode.support.x[t]), codes(data, episode.query.x[t])
        drawn = torch.cat([support, query])
        assert len(set(drawn.tolist())) == WAYS * (SHOTS + QUERIES)
        of_label = (support // IMAGES).view(WAYS, SHOTS)
        assert (of_label == of_label[:, :1]).all()
        assert (query // IMAGES).view(WAYS, QUERIES).eq(of_label[:, :1]).all()
        assert len(set(of_label[:, 0].tolist())) == WAYS
        seen |= set((drawn // IMAGES).tolist())
    assert seen == allowed


def test_labels_number_the_classes_in_order() -> None:
    episode = opened().tasks("val", SHAPE, seed=0)(torch.arange(3))
    assert episode.support.y[1].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert episode.query.y[2].tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3


def test_splits_and_seeds_draw_differently() -> None:
    data = opened()
    first = data.tasks("train", SHAPE, seed=0)(torch.arange(9)).support.x
    assert not torch.equal(first, data.tasks("train", SHAPE, seed=1)(torch.arange(9)).support.x)


def test_normalisation_is_that_of_the_source() -> None:
    data = opened()
    tasks = data.tasks("test", SHAPE, seed=0)
    assert isinstance(tasks, EpisodeSampler)
    number = classes_of(data)["test"][tasks.choose_classes(torch.arange(4), WAYS)][..., 0]
    image = tasks.choose_items(torch.arange(4), number, SHOTS + QUERIES)
    x = tasks(torch.arange(4)).support.x[:, 0, 0, 3, 3]
    byte = (number[:, 0] * IMAGES + image[:, 0, 0]).double()
    assert torch.allclose(x, (byte / 255 - 0.25) / 0.5, rtol=0, atol=1e-15)


@pytest.mark.parametrize(("rotations", "turned"), [("none", ()), ("train", ("train",)), ("all", SPLITS)])
def test_rotations_make_classes(rotations: Rotations, turned: tuple[Split, ...]) -> None:
    data = opened(rotations)
    plain = opened()
    for split in SPLITS:
        factor = 4 if split in turned else 1
        assert len(classes_of(data)[split]) == factor * len(classes_of(plain)[split])


def test_a_turned_class_is_turned_by_quarters() -> None:
    data = opened("all")
    tasks = data.tasks("train", shape(8, 1, 1), seed=0)
    assert isinstance(tasks, EpisodeSampler)
    number, turn = classes_of(data)["train"][tasks.choose_classes(torch.arange(20), 8)].unbind(-1)
    image = tasks.choose_items(torch.arange(20), number, 2)
    x = tasks(torch.arange(20)).support.x
    assert set(turn.flatten().tolist()) == {0, 1, 2, 3}
    for t in range(20):
        for way in range(8):
            stored = data.items.rows[data.items.first_row[number[t, way]] + image[t, way, 0]]
            expected = torch.rot90(stored, int(turn[t, way]), dims=(-2, -1))
            assert torch.equal(((x[t, way] * 0.5 + 0.25) * 255).round().byte(), expected)


def test_sine_is_the_curve_it_says() -> None:
    source = Sine((0.1, 5.0), (0.0, math.pi), (-5.0, 5.0))
    data = source.open(CPU, torch.float64)
    tasks = data.tasks("train", shape(1, 10, 10), seed=0)
    assert isinstance(tasks, SinusoidTasks)
    episode = tasks(torch.arange(500))
    x, y = episode.support.x[..., 0], episode.support.y[..., 0]
    assert x.shape == (500, 10)
    assert float(x.min()) >= -5
    assert float(x.max()) <= 5
    # y = a sin(x) + b cos(x) with a, b from two points must hold at all others, and give back amplitude and phase
    left = torch.stack([x[:, :2].sin(), x[:, :2].cos()], dim=-1)
    a, b = torch.linalg.solve(left, y[:, :2]).unbind(-1)
    assert torch.allclose(a[:, None] * x.sin() + b[:, None] * x.cos(), y, rtol=0, atol=1e-7)
    amplitude, phase = torch.hypot(a, b), torch.atan2(-b, a)
    assert float(amplitude.min()) > 0.1 - 1e-9
    assert 4.9 < float(amplitude.max()) < 5 + 1e-9
    assert float(phase.min()) > -1e-9
    assert 3.1 < float(phase.max()) < math.pi + 1e-9
    assert torch.allclose(tasks.sinusoids(episode.index, x), y)
    query = tasks.sinusoids(episode.index, episode.query.x[..., 0])
    assert torch.allclose(query, episode.query.y[..., 0])


def test_sine_refuses_an_empty_span() -> None:
    with pytest.raises(ValueError, match=r"phase=\[1.0, 1.0\]"):
        Sine((0.1, 5.0), (1.0, 1.0), (-5.0, 5.0))
