"""Meta-Weight-Net: equal weights are MAML, and two steps written out by hand, Theta's gradient with them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from metarun.algos.metaweightnet import MetaWeightNet
from metarun.engine.unroll.stored import unroll_graph
from metarun.types import Batch, Episode, Meta, Params
from support import oracle
from support.engines import vmap_engine
from support.small import MODELS, SEED, descent, distance, episodes, flat, maml, network

NET = "conv4-strided"
RATE = 0.3


def method(bn: str = "batch", **changes: Any) -> MetaWeightNet:
    return MetaWeightNet(**descent(bn, inner_lr=RATE, **changes), hidden=4)


def forward(weights: Params, x: Tensor) -> Tensor:
    found = MODELS[NET].forward
    assert found is not None
    return found(weights, x, None)[0]


def prepared(**changes: Any) -> tuple[MetaWeightNet, Any, Meta, Episode, Episode]:
    """A stack of one task with a wrong label, and the task."""
    net, weights = network(NET)
    algo, stack = method(**changes), episodes(NET, tasks=1)
    stack = stack._replace(support=stack.support._replace(y=torch.tensor([[0, 2, 1, 1, 2, 2]])))
    task = Episode(Batch(*(t[0] for t in stack.support)), Batch(*(t[0] for t in stack.query)), stack.index[0])
    return algo, net, algo.init(net, weights, SEED), stack, task


def per_item(out: Tensor, y: Tensor) -> Tensor:
    return torch.stack([out[i].exp().sum().log() - out[i, label] for i, label in enumerate(y.tolist())])


def weights_of(theta: Params, losses: Tensor) -> Tensor:
    hidden = (losses[:, None] * theta["0.weight"][:, 0] + theta["0.bias"]).clamp(min=0)
    v = 1 / (1 + torch.exp(-(hidden @ theta["1.weight"][0] + theta["1.bias"])))
    return v / v.sum()


@pytest.mark.parametrize("reduction", ["mean", "sum_over_ways"])
def test_two_steps_by_hand(reduction: str) -> None:
    algo, net, meta, stack, task = prepared(loss_reduction=reduction)
    leaves = {e: {n: v.clone().requires_grad_() for n, v in group.items()} for e, group in meta.items()}
    w, theta = leaves["weights"], leaves["weighting"]
    factor = 3 if reduction == "sum_over_ways" else 1
    for _ in range(2):
        losses = factor * per_item(forward(w, task.support.x), task.support.y)
        # The weights stand as constants in the inner gradient, and have one of their own in the outer.
        moves = torch.autograd.grad(losses, list(w.values()), weights_of(theta, losses), create_graph=True)
        w = {name: value - RATE * move for (name, value), move in zip(w.items(), moves, strict=True)}
    outer = oracle.objective(forward(w, task.query.x), task.query.y)
    gradients = iter(torch.autograd.grad(outer, [v for group in leaves.values() for v in group.values()]))
    expected = {entry: {name: next(gradients) for name in group} for entry, group in leaves.items()}
    found, aux = vmap_engine(None).build(algo, net).meta_grad(meta, stack, 0)
    assert torch.allclose(aux.metrics["loss"], outer, rtol=1e-12)
    assert distance(found["weights"], expected["weights"]) < 1e-10
    assert distance(found["weighting"], expected["weighting"]) < 1e-10
    assert flat(expected["weighting"]).norm() > 1e-6


@pytest.mark.parametrize("bn", ["batch", "support", "running"])
def test_equal_weights_are_maml(bn: str) -> None:
    algo, net, meta, stack, _ = prepared(bn=bn)
    last = {name: torch.zeros_like(v) if name.startswith("1.") else v for name, v in meta["weighting"].items()}
    plain = maml(bn, inner_lr=RATE)
    alone = {entry: group for entry, group in meta.items() if entry != "weighting"}
    found, found_aux = vmap_engine(None).build(algo, net).meta_grad({**meta, "weighting": last}, stack, 0)
    expected, aux = vmap_engine(None).build(plain, net).meta_grad(alone, stack, 0)
    assert distance(found["weights"], expected["weights"]) < 1e-12
    assert distance(found_aux.buffers, aux.buffers) < 1e-12
    a = vmap_engine(None).build(algo, net).scores({**meta, "weighting": last}, stack)
    assert distance(a, vmap_engine(None).build(plain, net).scores(alone, stack)) < 1e-12


def test_an_item_that_weighs_nothing_is_not_there() -> None:
    """With a body that does not see its neighbours: a steep net drops the one item whose loss is the highest."""
    algo, _, meta, _, _ = prepared()
    out = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).double()
    y = torch.tensor([0, 1, 2, 0, 1])
    losses = per_item(out, y)
    first, second = losses.sort(descending=True).values[:2].tolist()
    middle = (first + second) / 2
    steep = {  # v = sigmoid(20 - 1e5 relu(loss - middle))
        "0.weight": torch.tensor([[1.0]]).double(),
        "0.bias": torch.tensor([-middle]).double(),
        "1.weight": torch.tensor([[-1e5]]).double(),
        "1.bias": torch.tensor([20.0]).double(),
    }
    kept = losses < middle
    assert kept.sum() == 4
    assert torch.allclose(algo.item_weights({**meta, "weighting": steep}, losses), kept.double() / 4, rtol=1e-12)


def test_at_first_equal_losses_weigh_the_same() -> None:
    """Under a zero head the first step is MAML's, whatever the weighting net."""
    algo, net, meta, _, task = prepared(steps=2, test_steps=1)
    zero = {n: torch.zeros_like(v) if n.startswith("head.") else v for n, v in meta["weights"].items()}
    plain = maml("batch", inner_lr=RATE, test_steps=1)
    a = algo.adapted(net, {**meta, "weights": zero}, task.support, unroll_graph).weights
    b = plain.adapted(net, {"weights": zero}, task.support, unroll_graph).weights
    assert distance(a, b) < 1e-12


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"derivatives": "first"}, "derivatives=first: the weighting net learns through the inner gradient alone"),
        ({"steps": 1}, "steps=1: a new net's losses are all equal"),
        ({"inner_lr": -1.0}, "inner_lr=-1.0: must be above 0"),
    ],
)
def test_bad_fields(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{reason}"):
        MetaWeightNet(**{**descent("batch"), **changes}, hidden=4)


def test_the_weighting_net_has_a_hidden_layer() -> None:
    with pytest.raises(ValueError, match=r"^hidden=0: need at least 1"):
        MetaWeightNet(**descent("batch"), hidden=0)
