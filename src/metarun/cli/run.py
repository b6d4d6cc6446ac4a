"""`metarun` and `metarun -m`: one run, or every combination."""

from __future__ import annotations

import sys

from metarun.config.compose import Composed, compose, sweep
from metarun.config.schema import RunConfig, load
from metarun.errors import RunError
from metarun.run.build import prepare
from metarun.run.run import Outcome, execute
from metarun.track.console import say


def run(words: list[str], lost: list[str]) -> int:
    composed = compose(words)
    return _execute(load(composed.plain, composed.choices), lost).exit_code


def run_many(words: list[str], lost: list[str]) -> int:
    failed: list[str] = []

    def job(composed: Composed, number: int, total: int) -> None:
        config = load(composed.plain, composed.choices)
        say(f"run {number} of {total}: {config.folder}" if total else f"run {number}: {config.folder}")
        try:
            outcome = _execute(config, lost)
        except RunError as error:
            print(f"metarun: {error}", file=sys.stderr)
            failed.append(str(config.folder))
            return
        if outcome.exit_code:
            raise SystemExit(outcome.exit_code)  # somebody asked to stop: the whole sweep

    sweep(words, job, check)
    if failed:
        raise RunError(f"{len(failed)} runs failed: {', '.join(failed)}")
    return 0


def _execute(config: RunConfig, lost: list[str]) -> Outcome:
    outcome = execute(config)
    if outcome.lost:
        lost.append(str(config.folder))
    return outcome


def check(composed: Composed) -> None:
    """All that can be checked without training."""
    config = load(composed.plain, composed.choices)
    prepare(config, say)
