"""Each algorithm against what mathematics says of it: closed forms, special cases, symmetries, bad fields."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from metarun.algos.maml import MAML
from metarun.algos.metasgd import MetaSGD
from metarun.algos.pieces.minibatches import minibatch_rows
from metarun.algos.protonet import ProtoNet
from metarun.algos.reptile import Reptile
from metarun.engine.unroll.stored import unroll_graph
from metarun.models.functional import BodyAndHead, FunctionalNet, functional_net
from metarun.types import Batch, Episode, Params
from support.engines import vmap_engine
from support.small import ALGOS, GRADIENT, SEED, SHOTS, WAYS, distance, episodes, grown, maml, metasgd, network

MAML_ONE = maml("batch", steps=1, test_steps=1)


def logistic(features: int) -> tuple[FunctionalNet, Params]:
    net, weights = functional_net(BodyAndHead(nn.Flatten(), nn.Linear(features, 2)).double())
    return net, {name: value.detach() for name, value in weights.items()}


def test_one_step_of_maml_on_logistic_regression() -> None:
    """With u = (-x, x), x ending in 1, an item's loss has the gradient (s - y) u and the Hessian s (1 - s) u u'."""
    dice = torch.Generator().manual_seed(0)
    net, weights = logistic(3)
    x = torch.randn(2, 1, 4, 3, generator=dice).double()
    y = torch.tensor([[[0, 1, 1, 0]], [[1, 0, 1, 0]]])
    alpha, w = 0.3, torch.cat([weights["head.weight"], weights["head.bias"][:, None]], 1).flatten()

    def parts(w: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        wide = torch.cat([x, torch.ones(len(x), 1).double()], 1)
        u = torch.cat([-wide, wide], 1)
        s = torch.sigmoid(u @ w)
        return (s - y) @ u / len(x), (s * (1 - s) * u.T) @ u / len(x)

    gradient, hessian = parts(w, x[0, 0], y[0, 0])
    at_adapted, _ = parts(w - alpha * gradient, x[1, 0], y[1, 0])
    second = at_adapted - alpha * hessian @ at_adapted

    episode = Episode(Batch(x[0], y[0]), Batch(x[1], y[1]), torch.tensor([0]))
    for derivatives, expected in (("second", second), ("first", at_adapted)):
        algo = replace(MAML_ONE, derivatives=derivatives, inner_lr=alpha)  # type: ignore[arg-type]  # a choice from a list is a str
        found = vmap_engine(None).build(algo, net).meta_grad(algo.init(net, weights, SEED), episode, 0)[0]["weights"]
        assert distance(torch.cat([found["head.weight"], found["head.bias"][:, None]], 1), expected) < 1e-13


def test_first_order_is_the_gradient_at_the_adapted_weights() -> None:
    net, weights = network("conv4-strided")
    episode = one_task("conv4-strided")
    algo = maml("batch", steps=3, derivatives="first", loss_reduction="sum_over_ways")
    found, _ = vmap_engine(None).build(algo, net).meta_grad(algo.init(net, weights, SEED), stacked(episode), 0)
    adapted = algo.adapted(net, algo.init(net, weights, SEED), episode.support, unroll_graph)
    leaves = {name: value.detach().requires_grad_() for name, value in adapted.weights.items()}
    loss = cross_entropy(net(leaves, episode.query.x)[0], episode.query.y)
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    assert distance(found["weights"], dict(zip(leaves, gradients, strict=True))) < 1e-13


@pytest.mark.parametrize("derivatives", ["first", "second"])
def test_metasgd_of_equal_rates_is_maml(derivatives: str) -> None:
    net, weights = network("conv4-strided")
    one, other = maml("batch", derivatives=derivatives), metasgd("batch", derivatives=derivatives)
    a, b = (vmap_engine(None).build(algo, net) for algo in (one, other))
    episode = episodes("conv4-strided")
    expected = a.meta_grad(one.init(net, weights, SEED), episode, 0)[0]["weights"]
    found = b.meta_grad(other.init(net, weights, SEED), episode, 0)[0]
    assert distance(found["weights"], expected) < 1e-13
    assert found["rates"].keys() == weights.keys()
    assert (
        distance(b.scores(other.init(net, weights, SEED), episode), a.scores(one.init(net, weights, SEED), episode))
        < 1e-13
    )


@pytest.mark.parametrize("bn", ["batch", "support", "running", "per_step"])
def test_anil_leaves_the_body_as_it_is(bn: str) -> None:
    net, weights = network("conv4-strided")
    algo = ALGOS["anil"](bn)
    adapted = algo.adapted(net, algo.init(net, weights, SEED), one_task("conv4-strided").support, unroll_graph)
    body = [name for name in weights if name.startswith("body.")]
    assert all(torch.equal(adapted.weights[name], weights[name]) for name in body)
    assert not torch.equal(adapted.weights["head.weight"], weights["head.weight"])


@pytest.mark.parametrize("bn", ["batch", "support", "running"])
def test_one_pass_of_the_body_serves_all_steps_of_anil(bn: str) -> None:
    """A norm layer's gamma of rate zero forces the general way, which passes through the body at every step."""
    net, weights = network("conv4-strided")
    short = metasgd(bn, steps=3, test_steps=3, adapt=("head.*",))
    long = replace(short, adapt=("head.*", "body.blocks.0.norm.weight"))
    metas = [grown(algo.init(net, weights, SEED)) for algo in (short, long)]
    metas[1]["rates"]["body.blocks.0.norm.weight"] *= 0
    episode = episodes("conv4-strided")
    (a, aux_a), (b, aux_b) = (
        vmap_engine(None).build(algo, net).meta_grad(meta, episode, 0)
        for algo, meta in zip((short, long), metas, strict=True)
    )
    assert distance(a["weights"], b["weights"]) < 1e-13
    assert distance(aux_a.buffers, aux_b.buffers) < 1e-13


