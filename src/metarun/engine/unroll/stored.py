"""An inner loop whose whole graph is stored by autograd."""

from __future__ import annotations

from metarun.types import Carry, Consts, StepFn


def unroll_graph(step: StepFn[Carry, Consts], carry: Carry, consts: Consts, num_steps: int, /) -> Carry:
    for k in range(num_steps):
        carry = step(carry, consts, k)
    return carry
