"""Peak memory of a few meta-steps, measured in a separate process; the memory that imports take is subtracted."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import ExitStack
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path

import torch

from bench import contenders, machine, peer_packages
from bench.unavailable import Unavailable
from bench.workloads import Workload, make_job

TIMEOUT_S = 900
STEPS = 2
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_mb(
    workload: Workload, choice: contenders.Choice, device: torch.device, threads: int, quick: bool
) -> float | None:
    """In MB. None where it cannot be measured: worker processes, no /proc, or not enough memory."""
    if choice.processes > 1:
        return None  # pages that the processes share would count twice
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    process = context.Process(target=_measure, args=(theirs, workload, choice, str(device), threads, quick))
    with _with_bench_on_path(context):
        process.start()
    theirs.close()
    found: float | None = None
    with contextlib.suppress(EOFError):
        if ours.poll(TIMEOUT_S):
            found = ours.recv()
    process.join(5.0)
    if process.is_alive():
        process.kill()
        process.join()
    return found


@contextlib.contextmanager
def _with_bench_on_path(context: ForkServerContext) -> Iterator[None]:
    """The fork server takes the path from PYTHONPATH; it does not inherit sys.path."""
    context.set_forkserver_preload(["bench.preload"])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), *([before] if before else [])])
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _measure(
    pipe: Connection, workload: Workload, choice: contenders.Choice, device: str, threads: int, quick: bool
) -> None:
    try:
        pipe.send(_above_imports(workload, choice, torch.device(device), threads, quick))
    except (Unavailable, RuntimeError, OSError, KeyError, AttributeError):
        pipe.send(None)


def _above_imports(
    workload: Workload, choice: contenders.Choice, device: torch.device, threads: int, quick: bool
) -> float:
    machine.set_threads_and_allocator(threads)
    peer_packages.add_to_path()
    _run_meta_steps(workload, choice, device, quick=True, tasks=2)  # loads the code; needs next to no memory
    base = _start_counting(device)
    _run_meta_steps(workload, choice, device, quick, tasks=None)
    return (_peak(device) - base) / 2**20


def _run_meta_steps(
    workload: Workload, choice: contenders.Choice, device: torch.device, quick: bool, tasks: int | None
) -> None:
    job = make_job(workload, device, torch.float32, tasks, quick)
    with ExitStack() as until:
        step = contenders.build(choice, job, until).step
        for _ in range(STEPS):
            step(job.episode)
    machine.synchronize(device)


def _start_counting(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    ctypes.CDLL(None).malloc_trim(0)  # else memory freed before would be used again and not counted
    CLEAR.write_text("5")  # resets the peak
    return _status("VmRSS")


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else _status("VmHWM")


def _status(key: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024
