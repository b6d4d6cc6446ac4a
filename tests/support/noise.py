"""Reproducible noise."""

from __future__ import annotations

import torch
from torch import Tensor


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
