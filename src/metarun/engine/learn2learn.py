"""The same algorithms through learn2learn's own wrappers: clone, adapt, backward."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from metarun.algos.descent import Descent, matching, measure, objective
from metarun.algos.kfo import KFO
from metarun.algos.maml import MAML
from metarun.algos.metacurvature import MetaCurvature
from metarun.algos.metasgd import MetaSGD
from metarun.algos.protonet import ProtoNet
from metarun.engine.task_axis import accumulate, divide_by_count, num_tasks, tasks
from metarun.models.functional import FunctionalNet, Split
from metarun.torch_setup.quiet_import import quiet_import
from metarun.types import Adaptation, Algorithm, Aux, Engine, Episode, Meta, Net, Params

Outputs = Callable[[Episode, int], Tensor]
REMEDY = "use engine=vmap"
HAS = {
    "multi_step_loss_until": 0,
    "second_order_from": 0,
    "outer_loss_on": "query",
    "bn_weights": "shared",
    "rates": "fixed",
}


@dataclass(frozen=True)
class Learn2Learn:
    def build(self, algo: Algorithm[Adaptation], net: Net) -> Engine:
        assert isinstance(net, FunctionalNet), f"{type(net)} has no torch module to wrap"
        check(algo, net)
        library = quiet_import("learn2learn")

        def meta_grad(meta: Meta, episode: Episode, _step: int) -> tuple[Meta, Aux]:
            leaves, outputs = wrapped(library, algo, net, meta)
            metrics: dict[str, Tensor] | None = None
            for task in tasks(episode):
                out = outputs(task, getattr(algo, "steps", 0))
                loss = objective(out, task.query.y)
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
                metrics = accumulate(metrics, measure(loss, out, task.query.y))
            assert metrics is not None, "an episode stack of no tasks"
            return divide_by_count((gradients(leaves), Aux(metrics, {})), num_tasks(episode))

        def scores(meta: Meta, episode: Episode) -> Tensor:
            _, outputs = wrapped(library, algo, net, meta)
            return torch.stack([outputs(task, getattr(algo, "test_steps", 0)).detach() for task in tasks(episode)])

        return Engine(meta_grad, scores)


def check(algo: object, net: FunctionalNet) -> None:
    if not isinstance(algo, MAML | MetaSGD | MetaCurvature | KFO | ProtoNet):
        raise ValueError(f"engine=learn2learn: learn2learn has no wrapper for {type(algo).__name__}; {REMEDY}")
    if algo.bn != "batch":
        raise ValueError(f"engine=learn2learn: learn2learn normalises by the batch, not by bn={algo.bn}; {REMEDY}")
    if isinstance(algo, ProtoNet):
        return
    for key, only in HAS.items():
        value = getattr(algo, key, only)
        if value != only:
            raise ValueError(f"engine=learn2learn: learn2learn has {key}={only} alone, not {key}={value}; {REMEDY}")
    names = dict(net.module.named_parameters())
    body, head = (set(matching(names, (pattern,))) for pattern in ("body.*", "head.*"))
    if set(matching(names, algo.adapt)) not in (body | head, head, body):
        raise ValueError(
            f"engine=learn2learn: learn2learn adapts all weights or the head or the body, not {list(algo.adapt)}; "
            f"{REMEDY}"
        )
    if isinstance(algo, MetaSGD) and len(list(net.module.named_parameters(remove_duplicate=False))) > len(names):
        # Its update visits a parameter under each of its names, and finds the gradient spent at the second.
        raise ValueError(f"engine=learn2learn: learn2learn's MetaSGD does not move weights registered twice; {REMEDY}")
    if isinstance(algo, KFO) and algo.adapt_transform and algo.derivatives == "first":
        # Its first step is of second order then, and its second finds the graph of the loss freed.
        raise ValueError(
            f"engine=learn2learn: learn2learn has no derivatives=first with adapt_transform=true; {REMEDY}"
        )


class Parts(NamedTuple):
    """A network cut into what adapts, what comes before it and what after."""

    before: nn.Module
    adapts: nn.Module
    after: nn.Module
    names: list[str]  # of the parameters of `adapts`


def cut(module: Split, meta: Meta, patterns: tuple[str, ...]) -> Parts:
    moving, nothing = matching(meta["weights"], patterns), nn.Identity()
    chosen: tuple[nn.Module, nn.Module, nn.Module] = (nothing, module.body, module.head)
    if len(moving) == len(meta["weights"]):
        chosen = (nothing, module, nothing)
    elif "head.weight" in moving:
        chosen = (module.body, module.head, nothing)
    known = {id(parameter): name for name, parameter in module.named_parameters()}
    return Parts(*chosen, names=[known[id(parameter)] for parameter in chosen[1].parameters()])


def wrapped(library: ModuleType, algo: object, net: FunctionalNet, meta: Meta) -> tuple[Meta, Outputs]:
    """Fresh leaves of all that is learned, and a task's query outputs as a function of them."""
    module = deepcopy(net.module).to(next(iter(meta["weights"].values())))
    module.load_state_dict(meta["weights"], strict=False)
    leaves: Meta = {"weights": {n: p for n, p in module.named_parameters() if n in meta["weights"]}}
    if isinstance(algo, ProtoNet):
        return leaves, _prototypical(library, algo, module.body)
    assert isinstance(algo, Descent)
    parts = cut(module, meta, algo.adapt)
    for entry in meta.keys() - {"weights"}:
        leaves[entry] = {name: nn.Parameter(value.clone()) for name, value in meta[entry].items()}
    return leaves, _adapting(algo, parts, _wrapper(library, algo, parts, leaves))


