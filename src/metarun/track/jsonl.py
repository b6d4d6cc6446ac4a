"""Metrics as one JSON object per line, in a file that a resumed run continues without a seam."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metarun.types import Artifacts


@dataclass(frozen=True)
class FilesOnly:
    """The choice to track a run in its own directory and nowhere else."""


class Jsonl:
    """Opens `path` at `offset` bytes (a checkpoint's `position`, 0 for a new run); what lies beyond is dropped."""

    def __init__(self, path: Path, offset: int) -> None:
        size = path.stat().st_size if path.exists() else 0
        if size < offset:
            raise OSError(f"{path} has {size} bytes, the checkpoint counts on {offset}: the file was cut or replaced")
        self._file = path.open("r+b" if path.exists() else "w+b")
        self._file.truncate(offset)
        self._file.seek(offset)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        row: dict[str, float | None] = {"step": step}
        row |= {name: value if math.isfinite(value) else None for name, value in metrics.items()}  # JSON has no NaN
        self._file.write(json.dumps(row).encode() + b"\n")
        self._file.flush()

    def position(self) -> int:
        """Bytes that are safely on disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def finish(self, summary: Mapping[str, Any], artifacts: Artifacts) -> None:
        """Nothing to do: the summary is a file of its own."""

    def close(self, exit_code: int) -> None:
        self._file.close()
