"""How a run is executed where the configuration leaves it open: chunk, compiled or not, number of ranks (processes).

Decided once, before the first step, by measuring steps; kept in the run directory as plan.json and never changed, so
that a resumed run does every step as it would have been done without the interruption.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, TypedDict, cast

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from metarun.config.device import cores
from metarun.config.schema import RunConfig
from metarun.data.store.pool import cache_root
from metarun.engine.launch_ranks import started_ranks
from metarun.engine.ranks import OneRank, Ranks
from metarun.engine.vmap import Vmap
from metarun.errors import RunError
from metarun.run.build import Parts, train_tasks
from metarun.run.directory import RunDir, write_text
from metarun.train.interrupt import Stop
from metarun.train.loop import mean_over_shapes
from metarun.types import Engine, EngineChoice

MEASURED_FROM = 500  # steps; in a shorter run, measuring takes too large a share
CHUNK_BUDGET = 0.02  # of the time the run will take, for measuring chunks
CHUNK_TRIAL_STEPS = 6  # measuring one chunk takes the time of so many steps
COST_LIMIT = 0.05  # of the time the run will take, for something that may turn out to gain nothing
CLEARLY_FASTER = 0.93  # of the time or less; a smaller difference is noise
CHUNKS = (4, 16, 2, 32, 1, 64)  # in the order they are tried, after all tasks at once; the engine's own rule says 8
DEFAULT_CHUNK = 8  # tasks at a time, unless measured
START_PROCESSES_S = 8.0  # starting ranks twice, to measure and to use them: importing torch, mostly
REPEATS = 3  # steps timed, of which the median counts

# The expected cost and gain of compiling, before it is tried. Two cores, scores too, nothing cached: 11 to 22 s for
# one inner step of a sine network, 325 operations; 42 to 50 s for four convolutions, 1,300.
COMPILE_S, COMPILE_PER_OPERATION_S = 4.0, 0.03
LAUNCH_S = 8e-6  # from one small operation to the next: 2.4 ms for those 325
LEFT_IN_KERNELS, LEFT_BETWEEN_KERNELS = 0.6, 0.1  # of the time there, after compiling
# Where compiling costs more than COST_LIMIT: the gain needed for each second of cost; the share of the kernels' gain
# that counts.
GAIN_PER_COST, KERNEL_GAIN_COUNTED = 1.5, 0.25


class DecidedFields(TypedDict, total=False):
    """Values in place of `auto` in the fields of an engine."""

    chunk: int
    compile: Literal["on", "off"]


class Measured(TypedDict, total=False):
    """What was measured, in seconds, and why something could not be."""

    measured: str
    step_s: float
    chunk_s: dict[str, float]  # chunk -> seconds of a step
    compile_s: float
    eager_step_s: float
    compiled_step_s: float
    compile: str
    processes_s: dict[str, float]  # processes -> seconds of a step
    processes: str
    planning_s: float


@dataclass(frozen=True)
class Plan:
    """What was decided."""

    engine: DecidedFields
    processes: int
    threads: int  # of each process
    why: Measured

    def numerics(self) -> dict[str, object]:
        """What changes the last digits of a result."""
        return {**self.engine, "processes": self.processes, "threads": self.threads}

    def summary_metrics(self) -> dict[str, float]:
        return {"time/compile_s": self.why["compile_s"]} if "compile_s" in self.why else {}


class Assignment(NamedTuple):
    """What rank 0 tells the others to do."""

    purpose: Literal["train", "measure", "nothing"]
    engine: DecidedFields
    threads: int  # of each rank
    checkpoint: bytes | None  # the file to resume from


NOTHING_TO_DO = Assignment("nothing", {}, 1, None)


class OpenChoices(NamedTuple):
    """What there is to decide."""

    names: frozenset[str]  # of chunk, compile, processes
    steps: int
    meta_batch: int
    cores: int
    processes: int  # where their number is given
    threads: int


class StepTimer(Protocol):
    """Measures a meta-step without changing anything."""

    @property
    def operations(self) -> int:
        """Calls of kernels in one chunk."""
        ...

    def seconds(self, engine: DecidedFields, processes: int) -> tuple[float, float]:
        """Of the first step, which may compile, and of one after it. Raises what an engine raises that cannot."""
        ...


def plan_execution(config: RunConfig, parts: Parts, run: RunDir, stop: Stop, note: Callable[[str], None]) -> Plan:
    """The plan in the directory; else that of another run, where one is named; else what is measured now."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_root() / "compiled"))  # compiled once for all runs
    if run.plan.exists():
        plan = _checked(read_plan(run.plan), config, run.plan)
        return _resumed(plan, config, note)
    start = time.monotonic()
    choices = open_choices(config, begun=run.last.exists())
    if config.execution_from is not None:
        other = Path(config.execution_from)
        plan = _taken_over(_checked(read_plan(other), config, other), choices)
    else:
        plan = decide(choices, lambda: MetaStepTimer(config, parts, choices, stop), note)
    plan = dataclasses.replace(plan, why={**plan.why, "planning_s": time.monotonic() - start})
    write_plan(run.plan, plan)
    return plan


