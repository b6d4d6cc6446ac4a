"""Pictures of any format, mode and size into uint8 arrays [C, H, W] of one size."""

from __future__ import annotations

import io
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from metarun.data.store.pool import DataError

if TYPE_CHECKING:
    from PIL import Image

Filter = Literal["nearest", "box", "bilinear", "bicubic", "lanczos"]
Fit = Literal["squash", "crop", "pad"]
AHEAD = 64  # pictures in flight

T = TypeVar("T")


@dataclass(frozen=True)
class Look:
    """How a picture is brought to one size: squash ignores its proportions, crop cuts the longer side, pad fills up."""

    size: int
    channels: int  # 1: grey, 3: colour
    resize: Filter
    fit: Fit = "squash"

    def of(self, content: bytes, where: str) -> NDArray[np.uint8]:
        """One encoded picture; `where` names it in an error."""
        from PIL import Image, UnidentifiedImageError  # late: a warm start reads no picture

        strange = (UnidentifiedImageError, Image.DecompressionBombError)
        try:
            with Image.open(io.BytesIO(content)) as picture:
                return self.shaped(picture)
        except (OSError, SyntaxError, ValueError, RuntimeError, *strange) as problem:
            raise DataError(f"{where} cannot be read as a picture ({problem})") from problem

    def shaped(self, picture: Image.Image) -> NDArray[np.uint8]:
        from PIL import Image, ImageOps

        picture = ImageOps.exif_transpose(picture)
        if picture.mode.startswith("I;16") or picture.mode in ("I", "F"):  # Pillow clips deep grey at 255
            deep = np.asarray(picture, dtype=np.float64)
            most = deep.max(initial=0)
            top = 65535.0 if most > 255 or picture.mode.startswith("I;16") else 255.0
            top = 1.0 if picture.mode == "F" and most <= 1 else top
            picture = Image.fromarray((deep.clip(0, top) * (255 / top)).astype(np.uint8))
        if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
            white = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(white, picture.convert("RGBA"))
        grey = picture.convert("L" if self.channels == 1 else "RGB")  # 1-bit ones would resize to nearest
        side, how = (self.size, self.size), Image.Resampling[self.resize.upper()]
        if self.fit == "crop":
            grey = ImageOps.fit(grey, side, how)
        elif self.fit == "pad":
            grey = ImageOps.pad(grey, side, how)
        else:
            grey = grey if grey.size == side else grey.resize(side, how)
        pixels = np.asarray(grey, dtype=np.uint8)
        return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def in_order(jobs: Iterable[T], work: Callable[[T], NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    """work(job) of every job, in order, on all cores: Pillow decodes outside Python's lock."""
    waiting: deque[Future[NDArray[np.uint8]]] = deque()
    queue = iter(jobs)
    with ThreadPoolExecutor(os.cpu_count()) as workers:
        try:
            waiting.extend(workers.submit(work, job) for job in itertools.islice(queue, AHEAD))
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(workers.submit(work, job) for job in itertools.islice(queue, 1))
        finally:
            for future in waiting:
                future.cancel()
