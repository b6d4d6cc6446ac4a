"""task.label_noise: which support labels are flipped, to what, and what stays as it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metarun.config.compose import compose
from metarun.config.schema import RunConfig, check_config
from metarun.data.splits import SPLITS
from metarun.errors import ConfigError
from metarun.types import Episode, Split
from support.labelled import opened
from support.shapes import shape

WAYS, SHOTS = 5, 4
NOISE = 0.4
TASKS = 2000


def drawn(noise: float, index: Tensor, split: Split = "train", seed: int = 3) -> Episode:
    return opened().tasks(split, shape(WAYS, SHOTS, 2, noise), seed)(index)


def configured(*words: str) -> RunConfig:
    composed = compose(["track=local", *words])
    return check_config(composed.plain, composed.choices)


@pytest.mark.parametrize("split", SPLITS)
def test_only_support_labels_change(split: Split) -> None:
    index = torch.arange(50)
    noisy, clean = drawn(NOISE, index, split), drawn(0.0, index, split)
    assert not torch.equal(noisy.support.y, clean.support.y)
    assert torch.equal(noisy.support.x, clean.support.x)
    assert all(torch.equal(a, b) for a, b in zip(noisy.query, clean.query, strict=True))


@pytest.mark.parametrize("noise", [0.1, 0.4, 0.8])
def test_the_share_of_wrong_labels(noise: float) -> None:
    """Each on its own: the count of all, and its spread over tasks, are a binomial's."""
    index = torch.arange(TASKS)
    wrong = (drawn(noise, index).support.y != drawn(0.0, index).support.y).double()
    count = wrong.numel()
    assert abs(wrong.sum() - noise * count) < 4 * (noise * (1 - noise) * count) ** 0.5
    items = WAYS * SHOTS
    expected = items * noise * (1 - noise)
    assert abs(wrong.sum(1).var() / expected - 1) < 4 * (2 / TASKS) ** 0.5
    each = wrong.mean(0)
    assert (each - noise).abs().max() < 4.5 * (noise * (1 - noise) / TASKS) ** 0.5


def test_a_wrong_label_is_any_of_the_others() -> None:
    index = torch.arange(TASKS)
    noisy, clean = drawn(NOISE, index).support.y.flatten(), drawn(0.0, index).support.y.flatten()
    pairs = torch.zeros(WAYS, WAYS).index_put((clean, noisy), torch.ones(len(clean)), accumulate=True)
    flipped = pairs[~torch.eye(WAYS, dtype=torch.bool)].view(WAYS, WAYS - 1)
    expected = flipped.sum(1, keepdim=True) / (WAYS - 1)
    free = WAYS * (WAYS - 2)
    assert ((flipped - expected) ** 2 / expected).sum() < free + 4 * (2 * free) ** 0.5
    assert noisy.min() == 0
    assert noisy.max() == WAYS - 1


def test_two_ways_leave_no_choice() -> None:
    index = torch.arange(200)
    data = opened()
    noisy = data.tasks("train", shape(2, 3, 1, 0.5), 0)(index).support.y
    clean = data.tasks("train", shape(2, 3, 1), 0)(index).support.y
    assert torch.equal(noisy[noisy != clean], 1 - clean[noisy != clean])


def test_a_task_has_the_same_noise_in_every_company() -> None:
    together = drawn(NOISE, torch.arange(40)).support.y
    for i in (0, 17, 39):
        assert torch.equal(drawn(NOISE, torch.tensor([i])).support.y[0], together[i])
    assert torch.equal(drawn(NOISE, torch.arange(39, -1, -1)).support.y.flip(0), together)


def test_seeds_and_splits_have_noise_of_their_own() -> None:
    index = torch.arange(40)
    here = drawn(NOISE, index).support.y
    assert not torch.equal(here, drawn(NOISE, index, seed=4).support.y)
    assert not torch.equal(here, drawn(NOISE, index, split="test").support.y)


def test_more_noise_keeps_what_was_wrong() -> None:
    index = torch.arange(100)
    clean = drawn(0.0, index).support.y
    little, much = drawn(0.2, index).support.y, drawn(0.6, index).support.y
    assert torch.equal(little[little != clean], much[little != clean])


def test_no_noise_is_bitwise_as_before() -> None:
    """Labels in order: nothing is drawn for them."""
    y = drawn(0.0, torch.arange(3)).support.y
    assert torch.equal(y, torch.arange(WAYS).repeat_interleave(SHOTS).repeat(3, 1))


def test_training_follows_unless_said_otherwise() -> None:
    assert configured("task.label_noise=0.4").task.train.label_noise == 0.4
    apart = configured("task.label_noise=0.4", "task.train.label_noise=0.0").task
    assert (apart.test.label_noise, apart.train.label_noise) == (0.4, 0.0)
    assert configured().task.test.label_noise == 0.0


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["task.label_noise=-0.1"], "label_noise=-0.1: is a probability; use 0 <= label_noise < 1"),
        (["task.label_noise=1.0"], "label_noise=1.0: is a probability"),
        (["task.label_noise=nan"], "label_noise=nan: need a finite number"),
        (["task.ways=1", "task.label_noise=0.1"], "label_noise=0.1: one way has no other label; set it to 0.0"),
        (["data=sine", "task.ways=2", "task.label_noise=0.1"], "label_noise=0.1: data=sine has no labels"),
        (["task.train.label_noise=2.0"], "train.label_noise=2.0: is a probability"),
    ],
)
def test_mistakes(words: list[str], reason: str) -> None:
    with pytest.raises(ConfigError) as mistake:
        configured(*words)
    assert reason in str(mistake.value)
