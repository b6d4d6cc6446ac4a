"""Draws strokes as anti-aliased images with + - * / and sqrt only, which IEEE 754 rounds alike on every machine."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

JOINTS = 7  # of a stroke
SPACING = 0.7  # pixels between the points of a stroke
STAMP = 4  # pixels: the side of a dot's square; its ink stays within 2 pixels, so a pen's radius is at most 1.5
EDGE = 2.0  # pixels between the border of an image and the middle of any stroke, so that no ink is cut off


class Strokes(NamedTuple):
    """The strokes of several characters, as joints in the box from -1 to 1, y downwards."""

    joints: Floats  # [strokes, JOINTS, 2], at equal distances along a stroke
    owner: Ints  # [strokes] number of the character that a stroke belongs to, ascending


class StrokePoints(NamedTuple):
    """The points that strokes are drawn with, by their place along a stroke."""

    stroke: Ints  # [points] number of the stroke
    segment: Ints  # [points] number of the joint before the point
    u: Floats  # [points] position between that joint and the next, 0 to 1


def points_along(strokes: Strokes, half: float) -> StrokePoints:
    """Points about SPACING pixels apart, for characters that reach `half` pixels from their middle."""
    step = strokes.joints[:, 1] - strokes.joints[:, 0]
    length = np.sqrt(step[:, 0] * step[:, 0] + step[:, 1] * step[:, 1])
    per_step = np.ceil(length * (half / SPACING)).astype(np.int64)
    counts = per_step * (JOINTS - 1) + 1
    stroke = np.repeat(np.arange(len(counts)), counts)
    spot = (np.arange(len(stroke)) - (np.cumsum(counts) - counts)[stroke]) / per_step[stroke]
    segment = np.minimum(spot.astype(np.int64), JOINTS - 2)
    return StrokePoints(stroke, segment, spot - segment)


def spline_points(joints: Floats, points: StrokePoints) -> Floats:
    """Points [.., points, 2] on the Catmull-Rom splines through joints [.., strokes, JOINTS, 2]."""
    before = 2.0 * joints[..., :1, :] - joints[..., 1:2, :]
    after = 2.0 * joints[..., -1:, :] - joints[..., -2:-1, :]
    padded = np.concatenate([before, joints, after], axis=-2)
    p0, p1, p2, p3 = (padded[..., points.stroke, points.segment + shift, :] for shift in range(4))
    u = points.u[:, None]
    square = 2.0 * p0 - 5.0 * p1 + 4.0 * p2 - p3
    result: Floats = p1 + u * 0.5 * (p2 - p0 + u * (square + u * (p3 - p0 + 3.0 * (p1 - p2))))
    return result


def place_characters(spots: Floats, counts: Ints, shift: Floats, size: int) -> Floats:
    """Moves each character to the middle of its image and on by `shift`, all in pixels.

    `spots` [people, points, 2] has the points of one character after the other, `counts` of them for each. No character
    leaves the image: one that is too large is shrunk, and one that is shifted too far stops at the edge.
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


def draw_dots(spots: Floats, image: Ints, radius: Floats, images: int, size: int) -> NDArray[np.uint8]:
    """Images [images, size, size] with a round dot at each of `spots` [.., 2]; ink is 255, also where dots overlap."""
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
