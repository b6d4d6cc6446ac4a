"""CUB, Aircraft, VGG Flower, DTD and Fungi from small archives in the published formats, whole and damaged."""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from omegaconf import OmegaConf
from PIL import Image
from scipy.io import savemat  # type: ignore[import-untyped]

from metarun.config.convert import dataclass_from
from metarun.data.read import tar_archive
from metarun.data.sources.aircraft import Aircraft
from metarun.data.sources.cub import Cub
from metarun.data.sources.dtd import Dtd
from metarun.data.sources.fungi import Fungi
from metarun.data.sources.vgg_flower import VggFlower, mat_vector
from metarun.data.splits.class_list import class_list
from metarun.data.store.pool import DataError, Pool
from metarun.errors import ConfigError
from support.makers import aircraft, cub, dtd, fungi, vgg_flower
from support.makers.paint import Colour, Made, jpeg, tar
from support.server import serving

CONF = Path(__file__).parents[2] / "conf/data"
SOURCES: dict[str, Any] = {"cub": Cub, "aircraft": Aircraft, "vgg_flower": VggFlower, "dtd": Dtd, "fungi": Fungi}
MAKERS: dict[str, Callable[[Path], Made]] = {
    "cub": cub.make,
    "aircraft": aircraft.make,
    "vgg_flower": vgg_flower.make,
    "dtd": dtd.make,
    "fungi": fungi.make,
}
MAIN = {
    "cub": "CUB_200_2011.tgz",
    "aircraft": "fgvc-aircraft-2013b.tar.gz",
    "vgg_flower": "102flowers.tgz",
    "dtd": "dtd-r1.0.1.tar.gz",
    "fungi": "fungi_train_val.tgz",
}
EVERY = pytest.mark.parametrize("name", SOURCES)
NEAR = 6  # of 255: what JPEG does to one colour


def silent(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Made]]:
    root = tmp_path_factory.mktemp("published")
    made = {}
    for name, make in MAKERS.items():
        (root / name).mkdir()
        made[name] = make(root / name)
    return root, made


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("METARUN_DATA", raising=False)


@pytest.fixture
def folder(tmp_path: Path, shelf: tuple[Path, dict[str, Made]]) -> Callable[[str], Path]:
    """A copy of one set, to be damaged; its data.root is the folder above."""

    def copied(name: str) -> Path:
        return Path(shutil.copytree(shelf[0] / name, tmp_path / "data" / name))

    return copied


def source(name: str, root: Path | None, made: Made | None = None, **changed: Any) -> Any:
    values: Any = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    values |= {"root": root and str(root), "mirrors": []} if made else {}
    return dataclass_from(SOURCES[name], values | (made.values if made else {}) | changed, "data")


def check(pool: Pool, colours: dict[str, list[Colour]]) -> None:
    """Every picture is of its own colour, and lies with its class in order of its name."""
    assert pool.names == tuple(sorted(colours))
    assert len(pool.items) == sum(map(len, colours.values()))
    for number, name in enumerate(pool.names):
        wanted = np.array(colours[name], dtype=int)[:, :, None, None]
        assert pool.items_of(number).shape[0] == len(wanted), name
        assert np.abs(pool.items_of(number).astype(int) - wanted).max() <= NEAR, name


def left_behind(cache: Path) -> list[str]:
    return sorted(file.name for file in cache.rglob("*") if file.is_file() and file.suffix not in (".npy", ".lock"))


@EVERY
def test_every_picture_is_where_its_class_says(
    name: str, shelf: tuple[Path, dict[str, Made]], folder: Callable[[str], Path], tmp_path: Path
) -> None:
    made = shelf[1][name]
    home, said = folder(name), list[str]()
    data = source(name, home.parent, made)
    pool = data.load(said.append)
    check(pool, made.colours)
    assert pool.items.shape[1:] == (3, 8, 8)
    assert {split: len(classes) for split, classes in pool.splits.items()} == data.counts()
    assert {pool.names[number] for number in pool.splits["val"]} <= set(made.colours)
    assert [file.partition("-")[0] for file in left_behind(tmp_path / "cache")] == [name]  # KEY.json
    shutil.rmtree(home)
    again = source(name, home.parent, made).load(silent)
    assert isinstance(again.items, np.memmap)
    assert np.array_equal(pool.items, again.items)
    assert (again.names, again.splits) == (pool.names, pool.splits)


