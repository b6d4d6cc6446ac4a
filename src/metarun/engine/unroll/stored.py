"""How an inner loop is executed: here with its whole graph stored."""

from __future__ import annotations

from typing import Literal

from metarun.types import Carry, Consts, StepFn

Memory = Literal["graph", "checkpoint", "adjoint"]


def unroll_graph(step: StepFn[Carry, Consts], carry: Carry, consts: Consts, num_steps: int, /) -> Carry:
    for k in range(num_steps):
        carry = step(carry, consts, k)
    return carry
