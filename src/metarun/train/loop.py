"""Meta-training: rare events first, the step last, one exit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from metarun.data.tasks.contracts import SameShapeTasks, Tasks
from metarun.engine.ranks import Ranks
from metarun.measures import Estimate, Measure
from metarun.train.interrupt import Stop
from metarun.train.outer import OuterStep
from metarun.train.state import State
from metarun.types import Aux, Engine, Meta


@dataclass(frozen=True)
class Intervals:
    """How many meta-steps there are, of how many tasks, and after how many of them each rare event comes."""

    steps: int
    meta_batch: int
    log_every: int
    eval_every: int
    save_every: int


class Recorder(Protocol):
    """Takes the results of the loop; the run's session is one."""

    def validated(self, state: State, score: Estimate) -> None: ...

    def best(self, state: State) -> None: ...

    def save(self, state: State) -> None: ...

    def stepped(self, state: State, metrics: dict[str, float]) -> None: ...


def is_due(step: int, every: int) -> bool:
    return step > 0 and step % every == 0


def meta_train(
    state: State,
    engine: Engine,
    train: Tasks,
    validate: Callable[[State], Estimate],
    outer: OuterStep,
    intervals: Intervals,
    measure: Measure,
    recorder: Recorder,
    ranks: Ranks,
    stop: Stop,
) -> State:
    """Every rank runs this loop, each on its share of the tasks; the gradient is the mean over the tasks of all."""
    while True:
        last = state.step == intervals.steps
        if (last or is_due(state.step, intervals.eval_every)) and state.validated != state.step:
            outer.check(state)
            score = validate(state)
            state.validated = state.step
            if state.best is None or measure.better(score.value, state.best[0]):
                state.best = score.value, state.step
                recorder.best(state)
            recorder.validated(state, score)
        if last or is_due(state.step, intervals.save_every):
            outer.check(state)
            recorder.save(state)
        if last:
            return state
        stop.check_step(ranks)
        first = state.step * intervals.meta_batch
        index_T = ranks.share(torch.arange(first, first + intervals.meta_batch))
        parts = train.by_shape(index_T)
        grads, aux = mean_over_shapes([engine.meta_grad(state.meta, part.episode, state.step) for part in parts], parts)
        grads, aux = ranks.mean(grads, aux, len(index_T) / intervals.meta_batch, stop.asked)
        outer(state, grads, aux)
        state.step += 1
        if is_due(state.step, intervals.log_every):
            outer.check(state)  # waits for the device, as reading the metrics does
            metrics = {f"train/{name}": value.item() for name, value in aux.metrics.items()}
            recorder.stepped(state, {**metrics, **outer.metrics(state)})


def mean_over_shapes(found: list[tuple[Meta, Aux]], parts: list[SameShapeTasks]) -> tuple[Meta, Aux]:
    """The mean over all tasks, from means over tasks of one shape each."""
    if len(parts) == 1:
        return found[0]
    total = sum(len(part.places) for part in parts)
    shares = [len(part.places) / total for part in parts]

    def mixed(values: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        pairs = list(zip(shares, values, strict=True))
        return {name: torch.stack([share * value[name] for share, value in pairs]).sum(0) for name in values[0]}

    grads, auxes = zip(*found, strict=True)
    meta = {group: mixed([grad[group] for grad in grads]) for group in grads[0]}
    return meta, Aux(mixed([aux.metrics for aux in auxes]), mixed([aux.buffers for aux in auxes]))
