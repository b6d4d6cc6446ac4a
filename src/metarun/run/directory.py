"""The run directory: one process at a time, one configuration for ever, everything in open formats."""

from __future__ import annotations

import json
import multiprocessing
import platform
import re
import resource
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import torch
import yaml

import metarun
from metarun.config.schema import RunConfig
from metarun.errors import RunError
from metarun.run.checkpoint import write_whole

VERSIONS = ("torch", "numpy", "learn2learn", "hydra-core", "wandb")


class RunDir(NamedTuple):
    path: Path
    config: Path
    about: Path
    metrics: Path
    last: Path
    best: Path
    scores: Path
    summary: Path
    episodes: Path
    curves: Path  # without its ending: there is a .png and a .svg
    split: Path  # the classes of each split, in the form that data.split takes


def run_dir(folder: Path) -> RunDir:
    names = (
        "config.yaml run.json metrics.jsonl last.pt best.pt test_scores.csv summary.json episodes.png curves split.json"
    )
    return RunDir(folder, *(folder / name for name in names.split()))


@contextmanager
def held(folder: Path) -> Iterator[RunDir]:
    """The directory, for this process alone; a lock that dies with the process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise RunError(
            f"{folder}: another process is at work here; wait for it, or choose another seed or out"
        ) from error
    except OSError as error:
        raise RunError(f"out={folder}: cannot be written ({error.strerror}); choose another out=FOLDER") from error
    try:
        yield run_dir(folder)
    finally:
        lock.release()


def claim(run: RunDir, config: RunConfig) -> None:
    """The first run writes its configuration; a later one must have the same."""
    if run.config.exists():
        before = yaml.safe_load(run.config.read_text())
        there, ours = config.signed(before), config.signed(config.plain)
        if there != ours:
            differs = sorted(key for key in {*there, *ours} if there.get(key) != ours.get(key))
            raise RunError(
                f"{run.config}: another configuration lies here (differs in {', '.join(differs)}); move it away"
            )
        return
    write_text(run.about, json.dumps({"id": uuid.uuid4().hex[:12], "choices": dict(config.choices)}, indent=2) + "\n")
    write_text(run.config, yaml.safe_dump(dict(config.plain), sort_keys=False))


def run_id(run: RunDir) -> str:
    return str(json.loads(run.about.read_text())["id"])


def finished(run: RunDir) -> dict[str, Any] | None:
    return dict(json.loads(run.summary.read_text())) if run.summary.exists() else None


def write_text(path: Path, text: str) -> None:
    write_whole(path, lambda file: file.write(text.encode()))


def protocol(config: RunConfig) -> dict[str, Any]:
    """What a reader must know to believe the number."""
    task = config.task
    return {
        "data": config.choices["data"],
        "split": "test",
        "ways": task.ways,
        "shots": task.shots,
        "queries": task.queries,
        "label_noise": task.label_noise,
        "imbalance": task.imbalance,
        "sampler": task.sampler,
        "train": {"ways": task.train.ways, "shots": task.train.shots, "queries": task.train.queries},
        "algo": config.choices["algo"],
        "model": config.choices["model"],
        "bn": config.plain["algo"].get("bn"),
        "engine": config.choices["engine"],
        "steps": config.train.steps,
        "meta_batch": config.train.meta_batch,
        "seed": config.seed,
        "device": str(config.device),
        "tf32": config.tf32,
        "signature": config.signature,
        "versions": versions(),
        "git": git_state(),
    }


def versions() -> dict[str, str]:
    """Of what the numbers depend on; read from metadata, nothing is imported for it."""
    found = {"metarun": metarun.__version__, "python": platform.python_version(), "platform": sys.platform}
    for name in VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def peak_mb(device: torch.device) -> float:
    """The most memory held so far: by tensors on a GPU, else by this process and those that work for it.

    torch itself takes 300 MB of each.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    own = peak / 2**20 if sys.platform == "darwin" else peak / 2**10
    return own + sum(_other_mb(child.pid) for child in multiprocessing.active_children())


def _other_mb(pid: int | None) -> float:
    """Of another process, where Linux tells; else nothing."""
    try:
        found = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0.0
    return int(found[1]) / 2**10 if found else 0.0


def git_state() -> dict[str, Any] | None:
    """Commit and cleanliness of the checkout metarun runs from; None outside one."""
    here = Path(metarun.__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        if git("ls-files", "__init__.py") == "":
            return None  # an installed copy that happens to lie inside somebody's repository
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None
