"""What the tests of forward-only algorithms share: tasks one by one, and both engines against a computation by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metarun.engine.loop import Loop
from metarun.models.functional import FunctionalNet
from metarun.types import BUFFERS, Episode, Meta, Params
from support.engines import vmap_engine
from support.small import SEED, distance, episodes, grown, network

Computed = tuple[Tensor, Tensor, Params]  # outputs for the queries, loss, buffers after
ByHand = Callable[[FunctionalNet, Meta, Episode, bool], Computed]


def one_task(name: str, number: int = 0) -> Episode:
    task: Episode = tree_map(lambda stack: stack[number], episodes(name))
    return task


def prepared(algo: Any, name: str) -> tuple[FunctionalNet, Meta]:
    net, weights = network(name)
    return net, grown(algo.init(net, weights, SEED))


def dense(params: Params, x: Tensor) -> Tensor:
    last = len(params) // 2 - 1
    for i in range(last + 1):
        x = x @ params[f"{i}.weight"].T + params[f"{i}.bias"]
        x = x.clamp(min=0) if i < last else x
    return x


def remembered(meta: Meta, number: int, training: bool) -> Params:
    """In training a pass goes by its own statistics."""
    return {} if training else {n: rows[min(number, len(rows) - 1)] for n, rows in meta.get(BUFFERS, {}).items()}


def agree(algo: Any, name: str, by_hand: ByHand) -> None:
    """Meta-gradient by torch.autograd, loss, buffers and scores."""
    net, meta = prepared(algo, name)
    stack = episodes(name)
    tasks = [one_task(name, i) for i in range(len(stack.index))]
    leaves = {e: {n: v.clone().requires_grad_() for n, v in g.items()} for e, g in meta.items() if e != BUFFERS}
    computed = [by_hand(net, {**leaves, BUFFERS: meta.get(BUFFERS, {})}, task, True) for task in tasks]
    loss = torch.stack([each[1] for each in computed]).mean()
    flat = [leaf for group in leaves.values() for leaf in group.values()]
    gradients = iter(torch.autograd.grad(loss, flat))
    expected = {e: {n: next(gradients) for n in g} for e, g in leaves.items()}
    buffers = {n: torch.stack([each[2][n] for each in computed]).mean(0) for n in computed[0][2]}
    scores = torch.stack([by_hand(net, meta, task, False)[0] for task in tasks])
    for engine in (vmap_engine(None).build(algo, net), Loop().build(algo, net)):
        found, aux = engine.meta_grad(meta, stack, 0)
        assert distance(found, expected) < 1e-10
        assert all(distance(found[e], expected[e]) < 1e-10 for e in expected)
        assert abs(aux.metrics["loss"] - loss) < 1e-12
        assert aux.buffers.keys() == buffers.keys()
        assert distance(aux.buffers, buffers) < 1e-12
        assert torch.allclose(engine.scores(meta, stack), scores, rtol=1e-10, atol=1e-12)
