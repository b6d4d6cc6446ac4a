"""The same algorithms executed by learn2learn's own wrappers (clone, adapt, backward): a reference for our engines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from metarun.algos.descent import Descent
from metarun.algos.kfo import KFO
from metarun.algos.maml import MAML
from metarun.algos.metacurvature import MetaCurvature
from metarun.algos.metasgd import MetaSGD
from metarun.algos.pieces.losses import metrics_of, task_loss
from metarun.algos.pieces.weights import select_weights
from metarun.algos.protonet import ProtoNet
from metarun.engine.task_axis import accumulate, divide_by_count, num_tasks, tasks
from metarun.models.functional import BodyAndHead, FunctionalNet
from metarun.torch_setup.quiet_import import quiet_import
from metarun.types import Adaptation, Algorithm, Aux, Engine, Episode, Meta, Net, Params

WrappedDescent = MAML | MetaSGD | MetaCurvature | KFO
Wrapped = WrappedDescent | ProtoNet
QueryOutputs = Callable[[Episode, int], Tensor]
"""(task, number of inner steps) -> outputs_QN"""


@dataclass(frozen=True)
class Learn2Learn:
    def build(self, algo: Algorithm[Adaptation], net: Net) -> Engine:
        assert isinstance(net, FunctionalNet), f"{type(net)} has no torch module to wrap"
        wrapped = _supported(algo, net)
        steps, test_steps = (wrapped.steps, wrapped.test_steps) if isinstance(wrapped, Descent) else (0, 0)
        library = quiet_import("learn2learn")

        def meta_grad(meta: Meta, episode: Episode, _step: int) -> tuple[Meta, Aux]:
            leaves, outputs = _wrap(library, wrapped, net, meta)
            metrics: dict[str, Tensor] | None = None
            for task in tasks(episode):
                out_QN = outputs(task, steps)
                loss = task_loss(out_QN, task.query.y)
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
                metrics = accumulate(metrics, metrics_of(loss, out_QN, task.query.y))
            assert metrics is not None, "an episode of no tasks"
            return divide_by_count((_summed_gradients(leaves), Aux(metrics, {})), num_tasks(episode))

        def scores(meta: Meta, episode: Episode) -> Tensor:
            _, outputs = _wrap(library, wrapped, net, meta)
            return torch.stack([outputs(task, test_steps).detach() for task in tasks(episode)])

        return Engine(meta_grad, scores)


def _supported(algo: object, net: FunctionalNet) -> Wrapped:
    """`algo`, or a ValueError that says which of its settings learn2learn does not have."""
    if not isinstance(algo, Wrapped):
        raise _refusal(f"has no wrapper for {type(algo).__name__}")
    if algo.bn != "batch":
        raise _refusal(f"normalises by the batch, not by bn={algo.bn}")
    if isinstance(algo, ProtoNet):
        return algo
    for key, only, value in _fixed_settings(algo):
        if value != only:
            raise _refusal(f"has {key}={only} alone, not {key}={value}")
    names = dict(net.module.named_parameters())
    body, head = (set(select_weights(names, (pattern,))) for pattern in ("body.*", "head.*"))
    if set(select_weights(names, algo.adapt)) not in (body | head, head, body):
        raise _refusal(f"adapts all weights or the head or the body, not {list(algo.adapt)}")
    if isinstance(algo, MetaSGD) and len(list(net.module.named_parameters(remove_duplicate=False))) > len(names):
        # Its update visits a parameter under each of its names; at the second one the gradient is gone.
        raise _refusal("does not move weights registered twice with MetaSGD")
    if isinstance(algo, KFO) and algo.adapt_transform and algo.derivatives == "first":
        # Its first step then is of second order, and at its second step the graph of the loss has been freed.
        raise _refusal("has no derivatives=first with adapt_transform=true")
    return algo


def _refusal(reason: str) -> ValueError:
    return ValueError(f"learn2learn {reason}; use engine=vmap")


def _fixed_settings(algo: WrappedDescent) -> Iterator[tuple[str, object, object]]:
    """(field, the only value that learn2learn has, the value asked for)"""
    yield "multi_step_loss_until", 0, algo.multi_step_loss_until
    yield "second_order_from", 0, algo.second_order_from
    yield "outer_loss_on", "query", algo.outer_loss_on
    yield "bn_weights", "shared", algo.bn_weights
    if isinstance(algo, MAML):
        yield "rates", "fixed", algo.rates


def _wrap(library: ModuleType, algo: Wrapped, net: FunctionalNet, meta: Meta) -> tuple[Meta, QueryOutputs]:
    """New leaves of all that is learned, and the query outputs of a task as a function of them."""
    module = deepcopy(net.module).to(next(iter(meta["weights"].values())))
    module.load_state_dict(meta["weights"], strict=False)
    leaves: Meta = {"weights": {n: p for n, p in module.named_parameters() if n in meta["weights"]}}
    if isinstance(algo, ProtoNet):
        return leaves, _prototypical_outputs(library, algo, module.body)
    parts = _cut_at_adapted(module, meta, algo.adapt)
    for group in meta.keys() - {"weights"}:
        leaves[group] = {name: nn.Parameter(value.clone()) for name, value in meta[group].items()}
    return leaves, _adapted_outputs(algo, parts, _learner(library, algo, parts, leaves))


class AdaptedParts(NamedTuple):
    """A network cut into the part that adapts, what comes before it and what comes after it."""

    before: nn.Module
    adapted: nn.Module
    after: nn.Module
    names: list[str]  # of the parameters of `adapted`


def _cut_at_adapted(module: BodyAndHead, meta: Meta, patterns: tuple[str, ...]) -> AdaptedParts:
    adapted, identity = select_weights(meta["weights"], patterns), nn.Identity()
    parts: tuple[nn.Module, nn.Module, nn.Module] = (identity, module.body, module.head)
    if len(adapted) == len(meta["weights"]):
        parts = (identity, module, identity)
    elif "head.weight" in adapted:
        parts = (module.body, module.head, identity)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return AdaptedParts(*parts, names=[names[id(parameter)] for parameter in parts[1].parameters()])


class Learner(Protocol):
    """What learn2learn's wrappers have in common."""

    def __call__(self, x: Tensor, /) -> Tensor: ...

    def clone(self) -> Learner: ...

    def adapt(self, loss: Tensor, /) -> None: ...


