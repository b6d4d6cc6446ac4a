"""Meta-KFO: a learned Kronecker-factored network between the inner gradient and the step (Arnold, Iqbal and Sha 2021,
"When MAML can adapt fast and how to assist when it cannot", arXiv 1910.13603).

    w_0 = theta,   w_k+1 = w_k - alpha * U(grad L(w_k; support); xi_k),   meta-loss = L(w_K; query)
    a layer of U:  X -> L X R + B,   that is  vec X -> (R' kron L) vec X + vec B;   a relu between two layers

X_nm is the gradient of a matrix [n, m]; for a convolution [o, n, h, w] each of its o slices [n, h * w], all by the same
U; a vector [n] is [n, 1]. `psd` puts L'L and R'R in the places of L and R. Factors start as
identities and B as zero: U(X) = X and this is MAML, unless there is a relu, which starts as relu(X).

With `adapt_transform` the network descends in the inner loop too, on the loss that its last step led to:

    xi_0 = xi,   xi_k = xi_k-1 - alpha * grad_xi L(w_k; support) at xi_k-1,
    where grad_xi L(w_k; support) = -alpha * (dU(G_k-1; xi) / dxi)' G_k   and   G_k = grad L(w_k; support)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.func import vjp

from metarun.algos import descent as inner_loop
from metarun.algos.descent import Descent, Slope
from metarun.types import Meta, Net, Params


class Network(NamedTuple):
    """xi_k-1, the gradient it was given, and its rate: zero as long as it was given none."""

    xi: Params
    given: Params
    rate: Tensor


@dataclass(frozen=True)
class KFO(Descent):
    layers: int
    activation: Literal["none", "relu"]
    bias: bool
    psd: bool
    adapt_transform: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        inner_loop.check_steps(layers=self.layers)
        inner_loop.check_choice("activation", self.activation, ("none", "relu"))
        if self.adapt_transform and self.second_order_from:
            raise ValueError(
                f"second_order_from={self.second_order_from}: with adapt_transform=true the order stays as it is; "
                "use second_order_from=0 or adapt_transform=false"
            )

    def init(self, net: Net, weights: Params, seed: int) -> Meta:
        meta = super().init(net, weights, seed)
        xi: Params = {}
        for name, w in self.moving(meta).items():
            n, m = matrices(w).shape[-2:]
            for i in range(self.layers):
                xi[f"{name}.{i}.left"] = torch.eye(n, dtype=w.dtype, device=w.device)
                xi[f"{name}.{i}.right"] = torch.eye(m, dtype=w.dtype, device=w.device)
                if self.bias:
                    xi[f"{name}.{i}.bias"] = w.new_zeros(n, m)
        return {**meta, "network": xi}

    def begin(self, meta: Meta, moving: Params) -> Network:
        nothing = {name: torch.zeros_like(w) for name, w in moving.items()}
        return Network(meta["network"], nothing, next(iter(moving.values())).new_zeros(()))

    def update(self, meta: Meta, moving: Params, slope: Slope, state: Network) -> tuple[Params, Network]:
        xi, G = state.xi, slope.gradient
        if self.adapt_transform:
            at = (xi, state.given)
            if self.derivatives == "first":
                at = (inner_loop.detached(xi), inner_loop.detached(state.given))
            uphill, _ = vjp(self.outputs, *at)[1](G)
            xi = {name: value + state.rate * uphill[name] for name, value in xi.items()}
        w = inner_loop.plain(self.inner_lr, moving, self.outputs(xi, G))
        return w, Network(xi, G, torch.full_like(state.rate, self.inner_lr**2))

    def outputs(self, xi: Params, G: Params) -> Params:
        return {name: self.output(xi, name, g) for name, g in G.items()}

    def output(self, xi: Params, name: str, g: Tensor) -> Tensor:
        X = matrices(g)
        for i in range(self.layers):
            L, R = xi[f"{name}.{i}.left"], xi[f"{name}.{i}.right"]
            X = L.mT @ L @ X @ (R.mT @ R) if self.psd else L @ X @ R
            X = X + xi[f"{name}.{i}.bias"] if self.bias else X
            X = X.relu() if self.activation == "relu" and i < self.layers - 1 else X
        return X.reshape(g.shape)


def matrices(w: Tensor) -> Tensor:
    """[n, m] as it is, [n] as [n, 1], and [o, n, h, w] as o times [n, h * w]."""
    return w.flatten(2) if w.dim() > 2 else w.reshape(len(w), -1)
