"""Times training on Omniglot until a validation accuracy: metarun against learn2learn's loop, on the same episodes."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

import torch
from torch import Tensor

from bench import machine
from bench.contenders import AUTO, choose
from bench.peer_loops import learn2learn_with
from bench.torch_modules import parameter_names, torch_module
from bench.workloads import Job, Workload, load_config
from metarun.config.schema import RunConfig
from metarun.data.tasks.contracts import Tasks
from metarun.engine.ranks import OneRank
from metarun.measures import primary_measure
from metarun.models.functional import FunctionalNet
from metarun.run.build import Parts, build_outer_step, build_parts, new_state, open_data, train_tasks
from metarun.torch_setup.quiet_import import quiet_import
from metarun.train.evaluate import evaluate
from metarun.types import Episode, Meta

TARGET, TIME_LIMIT_S = 0.95, 1800.0
EVERY, EPISODES, BATCH = 20, 400, 50
QUICK_EVERY, QUICK_EPISODES, QUICK_TIME_LIMIT_S = 10, 10, 2.0
# Width 32 and a high outer rate: some minutes on one core. inner_lr 2.0 with `mean` is the 0.4 of Finn 2017's code.
OVERRIDES = (
    "data=omniglot",
    "task=5w1s",
    "model=conv4",
    "optim=adam_1000_steps",
    "algo=maml",
    "algo.loss_reduction=mean",
    "algo.inner_lr=2.0",
    "train.meta_batch=32",
)
QUICK_OVERRIDES = ("data=glyphs", "model.width=4", "train.meta_batch=2")
Advance = Callable[[Episode, int], Meta]
"""Does one meta-step; returns the weights after it."""


@dataclass(frozen=True)
class Limits:
    target: float
    time_limit_s: float
    device: str
    quick: bool

    @property
    def seconds(self) -> float:
        return min(self.time_limit_s, QUICK_TIME_LIMIT_S) if self.quick else self.time_limit_s

    @property
    def overrides(self) -> tuple[str, ...]:
        return (*OVERRIDES, *QUICK_OVERRIDES) if self.quick else OVERRIDES


def measure(limits: Limits, say: Callable[[str], None]) -> dict[str, Any]:
    """On a CPU with several cores both run at the same time, with one thread each; else one after the other."""
    together = limits.device == "cpu" and (os.cpu_count() or 1) > 1
    context = multiprocessing.get_context("spawn")
    runs: dict[str, Any] = {}
    waiting = []
    for name in ADVANCES:
        ours, theirs = context.Pipe()
        process = context.Process(target=_run, args=(theirs, name, limits))
        process.start()
        theirs.close()
        waiting.append((name, ours, process))
        if not together:
            runs[name] = _receive_curve(*waiting.pop(), say)
    for started in waiting:
        runs[started[0]] = _receive_curve(*started, say)
    config = load_config(limits.overrides)
    return {
        "target": limits.target,
        "overrides": list(limits.overrides),
        "every": QUICK_EVERY if limits.quick else EVERY,
        "episodes": QUICK_EPISODES if limits.quick else EPISODES,
        "tasks": config.train.meta_batch,
        "how": "at the same time, one thread each" if together else "one after the other",
        "runs": runs,
    }


def _receive_curve(name: str, pipe: Connection, process: SpawnProcess, say: Callable[[str], None]) -> dict[str, Any]:
    curve: list[dict[str, float]] = []
    while True:
        try:
            message = pipe.recv()
        except EOFError:
            raise SystemExit(f"{name}: its process ended before it reported") from None
        if isinstance(message, bool):
            process.join()
            return {"reached": message, "curve": curve}
        curve.append(message)
        say(f"{name}: step {message['step']}, {message['seconds']:.1f} s, accuracy {message['accuracy']:.4f}")


def _run(pipe: Connection, name: str, limits: Limits) -> None:
    machine.set_threads_and_allocator(1)
    config = load_config(limits.overrides)
    device = torch.device(limits.device)
    parts, train, validate = _prepare(config, device, limits)
    quiet_import("learn2learn")  # before the clock starts
    begin = time.perf_counter()
    advance = ADVANCES[name](config, parts, train, limits)
    every = QUICK_EVERY if limits.quick else EVERY
    step, seconds, reached = 0, time.perf_counter() - begin, False
    while not reached and (step == 0 or seconds < limits.seconds):
        start, meta = time.perf_counter(), parts.meta
        for _ in range(every):
            meta = advance(_episode(train, config, step), step)
            step += 1
        machine.synchronize(device)
        seconds += time.perf_counter() - start
        score = validate(meta)
        pipe.send({"step": step, "seconds": seconds, "accuracy": score})
        reached = score >= limits.target
    pipe.send(reached)


def _prepare(config: RunConfig, device: torch.device, limits: Limits) -> tuple[Parts, Tasks, Callable[[Meta], float]]:
    config = dataclasses.replace(config, device=device)
    data = open_data(config, lambda _: None)
    parts = build_parts(config, data)
    tasks = data.tasks("val", config.task.test, config.seed)
    episodes = QUICK_EPISODES if limits.quick else EPISODES

    def validate(meta: Meta) -> float:
        """By metarun's evaluation for both; not timed."""
        measure = primary_measure("classes")
        found = evaluate(parts.engine, meta, tasks, (measure,), episodes, BATCH, lambda _: None, OneRank())
        return found[measure.name].value

    return parts, train_tasks(config, data), validate


def _episode(train: Tasks, config: RunConfig, step: int) -> Episode:
    first = step * config.train.meta_batch
    return train(torch.arange(first, first + config.train.meta_batch))


def make_omniglot_job(config: RunConfig, parts: Parts, episode: Episode) -> Job:
    workload = Workload("omniglot", "", tuple(parts.data.item_shape), ())
    assert isinstance(parts.net, FunctionalNet), f"{type(parts.net)} is no FunctionalNet"
    return Job(workload, config, config.algo, parts.net, parts.meta, episode, quick=False)


def _metarun(config: RunConfig, parts: Parts, train: Tasks, limits: Limits) -> Advance:
    """Executed as a long run chooses for itself; choosing and compiling are part of the time."""
    fields = {} if limits.quick else choose(AUTO, make_omniglot_job(config, parts, _episode(train, config, 0))).fields
    engine = dataclasses.replace(config.engine, **fields).build(config.algo, parts.net)
    state, outer = new_state(config, parts.meta), build_outer_step(config)

    def advance(episode: Episode, step: int) -> Meta:
        outer(state, *engine.meta_grad(state.meta, episode, step))
        state.step += 1
        return state.meta

    return advance


def _learn2learn(config: RunConfig, parts: Parts, train: Tasks, _limits: Limits) -> Advance:
    job = make_omniglot_job(config, parts, _episode(train, config, 0))
    module = torch_module(job)
    meta_gradient = learn2learn_with(job, module)
    optimizer = config.optim.cls(module.parameters(), **config.optim.values)
    weights: dict[str, Tensor] = {n: p.detach() for n, p in zip(parameter_names(job), module.parameters(), strict=True)}

    def advance(episode: Episode, _step: int) -> Meta:
        found = meta_gradient(episode)["weights"]
        for name, parameter in zip(parameter_names(job), module.parameters(), strict=True):
            parameter.grad = found[name]
        optimizer.step()
        optimizer.zero_grad()
        return {"weights": weights}

    return advance


ADVANCES: dict[str, Callable[[RunConfig, Parts, Tasks, Limits], Advance]] = {
    "metarun": _metarun,
    "learn2learn": _learn2learn,
}
