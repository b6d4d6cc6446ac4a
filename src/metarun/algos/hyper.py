"""A network that writes the weights of another (Ha, Dai and Le 2016, arXiv 1609.09106), from a task's support set.

    h_i = phi(f(x_i)),   r_n = relu(rho(mean of h_i over class n)),   (w_n, b_n) = A r_n,   logits_n = w_n f(x) + b_n

A row of the head depends on the activations of its class alone, as in Qiao et al. 2018 (arXiv 1706.03466) and Gidaris
and Komodakis 2018 (arXiv 1804.09458). A has no bias, since softmax is invariant to what all classes share. Weights of
the body named by `writes` are rewritten first, from the whole task, as in CNAPs (Requeima et al. 2019, arXiv
1906.07697):

    r = mean of h_i over the support,   w <- w + U_w r,   and from there on f is the rewritten body

No gradient is taken within a task. There is one output column for each support item; those of absent labels hold the
lowest number of the type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor
from torch.nn.functional import linear, relu

from metarun.algos.pieces.checks import check_choice, check_counts, check_positive
from metarun.algos.pieces.dense_lstm import dense, dense_init, seeded_generator, uniform_like
from metarun.algos.pieces.losses import metrics_of, task_loss
from metarun.algos.pieces.norm_statistics import BatchNormMode, fresh_buffers, stored_at, update_stored
from metarun.algos.pieces.support_sets import label_means, label_members, mask_absent
from metarun.algos.pieces.weights import body_weights, names_matching
from metarun.types import BUFFERS, Aux, Batch, Episode, Kind, Meta, Net, Params, Sampler, Unroll


class WrittenNet(NamedTuple):
    body: Params
    rows: Tensor  # of the head: weights, then the bias
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
            check_counts(**{name: min(sizes)})
        check_positive(writes_scale=self.writes_scale)
        check_choice("bn", self.bn, ("batch", "support", "running"))

    def init(self, net: Net, weights: Params, seed: int) -> Meta:
        body = body_weights(weights)
        written = names_matching(body, self.writes)
        if self.writes and not written:
            raise ValueError(f"writes={list(self.writes)}: matches no parameter of the body; [] writes the head alone")
        like = weights["head.weight"]
        size = like.shape[1]
        head = dense_init(seed + 2, like, self.rho[-1], size + 1)["0.weight"]
        generator, bound = seeded_generator(seed + 3), self.writes_scale / self.phi[-1] ** 0.5
        delta = {name: uniform_like(generator, like, bound, *body[name].shape, self.phi[-1]) for name in written}
        meta: Meta = {"weights": body, "phi": dense_init(seed, like, size, *self.phi)}
        meta |= {"rho": dense_init(seed + 1, like, self.phi[-1], *self.rho), "head": {"weight": head}}
        # The body before and after rewriting has different statistics: a row for each.
        rows = fresh_buffers("per_step" if self.bn == "running" else self.bn, net, 1 if written else 0)
        return {**meta, **({"delta": delta} if written else {}), **rows}

    def meta_loss(self, net: Net, meta: Meta, episode: Episode, step: Tensor, unroll: Unroll) -> tuple[Tensor, Aux]:
        task, used = self._write(net, meta, episode.support, {}, {})
        stats = used[-1] if self.bn == "support" else {}
        z_QD, query_stats = net.embed(task.body, episode.query.x, stats)
        logits_QS = written_logits(task, z_QD)
        loss = task_loss(logits_QS, episode.query.y)
        buffers = meta.get(BUFFERS, {})
        for row, stats in ((0, used[0]), *((1, each) for each in (*used[1:], query_stats))):
            buffers = update_stored(buffers, row, stats, net.momentum)
        return loss, Aux(metrics_of(loss, logits_QS, episode.query.y), buffers)

    def adapted(self, net: Net, meta: Meta, support: Batch, unroll: Unroll) -> WrittenNet:
        buffers = meta.get(BUFFERS, {})
        task, used = self._write(net, meta, support, stored_at(buffers, 0), stored_at(buffers, 1))
        return task._replace(stats=used[-1] if self.bn == "support" else stored_at(buffers, 1))

    def predict(self, net: Net, meta: Meta, adapted: WrittenNet, x: Tensor) -> Tensor:
        return written_logits(adapted, net.embed(adapted.body, x, adapted.stats)[0])

    def _write(
        self, net: Net, meta: Meta, support: Batch, stats: Params, rewritten_stats: Params
    ) -> tuple[WrittenNet, tuple[Params, ...]]:
        """The written net, and the statistics that its passes over the support used."""
        body = meta["weights"]
        z_SD, first = net.embed(body, support.x, stats)
        h_SH = dense(meta["phi"], z_SD)
        used: tuple[Params, ...] = (first,)
        if "delta" in meta:
            r_H = h_SH.mean(dim=0)
            body = {**body, **{name: body[name] + U @ r_H for name, U in meta["delta"].items()}}
            z_SD, second = net.embed(body, support.x, rewritten_stats)
            h_SH, used = dense(meta["phi"], z_SD), (first, second)
        member_SS = label_members(support.y)
        r_SR = relu(dense(meta["rho"], label_means(h_SH, member_SS)))
        return WrittenNet(body, linear(r_SR, meta["head"]["weight"]), member_SS.any(dim=1), {}), used


def written_logits(task: WrittenNet, z_QD: Tensor) -> Tensor:
    logits_QS = z_QD @ task.rows[:, :-1].T + task.rows[:, -1]
    return mask_absent(logits_QS, task.present)
