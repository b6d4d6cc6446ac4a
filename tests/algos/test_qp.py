"""The solver of quadratic programs against another one, the conditions of an optimum, and differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize  # type: ignore[import-untyped]
from torch import Tensor
from torch.func import grad, vmap

from metarun.algos.pieces.quadratic_program import QuadraticProgram, interior_point, solve_quadratic_program
from support.noise import noise
from support.small import distance

STEPS = 20


def random_program(seed: int, blocks: int = 1, size: int = 5, rank: int = 5) -> QuadraticProgram:
    root = noise(seed, blocks, size, rank)
    inequalities = 8
    x = noise(seed + 1, blocks, size)
    G, A = noise(seed + 2, blocks, inequalities, size), noise(seed + 3, blocks, 2, size)
    h = (G @ x.unsqueeze(-1)).squeeze(-1) + noise(seed + 4, blocks, inequalities).abs()
    b = (A @ x.unsqueeze(-1)).sum(0).squeeze(-1)
    return QuadraticProgram(root @ root.mT, 3 * noise(seed + 5, blocks, size), G, h, A, b)


def whole(program: QuadraticProgram) -> QuadraticProgram:
    """The same with one block."""
    Q, G = (torch.block_diag(*part) for part in (program.Q, program.G))  # type: ignore[no-untyped-call]
    A = torch.cat(list(program.A), dim=1)
    return QuadraticProgram(Q[None], program.p.reshape(1, -1), G[None], program.h.reshape(1, -1), A[None], program.b)


def scipys(program: QuadraticProgram) -> Tensor:
    Q, p, G, h, A, b = (part.numpy() for part in (*(part[0] for part in whole(program)[:5]), program.b))
    start = np.zeros(len(p))
    rules = [
        {"type": "ineq", "fun": lambda x: h - G @ x, "jac": lambda _: -G},
        {"type": "eq", "fun": lambda x: A @ x - b, "jac": lambda _: A},
    ]
    found = minimize(
        lambda x: 0.5 * x @ Q @ x + p @ x,
        start,
        jac=lambda x: Q @ x + p,
        constraints=rules,
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 500},
    )
    assert found.status in (0, 8), found.message  # 8: no further descent in the last digits
    return torch.from_numpy(found.x)


def value(program: QuadraticProgram, x: Tensor) -> Tensor:
    x = x.reshape(program.p.shape)
    return 0.5 * (x.unsqueeze(1) @ program.Q @ x.unsqueeze(-1)).sum() + (program.p * x).sum()


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("seed", [10, 20, 30, 40])
def test_the_solver_against_scipy(seed: int, blocks: int) -> None:
    program = random_program(seed, blocks)
    expected = scipys(program)
    assert distance(solve_quadratic_program(program, STEPS).flatten(), expected) < 1e-6
    assert distance(value(program, solve_quadratic_program(program, STEPS)), value(program, expected)) < 1e-8
    single = tuple(part.float() for part in program)
    assert distance(solve_quadratic_program(QuadraticProgram(*single), STEPS).double().flatten(), expected) < 1e-4


@pytest.mark.parametrize("rank", [5, 2])
def test_the_conditions_of_an_optimum_hold(rank: int) -> None:
    """Karush, Kuhn and Tucker; a second solver could only agree to its own tolerance."""
    for seed in range(60, 70):
        program = random_program(seed, blocks=3, rank=rank)
        x, s, z, y = interior_point(program, STEPS)
        gradient = (program.Q @ x.unsqueeze(-1)).squeeze(-1) + program.p
        forces = (program.G.mT @ z.unsqueeze(-1)).squeeze(-1) + program.A.mT @ y
        assert (gradient + forces).abs().max() < 1e-9
        assert ((program.G @ x.unsqueeze(-1)).squeeze(-1) + s - program.h).abs().max() < 1e-10
        assert ((program.A @ x.unsqueeze(-1)).sum(0).squeeze(-1) - program.b).abs().max() < 1e-10
        assert min(s.min(), z.min()) > 0
        assert (s * z).max() < 1e-9


def test_more_steps_change_nothing() -> None:
    program = random_program(70)
    assert distance(solve_quadratic_program(program, 60), solve_quadratic_program(program, STEPS)) < 1e-9


@pytest.mark.parametrize("part", QuadraticProgram._fields)
def test_the_gradient_of_the_solver_is_that_of_differences(part: str) -> None:
    program, weights = random_program(80, blocks=2), noise(81, 2, 5)
    direction = noise(82, *getattr(program, part).shape)
    if part == "Q":
        direction = direction + direction.mT

    def along(t: Any) -> Tensor:
        moved = program._replace(**{part: getattr(program, part) + t * direction})
        return (weights * solve_quadratic_program(moved, 30)).sum()

    slope = grad(along)(torch.zeros((), dtype=torch.float64))
    h = 1e-4
    assert distance(slope, (along(h) - along(-h)) / (2 * h)) < 1e-5


def test_programs_in_a_batch_are_solved_apart() -> None:
    programs = [random_program(seed, blocks=2) for seed in (90, 100)]
    stacked = QuadraticProgram(*(torch.stack(parts) for parts in zip(*programs, strict=True)))
    together = vmap(lambda *parts: solve_quadratic_program(QuadraticProgram(*parts), STEPS))(*stacked)
    assert distance(together, torch.stack([solve_quadratic_program(program, STEPS) for program in programs])) < 1e-10
