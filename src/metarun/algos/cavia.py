"""CAVIA: fast context adaptation (Zintgraf, Shiarlis, Kurin, Hofmann and Whiteson 2019, arXiv 1810.03642).

    phi_0 = 0,   phi_k+1 = phi_k - alpha * grad L(w(phi_k); support),   meta-loss = L(w(phi_K); query)

The weights stay; the context phi changes what one layer, of weight W and bias b, does with its input x:

    film:    gamma o (W x + b) + beta,   gamma = 1 + W_gamma phi,   beta = W_beta phi
    concat:  [W, W_phi] [x; phi] + b

Both are the same layer with another weight and bias, so no network has to know of phi; W may be a norm layer's scale.
The paper's gamma and beta have learned constants instead of 1 and 0; W and b can stand for these. In its released code
max-pooling comes before film, which is another thing where gamma < 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from metarun.algos import descent as inner_loop
from metarun.algos.descent import Descent, Slope
from metarun.algos.pieces.dense_lstm import generator, uniform
from metarun.types import Meta, Net, Params

CONTEXT = "context"  # what moves; and the entry of Meta with W_gamma and W_beta, or W_phi, by what they change


@dataclass(frozen=True)
class CAVIA(Descent):
    context: int
    condition: Literal["film", "concat"]
    layer: int  # among those of the body with weight and bias

    def __post_init__(self) -> None:
        super().__post_init__()
        inner_loop.check_steps(context=self.context)
        inner_loop.check_choice("condition", self.condition, ("film", "concat"))
        if self.adapt != (CONTEXT,):
            raise ValueError(f"adapt={list(self.adapt)}: CAVIA moves its context alone; use [{CONTEXT}]")

    def init(self, net: Net, weights: Params, seed: int) -> Meta:
        layer = chosen(weights, self.condition, self.layer)
        dice, like = generator(seed), weights[f"{layer}.bias"]
        inputs = self.context + (weights[f"{layer}.weight"].shape[1] if self.condition == "concat" else 0)
        changed = ("weight", "bias") if self.condition == "film" else ("bias",)
        drawn = {f"{layer}.{leaf}": uniform(dice, like, inputs**-0.5, len(like), self.context) for leaf in changed}
        # Descent wants what is adapted to be one of the weights.
        meta = super().init(net, {**weights, CONTEXT: like}, seed)
        return {**meta, "weights": {n: w for n, w in meta["weights"].items() if n != CONTEXT}, CONTEXT: drawn}

    def moving(self, meta: Meta) -> Params:
        return {CONTEXT: next(iter(meta[CONTEXT].values())).new_zeros(self.context)}

    def weights(self, meta: Meta, moving: Params, k: Any) -> Params:
        theta = super().weights(meta, {}, k)
        by_phi = {name: w_CK @ moving[CONTEXT] for name, w_CK in meta[CONTEXT].items()}
        *scale, bias = by_phi
        changed = {bias: theta[bias] + by_phi[bias]}
        for weight in scale:
            gamma_C = 1 + by_phi[weight]
            wide = gamma_C.reshape(-1, *(1,) * (theta[weight].dim() - 1))
            changed = {weight: wide * theta[weight], bias: gamma_C * theta[bias] + by_phi[bias]}
        return {**theta, **changed}

    def update(self, meta: Meta, moving: Params, slope: Slope, state: Any) -> tuple[Params, Any]:
        return inner_loop.plain(self.inner_lr, moving, slope.gradient), state


def chosen(weights: Params, condition: str, number: int) -> str:
    """The name of the layer that phi changes."""
    rooms = [name.removesuffix(".bias") for name in weights if name.startswith("body.") and name.endswith(".bias")]
    layers = [room for room in rooms if f"{room}.weight" in weights and weights[f"{room}.bias"].dim() == 1]
    if not -len(layers) <= number < len(layers):
        found = f"{len(layers)} such layers ({', '.join(layers)})" if layers else "no such layer"
        raise ValueError(f"layer={number}: counts the body's layers with weight and bias; this model has {found}")
    layer = layers[number]
    if condition == "concat" and weights[f"{layer}.weight"].dim() != 2:
        raise ValueError(f"condition=concat: {layer} is no linear layer; use film, or another layer")
    return layer
