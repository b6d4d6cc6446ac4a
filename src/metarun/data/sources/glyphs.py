"""Glyphs: made-up alphabets, each character drawn by several people; computed from a seed, equal on every machine."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from metarun.data.sources.packed_source import Packing, PictureSource
from metarun.data.sources.pen import (
    JOINTS,
    Floats,
    Ints,
    Strokes,
    draw_dots,
    place_characters,
    points_along,
    spline_points,
)
from metarun.data.store.contents import PROGRESS_EVERY_S, Contents
from metarun.data.store.pack import Pack
from metarun.data.store.pool import Say

if TYPE_CHECKING:  # types.py imports torch
    from metarun.types import Split

# A stroke is a walk of six equal steps with these turns between them, as tan(angle / 2): 0.27 is 30 degrees, 1 is 90.
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
UPRIGHT = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
OBLIQUE = np.array([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]]) / np.sqrt(2.0)
HEADINGS = np.concatenate([UPRIGHT, UPRIGHT, OBLIQUE])  # as in most scripts, upright strokes outnumber oblique ones
ANCHORS = np.array([0, JOINTS // 2, JOINTS - 1])  # strokes touch each other at a start, a middle or an end
CANDIDATES = 3  # characters composed for each one that is kept
SKETCH_SIZE = 20  # pixels
SKETCH_CELLS = (SKETCH_SIZE // 2) ** 2


class RawBitNumbers:
    """Random numbers made of a generator's raw bits, the only part that numpy promises not to change."""

    def __init__(self, *key: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(key))

    def uniform(self, *shape: int) -> Floats:
        raw = np.asarray(self._bits.random_raw(int(np.prod(shape, dtype=np.int64))), dtype=np.uint64)
        return (raw >> np.uint64(11)).astype(np.float64).reshape(shape) * 2.0**-53

    def bell(self, *shape: int) -> Floats:
        """Nearly normal numbers, mean 0, variance 1, never beyond 3.5: a sum of four uniforms."""
        first, second, third, fourth = self.uniform(4, *shape)
        total: Floats = (first + second + third + fourth - 2.0) * np.sqrt(3.0)
        return total

    def below(self, count: int, *shape: int) -> Ints:
        return (self.uniform(*shape) * count).astype(np.int64)


