"""Learned optimizers: gates held open are descent; by hand with torch's own LSTM cells; symmetries; quadratics."""

from __future__ import annotations

import math
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from metarun.algos.descent import Descent, InnerGradient
from metarun.algos.l2o import L2O
from metarun.algos.lstm import LSTM
from metarun.algos.pieces.coordinatewise import log_and_sign
from metarun.algos.pieces.dense_lstm import lstm_cell, lstm_init
from metarun.engine.unroll.stored import unroll_graph
from metarun.types import Batch, Episode, Meta, Params
from support import oracle
from support.engines import vmap_engine
from support.small import MODELS, SEED, descent, distance, episodes, network

NET, RATE, HIDDEN, P = "conv4-strided", 0.3, 5, 10.0
SCRIPT = Path(__file__).parents[2] / "scripts" / "tables" / "l2o_quadratics.py"


def ravi(**changes: Any) -> LSTM:
    shared = descent("batch", **{"derivatives": "first", "test_steps": 2, "inner_lr": RATE, **changes})
    return LSTM(**shared, hidden=HIDDEN, p=P, forget_bias=2.0)


def andrychowicz(plain: float = 0.0, **changes: Any) -> L2O:
    shared = descent("batch", **{"derivatives": "first", "test_steps": 2, "inner_lr": 0.1, **changes})
    return L2O(**shared, hidden=HIDDEN, p=P, descent=plain)


def one_task() -> tuple[Episode, Episode]:
    """A stack of one task, and the task."""
    stack = episodes(NET, tasks=1)
    support, query = (Batch(batch.x[0], batch.y[0]) for batch in (stack.support, stack.query))
    return stack, Episode(support, query, stack.index[0])


def loss(weights: Params, batch: Batch) -> Tensor:
    forward = MODELS[NET].forward
    assert forward is not None
    return oracle.objective(forward(weights, batch.x, None)[0], batch.y)


def slope(weights: Params, batch: Batch, names: list[str], constant: bool) -> tuple[Params, Tensor]:
    value = loss(weights, batch)
    found = torch.autograd.grad(value, [weights[name] for name in names], create_graph=True)
    gradient = dict(zip(names, found, strict=True))
    return ({n: g.detach() for n, g in gradient.items()}, value.detach()) if constant else (gradient, value)


def leaves(meta: Meta) -> Meta:
    return {e: {n: v.clone().requires_grad_() for n, v in group.items()} for e, group in meta.items()}


def gradient_of(value: Tensor, meta: Meta) -> Meta:
    named = [(entry, name) for entry, group in meta.items() for name in group]
    found = torch.autograd.grad(value, [meta[e][n] for e, n in named], materialize_grads=True)
    out: Meta = {entry: {} for entry in meta}
    for (entry, name), each in zip(named, found, strict=True):
        out[entry][name] = each
    return out


def two_numbers(x: Tensor) -> Tensor:
    """Andrychowicz 2016, app. A, as it stands there."""
    large = x.abs() >= math.exp(-P)
    size = torch.where(large, torch.where(large, x, 1.0).abs().log() / P, -1.0)
    return torch.stack([size, torch.where(large, x.sign(), math.exp(P) * x)], 1)


