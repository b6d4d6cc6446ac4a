"""State in, State out: a checkpoint file is whole or not there, and can be read without the code that wrote it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch

from metarun.errors import RunError
from metarun.train.state import State

CHECKPOINT_FORMAT = 1


def save_checkpoint(path: Path, state: State, about: Mapping[str, object]) -> None:
    """All fields of `state`, and `about`: what the run says of itself."""
    content = {"format": CHECKPOINT_FORMAT, **state.saved(), "about": dict(about)}
    write_whole(path, lambda file: torch.save(content, file))


def read_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    return decode_checkpoint(read_file(path), path, device)


def read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _damaged(path, error) from error


def decode_checkpoint(file: bytes, path: Path, device: torch.device) -> dict[str, Any]:
    """The content of a checkpoint file; `path` is named in an error."""
    try:
        content: dict[str, Any] = torch.load(BytesIO(file), map_location=device, weights_only=True)
        found = content["format"]
    except (OSError, ValueError, RuntimeError, EOFError, UnpicklingError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error
    if found != CHECKPOINT_FORMAT:
        raise RunError(
            f"{path}: has format {found}, this version reads {CHECKPOINT_FORMAT}; use the version that wrote it"
        )
    return content


def _damaged(path: Path, error: Exception) -> RunError:
    why = str(error).partition("\n")[0][:80] or type(error).__name__
    return RunError(f"{path}: is no checkpoint of metarun, or a damaged one; move it away ({why})")


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """The file appears under its name when all of it is on the disk, and not before."""
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
