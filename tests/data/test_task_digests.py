"""Task i is, bit for bit, the task that it was: digests of episodes, stored when they were drawn first.

A digest that changes means that every seed draws other tasks than before, and that no finished run can be compared
with a new one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from metarun.data.sources.glyphs import Glyphs
from metarun.data.sources.mixture import Mixture
from metarun.data.sources.sine import Sine
from metarun.data.sources.source import Rotations
from metarun.data.tasks import sampler
from metarun.data.tasks.augment import Augment
from metarun.data.tasks.contracts import ClassificationData, ClassSource, Tasks
from metarun.data.tasks.opening import open_classes, open_mixture
from support.grouped import Grouped
from support.labelled import SIZE, Coloured, Source
from support.shapes import shape

STORED = json.loads((Path(__file__).parent / "task_digests.json").read_text())
CPU = torch.device("cpu")
SEED = 5
ROUNDED = 1e8  # items to 8 digits: another CPU may differ in the last ones


def labelled(source: ClassSource, augment: Augment | None = None) -> ClassificationData:
    return open_classes(source, CPU, torch.float64, lambda _: None, augment)


def mixed() -> ClassificationData:
    sources, names = {"a": Source("none"), "b": Coloured("none")}, ("a", "b")
    return open_mixture(Mixture(sources, names, names, names, SIZE, 1), CPU, torch.float64, lambda _: None, None)


def glyphs(rotations: Rotations) -> ClassificationData:
    small = {"train_alphabets": 3, "val_alphabets": 1, "test_alphabets": 2, "characters": 6, "drawers": 5, "size": 12}
    drawn = {"primitives": 7, "min_strokes": 2, "max_strokes": 3, "likeness": 0.85, "fill": 0.36, "slant": 0.22}
    hands = {"turn": 0.14, "stretch": 0.12, "pen_min": 0.7, "pen_max": 1.25, "bend": 0.06, "placement": 0.06}
    rest = {"wobble": 0.05, "shift": 2.0, "world": 1, "invert": False, "mean": 0.133, "std": 0.303}
    return labelled(Glyphs(**small, **drawn, **hands, **rest, rotations=rotations))  # type: ignore[arg-type]


AUGMENT = Augment(per="image", crop=1, flip=0.5, brightness=0.4, contrast=0.3, saturation=0.6)
SINE = Sine((0.1, 5.0), (0.0, 3.141592653589793), (-5.0, 5.0))
CASES: dict[str, Callable[[], Tasks]] = {
    "glyphs, train": lambda: glyphs("none").tasks("train", shape(5, 1, 3), SEED),
    "glyphs, all turned, test": lambda: glyphs("all").tasks("test", shape(5, 2, 2), SEED),
    "turned in training": lambda: labelled(Source("train")).tasks("train", shape(4, 2, 2), SEED),
    "label noise": lambda: labelled(Source("none")).tasks("val", shape(5, 3, 1, 0.4), SEED),
    "imbalance": lambda: labelled(Grouped()).tasks("test", shape(5, 3, 1, imbalance=2), SEED),
    "within a group": lambda: labelled(Grouped()).tasks("train", shape(4, 1, 2, sampler="within_group"), SEED),
    "a group as task": lambda: labelled(Grouped()).tasks("train", shape((4, 7), 2, 1, sampler="group_as_task"), SEED),
    "ways and shots varied": lambda: labelled(Grouped()).tasks("test", shape((2, 5), (1, 3), 2), SEED),
    "ten tasks, shuffled": lambda: labelled(Grouped()).tasks("train", shape(3, 1, 1, tasks=10, order="shuffled"), SEED),
    "augmented": lambda: labelled(Coloured("none"), AUGMENT).tasks("train", shape(3, 1, 2), SEED),
    "augmented, not in the test": lambda: labelled(Coloured("none"), AUGMENT).tasks("test", shape(3, 1, 2), SEED),
    "batches": lambda: labelled(Source("all"), AUGMENT).batches(shape(5, 2, 2), SEED),
    "mixture": lambda: mixed().tasks("train", shape((2, 4), 2, 1), SEED),
    "mixture, batches": lambda: mixed().batches(shape(5, 2, 2), SEED),
    "sine": lambda: SINE.open(CPU, torch.float64).tasks("train", shape(1, 10, 10), SEED),
}


def digest(tasks: Tasks) -> str:
    """Of tasks 0 to 23 and of one far away: places, labels, numbers and items."""
    found = hashlib.sha256()
    for part in tasks.by_shape(torch.tensor([*range(24), 10**9])):
        found.update(str((part.ways, part.shots, part.places.tolist())).encode())
        for value in (*part.episode.support, *part.episode.query, part.episode.index):
            found.update(_bytes(value))
    return found.hexdigest()[:16]


def _bytes(value: Tensor) -> bytes:
    exact = (value * ROUNDED).round().long() if value.is_floating_point() else value
    return str(tuple(value.shape)).encode() + exact.contiguous().numpy().tobytes()


@pytest.mark.parametrize("name", CASES)
def test_task_i_is_the_task_that_it_was(name: str) -> None:
    assert digest(CASES[name]()) == STORED[name]


def test_items_of_a_large_class_are_the_same_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are chosen by another algorithm, whose cost does not grow with the class."""
    monkeypatch.setattr(sampler, "LARGE_CLASS", 1)
    assert digest(labelled(Grouped()).tasks("train", shape(5, 1, 2), SEED)) == STORED["large classes"]
