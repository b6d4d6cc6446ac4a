"""Measures the data path: its share of a MAML step, and the memory that a data set larger than the memory needs.

python -m bench.data_speed step               # time of sampling against the MAML step, for two image shapes
python -m bench.data_speed large              # made-up images, as many as tiered-ImageNet has: 16.5 GB on disk
python -m bench.data_speed large --share 0.1  # a tenth of these images

On Linux, `large` trains in a control group of 4 GB (page cache included), where the system allows one.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from metarun.config.compose import compose
from metarun.config.schema import RunConfig, check_config
from metarun.data.sources.source import Rotations
from metarun.data.store.contents import Contents
from metarun.data.store.pack import packed
from metarun.data.store.pool import Pool
from metarun.data.tasks.opening import open_classes
from metarun.run.build import build_parts
from metarun.types import Kind

CLASSES, IMAGES = 608, 779_165  # tiered-ImageNet's
BLOCK, ROUNDS, STEPS = 512, 15, 40
CONTROL_GROUPS = {  # folder (cgroup v1, v2) -> file of the limit, file of the peak
    Path("/sys/fs/cgroup/memory/metarun-large"): ("memory.limit_in_bytes", "memory.max_usage_in_bytes"),
    Path("/sys/fs/cgroup/metarun-large"): ("memory.max", "memory.peak"),
}
LIMIT = 4 << 30  # bytes


@dataclass(frozen=True)
class NoiseImages:
    """A data source of noise images; each image starts with the number of its row, so that no two are equal."""

    kind: ClassVar[Kind] = "classes"
    classes: int
    images: int
    item: tuple[int, int, int]
    mean: float = 0.5
    std: float = 0.25
    rotations: Rotations = "none"

    def load(self, say: Callable[[str], None]) -> Pool:
        pack = packed(f"madeup-{self.classes}-{self.images}-{self.item[1]}", self._contents, say)
        numbers, share = list(range(self.classes)), self.classes // 4
        splits = (numbers[: 2 * share], numbers[2 * share : 3 * share], numbers[3 * share :])
        return pack.pool(dict(zip(("train", "val", "test"), map(tuple, splits), strict=True)), "warn", say)

    def _contents(self) -> Contents:
        base, more = divmod(self.images, self.classes)
        counts = tuple(base + (number < more) for number in range(self.classes))
        return Contents(tuple(f"class{n:04d}" for n in range(self.classes)), counts, self.item, self._rows())

    def _rows(self) -> Iterator[NDArray[np.uint8]]:
        noise = np.random.default_rng(0).integers(0, 256, (BLOCK, *self.item), dtype=np.uint8)
        for start in range(0, self.images, BLOCK):
            block = noise[: self.images - start].copy()
            rows = np.arange(start, start + len(block), dtype="<u4")
            block.reshape(len(block), -1)[:, :4] = rows[:, None].view(np.uint8)
            yield block


def config_for(item: tuple[int, int, int], *words: str) -> RunConfig:
    large = item[1] > 28
    model = ["model.downsample=pool", "model.pooling=flatten", "train.meta_batch=4"] if large else []
    composed = compose(["algo=maml", "track=local", "device=cpu", *model, *words])
    return check_config(composed.plain, composed.choices)


def time_steps() -> None:
    """Times drawing a meta-batch and the meta-step on it, in turn."""
    shapes = {
        "Omniglot 28x28, 5w1s q1": (NoiseImages(1623, 32460, (1, 28, 28)), ["task=5w1s", "task.queries=1"]),
        "Omniglot 28x28, 5w1s q5": (NoiseImages(1623, 32460, (1, 28, 28)), ["task=5w1s"]),
        "mini-ImageNet 84x84, 5w1s q15": (NoiseImages(100, 60000, (3, 84, 84)), ["task=5w1s", "task.queries=15"]),
        "mini-ImageNet 84x84, 5w5s q15": (NoiseImages(100, 60000, (3, 84, 84)), ["task=5w5s", "task.queries=15"]),
    }
    print("| shapes | tasks | sampling and gathering, ms | MAML step, ms | share |\n| --- | --- | --- | --- | --- |")
    for name, (source, words) in shapes.items():
        config = config_for(source.item, *words)
        data = open_classes(source, config.device, torch.float32, say)
        parts = build_parts(config, data)
        tasks = data.tasks("train", config.task.train, 0)
        batch = config.train.meta_batch
        sampling_s, step_s = [], []
        for number in range(ROUNDS):
            start = time.perf_counter()
            episode = tasks(torch.arange(number * batch, (number + 1) * batch))
            middle = time.perf_counter()
            parts.engine.meta_grad(parts.meta, episode, number)
            sampling_s.append(middle - start)
            step_s.append(time.perf_counter() - middle)
        sampling_ms, step_ms = 1000 * median(sampling_s[2:]), 1000 * median(step_s[2:])
        print(
            f"| {name} | {batch} | {sampling_ms:.2f} | {step_ms:.0f} | {100 * sampling_ms / step_ms:.1f} % |",
            flush=True,
        )


def pack_and_train(share: float) -> None:
    source = NoiseImages(CLASSES, int(IMAGES * share), (3, 84, 84))
    start = time.perf_counter()
    source.load(say)
    print(f"packed, or found in the cache: {time.perf_counter() - start:.1f} s", flush=True)
    command = [sys.executable, __file__, "train", "--share", str(share)]
    subprocess.run(command, check=True, preexec_fn=limit_memory)


def limit_memory() -> None:
    """Puts this process into a control group of 4 GB, page cache included, where the system allows it."""
    for group, (limit, _) in CONTROL_GROUPS.items():
        try:
            group.mkdir(exist_ok=True)
            (group / limit).write_text(str(LIMIT))
            (group / "cgroup.procs").write_text(str(os.getpid()))
            return
        except OSError:
            continue
    print("no control group can be made here: memory is measured but not limited", flush=True)


def train(share: float) -> None:
    source = NoiseImages(CLASSES, int(IMAGES * share), (3, 84, 84))
    config = config_for(source.item, "task=5w1s", "task.queries=15")
    start = time.perf_counter()
    pool = source.load(say)
    print(f"opened {pool.items.nbytes / 1e9:.1f} GB of {len(pool.items)} images: {time.perf_counter() - start:.3f} s")
    data = open_classes(source, config.device, torch.float32, say)
    parts = build_parts(config, data)
    tasks = data.tasks("train", config.task.train, 0)
    batch = config.train.meta_batch
    sampling_s = []
    for number in range(STEPS):
        start = time.perf_counter()
        episode = tasks(torch.arange(number * batch, (number + 1) * batch))
        sampling_s.append(time.perf_counter() - start)
        parts.engine.meta_grad(parts.meta, episode, number)
    print(f"{STEPS} MAML steps of {batch} tasks; sampling and gathering {1000 * median(sampling_s):.1f} ms each")
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    shown = {"VmHWM": "peak, with mapped files", "RssAnon": "without files", "RssFile": "mapped files"}
    for name, what in shown.items():
        print(f"{name} {int(status[name].split()[0]) / 2**20:.2f} GB ({what})")
    for group, (_, peak) in CONTROL_GROUPS.items():
        if (group / peak).exists():
            print(f"control group: peak {int((group / peak).read_text()) / 2**30:.2f} GB of {LIMIT >> 30} GB")


def say(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["step", "large", "train"], help="train: the second half of large")
    parser.add_argument("--share", type=float, default=1.0, help="share of tiered-ImageNet's 779,165 images")
    args = parser.parse_args()
    if args.what == "step":
        time_steps()
    else:
        {"large": pack_and_train, "train": train}[args.what](args.share)


if __name__ == "__main__":
    main()
