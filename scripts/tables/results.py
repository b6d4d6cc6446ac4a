"""Prints a Markdown table of the finished runs in a folder: python scripts/tables/results.py [outputs]"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from metarun.measures import primary_among

HEADER = ("data", "task", "algo", "model", "bn", "steps", "seed", "test", "val best", "tasks/s", "time")


def table_row(summary: dict[str, Any]) -> tuple[str, ...]:
    protocol = summary["protocol"]
    measure = primary_among(summary, "test")
    assert measure is not None, f"no score in {sorted(summary)}"
    task = "{ways}w{shots}s q{queries}" if measure.kind == "classes" else "k{shots}"
    settings = ("{data}", task, "{algo}", "{model}", "{bn}", "{steps}", "{seed}")
    tested = f"{measure.text(summary[f'test/{measure.name}'], summary['test/ci95'])} ({summary['test/episodes']})"
    best = f"{measure.text(summary[f'val/best_{measure.name}'])} (step {summary['best_step']})"
    minutes, seconds = divmod(round(summary["time/total_s"]), 60)
    pace = f"{summary['time/tasks_per_s']:.0f}"
    return (*(cell.format(**protocol) for cell in settings), tested, best, pace, f"{minutes}:{seconds:02}")


def main(folder: Path) -> None:
    files = sorted(folder.glob("*/*/seed*/summary.json"))
    rows = [HEADER, tuple("---" for _ in HEADER), *(table_row(json.loads(file.read_text())) for file in files)]
    print("\n".join(f"| {' | '.join(cells)} |" for cells in rows))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs"))
