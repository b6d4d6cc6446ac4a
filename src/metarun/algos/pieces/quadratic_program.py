"""Small convex quadratic programs, solved by an interior-point method and differentiable in all of their numbers.

    min over x_1 .. x_B of  sum_b 1/2 x_b' Q_b x_b + p_b' x_b   subject to   G_b x_b <= h_b,   sum_b A_b x_b = b

One block (B = 1) is the general dense program. A program whose blocks only the equalities couple costs B small
factorisations instead of one of B times the size. Each Q_b must be symmetric and positive semidefinite, Q_b + G_b' G_b
positive definite, and the rows of A = (A_1 .. A_B) independent.

The solver is Mehrotra's predictor-corrector method (Nocedal and Wright 2006, section 16.6) from s = z = 1, with a fixed
number of steps and without a graph. The gradient comes from one more Newton step, - J(x*)^-1 F(x*, theta), where F is
the residual of the optimality conditions, and J and x* are detached: the derivative of this step is that of the
implicit function theorem (Amos and Kolter 2017, arXiv 1703.00443). The value of the step is not used.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

LEAST_COMPLEMENTARITY = 1e-10  # lower bound of the mean of s z; below it Q is lost beside G' (z/s) G in rounding
RELATIVE_RIDGE = 1e-14  # added to H, as a share of its diagonal; the refinements remove its effect
FEW_REFINEMENTS, MANY_REFINEMENTS = 1, 6  # of a step of the solver, and of the step that carries the gradient
BOUNDARY_SHARE = 0.99  # a step goes at most this share of the way to the boundary


class QuadraticProgram(NamedTuple):
    """B blocks of n variables and m inequalities each, coupled by e equalities."""

    Q: Tensor  # [B, n, n]
    p: Tensor  # [B, n]
    G: Tensor  # [B, m, n]
    h: Tensor  # [B, m]
    A: Tensor  # [B, e, n]
    b: Tensor  # [e]


class PrimalDualPoint(NamedTuple):
    """Variables, slacks and multipliers; a Newton step has the same form."""

    x: Tensor  # [B, n]
    s: Tensor  # slacks h - G x, above 0
    z: Tensor  # multipliers of the inequalities, above 0
    y: Tensor  # multipliers of the equalities, [e]


class NewtonSystem(NamedTuple):
    """Newton's equations without s:

    Q_b x_b + G_b' z_b + A_b' y = r_b, G_b x_b - s/z z_b = g_b, sum_b A_b x_b = t
    """

    Q: Tensor
    G: Tensor
    A: Tensor
    ratio: Tensor  # z / s
    H_factor: Tensor  # of Q_b + G_b' diag(z/s) G_b
    schur_factor: Tensor  # of A H^-1 A'


class RightHandSides(NamedTuple):
    """Of the three equations of NewtonSystem."""

    r: Tensor
    g: Tensor
    t: Tensor


def solve_quadratic_program(program: QuadraticProgram, steps: int) -> Tensor:
    """The solution x_Bn, with its gradient. Computed in float64: near the boundary, float32 factorisations fail."""
    exact: QuadraticProgram = tree_map(torch.Tensor.double, program)
    constant: QuadraticProgram = tree_map(torch.detach, exact)
    end = interior_point(constant, steps)
    step_Bn = _newton_step(exact, end, end.s * end.z, _newton_system(constant, end), MANY_REFINEMENTS).x
    return (end.x + (step_Bn - step_Bn.detach())).to(program.p.dtype)


def interior_point(program: QuadraticProgram, steps: int) -> PrimalDualPoint:
    ones_Bm = torch.ones_like(program.h)
    at = PrimalDualPoint(torch.zeros_like(program.p), ones_Bm, ones_Bm, torch.zeros_like(program.b))
    for _ in range(steps):
        at = _interior_point_step(program, at)
    return at


def _interior_point_step(program: QuadraticProgram, at: PrimalDualPoint) -> PrimalDualPoint:
    system = _newton_system(program, at)
    affine = _newton_step(program, at, at.s * at.z, system, FEW_REFINEMENTS)
    affine_length = _step_length(at, affine, 1.0)
    mu = (at.s * at.z).mean()
    affine_mu = ((at.s + affine_length * affine.s) * (at.z + affine_length * affine.z)).mean()
    # Without this bound the slacks of active constraints would end in 0 / 0.
    target = (mu * (affine_mu / mu) ** 3).clamp(min=LEAST_COMPLEMENTARITY)
    step = _newton_step(program, at, at.s * at.z + affine.s * affine.z - target, system, FEW_REFINEMENTS)
    length = _step_length(at, step, BOUNDARY_SHARE)
    return PrimalDualPoint(*(value + length * change for value, change in zip(at, step, strict=True)))


def _step_length(at: PrimalDualPoint, step: PrimalDualPoint, keep: float) -> Tensor:
    """The step length, at most 1, up to which all slacks and multipliers stay above 0, times `keep`."""
    value, change = torch.cat([at.s, at.z]), torch.cat([step.s, step.z])
    return (keep * torch.where(change < 0, -value / change, 1 / keep)).amin().clamp(max=1)


def _newton_system(program: QuadraticProgram, at: PrimalDualPoint) -> NewtonSystem:
    ratio = at.z / at.s
    H_Bnn = program.Q + program.G.mT @ (program.G * ratio.unsqueeze(-1))
    # H alone is singular where only the equalities determine some variables.
    ridge_Bnn = RELATIVE_RIDGE * torch.diag_embed(H_Bnn.diagonal(dim1=-2, dim2=-1))
    factor_Bnn = torch.linalg.cholesky_ex(H_Bnn + ridge_Bnn).L
    schur_ee = (program.A @ torch.cholesky_solve(program.A.mT, factor_Bnn)).sum(dim=0)
    return NewtonSystem(program.Q, program.G, program.A, ratio, factor_Bnn, torch.linalg.cholesky_ex(schur_ee).L)


def _newton_step(
    program: QuadraticProgram, at: PrimalDualPoint, complementarity: Tensor, system: NewtonSystem, refinements: int
) -> PrimalDualPoint:
    """The step that, to first order, makes the residuals of `program` zero and changes s z by - complementarity."""
    inside = _matvec(program.G, at.x) + at.s - program.h
    sides = RightHandSides(
        r=-_matvec(program.Q, at.x) - program.p - _matvec(program.G.mT, at.z) - program.A.mT @ at.y,
        g=complementarity / at.z - inside,
        t=program.b - _matvec(program.A, at.x).sum(dim=0),
    )
    x, z, y = _solve_newton(system, sides)
    for _ in range(refinements):
        dx, dz, dy = _solve_newton(system, _newton_residual(system, sides, x, z, y))
        x, z, y = x + dx, z + dz, y + dy
    return PrimalDualPoint(x, -inside - _matvec(system.G, x), z, y)


def _newton_residual(system: NewtonSystem, sides: RightHandSides, x: Tensor, z: Tensor, y: Tensor) -> RightHandSides:
    """The error of a solution, from z / ratio instead of z * (s / z): no term grows near the boundary."""
    return RightHandSides(
        sides.r - _matvec(system.Q, x) - _matvec(system.G.mT, z) - system.A.mT @ y,
        sides.g - _matvec(system.G, x) + z / system.ratio,
        sides.t - _matvec(system.A, x).sum(dim=0),
    )


def _solve_newton(system: NewtonSystem, sides: RightHandSides) -> tuple[Tensor, Tensor, Tensor]:
    unconstrained = _cholesky_solve(system.H_factor, sides.r + _matvec(system.G.mT, system.ratio * sides.g))
    y = _cholesky_solve(system.schur_factor, _matvec(system.A, unconstrained).sum(dim=0) - sides.t)
    x = unconstrained - _cholesky_solve(system.H_factor, system.A.mT @ y)
    return x, system.ratio * (_matvec(system.G, x) - sides.g), y


def _matvec(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _cholesky_solve(factor: Tensor, right: Tensor) -> Tensor:
    return torch.cholesky_solve(right.unsqueeze(-1), factor).squeeze(-1)
