"""A table of the finished runs below a folder, in Markdown: python scripts/tables/results.py [outputs]"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from metarun.measures import primary_among

HEAD = ("data", "task", "algo", "model", "bn", "steps", "seed", "test", "val best", "tasks/s", "time")


def row(summary: dict[str, Any]) -> tuple[str, ...]:
    said = summary["protocol"]
    measure = primary_among(summary, "test")
    assert measure is not None, f"no score in {sorted(summary)}"
    task = f"{said['ways']}w{said['shots']}s q{said['queries']}" if measure.kind == "classes" else f"k{said['shots']}"
    tested = f"{measure.text(summary[f'test/{measure.name}'], summary['test/ci95'])} ({summary['test/episodes']})"
    best = f"{measure.text(summary[f'val/best_{measure.name}'])} (step {summary['best_step']})"
    minutes, seconds = divmod(round(summary["time/total_s"]), 60)
    pace = f"{summary['time/tasks_per_s']:.0f}"
    known = (said["data"], task, said["algo"], said["model"], said["bn"], said["steps"], said["seed"])
    return (*(str(value) for value in known), tested, best, pace, f"{minutes}:{seconds:02}")


def main(folder: Path) -> None:
    files = sorted(folder.glob("*/*/seed*/summary.json"))
    rows = [HEAD, tuple("---" for _ in HEAD), *(row(json.loads(file.read_text())) for file in files)]
    print("\n".join(f"| {' | '.join(cells)} |" for cells in rows))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs"))
