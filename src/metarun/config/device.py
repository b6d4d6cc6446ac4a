"""The device, the number of processes and the float32 precision of a run."""

from __future__ import annotations

import os
import re
from typing import Literal

import torch

from metarun.config.convert import convert
from metarun.errors import ConfigError


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


def processes_of(value: object) -> int | Literal["auto"]:
    if value == "auto":
        return "auto"
    found = re.fullmatch(r"1|cpu:([1-9]\d*)", str(value))
    if not found:
        raise ConfigError(f"devices={value}: use auto, 1, or cpu:NUMBER for so many processes of one thread each")
    return int(found[1] or 1)


def cores() -> int:
    """Number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
