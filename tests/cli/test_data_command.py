"""metarun data: the list, fetching by name, and checks that find what is wrong with a data set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from metarun.cli.main import main
from metarun.config.places import groups
from metarun.data.fetch.editions import Facts
from metarun.data.read.zip_archive import content_digest
from metarun.data.sources.omniglot import OMNIGLOT_PAGE, Omniglot
from support.makers.omniglot import ARCHIVES, archive, md5
from support.server import Address, serving


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words that make data=omniglot a made-up set of 9 classes, in tmp_path/data."""
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("METARUN_DATA", raising=False)
    monkeypatch.setattr(Omniglot, "facts", Facts("MIT", 36, 1, OMNIGLOT_PAGE))
    folder = tmp_path / "data/omniglot"
    archive(folder / ARCHIVES[0], {"Alphabet_of_A": 2, "Zulu_(B)": 4}, first=0)
    archive(folder / ARCHIVES[1], {"Mid": 3}, first=6)
    values = {"root": tmp_path / "data", "images_per_class": 4, "val_classes": 2, "finn_test_classes": 3}
    for name, path, count in zip(("background", "evaluation"), ARCHIVES, (6, 3), strict=True):
        values |= {f"{name}_md5": md5(folder / path), f"{name}_content": content_digest(folder / path)}
        values |= {f"{name}_classes": count}
    return [f"data.{key}={value}" for key, value in values.items()]


@pytest.fixture
def address(tmp_path: Path) -> Iterator[Address]:
    with serving(tmp_path / "data/omniglot") as address:
        yield address


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def row(capsys: pytest.CaptureFixture[str], name: str) -> list[str]:
    assert main(["data", "list"]) == 0
    return next(line.split() for line in lines(capsys) if line.split()[:1] == [name])


