"""Meta-learning experiments from one command, or from Python: compose, execute, load. Docs: docs/python.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from metarun.errors import ConfigError, RunError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from metarun.config.schema import RunConfig
    from metarun.run.finished import FinishedRun
    from metarun.run.run import Outcome

__version__ = "0.1.0"
__all__ = ["ConfigError", "RunError", "__version__", "compose", "execute", "load"]

# Heavy imports stand inside the functions: `import metarun` takes no torch.


def compose(words: Sequence[str] = ()) -> RunConfig:
    """The checked configuration of the command `metarun WORDS`; a mistake is a ConfigError."""
    import warnings

    from metarun.config.compose import compose as compose_plain
    from metarun.config.schema import check_config

    composed = compose_plain(words)
    for line in composed.renamed:
        warnings.warn(line, FutureWarning, stacklevel=2)
    return check_config(composed.plain, composed.choices)


def execute(config: RunConfig) -> Outcome:
    """Makes the run, or goes on with it, as the command does; the outcome has the summary."""
    from metarun.run.run import execute as execute_run

    return execute_run(config)


def load(folder: str | PathLike[str], device: str = "auto") -> FinishedRun:
    """A finished run, which adapts to new tasks: load(RUN_DIR).adapt(support_x, support_y).predict(x)."""
    from metarun.run.finished import load_run

    return load_run(folder, device)
