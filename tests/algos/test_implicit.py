"""Implicit MAML: closed forms, dense systems, the limit of an unrolled descent, and what its inner steps cost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap

from metarun.algos.imaml import IMAML
from metarun.algos.pieces.conjugate_gradient import conjugate_gradient
from metarun.engine.loop import Loop
from metarun.engine.unroll.stored import unroll_graph
from metarun.models.functional import BodyAndHead, FunctionalNet, functional_net
from metarun.types import BUFFERS, Batch, Episode, Params
from support import oracle
from support.engines import vmap_engine
from support.live import Live
from support.small import MODELS, SEED, SHOTS, WAYS, distance, episodes, maml, network

ENOUGH = 80  # conjugate gradient steps; the exact solution is there in as many as the network has numbers, or before
PLAIN = IMAML(3, 4, 0.1, 2.0, 0.5, ENOUGH, 0.0, "mean", ("*",), "batch")


@pytest.mark.parametrize("damping", [0.0, 1.0])
def test_on_a_quadratic_the_gradient_is_exact(damping: float) -> None:
    """phi* = (H + lambda I)^-1 (lambda theta + c): autograd goes through that without any implicit theorem."""
    net, weights = linear(3, 2)
    dice = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 1, 5, 3, generator=dice).double(), torch.randn(2, 1, 5, 2, generator=dice).double()
    algo = replace(PLAIN, proximal=0.7, inner_lr=0.4, steps=100, cg_steps=8, cg_damping=damping)
    episode = Episode(Batch(x[0], y[0]), Batch(x[1], y[1]), torch.tensor([0]))
    found, aux = vmap_engine(None).build(algo, net).meta_grad(algo.init(net, weights, SEED), episode, 0)

    wide_s, wide_q = (torch.cat([rows[0], torch.ones(5, 1).double()], 1) for rows in x)
    hessian = 2 * wide_s.T @ wide_s / y[0].numel()
    eye = torch.eye(4).double()
    theta = torch.cat([weights["head.weight"], weights["head.bias"][:, None]], 1).T.requires_grad_()
    pulled = algo.proximal * theta + 2 * wide_s.T @ y[0, 0] / y[0].numel()
    phi = torch.linalg.solve(hessian + algo.proximal * eye, pulled)
    loss = (wide_q @ phi - y[1, 0]).square().mean()
    (exact,) = torch.autograd.grad(loss, theta, retain_graph=True)
    if damping:
        (g,) = torch.autograd.grad(loss, phi)
        exact = torch.linalg.solve((1 + damping) * eye + hessian / algo.proximal, g)
    gradient = torch.cat([found["weights"]["head.weight"], found["weights"]["head.bias"][:, None]], 1).T
    assert distance(gradient, exact) < 1e-8
    assert distance(aux.metrics["loss"], loss.detach()) < 1e-8


@pytest.mark.parametrize(
    ("name", "bn", "adapt"),
    [("mlp-sine", "batch", "*"), ("mlp", "batch", "*weight"), ("mlp-batch", "support", "head.*"),
     ("mlp-batch", "running", "*"), ("mlp-tanh", "batch", "body.*")],
)  # fmt: skip
def test_the_dense_system_at_the_adapted_weights(name: str, bn: str, adapt: str) -> None:
    """Hessian and mixed derivatives as matrices, by torch; damped and scaled, after three steps."""
    net, weights = network(name)
    algo = replace(PLAIN, adapt=(adapt,), bn=bn, cg_damping=0.3, loss_reduction="sum_over_ways")  # type: ignore[arg-type]  # a choice
    meta, task = algo.init(net, weights, SEED), one_task(name)
    found, aux = vmap_engine(None).build(algo, net).meta_grad(meta, episodes(name, tasks=1), 0)
    scale = 1 if name == "mlp-sine" else WAYS
    moving = [n for n in weights if n in matched(weights, adapt)]
    fixed = [n for n in weights if n not in moving]
    phi, stats = pulled_descent(name, algo, weights, moving, task, meta.get(BUFFERS, {}))

    at = {n: value.clone().requires_grad_() for n, value in phi.items()}
    query_loss, seen = outer(name, bn, at, task)
    g = dict(zip(at, torch.autograd.grad(query_loss, list(at.values())), strict=True))

    def loss(vector: Tensor) -> Tensor:
        return scale * oracle.objective(forward(name)(parted(vector, phi, moving + fixed), task.x_s, None)[0], task.y_s)

    whole: Tensor = torch.autograd.functional.hessian(loss, joined(phi, moving + fixed))  # type: ignore[no-untyped-call]  # torch leaves it untyped
    size = len(joined(phi, moving))
    h_oo, h_fo = whole[:size, :size], whole[size:, :size]
    v = torch.linalg.solve(1.3 * torch.eye(size).double() + h_oo / algo.proximal, joined(g, moving))
    assert distance(joined(found["weights"], moving), v) < 1e-9
    if fixed:
        mixed = h_fo @ v / algo.proximal
        assert mixed.norm() > 1e-3 * joined(g, fixed).norm()
        assert distance(joined(found["weights"], fixed), joined(g, fixed) - mixed) < 1e-9
    assert distance(aux.metrics["loss"], query_loss.detach()) < 1e-12
    if bn == "running":
        assert distance(aux.buffers, oracle.moved_average(stats, 0, seen, 0.1)) < 1e-12


@pytest.mark.parametrize("adapt", ["*", "head.*", "body.*"])
def test_it_is_the_limit_of_differentiating_through_the_descent(adapt: str) -> None:
    """Which knows of no implicit theorem, and gives the weights that are not adapted theirs as well."""
    name = "mlp-sine"
    net, weights = network(name)
    algo = replace(PLAIN, adapt=(adapt,), steps=120)
    task = one_task(name)
    found, _ = vmap_engine(None).build(algo, net).meta_grad(algo.init(net, weights, SEED), episodes(name, tasks=1), 0)
    theta = {n: value.clone().requires_grad_() for n, value in weights.items()}
    w = dict(theta)
    moving = matched(weights, adapt)
    for _ in range(algo.steps):
        loss = oracle.objective(forward(name)(w, task.x_s, None)[0], task.y_s)
        loss = loss + algo.proximal / 2 * torch.stack([(w[n] - theta[n]).square().sum() for n in moving]).sum()
        gradients = torch.autograd.grad(loss, [w[n] for n in moving], create_graph=True)
        w = {**w, **{n: w[n] - algo.inner_lr * g for n, g in zip(moving, gradients, strict=True)}}
    exact = torch.autograd.grad(outer(name, "batch", w, task)[0], list(theta.values()))
    assert distance(found["weights"], dict(zip(theta, exact, strict=True))) < 1e-8


@pytest.mark.parametrize("bn", ["batch", "support", "running"])
def test_the_pull_at_test_has_its_own_strength(bn: str) -> None:
    name = "mlp-batch"
    net, weights = network(name)
    task = one_task(name)
    for test_proximal in (0.0, 0.5):
        algo = replace(PLAIN, bn=bn, test_proximal=test_proximal)  # type: ignore[arg-type]  # a choice from a list is a str
        meta = algo.init(net, weights, SEED)
        stats = {n: rows[0] for n, rows in meta.get(BUFFERS, {}).items()}
        w, _ = pulled_descent(
            name, algo, weights, list(weights), task, {}, stats or None, (algo.test_steps, test_proximal)
        )
        if bn == "support":
            stats = forward(name)(w, task.x_s, None)[1]
        expected = forward(name)(w, task.x_q, stats or None)[0]
        assert distance(vmap_engine(None).build(algo, net).scores(meta, episodes(name, tasks=1))[0], expected) < 1e-12


def test_permuted_support_rows() -> None:
    net, weights = network("mlp-batch")
    algo = replace(PLAIN, cg_steps=5)
    episode = episodes("mlp-batch")
    order = torch.randperm(WAYS * SHOTS, generator=torch.Generator().manual_seed(0))
    shuffled = episode._replace(support=Batch(episode.support.x[:, order], episode.support.y[:, order]))
    engine, meta = vmap_engine(None).build(algo, net), algo.init(net, weights, SEED)
    assert distance(engine.scores(meta, shuffled), engine.scores(meta, episode)) < 1e-12
    assert distance(engine.meta_grad(meta, shuffled, 0)[0], engine.meta_grad(meta, episode, 0)[0]) < 1e-12


@pytest.mark.parametrize("steps", [7, 40])
def test_conjugate_gradients_end_at_the_solution(steps: int) -> None:
    matrix, b = positive(3, 7, torch.float64)
    found = vmap(lambda a, b: joined(solve(a, b, steps), ["first", "second"]))(matrix, b)
    assert distance(found, torch.linalg.solve(matrix, b)) < 1e-12


def test_early_steps_of_conjugate_gradients_are_best_in_the_krylov_space() -> None:
    """After k steps the error in the norm of A is the least of all combinations of b, Ab, .., A^(k-1) b."""
    matrix, b = (stack[0] for stack in positive(1, 7, torch.float64))
    solution, root = torch.linalg.solve(matrix, b), torch.linalg.cholesky(matrix).T
    for k in (1, 3, 5):
        basis = torch.stack([torch.linalg.matrix_power(matrix, i) @ b for i in range(k)], 1)
        best = basis @ torch.linalg.lstsq(root @ basis, root @ solution).solution
        assert distance(joined(solve(matrix, b, k), ["first", "second"]), best) < 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_solved_system_stays_solved(dtype: torch.dtype) -> None:
    """The identity is solved by one step, nothing by none; b of 1e-30 squares to 0 in float32. The third takes 7."""
    eye, nothing = torch.eye(7, dtype=dtype), torch.zeros(7, dtype=dtype)
    (matrix,), (b,) = positive(1, 7, dtype)
    matrices, sides = torch.stack([eye, eye, matrix, eye]), torch.stack([b, nothing, b, 1e-30 * b])
    found = vmap(lambda a, b: joined(solve(a, b, 60), ["first", "second"]))(matrices, sides)
    assert found.isfinite().all()
    assert torch.equal(found[0], b)
    assert torch.equal(found[1], nothing)
    assert torch.allclose(matrix @ found[2], b, rtol=1e-4, atol=1e-5)
    assert found[3].abs().max() <= 1.1e-30 * b.abs().max()


@pytest.mark.parametrize("engine", [vmap_engine(None), Loop()], ids=["vmap", "loop"])
def test_inner_steps_cost_no_memory(engine: Any) -> None:
    """And MAML's do, by the same measure."""
    net, weights = network("mlp")
    episode = episodes("mlp", tasks=1)

    def peak(algo: Any) -> int:
        built, meta = engine.build(algo, net), algo.init(net, weights, SEED)
        live = Live()
        with live:
            built.meta_grad(meta, episode, 0)
        return live.peak

    implicit = [peak(replace(PLAIN, steps=steps, cg_steps=5)) for steps in (4, 64)]
    explicit = [peak(maml("batch", steps=steps, test_steps=1)) for steps in (4, 64)]
    assert implicit[1] <= 1.02 * implicit[0]
    assert explicit[1] > 8 * explicit[0]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"steps": 0}, "steps=0: need at least 1"),
        ({"cg_steps": 0}, "cg_steps=0: need at least 1"),
        ({"inner_lr": 0.0}, "inner_lr=0.0: must be above 0"),
        ({"proximal": 0.0}, "proximal=0.0: must be above 0"),
        ({"test_proximal": -1.0}, "test_proximal=-1.0: must be 0 or above"),
        ({"cg_damping": float("nan")}, "cg_damping=nan: must be 0 or above"),
        ({"loss_reduction": "sum"}, "loss_reduction=sum: choose one of mean, sum_over_ways"),
        ({"bn": "per_step"}, "bn=per_step: choose one of batch, support, running"),
    ],
)
def test_bad_fields(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{reason}"):
        replace(PLAIN, **fields)


def linear(inputs: int, outputs: int) -> tuple[FunctionalNet, Params]:
    torch.manual_seed(0)
    return functional_net(BodyAndHead(nn.Flatten(), nn.Linear(inputs, outputs)).double())


def positive(count: int, size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    dice = torch.Generator().manual_seed(0)
    root = torch.randn(count, size, size, generator=dice, dtype=dtype)
    return root @ root.mT / size + 0.5 * torch.eye(size, dtype=dtype), torch.randn(count, size, generator=dice).to(
        dtype
    )


def solve(matrix: Tensor, b: Tensor, steps: int) -> Params:
    def system(p: Params) -> Params:
        return cut(matrix @ joined(p, ["first", "second"]))

    return conjugate_gradient(system, cut(b), steps, unroll_graph)


def cut(vector: Tensor) -> Params:
    return {"first": vector[:4].reshape(2, 2), "second": vector[4:]}


def joined(params: Params, names: list[str]) -> Tensor:
    return torch.cat([params[name].flatten() for name in names])


def parted(vector: Tensor, like: Params, names: list[str]) -> Params:
    pieces = torch.split(vector, [like[name].numel() for name in names])
    return {name: piece.reshape(like[name].shape) for name, piece in zip(names, pieces, strict=True)}


def forward(name: str) -> oracle.Forward:
    found = MODELS[name].forward
    assert found is not None
    return found


def matched(weights: Params, adapt: str) -> list[str]:
    start, _, end = adapt.partition("*")
    return [name for name in weights if name.startswith(start) and name.endswith(end)]


def one_task(name: str) -> oracle.Task:
    stack = episodes(name, tasks=1)
    return oracle.Task(stack.support.x[0], stack.support.y[0], stack.query.x[0], stack.query.y[0])


def outer(name: str, bn: str, w: Params, task: oracle.Task) -> tuple[Tensor, Params]:
    stats = forward(name)(w, task.x_s, None)[1] if bn == "support" else None
    out, seen = forward(name)(w, task.x_q, stats)
    return oracle.objective(out, task.y_q), seen


def pulled_descent(
    name: str,
    algo: IMAML,
    theta: Params,
    moving: list[str],
    task: oracle.Task,
    kept: Params,
    stats: Params | None = None,
    how: tuple[int, float] | None = None,
) -> tuple[Params, Params]:
    steps, proximal = how or (algo.steps, algo.proximal)
    scale = 1 if algo.loss_reduction == "mean" or name == "mlp-sine" else WAYS
    w = dict(theta)
    for _ in range(steps):
        w = {n: value.detach().requires_grad_() for n, value in w.items()}
        out, seen = forward(name)(w, task.x_s, stats)
        gradients = torch.autograd.grad(scale * oracle.objective(out, task.y_s), [w[n] for n in moving])
        for n, gradient in zip(moving, gradients, strict=True):
            w[n] = (w[n] - algo.inner_lr * (gradient + proximal * (w[n] - theta[n]))).detach()
        kept = oracle.moved_average(kept, 0, seen, 0.1)
    return {n: value.detach() for n, value in w.items()}, kept
