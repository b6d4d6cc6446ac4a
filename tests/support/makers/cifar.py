"""CIFAR-100 in small: its own archive as Python 2 wrote it, the zip of PNG files, and FC100's three pickles."""

from __future__ import annotations

import hashlib
import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from metarun.data.splits.class_list import class_list

SIDE = 32
SPLITS = ("train", "val", "test")
NAMES = sorted(name for names in class_list("cifar_fs").values() for name in names)  # superclass/class
FINE = sorted(name.partition("/")[2] for name in NAMES)  # the order of CIFAR-100's fine labels
COARSE = sorted({name.partition("/")[0] for name in NAMES})
PICKLES = [f"FC100_{split}.pickle" for split in SPLITS]


def picture(name: str, copy: int) -> NDArray[np.uint8]:
    """Noise of its own for every image: [32, 32, 3]."""
    seed = [NAMES.index(name), copy]
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


class _Python2(pickle._Pickler):
    """Writes texts and bytes as Python 2 did, whose pickles the published ones are."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)

    def _save(self, text: str | bytes) -> None:
        content = text.encode("latin1") if isinstance(text, str) else text
        short = len(content) < 256
        head = pickle.SHORT_BINSTRING + bytes([len(content)]) if short else b"T" + struct.pack("<i", len(content))
        self.write(head + content)  # type: ignore[attr-defined]  # what the pickler writes with
        self.memoize(text)  # type: ignore[attr-defined]

    dispatch[str] = dispatch[bytes] = _save


def python2(value: object) -> bytes:
    file = io.BytesIO()
    _Python2(file, protocol=2).dump(value)
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")  # numpy's name then


def parts(per_class: int) -> dict[str, bytes]:
    """train, test, meta: the last image of each class is in test; images in no order."""
    rows = [(name, copy) for name in NAMES for copy in range(per_class)]
    order = np.random.default_rng(0).permutation(len(rows)).tolist()
    made = {"meta": python2({b"fine_label_names": _bytes(FINE), b"coarse_label_names": _bytes(COARSE)})}
    for part in ("train", "test"):
        chosen = [rows[n] for n in order if (rows[n][1] == per_class - 1) == (part == "test")]
        names = [name.partition("/") for name, _ in chosen]
        images = np.stack([picture(*row).transpose(2, 0, 1).reshape(-1) for row in chosen])
        made[part] = python2(
            {
                b"filenames": [
                    f"{name[2]}_s_{copy:06d}.png".encode() for name, (_, copy) in zip(names, chosen, strict=True)
                ],
                b"batch_label": f"{part}ing batch 1 of 1".encode(),
                b"fine_labels": [FINE.index(fine) for _, _, fine in names],
                b"coarse_labels": [COARSE.index(coarse) for coarse, _, _ in names],
                b"data": images,
            }
        )
    return made


def _bytes(names: Sequence[str]) -> list[bytes]:
    return [name.encode() for name in names]


def sums(made: dict[str, bytes]) -> dict[str, str]:
    return {f"{name}_md5": hashlib.md5(content, usedforsecurity=False).hexdigest() for name, content in made.items()}


def archive(path: Path, made: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for name, content in (("file.txt~", b""), *made.items()):
            info = tarfile.TarInfo(f"cifar-100-python/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def png_zip(path: Path, per_class: int, lists: dict[Any, list[str]]) -> None:
    """cifar100/data/CLASS/*.png, and `lists` as cifar100/splits/bertinetto/*.txt."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("cifar100/data/", "")
        for split, names in lists.items():
            file.writestr(f"cifar100/splits/bertinetto/{split}.txt", "".join(f"{name}\n" for name in names))
        for name in reversed(NAMES):
            for copy in range(per_class):
                png = io.BytesIO()
                Image.fromarray(picture(name, copy)).save(png, "png", compress_level=1)
                file.writestr(
                    f"cifar100/data/{name.partition('/')[2]}/im_{7 * copy % 10}{copy:04d}.png", png.getvalue()
                )


def fc100(per_class: int, own_labels: bool) -> dict[str, bytes]:
    """The three pickles: with CIFAR-100's labels, or with those of each split from 0."""
    made = {}
    for split, names in class_list("fc100").items():
        fine = sorted(names, key=lambda name: name.partition("/")[2])
        rows = [(name, copy) for copy in range(per_class) for name in fine]
        labels = [fine.index(name) if own_labels else FINE.index(name.partition("/")[2]) for name, _ in rows]
        data = np.stack([picture(*row) for row in rows])
        made[f"FC100_{split}.pickle"] = python2({b"data": data, b"labels": labels})
    return made


def zipped(path: Path, made: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        for name, content in made.items():
            file.writestr(name, content)