@dataclass(frozen=True)
class Glyphs(PictureSource):
    recipe: ClassVar[int] = 1

    train_alphabets: int
    val_alphabets: int
    test_alphabets: int
    characters: int  # per alphabet
    drawers: int  # per alphabet; image d of a class is by drawer d
    size: int  # pixels
    primitives: int  # strokes that an alphabet's characters are made of
    min_strokes: int
    max_strokes: int
    likeness: float  # how alike two characters may be, 0 to 1: shared ink of their coarse images
    fill: float  # half a character's longer side, as a share of the image
    slant: float  # per drawer, shear
    turn: float  # per drawer, radians
    stretch: float  # per drawer and axis, relative
    pen_min: float  # per drawer, radius in pixels
    pen_max: float
    bend: float  # per drawer and per drawing, quadratic, in half sides
    placement: float  # per stroke, in half sides
    wobble: float  # per joint, in half sides
    shift: float  # per drawing, pixels
    world: int  # seed of all of this
    invert: bool  # False: ink 255 on 0; True: ink 0 on 255
    mean: float
    std: float

    def __post_init__(self) -> None:
        values = vars(self)
        counted = ("train_alphabets", "val_alphabets", "test_alphabets", "characters", "drawers", "primitives")
        limits = {name: (values[name] >= 1, "use 1 or more") for name in counted} | {
            "size": (self.size >= 8, "use 8 pixels or more; below, no character can be read"),
            "min_strokes": (1 <= self.min_strokes <= self.max_strokes, "use 1 <= min_strokes <= max_strokes"),
            "pen_max": (0.0 <= self.pen_min <= self.pen_max <= 1.5, "use 0 <= pen_min <= pen_max <= 1.5"),
            "fill": (0.0 < self.fill <= 0.5, "use more than 0 and at most 0.5"),
            "world": (self.world >= 0, "use 0 or more"),
        }
        for name, (holds, remedy) in limits.items():
            if not holds:
                raise ValueError(f"{name}={values[name]}: {remedy}")

    @property
    def images_per_class(self) -> int:
        return self.drawers

    def counts(self) -> dict[Split, int]:
        train, val, test = self.train_alphabets, self.val_alphabets, self.test_alphabets
        return {"train": train * self.characters, "val": val * self.characters, "test": test * self.characters}

    def packing(self, say: Say) -> Packing:
        return Packing(partial(self._contents, say), self._split_numbers, "refuse")

    def _split_numbers(self, pack: Pack) -> dict[Split, tuple[int, ...]]:
        splits: dict[Split, tuple[int, ...]] = {}
        start = 0
        for split, count in self.counts().items():
            splits[split] = tuple(range(start, start + count))
            start += count
        return splits

    def _contents(self, say: Say) -> Contents:
        images = self._draw(say)
        places = [divmod(number, self.characters) for number in range(len(images))]
        groups = tuple(f"alphabet{alphabet + 1:02d}" for alphabet, _ in places)
        names = tuple(f"{group}/character{n + 1:02d}" for group, (_, n) in zip(groups, places, strict=True))
        return Contents(names, (self.drawers,) * len(names), images.shape[2:], iter(images), groups)

    def _draw(self, say: Say) -> NDArray[np.uint8]:
        """All images [classes, drawers, 1, size, size]. An alphabet depends on the seed and earlier alphabets only."""
        alphabets = self.train_alphabets + self.val_alphabets + self.test_alphabets
        pages: list[NDArray[np.uint8]] = []
        kept = np.zeros((0, SKETCH_CELLS))
        due = time.monotonic() + PROGRESS_EVERY_S
        for number in range(alphabets):
            strokes, kept = self._characters(RawBitNumbers(self.world, number, 0), kept)
            pages.append(self._page(RawBitNumbers(self.world, number, 1), strokes))
            if time.monotonic() > due:
                say(f"glyphs: {number + 1} of {alphabets} alphabets drawn (once; cached after)")
                due = time.monotonic() + PROGRESS_EVERY_S
        images = np.concatenate(pages)[:, :, None]
        return 255 - images if self.invert else images

    def _characters(self, draws: RawBitNumbers, kept: Floats) -> tuple[Strokes, Floats]:
        """The characters of an alphabet, and the sketches of all characters so far.

        A character is unlike the others of its alphabet, and unlike all whose sketches are in `kept`.
        """
        count = CANDIDATES * self.characters
        primitives = primitive_strokes(draws, self.primitives)
        sizes = 0.55 + 0.45 * draws.uniform(3)
        lengths = self.min_strokes + draws.below(self.max_strokes - self.min_strokes + 1, count)
        joints = np.concatenate([compose_character(draws, primitives, sizes, int(length)) for length in lengths])
        candidates = Strokes(joints, np.repeat(np.arange(count), lengths))
        sketches = coarse_images(candidates, count)
        chosen = choose_unlike(sketches, kept, self.characters, self.likeness)
        taken = np.isin(candidates.owner, chosen)
        owner = np.searchsorted(chosen, candidates.owner[taken])
        return Strokes(joints[taken], owner), np.concatenate([kept, sketches[chosen]])

    def _page(self, draws: RawBitNumbers, strokes: Strokes) -> NDArray[np.uint8]:
        """The images of an alphabet, [characters, drawers, size, size]."""
        people, count, half = self.drawers, len(strokes.owner), self.fill * self.size
        noise = draws.bell(people, count, JOINTS + 2, 2)
        wobble = (noise[:, :, :-2] + 2.0 * noise[:, :, 1:-1] + noise[:, :, 2:]) * (self.wobble / np.sqrt(6.0))
        shaken = strokes.joints + wobble + self.placement * draws.bell(people, count, 1, 2)
        along = points_along(strokes, half)
        owner = strokes.owner[along.stroke]
        points = self._in_hand(draws, spline_points(shaken, along), owner) * half
        shift = self.shift * draws.bell(people, self.characters, 2)
        spots = place_characters(points, np.bincount(owner, minlength=self.characters), shift, self.size)
        radius = self.pen_min + (self.pen_max - self.pen_min) * draws.uniform(people, 1)
        image = owner * people + np.arange(people)[:, None]
        drawn = draw_dots(spots, image, np.broadcast_to(radius, image.shape), self.characters * people, self.size)
        return drawn.reshape(self.characters, people, self.size, self.size)

    def _in_hand(self, draws: RawBitNumbers, points: Floats, owner: Ints) -> Floats:
        """Points [drawers, points, 2] of the characters `owner`, bent, stretched, slanted and turned by each drawer."""
        people = self.drawers
        bends = draws.bell(people, 1, 2, 3) + draws.bell(people, self.characters, 2, 3)
        bends = (bends * (self.bend / np.sqrt(2.0)))[:, owner]
        x, y = points[..., 0], points[..., 1]
        bent = [
            points[..., axis] + bends[..., axis, 0] * x * x + bends[..., axis, 1] * x * y + bends[..., axis, 2] * y * y
            for axis in range(2)
        ]
        stretch = 1.0 + self.stretch * draws.bell(2, people, 1)
        turn, slant = self.turn * draws.bell(people, 1), self.slant * draws.bell(people, 1)
        x, y = stretch[0] * (bent[0] - slant * bent[1]), stretch[1] * bent[1]
        return np.stack([x - turn * y, y + turn * x], axis=-1)


