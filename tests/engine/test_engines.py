"""Every engine against the oracle in float64: meta-gradients, scores, buffers; by algorithm, model and norm mode."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metarun.algos.metasgd import MetaSGD
from metarun.algos.pieces.minibatches import minibatch_rows
from metarun.algos.protonet import ProtoNet
from metarun.algos.reptile import Reptile
from metarun.engine.learn2learn import Learn2Learn
from metarun.engine.loop import Loop
from metarun.models.functional import FunctionalNet, module_class
from metarun.models.layers import BatchNorm
from metarun.types import BUFFERS, Batch, Episode, Meta, Params
from support import oracle
from support.engines import vmap_engine
from support.small import ALGOS, GRADIENT, LIBRARY, MODELS, SEED, distance, episodes, flat, grown, network

EXACT = 1e-10
CASES = [(model, algo, "batch") for model in MODELS for algo in ALGOS]
CASES += [(m, a, bn) for m in ("conv4-strided", "mlp-batch") for a in ALGOS for bn in ("support", "running")]
CASES += [(model, algo, "per_step") for model in ("conv4-strided", "mlp-batch") for algo in GRADIENT]
# A bias under a batch norm has the gradient zero; Adam divides the rounding error in its place by 1e-8.
CASES = [
    c for c in CASES if not (c[1] == "reptile-adam" and (c[0].startswith("l2l") or c[0] in ("mlp-batch", "mlp-tanh")))
]
CASES = [c for c in CASES if not (c[1].startswith("protonet") and c[0] == "mlp-sine")]


def oracle_forward(name: str, net: FunctionalNet) -> oracle.Forward:
    model = MODELS[name]
    if model.forward is not None:
        return model.forward
    if not model.target.startswith(LIBRARY):
        module = native(deepcopy(net.module))
        return oracle.swapped(module, lambda place: place)
    module = module_class(model.target)(**model.fields).double()
    return oracle.swapped(module, lambda place: f"body.{place}".replace("body.classifier", "head"))


def native(module: nn.Module) -> nn.Module:
    for parent in list(module.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, BatchNorm):
                setattr(parent, name, nn.BatchNorm2d(layer.channels, layer.eps, track_running_stats=False).double())
    return module


def tasks_of(algo: Any, episode: Episode, training: bool) -> list[oracle.Task]:
    found = []
    for i, number in enumerate(episode.index):
        task = oracle.Task(episode.support.x[i], episode.support.y[i], episode.query.x[i], episode.query.y[i])
        if isinstance(algo, Reptile):
            rows = len(task.x_s) + len(task.x_q) if training else len(task.x_s)
            size = (algo.inner_batch if training else algo.test_batch) or rows
            seed = number if training else torch.tensor(0)
            steps = algo.steps if training else algo.test_steps
            task.batches = [minibatch_rows(seed, k, rows, size) for k in range(steps)]
        found.append(task)
    return found


def setting(name: str, algo: Any, net: FunctionalNet, meta: Meta, steps: int) -> oracle.Setting:
    (pattern,) = getattr(algo, "adapt", ("*",))
    first, last = pattern.split("*")
    moving = [name for name in meta["weights"] if name.startswith(first) and name.endswith(last)]
    scaled = getattr(algo, "loss_reduction", "mean") == "sum_over_ways"
    constant = getattr(algo, "derivatives", "second") == "first"
    outputs = net.module.head.out_features
    return oracle.Setting(oracle_forward(name, net), steps, constant, outputs if scaled else 1, moving, algo.bn)


def expected_gradient(name: str, algo: Any, net: FunctionalNet, meta: Meta, episode: Episode) -> tuple[Meta, Params]:
    how = setting(name, algo, net, meta, getattr(algo, "steps", 0))
    leaves = {e: {n: v.clone().requires_grad_() for n, v in g.items()} for e, g in meta.items() if e != BUFFERS}
    theta, buffers = leaves["weights"], meta.get(BUFFERS, {})
    rates = leaves.get("rates") or {n: torch.tensor(getattr(algo, "inner_lr", 0.0), dtype=torch.float64) for n in theta}

    def loss(task: oracle.Task) -> tuple[Tensor, Params]:
        if isinstance(algo, ProtoNet):
            _, value, after = oracle.protonet(how, headless(net, theta), task, buffers, True, algo.distance == "cosine")
            return value, after
        if isinstance(algo, Reptile):
            w, after = oracle.reptile(how, theta, algo.inner_lr, algo.inner_optim == "adam", task, buffers, True)
            return torch.stack([((v - w[n]).detach() * v).sum() for n, v in theta.items()]).sum(), after
        return oracle.maml_loss(how, theta, rates, task, buffers)

    flat = [leaf for group in leaves.values() for leaf in group.values()]
    found, after = oracle.meta_gradient(loss, flat, tasks_of(algo, episode, training=True))
    gradients = iter(found)
    return {e: {n: next(gradients) for n in g} for e, g in leaves.items()}, after


def expected_scores(name: str, algo: Any, net: FunctionalNet, meta: Meta, episode: Episode) -> Tensor:
    how = setting(name, algo, net, meta, getattr(algo, "test_steps", 0))
    theta, buffers = meta["weights"], meta.get(BUFFERS, {})
    rates = meta.get("rates") or {n: torch.tensor(getattr(algo, "inner_lr", 0.0), dtype=torch.float64) for n in theta}

    def score(task: oracle.Task) -> Tensor:
        if isinstance(algo, ProtoNet):
            return oracle.protonet(how, headless(net, theta), task, buffers, False, algo.distance == "cosine")[
                0
            ].detach()
        if isinstance(algo, Reptile):
            adam = algo.inner_optim == "adam"
            w, _ = oracle.reptile(how, theta, algo.inner_lr, adam, task, buffers, False)
            return oracle.query_scores(how, w, task, buffers)
        return oracle.maml_scores(how, theta, rates, task, buffers)

    return torch.stack([score(task) for task in tasks_of(algo, episode, training=False)])


def headless(net: FunctionalNet, body: Params) -> Params:
    """With a head that changes nothing, so that the oracle's outputs are embeddings."""
    size = net.module.head.in_features
    return {**body, "head.weight": torch.eye(size).double(), "head.bias": torch.zeros(size).double()}