def _learner(
    library: ModuleType, algo: MAML | MetaSGD | MetaCurvature | KFO, parts: AdaptedParts, leaves: Meta
) -> Learner:
    first_order, lr, algorithms = algo.derivatives == "first", algo.inner_lr, library.algorithms
    learner: Learner
    if isinstance(algo, MAML):
        learner = algorithms.MAML(parts.adapted, lr=lr, first_order=first_order)
    elif isinstance(algo, MetaSGD):
        lrs = nn.ParameterList([leaves["rates"][name] for name in parts.names])
        learner = algorithms.MetaSGD(parts.adapted, first_order=first_order, lrs=lrs)
    elif isinstance(algo, MetaCurvature):
        curvature = library.optim.MetaCurvatureTransform
        learner = gbml = algorithms.GBML(parts.adapted, curvature, lr=lr, first_order=first_order)
        for name, transform in zip(parts.names, gbml.compute_update.transforms_modules, strict=True):
            _fill_curvature(transform, name, leaves["curvature"])
    else:
        kronecker = library.optim.KroneckerTransform(_kronecker_network(library, algo), bias=algo.bias, psd=algo.psd)
        adapt_transform = algo.adapt_transform
        learner = gbml = algorithms.GBML(
            parts.adapted, kronecker, lr=lr, first_order=first_order, adapt_transform=adapt_transform
        )
        for name, transform in zip(parts.names, gbml.compute_update.transforms_modules, strict=True):
            _fill_kronecker(transform.transform, name, leaves["network"])
    return learner


def _fill_curvature(transform: nn.Module, name: str, M: Params) -> None:
    """learn2learn calls the first mode "in", and multiplies by its "out" from the right, that is by M_i transposed."""
    if f"{name}.in" not in M:
        _set_tensor(transform, "mc", M[f"{name}.out"])
        return
    _set_tensor(transform, "mc_in", M[f"{name}.out"])
    _set_tensor(transform, "mc_out", M[f"{name}.in"].T)
    if f"{name}.filter" in M:
        _set_tensor(transform, "mc_f", M[f"{name}.filter"])


def _kronecker_network(library: ModuleType, algo: KFO) -> Callable[..., nn.Module]:
    """What KroneckerTransform calls with the sizes of one parameter."""

    def network(**sizes: int) -> nn.Module:
        layers: list[nn.Module] = []
        for _ in range(algo.layers):
            layers += [library.nn.KroneckerLinear(**sizes), nn.ReLU() if algo.activation == "relu" else nn.Identity()]
        return nn.Sequential(*layers[:-1])

    return network


def _fill_kronecker(network: nn.Sequential, name: str, xi: Params) -> None:
    for i, layer in enumerate(network[::2]):
        for factor in ("left", "right", "bias"):
            if f"{name}.{i}.{factor}" in xi:
                _set_tensor(layer, factor, xi[f"{name}.{i}.{factor}"])


def _set_tensor(module: nn.Module, name: str, value: Tensor) -> None:
    delattr(module, name)  # in the place of a parameter torch accepts nothing but a parameter
    setattr(module, name, value)


def _adapted_outputs(algo: WrappedDescent, parts: AdaptedParts, learner: Learner) -> QueryOutputs:
    def outputs(task: Episode, steps: int) -> Tensor:
        adapted = learner.clone()
        z = parts.before(task.support.x)
        for _ in range(steps):
            out_SN = parts.after(adapted(z))
            scale = out_SN.shape[-1] if algo.loss_reduction == "sum_over_ways" else 1
            adapted.adapt(scale * task_loss(out_SN, task.support.y))
        out_QN: Tensor = parts.after(adapted(parts.before(task.query.x)))
        return out_QN

    return outputs


def _prototypical_outputs(library: ModuleType, algo: ProtoNet, body: nn.Module) -> QueryOutputs:
    """As many columns as support items, like ours: learn2learn has one for each label that occurs."""

    def outputs(task: Episode, _steps: int) -> Tensor:
        classifier = library.nn.PrototypicalClassifier(body(task.support.x), task.support.y, distance=algo.distance)
        logits_QN = classifier(body(task.query.x))
        absent = len(task.support.y) - logits_QN.shape[1]
        return pad(logits_QN, (0, absent), value=torch.finfo(logits_QN.dtype).min)

    return outputs


def _summed_gradients(leaves: Meta) -> Meta:
    """What the backward passes of all tasks have added up; zeros where nothing depends on a leaf."""

    def gradient(leaf: Tensor) -> Tensor:
        return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad

    return {group: {name: gradient(leaf) for name, leaf in params.items()} for group, params in leaves.items()}