@EVERY
def test_fetched(name: str, shelf: tuple[Path, dict[str, Made]], tmp_path: Path) -> None:
    root, made = shelf
    sums = {}
    for field in (each for each in vars(source(name, None)) if each.endswith("md5")):
        file = root / name / {"labels_md5": LABELS.get(name, "")}.get(field, MAIN[name])
        sums[field] = hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
    with serving(root / name) as address:
        dead = f"{address}/404"
        data = source(name, tmp_path / "data", made[name], mirrors=[dead, str(address)], **sums)
        check(data.load(silent), made[name].colours)
        wrong = source(name, tmp_path / "other", made[name], mirrors=[str(address)], **dict.fromkeys(sums, "0" * 32))
        with pytest.raises(DataError, match="md5"):
            wrong.load(silent)
        page = source(name, tmp_path / "page", made[name], mirrors=[f"{address}/html"], size=9, **sums)
        with pytest.raises(DataError, match=MAIN[name]):
            page.load(silent)
    assert {file.name for file in (tmp_path / "data" / name).iterdir()} == {
        file.name for file in (root / name).iterdir()
    }


LABELS = {"vgg_flower": "imagelabels.mat", "fungi": "train_val_annotations.tgz"}


@EVERY
def test_unpacked_by_hand(name: str, shelf: tuple[Path, dict[str, Made]], folder: Callable[[str], Path]) -> None:
    home = folder(name)
    for file in home.glob("*gz"):
        with tarfile.open(file) as packed:
            packed.extractall(home, filter="data")
        file.unlink()
    check(source(name, home.parent, shelf[1][name]).load(silent), shelf[1][name].colours)


@EVERY
def test_nothing_there(name: str, shelf: tuple[Path, dict[str, Made]], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"get {MAIN[name]}.* from https://.* and put it into .*/{name}"):
        source(name, tmp_path, shelf[1][name]).load(silent)


@EVERY
@pytest.mark.parametrize("kept", [0.1, 0.9, 1.0])
def test_a_truncated_archive(
    name: str, kept: float, shelf: tuple[Path, dict[str, Made]], folder: Callable[[str], Path], tmp_path: Path
) -> None:
    file = folder(name) / MAIN[name]
    whole = file.read_bytes()
    file.write_bytes(whole[: min(int(len(whole) * kept), len(whole) - 5)])
    with pytest.raises(DataError, match=f"{MAIN[name]} is no whole tar archive"):
        source(name, tmp_path / "data", shelf[1][name]).load(silent)
    assert left_behind(tmp_path / "cache") == []
    assert not list((tmp_path / "cache").glob("*.npy"))
    file.write_bytes(whole)
    check(source(name, tmp_path / "data", shelf[1][name]).load(silent), shelf[1][name].colours)


@EVERY
def test_a_page_in_place_of_an_archive(
    name: str, shelf: tuple[Path, dict[str, Made]], folder: Callable[[str], Path], tmp_path: Path
) -> None:
    (folder(name) / MAIN[name]).write_text("<!DOCTYPE html><html>Quota exceeded</html>")
    with pytest.raises(DataError, match=f"{MAIN[name]} is no whole tar archive"):
        source(name, tmp_path / "data", shelf[1][name]).load(silent)


