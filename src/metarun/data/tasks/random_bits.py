"""Random numbers as a pure function of (seed, split, task, stream): the same on any device and at any batch size.

A stream is a number that separates what is drawn for one task: its classes, its items, the noise of its labels.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

# Steele 2014, "Fast splittable pseudorandom number generators": SplitMix64, in wrapping int64 arithmetic.
_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)
_UNIT = 2.0**-53


def _shift_right(x: Tensor, count: int) -> Tensor:
    return (x >> count) & ((1 << (64 - count)) - 1)  # int64 shifts copy the sign bit; a hash needs zeros there


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def bits(seed: int, split: int, index_T: Tensor, stream: int, count: int) -> Tensor:
    """64 random bits as int64, [T, count]. Row t depends on the number index_T[t] and on no other task."""
    state = index_T.new_tensor(seed)
    for part in (split, stream):
        state = _mix(state + _GAMMA) + part
    state_T = _mix(_mix(state + _GAMMA) + index_T)
    counter = torch.arange(1, count + 1, device=index_T.device)
    return _mix(state_T[:, None] + counter * _GAMMA)


def uniform_floats(seed: int, split: int, index_T: Tensor, stream: int, count: int) -> Tensor:
    """float64 in [0, 1), [T, count]."""
    return _to_unit_interval(bits(seed, split, index_T, stream, count))


def _to_unit_interval(random: Tensor) -> Tensor:
    return _shift_right(random, 11).double() * _UNIT


def distinct(random: Tensor, count: int) -> Tensor:
    """`count` different numbers below the size of the last dimension of `random`, in random order.

    They are the places of the largest random numbers.
    """
    return random.topk(count, dim=-1).indices


def distinct_below(random: Tensor, sizes: Tensor, count: int) -> Tensor:
    """As `distinct`, below `sizes`: one limit for each row, at most the size of the last dimension."""
    beyond = torch.arange(random.shape[-1], device=sizes.device) >= sizes[..., None]
    return distinct(random.masked_fill(beyond, torch.iinfo(torch.int64).min), count)


def distinct_of_many(seed: int, split: int, index_T: Tensor, stream: int, sizes_TN: Tensor, count: int) -> Tensor:
    """As `distinct_below`, in time that does not grow with the sizes.

    Floyd's algorithm (Bentley and Floyd 1987) chooses the numbers; then they are shuffled.
    """
    tasks, ways = sizes_TN.shape
    random = bits(seed, split, index_T, stream, 2 * ways * count).view(tasks, ways, 2, count)
    u_TNI = _to_unit_interval(random[:, :, 0])
    chosen: list[Tensor] = []
    for number in range(count):
        last_TN = sizes_TN - count + number
        pick_TN = (u_TNI[..., number] * (last_TN + 1)).long()
        taken_TN = torch.stack([pick_TN == other for other in chosen]).any(0) if chosen else pick_TN < 0
        chosen.append(torch.where(taken_TN, last_TN, pick_TN))
    return torch.stack(chosen, dim=-1).gather(-1, distinct(random[:, :, 1], count))


@lru_cache(maxsize=4)  # a step asks for the order of one pass, or of two
def permutation(seed: int, split: int, pass_number: int, stream: int, size: int) -> Tensor:
    """The numbers below `size` in the random order of this pass; on the CPU."""
    return distinct(bits(seed, split, torch.tensor([pass_number]), stream, size), size)[0]
