"""Data sets that take turns: task i is a task of member i modulo their number, in one common shape."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from metarun.cli.main import main
from metarun.config.compose import compose
from metarun.config.schema import check_config
from metarun.data.sources.mixture import Mixture
from metarun.data.store.pool import DataError, Pool
from metarun.data.tasks.contracts import check_fit
from metarun.data.tasks.mixture import MixtureData
from metarun.data.tasks.opening import open_mixture
from metarun.errors import ConfigError
from support.grouped import Grouped
from support.labelled import CLASSES, SIZE, Coloured, Source
from support.runs import TINY, only_run
from support.shapes import shape

CPU = torch.device("cpu")


def mixed(train: tuple[str, ...] = ("a", "b"), test: tuple[str, ...] = ("a", "b"), channels: int = 1) -> MixtureData:
    sources = {"a": Source("none"), "b": Coloured("none")}
    return open_mixture(Mixture(sources, train, train, test, SIZE, channels), CPU, torch.float64, lambda _: None, None)


def test_each_task_is_a_task_of_its_member() -> None:
    data = mixed()
    episode = data.tasks("train", shape(4, 2, 1), 3)(torch.arange(10))
    assert episode.support.x.shape == (10, 8, 1, SIZE, SIZE)
    assert episode.index.tolist() == list(range(10))
    for place, name in enumerate(("a", "b")):
        own = data.members[name].tasks("train", shape(4, 2, 1), 3)(torch.arange(5))
        assert torch.equal(data.to_common_shape(own.support.x), episode.support.x[place::2])
        assert torch.equal(data.to_common_shape(own.query.x), episode.query.x[place::2])
        assert torch.equal(own.query.y, episode.query.y[place::2])


def test_a_task_is_the_same_in_every_company_and_of_every_shape() -> None:
    data = mixed()
    tasks = data.tasks("train", shape((2, 3), (1, 2), 1), 0)
    parts = tasks.by_shape(torch.arange(40))
    assert {(part.ways, part.shots) for part in parts} == {(2, 1), (2, 2), (3, 1), (3, 2)}
    assert sorted(place for part in parts for place in part.places.tolist()) == list(range(40))
    for part in parts:
        assert part.places.tolist() == part.episode.index.tolist() == sorted(part.places.tolist())
        assert torch.equal(tasks(part.places[-1:]).support.x[0], part.episode.support.x[-1])


def test_pictures_of_both_come_to_one_size_and_number_of_channels() -> None:
    large = mixed().members["b"].tasks("train", shape(2, 1, 1), 0)(torch.arange(3)).support.x
    assert large.shape[2:] == (3, 2 * SIZE, 2 * SIZE)
    grey, colour = mixed(channels=1).to_common_shape(large), mixed(channels=3).to_common_shape(large)
    assert grey.shape[2:] == (1, SIZE, SIZE)
    assert colour.shape[2:] == (3, SIZE, SIZE)
    middle = (slice(None), slice(None), slice(None), slice(2, -2), slice(2, -2))  # of even value
    assert torch.allclose(grey[middle], large[:, :, :1, ::2, ::2][middle], atol=1e-12)
    assert torch.allclose(colour[middle], large[:, :, :, ::2, ::2][middle], atol=1e-12)


def test_trained_on_one_and_tested_on_another() -> None:
    data = mixed(("a",), ("b",))
    own = data.members["b"].tasks("test", shape(3, 1, 1), 0)(torch.arange(4))
    assert torch.equal(
        data.tasks("test", shape(3, 1, 1), 0)(torch.arange(4)).support.x, data.to_common_shape(own.support.x)
    )
    assert data.member_names("train") == ("a",)
    assert data.member_names("test") == ("b",)
    assert data.class_names["test"][0].startswith("b/")


def test_batches_number_all_training_classes_of_all() -> None:
    data = mixed()
    assert data.num_training_classes == CLASSES
    episode = data.batches(shape(5, 2, 2), 0)(torch.arange(40))
    labels = torch.cat([episode.support.y, episode.query.y], dim=1)
    assert set(labels[0::2].flatten().tolist()) == set(range(15))
    assert set(labels[1::2].flatten().tolist()) == set(range(15, 30))


def test_a_task_has_to_fit_into_every_member() -> None:
    """Also where the member of the smallest classes has groups of the size that is asked for."""

    class Halves(Source):
        def load(self, say: object) -> Pool:
            pool = super().load(say)
            return pool._replace(groups=tuple(f"g{number // 5}" for number in range(CLASSES)))

    sources = {"a": Source("none"), "b": Halves("none")}
    names = ("a", "b")
    data = open_mixture(Mixture(sources, names, names, names, SIZE, 1), CPU, torch.float64, lambda _: None, None)
    assert [capacity.group_sizes for capacity in data.capacities("train")] == [(15,), (5, 5, 5)]
    for ways, sampler, place in ((15, "group_as_task", 1), (5, "group_as_task", 0), (6, "within_group", 1)):
        asked, fits = shape(ways, 1, 1, sampler=sampler), data.capacities("train")[1 - place]
        check_fit("task", asked, "train", fits)
        with pytest.raises(ConfigError, match=f"sampler={sampler}"):
            check_fit("task", asked, "train", data.capacities("train")[place])


def test_features_do_not_mix_with_pictures() -> None:
    sources = {"a": Source("none"), "rows": Grouped()}
    names = ("a", "rows")
    with pytest.raises(DataError, match=r"do not mix \(a \[1, 6, 6\], rows \[1\]\)"):
        open_mixture(Mixture(sources, names, names, names, SIZE, 1), CPU, torch.float64, lambda _: None, None)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["data.sources=[glyphs,omniglott]"], ["data=omniglott", "did you mean", "omniglot"]),
        (["data.sources=[glyphs,sine]"], ["data.sources.sine", "has values"]),
        (["data.sources=glyphs"], ["data.sources=glyphs", "data.sources=[glyphs,omniglot]"]),
        (["data.test=[cub]"], ["data.test=['cub']", "glyphs, omniglot"]),
        (["data.channels=2"], ["data.channels=2", "1 (grey) or 3"]),
    ],
)
def test_mistakes(words: list[str], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        configured(*words)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def configured(*words: str) -> object:
    composed = compose(["data=mixture", "track=local", *words])
    return check_config(composed.plain, composed.choices)


def test_a_whole_run_tells_the_result_of_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conf = tmp_path / "conf/data"
    conf.mkdir(parents=True)
    glyphs = (Path(__file__).parents[2] / "conf/data/glyphs.yaml").read_text()
    (conf / "other.yaml").write_text(glyphs.replace("world: 1 ", "world: 2 ").replace("size: 28 ", "size: 20 "))
    words = ["data=mixture", f"hydra.searchpath=[file://{tmp_path}/conf]", "data.sources=[glyphs,other]"]
    assert main([*TINY, f"out={tmp_path}/outs", *words]) == 0
    said = capsys.readouterr()
    run = only_run(tmp_path / "outs")
    summary = json.loads((run / "summary.json").read_text())
    scores = [float(line.split(",")[1]) for line in (run / "test_scores.csv").read_text().splitlines()[1:]]
    assert summary["test/acc_glyphs"] == pytest.approx(np.mean(scores[0::2]))
    assert summary["test/acc_other"] == pytest.approx(np.mean(scores[1::2]))
    assert "other" in said.out
    split = json.loads((run / "split.json").read_text())
    assert split["train"][0].startswith("glyphs/")
