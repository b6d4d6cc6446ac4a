"""Trains every algorithm on the same tasks, and writes docs/algorithms.md from the run summaries.

python scripts/tables/algorithms.py            # all of conf/algo; finished runs are kept
python scripts/tables/algorithms.py maml anil  # only these; the table has all finished runs
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from metarun.config.compose import compose
from metarun.config.places import groups
from metarun.config.schema import check_config
from metarun.measures import primary_among
from metarun.run.build import open_data

ROOT = Path(__file__).parents[2]
OUT = ROOT / "outputs" / "algorithms"
PAGE = ROOT / "docs" / "algorithms.md"
OVERRIDES = ("track=local", "eval.val_episodes=100", f"out={OUT.relative_to(ROOT)}")
COLUMNS: dict[str, tuple[tuple[str, ...], int, tuple[int, ...]]] = {  # column -> (overrides, meta-steps, seeds)
    "glyphs 5w1s": ((), 300, (0, 1)),
    "glyphs 5w5s": (("task=5w5s",), 150, (0,)),
    "sine MSE": (("data=sine",), 500, (0,)),
}
MORE_STEPS = {  # slow learners: meta-steps in place of the column's
    ("cavia", "glyphs 5w5s"): 600,
    ("snail", "glyphs 5w1s"): 1200,
    ("snail", "glyphs 5w5s"): 300,
    ("cnp", "glyphs 5w5s"): 300,
}
WORKERS, THREADS = 2, "1"  # runs at a time, threads of each

TEXT = """# The algorithms side by side

Written by `python scripts/tables/algorithms.py` from the summaries of its runs; no number here was typed.

Each algorithm has the hyper-parameters of `conf/algo` and `conf/tuned`, a short training, and the same {episodes} test
episodes: {meta_batch} tasks a meta-step, conv4 of width 32 (sine: the 40-40 network). Accuracy in % with its 95 %
interval over the episodes, one number for each seed. Batch norm uses the statistics of the batch that is scored
(transductive), unless the algorithm's file says otherwise. `tasks/s` and the peak memory of the process (torch alone
takes about 400 MB) are for one thread on a CPU, with {workers} runs at a time. Chance is 20 %; the nearest neighbour on
raw pixels has {nearest}.

{commands}

