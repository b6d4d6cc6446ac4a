"""MAML++ switch by switch against two inner steps written out by hand, and the fields all gradient methods share."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from metarun.algos.descent import step_weights
from metarun.algos.maml import MAML
from metarun.config.compose import compose
from metarun.config.schema import check_config
from metarun.engine.unroll.stored import unroll_graph
from metarun.train.outer import OuterStep
from metarun.types import BUFFERS, Batch, Episode, Meta, Params
from support import oracle
from support.engines import vmap_engine
from support.small import MODELS, SEED, distance, episodes, flat, grown, maml, network

NET = "conv4-strided"
RATE = 0.3
NORMS = ("body.blocks.0.norm.weight", "body.blocks.0.norm.bias", "body.blocks.1.norm.weight", "body.blocks.1.norm.bias")
NO_NORMS = ("*conv*", "head.*")


def forward(weights: Params, x: Tensor, stats: Params | None = None) -> tuple[Tensor, Params]:
    found = MODELS[NET].forward
    assert found is not None
    return found(weights, x, stats)


def loss(weights: Params, batch: Batch) -> Tensor:
    return oracle.objective(forward(weights, batch.x)[0], batch.y)


def stepped(weights: Params, moving: list[str], batch: Batch, rates: dict[str, Any], constant: bool = False) -> Params:
    gradients = torch.autograd.grad(loss(weights, batch), [weights[n] for n in moving], create_graph=True)
    taken = [g.detach() if constant else g for g in gradients]
    return {**weights, **{n: weights[n] - rates[n] * g for n, g in zip(moving, taken, strict=True)}}


def leaves(meta: Meta) -> Meta:
    return {e: {n: v.clone().requires_grad_() for n, v in group.items()} for e, group in meta.items() if e != BUFFERS}


def gradient(value: Tensor, of: Meta) -> Meta:
    named = [(entry, name) for entry, group in of.items() for name in group]
    found = torch.autograd.grad(value, [of[e][n] for e, n in named], materialize_grads=True)
    out: Meta = {entry: {} for entry in of}
    for (entry, name), each in zip(named, found, strict=True):
        out[entry][name] = each
    return out


def one() -> tuple[Episode, Episode]:
    """A stack of one task, and the task."""
    stack = episodes(NET, tasks=1)
    support, query = (Batch(batch.x[0], batch.y[0]) for batch in (stack.support, stack.query))
    return stack, Episode(support, query, stack.index[0])


def found(algo: MAML, meta: Meta, step: int) -> Meta:
    return vmap_engine(None).build(algo, network(NET)[0]).meta_grad(meta, one()[0], step)[0]


def constant_rates(names: list[str]) -> dict[str, float]:
    return dict.fromkeys(names, RATE)


@pytest.mark.parametrize("derivatives", ["first", "second"])
@pytest.mark.parametrize(("step", "early"), [(0, 0.5), (4, 0.3), (9, 0.05), (10, 0.0), (99, 0.0)])
def test_the_loss_after_every_step_counts_and_fades(derivatives: str, step: int, early: float) -> None:
    net, weights = network(NET)
    algo = maml("batch", derivatives=derivatives, multi_step_loss_until=10)
    meta = algo.init(net, weights, SEED)
    ours, task = leaves(meta), one()[1]
    names = list(weights)
    first = stepped(ours["weights"], names, task.support, constant_rates(names), derivatives == "first")
    second = stepped(first, names, task.support, constant_rates(names), derivatives == "first")
    total = early * loss(first, task.query) + (1 - early) * loss(second, task.query)
    assert distance(found(algo, meta, step), gradient(total, ours)) < 1e-10
    value, aux = algo.meta_loss(net, meta, task, torch.tensor(step), unroll_graph)
    assert distance(value, total) < 1e-12
    assert distance(aux.metrics["loss"], loss(second, task.query)) < 1e-12


def test_early_losses_do_not_vanish_before_their_time() -> None:
    """0.03 / steps is the floor until the last of the meta-steps."""
    algo = maml("batch", steps=5, test_steps=5, multi_step_loss_until=1000)
    shares = step_weights(algo, torch.tensor(999.0))
    assert torch.allclose(shares, torch.tensor([0, 0.006, 0.006, 0.006, 0.006, 0.976]))
    for step in (0, 500, 1000):
        assert step_weights(algo, torch.tensor(float(step))).sum().item() == pytest.approx(1)


@pytest.mark.parametrize("bn", ["batch", "support"])
def test_early_losses_are_normalised_as_the_last_one(bn: str) -> None:
    net, weights = network(NET)
    algo = maml(bn, multi_step_loss_until=10)
    meta, task = algo.init(net, weights, SEED), one()[1]
    names = list(weights)

    def outer(w: Params) -> Tensor:
        given = forward(w, task.support.x)[1] if bn == "support" else None
        return oracle.objective(forward(w, task.query.x, given)[0], task.query.y)

    ours = leaves(meta)
    first = stepped(ours["weights"], names, task.support, constant_rates(names))
    second = stepped(first, names, task.support, constant_rates(names))
    assert distance(found(algo, meta, 4), gradient(0.3 * outer(first) + 0.7 * outer(second), ours)) < 1e-10


def test_rates_of_each_layer_and_step() -> None:
    net, weights = network(NET)
    algo = maml("batch", rates="per_layer_per_step")
    meta = algo.init(net, weights, SEED)
    assert meta["rates"].keys() == weights.keys()
    assert all(torch.equal(rates, torch.full((2,), RATE, dtype=torch.float64)) for rates in meta["rates"].values())
    dice = torch.Generator().manual_seed(8)
    meta["rates"] = {name: torch.rand(2, generator=dice).double() for name in weights}
    ours, task = leaves(meta), one()[1]
    w = ours["weights"]
    for k in range(2):
        w = stepped(w, list(weights), task.support, {name: rates[k] for name, rates in ours["rates"].items()})
    assert distance(found(algo, meta, 0), gradient(loss(w, task.query), ours)) < 1e-10
    more = replace(algo, test_steps=3).adapted(net, meta, task.support, unroll_graph)
    w = stepped(w, list(weights), task.support, {name: rates[1] for name, rates in meta["rates"].items()})
    assert distance(more.weights, {name: value.detach() for name, value in w.items()}) < 1e-12


def test_equal_rates_of_each_layer_and_step_are_maml_bitwise() -> None:
    net, weights = network(NET)
    learned, fixed = (maml("batch", rates=rates) for rates in ("per_layer_per_step", "fixed"))
    a, b = (found(algo, algo.init(net, weights, SEED), 0)["weights"] for algo in (learned, fixed))
    assert all(torch.equal(a[name], b[name]) for name in weights)


@pytest.mark.parametrize(("step", "derivatives"), [(0, "first"), (6, "first"), (7, "second"), (8, "second")])
def test_the_order_of_derivatives_rises(step: int, derivatives: str) -> None:
    net, weights = network(NET)
    algo, plain = maml("batch", second_order_from=7), maml("batch", derivatives=derivatives)
    meta = algo.init(net, weights, SEED)
    a, b = found(algo, meta, step)["weights"], found(plain, meta, step)["weights"]
    assert all(torch.equal(a[name], b[name]) for name in weights)
    ours, task = leaves(meta), one()[1]
    w = ours["weights"]
    for _ in range(2):
        w = stepped(w, list(weights), task.support, constant_rates(list(weights)), derivatives == "first")
    assert distance(a, gradient(loss(w, task.query), ours)["weights"]) < 1e-10


def rows_of(meta: Meta, k: int) -> Params:
    return {name: rows[k] for name, rows in meta["norms"].items()}


def test_scales_and_shifts_of_each_step() -> None:
    net, weights = network(NET)
    algo = maml("batch", bn_weights="per_step", test_steps=2)
    meta = algo.init(net, weights, SEED)
    assert sorted(meta["norms"]) == sorted(NORMS)
    assert not meta["norms"].keys() & meta["weights"].keys()
    dice = torch.Generator().manual_seed(9)
    meta["norms"] = {n: v + 0.2 * torch.randn(v.shape, generator=dice).double() for n, v in meta["norms"].items()}
    ours, task = leaves(meta), one()[1]
    names = list(meta["weights"])
    w = {**ours["weights"], **rows_of(ours, 0)}
    w = {**stepped(w, names, task.support, constant_rates(names)), **rows_of(ours, 1)}
    w = {**stepped(w, names, task.support, constant_rates(names)), **rows_of(ours, 2)}
    assert distance(found(algo, meta, 0), gradient(loss(w, task.query), ours)) < 1e-10


def test_equal_scales_and_shifts_are_shared_ones_that_do_not_adapt() -> None:
    """Their gradients are the shares of the one gradient."""
    net, weights = network(NET)
    apart = maml("batch", bn_weights="per_step", test_steps=2)
    shared = maml("batch", adapt=NO_NORMS)
    a = found(apart, apart.init(net, weights, SEED), 0)
    b = found(shared, shared.init(net, weights, SEED), 0)["weights"]
    assert distance({**a["weights"], **{n: rows.sum(0) for n, rows in a["norms"].items()}}, b) < 1e-13


def test_statistics_of_each_step_at_test() -> None:
    """Pass k of the support takes row k, the query the last row; scales and shifts likewise."""
    net, weights = network(NET)
    algo = maml("per_step", bn_weights="per_step", test_steps=2)
    meta = grown(algo.init(net, weights, SEED))
    dice = torch.Generator().manual_seed(9)
    meta["norms"] = {n: v + 0.2 * torch.randn(v.shape, generator=dice).double() for n, v in meta["norms"].items()}
    meta[BUFFERS] = {n: v + 0.2 * torch.rand(v.shape, generator=dice).double() for n, v in meta[BUFFERS].items()}
    stack, task = one()
    w = leaves({"weights": meta["weights"]})["weights"]
    for k in range(2):
        whole = {**w, **rows_of(meta, k)}
        stats = {name: rows[k] for name, rows in meta[BUFFERS].items()}
        value = oracle.objective(forward(whole, task.support.x, stats)[0], task.support.y)
        gradients = torch.autograd.grad(value, list(w.values()))
        w = {n: (v - RATE * g).detach().requires_grad_() for (n, v), g in zip(w.items(), gradients, strict=True)}
    last = {name: rows[2] for name, rows in meta[BUFFERS].items()}
    expected = forward({**w, **rows_of(meta, 2)}, task.query.x, last)[0].detach()
    assert distance(vmap_engine(None).build(algo, net).scores(meta, stack)[0], expected) < 1e-12


@pytest.mark.parametrize("multi_step_loss_until", [0, 10])
def test_outer_loss_on_the_support(multi_step_loss_until: int) -> None:
    net, weights = network(NET)
    algo = maml("batch", outer_loss_on="support", multi_step_loss_until=multi_step_loss_until)
    meta = algo.init(net, weights, SEED)
    ours, task = leaves(meta), one()[1]
    names = list(weights)
    first = stepped(ours["weights"], names, task.support, constant_rates(names))
    second = stepped(first, names, task.support, constant_rates(names))
    early = 0.5 if multi_step_loss_until else 0.0
    total = early * loss(first, task.support) + (1 - early) * loss(second, task.support)
    assert distance(found(algo, meta, 0), gradient(total, ours)) < 1e-10
    other = task._replace(query=Batch(task.query.x + 1, task.query.y))
    value, _ = algo.meta_loss(net, meta, other, torch.tensor(0), unroll_graph)
    assert distance(value, total) < 1e-12


def test_boil_leaves_the_head_as_it_is() -> None:
    net, weights = network(NET)
    algo = maml("batch", adapt=("body.*",))
    adapted = algo.adapted(net, algo.init(net, weights, SEED), one()[1].support, unroll_graph).weights
    for name, value in weights.items():
        assert torch.equal(adapted[name], value) == name.startswith("head."), name
    meta = algo.init(net, weights, SEED)
    ours, task = leaves(meta), one()[1]
    body = [name for name in weights if name.startswith("body.")]
    w = ours["weights"]
    for _ in range(2):
        w = stepped(w, body, task.support, constant_rates(body))
    assert distance(found(algo, meta, 0), gradient(loss(w, task.query), ours)) < 1e-10


def test_everything_at_once_has_the_slope_of_its_loss() -> None:
    """All switches on: five-point differences along a random direction, on a net without kinks."""
    net, weights = network("mlp-tanh")
    algo = maml(
        "batch",
        rates="per_layer_per_step",
        multi_step_loss_until=10,
        second_order_from=2,
        bn_weights="per_step",
        test_steps=2,
    )
    meta, stack = algo.init(net, weights, SEED), episodes("mlp-tanh", tasks=1)
    support, query = (Batch(batch.x[0], batch.y[0]) for batch in (stack.support, stack.query))
    task = Episode(support, query, stack.index[0])
    dice = torch.Generator().manual_seed(5)
    way = {e: {n: torch.randn(v.shape, generator=dice).double() for n, v in g.items()} for e, g in meta.items()}

    def value(share: float) -> Tensor:
        moved = {e: {n: v + share * way[e][n] for n, v in g.items()} for e, g in meta.items()}
        return algo.meta_loss(net, moved, task, torch.tensor(3), unroll_graph)[0]

    h = 1e-4
    slope = (8 * (value(h) - value(-h)) - (value(2 * h) - value(-2 * h))) / (12 * h)
    exact = flat(vmap_engine(None).build(algo, net).meta_grad(meta, stack, 3)[0]) @ flat(way)
    assert abs(slope - exact) < 1e-7 * abs(exact)


def test_the_outer_rate_falls_by_a_cosine() -> None:
    composed = compose(["algo=mamlpp", "data=omniglot", "track=local", "train.steps=100"])
    config = check_config(composed.plain, composed.choices)
    rate = OuterStep(config.schedule, config.optim.values["lr"], 100, []).rate
    for step in (0, 25, 50, 100):
        assert rate(step) == pytest.approx(1e-5 + (1e-3 - 1e-5) * (1 + math.cos(math.pi * step / 100)) / 2)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"multi_step_loss_until": -1}, "multi_step_loss_until=-1: counts meta-steps; 0 switches it off"),
        ({"derivatives": "first", "second_order_from": 5}, "second_order_from=5: is for derivatives=second alone"),
        ({"bn_weights": "own"}, "bn_weights=own: choose one of shared, per_step"),
        ({"bn_weights": "per_step", "test_steps": 3}, "test_steps=3: bn_weights=per_step has rows for 2 steps"),
        ({"outer_loss_on": "val_val"}, "outer_loss_on=val_val: choose one of query, support"),
        ({"rates": "learned"}, "rates=learned: choose one of fixed, per_layer_per_step"),
    ],
)
def test_bad_fields(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{reason}"):
        maml("batch", **changes)
