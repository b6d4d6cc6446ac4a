"""Old names still work for one release, a line names the new one, and runs of before are found."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from metarun.cli.main import main
from metarun.config.compose import compose
from metarun.config.convert import values_of
from metarun.config.renamed import translated, translated_words, with_previous_names
from metarun.config.schema import check_config
from support.runs import TINY, only_run


def test_an_old_key_sets_the_new_one_and_a_line_names_it() -> None:
    composed = compose(["eval.batch=7", "plan=some/plan.json"])
    assert values_of(composed.plain, "eval")["tasks_at_once"] == 7
    assert composed.plain["execution_from"] == "some/plan.json"
    assert "batch" not in values_of(composed.plain, "eval")
    assert "plan" not in composed.plain
    assert composed.renamed == (
        "eval.batch is now called eval.tasks_at_once; the old name works until the next release",
        "plan is now called execution_from; the old name works until the next release",
    )


def test_new_names_alone_say_nothing() -> None:
    assert compose(["eval.tasks_at_once=7"]).renamed == ()


@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_every_prefix_of_a_word(prefix: str) -> None:
    assert values_of(compose([f"{prefix}eval.batch=7"]).plain, "eval")["tasks_at_once"] == 7


def test_a_new_key_beside_an_old_one_in_a_file_wins_if_said(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\neval: {batch: 3}\n")
    words = [f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine"]
    assert values_of(compose(words).plain, "eval")["tasks_at_once"] == 3
    assert len(compose(words).renamed) == 1
    assert values_of(compose([*words, "eval.tasks_at_once=5"]).plain, "eval")["tasks_at_once"] == 5


@pytest.mark.parametrize(
    ("clip", "by", "outer"),
    [(None, "value", []), (10, "value", [{"clip_by_value": 10}]), (0.5, "norm", [{"clip_by_norm": 0.5}])],
)
def test_clipping_is_a_transform_of_the_outer_step(clip: float | None, by: str, outer: object) -> None:
    shown = "null" if clip is None else clip
    train = values_of(compose([f"train.clip={shown}", f"train.clip_by={by}"]).plain, "train")
    assert train["outer"] == outer
    assert not {"clip", "clip_by"} & train.keys()
    before = values_of(with_previous_names({"train": train}), "train")
    assert (before["clip"], before["clip_by"]) == (clip, by)


def test_old_choices_get_their_new_names_alone_and_in_a_sweep() -> None:
    files = {"optim": ["adam", "adam_1000_steps"], "engine": ["vmap", "learn2learn"]}
    words, lines = translated_words(["optim=adam_short,adam", "engine=l2l", "algo=maml"], files)
    assert words == ["optim=adam_1000_steps,adam", "engine=learn2learn", "algo=maml"]
    assert [line.partition(";")[0] for line in lines] == [
        "optim=adam_short is now called optim=adam_1000_steps",
        "engine=l2l is now called engine=learn2learn",
    ]


def test_an_own_algorithm_may_have_a_field_of_an_old_name() -> None:
    """Only where the class takes the new name and not the old one."""
    own = {"algo": {"_target_": "metarun.algos.protonet.ProtoNet", "order": "mine"}}
    assert translated(own).plain == own


def test_moved_classes_are_found() -> None:
    stored = {"optim": {"lr": 0.1, "schedule": {"_target_": "metarun.schedule.Cosine", "final": 0.0}}}
    assert translated(stored).plain == {
        "optim": {"lr": 0.1, "schedule": {"_target_": "metarun.train.schedule.Cosine", "final": 0.0}}
    }
    assert with_previous_names(translated(stored).plain) == stored


def test_a_sweep_over_an_old_key(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for word in TINY if not word.startswith(("eval.tasks_at_once", "model"))]
    assert main(["-m", *words, "data=sine", "eval.batch=2,3"]) == 0
    said = capsys.readouterr().err
    assert said.count("eval.batch is now called eval.tasks_at_once") == 1
    assert len(list(alone.glob("outputs/*/*/seed0/summary.json"))) == 2


def test_a_finished_run_of_the_previous_version_is_found(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for word in TINY if "model" not in word] + ["data=sine"]
    assert main(words) == 0
    new = only_run(alone / "outputs")
    composed = compose(words)
    config = check_config(composed.plain, composed.choices)
    assert config.folder.resolve() == new.resolve()
    old = alone / config.folder_of_previous_version
    assert old != new
    old.parent.mkdir()
    new.rename(old)
    (old / "config.yaml").write_text(yaml.safe_dump(with_previous_names(composed.plain)))
    capsys.readouterr()
    assert main(words) == 0
    assert "this run is finished; its result" in capsys.readouterr().out
    assert not new.exists()