{table}
"""


def overrides_of(algo: str, column: str, seed: int) -> list[str]:
    words, steps, _ = COLUMNS[column]
    steps = MORE_STEPS.get((algo, column), steps)
    lengths = () if algo == "scratch" else (f"train.steps={steps}", f"eval.every={steps // 2}")
    return [f"algo={algo}", *words, *lengths, *OVERRIDES, f"seed={seed}"]


def jobs_for(algos: list[str]) -> Iterator[tuple[str, str, int]]:
    for seed in sorted({seed for *_, seeds in COLUMNS.values() for seed in seeds}):
        for column in (column for column, (*_, seeds) in COLUMNS.items() if seed in seeds):
            yield from ((algo, column, seed) for algo in algos if column != "sine MSE" or "values" in kinds(algo))


def kinds(algo: str) -> frozenset[str]:
    composed = compose([f"algo={algo}", "track=local"])
    return check_config(composed.plain, composed.choices).algo.kinds


def finished(words: list[str]) -> bool:
    composed = compose(words)
    return (ROOT / check_config(composed.plain, composed.choices).folder / "summary.json").exists()


def train(job: tuple[str, str, int]) -> None:
    words = overrides_of(*job)
    done = subprocess.run(
        [Path(sys.executable).with_name("metarun"), *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": THREADS},
        capture_output=True,
        text=True,
    )
    printed = done.stdout.strip().splitlines()
    result = next((line[1:-1].strip() for line in printed if "test " in line and "+-" in line), "")
    print(f"{' '.join(words)}: {result or f'exit {done.returncode}: {done.stderr.strip()[-300:]}'}", flush=True)


def summaries() -> dict[tuple[str, str], list[dict[str, Any]]]:
    found: defaultdict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for file in sorted(OUT.glob("*/*/seed*/summary.json")):
        summary = json.loads(file.read_text())
        protocol = summary["protocol"]
        found[protocol["algo"], column_of(protocol)].append(summary)
    return found


def column_of(protocol: dict[str, Any]) -> str:
    return "sine MSE" if protocol["data"] == "sine" else "{data} {ways}w{shots}s".format(**protocol)


def cell(runs: list[dict[str, Any]]) -> str:
    """Mean and 95 % interval of each run, over its own test episodes."""
    if not runs:
        return "-"
    measure = primary_among(runs[0], "test")
    assert measure is not None, f"no score in {sorted(runs[0])}"
    scale, digits = (100, 1) if measure.unit == "%" else (1, 3)  # one digit fewer than elsewhere: the table is wide
    protocol = runs[0]["protocol"]
    longer = f" ({protocol['steps']} steps)" if (protocol["algo"], column_of(protocol)) in MORE_STEPS else ""
    pairs = ((scale * run[f"test/{measure.name}"], scale * run["test/ci95"]) for run in runs)
    return ", ".join(f"{value:.{digits}f} +- {ci95:.{digits}f}" for value, ci95 in pairs) + longer


def table_row(algo: str, found: dict[tuple[str, str], list[dict[str, Any]]]) -> str:
    first = found.get((algo, "glyphs 5w1s"), [])
    trained = [run for run in first if run["protocol"]["steps"]]
    pace = f"{fmean(run['time/tasks_per_s'] for run in trained):.0f}" if trained else "-"
    memory = f"{max(run['memory/peak_mb'] for run in first):.0f}" if first else "-"
    cells = [algo, *(cell(found.get((algo, column), [])) for column in COLUMNS), pace, memory]
    return f"| {' | '.join(cells)} |"


def page(found: dict[tuple[str, str], list[dict[str, Any]]]) -> str:
    algos = sorted({algo for algo, _ in found}, key=lambda algo: -mean_accuracy(algo, found))
    head = ("algo", *COLUMNS, "tasks/s", "peak MB")
    table = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}", *(table_row(algo, found) for algo in algos)]
    one = found[algos[0], "glyphs 5w1s"][0]
    values = {
        "episodes": one["test/episodes"],
        "meta_batch": one["protocol"]["meta_batch"],
        "workers": WORKERS,
        "nearest": " and ".join(f"{100 * nearest_neighbour(task):.1f} % at {task}" for task in ("5w1s", "5w5s")),
        "commands": "\n".join(f"    metarun {' '.join(overrides_of('NAME', column, 0)[:-2])}" for column in COLUMNS),
        "table": "\n".join(table),
    }
    return TEXT.format(**values)


def mean_accuracy(algo: str, found: dict[tuple[str, str], list[dict[str, Any]]]) -> float:
    runs = found.get((algo, "glyphs 5w1s"), [])
    return fmean(run["test/acc"] for run in runs) if runs else -1.0


def nearest_neighbour(task: str) -> float:
    """Accuracy of the nearest neighbour on pixels, on the test episodes of seed 0."""
    composed = compose([f"task={task}", "track=local", "device=cpu"])
    config = check_config(composed.plain, composed.choices)
    tasks = open_data(config, lambda _: None).tasks("test", config.task.test, config.seed)
    episode = tasks(torch.arange(config.eval.test_episodes))
    distance_TQS = torch.cdist(episode.query.x.flatten(2), episode.support.x.flatten(2))
    guess_TQ = episode.support.y.gather(1, distance_TQS.argmin(2))
    return (guess_TQ == episode.query.y).double().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("algos", nargs="*", metavar="ALGO", help="names in conf/algo; default: all")
    algos = parser.parse_args().algos or groups()["algo"]
    jobs = [job for job in jobs_for(algos) if not finished(overrides_of(*job))]
    print(f"{len(jobs)} runs are missing", flush=True)
    with ThreadPoolExecutor(WORKERS) as workers:
        for _ in workers.map(train, jobs):
            pass
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(summaries()))
    print(f"written: {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
