"""Meta-steps of metarun's engines and of the libraries one could use instead, side by side on this machine.

make bench                                     all workloads: docs/speed.json and docs/speed.md
make bench ARGS="--only W4,W5 --rounds 5"      all W4-... and W5 alone, into outputs/bench
make bench ARGS="--engines vmap,learn2learn"   some contenders alone
make bench ARGS="--device cuda"                on a GPU: docs/speed_cuda.json and .md
make bench ARGS="accuracy"                     seconds to 95 % validation accuracy on real Omniglot, beside them
make bench ARGS="--only W5 --out docs --add"   W5 anew, and the other rows as they were measured before
make bench ARGS="scores"                       600 test episodes on real Omniglot, scored by metarun and by learn2learn
make bench ARGS="memory --only W3"             the peak memory of what docs/speed.json has, anew
make bench ARGS="table"                        docs/speed.md anew from docs/speed.json
make bench ARGS="--quick"                      tiny networks and two rounds: does it work at all?

Every contender must give the float64 meta-gradient of the plain autograd loop, or it is listed as wrong and not timed.
All run in one process, one after the other in every round, with the same threads and the same allocator. What a peer
needs and metarun does not is installed into .bench/, once.
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
QUICK_ENGINES = "vmap,loop,learn2learn,higher,torchopt,autograd"  # those that need no compiler and no process


def arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", nargs="?", choices=("speed", "accuracy", "scores", "memory", "table"), default="speed")
    parser.add_argument("--only", default="", help="workloads: W4 for all of its kind, W4-1step for one")
    parser.add_argument("--engines", default="", help="contenders, by the names in the table")
    parser.add_argument("--rounds", type=int, help=f"{ROUNDS} unless said, {QUICK_ROUNDS} with --quick")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="all cores unless said")
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--add", action="store_true", help="keep what the file has of other workloads")
    parser.add_argument("--out", type=Path, help="folder; docs for the whole table, else outputs/bench")
    parser.add_argument("--target", type=float, default=time_to_accuracy.TARGET, help="accuracy: what is to be reached")
    parser.add_argument("--patience", type=float, default=time_to_accuracy.PATIENCE_S, help="accuracy: seconds at most")
    return parser.parse_args(words)


def comma_list(words: str) -> list[str]:
    return [word for word in words.split(",") if word]


def main(words: list[str]) -> int:
    args = arguments(words)
    whole = args.mode == "memory" or not (args.only or args.engines or args.quick)
    folder = args.out or (ROOT / "docs" if whole else ROOT / "outputs" / "bench")
    folder.mkdir(parents=True, exist_ok=True)
    name = "speed" if args.device == "cpu" else f"speed_{args.device}"
    stored, reached, scored, shown = (
        folder / f"{name}{end}" for end in (".json", "_accuracy.json", "_scores.json", ".md")
    )
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch sees no GPU")
    command = f'make bench ARGS="{shlex.join(words)}"' if words else "make bench"
    if args.mode == "speed":
        before = read(stored) if args.add and stored.exists() else None
        for found in speed(args, command):  # stored after every workload: hours are not lost to the last of them
            write(stored, merge_rows(before, found) if before else found)
    elif args.mode == "memory":
        if not stored.exists():
            raise SystemExit(f"{stored}: not there; memory is measured of what was timed, by make bench")
        for found in remeasure_memory(args, command, read(stored)):
            write(stored, found)
    elif args.mode == "accuracy":
        limits = time_to_accuracy.Limits(args.target, args.patience, args.device, args.quick)
        write(reached, {"command": command, **time_to_accuracy.measure(limits, say)})
    elif args.mode == "scores":
        machine.set_threads_and_allocator(args.threads)
        write(scored, {"command": command, **scoring_speed.measure(torch.device(args.device), args.quick, say)})
    if stored.exists():
        more = (read(file) if file.exists() else None for file in (reached, scored))
        shown.write_text(report.markdown(read(stored), *more))
        say(str(shown))
    return 0


def merge_rows(before: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Rows in the order of the workloads; every command that made some of them is named."""
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
    pages_kept = machine.set_threads_and_allocator(args.threads)
    peer_packages.install_missing(say)
    plan = settings_from(args, machine.best_conv_gflops(torch.device(args.device), args.quick))
    say(f"limit: {plan.limit_gflops:.0f} GFLOP/s")
    found: dict[str, Any] = {
        "command": command,
        "date": datetime.date.today().isoformat(),
        "machine": machine.describe(plan.device, pages_kept),
        "limit_gflops": plan.limit_gflops,
        "rounds": plan.rounds,
        "quick": args.quick,
        "rows": [],
    }
    for workload in select_workloads(comma_list(args.only)):
        found["rows"].append(timing.time_workload(workload, plan))
        say("\n".join(report.table(found["rows"][-1:])))
        yield found


def remeasure_memory(args: argparse.Namespace, command: str, stored: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """With the memory measured again."""
    machine.set_threads_and_allocator(args.threads)
    peer_packages.install_missing(say)
    wanted = {workload.name for workload in select_workloads(comma_list(args.only))}
    plan, named = settings_from(args, stored["limit_gflops"]), join_commands(stored["command"], command)
    for row in stored["rows"]:
        if row["workload"] in wanted:
            timing.remeasure_memory(row, plan)
            yield {**stored, "command": named}


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
