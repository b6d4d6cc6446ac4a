"""The house as it is drawn: who may import whom, who alone meets an outside library, how large things may grow."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "metarun"
FILES = sorted(SOURCE.rglob("*.py"))

# A room imports from those before it.
PLAN = """
    errors conf startup allocator types models algos data engine schedule evaluate track checkpoint interrupt loop typed
    machine config assemble rundir report plan settle session run compose commands cli
"""
ROOMS = PLAN.split()

ALONE = {
    "wandb": {"track/wandb.py"},
    "hydra": {"compose.py"},
    "omegaconf": {"compose.py"},
    "learn2learn": {"engine/l2l.py"},
    "rich": {"track/console.py"},
    "matplotlib": {"report/plots.py"},
}


def room(file: Path) -> str:
    return file.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(file: Path) -> Iterator[tuple[str, ast.stmt]]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: relative import"
            yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)


def test_every_room_is_on_the_plan() -> None:
    assert {room(file) for file in FILES} == {*ROOMS, "__init__"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_imports_come_from_rooms_above(file: Path) -> None:
    if room(file) == "__init__":
        return
    for name, node in imports(file):
        parts = name.split(".")
        if parts[0] != "metarun" or len(parts) < 2 or parts[1].startswith("__"):
            continue
        assert ROOMS.index(parts[1]) <= ROOMS.index(room(file)), f"{file}:{node.lineno} imports {name}"


@pytest.mark.parametrize("library", ALONE)
def test_outside_libraries_have_one_importer(library: str) -> None:
    importers = {
        str(file.relative_to(SOURCE)) for file in FILES for name, _ in imports(file) if name.split(".")[0] == library
    }
    assert importers <= ALONE[library]


def test_algorithms_know_one_task_and_no_company() -> None:
    for file in (SOURCE / "algos").glob("*.py"):
        others = {name.split(".")[2] for name, _ in imports(file) if name.startswith("metarun.algos.")}
        assert others <= {"inner_loop"}, f"{file} imports {others}"


@pytest.mark.parametrize("file", [*FILES, *sorted((ROOT / "scripts").glob("*.py"))], ids=lambda file: file.name)
def test_sizes(file: Path) -> None:
    text = file.read_text()
    assert text.count("\n") <= 300, f"{file} has {text.count(chr(10))} lines"
    assert text.isascii(), f"{file} is not ASCII"
    tree = ast.parse(text)
    assert ast.get_docstring(tree), f"{file} does not say what it is for"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            assert length <= 50, f"{file}:{node.lineno} {node.name} has {length} lines"
            assert depth(node.body) <= 3, f"{file}:{node.lineno} {node.name} nests {depth(node.body)} deep"


def depth(body: list[ast.stmt]) -> int:
    """Levels of loops, branches and contexts; an elif is no deeper than its if, a function inside starts anew."""
    deepest = 0
    for node in body:
        if isinstance(node, ast.If):
            chained = len(node.orelse) == 1 and isinstance(node.orelse[0], ast.If)
            deepest = max(deepest, 1 + depth(node.body), depth(node.orelse) + (not chained and bool(node.orelse)))
        elif isinstance(node, ast.For | ast.While | ast.With):
            deepest = max(deepest, 1 + depth(node.body))
        elif isinstance(node, ast.Try):
            handlers = [depth(handler.body) for handler in node.handlers]
            deepest = max(deepest, 1 + max([depth(node.body), *handlers]))
    return deepest
