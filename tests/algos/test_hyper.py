"""The hypernetwork: computed by hand, its symmetries, what it writes, and that it only ever goes forward."""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase

import pytest
import torch

from metarun.algos.hyper import Hyper
from metarun.engine.unroll.stored import unroll_graph
from metarun.models.functional import FunctionalNet
from metarun.types import BUFFERS, Batch, Episode, Meta
from support import oracle
from support.blackbox import Computed, agree, dense, one_task, prepared, remembered
from support.small import SEED, SHOTS, WAYS, distance, network

HEAD = Hyper(phi=(6, 5), rho=(7, 4), writes=(), writes_scale=0.5, bn="batch")
FILM = replace(HEAD, writes=("*.norm.*",))
CONV = replace(HEAD, writes=("body.blocks.1.*",))
NET = "conv4-strided"


def by_hand(algo: Hyper, net: FunctionalNet, meta: Meta, task: Episode, training: bool) -> Computed:
    w, buffers, (x, y) = meta["weights"], meta.get(BUFFERS, {}), task.support
    z, seen = net.embed(w, x, remembered(meta, 0, training))
    buffers = oracle.moved_average(buffers, 0, seen, 0.1)
    if algo.writes:
        r = sum(dense(meta["phi"], z)) / len(z)
        change = {name: torch.einsum("...r,r->...", U, r) for name, U in meta["delta"].items()}
        w = {name: value + change[name] if name in change else value for name, value in w.items()}
        z, seen = net.embed(w, x, remembered(meta, 1, training))
        buffers = oracle.moved_average(buffers, 1, seen, 0.1)
    stats = seen if algo.bn == "support" else remembered(meta, 1, training)
    queries, seen = net.embed(w, task.query.x, stats)
    buffers = oracle.moved_average(buffers, 1, seen, 0.1)
    columns = []
    for n in range(len(y)):
        chosen = z[y == n]
        if len(chosen) == 0:
            columns.append(torch.full((len(queries),), torch.finfo(z.dtype).min, dtype=z.dtype))
            continue
        mean = dense(meta["phi"], chosen).sum(0) / len(chosen)
        row = meta["head"]["weight"] @ dense(meta["rho"], mean[None])[0].clamp(min=0)
        columns.append(queries @ row[:-1] + row[-1])
    logits = torch.stack(columns, dim=1)
    return logits, oracle.objective(logits[:, :WAYS], task.query.y), buffers


@pytest.mark.parametrize("bn", ["batch", "support", "running"])
@pytest.mark.parametrize("algo", [HEAD, FILM, CONV], ids=["head", "film", "conv"])
def test_by_hand(algo: Hyper, bn: str) -> None:
    algo = replace(algo, bn=bn)  # type: ignore[arg-type]  # a choice from a list is a str
    agree(algo, NET, lambda net, meta, task, training: by_hand(algo, net, meta, task, training))


@pytest.mark.parametrize("algo", [HEAD, FILM], ids=["head", "film"])
def test_permuted_support_rows(algo: Hyper) -> None:
    net, meta = prepared(algo, NET)
    (x, y), query = one_task(NET).support, one_task(NET).query
    order = torch.randperm(WAYS * SHOTS, generator=torch.Generator().manual_seed(0))
    a, b = (
        algo.predict(net, meta, algo.adapted(net, meta, support, unroll_graph), query.x)
        for support in (Batch(x, y), Batch(x[order], y[order]))
    )
    assert distance(a[:, :WAYS], b[:, :WAYS]) < 1e-12


@pytest.mark.parametrize("algo", [HEAD, FILM], ids=["head", "film"])
def test_relabelled_classes(algo: Hyper) -> None:
    net, meta = prepared(algo, NET)
    task, label = one_task(NET), torch.tensor([2, 0, 1])
    plain = algo.predict(net, meta, algo.adapted(net, meta, task.support, unroll_graph), task.query.x)
    renamed = algo.adapted(net, meta, Batch(task.support.x, label[task.support.y]), unroll_graph)
    found = algo.predict(net, meta, renamed, task.query.x)
    assert distance(found[:, label], plain[:, :WAYS]) < 1e-13
    assert not torch.softmax(found, 1)[:, WAYS:].any()


