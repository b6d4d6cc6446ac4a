"""The exercises of docs/new-algorithm.md and docs/new-model.md, done as they stand, inside the project and outside."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from metarun.cli.main import main
from metarun.config.compose import Composed, compose
from metarun.config.schema import check_config
from metarun.models.functional import build_net
from metarun.types import Kind
from support.contract import NAMES, algorithm
from support.runs import TINY

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "new-algorithm.md"
MODEL_PAGE = ROOT / "docs" / "new-model.md"
LINES = 60
CONTRACT = 15  # tests of the contract suite for an algorithm of both kinds

LETTERS: dict[Kind, str] = {"classes": "c", "values": "r"}


def blocks() -> dict[str, str]:
    """Each named file of the page and its text."""
    found = re.findall(r"`((?:src|conf)/\S+)`:\n\n```\w+\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return dict(found)


def test_the_exercise_is_one_file_and_one_yaml() -> None:
    assert sorted(Path(name).suffix for name in blocks()) == [".py", ".yaml"]
    assert sum(len(text.splitlines()) for text in blocks().values()) < LINES


def test_it_passes_the_contract_suite_untouched_and_runs(tmp_path: Path) -> None:
    for folder in ("src", "conf", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in blocks().items():
        assert not (tmp_path / name).exists()
        (tmp_path / name).write_text(text)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    path = os.pathsep.join(str(tmp_path / folder) for folder in ("src", "tests"))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}

    def do(*words: str) -> str:
        command = [sys.executable, *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    tested = do("-m", "pytest", "-v", "-p", "no:xdist", "tests/algos/test_contract.py", "-k", "signmaml")
    passed = re.search(r"(\d+) passed, \d+ deselected", tested)
    assert passed, tested
    assert int(passed[1]) >= CONTRACT
    tiny = ", ".join(map(repr, ["metarun", "algo=signmaml", *TINY]))
    do("-c", f"import sys; from metarun.cli.main import console; sys.argv = [{tiny}]; sys.exit(console())")


def outside(page: Path, folder: Path) -> list[str]:
    """Writes the files that the page places in a folder of the user's own, and returns their names."""
    files = re.findall(r"`([\w/]+\.(?:py|yaml))`, in a folder[^\n]*:\n\n```\w+\n(.*?)```", page.read_text(), re.DOTALL)
    for name, text in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return [name for name, _ in files]


def group(composed: Composed, name: str) -> dict[str, object]:
    plain = composed.plain[name]
    assert isinstance(plain, dict)
    return plain


def composed_outside(folder: Path, *words: str) -> Composed:
    return compose([*words, f"hydra.searchpath=[file://{folder / 'conf'}]", "track=local"])


def test_a_yaml_outside_the_project_extends_one_of_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert outside(PAGE, tmp_path) == ["conf/algo/maml_body.yaml"]
    ours, own = compose(["algo=maml", "track=local"]), composed_outside(tmp_path, "algo=maml_body")
    differing = {"steps": 2, "adapt": ["body.blocks.3.*", "head.*"], "inner_lr": 0.4}  # glyphs_maml.yaml: maml alone
    assert group(own, "algo") == {**group(ours, "algo"), **differing}
    words = ["algo=maml_body", f"hydra.searchpath=[file://{tmp_path / 'conf'}]", "track=local"]
    assert main(["show", *words]) == 0
    shown = capsys.readouterr().out
    assert f"{tmp_path / 'conf' / 'algo' / 'maml_body.yaml'}:3" in shown
    assert "conf/algo/maml.yaml:" in shown
    assert "conf/algo/_descent.yaml:" in shown


def test_a_backbone_outside_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sorted(outside(MODEL_PAGE, tmp_path)) == [
        "backbones.py",
        "conf/model/conv4_group.yaml",
        "conf/model/l2l_cnn4_small.yaml",
        "conf/model/separable.yaml",
    ]
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("separable", "l2l_cnn4_small", "conv4_group"):
        composed = composed_outside(tmp_path, f"model={name}")
        config = check_config(composed.plain, composed.choices)
        net, weights = build_net(config.model.path, dict(config.model.values), (1, 28, 28), 5, seed=0)
        assert net(weights, torch.rand(4, 1, 28, 28))[0].shape == (4, 5)
        if name == "separable":
            assert "body.blocks.12.weight" in weights
    conv4 = group(compose(["track=local"]), "model")
    assert composed_outside(tmp_path, "model=conv4_group").plain["model"] == {**conv4, "width": 64, "norm": "group"}
    words = ["model=separable", f"hydra.searchpath=[file://{tmp_path / 'conf'}]", *TINY]
    assert main(words) == 0


def test_the_readme_knows_every_algorithm_and_its_tasks() -> None:
    table = (ROOT / "README.md").read_text().partition("## Algorithms")[2].partition("The gradient family")[0]
    told: dict[str, list[str]] = {}
    for line in table.splitlines():
        cells = line.strip("| ").split(" | ")
        told |= dict.fromkeys(re.findall(r"`(\w+)`", cells[0]) if line.startswith("| `") else [], cells[-1].split())
    assert sorted(told) == NAMES
    for name, letters in told.items():
        assert letters == [letter for kind, letter in LETTERS.items() if kind in algorithm(name).kinds], name