def engines_for(name: str, algo: Any, bn: str) -> list[Any]:
    tied = name == "l2l-cnn" and isinstance(algo, MetaSGD)
    partial = getattr(algo, "adapt", ("*",)) == ("*weight",)
    wrapped = bn == "batch" and not isinstance(algo, Reptile) and not tied and not partial
    return [vmap_engine(None), Loop(), *([Learn2Learn()] if wrapped else [])]


@pytest.mark.parametrize(("name", "which", "bn"), CASES)
def test_all_engines_are_the_oracle(name: str, which: str, bn: str) -> None:
    algo = ALGOS[which](bn)
    net, weights = network(name)
    meta = grown(algo.init(net, weights, SEED))
    episode = episodes(name)
    gradient, buffers = expected_gradient(name, algo, net, meta, episode)
    scores = expected_scores(name, algo, net, meta, episode)
    assert flat(gradient).norm() > 1e-3
    for settings in engines_for(name, algo, bn):
        engine = settings.build(algo, net)
        found, aux = engine.meta_grad(meta, episode, 0)
        assert distance(found, gradient) < EXACT, settings
        assert distance(engine.scores(meta, episode)[..., : scores.shape[-1]], scores) < EXACT, settings
        assert aux.buffers.keys() == buffers.keys()
        assert distance(aux.buffers, buffers) < EXACT, settings
        assert not any(value.requires_grad for value in (*aux.buffers.values(), *aux.metrics.values()))


