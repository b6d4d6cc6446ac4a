"""A quiet import prints nothing, and what is printed after it is heard again."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import pytest

from metarun.torch_setup.quiet_import import quiet_import


def test_a_quiet_import_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = [
        "import os, sys, warnings",
        "print('a', file=sys.stderr)",
        "os.write(2, b'b')",
        "warnings.warn('c')",
        "x = 1",
    ]
    (tmp_path / "loud_module.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    assert quiet_import("loud_module").x == 1
    assert quiet_import("loud_module") is sys.modules["loud_module"]
    os.write(2, b"after")
    with pytest.warns(UserWarning, match="still heard"):
        warnings.warn("still heard", stacklevel=1)
    assert capfd.readouterr().err == "after"
