"""Meta-Curvature: learned matrices that turn the inner gradient, one for each of its modes (Park and Oliva 2019, arXiv
1902.03356).

    w_0 = theta,   w_k+1 = w_k - alpha * MC(grad L(w_k; support)),   meta-loss = L(w_K; query)
    MC(G) = G x_3 M_f x_2 M_i x_1 M_o

for the gradient G_OIF of a convolution: O outputs, I inputs, and F = height * width of its filter. That of a matrix has
no third mode: M_o G M_i'. The vectors, biases and a norm's scales and shifts, have one mode, and their M_o is diagonal,
as in learn2learn. All start as identities, where this is MAML, and are learned together with theta.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metarun.algos import descent as inner_loop
from metarun.algos.descent import Descent, Slope
from metarun.types import Meta, Net, Params

MODES = ("out", "in", "filter")


@dataclass(frozen=True)
class MetaCurvature(Descent):
    def init(self, net: Net, weights: Params, seed: int) -> Meta:
        meta = super().init(net, weights, seed)
        M: Params = {}
        for name, w in self.moving(meta).items():
            if w.dim() == 1:
                M[f"{name}.out"] = torch.ones_like(w)
                continue
            for mode, size in zip(MODES, by_modes(w).shape, strict=False):
                M[f"{name}.{mode}"] = torch.eye(size, dtype=w.dtype, device=w.device)
        return {**meta, "curvature": M}

    def update(self, meta: Meta, moving: Params, slope: Slope, state: Any) -> tuple[Params, Any]:
        M = meta["curvature"]
        turned = {name: curved(M, name, G) for name, G in slope.gradient.items()}
        return inner_loop.plain(self.inner_lr, moving, turned), state


def curved(M: Params, name: str, G: Tensor) -> Tensor:
    if G.dim() == 1:
        return M[f"{name}.out"] * G
    out = by_modes(G)
    for n, mode in enumerate(MODES[: out.dim()]):
        out = torch.tensordot(M[f"{name}.{mode}"], out, dims=([1], [n])).movedim(0, n)
    return out.reshape(G.shape)


def by_modes(w: Tensor) -> Tensor:
    return w.flatten(2) if w.dim() > 2 else w
