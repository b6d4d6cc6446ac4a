"""Memory that was freed stays with the process: fresh pages cost a large tensor more than the arithmetic on it."""

from __future__ import annotations

import ctypes
import platform
import sys
from typing import Literal

Allocator = Literal["auto", "off"]

# glibc's malloc.h. A large block is otherwise given back when freed, and its next owner pays for clearing each page:
# a meta-step on 84x84 images took 2,237 ms with what glibc does by itself and 1,161 ms with these.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
NEVER = 2**31 - 1  # bytes free at the top before they are given back: the most a C int can say
TOP_PAD = 64 << 20  # bytes asked for beyond what is needed


def keep_pages(choice: Allocator) -> bool:
    """Tells glibc to keep what is freed. Whether it did: only Linux with glibc listens, anywhere else nothing happens.

    It holds for the process and cannot be taken back; what the process holds grows to its peak and stays there.
    """
    if choice == "off" or sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, NEVER), (M_TOP_PAD, TOP_PAD))
    return [mallopt(parameter, value) for parameter, value in settings] == [1, 1, 1]