def _resumed(plan: Plan, config: RunConfig, note: Callable[[str], None]) -> Plan:
    """By as many processes as before, or as the user says: their number changes a result by rounding alone."""
    count = plan.processes if config.devices == "auto" else config.devices
    if count == plan.processes:
        return plan
    before = "1 process" if plan.processes == 1 else f"{plan.processes} processes"
    note(f"devices: this run was begun by {before} and goes on with {count}; the last digits may differ")
    return dataclasses.replace(plan, processes=count, threads=threads_of(count))


def threads_of(processes: int) -> int:
    """Of each of so many processes."""
    return torch.get_num_threads() if processes == 1 else 1


def open_choices(config: RunConfig, begun: bool) -> OpenChoices:
    """A run that was begun without a plan goes on by the rules: nothing is measured for it."""
    cpu, threads = config.device.type == "cpu", torch.get_num_threads()
    names = set(open_fields(config.engine))
    if not cpu:
        names.discard("chunk")  # all tasks at once
    if config.devices == "auto" and cpu:
        names.add("processes")
    processes = 1 if config.devices == "auto" else config.devices
    return OpenChoices(
        names=frozenset(names),
        steps=0 if begun else config.train.steps,
        meta_batch=config.train.meta_batch,
        cores=min(cores(), threads),
        processes=processes,
        threads=threads_of(processes),
    )


def open_fields(engine: object) -> set[str]:
    """The fields of an engine that say `auto`; where memory is saved, one task at a time is the choice."""
    if not isinstance(engine, Vmap):
        return set()
    chunk = {"chunk"} if engine.chunk == "auto" and engine.memory == "graph" else set()
    return chunk | ({"compile"} if engine.compile == "auto" else set())


def decide(choices: OpenChoices, timer: Callable[[], StepTimer], note: Callable[[str], None]) -> Plan:
    """Measures what is open, and nothing in a short run."""
    engine: DecidedFields = {"compile": "off"} if "compile" in choices.names else {}
    plan = Plan(engine, choices.processes, choices.threads, {})
    if not choices.names:
        return plan
    if choices.steps < MEASURED_FROM:
        return dataclasses.replace(plan, why={"measured": f"nothing: {choices.steps} steps"})
    made = timer()
    start = time.monotonic()
    _, step_s = made.seconds(plan.engine, 1)
    plan = dataclasses.replace(plan, why={"step_s": step_s})
    if "chunk" in choices.names:
        plan = _decide_chunk(plan, choices, made, start + CHUNK_BUDGET * choices.steps * step_s)
    if "compile" in choices.names:
        plan = _decide_compile(plan, choices, made, note)
    if "processes" in choices.names:
        plan = _decide_processes(plan, choices, made)
    return plan


def _decide_chunk(plan: Plan, choices: OpenChoices, timer: StepTimer, until: float) -> Plan:
    found = {"auto": plan.why["step_s"]}
    for chunk in dict.fromkeys((choices.meta_batch, *CHUNKS)):
        if chunk > choices.meta_batch or time.monotonic() + CHUNK_TRIAL_STEPS * plan.why["step_s"] > until:
            continue
        found[str(chunk)] = timer.seconds({**plan.engine, "chunk": chunk}, 1)[1]
    best = fastest(found)
    engine: DecidedFields = plan.engine if best == "auto" else {**plan.engine, "chunk": int(best)}
    return dataclasses.replace(plan, engine=engine, why={**plan.why, "chunk_s": found, "step_s": found[best]})