def _wrapper(library: ModuleType, algo: Descent, parts: Parts, leaves: Meta) -> Any:
    first, lr, algorithms = algo.derivatives == "first", algo.inner_lr, library.algorithms
    if isinstance(algo, MAML):
        return algorithms.MAML(parts.adapts, lr=lr, first_order=first)
    if isinstance(algo, MetaSGD):
        lrs = nn.ParameterList([leaves["rates"][name] for name in parts.names])
        return algorithms.MetaSGD(parts.adapts, first_order=first, lrs=lrs)
    if isinstance(algo, MetaCurvature):
        learner = algorithms.GBML(parts.adapts, library.optim.MetaCurvatureTransform, lr=lr, first_order=first)
        for name, transform in zip(parts.names, learner.compute_update.transforms_modules, strict=True):
            _fill_curvature(transform, name, leaves["curvature"])
        return learner
    assert isinstance(algo, KFO)
    kronecker = library.optim.KroneckerTransform(_layers(library, algo), bias=algo.bias, psd=algo.psd)
    adapts = algo.adapt_transform
    learner = algorithms.GBML(parts.adapts, kronecker, lr=lr, first_order=first, adapt_transform=adapts)
    for name, transform in zip(parts.names, learner.compute_update.transforms_modules, strict=True):
        _fill_network(transform.transform, name, leaves["network"])
    return learner


def _fill_curvature(transform: nn.Module, name: str, M: Params) -> None:
    """learn2learn calls the first mode "in", and multiplies by its "out" from the right: by M_i transposed."""
    if f"{name}.in" not in M:
        _put(transform, "mc", M[f"{name}.out"])
        return
    _put(transform, "mc_in", M[f"{name}.out"])
    _put(transform, "mc_out", M[f"{name}.in"].T)
    if f"{name}.filter" in M:
        _put(transform, "mc_f", M[f"{name}.filter"])


def _layers(library: ModuleType, algo: KFO) -> Callable[..., nn.Module]:
    def stack(**sizes: Any) -> nn.Module:
        parts: list[nn.Module] = []
        for _ in range(algo.layers):
            parts += [library.nn.KroneckerLinear(**sizes), nn.ReLU() if algo.activation == "relu" else nn.Identity()]
        return nn.Sequential(*parts[:-1])

    return stack


def _fill_network(network: nn.Sequential, name: str, xi: Params) -> None:
    for i, layer in enumerate(network[::2]):
        for factor in ("left", "right", "bias"):
            if f"{name}.{i}.{factor}" in xi:
                _put(layer, factor, xi[f"{name}.{i}.{factor}"])


def _put(module: nn.Module, name: str, value: Tensor) -> None:
    delattr(module, name)  # or torch takes nothing but a parameter in its place
    setattr(module, name, value)


def _adapting(algo: Descent, parts: Parts, wrapper: Any) -> Outputs:
    def outputs(task: Episode, steps: int) -> Tensor:
        learner = wrapper.clone()
        z = parts.before(task.support.x)
        for _ in range(steps):
            out = parts.after(learner(z))
            scale = out.shape[-1] if algo.loss_reduction == "sum_over_ways" else 1
            learner.adapt(scale * objective(out, task.support.y))
        out_QN: Tensor = parts.after(learner(parts.before(task.query.x)))
        return out_QN

    return outputs


def _prototypical(library: ModuleType, algo: ProtoNet, body: nn.Module) -> Outputs:
    def outputs(task: Episode, _steps: int) -> Tensor:
        classifier = library.nn.PrototypicalClassifier(body(task.support.x), task.support.y, distance=algo.distance)
        logits_QN = classifier(body(task.query.x))
        absent = len(task.support.y) - logits_QN.shape[1]
        return pad(logits_QN, (0, absent), value=torch.finfo(logits_QN.dtype).min)

    return outputs


def gradients(leaves: Meta) -> Meta:
    def of(leaf: Tensor) -> Tensor:
        return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad

    return {entry: {name: of(leaf) for name, leaf in group.items()} for entry, group in leaves.items()}
