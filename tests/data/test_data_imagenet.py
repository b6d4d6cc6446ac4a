"""mini-ImageNet and tiered-ImageNet through the real loader: every form in circulation, fetched, damaged."""

from __future__ import annotations

import os
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from metarun.config.convert import dataclass_from
from metarun.data.read.images import PictureDecoder
from metarun.data.sources.mini_imagenet import MiniImagenet
from metarun.data.sources.tiered_imagenet import TieredImagenet, png_spans
from metarun.data.store.pool import DataError, Pool
from support.makers import mini_imagenet as mini_maker
from support.makers import tiered_imagenet as tiered_maker
from support.makers.cifar import python2
from support.server import serving

CONF = Path(__file__).parents[2] / "conf/data"
COPIES = 2  # images of each class of mini-ImageNet
LISTS = mini_maker.LISTS
NO_IMAGES = np.zeros((9, 84, 84, 3), np.uint8)
ARCHIVE = "mini-imagenet.tar.gz"
TIERED = tiered_maker.CLASSES
SMALL = {
    "images": [sum(one.images for one in classes) for classes in TIERED.values()],
    "classes": [len(classes) for classes in TIERED.values()],
    "superclasses": [len({one.group for one in classes}) for classes in TIERED.values()],
}


def silent(_: str) -> None:
    pass


def values(preset: str, **changed: Any) -> dict[str, Any]:
    found: Any = OmegaConf.to_container(OmegaConf.load(CONF / f"{preset}.yaml"))
    return {**found, **changed}


def mini(root: Path, **changed: Any) -> MiniImagenet:
    own = {"root": str(root), "mirrors": [], "images_per_class": COPIES}
    return dataclass_from(MiniImagenet, values("mini_imagenet", **{**own, **changed}), "data")


def tiered(root: Path, **changed: Any) -> TieredImagenet:
    return dataclass_from(
        TieredImagenet, values("tiered_imagenet", **{"root": str(root), "mirrors": [], **SMALL, **changed}), "data"
    )


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("METARUN_DATA", raising=False)
    return tmp_path / "data"


@pytest.fixture(scope="module")
def caches() -> dict[str, bytes]:
    return mini_maker.caches(COPIES, "val")


