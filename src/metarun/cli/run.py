"""`metarun` and `metarun -m`: one run, or every combination."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from metarun.config.compose import Composed, compose, sweep
from metarun.config.renamed import tell
from metarun.config.schema import RunConfig, check_config
from metarun.errors import RunError
from metarun.run.build import prepare
from metarun.run.directory import folder_in_use
from metarun.run.run import Outcome, execute
from metarun.torch_setup.torchrun import speaks_for_all
from metarun.track.console import say


def run(words: Sequence[str], lost: list[str]) -> int:
    """`lost` gets the run directories whose tracker was given up."""
    composed = compose(words)
    tell(composed.renamed)
    return _execute_noting_lost(check_config(composed.plain, composed.choices), lost).exit_code


def run_many(words: Sequence[str], lost: list[str]) -> int:
    failed: list[str] = []
    told: set[str] = set()

    def check(composed: Composed) -> None:
        """All that can be checked without training."""
        tell([line for line in composed.renamed if line not in told])
        told.update(composed.renamed)
        prepare(check_config(composed.plain, composed.choices), say)

    def job(composed: Composed, number: int, total: int) -> None:
        config = check_config(composed.plain, composed.choices)
        folder = folder_in_use(config)
        say(f"run {number} of {total}: {folder}" if total else f"run {number}: {folder}")
        try:
            outcome = _execute_noting_lost(config, lost)
        except RunError as error:
            if speaks_for_all():
                print(f"metarun: {error}", file=sys.stderr)
            failed.append(str(folder))
            return
        if outcome.exit_code:
            raise SystemExit(outcome.exit_code)  # somebody asked to stop: the whole sweep

    sweep(words, job, check)
    if failed:
        raise RunError(f"{len(failed)} runs failed: {', '.join(failed)}")
    return 0


def _execute_noting_lost(config: RunConfig, lost: list[str]) -> Outcome:
    outcome = execute(config)
    if outcome.lost:
        lost.append(str(folder_in_use(config)))
    return outcome
