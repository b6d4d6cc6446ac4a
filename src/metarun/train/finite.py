"""Whether loss and gradient are finite: asked on the device at every step, read by the host at rare events only."""

from __future__ import annotations

import torch
from torch import Tensor

NEVER = torch.iinfo(torch.int64).max  # later than every step


class NonFinite(Exception):
    """The training loss or its gradient is not finite at `step`; `in_a_row`: the last of so many such steps."""

    def __init__(self, step: int, in_a_row: int = 1) -> None:
        super().__init__(step, in_a_row)
        self.step, self.in_a_row = step, in_a_row


def all_finite(loss: Tensor, gradients: list[Tensor]) -> Tensor:
    """A boolean on the device."""
    return torch.stack([loss.isfinite(), *(gradient.isfinite().all() for gradient in gradients)]).all()


class FiniteWatch:
    """Remembers the first step that was not finite. The memory stays on the device, so no step waits for it."""

    def __init__(self) -> None:
        self.first: Tensor | None = None

    def see(self, step: int, finite: Tensor) -> None:
        here = torch.where(finite, NEVER, step)
        self.first = here if self.first is None else torch.minimum(self.first, here)

    def check(self, step: int) -> None:
        """Raises NonFinite if one of the first `step` steps was not finite; waits for the device."""
        first = NEVER if self.first is None else int(self.first.item())
        if first < step:
            raise NonFinite(first)
