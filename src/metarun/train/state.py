"""All that changes while a run trains."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.optim import Optimizer

from metarun.types import BUFFERS, Meta


@dataclass
class State:
    """All that changes while a run trains."""

    meta: Meta
    optimizer: Optimizer
    step: int = 0
    validated: int = -1  # the step last validated, so that a resume does not do it again
    best: tuple[float, int] | None = None  # score and step
    total_s: float = 0.0
    train_s: float = 0.0  # without validation, saving and start-up


def learned(meta: Meta) -> list[Tensor]:
    """What gradients are taken of, in one fixed order."""
    return [value for group, params in meta.items() if group != BUFFERS for value in params.values()]
