"""Meta-Curvature: learned matrices transform the inner gradient, one for each of its modes (Park and Oliva 2019, arXiv
1902.03356).

    w_0 = theta,   w_k+1 = w_k - alpha * MC(grad L(w_k; support)),   meta-loss = L(w_K; query)
    MC(G) = G x_3 M_f x_2 M_i x_1 M_o

G_OIF is the gradient of a convolution: O outputs, I inputs, F = height * width of its filter. The gradient of a matrix
has no third mode: M_o G M_i'. Vectors (biases, scales and shifts of a norm) have one mode, and their M_o is diagonal,
as in learn2learn. All matrices start as identities, where this is MAML, and are learned with theta.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metarun.algos.descent import InnerGradient, StatelessDescent
from metarun.algos.pieces.weights import gradient_step
from metarun.types import Meta, Net, Params

MODES = ("out", "in", "filter")


@dataclass(frozen=True)
class MetaCurvature(StatelessDescent):
    def init(self, net: Net, weights: Params, seed: int) -> Meta:
        meta = super().init(net, weights, seed)
        M: Params = {}
        for name, w in self.fast_weights(meta).items():
            if w.dim() == 1:
                M[f"{name}.out"] = torch.ones_like(w)
                continue
            for mode, size in zip(MODES, by_modes(w).shape, strict=False):
                M[f"{name}.{mode}"] = torch.eye(size, dtype=w.dtype, device=w.device)
        return {**meta, "curvature": M}

    def step(self, meta: Meta, fast: Params, inner: InnerGradient) -> Params:
        M = meta["curvature"]
        return gradient_step(self.inner_lr, fast, {name: curved(M, name, G) for name, G in inner.gradient.items()})


def curved(M: Params, name: str, G: Tensor) -> Tensor:
    """MC(G) of one weight."""
    if G.dim() == 1:
        return M[f"{name}.out"] * G
    out = by_modes(G)
    for n, mode in enumerate(MODES[: out.dim()]):
        out = torch.tensordot(M[f"{name}.{mode}"], out, dims=([1], [n])).movedim(0, n)
    return out.reshape(G.shape)


def by_modes(w: Tensor) -> Tensor:
    """[o, i, h, w] as [o, i, h * w]; a matrix as it is."""
    return w.flatten(2) if w.dim() > 2 else w
