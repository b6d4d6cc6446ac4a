"""The outer step and the score against closed forms; the loop's order of events."""

from __future__ import annotations

import math

import pytest
import torch

from metarun.train.loop import NonFinite, Outer, Watch, due
from metarun.train.schedule import Constant, Cosine, Linear, Schedule, Step
from metarun.train.state import State


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


def state_of(weight: torch.Tensor) -> State:
    return State({"weights": {"w": weight}, "buffers": {"m": torch.ones(2)}}, torch.optim.SGD([weight], lr=99.0))


@pytest.mark.parametrize(
    ("clip", "clip_by", "moved"),
    [
        (None, "value", [3.0, -4.0]),
        (3.5, "value", [3.0, -3.5]),
        (2.5, "norm", [1.5, -2.0]),
        (10.0, "norm", [3.0, -4.0]),
    ],
)
def test_outer_step_clips_and_follows_the_schedule(clip: float | None, clip_by: str, moved: list[float]) -> None:
    weight = torch.zeros(2, dtype=torch.float64)
    state = state_of(weight)
    state.step = 5
    outer = Outer(Linear(0.0), lr=2.0, total=10, clip=clip, clip_by=clip_by)
    gradient = torch.tensor([3.0, -4.0], dtype=torch.float64)
    outer(state, {"weights": {"w": gradient}})
    assert weight.tolist() == pytest.approx([-value for value in moved], abs=1e-12)  # rate 2.0 * 0.5
    assert state.meta["buffers"]["m"].tolist() == [1, 1]
    assert gradient.tolist() == [3.0, -4.0]


def test_watch_names_the_first_bad_step_though_asked_late() -> None:
    watch, fine, bad = Watch(meta_batch=4), torch.tensor(1.0), torch.tensor(float("nan"))
    for step, loss in enumerate([fine, fine, bad, fine, bad]):
        watch.see(step, loss, [fine])
    watch.check(2)
    with pytest.raises(NonFinite) as caught:
        watch.check(5)
    assert caught.value.step == 2
    assert caught.value.tasks == range(8, 12)


def test_watch_sees_gradients() -> None:
    watch = Watch(meta_batch=1)
    watch.see(0, torch.tensor(1.0), [torch.tensor([0.0, float("inf")])])
    with pytest.raises(NonFinite):
        watch.check(1)


def test_due() -> None:
    assert [step for step in range(10) if due(step, 3)] == [3, 6, 9]
