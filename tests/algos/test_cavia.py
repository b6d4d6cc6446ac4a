"""CAVIA against networks written out by hand that take the context as an input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from metarun.algos.cavia import CAVIA
from metarun.engine.task_axis import tasks
from metarun.engine.unroll.stored import unroll_graph
from metarun.models.functional import BodyAndHead, functional_net
from metarun.types import Episode, Meta, Params
from support import oracle
from support.engines import vmap_engine
from support.small import SEED, SHOTS, WAYS, descent, distance, episodes, network

CONTEXT = 4
NORM, FIRST = "body.blocks.0.norm", "body.layers.0"  # the layers conditioned here
ByHand = Callable[[Params, Params, Tensor, Tensor], Tensor]  # theta, W, phi, x -> outputs


def cavia(condition: str = "film", layer: int = -2, **changes: Any) -> CAVIA:
    fields = descent(changes.pop("bn", "batch"), **{"adapt": ("context",), "inner_lr": 0.7, **changes})
    return CAVIA(**fields, context=CONTEXT, condition=condition, layer=layer)  # type: ignore[arg-type]  # a choice


def conv_with_film(theta: Params, w: Params, phi: Tensor, x: Tensor) -> Tensor:
    for i in range(2):
        at = f"body.blocks.{i}."
        x = nnf.conv2d(x, theta[at + "conv.weight"], stride=2, padding=1)
        x, _, _ = oracle.batch_norm(x, theta[at + "norm.weight"], theta[at + "norm.bias"], None)
        if at + "norm" == NORM:
            gamma, beta = 1 + w[NORM + ".weight"] @ phi, w[NORM + ".bias"] @ phi
            x = gamma[None, :, None, None] * x + beta[None, :, None, None]
        x = x.clamp(min=0)
    return x.mean(3).mean(2) @ theta["head.weight"].T + theta["head.bias"]


def mlp_with_film(theta: Params, w: Params, phi: Tensor, x: Tensor) -> Tensor:
    x = x.flatten(1) @ theta[FIRST + ".weight"].T + theta[FIRST + ".bias"]
    x = (x * (1 + w[FIRST + ".weight"] @ phi) + w[FIRST + ".bias"] @ phi).tanh()
    x = (x @ theta["body.layers.3.weight"].T + theta["body.layers.3.bias"]).tanh()
    return x @ theta["head.weight"].T + theta["head.bias"]


def mlp_with_more_inputs(theta: Params, w: Params, phi: Tensor, x: Tensor) -> Tensor:
    wider = {**theta, FIRST + ".weight": torch.cat([theta[FIRST + ".weight"], w[FIRST + ".bias"]], 1)}
    x = torch.cat([x, phi.expand(len(x), -1)], 1)
    return oracle.mlp(2, False, torch.tanh)(wider, x, None)[0]


CASES = [
    ("conv4-strided", "film", conv_with_film),
    ("mlp-sine", "film", mlp_with_film),
    ("mlp-sine", "concat", mlp_with_more_inputs),
]


def context(by_hand: ByHand, algo: CAVIA, theta: Params, w: Params, task: Episode) -> Tensor:
    """phi after the inner loop, with its graph unless first order."""
    phi = torch.zeros(CONTEXT, dtype=torch.float64, requires_grad=True)
    for _ in range(algo.steps):
        loss = oracle.objective(by_hand(theta, w, phi, task.support.x), task.support.y)
        (gradient,) = torch.autograd.grad(loss, phi, create_graph=True)
        phi = phi - algo.inner_lr * (gradient.detach() if algo.derivatives == "first" else gradient)
    return phi


def leaves(params: Params) -> Params:
    return {name: value.detach().clone().requires_grad_() for name, value in params.items()}


@pytest.mark.parametrize("derivatives", ["first", "second"])
@pytest.mark.parametrize(("name", "condition", "by_hand"), CASES)
def test_meta_gradients_of_the_weights_and_of_the_conditioning(
    name: str, condition: str, by_hand: ByHand, derivatives: str
) -> None:
    net, weights = network(name)
    algo = cavia(condition, derivatives=derivatives)
    meta, stack = algo.init(net, weights, SEED), episodes(name)
    found, aux = vmap_engine(None).build(algo, net).meta_grad(meta, stack, 0)
    theta, w = leaves(weights), leaves(meta["context"])
    losses = []
    for task in tasks(stack):
        phi = context(by_hand, algo, theta, w, task)
        losses.append(oracle.objective(by_hand(theta, w, phi, task.query.x), task.query.y))
    loss = torch.stack(losses).mean()
    of_theta = torch.autograd.grad(loss, list(theta.values()), retain_graph=True)
    of_w = torch.autograd.grad(loss, list(w.values()))
    assert distance(found["weights"], dict(zip(theta, of_theta, strict=True))) < 1e-10
    assert distance(found["context"], dict(zip(w, of_w, strict=True))) < 1e-10
    assert distance(aux.metrics["loss"], loss.detach()) < 1e-12


@pytest.mark.parametrize(("name", "condition", "by_hand"), CASES)
def test_one_layer_is_changed_and_no_other_weight(name: str, condition: str, by_hand: ByHand) -> None:
    net, weights = network(name)
    algo = replace(cavia(condition), test_steps=2)
    meta, task = algo.init(net, weights, SEED), first(episodes(name))
    phi = context(by_hand, algo, weights, meta["context"], task).detach()
    adapted = algo.adapted(net, meta, task.support, unroll_graph)
    layer = NORM if name == "conv4-strided" else FIRST
    beta = meta["context"][f"{layer}.bias"] @ phi
    expected = {**weights, f"{layer}.bias": weights[f"{layer}.bias"] + beta}
    if condition == "film":
        gamma = 1 + meta["context"][f"{layer}.weight"] @ phi
        wide = gamma if name == "conv4-strided" else gamma[:, None]
        expected[f"{layer}.weight"] = wide * weights[f"{layer}.weight"]
        expected[f"{layer}.bias"] = gamma * weights[f"{layer}.bias"] + beta
    changed = {name for name, value in expected.items() if value is not weights[name]}
    assert adapted.weights.keys() == weights.keys()
    assert all(torch.equal(adapted.weights[n], weights[n]) for n in weights.keys() - changed)
    assert all(distance(adapted.weights[n], expected[n]) < 1e-12 for n in changed)
    assert all(distance(adapted.weights[n], weights[n]) > 1e-3 for n in changed)
    out = by_hand(weights, meta["context"], phi, task.query.x)
    assert distance(algo.predict(net, meta, adapted, task.query.x), out) < 1e-12


@pytest.mark.parametrize("condition", ["film", "concat"])
def test_no_context_is_the_network_itself(condition: str) -> None:
    net, weights = network("mlp-sine")
    algo = cavia(condition)
    meta = algo.init(net, weights, SEED)
    moving = algo.fast_weights(meta)
    assert {name: value.tolist() for name, value in moving.items()} == {"context": [0.0] * CONTEXT}
    start = algo.net_weights(meta, moving, 0)
    assert start.keys() == weights.keys()
    assert all(torch.equal(start[name], value) for name, value in weights.items())
    assert meta["weights"].keys() == weights.keys()


@pytest.mark.parametrize("bn", ["batch", "per_step"])
def test_norms_of_every_step_are_conditioned_as_the_shared_one(bn: str) -> None:
    """Equal rows compute the same, each takes part, and the shared norm's gradient is the sum of theirs."""
    net, weights = network("conv4-strided")
    shared, rows = (cavia(bn=bn, test_steps=2, bn_weights=which) for which in ("shared", "per_step"))
    metas = [algo.init(net, weights, SEED) for algo in (shared, rows)]
    stack = episodes("conv4-strided")
    engines = [vmap_engine(None).build(algo, net) for algo in (shared, rows)]
    expected, found = (engine.meta_grad(meta, stack, 0)[0] for engine, meta in zip(engines, metas, strict=True))
    assert NORM + ".weight" not in metas[1]["weights"]
    summed = {**found["weights"], **{name: value.sum(0) for name, value in found["norms"].items()}}
    assert distance(summed, expected["weights"]) < 1e-12
    assert distance(found["context"], expected["context"]) < 1e-12
    assert all((value[:, 0] != 0).all() for name, value in found["norms"].items() if NORM in name)
    scores = [engine.scores(meta, stack) for engine, meta in zip(engines, metas, strict=True)]
    assert distance(scores[1], scores[0]) < 1e-12


