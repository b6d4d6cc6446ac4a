"""Heads in closed form or by a program of their own: ridge regression and the support vector machine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from metarun.algos.metaoptnet import MetaOptNet
from metarun.algos.r2d2 import R2D2
from metarun.engine.unroll.stored import unroll_graph
from metarun.models.functional import BodyAndHead, FunctionalNet, functional_net
from metarun.types import Batch, Episode, Params
from support.engines import vmap_engine
from support.noise import noise
from support.small import SEED, distance, episodes, network

RIDGE = R2D2(ridge=0.7, scale=3.0, bn="batch")
SVM = MetaOptNet(C=0.3, qp_steps=20, scale=2.0, smoothing=0.0, bn="batch")
STEPS = 20
FEATURES = 4


def identity(features: int = FEATURES) -> tuple[FunctionalNet, Params]:
    """Embeddings are the inputs."""
    return functional_net(BodyAndHead(nn.Flatten(), nn.Linear(features, 3)).double())


def support(ways: int, shots: int, seed: int) -> Batch:
    y = torch.arange(ways).repeat_interleave(shots)
    return Batch(noise(seed, ways * shots, FEATURES) + 0.7 * noise(seed + 50, ways, FEATURES)[y], y)


def scores(algo: Any, batch: Batch, x: Tensor) -> Tensor:
    net, weights = identity()
    meta = algo.init(net, weights, SEED)
    found: Tensor = algo.predict(net, meta, algo.adapted(net, meta, batch, unroll_graph), x)
    return found


def ridge_logits(z_s: Tensor, y: Tensor, z_q: Tensor, ways: int, lam: Any, alpha: Any) -> Tensor:
    """The normal equations over features, not over items."""
    wide_s, wide_q = (torch.cat([z, torch.ones(len(z), 1).double()], 1) for z in (z_s, z_q))
    left = wide_s.T @ wide_s + lam * torch.eye(wide_s.shape[1]).double()
    logits: Tensor = alpha * wide_q @ torch.linalg.solve(left, wide_s.T @ one_hot(y, ways).double())
    return logits


@pytest.mark.parametrize(("ways", "shots"), [(3, 1), (3, 4), (2, 2)])
def test_ridge_is_least_squares_with_the_penalty_as_further_rows(ways: int, shots: int) -> None:
    batch, x = support(ways, shots, 1), noise(2, 6, FEATURES)
    out = scores(RIDGE, batch, x)
    assert (out[:, ways:] == torch.finfo(torch.float64).min).all()
    assert distance(out[:, :ways], ridge_logits(*batch, x, ways, 0.7, 3.0)) < 1e-12
    wide = torch.cat([batch.x, torch.ones(len(batch.x), 1).double()], 1)
    size = wide.shape[1]
    stacked = torch.cat([wide, 0.7**0.5 * torch.eye(size).double()])
    targets = torch.cat([one_hot(batch.y, ways).double(), torch.zeros(size, ways).double()])
    w = torch.linalg.lstsq(stacked, targets).solution
    assert distance(out[:, :ways], 3.0 * torch.cat([x, torch.ones(6, 1).double()], 1) @ w) < 1e-12


def test_the_meta_gradient_of_ridge_regression() -> None:
    net, weights = network("conv4-strided")
    episode = episodes("conv4-strided")
    meta = RIDGE.init(net, weights, SEED)
    meta["solver"]["l"] += 0.3  # where exp(l) is no longer 1 + l
    found, aux = vmap_engine(2).build(RIDGE, net).meta_grad(meta, episode, 0)
    body = {n: w.clone().requires_grad_() for n, w in weights.items() if n.startswith("body.")}
    ell, alpha = torch.tensor(0.3, dtype=torch.float64, requires_grad=True), torch.tensor(3.0).double().requires_grad_()
    losses = []
    for t in range(len(episode.index)):
        z_s, z_q = (net.embed(body, part.x[t])[0] for part in (episode.support, episode.query))
        out = ridge_logits(z_s, episode.support.y[t], z_q, 3, 0.7 * torch.exp(ell), alpha)
        losses.append(cross_entropy(out, episode.query.y[t]))
    loss = torch.stack(losses).mean()
    expected = torch.autograd.grad(loss, [*body.values(), ell, alpha])
    assert distance(found["weights"], dict(zip(body, expected, strict=False))) < 1e-10
    assert distance(found["solver"], {"l": expected[-2], "alpha": expected[-1]}) < 1e-10
    assert distance(aux.metrics["loss"], loss.detach()) < 1e-12


def test_a_heavy_ridge_scores_by_class_sums() -> None:
    """lambda W -> Z' Y."""
    batch, x = support(3, 2, 3), noise(4, 5, FEATURES)
    out = scores(replace(RIDGE, ridge=1e9, scale=1e9), batch, x)[:, :3]
    sums = torch.stack([batch.x[batch.y == n].sum(0) for n in range(3)])
    assert distance(out, x @ sums.T + 2.0) < 1e-7