def test_reptile_moves_towards_the_adapted_weights() -> None:
    """Full batches and plain descent: the same as descending on all data by hand."""
    net, weights = network("mlp")
    episode = one_task("mlp")
    algo = Reptile(4, 4, 0.2, None, None, "sgd", "batch")
    found, _ = vmap_engine(None).build(algo, net).meta_grad(algo.init(net, weights, SEED), stacked(episode), 0)
    x = torch.cat([episode.support.x, episode.query.x])
    y = torch.cat([episode.support.y, episode.query.y])
    w = {name: value.clone().requires_grad_() for name, value in weights.items()}
    for _ in range(4):
        gradients = torch.autograd.grad(cross_entropy(net(w, x)[0], y), list(w.values()))
        w = {n: (v - 0.2 * g).detach().requires_grad_() for (n, v), g in zip(w.items(), gradients, strict=True)}
    assert distance(found["weights"], {name: weights[name] - w[name].detach() for name in weights}) < 1e-13


def test_minibatches_go_through_all_rows_before_they_repeat() -> None:
    rows, size = 7, 3
    drawn = torch.cat([minibatch_rows(torch.tensor(5), k, rows, size) for k in range(14)]).reshape(6, rows)
    assert all(sorted(each.tolist()) == list(range(rows)) for each in drawn)
    assert len({tuple(each.tolist()) for each in drawn}) == 6
    other = torch.cat([minibatch_rows(torch.tensor(6), k, rows, size) for k in range(14)]).reshape(6, rows)
    assert not torch.equal(drawn, other)


def test_minibatches_favour_no_row() -> None:
    first = torch.stack([minibatch_rows(torch.tensor(i), 0, 5, 2) for i in range(2000)]).flatten()
    counts = torch.bincount(first, minlength=5).double()
    assert ((counts - 800).square() / 800).sum() < 23.5  # chi-squared, 4 degrees of freedom, p = 1e-4


def test_one_shot_protonet_is_the_nearest_neighbour() -> None:
    net, weights = network("conv4-strided")
    algo = ProtoNet("euclidean", "batch")
    whole = one_task("conv4-strided")
    support = Batch(whole.support.x[::SHOTS], whole.support.y[::SHOTS])
    meta = algo.init(net, weights, SEED)
    logits = algo.predict(net, meta, algo.adapted(net, meta, support, unroll_graph), whole.query.x)
    squared = torch.cdist(net.embed(weights, whole.query.x)[0], net.embed(weights, support.x)[0]) ** 2
    assert distance(logits, -squared) < 1e-12
    assert torch.equal(logits.argmax(1), squared.argmin(1))


