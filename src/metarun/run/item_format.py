"""The format of a network's raw inputs, kept in every checkpoint, so that new items are normalised as in meta-test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metarun.data.tasks.contracts import TaskData
from metarun.data.tasks.mixture import MixtureData
from metarun.data.tasks.opening import LabelledData
from metarun.errors import RunError


@dataclass(frozen=True)
class ItemFormat:
    """What one raw item looks like. Network inputs are (x - mean) / std, of images after x / 255."""

    shape: tuple[int, ...]  # (C, H, W), or (D,) for features
    images: bool  # raw items are uint8 images
    mean: Tensor | None  # [C, 1, 1] or [D]; None: raw items are network inputs already
    std: Tensor | None
    members: tuple[str, ...] = ()  # of a mixture, each of which has its own mean and std

    def saved(self) -> dict[str, object]:
        """As a checkpoint holds it."""
        mean, std = (None if value is None else value.cpu() for value in (self.mean, self.std))
        return {
            "shape": list(self.shape),
            "dtype": "uint8" if self.images else "float32",
            "mean": mean,
            "std": std,
            "members": list(self.members),
        }

    def network_inputs(self, x_B: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Raw items, normalised as the sampler of the run does it."""
        if tuple(x_B.shape[1:]) != self.shape:
            raise RunError(f"items of shape {list(x_B.shape[1:])}: this run takes items of shape {list(self.shape)}")
        if self.members:
            raise RunError(
                f"the run was trained on a mixture ({', '.join(self.members)}), whose data sets are normalised "
                "each in its own way; give normalised=True and items that are normalised"
            )
        x_B = x_B.to(device)
        scaled = x_B.to(dtype)
        if x_B.dtype == torch.uint8 and not self.images:
            raise RunError("items are uint8: this run takes rows of numbers; give floats")
        if x_B.dtype == torch.uint8:
            scaled = scaled / 255
        elif self.images and (float(x_B.min()) < 0 or float(x_B.max()) > 1):
            raise RunError(
                f"images of floats from {float(x_B.min()):g} to {float(x_B.max()):g}: give uint8 images, "
                "floats from 0 to 1, or normalised=True"
            )
        if self.mean is None or self.std is None:
            return scaled
        return (scaled - self.mean.to(device, dtype)) / self.std.to(device, dtype)


def item_format_of(data: TaskData) -> ItemFormat:
    if isinstance(data, LabelledData):
        items = data.items
        return ItemFormat(items.item_shape, items.rows.dtype == torch.uint8, items.mean, items.std)
    if isinstance(data, MixtureData):
        images = len(data.item_shape) == 3
        return ItemFormat(data.item_shape, images, None, None, tuple(data.members))
    return ItemFormat(data.item_shape, False, None, None)


def read_item_format(saved: dict[str, Any]) -> ItemFormat:
    return ItemFormat(
        tuple(saved["shape"]), saved["dtype"] == "uint8", saved["mean"], saved["std"], tuple(saved["members"])
    )
