"""Glyphs: made-up alphabets, each character drawn by many hands, computed from a seed and the same on every machine.

Why it is the same everywhere: numpy promises to keep only the raw bits of its generators, so all numbers are made from those;
and everything after is + - * / sqrt on arrays, which IEEE 754 rounds in one way. Angles are therefore given as tan(angle / 2).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metarun.data.pool import Pool, cache_root, cached, make_pool

if TYPE_CHECKING:  # types.py imports torch
    from metarun.types import Kind, Split

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

RECIPE = 1  # raise it with every change of what is drawn: it names the cached file
SPEAK_AFTER_S = 2.0

# A stroke is a walk of six equal steps; between them it turns by these angles, as tan(angle / 2): 0.27 is 30 degrees, 1 is 90.
TURNS = np.array(
    [
        [0.00, 0.00, 0.00, 0.00, 0.00],  # line
        [0.20, 0.20, 0.20, 0.20, 0.20],  # arc
        [0.36, 0.36, 0.36, 0.36, 0.36],  # bowl
        [0.58, 0.58, 0.58, 0.58, 0.58],  # loop
        [0.00, 0.00, 0.20, 0.70, 0.70],  # hook
        [0.00, 0.00, 1.00, 0.00, 0.00],  # corner
        [0.40, 0.40, 0.00, -0.40, -0.40],  # wave
        [0.00, 1.40, 0.00, -1.40, 0.00],  # zigzag
        [0.62, 0.62, 0.62, 0.40, 0.00],  # ear
    ]
)
JOINTS = TURNS.shape[1] + 2
ANCHORS = (0, JOINTS // 2, JOINTS - 1)  # strokes touch each other at a start, a middle or an end
UPRIGHT = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
OBLIQUE = np.array([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]]) / np.sqrt(2.0)
HEADINGS = np.concatenate([UPRIGHT, UPRIGHT, OBLIQUE])  # as in most scripts, upright strokes outnumber oblique ones
CANDIDATES = 3  # characters invented for each one kept
STAMP = 4  # pixels: a pen of radius up to 1.5 reaches no further
MARGIN = 2  # pixels of canvas that are cut off again
EDGE = 1.5  # pixels left free around a character
SPACING = 0.7  # pixels between the points a stroke is drawn with


class Draws:
    """Numbers from the raw bits of a generator."""

    def __init__(self, *key: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(key))

    def uniform(self, *shape: int) -> Floats:
        raw = np.asarray(self._bits.random_raw(int(np.prod(shape, dtype=np.int64))), dtype=np.uint64)
        return (raw >> np.uint64(11)).astype(np.float64).reshape(shape) * 2.0**-53

    def bell(self, *shape: int) -> Floats:
        """Unit variance, nearly normal, never beyond 3.5: the sum of four uniforms."""
        first, second, third, fourth = self.uniform(4, *shape)
        total: Floats = (first + second + third + fourth - 2.0) * np.sqrt(3.0)
        return total

    def below(self, count: int, *shape: int) -> Ints:
        return (self.uniform(*shape) * count).astype(np.int64)


class Strokes(NamedTuple):
    """The strokes of some characters, as joints in the unit box [-1, 1]."""

    joints: Floats  # [strokes, JOINTS, 2]
    owner: Ints  # [strokes] the character each belongs to


def walk(turns: Floats, heading: Floats) -> Floats:
    """Joints of strokes that set out along `heading` [.., 2] and turn by `turns` [.., JOINTS - 2]; longest side 2, centred."""
    cosine = (1.0 - turns * turns) / (1.0 + turns * turns)
    sine = 2.0 * turns / (1.0 + turns * turns)
    x, y = heading[..., 0], heading[..., 1]
    steps = [np.zeros_like(heading), heading]
    for turn in range(turns.shape[-1]):
        x, y = x * cosine[..., turn] - y * sine[..., turn], x * sine[..., turn] + y * cosine[..., turn]
        steps.append(np.stack([x, y], axis=-1))
    return centred(np.cumsum(np.stack(steps, axis=-2), axis=-2))


def centred(joints: Floats) -> Floats:
    """Scaled and moved so that the longest side of all points [.., points, 2] runs from -1 to 1."""
    low, high = joints.min(axis=-2, keepdims=True), joints.max(axis=-2, keepdims=True)
    side = (high - low).max(axis=-1, keepdims=True)
    result: Floats = (joints - (low + high) / 2.0) * (2.0 / side)
    return result


class Beads(NamedTuple):
    """Where along which stroke points are set."""

    stroke: Ints  # [points]
    segment: Ints  # [points] the joint before it
    u: Floats  # [points] way to the next joint, 0 to 1


def string(strokes: Strokes, half: float) -> Beads:
    """Points about SPACING pixels apart, for characters `half` pixels from middle to edge."""
    step = strokes.joints[:, 1] - strokes.joints[:, 0]
    per_step = np.ceil(np.sqrt(step[:, 0] * step[:, 0] + step[:, 1] * step[:, 1]) * (half / SPACING)).astype(np.int64)
    counts = per_step * (JOINTS - 1) + 1
    stroke = np.repeat(np.arange(len(counts)), counts)
    spot = (np.arange(len(stroke)) - (np.cumsum(counts) - counts)[stroke]) / per_step[stroke]
    segment = np.minimum(spot.astype(np.int64), JOINTS - 2)
    return Beads(stroke, segment, spot - segment)


def curve(joints: Floats, beads: Beads) -> Floats:
    """Points [.., points, 2] on the Catmull-Rom splines through joints [.., strokes, JOINTS, 2]."""
    ends = 2.0 * joints[..., :1, :] - joints[..., 1:2, :], 2.0 * joints[..., -1:, :] - joints[..., -2:-1, :]
    padded = np.concatenate([ends[0], joints, ends[1]], axis=-2)
    p0, p1, p2, p3 = (padded[..., beads.stroke, beads.segment + shift, :] for shift in range(4))
    u = beads.u[:, None]
    square = 2.0 * p0 - 5.0 * p1 + 4.0 * p2 - p3
    result: Floats = p1 + u * 0.5 * (p2 - p0 + u * (square + u * (p3 - p0 + 3.0 * (p1 - p2))))
    return result


def inside(spots: Floats, starts: Ints, counts: Ints, shift: Floats, size: int) -> Floats:
    """Characters (runs of points [people, points, 2]) shrunk to the image where too large, moved by `shift` as far as there is room."""
    low, high = np.minimum.reduceat(spots, starts, axis=1), np.maximum.reduceat(spots, starts, axis=1)
    room = (size - 1) / 2.0 - EDGE
    half = (high - low) / 2.0
    shrink = np.minimum(1.0, room / half.max(axis=-1, keepdims=True))
    slack = room - half * shrink
    middle = (size - 1) / 2.0 + np.clip(shift, -slack, slack)
    result: Floats = np.repeat(middle, counts, axis=1) + np.repeat(shrink, counts, axis=1) * (
        spots - np.repeat((low + high) / 2.0, counts, axis=1)
    )
    return result


def ink(points: Floats, owner: Ints, pen: Floats, images: int, size: int) -> NDArray[np.uint8]:
    """Anti-aliased images [images, size, size] of points [.., 2] in pixels, drawn with round pens; 255 is full ink."""
    side = size + 2 * MARGIN
    spots = (points + MARGIN).reshape(-1, 2)
    corner = np.floor(spots)
    offsets = np.arange(STAMP) - (STAMP // 2 - 1)
    gap = ((corner - spots)[:, :, None] + offsets).astype(np.float32)
    squares = gap * gap
    distance = np.sqrt(squares[:, 1, :, None] + squares[:, 0, None, :])
    shade = np.clip(pen.reshape(-1, 1, 1).astype(np.float32) + np.float32(0.5) - distance, 0.0, 1.0)
    cell = corner.astype(np.int64)
    start = (owner.reshape(-1) * side + cell[:, 1]) * side + cell[:, 0]
    where = start[:, None, None] + (offsets[:, None] * side + offsets)
    canvas = np.zeros(images * side * side, dtype=np.uint8)
    np.maximum.at(canvas, where.reshape(-1), (shade * np.float32(255.0) + np.float32(0.5)).astype(np.uint8).reshape(-1))
    return canvas.reshape(images, side, side)[:, MARGIN:-MARGIN, MARGIN:-MARGIN]


@dataclass(frozen=True)
class Glyphs:
    kind: ClassVar[Kind] = "classes"

    train_alphabets: int
    val_alphabets: int
    test_alphabets: int
    characters: int  # per alphabet
    drawers: int  # per alphabet; image number d of a class is by drawer d
    size: int  # pixels
    primitives: int  # strokes that an alphabet's characters are made of
    min_strokes: int
    max_strokes: int
    likeness: float  # how near two characters may come: share of their ink, 0 to 1
    fill: float  # half the height of a character, as a share of the image
    slant: float  # per drawer, shear
    turn: float  # per drawer, radians
    stretch: float  # per drawer, relative, each axis
    pen_min: float  # per drawer, radius in pixels
    pen_max: float
    bend: float  # per drawer and per drawing, quadratic, in half heights
    shift: float  # per drawing, pixels
    placement: float  # per stroke, in half heights
    wobble: float  # per joint, in half heights
    world: int  # seed of everything above
    invert: bool  # False: ink 255 on 0; True: ink 0 on 255
    mean: float
    std: float
    rotations: Literal["none", "train", "all"]

    @property
    def images_per_class(self) -> int:
        return self.drawers

    def counts(self) -> dict[Split, int]:
        alphabets: dict[Split, int] = {"train": self.train_alphabets, "val": self.val_alphabets, "test": self.test_alphabets}
        return {split: number * self.characters for split, number in alphabets.items()}

    def load(self, say: Callable[[str], None]) -> Pool:
        drawn = {key: value for key, value in asdict(self).items() if key not in ("mean", "std", "rotations")}
        name = hashlib.sha256(json.dumps([RECIPE, drawn]).encode()).hexdigest()[:12]
        images = cached(cache_root(), f"glyphs-{name}", lambda: self._draw_all(say), say)
        splits: dict[Split, tuple[int, ...]] = {}
        start = 0
        for split, number in self.counts().items():
            splits[split] = tuple(range(start, start + number))
            start += number
        names = (f"alphabet{row // self.characters + 1:02d}/character{row % self.characters + 1:02d}" for row in range(start))
        return make_pool(images, tuple(names), splits)

    def _draw_all(self, say: Callable[[str], None]) -> NDArray[np.uint8]:
        alphabets = self.train_alphabets + self.val_alphabets + self.test_alphabets
        pages: list[NDArray[np.uint8]] = []
        kept = np.zeros((0, SKETCH_CELLS))
        due = time.monotonic() + SPEAK_AFTER_S
        for number in range(alphabets):
            strokes, kept = self._characters(Draws(self.world, number, 0), kept)
            pages.append(self._page(Draws(self.world, number, 1), strokes))
            if time.monotonic() > due:
                say(f"glyphs: {number + 1} of {alphabets} alphabets drawn")
                due = time.monotonic() + SPEAK_AFTER_S
        images = np.concatenate(pages)[:, :, None]
        return 255 - images if self.invert else images

    def _characters(self, draws: Draws, kept: Floats) -> tuple[Strokes, Floats]:
        """An alphabet's characters, none too like another or one of `kept`; and the sketches kept after it."""
        invented = self._invent(draws, CANDIDATES * self.characters)
        sketches = sketch(invented, CANDIDATES * self.characters)
        chosen, kept = choose(sketches, kept, self.characters, self.likeness)
        where = np.full(CANDIDATES * self.characters, -1)
        where[chosen] = np.arange(self.characters)
        owner = where[invented.owner]
        return Strokes(invented.joints[owner >= 0], owner[owner >= 0]), kept

    def _invent(self, draws: Draws, count: int) -> Strokes:
        """Characters of one alphabet: its few primitives, joined at its habitual spots."""
        shapes = TURNS[draws.below(len(TURNS), self.primitives)] * (0.8 + 0.4 * draws.uniform(self.primitives, 1))
        shapes = shapes * np.where(draws.uniform(self.primitives, 1) < 0.5, -1.0, 1.0)
        headings = HEADINGS[draws.below(len(HEADINGS), self.primitives)]
        primitives = walk(shapes, headings)
        sizes = 0.55 + 0.45 * draws.uniform(3)
        lengths = self.min_strokes + draws.below(self.max_strokes - self.min_strokes + 1, count)
        joints: list[Floats] = []
        for length in lengths:
            joints.append(compose(primitives, sizes, draws, int(length)))
        return Strokes(np.concatenate(joints), np.repeat(np.arange(count), lengths))

    def _page(self, draws: Draws, strokes: Strokes) -> NDArray[np.uint8]:
        """An alphabet as its drawers draw it: [characters, drawers, size, size]."""
        people, count = self.drawers, len(strokes.owner)
        noise = draws.bell(people, count, JOINTS + 2, 2)
        wobble = (noise[:, :, :-2] + 2.0 * noise[:, :, 1:-1] + noise[:, :, 2:]) * (self.wobble / np.sqrt(6.0))
        half = self.fill * self.size
        beads = string(strokes, half)
        points = curve(strokes.joints + wobble + self.placement * draws.bell(people, count, 1, 2), beads)
        owner = strokes.owner[beads.stroke]
        x, y = points[..., 0], points[..., 1]
        bends = draws.bell(people, 1, 2, 3) + draws.bell(people, self.characters, 2, 3)
        bends = (bends * (self.bend / np.sqrt(2.0)))[:, owner]
        x, y = (
            start + bends[..., axis, 0] * x * x + bends[..., axis, 1] * x * y + bends[..., axis, 2] * y * y
            for axis, start in enumerate((x, y))
        )
        stretch = half * (1.0 + self.stretch * draws.bell(2, people, 1))
        turn, slant = self.turn * draws.bell(people, 1), self.slant * draws.bell(people, 1)
        x, y = stretch[0] * (x - slant * y), stretch[1] * y
        counts = np.bincount(owner, minlength=self.characters)
        shift = self.shift * draws.bell(people, self.characters, 2)
        spots = inside(np.stack([x - turn * y, y + turn * x], axis=-1), np.cumsum(counts) - counts, counts, shift, self.size)
        pen = self.pen_min + (self.pen_max - self.pen_min) * draws.uniform(people, 1)
        image = owner * people + np.arange(people)[:, None]
        drawn = ink(spots, image, np.broadcast_to(pen, image.shape), self.characters * people, self.size)
        return drawn.reshape(self.characters, people, self.size, self.size)


