"""Metrics as one JSON object per line, in a file that a resumed run continues without a seam."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metarun.types import Artifacts


@dataclass(frozen=True)
class FilesOnly:
    """Settings of track=local: the run directory holds the metrics, and no service is told."""


class Jsonl:
    """Appends to `path` from byte `offset` on (0, or the `position` in a checkpoint) and drops the bytes after it."""

    def __init__(self, path: Path, offset: int) -> None:
        size = path.stat().st_size if path.exists() else 0
        if size < offset:
            raise OSError(
                f"{path} has {size} bytes, but the checkpoint was saved at {offset}: the file was cut or replaced"
            )
        self._file = path.open("r+b" if path.exists() else "w+b")
        self._file.truncate(offset)
        self._file.seek(offset)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        row: dict[str, float | None] = {"step": step}
        row |= {name: value if math.isfinite(value) else None for name, value in metrics.items()}  # JSON has no NaN
        self._file.write(json.dumps(row).encode() + b"\n")
        self._file.flush()

    def position(self) -> int:
        """Writes everything to disk and returns the length of the file in bytes."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def finish(self, summary: Mapping[str, object], artifacts: Artifacts) -> None:
        """Nothing: the run writes summary.json itself."""

    def close(self, exit_code: int) -> None:
        self._file.close()
