"""Mini-batches of one task's items, shuffled by a hash: no random state, so that a step is a function of its number."""

from __future__ import annotations

import torch
from torch import Tensor

from metarun.types import StepIndex


def minibatch_rows(seed: Tensor, k: StepIndex, num_rows: int, size: int) -> Tensor:
    """rows_B of mini-batch k: numbers of `size` items out of `num_rows`.

    Each pass over the items has its own order, a function of `seed`. A batch may span the end of one pass and the
    start of the next.
    """
    position_B = k * size + torch.arange(size, device=seed.device)
    pass_B = torch.div(position_B, num_rows, rounding_mode="floor")
    keys_BR = _splitmix64(
        _splitmix64(_splitmix64(seed) + pass_B).unsqueeze(1) + torch.arange(num_rows, device=seed.device)
    )
    return keys_BR.argsort(dim=1).gather(1, (position_B % num_rows).unsqueeze(1)).squeeze(1)


def _splitmix64(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele et al. 2014) on int64, whose products wrap."""
    x = x * -7046029254386353131
    x = (x ^ (x >> 30 & 0x3FFFFFFFF)) * -4658895280553007687
    x = (x ^ (x >> 27 & 0x1FFFFFFFFF)) * -7723592293110705685
    return x ^ (x >> 31 & 0x1FFFFFFFF)
