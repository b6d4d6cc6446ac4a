"""Strokes to anti-aliased images, with + - * / and sqrt only: IEEE 754 rounds these in one way, on every machine."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

JOINTS = 7  # of a stroke
SPACING = 0.7  # pixels between the points a stroke is drawn with
STAMP = 4  # pixels: a point's ink stays within 2 pixels of it, so a pen's radius within 1.5
EDGE = 2.0  # pixels between an image's border and the middle of any stroke, so that no ink is cut off


class Strokes(NamedTuple):
    """The strokes of some characters, as joints in the box from -1 to 1, y downwards."""

    joints: Floats  # [strokes, JOINTS, 2], at equal distances in a stroke
    owner: Ints  # [strokes] number of the character, ascending


class Beads(NamedTuple):
    """Where along which stroke points are set."""

    stroke: Ints  # [points]
    segment: Ints  # [points] number of the joint before it
    u: Floats  # [points] way from there to the next joint, 0 to 1


def string(strokes: Strokes, half: float) -> Beads:
    """Points about SPACING pixels apart, for characters that reach `half` pixels from their middle."""
    step = strokes.joints[:, 1] - strokes.joints[:, 0]
    length = np.sqrt(step[:, 0] * step[:, 0] + step[:, 1] * step[:, 1])
    per_step = np.ceil(length * (half / SPACING)).astype(np.int64)
    counts = per_step * (JOINTS - 1) + 1
    stroke = np.repeat(np.arange(len(counts)), counts)
    spot = (np.arange(len(stroke)) - (np.cumsum(counts) - counts)[stroke]) / per_step[stroke]
    segment = np.minimum(spot.astype(np.int64), JOINTS - 2)
    return Beads(stroke, segment, spot - segment)


def curve(joints: Floats, beads: Beads) -> Floats:
    """Points [.., points, 2] on the Catmull-Rom splines through joints [.., strokes, JOINTS, 2]."""
    before = 2.0 * joints[..., :1, :] - joints[..., 1:2, :]
    after = 2.0 * joints[..., -1:, :] - joints[..., -2:-1, :]
    padded = np.concatenate([before, joints, after], axis=-2)
    p0, p1, p2, p3 = (padded[..., beads.stroke, beads.segment + shift, :] for shift in range(4))
    u = beads.u[:, None]
    square = 2.0 * p0 - 5.0 * p1 + 4.0 * p2 - p3
    result: Floats = p1 + u * 0.5 * (p2 - p0 + u * (square + u * (p3 - p0 + 3.0 * (p1 - p2))))
    return result


def place(spots: Floats, counts: Ints, shift: Floats, size: int) -> Floats:
    """Spots [people, points, 2], runs of `counts` to a character, moved to the middle of the image and on by `shift`.

    No character leaves the image: what is too large is shrunk, what is shifted too far stops at the edge.
    """
    starts = np.cumsum(counts) - counts
    low, high = np.minimum.reduceat(spots, starts, axis=1), np.maximum.reduceat(spots, starts, axis=1)
    half = (high - low) / 2.0
    room = (size - 1) / 2.0 - EDGE
    shrink = np.minimum(1.0, room / half.max(axis=-1, keepdims=True))
    slack = room - half * shrink
    target = (size - 1) / 2.0 + np.clip(shift, -slack, slack)
    old, new, scale = (np.repeat(each, counts, axis=1) for each in ((low + high) / 2.0, target, shrink))
    result: Floats = new + scale * (spots - old)
    return result


def ink(spots: Floats, image: Ints, radius: Floats, images: int, size: int) -> NDArray[np.uint8]:
    """[images, size, size] with round dots at spots [.., 2] in pixels; 255 is full ink, twice over too."""
    spots = spots.reshape(-1, 2)
    corner = np.floor(spots)
    assert corner.min() >= 1, f"ink at {corner.min()}, left of or above the image"
    assert corner.max() <= size - 3, f"ink at {corner.max()}, in {size} pixels"
    offsets = np.arange(STAMP) - (STAMP // 2 - 1)
    gap = ((corner - spots)[:, :, None] + offsets).astype(np.float32)
    squares = gap * gap
    distance = np.sqrt(squares[:, 1, :, None] + squares[:, 0, None, :])
    shade = np.clip(radius.reshape(-1, 1, 1).astype(np.float32) + np.float32(0.5) - distance, 0.0, 1.0)
    cell = corner.astype(np.int64)
    first = (image.reshape(-1) * size + cell[:, 1]) * size + cell[:, 0]
    where = first[:, None, None] + (offsets[:, None] * size + offsets)
    grey = (shade * np.float32(255.0) + np.float32(0.5)).astype(np.uint8)
    canvas = np.zeros(images * size * size, dtype=np.uint8)
    np.maximum.at(canvas, where.reshape(-1), grey.reshape(-1))
    return canvas.reshape(images, size, size)
