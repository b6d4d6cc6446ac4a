"""Times one workload: checks every contender's float64 gradient, then times those that passed, one after another in
every round, in one process."""

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
MIN_SECONDS = 0.05  # a step is repeated for at least so long in each round
REFERENCE = "autograd"
Say = Callable[[str], None]
Row = dict[str, Any]


@dataclass(frozen=True)
class TimingSettings:
    device: torch.device
    threads: int
    rounds: int
    quick: bool  # narrow networks and few tasks
    memory: bool  # measure peak memory too
    engines: list[str]  # names of contenders; empty for all
    limit_gflops: float  # of the fastest convolution on this machine
    say: Say


def time_workload(workload: Workload, settings: TimingSettings) -> Row:
    gate_tasks = GATE_TASKS if workload.has_images else None
    small = make_job(workload, settings.device, torch.float64, gate_tasks, settings.quick)
    truth = contenders.PEERS[REFERENCE](small)(small.episode)
    job = make_job(workload, settings.device, torch.float32, None, settings.quick)
    entries: dict[str, Entry] = {}
    gflop = _gflop_per_task(workload, settings) * job.tasks
    with ExitStack() as until:
        for name in contenders.names_for(workload.name, settings.engines):
            settings.say(f"{workload.name}: {name}: gate")
            entries[name] = prepare_contender(name, small, truth, job, until)
        steps = {name: entry.step for name, entry in entries.items() if entry.step is not None}
        for name, times in time_in_turn(workload, steps, settings).items():
            entries[name].row.update(_summary(times, job, gflop, settings.limit_gflops))
    rows = {name: entry.row for name, entry in entries.items()}
    if settings.memory:
        _add_peak_memory(workload, entries, settings)
    return {
        "workload": workload.name,
        "title": workload.title,
        "overrides": list(workload.overrides),
        "tasks": job.tasks,
        "gflop_per_task": gflop / job.tasks,
        "contenders": with_ratios(rows),
    }


@dataclass(frozen=True)
class Entry:
    row: Row
    choice: contenders.Choice | None
    step: Callable[[], object] | None  # None: not timed


def prepare_contender(name: str, small: Job, truth: Meta, job: Job, until: ExitStack) -> Entry:
    """Sets the status: timed, wrong (never timed) or unavailable."""
    try:
        choice = contenders.choose(name, job)
        row = {**choice.auto_choice(), **check_gradient(choice, small, truth)}
        if row["status"] == "wrong":
            return Entry(row, choice, None)
        built = contenders.build(choice, job, until)
        row["first_s"] = seconds(lambda: built.step(job.episode), job.episode.index.device, once=True)
        row["notes"] = list(built.notes)
        return Entry(row, choice, lambda: built.step(job.episode))
    except Unavailable as unavailable:
        return Entry({"status": "unavailable", "reason": str(unavailable)}, None, None)
    except Exception as failure:  # the other contenders are timed all the same
        reason = f"{type(failure).__name__}: {failure}".splitlines()[0]
        return Entry({"status": "unavailable", "reason": reason}, None, None)


def check_gradient(choice: contenders.Choice, job: Job, truth: Meta) -> Row:
    with ExitStack() as until:
        error = relative_error(contenders.build(choice, job, until).step(job.episode), truth)
    return {"status": "timed" if error < TOLERANCE else "wrong", "gate": error}


def relative_error(found: Meta, truth: Meta) -> float:
    """Norm of the difference by the norm of `truth`, over all entries of `truth`; a missing gradient counts as zero."""
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
            if round_:  # round 0 warms up
                times[name].append(took)
        settings.say(f"{workload.name}: round {round_} of {settings.rounds}")
    return times


def seconds(step: Callable[[], object], device: torch.device, once: bool) -> float:
    """Mean time of a call; repeated for MIN_SECONDS, unless `once`."""
    machine.synchronize(device)
    start, count = time.perf_counter(), 0
    while count == 0 or (not once and time.perf_counter() - start < MIN_SECONDS):
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


def _add_peak_memory(workload: Workload, entries: dict[str, Entry], settings: TimingSettings) -> None:
    for entry in entries.values():
        if entry.choice is not None and entry.step is not None:
            entry.row["memory_mb"] = _peak_mb(workload, entry.choice, settings)


def remeasure_memory(row: Row, settings: TimingSettings) -> None:
    """Measures peak memory anew for the contenders of a stored row that were timed."""
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
    """Adds `ratio`: learn2learn's time by the contender's, the median over rounds, so that a slow round cancels out."""
    reference = rows.get("learn2learn", {}).get("seconds")
    for row in rows.values():
        if reference and "seconds" in row:
            row["ratio"] = statistics.median(a / b for a, b in zip(reference, row["seconds"], strict=True))
    return [{"name": name, **row} for name, row in rows.items()]