def put(folder: Path, made: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in made.items():
        (folder / name).write_bytes(content)


def refused(source: MiniImagenet | TieredImagenet, match: str) -> None:
    with pytest.raises(DataError, match=match) as caught:
        source.load(silent)
    assert "\n" not in str(caught.value)
    assert not list(Path(os.environ["METARUN_CACHE"]).glob("*.npy"))
    assert not list(Path(os.environ["METARUN_CACHE"]).glob("*.part"))


def check_mini(pool: Pool, lossless: bool = True) -> None:
    assert sorted(pool.names) == mini_maker.NAMES
    assert pool.items.shape == (100 * COPIES, 3, 84, 84)
    assert {split: [pool.names[n] for n in classes] for split, classes in pool.splits.items()} == LISTS
    decoder = PictureDecoder(84, 3, "lanczos")
    for number, name in enumerate(pool.names):
        for copy, item in enumerate(pool.items_of(number)):
            if lossless:
                assert np.array_equal(item.transpose(1, 2, 0), mini_maker.picture(name, copy))
            else:
                assert np.abs(item.astype(int) - decoder.convert(mini_maker.smooth(name, copy))).max() <= 8


def test_published_classes_of_mini_imagenet() -> None:
    source = dataclass_from(MiniImagenet, values("mini_imagenet"), "data")
    assert source.counts() == {"train": 64, "val": 16, "test": 20}
    assert source.images_per_class * sum(source.counts().values()) == source.facts.images == 60000
    assert len(set(mini_maker.NAMES)) == 100
    assert all(name[0] == "n" and len(name) == 9 for name in mini_maker.NAMES)


@pytest.mark.parametrize("called", ["val", "validation"])
def test_mini_imagenet_from_pickles(root: Path, called: str) -> None:
    put(root / "mini-imagenet", mini_maker.caches(COPIES, called))
    check_mini(mini(root).load(silent))


def test_mini_imagenet_in_its_archive_and_then_without(root: Path, caches: dict[str, bytes]) -> None:
    (root / "mini-imagenet").mkdir(parents=True)
    mini_maker.archive(root / "mini-imagenet" / ARCHIVE, caches)
    check_mini(mini(root).load(silent))
    (root / "mini-imagenet" / ARCHIVE).unlink()
    again = mini(root).load(silent)
    assert isinstance(again.items, np.memmap)
    check_mini(again)


def test_mini_imagenet_from_lists_and_images(root: Path) -> None:
    mini_maker.lists_and_images(root / "mini-imagenet", COPIES)
    check_mini(mini(root).load(silent), lossless=False)


def test_mini_imagenet_fetched(root: Path, tmp_path: Path) -> None:
    made = mini_maker.caches(COPIES, "validation")
    put(tmp_path / "there", made)
    with serving(tmp_path / "there") as address:
        check_mini(mini(root, mirrors=[f"{address}/404", address]).load(silent))
        refused_where = tmp_path / "elsewhere"
        with pytest.raises(DataError, match=r"mini-imagenet-cache-train\.pkl.*sends a web page"):
            mini(refused_where, size=42, mirrors=[f"{address}/html"]).load(silent)
    assert sorted(path.name for path in (root / "mini-imagenet").iterdir()) == sorted(made)
    assert not list(refused_where.rglob("*.pkl"))


def test_mini_imagenet_of_another_size(root: Path, caches: dict[str, bytes]) -> None:
    put(root / "mini-imagenet", caches)
    pool = mini(root, size=42, resize="box").load(silent)
    assert pool.items.shape == (100 * COPIES, 3, 42, 42)
    name = LISTS["val"][3]
    half = mini_maker.picture(name, 1).reshape(42, 2, 42, 2, 3).mean((1, 3)).transpose(2, 0, 1)
    assert np.abs(pool.items_of(pool.names.index(name))[1] - half).max() <= 1


def test_mini_imagenet_with_classes_of_another_split(root: Path) -> None:
    lists = {**LISTS, "val": [LISTS["train"][5], *LISTS["val"][1:]]}
    put(root / "mini-imagenet", mini_maker.caches(1, "val", lists))
    stranger = LISTS["train"][5]
    refused(mini(root, images_per_class=1), rf"cache-val.pkl: class {stranger} belongs to the train split")
    put(root / "mini-imagenet", mini_maker.caches(1, "val", {**LISTS, "test": LISTS["test"][:-1]}))
    missing = LISTS["test"][-1]
    refused(mini(root, images_per_class=1), rf"cache-test.pkl: class {missing} of the test split is missing")
    made = pickle.loads(mini_maker.caches(1, "val", {"val": LISTS["val"]})["mini-imagenet-cache-val.pkl"])
    made["class_dict"]["n00000000"] = [0]
    put(root / "mini-imagenet", {"mini-imagenet-cache-val.pkl": pickle.dumps(made)})
    refused(mini(root, images_per_class=1), r"cache-val.pkl: class n00000000 is none of mini-ImageNet's")


def test_mini_imagenet_with_a_class_in_two_lists(root: Path) -> None:
    mini_maker.lists_and_images(root / "mini-imagenet", 1)
    name = LISTS["train"][7]
    with (root / "mini-imagenet/test.csv").open("a") as file:
        file.write(f"{name}00000001.jpg,{name}\r\n")
    refused(mini(root, images_per_class=1), rf"test.csv: class {name} is in train.csv too")


def test_mini_imagenet_damaged(root: Path, caches: dict[str, bytes]) -> None:
    folder = root / "mini-imagenet"
    refused(mini(root), r"get mini-imagenet-cache-train.pkl, .* or train.csv, val.csv, test.csv, images/ from https://")
    put(folder, caches)
    refused(mini(root, images_per_class=600), r"cache-train.pkl: class n\d+ has 2 images, not 600")
    train = folder / "mini-imagenet-cache-train.pkl"
    for content, told in (
        (caches[train.name][:100000], "is no whole pickle"),
        (b"<!DOCTYPE html>", "is no whole pickle"),
        (b"cos\nsystem\n(S'true'\ntR.", "os.system"),
        (pickle.dumps([1]), "has no image_data and no class_dict"),
        (
            pickle.dumps({"image_data": NO_IMAGES, "class_dict": dict.fromkeys(LISTS["train"], 5)}),
            "is no list of whole numbers",
        ),
        (pickle.dumps({"image_data": NO_IMAGES[0], "class_dict": {}}), r"uint8 \(84, 84, 3\)"),
        (
            pickle.dumps({**mini_maker.record(LISTS["train"], 2), "image_data": NO_IMAGES}),
            "of 9",
        ),
    ):
        train.write_bytes(content)
        refused(mini(root), f"cache-train.pkl.*{told}")


def test_mini_imagenets_archive_damaged(root: Path, caches: dict[str, bytes]) -> None:
    path = root / "mini-imagenet" / ARCHIVE
    path.parent.mkdir(parents=True)
    mini_maker.archive(path, caches)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"<!DOCTYPE html>", b""):
        path.write_bytes(content)
        refused(mini(root), rf"{ARCHIVE}.* is no .*")
    mini_maker.archive(path, {name: content for name, content in caches.items() if "val" not in name})
    refused(mini(root), rf"{ARCHIVE} holds no mini-imagenet-cache-val.pkl")


