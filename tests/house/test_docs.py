"""The exercise in docs/new-algorithm.md, done as it stands: one file, one YAML, and the contract suite as it is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from metarun.types import Kind
from support.contract import NAMES, algorithm
from support.runs import TINY

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "new-algorithm.md"
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


def test_the_readme_knows_every_algorithm_and_its_tasks() -> None:
    table = (ROOT / "README.md").read_text().partition("## Algorithms")[2].partition("The gradient family")[0]
    told: dict[str, list[str]] = {}
    for line in table.splitlines():
        cells = line.strip("| ").split(" | ")
        told |= dict.fromkeys(re.findall(r"`(\w+)`", cells[0]) if line.startswith("| `") else [], cells[-1].split())
    assert sorted(told) == NAMES
    for name, letters in told.items():
        assert letters == [letter for kind, letter in LETTERS.items() if kind in algorithm(name).kinds], name