def test_a_row_of_the_head_knows_its_own_class_alone() -> None:
    """Without batch statistics or a rewritten body; other ways than in training are therefore no matter."""
    algo = replace(HEAD, bn="running")
    net, meta = prepared(algo, NET)
    task = one_task(NET)
    whole = algo.adapted(net, meta, task.support, unroll_graph)
    fewer = algo.adapted(net, meta, Batch(*(value[: 2 * SHOTS] for value in task.support)), unroll_graph)
    assert distance(fewer.rows[:2], whole.rows[:2]) < 1e-13
    assert algo.predict(net, meta, fewer, task.query.x).shape == (len(task.query.y), 2 * SHOTS)


@pytest.mark.parametrize("patterns", [(), ("*.norm.*",), ("body.blocks.1.*", "*.0.conv.*")])
def test_it_writes_what_it_is_told(patterns: tuple[str, ...]) -> None:
    algo = replace(HEAD, writes=patterns)
    net, meta = prepared(algo, NET)
    written = {n for n in meta["weights"] if any(fnmatchcase(n, pattern) for pattern in patterns)}
    first, second = (algo.adapted(net, meta, one_task(NET, number).support, unroll_graph).body for number in (0, 1))
    for name, before in meta["weights"].items():
        assert torch.equal(first[name], before) == (name not in written)
        assert torch.equal(first[name], second[name]) == (name not in written)
    assert meta.get("delta", {}).keys() == written


@pytest.mark.parametrize("algo", [HEAD, FILM], ids=["head", "film"])
def test_it_only_goes_forward(algo: Hyper, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("a gradient was asked for")

    net, meta = prepared(algo, NET)
    task = one_task(NET)
    for place in ("torch.func.grad", "torch.func.vjp", "torch.autograd.grad", "torch.Tensor.backward"):
        monkeypatch.setattr(place, refuse)
    leaves = {e: {n: v.clone().requires_grad_(e != BUFFERS) for n, v in g.items()} for e, g in meta.items()}
    with torch.no_grad():
        adapted = algo.adapted(net, leaves, task.support, unroll_graph)
        assert algo.predict(net, leaves, adapted, task.query.x).grad_fn is None


@pytest.mark.parametrize("bn", ["support", "running"])
@pytest.mark.parametrize("algo", [HEAD, FILM], ids=["head", "film"])
def test_without_transduction_a_query_is_scored_alone(algo: Hyper, bn: str) -> None:
    algo = replace(algo, bn=bn)  # type: ignore[arg-type]  # a choice from a list is a str
    net, meta = prepared(algo, NET)
    task = one_task(NET)
    adapted = algo.adapted(net, meta, task.support, unroll_graph)
    together = algo.predict(net, meta, adapted, task.query.x)
    alone = torch.cat([algo.predict(net, meta, adapted, x[None]) for x in task.query.x])
    assert distance(alone[:, :WAYS], together[:, :WAYS]) < 1e-12


def test_what_it_writes_into_the_body_is_small_at_first() -> None:
    net, weights = network(NET)
    algo = replace(CONV, writes_scale=0.01)
    meta = algo.init(net, weights, SEED)
    body = algo.adapted(net, meta, one_task(NET).support, unroll_graph).body
    assert 0 < distance(body, meta["weights"]) < 0.01


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"phi": ()}, "phi=\\[\\]: need at least one size"),
        ({"rho": (4, 0)}, "rho=0: need at least 1"),
        ({"writes_scale": 0.0}, "writes_scale=0.0: must be above 0"),
        ({"bn": "per_step"}, "bn=per_step: choose one of batch, support, running"),
    ],
)
def test_bad_fields(fields: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{reason}"):
        Hyper(**{**vars(HEAD), **fields})


def test_patterns_that_match_nothing() -> None:
    net, weights = network(NET)
    with pytest.raises(ValueError, match=r"writes=\['head.\*'\]: matches no parameter of the body"):
        replace(HEAD, writes=("head.*",)).init(net, weights, SEED)
