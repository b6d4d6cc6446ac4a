"""The user's own pictures: every layout of folders, format and mode; every picture where its class says; splits."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args
from unicodedata import normalize

import numpy as np
import pytest
from numpy.typing import NDArray
from omegaconf import OmegaConf
from PIL import Image, ImageOps

from metarun.config.convert import dataclass_from
from metarun.data.read.images import Fit
from metarun.data.sources.folder import Folder
from metarun.data.splits.split_file import split_text
from metarun.data.store.pool import DataError, Pool
from metarun.errors import ConfigError
from metarun.types import Split

ROOT = Path(__file__).parents[2]
SIDE = 6
PER_CLASS = 3
NINE = tuple("abcdefghi")


def silent(_: str) -> None:
    pass


def folder(path: Path | None, **changed: Any) -> Folder:
    values: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "conf/data/folder.yaml"))
    return dataclass_from(Folder, {**values, "path": path and str(path), "size": SIDE, **changed}, "data")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))


def drawing(name: str, number: int = 0) -> NDArray[np.uint8]:
    """[H, W, 3], another for every name and number."""
    seed = sum(ord(letter) * 31**place for place, letter in enumerate(f"{name}/{number}"))
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def draw(root: Path, *names: str, count: int = PER_CLASS) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(drawing(Path(name).name, number)).save(root / name / f"{number}.png")
    return root


@pytest.fixture
def nine(tmp_path: Path) -> Path:
    return draw(tmp_path / "pictures", *NINE)


def named(pool: Pool) -> dict[Split, list[str]]:
    return {part: [pool.names[number] for number in numbers] for part, numbers in pool.splits.items()}


def holds_its_drawings(pool: Pool, count: int = PER_CLASS) -> None:
    for number, name in enumerate(pool.names):
        expected = np.stack([drawing(name.rpartition("/")[2], place).transpose(2, 0, 1) for place in range(count)])
        assert np.array_equal(pool.items_of(number), expected), name


def test_every_picture_is_where_its_folder_says(nine: Path) -> None:
    pool = folder(nine).load(silent)
    assert pool.names == NINE
    assert set(pool.groups) == {""}
    assert pool.items.shape == (len(NINE) * PER_CLASS, 3, SIDE, SIDE)
    holds_its_drawings(pool)
    assert {part: len(names) for part, names in named(pool).items()} == {"train": 5, "val": 2, "test": 2}


def test_folders_of_splits(tmp_path: Path) -> None:
    for middle in ("val", "valid", "Validation"):
        root = draw(tmp_path / middle, "Train/z", "Train/b", f"{middle}/c", f"{middle}/d", "TEST/e", "TEST/a", "TEST/f")
        pool = folder(root).load(silent)
        assert pool.names == ("a", "b", "c", "d", "e", "f", "z")
        assert named(pool) == {"train": ["b", "z"], "val": ["c", "d"], "test": ["a", "e", "f"]}
        holds_its_drawings(pool)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    pool = folder(draw(tmp_path / "traffic", "train", "plane", "boat", "car", "tram", "bus")).load(silent)
    assert "train" in pool.names


def test_groups(tmp_path: Path) -> None:
    sorts = ("birds", "cars", "fish")
    names = [f"{group}/{name}" for group in sorts for name in ("one", "red", "two")]
    root = draw(tmp_path / "pictures", "alone")
    for name in names:
        (root / name).mkdir(parents=True)
        Image.fromarray(drawing(name)).save(root / name / "0.png")
    pool = folder(root).load(silent)
    assert pool.names == ("alone", *names)
    assert pool.groups == ("alone", *(name.partition("/")[0] for name in names))
    for number, name in enumerate(names, 1):
        assert np.array_equal(pool.items_of(number), drawing(name).transpose(2, 0, 1)[None])
    (root / "alone").rename(tmp_path / "elsewhere")
    for listed in named(folder(root, split_by="group").load(silent)).values():
        assert [name for name in names if name.partition("/")[0] == listed[0].partition("/")[0]] == listed
    for part, group in zip(("train", "val", "test"), sorts, strict=True):
        (tmp_path / "parts" / part).mkdir(parents=True)
        (root / group).rename(tmp_path / "parts" / part / group)
    pool = folder(tmp_path / "parts").load(silent)
    assert named(pool) == {"train": names[:3], "val": names[3:6], "test": names[6:]}
    assert pool.groups == tuple(name.partition("/")[0] for name in names)


def test_group_split_needs_groups(nine: Path) -> None:
    with pytest.raises(DataError, match=r"has no group folders around its class folders"):
        folder(nine, split_by="group").load(silent)


def test_what_is_no_picture_is_left_out_and_told(nine: Path) -> None:
    for name in ("a/notes.txt", "b/data.csv", "LICENSE", "c/clip.mp4"):
        (nine / name).write_text("words")
    for name in ("a/.hidden.png", "a/Thumbs.db", ".DS_Store"):
        (nine / name).write_text("litter")
    for name in (".git", "__MACOSX/a", "a/@eaDir"):
        (nine / name).mkdir(parents=True)
        (nine / name / "x.png").write_text("litter")
    (nine / "cover.png").write_bytes((nine / "a/0.png").read_bytes())
    said: list[str] = []
    holds_its_drawings(folder(nine).load(said.append))
    assert said == [
        "4 files are no pictures and were left out: LICENSE, a/notes.txt, b/data.csv, ...",
        "1 picture lies in no class folder and was left out: cover.png",
    ]


def test_names_of_all_alphabets_and_suffixes_of_any_case(tmp_path: Path) -> None:
    names = ("a b c", "na\u00efve", "\u732b", "it's 100% [odd] {0}", "\u00dcnal", "emoji \U0001f41f")
    root = draw(tmp_path / "my pictures; of 2026", *(normalize("NFD", name) for name in names))
    for name in root.iterdir():
        (name / "0.png").rename(name / "0.PNG")
    pool = folder(root).load(silent)
    assert pool.names == tuple(sorted(normalize("NFC", name) for name in names))
    assert len(pool.items) == len(names) * PER_CLASS
    path = tmp_path / "split.json"
    path.write_text(split_text(named(pool)))
    assert named(folder(root, split=str(path), split_seed=9).load(silent)) == named(pool)


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no text")
def test_names_that_are_no_text(nine: Path) -> None:
    (nine / "a").rename(os.fsdecode(os.fsencode(nine) + b"/caf\xe9"))
    pool = folder(nine).load(silent)
    assert "caf\ufffd" in pool.names
    split_text(named(pool)).encode()
    (nine / os.fsdecode(b"b/\xe9.png")).write_text("broken")
    with pytest.raises(DataError, match="b/\ufffd\\.png cannot be read") as caught:
        folder(nine).load(silent)
    str(caught.value).encode()


def test_links_are_followed_once(nine: Path, tmp_path: Path) -> None:
    draw(tmp_path / "elsewhere", "j")
    (nine / "j").symlink_to(tmp_path / "elsewhere/j")
    (nine / "a/3.png").symlink_to(tmp_path / "elsewhere/j/0.png")
    (nine / "loop").symlink_to(nine)
    (nine / "a/up").symlink_to(nine)
    (nine / "a/self").symlink_to(nine / "a/self")
    said: list[str] = []
    pool = folder(nine, duplicates="warn").load(said.append)
    assert pool.names == (*NINE, "j")
    assert len(pool.items_of(0)) == PER_CLASS + 1
    assert "1 file is no picture and was left out: a/self" in said


def test_a_link_to_nowhere_is_a_picture_that_cannot_be_read(nine: Path) -> None:
    (nine / "a/lost.jpg").symlink_to(nine / "gone.jpg")
    with pytest.raises(DataError, match=r"a/lost.jpg cannot be read \(No such file"):
        folder(nine).load(silent)
    assert len(folder(nine, unreadable="skip").load(silent).items_of(0)) == PER_CLASS


def encoded(picture: Image.Image, suffix: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, suffix, **options)
    return file.getvalue()


RGB = Image.fromarray(np.linspace(0, 255, 20 * 20 * 3).astype(np.uint8).reshape(20, 20, 3).transpose(1, 0, 2).copy())
GREY = RGB.convert("L")
DEEP = Image.fromarray(np.asarray(GREY).astype(np.uint16) * 257)
RED = Image.new("RGB", (20, 20), "red")
CLEAR = Image.merge("LA", (Image.new("L", GREY.size), GREY))  # black ink, as thick as GREY is light
TURNED = Image.Exif()
TURNED[0x0112] = 6  # to be shown turned by 90 degrees clockwise
FORMS: dict[str, tuple[bytes, Image.Image, int]] = {  # the file, what it shows, and by how much a pixel may differ
    "rgb.png": (encoded(RGB, "png"), RGB, 0),
    "rgb.jpg": (encoded(RGB, "jpeg", quality=100, subsampling=0), RGB, 6),
    "ycbcr.tif": (encoded(RGB.convert("YCbCr"), "tiff"), RGB, 4),
    "cmyk.tiff": (encoded(RGB.convert("CMYK"), "tiff"), RGB, 1),
    "cmyk.jpeg": (encoded(RGB.convert("CMYK"), "jpeg", quality=100, subsampling=0), RGB, 8),
    "rgb.bmp": (encoded(RGB, "bmp"), RGB, 0),
    "rgb.webp": (encoded(RGB, "webp", lossless=True), RGB, 0),
    "rgb.ppm": (encoded(RGB, "ppm"), RGB, 0),
    "rgb.tga": (encoded(RGB, "tga"), RGB, 0),
    "rgba.png": (encoded(RGB.convert("RGBA"), "png"), RGB, 0),
    "grey.png": (encoded(GREY, "png"), GREY, 0),
    "la.png": (encoded(GREY.convert("LA"), "png"), GREY, 0),
    "clear.png": (encoded(CLEAR, "png"), ImageOps.invert(GREY), 1),
    "pa.tif": (encoded(GREY.convert("LA").convert("PA"), "tiff"), GREY, 0),
    "palette.png": (encoded(GREY.convert("P"), "png"), GREY, 0),
    "see-through palette.png": (encoded(GREY.convert("P"), "png", transparency=255), GREY, 0),
    "see-through rgb.png": (encoded(RGB, "png", transparency=(255, 255, 255)), RGB, 0),
    "first.gif": (encoded(GREY.convert("P"), "gif", save_all=True, append_images=[RED.convert("P")]), GREY, 0),
    "first.png": (encoded(RGB, "png", save_all=True, append_images=[RED]), RGB, 0),
    "first.tif": (encoded(RGB, "tiff", save_all=True, append_images=[RED]), RGB, 0),
    "deep.png": (encoded(DEEP, "png"), GREY, 0),
    "deep.tif": (encoded(DEEP, "tiff"), GREY, 0),
    "deep.pgm": (encoded(DEEP, "ppm"), GREY, 0),
    "I.tif": (encoded(Image.fromarray(np.asarray(GREY).astype(np.int32) * 257), "tiff"), GREY, 0),
    "F.tif": (encoded(Image.fromarray(np.asarray(GREY).astype(np.float32)), "tiff"), GREY, 0),
    "bit.png": (encoded(GREY.convert("1"), "png"), GREY.convert("1").convert("L"), 0),
    "bit.tif": (encoded(GREY.convert("1"), "tiff"), GREY.convert("1").convert("L"), 0),
    "turned.png": (encoded(RGB, "png", exif=TURNED), RGB.transpose(Image.Transpose.ROTATE_270), 0),
    "turned.jpg": (encoded(RED, "jpeg", exif=TURNED, quality=100), RED, 6),
}


def test_every_format_and_mode(nine: Path) -> None:
    for name, (content, _, _) in FORMS.items():
        (nine / "a" / f"form {name}").write_bytes(content)
    for channels, mode in ((3, "RGB"), (1, "L")):
        grey = {"mean": 0.5, "std": 0.5} if channels == 1 else {}
        pool = folder(nine, size=20, channels=channels, **grey).load(silent)
        rows = pool.items_of(0)[PER_CLASS:]
        assert len(rows) == len(FORMS)
        for row, name in zip(rows, sorted(FORMS), strict=True):
            _, shows, tolerance = FORMS[name]
            expected = np.asarray(shows.convert(mode)).astype(int).reshape(20, 20, channels).transpose(2, 0, 1)
            assert np.abs(row - expected).max() <= tolerance, (name, mode)


def test_any_mix_of_sizes(nine: Path) -> None:
    sizes = [(1, 1), (1, 300), (200, 100), (300, 1), (7, 5)]
    for place, (width, height) in enumerate(sizes):
        picture = Image.new("RGB", (width, height), "blue")
        picture.paste("yellow", (width // 4, 0, width - width // 4, height))  # the middle half
        picture.save(nine / "a" / f"z{place}.png")
    for fit in get_args(Fit):
        rows = folder(nine, size=8, resize="box", fit=fit).load(silent).items_of(0)
        assert rows.shape == (PER_CLASS + 5, 3, 8, 8)
        wide = rows[PER_CLASS + sizes.index((200, 100))]
        corner, middle = tuple(wide[:, 4, 0]), tuple(wide[:, 4, 4])
        assert middle == (255, 255, 0)
        assert corner == {"squash": (0, 0, 255), "crop": (255, 255, 0), "pad": (0, 0, 255)}[fit]
        assert tuple(wide[:, 0, 0]) == ((0, 0, 0) if fit == "pad" else corner)


@pytest.mark.parametrize("content", [b"", b"words", FORMS["rgb.png"][0][:150], FORMS["rgb.jpg"][0][:300]])
def test_a_picture_that_cannot_be_read(nine: Path, content: bytes) -> None:
    (nine / "b/broken.jpg").write_bytes(content)
    with pytest.raises(
        DataError, match=r"b/broken.jpg cannot be read .*; data.unreadable=skip leaves it out"
    ) as caught:
        folder(nine).load(silent)
    assert "\n" not in str(caught.value)
    for again in (False, True):
        said: list[str] = []
        holds_its_drawings(folder(nine, unreadable="skip").load(said.append))
        first = ["class b: 1 pictures that cannot be read: b/broken.jpg"]
        assert said == [*([] if again else first), "1 of 28 pictures cannot be read and were left out"]
    for number in range(PER_CLASS):
        (nine / "b" / f"{number}.png").unlink()
    with pytest.raises(DataError, match="class b: none of its 1 pictures can be read"):
        folder(nine, unreadable="skip").load(silent)


def test_a_changed_folder_is_packed_anew(nine: Path) -> None:
    def packed() -> int:
        return len(list(Path(os.environ["METARUN_CACHE"]).glob("folder-*.npy")))

    before = folder(nine)
    identities = [before.identity()]
    assert len(before.load(silent).items) == 27
    before.load(silent)
    folder(nine, split_seed=3).load(silent)
    assert packed() == 1
    Image.fromarray(drawing("new")).save(nine / "a/3.png")
    assert np.array_equal(before.load(silent).items_of(0)[3], drawing("new").transpose(2, 0, 1))
    identities.append(before.identity())
    one = Image.new("RGB", (SIDE, SIDE), "red")
    one.save(nine / "a/0.bmp")
    identities.append(before.identity())
    before.load(silent)
    Image.new("RGB", (SIDE, SIDE), "blue").save(nine / "a/0.bmp")  # as many bytes
    os.utime(nine / "a/0.bmp", ns=(1, 1))
    assert tuple(before.load(silent).items_of(0)[0, :, 0, 0]) == (0, 0, 255)
    (nine / "i").rename(nine / "z")
    assert before.load(silent).names == (*NINE[:-1], "z")
    identities.append(before.identity())
    assert packed() == 5
    assert len(set(identities)) == 4


def test_a_moved_folder_is_the_same_data(nine: Path, tmp_path: Path) -> None:
    here = folder(nine).identity()
    nine.rename(tmp_path / "moved")
    assert folder(nine).identity() == ""
    assert folder(None).identity() == ""
    there = folder(tmp_path / "moved")
    assert there.identity() == here
    os.utime(tmp_path / "moved/a/0.png")
    assert there.identity() == here
    assert Folder.places == ("path",)


def test_looks_share_no_pack(nine: Path) -> None:
    nearest = folder(nine, size=3, resize="nearest").load(silent).items
    assert nearest.shape[2:] == (3, 3)
    assert not np.array_equal(nearest, folder(nine, size=3, resize="box").load(silent).items)


def test_split_by_seed(tmp_path: Path) -> None:
    root = draw(tmp_path / "pictures", *(f"{number:02d}" for number in range(20)), count=1)
    drawn = {seed: named(folder(root, split_seed=seed).load(silent)) for seed in range(12)}
    assert [len(drawn[1][part]) for part in ("train", "val", "test")] == [12, 4, 4]
    assert len({tuple(splits["test"]) for splits in drawn.values()}) > 8
    assert {name for splits in drawn.values() for name in splits["test"]} == set(
        drawn[1]["train"] + drawn[1]["val"] + drawn[1]["test"]
    )
    assert drawn[1] == named(folder(root, split_seed=1, size=3).load(silent))
    assert drawn[1]["test"] == ["07", "11", "17", "18"], "the split of a seed is the same for ever"
    few = named(folder(root, val_share=0.01, test_share=0.9).load(silent))
    assert [len(few[part]) for part in ("train", "val", "test")] == [2, 2, 16]
    (root / "05").rename(tmp_path / "05")
    moved = sum(
        name not in drawn[1][part] for part, names in named(folder(root).load(silent)).items() for name in names
    )
    assert moved <= 3


def test_too_few_classes(tmp_path: Path) -> None:
    root = draw(tmp_path / "pictures", *NINE[:5])
    with pytest.raises(
        DataError, match=r"has 5 classes \(a, b, c, ...\); train, val and test need 2 or more each: add"
    ):
        folder(root).load(silent)
    draw(root, "f")
    assert {len(names) for names in named(folder(root).load(silent)).values()} == {2}
    three = draw(tmp_path / "three", "train/a", "train/b", "val/c", "val/d", "test/e")
    with pytest.raises(DataError, match="has 2 train, 2 val, 1 test classes; test needs 2 or more"):
        folder(three).load(silent)


def test_split_file(nine: Path, tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    mine = {"train": list("abi"), "val": list("gh"), "test": list("cdef")}
    path.write_text(json.dumps(mine))
    pool = folder(nine, split=str(path)).load(silent)
    assert named(pool) == mine
    path.write_text(split_text(named(pool)))
    assert json.loads(path.read_text()) == mine
    first = folder(nine, split=str(path)).identity()
    for number, (told, said) in enumerate(
        {
            json.dumps({**mine, "val": ["g"]}): r"misses 1 classes of data.path=.* \(h\)",
            json.dumps(
                {**mine, "val": ["g", "h", "x", "y"]}
            ): r"names 2 classes that are not in .* \(x, y\); there are 9",
            json.dumps({**mine, "val": ["g", "h", "a"]}): "names a twice, in train and in val",
            json.dumps({"train": list("abcghi"), "val": list("def"), "test": []}): "has 6 train, 3 val, 0 test classes",
            json.dumps({"train": list("abc"), "test": list("def")}): 'need {"train": ',
            json.dumps({**mine, "extra": []}): 'need {"train": ',
            json.dumps({**mine, "val": "gh"}): 'need {"train": ',
            json.dumps([1]): 'need {"train": ',
            "{": "is no JSON",
            "[" * 100_000: "is no JSON",
        }.items()
    ):
        path.write_text(told)
        with pytest.raises(DataError, match=said) as caught:
            folder(nine, split=str(path)).load(silent)
        assert str(caught.value).startswith(f"data.split={path}"), number
        assert "\n" not in str(caught.value)
        assert folder(nine, split=str(path)).identity() != first
    with pytest.raises(DataError, match="cannot be read"):
        folder(nine, split=str(tmp_path / "none.json")).load(silent)


def test_a_picture_in_two_splits_is_refused(nine: Path) -> None:
    splits = named(folder(nine).load(silent))
    inside, outside = splits["train"][0], splits["test"][0]
    (nine / outside / "copy.png").write_bytes((nine / inside / "1.png").read_bytes())
    with pytest.raises(DataError, match=rf"1 items are the same in classes of two splits: .*{inside} \(train\)"):
        folder(nine).load(silent)
    said: list[str] = []
    folder(nine, duplicates="warn").load(said.append)
    assert len(said) == 1


def test_no_path_and_paths_to_nowhere(tmp_path: Path, nine: Path) -> None:
    with pytest.raises(DataError, match=r"data.path=null: say where your pictures are"):
        folder(None).load(silent)
    with pytest.raises(DataError, match=r"there is no .*/missing; say where your pictures are"):
        folder(tmp_path / "missing").load(silent)
    with pytest.raises(DataError, match="is a file; need a folder"):
        folder(nine / "a/0.png").load(silent)


def layouts(root: Path) -> dict[str, str]:
    """Folders that say nothing clear, and what is said of each."""
    for name in ("empty", "hidden only/.git", "no pictures/a", "no pictures/b"):
        (root / name).mkdir(parents=True)
    (root / "flat").mkdir()
    Image.new("RGB", (2, 2)).save(root / "flat/a.png")
    draw(root / "no test", "train/a", "val/b")
    draw(root / "train alone", "train/a")
    draw(root / "two vals", "train/a", "val/b", "valid/c", "test/d")
    draw(root / "more", "train/a", "val/b", "test/c", "extra/d")
    draw(root / "no classes", "train", "val", "test")
    draw(root / "half", "train/a", "val/b", "test")
    draw(root / "both", "train/cat", "val/dog", "test/cat")
    draw(root / "cases", "Cat", "cat", "dog")
    draw(root / "groups", "Birds/a", "birds/b")
    draw(root / "forms", normalize("NFC", "\u00e9"), normalize("NFD", "\u00e9"))
    draw(root / "mixed", "birds", "birds/robin")
    draw(root / "deep", "a/b/c")
    draw(root / "deeper", "train/a/b/c", "val/d", "test/e")
    draw(root / "words", "b")
    (root / "words/a").mkdir()
    (root / "words/a/IMG_1.heic").write_text("")
    return {
        "empty": "has no folders; put each class's pictures into a folder",
        "hidden only": "has no folders",
        "no pictures": "class a has no pictures: .*/a; add pictures",
        "flat": "has pictures and no class folders",
        "no test": "has train, val and no test; add it, or",
        "train alone": "has train and no val and no test",
        "two vals": "has val and valid; keep one",
        "more": "has test, train, val and beside them extra",
        "no classes": "test has no class folders",
        "half": "test has no class folders",
        "both": "class cat is in train/cat and in test/cat",
        "cases": "Cat and cat are one class to some machines",
        "groups": "Birds/a and birds/b are one group to some machines",
        "forms": "class \u00e9 is in .* and in ",
        "mixed": r"birds has pictures and a folder of pictures \(robin\)",
        "deep": "a/b/c has pictures one folder too deep",
        "deeper": "train/a/b/c has pictures one folder too deep",
        "words": r"class a has no pictures: .*/a, and its files are no pictures \(IMG_1.heic\)",
    }


def test_folders_that_say_nothing_clear(tmp_path: Path) -> None:
    for name, said in layouts(tmp_path / "pictures").items():
        with pytest.raises(DataError, match=said) as caught:
            folder(tmp_path / "pictures" / name).load(silent)
        assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read(nine: Path) -> None:
    (nine / "a").chmod(0)
    with pytest.raises(DataError, match="a cannot be read"):
        folder(nine).load(silent)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"size": 0}, "size=0: use 1 pixel"),
        ({"channels": 2}, r"data.channels=2: no such choice"),
        ({"channels": 1}, r"mean=\[0.485, 0.456, 0.406\]: pictures of channels=1 have one"),
        ({"channels": 1, "mean": 0.5}, r"std=.*: pictures of channels=1 have one"),
        ({"std": 0.0}, "std=0.0: use numbers above 0"),
        ({"val_share": 0.0}, "val_share=0.0: is a share"),
        ({"test_share": 1.0}, "test_share=1.0: is a share"),
        ({"val_share": 0.5, "test_share": 0.5}, "leaves nothing for training"),
        ({"unreadable": "no"}, "no such choice"),
    ],
)
def test_values_that_make_no_sense(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        folder(None, **changed)


def test_the_example(tmp_path: Path) -> None:
    command: list[Any] = [sys.executable, ROOT / "scripts/examples/pictures.py"]
    for name, options in (("one", []), ("two", []), ("other", ["--seed", "2"])):
        subprocess.run([*command, tmp_path / name, "--per-class", "7", *options], check=True, capture_output=True)
    pools = {name: folder(tmp_path / name, size=16).load(silent) for name in ("one", "two", "other")}
    assert len(pools["one"].names) == 24
    assert set(pools["one"].groups) == {"cold", "leafy", "warm"}
    assert min(len(numbers) for numbers in pools["one"].splits.values()) >= 5  # 5-way tasks
    assert len({path.suffix for path in (tmp_path / "one").rglob("*.*")}) == 6
    assert np.array_equal(pools["one"].items, pools["two"].items)
    assert not np.array_equal(pools["one"].items, pools["other"].items)
