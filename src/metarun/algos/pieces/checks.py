"""Checks of hyper-parameters. An error names the field, its value and the remedy."""

from __future__ import annotations


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value}: choose one of {', '.join(choices)}")


def check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name}={count}: need at least 1")


def check_positive(**numbers: float) -> None:
    for name, number in numbers.items():
        if not number > 0:
            raise ValueError(f"{name}={number}: must be above 0")


def check_not_negative(**numbers: float) -> None:
    for name, number in numbers.items():
        if not number >= 0:
            raise ValueError(f"{name}={number}: must be 0 or above")


def check_meta_steps(**steps: int) -> None:
    for name, step in steps.items():
        if step < 0:
            raise ValueError(f"{name}={step}: counts meta-steps; 0 switches it off")
