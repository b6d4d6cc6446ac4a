"""How an inner loop is executed: here with its whole graph stored."""

from __future__ import annotations

from typing import Any, Literal

from metarun.types import StepFn

Memory = Literal["graph", "checkpoint", "adjoint"]


def unroll_graph(step: StepFn, carry: Any, consts: Any, num_steps: int) -> Any:
    for k in range(num_steps):
        carry = step(carry, consts, k)
    return carry
