"""The outer step: learning rate, transforms of the meta-gradient, optimizer, and what follows the weights.

The transforms are a list in the configuration, applied in its order (after optax's chain of gradient transformations):

    train.outer=[{skip_not_finite: 5},{clip_by_norm: 10.0},{accumulate: 4},{moving_average: 0.999}]

A transform is a frozen dataclass of pure functions over the gradient and its own memory. The memory is a dict of lists
of tensors; it is saved in the checkpoint. No transform reads a tensor's value, so no step waits for the device and the
whole outer step can be captured as a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from metarun.train.finite import NEVER, FiniteWatch, NonFinite, all_finite
from metarun.train.schedule import Schedule
from metarun.train.state import OuterMemory, State, learned
from metarun.types import BUFFERS, Aux, Meta, Params

Update = Callable[..., tuple[()]]
"""Changes the state in place, given the gradients and, where a transform skips, `valid`."""


class OuterGradient(NamedTuple):
    """The meta-gradient on its way through the transforms."""

    values: list[Tensor]  # in the order of state.learned
    valid: Tensor | None  # boolean on the device: False: this step is skipped; None: no transform skips


class OuterTransform:
    """One element of train.outer. A subclass is a frozen dataclass and overrides what it needs."""

    skips: ClassVar[bool] = False  # it leaves out steps that are not finite, which otherwise end the run

    def init(self, parameters: list[Tensor]) -> OuterMemory:
        """The memory before the first step."""
        return {}

    def passes(self, step: int) -> bool:
        """Whether the gradient goes on to the next transform at meta-step `step` (from 0), or is held back."""
        return True

    def update(self, gradient: OuterGradient, memory: OuterMemory, passes: bool) -> tuple[OuterGradient, OuterMemory]:
        """The gradient for the next transform, and the new memory. `passes` is what `passes(step)` answered."""
        return gradient, memory

    def after_step(self, parameters: list[Tensor], memory: OuterMemory) -> OuterMemory:
        """The new memory after a step of the optimizer."""
        return memory

    def check(self, memory: OuterMemory) -> None:
        """Raises NonFinite if the run must end; called at rare events, may wait for the device."""

    def metrics(self, memory: OuterMemory) -> dict[str, float]:
        """What is logged and goes into the summary; called at rare events, may wait for the device."""
        return {}


@dataclass(frozen=True)
class ClipByValue(OuterTransform):
    """Each element of the gradient to -limit .. limit, as MAML does on mini-ImageNet (limit 10; Finn 2017, code)."""

    limit: float

    def __post_init__(self) -> None:
        _check_limit(self.limit)

    def update(self, gradient: OuterGradient, memory: OuterMemory, passes: bool) -> tuple[OuterGradient, OuterMemory]:
        clipped = [value.clamp(-self.limit, self.limit) for value in gradient.values]
        return gradient._replace(values=clipped), memory


@dataclass(frozen=True)
class ClipByNorm(OuterTransform):
    """The gradient as one vector, scaled down to at most this Euclidean norm (Pascanu 2013, algorithm 1)."""

    limit: float

    def __post_init__(self) -> None:
        _check_limit(self.limit)

    def update(self, gradient: OuterGradient, memory: OuterMemory, passes: bool) -> tuple[OuterGradient, OuterMemory]:
        norm = torch.stack([value.norm() for value in gradient.values]).norm()
        clipped = [value * (self.limit / norm).clamp(max=1) for value in gradient.values]
        return gradient._replace(values=clipped), memory


@dataclass(frozen=True)
class Accumulate(OuterTransform):
    """The optimizer steps once in `every` meta-steps, with the mean of their gradients.

    A step stays one meta-step of train.meta_batch tasks, for train.steps, the schedule and all intervals. The optimizer
    steps at the last meta-step of the `every`, with the learning rate of that meta-step. A skipped step is not counted
    in the mean.
    """

    every: int

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every={self.every}: need at least 1 meta-step")

    def init(self, parameters: list[Tensor]) -> OuterMemory:
        count = torch.zeros((), dtype=torch.int64, device=parameters[0].device)
        return {"sum": [torch.zeros_like(parameter) for parameter in parameters], "count": [count]}

    def passes(self, step: int) -> bool:
        return (step + 1) % self.every == 0

    def update(self, gradient: OuterGradient, memory: OuterMemory, passes: bool) -> tuple[OuterGradient, OuterMemory]:
        sums = [total + value for total, value in zip(memory["sum"], gradient.values, strict=True)]
        count = memory["count"][0] + (1 if gradient.valid is None else gradient.valid)
        if not passes:
            return gradient, {"sum": sums, "count": [count]}
        valid = None if gradient.valid is None else count > 0
        means = [total / count.clamp(min=1) for total in sums]
        empty = {"sum": [torch.zeros_like(total) for total in sums], "count": [torch.zeros_like(count)]}
        return OuterGradient(means, valid), empty


@dataclass(frozen=True)
class SkipNotFinite(OuterTransform):
    """A step whose loss or gradient is not finite changes nothing; after `in_a_row` of them the run gives up."""

    in_a_row: int
    skips: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.in_a_row < 1:
            raise ValueError(f"in_a_row={self.in_a_row}: need at least 1 step")

    def init(self, parameters: list[Tensor]) -> OuterMemory:
        zero = torch.zeros((), dtype=torch.int64, device=parameters[0].device)
        counts = {name: [zero.clone()] for name in ("seen", "skipped", "in_a_row")}
        return {**counts, "gave_up": [torch.full_like(zero, NEVER)]}

    def update(self, gradient: OuterGradient, memory: OuterMemory, passes: bool) -> tuple[OuterGradient, OuterMemory]:
        finite = gradient.valid
        assert finite is not None, "skip_not_finite is not told what is finite"
        [seen], [in_a_row], [gave_up] = memory["seen"], memory["in_a_row"], memory["gave_up"]
        in_a_row = torch.where(finite, 0, in_a_row + 1)
        gave_up = torch.where(in_a_row >= self.in_a_row, torch.minimum(gave_up, seen), gave_up)
        skipped = memory["skipped"][0] + ~finite
        values = [torch.where(finite, value, 0) for value in gradient.values]
        new = {"seen": [seen + 1], "skipped": [skipped], "in_a_row": [in_a_row], "gave_up": [gave_up]}
        return OuterGradient(values, finite), new

    def check(self, memory: OuterMemory) -> None:
        step = int(memory["gave_up"][0].item())
        if step < NEVER:
            raise NonFinite(step, self.in_a_row)

    def metrics(self, memory: OuterMemory) -> dict[str, float]:
        return {"train/skipped": float(memory["skipped"][0].item())}


@dataclass(frozen=True)
class MovingAverage(OuterTransform):
    """The exponential moving average of all that is learned, one term for each step of the optimizer.

    average_n = (1 - decay) * sum_i decay^(n-i) * weights_i / (1 - decay^n), i = 1 .. n: without the initial weights,
    and with weights of sum 1 from the first step on (the correction of the bias is Adam's). eval.weights=average
    validates and tests it. Buffers (running statistics) are not averaged: they are means already.
    """

    decay: float

    def __post_init__(self) -> None:
        if not 0 < self.decay < 1:
            raise ValueError(f"decay={self.decay}: need a number between 0 and 1, such as 0.999")

    def init(self, parameters: list[Tensor]) -> OuterMemory:
        power = torch.ones((), dtype=torch.float64, device=parameters[0].device)
        return {"sum": [torch.zeros_like(parameter) for parameter in parameters], "power": [power]}

    def after_step(self, parameters: list[Tensor], memory: OuterMemory) -> OuterMemory:
        sums = [total.lerp(value, 1 - self.decay) for total, value in zip(memory["sum"], parameters, strict=True)]
        return {"sum": sums, "power": [memory["power"][0] * self.decay]}

    def average(self, parameters: list[Tensor], memory: OuterMemory) -> list[Tensor]:
        """Before the first step of the optimizer: the weights themselves."""
        [power] = memory["power"]
        return [
            torch.where(power < 1, total / (1 - power).clamp(min=torch.finfo(power.dtype).tiny), value)
            for total, value in zip(memory["sum"], parameters, strict=True)
        ]


TRANSFORMS: dict[str, type[OuterTransform]] = {
    "skip_not_finite": SkipNotFinite,
    "clip_by_value": ClipByValue,
    "clip_by_norm": ClipByNorm,
    "accumulate": Accumulate,
    "moving_average": MovingAverage,
}


def _check_limit(limit: float) -> None:
    if limit <= 0:
        raise ValueError(f"limit={limit}: need a number above 0")


def check_chain(transforms: Sequence[OuterTransform], steps: int) -> None:
    """The rules for a whole list; ValueError names the mistake."""
    names = {cls: name for name, cls in TRANSFORMS.items()}
    for place, transform in enumerate(transforms):
        name = names.get(type(transform), type(transform).__name__)
        if transform.skips and place > 0:
            raise ValueError(f"outer[{place}]={name}: has to stand first, where it sees the gradient as it comes")
        if isinstance(transform, Accumulate | MovingAverage) and type(transform) in map(type, transforms[:place]):
            raise ValueError(f"outer[{place}]={name}: stands in the list twice; keep one")
        if isinstance(transform, Accumulate) and steps % transform.every:
            raise ValueError(
                f"outer[{place}].{name}={transform.every}: the last {steps % transform.every} of {steps} steps would "
                "be lost; make steps a multiple of it"
            )


def init_memories(transforms: Sequence[OuterTransform], parameters: list[Tensor]) -> list[OuterMemory]:
    return [transform.init(parameters) for transform in transforms]


def as_launched(update: Update) -> Update:
    """Kernels are launched one by one: the alternative to capturing them as a CUDA graph."""
    return update


class OuterStep:
    """Changes a state by one meta-gradient. It belongs to one state, whose tensors a captured graph writes to."""

    def __init__(
        self,
        schedule: Schedule,
        lr: float,
        steps: int,
        transforms: Sequence[OuterTransform],
        capture: Callable[[Update], Update] = as_launched,
    ) -> None:
        self.schedule, self.lr, self.steps = schedule, lr, steps
        self.transforms, self.capture = tuple(transforms), capture
        self.watch = FiniteWatch()
        self.skips = any(transform.skips for transform in self.transforms)
        self._updates: dict[tuple[bool, ...], Update] = {}  # by which transforms the gradient passes
        # Whether the optimizer has all tensors of its state, as it does after its first step. Before that a skipped
        # step cannot be undone in place, so the host waits for the device and decides.
        self._complete = not self.skips

    def rate(self, step: int) -> float:
        return self.lr * self.schedule.factor(step, self.steps)

    @torch.no_grad()
    def __call__(self, state: State, gradients: Meta, aux: Aux) -> None:
        _set_rate(state.optimizer, self.rate(state.step))
        values = learned(gradients)
        finite = all_finite(aux.metrics["loss"], values)
        if not self.skips:
            self.watch.see(state.step, finite)
        valid = (finite,) if self.skips else ()
        self._update(state)(values, *valid)
        _take_buffers(state.meta, aux.buffers, *valid)

    def check(self, state: State) -> None:
        """Raises NonFinite if a step so far ends the run; waits for the device."""
        if not self.skips:
            self.watch.check(state.step)
        for transform, memory in zip(self.transforms, state.outer, strict=True):
            transform.check(memory)

    def metrics(self, state: State) -> dict[str, float]:
        found: dict[str, float] = {}
        for transform, memory in zip(self.transforms, state.outer, strict=True):
            found |= transform.metrics(memory)
        return found

    def averaged(self, state: State) -> Meta:
        """The moving average of the weights, with the buffers as they are."""
        [(transform, memory)] = [
            (transform, memory)
            for transform, memory in zip(self.transforms, state.outer, strict=True)
            if isinstance(transform, MovingAverage)
        ]
        values = iter(transform.average(learned(state.meta), memory))
        return {
            group: params if group == BUFFERS else {name: next(values) for name in params}
            for group, params in state.meta.items()
        }

    def _update(self, state: State) -> Update:
        """What is done at this step; each combination of transforms that pass is captured by itself."""
        passes = tuple(transform.passes(state.step) for transform in self.transforms)
        if not self._complete:
            return partial(self._updated, state, passes)
        if passes not in self._updates:
            self._updates[passes] = self.capture(partial(self._updated, state, passes))
        return self._updates[passes]

    def _updated(
        self, state: State, passes: tuple[bool, ...], values: list[Tensor], valid: Tensor | None = None
    ) -> tuple[()]:
        gradient = OuterGradient(values, valid)
        for transform, memory, on in zip(self.transforms, state.outer, passes, strict=True):
            gradient, new = transform.update(gradient, memory, on)
            _write_memory(memory, new, None)
            if not on:
                return ()
        if not self._complete:
            assert gradient.valid is not None, "only a chain that skips starts incomplete"
            if not bool(gradient.valid):
                return ()
            self._complete, gradient = True, gradient._replace(valid=None)
        parameters = learned(state.meta)
        _optimizer_step(state.optimizer, parameters, gradient)
        for transform, memory in zip(self.transforms, state.outer, strict=True):
            _write_memory(memory, transform.after_step(parameters, memory), gradient.valid)
        return ()


def _optimizer_step(optimizer: torch.optim.Optimizer, parameters: list[Tensor], gradient: OuterGradient) -> None:
    """In place; where the gradient is not valid, everything is put back."""
    moments = [value for each in optimizer.state.values() for value in each.values() if isinstance(value, Tensor)]
    changed = [] if gradient.valid is None else [*parameters, *moments]
    before = [value.clone() for value in changed]
    for parameter, value in zip(parameters, gradient.values, strict=True):
        parameter.grad = value
    optimizer.step()
    optimizer.zero_grad()
    for place, value in zip(changed, before, strict=True):
        assert gradient.valid is not None
        place.copy_(torch.where(gradient.valid.to(place.device), place, value))


def _write_memory(memory: OuterMemory, new: OuterMemory, valid: Tensor | None) -> None:
    """In place; where `valid` is given and false, nothing."""
    if new is memory:
        return
    for name, places in memory.items():
        for place, value in zip(places, new[name], strict=True):
            place.copy_(value if valid is None else torch.where(valid, value, place))


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def _take_buffers(meta: Meta, buffers: Params, valid: Tensor | None = None) -> None:
    for name, value in buffers.items():
        place = meta[BUFFERS][name]
        place.copy_(value if valid is None else torch.where(valid, value, place))