@pytest.mark.parametrize("distance_of", ["euclidean", "cosine"])
def test_relabelled_classes_of_protonet(distance_of: str) -> None:
    net, weights = network("conv4-strided")
    algo = ProtoNet(distance_of, "batch")  # type: ignore[arg-type]  # a choice from a list is a str
    meta, task = algo.init(net, weights, SEED), one_task("conv4-strided")
    label = torch.tensor([2, 0, 1])
    plain = algo.predict(net, meta, algo.adapted(net, meta, task.support, unroll_graph), task.query.x)
    renamed = algo.adapted(net, meta, Batch(task.support.x, label[task.support.y]), unroll_graph)
    assert distance(algo.predict(net, meta, renamed, task.query.x)[:, label], plain[:, :WAYS]) < 1e-13
    absent = torch.softmax(plain, 1)[:, WAYS:]
    assert absent.shape[1] == WAYS * (SHOTS - 1)
    assert not absent.any()


@pytest.mark.parametrize("which", GRADIENT)
def test_relabelled_classes_with_a_relabelled_head(which: str) -> None:
    net, weights = network("conv4-strided")
    algo, task, label = ALGOS[which]("batch"), one_task("conv4-strided"), torch.tensor([2, 0, 1])
    back = label.argsort()
    turned = {**weights, "head.weight": weights["head.weight"][back], "head.bias": weights["head.bias"][back]}
    plain, renamed = algo.init(net, weights, SEED), algo.init(net, turned, SEED)
    out = algo.predict(net, plain, algo.adapted(net, plain, task.support, unroll_graph), task.query.x)
    adapted = algo.adapted(net, renamed, Batch(task.support.x, label[task.support.y]), unroll_graph)
    assert distance(algo.predict(net, renamed, adapted, task.query.x)[:, label], out) < 1e-12


@pytest.mark.parametrize("which", [*GRADIENT, "protonet"])
@pytest.mark.parametrize("bn", ["batch", "support", "running"])
def test_permuted_support_rows(which: str, bn: str) -> None:
    net, weights = network("conv4-strided")
    algo, task = ALGOS[which](bn), one_task("conv4-strided")
    meta = grown(algo.init(net, weights, SEED))
    order = torch.randperm(WAYS * SHOTS, generator=torch.Generator().manual_seed(0))
    shuffled = Batch(task.support.x[order], task.support.y[order])
    a, b = (
        algo.predict(net, meta, algo.adapted(net, meta, support, unroll_graph), task.query.x)
        for support in (task.support, shuffled)
    )
    assert distance(a, b) < 1e-12


@pytest.mark.parametrize("bn", ["support", "running"])
@pytest.mark.parametrize("which", ["maml", "anil", "metasgd", "reptile", "protonet"])
def test_without_transduction_a_query_is_scored_alone(which: str, bn: str) -> None:
    net, weights = network("conv4-strided")
    algo, task = ALGOS[which](bn), one_task("conv4-strided")
    meta = grown(algo.init(net, weights, SEED))
    adapted = algo.adapted(net, meta, task.support, unroll_graph)
    together = algo.predict(net, meta, adapted, task.query.x)
    alone = torch.cat([algo.predict(net, meta, adapted, x[None]) for x in task.query.x])
    assert distance(alone, together) < 1e-12


def test_running_statistics_are_an_exponential_average() -> None:
    """One inner step and a query: two passes, each of which moves the statistics a tenth of the way to its batch's."""
    net, weights = network("mlp-batch")
    task = one_task("mlp-batch")
    algo = maml("running", steps=1, test_steps=1, adapt=("head.*",))
    _, aux = algo.meta_loss(net, algo.init(net, weights, SEED), task, torch.tensor(0), unroll_graph)
    hidden = [
        batch.x.flatten(1) @ weights["body.layers.0.weight"].T + weights["body.layers.0.bias"]
        for batch in (task.support, task.query)
    ]
    mean, var = torch.zeros(6).double(), torch.ones(6).double()
    for z in hidden:
        mean, var = 0.9 * mean + 0.1 * z.mean(0), 0.9 * var + 0.1 * z.var(0, correction=0)
    assert distance(aux.buffers["body.layers.1.mean"][0], mean) < 1e-13
    assert distance(aux.buffers["body.layers.1.var"][0], var) < 1e-13


