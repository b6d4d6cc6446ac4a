"""Small convex quadratic programs, solved by an interior-point method and differentiable in all of their numbers.

    min over x_1 .. x_B of  sum_b 1/2 x_b' Q_b x_b + p_b' x_b   subject to   G_b x_b <= h_b,   sum_b A_b x_b = b

One block (B = 1) is the general dense program; a program of several blocks that only the equalities couple costs B
small factorisations instead of one of B times the size. Each Q_b is symmetric and positive semidefinite with
Q_b + G_b' G_b definite, and the rows of A = (A_1 .. A_B) are independent.

The method is Mehrotra's predictor-corrector (Nocedal and Wright 2006, section 16.6) from s = z = 1, a fixed number of
steps on numbers without a graph. The gradient comes from one more
Newton step, - J(x*)^-1 F(x*, theta) with the residual F of the optimality conditions: J and x* are constants, so that
its derivative is that of the implicit function theorem (Amos and Kolter 2017, arXiv 1703.00443); its value is not used.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

FLOOR = 1e-10  # of the mean complementarity; nearer the boundary, factors lose Q beside G's part
RIDGE = 1e-14  # of H's diagonal; the refinements take it out again
ROUGH, FINE = 1, 6  # refinements of a step, and of the one that carries the gradient
KEEP = 0.99  # of the way to the boundary


class Program(NamedTuple):
    """Blocks B, variables n, inequalities m in each, equalities e."""

    Q: Tensor  # [B, n, n]
    p: Tensor  # [B, n]
    G: Tensor  # [B, m, n]
    h: Tensor  # [B, m]
    A: Tensor  # [B, e, n]
    b: Tensor  # [e]


class Point(NamedTuple):
    x: Tensor  # [B, n]
    s: Tensor  # slacks h - G x, above 0
    z: Tensor  # multipliers of the inequalities, above 0
    y: Tensor  # of the equalities


class System(NamedTuple):
    """Newton's equations without s: Q_b x_b + G_b' z_b + A_b' y = r_b, G_b x_b - s/z z_b = g_b, sum_b A_b x_b = t."""

    Q: Tensor
    G: Tensor
    A: Tensor
    ratio: Tensor  # z / s
    H_factor: Tensor  # of Q_b + G_b' diag(z/s) G_b
    schur_factor: Tensor  # of A H^-1 A'


class Sides(NamedTuple):
    r: Tensor
    g: Tensor
    t: Tensor


def solve(program: Program, steps: int) -> Tensor:
    """x_Bn, with its gradient. In float64 whatever the program comes in: near the boundary, float32 factors break."""
    exact: Program = tree_map(torch.Tensor.double, program)
    constant: Program = tree_map(torch.detach, exact)
    end = interior_point(constant, steps)
    step_Bn = _newton(exact, end, end.s * end.z, _system(constant, end), FINE).x
    return (end.x + (step_Bn - step_Bn.detach())).to(program.p.dtype)


def interior_point(program: Program, steps: int) -> Point:
    ones_Bm = torch.ones_like(program.h)
    at = Point(torch.zeros_like(program.p), ones_Bm, ones_Bm, torch.zeros_like(program.b))
    for _ in range(steps):
        at = _step(program, at)
    return at


def _step(program: Program, at: Point) -> Point:
    system = _system(program, at)
    guess = _newton(program, at, at.s * at.z, system, ROUGH)
    far = _stride(at, guess, 1.0)
    mu = (at.s * at.z).mean()
    ahead = ((at.s + far * guess.s) * (at.z + far * guess.z)).mean()
    # Without a floor the slacks of active constraints would end in zero over zero.
    target = (mu * (ahead / mu) ** 3).clamp(min=FLOOR)
    move = _newton(program, at, at.s * at.z + guess.s * guess.z - target, system, ROUGH)
    stride = _stride(at, move, KEEP)
    return Point(*(value + stride * change for value, change in zip(at, move, strict=True)))


def _stride(at: Point, move: Point, keep: float) -> Tensor:
    """How far all slacks and multipliers stay above 0, at most 1."""
    value, change = torch.cat([at.s, at.z]), torch.cat([move.s, move.z])
    return (keep * torch.where(change < 0, -value / change, 1 / keep)).amin().clamp(max=1)


def _system(program: Program, at: Point) -> System:
    ratio = at.z / at.s
    H_Bnn = program.Q + program.G.mT @ (program.G * ratio.unsqueeze(-1))
    # Free variables may outnumber the rank of Q; only the equalities hold them then, and H alone is singular.
    ridge_Bnn = RIDGE * torch.diag_embed(H_Bnn.diagonal(dim1=-2, dim2=-1))
    factor_Bnn = torch.linalg.cholesky_ex(H_Bnn + ridge_Bnn).L
    schur_ee = (program.A @ torch.cholesky_solve(program.A.mT, factor_Bnn)).sum(dim=0)
    return System(program.Q, program.G, program.A, ratio, factor_Bnn, torch.linalg.cholesky_ex(schur_ee).L)


def _newton(program: Program, at: Point, complementarity: Tensor, system: System, refinements: int) -> Point:
    """The step that takes the residuals of `program` at `at` to 0, and s z to s z - complementarity, to first order."""
    inside = _times(program.G, at.x) + at.s - program.h
    sides = Sides(
        r=-_times(program.Q, at.x) - program.p - _times(program.G.mT, at.z) - program.A.mT @ at.y,
        g=complementarity / at.z - inside,
        t=program.b - _times(program.A, at.x).sum(dim=0),
    )
    x, z, y = _eliminated(system, sides)
    for _ in range(refinements):
        dx, dz, dy = _eliminated(system, _left_over(system, sides, x, z, y))
        x, z, y = x + dx, z + dz, y + dy
    return Point(x, -inside - _times(system.G, x), z, y)


def _left_over(system: System, sides: Sides, x: Tensor, z: Tensor, y: Tensor) -> Sides:
    """In the form where no number grows at the boundary, so that nothing is lost."""
    return Sides(
        sides.r - _times(system.Q, x) - _times(system.G.mT, z) - system.A.mT @ y,
        sides.g - _times(system.G, x) + z / system.ratio,
        sides.t - _times(system.A, x).sum(dim=0),
    )


def _eliminated(system: System, sides: Sides) -> tuple[Tensor, Tensor, Tensor]:
    freely = _solved(system.H_factor, sides.r + _times(system.G.mT, system.ratio * sides.g))
    y = _solved(system.schur_factor, _times(system.A, freely).sum(dim=0) - sides.t)
    x = freely - _solved(system.H_factor, system.A.mT @ y)
    return x, system.ratio * (_times(system.G, x) - sides.g), y


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _solved(factor: Tensor, right: Tensor) -> Tensor:
    return torch.cholesky_solve(right.unsqueeze(-1), factor).squeeze(-1)
