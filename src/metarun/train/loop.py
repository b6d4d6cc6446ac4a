"""Meta-training: rare events first, the step last, one exit."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from metarun.data.tasks.contracts import SameShapeTasks, Tasks
from metarun.engine.compile.cuda_graph import Captured
from metarun.measures import Estimate, Measure
from metarun.train.interrupt import Stop
from metarun.train.schedule import Schedule
from metarun.train.state import State, learned
from metarun.types import BUFFERS, Aux, Engine, Meta


@dataclass(frozen=True)
class Pace:
    """How long and how often."""

    steps: int
    meta_batch: int
    log_every: int
    eval_every: int
    save_every: int


class Keeper(Protocol):
    """Where the loop's results go; owned by the run."""

    def validated(self, state: State, score: Estimate) -> None: ...

    def best(self, state: State) -> None: ...

    def save(self, state: State) -> None: ...

    def stepped(self, state: State, metrics: dict[str, float]) -> None: ...


class NonFinite(Exception):
    """The training loss is no longer a number."""

    def __init__(self, step: int, tasks: range) -> None:
        super().__init__(step, tasks)
        self.step, self.tasks = step, tasks


class Watch:
    """Remembers on the device the first step that was not finite, so that nobody waits for it every step."""

    def __init__(self, meta_batch: int) -> None:
        self.meta_batch = meta_batch
        self.first: Tensor | None = None

    def see(self, step: int, loss: Tensor, grads: list[Tensor]) -> None:
        never = torch.iinfo(torch.int64).max
        fine = torch.stack([loss.isfinite(), *(grad.isfinite().all() for grad in grads)]).all()
        here = torch.where(fine, never, step)
        self.first = here if self.first is None else torch.minimum(self.first, here)

    def check(self, step: int) -> None:
        """`step` steps are done; waits for the device."""
        first = step if self.first is None else int(self.first.item())
        if first < step:
            raise NonFinite(first, range(first * self.meta_batch, (first + 1) * self.meta_batch))


def due(step: int, every: int) -> bool:
    return step > 0 and step % every == 0


def meta_train(
    state: State,
    engine: Engine,
    train: Tasks,
    validate: Callable[[State], Estimate],
    apply: Callable[[State, Meta], None],
    pace: Pace,
    measure: Measure,
    keep: Keeper,
    watch: Watch,
    stop: Stop,
) -> State:
    while True:
        last = state.step == pace.steps
        if (last or due(state.step, pace.eval_every)) and state.validated != state.step:
            watch.check(state.step)
            score = validate(state)
            state.validated = state.step
            if state.best is None or measure.better(score.value, state.best[0]):
                state.best = score.value, state.step
                keep.best(state)
            keep.validated(state, score)
        if last or due(state.step, pace.save_every):
            watch.check(state.step)
            keep.save(state)
        if last:
            return state
        stop.check()
        first = state.step * pace.meta_batch
        parts = train.by_shape(torch.arange(first, first + pace.meta_batch))
        grads, aux = mean([engine.meta_grad(state.meta, part.episode, state.step) for part in parts], parts)
        watch.see(state.step, aux.metrics["loss"], learned(grads))
        apply(state, grads)
        _take(state.meta, aux)
        state.step += 1
        if due(state.step, pace.log_every):
            watch.check(state.step)
            keep.stepped(state, {f"train/{name}": value.item() for name, value in aux.metrics.items()})


def mean(found: list[tuple[Meta, Aux]], parts: list[SameShapeTasks]) -> tuple[Meta, Aux]:
    """Of means over parts that differ in size: the mean over all tasks."""
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


def _take(meta: Meta, aux: Aux) -> None:
    for name, value in aux.buffers.items():
        meta[BUFFERS][name].copy_(value)


@dataclass(frozen=True)
class Outer:
    """Clip, schedule, optimizer step."""

    schedule: Schedule
    lr: float
    total: int
    clip: float | None
    clip_by: str
    launch: Callable[[list[Tensor]], object] | None = None  # does what `update` does

    def __call__(self, state: State, grads: Meta) -> None:
        rate = self.rate(state.step)
        for group in state.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        (self.launch or partial(self.update, state))(learned(grads))

    def captured(self, state: State) -> Outer:
        """Of this state alone, from now on: its kernels launched all at once."""
        if not all(group.get("capturable") for group in state.optimizer.param_groups):
            return self
        warnings.filterwarnings("ignore", message=".*capturable=True.*")  # the first step is launched
        return replace(self, launch=Captured(partial(self.update, state), in_place=True))

    def update(self, state: State, gradients: list[Tensor]) -> tuple[()]:
        if self.clip is not None and self.clip_by == "value":
            gradients = [grad.clamp(-self.clip, self.clip) for grad in gradients]
        elif self.clip is not None:
            norm = torch.stack([grad.norm() for grad in gradients]).norm()
            gradients = [grad * (self.clip / norm).clamp(max=1) for grad in gradients]
        for parameter, gradient in zip(learned(state.meta), gradients, strict=True):
            parameter.grad = gradient
        state.optimizer.step()
        state.optimizer.zero_grad()
        return ()

    def rate(self, step: int) -> float:
        return self.lr * self.schedule.factor(step, self.total)