def test_mini_imagenets_lists_damaged(root: Path) -> None:
    folder = root / "mini-imagenet"
    mini_maker.lists_and_images(folder, 1)
    refused(mini(root), r"train.csv: class n\d+ has 1 images, not 2")
    one = folder / "images" / f"{LISTS['val'][0]}00000001.jpg"
    content = one.read_bytes()
    one.write_bytes(content[: len(content) // 2])
    refused(mini(root, images_per_class=1), rf"{one.name} cannot be read as a picture")
    one.unlink()
    refused(mini(root, images_per_class=1), rf"images has no {one.name}, which val.csv lists")
    (folder / "val.csv").write_text("a,b\n1,2\n")
    refused(mini(root, images_per_class=1), r"val.csv is no list of filename,label")
    (folder / "val.csv").write_text("filename,label\n../train.csv,n01855672\n")
    refused(mini(root, images_per_class=1), r"val.csv: class n\d+ of the val split is missing")


def check_tiered(pool: Pool, words: bool = True) -> None:
    assert len(pool.items) == sum(SMALL["images"])
    for split, classes in TIERED.items():
        for number, one in enumerate(classes):
            place = pool.names.index(f"{split}/{one.name}" if words else f"{split}/{number:03d}")
            assert place in pool.splits[split]
            items = {item.transpose(1, 2, 0).tobytes() for item in pool.items_of(place)}
            assert items == {tiered_maker.picture(split, one.name, copy).tobytes() for copy in range(one.images)}
            assert len(pool.items_of(place)) == one.images
            if words:
                assert pool.groups[place] == one.group
    assert [len(classes) for classes in pool.splits.values()] == SMALL["classes"]
    groups = [{pool.groups[n] for n in classes} for classes in pool.splits.values()]
    assert [len(found) for found in groups] == SMALL["superclasses"]
    assert len(set.union(*groups)) == sum(SMALL["superclasses"])


def test_published_counts_of_tiered_imagenet() -> None:
    source = dataclass_from(TieredImagenet, values("tiered_imagenet"), "data")
    assert source.counts() == {"train": 351, "val": 97, "test": 160}
    assert sum(source.images) == source.facts.images == 779165
    assert (sum(source.classes), sum(source.superclasses)) == (608, 34)


@pytest.mark.parametrize("strings", ["per label", "per image", "none"])
def test_tiered_imagenet(root: Path, strings: tiered_maker.Strings) -> None:
    put(root / "tiered-imagenet", tiered_maker.files(strings))
    check_tiered(tiered(root).load(silent), words=strings != "none")
    for path in (root / "tiered-imagenet").iterdir():
        path.unlink()
    check_tiered(tiered(root).load(silent), words=strings != "none")


def test_tiered_imagenet_fetched(root: Path, tmp_path: Path) -> None:
    made = tiered_maker.files(prefix="tiered-imagenet-")
    put(tmp_path / "there", made)
    with serving(tmp_path / "there") as address:
        check_tiered(tiered(root, mirrors=[address]).load(silent))
    assert sorted(path.name for path in (root / "tiered-imagenet").iterdir()) == sorted(made)


@pytest.mark.parametrize("protocol", [3, 4, 5, "python 2", "python 2 bytes"])
def test_pictures_are_found_in_a_pickle_of_either_python(tmp_path: Path, protocol: int | str) -> None:
    images = tiered_maker.images("train")
    texts = [image.tobytes() for image in images]
    made = (
        python2(texts if "bytes" in str(protocol) else images)
        if isinstance(protocol, str)
        else pickle.dumps(images, protocol)
    )
    path = tmp_path / "images.pkl"
    path.write_bytes(made)
    assert [made[place.start : place.end] for place in png_spans(path)] == texts


def test_finding_pictures_does_not_fill_the_memory(tmp_path: Path) -> None:
    one = tiered_maker.images("val")[0].tobytes()
    path = tmp_path / "images.pkl"
    with path.open("wb") as file:  # 5000 different objects of 80 kB, 400 MB, as zeros that take no disk
        file.write(b"\x80\x03]q\x00(")
        for _ in range(5000):
            file.write(b"B" + (80000).to_bytes(4, "little") + one[:64])
            file.seek(80000 - 64, os.SEEK_CUR)
        file.write(b"e.")
    tracemalloc.start()
    try:
        assert len(png_spans(path)) == 5000
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_tiered_imagenet_damaged(root: Path) -> None:
    folder = root / "tiered-imagenet"
    refused(tiered(root), r"get train_labels.pkl, train_images_png.pkl, .* and put it into .*tiered-imagenet")
    put(folder, tiered_maker.files())
    wrong = SMALL["images"][0], SMALL["classes"][1], SMALL["superclasses"][2]
    refused(tiered(root, images=[448695, *SMALL["images"][1:]]), f"train_labels.pkl has {wrong[0]} images, not 448695")
    refused(tiered(root, classes=[4, 97, 3]), f"val_labels.pkl has {wrong[1]} classes, not 97")
    refused(tiered(root, superclasses=[2, 2, 8]), f"test_labels.pkl has {wrong[2]} superclasses, not 8")
    images = folder / "val_images_png.pkl"
    whole = images.read_bytes()
    for content, told in (
        (whole[: len(whole) // 2], "val_images_png.pkl is no readable pickle"),
        (b"<!DOCTYPE html>", "val_images_png.pkl is no readable pickle"),
        (pickle.dumps(tiered_maker.images("test")), "has 9 pictures, and its labels file has 8"),
        (whole.replace(b"IDAT", b"IDOT"), r"val_images_png.pkl: picture \d cannot be read as a picture"),
        (b"", "val_images_png.pkl"),
    ):
        images.write_bytes(content)
        refused(tiered(root), told)
    images.unlink()
    refused(tiered(root), "get train_labels.pkl")


def test_tiered_imagenets_labels_damaged(root: Path) -> None:
    folder = root / "tiered-imagenet"
    put(folder, tiered_maker.files())
    good = tiered_maker.labels("val", "per label")
    general = np.array(good["label_general"])
    one = int(np.argmax(np.array(good["label_specific"]) == 1))
    for changed, told in (
        ({"label_general_str": ["mammal", "fish"]}, "superclass fish is in the train split too"),
        ({"label_specific_str": ["sloth", "sloth"]}, "two classes are called val/sloth"),
        ({"label_general": general[1:]}, "has 8 classes of images, and 7 superclasses of images"),
        (
            {"label_general": np.where(np.arange(8) == one, 1 - general, general)},
            "class 1 has images of the superclasses",
        ),
        ({"label_specific": ["a"] * 8}, "label_specific is no list of whole numbers"),
    ):
        (folder / "val_labels.pkl").write_bytes(python2({**good, **changed}))
        refused(tiered(root), rf"val_labels.pkl.*{told}")
    (folder / "val_labels.pkl").write_bytes(python2({"label_specific": [1]}))
    refused(tiered(root), "val_labels.pkl has no label_general")
    (folder / "val_labels.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    refused(tiered(root), "val_labels.pkl is a pickle with the name os.system")


@pytest.mark.parametrize(("field", "value"), [("size", 0), ("images_per_class", 0)])
def test_values_of_mini_imagenet_that_make_no_sense(root: Path, field: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"^{field}={value}: use 1"):
        MiniImagenet(**(vars(mini(root)) | {field: value}))


@pytest.mark.parametrize(("field", "value"), [("size", 0), ("classes", (3, 0, 1))])
def test_values_of_tiered_imagenet_that_make_no_sense(root: Path, field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{field}=.*use 1"):
        TieredImagenet(**(vars(tiered(root)) | {field: value}))
