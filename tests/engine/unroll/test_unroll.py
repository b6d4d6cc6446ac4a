"""Stored graph, checkpoints and adjoint: the same derivatives for every inner loop, and the memory that each takes."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap
from torch.utils._pytree import tree_leaves

from metarun.engine.loop import Loop
from metarun.engine.task_axis import learned_only
from metarun.engine.unroll import UnrollMemory
from metarun.engine.unroll.adjoint import unroll_adjoint, unroll_checkpoint
from metarun.engine.unroll.stored import unroll_graph
from metarun.types import BUFFERS, Kind, StepIndex, Unroll
from support.contract import CASES, first, prepared
from support.engines import vmap_engine
from support.live import Live
from support.small import ALGOS, GRADIENT, SEED, distance, episodes, grown, maml, network

EXACT = 1e-12
RECOMPUTED = {"checkpoint": unroll_checkpoint, "adjoint": unroll_adjoint}
VARIANTS = [(algo, bn) for algo in ALGOS for bn in ("batch", "running", "support")]
VARIANTS += [(algo, "per_step") for algo in GRADIENT]


@pytest.mark.parametrize("memory", RECOMPUTED)
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_every_algorithm_has_the_gradient_of_the_stored_graph(name: str, kind: Kind, memory: UnrollMemory) -> None:
    algo, net, fresh, episode = prepared(name, kind)
    meta = grown(fresh)
    ours, stored = (vmap_engine(2, how, "off").build(algo, net) for how in (memory, "graph"))
    (found, found_aux), (expected, aux) = (engine.meta_grad(meta, episode, 1) for engine in (ours, stored))
    assert distance(found, expected) < EXACT
    assert distance(found_aux.metrics, aux.metrics) < EXACT
    assert distance(found_aux.buffers, aux.buffers) < EXACT
    assert distance(ours.scores(meta, episode), stored.scores(meta, episode)) < EXACT
    assert not any(value.requires_grad for value in tree_leaves((found, found_aux)))


@pytest.mark.parametrize("unroll", RECOMPUTED.values(), ids=RECOMPUTED)
@pytest.mark.parametrize(("which", "bn"), VARIANTS)
def test_under_plain_autograd_too(which: str, bn: str, unroll: Unroll) -> None:
    algo = ALGOS[which](bn)
    net, weights = network("conv4-strided")
    meta, task = grown(algo.init(net, weights, SEED)), first(episodes("conv4-strided", tasks=1))
    leaves = {e: {n: v.clone().requires_grad_() for n, v in g.items()} for e, g in learned_only(meta).items()}
    buffers = {BUFFERS: meta[BUFFERS]} if BUFFERS in meta else {}
    loss, aux = algo.meta_loss(net, {**leaves, **buffers}, task, torch.tensor(0), unroll)
    flat = [value for group in leaves.values() for value in group.values()]
    found = iter(torch.autograd.grad(loss, flat, materialize_grads=True))
    expected, expected_aux = Loop().build(algo, net).meta_grad(meta, episodes("conv4-strided", tasks=1), 0)
    assert distance({e: {n: next(found) for n in g} for e, g in leaves.items()}, expected) < EXACT
    assert distance(aux.buffers, expected_aux.buffers) < EXACT


@pytest.mark.parametrize("unroll", RECOMPUTED.values(), ids=RECOMPUTED)
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_kinds_of_carry_and_consts(unroll: Unroll, steps: int) -> None:
    """Carry: tensors, integer tensors, numbers, None. Consts: rates by k, a mask, a word. Under vmap of grad."""

    def step(carry: Any, consts: Any, k: StepIndex) -> Any:
        w, (count, word), nothing = carry
        (rates, mask), name = consts
        assert isinstance(k, int)
        assert (word, name, nothing) == (3, "name", None)
        slope = grad(lambda w: (w.sin() * w).sum())(w)
        return w - rates[k] * torch.where(mask, slope, 0), (count + 1, word), nothing

    def loss(way: Unroll, w: Tensor, rates: Tensor) -> Tensor:
        consts = ((rates, torch.tensor([True, False, True])), "name")
        (end, (count, _), _) = way(step, (w, (torch.tensor(0), 3), None), consts, steps)
        value: Tensor = (end.square() * count).sum() + end.sum()
        return value

    w, rates = torch.randn(4, 3).double(), torch.rand(max(steps, 1), 3).double()
    ours, stored = (
        vmap(grad(partial(loss, way), argnums=(0, 1)), (0, None))(w, rates) for way in (unroll, unroll_graph)
    )
    for a, b in zip(tree_leaves(ours), tree_leaves(stored), strict=True):
        assert torch.allclose(a, b, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("unroll", RECOMPUTED.values(), ids=RECOMPUTED)
def test_a_second_derivative_through_the_loop(unroll: Unroll) -> None:
    def loss(way: Unroll, w: Tensor, rates: Tensor) -> Tensor:
        end: Tensor = way(lambda w, rates, k: w - rates[k] * w.sin(), w, rates, 3)
        return end.square().sum()

    w, rates = torch.randn(4, 3).double(), torch.rand(3).double()
    ours, stored = (
        vmap(jacrev(grad(partial(loss, way), argnums=0), argnums=(0, 1)), (0, None))(w, rates)
        for way in (unroll, unroll_graph)
    )
    for a, b in zip(ours, stored, strict=True):
        assert torch.allclose(a, b, rtol=1e-13, atol=1e-14)


def test_a_carry_must_keep_its_form() -> None:
    def grows(carry: Any, _consts: tuple[()], _k: StepIndex) -> Any:
        return carry, carry

    with pytest.raises(AssertionError, match="a step turned a carry of 1 tensors into one of 2"):
        unroll_adjoint(grows, torch.ones(2), (), 1)


def test_memory_grows_by_one_carry_a_step() -> None:
    """Bytes alive at the peak, above those of one step. The stored graph keeps the activations of each step."""
    net, weights = network("conv4-pooled")
    episode = episodes("conv4-pooled", tasks=2)

    def peak(memory: UnrollMemory, steps: int) -> int:
        algo = maml("batch", steps=steps, test_steps=1)
        engine, meta = vmap_engine(None, memory, "off").build(algo, net), algo.init(net, weights, SEED)
        live = Live()
        with live:
            engine.meta_grad(meta, episode, 0)
        return live.peak

    carried = 2 * sum(value.nbytes for value in weights.values())  # of two tasks
    graph, adjoint, checkpoint = ((peak(m, 16) - peak(m, 1)) / 15 for m in ("graph", "adjoint", "checkpoint"))
    assert adjoint < 2.5 * carried
    assert checkpoint < 2.5 * carried
    assert graph > 10 * adjoint


def test_an_unknown_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="memory=none: choose one of graph, checkpoint, adjoint"):
        vmap_engine(None, "none", "off")  # type: ignore[arg-type]
