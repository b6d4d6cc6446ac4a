"""Omniglot from its two archives: made-up ones in that layout, a server that fails, the real ones where they lie."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import os
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from omegaconf import OmegaConf
from PIL import Image

from metarun.data.fetch import fetch
from metarun.data.pool import DataError
from metarun.data.sources.omniglot import Omniglot

CONF = Path(__file__).parents[1] / "conf/data/omniglot.yaml"
REAL = os.environ.get("METARUN_DATA", "")
ARCHIVES = ("images_background.zip", "images_evaluation.zip")
SIDE = 105


def silent(_: str) -> None:
    pass


def omniglot(**changed: Any) -> Omniglot:
    values: Any = OmegaConf.to_container(OmegaConf.load(CONF))
    del values["_target_"]
    return Omniglot(**{**values, **changed})


def made_up(root: Path | None, **changed: Any) -> Omniglot:
    counts = {"background_classes": 6, "evaluation_classes": 3, "images_per_class": 4, "val_classes": 2}
    return omniglot(**{"root": root and str(root), "mirrors": [], "finn_test_classes": 3, **counts, **changed})


def drawing(character: int, drawer: int) -> NDArray[np.uint8]:
    """Black on white, as published: a bar whose place is the character and whose thickness is the drawer."""
    paper = np.full((SIDE, SIDE), 255, dtype=np.uint8)
    paper[10 * character + 5 : 10 * character + 7 + drawer, 20:80] = 0
    return paper


def archive(path: Path, alphabets: dict[str, int], first: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{path.stem}/", "")
        number = first
        for alphabet, characters in alphabets.items():
            for character in range(1, characters + 1):
                for drawer in (3, 1, 4, 2):  # in no order
                    png = io.BytesIO()
                    Image.fromarray(drawing(number, drawer)).convert("1").save(png, "png")
                    name = f"{path.stem}/{alphabet}/character{character:02d}/{number + 1:04d}_{drawer:02d}.png"
                    file.writestr(name, png.getvalue())
                number += 1


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("METARUN_DATA", raising=False)
    archive(tmp_path / "data/omniglot" / ARCHIVES[0], {"Alphabet_of_A": 2, "Zulu_(B)": 4}, first=0)
    archive(tmp_path / "data/omniglot" / ARCHIVES[1], {"Mid": 3}, first=6)
    return tmp_path / "data"


def test_every_drawing_is_where_its_name_says(root: Path) -> None:
    pool = made_up(root, size=SIDE).load(silent)
    assert pool.images.shape == (9, 4, 1, SIDE, SIDE)
    assert pool.names[:3] == ("Alphabet_of_A/character01", "Alphabet_of_A/character02", "Zulu_(B)/character01")
    assert pool.names[6:] == ("Mid/character01", "Mid/character02", "Mid/character03")
    for character in range(9):
        for drawer in range(4):
            assert np.array_equal(pool.images[character, drawer, 0], 255 - drawing(character, drawer + 1))


def test_polarity_and_size(root: Path) -> None:
    ink = made_up(root).load(silent).images
    paper = made_up(root, invert=False).load(silent).images
    assert ink.shape == (9, 4, 1, 28, 28)
    assert ink[:, :, :, 0, 0].max() == 0
    assert paper[:, :, :, 0, 0].min() == 255
    assert np.abs(ink.astype(int) + paper - 255).max() <= 1  # resizing rounds each way
    nearest = made_up(root, resize="nearest").load(silent).images
    assert set(np.unique(nearest)) == {0, 255}
    assert len(np.unique(ink)) > 10  # a real filter, and not what Pillow does to 1-bit images


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


def test_published_counts() -> None:
    assert omniglot().counts() == {"train": 1100, "val": 100, "test": 423}
    assert omniglot(split="lake").counts() == {"train": 864, "val": 100, "test": 659}
    with pytest.raises(ValueError, match="val_classes=2000: leaves -800 train"):
        omniglot(val_classes=2000)


def test_packed_once_and_then_without_the_archives(root: Path) -> None:
    first = made_up(root).load(silent)
    for name in ARCHIVES:
        (root / "omniglot" / name).unlink()
    second = made_up(root).load(silent)
    assert isinstance(second.images, np.memmap)
    assert np.array_equal(first.images, second.images)
    assert first.names == second.names


def test_root_from_the_environment(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METARUN_DATA", str(root))
    assert len(made_up(None).load(silent).images) == 9


def test_an_archive_that_is_not_what_it_should_be(root: Path) -> None:
    path = root / "omniglot" / ARCHIVES[1]
    with pytest.raises(DataError, match=r"images_evaluation.zip has 3 characters, not 4"):
        made_up(root, evaluation_classes=4).load(silent)
    with pytest.raises(DataError, match=r"Alphabet_of_A/character01 has 4 images, not 20"):
        made_up(root, images_per_class=20).load(silent)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"images_evaluation.zip is no readable zip archive"):
        made_up(root).load(silent)
    damaged = bytearray(whole)
    damaged[whole.index(b"IDAT") + 8] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=r"cannot be read .*CRC"):
        made_up(root).load(silent)
    path.write_bytes(whole)
    assert len(made_up(root).load(silent).images) == 9


def test_packing_says_how_far_it_is(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metarun.data.sources.omniglot.SPEAK_EVERY_S", 0.0)
    said: list[str] = []
    made_up(root).load(said.append)
    assert said[-1].startswith("omniglot: 36 of 36 images packed")


class Server(http.server.SimpleHTTPRequestHandler):
    """Files as they are; below /truncated/ half of what the header promises."""

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        if not self.path.startswith("/truncated/"):
            return super().do_GET()
        content = (Path(self.directory) / Path(self.path).name).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])
        return None


@pytest.fixture
def address(root: Path) -> Iterator[str]:
    handler = functools.partial(Server, directory=str(root / "omniglot"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = False  # so that closing the server waits for its last answer
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def test_download(root: Path, address: str, tmp_path: Path) -> None:
    sums = {
        "background_md5": md5(root / "omniglot" / ARCHIVES[0]),
        "evaluation_md5": md5(root / "omniglot" / ARCHIVES[1]),
    }
    target = tmp_path / "elsewhere"
    mirrors = ["http://127.0.0.1:9/refused", f"{address}/truncated/", address]
    said: list[str] = []
    pool = made_up(target, mirrors=mirrors, **sums).load(said.append)
    assert np.array_equal(pool.images, made_up(root).load(silent).images)
    assert sorted(path.name for path in (target / "omniglot").iterdir()) == list(ARCHIVES)
    assert any(line.startswith(f"downloading {address}/images_background.zip") for line in said)


@pytest.mark.parametrize(
    ("mirror", "checksum", "reason"),
    [
        ("/truncated", None, r"ended after \d+ of \d+ bytes"),
        ("", "0" * 32, "has md5 .* not 0000"),
        ("/nowhere", None, "404"),
    ],
)
def test_a_failed_download_says_what_to_put_where_and_leaves_nothing(
    root: Path, address: str, tmp_path: Path, mirror: str, checksum: str | None, reason: str
) -> None:
    source = root / "omniglot" / ARCHIVES[0]
    path = tmp_path / "new" / source.name
    with pytest.raises(DataError, match=reason) as caught:
        fetch(path, [address + mirror], checksum or md5(source), silent)
    assert str(caught.value).endswith(f"put it at {path}")
    assert "\n" not in str(caught.value)
    assert not list(path.parent.iterdir())


def test_no_network_and_no_place(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Connection refused"):
        fetch(tmp_path / "a.zip", ["http://127.0.0.1:9"], "", silent)
    (tmp_path / "file").write_text("so that no folder can be made below it")
    with pytest.raises(DataError, match="put it at"):
        fetch(tmp_path / "file/folder/a.zip", ["http://127.0.0.1:9"], "", silent)
    with pytest.raises(DataError, match="no mirror given"):
        fetch(tmp_path / "a.zip", [], "", silent)


@pytest.mark.skipif(
    not all((Path(REAL) / "omniglot" / name).is_file() for name in ARCHIVES) or not REAL,
    reason="METARUN_DATA holds no omniglot/images_background.zip and images_evaluation.zip",
)
def test_the_real_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path))
    pool = omniglot(root=REAL).load(silent)
    assert pool.images.shape == (1623, 20, 1, 28, 28)
    assert len({name.split("/")[0] for name in pool.names}) == 50
    assert {split: len(classes) for split, classes in pool.splits.items()} == {"train": 1100, "val": 100, "test": 423}
    evaluation = omniglot(root=REAL, split="lake").load(silent).splits["test"]
    alphabets = [{pool.names[c].split("/")[0] for c in side} for side in (range(964), evaluation)]
    assert [len(side) for side in alphabets] == [30, 20]
    assert not alphabets[0] & alphabets[1]
    assert pool.images.mean() / 255 == pytest.approx(0.084, abs=0.002)  # thin ink on empty paper
    drawings = {image.tobytes() for image in pool.images.reshape(-1, 28 * 28)}
    assert len(drawings) == 32460 - 1  # one pair is the same as published: Braille, character01, drawers 03 and 19
