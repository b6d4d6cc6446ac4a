"""The contracts of metarun.types, checked at every call that a test makes: shapes by jaxtyping, types by beartype.

Letters are those of metarun.types; one letter is one size within a call. Checked are what goes into and comes out of
every algorithm (one task), every engine (T tasks) and every sampler.
"""

# No `from __future__ import annotations` here: a shape would be read as an expression.
import functools
import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

from beartype import beartype
from jaxtyping import Float, Int, jaxtyped
from torch import Tensor

from metarun import algos
from metarun.data.tasks.mixture import MixtureTasks
from metarun.data.tasks.sampler import EpisodeSampler
from metarun.data.tasks.sinusoids import SinusoidTasks
from metarun.types import BUFFERS, Aux, Batch, Engine, Episode, Meta

checked = jaxtyped(typechecker=beartype)

Labels = Int[Tensor, "T B"]
Values = Float[Tensor, "T B *out"]


@checked
def check_batches(x: Float[Tensor, "T B *item"], y: Labels | Values) -> None: ...


@checked
def check_task_batch(x: Float[Tensor, "B *item"], y: Int[Tensor, "B"] | Float[Tensor, "B *out"]) -> None: ...


@checked
def check_items(
    support: Float[Tensor, "T S *item"], query: Float[Tensor, "T Q *item"], index: Int[Tensor, "T"]
) -> None:
    """Support and query items have one shape, and there are as many tasks as numbers of tasks."""


@checked
def check_outputs(query: Float[Tensor, "T Q *item"], outputs: Float[Tensor, "T Q N"]) -> None: ...


@checked
def check_predictions(x: Float[Tensor, "B *item"], outputs: Float[Tensor, "B N"]) -> None: ...


@checked
def check_objective(loss: Float[Tensor, ""], metrics: dict[str, Float[Tensor, ""]]) -> None: ...


@checked
def check_same(value: Float[Tensor, "*shape"], other: Float[Tensor, "*shape"]) -> None: ...


def check_episode(episode: Episode) -> None:
    assert isinstance(episode, Episode), f"{type(episode)} is no Episode"
    check_batches(*episode.support)
    check_batches(*episode.query)
    check_items(episode.support.x, episode.query.x, episode.index)


def check_gradient(meta: Meta, gradient: Meta) -> None:
    assert gradient.keys() == meta.keys() - {BUFFERS}, f"gradient of {sorted(gradient)} for {sorted(meta)}"
    for group, params in gradient.items():
        assert params.keys() == meta[group].keys(), f"{group}: {sorted(params)}, not {sorted(meta[group])}"
        for name, value in params.items():
            check_same(value, meta[group][name])


def check_aux(meta: Meta, aux: Aux) -> None:
    assert isinstance(aux, Aux), f"{type(aux)} is no Aux"
    assert "loss" in aux.metrics, f"metrics {sorted(aux.metrics)} without a loss"
    check_objective(aux.metrics["loss"], aux.metrics)
    buffers = meta.get(BUFFERS, {})
    assert aux.buffers.keys() == buffers.keys(), f"buffers {sorted(aux.buffers)}, not {sorted(buffers)}"
    for name, value in aux.buffers.items():
        check_same(value, buffers[name])


def checked_by_shape(by_shape: Callable[..., Any]) -> Callable[..., Any]:
    """Tasks are grouped by shape: each place once, and the support set of every group has ways * shots items."""

    @functools.wraps(by_shape)
    def call(self: object, index_T: Tensor) -> Any:
        groups = by_shape(self, index_T)
        places = sorted(place for group in groups for place in group.places.tolist())
        assert places == list(range(len(index_T))), f"tasks at places {places} of {len(index_T)}"
        for group in groups:
            check_episode(group.episode)
            assert len(group.episode.index) == len(group.places), f"{len(group.places)} places for other tasks"
            items = group.episode.support.x.shape[1]
            assert items == group.ways * group.shots, f"{items} support items of {group.ways} ways, {group.shots} shots"
        return groups

    return call


def checked_engine(engine: Engine) -> None:
    """Both functions of an engine, checked before and after."""
    meta_grad, scores = engine.meta_grad, engine.scores

    @functools.wraps(meta_grad)
    def checked_meta_grad(meta: Meta, episode: Episode, step: int) -> tuple[Meta, Aux]:
        check_episode(episode)
        gradient, aux = meta_grad(meta, episode, step)
        check_gradient(meta, gradient)
        check_aux(meta, aux)
        return gradient, aux

    @functools.wraps(scores)
    def checked_scores(meta: Meta, episode: Episode) -> Tensor:
        check_episode(episode)
        outputs = scores(meta, episode)
        check_outputs(episode.query.x, outputs)
        return outputs

    object.__setattr__(engine, "meta_grad", checked_meta_grad)
    object.__setattr__(engine, "scores", checked_scores)


def checked_meta_loss(meta_loss: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(meta_loss)
    def call(self: object, net: object, meta: Meta, episode: Episode, step: Tensor, unroll: object) -> Any:
        check_task_batch(*episode.support)
        check_task_batch(*episode.query)
        loss, aux = meta_loss(self, net, meta, episode, step, unroll)
        check_objective(loss, aux.metrics)
        check_aux(meta, aux)
        return loss, aux

    return call


def checked_adapted(adapted: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(adapted)
    def call(self: object, net: object, meta: Meta, support: Batch, unroll: object) -> Any:
        check_task_batch(*support)
        return adapted(self, net, meta, support, unroll)

    return call


def checked_predict(predict: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(predict)
    def call(self: object, net: object, meta: Meta, adapted: object, x: Tensor) -> Any:
        outputs = predict(self, net, meta, adapted, x)
        check_predictions(x, outputs)
        return outputs

    return call


SAMPLERS: tuple[type, ...] = (EpisodeSampler, MixtureTasks, SinusoidTasks)
WRAPPERS = {"meta_loss": checked_meta_loss, "adapted": checked_adapted, "predict": checked_predict}


def install() -> None:
    """Once, before the first test."""
    initialise = Engine.__init__

    @functools.wraps(initialise)
    def init_checked(self: Engine, *args: Any, **named: Any) -> None:
        initialise(self, *args, **named)
        checked_engine(self)

    Engine.__init__ = init_checked  # type: ignore[method-assign]  # for the tests alone
    for sampler in SAMPLERS:
        setattr(sampler, "by_shape", checked_by_shape(vars(sampler)["by_shape"]))  # noqa: B010  # mypy takes no other
    for module in pkgutil.iter_modules(algos.__path__, "metarun.algos."):
        for found in vars(importlib.import_module(module.name)).values():
            if isinstance(found, type) and found.__module__ == module.name:
                for name in WRAPPERS.keys() & vars(found).keys():
                    setattr(found, name, WRAPPERS[name](vars(found)[name]))
