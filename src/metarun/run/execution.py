"""How a run is executed, where it may choose: decided once, by measuring, kept in the run directory, never changed.

Everything is decided before the first step, so that a run taken up again does every step as it would have been done.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from metarun.errors import RunError
from metarun.run.directory import write_text

MEASURED_FROM = 500  # steps; of fewer, measuring takes too large a share
SHARE = 0.02  # of the time the run will take, for measuring chunks
TRIED = 6  # steps' time that trying a chunk takes
RISK = 0.05  # of it, for what may turn out to have gained nothing
BETTER = 0.93  # times the time; a difference below it is noise
CHUNKS = (4, 16, 2, 32, 1, 64)  # in the order they are tried, after all tasks at once; the rule itself says 8
RULE = 8  # tasks at a time, unless measured
START_S = 8.0  # to start worker processes twice, to measure them and to use them: torch's import, mostly

# What compiling is expected to cost and to gain; if it is tried, steps are measured. Two cores, scores too, nothing
# cached: 11 to 22 s for one inner step of a sine network, 325 operations; 42 to 50 s for four convolutions, 1,300.
COMPILE_S, COMPILE_PER_OPERATION_S = 4.0, 0.03
LAUNCH_S = 8e-6  # from one small operation to the next: 2.4 ms for those 325
KEPT = 0.6, 0.1  # of the time in kernels, of the time between them
# Where it costs more than the risk, so many times the cost must be gained; of the gain in kernels so much counts.
SURE, HOPED = 1.5, 0.25


@dataclass(frozen=True)
class Plan:
    engine: Mapping[str, Any]  # what stands in place of `auto` in the engine's fields
    processes: int
    threads: int  # of each
    why: Mapping[str, Any]  # the measured seconds

    def brief(self) -> dict[str, Any]:
        """What changes the last digits of a result."""
        return {**self.engine, "processes": self.processes, "threads": self.threads}

    def told(self) -> dict[str, float]:
        """For the summary."""
        return {"time/compile_s": self.why["compile_s"]} if "compile_s" in self.why else {}

    def engine_of(self, builder: Any) -> Any:
        return dataclasses.replace(builder, **self.engine) if self.engine else builder


class Case(NamedTuple):
    """What there is to decide."""

    steps: int
    meta_batch: int
    left: frozenset[str]  # of chunk, compile, processes: what was left to us
    cores: int
    processes: int  # where they were not left to us
    threads: int


class Trial(Protocol):
    """Measures a step, without consequences."""

    @property
    def operations(self) -> int:
        """Of one chunk."""
        ...

    def seconds(self, engine: Mapping[str, Any], processes: int) -> tuple[float, float]:
        """Of the first step, which may compile, and of one after it; an engine that cannot is an Exception."""
        ...


def decide(case: Case, trial: Callable[[], Trial], note: Callable[[str], None]) -> Plan:
    """Only what was left open is measured, and nothing in a short run."""
    engine: dict[str, Any] = {"compile": "off"} if "compile" in case.left else {}
    plan = Plan(engine, case.processes, case.threads, {})
    if not case.left or case.steps < MEASURED_FROM:
        return dataclasses.replace(plan, why={"measured": f"nothing: {case.steps} steps"} if case.left else {})
    measure = trial()
    start = time.monotonic()
    _, step_s = measure.seconds(plan.engine, 1)
    plan = dataclasses.replace(plan, why={"step_s": step_s})
    if "chunk" in case.left:
        plan = _chunked(plan, case, measure, start + SHARE * case.steps * step_s)
    if "compile" in case.left:
        plan = _compiled(plan, case, measure, note)
    if "processes" in case.left:
        plan = _shared(plan, case, measure)
    return plan


def _chunked(plan: Plan, case: Case, measure: Trial, until: float) -> Plan:
    found = {"auto": plan.why["step_s"]}
    for chunk in dict.fromkeys((case.meta_batch, *CHUNKS)):
        if chunk > case.meta_batch or time.monotonic() + TRIED * plan.why["step_s"] > until:
            continue
        found[str(chunk)] = measure.seconds({**plan.engine, "chunk": chunk}, 1)[1]
    best = fastest(found)
    engine = plan.engine if best == "auto" else {**plan.engine, "chunk": int(best)}
    return dataclasses.replace(plan, engine=engine, why={**plan.why, "chunk_s": found, "step_s": found[best]})


def _compiled(plan: Plan, case: Case, measure: Trial, note: Callable[[str], None]) -> Plan:
    step_s = plan.why["step_s"]
    chunks = -(-case.meta_batch // plan.engine.get("chunk", RULE))
    if not worth_compiling(case.steps, step_s, measure.operations, chunks):
        return plan
    # How many tasks at a time were best without is not how many are best with.
    engine = {name: value for name, value in plan.engine.items() if name != "chunk" or name not in case.left}
    engine["compile"] = "on"
    try:
        first_s, compiled_s = measure.seconds(engine, 1)
    except Exception as problem:  # whatever a compiler can think of
        note(f"engine.compile=auto: cannot be compiled, and runs as it is ({_line(problem)})")
        return dataclasses.replace(plan, why={**plan.why, "compile": _line(problem)})
    compile_s = max(0.0, first_s - compiled_s)
    why = {**plan.why, "compile_s": compile_s, "compiled_step_s": compiled_s}
    note(f"compiled in {compile_s:.0f} s: a step takes {1000 * compiled_s:.1f} ms, {1000 * step_s:.1f} ms before")
    if compiled_s >= BETTER * step_s:
        return dataclasses.replace(plan, why=why)
    return dataclasses.replace(plan, engine=engine, why={**why, "eager_step_s": step_s, "step_s": compiled_s})


def _shared(plan: Plan, case: Case, measure: Trial) -> Plan:
    processes, step_s = min(case.cores, case.meta_batch), plan.why["step_s"]
    cost_s = START_S + 2 * plan.why.get("compile_s", 0.0)
    if processes < 2 or cost_s > RISK * case.steps * step_s:
        return plan
    try:
        _, shared_s = measure.seconds(plan.engine, processes)
    except RunError as problem:  # a model that cannot travel; want of memory
        return dataclasses.replace(plan, why={**plan.why, "processes": _line(problem)})
    why = {**plan.why, "processes_s": {"1": step_s, str(processes): shared_s}}
    if shared_s >= BETTER * step_s:
        return dataclasses.replace(plan, why=why)
    return dataclasses.replace(plan, processes=processes, threads=1, why={**why, "step_s": shared_s})


def fastest(found: Mapping[str, float]) -> str:
    """Of two that hardly differ, the one that was there first."""
    first, best = next(iter(found)), min(found, key=lambda name: found[name])
    return best if found[best] < BETTER * found[first] else first


def worth_compiling(steps: int, step_s: float, operations: int, chunks: int) -> bool:
    """Whether the run wins back the time to compile `operations`, done `chunks` times a step."""
    between_s = min(step_s, chunks * operations * LAUNCH_S)
    sure_s, hoped_s = steps * (1 - KEPT[1]) * between_s, steps * (1 - KEPT[0]) * (step_s - between_s)
    cost_s = COMPILE_S + COMPILE_PER_OPERATION_S * operations
    if cost_s <= RISK * steps * step_s:
        return sure_s + hoped_s > cost_s
    return sure_s + HOPED * hoped_s > SURE * cost_s


def read_plan(path: Path) -> Plan:
    try:
        content = json.loads(path.read_text())
        return Plan(dict(content["engine"]), int(content["processes"]), int(content["threads"]), dict(content["why"]))
    except OSError as error:
        raise RunError(f"plan={path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"plan={path}: is no plan.json of a run, or a damaged one; move it away") from error


def write_plan(path: Path, plan: Plan) -> None:
    write_text(path, json.dumps(dataclasses.asdict(plan), indent=2) + "\n")


def _line(problem: BaseException) -> str:
    return f"{type(problem).__name__}: {problem}".splitlines()[0][:120]
