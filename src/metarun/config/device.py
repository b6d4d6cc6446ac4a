"""The device, the number of processes and the float32 precision of a run."""

from __future__ import annotations

import os
import re
from typing import Literal

import torch

from metarun.config.convert import convert
from metarun.errors import ConfigError
from metarun.torch_setup.torchrun import torchrun_count


def device_of(value: object) -> torch.device:
    name = convert(value, str, "device")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = re.fullmatch(r"(cpu|cuda)(?::(\d+))?", name)
    if not found:
        raise ConfigError(f"device={name}: no such device; use auto, cpu, cuda or cuda:NUMBER")
    if found[1] == "cpu":
        return torch.device("cpu")
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(found[2] or 0) >= there:
        raise ConfigError(f"device={name}: this machine has {there} GPUs that torch can use; use device=auto")
    return torch.device(name)


def set_tf32(on: bool) -> None:
    """Whether a GPU may multiply float32 with 10 bits of mantissa. torch by itself allows it for convolutions alone."""
    torch.backends.cuda.matmul.allow_tf32 = on
    torch.backends.cudnn.allow_tf32 = on


def ranks_of(value: object, device: torch.device) -> int | Literal["auto"]:
    """The number of processes that `devices` asks for; those that torchrun has started, where it has."""
    found = re.fullmatch(r"auto|1|(cpu|cuda):([1-9]\d*)", str(value))
    if not found:
        raise ConfigError(
            f"devices={value}: use auto, 1, cpu:NUMBER for so many processes of one thread each, or cuda:NUMBER"
        )
    there, asked = torchrun_count(), None if value == "auto" else int(found[2] or 1)
    if there is not None and asked not in (None, there):
        raise ConfigError(f"devices={value}: torchrun has started {there} processes; leave devices out")
    count = there or asked
    if count is None:
        return "auto"
    if found[1] == "cuda" or (device.type == "cuda" and count > 1):
        local = int(os.environ.get("LOCAL_WORLD_SIZE", count)) if there else count
        _check_gpus(value, device, found[1], local)
    return count


def _check_gpus(value: object, device: torch.device, kind: str | None, count: int) -> None:
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cpu":
        raise ConfigError(f"devices={value}: is for the CPU, and device={device}; set devices=1")
    if count > gpus:
        raise ConfigError(f"devices={value}: {count} GPUs are needed here, and torch can use {gpus}; use devices=auto")
    if device.type == "cpu" or device.index is not None:
        raise ConfigError(f"devices={value}: takes the first {count} GPUs, and device={device}; set device=cuda")


def cores() -> int:
    """Number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
