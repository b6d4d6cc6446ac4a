"""Every algorithm side by side: runs what is missing of each, then writes docs/algorithms.md from the run summaries.

python scripts/tables/algorithms.py            # all of conf/algo; finished runs are not run again
python scripts/tables/algorithms.py maml anil  # these runs, then the table of all that are finished
"""

from __future__ import annotations

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
WORDS = ("track=local", "eval.val_episodes=100", f"out={OUT.relative_to(ROOT)}")
COLUMNS: dict[str, tuple[tuple[str, ...], int, tuple[int, ...]]] = {  # column -> (words, meta-steps, seeds)
    "glyphs 5w1s": ((), 300, (0, 1)),
    "glyphs 5w5s": (("task=5w5s",), 150, (0,)),
    "sine MSE": (("data=sine",), 500, (0,)),
}
LONGER = {
    ("cavia", "glyphs 5w5s"): 600,
    ("snail", "glyphs 5w1s"): 1200,
    ("snail", "glyphs 5w5s"): 300,
    ("cnp", "glyphs 5w5s"): 300,
}  # slow learners
WORKERS, THREADS = 2, "1"  # two runs at a time, one thread each

TEXT = """# The algorithms side by side

Written by `python scripts/tables/algorithms.py` from the summaries of its runs; no number here was typed.

Each algorithm by its committed numbers (`conf/algo`, `conf/tuned`) after a short training, all on the same
{episodes} test episodes: {meta_batch} tasks a meta-step, conv4 of width 32 (sine: the 40-40 network). Accuracy in %
with its 95 % interval over the episodes, one number for each seed. Batch norm by the batch at hand (transductive)
unless an algorithm's file says otherwise. `tasks/s` and the peak memory of the process (some 400 MB of it are
torch's own) are of one thread on a CPU, with {workers} runs side by side. Chance is 20 %; the nearest neighbour by
raw pixels has {nearest}.

{commands}

{table}
"""


def names() -> list[str]:
    return groups()["algo"]


def command(algo: str, column: str, seed: int) -> list[str]:
    words, steps, _ = COLUMNS[column]
    steps = LONGER.get((algo, column), steps)
    lengths = () if algo == "scratch" else (f"train.steps={steps}", f"eval.every={steps // 2}")
    return [f"algo={algo}", *words, *lengths, *WORDS, f"seed={seed}"]


def wanted(algos: list[str]) -> Iterator[tuple[str, str, int]]:
    for seed in sorted({seed for *_, seeds in COLUMNS.values() for seed in seeds}):
        for column in (column for column, (*_, seeds) in COLUMNS.items() if seed in seeds):
            yield from ((algo, column, seed) for algo in algos if column != "sine MSE" or "values" in kinds(algo))


def kinds(algo: str) -> frozenset[str]:
    composed = compose([f"algo={algo}", "track=local"])
    return check_config(composed.plain, composed.choices).algo.kinds


def finished(words: list[str]) -> bool:
    composed = compose(words)
    return (ROOT / check_config(composed.plain, composed.choices).folder / "summary.json").exists()


def run(job: tuple[str, str, int]) -> None:
    words = command(*job)
    done = subprocess.run(
        [Path(sys.executable).with_name("metarun"), *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": THREADS},
        capture_output=True,
        text=True,
    )
    said = done.stdout.strip().splitlines()
    result = next((line[1:-1].strip() for line in said if "test " in line and "+-" in line), "")
    print(f"{' '.join(words)}: {result or f'exit {done.returncode}: {done.stderr.strip()[-300:]}'}", flush=True)


def summaries() -> dict[tuple[str, str], list[dict[str, Any]]]:
    found: defaultdict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for file in sorted(OUT.glob("*/*/seed*/summary.json")):
        summary = json.loads(file.read_text())
        said = summary["protocol"]
        found[said["algo"], column_of(said)].append(summary)
    return found


def column_of(said: dict[str, Any]) -> str:
    return "sine MSE" if said["data"] == "sine" else f"{said['data']} {said['ways']}w{said['shots']}s"


def cell(runs: list[dict[str, Any]]) -> str:
    """Each run's mean and 95 % interval over its own test episodes."""
    if not runs:
        return "-"
    measure = primary_among(runs[0], "test")
    assert measure is not None, f"no score in {sorted(runs[0])}"
    scale, digits = (100, 1) if measure.unit == "%" else (1, 3)  # a digit less than elsewhere: the table is wide
    said = runs[0]["protocol"]
    longer = f" ({said['steps']} steps)" if (said["algo"], column_of(said)) in LONGER else ""
    pairs = ((scale * run[f"test/{measure.name}"], scale * run["test/ci95"]) for run in runs)
    return ", ".join(f"{value:.{digits}f} +- {ci95:.{digits}f}" for value, ci95 in pairs) + longer


def row(algo: str, found: dict[tuple[str, str], list[dict[str, Any]]]) -> str:
    first = found.get((algo, "glyphs 5w1s"), [])
    trained = [run for run in first if run["protocol"]["steps"]]
    pace = f"{fmean(run['time/tasks_per_s'] for run in trained):.0f}" if trained else "-"
    memory = f"{max(run['memory/peak_mb'] for run in first):.0f}" if first else "-"
    cells = [algo, *(cell(found.get((algo, column), [])) for column in COLUMNS), pace, memory]
    return f"| {' | '.join(cells)} |"


def page(found: dict[tuple[str, str], list[dict[str, Any]]]) -> str:
    algos = sorted({algo for algo, _ in found}, key=lambda algo: -best(algo, found))
    head = ("algo", *COLUMNS, "tasks/s", "peak MB")
    table = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}", *(row(algo, found) for algo in algos)]
    one = found[algos[0], "glyphs 5w1s"][0]
    said = {
        "episodes": one["test/episodes"],
        "meta_batch": one["protocol"]["meta_batch"],
        "workers": WORKERS,
        "nearest": " and ".join(f"{100 * floor(task):.1f} % at {task}" for task in ("5w1s", "5w5s")),
        "commands": "\n".join(f"    metarun {' '.join(command('NAME', column, 0)[:-2])}" for column in COLUMNS),
        "table": "\n".join(table),
    }
    return TEXT.format(**said)


def best(algo: str, found: dict[tuple[str, str], list[dict[str, Any]]]) -> float:
    runs = found.get((algo, "glyphs 5w1s"), [])
    return fmean(run["test/acc"] for run in runs) if runs else -1.0


def floor(task: str) -> float:
    """1-nearest neighbour on pixels, on the test episodes of seed 0."""
    composed = compose([f"task={task}", "track=local", "device=cpu"])
    config = check_config(composed.plain, composed.choices)
    tasks = open_data(config, lambda _: None).tasks("test", config.task.test, config.seed)
    episode = tasks(torch.arange(config.eval.test_episodes))
    apart_TQS = torch.cdist(episode.query.x.flatten(2), episode.support.x.flatten(2))
    guess_TQ = episode.support.y.gather(1, apart_TQS.argmin(2))
    return (guess_TQ == episode.query.y).double().mean().item()


def main(algos: list[str]) -> None:
    jobs = [job for job in wanted(algos or names()) if not finished(command(*job))]
    print(f"{len(jobs)} runs to make", flush=True)
    with ThreadPoolExecutor(WORKERS) as workers:
        for _ in workers.map(run, jobs):
            pass
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(summaries()))
    print(f"written: {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main(sys.argv[1:])
