"""Freed memory stays with the process: to get new pages costs a large tensor more time than the arithmetic on it."""

from __future__ import annotations

import ctypes
import platform
import sys
from typing import Literal

Allocator = Literal["auto", "off"]

# Parameters of mallopt, from glibc's malloc.h. By default glibc returns a large block to the system when it is freed,
# and the next block has to be cleared page by page: a meta-step on 84x84 images took 2,237 ms, and 1,161 ms with these.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
NEVER_TRIM = 2**31 - 1  # free bytes at the top of the heap from which they are returned: the largest C int
TOP_PAD = 64 << 20  # bytes requested from the system beyond what is needed


def keep_pages(choice: Allocator) -> bool:
    """Tells glibc to keep freed memory, and returns whether it does. Elsewhere than on Linux with glibc: False.

    It holds for the whole process and cannot be undone: its memory grows to its peak and stays there.
    """
    if choice == "off" or sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, NEVER_TRIM), (M_TOP_PAD, TOP_PAD))
    return [mallopt(parameter, value) for parameter, value in settings] == [1, 1, 1]