def repacked(file: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    with tarfile.open(file) as old:
        files = {info.name: (old.extractfile(info) or io.BytesIO()).read() for info in old if info.isreg()}
    change(files)
    tar(file, files, order=2)


@EVERY
def test_a_missing_and_a_broken_picture(
    name: str, shelf: tuple[Path, dict[str, Made]], folder: Callable[[str], Path], tmp_path: Path
) -> None:
    file, made = folder(name) / MAIN[name], shelf[1][name]
    gone: list[str] = []

    def lose(files: dict[str, bytes]) -> None:
        gone.extend(sorted(each for each in files if each.lower().endswith(".jpg"))[5:7])
        for each in gone:
            del files[each]

    repacked(file, lose)
    told = (
        "has 92 images of 47 classes, not 94 of 47"
        if name == "dtd"
        else f"lacks 2 of .* files, the first .*({'|'.join(gone)})"
    )
    with pytest.raises(DataError, match=told):
        source(name, tmp_path / "data", made).load(silent)
    repacked(file, lambda files: files.update({gone[0]: b"\xff\xd8 no picture", gone[1]: jpeg((0, 0, 0), (32, 24))}))
    with pytest.raises(DataError, match=f"{gone[0]} cannot be read as a picture"):
        source(name, tmp_path / "data", made).load(silent)
    assert left_behind(tmp_path / "cache") == []


@EVERY
def test_other_counts_than_published(
    name: str, shelf: tuple[Path, dict[str, Made]], folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folder(name)
    there, published = shelf[1][name].values["images"], source(name, None).images
    with pytest.raises(DataError, match=f"has {there} images of .* classes, not {published} of "):
        source(name, tmp_path / "data", shelf[1][name], images=published).load(silent)
    with pytest.raises(DataError, match=r"not .* of 7;"):
        source(name, tmp_path / "data", shelf[1][name], classes=7).load(silent)


PUBLISHED = {
    ("cub", "meta_dataset"): (140, 30, 30, 11788),
    ("cub", "closer_look"): (100, 50, 50, 11788),
    ("aircraft", ""): (70, 15, 15, 10000),
    ("vgg_flower", ""): (71, 15, 16, 8189),
    ("dtd", ""): (33, 7, 7, 5640),
    ("fungi", ""): (994, 200, 200, 89760),
}


@pytest.mark.parametrize(("name", "split"), PUBLISHED)
def test_published_classes(name: str, split: str) -> None:
    chosen: dict[str, Any] = {"split": split} if split else {}
    data = source(name, None, **chosen)
    train, val, test, images = PUBLISHED[name, split]
    assert data.counts() == {"train": train, "val": val, "test": test}
    assert (data.classes, data.images, data.facts.images) == (train + val + test, images, images)
    names = class_list({"closer_look": "cub_100", "meta_dataset": "cub_140", "": name}[split])
    flat = [each for part in names.values() for each in part]
    assert len(set(flat)) == len(flat) == data.classes
    assert all(part == sorted(part) for part in names.values())
    with pytest.raises(ConfigError, match=r"data.size=0: "):
        source(name, None, size=0)


def test_the_two_splits_of_cub() -> None:
    theirs, ours = class_list("cub_100"), class_list("cub_140")
    every = sorted(name for part in theirs.values() for name in part)
    assert every == sorted(name for part in ours.values() for name in part)
    assert theirs == {"train": every[::2], "val": every[1::4], "test": every[3::4]}  # Chen 2019, code
    assert [int(name[:3]) for name in every] == list(range(1, 201))
    copies = class_list("cub_imagenet_copies")
    assert [len(part) for part in copies.values()] == [35, 8, 0]
    birds = {split: {name[4:].lower() for name in names} for split, names in ours.items()}
    for split, files in copies.items():
        assert {file.rsplit("_", 2)[0].lower() for file in files} <= birds[split]


def test_both_splits_of_cub_share_one_file(
    shelf: tuple[Path, dict[str, Made]], folder: Callable[[str], Path], tmp_path: Path
) -> None:
    home, made = folder("cub"), shelf[1]["cub"]
    first = source("cub", home.parent, made, split="meta_dataset").load(silent)
    shutil.rmtree(home)
    second = source("cub", home.parent, made, split="closer_look").load(silent)
    assert first.splits != second.splits
    assert first.names == second.names
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 1


def test_cub_without_the_copies_in_imagenet(shelf: tuple[Path, dict[str, Made]], folder: Callable[[str], Path]) -> None:
    root, made = folder("cub").parent, shelf[1]["cub"]
    pool = source("cub", root, made).load(silent)
    fewer = source("cub", root, made, drop_imagenet_copies=True).load(silent)
    for split, expected in (("train", 35), ("val", 8), ("test", 0)):
        counts = [sum(len(each.items_of(number)) for number in each.splits[split]) for each in (pool, fewer)]
        assert counts[0] - counts[1] == expected
    gone = [name for number, name in enumerate(pool.names) if len(pool.items_of(number)) != len(fewer.items_of(number))]
    assert len(gone) < 20
    colours = [tuple(item[:, 4, 4]) for item in fewer.items]
    assert set(colours) < {tuple(item[:, 4, 4]) for item in pool.items}


@pytest.mark.parametrize(("name", "crop"), [("cub", "none"), ("aircraft", "none"), ("aircraft", "banner")])
def test_crops(name: str, crop: str, shelf: tuple[Path, dict[str, Made]], folder: Callable[[str], Path]) -> None:
    root, made = folder(name).parent, shelf[1][name]
    width, height = cub.SIZE if name == "cub" else aircraft.SIZE
    height -= 20 * (crop == "banner")
    items = source(name, root, made, crop=crop, size=32, resize="nearest").load(silent).items.astype(int)
    left, top, right, bottom = (32 * side // of for side, of in zip((8, 8, 24, 16), (width, height) * 2, strict=True))
    wall = items.copy()
    wall[:, :, top - 1 : bottom + 1, left - 1 : right + 1] = 128
    assert np.abs(wall - 128).max() <= NEAR
    boxed = source(name, root, made, crop="bounding_box", size=32, resize="nearest").load(silent).items.astype(int)
    assert np.abs(items[:, :, top + 1 : bottom - 1, left + 1 : right - 1] - boxed[:, :, :1, :1]).max() <= 2 * NEAR


@pytest.mark.parametrize("name", ["cub", "aircraft"])
def test_a_bounding_box_to_the_pixel(
    name: str, shelf: tuple[Path, dict[str, Made]], folder: Callable[[str], Path]
) -> None:
    home, made = folder(name), shelf[1][name]
    size, (left, top, right, bottom) = (cub.SIZE, cub.BOX) if name == "cub" else (aircraft.SIZE, aircraft.BOX)
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(noise).save(content, "png")  # known by what it is, not by its name

    def change(files: dict[str, bytes]) -> None:
        files[min(each for each in files if each.endswith(".jpg"))] = content.getvalue()

    repacked(home / MAIN[name], change)
    items = source(name, home.parent, made, resize="nearest", crop="bounding_box").load(silent).items
    boxed = Image.fromarray(noise[top:bottom, left:right]).resize((8, 8), Image.Resampling.NEAREST)
    expected = np.asarray(boxed).transpose(2, 0, 1)
    assert sum(np.array_equal(item, expected) for item in items) == 1


def pixels() -> NDArray[np.uint8]:
    return np.arange(4 * 6, dtype=np.uint8).reshape(4, 6)


@pytest.mark.parametrize(
    ("box", "wanted"),
    [((0, 0, 0, 0), pixels()), ((1, 1, 5, 3), pixels()[1:3, 1:5]), ((0, 0, 0, -1), pixels()[:3]),
     ((-2, 2, 99, 99), pixels()[2:])],
)  # fmt: skip
def test_a_window(box: tuple[int, int, int, int], wanted: NDArray[np.uint8]) -> None:
    content = io.BytesIO()
    Image.fromarray(pixels()).save(content, "png")
    decoder = tar_archive.CropDecoder(4, 1, "nearest", "squash", box)
    plain = np.asarray(Image.fromarray(np.ascontiguousarray(wanted)).resize((4, 4), Image.Resampling.NEAREST))
    assert np.array_equal(decoder.decode(content.getvalue(), "x")[0], plain)
    with pytest.raises(DataError, match=r"x cannot be read as a picture .*is no part of 6 x 4 pixels"):
        tar_archive.CropDecoder(4, 1, "nearest", "squash", (6, 0, 9, 4)).decode(content.getvalue(), "x")


def test_a_picture_that_lies_in_classes_of_two_splits(
    shelf: tuple[Path, dict[str, Made]], folder: Callable[[str], Path]
) -> None:
    home, made = folder("dtd"), shelf[1]["dtd"]
    copied = "dtd/images/braided/braided_0001.jpg", "dtd/images/banded/banded_0002.jpg"
    repacked(home / MAIN["dtd"], lambda files: files.update({copied[1]: files[copied[0]]}))
    with pytest.raises(DataError, match=r"1 items are the same in classes of two splits: banded \(test\) and braided"):
        source("dtd", home.parent, made).load(silent)
    said: list[str] = []
    source("dtd", home.parent, made, duplicates="warn").load(said.append)
    assert any("1 items are the same" in line for line in said)


@pytest.mark.parametrize("missing", ["images.txt", "bounding_boxes.txt"])
def test_cub_without_its_lists(
    missing: str, shelf: tuple[Path, dict[str, Made]], folder: Callable[[str], Path]
) -> None:
    home, made = folder("cub"), shelf[1]["cub"]
    text = f"CUB_200_2011/{missing}"
    repacked(home / MAIN["cub"], lambda files: files.update({text: files[text].replace(b"\n", b" 1 2 3\n", 1)}))
    with pytest.raises(DataError, match=r"images.txt and bounding_boxes.txt cannot be read together"):
        source("cub", home.parent, made).load(silent)
    repacked(home / MAIN["cub"], lambda files: files.update({text: b"1 2\n2 3\n999999 4"}))
    with pytest.raises(DataError, match=r"images.txt and bounding_boxes.txt cannot be read together"):
        source("cub", home.parent, made).load(silent)
    repacked(home / MAIN["cub"], lambda files: files.__delitem__(text))
    with pytest.raises(DataError, match=f"lacks 1 of 2 files, the first {text}"):
        source("cub", home.parent, made).load(silent)


def test_aircraft_without_a_box(shelf: tuple[Path, dict[str, Made]], folder: Callable[[str], Path]) -> None:
    home, made = folder("aircraft"), shelf[1]["aircraft"]
    text = f"{aircraft.DATA}/images_box.txt"
    repacked(home / MAIN["aircraft"], lambda files: files.update({text: files[text].split(b"\n", 1)[1]}))
    with pytest.raises(DataError, match=r"images_box.txt cannot be read together"):
        source("aircraft", home.parent, made).load(silent)


@pytest.mark.parametrize(
    ("part", "old", "new"),
    [("train.json", b'"category_id"', b'"category"'), ("val.json", b"{", b"["),
     ("train.json", b'"id": 3,', b'"id": 4,'),
     ("val.json", b'"id": 1394,', b'"id": 7,'), ("train.json", b"images/10003", b"images/10004"),
     ("val.json", b"images/11394", b"images/10004")],
)  # fmt: skip
def test_fungi_with_other_annotations(
    part: str, old: bytes, new: bytes, shelf: tuple[Path, dict[str, Made]], folder: Callable[[str], Path]
) -> None:
    home, made = folder("fungi"), shelf[1]["fungi"]

    def change(files: dict[str, bytes]) -> None:
        assert old in files[part]
        files[part] = files[part].replace(old, new)

    repacked(home / LABELS["fungi"], change)
    with pytest.raises(DataError, match=r"train_val_annotations.tgz: .*; put the published annotations there"):
        source("fungi", home.parent, made).load(silent)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", ["uint8", "uint16", "int32", "float64"])
def test_matlab_numbers(compressed: bool, kind: str, tmp_path: Path) -> None:
    file = tmp_path / "x.mat"
    for values in ([3], [1, 2, 3, 4], list(range(1, 103)) * 80):
        others = {"a": np.arange(3.0), "text": "words", "labels": np.array([values], dtype=kind)}
        savemat(file, others, do_compression=compressed)
        found = mat_vector(file, "labels")
        assert [int(each) for each in found] == values
    with pytest.raises(DataError, match="no variable other"):
        mat_vector(file, "other")
    whole = file.read_bytes()
    for damaged in (b"", whole[:60], whole[: len(whole) // 2], b"<html>" * 40, whole[:130]):
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=r"x.mat cannot be read as MATLAB's labels .*put the published one there"):
            mat_vector(file, "labels")


def row(_: str, content: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(content, np.uint8)[:3]


def read(path: Path, names: list[str]) -> list[list[int]]:
    blocks = tar_archive.decoded_in_order(path, names, (3,), row, silent)
    return [list(map(int, each)) for block in blocks for each in block]


def test_the_order_asked_for(tmp_path: Path) -> None:
    names = [f"a/{number:03d}" for number in range(600)]
    contents = {name: bytes([at % 256, at // 256, 7, 9]) for at, name in enumerate(names)}
    for order in (1, 2):
        tar(tmp_path / "x.tgz", contents, order)
        for wanted in (names, names[::-1], names[::7]):
            assert read(tmp_path / "x.tgz", wanted) == [list(contents[name][:3]) for name in wanted]
    assert read(tmp_path / "x.tgz", []) == []
    with tarfile.open(tmp_path / "plain.tar", "w") as plain:
        add(plain, "./a/000", content=b"abc")
    assert read(tmp_path / "plain.tar", ["a/000"]) == [[97, 98, 99]]
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_end_that_is_damaged_after_the_last_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_archive, "TAR_BYTES", tarfile.BLOCKSIZE)  # the end is not read along with a file
    tar(tmp_path / "x.tgz", {"a": b"abc"})
    content = (tmp_path / "x.tgz").read_bytes()
    (tmp_path / "x.tgz").write_bytes(content[:-8] + b"\0" * 8)
    with pytest.raises(DataError, match=r"no whole tar archive \(CRC check failed"):
        read(tmp_path / "x.tgz", ["a"])


def add(file: tarfile.TarFile, name: str, kind: bytes = tarfile.REGTYPE, content: bytes = b"") -> None:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, "a", len(content)
    file.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize(
    ("name", "kind", "told"),
    [("../a", tarfile.REGTYPE, r"the file name ../a points outside"),
     ("/etc/a", tarfile.REGTYPE, r"the file name /etc/a points outside"),
     ("b/../../a", tarfile.REGTYPE, "points outside"), ("b", tarfile.SYMTYPE, "b is a link or a device"),
     ("b", tarfile.LNKTYPE, "b is a link or a device"), ("b", tarfile.CHRTYPE, "b is a link or a device"),
     ("a", tarfile.REGTYPE, "holds a twice")],
)  # fmt: skip
def test_members_that_no_published_archive_has(name: str, kind: bytes, told: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tgz", "w:gz") as file:
        add(file, "a", content=b"abc")
        add(file, name, kind)
    with pytest.raises(DataError, match=told):
        read(tmp_path / "x.tgz", ["a", "b"])
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_folder_gives_nothing_from_outside(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "secret").write_bytes(b"abc")
    with pytest.raises(DataError, match="points outside"):
        read(tmp_path / "images", ["images/../secret"])


def test_progress_and_no_more_in_memory_than_is_in_flight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_archive, "PROGRESS_EVERY_S", 0.0)
    names = [f"{number:04d}" for number in range(500)]
    tar(tmp_path / "x.tgz", {name: name.encode() for name in names})
    inside, most, said = [0], [0], list[str]()
    whole = tar_archive.tar_members

    def counting(path: Path) -> Any:
        for member in whole(path):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            yield member

    def leaving(name: str, content: bytes) -> NDArray[np.uint8]:
        inside[0] -= 1
        return row(name, content)

    monkeypatch.setattr(tar_archive, "tar_members", counting)
    assert sum(map(len, tar_archive.decoded_in_order(tmp_path / "x.tgz", names, (3,), leaving, said.append))) == 500
    assert most[0] < 150
    assert said[0].startswith("x.tgz: 1 of 500 pictures read")


def test_no_room_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> Any:
        raise OSError(28, "No space left on device")

    tar(tmp_path / "x.tgz", {"a": b"abc"})
    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(DataError, match=r"has no room for 0 MB of temporary data .*No space.*; set METARUN_CACHE"):
        read(tmp_path / "x.tgz", ["a"])
