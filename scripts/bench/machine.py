"""This machine: its description, its fastest convolution, and the settings that hold for every contender."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import conv2d
from torch.utils.flop_counter import FlopCounterMode

from metarun.torch_setup.allocator import keep_pages

# (images, input channels, output channels, pixels a side): convolutions of few-shot networks over several tasks.
CONV_SHAPES = ((160, 64, 64, 14), (300, 32, 32, 42), (256, 64, 64, 56), (512, 128, 128, 28))
CUDA_CONV_SHAPES = ((2048, 64, 64, 28), (1024, 128, 128, 28), (1024, 256, 256, 28))
LIMIT_ROUNDS = 7


def set_threads_and_allocator(threads: int) -> bool:
    """Call before anything large is allocated. Returns whether the allocator keeps freed pages."""
    torch.set_num_threads(threads)
    return keep_pages("auto")


def describe(device: torch.device, pages_kept: bool) -> dict[str, object]:
    about: dict[str, object] = {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "memory_gb": memory_gb(),
        "threads": torch.get_num_threads(),
        "vector": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": device.type,
        "allocator": "freed pages kept (mallopt)" if pages_kept else "the system's",
    }
    if device.type == "cuda":
        about["gpu"] = torch.cuda.get_device_name(device)
        about["tf32"] = torch.backends.cudnn.allow_tf32
    return about


def cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            found = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        found = []
    return found[0] if found else platform.processor() or "unknown"


def memory_gb() -> int | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    except (ValueError, OSError):
        return None


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def best_conv_gflops(device: torch.device, quick: bool) -> float:
    """GFLOP/s of the fastest fp32 convolution among CONV_SHAPES, forward or backward, channels last."""
    shapes = CUDA_CONV_SHAPES if device.type == "cuda" else CONV_SHAPES
    best = 0.0
    with torch.no_grad():
        for images, inputs, width, side in shapes[:1] if quick else shapes:
            x = torch.randn(images, inputs, side, side, device=device).to(memory_format=torch.channels_last)
            w = torch.randn(width, inputs, 3, 3, device=device).to(memory_format=torch.channels_last)
            y = conv2d(x, w, padding=1)
            operations = 2 * images * side * side * 9 * inputs * width
            for run in _forward_and_backwards(x, w, y):
                best = max(best, operations / _median_s(run, device, 2 if quick else LIMIT_ROUNDS) / 1e9)
    return best


def _forward_and_backwards(x: Tensor, w: Tensor, y: Tensor) -> list[Callable[[], object]]:
    def backward(mask: list[bool]) -> Callable[[], object]:
        return lambda: torch.ops.aten.convolution_backward(
            y, x, w, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, mask
        )

    return [lambda: conv2d(x, w, padding=1), backward([True, False, False]), backward([False, True, False])]


def _median_s(run: Callable[[], object], device: torch.device, rounds: int) -> float:
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        run()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])  # the first call warms up


def count_gflop(run: Callable[[], object]) -> float:
    """GFLOP of one call: multiplications and additions of convolutions and matrix products alone."""
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops()) / 1e9
