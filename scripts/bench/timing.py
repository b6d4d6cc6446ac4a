"""One workload: every contender through the float64 gate, then timed in turn, round after round, in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from bench import contenders, machine, peak_memory
from bench.unavailable import Unavailable
from bench.workloads import WORKLOADS, Job, Workload, make_job
from metarun.types import Meta

TOLERANCE = 1e-10
GATE_TASKS = 2
AT_LEAST_S = 0.05  # per contender and round
REFERENCE = "autograd"
Say = Callable[[str], None]
Row = dict[str, Any]


@dataclass(frozen=True)
class TimingSettings:
    device: torch.device
    threads: int
    rounds: int
    quick: bool  # narrow nets and few tasks
    memory: bool
    engines: list[str]
    limit_gflops: float
    say: Say


def time_workload(workload: Workload, settings: TimingSettings) -> Row:
    gate_tasks = GATE_TASKS if workload.has_images else None
    small = make_job(workload, settings.device, torch.float64, gate_tasks, settings.quick)
    truth = contenders.PEERS[REFERENCE](small)(small.episode)
    job = make_job(workload, settings.device, torch.float32, None, settings.quick)
    entered: dict[str, Entry] = {}
    gflop = _gflop_per_task(workload, settings) * job.tasks
    with ExitStack() as until:
        for name in contenders.names_for(workload.name, settings.engines):
            settings.say(f"{workload.name}: {name}: gate")
            entered[name] = prepare_contender(name, small, truth, job, until)
        steps = {name: entry.step for name, entry in entered.items() if entry.step is not None}
        for name, times in time_in_turn(workload, steps, settings).items():
            entered[name].row.update(_summary(times, job, gflop, settings.limit_gflops))
    rows = {name: entry.row for name, entry in entered.items()}
    if settings.memory:
        _add_peak_memory(workload, entered, settings)
    return {
        "workload": workload.name,
        "title": workload.title,
        "words": list(workload.words),
        "tasks": job.tasks,
        "gflop_per_task": gflop / job.tasks,
        "contenders": with_ratios(rows),
    }


@dataclass(frozen=True)
class Entry:
    row: Row
    choice: contenders.Choice | None
    step: Callable[[], object] | None  # None: not to be timed


def prepare_contender(name: str, small: Job, truth: Meta, job: Job, until: ExitStack) -> Entry:
    """timed, wrong or absent; an engine that is wrong is never timed."""
    try:
        choice = contenders.choose(name, job)
        row = {**choice.told(), **check_gradient(choice, small, truth)}
        if row["status"] == "wrong":
            return Entry(row, choice, None)
        built = contenders.build(choice, job, until)
        row["first_s"] = seconds(lambda: built.step(job.episode), job.episode.index.device, once=True)
        row["notes"] = list(built.notes)
        return Entry(row, choice, lambda: built.step(job.episode))
    except Unavailable as unavailable:
        return Entry({"status": "unavailable", "reason": str(unavailable)}, None, None)
    except Exception as failure:  # a contender that breaks must not take the others with it
        reason = f"{type(failure).__name__}: {failure}".splitlines()[0]
        return Entry({"status": "unavailable", "reason": reason}, None, None)


def check_gradient(choice: contenders.Choice, job: Job, truth: Meta) -> Row:
    with ExitStack() as until:
        error = relative_error(contenders.build(choice, job, until).step(job.episode), truth)
    return {"status": "timed" if error < TOLERANCE else "wrong", "gate": error}


def relative_error(found: Meta, truth: Meta) -> float:
    """Relative, over everything that is learned; a gradient that is missing counts as zero, one too many not."""
    difference = size = torch.zeros(())
    for group, params in truth.items():
        for name, value in params.items():
            other = found.get(group, {}).get(name)
            error = value if other is None else value - other
            difference, size = difference + error.cpu().square().sum(), size + value.cpu().square().sum()
    return float((difference / size).sqrt())


def _gflop_per_task(workload: Workload, settings: TimingSettings) -> float:
    job = make_job(workload, settings.device, torch.float32, 1, settings.quick)
    step = contenders.PEERS[REFERENCE](job)
    return machine.count_gflop(lambda: step(job.episode))


def time_in_turn(
    workload: Workload, steps: dict[str, Callable[[], object]], settings: TimingSettings
) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(settings.rounds + 1):
        for name, step in steps.items():
            took = seconds(step, settings.device, once=settings.quick)
            if round_:  # the first warms up
                times[name].append(took)
        settings.say(f"{workload.name}: round {round_} of {settings.rounds}")
    return times


def seconds(step: Callable[[], object], device: torch.device, once: bool) -> float:
    machine.synchronize(device)
    start, count = time.perf_counter(), 0
    while count == 0 or (not once and time.perf_counter() - start < AT_LEAST_S):
        step()
        machine.synchronize(device)
        count += 1
    return (time.perf_counter() - start) / count


def _summary(times: list[float], job: Job, gflop: float, limit: float) -> Row:
    middle = statistics.median(times)
    low, _, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else (middle, middle, middle)
    return {
        "seconds": times,
        "median_s": middle,
        "min_s": min(times),
        "quartiles_s": [low, high],
        "tasks_per_s": job.tasks / middle,
        "limit_share": gflop / middle / limit,
    }


def _add_peak_memory(workload: Workload, entered: dict[str, Entry], settings: TimingSettings) -> None:
    for entry in entered.values():
        if entry.choice is not None and entry.step is not None:
            entry.row["memory_mb"] = _peak_mb(workload, entry.choice, settings)


def remeasure_memory(row: Row, settings: TimingSettings) -> None:
    """The peak memory of those in a row that were timed before."""
    workload = WORKLOADS[row["workload"]]
    job = make_job(workload, settings.device, torch.float32, 1, settings.quick)
    wanted = contenders.names_for(workload.name, settings.engines)
    for found in row["contenders"]:
        if found["status"] == "timed" and found["name"] in wanted and found["name"] != contenders.AUTO:
            found["memory_mb"] = _peak_mb(workload, contenders.choose(found["name"], job), settings)


def _peak_mb(workload: Workload, choice: contenders.Choice, settings: TimingSettings) -> float | None:
    settings.say(f"{workload.name}: {choice.name}: memory")
    return peak_memory.peak_mb(workload, choice, settings.device, settings.threads, settings.quick)


def with_ratios(rows: dict[str, Row]) -> list[Row]:
    """With the ratio to learn2learn: the median over rounds, each of which saw the same state of the machine."""
    peer = rows.get("learn2learn", {}).get("seconds")
    for row in rows.values():
        if peer and "seconds" in row:
            row["ratio"] = statistics.median(a / b for a, b in zip(peer, row["seconds"], strict=True))
    return [{"name": name, **row} for name, row in rows.items()]
