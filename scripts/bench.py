"""Time a meta-step under every engine, in turn, in one process: only the ratios mean anything on a shared machine.

python scripts/bench.py [algo=anil task=20w1s ...]      overrides as for metarun; the default run's shapes without
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch

from metarun.assemble import assemble, open_data
from metarun.compose import compose
from metarun.config import RunConfig, load
from metarun.errors import ConfigError
from metarun.track.console import say
from metarun.types import Episode, Meta

ENGINES = ("vmap", "loop", "l2l")
ROUNDS = 7
MEASURED_S = 0.2  # per engine and round, at least


def main(words: list[str]) -> int:
    steps: dict[str, Callable[[], object]] = {}
    for engine in ENGINES:
        composed = compose([*words, f"engine={engine}", "track=local"])
        config = load(composed.plain, composed.choices)
        try:
            steps[engine] = prepare(config)
        except ConfigError as error:
            say(f"{engine:<6} left out: {error}")
    times: dict[str, list[float]] = {engine: [] for engine in steps}
    for round_ in range(ROUNDS + 1):
        for engine, step in steps.items():
            took = seconds(step, config.device)
            if round_:  # the first warms up
                times[engine].append(took)
        say(f"round {round_} of {ROUNDS}")
    tasks, slowest = config.train.meta_batch, statistics.median(times["loop"])
    machine = f"{config.device}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    say(f"{config.choices['algo']} {config.experiment} {config.choices['model']}, {tasks} tasks a step, {machine}")
    for engine, measured in times.items():
        middle = statistics.median(measured)
        spread = f"{1000 * min(measured):.0f} to {1000 * max(measured):.0f}"
        pace = f"{tasks / middle:7.0f} tasks/s  {slowest / middle:5.2f} x loop"
        say(f"{engine:<6} {1000 * middle:7.1f} ms a step ({spread})  {pace}")
    return 0


def prepare(config: RunConfig) -> Callable[[], object]:
    data = open_data(config, say)
    parts = assemble(config, data)
    tasks = data.tasks("train", config.task.train, config.seed)
    episode: Episode = tasks(torch.arange(config.train.meta_batch))
    meta: Meta = parts.meta
    return lambda: parts.engine.meta_grad(meta, episode, 0)


def seconds(step: Callable[[], object], device: torch.device) -> float:
    start, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() - start < MEASURED_S:
        step()
        count += 1
        if device.type == "cuda":
            torch.cuda.synchronize()
    return (time.perf_counter() - start) / count


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
