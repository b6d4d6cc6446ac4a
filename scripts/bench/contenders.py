"""The contenders: metarun with its automatic choice (auto), each of its engines, and the other libraries."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Listener
from typing import Any, NamedTuple

import torch

from bench import machine, peer_loops, rank_work
from bench.unavailable import Unavailable
from bench.workloads import Job, load_config
from metarun.config.compose import compose
from metarun.config.convert import values_of
from metarun.engine.launch_ranks import started_ranks
from metarun.errors import ConfigError
from metarun.run.execution import REPEATS, DecidedFields, OpenChoices, OperationCounter, decide, open_fields
from metarun.types import Engine, EngineChoice, Episode, Meta

AUTO = "auto"
OFF = "engine.compile=off"
METARUN = {
    AUTO: ("engine=vmap",),
    "vmap": ("engine=vmap", OFF),
    "compiled": ("engine=vmap", "engine.compile=on"),
    "ranks": ("engine=vmap", OFF),
    "ranks compiled": ("engine=vmap", "engine.compile=on"),
    "adjoint": ("engine=vmap", OFF, "engine.memory=adjoint"),
    "adjoint compiled": ("engine=vmap", "engine.compile=on", "engine.memory=adjoint"),
    "loop": ("engine=loop",),
}
PEERS: dict[str, Callable[[Job], peer_loops.MetaGradient]] = {
    "learn2learn": peer_loops.learn2learn,
    "higher": peer_loops.higher,
    "torchopt": peer_loops.torchopt,
    "autograd": peer_loops.autograd,
}
MANY = "ranks"
LONG = ("adjoint", "adjoint compiled")  # for many inner steps
LONG_WORKLOADS = ("W3-10steps",)
RUN_STEPS = 60_000  # `auto` chooses for a run of so many steps, as in Finn 2017


@dataclass(frozen=True)
class Choice:
    """A contender as plain values, so that it can be sent to another process."""

    name: str
    words: tuple[str, ...]  # overrides for metarun; empty for other libraries
    fields: Mapping[str, Any]  # fields of the engine that replace those of the overrides
    processes: int

    def auto_choice(self) -> dict[str, Any]:
        return {"chosen": {**self.fields, "processes": self.processes}} if self.name == AUTO else {}


class Built(NamedTuple):
    step: peer_loops.MetaGradient  # the meta-gradient, mean over tasks
    notes: Sequence[str]  # why the engine does not do what the overrides ask for


def names_for(workload: str, wanted: list[str]) -> list[str]:
    every = [*METARUN, *PEERS]
    unknown = sorted(set(wanted) - set(every))
    if unknown:
        raise SystemExit(f"--engines {','.join(unknown)}: no such contender ({', '.join(every)})")
    return [name for name in every if (name in wanted if wanted else name not in LONG or workload in LONG_WORKLOADS)]


def choose(name: str, job: Job) -> Choice:
    """Resolves a contender by name; `auto` measures steps of `job` and chooses, as a run does."""
    if name in PEERS:
        return Choice(name, (), {}, 1)
    cpu, threads = job.episode.index.device.type == "cpu", torch.get_num_threads()
    if name.startswith(MANY) and (threads == 1 or not cpu):
        raise Unavailable("needs a CPU and several threads")
    words = METARUN[name]
    if name not in (AUTO, "loop"):
        words = (*words, *job.workload.engine)
    if name != AUTO:
        return Choice(name, words, {}, threads if name.startswith(MANY) else 1)
    builder = _engine(words)
    open_names = (open_fields(builder) | {"processes"}) if cpu else open_fields(builder) - {"chunk"}
    choices = OpenChoices(
        names=frozenset(open_names),
        steps=RUN_STEPS,
        meta_batch=job.tasks,
        cores=threads,
        processes=1,
        threads=threads,
    )
    plan = decide(choices, lambda: JobTimer(words, job), lambda _: None)
    return Choice(name, words, plan.engine, plan.processes)


@dataclass(frozen=True)
class JobTimer:
    """The StepTimer that measures steps of a job."""

    words: tuple[str, ...]
    job: Job

    @property
    def operations(self) -> int:
        with ExitStack() as until, OperationCounter() as calls:
            build(Choice(AUTO, self.words, {}, 1), self.job, until).step(self.job.episode)
        return int(calls.count)

    def seconds(self, engine: DecidedFields, processes: int) -> tuple[float, float]:
        times = []
        with ExitStack() as until:
            step = build(Choice(AUTO, self.words, engine, processes), self.job, until).step
            for _ in range(1 + REPEATS):
                start = time.perf_counter()
                step(self.job.episode)
                machine.synchronize(self.job.episode.index.device)
                times.append(time.perf_counter() - start)
        return times[0], statistics.median(times[1:])


def build(choice: Choice, job: Job, until: ExitStack) -> Built:
    """`until`: when it ends, so do the contender's other ranks."""
    if choice.name in PEERS:
        return Built(PEERS[choice.name](job), [])
    try:
        engine = engine_of(choice.words, choice.fields).build(job.algo, job.net)
        if choice.processes > 1:
            return _over_ranks(choice, engine, job, until)
    except (ConfigError, ValueError) as error:
        raise Unavailable(str(error)) from error
    return Built(lambda episode: engine.meta_grad(job.meta, episode, 0)[0], engine.notes)


def _over_ranks(choice: Choice, engine: Engine, job: Job, until: ExitStack) -> Built:
    """This process is rank 0, with one thread while a step lasts; other contenders have all threads in their turn."""
    listener = until.enter_context(Listener(family="AF_UNIX"))
    order = rank_work.Order(
        address=str(listener.address),
        workload=job.workload.name,
        words=list(choice.words),
        fields=dict(choice.fields),
        tasks=job.tasks,
        double=next(iter(job.meta["weights"].values())).dtype == torch.float64,
        quick=job.quick,
    )
    ranks = until.enter_context(started_ranks(choice.processes, "cpu", "bench.rank_work:work", order._asdict()))
    others = [until.enter_context(listener.accept()) for _ in range(choice.processes - 1)]

    def say(word: bytes) -> None:
        for other in others:
            other.send_bytes(word)

    until.callback(say, rank_work.END)
    mine = rank_work.share(ranks, job.episode)
    threads = torch.get_num_threads()

    def step(_: Episode) -> Meta:
        torch.set_num_threads(1)
        try:
            say(rank_work.STEP)
            return rank_work.meta_step(ranks, engine, job, mine)
        finally:
            torch.set_num_threads(threads)

    return Built(step, engine.notes)


def engine_of(words: tuple[str, ...], fields: Mapping[str, Any]) -> EngineChoice:
    chosen: EngineChoice = _engine(words)
    return dataclasses.replace(chosen, **fields) if fields else chosen


def _engine(words: tuple[str, ...]) -> Any:
    known = _keys(words[0])
    for word in words[1:]:
        key = word.partition("=")[0].partition(".")[2]
        if word != OFF and key not in known:
            raise Unavailable(f"metarun has no engine.{key} here")
    return load_config(tuple(word for word in words if word != OFF or "compile" in known)).engine


@cache
def _keys(engine: str) -> frozenset[str]:
    return frozenset(values_of(compose([engine, "track=local"]).plain, "engine"))