def _decide_compile(plan: Plan, choices: OpenChoices, timer: StepTimer, note: Callable[[str], None]) -> Plan:
    step_s = plan.why["step_s"]
    chunks = -(-choices.meta_batch // plan.engine.get("chunk", DEFAULT_CHUNK))
    if not worth_compiling(choices.steps, step_s, timer.operations, chunks):
        return plan
    engine: DecidedFields = {**plan.engine, "compile": "on"}
    if "chunk" in choices.names:
        engine.pop("chunk", None)  # the best chunk without compiling is not the best with it
    try:
        first_s, compiled_s = timer.seconds(engine, 1)
    except Exception as problem:  # a compiler may raise anything
        note(f"engine.compile=auto: cannot be compiled, and runs as it is ({_first_line(problem)})")
        return dataclasses.replace(plan, why={**plan.why, "compile": _first_line(problem)})
    compile_s = max(0.0, first_s - compiled_s)
    why: Measured = {**plan.why, "compile_s": compile_s, "compiled_step_s": compiled_s}
    note(f"compiled in {compile_s:.0f} s: a step takes {1000 * compiled_s:.1f} ms, {1000 * step_s:.1f} ms before")
    if compiled_s >= CLEARLY_FASTER * step_s:
        return dataclasses.replace(plan, why=why)
    return dataclasses.replace(plan, engine=engine, why={**why, "eager_step_s": step_s, "step_s": compiled_s})


def _decide_processes(plan: Plan, choices: OpenChoices, timer: StepTimer) -> Plan:
    processes, step_s = min(choices.cores, choices.meta_batch), plan.why["step_s"]
    cost_s = START_PROCESSES_S + 2 * plan.why.get("compile_s", 0.0)
    if processes < 2 or cost_s > COST_LIMIT * choices.steps * step_s:
        return plan
    try:
        _, shared_s = timer.seconds(plan.engine, processes)
    except RunError as problem:  # too little memory, perhaps
        return dataclasses.replace(plan, why={**plan.why, "processes": _first_line(problem)})
    why: Measured = {**plan.why, "processes_s": {"1": step_s, str(processes): shared_s}}
    if shared_s >= CLEARLY_FASTER * step_s:
        return dataclasses.replace(plan, why=why)
    return dataclasses.replace(plan, processes=processes, threads=1, why={**why, "step_s": shared_s})


def fastest(found: Mapping[str, float]) -> str:
    """The name of the fastest; the first one, unless another is clearly faster."""
    first, best = next(iter(found)), min(found, key=lambda name: found[name])
    return best if found[best] < CLEARLY_FASTER * found[first] else first


def worth_compiling(steps: int, step_s: float, operations: int, chunks: int) -> bool:
    """Whether the run wins back the time to compile `operations`, done `chunks` times a step."""
    between_s = min(step_s, chunks * operations * LAUNCH_S)
    sure_s = steps * (1 - LEFT_BETWEEN_KERNELS) * between_s
    hoped_s = steps * (1 - LEFT_IN_KERNELS) * (step_s - between_s)
    cost_s = COMPILE_S + COMPILE_PER_OPERATION_S * operations
    if cost_s <= COST_LIMIT * steps * step_s:
        return sure_s + hoped_s > cost_s
    return sure_s + KERNEL_GAIN_COUNTED * hoped_s > GAIN_PER_COST * cost_s


def with_decided(choice: EngineChoice, decided: DecidedFields) -> EngineChoice:
    """A choice of engine with what was decided in place of `auto`."""
    if not decided:
        return choice
    assert isinstance(choice, Vmap), f"{type(choice)} leaves nothing open, and {decided} was decided"
    return dataclasses.replace(choice, **decided)


def build_engine(config: RunConfig, parts: Parts, decided: DecidedFields) -> Engine:
    choice = with_decided(config.engine, decided)
    return parts.engine if choice == config.engine else choice.build(config.algo, parts.net)


@contextmanager
def executing(
    assignment: Assignment, processes: int, config: RunConfig, parts: Parts, ranks: Ranks
) -> Iterator[tuple[Engine, Ranks]]:
    """Context manager for rank 0: its engine, and the ranks, which have got their assignment.

    Ranks that are not there are started, and end with it.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(assignment.threads)
    engine = build_engine(config, parts, assignment.engine)
    try:
        if processes == ranks.count:
            ranks.from_first(assignment)
            yield engine, ranks
            return
        assert ranks.count == 1, f"{ranks.count} ranks are there, and {processes} are wanted"
        order = {"plain": dict(config.plain), "choices": dict(config.choices)}
        with started_ranks(processes, config.device.type, "metarun.run.follow:started_rank", order) as group:
            group.from_first(assignment)
            yield engine, group
    finally:
        torch.set_num_threads(before)


def time_steps(config: RunConfig, parts: Parts, engine: Engine, ranks: Ranks, stop: Stop) -> tuple[float, float]:
    """Seconds of the first meta-step and of one after it, on all ranks together. The meta-gradient is thrown away."""
    index_T = ranks.share(torch.arange(config.train.meta_batch))
    groups = train_tasks(config, parts.data).by_shape(index_T)
    seconds = []
    for _ in range(1 + REPEATS):
        stop.check_now(ranks)
        start = time.perf_counter()
        found = [engine.meta_grad(parts.meta, group.episode, config.train.steps // 2) for group in groups]
        grads, aux = mean_over_shapes(found, groups)
        _, aux = ranks.mean(grads, aux, len(index_T) / config.train.meta_batch, None)
        aux.metrics["loss"].item()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return seconds[0], statistics.median(seconds[1:])


class MetaStepTimer:
    """The StepTimer of a run: its first meta-batch, whose meta-gradient is thrown away."""

    def __init__(self, config: RunConfig, parts: Parts, choices: OpenChoices, stop: Stop) -> None:
        self._config, self._parts, self._choices, self._stop = config, parts, choices, stop

    @cached_property
    def operations(self) -> int:
        """Of all tasks at once, which calls as many kernels as one task."""
        choice = self._config.engine
        assert isinstance(choice, Vmap), f"{type(choice)} leaves nothing open"
        engine = dataclasses.replace(choice, chunk=None).build(self._config.algo, self._parts.net)
        first = train_tasks(self._config, self._parts.data).by_shape(torch.arange(self._config.train.meta_batch))[0]
        counter = OperationCounter()
        with counter:
            engine.meta_grad(self._parts.meta, first.episode, 0)
        return counter.count

    def seconds(self, engine: DecidedFields, processes: int) -> tuple[float, float]:
        task = Assignment("measure", engine, self._choices.threads if processes == 1 else 1, None)
        with executing(task, processes, self._config, self._parts, OneRank()) as (built, ranks):
            found = time_steps(self._config, self._parts, built, ranks, self._stop)
            notes = built.notes
        if notes:
            raise RuntimeError(notes[0])
        return found


class OperationCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Counts the calls of kernels inside it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # likewise
        self.count = 0

    def __torch_dispatch__(
        self,
        function: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        self.count += 1
        return function(*args, **(kwargs or {}))


def read_plan(path: Path) -> Plan:
    try:
        content = json.loads(path.read_text())
        engine, why = cast(DecidedFields, dict(content["engine"])), cast(Measured, dict(content["why"]))
        return Plan(engine, int(content["processes"]), int(content["threads"]), why)
    except OSError as error:
        raise RunError(f"execution_from={path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"execution_from={path}: is no plan.json of a run, or a damaged one; move it away") from error


def write_plan(path: Path, plan: Plan) -> None:
    write_text(path, json.dumps(dataclasses.asdict(plan), indent=2) + "\n")


def _checked(plan: Plan, config: RunConfig, path: Path) -> Plan:
    known = {field.name for field in dataclasses.fields(config.engine)}
    foreign = sorted(plan.engine.keys() - known)
    if foreign:
        raise RunError(
            f"execution_from={path}: has {foreign[0]}, which engine={config.choices['engine']} knows nothing of"
        )
    if plan.processes > 1 and config.device.type != "cpu" and config.devices == "auto":
        raise RunError(
            f"execution_from={path}: has {plan.processes} processes, and device={config.device}; "
            f"set devices=cuda:{plan.processes}, or devices=1"
        )
    return plan


def _taken_over(plan: Plan, choices: OpenChoices) -> Plan:
    """From another run's plan what is left open in this run."""
    engine = cast(DecidedFields, {name: value for name, value in plan.engine.items() if name in choices.names})
    if "processes" in choices.names:
        return dataclasses.replace(plan, engine=engine)
    return dataclasses.replace(plan, engine=engine, processes=choices.processes, threads=choices.threads)


def _first_line(problem: BaseException) -> str:
    return f"{type(problem).__name__}: {problem}".splitlines()[0][:120]
