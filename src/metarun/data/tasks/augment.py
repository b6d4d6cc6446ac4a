"""Pictures altered while training: cut out, mirrored, their colours shifted; on the device, a whole batch at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from metarun.data.tasks import random_bits as draw

STREAM = 16
CROP_Y, CROP_X, FLIP, BRIGHT, CONTRAST, COLOUR, DRAWS = range(7)
GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma, as Pillow's and torchvision's


@dataclass(frozen=True)
class Augment:
    """Every number of one picture, or of all pictures of a task, depends on seed, task and place alone."""

    per: Literal["image", "task"]
    crop: int  # pixels of border to move about in; 0: none
    flip: float  # chance to be mirrored left to right
    brightness: float  # x * f, f between 1 - brightness and 1 + brightness
    contrast: float  # likewise, towards the mean grey of the picture
    saturation: float  # likewise, towards its grey

    def __post_init__(self) -> None:
        if self.crop < 0:
            raise ValueError(f"crop={self.crop}: use 0 pixels or more")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip={self.flip}: is a probability; use 0 <= flip <= 1")
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: use 0 <= {name} <= 1")

    @property
    def idle(self) -> bool:
        return not (self.crop or self.flip or self.brightness or self.contrast or self.saturation)

    def altered(self, x_TB: Tensor, seed: int, split: int, number_T: Tensor) -> Tensor:
        """x of [0, 1], [T, B, C, H, W]."""
        tasks, count = x_TB.shape[:2]
        own = count if self.per == "image" else 1
        u = draw.uniform(seed, split, number_T, STREAM, own * DRAWS).view(tasks, own, DRAWS)
        u = u.expand(tasks, count, DRAWS).flatten(0, 1)
        x = self._moved(x_TB.flatten(0, 1), u)
        return self._coloured(x, u).view(x_TB.shape)

    def _moved(self, x: Tensor, u: Tensor) -> Tensor:
        """Cut out of itself with a border of its own outermost pixels, and mirrored, in one gather."""
        if not self.crop and not self.flip:
            return x
        height, width = x.shape[-2:]
        span = 2 * self.crop + 1
        down = (u[:, CROP_Y] * span).long() - self.crop
        right = (u[:, CROP_X] * span).long() - self.crop
        row = (torch.arange(height, device=x.device) + down[:, None]).clamp(0, height - 1)
        column = torch.arange(width, device=x.device).expand(len(x), -1)
        column = torch.where(u[:, FLIP, None] < self.flip, column.flip(1), column)
        column = (column + right[:, None]).clamp(0, width - 1)
        source = (row[:, :, None] * width + column[:, None, :]).flatten(1)
        return x.flatten(2).gather(2, source[:, None].expand(-1, x.shape[1], -1)).view(x.shape)

    def _coloured(self, x: Tensor, u: Tensor) -> Tensor:
        if self.brightness:
            x = (x * self._factor(u, BRIGHT, self.brightness, x)).clamp(0, 1)
        if self.contrast:
            middle = self._grey(x).mean((1, 2, 3), keepdim=True)
            x = torch.lerp(middle.expand_as(x), x, self._factor(u, CONTRAST, self.contrast, x)).clamp(0, 1)
        if self.saturation and x.shape[1] == 3:
            x = torch.lerp(self._grey(x).expand_as(x), x, self._factor(u, COLOUR, self.saturation, x)).clamp(0, 1)
        return x

    def _factor(self, u: Tensor, which: int, span: float, like: Tensor) -> Tensor:
        return (1 + span * (2 * u[:, which] - 1)).to(like.dtype)[:, None, None, None]

    def _grey(self, x: Tensor) -> Tensor:
        if x.shape[1] == 1:
            return x
        return functional.conv2d(x, x.new_tensor(GREY)[None, :, None, None])
