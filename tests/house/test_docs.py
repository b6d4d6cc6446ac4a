"""README and the pages in docs/: exercises are done as they stand outside the repository, commands and paths exist."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch

from metarun.cli.main import main
from metarun.config.compose import Composed, compose
from metarun.config.places import groups
from metarun.config.schema import check_config
from metarun.models.functional import build_net
from metarun.train.outer import TRANSFORMS
from metarun.types import Kind
from support.contract import NAMES, algorithm
from support.pages import PAGES, README, ROOT, commands, overrides, own_files, page_id, write_own_files
from support.runs import TINY

ALGORITHM, MODEL, DATA = (ROOT / "docs" / f"new-{name}.md" for name in ("algorithm", "model", "data"))
LINES = 60
OWN_CONF = "hydra.searchpath=[file://conf]"
HIDDEN_GROUPS = ("tuned", "experiment")
LETTERS: dict[Kind, str] = {"classes": "c", "values": "r"}


def group(composed: Composed, name: str) -> dict[str, object]:
    plain = composed.plain[name]
    assert isinstance(plain, dict)
    return plain


@pytest.fixture
def own_folder(alone: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the files of the page, from which Python imports."""
    write_own_files(request.param, alone)
    monkeypatch.syspath_prepend(str(alone))
    return alone


def of_page(page: Path) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("own_folder", [page], indirect=True, ids=page_id)


def test_an_algorithm_is_one_file_and_one_yaml() -> None:
    files = {name: text for name, text in own_files(ALGORITHM).items() if "signmaml" in name}
    assert sorted(Path(name).suffix for name in files) == [".py", ".yaml"]
    assert sum(len(text.splitlines()) for text in files.values()) < LINES


@pytest.mark.usefixtures("own_folder")
@of_page(ALGORITHM)
def test_an_algorithm_outside_the_project() -> None:
    assert main(["algo=signmaml", OWN_CONF, *TINY]) == 0
    assert list(Path("outputs").glob("*/signmaml-*/seed0/summary.json"))


@of_page(ALGORITHM)
def test_where_python_finds_the_class(own_folder: Path, tmp_path: Path) -> None:
    """As docs/new-algorithm.md says: in the current folder for python -m, and not for an installed command."""
    installed = tmp_path / "metarun"
    installed.write_text("from metarun.cli.main import console\nconsole()\n")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}

    def show(*python: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *python, "show", "algo=signmaml", OWN_CONF, "data=sine"]
        return subprocess.run(command, cwd=own_folder, env=environment, capture_output=True, text=True, timeout=120)

    found = show("-m", "metarun")
    assert found.returncode == 0, found.stderr
    assert "signmaml.SignMAML" in found.stdout
    refused = show(str(installed))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "algo._target_=signmaml.SignMAML" in refused.stderr
    assert "PYTHONPATH" in refused.stderr


@pytest.mark.usefixtures("own_folder")
@of_page(ALGORITHM)
def test_an_own_yaml_extends_an_algorithm_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    ours, own = compose(["algo=maml"]), compose(["algo=maml_body", OWN_CONF])
    differing = {"steps": 2, "adapt": ["body.blocks.3.*", "head.*"], "inner_lr": 0.4}  # glyphs_maml.yaml: maml alone
    assert group(own, "algo") == {**group(ours, "algo"), **differing}
    assert main(["show", "algo=maml_body", OWN_CONF, "track=local"]) == 0
    shown = capsys.readouterr().out
    assert "conf/algo/maml_body.yaml:3" in shown
    assert "conf/algo/maml.yaml:" in shown
    assert "conf/algo/_descent.yaml:" in shown


@pytest.mark.usefixtures("own_folder")
@of_page(MODEL)
def test_a_backbone_outside_the_project() -> None:
    assert sorted(own_files(MODEL)) == [
        "backbones.py",
        "conf/model/conv4_group.yaml",
        "conf/model/l2l_cnn4_small.yaml",
        "conf/model/separable.yaml",
    ]
    for name in ("separable", "l2l_cnn4_small", "conv4_group"):
        composed = compose([f"model={name}", OWN_CONF])
        config = check_config(composed.plain, composed.choices)
        net, weights = build_net(config.model.path, dict(config.model.values), (1, 28, 28), 5, seed=0)
        assert net(weights, torch.rand(4, 1, 28, 28))[0].shape == (4, 5)
        if name == "separable":
            assert "body.blocks.12.weight" in weights
    conv4 = group(compose([]), "model")
    assert group(compose(["model=conv4_group", OWN_CONF]), "model") == {**conv4, "width": 64, "norm": "group"}
    assert main(["model=separable", OWN_CONF, *TINY]) == 0


