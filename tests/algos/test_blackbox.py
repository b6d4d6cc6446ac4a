"""SNAIL and the conditional neural process: computed by hand, their blocks against torch's own, and symmetries."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal
from torch.nn.functional import conv1d

from metarun.algos.cnp import CNP
from metarun.algos.pieces import normal, snail_blocks
from metarun.algos.snail import SNAIL
from metarun.engine.unroll.stored import unroll_graph
from metarun.models.functional import FunctionalNet
from metarun.types import BUFFERS, Batch, Episode, Meta, Params
from support import oracle
from support.blackbox import Computed, agree, dense, one_task, prepared, remembered
from support.small import SHOTS, WAYS, distance

SEQUENCE = SNAIL(shots=SHOTS, keys=(5, 4, 3), values=(3, 2, 4), filters=(4, 3), bn="batch")
PROCESS = CNP(encoder=(6, 5), decoder=(7,), decode="joint", floor=0.1, bn="batch")
IMAGES, SINE = "conv4-strided", "mlp-sine"


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def convolved(x_TC: Tensor, weight: Tensor, bias: Tensor, dilation: int) -> Tensor:
    """By torch's convolution, padded on the left; the earlier tap comes first."""
    inputs = x_TC.shape[1]
    taps = torch.stack([weight[:, :inputs], weight[:, inputs:]], dim=2)
    padded = torch.cat([torch.zeros(dilation, inputs).double(), x_TC]).T[None]
    return conv1d(padded, taps, bias, dilation=dilation)[0].T


