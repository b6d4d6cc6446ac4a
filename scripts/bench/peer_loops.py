"""Meta-gradients by learn2learn, higher, torchopt and plain torch.autograd, written as their users write them.

One task after another, on a plain torch module. Objects that a library needs are built once, outside the timed step,
wherever the library allows it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from copy import deepcopy
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, mse_loss

from bench import peer_packages
from bench.torch_modules import BodyAndHead, parameter_names, torch_module
from bench.unavailable import Unavailable
from bench.workloads import Job
from metarun.algos.descent import Descent, RuleState
from metarun.algos.maml import MAML
from metarun.algos.metasgd import MetaSGD
from metarun.algos.pieces.minibatches import minibatch_rows
from metarun.algos.protonet import ProtoNet
from metarun.algos.reptile import BETA_2, Reptile
from metarun.torch_setup.quiet_import import quiet_import
from metarun.types import Episode, Meta

MetaGradient = Callable[[Episode], Meta]
"""Meta-gradient of an episode, mean over its tasks."""


def task_loss(out: Tensor, y: Tensor) -> Tensor:
    return mse_loss(out, y) if y.is_floating_point() else cross_entropy(out, y)


def each_task(episode: Episode) -> Iterable[tuple[Tensor, Tensor, Tensor, Tensor]]:
    return zip(*episode.support, *episode.query, strict=True)


def frozen_and_adapted(algo: Descent[RuleState], module: BodyAndHead) -> tuple[nn.Module, nn.Module]:
    """The module as two: layers that the inner loop leaves alone, and layers that it adapts."""
    if algo.adapt == ("*",):
        return nn.Identity(), module
    if algo.adapt == ("head.*",):
        return module.body, module.head
    raise Unavailable(f"the bench has no loop for algo.adapt={list(algo.adapt)}")


def mean_gradients(job: Job, parameters: Iterable[nn.Parameter], count: int) -> Meta:
    """Divides the sums over tasks in .grad by `count`, and clears .grad."""
    found: dict[str, Tensor] = {}
    for name, parameter in zip(parameter_names(job), parameters, strict=True):
        if parameter.grad is not None:
            found[name] = parameter.grad.div_(count)
        parameter.grad = None
    return {"weights": found}


def learn2learn(job: Job) -> MetaGradient:
    return learn2learn_with(job, torch_module(job))


def learn2learn_with(job: Job, module: BodyAndHead) -> MetaGradient:
    """clone, adapt, backward for each task, as in learn2learn's examples."""
    library, algo = quiet_import("learn2learn"), job.algo
    if isinstance(algo, Reptile):
        return _reptile(job, algo, module)  # learn2learn's Reptile example uses no more of the library
    if isinstance(algo, ProtoNet):
        return _prototypical(job, algo, module, library)
    assert isinstance(algo, MAML | MetaSGD), f"no learn2learn loop for {algo}"
    before, adapts = frozen_and_adapted(algo, module)
    lrs: nn.ParameterList | None = None
    if isinstance(algo, MetaSGD):
        lrs = nn.ParameterList([job.meta["rates"][name].clone() for name in parameter_names(job)])
        learned = library.algorithms.MetaSGD(adapts, first_order=algo.derivatives == "first", lrs=lrs)
    else:
        learned = library.algorithms.MAML(adapts, lr=algo.inner_lr, first_order=algo.derivatives == "first")

    def step(episode: Episode) -> Meta:
        for x_s, y_s, x_q, y_q in each_task(episode):
            learner = learned.clone()
            z = before(x_s)
            for _ in range(algo.steps):
                learner.adapt(task_loss(learner(z), y_s))
            task_loss(learner(before(x_q)), y_q).backward()  # type: ignore[no-untyped-call]
        found = mean_gradients(job, module.parameters(), job.tasks)
        if lrs is not None:
            found["rates"] = mean_gradients(job, lrs, job.tasks)["weights"]
        return found

    return step