@pytest.mark.parametrize("which", ALGOS)
def test_chunks_change_nothing(which: str) -> None:
    algo = ALGOS[which]("running")
    net, weights = network("conv4-strided")
    meta, episode = grown(algo.init(net, weights, SEED)), episodes("conv4-strided", tasks=5)
    whole = vmap_engine(None).build(algo, net)
    gradient, aux = whole.meta_grad(meta, episode, 0)
    for chunk in (1, 2, 5, 9):
        part = vmap_engine(chunk).build(algo, net)
        found, found_aux = part.meta_grad(meta, episode, 0)
        assert distance(found, gradient) < 1e-13
        assert distance(found_aux.buffers, aux.buffers) < 1e-13
        assert distance(found_aux.metrics, aux.metrics) < 1e-13
        assert distance(part.scores(meta, episode), whole.scores(meta, episode)) < 1e-13


@pytest.mark.parametrize("which", ["maml", "anil", "weights-only", "metasgd", "protonet"])
@pytest.mark.parametrize("bn", ["batch", "support"])
def test_meta_gradient_is_the_slope_of_the_meta_loss(which: str, bn: str) -> None:
    """By finite differences along a random direction; with tanh, since kinks spoil them."""
    algo = ALGOS[which](bn)
    net, weights = network("mlp-tanh")
    meta, episode = algo.init(net, weights, SEED), episodes("mlp-tanh")
    engine = vmap_engine(None).build(algo, net)
    gradient, _ = engine.meta_grad(meta, episode, 0)
    dice = torch.Generator().manual_seed(5)
    way = {e: {n: torch.randn(v.shape, generator=dice).double() for n, v in g.items()} for e, g in meta.items()}
    length = flat(way).norm()

    def loss(share: float) -> Tensor:
        moved = {e: {n: v + share / length * way[e][n] for n, v in g.items()} for e, g in meta.items()}
        return engine.meta_grad(moved, episode, 0)[1].metrics["loss"]

    h = 1e-3  # five points: the error is of order h^4, that of rounding 1e-16 / h
    slope = (8 * (loss(h) - loss(-h)) - (loss(2 * h) - loss(-2 * h))) / (12 * h)
    assert abs(slope - flat(gradient) @ flat(way) / length) < 1e-8 * flat(gradient).norm()


@pytest.mark.parametrize("which", ALGOS)
def test_permuted_tasks(which: str) -> None:
    algo = ALGOS[which]("batch")
    net, weights = network("conv4-strided")
    meta, episode = algo.init(net, weights, SEED), episodes("conv4-strided")
    order = torch.tensor([2, 0, 1])
    support, query = (Batch(batch.x[order], batch.y[order]) for batch in (episode.support, episode.query))
    shuffled = Episode(support, query, episode.index[order])
    engine = vmap_engine(2).build(algo, net)
    assert distance(engine.meta_grad(meta, shuffled, 0)[0], engine.meta_grad(meta, episode, 0)[0]) < 1e-12
    assert distance(engine.scores(meta, shuffled), engine.scores(meta, episode)[order]) < 1e-12


def test_chunk_must_be_positive() -> None:
    with pytest.raises(ValueError, match="chunk=0: need at least 1"):
        vmap_engine(0)


@pytest.mark.parametrize(
    ("name", "which", "bn", "reason"),
    [
        ("mlp", "reptile", "batch", "no wrapper for Reptile; use engine=vmap"),
        ("mlp-batch", "maml", "running", "not by bn=running; use engine=vmap"),
        ("mlp", "weights-only", "batch", "all weights or the head"),
        ("l2l-cnn", "metasgd", "batch", "registered twice"),
    ],
)
def test_what_learn2learn_lacks_is_refused(name: str, which: str, bn: str, reason: str) -> None:
    net, _ = network(name)
    with pytest.raises(ValueError, match=reason):
        Learn2Learn().build(ALGOS[which](bn), net)


@pytest.mark.parametrize(
    ("name", "fields", "size"),
    [
        ("conv4-strided", {}, 8),
        ("conv4-strided", {"compile": "on"}, 1),
        ("conv4-strided", {"memory": "adjoint"}, 1),
        ("conv4-strided", {"memory": "checkpoint"}, 1),
        ("mlp-sine", {"memory": "adjoint"}, 9),
    ],
)
def test_chunk_auto_is_small_for_images_on_a_cpu(name: str, fields: dict[str, Any], size: int) -> None:
    assert vmap_engine("auto", **fields).chunk_size(episodes(name, tasks=9)) == size
