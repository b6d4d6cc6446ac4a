"""Every engine against the oracle, in float64: meta-gradients, scores and buffers of every algorithm, model and norm mode."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any

import oracle
import pytest
import torch
from torch import Tensor, nn

from metarun.algos import inner_loop
from metarun.algos.maml import MAML
from metarun.algos.metasgd import MetaSGD
from metarun.algos.protonet import ProtoNet
from metarun.algos.reptile import Reptile
from metarun.engine.l2l import L2L
from metarun.engine.loop import Loop
from metarun.engine.vmap import Vmap
from metarun.models.functional import FunctionalNet, assemble, locate
from metarun.models.layers import BatchNorm
from metarun.types import BUFFERS, Batch, Episode, Meta, Params

EXACT = 1e-10
WAYS, SHOTS, QUERIES, TASKS = 3, 2, 2, 3
LIBRARY = "learn2learn.vision.models."


@dataclass(frozen=True)
class Model:
    target: str
    fields: dict[str, Any]
    shape: tuple[int, ...]
    forward: Callable[[FunctionalNet], oracle.Forward] | None  # None: the module itself, with torch's own batch norm


def conv(downsample: str, pooling: str, norm: str = "batch") -> dict[str, Any]:
    numbers = {"width": 4, "layers": 2, "eps": 1e-5, "momentum": 0.1}
    return {**numbers, "downsample": downsample, "pooling": pooling, "norm": norm}


def dense(norm: str, activation: str = "relu") -> dict[str, Any]:
    return {"sizes": (6, 5), "activation": activation, "norm": norm, "eps": 1e-5, "momentum": 0.1}


CONV, MLP, RESNET = "metarun.models.conv4.Conv4", "metarun.models.mlp.MLP", "metarun.models.resnet12.ResNet12"
MODELS = {
    "conv4-strided": Model(CONV, conv("stride", "mean"), (2, 8, 8), lambda net: oracle.conv4(2, 2)),
    "conv4-pooled": Model(CONV, conv("pool", "flatten"), (2, 8, 8), lambda net: oracle.conv4(2, 1)),
    "conv4-group": Model(CONV, conv("stride", "mean", "group"), (2, 8, 8), None),
    "mlp": Model(MLP, dense("none"), (1, 3, 3), lambda net: oracle.mlp(2, False, lambda x: x.clamp(min=0))),
    "mlp-batch": Model(MLP, dense("batch"), (1, 3, 3), lambda net: oracle.mlp(2, True, lambda x: x.clamp(min=0))),
    "mlp-sine": Model(MLP, dense("none", "tanh"), (1,), lambda net: oracle.mlp(2, False, torch.tanh)),
    "resnet12": Model(
        RESNET, {"widths": (3, 4), "pooling": "mean", "norm": "batch", "eps": 1e-5, "momentum": 0.1}, (2, 8, 8), None
    ),
    "l2l-cnn": Model(LIBRARY + "OmniglotCNN", {"output_size": WAYS, "hidden_size": 3, "layers": 4}, (1, 28, 28), None),
    "l2l-fc": Model(LIBRARY + "OmniglotFC", {"input_size": 9, "output_size": WAYS, "sizes": [5, 4]}, (1, 3, 3), None),
    "l2l-cnn4": Model(
        LIBRARY + "CNN4",
        {"output_size": WAYS, "hidden_size": 3, "layers": 4, "channels": 2, "max_pool": True, "embedding_size": 3},
        (2, 16, 16),
        None,
    ),
}
ALGOS: dict[str, Callable[[Any], Any]] = {
    "maml": lambda bn: MAML(2, tests_of(bn), 0.3, "second", "sum_over_ways", ("*",), bn),
    "fomaml": lambda bn: MAML(2, tests_of(bn), 0.3, "first", "mean", ("*",), bn),
    "anil": lambda bn: MAML(2, tests_of(bn), 0.3, "second", "sum_over_ways", ("head.*",), bn),
    "weights-only": lambda bn: MAML(2, tests_of(bn), 0.3, "second", "mean", ("*weight",), bn),
    "metasgd": lambda bn: MetaSGD(2, tests_of(bn), 0.3, "second", "mean", ("*",), bn),
    "metasgd-first": lambda bn: MetaSGD(2, tests_of(bn), 0.3, "first", "mean", ("head.*",), bn),
    "reptile": lambda bn: Reptile(3, 4, 0.1, 5, 4, "sgd", bn),
    "reptile-adam": lambda bn: Reptile(3, 4, 0.01, None, 4, "adam", bn),
    "protonet": lambda bn: ProtoNet("euclidean", bn),
    "protonet-cosine": lambda bn: ProtoNet("cosine", bn),
}
GRADIENT = ("maml", "fomaml", "anil", "weights-only", "metasgd", "metasgd-first")
CASES = [(model, algo, "batch") for model in MODELS for algo in ALGOS]
CASES += [(m, a, bn) for m in ("conv4-strided", "mlp-batch") for a in ALGOS for bn in ("support", "running")]
CASES += [(model, algo, "per_step") for model in ("conv4-strided", "mlp-batch") for algo in GRADIENT]
# A bias under a batch norm has the gradient zero; Adam divides the rounding error in its place by 1e-8.
CASES = [c for c in CASES if not (c[1] == "reptile-adam" and (c[0].startswith("l2l") or c[0] == "mlp-batch"))]
CASES = [c for c in CASES if not (c[1].startswith("protonet") and c[0] == "mlp-sine")]


def tests_of(bn: str) -> int:
    return 1 if bn == "per_step" else 3


@cache
def network(name: str) -> tuple[FunctionalNet, Params]:
    model = MODELS[name]
    outputs = 1 if name == "mlp-sine" else WAYS
    net, weights = assemble(model.target, model.fields, model.shape, outputs, seed=1)
    net.module.double()
    noise = torch.Generator().manual_seed(2)  # away from gamma = 1 and beta = 0
    return net, {n: w.double() + 0.1 * torch.randn(w.shape, generator=noise).double() for n, w in weights.items()}


def episodes(name: str, seed: int = 3, tasks: int = TASKS) -> Episode:
    dice = torch.Generator().manual_seed(seed)

    def batch(each: int) -> Batch:
        x = torch.randn(tasks, WAYS * each, *MODELS[name].shape, generator=dice).double()
        if name == "mlp-sine":
            return Batch(x, x.sin() + torch.randn(x.shape, generator=dice))
        return Batch(x, torch.arange(WAYS).repeat_interleave(each).repeat(tasks, 1))

    return Episode(batch(SHOTS), batch(QUERIES), torch.arange(7, 7 + tasks))


def oracle_forward(name: str, net: FunctionalNet) -> oracle.Forward:
    model = MODELS[name]
    if model.forward is not None:
        return model.forward(net)
    if not model.target.startswith(LIBRARY):
        module = native(deepcopy(net.module))
        return oracle.swapped(module, lambda place: place)
    module = locate(model.target)(**model.fields).double()
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
            task.batches = [inner_loop.minibatch(seed, k, rows, size) for k in range(steps)]
        found.append(task)
    return found


def setting(name: str, algo: Any, net: FunctionalNet, meta: Meta, steps: int) -> oracle.Setting:
    (pattern,) = getattr(algo, "adapts", ("*",))
    chosen = {"*": lambda n: True, "head.*": lambda n: n.startswith("head."), "*weight": lambda n: n.endswith("weight")}
    moving = [n for n in meta["weights"] if chosen[pattern](n)]
    scaled = getattr(algo, "loss_reduction", "mean") == "sum_over_ways"
    first = getattr(algo, "order", "second") == "first"
    outputs = net.module.head.out_features
    return oracle.Setting(oracle_forward(name, net), steps, first, outputs if scaled else 1, moving, algo.bn)


def expected_gradient(name: str, algo: Any, net: FunctionalNet, meta: Meta, episode: Episode) -> tuple[Meta, Params]:
    how = setting(name, algo, net, meta, getattr(algo, "steps", 0))
    leaves = {e: {n: v.clone().requires_grad_() for n, v in g.items()} for e, g in meta.items() if e != BUFFERS}
    theta, buffers = leaves["weights"], meta.get(BUFFERS, {})
    rates = leaves.get("rates") or {n: torch.tensor(getattr(algo, "inner_lr", 0.0)).double() for n in theta}

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
    rates = meta.get("rates") or {n: torch.tensor(getattr(algo, "inner_lr", 0.0)).double() for n in theta}

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


def distance(a: Meta | Params | Tensor, b: Meta | Params | Tensor) -> float:
    """Of two trees of tensors, relative to the second."""
    x, y = flat(a), flat(b)
    assert x.shape == y.shape
    return ((x - y).norm() / y.norm()).item() if len(y) else 0.0


def flat(tree: Any) -> Tensor:
    if isinstance(tree, Tensor):
        return tree.flatten()
    parts = [flat(tree[name]) for name in sorted(tree)]
    return torch.cat(parts) if parts else torch.zeros(0)


def engines_for(name: str, algo: Any, bn: str) -> list[Any]:
    tied = name == "l2l-cnn" and isinstance(algo, MetaSGD)
    partial = getattr(algo, "adapts", ("*",)) == ("*weight",)
    wrapped = bn == "batch" and not isinstance(algo, Reptile) and not tied and not partial
    return [Vmap(None), Loop(), *([L2L()] if wrapped else [])]


@pytest.mark.parametrize(("name", "which", "bn"), CASES)
def test_all_engines_are_the_oracle(name: str, which: str, bn: str) -> None:
    algo = ALGOS[which](bn)
    net, weights = network(name)
    meta = grown(algo.init(net, weights))
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


def grown(meta: Meta) -> Meta:
    """Buffers as if something had been seen already."""
    noise = torch.Generator().manual_seed(4)
    seen = {n: v + 0.3 * torch.rand(v.shape, generator=noise).double() for n, v in meta.get(BUFFERS, {}).items()}
    return {**meta, BUFFERS: seen} if BUFFERS in meta else meta


@pytest.mark.parametrize("which", ALGOS)
def test_chunks_change_nothing(which: str) -> None:
    algo = ALGOS[which]("running")
    net, weights = network("conv4-strided")
    meta, episode = grown(algo.init(net, weights)), episodes("conv4-strided", tasks=5)
    whole = Vmap(None).build(algo, net)
    gradient, aux = whole.meta_grad(meta, episode, 0)
    for chunk in (1, 2, 5, 9):
        part = Vmap(chunk).build(algo, net)
        found, found_aux = part.meta_grad(meta, episode, 0)
        assert distance(found, gradient) < 1e-13
        assert distance(found_aux.buffers, aux.buffers) < 1e-13
        assert distance(found_aux.metrics, aux.metrics) < 1e-13
        assert distance(part.scores(meta, episode), whole.scores(meta, episode)) < 1e-13


@pytest.mark.parametrize("which", [*GRADIENT, "protonet"])
@pytest.mark.parametrize("bn", ["batch", "support"])
def test_meta_gradient_is_the_slope_of_the_meta_loss(which: str, bn: str) -> None:
    """By central differences along a random direction; tanh, since kinks spoil them."""
    algo = ALGOS[which](bn)
    if getattr(algo, "order", "second") == "first":
        pytest.skip("first order is no gradient of anything")
    net, weights = assemble(MLP, dense("batch", "tanh"), (1, 3, 3), WAYS, seed=1)
    net.module.double()
    meta = algo.init(net, {n: w.double() for n, w in weights.items()})
    episode = episodes("mlp")
    engine = Vmap(None).build(algo, net)
    gradient, _ = engine.meta_grad(meta, episode, 0)
    dice = torch.Generator().manual_seed(5)
    way = {e: {n: torch.randn(v.shape, generator=dice).double() for n, v in g.items()} for e, g in meta.items()}

    def loss(distance: float) -> Tensor:
        moved = {e: {n: v + distance * way[e][n] for n, v in g.items()} for e, g in meta.items()}
        return engine.meta_grad(moved, episode, 0)[1].metrics["loss"]

    slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
    assert abs(slope - flat(gradient) @ flat(way)) < 1e-7 * abs(slope) + 1e-9


@pytest.mark.parametrize("which", ALGOS)
def test_permuted_tasks(which: str) -> None:
    algo = ALGOS[which]("batch")
    net, weights = network("conv4-strided")
    meta, episode = algo.init(net, weights), episodes("conv4-strided")
    order = torch.tensor([2, 0, 1])
    shuffled = Episode(*(Batch(b.x[order], b.y[order]) for b in (episode.support, episode.query)), episode.index[order])
    engine = Vmap(2).build(algo, net)
    assert distance(engine.meta_grad(meta, shuffled, 0)[0], engine.meta_grad(meta, episode, 0)[0]) < 1e-12
    assert distance(engine.scores(meta, shuffled), engine.scores(meta, episode)[order]) < 1e-12


def test_chunk_must_be_positive() -> None:
    with pytest.raises(ValueError, match="chunk=0: need at least 1"):
        Vmap(0)


@pytest.mark.parametrize(
    ("name", "which", "bn", "reason"),
    [
        ("mlp", "reptile", "batch", "no wrapper for Reptile; use engine=vmap"),
        ("mlp-batch", "maml", "running", "not by bn=running; use engine=vmap"),
        ("mlp", "weights-only", "batch", "all weights or the head"),
        ("l2l-cnn", "metasgd", "batch", "registered twice"),
    ],
)
def test_what_learn2learn_has_not_is_refused(name: str, which: str, bn: str, reason: str) -> None:
    net, _ = network(name)
    with pytest.raises(ValueError, match=reason):
        L2L().build(ALGOS[which](bn), net)