def test_the_list_has_every_data_set(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("METARUN_DATA", raising=False)
    assert main(["data", "list"]) == 0
    shown = lines(capsys)
    named = {line.split()[0]: line.split()[1:] for line in shown if line.split()}
    assert set(groups()["data"]) <= set(named)
    assert named["omniglot"][:5] == ["1100/100/423", "32,460", "14", "MB", "MIT"]
    assert named["glyphs"] == ["792/132/176", "computed"]
    assert named["sine"] == ["computed"]
    assert "cannot be used" not in "".join(shown)
    if "folder" in named:
        assert named["folder"] == ["yours"]


def test_the_list_says_what_is_here(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert row(capsys, "omniglot")[-1] == "no"
    monkeypatch.setenv("METARUN_DATA", str(tmp_path / "data"))
    assert row(capsys, "omniglot")[-1] == "yes"
    assert main(["data", "check", "omniglot", *small]) == 0
    assert row(capsys, "omniglot")[-1] == "packed"


def test_one_that_cannot_be_used_does_not_break_the_list(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Omniglot, "__post_init__", lambda _: 1 / 0)
    assert " ".join(row(capsys, "omniglot")) == "omniglot cannot be used: division by zero"
    assert row(capsys, "glyphs")[-1] == "computed"


def test_fetch(small: list[str], address: Address, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*small, f"data.mirrors=[{address}/drop]", f"data.root={tmp_path}/new"]
    for said in ("fetched", "already there"):
        assert main(["data", "fetch", "omniglot", *words]) == 0
        last = lines(capsys)[-1]
        assert last == f"omniglot: {said}: {', '.join(ARCHIVES)} in {tmp_path}/new/omniglot"
    for name in ARCHIVES:
        assert md5(tmp_path / "new/omniglot" / name) == md5(tmp_path / "data/omniglot" / name)


def test_fetch_that_fails(
    small: list[str], address: Address, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*small, f"data.mirrors=[{address}/html]", f"data.root={tmp_path}/new"]
    assert main(["data", "fetch", "omniglot", *words]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("metarun: data=omniglot: images_background.zip is missing and cannot be downloaded")
    assert captured.err.endswith(f"put it into {tmp_path}/new/omniglot\n")
    assert captured.err.count("\n") == 1


def test_nothing_to_fetch_or_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "fetch", "glyphs"]) == 0
    assert lines(capsys) == ["glyphs: nothing to fetch, its items are computed as they are used"]
    assert main(["data", "check", "sine"]) == 0
    assert lines(capsys) == ["sine: nothing to check, its items are computed as they are used"]


def test_check_of_what_is_well(small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert main(["data", "check", "omniglot", *small]) == 0
        packed = next((tmp_path / "cache").glob("omniglot-*.npy"))
        assert [line for line in lines(capsys) if " of 36 items packed" not in line] == [
            "ok      images_background.zip has the published bytes",
            "ok      images_evaluation.zip has the published bytes",
            "ok      36 items of 9 classes, as published",
            "ok      classes of each split: train 4, val 2, test 3",
            "ok      every class has items",
            "ok      no class is in two splits",
            "ok      no item is in two splits",
            f"ok      packed file {packed} (0 MB) is as it was written",
            "omniglot: all is well",
        ]


def test_check_of_a_split_by_its_words(small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", "omniglot", *small, "data.split=vinyals"]) == 1
    assert any("FAILED  data.split=vinyals names 1623 classes" in line for line in lines(capsys))


def failures(words: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert main(["data", "check", "omniglot", *words]) == 1
    shown = lines(capsys)
    assert shown[-1].endswith("checks failed")
    return [line.removeprefix("FAILED  ") for line in shown if line.startswith("FAILED")]


def test_check_finds_damage(small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "data/omniglot" / ARCHIVES[1]
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[whole.index(b"IDAT") + 8] ^= 0xFF
    path.write_bytes(damaged)
    (found,) = failures(small, capsys)
    assert "cannot be read (Bad CRC" in found
    path.write_bytes(whole[:-100])
    (found,) = failures(small, capsys)
    assert "is no whole zip archive" in found
    path.write_bytes(whole)
    (found,) = failures([*small, "data.evaluation_classes=4"], capsys)
    assert "has 3 characters, not 4" in found


def test_check_finds_other_counts(
    small: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Omniglot, "facts", Facts("MIT", 37, 1, OMNIGLOT_PAGE))
    assert failures(small, capsys) == ["36 items of 9 classes, and not 37"]
    monkeypatch.setattr(Omniglot, "facts", Facts("MIT", 36, 1, OMNIGLOT_PAGE))
    splits = {"train": 4, "val": 2, "test": 4}
    load = Omniglot.load
    monkeypatch.setattr(Omniglot, "load", lambda source, say: (load(source, say), splits.update(test=2))[0])
    monkeypatch.setattr(Omniglot, "counts", lambda _: {**splits, "test": splits["test"] - 1})
    assert failures(small, capsys) == [
        "classes of each split: train 4, val 2, test 3, and not train 4, val 2, test 1",
    ]


def test_check_finds_a_damaged_packed_file(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["data", "check", "omniglot", *small]) == 0
    lines(capsys)
    packed = next((tmp_path / "cache").glob("omniglot-*.npy"))
    damaged = bytearray(packed.read_bytes())
    damaged[-500] ^= 0x10
    packed.write_bytes(damaged)
    monkeypatch.setattr("metarun.data.store.pack.VERIFIED_BYTES", 0)  # as of a large file, which opening does not read
    assert failures(small, capsys) == [
        f"packed file {packed} (0 MB) is damaged; delete it, and the next run packs again"
    ]


def test_check_finds_what_lies_in_two_splits(
    small: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Omniglot.load

    def leaky(source: Omniglot, say: object) -> object:
        pool = load(source, say)  # type: ignore[arg-type]
        items = np.array(pool.items)
        items[pool.bounds[pool.splits["test"][0]]] = items[pool.bounds[pool.splits["train"][0]]]
        splits = {**pool.splits, "val": (*pool.splits["val"], pool.splits["train"][1])}
        return pool._replace(items=items, splits=splits)

    monkeypatch.setattr(Omniglot, "load", leaky)
    first, second, third = failures(small, capsys)
    assert first == "classes of each split: train 4, val 3, test 3, and not train 4, val 2, test 3"
    assert second == "a class is in two splits"
    assert third == "1 items lie in two splits: Alphabet_of_A/character01 and Alphabet_of_A/character02"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "data (nothing): no such action; use list, fetch NAME or check NAME"),
        (["chekc"], "data chekc: no such action, did you mean check?; use list, fetch NAME or check NAME"),
        (["list", "omniglot"], "data list omniglot: takes no more words"),
        (["fetch"], "data fetch: name a data set ("),
        (["check", "data.size=3"], "data check: name a data set ("),
        (["fetch", "omnglot"], "data fetch omnglot: no such data set, did you mean omniglot? ("),
        (["fetch", "omniglot", "data.sise=3"], "data.sise: unknown key"),
        (["check", "omniglot", "data.val_classes=5000"], "data.val_classes=5000: leaves"),
        (["check", "omniglot", "data.split=lkae"], "data.split=lkae: no such choice"),
    ],
)
def test_mistakes(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"metarun: {message}")
    assert error.count("\n") == 1
