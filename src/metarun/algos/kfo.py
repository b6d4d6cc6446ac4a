"""Meta-KFO: a learned Kronecker-factored network between the inner gradient and the step (Arnold, Iqbal and Sha 2021,
"When MAML can adapt fast and how to assist when it cannot", arXiv 1910.13603).

    w_0 = theta,   w_k+1 = w_k - alpha * U(grad L(w_k; support); xi_k),   meta-loss = L(w_K; query)
    a layer of U:  X -> L X R + B,   that is  vec X -> (R' kron L) vec X + vec B;   a relu between two layers

X_nm is the gradient of a matrix [n, m]. A convolution [o, n, h, w] is o matrices [n, h * w] with the same U; a vector
[n] is [n, 1]. `psd` replaces L and R by L'L and R'R. Factors start as identities and B as zero, so that U(X) = X and
this is MAML, unless there is a relu, with which U starts as relu(X).

With `adapt_transform` the inner loop adapts the network too, on the loss after its last step:

    xi_0 = xi,   xi_k = xi_k-1 - alpha * grad_xi L(w_k; support) at xi_k-1,
    where grad_xi L(w_k; support) = -alpha * (dU(G_k-1; xi) / dxi)' G_k   and   G_k = grad L(w_k; support)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.func import vjp

from metarun.algos.descent import Descent, InnerGradient
from metarun.algos.pieces.checks import check_choice, check_counts
from metarun.algos.pieces.weights import detached, gradient_step
from metarun.types import Meta, Net, Params


class TransformState(NamedTuple):
    """The network before step k, and what its own step needs of step k-1."""

    xi: Params  # xi_k-1
    gradient: Params  # G_k-1; zero before the first step
    rate: Tensor  # alpha^2; zero before the first step


@dataclass(frozen=True)
class KFO(Descent[TransformState]):
    layers: int
    activation: Literal["none", "relu"]
    bias: bool
    psd: bool
    adapt_transform: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(layers=self.layers)
        check_choice("activation", self.activation, ("none", "relu"))
        if self.adapt_transform and self.second_order_from:
            raise ValueError(
                f"second_order_from={self.second_order_from}: with adapt_transform=true the order stays as it is; "
                "use second_order_from=0 or adapt_transform=false"
            )

    def init(self, net: Net, weights: Params, seed: int) -> Meta:
        meta = super().init(net, weights, seed)
        xi: Params = {}
        for name, w in self.fast_weights(meta).items():
            n, m = as_matrices(w).shape[-2:]
            for i in range(self.layers):
                xi[f"{name}.{i}.left"] = torch.eye(n, dtype=w.dtype, device=w.device)
                xi[f"{name}.{i}.right"] = torch.eye(m, dtype=w.dtype, device=w.device)
                if self.bias:
                    xi[f"{name}.{i}.bias"] = w.new_zeros(n, m)
        return {**meta, "network": xi}

    def init_state(self, meta: Meta, fast: Params) -> TransformState:
        zero = {name: torch.zeros_like(w) for name, w in fast.items()}
        return TransformState(meta["network"], zero, next(iter(fast.values())).new_zeros(()))

    def update(
        self, meta: Meta, fast: Params, inner: InnerGradient, state: TransformState
    ) -> tuple[Params, TransformState]:
        xi, G = state.xi, inner.gradient
        if self.adapt_transform:
            at = (xi, state.gradient)
            if self.derivatives == "first":
                at = (detached(xi), detached(state.gradient))
            uphill, _ = vjp(self.transformed, *at)[1](G)
            xi = {name: value + state.rate * uphill[name] for name, value in xi.items()}
        w = gradient_step(self.inner_lr, fast, self.transformed(xi, G))
        return w, TransformState(xi, G, torch.full_like(state.rate, self.inner_lr**2))

    def transformed(self, xi: Params, G: Params) -> Params:
        """U(G; xi)."""
        return {name: self._transformed_weight(xi, name, g) for name, g in G.items()}

    def _transformed_weight(self, xi: Params, name: str, g: Tensor) -> Tensor:
        X = as_matrices(g)
        for i in range(self.layers):
            L, R = xi[f"{name}.{i}.left"], xi[f"{name}.{i}.right"]
            X = L.mT @ L @ X @ (R.mT @ R) if self.psd else L @ X @ R
            X = X + xi[f"{name}.{i}.bias"] if self.bias else X
            X = X.relu() if self.activation == "relu" and i < self.layers - 1 else X
        return X.reshape(g.shape)


def as_matrices(w: Tensor) -> Tensor:
    """[n, m] as it is, [n] as [n, 1], and [o, n, h, w] as o times [n, h * w]."""
    return w.flatten(2) if w.dim() > 2 else w.reshape(len(w), -1)
