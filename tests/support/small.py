"""Small float64 networks, the algorithms in their variants, and episodes of noise, for tests of the numerical core."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from metarun.algos.maml import MAML
from metarun.algos.metasgd import MetaSGD
from metarun.algos.protonet import ProtoNet
from metarun.algos.reptile import Reptile
from metarun.models.functional import FunctionalNet, build_net
from metarun.types import BUFFERS, Batch, Episode, Meta, Params
from support import oracle

WAYS, SHOTS, QUERIES, TASKS = 3, 2, 2, 3
LIBRARY = "learn2learn.vision.models."


@dataclass(frozen=True)
class Model:
    target: str
    fields: dict[str, Any]
    shape: tuple[int, ...]
    forward: oracle.Forward | None  # None: the module itself, with torch's own batch norm


def conv(downsample: str, pooling: str, norm: str = "batch") -> dict[str, Any]:
    numbers = {"width": 4, "layers": 2, "eps": 1e-5, "momentum": 0.1}
    return {**numbers, "downsample": downsample, "pooling": pooling, "norm": norm}


def dense(norm: str, activation: str = "relu") -> dict[str, Any]:
    return {"sizes": (6, 5), "activation": activation, "norm": norm, "eps": 1e-5, "momentum": 0.1}


CONV, MLP, RESNET = "metarun.models.conv4.Conv4", "metarun.models.mlp.MLP", "metarun.models.resnet12.ResNet12"
MODELS = {
    "conv4-strided": Model(CONV, conv("stride", "mean"), (2, 8, 8), oracle.conv4(2, 2)),
    "conv4-pooled": Model(CONV, conv("pool", "flatten"), (2, 8, 8), oracle.conv4(2, 1)),
    "conv4-group": Model(CONV, conv("stride", "mean", "group"), (2, 8, 8), None),
    "mlp": Model(MLP, dense("none"), (1, 3, 3), oracle.mlp(2, False, torch.relu)),
    "mlp-batch": Model(MLP, dense("batch"), (1, 3, 3), oracle.mlp(2, True, torch.relu)),
    "mlp-tanh": Model(MLP, dense("batch", "tanh"), (1, 3, 3), oracle.mlp(2, True, torch.tanh)),
    "mlp-sine": Model(MLP, dense("none", "tanh"), (1,), oracle.mlp(2, False, torch.tanh)),
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


def steps_at_test(bn: str) -> int:
    return 1 if bn == "per_step" else 3


def descent(bn: str, **changes: Any) -> dict[str, Any]:
    """The fields that all gradient-based algorithms share."""
    plain = {
        "steps": 2,
        "test_steps": steps_at_test(bn),
        "inner_lr": 0.3,
        "derivatives": "second",
        "second_order_from": 0,
        "multi_step_loss_until": 0,
        "loss_reduction": "mean",
        "adapt": ("*",),
        "outer_loss_on": "query",
        "bn": bn,
        "bn_weights": "shared",
    }
    assert changes.keys() <= plain.keys(), changes.keys() - plain.keys()
    return {**plain, **changes}


def maml(bn: str, rates: Any = "fixed", **changes: Any) -> MAML:
    return MAML(**descent(bn, **changes), rates=rates)


def metasgd(bn: str, **changes: Any) -> MetaSGD:
    return MetaSGD(**descent(bn, **changes))


ALGOS: dict[str, Callable[[Any], Any]] = {
    "maml": lambda bn: maml(bn, loss_reduction="sum_over_ways"),
    "fomaml": lambda bn: maml(bn, derivatives="first"),
    "anil": lambda bn: maml(bn, loss_reduction="sum_over_ways", adapt=("head.*",)),
    "weights-only": lambda bn: maml(bn, adapt=("*weight",)),
    "metasgd": lambda bn: metasgd(bn),
    "metasgd-first": lambda bn: metasgd(bn, derivatives="first", adapt=("head.*",)),
    "reptile": lambda bn: Reptile(3, 4, 0.1, 5, 4, "sgd", bn),
    "reptile-adam": lambda bn: Reptile(3, 4, 0.01, None, 4, "adam", bn),
    "protonet": lambda bn: ProtoNet("euclidean", bn),
    "protonet-cosine": lambda bn: ProtoNet("cosine", bn),
}
GRADIENT = ("maml", "fomaml", "anil", "weights-only", "metasgd", "metasgd-first")
SEED = 6  # of what an algorithm draws for itself


@cache
def network(name: str) -> tuple[FunctionalNet, Params]:
    model = MODELS[name]
    outputs = 1 if name == "mlp-sine" else WAYS
    net, weights = build_net(model.target, model.fields, model.shape, outputs, seed=1)
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


def grown(meta: Meta) -> Meta:
    """Buffers as if something had been seen already."""
    noise = torch.Generator().manual_seed(4)
    seen = {n: v + 0.3 * torch.rand(v.shape, generator=noise).double() for n, v in meta.get(BUFFERS, {}).items()}
    return {**meta, BUFFERS: seen} if BUFFERS in meta else meta


def distance(a: Meta | Params | Tensor, b: Meta | Params | Tensor) -> float:
    """Of two trees of tensors, relative to the second."""
    x, y = flat(a), flat(b)
    assert x.shape == y.shape
    size = y.norm().item() if len(y) else 0.0
    return float((x - y).norm().item() / (size or 1.0))


def flat(tree: Any) -> Tensor:
    if isinstance(tree, Tensor):
        return tree.flatten()
    parts = [flat(tree[name]) for name in sorted(tree)]
    return torch.cat(parts) if parts else torch.zeros(0)
