"""A network that writes the weights of another (Ha, Dai and Le 2016, arXiv 1609.09106), reading a task's support set.

    h_i = phi(f(x_i)),   r_n = relu(rho(mean of h_i over class n)),   (w_n, b_n) = A r_n,   logits_n = w_n f(x) + b_n

A row of the head comes from the activations of its class alone, as in Qiao et al. 2018 (arXiv 1706.03466) and Gidaris
and Komodakis 2018 (arXiv 1804.09458); A has no bias, since softmax passes over what all classes share. Weights of the
body named by `writes` are rewritten first, from the whole task as in CNAPs (Requeima et al. 2019, arXiv 1906.07697):

    r = mean of h_i over the support,   w <- w + U_w r,   and f is the rewritten body from there on

No gradient is taken within a task. As many columns as support items, those of absent labels at the lowest number.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar, NamedTuple

from torch import Tensor
from torch.nn.functional import linear, relu

from metarun.algos import descent as inner_loop
from metarun.algos.pieces.dense_lstm import dense, dense_init, generator, uniform
from metarun.algos.pieces.norm_statistics import fresh_buffers, recall, record
from metarun.algos.pieces.support_sets import BatchNormMode, lowest_where_absent, means, members
from metarun.types import BUFFERS, Aux, Batch, Episode, Kind, Meta, Net, Params, Sampler, Unroll


class Written(NamedTuple):
    body: Params
    rows: Tensor  # of the head: weights, and the bias last
    present: Tensor
    stats: Params


@dataclass(frozen=True)
class Hyper:
    kinds: ClassVar[frozenset[Kind]] = frozenset({"classes"})
    uses_head: ClassVar[bool] = False
    trains_on: ClassVar[Sampler] = "episodes"

    phi: tuple[int, ...]
    rho: tuple[int, ...]
    writes: tuple[str, ...]
    writes_scale: float
    bn: BatchNormMode

    def __post_init__(self) -> None:
        for name, sizes in (("phi", self.phi), ("rho", self.rho)):
            if not sizes:
                raise ValueError(f"{name}=[]: need at least one size")
            inner_loop.check_steps(**{name: min(sizes)})
        inner_loop.check_rate("writes_scale", self.writes_scale)
        inner_loop.check_choice("bn", self.bn, ("batch", "support", "running"))

    def init(self, net: Net, weights: Params, seed: int) -> Meta:
        body = {name: value for name, value in weights.items() if name.startswith("body.")}
        written = [name for name in body if any(fnmatchcase(name, pattern) for pattern in self.writes)]
        if self.writes and not written:
            raise ValueError(f"writes={list(self.writes)}: matches no parameter of the body; [] writes the head alone")
        like = weights["head.weight"]
        size = like.shape[1]
        head = dense_init(seed + 2, like, self.rho[-1], size + 1)["0.weight"]
        dice, bound = generator(seed + 3), self.writes_scale / self.phi[-1] ** 0.5
        delta = {name: uniform(dice, like, bound, *body[name].shape, self.phi[-1]) for name in written}
        meta: Meta = {"weights": body, "phi": dense_init(seed, like, size, *self.phi)}
        meta |= {"rho": dense_init(seed + 1, like, self.phi[-1], *self.rho), "head": {"weight": head}}
        # The body as it was and as rewritten see other statistics: a row each.
        rows = fresh_buffers("per_step" if self.bn == "running" else self.bn, net, 1 if written else 0)
        return {**meta, **({"delta": delta} if written else {}), **rows}

    def meta_loss(self, net: Net, meta: Meta, episode: Episode, step: Tensor, unroll: Unroll) -> tuple[Tensor, Aux]:
        task, seen = self._write(net, meta, episode.support, {}, {})
        stats = seen[-1] if self.bn == "support" else {}
        z_QD, last = net.embed(task.body, episode.query.x, stats)
        logits_QS = scores(task, z_QD)
        loss = inner_loop.objective(logits_QS, episode.query.y)
        buffers = meta.get(BUFFERS, {})
        for row, used in ((0, seen[0]), *((1, each) for each in (*seen[1:], last))):
            buffers = record(buffers, row, used, net.momentum)
        return loss, Aux(inner_loop.measure(loss, logits_QS, episode.query.y), buffers)

    def adapted(self, net: Net, meta: Meta, support: Batch, unroll: Unroll) -> Written:
        buffers = meta.get(BUFFERS, {})
        task, seen = self._write(net, meta, support, recall(buffers, 0), recall(buffers, 1))
        return task._replace(stats=seen[-1] if self.bn == "support" else recall(buffers, 1))

    def predict(self, net: Net, meta: Meta, adapted: Written, x: Tensor) -> Tensor:
        return scores(adapted, net.embed(adapted.body, x, adapted.stats)[0])

    def _write(
        self, net: Net, meta: Meta, support: Batch, first: Params, then: Params
    ) -> tuple[Written, tuple[Params, ...]]:
        body = meta["weights"]
        z_SD, used = net.embed(body, support.x, first)
        h_SH = dense(meta["phi"], z_SD)
        seen: tuple[Params, ...] = (used,)
        if "delta" in meta:
            r_H = h_SH.mean(dim=0)
            body = {**body, **{name: body[name] + U @ r_H for name, U in meta["delta"].items()}}
            z_SD, used = net.embed(body, support.x, then)
            h_SH, seen = dense(meta["phi"], z_SD), (*seen, used)
        member_SS = members(support.y)
        r_SR = relu(dense(meta["rho"], means(h_SH, member_SS)))
        return Written(body, linear(r_SR, meta["head"]["weight"]), member_SS.any(dim=1), {}), seen


def scores(task: Written, z_QD: Tensor) -> Tensor:
    logits_QS = z_QD @ task.rows[:, :-1].T + task.rows[:, -1]
    return lowest_where_absent(logits_QS, task.present)