@of_page(DATA)
@pytest.mark.parametrize(("name", "shape"), [("blobs", [16]), ("gratings", [1, 28, 28])])
def test_a_data_source_outside_the_project(own_folder: Path, name: str, shape: list[int]) -> None:
    assert {f"{name}.py", f"conf/data/{name}.yaml"} <= set(own_files(DATA))
    tiny = [word for word in TINY if name != "blobs" or not word.startswith("model.")]  # it brings model=mlp
    assert main([f"data={name}", "algo=protonet", OWN_CONF, *tiny]) == 0
    [run] = own_folder.glob(f"outputs/{name}-5w1s/*/seed0")
    assert list(torch.load(run / "best.pt", weights_only=True)["about"]["item"]["shape"]) == shape
    split = json.loads((run / "split.json").read_text())
    assert [len(split[part]) for part in ("train", "val", "test")] == [64, 16, 20]
    assert main(["test", str(run), "eval.test_episodes=4"]) == 0  # finds the class, and asks for no YAML


@pytest.mark.usefixtures("own_folder")
@of_page(DATA)
def test_an_own_yaml_extends_a_data_set_of_ours() -> None:
    ours, own = compose(["data=omniglot"]), compose(["data=omniglot_lake", OWN_CONF])
    assert group(own, "data") == {**group(ours, "data"), "split": "lake", "size": 32}
    config = check_config(own.plain, own.choices)
    assert config.experiment == "omniglot_lake-5w1s"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_what_a_page_names_exists(page: Path) -> None:
    """Links, and paths in backticks. A page may also tell its reader to write a file."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    missing = [link for link in re.findall(r"\]\((?!\w+:)([^)#\s]+)", text) if not (page.parent / link).exists()]
    new = set(re.findall(r"New file `(\S+)`", text)) | set(own_files(page))
    named = set(re.findall(r"`((?:src|tests|conf|scripts|docs)/[\w/.]+)`", text)) - new
    missing += [path for path in named if not (ROOT / path).exists()]
    assert not missing


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=page_id)
def test_the_commands_of_a_page_exist_in_every_shell(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their keys and choices compose, and what bash or zsh would expand is in quotes."""
    write_own_files(page, tmp_path)
    monkeypatch.chdir(tmp_path)
    for command in commands(page):
        bare = re.sub(r"'[^']*'|\"[^\"]*\"", "", command)
        assert not re.search(r"[\[\]{}*?$<>|&;()~]", bare), f"{command}: quote it"
        words = overrides(command)
        if words:
            compose(words if "-m" not in command.split() else [re.sub(",.*", "", word) for word in words])


def test_the_readme_knows_every_algorithm_and_its_tasks() -> None:
    table = README.read_text().partition("## Algorithms")[2].partition("The gradient family")[0]
    told: dict[str, list[str]] = {}
    for line in table.splitlines():
        cells = line.strip("| ").split(" | ")
        told |= dict.fromkeys(re.findall(r"`(\w+)`", cells[0]) if line.startswith("| `") else [], cells[-1].split())
    assert sorted(told) == NAMES
    for name, letters in told.items():
        assert letters == [letter for kind, letter in LETTERS.items() if kind in algorithm(name).kinds], name


def test_the_readme_knows_every_choice_transform_and_folder() -> None:
    text = README.read_text()
    use, data, where = (
        text.partition(f"## {heading}\n")[2].partition("\n## ")[0] for heading in ("Use", "Data", "Where things are")
    )
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", use, re.MULTILINE))
    for name, choices in groups().items():
        if "/" in name or name in (*HIDDEN_GROUPS, "data", "algo"):
            continue
        patterns = re.findall(r"`([\w*]+)`", rows[name])
        unknown = [choice for choice in choices if not any(fnmatch(choice, pattern) for pattern in patterns)]
        assert not unknown, f"{name}: {unknown}"
    assert {name for name in groups()["data"] if f"`{name}`" not in data} == set()
    assert re.findall(r"^\| `(\w+): ", use, re.MULTILINE) == list(TRANSFORMS)
    rooms = {path.name for path in (ROOT / "src" / "metarun").iterdir() if not path.name.startswith("__")}
    assert {name for name in rooms if f"`{name}" not in where} == set()
