"""The same algorithms through learn2learn's own wrappers: clone, adapt, backward."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from metarun.algos.inner_loop import matching, measure, objective
from metarun.algos.maml import MAML
from metarun.algos.metasgd import MetaSGD
from metarun.algos.protonet import ProtoNet
from metarun.engine.stacked import mean, num_tasks, tasks, total
from metarun.models.functional import FunctionalNet, quiet_import
from metarun.types import Algorithm, Aux, Engine, Episode, Meta

Outputs = Callable[[Episode, int], Tensor]
REMEDY = "use engine=vmap"


@dataclass(frozen=True)
class L2L:
    def build(self, algo: Algorithm, net: FunctionalNet) -> Engine:
        check(algo, net)
        library = quiet_import("learn2learn")

        def meta_grad(meta: Meta, episode: Episode, _step: int) -> tuple[Meta, Aux]:
            leaves, outputs = wrapped(library, algo, net, meta)
            metrics: dict[str, Tensor] | None = None
            for task in tasks(episode):
                out = outputs(task, getattr(algo, "steps", 0))
                loss = objective(out, task.query.y)
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
                metrics = total(metrics, measure(loss, out, task.query.y))
            assert metrics is not None, "an episode stack of no tasks"
            return mean((gradients(leaves), Aux(metrics, {})), num_tasks(episode))

        def scores(meta: Meta, episode: Episode) -> Tensor:
            _, outputs = wrapped(library, algo, net, meta)
            return torch.stack([outputs(task, getattr(algo, "test_steps", 0)).detach() for task in tasks(episode)])

        return Engine(meta_grad, scores)


def check(algo: Algorithm, net: FunctionalNet) -> None:
    if not isinstance(algo, MAML | MetaSGD | ProtoNet):
        raise ValueError(f"engine=l2l: learn2learn has no wrapper for {type(algo).__name__}; {REMEDY}")
    if algo.bn != "batch":
        raise ValueError(f"engine=l2l: learn2learn normalises by the batch, not by bn={algo.bn}; {REMEDY}")
    if isinstance(algo, ProtoNet):
        return
    names = dict(net.module.named_parameters())
    if set(matching(names, algo.adapt)) not in (set(names), {"head.weight", "head.bias"}):
        raise ValueError(f"engine=l2l: learn2learn adapts all weights or the head, not {list(algo.adapt)}; {REMEDY}")
    if isinstance(algo, MetaSGD) and len(list(net.module.named_parameters(remove_duplicate=False))) > len(names):
        # Its update visits a parameter under each of its names, and finds the gradient spent at the second.
        raise ValueError(f"engine=l2l: learn2learn's MetaSGD does not move weights registered twice; {REMEDY}")


def wrapped(library: ModuleType, algo: Algorithm, net: FunctionalNet, meta: Meta) -> tuple[Meta, Outputs]:
    """Fresh leaves of all that is learned, and a task's query outputs as a function of them."""
    module = deepcopy(net.module).to(next(iter(meta["weights"].values())))
    module.load_state_dict(meta["weights"], strict=False)
    leaves: Meta = {"weights": {n: p for n, p in module.named_parameters() if n in meta["weights"]}}
    if isinstance(algo, ProtoNet):
        return leaves, _prototypical(library, algo, module.body)
    assert isinstance(algo, MAML | MetaSGD)
    head_alone = len(matching(meta["weights"], algo.adapt)) < len(meta["weights"])
    features, part = (module.body, module.head) if head_alone else (nn.Identity(), module)
    first = algo.order == "first"
    if isinstance(algo, MAML):
        return leaves, _adapting(algo, features, library.algorithms.MAML(part, lr=algo.inner_lr, first_order=first))
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    rates = [meta["rates"][names[id(parameter)]].clone() for parameter in part.parameters()]
    lrs = nn.ParameterList([nn.Parameter(rate) for rate in rates])
    leaves["rates"] = {names[id(parameter)]: rate for parameter, rate in zip(part.parameters(), lrs, strict=True)}
    return leaves, _adapting(algo, features, library.algorithms.MetaSGD(part, first_order=first, lrs=lrs))


def _adapting(algo: MAML | MetaSGD, features: nn.Module, wrapper: Any) -> Outputs:
    def outputs(task: Episode, steps: int) -> Tensor:
        learner = wrapper.clone()
        z = features(task.support.x)
        for _ in range(steps):
            out = learner(z)
            scale = out.shape[-1] if algo.loss_reduction == "sum_over_ways" else 1
            learner.adapt(scale * objective(out, task.support.y))
        out_QN: Tensor = learner(features(task.query.x))
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
