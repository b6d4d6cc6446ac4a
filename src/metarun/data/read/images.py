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
Fit = Literal["squash", "crop", "pad"]  # ignore the proportions, cut the longer side, add black bars
AHEAD = 64  # pictures that are decoded before they are asked for

Job = TypeVar("Job")


@dataclass(frozen=True)
class PictureDecoder:
    """Decodes pictures and brings them to one size and one number of channels."""

    size: int  # pixels of a side
    channels: int  # 1: grey, 3: colour
    resize: Filter
    fit: Fit = "squash"

    def decode(self, content: bytes, where: str) -> NDArray[np.uint8]:
        """An encoded picture (PNG, JPEG, ...) as [C, size, size]; `where` names the picture in an error."""
        from PIL import Image, UnidentifiedImageError  # late: a run that finds its packed file reads no picture

        strange = (UnidentifiedImageError, Image.DecompressionBombError)
        try:
            with Image.open(io.BytesIO(content)) as picture:
                return self.convert(picture)
        except (OSError, SyntaxError, ValueError, RuntimeError, *strange) as problem:
            raise DataError(f"{where} cannot be read as a picture ({problem})") from problem

    def convert_array(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Pixels [H, W, 3] or [H, W] as [C, size, size]; always a copy, so that the array may be freed."""
        if image.shape[:2] == (self.size, self.size):
            return np.array(image[None] if image.ndim == 2 else image.transpose(2, 0, 1), order="C")
        from PIL import Image  # late: as above

        return self.convert(Image.fromarray(image))

    def convert(self, picture: Image.Image) -> NDArray[np.uint8]:
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
        full = picture.convert("L" if self.channels == 1 else "RGB")  # before resizing: 1-bit ones resize to nearest
        side, how = (self.size, self.size), Image.Resampling[self.resize.upper()]
        if self.fit == "crop":
            full = ImageOps.fit(full, side, how)
        elif self.fit == "pad":
            full = ImageOps.pad(full, side, how)
        else:
            full = full if full.size == side else full.resize(side, how)
        pixels = np.asarray(full, dtype=np.uint8)
        return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def map_in_order(jobs: Iterable[Job], work: Callable[[Job], NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    """work(job) of every job, in order, in threads on all cores: Pillow decodes without holding Python's lock."""
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
