"""Matching and relation networks against sums by hand, torch's own layers and plain autograd."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, max_pool2d, one_hot

from metarun.algos.matching import Matching
from metarun.algos.relation import Relation
from metarun.engine.unroll.stored import unroll_graph
from metarun.models.functional import BodyAndHead, FunctionalNet, functional_net
from metarun.types import BUFFERS, Batch, Meta, Params
from support.engines import vmap_engine
from support.small import SEED, distance, episodes, network

PLAIN = Matching(context="none", processing_steps=3, scale=2.0, bn="batch")
FULL = replace(PLAIN, context="full")
VECTORS = Relation(channels=None, hidden=5, loss="mse", bn="batch")
MAPS = replace(VECTORS, channels=2)
WAYS, SIZE = 3, 8
LOWEST = torch.finfo(torch.float64).min


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def identity() -> tuple[FunctionalNet, Params]:
    """Embeddings are the inputs."""
    return functional_net(BodyAndHead(nn.Flatten(), nn.Linear(SIZE, WAYS)).double())


def shaken(meta: Meta) -> Meta:
    """Scales and shifts away from 1 and 0."""
    return {
        entry: {n: v + 0.2 * noise(i + 40, *v.shape) for i, (n, v) in enumerate(group.items())}
        for entry, group in meta.items()
    }


def support(seed: int = 1, shots: int = 2) -> Batch:
    return Batch(noise(seed, WAYS * shots, SIZE), torch.arange(WAYS).repeat_interleave(shots))


def scores(algo: Any, meta: Meta, batch: Batch, x: Tensor) -> Tensor:
    net, _ = identity()
    found: Tensor = algo.predict(net, meta, algo.adapted(net, meta, batch, unroll_graph), x)
    return found


def started(algo: Any) -> Meta:
    return shaken(algo.init(*identity(), SEED))


def matched(f: Tensor, g: Tensor, y: Tensor, scale: float) -> Tensor:
    """Probabilities of each label, one query and one item at a time."""
    rows = []
    for query in f:
        cosines = torch.stack([query @ item / (query.norm() * item.norm()) for item in g])
        weights = torch.exp(scale * cosines) / torch.exp(scale * cosines).sum()
        rows.append(torch.stack([weights[y == n].sum() for n in range(WAYS)]))
    return torch.stack(rows)


@pytest.mark.parametrize("shots", [1, 3])
def test_probabilities_are_attention_summed_over_a_class(shots: int) -> None:
    batch, x = support(shots=shots), noise(2, 5, SIZE)
    out = scores(PLAIN, started(PLAIN), batch, x)
    assert (out[:, WAYS:] == LOWEST).all()
    assert distance(out[:, :WAYS].exp(), matched(x, *batch, 2.0)) < 1e-7
    assert distance(out.exp().sum(1), torch.ones(5).double()) < 1e-12
    order = torch.randperm(WAYS * shots, generator=torch.Generator().manual_seed(0))
    shuffled = Batch(batch.x[order], batch.y[order])
    assert distance(scores(PLAIN, started(PLAIN), shuffled, x)[:, :WAYS], out[:, :WAYS]) < 1e-12


def test_a_sharp_attention_neither_over_nor_underflows() -> None:
    algo = replace(PLAIN, scale=1e4)
    net, weights = network("conv4-strided")
    episode = episodes("conv4-strided")
    grads, aux = vmap_engine(None).build(algo, net).meta_grad(algo.init(net, weights, SEED), episode, 0)
    assert all(value.isfinite().all() for value in (*grads["weights"].values(), aux.metrics["loss"]))


def torchs(params: Params, cell: Any) -> Any:
    """torch's LSTM with our numbers; its second bias is zero."""
    with torch.no_grad():
        for name, value in cell.named_parameters():
            kind = "bias" if "bias" in name else ("input" if "_ih" in name else "hidden")
            value.copy_(torch.zeros_like(value) if "bias_hh" in name else params[kind])
    return cell


