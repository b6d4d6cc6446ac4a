"""Where a result comes from: protocol, versions, git commit, and the most memory that was held."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch

import metarun
from metarun.config.schema import RunConfig

VERSIONS = ("torch", "numpy", "learn2learn", "hydra-core", "wandb")


def protocol(config: RunConfig) -> dict[str, object]:
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
        "outer": config.plain["train"]["outer"],
        "weights": config.eval.weights,
        "seed": config.seed,
        "device": str(config.device),
        "tf32": config.tf32,
        "signature": config.signature,
        "versions": versions(),
        "git": git_state(),
    }


def versions() -> dict[str, str]:
    """The versions of what the numbers depend on, from package metadata: nothing is imported."""
    found = {"metarun": metarun.__version__, "python": platform.python_version(), "platform": sys.platform}
    for name in VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def git_state() -> dict[str, str | bool] | None:
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


def peak_mb(device: torch.device) -> float:
    """The most memory this process has held so far: by tensors on its GPU, else all of it.

    torch itself takes 300 MB of a process.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