def machine(z_s: Tensor, y: Tensor, ways: int, C: float) -> Tensor:
    """w_ND by scipy: the dual of Crammer and Singer, all labels in one vector."""
    K, items = (z_s @ z_s.T).numpy(), len(y)
    own = one_hot(y, ways).numpy().astype(float)  # [s, n]

    def objective(a: Any) -> Any:
        alpha = a.reshape(items, ways)
        return 0.5 * (alpha * (K @ alpha)).sum() - (own * alpha).sum()

    found = minimize(
        objective,
        np.zeros(items * ways),
        jac=lambda a: (K @ a.reshape(items, ways) - own).ravel(),
        bounds=[(None, C * float(right)) for right in own.ravel()],
        constraints={
            "type": "eq",
            "fun": lambda a: a.reshape(items, ways).sum(1),
            "jac": lambda _: np.kron(np.eye(items), np.ones(ways)),
        },
        method="SLSQP",
        options={"ftol": 1e-16, "maxiter": 1000},
    )
    assert found.status in (0, 8), found.message
    return torch.from_numpy(found.x).reshape(items, ways).T @ z_s


@pytest.mark.parametrize(("ways", "shots"), [(5, 1), (3, 3), (2, 4)])
@pytest.mark.parametrize("seed", [200, 210])
def test_the_machine_against_scipy(ways: int, shots: int, seed: int) -> None:
    batch, x = support(ways, shots, seed), noise(seed + 1, 6, FEATURES)
    out = scores(SVM, batch, x)
    assert out.shape == (6, ways * shots)
    assert (out[:, ways:] == torch.finfo(torch.float64).min).all()
    assert distance(out[:, :ways], 2.0 * x @ machine(*batch, ways, 0.3).T) < 1e-6


def test_two_orthogonal_items() -> None:
    """With K = diag(k), w_0 = a_0 z_0 - a_1 z_1 = -w_1 and the least of k_0 a_0^2 + k_1 a_1^2 - a_0 - a_1 under C."""
    z = torch.tensor([[2.0, 1.0, 0.0, 0.0], [-0.5, 1.0, 1.0, 0.0]]).double()
    x = noise(221, 3, FEATURES)
    for C in (100.0, 0.15, 0.01):
        a = (0.5 / z.square().sum(1)).clamp(max=C)
        half = 2.0 * x @ (a[0] * z[0] - a[1] * z[1])
        assert distance(scores(replace(SVM, C=C), Batch(z, torch.arange(2)), x), torch.stack([half, -half], 1)) < 1e-6


def test_the_order_of_the_support_does_not_matter() -> None:
    batch, x = support(3, 3, 230), noise(231, 4, FEATURES)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    shuffled = Batch(batch.x[order], batch.y[order])
    for algo in (SVM, RIDGE):
        assert distance(scores(algo, shuffled, x)[:, :3], scores(algo, batch, x)[:, :3]) < 1e-9


