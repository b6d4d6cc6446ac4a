"""Glyphs: the same world everywhere, quickly there, too hard for raw pixels, drawn by hands that differ."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from omegaconf import OmegaConf

from metarun.data.sources.glyphs import Glyphs, RawBitNumbers
from metarun.data.sources.pen import JOINTS, Strokes, draw_dots, points_along, spline_points
from metarun.data.store.pool import Pool
from support.shapes import cube

CONF = Path(__file__).parents[2] / "conf/data/glyphs.yaml"
WORLD = "46e9fe3244b0a8c6"  # as drawn by numpy 1.26 and 2.4, with AVX and without; a new world needs a new RECIPE

PROBE = """
import hashlib, sys, time
from pathlib import Path
from omegaconf import OmegaConf
start = time.process_time()
from metarun.data.sources.glyphs import Glyphs
values = OmegaConf.to_container(OmegaConf.load(sys.argv[1]))
del values["_target_"]
images = Glyphs(**values).load(lambda line: None).items
print(hashlib.sha256(images.tobytes()).hexdigest(), time.process_time() - start, "torch" in sys.modules)
"""


def silent(_: str) -> None:
    pass


def glyphs(**changed: Any) -> Glyphs:
    values: Any = OmegaConf.to_container(OmegaConf.load(CONF))
    del values["_target_"]
    return Glyphs(**{**values, **changed})


def small(**changed: Any) -> Glyphs:
    return glyphs(**{"train_alphabets": 2, "val_alphabets": 1, "test_alphabets": 1, "characters": 5, **changed})


def paged(source: Glyphs) -> NDArray[np.uint8]:
    return cube(source.load(silent))


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path))


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METARUN_CACHE", str(tmp_path_factory.mktemp("cache")))
        return glyphs().load(silent)


def test_two_processes_draw_the_same_world_within_five_seconds_and_without_torch(pool: Pool, tmp_path: Path) -> None:
    expected = hashlib.sha256(pool.items.tobytes()).hexdigest()
    assert expected.startswith(WORLD)
    for name in ("first", "second"):  # each with an empty cache, so each draws
        environment = os.environ | {"METARUN_CACHE": str(tmp_path / name), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", PROBE, str(CONF)]
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        found, seconds, torch = answer.stdout.split()
        assert found == expected
        assert float(seconds) < 5.0
        assert torch == "False"


def test_alphabets_do_not_straddle_splits(pool: Pool) -> None:
    source = glyphs()
    assert {split: len(classes) for split, classes in pool.splits.items()} == source.counts()
    assert cube(pool).shape[:2] == (sum(source.counts().values()), source.images_per_class)
    alphabets = {split: {pool.names[c].split("/")[0] for c in classes} for split, classes in pool.splits.items()}
    assert sum(len(found) for found in alphabets.values()) == len(set().union(*alphabets.values())) >= 20
    assert sum(source.counts().values()) >= 500


def test_raw_pixels_do_not_solve_it(pool: Pool) -> None:
    """1-nearest-neighbour, 5-way 1-shot: above the 20 % of chance, for there are classes; under 60 %, for learning."""
    draw = np.random.default_rng(0)
    hits: list[float] = []
    for _ in range(1000):
        classes = draw.choice(pool.splits["test"], 5, replace=False)
        rows = np.stack([cube(pool)[c, draw.permutation(cube(pool).shape[1])[:6], 0] for c in classes])
        flat = rows.reshape(5, 6, -1).astype(np.float32)
        support, query = flat[:, 0], flat[:, 1:].reshape(25, 1, -1)
        nearest = ((query - support) ** 2).sum(axis=-1).argmin(axis=1)
        hits.append(float((nearest == np.repeat(np.arange(5), 5)).mean()))
    assert 0.4 < np.mean(hits) < 0.6


def test_no_two_drawings_are_alike_and_no_ink_is_cut_off(pool: Pool) -> None:
    images = cube(pool)[:, :, 0]
    assert (
        len({image.tobytes() for image in images.reshape(-1, *images.shape[2:])}) == images.shape[0] * images.shape[1]
    )
    assert (images.max(axis=(2, 3)) == 255).all()
    border = np.concatenate([images[:, :, 0], images[:, :, -1], images[:, :, :, 0], images[:, :, :, -1]], axis=-1)
    assert border.max() == 0


def test_edges_are_anti_aliased(pool: Pool) -> None:
    """Of the inked pixels of thin lines most are neither black nor white, at all levels."""
    inked = cube(pool)[cube(pool) > 0]
    levels = np.bincount(inked, minlength=256)[1:]
    assert (levels > 0).all()
    assert levels[:254].sum() / levels.sum() > 0.4


def between_to_within(values: NDArray[np.float64]) -> float:
    """F ratio of drawers over the rows [characters, drawers]: about 1 if who draws makes no difference."""
    rest = values - values.mean(axis=1, keepdims=True)
    drawers = rest.mean(axis=0)
    characters, people = values.shape
    between = characters * (drawers**2).sum() / (people - 1)
    within = ((rest - drawers) ** 2).sum() / ((characters - 1) * (people - 1))
    return float(between / within)


def test_drawers_have_a_pen_and_a_slant_of_their_own(pool: Pool) -> None:
    source = glyphs()
    page = cube(pool)[-source.characters :, :, 0].astype(np.float64) / 255
    y, x = (axis - (source.size - 1) / 2 for axis in np.mgrid[: source.size, : source.size])
    total = page.sum(axis=(2, 3))
    mx, my = (page * x).sum(axis=(2, 3)) / total, (page * y).sum(axis=(2, 3)) / total
    covariance = (page * x * y).sum(axis=(2, 3)) / total - mx * my
    variance = (page * y * y).sum(axis=(2, 3)) / total - my**2
    assert between_to_within(total) > 10
    assert between_to_within(covariance / variance) > 5
    shuffled = np.random.default_rng(0).permuted(total, axis=1)
    assert between_to_within(shuffled) < 3  # the measure itself sees no drawers where there are none


def test_worlds_differ_and_grow_without_changing() -> None:
    first, other = paged(small()), paged(small(world=2))
    assert not any(np.array_equal(mine, yours) for mine in first for yours in other)
    larger = paged(small(train_alphabets=4))
    assert np.array_equal(larger[: len(first)], first)


def test_what_does_not_change_the_images_does_not_draw_them_again(tmp_path: Path) -> None:
    small().load(silent)
    small(mean=0.5, rotations="all").load(silent)
    assert len(list(tmp_path.glob("*.npy"))) == 1


def test_invert_is_the_negative() -> None:
    assert np.array_equal(paged(small(invert=True)), 255 - paged(small()))


def test_normalisation_in_the_file_is_that_of_the_training_images(pool: Pool) -> None:
    source = glyphs()
    train = cube(pool)[list(pool.splits["train"])] / np.float32(255)
    assert abs(train.mean() - source.mean) < 0.001
    assert abs(train.std() - source.std) < 0.001


def test_slow_drawing_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metarun.data.sources.glyphs.PROGRESS_EVERY_S", 0.0)
    said: list[str] = []
    small().load(said.append)
    assert said[-1].startswith("glyphs: 4 of 4 alphabets")
    small().load(said.append)
    assert len(said) == 4


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"min_strokes": 4}, "min_strokes=4: use 1 <= min_strokes <= max_strokes"),
        ({"pen_max": 2.0}, "pen_max=2.0: use 0 <= pen_min <= pen_max <= 1.5"),
        ({"size": 4}, "size=4"),
        ({"world": -1}, "world=-1"),
        ({"test_alphabets": 0}, "test_alphabets=0"),
    ],
)
def test_impossible_values_are_named(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match="use") as caught:
        glyphs(**changed)
    assert str(caught.value).startswith(words)


@pytest.mark.parametrize("size", [8, 14, 28, 56])
def test_other_sizes(size: int) -> None:
    assert paged(small(size=size, shift=20.0)).shape == (20, 20, 1, size, size)


def test_bell_has_the_moments_it_states() -> None:
    draws = RawBitNumbers(1).bell(100, 1000)
    assert abs(draws.mean()) < 0.02
    assert abs(draws.var() - 1.0) < 0.02
    assert np.abs(draws).max() < 3.5


def test_a_straight_stroke_is_a_band_as_wide_as_its_pen() -> None:
    """Area of the ink of a straight line: length x 2r plus the two half discs at its ends, up to sampling."""
    joints = np.stack([np.linspace(-1, 1, JOINTS), np.zeros(JOINTS)], axis=-1)[None]
    strokes = Strokes(joints, np.zeros(1, dtype=np.int64))
    beads = points_along(strokes, 10.0)
    spots = spline_points(joints, beads) * 10.0 + 13.5
    for radius in (0.7, 1.0, 1.4):
        image = draw_dots(spots, np.zeros(len(spots), dtype=np.int64), np.full(len(spots), radius), 1, 28)
        assert abs(image.sum() / 255 - (20.0 * 2 * radius + np.pi * radius**2)) < 0.06 * 40 * radius


def test_fields_have_no_default_in_python() -> None:
    assert all(field.default is dataclasses.MISSING for field in dataclasses.fields(Glyphs))
