"""Small whole runs, in this process or another, and what of them must be equal."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from support.warm_process import WarmProcess, start_warm

COMMAND = [sys.executable, "-c", "from metarun.cli.main import console; console()"]
TINY = [
    "track=local",
    "model.width=4",
    "train.steps=12",
    "train.meta_batch=2",
    "train.log_every=2",
    "train.save_every=3",
    "eval.every=4",
    "eval.val_episodes=4",
    "eval.test_episodes=6",
    "eval.tasks_at_once=4",
    "task.queries=2",
]


def start(words: list[str], cwd: Path) -> WarmProcess | subprocess.Popen[str]:
    """`metarun WORDS` in another process of one thread."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    if platform.system() == "Linux":
        return start_warm(words, cwd, env)
    return subprocess.Popen(
        [*COMMAND, *words], cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def only_run(out: Path) -> Path:
    found = [file.parent for file in out.glob("*/*/seed*/config.yaml")]
    assert len(found) == 1, f"{len(found)} run directories in {out}"
    return found[0]


def rows(out: Path) -> int:
    return sum(file.read_bytes().count(b"\n") for file in out.glob("*/*/seed0/metrics.jsonl"))


def wait_until(happened: Callable[[], bool], going: WarmProcess | subprocess.Popen[str]) -> None:
    """Or until the run is over, which under a heavy load it may be first."""
    deadline = time.monotonic() + 120
    while not happened() and going.poll() is None:
        assert time.monotonic() < deadline, "the run never got going"
        time.sleep(0.01)


def outcome(run: Path) -> dict[str, Any]:
    """All of a run that must not depend on when it was stopped: all but the clock and the peak of memory."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((run / "summary.json").read_text())
    checkpoints = {name: torch.load(run / name, weights_only=True) for name in ("last.pt", "best.pt")}
    for content in checkpoints.values():
        del content["total_s"], content["train_s"], content["about"]["metrics_bytes"], content["about"]["config"]["out"]
    return {
        "metrics": [_timeless(row) for row in rows],
        "summary": _timeless(summary),
        "scores": (run / "test_scores.csv").read_bytes(),
        "checkpoints": _hashable(checkpoints),
    }


def _timeless(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if not name.startswith(("time/", "memory/"))}


def _hashable(value: Any) -> Any:
    """Tensors as their bytes, so that == means bitwise."""
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), value.numpy().tobytes())
    if isinstance(value, dict):
        return {key: _hashable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_hashable(item) for item in value]
    return value
