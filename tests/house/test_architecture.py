"""The house as it is drawn: who may import whom, who alone meets an outside library, and no import circles."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "metarun"
FILES = sorted(SOURCE.rglob("*.py"))
LONG_FILE, LONG_FUNCTION = 400, 60  # lines; above them a note is printed, and nothing fails

# A room imports from the rooms below it. Rooms on one line stand side by side and do not know each other.
LEVELS = (
    {"cli"},
    {"search", "deploy"},
    {"run"},
    {"config"},
    {"train"},
    {"engine"},
    {"algos", "models", "data", "track", "results"},
    {"types", "errors", "measures", "torch_setup"},
)
GROUND = LEVELS[-1]  # its rooms may know each other
TOP = {"__init__", "__main__"}

ALONE = {
    "wandb": {"track/wandb.py"},
    "hydra": {"config/compose.py"},
    "omegaconf": {"config/compose.py"},
    "learn2learn": {"engine/learn2learn.py"},
    "rich": {"track/console.py"},
    "matplotlib": {"results/plots.py"},
}


def module(file: Path) -> str:
    parts = file.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module(file): file for file in FILES}


def room(file: Path) -> str:
    return file.relative_to(SOURCE).parts[0].removesuffix(".py")


def level(name: str) -> int:
    return next(number for number, rooms in enumerate(LEVELS) if name in rooms)


def imports(file: Path) -> Iterator[tuple[str, ast.stmt]]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: relative import"
            yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)


def imported_module(name: str) -> str | None:
    """The module of this package that `import name` loads."""
    while name.startswith("metarun") and name not in MODULES:
        name = name.rpartition(".")[0]
    return name if name in MODULES else None


def test_every_room_is_on_the_plan() -> None:
    rooms = {name for names in LEVELS for name in names}
    assert {room(file) for file in FILES} - TOP <= rooms


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_imports_come_from_rooms_below(file: Path) -> None:
    if room(file) in TOP:
        return
    for name, node in imports(file):
        found = imported_module(name)
        if found in (None, "metarun"):
            continue
        there = room(MODULES[str(found)])
        if there == room(file) or {there, room(file)} <= GROUND:
            continue
        assert level(there) > level(room(file)), f"{file}:{node.lineno} imports {name}"


def test_no_import_circles() -> None:
    """Imports inside functions and those for a type checker count too."""
    known = {name: {found for each, _ in imports(file) if (found := imported_module(each))} - {"metarun", name}
             for name, file in MODULES.items()}  # fmt: skip
    size = -1
    while size != len(
        known
    ):  # what imports nothing that is left, or is imported by nothing that is left, is in no circle
        size = len(known)
        used = {name for needs in known.values() for name in needs}
        known = {name: needs for name, needs in known.items() if name in used and needs & known.keys()}
    assert not known, {name: sorted(needs & known.keys()) for name, needs in known.items()}


@pytest.mark.parametrize("library", ALONE)
def test_outside_libraries_have_one_importer(library: str) -> None:
    importers = {
        str(file.relative_to(SOURCE)) for file in FILES for name, _ in imports(file) if name.split(".")[0] == library
    }
    assert importers <= ALONE[library]


def test_algorithms_know_one_task_and_no_company() -> None:
    for file in (SOURCE / "algos").glob("*.py"):
        others = {name.split(".")[2] for name, _ in imports(file) if name.startswith("metarun.algos.")}
        assert others <= {"descent", "pieces"}, f"{file} imports {others}"


@pytest.mark.parametrize("file", [*FILES, *sorted((ROOT / "scripts").rglob("*.py"))], ids=lambda file: file.name)
def test_files_are_ascii_and_say_what_they_are_for(file: Path) -> None:
    text = file.read_text()
    assert text.isascii(), f"{file} is not ASCII"
    assert ast.get_docstring(ast.parse(text)), f"{file} does not say what it is for"


def test_long_files_and_functions_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is cut to fit a number: a long one is printed, for a person to judge."""
    told = []
    for file in FILES:
        text = file.read_text()
        if text.count("\n") > LONG_FILE:
            told.append(f"{file.relative_to(ROOT)}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= LONG_FUNCTION:
                told.append(f"{file.relative_to(ROOT)}:{node.lineno} {node.name}: over {LONG_FUNCTION} lines")
    with capsys.disabled():
        print("".join(f"\nlong: {line}" for line in told), end="")
