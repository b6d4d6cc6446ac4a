"""CAVIA: fast context adaptation (Zintgraf, Shiarlis, Kurin, Hofmann and Whiteson 2019, arXiv 1810.03642).

    phi_0 = 0,   phi_k+1 = phi_k - alpha * grad L(w(phi_k); support),   meta-loss = L(w(phi_K); query)

The inner loop adapts the context phi alone. phi conditions one layer, of weight W and bias b, on its input x:

    film:    gamma o (W x + b) + beta,   gamma = 1 + W_gamma phi,   beta = W_beta phi
    concat:  [W, W_phi] [x; phi] + b

Both are the same layer with another weight and bias, so networks need no change. W may be a norm layer's scale. The
paper's gamma and beta have learned constants instead of 1 and 0; W and b take their place. Its released code max-pools
before film, which differs where gamma < 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from metarun.algos.descent import InnerGradient, StatelessDescent
from metarun.algos.pieces.checks import check_choice, check_counts
from metarun.algos.pieces.dense_lstm import seeded_generator, uniform_like
from metarun.algos.pieces.weights import gradient_step
from metarun.types import Meta, Net, Params, StepIndex

CONTEXT = "context"  # the name of phi; and the entry of Meta with W_gamma and W_beta, or W_phi


@dataclass(frozen=True)
class CAVIA(StatelessDescent):
    context: int
    condition: Literal["film", "concat"]
    layer: int  # number of the conditioned layer, among the body's layers with weight and bias

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(context=self.context)
        check_choice("condition", self.condition, ("film", "concat"))
        if self.adapt != (CONTEXT,):
            raise ValueError(f"adapt={list(self.adapt)}: CAVIA moves its context alone; use [{CONTEXT}]")

    def init(self, net: Net, weights: Params, seed: int) -> Meta:
        layer = conditioned_layer(weights, self.condition, self.layer)
        generator, like = seeded_generator(seed), weights[f"{layer}.bias"]
        inputs = self.context + (weights[f"{layer}.weight"].shape[1] if self.condition == "concat" else 0)
        conditioned = ("weight", "bias") if self.condition == "film" else ("bias",)
        W_phi = {
            f"{layer}.{leaf}": uniform_like(generator, like, inputs**-0.5, len(like), self.context)
            for leaf in conditioned
        }
        # Descent.init requires that `adapt` names one of the weights.
        meta = super().init(net, {**weights, CONTEXT: like}, seed)
        return {**meta, "weights": {n: w for n, w in meta["weights"].items() if n != CONTEXT}, CONTEXT: W_phi}

    def fast_weights(self, meta: Meta) -> Params:
        return {CONTEXT: next(iter(meta[CONTEXT].values())).new_zeros(self.context)}

    def net_weights(self, meta: Meta, fast: Params, k: StepIndex) -> Params:
        theta = super().net_weights(meta, {}, k)
        W_phi = {name: w_CK @ fast[CONTEXT] for name, w_CK in meta[CONTEXT].items()}
        *scale, bias = W_phi
        changed = {bias: theta[bias] + W_phi[bias]}
        for weight in scale:
            gamma_C = 1 + W_phi[weight]
            gamma = gamma_C.reshape(-1, *(1,) * (theta[weight].dim() - 1))
            changed = {weight: gamma * theta[weight], bias: gamma_C * theta[bias] + W_phi[bias]}
        return {**theta, **changed}

    def step(self, meta: Meta, fast: Params, inner: InnerGradient) -> Params:
        return gradient_step(self.inner_lr, fast, inner.gradient)


def conditioned_layer(weights: Params, condition: str, number: int) -> str:
    """The name of the layer that phi conditions."""
    biased = [name.removesuffix(".bias") for name in weights if name.startswith("body.") and name.endswith(".bias")]
    layers = [layer for layer in biased if f"{layer}.weight" in weights and weights[f"{layer}.bias"].dim() == 1]
    if not -len(layers) <= number < len(layers):
        found = f"{len(layers)} such layers ({', '.join(layers)})" if layers else "no such layer"
        raise ValueError(f"layer={number}: counts the body's layers with weight and bias; this model has {found}")
    layer = layers[number]
    if condition == "concat" and weights[f"{layer}.weight"].dim() != 2:
        raise ValueError(f"condition=concat: {layer} is no linear layer; use film, or another layer")
    return layer