def cell(params: Params, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """torch's own LSTM cell, whose second bias is nought."""
    hidden = params["hidden"].shape[1]
    numbers = {"weight_ih": params["input"], "weight_hh": params["hidden"], "bias_ih": params["bias"]}
    module = nn.LSTMCell(x.shape[1], hidden).double()
    out = functional_call(module, {**numbers, "bias_hh": torch.zeros(4 * hidden).double()}, (x, state))
    assert isinstance(out, tuple)
    return out


def blank(count: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(count, HIDDEN).double(), torch.zeros(count, HIDDEN).double()


def ravi_by_hand(meta: Meta, support: Batch, names: list[str], steps: int, constant: bool) -> Params:
    """One weight tensor after the other, each with a memory of its own."""
    weights = dict(meta["weights"])
    memory: dict[str, Any] = {n: (blank(weights[n].numel()), None, None) for n in names}
    for _ in range(steps):
        gradient, value = slope(weights, support, names, constant)
        for name in names:
            c, g = weights[name].reshape(-1), gradient[name].reshape(-1)
            state, i, f = memory[name]
            i, f = (torch.zeros_like(g) if gate is None else gate for gate in (i, f))
            state = cell(meta["lstm"], torch.cat([two_numbers(g), two_numbers(value.repeat(len(g)))], 1), state)
            i, f = (
                torch.sigmoid(
                    torch.cat([state[0], c[:, None], last[:, None]], 1) @ gate["0.weight"][0] + gate["0.bias"]
                )
                for gate, last in ((meta["input_gate"], i), (meta["forget_gate"], f))
            )
            weights[name] = (f * c - i * g).reshape(weights[name].shape)
            memory[name] = state, i, f
    return weights


def andrychowicz_by_hand(
    meta: Meta, support: Batch, names: list[str], steps: int, constant: bool, plain: float
) -> list[Params]:
    """The weights after every step."""
    weights, path = dict(meta["weights"]), []
    memory = {name: (blank(weights[name].numel()), blank(weights[name].numel())) for name in names}
    for _ in range(steps):
        gradient, _ = slope(weights, support, names, constant)
        for name in names:
            one = cell(meta["lstm_1"], two_numbers(gradient[name].reshape(-1)), memory[name][0])
            two = cell(meta["lstm_2"], one[0], memory[name][1])
            out = two[0] @ meta["output"]["0.weight"][0] + meta["output"]["0.bias"]
            weights[name] = weights[name] + 0.1 * out.reshape(weights[name].shape) - plain * gradient[name]
            memory[name] = one, two
        path.append(dict(weights))
    return path


def descended(weights: Params, support: Batch, steps: int) -> Params:
    weights = {name: value.detach().requires_grad_() for name, value in weights.items()}
    for _ in range(steps):
        gradient, _ = slope(weights, support, list(weights), constant=True)
        weights = {n: (w - RATE * gradient[n]).detach().requires_grad_() for n, w in weights.items()}
    return weights


def as_descent(algo: Descent[Any], weights: Params) -> Meta:
    """The learned numbers at which the optimizer is plain descent of rate RATE."""
    meta = algo.init(network(NET)[0], weights, SEED)
    if isinstance(algo, L2O):
        return {**meta, "output": {name: torch.zeros_like(value) for name, value in meta["output"].items()}}
    for gate, bias in (("input_gate", math.log(RATE / (1 - RATE))), ("forget_gate", 50.0)):
        weight = torch.zeros_like(meta[gate]["0.weight"])
        meta[gate] = {"0.weight": weight, "0.bias": torch.tensor([bias], dtype=torch.float64)}
    return meta


@pytest.mark.parametrize("algo", [ravi(steps=3, test_steps=4), andrychowicz(RATE, steps=3, test_steps=4)])
def test_held_open_it_is_gradient_descent(algo: Descent[Any]) -> None:
    net, weights = network(NET)
    stack, task = one_task()
    meta = as_descent(algo, weights)
    found = algo.adapted(net, meta, task.support, unroll_graph).weights
    assert distance(found, descended(weights, task.support, 4)) < 1e-12
    grads, _ = vmap_engine(None).build(algo, net).meta_grad(meta, stack, 0)
    end = descended(weights, task.support, 3)
    ends = torch.autograd.grad(loss(end, task.query), list(end.values()))
    assert distance(grads["weights"], dict(zip(end, ends, strict=True))) < 1e-12  # first-order MAML's


def test_a_new_meta_learner_starts_near_descent() -> None:
    """What the gates see moves them by little: their biases alone decide."""
    net, weights = network(NET)
    _, task = one_task()
    algo = replace(ravi(test_steps=1), forget_bias=50.0)
    found = algo.adapted(net, algo.init(net, weights, SEED), task.support, unroll_graph).weights
    end = descended(weights, task.support, 1)
    moved = {name: end[name].detach() - weights[name] for name in weights}
    assert distance({name: found[name] - weights[name] for name in weights}, moved) < 0.05


@pytest.mark.parametrize(("derivatives", "adapt"), [("first", ("*",)), ("second", ("head.*", "*norm*"))])
def test_lstm_is_what_its_equations_say(derivatives: str, adapt: tuple[str, ...]) -> None:
    net, weights = network(NET)
    stack, task = one_task()
    algo = ravi(steps=3, test_steps=3, derivatives=derivatives, adapt=adapt)
    meta = louder(algo.init(net, weights, SEED))
    held = leaves(meta)
    names = list(algo.fast_weights(meta))
    by_hand = ravi_by_hand(held, task.support, names, 3, derivatives == "first")
    assert distance(algo.adapted(net, meta, task.support, unroll_graph).weights, by_hand) < 1e-12
    expected = gradient_of(loss(by_hand, task.query), held)
    found, _ = vmap_engine(None).build(algo, net).meta_grad(meta, stack, 0)
    for entry, group in expected.items():
        assert distance(found[entry], group) < 1e-10, entry


@pytest.mark.parametrize(
    ("derivatives", "adapt", "along", "outer_loss_on"),
    [("first", ("*",), 10**9, "support"), ("second", ("head.*", "*norm*"), 0, "query")],
)
def test_l2o_is_what_its_equations_say(
    derivatives: str, adapt: tuple[str, ...], along: int, outer_loss_on: str
) -> None:
    """The loss along the way counts every step alike, whichever meta-step it is."""
    net, weights = network(NET)
    stack, task = one_task()
    algo = andrychowicz(
        0.2,
        steps=3,
        test_steps=3,
        derivatives=derivatives,
        adapt=adapt,
        multi_step_loss_until=along,
        outer_loss_on=outer_loss_on,
    )
    meta = louder(algo.init(net, weights, SEED))
    held = leaves(meta)
    path = andrychowicz_by_hand(held, task.support, list(algo.fast_weights(meta)), 3, derivatives == "first", 0.2)
    assert distance(algo.adapted(net, meta, task.support, unroll_graph).weights, path[-1]) < 1e-12
    outer = task.support if outer_loss_on == "support" else task.query
    counted = path if along else path[-1:]
    expected = gradient_of(torch.stack([loss(weights, outer) for weights in counted]).mean(), held)
    found, _ = vmap_engine(None).build(algo, net).meta_grad(meta, stack, 5)
    for entry, group in expected.items():
        assert distance(found[entry], group) < (1e-7 if along else 1e-10), entry  # the shares fall by 5e-9


def louder(meta: Meta) -> Meta:
    """The optimizer's own numbers away from their small beginnings."""
    noise = torch.Generator().manual_seed(9)
    own = {entry: group for entry, group in meta.items() if entry != "weights"}
    moved = {
        e: {n: v + 0.3 * torch.randn(v.shape, generator=noise).double() for n, v in g.items()} for e, g in own.items()
    }
    return {**meta, **moved}


@pytest.mark.parametrize("algo", [ravi(), andrychowicz()])
def test_coordinates_do_not_know_of_each_other(algo: Descent[Any]) -> None:
    """Two updates of shuffled coordinates, split among tensors in another way, are the shuffled updates."""
    meta = louder(algo.init(*network(NET), SEED))
    dice = torch.Generator().manual_seed(8)
    order = torch.randperm(12, generator=dice)
    w, *gradients = torch.randn(3, 12, generator=dice).double()

    def after(shuffle: Tensor, cut: int) -> Tensor:
        def parts(x: Tensor) -> Params:
            return {"a": x[shuffle][:cut], "b": x[shuffle][cut:].reshape(2, -1)}

        moving = parts(w)
        state = algo.init_state(meta, moving)
        for k, g in enumerate(gradients):
            moving, state = algo.update(meta, moving, InnerGradient(parts(g), torch.tensor(0.7).double(), k), state)
        return torch.cat([moving["a"], moving["b"].reshape(-1)])

    found, plain = after(order, 4), after(torch.arange(12), 6)
    assert distance(found, plain[order]) < 1e-14
    assert distance(found, plain) > 1e-2


def test_lstm_cell_is_torchs() -> None:
    dice = torch.Generator().manual_seed(7)
    params = lstm_init(SEED, torch.zeros(1).double(), 3, HIDDEN)
    x, h, c = (torch.randn(4, size, generator=dice).double() for size in (3, HIDDEN, HIDDEN))
    for found, expected in zip(lstm_cell(params, x, (h, c)), cell(params, x, (h, c)), strict=True):
        assert distance(found, expected) < 1e-14


def test_numbers_of_any_size_become_two() -> None:
    edge = math.exp(-P)
    x = torch.tensor([1.0, -1.0, math.exp(5), -math.exp(-5), edge, -edge / 4, 0.0], dtype=torch.float64)
    expected = [[0, 1], [0, -1], [0.5, 1], [-0.5, -1], [-1, 1], [-1, -0.25], [-1, 0]]
    assert distance(log_and_sign(x, P), torch.tensor(expected).double()) < 1e-14


@pytest.mark.parametrize(
    ("algo", "changes", "words"),
    [
        (ravi(), {"inner_lr": 1.0}, "inner_lr=1.0: is where the input gate starts"),
        (andrychowicz(), {"p": 0.0}, "p=0.0: must be above 0"),
        (andrychowicz(), {"descent": -0.1}, "descent=-0.1: must be 0 or above"),
    ],
)
def test_bad_fields_are_refused(algo: Any, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(algo, **changes)


def test_descent_on_quadratics_follows_the_closed_form() -> None:
    """theta_k - theta* = (I - 2 rate/10 W'W)^k (0 - theta*), by the script that learns to do better."""
    script = runpy.run_path(str(SCRIPT))
    functions = script["quadratics"](5, 3)
    w_TRC, y_TR1 = functions.support.x.double(), functions.support.y.double()
    best_TC1 = torch.linalg.solve(w_TRC, y_TR1)
    shrink_TCC = torch.eye(10).double() - 0.2 * 0.1 * w_TRC.mT @ w_TRC
    theta_TC1 = best_TC1 - torch.linalg.matrix_power(shrink_TCC, 7) @ best_TC1
    expected_T = (w_TRC @ theta_TC1 - y_TR1).square().sum((1, 2))
    found_T = script["losses"](script["DESCENT"], script["zero_net"]()[1], functions, 7)
    assert distance(found_T.double(), expected_T) < 1e-4


@pytest.mark.slow
def test_a_learned_optimizer_beats_descent_on_quadratics() -> None:
    """Mean and median at the horizon, each against the rate that is best for it on the very functions of the test."""
    script = runpy.run_path(str(SCRIPT))
    *_, (_, _, meta) = script["trained"](0, 200)
    new, (_, start), horizon = script["quadratics"](3, 300), script["zero_net"](), script["HORIZON"]
    learned = script["losses"](script["LEARNED"], meta, new, horizon)
    plain = [
        script["losses"](replace(script["DESCENT"], inner_lr=rate), start, new, horizon) for rate in script["RATES"]
    ]
    assert learned.mean() < 0.8 * min(f.mean() for f in plain)
    assert learned.median() < 0.8 * min(f.median() for f in plain)
