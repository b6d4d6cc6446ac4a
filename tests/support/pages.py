"""Reads the pages for people: the files that a page shows as code, the edits that it asks for, and its commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
README, CONTRIBUTING = ROOT / "README.md", ROOT / "CONTRIBUTING.md"
PAGES = [README, CONTRIBUTING, *sorted(ROOT.glob("docs/**/*.md"))]


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def own_files(page: Path) -> dict[str, str]:
    """The files of a folder of the user's own, and their texts."""
    named = r"`([\w/]+\.(?:py|yaml))`, in a folder of your own:\n\n```\w+\n(.*?)```"
    found = re.findall(named, page.read_text(), re.DOTALL)
    return dict(found)


def write_own_files(page: Path, folder: Path) -> None:
    for name, text in own_files(page).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


class Edit(NamedTuple):
    """One instruction of CONTRIBUTING.md: a new file, or lines put into a file that exists."""

    place: str  # new, end, above, below, replace
    file: str
    anchor: str  # the line that exists
    text: str


def edits(section: str) -> list[Edit]:
    """The instructions under a heading. Each is a line that ends in a colon, and a block of code."""
    body = CONTRIBUTING.read_text().partition(f"\n### {section}\n")[2].partition("\n### ")[0]
    found = []
    for line, text in re.findall(r"^([^\n]+):\n\n```python\n(.*?)^```$", body, re.DOTALL | re.MULTILINE):
        if new := re.fullmatch(r"New file `(\S+)`", line):
            found.append(Edit("new", new[1], "", text))
        elif end := re.fullmatch(r"At the end of `(\S+)`", line):
            found.append(Edit("end", end[1], "", text))
        else:
            inside = re.fullmatch(r"In `(\S+)`, (above|below|replace) `(.+)`", line)
            assert inside, f"{line}: is no instruction"
            found.append(Edit(inside[2], inside[1], inside[3], text))
    return found


def carry_out(edit: Edit, root: Path) -> None:
    file = root / edit.file
    if edit.place == "new":
        assert not file.exists(), f"{edit.file} exists"
        file.write_text(edit.text)
        return
    before = file.read_text()
    if edit.place == "end":
        file.write_text(before + edit.text)
        return
    lines = before.splitlines(keepends=True)
    places = [number for number, line in enumerate(lines) if line.rstrip("\n") == edit.anchor]
    assert len(places) == 1, f"{edit.file}: {len(places)} lines are {edit.anchor!r}"
    [place] = places
    kept = {"above": (place, place), "below": (place + 1, place + 1), "replace": (place, place + 1)}
    end, start = kept[edit.place]
    file.write_text("".join([*lines[:end], edit.text, *lines[start:]]))


def commands(page: Path) -> list[str]:
    """Each `metarun ...` that the page shows on a line of its own or in backticks, without its comment."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE).replace("\\\n", "")
    shown = re.findall(r"^    (?:PYTHONPATH=\S+ )?((?:python -m )?metarun .*)$|`(metarun [^`]+)`", text, re.MULTILINE)
    return [re.sub(r"\s#.*", "", line or inline).removeprefix("python -m ").strip() for line, inline in shown]


def overrides(command: str) -> list[str]:
    """The KEY=VALUE words, without those that stand for something of the reader's: NAME, path/to, V1,V2."""
    words = shlex.split(command)
    if words[1:3] in (["data", "check"], ["data", "fetch"]):
        words[3] = f"data={words[3]}"
    given = [word for word in words if re.fullmatch(r"[\w./@]+=.*", word)]
    return [word for word in given if not re.search(r"=.*([A-Z]|\.\.\.|path/)", word)]
