"""The fully connected body of the papers' regression and no-convolution experiments, without its head."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn

from metarun.models.layers import Norm, norm_layer, require_choice, require_positive

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


class MLP(nn.Module):
    """Items of any shape, flattened -> x_BD, where D is the last of `sizes`."""

    def __init__(
        self,
        shape: tuple[int, ...],
        sizes: tuple[int, ...],
        activation: Literal["relu", "tanh"],
        norm: Norm,
        eps: float,
        momentum: float,
    ) -> None:
        super().__init__()
        if not sizes:
            raise ValueError("sizes=[]: need at least one layer")
        require_positive(sizes=min(sizes))
        require_choice("activation", activation, tuple(ACTIVATIONS))
        layers: list[nn.Module] = []
        for inputs, outputs in zip([math.prod(shape), *sizes[:-1]], sizes, strict=True):
            layers += [nn.Linear(inputs, outputs), norm_layer(norm, outputs, eps, momentum), ACTIVATIONS[activation]()]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x.flatten(1))
        return out
