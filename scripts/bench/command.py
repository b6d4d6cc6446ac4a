"""Times meta-steps of metarun's engines and of other meta-learning libraries on this machine.

make bench                                     all workloads; writes docs/speed.json and docs/speed.md
make bench ARGS="--only W4,W5 --rounds 5"      only W4-... and W5-...; writes into outputs/bench
make bench ARGS="--engines vmap,learn2learn"   only these contenders
make bench ARGS="--device cuda"                on a GPU; writes docs/speed_cuda.json and .md
make bench ARGS="accuracy"                     seconds to 95 % validation accuracy on Omniglot
make bench ARGS="--only W5 --out docs --add"   W5 again; the other rows stay as they are
make bench ARGS="scores"                       seconds to score 600 test episodes of Omniglot
make bench ARGS="memory --only W3"             peak memory again, of the rows in docs/speed.json
make bench ARGS="table"                        write docs/speed.md again from docs/speed.json
make bench ARGS="--quick"                      tiny networks and two rounds, to see that all works

A contender whose float64 meta-gradient differs from the plain autograd loop is listed as wrong and is not timed.
All run in one process, one after another in every round, with the same threads and allocator. Libraries that only the
bench needs are installed into .bench/, once.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bench import machine, peer_packages, report, scoring_speed, time_to_accuracy, timing
from bench.workloads import WORKLOADS, select_workloads

ROOT = Path(__file__).parents[2]
ROUNDS, QUICK_ROUNDS = 9, 2
QUICK_ENGINES = "vmap,loop,learn2learn,higher,torchopt,autograd"  # need no compiler and no workers


def arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", nargs="?", choices=("speed", "accuracy", "scores", "memory", "table"), default="speed")
    parser.add_argument("--only", default="", help="workloads: W4-1step, or W4 for all W4-...")
    parser.add_argument("--engines", default="", help="contenders: vmap,compiled,learn2learn,...; default: all")
    parser.add_argument("--rounds", type=int, help=f"default: {ROUNDS}, with --quick {QUICK_ROUNDS}")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all cores")
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    parser.add_argument("--quick", action="store_true", help="tiny networks and few rounds")
    parser.add_argument("--add", action="store_true", help="keep the rows of other workloads in the file")
    parser.add_argument("--out", type=Path, help="folder; default: docs for the whole table, else outputs/bench")
    parser.add_argument("--target", type=float, default=time_to_accuracy.TARGET, help="accuracy: the accuracy to reach")
    parser.add_argument("--time-limit", type=float, default=time_to_accuracy.TIME_LIMIT_S, help="accuracy: seconds")
    return parser.parse_args(words)


def comma_list(words: str) -> list[str]:
    return [word for word in words.split(",") if word]


def main(words: list[str]) -> int:
    args = arguments(words)
    whole = args.mode == "memory" or not (args.only or args.engines or args.quick)
    folder = args.out or (ROOT / "docs" if whole else ROOT / "outputs" / "bench")
    folder.mkdir(parents=True, exist_ok=True)
    name = "speed" if args.device == "cpu" else f"speed_{args.device}"
    timing_file, accuracy_file, scoring_file, page = (
        folder / f"{name}{end}" for end in (".json", "_accuracy.json", "_scores.json", ".md")
    )
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch sees no GPU")
    command = f'make bench ARGS="{shlex.join(words)}"' if words else "make bench"
    if args.mode == "speed":
        before = read(timing_file) if args.add and timing_file.exists() else None
        for found in speed(args, command):  # stored after every workload, since a full run takes hours
            write(timing_file, merge_rows(before, found) if before else found)
    elif args.mode == "memory":
        if not timing_file.exists():
            raise SystemExit(f"{timing_file}: no such file; time the workloads first, by make bench")
        for found in remeasure_memory(args, command, read(timing_file)):
            write(timing_file, found)
    elif args.mode == "accuracy":
        limits = time_to_accuracy.Limits(args.target, args.time_limit, args.device, args.quick)
        write(accuracy_file, {"command": command, **time_to_accuracy.measure(limits, say)})
    elif args.mode == "scores":
        machine.set_threads_and_allocator(args.threads)
        write(scoring_file, {"command": command, **scoring_speed.measure(torch.device(args.device), args.quick, say)})
    if timing_file.exists():
        more = (read(file) if file.exists() else None for file in (accuracy_file, scoring_file))
        page.write_text(report.markdown(read(timing_file), *more))
        say(str(page))
    return 0


def merge_rows(before: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Old and new rows, in the order of WORKLOADS; `command` names every command that made some of them."""
    order, rows = list(WORKLOADS), {row["workload"]: row for row in (*before["rows"], *found["rows"])}
    command = join_commands(before["command"], found["command"])
    return {**found, "command": command, "rows": sorted(rows.values(), key=lambda row: order.index(row["workload"]))}


def join_commands(before: str, command: str) -> str:
    return " and ".join(dict.fromkeys((*before.split(" and "), command)))


def write(file: Path, found: dict[str, Any]) -> None:
    file.write_text(json.dumps(found, indent=1) + "\n")
    say(str(file))


def read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def speed(args: argparse.Namespace, command: str) -> Iterator[dict[str, Any]]:
    keeps_pages = machine.set_threads_and_allocator(args.threads)
    peer_packages.install_missing(say)
    settings = settings_from(args, machine.best_conv_gflops(torch.device(args.device), args.quick))
    say(f"limit: {settings.limit_gflops:.0f} GFLOP/s")
    found: dict[str, Any] = {
        "command": command,
        "date": datetime.date.today().isoformat(),
        "machine": machine.describe(settings.device, keeps_pages),
        "limit_gflops": settings.limit_gflops,
        "rounds": settings.rounds,
        "quick": args.quick,
        "rows": [],
    }
    for workload in select_workloads(comma_list(args.only)):
        found["rows"].append(timing.time_workload(workload, settings))
        say("\n".join(report.table(found["rows"][-1:])))
        yield found


def remeasure_memory(args: argparse.Namespace, command: str, stored: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The stored figures with peak memory measured again, after every row."""
    machine.set_threads_and_allocator(args.threads)
    peer_packages.install_missing(say)
    wanted = {workload.name for workload in select_workloads(comma_list(args.only))}
    settings, command = settings_from(args, stored["limit_gflops"]), join_commands(stored["command"], command)
    for row in stored["rows"]:
        if row["workload"] in wanted:
            timing.remeasure_memory(row, settings)
            yield {**stored, "command": command}


def settings_from(args: argparse.Namespace, limit_gflops: float) -> timing.TimingSettings:
    return timing.TimingSettings(
        device=torch.device(args.device),
        threads=args.threads,
        rounds=args.rounds or (QUICK_ROUNDS if args.quick else ROUNDS),
        quick=args.quick,
        memory=not (args.no_memory or args.quick),
        engines=comma_list(args.engines or (QUICK_ENGINES if args.quick else "")),
        limit_gflops=limit_gflops,
        say=say,
    )


def say(text: str) -> None:
    print(text, flush=True)