def _prototypical(job: Job, algo: ProtoNet, module: BodyAndHead, library: ModuleType) -> MetaGradient:
    def step(episode: Episode) -> Meta:
        for x_s, y_s, x_q, y_q in each_task(episode):
            classifier = library.nn.PrototypicalClassifier(module.body(x_s), y_s, distance=algo.distance)
            cross_entropy(classifier(module.body(x_q)), y_q).backward()  # type: ignore[no-untyped-call]
        return mean_gradients(job, module.parameters(), job.tasks)

    return step


def _reptile(job: Job, algo: Reptile, module: BodyAndHead) -> MetaGradient:
    assert algo.inner_optim == "adam", f"the loop below is for Adam, not {algo.inner_optim}"
    rows = reptile_rows(job, algo)

    def step(episode: Episode) -> Meta:
        for parameter in module.parameters():
            parameter.grad = torch.zeros_like(parameter)
        for (x_s, y_s, x_q, y_q), batches in zip(each_task(episode), rows, strict=True):
            learner = deepcopy(module)
            x, y = torch.cat([x_s, x_q]), torch.cat([y_s, y_q])
            adam = torch.optim.Adam(learner.parameters(), lr=algo.inner_lr, betas=(0.0, BETA_2))
            for batch in batches:
                adam.zero_grad()
                task_loss(learner(x[batch]), y[batch]).backward()  # type: ignore[no-untyped-call]
                adam.step()
            with torch.no_grad():
                task_loss(learner(x_q), y_q)
            for parameter, adapted in zip(module.parameters(), learner.parameters(), strict=True):
                assert parameter.grad is not None, "set above"
                parameter.grad.add_(parameter.data - adapted.data)
        return mean_gradients(job, module.parameters(), job.tasks)

    return step


def reptile_rows(job: Job, algo: Reptile) -> list[list[Tensor]]:
    """Rows of the mini-batches that metarun draws, for each task and inner step; drawn outside the timed step."""
    items = job.episode.support.y.shape[1] + job.episode.query.y.shape[1]
    size = algo.inner_batch or items
    return [[minibatch_rows(index, k, items, size) for k in range(algo.steps)] for index in job.episode.index]


def higher(job: Job) -> MetaGradient:
    library = _imported("higher")
    algo, module = _maml(job, "higher"), torch_module(job)
    before, adapts = frozen_and_adapted(algo, module)
    sgd = torch.optim.SGD(adapts.parameters(), lr=algo.inner_lr)
    second = algo.derivatives == "second"

    def step(episode: Episode) -> Meta:
        for x_s, y_s, x_q, y_q in each_task(episode):
            z = before(x_s)
            with library.innerloop_ctx(adapts, sgd, copy_initial_weights=False, track_higher_grads=second) as (
                f,
                inner,
            ):
                for _ in range(algo.steps):
                    inner.step(task_loss(f(z), y_s))
                loss = task_loss(f(before(x_q)), y_q)
                if second:
                    loss.backward()  # type: ignore[no-untyped-call]
                else:
                    _add(adapts, torch.autograd.grad(loss, list(f.parameters())))
        return mean_gradients(job, module.parameters(), job.tasks)

    return step


def _add(module: nn.Module, found: Iterable[Tensor]) -> None:
    for parameter, gradient in zip(module.parameters(), found, strict=True):
        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


def torchopt(job: Job) -> MetaGradient:
    library = _imported("torchopt")
    algo, module = _maml(job, "torchopt"), torch_module(job)
    if algo.derivatives == "first":
        raise Unavailable("torchopt's MetaSGD has no first-order mode")
    before, adapts = frozen_and_adapted(algo, module)
    inner, leaves = library.MetaSGD(adapts, lr=algo.inner_lr), list(module.parameters())

    def step(episode: Episode) -> Meta:
        start = library.extract_state_dict(adapts, by="reference"), library.extract_state_dict(inner, by="reference")
        for x_s, y_s, x_q, y_q in each_task(episode):
            z = before(x_s)
            for _ in range(algo.steps):
                inner.step(task_loss(adapts(z), y_s))
            task_loss(adapts(before(x_q)), y_q).backward()  # type: ignore[no-untyped-call]
            library.recover_state_dict(adapts, start[0])
            library.recover_state_dict(inner, start[1])
        return mean_gradients(job, leaves, job.tasks)

    return step