def primitive_strokes(draws: RawBitNumbers, count: int) -> Floats:
    """The strokes that an alphabet is made of, [count, JOINTS, 2], centred and with the longest side 2."""
    turns = TURNS[draws.below(len(TURNS), count)] * (0.8 + 0.4 * draws.uniform(count, 1))
    turns = turns * np.where(draws.uniform(count, 1) < 0.5, -1.0, 1.0)
    cosine = (1.0 - turns * turns) / (1.0 + turns * turns)
    sine = 2.0 * turns / (1.0 + turns * turns)
    step = HEADINGS[draws.below(len(HEADINGS), count)]
    steps = [np.zeros_like(step), step]
    for turn in range(turns.shape[1]):
        x, y = step[:, 0], step[:, 1]
        step = np.stack([x * cosine[:, turn] - y * sine[:, turn], x * sine[:, turn] + y * cosine[:, turn]], axis=-1)
        steps.append(step)
    return centred(np.cumsum(np.stack(steps, axis=1), axis=1))


def centred(joints: Floats) -> Floats:
    """The points [.., points, 2] moved and scaled so that their longest side runs from -1 to 1."""
    low, high = joints.min(axis=-2, keepdims=True), joints.max(axis=-2, keepdims=True)
    side = (high - low).max(axis=-1, keepdims=True)
    result: Floats = (joints - (low + high) / 2.0) * (2.0 / side)
    return result


def compose_character(draws: RawBitNumbers, primitives: Floats, sizes: Floats, length: int) -> Floats:
    """A character of `length` primitives, [length, JOINTS, 2]: each stroke touches an earlier one at an anchor."""
    kinds, scales = draws.below(len(primitives), length), sizes[draws.below(len(sizes), length)]
    hosts, anchors = draws.uniform(length), ANCHORS[draws.below(len(ANCHORS), 2, length)]
    strokes: list[Floats] = []
    for number in range(length):
        stroke = primitives[kinds[number]] * scales[number]
        if strokes:
            host = strokes[int(hosts[number] * number)]
            stroke = stroke + host[anchors[0, number]] - stroke[anchors[1, number]]
        strokes.append(stroke)
    return centred(np.concatenate(strokes)).reshape(length, JOINTS, 2)


def coarse_images(strokes: Strokes, count: int) -> Floats:
    """A coarse image of each character, as a row of whole numbers: their sums of products are exact in any order."""
    half, cells = 0.35 * SKETCH_SIZE, SKETCH_SIZE // 2
    along = points_along(strokes, half)
    owner = strokes.owner[along.stroke]
    spots = spline_points(strokes.joints, along) * half + (SKETCH_SIZE - 1) / 2.0
    sharp = draw_dots(spots, owner, np.full(owner.shape, 1.3), count, SKETCH_SIZE).astype(np.float64)
    coarse: Floats = sharp.reshape(count, cells, 2, cells, 2).sum(axis=(2, 4))
    return coarse.reshape(count, SKETCH_CELLS)


def choose_unlike(sketches: Floats, kept: Floats, count: int, likeness: float) -> Ints:
    """Numbers of the first `count` sketches unlike each other and all in `kept`; if too few, the least alike ones."""
    rows = np.concatenate([kept, sketches])
    power = (rows * rows).sum(axis=1)
    alike = 2.0 * (sketches @ rows.T) / (power[len(kept) :, None] + power)
    nearest = alike[:, : len(kept)].max(axis=1, initial=0.0)
    chosen: list[int] = []
    for _ in range(count):
        fits = nearest < likeness
        pick = int(np.argmax(fits)) if fits.any() else int(np.argmin(nearest))
        chosen.append(pick)
        nearest = np.maximum(nearest, alike[:, len(kept) + pick])
        nearest[pick] = np.inf
    return np.array(sorted(chosen))
