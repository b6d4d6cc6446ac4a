"""The recipes of CONTRIBUTING.md and docs/new-algorithm.md are done as they stand in a copy of the repository."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from support.pages import CONTRIBUTING, ROOT, carry_out, edits, own_files
from support.runs import TINY

HEADINGS = ("A measure", "An outer transform", "A kernel", "A verb")
ALGORITHM = "signmaml"  # of docs/new-algorithm.md
CONTRACT = 15  # tests of the contract suite for an algorithm of both kinds
HOUSE = ("test_imports_come_from_rooms_below", "test_no_import_circles")

# All that was added, in one run.
TOGETHER = """
import json, pathlib
from metarun.cli.main import main
def test_all_together(capsys, monkeypatch):
    monkeypatch.setenv("METARUN_CACHE", {cache!r})
    words = ["algo=signmaml", "train.outer=[{{scale_to_norm: 1.0}}]", *{words!r}]
    assert main(words) == 0
    [summary] = pathlib.Path("outputs").glob("*/*/*/summary.json")
    assert json.loads(summary.read_text())["test/nll"] > 0
    capsys.readouterr()
    assert main(["metrics", str(summary.parent)]) == 0
    assert "val/acc" in capsys.readouterr().out
"""

# Without torch's compiler, which takes seconds to import.
LIGHT_PYTEST = """
import sys
from metarun.torch_setup.lazy_compiler import load_torch
load_torch()
import pytest
sys.exit(pytest.main())
"""


def test_each_kind_of_thing_has_its_recipe() -> None:
    text = CONTRIBUTING.read_text()
    assert tuple(re.findall(r"^### (.+)$", text, re.MULTILINE)) == HEADINGS
    assert sum(len(edits(heading)) for heading in HEADINGS) == text.count("```python\n")


def test_the_recipes_are_done_as_they_stand(tmp_path: Path, cache: Path) -> None:
    for folder in ("src", "conf", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    done = [edit for heading in HEADINGS for edit in edits(heading)]
    for edit in done:
        carry_out(edit, tmp_path)
    add_algorithm(tmp_path)
    together = tmp_path / "tests" / "house" / "test_together.py"
    together.write_text(TOGETHER.format(words=TINY, cache=str(cache)))

    added = [name for edit in done for name in re.findall(r"^def (test_\w+)", edit.text, re.MULTILINE)]
    assert len(added) >= len(HEADINGS)
    files = {edit.file for edit in done if edit.file.startswith("tests/")}
    files |= {"tests/algos/test_contract.py", "tests/house/test_architecture.py", "tests/house/test_together.py"}
    chosen = " or ".join([ALGORITHM, "test_all_together", *added, *HOUSE])
    path = os.pathsep.join(str(tmp_path / folder) for folder in ("src", "tests"))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    words = ["-vv", "-p", "no:xdist", "-p", "no:cacheprovider", "--durations=5", "-k", chosen, *sorted(files)]
    command = [sys.executable, "-c", LIGHT_PYTEST, *words]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    print(ran.stdout)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    passed = re.findall(r"^(\S+)::(\w+)\S* PASSED", ran.stdout, re.MULTILINE)
    assert {name for _, name in passed} >= {"test_all_together", *added, *HOUSE}
    assert sum(file.endswith("test_contract.py") for file, _ in passed) >= CONTRACT


def add_algorithm(root: Path) -> None:
    """As docs/new-algorithm.md says under "In this project"."""
    files = own_files(ROOT / "docs" / "new-algorithm.md")
    yaml = files[f"conf/algo/{ALGORITHM}.yaml"]
    assert f"_target_: {ALGORITHM}." in yaml
    (root / f"src/metarun/algos/{ALGORITHM}.py").write_text(files[f"{ALGORITHM}.py"])
    text = yaml.replace(f"_target_: {ALGORITHM}.", f"_target_: metarun.algos.{ALGORITHM}.")
    (root / f"conf/algo/{ALGORITHM}.yaml").write_text(text)