@pytest.mark.parametrize("bn", ["batch", "support", "running"])
def test_permuted_support_rows(bn: str) -> None:
    net, weights = network("conv4-strided")
    algo = cavia(bn=bn)
    task, meta = first(episodes("conv4-strided")), algo.init(net, weights, SEED)
    order = torch.randperm(WAYS * SHOTS, generator=torch.Generator().manual_seed(0))
    shuffled = type(task.support)(task.support.x[order], task.support.y[order])
    a, b = (
        algo.predict(net, meta, algo.adapted(net, meta, support, unroll_graph), task.query.x)
        for support in (task.support, shuffled)
    )
    assert distance(a, b) < 1e-12


def test_which_layer_and_how_its_conditioning_begins() -> None:
    net, weights = network("conv4-strided")
    names = [f"body.blocks.{i}.norm" for i in (0, 1)]
    for layer, name in ((0, names[0]), (1, names[1]), (-1, names[1]), (-2, names[0])):
        assert entry(cavia(layer=layer).init(net, weights, SEED)).keys() == {f"{name}.weight", f"{name}.bias"}
    sine, sine_weights = network("mlp-sine")
    film = entry(cavia().init(sine, sine_weights, SEED))
    concat = entry(cavia("concat").init(sine, sine_weights, SEED))
    assert concat.keys() == {FIRST + ".bias"}
    for drawn, inputs in ((film, CONTEXT), (concat, CONTEXT + 1)):
        assert {value.shape for value in drawn.values()} == {(6, CONTEXT)}
        largest = max(value.abs().max().item() for value in drawn.values())
        assert 0.8 / inputs**0.5 < largest <= 1 / inputs**0.5
    assert not torch.equal(film[FIRST + ".weight"], film[FIRST + ".bias"])
    assert distance(entry(cavia().init(sine, sine_weights, SEED + 1)), film) > 0.1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"adapt": ("*",)}, r"adapt=\['\*'\]: CAVIA moves its context alone; use \[context\]"),
        ({"context": 0}, "context=0: need at least 1"),
        ({"condition": "add"}, "condition=add: choose one of film, concat"),
        ({"inner_lr": 0.0}, "inner_lr=0.0: must be above 0"),
    ],
)
def test_bad_fields(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{reason}"):
        replace(cavia(), **changes)


def test_layers_that_are_not_there() -> None:
    net, weights = network("conv4-strided")
    there = "counts the body's layers with weight and bias; this model has "
    both = r"2 such layers \(body.blocks.0.norm, body.blocks.1.norm\)"
    for layer in (2, -3):
        with pytest.raises(ValueError, match=f"^layer={layer}: {there}{both}"):
            cavia(layer=layer).init(net, weights, SEED)
    with pytest.raises(ValueError, match=r"^condition=concat: body\.blocks\.0\.norm is no linear layer; use film"):
        cavia("concat").init(net, weights, SEED)
    bare, few = functional_net(BodyAndHead(nn.Flatten(), nn.Linear(3, 2)).double())
    with pytest.raises(ValueError, match=f"^layer=-2: {there}no such layer"):
        cavia().init(bare, few, SEED)


def entry(meta: Meta) -> Params:
    return meta["context"]


def first(stack: Episode) -> Episode:
    return next(iter(tasks(stack)))
