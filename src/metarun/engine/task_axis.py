"""Values stacked along the tasks: slices, sums and means."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from metarun.types import BUFFERS, Episode, Meta

Tree = TypeVar("Tree")


def num_tasks(episode: Episode) -> int:
    return len(episode.index)


def chunks(episode: Episode, size: int) -> Iterator[Episode]:
    for first in range(0, num_tasks(episode), size):
        yield _each(lambda stack, a=first: stack[a : a + size], episode)


def tasks(episode: Episode) -> Iterator[Episode]:
    for i in range(num_tasks(episode)):
        yield _each(lambda stack, i=i: stack[i], episode)


def learned(meta: Meta) -> Meta:
    return {name: params for name, params in meta.items() if name != BUFFERS}


def kept(meta: Meta) -> Meta:
    return {name: params for name, params in meta.items() if name == BUFFERS}


def total(sums: Tree | None, addend: Tree) -> Tree:
    return addend if sums is None else _each(torch.add, sums, addend)


def total_over_tasks(stack: Tree) -> Tree:
    return _each(lambda value_T: value_T.sum(dim=0), stack)


def mean(sums: Tree, count: int) -> Tree:
    return _each(lambda value: value / count, sums)


def _each(function: Callable[..., Tensor], tree: Tree, *others: Tree) -> Tree:
    mapped: Tree = tree_map(function, tree, *others)
    return mapped


def slopes(function: Callable[[Meta], tuple[Tensor, Tree]], at: Meta) -> tuple[Meta, Tree]:
    """The gradient of function's first value. torch.func.grad would record it for another derivative, and keep all."""
    params = leaves(at)
    with torch.enable_grad():
        loss, rest = function(params)
    flat, spec = tree_flatten(params)
    found = torch.autograd.grad(loss, flat, materialize_grads=True)
    return tree_unflatten(list(found), spec), rest


def leaves(meta: Meta) -> Meta:
    return _each(lambda value: value.detach().requires_grad_(), meta)