def _maml(job: Job, peer: str) -> MAML:
    if not isinstance(job.algo, MAML):
        raise Unavailable(
            f"{peer} differentiates through optimizers; nothing of it would take part in {job.workload.name}"
        )
    return job.algo


def _imported(name: str) -> Any:
    peer_packages.add_to_path()
    try:
        return importlib.import_module(name)
    except Exception as error:  # a library that fails while it is imported cannot run either
        raise Unavailable(f"{name} cannot be imported: {peer_packages.import_failure(error)}") from error


def autograd(job: Job) -> MetaGradient:
    """torch.autograd.grad with create_graph, no library: the reference that all contenders must agree with."""
    algo = job.algo
    module = torch_module(job)
    if isinstance(algo, Reptile):
        return _reptile(job, algo, module)
    leaves: list[Tensor] = list(module.parameters())
    if isinstance(algo, ProtoNet):
        loss_of = _plain_prototypes(module)
    else:
        assert isinstance(algo, MAML | MetaSGD), f"no plain loop for {algo}"
        rates = list(job.meta["rates"].values()) if isinstance(algo, MetaSGD) else []
        rates = [rate.clone().requires_grad_() for rate in rates]
        leaves, loss_of = [*leaves, *rates], _plain_descent(algo, module, rates)

    def step(episode: Episode) -> Meta:
        totals: list[Tensor | None] = [None] * len(leaves)
        for task in each_task(episode):
            found = torch.autograd.grad(loss_of(*task), leaves, allow_unused=True)
            totals = [b if a is None else a + b if b is not None else a for a, b in zip(totals, found, strict=True)]
        known = parameter_names(job)
        groups = [("weights", name) for name in known] + [("rates", name) for name in known]
        meta: Meta = {group: {} for group in job.meta}
        for (group, name), total in zip(groups, totals, strict=False):
            if total is not None:
                meta[group][name] = total / job.tasks
        return meta

    return step


def _plain_descent(algo: MAML | MetaSGD, module: BodyAndHead, rates: list[Tensor]) -> Callable[..., Tensor]:
    before, adapts = frozen_and_adapted(algo, module)
    known = [name for name, _ in adapts.named_parameters()]
    start: list[Tensor] = list(adapts.parameters())
    alphas: list[Any] = list(rates) or [algo.inner_lr] * len(start)
    second = algo.derivatives == "second"

    def loss_of(x_s: Tensor, y_s: Tensor, x_q: Tensor, y_q: Tensor) -> Tensor:
        z, weights = before(x_s), start
        for _ in range(algo.steps):
            loss = task_loss(functional_call(adapts, dict(zip(known, weights, strict=True)), (z,)), y_s)
            found = torch.autograd.grad(loss, weights, create_graph=second)
            weights = [w - alpha * g for w, alpha, g in zip(weights, alphas, found, strict=True)]
        out = functional_call(adapts, dict(zip(known, weights, strict=True)), (before(x_q),))
        return task_loss(out, y_q)

    return loss_of


def _plain_prototypes(module: BodyAndHead) -> Callable[..., Tensor]:
    def loss_of(x_s: Tensor, y_s: Tensor, x_q: Tensor, y_q: Tensor) -> Tensor:
        z = module.body(x_s)
        centres = torch.stack([z[y_s == label].mean(0) for label in torch.unique(y_s)])
        distances: Tensor = (module.body(x_q).unsqueeze(1) - centres).square().sum(-1)
        return cross_entropy(-distances, y_q)

    return loss_of