def dense_blocks(params: Params, x_TC: Tensor) -> Tensor:
    for i in range(len(params) // 2):
        out = convolved(x_TC, params[f"{i}.weight"], params[f"{i}.bias"], 2**i)
        half = out.shape[1] // 2
        x_TC = torch.cat([x_TC, torch.tanh(out[:, :half]) / (1 + torch.exp(-out[:, half:]))], dim=1)
    return x_TC


def attended(params: Params, x_TC: Tensor) -> Tensor:
    """Place by place; the softmax is over the places so far."""
    query = x_TC @ params["query.weight"].T + params["query.bias"]
    key = x_TC @ params["key.weight"].T
    value = x_TC @ params["value.weight"].T + params["value.bias"]
    reads = []
    for t in range(len(x_TC)):
        weight = torch.stack([torch.exp(query[t] @ key[s] / math.sqrt(key.shape[1])) for s in range(t + 1)])
        reads.append((weight[:, None] * value[: t + 1]).sum(0) / weight.sum())
    return torch.cat([x_TC, torch.stack(reads)], dim=1)


def snail_by_hand(algo: SNAIL, net: FunctionalNet, meta: Meta, task: Episode, training: bool) -> Computed:
    """A whole sequence for every query."""
    buffers = meta.get(BUFFERS, {})
    z, seen = net.embed(meta["weights"], task.support.x, remembered(meta, 0, training))
    stats = seen if algo.bn == "support" else remembered(meta, 0, training)
    queries, last = net.embed(meta["weights"], task.query.x, stats)
    for each in (seen, last):
        buffers = oracle.moved_average(buffers, 0, each, 0.1)
    labels = torch.eye(WAYS).double()[task.support.y]
    logits = []
    for query in queries:
        x = torch.cat([torch.cat([z, labels], 1), torch.cat([query, torch.zeros(WAYS).double()])[None]])
        for i in range(3):
            x = attended(meta[f"attention{i}"], x)
            x = dense_blocks(meta[f"tc{i}"], x) if i < 2 else x
        logits.append(meta["logits"]["0.weight"] @ x[-1] + meta["logits"]["0.bias"])
    return torch.stack(logits), oracle.objective(torch.stack(logits), task.query.y), buffers


def cnp_by_hand(algo: CNP, net: FunctionalNet, meta: Meta, task: Episode, training: bool) -> Computed:
    buffers, y = meta.get(BUFFERS, {}), task.support.y
    z, seen = net.embed(meta["weights"], task.support.x, remembered(meta, 0, training))
    stats = seen if algo.bn == "support" else remembered(meta, 0, training)
    queries, last = net.embed(meta["weights"], task.query.x, stats)
    for each in (seen, last):
        buffers = oracle.moved_average(buffers, 0, each, 0.1)
    if y.is_floating_point():
        r = dense(meta["encoder"], torch.cat([z, y], 1)).sum(0) / len(y)
    else:
        each_r = [dense(meta["encoder"], z[y == n]).sum(0) / SHOTS for n in range(WAYS)]
        r = torch.cat(each_r)
    if algo.decode == "by_class" and not y.is_floating_point():
        among = torch.stack(each_r).mean(0)
        rows = [[torch.cat([query, own, among])[None] for own in each_r] for query in queries]
        out = torch.stack([torch.cat([dense(meta["decoder"], row)[0] for row in each]) for each in rows])
    else:
        out = torch.stack([dense(meta["decoder"], torch.cat([query, r])[None])[0] for query in queries])
    if not y.is_floating_point():
        return out, oracle.objective(out, task.query.y), buffers
    sigma = 0.1 + 0.9 * (1 + out[:, 1:].exp()).log()
    return out[:, :1], surprise(task.query.y, out[:, :1], sigma), buffers


def surprise(y: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
    normal: Any = Normal(mean, sigma)
    loss: Tensor = -normal.log_prob(y).mean()
    return loss


@pytest.mark.parametrize("bn", ["batch", "support", "running"])
def test_snail_by_hand(bn: Any) -> None:
    algo = replace(SEQUENCE, bn=bn)
    agree(algo, IMAGES, partial(snail_by_hand, algo))


@pytest.mark.parametrize(("name", "bn"), [(IMAGES, "batch"), (IMAGES, "support"), (IMAGES, "running"), (SINE, "batch")])
@pytest.mark.parametrize("decode", ["joint", "by_class"])
def test_cnp_by_hand(name: str, bn: Any, decode: Any) -> None:
    algo = replace(PROCESS, bn=bn, decode=decode)
    agree(algo, name, partial(cnp_by_hand, algo))


def test_cnp_decoding_by_class_minds_no_order_of_classes() -> None:
    algo = replace(PROCESS, decode="by_class")
    net, meta = prepared(algo, IMAGES)
    task, label = one_task(IMAGES), torch.tensor([2, 0, 1])
    renamed = Batch(task.support.x, label[task.support.y])
    plain, other = (
        algo.predict(net, meta, algo.adapted(net, meta, support, unroll_graph), task.query.x)
        for support in (task.support, renamed)
    )
    assert distance(other[:, label], plain) < 1e-12


def blocks(length: int) -> tuple[Params, Params]:
    like = torch.zeros(()).double()
    layers = snail_blocks.num_tc_layers(length)
    convolution = snail_blocks.temporal_convolution_init(1, like, 4, 3, layers)
    return convolution, snail_blocks.causal_attention_init(2, like, 4, 5, 3)


@pytest.mark.parametrize("length", [1, 2, 5, 8, 9])
@pytest.mark.parametrize("last", [0, 1], ids=["sequence", "with a last item"])
def test_blocks_are_torchs_convolution_and_a_masked_softmax(length: int, last: int) -> None:
    x, (tc, attention) = noise(length, 4), blocks(length)
    assert distance(snail_blocks.temporal_convolution(tc, x, length - last), dense_blocks(tc, x)) < 1e-13
    assert distance(snail_blocks.causal_attention(attention, x, length - last), attended(attention, x)) < 1e-13


@pytest.mark.parametrize("changed", [0, 2, 4])
def test_a_later_item_changes_nothing_before_it(changed: int) -> None:
    x, (tc, attention) = noise(5, 4), blocks(5)
    other = x.clone()
    other[changed] += 1
    for block, params in ((snail_blocks.temporal_convolution, tc), (snail_blocks.causal_attention, attention)):
        a, b = block(params, x, 5), block(params, other, 5)
        assert torch.equal(a[:changed], b[:changed])
        assert (a[changed:] != b[changed:]).any(1).all()


@pytest.mark.parametrize("length", range(2, 10))
def test_the_last_item_sees_the_first_through_the_convolutions_alone(length: int) -> None:
    """And with one layer less it does not, so the number of layers is the least."""
    layers = snail_blocks.num_tc_layers(length)
    for count in (layers, layers - 1):
        params = snail_blocks.temporal_convolution_init(1, torch.zeros(()).double(), 4, 3, count)
        x = noise(length, 4).requires_grad_()
        (reach,) = torch.autograd.grad(snail_blocks.temporal_convolution(params, x, length)[-1].sum(), x)
        assert bool((reach[0] != 0).any()) == (count == layers)


@pytest.mark.parametrize("shots", [1, 3])
def test_snail_takes_other_shots_at_test(shots: int) -> None:
    net, meta = prepared(SEQUENCE, IMAGES)
    task = one_task(IMAGES)
    support = Batch(noise(WAYS * shots, 2, 8, 8), torch.arange(WAYS).repeat_interleave(shots))
    out = SEQUENCE.predict(net, meta, SEQUENCE.adapted(net, meta, support, unroll_graph), task.query.x)
    assert distance(out, snail_by_hand(SEQUENCE, net, meta, task._replace(support=support), True)[0]) < 1e-12


@pytest.mark.parametrize("bn", ["support", "running"])
@pytest.mark.parametrize("algo", [SEQUENCE, PROCESS], ids=["snail", "cnp"])
def test_without_transduction_a_query_is_scored_alone(algo: Any, bn: str) -> None:
    algo = replace(algo, bn=bn)
    net, meta = prepared(algo, IMAGES)
    task = one_task(IMAGES)
    adapted = algo.adapted(net, meta, task.support, unroll_graph)
    together = algo.predict(net, meta, adapted, task.query.x)
    alone = torch.cat([algo.predict(net, meta, adapted, x[None]) for x in task.query.x])
    assert distance(alone, together) < 1e-12


@pytest.mark.parametrize("name", [IMAGES, SINE])
def test_cnp_permuted_and_repeated_support_rows(name: str) -> None:
    """A mean minds neither."""
    net, meta = prepared(PROCESS, name)
    (x, y), query = one_task(name).support, one_task(name).query
    shuffled = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    plain, other = (
        PROCESS.predict(net, meta, PROCESS.adapted(net, meta, support, unroll_graph), query.x)
        for support in (Batch(x, y), Batch(x[shuffled].repeat_interleave(2, 0), y[shuffled].repeat_interleave(2, 0)))
    )
    assert distance(other, plain) < 1e-12


def test_density_is_torchs_normal() -> None:
    y, mean, raw = noise(7, 1, seed=1), noise(7, 1, seed=2), 3 * noise(7, 1, seed=3)
    sigma = normal.bounded_sigma(raw, 0.1)
    assert distance(sigma, 0.1 + 0.9 * (1 + raw.exp()).log()) < 1e-13
    assert distance(normal.negative_log_likelihood(y, mean, sigma), surprise(y, mean, sigma)) < 1e-13
    assert (normal.bounded_sigma(torch.tensor([-1e3, 0.0, 1e3]).double(), 0.1) >= 0.1).all()


@pytest.mark.parametrize(
    ("good", "fields", "reason"),
    [
        (SEQUENCE, {"shots": 0}, "shots=0: need at least 1"),
        (SEQUENCE, {"filters": (4, 0)}, "filters=0: need at least 1"),
        (SEQUENCE, {"bn": "per_step"}, "bn=per_step: choose one of batch, support, running"),
        (PROCESS, {"encoder": ()}, "encoder=\\[\\]: need at least one size"),
        (PROCESS, {"decoder": (0,)}, "decoder=0: need at least 1"),
        (PROCESS, {"decode": "apart"}, "decode=apart: choose one of joint, by_class"),
        (PROCESS, {"floor": 1.0}, "floor=1.0: a standard deviation between 0 and 1"),
        (PROCESS, {"bn": "own"}, "bn=own: choose one of batch, support, running"),
    ],
)
def test_bad_fields(good: Any, fields: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{reason}"):
        replace(good, **fields)
