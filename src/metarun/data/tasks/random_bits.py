"""Random numbers as a pure function of (seed, split, task, stream): the same on any device, at any batch size."""

from __future__ import annotations

import torch
from torch import Tensor

# Steele 2014, "Fast splittable pseudorandom number generators": SplitMix64, in wrapping int64 arithmetic.
_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)
_UNIT = 2.0**-53


def _shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # int64 shifts copy the sign bit; a hash needs zeros there


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def bits(seed: int, split: int, index_T: Tensor, stream: int, count: int) -> Tensor:
    """64 random bits, [T, count]: row t belongs to task index_T[t], whatever else is asked for."""
    state = index_T.new_tensor(seed)
    for part in (split, stream):
        state = _mix(state + _GAMMA) + part
    state_T = _mix(_mix(state + _GAMMA) + index_T)
    counter = torch.arange(1, count + 1, device=index_T.device)
    return _mix(state_T[:, None] + counter * _GAMMA)


def uniform(seed: int, split: int, index_T: Tensor, stream: int, count: int) -> Tensor:
    """float64 in [0, 1), [T, count]."""
    return _shift(bits(seed, split, index_T, stream, count), 11).double() * _UNIT


def choose(random_bits: Tensor, count: int) -> Tensor:
    """`count` different numbers below the size of the last dimension, in random order: where the largest bits are."""
    return random_bits.topk(count, dim=-1).indices


def choose_among(random_bits: Tensor, sizes: Tensor, count: int) -> Tensor:
    """The same below `sizes`, one for each row, which are at most the size of the last dimension."""
    beyond = torch.arange(random_bits.shape[-1], device=sizes.device) >= sizes[..., None]
    return choose(random_bits.masked_fill(beyond, torch.iinfo(torch.int64).min), count)


def choose_few(seed: int, split: int, index_T: Tensor, stream: int, sizes_TN: Tensor, count: int) -> Tensor:
    """The same in time that does not grow with the sizes: Floyd's algorithm (Bentley and Floyd 1987), then shuffled."""
    tasks, ways = sizes_TN.shape
    random_bits = bits(seed, split, index_T, stream, 2 * ways * count).view(tasks, ways, 2, count)
    u_TNI = _shift(random_bits[:, :, 0], 11).double() * _UNIT
    chosen: list[Tensor] = []
    for number in range(count):
        last_TN = sizes_TN - count + number
        pick_TN = (u_TNI[..., number] * (last_TN + 1)).long()
        taken_TN = torch.stack([pick_TN == other for other in chosen]).any(0) if chosen else pick_TN < 0
        chosen.append(torch.where(taken_TN, last_TN, pick_TN))
    return torch.stack(chosen, dim=-1).gather(-1, choose(random_bits[:, :, 1], count))


def permutation(seed: int, split: int, epoch: int, stream: int, size: int) -> Tensor:
    """All numbers below `size` in an order of this epoch's own; on the CPU."""
    return choose(bits(seed, split, torch.tensor([epoch]), stream, size), size)[0]
