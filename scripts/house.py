"""Counts what makes the source hard to read: python scripts/house.py [FOLDER_WITH_src]

Top-level names that two or more modules define, `Any`, `getattr` and `hasattr`, ignored types, import circles, long
files and functions.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

LONG_FILE, LONG_FUNCTION = 400, 60  # lines


def defined_names(node: ast.stmt) -> Iterator[tuple[str, bool]]:
    """(name, whether it is a function or a class) for each name that a top-level statement defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
        yield node.name, True
    elif isinstance(node, ast.Assign):
        yield from (
            (leaf.id, False) for target in node.targets for leaf in ast.walk(target) if isinstance(leaf, ast.Name)
        )
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        yield node.target.id, False


def shared_names(trees: dict[str, ast.Module]) -> dict[str, dict[str, bool]]:
    """Name -> module -> whether it is a function or class there; only names that two or more modules define."""
    places: dict[str, dict[str, bool]] = defaultdict(dict)
    for module, tree in trees.items():
        for node in tree.body:
            for name, is_function in defined_names(node):
                places[name][module] = is_function
    return {name: modules for name, modules in sorted(places.items()) if len(modules) > 1}


def imported_modules(tree: ast.Module, modules: set[str]) -> set[str]:
    """Those of `modules` that a module imports, anywhere in its text."""
    named: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            named += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            named += [f"{node.module}.{alias.name}" for alias in node.names]
    found = set()
    for name in named:
        while name and name not in modules:
            name = name.rpartition(".")[0]
        found.add(name)
    return found - {"", "metarun"}


def import_circles(needs: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, directly or through others."""
    reach = {name: set(found) for name, found in needs.items()}
    for middle in needs:
        for name in needs:
            if middle in reach[name]:
                reach[name] |= reach[middle]
    groups = {
        frozenset(other for other in reach[name] if name in reach[other]) for name in needs if name in reach[name]
    }
    return [sorted(group) for group in groups]


def long_files_and_functions(trees: dict[str, ast.Module], texts: dict[str, str]) -> Iterator[str]:
    for module, text in texts.items():
        if text.count("\n") > LONG_FILE:
            yield f"{module}: {text.count(chr(10))} lines"
        for node in ast.walk(trees[module]):
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= LONG_FUNCTION:
                yield f"{module}.{node.name}: over {LONG_FUNCTION} lines"


def main(root: Path) -> None:
    source = root / "src"
    texts = {}
    for file in sorted(source.rglob("*.py")):
        parts = file.relative_to(source).with_suffix("").parts
        texts[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file.read_text()
    trees = {module: ast.parse(text) for module, text in texts.items()}
    whole = "\n".join(texts.values())
    lines = whole.count("\n")
    shared = shared_names(trees)
    for name, modules in shared.items():
        print(f"{name:<24} {', '.join(sorted(modules))}")
    for line in long_files_and_functions(trees, texts):
        print(f"long: {line}")
    found = import_circles({module: imported_modules(tree, set(trees)) for module, tree in trees.items()})
    for group in found:
        print(f"circle: {' '.join(group)}")
    anys = len(re.findall(r"\bAny\b", whole))
    print(f"lines                                {lines}")
    print(f"names in two or more modules         {len(shared)}")
    print(f"  of these functions and classes     {sum(any(modules.values()) for modules in shared.values())}")
    print(f"Any per 1,000 lines                  {1000 * anys / lines:.1f} ({anys})")
    print(f"getattr, hasattr                     {len(re.findall(r'(?:getattr|hasattr)[(]', whole))}")
    print(f"ignored types                        {whole.count('type: ignore')}")
    print(f"import circles                       {len(found)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1])
