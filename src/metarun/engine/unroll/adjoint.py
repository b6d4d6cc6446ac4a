"""An inner loop that stores the carry before each step, and no graph.

The backward pass runs each step once more, from the last to the first, and multiplies its vector-Jacobian product with
the cotangent of the carry. It serves any update rule, under vmap and torch.func.grad too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.func import vjp

from metarun.engine.autograd_context import AutogradContext
from metarun.engine.trees import detached_tree, split_tensors
from metarun.types import Carry, Consts, StepFn


def unroll_adjoint(step: StepFn[Carry, Consts], carry: Carry, consts: Consts, num_steps: int, /) -> Carry:
    """One autograd function for all steps; memory grows by one carry a step."""
    return _run_steps(step, carry, consts, range(num_steps)) if num_steps else carry


def unroll_checkpoint(step: StepFn[Carry, Consts], carry: Carry, consts: Consts, num_steps: int, /) -> Carry:
    """One autograd function for each step, so that what a step stores is freed as soon as it was differentiated."""
    for k in range(num_steps):
        carry = _run_steps(step, carry, consts, range(k, k + 1))
    return carry


class LoopSteps(NamedTuple, Generic[Carry, Consts]):
    """An inner loop without its tensors."""

    step: StepFn[Carry, Consts]
    build_carries: list[Callable[[Sequence[Tensor]], Carry]]  # one for each step
    build_consts: Callable[[Sequence[Tensor]], Consts]
    carry_size: int  # tensors in a carry
    first_step: int


def _run_steps(step: StepFn[Carry, Consts], carry: Carry, consts: Consts, steps: range) -> Carry:
    # The steps run here and not inside AdjointLoop: what they close over belongs to this level of vmap and grad.
    constants, current = detached_tree(consts), detached_tree(carry)
    initial, _ = split_tensors(carry)
    const_tensors, build_consts = split_tensors(consts)
    loop = LoopSteps(step, [], build_consts, len(initial), steps.start)
    carries: list[Tensor] = []
    for k in steps:
        tensors, build = split_tensors(current)
        loop.build_carries.append(build)
        carries += tensors
        current = detached_tree(step(current, constants, k))
    final, build = split_tensors(current)
    assert len(final) == len(initial), f"a step turned a carry of {len(initial)} tensors into one of {len(final)}"
    later = AdjointLoop.apply(loop, *initial, *const_tensors, *carries[len(initial) :], *final)
    return build(later[len(later) - len(final) :])


class AdjointContext(AutogradContext, Protocol):
    loop: LoopSteps[object, object]


class AdjointLoop(torch.autograd.Function):
    """(initial carry, consts, later carries) -> later carries, with the derivatives of the steps that led to them.

    All carries are outputs, and not only the last one, so that the derivative of `backward` itself knows what the
    stored carries depend on.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(loop: LoopSteps[object, object], *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(value.clone() for value in tensors[len(tensors) - loop.carry_size * len(loop.build_carries) :])

    @staticmethod
    def setup_context(
        ctx: AdjointContext, inputs: tuple[LoopSteps[object, object], *tuple[Tensor, ...]], output: tuple[Tensor, ...]
    ) -> None:
        ctx.loop, *tensors = inputs
        ctx.save_for_backward(*tensors[: len(tensors) - len(output)], *output[: len(output) - ctx.loop.carry_size])
        ctx.mark_non_differentiable(*(value for value in output if not value.is_floating_point()))

    @staticmethod
    def backward(ctx: AdjointContext, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        loop, saved = ctx.loop, ctx.saved_tensors
        size, num_steps = loop.carry_size, len(loop.build_carries)
        first_later = len(saved) - size * (num_steps - 1)
        consts, carries = saved[size:first_later], [*saved[:size], *saved[first_later:]]
        float_carry = [i for i in range(size) if carries[i].is_floating_point()]
        learned_consts = [
            i for i, value in enumerate(consts) if ctx.needs_input_grad[1 + size + i] and value.is_floating_point()
        ]
        by_carry = [torch.zeros_like(carries[i]) for i in float_carry]
        by_consts = [torch.zeros_like(consts[i]) for i in learned_consts]
        for k in reversed(range(num_steps)):
            by_carry = [value + cotangents[k * size + i] for i, value in zip(float_carry, by_carry, strict=True)]
            carry = Selection(carries[k * size : (k + 1) * size], float_carry)
            by_carry, parts = _step_vjp(loop, k, carry, Selection(consts, learned_consts), by_carry)
            by_consts = [total + part for total, part in zip(by_consts, parts, strict=True)]
        carry_grads = dict(zip(float_carry, by_carry, strict=True))
        const_grads = dict(zip(learned_consts, by_consts, strict=True))
        grads = [carry_grads.get(i) for i in range(size)] + [const_grads.get(i) for i in range(len(consts))]
        return (None, *grads, *(None for _ in cotangents))


class Selection(NamedTuple):
    """Tensors, and the indices of those to differentiate by."""

    tensors: Sequence[Tensor]
    indices: list[int]

    def selected(self) -> list[Tensor]:
        return [self.tensors[i] for i in self.indices]

    def replaced(self, values: Sequence[Tensor]) -> list[Tensor]:
        """All tensors, with `values` in the places of those selected."""
        tensors = list(self.tensors)
        for i, value in zip(self.indices, values, strict=True):
            tensors[i] = value
        return tensors


def _step_vjp(
    loop: LoopSteps[Carry, Consts], k: int, carry: Selection, consts: Selection, cotangent: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """The cotangents of the carry before step k and of the consts, from that of the carry after it."""

    def step(carry_values: list[Tensor], const_values: list[Tensor]) -> list[Tensor]:
        before = loop.build_carries[k](carry.replaced(carry_values))
        after, _ = split_tensors(
            loop.step(before, loop.build_consts(consts.replaced(const_values)), loop.first_step + k)
        )
        return [after[i] for i in carry.indices]

    pull = vjp(step, carry.selected(), consts.selected())[1]
    by_carry, by_consts = pull(cotangent)
    return by_carry, by_consts
