"""What torchrun tells each of the processes that it starts, by environment variables."""

from __future__ import annotations

import os

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def torchrun_count() -> int | None:
    """The number of processes that torchrun has started, this one among them; None: it did not start this one."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in VARIABLES) else None


def speaks_for_all() -> bool:
    """Whether this process tells the user what happens: rank 0, where torchrun has started several."""
    return torchrun_count() is None or os.environ["RANK"] == "0"
