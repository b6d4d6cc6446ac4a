"""An inner loop inside compiled code: one step and its derivative are compiled once, and run once for each step.

For the code around it the loop is one opaque operation, so compile time does not grow with the number of steps. Between
the forward and the backward pass the loop keeps its carries; the backward pass computes anew whatever else it needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Protocol

import torch
from torch import Tensor, library
from torch._library.custom_ops import CustomOpDef  # torch.library uses it, and does not export it
from torch.func import vmap

from metarun.engine.autograd_context import AutogradContext
from metarun.engine.trees import split_tensors
from metarun.engine.unroll.step_graphs import FlatStep, GraphCompiler, TracedStep, float_indices, trace_step
from metarun.types import Carry, Consts, StepFn, Unroll

MAX_UNROLLED_STEPS = 5  # unrolled code is a third faster than rolled code, and takes twice as long to compile

_loops: list[RolledLoop] = []  # compiled code knows a loop by its place here
_recordings: list[list[RolledLoop]] = []


@contextmanager
def recorded_loops() -> Iterator[list[RolledLoop]]:
    """Context manager: loops that are traced inside it are rolled, and appended to the list it gives."""
    loops: list[RolledLoop] = []
    _recordings.append(loops)
    try:
        yield loops
    finally:
        _recordings.pop()


def rolled_when_traced(max_unrolled: int, otherwise: Unroll) -> Unroll:
    """Rolls loops inside `recorded_loops`. `otherwise` executes loops outside it and those of few steps."""

    def unroll(step: StepFn[Carry, Consts], carry: Carry, consts: Consts, num_steps: int, /) -> Carry:
        if not _recordings or num_steps <= max_unrolled:
            return otherwise(step, carry, consts, num_steps)
        initial, build_carry = split_tensors(carry)
        const_tensors, build_consts = split_tensors(consts)

        def flat_step(carry: Sequence[Tensor], consts: Sequence[Tensor], k: Tensor) -> list[Tensor]:
            return split_tensors(step(build_carry(carry), build_consts(consts), k))[0]

        try:
            return build_carry(
                RolledFunction.apply(RolledLoop(flat_step, len(initial), num_steps), *initial, *const_tensors)
            )
        except Exception:  # a step that closes over tensors, or that looks at the value of k
            return otherwise(step, carry, consts, num_steps)

    return unroll


class RolledLoop:
    traced: TracedStep

    def __init__(self, step: FlatStep, carry_size: int, num_steps: int) -> None:
        self.step, self.carry_size, self.num_steps = step, carry_size, num_steps
        self.number = -1  # in _loops
        self.differentiated = False
        self._later_carries: list[list[Tensor]] = []  # of the last `run`, until `vjp`

    def over_tasks(self, const_dims: Sequence[int | None]) -> RolledLoop:
        """The same loop for carries stacked along dimension 0, and consts stacked along `const_dims`."""

        def step(carry: Sequence[Tensor], consts: Sequence[Tensor], k: Tensor) -> list[Tensor]:
            in_dims = ([0] * len(carry), list(const_dims), None)
            stepped: list[Tensor] = vmap(self.step, in_dims=in_dims)(list(carry), list(consts), k)
            return stepped

        return RolledLoop(step, self.carry_size, self.num_steps)

    def trace(self, tensors: Sequence[Tensor]) -> None:
        self.traced = trace_step(self.step, self.carry_size, tensors)
        self.number = len(_loops)
        _loops.append(self)
        _recordings[-1].append(self)

    def compile(self, compiler: GraphCompiler) -> None:
        self.traced.forward.compile(compiler)
        if self.differentiated:
            self.traced.backward.compile(compiler)

    def run(self, tensors: list[Tensor]) -> list[Tensor]:
        """(carry, consts) -> the carry after the last step."""
        carry, consts = tensors[: self.carry_size], tensors[self.carry_size :]
        self._later_carries = []
        for k in range(self.num_steps):
            carry = self.traced.forward([*carry, *consts, _step_number(k, carry)])
            self._later_carries.append(carry)
        return _without_aliases(carry, tensors)

    def vjp(self, tensors: list[Tensor], cotangents: list[Tensor]) -> list[Tensor]:
        """The inputs of `run`, and the cotangents of its outputs -> the cotangents of its inputs."""
        count, by_carry, by_consts = len(cotangents), cotangents, list[Tensor]()
        carries, consts = [tensors[: self.carry_size], *self._later_carries[:-1]], tensors[self.carry_size :]
        self._later_carries = []
        for k in reversed(range(self.num_steps)):
            carry = carries.pop()
            found = self.traced.backward([*carry, *consts, _step_number(k, carry), *by_carry])
            by_carry, parts = found[:count], found[count:]
            by_consts = [total + part for total, part in zip(by_consts, parts, strict=True)] if by_consts else parts
        return _without_aliases([*by_carry, *by_consts], cotangents)


def _step_number(k: int, beside: Sequence[Tensor]) -> Tensor:
    return torch.full((), k, device=beside[0].device)


def _without_aliases(outputs: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """Outputs that share memory neither with an input nor with each other, which torch demands of a custom operator."""
    taken = {value.untyped_storage().data_ptr() for value in inputs}
    separate = []
    for value in outputs:
        address = value.untyped_storage().data_ptr()
        separate.append(value.clone() if address in taken else value)
        taken.add(address)
    return separate


class RolledContext(AutogradContext, Protocol):
    loop: RolledLoop


class VmapInfo(Protocol):
    batch_size: int


class RolledFunction(torch.autograd.Function):
    """(carry, consts) -> the carry after the last step"""

    @staticmethod
    def forward(loop: RolledLoop, *tensors: Tensor) -> tuple[Tensor, ...]:
        loop.trace(tensors)
        return tuple(rolled_operations()[0](loop.number, list(tensors)))

    @staticmethod
    def setup_context(
        ctx: RolledContext, inputs: tuple[RolledLoop, *tuple[Tensor, ...]], output: tuple[Tensor, ...]
    ) -> None:
        ctx.loop, *tensors = inputs
        ctx.save_for_backward(*output, *tensors)
        ctx.mark_non_differentiable(*(value for value in output if not value.is_floating_point()))

    @staticmethod
    def backward(ctx: RolledContext, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        loop, saved = ctx.loop, list(ctx.saved_tensors)
        final, tensors = saved[: loop.carry_size], saved[loop.carry_size :]
        found = rolled_operations()[1](loop.number, tensors, final, [cotangents[i] for i in float_indices(final)])
        return None, *(None if place is None else found[place] for place in loop.traced.places)

    @staticmethod
    def vmap(
        info: VmapInfo, in_dims: tuple[int | None, ...], loop: RolledLoop, *tensors: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        _, *dims = in_dims
        stacked = [value if dim is None else value.movedim(dim, 0) for value, dim in zip(tensors, dims, strict=True)]
        for i in range(loop.carry_size):
            if dims[i] is None:
                stacked[i] = stacked[i].expand(info.batch_size, *stacked[i].shape).contiguous()
        over_tasks = loop.over_tasks([None if dim is None else 0 for dim in dims[loop.carry_size :]])
        return RolledFunction.apply(over_tasks, *stacked), (0,) * loop.carry_size


@cache
def rolled_operations() -> tuple[CustomOpDef, CustomOpDef]:
    """The operators that compiled code calls: RolledLoop.run and RolledLoop.vjp, of the loop of a number."""

    @library.custom_op("metarun::rolled_forward", mutates_args=())
    def forward(loop: int, tensors: list[Tensor]) -> list[Tensor]:
        return _loops[loop].run(tensors)

    @library.custom_op("metarun::rolled_backward", mutates_args=())
    def backward(loop: int, tensors: list[Tensor], _final: list[Tensor], cotangents: list[Tensor]) -> list[Tensor]:
        """The forward operator's outputs `_final` fix the order: after it, and before their memory is reused."""
        return _loops[loop].vjp(tensors, cotangents)

    forward.register_fake(lambda loop, tensors: _loops[loop].traced.forward.empty_outputs(tensors[0].device))

    @backward.register_fake
    def _(loop: int, tensors: list[Tensor], _final: list[Tensor], _cotangents: list[Tensor]) -> list[Tensor]:
        _loops[loop].differentiated = True
        return _loops[loop].traced.backward.empty_outputs(tensors[0].device)

    return forward, backward
