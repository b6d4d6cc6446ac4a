"""Measures time and memory of a MAML meta-step for growing tasks, inner steps, ways and images: metarun, learn2learn.

python -m bench.scaling            # docs/scaling.csv and docs/scaling.png; about an hour on two cores
python -m bench.scaling --quick    # a few small points, to see that all works; into outputs/bench
python -m bench.scaling --plot     # draw docs/scaling.png again from docs/scaling.csv

One quantity grows at a time; the others are SIDE, WAYS, STEPS and TASKS. Second-order MAML on random images. Contenders
are timed in one process, one after another in every round; peak memory is measured in a separate process, without the
memory of the imports. A contender that runs out of memory or time at one value is not tried at larger values.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench import contenders, machine, peak_memory, peer_packages, scaling_plot
from bench.timing import seconds
from bench.workloads import Workload, conv_words, descent_words, make_job, task_words

ROOT = Path(__file__).parents[2]
CONTENDERS = ("vmap", "compiled", "learn2learn")
ROUNDS, QUICK_ROUNDS = 5, 1
TOTAL_S = 3600.0  # no new value is begun after this time
FIRST_STEP_S = 60.0  # a contender whose first step takes longer is not tried at larger values
COMPILED_FIRST_STEP_S = 240.0  # the same for a compiled contender
SIDE, WAYS, STEPS, TASKS = 28, 5, 1, 16
GROWS = {
    "tasks": (1, 2, 4, 8, 16, 32, 64, 128),
    "inner steps": (1, 2, 3, 5, 10, 20),
    "ways": (5, 10, 20, 35, 50),
    "image side": (28, 42, 56, 84),
}
QUICK = {"tasks": (1, 2), "ways": (2,)}


@dataclass(frozen=True)
class Point:
    grows: str
    value: int

    @property
    def workload(self) -> Workload:
        at = {"tasks": TASKS, "inner steps": STEPS, "ways": WAYS, "image side": SIDE, self.grows: self.value}
        overrides = (
            *descent_words("maml", at["inner steps"], 0.01),
            *conv_words(32, "pool"),
            *task_words("5w1s", 1, at["tasks"]),
            f"task.ways={at['ways']}",
        )
        side = at["image side"]
        return Workload(f"{self.grows} {self.value}", "", (1, side, side), overrides)


@dataclass(frozen=True)
class ScalingSettings:
    device: torch.device
    threads: int
    rounds: int
    quick: bool
    deadline: float  # by time.monotonic()


def measure_point(point: Point, names: list[str], settings: ScalingSettings) -> list[dict[str, Any]]:
    """A row for each contender that ran; main does not try the others at larger values."""
    job = make_job(point.workload, settings.device, torch.float32, None, settings.quick)
    rows = []
    with ExitStack() as until:
        steps: dict[str, Callable[[], object]] = {}
        choices = {}
        for name in names:
            limit = COMPILED_FIRST_STEP_S if "compiled" in name else FIRST_STEP_S
            try:
                choices[name] = contenders.choose(name, job)
                built = contenders.build(choices[name], job, until)
                first_s = seconds(lambda step=built.step: step(job.episode), settings.device, once=True)  # type: ignore[misc]
            except Exception as problem:  # no memory, no compiler, a library missing: the others are measured
                say(f"{point.grows} {point.value}: {name} left out: {problem}".splitlines()[0])
                continue
            steps[name] = lambda step=built.step: step(job.episode)  # type: ignore[misc]
            if first_s > limit:
                say(f"{point.grows} {point.value}: {name} took {first_s:.0f} s; nothing larger is tried")
                del steps[name]
        times: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(settings.rounds):
            for name, step in steps.items():
                times[name].append(seconds(step, settings.device, once=True))
    for name, measured in times.items():
        memory_mb = peak_memory.peak_mb(
            point.workload, choices[name], settings.device, settings.threads, settings.quick
        )
        row = {"grows": point.grows, "value": point.value, "contender": name}
        rows.append({**row, "tasks": job.tasks, "seconds": statistics.median(measured), "memory_mb": memory_mb})
    return rows


def measure_all(settings: ScalingSettings) -> Iterator[list[dict[str, Any]]]:
    """Yields all rows so far, after every point."""
    rows: list[dict[str, Any]] = []
    for grows, values in (QUICK if settings.quick else GROWS).items():
        names = list(CONTENDERS[::2] if settings.quick else CONTENDERS)
        for value in values:
            if not names or time.monotonic() > settings.deadline:
                say(f"{grows} {value}: not tried")
                continue
            found = measure_point(Point(grows, value), names, settings)
            names = [row["contender"] for row in found]
            for row in found:
                memory = "" if row["memory_mb"] is None else f", {row['memory_mb']:.0f} MB"
                say(f"{grows} {value}: {row['contender']} {1000 * row['seconds']:.1f} ms{memory}")
            rows += found
            yield rows


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            memory_mb = "" if row["memory_mb"] is None else f"{row['memory_mb']:.1f}"
            writer.writerow({**row, "seconds": f"{row['seconds']:.6f}", "memory_mb": memory_mb})


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few small points")
    parser.add_argument("--plot", action="store_true", help="draw the picture from the stored numbers")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all cores")
    parser.add_argument("--limit", type=float, default=TOTAL_S, help="seconds; no new point is begun after that")
    parser.add_argument("--out", type=Path, help="folder to write; default: docs, with --quick outputs/bench")
    args = parser.parse_args(words)
    folder = args.out or (ROOT / "outputs" / "bench" if args.quick else ROOT / "docs")
    folder.mkdir(parents=True, exist_ok=True)
    name = "scaling" if args.device == "cpu" else f"scaling_{args.device}"
    numbers, shown = folder / f"{name}.csv", folder / f"{name}.png"
    if not args.plot:
        pages_kept = machine.set_threads_and_allocator(args.threads)
        peer_packages.add_to_path()
        device = torch.device(args.device)
        rounds = QUICK_ROUNDS if args.quick else ROUNDS
        settings = ScalingSettings(device, args.threads, rounds, args.quick, time.monotonic() + args.limit)
        about = machine.describe(device, pages_kept)
        say(f"{about.get('gpu', about['cpu'])}, {about['threads']} threads, torch {about['torch']}")
        for rows in measure_all(settings):
            write(numbers, rows)
    scaling_plot.draw(numbers, shown)
    say(f"{numbers}\n{shown}")
    return 0


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
