"""Omniglot from its two archives: made-up ones in that layout, a server that fails, the real ones where they lie."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from metarun.data.fetch import download
from metarun.data.read.zip_archive import content_digest
from metarun.data.sources.omniglot import Omniglot
from metarun.data.splits.class_list import class_list
from metarun.data.store.pool import DataError
from support.makers.omniglot import ARCHIVES, SIDE, archive, drawing, md5
from support.server import Address, serving

CONF = Path(__file__).parents[2] / "conf/data/omniglot.yaml"
REAL = os.environ.get("METARUN_DATA", "")


def silent(_: str) -> None:
    pass


def omniglot(**changed: Any) -> Omniglot:
    values: Any = OmegaConf.to_container(OmegaConf.load(CONF))
    del values["_target_"]
    return Omniglot(**{**values, **changed})


def made_up(root: Path | None, **changed: Any) -> Omniglot:
    """Of archives that `root` below tmp_path had when the test began: what is published is what they were."""
    counts = {"background_classes": 6, "evaluation_classes": 3, "images_per_class": 4, "val_classes": 2}
    return omniglot(**{"root": root and str(root), "mirrors": [], "finn_test_classes": 3, **counts, **SUMS, **changed})


SUMS: dict[str, str] = {}  # of the made-up archives


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("METARUN_DATA", raising=False)
    folder = tmp_path / "data/omniglot"
    archive(folder / ARCHIVES[0], {"Alphabet_of_A": 2, "Zulu_(B)": 4}, first=0)
    archive(folder / ARCHIVES[1], {"Mid": 3}, first=6)
    for name, path in zip(("background", "evaluation"), ARCHIVES, strict=True):
        monkeypatch.setitem(SUMS, f"{name}_md5", md5(folder / path))
        monkeypatch.setitem(SUMS, f"{name}_content", content_digest(folder / path))
    return tmp_path / "data"


def test_every_drawing_is_where_its_name_says(root: Path) -> None:
    pool = made_up(root, size=SIDE).load(silent)
    assert pool.items.shape == (36, 1, SIDE, SIDE)
    assert list(np.diff(pool.bounds)) == [4] * 9
    assert pool.names[:3] == ("Alphabet_of_A/character01", "Alphabet_of_A/character02", "Zulu_(B)/character01")
    assert pool.names[6:] == ("Mid/character01", "Mid/character02", "Mid/character03")
    assert pool.groups == ("Alphabet_of_A",) * 2 + ("Zulu_(B)",) * 4 + ("Mid",) * 3
    for character in range(9):
        for drawer in range(4):
            assert np.array_equal(pool.items_of(character)[drawer, 0], 255 - drawing(character, drawer + 1))


def test_polarity_and_size(root: Path) -> None:
    ink = made_up(root).load(silent).items
    paper = made_up(root, invert=False).load(silent).items
    assert ink.shape == (36, 1, 28, 28)
    assert ink[:, :, 0, 0].max() == 0
    assert paper[:, :, 0, 0].min() == 255
    assert np.abs(ink.astype(int) + paper - 255).max() <= 1  # resizing rounds each way
    nearest = made_up(root, resize="nearest", duplicates="warn").load(silent).items  # thin bars fall between its rows
    assert set(np.unique(nearest)) == {0, 255}
    assert len(np.unique(ink)) > 10  # a real filter, and not what Pillow does to 1-bit images
    first = Image.fromarray(255 - drawing(0, 1)).resize((28, 28), Image.Resampling.LANCZOS)
    assert np.array_equal(ink[0, 0], np.asarray(first))


def test_splits(root: Path) -> None:
    for split, test in (("finn", 3), ("lake", 3)):
        source = made_up(root, split=split)
        pool = source.load(silent)
        assert {name: len(classes) for name, classes in pool.splits.items()} == source.counts()
        assert source.counts() == {"train": 4, "val": 2, "test": test}
    assert made_up(root, split="lake").load(silent).splits["test"] == (6, 7, 8)
    finn = {made_up(root, split_seed=seed).load(silent).splits["test"] for seed in range(20)}
    assert len(finn) > 5
    assert {number for classes in finn for number in classes} == set(range(9))
    again = made_up(root, split_seed=3).load(silent).splits
    assert again == made_up(root, split_seed=3, size=20).load(silent).splits


def test_the_draws_of_finn_and_lake_never_change(root: Path) -> None:
    assert made_up(root).load(silent).splits == {"train": (0, 2, 5, 7), "val": (3, 8), "test": (1, 4, 6)}
    assert made_up(root, split="lake").load(silent).splits == {"train": (0, 3, 4, 5), "val": (1, 2), "test": (6, 7, 8)}


def test_vinyals_lists_are_checked_against_the_names(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        DataError, match=r"data.split=vinyals names 1623 classes that the data does not have \(Alphabet_of_the"
    ):
        made_up(root, split="vinyals").load(silent)
    lists = {"train": ["Zulu_(B)/character02", "Mid/character01"], "val": ["Zulu_(B)/character01"]}
    lists |= {"test": ["Alphabet_of_A/character02"]}
    monkeypatch.setattr("metarun.data.sources.omniglot.class_list", lambda _: lists)
    source = made_up(root, split="vinyals", val_classes=0)
    assert source.load(silent).splits == {"train": (3, 6), "val": (2,), "test": (1,)}
    assert source.counts() == {"train": 2, "val": 1, "test": 1}


def test_published_counts() -> None:
    assert omniglot().counts() == {"train": 1100, "val": 100, "test": 423}
    assert omniglot(split="lake").counts() == {"train": 864, "val": 100, "test": 659}
    assert omniglot(split="vinyals").counts() == {"train": 1028, "val": 172, "test": 423}
    with pytest.raises(ValueError, match="val_classes=2000: leaves -800 train"):
        omniglot(val_classes=2000)
    lists = class_list("omniglot_vinyals")
    assert len({name for names in lists.values() for name in names}) == 1623
    assert lists["test"][:5] == [*(f"Gurmukhi/character{number}" for number in (42, 43, 44, 45)), "Kannada/character01"]
    assert lists["val"][-1] == "Mkhedruli_(Georgian)/character41"


def test_packed_once_and_then_without_the_archives(root: Path) -> None:
    first = made_up(root).load(silent)
    for name in ARCHIVES:
        (root / "omniglot" / name).unlink()
    second = made_up(root, split="lake").load(silent)
    assert isinstance(second.items, np.memmap)
    assert np.array_equal(first.items, second.items)
    assert first.names == second.names


def test_root_from_the_environment(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METARUN_DATA", str(root))
    assert len(made_up(None).load(silent).items) == 36


def test_an_archive_that_is_not_what_it_should_be(root: Path) -> None:
    path = root / "omniglot" / ARCHIVES[1]
    with pytest.raises(DataError, match=r"images_evaluation.zip has 3 characters, not 4"):
        made_up(root, evaluation_classes=4).load(silent)
    with pytest.raises(DataError, match=r"Alphabet_of_A/character01 has 4 images, not 20"):
        made_up(root, images_per_class=20).load(silent)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"images_evaluation.zip is no whole zip archive"):
        made_up(root).load(silent)
    path.write_bytes(b"\n<!DOCTYPE html><html></html>")
    with pytest.raises(DataError, match=r"is no whole zip archive \(it is a web page\)"):
        made_up(root).load(silent)
    damaged = bytearray(whole)
    damaged[whole.index(b"IDAT") + 8] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=r"cannot be read .*CRC"):
        made_up(root).load(silent)
    path.write_bytes(whole)
    assert len(made_up(root).load(silent).items) == 36


def repacked(path: Path, change: str) -> None:
    """The archive again: other order, dates, packing and top folder, and maybe another image."""
    with zipfile.ZipFile(path) as file:
        images = [(name, file.read(name)) for name in file.namelist() if name.endswith(".png")]
    if change == "image":
        images[5] = (images[5][0], images[6][1])
    if change == "names":
        images[5], images[6] = (images[5][0], images[6][1]), (images[6][0], images[5][1])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("__MACOSX/._litter", "litter")
        for name, content in reversed(images):
            inner = name.partition("/")[2]
            file.writestr(zipfile.ZipInfo(f"my/copy/{inner}", (2001, 2, 3, 4, 5, 6)), content)
        file.writestr("my/copy/.DS_Store", "litter")


def test_an_archive_packed_anew_is_known_by_its_images(root: Path) -> None:
    for name in ARCHIVES:
        repacked(root / "omniglot" / name, "")
        assert md5(root / "omniglot" / name) not in SUMS.values()
    pool = made_up(root, size=SIDE).load(silent)
    assert pool.names[2] == "Zulu_(B)/character01"
    assert np.array_equal(pool.items_of(8)[3, 0], 255 - drawing(8, 4))


@pytest.mark.parametrize("change", ["image", "names"])
def test_other_images_are_refused(root: Path, change: str) -> None:
    repacked(root / "omniglot" / ARCHIVES[1], change)
    with pytest.raises(DataError, match=r"images_evaluation.zip holds other images than the published .*; put the pub"):
        made_up(root).load(silent)


def test_packing_says_how_far_it_is(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metarun.data.store.contents.PROGRESS_EVERY_S", 0.0)
    said: list[str] = []
    made_up(root).load(said.append)
    assert said[-1].startswith("omniglot: 36 of 36 items packed")


@pytest.fixture
def address(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Address]:
    monkeypatch.setattr(download, "SILENCE_S", 0.2)
    with serving(root / "omniglot") as address:
        yield address


@pytest.mark.parametrize("ways", [["truncated", "html", "wrong", "stall", ""], ["drop"], ["redirect"]])
def test_download(root: Path, address: Address, tmp_path: Path, ways: list[str]) -> None:
    target = tmp_path / "elsewhere"
    mirrors = ["http://127.0.0.1:9/refused", *(f"{address}/{way}" for way in ways)]
    said: list[str] = []
    pool = made_up(target, mirrors=mirrors, size=SIDE).load(said.append)
    assert np.array_equal(pool.items, made_up(root, size=SIDE).load(silent).items)
    assert sorted(path.name for path in (target / "omniglot").iterdir()) == list(ARCHIVES)
    assert any(f"/{ARCHIVES[0]}" in line for line in said)
    for name in ARCHIVES:
        assert md5(target / "omniglot" / name) == md5(root / "omniglot" / name)


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("truncated", r"ended after \d+ of \d+ bytes"),
        ("stall", r"silent for 0.2 s"),
        ("wrong", "has md5 .* not"),
        ("html", "sends a web page"),
        ("404", "404"),
        ("circle", "redirects in a circle"),
    ],
)
def test_a_failed_download_says_what_to_put_where(address: Address, tmp_path: Path, way: str, reason: str) -> None:
    target = tmp_path / "new"
    with pytest.raises(DataError, match=reason) as caught:
        made_up(target, mirrors=[f"{address}/{way}"]).load(silent)
    page = "from https://github.com/brendenlake/omniglot/tree/master/python"
    todo = f"get images_background.zip, images_evaluation.zip {page} and put it into {target}/omniglot"
    assert str(caught.value).endswith(todo)
    assert "\n" not in str(caught.value)
    left = {path.name.removeprefix(ARCHIVES[0]) for path in (target / "omniglot").iterdir()}
    assert left == ({".part", ".part.json"} if way in ("truncated", "stall") else set())
    assert not list((tmp_path / "cache").glob("*.npy"))


@pytest.mark.usefixtures("root")
def test_no_mirror_and_no_archive(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"get images_background.zip, images_evaluation.zip from .* and put it into"):
        made_up(tmp_path / "new").load(silent)


real = pytest.mark.skipif(
    not all((Path(REAL) / "omniglot" / name).is_file() for name in ARCHIVES) or not REAL,
    reason="METARUN_DATA holds no omniglot/images_background.zip and images_evaluation.zip",
)


@pytest.fixture(scope="module")
def real_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("real")


@real
def test_the_real_archives(real_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METARUN_CACHE", str(real_cache))
    pool = omniglot(root=REAL).load(silent)
    assert pool.items.shape == (32460, 1, 28, 28)
    assert list(np.diff(pool.bounds)) == [20] * 1623
    assert len(set(pool.groups)) == 50
    for split, sizes in (("finn", (1100, 100, 423)), ("lake", (864, 100, 659)), ("vinyals", (1028, 172, 423))):
        splits = omniglot(root=REAL, split=split).load(silent).splits
        assert tuple(len(classes) for classes in splits.values()) == sizes
        assert len({number for classes in splits.values() for number in classes}) == sum(sizes)
    evaluation = omniglot(root=REAL, split="lake").load(silent).splits["test"]
    alphabets = [{pool.groups[number] for number in side} for side in (range(964), evaluation)]
    assert [len(side) for side in alphabets] == [30, 20]
    assert not alphabets[0] & alphabets[1]
    assert pool.items.mean() / 255 == pytest.approx(0.084, abs=0.002)  # thin ink on empty paper
    drawings = {image.tobytes() for image in pool.items}
    assert len(drawings) == 32460 - 1  # one pair is the same as published: Braille, character01, drawers 03 and 19


@real
def test_the_real_archives_by_their_contents_alone() -> None:
    others = {"background_md5": "of another packing", "evaluation_md5": "of another packing"}
    assert len(omniglot(root=REAL, **others).contents(silent).names) == 1623


@real
def test_the_nearest_picture_of_five(real_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cosine of raw pixels, 5-way 1-shot, Vinyals' test classes: about 46 %, which every method has to beat."""
    monkeypatch.setenv("METARUN_CACHE", str(real_cache))
    pool = omniglot(root=REAL, split="vinyals").load(silent)
    rng, hits, episodes = np.random.default_rng(0), 0, 1000
    for _ in range(episodes):
        classes = rng.choice(pool.splits["test"], 5, replace=False)
        pairs = np.stack([pool.items_of(number)[rng.choice(20, 2, replace=False)] for number in classes])
        flat = pairs.reshape(5, 2, -1)
        support, query = np.moveaxis(flat / np.linalg.norm(flat, axis=2, keepdims=True), 1, 0)
        hits += int(((query @ support.T).argmax(axis=1) == np.arange(5)).sum())
    assert hits / (5 * episodes) == pytest.approx(0.46, abs=0.03)
