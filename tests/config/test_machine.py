"""Fewer digits are asked for, never taken, and said beside the result."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from metarun.config.compose import compose
from metarun.config.device import set_tf32
from metarun.config.schema import RunConfig, check_config
from metarun.run.provenance import protocol
from metarun.track.console import show_result


@pytest.fixture
def switches() -> Iterator[None]:
    kept = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = kept


@pytest.mark.usefixtures("switches")
def test_both_switches_are_set_either_way() -> None:
    """Torch's own defaults differ from each other."""
    for on in (True, False):
        set_tf32(on)
        assert torch.backends.cuda.matmul.allow_tf32 is on
        assert torch.backends.cudnn.allow_tf32 is on


def configured() -> RunConfig:
    composed = compose(["data=sine", "track=local", "device=cpu"])
    return check_config(composed.plain, composed.choices)


def test_with_fewer_digits_it_is_another_experiment() -> None:
    config = configured()
    assert config.tf32 is False
    before = {name: value for name, value in config.plain.items() if name != "tf32"}
    assert dataclasses.replace(config, plain=before).signature == config.signature  # of runs older than the key
    assert dataclasses.replace(config, plain={**before, "tf32": True}).signature != config.signature


def test_the_result_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for on in (True, False):
        told = protocol(dataclasses.replace(configured(), tf32=on))
        show_result({"test/mse": 0.5, "test/ci95": 0.1, "test/episodes": 600, "protocol": told}, tmp_path)
        assert ("TF32" in capsys.readouterr().out) is on
