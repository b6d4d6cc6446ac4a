"""The run directory: one process at a time, one configuration for ever, everything in open formats."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import yaml

from metarun.config.renamed import translated
from metarun.config.schema import RunConfig
from metarun.errors import RunError
from metarun.run.checkpoint import write_whole


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
    plan: Path


def run_dir(folder: Path) -> RunDir:
    names = (
        "config.yaml run.json metrics.jsonl last.pt best.pt test_scores.csv summary.json episodes.png curves "
        "split.json plan.json"
    )
    return RunDir(folder, *(folder / name for name in names.split()))


@contextmanager
def locked(folder: Path) -> Iterator[RunDir]:
    """Context manager: the directory, for this process alone. The lock ends with the process."""
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


def folder_in_use(config: RunConfig) -> Path:
    """The run's folder; or the one of the same run by the previous version, whose key names gave another signature."""
    previous = config.folder_of_previous_version
    return previous if previous.exists() and not config.folder.exists() else config.folder


def write_or_match_config(run: RunDir, config: RunConfig) -> None:
    """The first run writes its configuration; a later one must have the same."""
    if run.config.exists():
        before = translated(yaml.safe_load(run.config.read_text())).plain
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


def read_summary(run: RunDir) -> dict[str, Any] | None:
    """The result of a finished run; None of one that is not finished."""
    return dict(json.loads(run.summary.read_text())) if run.summary.exists() else None


def write_summary(run: RunDir, summary: dict[str, Any]) -> None:
    """Written last: from here on the run counts as finished."""
    write_text(run.summary, json.dumps(summary, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    write_whole(path, lambda file: file.write(text.encode()))