@pytest.mark.parametrize("features", [FEATURES, 32])
def test_single_precision_is_enough(features: int) -> None:
    """Four features for 15 items: a product of rank four, which rounded to float32 is indefinite."""
    y = torch.arange(5).repeat_interleave(3)
    z, x = noise(240, 15, features).relu(), noise(241, 4, features)
    net, weights = identity(features)
    meta = SVM.init(net, weights, SEED)
    out = SVM.predict(net, meta, SVM.adapted(net, meta, Batch(z, y), unroll_graph), x)
    single = {"weights": {}, "solver": {"gamma": torch.tensor(2.0)}}
    found = SVM.predict(net, single, SVM.adapted(net, single, Batch(z.float(), y), unroll_graph), x.float())
    assert found.dtype == torch.float32
    assert distance(found[:, :5].double(), out[:, :5]) < 1e-4


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_meta_gradient_of_the_machine_is_that_of_differences(smoothing: float) -> None:
    net, weights = network("conv4-strided")
    episode, algo = episodes("conv4-strided"), replace(SVM, smoothing=smoothing, qp_steps=30)
    engine, meta = vmap_engine(None).build(algo, net), algo.init(net, weights, SEED)
    found, _ = engine.meta_grad(meta, episode, 0)
    direction = {n: noise(250 + i, *w.shape) for i, (n, w) in enumerate(meta["weights"].items())}

    def at(h: float, gamma: float) -> Tensor:
        body = {n: w + h * direction[n] for n, w in meta["weights"].items()}
        losses = []
        for t in range(len(episode.index)):
            z_s, z_q = (net.embed(body, part.x[t])[0] for part in (episode.support, episode.query))
            w = alone(algo, z_s, episode.support.y[t])
            losses.append(cross_entropy_smoothed((2.0 + gamma) * z_q @ w.T, episode.query.y[t], smoothing))
        return torch.stack(losses).mean()

    slope = sum((found["weights"][n] * direction[n]).sum() for n in direction)
    assert isinstance(slope, Tensor)
    h = 1e-5
    assert distance(slope, (at(h, 0) - at(-h, 0)) / (2 * h)) < 1e-5
    assert distance(found["solver"]["gamma"], (at(0, h) - at(0, -h)) / (2 * h)) < 1e-5


def alone(algo: MetaOptNet, z: Tensor, y: Tensor) -> Tensor:
    """w_ND, read off the scores of unit vectors; the machine itself has been compared with scipy above."""
    net, weights = identity(z.shape[1])
    meta = algo.init(net, weights, SEED)
    out = algo.predict(net, meta, algo.adapted(net, meta, Batch(z, y), unroll_graph), torch.eye(z.shape[1]).double())
    return out[:, :3].T / algo.scale


def cross_entropy_smoothed(out: Tensor, y: Tensor, eps: float) -> Tensor:
    right = one_hot(y, 3)
    target = right * (1 - eps) + (1 - right) * eps / 2
    return -(target * (out - out.exp().sum(1, keepdim=True).log())).sum(1).mean()


@pytest.mark.parametrize(
    ("algo", "fields", "reason"),
    [
        (RIDGE, {"ridge": 0.0}, "ridge=0.0: must be above 0"),
        (RIDGE, {"bn": "per_step"}, "bn=per_step: choose one of batch, support, running"),
        (SVM, {"C": -1.0}, "C=-1.0: must be above 0"),
        (SVM, {"qp_steps": 0}, "qp_steps=0: need at least 1"),
        (SVM, {"smoothing": 1.0}, "smoothing=1.0: is a share of 1; use 0.0 for none"),
    ],
)
def test_bad_fields(algo: Any, fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        replace(algo, **fields)


@pytest.mark.parametrize("bn", ["support", "running"])
@pytest.mark.parametrize("algo", [RIDGE, SVM])
def test_without_transduction_a_query_is_scored_alone(algo: Any, bn: str) -> None:
    net, weights = network("conv4-strided")
    algo = replace(algo, bn=bn)
    episode: Episode = episodes("conv4-strided", tasks=1)
    meta = algo.init(net, weights, SEED)
    adapted = algo.adapted(net, meta, Batch(episode.support.x[0], episode.support.y[0]), unroll_graph)
    x = episode.query.x[0]
    apart = torch.cat([algo.predict(net, meta, adapted, one) for one in torch.split(x, 1)])
    assert distance(algo.predict(net, meta, adapted, x)[:, :3], apart[:, :3]) < 1e-12
