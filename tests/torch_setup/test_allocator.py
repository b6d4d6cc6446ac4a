"""What is freed is kept: large tensors made again and again take no fresh pages."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys

import pytest

from metarun.torch_setup import allocator

FAULTS = """
import resource, sys, torch
from metarun.torch_setup.allocator import keep_pages
kept = keep_pages(sys.argv[1])
def work():
    return sum(float((torch.ones(16 << 20) * number).sum()) for number in range(4))
work()
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
GLIBC = sys.platform == "linux" and platform.libc_ver()[0] == "glibc"


def faults(choice: str) -> tuple[int, int]:
    done = subprocess.run([sys.executable, "-c", FAULTS, choice], capture_output=True, text=True, check=True)
    kept, count = done.stdout.split()
    assert done.stderr == ""
    return int(kept), int(count)


@pytest.mark.skipif(not GLIBC, reason="needs glibc")
def test_freed_pages_are_used_again() -> None:
    kept, few = faults("auto")
    left, many = faults("off")
    assert (kept, left) == (1, 0)
    assert many > 200  # 4 times two blocks of 64 MB: 131,072 pages of 4 KB, or 256 of 2 MB
    assert few < many / 4


@pytest.mark.parametrize(("system", "libc"), [("darwin", ""), ("win32", ""), ("linux", "musl"), ("linux", "")])
def test_elsewhere_nothing_happens(system: str, libc: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(_: object) -> None:
        raise AssertionError("asked another C library")

    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "libc_ver", lambda: (libc, ""))
    monkeypatch.setattr(ctypes, "CDLL", never)
    assert not allocator.keep_pages("auto")


def test_a_c_library_without_mallopt_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.39"))
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert not allocator.keep_pages("auto")
