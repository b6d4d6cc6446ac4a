"""The outer step and the score against closed forms; the loop's order of events."""

from __future__ import annotations

import math

import pytest
import torch

from metarun.train.finite import FiniteWatch, NonFinite, all_finite
from metarun.train.loop import is_due
from metarun.train.schedule import Constant, Cosine, Linear, Schedule, Step


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Constant(), [1, 1, 1, 1, 1]),
        (Linear(0.0), [1, 0.75, 0.5, 0.25, 0]),
        (Linear(0.2), [1, 0.8, 0.6, 0.4, 0.2]),
        (Cosine(0.0), [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0]),
        (Cosine(0.5), [1, 0.75 + math.sqrt(0.5) / 4, 0.75, 0.75 - math.sqrt(0.5) / 4, 0.5]),
        (Step(50, 0.1), [1, 1, 0.1, 0.1, 0.01]),
    ],
)
def test_schedules_are_their_formulas(schedule: Schedule, expected: list[float]) -> None:
    assert [schedule.factor(step, 100) for step in (0, 25, 50, 75, 100)] == pytest.approx(expected, abs=1e-15)


def test_watch_names_the_first_bad_step_though_asked_late() -> None:
    watch = FiniteWatch()
    for step, finite in enumerate([True, True, False, True, False]):
        watch.see(step, torch.tensor(finite))
    watch.check(2)
    with pytest.raises(NonFinite) as caught:
        watch.check(5)
    assert caught.value.step == 2


def test_loss_and_every_gradient_are_looked_at() -> None:
    fine, bad = torch.tensor(1.0), torch.tensor(float("nan"))
    assert all_finite(fine, [torch.ones(2), torch.ones(3)])
    assert not all_finite(bad, [torch.ones(2), torch.ones(3)])
    assert not all_finite(fine, [torch.ones(2), torch.tensor([0.0, float("inf")])])


def test_due() -> None:
    assert [step for step in range(10) if is_due(step, 3)] == [3, 6, 9]
