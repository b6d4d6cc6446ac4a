"""Reads a .wandb file back with wandb's own reader, `wandb leet inspect`."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class WandbFile:
    records: tuple[dict[str, Any], ...]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [record[kind] for record in self.records if record["type"] == kind]

    @property
    def run(self) -> dict[str, Any]:
        run: dict[str, Any] = self.of("run")[0]
        return run

    @property
    def history(self) -> list[dict[str, Any]]:
        """Logged rows without the columns wandb adds."""
        return [{k: v for k, v in row["item"].items() if not k.startswith("_")} for row in self.of("history")]

    @property
    def summary(self) -> dict[str, Any]:
        known: dict[str, Any] = {}
        for record in self.of("summary"):
            known |= record.get("update", {})
        return known

    @property
    def exit_code(self) -> int:
        return int(self.of("exit")[0].get("exit_code", 0))  # protobuf leaves a zero out


def read(file: Path) -> WandbFile:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return WandbFile(tuple(json.loads(line) for line in done.stdout.splitlines()))


def files(run_dir: Path) -> list[Path]:
    """Oldest session first."""
    return sorted(run_dir.glob("wandb/*run-*/*.wandb"), key=lambda file: file.stat().st_mtime_ns)
