"""A run's plan, made or found, and the engine that carries it out."""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from metarun.config.device import cores
from metarun.config.schema import RunConfig
from metarun.data.store.pool import cache_root
from metarun.engine.processes import shared
from metarun.errors import RunError
from metarun.models.functional import FunctionalNet
from metarun.run.build import Parts, train_tasks
from metarun.run.directory import RunDir
from metarun.run.execution import Case, Plan, decide, read_plan, write_plan
from metarun.train.interrupt import Stop
from metarun.types import Engine

REPEATS = 3  # steps timed, of which the median counts
CHOICES = ("chunk", "compile")  # fields of an engine that may say `auto`


def settle(config: RunConfig, parts: Parts, run: RunDir, stop: Stop, note: Callable[[str], None]) -> Plan:
    """That of the directory; else that of another run where one is named; else what is measured now."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_root() / "compiled"))  # what was compiled once
    path = run.path / "plan.json"
    if path.exists():
        plan = _fitting(read_plan(path), config, path)
        if config.devices not in ("auto", plan.processes):
            note(f"{run.path}: was begun by {plan.processes} processes, and goes on so")
        return plan
    start = time.monotonic()
    case = _case(config, begun=run.last.exists())
    if config.plan is not None:
        other = Path(config.plan)
        plan = _chosen(_fitting(read_plan(other), config, other), case)
    else:
        plan = decide(case, lambda: Steps(config, parts, case, stop), note)
    plan = dataclasses.replace(plan, why={**plan.why, "planning_s": time.monotonic() - start})
    write_plan(path, plan)
    return plan


@contextmanager
def carried_out(plan: Plan, config: RunConfig, parts: Parts) -> Iterator[Engine]:
    with _executed(config, parts, plan.engine_of(config.engine), plan.processes, plan.threads) as engine:
        yield engine


@contextmanager
def _executed(config: RunConfig, parts: Parts, builder: Any, processes: int, threads: int) -> Iterator[Engine]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        if processes == 1:
            yield parts.engine if builder == config.engine else builder.build(config.algo, parts.net)
            return
        assert isinstance(parts.net, FunctionalNet), f"{type(parts.net)} is not known to travel"
        with shared(processes, builder, config.algo, parts.net, config.allocator) as engine:
            yield engine
    finally:
        torch.set_num_threads(before)


def _case(config: RunConfig, begun: bool) -> Case:
    """A run that was begun without a plan goes on by the rules."""
    engine, cpu, threads = config.engine, config.device.type == "cpu", torch.get_num_threads()
    left = {name for name in CHOICES if getattr(engine, name, None) == "auto"}
    if not cpu or getattr(engine, "memory", "graph") != "graph":
        left.discard("chunk")  # all tasks at once; one, where memory is what counts
    if config.devices == "auto" and cpu:
        left.add("processes")
    processes = 1 if config.devices == "auto" else config.devices
    return Case(
        steps=0 if begun else config.train.steps,
        meta_batch=config.train.meta_batch,
        left=frozenset(left),
        cores=min(cores(), threads),
        processes=processes,
        threads=threads if processes == 1 else 1,
    )


def _fitting(plan: Plan, config: RunConfig, path: Path) -> Plan:
    known = {field.name for field in dataclasses.fields(config.engine)}
    foreign = sorted(plan.engine.keys() - known)
    if foreign:
        raise RunError(f"plan={path}: has {foreign[0]}, which engine={config.choices['engine']} knows nothing of")
    if plan.processes > 1 and config.device.type != "cpu":
        raise RunError(
            f"plan={path}: has {plan.processes} processes on a CPU, and device={config.device}; set plan=null"
        )
    return plan


def _chosen(plan: Plan, case: Case) -> Plan:
    """Of another run's plan what was left open in this one."""
    engine = {name: value for name, value in plan.engine.items() if name in case.left}
    if "processes" in case.left:
        return dataclasses.replace(plan, engine=engine)
    return dataclasses.replace(plan, engine=engine, processes=case.processes, threads=case.threads)


class Steps:
    """plan.Trial: the run's first meta-batch, its meta-gradient thrown away."""

    def __init__(self, config: RunConfig, parts: Parts, case: Case, stop: Stop) -> None:
        self._config, self._parts, self._case, self._stop = config, parts, case, stop
        drawn = train_tasks(config, parts.data).by_shape(torch.arange(config.train.meta_batch))
        self._episodes = [part.episode for part in drawn]

    @cached_property
    def operations(self) -> int:
        """Of all tasks at once, which are as many as of one."""
        builder = dataclasses.replace(self._config.engine, chunk=None)
        engine, calls = builder.build(self._config.algo, self._parts.net), Calls()
        with calls:
            engine.meta_grad(self._parts.meta, self._episodes[0], 0)
        return calls.count

    def seconds(self, engine: Mapping[str, Any], processes: int) -> tuple[float, float]:
        builder = dataclasses.replace(self._config.engine, **engine)
        threads = self._case.threads if processes == 1 else 1
        with _executed(self._config, self._parts, builder, processes, threads) as built:
            first, *others = [self._step_s(built) for _ in range(1 + REPEATS)]
        if built.notes:
            raise RuntimeError(built.notes[0])
        return first, statistics.median(others)

    def _step_s(self, engine: Engine) -> float:
        self._stop.check()
        start = time.perf_counter()
        for episode in self._episodes:
            aux = engine.meta_grad(self._parts.meta, episode, self._config.train.steps // 2)[1]
            aux.metrics["loss"].item()  # waits for the device
        return time.perf_counter() - start


class Calls(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Counts what reaches the kernels."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # likewise
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return function(*args, **(kwargs or {}))
