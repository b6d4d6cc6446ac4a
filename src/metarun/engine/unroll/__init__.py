"""Ways to execute an inner loop, side by side; all give the same numbers and derivatives.

graph       stored.py   autograd stores the graph of all steps: the fastest, and the most memory
checkpoint  adjoint.py  stores the carry before each step; backwards each step runs once more, one at a time
adjoint     adjoint.py  the same as one autograd function; can itself be rolled into compiled code
(compiled)  rolled.py   inside compiled code, any of them from MAX_UNROLLED_STEPS on: one operation for all steps
"""

from __future__ import annotations

from typing import Literal

from metarun.engine.unroll.adjoint import unroll_adjoint, unroll_checkpoint
from metarun.engine.unroll.rolled import MAX_UNROLLED_STEPS, rolled_when_traced
from metarun.engine.unroll.stored import unroll_graph
from metarun.types import Unroll

UnrollMemory = Literal["graph", "checkpoint", "adjoint"]
UNROLLS: dict[UnrollMemory, Unroll] = {
    "graph": unroll_graph,
    "checkpoint": unroll_checkpoint,
    "adjoint": unroll_adjoint,
}


def unroll_for(memory: UnrollMemory) -> Unroll:
    """The way that `memory` names; in code that is compiled, a loop of more steps than the limit is rolled instead."""
    return rolled_when_traced(MAX_UNROLLED_STEPS if memory == "graph" else 1, otherwise=UNROLLS[memory])
