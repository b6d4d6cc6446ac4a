"""CIFAR-FS and FC100 through the real loader: from each form in circulation, on disk and fetched, whole and damaged."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from metarun.config.convert import dataclass_from
from metarun.data.sources.cifar import Cifar
from metarun.data.splits.class_list import class_list
from metarun.data.store.pool import DataError, Pool
from support.makers import cifar as maker
from support.server import serving

CONF = Path(__file__).parents[2] / "conf/data"
TAR = "cifar-100-python.tar.gz"
COPIES = 3  # images of each class
PARTS = maker.parts(COPIES)
PRESETS = {"cifar_fs": (64, 16, 20), "fc100": (60, 20, 20)}


def silent(_: str) -> None:
    pass


def source(preset: str, **changed: Any) -> Cifar:
    values: Any = OmegaConf.to_container(OmegaConf.load(CONF / f"{preset}.yaml"))
    return dataclass_from(Cifar, {**values, **changed}, "data")


def small(preset: str, root: Path, **changed: Any) -> Cifar:
    own = {"root": str(root), "mirrors": [], "zip_mirrors": [], "images_per_class": COPIES, **maker.sums(PARTS)}
    return source(preset, **{**own, **changed})


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("METARUN_DATA", raising=False)
    return tmp_path / "data"


def drawn(pool: Pool, name: str) -> set[bytes]:
    """What is there of a class, whatever the order."""
    return {item.transpose(1, 2, 0).tobytes() for item in pool.items_of(pool.names.index(name))}


def check(pool: Pool, preset: str) -> None:
    assert pool.items.shape == (100 * COPIES, 3, 32, 32)
    assert pool.names == tuple(maker.NAMES)
    assert pool.groups == tuple(name.partition("/")[0] for name in pool.names)
    for name in pool.names:
        assert drawn(pool, name) == {maker.picture(name, copy).tobytes() for copy in range(COPIES)}
    assert tuple(len(classes) for classes in pool.splits.values()) == PRESETS[preset]
    assert {split: [pool.names[n] for n in classes] for split, classes in pool.splits.items()} == class_list(preset)


def put(folder: Path, made: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in made.items():
        (folder / name).write_bytes(content)


def put_pngs(root: Path, **changed: list[str]) -> None:
    lists = {split: [name.partition("/")[2] for name in names] for split, names in class_list("cifar_fs").items()}
    maker.png_zip(root / "cifar100/cifar100.zip", COPIES, {**lists, **changed})


def put_edition(root: Path, edition: str) -> None:
    folder = root / "cifar100"
    if edition == "python":
        maker.archive(folder / TAR, PARTS)
    elif edition == "unpacked":
        put(folder / "cifar-100-python", PARTS)
    elif edition == "png":
        put_pngs(root)
    elif edition == "pickles":
        put(folder, maker.fc100(COPIES, own_labels=False))
    else:
        maker.zipped(folder / "fc100.zip", maker.fc100(COPIES, own_labels=False))


@pytest.mark.parametrize("preset", PRESETS)
def test_published_classes(preset: str) -> None:
    lists = class_list(preset)
    names = [name for split in lists.values() for name in split]
    assert tuple(source(preset).counts().values()) == PRESETS[preset]
    assert list(source(preset).counts()) == ["train", "val", "test"]
    assert sorted(names) == maker.NAMES
    assert len(set(names)) == 100
    assert len({name.partition("/")[0] for name in names}) == 20
    if preset == "fc100":
        groups = [{name.partition("/")[0] for name in split} for split in lists.values()]
        assert list(map(len, groups)) == [12, 4, 4]
        assert not (groups[0] & groups[1]) | (groups[0] & groups[2]) | (groups[1] & groups[2])


EDITIONS = [
    *[("cifar_fs", edition) for edition in ("python", "unpacked", "png")],
    *[("fc100", edition) for edition in ("python", "unpacked", "png", "pickles", "zip")],
]


@pytest.mark.parametrize(("preset", "edition"), EDITIONS)
def test_every_image_is_where_its_class_says(root: Path, preset: str, edition: str) -> None:
    put_edition(root, edition)
    assert {one.name for one in source(preset).editions()} >= {edition}
    check(small(preset, root).load(silent), preset)


def test_all_editions_pack_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packs = set()
    for edition in ("python", "unpacked", "png", "pickles", "zip"):
        monkeypatch.setenv("METARUN_CACHE", str(tmp_path / f"cache-{edition}"))
        put_edition(tmp_path / edition, edition)
        small("fc100", tmp_path / edition).load(silent)
        (pack,) = (tmp_path / f"cache-{edition}").glob("*.npy")
        packs.add((pack.name, pack.read_bytes()))
    assert len(packs) == 1


def test_classes_without_names(root: Path) -> None:
    put(root / "cifar100", maker.fc100(COPIES, own_labels=True))
    pool = small("fc100", root).load(silent)
    assert tuple(len(classes) for classes in pool.splits.values()) == (60, 20, 20)
    assert set(pool.groups) == {""}
    for split, names in class_list("fc100").items():
        fine = sorted(names, key=lambda name: name.partition("/")[2])
        for place, name in enumerate(fine):
            copies = {maker.picture(name, copy).tobytes() for copy in range(COPIES)}
            assert drawn(pool, f"{split}/{place:02d}") == copies
        assert {pool.names[n] for n in pool.splits[split]} == {f"{split}/{place:02d}" for place in range(len(fine))}


@pytest.mark.parametrize(("preset", "edition"), [("cifar_fs", "python"), ("fc100", "zip")])
def test_second_load_without_the_files(root: Path, preset: str, edition: str) -> None:
    put_edition(root, edition)
    first = small(preset, root).load(silent)
    for path in (root / "cifar100").iterdir():
        path.unlink()
    again = small(preset, root).load(silent)
    assert isinstance(again.items, np.memmap)
    assert np.array_equal(first.items, again.items)
    check(again, preset)


def test_another_size(root: Path) -> None:
    put_edition(root, "python")
    pool = small("cifar_fs", root, size=16, resize="box").load(silent)
    image = pool.items_of(pool.names.index("fish/ray"))[0].astype(float)
    halves = [maker.picture("fish/ray", copy).reshape(16, 2, 16, 2, 3).mean((1, 3)) for copy in range(COPIES)]
    assert min(np.abs(image.transpose(1, 2, 0) - half).max() for half in halves) <= 1


def test_fetched(root: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    maker.archive(there / TAR, PARTS)
    md5 = maker.sums({"archive": (there / TAR).read_bytes()})
    with serving(there) as address:
        check(small("cifar_fs", root, mirrors=[address], **md5).load(silent), "cifar_fs")
    assert [path.name for path in (root / "cifar100").iterdir()] == [TAR]


def test_fetched_as_a_zip_where_the_archive_is_gone(root: Path, tmp_path: Path) -> None:
    put_pngs(tmp_path / "there")
    with serving(tmp_path / "there/cifar100") as address:
        check(small("fc100", root, mirrors=[address], zip_mirrors=[address]).load(silent), "fc100")
        refused(
            small("cifar_fs", tmp_path / "elsewhere", mirrors=[f"{address}/html"]), "sends a web page, not the file"
        )
        refused(small("cifar_fs", tmp_path / "elsewhere", zip_mirrors=[f"{address}/truncated"]), "cifar100.zip")
    assert not list((tmp_path / "elsewhere").rglob("*.zip"))
    assert not list((tmp_path / "elsewhere").rglob("*.gz"))


def refused(source: Cifar, match: str) -> None:
    before = {path.name for path in Path(os.environ["METARUN_CACHE"]).glob("*.npy")}
    with pytest.raises(DataError, match=match) as caught:
        source.load(silent)
    assert "\n" not in str(caught.value)
    assert {path.name for path in Path(os.environ["METARUN_CACHE"]).glob("*.npy")} == before


def test_nothing_there(root: Path) -> None:
    refused(small("cifar_fs", root), rf"get .*{TAR}.* from https://.*kriz.* and put it into .*cifar100")
    refused(small("fc100", root), r"FC100_train.pickle, FC100_val.pickle, FC100_test.pickle")


@pytest.mark.parametrize("name", [TAR, "cifar100.zip", "fc100.zip"])
def test_a_damaged_archive(root: Path, name: str) -> None:
    put_edition(root, {TAR: "python", "cifar100.zip": "png"}.get(name, "zip"))
    path = root / "cifar100" / name
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(small("fc100", root), rf"{name}.* is no .*archive")
    path.write_bytes(b"<!DOCTYPE html><html></html>")
    refused(small("fc100", root), rf"{name}.* is no .*archive")


def test_a_file_of_the_archive_that_is_another(root: Path) -> None:
    path = root / "cifar100" / TAR
    maker.archive(path, {**PARTS, "test": maker.python2({b"data": 0})})
    refused(small("cifar_fs", root), rf"{TAR}: test in it has md5 \w+, not \w+; put")
    maker.archive(path, {name: content for name, content in PARTS.items() if name != "meta"})
    refused(small("cifar_fs", root), rf"{TAR}: has no meta in it; put")


def test_wrong_counts(root: Path) -> None:
    put_edition(root, "python")
    refused(small("cifar_fs", root, images_per_class=600), r"class \w+/\w+ has 3 images, not 600")


def test_pngs_that_are_not_the_published_ones(root: Path) -> None:
    put_pngs(root, val=["apple", "whale"])
    refused(small("cifar_fs", root), r"splits/bertinetto/val.txt and the published val split differ in ")
    maker.zipped(root / "cifar100/cifar100.zip", {"cifar100/data/apple/a.png": b"\x89PNG"})
    refused(small("cifar_fs", root), r"data/apple/a.png cannot be read as a picture")
    maker.zipped(root / "cifar100/cifar100.zip", {"cifar100/splits/other.txt": b"apple"})
    refused(small("cifar_fs", root), r"cifar100.zip has no class aquatic_mammals/beaver")


def test_pickles_that_are_not_the_published_ones(root: Path) -> None:
    made = maker.fc100(COPIES, own_labels=True)
    put(root / "cifar100", {**made, "FC100_val.pickle": made["FC100_train.pickle"]})
    refused(small("fc100", root), r"FC100_val.pickle has 60 classes, not 20")
    put(
        root / "cifar100", {"FC100_val.pickle": maker.python2({b"data": np.zeros((2, 3), np.uint8), b"labels": [0, 1]})}
    )
    refused(small("fc100", root), r"FC100_val.pickle has 2 classes, not 20")
    images = {b"data": np.zeros((20, 3), np.uint8), b"labels": list(range(20))}
    put(root / "cifar100", {"FC100_val.pickle": maker.python2(images)})
    refused(small("fc100", root), r"images are uint8 \(20, 3\) for 20 labels")
    put(root / "cifar100", {"FC100_val.pickle": maker.python2({b"data": 0})})
    refused(small("fc100", root), r"FC100_val.pickle has no labels")
    put(root / "cifar100", {"FC100_val.pickle": maker.python2({b"data": 0, b"labels": ["a"]})})
    refused(small("fc100", root), r"FC100_val.pickle is no list of whole numbers")
    put(root / "cifar100", {"FC100_val.pickle": b"cos\nsystem\n(S'true'\ntR."})
    refused(small("fc100", root), r"FC100_val.pickle is a pickle with the name os.system")
    maker.zipped(root / "cifar100/fc100.zip", {"FC100_val.pickle": b""})
    for split in maker.SPLITS:
        (root / f"cifar100/FC100_{split}.pickle").unlink()
    refused(small("fc100", root), r"fc100.zip holds no FC100_train.pickle")


def test_an_image_in_two_splits(root: Path) -> None:
    made = maker.fc100(COPIES, own_labels=True)
    test = {b"data": np.stack([maker.picture("fish/ray", copy % COPIES) for copy in range(60)])}
    labels = {b"labels": [n for n in range(20) for _ in range(COPIES)]}
    put(root / "cifar100", {**made, "FC100_test.pickle": maker.python2(test | labels)})
    with pytest.raises(DataError, match=r"the same in classes of two splits: .*data.duplicates=warn"):
        small("fc100", root).load(silent)
    said: list[str] = []
    small("fc100", root, duplicates="warn").load(said.append)
    assert any("the same in classes of two splits" in line for line in said)


@pytest.mark.parametrize("bad", [{"size": 0}, {"images_per_class": 0}])
def test_values_that_make_no_sense(bad: dict[str, int]) -> None:
    ((name, value),) = bad.items()
    values = vars(source("fc100")) | bad
    with pytest.raises(ValueError, match=f"^{name}={value}: use 1"):
        Cifar(**values)


def test_what_an_operating_system_adds_to_a_zip(root: Path) -> None:
    put_pngs(root)
    with zipfile.ZipFile(root / "cifar100/cifar100.zip", "a") as file:
        file.writestr("__MACOSX/cifar100/data/apple/._im_00000.png", b"\x00\x05\x16\x07")
        file.writestr("cifar100/data/apple/.DS_Store", b"\x00")
    check(small("cifar_fs", root).load(silent), "cifar_fs")