def contexts(meta: Meta, z: Tensor, queries: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    forward = torchs(meta["forward"], nn.LSTM(SIZE, SIZE).double())
    backward = torchs(meta["backward"], nn.LSTM(SIZE, SIZE).double())
    cell = torchs(meta["reader"], nn.LSTMCell(2 * SIZE, SIZE).double())
    with torch.no_grad():
        g = z + forward(z)[0] + backward(z.flip(0))[0].flip(0)
        rows = []
        for z_q in queries:
            h, c = torch.zeros(SIZE).double(), torch.zeros(SIZE).double()
            for _ in range(steps):
                attention = torch.softmax(torch.stack([h @ item for item in g]), 0)
                read = sum(a * item for a, item in zip(attention, g, strict=True))
                h, c = cell(torch.cat([z_q, read]), (h, c))
                h = h + z_q
            rows.append(h)
    return torch.stack(rows), g


@pytest.mark.parametrize("steps", [1, 4])
def test_full_contexts_are_torchs_lstms(steps: int) -> None:
    algo = replace(FULL, processing_steps=steps)
    meta, batch, x = started(algo), support(3), noise(4, 5, SIZE)
    f, g = contexts(meta, batch.x, x, steps)
    assert distance(scores(algo, meta, batch, x)[:, :WAYS].exp(), matched(f, g, batch.y, 2.0)) < 1e-7


def test_contexts_depend_on_the_order_of_the_support() -> None:
    meta, batch, x = started(FULL), support(5), noise(6, 4, SIZE)
    back = Batch(batch.x.flip(0), batch.y.flip(0))
    assert distance(scores(FULL, meta, back, x)[:, :WAYS], scores(FULL, meta, batch, x)[:, :WAYS]) > 1e-4


def module(meta: Meta, pairs: Tensor, maps: bool) -> Tensor:
    """The relation module out of torch's layers, batch norm in training mode; pairs are maps or vectors."""
    blocks, last = meta["blocks"], meta["dense"]
    for i in range(2):
        weight, scale, shift = (blocks[f"{i}.{name}"] for name in ("weight", "scale", "shift"))
        pairs = nn.functional.conv2d(pairs, weight, padding=1) if maps else pairs @ weight.T
        pairs = nn.functional.batch_norm(pairs, None, None, scale, shift, training=True, eps=1e-5)
        pairs = torch.relu(pairs)
        pairs = max_pool2d(pairs, 2) if maps and pairs.shape[-1] > 1 else pairs
    hidden = torch.relu(pairs.flatten(1) @ last["0.weight"].T + last["0.bias"])
    return (hidden @ last["1.weight"].T + last["1.bias"])[:, 0]


def relations(meta: Meta, z_s: Tensor, y: Tensor, z_q: Tensor, channels: int | None) -> Tensor:
    pairs = []
    for query in z_q:
        for n in range(WAYS):
            total = z_s[y == n].sum(0)
            if channels is None:
                pairs.append(torch.cat([total, query]))
            else:
                side = int((len(query) // channels) ** 0.5)
                pairs.append(torch.cat([v.reshape(channels, side, side) for v in (total, query)], 0))
    return module(meta, torch.stack(pairs), channels is not None).reshape(len(z_q), WAYS)


@pytest.mark.parametrize("shots", [1, 3])
@pytest.mark.parametrize("algo", [VECTORS, MAPS])
def test_scores_are_the_relation_module_on_every_pair(algo: Relation, shots: int) -> None:
    """The batch norms are torch's on the pairs of labels that occur alone."""
    meta, batch, x = started(algo), support(7, shots), noise(8, 5, SIZE)
    expected = relations(meta, *batch, x, algo.channels)
    out = scores(algo, meta, batch, x)
    assert (out[:, WAYS:] == LOWEST).all()
    assert distance(out[:, :WAYS], expected.sigmoid()) < 1e-12
    raw = scores(replace(algo, loss="cross_entropy"), meta, batch, x)
    assert distance(raw[:, :WAYS], expected) < 1e-12


def test_hand_made_weights_count_agreement() -> None:
    """Statistics of 0 and 1 leave sums as they are: block 1 takes relu(c + q), block 2 and the head add that up."""
    algo = replace(VECTORS, bn="running", hidden=1, loss="cross_entropy")
    meta = algo.init(*identity(), SEED)
    eye = torch.eye(SIZE).double()
    meta["blocks"] = {**meta["blocks"], "0.weight": torch.cat([eye, eye], 1), "1.weight": eye}
    ones = torch.ones(1, SIZE).double()
    meta["dense"] = {"0.weight": ones, "0.bias": ones[0, :1], "1.weight": 2 * ones[:, :1], "1.bias": -ones[0, :1]}
    batch, x = support(9), noise(10, 4, SIZE)
    sums = torch.stack([batch.x[batch.y == n].sum(0) for n in range(WAYS)])
    expected = 2 * ((sums[None] + x[:, None]).clamp(min=0).sum(2) / (1 + 1e-5) + 1) - 1
    assert distance(scores(algo, meta, batch, x)[:, :WAYS], expected) < 1e-5


@pytest.mark.parametrize("which", ["matching", "mse", "cross_entropy", "maps"])
def test_meta_gradients_are_those_of_plain_autograd(which: str) -> None:
    algo: Any = {"matching": PLAIN, "mse": VECTORS, "maps": replace(MAPS, channels=4)}.get(
        which, replace(VECTORS, loss="cross_entropy")
    )
    name = "conv4-pooled" if which == "maps" else "conv4-strided"
    net, weights = network(name)
    episode, meta = episodes(name), algo.init(net, weights, SEED)
    found, aux = vmap_engine(2).build(algo, net).meta_grad(meta, episode, 0)
    leaves = {e: {n: v.clone().requires_grad_() for n, v in group.items()} for e, group in meta.items()}
    losses = []
    for t in range(len(episode.index)):
        z_s, z_q = (net.embed(leaves["weights"], part.x[t])[0] for part in (episode.support, episode.query))
        y_s, y_q = episode.support.y[t], episode.query.y[t]
        if which == "matching":
            losses.append(-matched(z_q, z_s, y_s, 2.0)[range(len(y_q)), y_q].log().mean())
            continue
        out = relations(leaves, z_s, y_s, z_q, algo.channels)
        squares = (out.sigmoid() - one_hot(y_q, WAYS)).square().mean()
        losses.append(cross_entropy(out, y_q) if which == "cross_entropy" else squares)
    loss = torch.stack(losses).mean()
    assert distance(aux.metrics["loss"], loss.detach()) < 1e-6
    names = [(e, n) for e, group in leaves.items() for n in group]
    gradients = torch.autograd.grad(loss, [leaves[e][n] for e, n in names])
    for (e, n), expected in zip(names, gradients, strict=True):
        # The cosine's guard against 0 is 1e-8; and a bias of all logits has no gradient.
        assert (found[e][n] - expected).norm() <= 1e-5 * expected.norm() + 1e-12, (e, n)


@pytest.mark.parametrize("bn", ["support", "running"])
@pytest.mark.parametrize("algo", [PLAIN, FULL, VECTORS, replace(MAPS, channels=4)])
def test_without_transduction_a_query_is_scored_alone(algo: Any, bn: str) -> None:
    net, weights = network("conv4-strided")
    algo, episode = replace(algo, bn=bn), episodes("conv4-strided", tasks=1)
    meta = algo.init(net, weights, SEED)
    adapted = algo.adapted(net, meta, Batch(episode.support.x[0], episode.support.y[0]), unroll_graph)
    x = episode.query.x[0]
    apart = torch.cat([algo.predict(net, meta, adapted, one) for one in torch.split(x, 1)])
    assert distance(algo.predict(net, meta, adapted, x)[:, :WAYS], apart[:, :WAYS]) < 1e-12


def test_running_statistics_of_the_pairs() -> None:
    algo = replace(VECTORS, bn="running")
    net, weights = network("conv4-strided")
    episode, meta = episodes("conv4-strided", tasks=1), algo.init(net, weights, SEED)
    _, aux = vmap_engine(None).build(algo, net).meta_grad(meta, episode, 0)
    assert aux.buffers.keys() == meta[BUFFERS].keys()
    z_s, z_q = (net.embed(weights, part.x[0])[0] for part in (episode.support, episode.query))
    sums = torch.stack([z_s[episode.support.y[0] == n].sum(0) for n in range(WAYS)])
    pairs = torch.stack([torch.cat([c, q]) for q in z_q for c in sums]) @ meta["blocks"]["0.weight"].T
    share = net.momentum
    assert distance(aux.buffers["relation.0.mean"][0], share * pairs.mean(0)) < 1e-12
    assert distance(aux.buffers["relation.0.var"][0], 1 - share + share * pairs.var(0, unbiased=False)) < 1e-12


@pytest.mark.parametrize(
    ("algo", "fields", "reason"),
    [
        (PLAIN, {"context": "half"}, "context=half: choose one of none, full"),
        (PLAIN, {"processing_steps": 0}, "processing_steps=0: need at least 1"),
        (PLAIN, {"scale": 0.0}, "scale=0.0: must be above 0"),
        (VECTORS, {"loss": "hinge"}, "loss=hinge: choose one of mse, cross_entropy"),
        (VECTORS, {"channels": 0}, "channels=0: need at least 1"),
        (VECTORS, {"bn": "per_step"}, "bn=per_step: choose one of batch, support, running"),
    ],
)
def test_bad_fields(algo: Any, fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        replace(algo, **fields)


def test_channels_that_make_no_map() -> None:
    with pytest.raises(ValueError, match="channels=3: 8 numbers are no square map of them"):
        replace(VECTORS, channels=3).init(*identity(), SEED)
