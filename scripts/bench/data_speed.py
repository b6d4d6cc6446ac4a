"""What the data path costs: its share of a MAML step, and the memory a set needs that is larger than the memory.

python -m bench.data_speed step               # sampling and gathering beside the step they feed, both data shapes
python -m bench.data_speed large              # as many pictures as tiered-ImageNet has, made up: 16.5 GB of disk
python -m bench.data_speed large --share 0.1  # a tenth of them

On Linux `large` opens and trains in a control group of 4 GB (page cache included) where one can be made.
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
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from metarun.config.compose import compose
from metarun.config.schema import check_config
from metarun.data.store.contents import Contents
from metarun.data.store.pack import packed
from metarun.data.store.pool import Pool
from metarun.data.tasks.contracts import Rotations
from metarun.data.tasks.opening import open_classes
from metarun.run.build import build_parts
from metarun.types import Kind

CLASSES, PICTURES = 608, 779_165  # tiered-ImageNet's
BLOCK, ROUNDS, STEPS = 512, 15, 40
GROUPS = {  # a control group's folder by version of the system, its limit, what it used at most
    Path("/sys/fs/cgroup/memory/metarun-large"): ("memory.limit_in_bytes", "memory.max_usage_in_bytes"),
    Path("/sys/fs/cgroup/metarun-large"): ("memory.max", "memory.peak"),
}
LIMIT = 4 << 30


@dataclass(frozen=True)
class MadeUp:
    """Noise in the shape of a published set; every picture starts with the number of its row, so none are alike."""

    kind: ClassVar[Kind] = "classes"
    classes: int
    pictures: int
    item: tuple[int, int, int]
    mean: float = 0.5
    std: float = 0.25
    rotations: Rotations = "none"

    def load(self, say: Callable[[str], None]) -> Pool:
        pack = packed(f"madeup-{self.classes}-{self.pictures}-{self.item[1]}", self._contents, say)
        numbers, share = list(range(self.classes)), self.classes // 4
        splits = (numbers[: 2 * share], numbers[2 * share : 3 * share], numbers[3 * share :])
        return pack.pool(dict(zip(("train", "val", "test"), map(tuple, splits), strict=True)), "warn", say)

    def _contents(self) -> Contents:
        base, more = divmod(self.pictures, self.classes)
        counts = tuple(base + (number < more) for number in range(self.classes))
        return Contents(tuple(f"class{n:04d}" for n in range(self.classes)), counts, self.item, self._rows())

    def _rows(self) -> Iterator[NDArray[np.uint8]]:
        noise = np.random.default_rng(0).integers(0, 256, (BLOCK, *self.item), dtype=np.uint8)
        for start in range(0, self.pictures, BLOCK):
            block = noise[: self.pictures - start].copy()
            rows = np.arange(start, start + len(block), dtype="<u4")
            block.reshape(len(block), -1)[:, :4] = rows[:, None].view(np.uint8)
            yield block


def load_config(item: tuple[int, int, int], *words: str) -> Any:
    large = item[1] > 28
    model = ["model.downsample=pool", "model.pooling=flatten", "train.meta_batch=4"] if large else []
    composed = compose(["algo=maml", "track=local", "device=cpu", *model, *words])
    return check_config(composed.plain, composed.choices)


def step() -> None:
    """Alternately: the tasks alone, and the meta-step they feed."""
    shapes = {
        "Omniglot 28x28, 5w1s q1": (MadeUp(1623, 32460, (1, 28, 28)), ["task=5w1s", "task.queries=1"]),
        "Omniglot 28x28, 5w1s q5": (MadeUp(1623, 32460, (1, 28, 28)), ["task=5w1s"]),
        "mini-ImageNet 84x84, 5w1s q15": (MadeUp(100, 60000, (3, 84, 84)), ["task=5w1s", "task.queries=15"]),
        "mini-ImageNet 84x84, 5w5s q15": (MadeUp(100, 60000, (3, 84, 84)), ["task=5w5s", "task.queries=15"]),
    }
    print("| shapes | tasks | sampling and gathering, ms | MAML step, ms | share |\n| --- | --- | --- | --- | --- |")
    for name, (source, words) in shapes.items():
        config = load_config(source.item, *words)
        data = open_classes(source, config.device, torch.float32, told)
        parts = build_parts(config, data)
        tasks = data.tasks("train", config.task.train, 0)
        batch = config.train.meta_batch
        drawn, stepped = [], []
        for number in range(ROUNDS):
            start = time.perf_counter()
            episode = tasks(torch.arange(number * batch, (number + 1) * batch))
            middle = time.perf_counter()
            parts.engine.meta_grad(parts.meta, episode, number)
            drawn.append(middle - start)
            stepped.append(time.perf_counter() - middle)
        ours, theirs = 1000 * median(drawn[2:]), 1000 * median(stepped[2:])
        print(f"| {name} | {batch} | {ours:.2f} | {theirs:.0f} | {100 * ours / theirs:.1f} % |", flush=True)


def large(share: float) -> None:
    source = MadeUp(CLASSES, int(PICTURES * share), (3, 84, 84))
    start = time.perf_counter()
    source.load(told)
    print(f"packed (or found): {time.perf_counter() - start:.1f} s", flush=True)
    command = [sys.executable, __file__, "train", "--share", str(share)]
    subprocess.run(command, check=True, preexec_fn=confined)


def confined() -> None:
    """This process and its page cache in 4 GB, where the system lets us."""
    for group, (limit, _) in GROUPS.items():
        try:
            group.mkdir(exist_ok=True)
            (group / limit).write_text(str(LIMIT))
            (group / "cgroup.procs").write_text(str(os.getpid()))
            return
        except OSError:
            continue
    print("no control group can be made here: what is used is measured, and not limited", flush=True)


def train(share: float) -> None:
    source = MadeUp(CLASSES, int(PICTURES * share), (3, 84, 84))
    config = load_config(source.item, "task=5w1s", "task.queries=15")
    start = time.perf_counter()
    pool = source.load(told)
    print(f"opened {pool.items.nbytes / 1e9:.1f} GB of {len(pool.items)} pictures: {time.perf_counter() - start:.3f} s")
    data = open_classes(source, config.device, torch.float32, told)
    parts = build_parts(config, data)
    tasks = data.tasks("train", config.task.train, 0)
    batch = config.train.meta_batch
    drawn = []
    for number in range(STEPS):
        start = time.perf_counter()
        episode = tasks(torch.arange(number * batch, (number + 1) * batch))
        drawn.append(time.perf_counter() - start)
        parts.engine.meta_grad(parts.meta, episode, number)
    print(f"{STEPS} MAML steps of {batch} tasks; sampling and gathering {1000 * median(drawn):.1f} ms each")
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    shown = {"VmHWM": "peak, map included", "RssAnon": "own memory", "RssFile": "of files, map included"}
    for name, what in shown.items():
        print(f"{name} {int(status[name].split()[0]) / 2**20:.2f} GB ({what})")
    for group, (_, peak) in GROUPS.items():
        if (group / peak).exists():
            print(f"control group: peak {int((group / peak).read_text()) / 2**30:.2f} GB of {LIMIT >> 30} GB")


def told(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["step", "large", "train"])
    parser.add_argument("--share", type=float, default=1.0, help="of tiered-ImageNet's 779,165 pictures")
    given = parser.parse_args()
    if given.what == "step":
        step()
    else:
        {"large": large, "train": train}[given.what](given.share)


if __name__ == "__main__":
    main()
