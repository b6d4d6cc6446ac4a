"""Data augmentation of training images: random crop, mirror, brightness, contrast, saturation; on the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from metarun.data.tasks import random_bits

AUGMENT_STREAM = 16
CROP_Y, CROP_X, FLIP, BRIGHTNESS, CONTRAST, SATURATION, DRAWS = range(7)  # places of an image's random numbers
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in Pillow and torchvision


@dataclass(frozen=True)
class Augment:
    """How far images are changed. What is drawn for an image depends on seed, task number and its place in the task."""

    per: Literal["image", "task"]  # "task": all images of a task are changed alike
    crop: int  # pixels of border, repeated from the edge, that the crop may move into; 0: no crop
    flip: float  # probability of a left-right mirror
    brightness: float  # x * f, f between 1 - brightness and 1 + brightness
    contrast: float  # likewise, the distance to the mean grey of the image
    saturation: float  # likewise, the distance to the grey image

    def __post_init__(self) -> None:
        if self.crop < 0:
            raise ValueError(f"crop={self.crop}: use 0 pixels or more")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip={self.flip}: is a probability; use 0 <= flip <= 1")
        limits = {"brightness": self.brightness, "contrast": self.contrast, "saturation": self.saturation}
        for name, limit in limits.items():
            if not 0 <= limit <= 1:
                raise ValueError(f"{name}={limit}: use 0 <= {name} <= 1")

    @property
    def changes_nothing(self) -> bool:
        return not (self.crop or self.flip or self.brightness or self.contrast or self.saturation)

    def apply(self, x_TBCHW: Tensor, seed: int, split: int, number_T: Tensor) -> Tensor:
        """x in [0, 1], before and after."""
        tasks, count = x_TBCHW.shape[:2]
        drawn = count if self.per == "image" else 1
        u = random_bits.uniform_floats(seed, split, number_T, AUGMENT_STREAM, drawn * DRAWS).view(tasks, drawn, DRAWS)
        u = u.expand(tasks, count, DRAWS).flatten(0, 1)
        x = self._cropped_and_mirrored(x_TBCHW.flatten(0, 1), u)
        return self._recoloured(x, u).view(x_TBCHW.shape)

    def _cropped_and_mirrored(self, x: Tensor, u: Tensor) -> Tensor:
        """Both in one gather: each output pixel reads the input pixel that it shows."""
        if not self.crop and not self.flip:
            return x
        height, width = x.shape[-2:]
        positions = 2 * self.crop + 1
        down = (u[:, CROP_Y] * positions).long() - self.crop
        right = (u[:, CROP_X] * positions).long() - self.crop
        row = (torch.arange(height, device=x.device) + down[:, None]).clamp(0, height - 1)
        column = torch.arange(width, device=x.device).expand(len(x), -1)
        column = torch.where(u[:, FLIP, None] < self.flip, column.flip(1), column)
        column = (column + right[:, None]).clamp(0, width - 1)
        source = (row[:, :, None] * width + column[:, None, :]).flatten(1)
        return x.flatten(2).gather(2, source[:, None].expand(-1, x.shape[1], -1)).view(x.shape)

    def _recoloured(self, x: Tensor, u: Tensor) -> Tensor:
        if self.brightness:
            x = (x * _factor(u[:, BRIGHTNESS], self.brightness, x)).clamp(0, 1)
        if self.contrast:
            mean_grey = _greyscale(x).mean((1, 2, 3), keepdim=True)
            x = torch.lerp(mean_grey.expand_as(x), x, _factor(u[:, CONTRAST], self.contrast, x)).clamp(0, 1)
        if self.saturation and x.shape[1] == 3:
            x = torch.lerp(_greyscale(x).expand_as(x), x, _factor(u[:, SATURATION], self.saturation, x)).clamp(0, 1)
        return x


def _factor(u: Tensor, limit: float, like: Tensor) -> Tensor:
    """Between 1 - limit and 1 + limit, one for each image."""
    return (1 + limit * (2 * u - 1)).to(like.dtype)[:, None, None, None]


def _greyscale(x: Tensor) -> Tensor:
    if x.shape[1] == 1:
        return x
    return functional.conv2d(x, x.new_tensor(LUMA)[None, :, None, None])
