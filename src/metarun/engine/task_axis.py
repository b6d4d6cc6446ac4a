"""Values of T tasks: slices along the task axis, sums and means over it, and the gradient of a loss by Meta."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from metarun.engine.trees import TensorTree, map_tensors
from metarun.types import BUFFERS, Episode, Meta


def num_tasks(episode: Episode) -> int:
    return len(episode.index)


def chunks(episode: Episode, size: int) -> Iterator[Episode]:
    """Episodes of `size` tasks each; the last one may have fewer."""
    for first in range(0, num_tasks(episode), size):
        yield map_tensors(lambda stack, a=first: stack[a : a + size], episode)


def tasks(episode: Episode) -> Iterator[Episode]:
    """One task after another, without the task axis."""
    for i in range(num_tasks(episode)):
        yield map_tensors(lambda stack, i=i: stack[i], episode)


def learned_only(meta: Meta) -> Meta:
    return {group: params for group, params in meta.items() if group != BUFFERS}


def buffers_only(meta: Meta) -> Meta:
    return {group: params for group, params in meta.items() if group == BUFFERS}


def accumulate(sums: TensorTree | None, addend: TensorTree) -> TensorTree:
    """sums + addend; None stands for a sum of nothing."""
    return addend if sums is None else map_tensors(torch.add, sums, addend)


def sum_over_tasks(stack: TensorTree) -> TensorTree:
    return map_tensors(lambda value_T: value_T.sum(dim=0), stack)


def divide_by_count(sums: TensorTree, count: int) -> TensorTree:
    return map_tensors(lambda value: value / count, sums)


def loss_gradient(function: Callable[[Meta], tuple[Tensor, TensorTree]], learned: Meta) -> tuple[Meta, TensorTree]:
    """The gradient of the loss, which is the first value of `function`, and the second value.

    Plain autograd: torch.func.grad would record the gradient for a further derivative, and keep the whole graph.
    """
    leaves: Meta = map_tensors(lambda value: value.detach().requires_grad_(), learned)
    with torch.enable_grad():
        loss, rest = function(leaves)
    flat, spec = tree_flatten(leaves)
    gradients = torch.autograd.grad(loss, flat, materialize_grads=True)
    return tree_unflatten(list(gradients), spec), rest
