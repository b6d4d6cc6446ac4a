"""An inner loop inside what is compiled: one step and its derivative, compiled once, run as often as there are steps.

To the code around it the loop is an operation of unknown content, so compiling takes as long for fifty steps as for
six. Between the two passes the loop keeps its carries; what else a step's derivative wants is computed anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, library
from torch.func import vmap

from metarun.engine.unroll.adjoint import parted
from metarun.engine.unroll.step_graphs import Compiler, Half, Step, halved, moving
from metarun.types import Carry, Consts, StepFn, Unroll

UNROLLED = 5  # steps; code that knows them all is a third faster, and takes twice as long to make

_loops: list[Loop] = []  # by the numbers that compiled code knows them by
_recording: list[list[Loop]] = []


@contextmanager
def recorded() -> Iterator[list[Loop]]:
    """The loops that were met while it lasted."""
    found: list[Loop] = []
    _recording.append(found)
    try:
        yield found
    finally:
        _recording.pop()


def rolled(most: int, otherwise: Unroll) -> Unroll:
    """`otherwise`: of `most` steps or fewer, and where nothing is recorded."""

    def unroll(step: StepFn[Carry, Consts], carry: Carry, consts: Consts, num_steps: int, /) -> Carry:
        if not _recording or num_steps <= most:
            return otherwise(step, carry, consts, num_steps)
        begin, build = parted(carry)
        given, build_consts = parted(consts)

        def flat(carry: Sequence[Tensor], consts: Sequence[Tensor], k: Tensor) -> list[Tensor]:
            return parted(step(build(carry), build_consts(consts), k))[0]

        try:
            after: Carry = build(Rolled.apply(Loop(flat, len(begin), num_steps), *begin, *given))
        except Exception:  # a step that closes over tensors, or that looks at its number
            return otherwise(step, carry, consts, num_steps)
        return after

    return unroll


class Loop:
    ahead: Half
    back: Half
    places: list[int | None]

    def __init__(self, step: Step, size: int, num_steps: int) -> None:
        """`size`: tensors of a carry."""
        self.step, self.size, self.num_steps = step, size, num_steps
        self.number = -1
        self._later: list[list[Tensor]] = []  # carries
        self.differentiated = False

    def over_tasks(self, dims: Sequence[int | None]) -> Loop:
        """Of carries stacked along their first dimension, and consts along `dims`."""

        def step(carry: Sequence[Tensor], consts: Sequence[Tensor], k: Tensor) -> list[Tensor]:
            along = ([0] * len(carry), list(dims), None)
            found: list[Tensor] = vmap(self.step, in_dims=along)(list(carry), list(consts), k)
            return found

        return Loop(step, self.size, self.num_steps)

    def trace(self, tensors: Sequence[Tensor]) -> None:
        self.ahead, self.back, self.places = halved(self.step, self.size, tensors)
        self.number = len(_loops)
        _loops.append(self)
        _recording[-1].append(self)

    def compile(self, compiler: Compiler) -> None:
        self.ahead.compile(compiler)
        if self.differentiated:
            self.back.compile(compiler)

    def run(self, tensors: list[Tensor]) -> list[Tensor]:
        """(carry, consts) -> the carry after the last step."""
        carry, consts = tensors[: self.size], tensors[self.size :]
        self._later = []
        for k in range(self.num_steps):
            carry = self.ahead([*carry, *consts, _number(k, carry)])
            self._later.append(carry)
        return _apart(carry, tensors)

    def pulled(self, tensors: list[Tensor], cotangents: list[Tensor]) -> list[Tensor]:
        """What `run` was given, and cotangents of what it gave -> those of what it was given."""
        count, given, totals = len(cotangents), cotangents, list[Tensor]()
        carries, consts = [tensors[: self.size], *self._later[:-1]], tensors[self.size :]
        self._later = []
        for k in reversed(range(self.num_steps)):
            carry = carries.pop()
            found = self.back([*carry, *consts, _number(k, carry), *cotangents])
            cotangents, parts = found[:count], found[count:]
            totals = [total + part for total, part in zip(totals, parts, strict=True)] if totals else parts
        return _apart([*cotangents, *totals], given)


def _number(k: int, beside: Sequence[Tensor]) -> Tensor:
    return torch.full((), k, device=beside[0].device)


def _apart(values: list[Tensor], others: list[Tensor]) -> list[Tensor]:
    """In memory of their own, as torch wants it of what an operation gives."""
    taken = {value.untyped_storage().data_ptr() for value in others}
    found = []
    for value in values:
        place = value.untyped_storage().data_ptr()
        found.append(value.clone() if place in taken else value)
        taken.add(place)
    return found


class Rolled(torch.autograd.Function):
    """(carry, consts) -> the carry after the last step"""

    @staticmethod
    def forward(loop: Loop, *tensors: Tensor) -> Any:
        loop.trace(tensors)
        return tuple(operations()[0](loop.number, list(tensors)))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.loop, *tensors = inputs
        ctx.save_for_backward(*output, *tensors)
        ctx.mark_non_differentiable(*(value for value in output if not value.is_floating_point()))

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        loop, kept = ctx.loop, list(ctx.saved_tensors)
        ends, tensors = kept[: loop.size], kept[loop.size :]
        found = operations()[1](loop.number, tensors, ends, [cotangents[i] for i in moving(ends)])
        return None, *(None if place is None else found[place] for place in loop.places)

    @staticmethod
    def vmap(info: Any, in_dims: Any, loop: Loop, *tensors: Tensor) -> Any:
        _, *dims = in_dims
        stacked = [value if dim is None else value.movedim(dim, 0) for value, dim in zip(tensors, dims, strict=True)]
        for i in range(loop.size):
            if dims[i] is None:
                stacked[i] = stacked[i].expand(info.batch_size, *stacked[i].shape).contiguous()
        wide = loop.over_tasks([None if dim is None else 0 for dim in dims[loop.size :]])
        return Rolled.apply(wide, *stacked), (0,) * loop.size


@cache
def operations() -> tuple[Any, Any]:
    """What compiled code calls: Loop.run and Loop.pulled, by number."""

    @library.custom_op("metarun::ahead", mutates_args=())
    def ahead(loop: int, tensors: list[Tensor]) -> list[Tensor]:
        return _loops[loop].run(tensors)

    @library.custom_op("metarun::back", mutates_args=())
    def back(loop: int, tensors: list[Tensor], _ends: list[Tensor], cotangents: list[Tensor]) -> list[Tensor]:
        """After what gave the ends, and before anything is written in their place."""
        return _loops[loop].pulled(tensors, cotangents)

    ahead.register_fake(lambda loop, tensors: _loops[loop].ahead.empty(tensors[0].device))

    @back.register_fake
    def _(loop: int, tensors: list[Tensor], _ends: list[Tensor], _cotangents: list[Tensor]) -> list[Tensor]:
        _loops[loop].differentiated = True
        return _loops[loop].back.empty(tensors[0].device)

    return ahead, back