def test_per_step_statistics_have_a_row_for_each_pass() -> None:
    """Only the head adapts, so every inner step sees the same; all rows move once, the last one to the query's."""
    net, weights = network("mlp-batch")
    task = one_task("mlp-batch")
    algo = maml("per_step", steps=3, test_steps=3, adapt=("head.*",))
    _, aux = algo.meta_loss(net, algo.init(net, weights, SEED), task, torch.tensor(0), unroll_graph)
    rows = aux.buffers["body.layers.1.mean"]
    support, query = (
        (x.flatten(1) @ weights["body.layers.0.weight"].T + weights["body.layers.0.bias"]).mean(0)
        for x in (task.support.x, task.query.x)
    )
    assert distance(rows, 0.1 * torch.stack([support, support, support, query])) < 1e-13


def test_sum_over_ways_is_a_step_as_many_times_as_long() -> None:
    net, weights = network("conv4-strided")
    a = maml("batch", inner_lr=0.1, loss_reduction="sum_over_ways")
    b = maml("batch", inner_lr=0.1 * WAYS)
    found, expected = (
        vmap_engine(None).build(algo, net).meta_grad(algo.init(net, weights, SEED), episodes("conv4-strided"), 0)[0]
        for algo in (a, b)
    )
    assert distance(found, expected) < 1e-13


def test_metrics_are_those_of_the_query() -> None:
    net, weights = network("mlp")
    task = one_task("mlp")
    algo, meta = MAML_ONE, MAML_ONE.init(net, weights, SEED)
    _, aux = algo.meta_loss(net, meta, task, torch.tensor(0), unroll_graph)
    out = algo.predict(net, meta, algo.adapted(net, meta, task.support, unroll_graph), task.query.x)
    likelihood = (torch.softmax(out, 1) * one_hot(task.query.y, WAYS)).sum(1)
    assert torch.allclose(aux.metrics["loss"], -likelihood.log().mean(), rtol=1e-12)
    assert aux.metrics["acc"] == (out.argmax(1) == task.query.y).double().mean()


@pytest.mark.parametrize(
    ("cls", "fields", "reason"),
    [
        (MAML, {"steps": 0}, "steps=0: need at least 1"),
        (MAML, {"test_steps": -1}, "test_steps=-1: need at least 1"),
        (MAML, {"inner_lr": 0.0}, "inner_lr=0.0: must be above 0"),
        (MAML, {"inner_lr": float("nan")}, "inner_lr=nan: must be above 0"),
        (MAML, {"derivatives": "third"}, "derivatives=third: choose one of first, second"),
        (MAML, {"adapt": ()}, "adapt=\\[\\]: need at least one pattern"),
        (
            MAML,
            {"bn": "per_step", "test_steps": 9},
            "test_steps=9: bn=per_step has rows for 1 steps; use test_steps <= 1",
        ),
        (MetaSGD, {"loss_reduction": "sum"}, "loss_reduction=sum: choose one of mean, sum_over_ways"),
        (ProtoNet, {"distance": "manhattan"}, "distance=manhattan: choose one of euclidean, cosine"),
        (ProtoNet, {"bn": "per_step"}, "bn=per_step: choose one of batch, support, running"),
        (Reptile, {"inner_batch": 0}, "inner_batch=0: need at least 1"),
        (Reptile, {"inner_optim": "rmsprop"}, "inner_optim=rmsprop: choose one of sgd, adam"),
    ],
)
def test_bad_fields(cls: type, fields: dict[str, object], reason: str) -> None:
    good = {
        MAML: vars(MAML_ONE),
        MetaSGD: vars(metasgd("batch")),
        ProtoNet: {"distance": "euclidean", "bn": "batch"},
        Reptile: vars(Reptile(1, 1, 0.1, None, None, "sgd", "batch")),
    }[cls]
    with pytest.raises(ValueError, match=f"^{reason}"):
        cls(**{**good, **fields})


def test_patterns_that_match_nothing() -> None:
    net, weights = network("mlp")
    with pytest.raises(ValueError, match=r"adapt=\['hed.\*'\]: matches no parameter"):
        replace(MAML_ONE, adapt=("hed.*",)).init(net, weights, SEED)


def one_task(name: str) -> Episode:
    stack = episodes(name, tasks=1)
    return Episode(Batch(*(t[0] for t in stack.support)), Batch(*(t[0] for t in stack.query)), stack.index[0])


def stacked(task: Episode) -> Episode:
    return Episode(Batch(*(t[None] for t in task.support)), Batch(*(t[None] for t in task.query)), task.index[None])
