"""An inner loop that stores its carries and no graph; backwards, each step is run anew and differentiated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.func import vjp
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from metarun.types import Carry, Consts, StepFn

Build = Callable[[Sequence[Tensor]], Any]


class Course(NamedTuple):
    """An inner loop but for its tensors."""

    step: StepFn[Any, Any]
    carries: list[Build]  # one for each step
    consts: Build
    size: int  # tensors of a carry
    first: int


def unroll_adjoint(step: StepFn[Carry, Consts], carry: Carry, consts: Consts, num_steps: int, /) -> Carry:
    """Memory grows by one carry a step."""
    return _replayed(step, carry, consts, range(num_steps)) if num_steps else carry


def unroll_checkpoint(step: StepFn[Carry, Consts], carry: Carry, consts: Consts, num_steps: int, /) -> Carry:
    """Each step alone, so that what is kept of it is let go as soon as it was differentiated."""
    for k in range(num_steps):
        carry = _replayed(step, carry, consts, range(k, k + 1))
    return carry


def _replayed(step: StepFn[Carry, Consts], carry: Carry, consts: Consts, steps: range) -> Carry:
    # The steps run here and not inside the Function: what they close over belongs to this level of vmap and grad.
    constants, now = _constant(consts), _constant(carry)
    begin, _ = parted(carry)
    given, build_consts = parted(consts)
    course, carries = Course(step, [], build_consts, len(begin), steps.start), []
    for k in steps:
        tensors, build = parted(now)
        course.carries.append(build)
        carries += tensors
        now = _constant(step(now, constants, k))
    end, build = parted(now)
    assert len(end) == len(begin), f"a step turned a carry of {len(begin)} tensors into one of {len(end)}"
    later = _Replayed.apply(course, *begin, *given, *carries[len(begin) :], *end)
    after: Carry = build(later[len(later) - len(end) :])
    return after


def parted(tree: Any) -> tuple[list[Tensor], Build]:
    """A tree's tensors, and how to make it of others."""
    leaves, spec = tree_flatten(tree)
    rest = [(isinstance(leaf, Tensor), None if isinstance(leaf, Tensor) else leaf) for leaf in leaves]

    def build(tensors: Sequence[Tensor]) -> Any:
        following = iter(tensors)
        return tree_unflatten([next(following) if here else leaf for here, leaf in rest], spec)

    return [leaf for leaf in leaves if isinstance(leaf, Tensor)], build


def _constant(tree: Any) -> Any:
    return tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, tree)


class _Replayed(torch.autograd.Function):
    """(begin, consts, later carries) -> later carries, with the derivatives of the steps that led there.

    All carries are outputs, and not the last alone, so that its own derivative knows what they depend on.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(course: Course, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(value.clone() for value in tensors[len(tensors) - course.size * len(course.carries) :])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.course, *tensors = inputs
        ctx.save_for_backward(*tensors[: len(tensors) - len(output)], *output[: len(output) - ctx.course.size])
        ctx.mark_non_differentiable(*(value for value in output if not value.is_floating_point()))

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        course: Course = ctx.course
        size, steps, kept = course.size, len(course.carries), ctx.saved_tensors
        split = len(kept) - size * (steps - 1)
        given, carries = kept[size:split], [*kept[:size], *kept[split:]]
        moves = [i for i in range(size) if carries[i].is_floating_point()]
        learns = [
            i for i, value in enumerate(given) if ctx.needs_input_grad[1 + size + i] and value.is_floating_point()
        ]
        v = [torch.zeros_like(carries[i]) for i in moves]
        totals = [torch.zeros_like(given[i]) for i in learns]
        for k in reversed(range(steps)):
            v = [value + cotangents[k * size + i] for i, value in zip(moves, v, strict=True)]
            carry = Values(carries[k * size : (k + 1) * size], moves)
            v, found = _pulled(course, k, carry, Values(given, learns), v)
            totals = [total + part for total, part in zip(totals, found, strict=True)]
        by_begin, by_given = dict(zip(moves, v, strict=True)), dict(zip(learns, totals, strict=True))
        grads = [by_begin.get(i) for i in range(size)] + [by_given.get(i) for i in range(len(given))]
        return (None, *grads, *(None for _ in cotangents))


class Values(NamedTuple):
    tensors: Sequence[Tensor]
    chosen: list[int]  # those to differentiate by

    def free(self) -> list[Tensor]:
        return [self.tensors[i] for i in self.chosen]

    def put(self, values: Sequence[Tensor]) -> list[Tensor]:
        put = list(self.tensors)
        for i, value in zip(self.chosen, values, strict=True):
            put[i] = value
        return put


def _pulled(course: Course, i: int, carry: Values, given: Values, v: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The cotangents of a step's carry and of the consts."""

    def after(moving: list[Tensor], learned: list[Tensor]) -> list[Tensor]:
        now, consts = course.carries[i](carry.put(moving)), course.consts(given.put(learned))
        tensors, _ = parted(course.step(now, consts, course.first + i))
        return [tensors[i] for i in carry.chosen]

    _, pull = cast(Any, vjp(after, carry.free(), given.free()))  # typed as if it gave three
    moving, learned = pull(v)
    return moving, learned