def compose(primitives: Floats, sizes: Floats, draws: Draws, length: int) -> Floats:
    """One character [length, JOINTS, 2]: each stroke hangs on a spot of an earlier one."""
    kinds, scales = draws.below(len(primitives), length), sizes[draws.below(len(sizes), length)]
    hosts, spots = draws.uniform(length), draws.below(len(ANCHORS), 2, length)
    strokes: list[Floats] = []
    for number in range(length):
        stroke = primitives[kinds[number]] * scales[number]
        if strokes:
            host = strokes[int(hosts[number] * number)]
            stroke = stroke + host[ANCHORS[spots[0, number]]] - stroke[ANCHORS[spots[1, number]]]
        strokes.append(stroke)
    joints = np.stack(strokes)
    return centred(joints.reshape(-1, 2)).reshape(joints.shape)


SKETCH_SIZE = 20
SKETCH_CELLS = (SKETCH_SIZE // 2) ** 2


def sketch(strokes: Strokes, count: int) -> Floats:
    """Blurred images of characters as rows of whole numbers, so that their products are exact in any order of summation."""
    half = 0.4 * SKETCH_SIZE
    beads = string(strokes, half)
    points = curve(strokes.joints, beads) * half + (SKETCH_SIZE - 1) / 2.0
    owner = strokes.owner[beads.stroke]
    sharp = ink(points, owner, np.full(owner.shape, 1.3), count, SKETCH_SIZE).astype(np.float64)
    side = SKETCH_SIZE // 2
    coarse = np.pad(sharp.reshape(count, side, 2, side, 2).sum(axis=(2, 4)), ((0, 0), (1, 1), (1, 1)))
    rows = coarse[:, :-2] + coarse[:, 1:-1] + coarse[:, 2:]
    blurred: Floats = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    return blurred.reshape(count, SKETCH_CELLS)


def choose(sketches: Floats, kept: Floats, count: int, likeness: float) -> tuple[list[int], Floats]:
    """The first `count` sketches unlike each other and all kept; where these are too few, the least alike of the rest."""
    rows = np.concatenate([kept, sketches])
    products = sketches @ rows.T
    power = (rows * rows).sum(axis=1)
    alike = 2.0 * products / (power[len(kept) :, None] + power)
    nearest = alike[:, : len(kept)].max(axis=1, initial=0.0)
    chosen: list[int] = []
    for _ in range(count):
        fit = nearest < likeness
        pick = int(np.argmax(fit)) if fit.any() else int(np.argmin(nearest))
        chosen.append(pick)
        nearest = np.maximum(nearest, alike[:, len(kept) + pick])
        nearest[pick] = np.inf
    chosen.sort()
    return chosen, np.concatenate([kept, sketches[chosen]])
