"""Ranks: processes that run the same loop, each on its own share of the tasks. What they find is summed over all ranks.

Every rank applies the same update to its own copy of the state, so all copies stay equal. Rank 0 is the process of the
user; it alone writes, logs and prints. launch_ranks.py starts the others. Sums go through torch.distributed: gloo on
CPUs, NCCL on GPUs. A process by itself is OneRank and does not load torch.distributed.
"""

from __future__ import annotations

import pickle
import signal
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from metarun.errors import RunError
from metarun.types import Aux, Meta

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
Sent = TypeVar("Sent")


class Ranks(Protocol):
    """The ranks of a run, seen from one of them."""

    @property
    def rank(self) -> int:
        """The number of this rank, from 0."""
        ...

    @property
    def count(self) -> int: ...

    def share(self, index_T: Tensor) -> Tensor:
        """The part of these tasks that this rank works on."""
        ...

    def mean(self, grads: Meta, aux: Aux, share: float, asked: int | None) -> tuple[Meta, Aux]:
        """The mean over the tasks of all ranks. `grads` and `aux` are the mean over the tasks of this rank alone.

        `share`: its part of all tasks, from 0 to 1. `asked`: the signal that asked it to stop; it travels with the sum.
        """
        ...

    def stop_after_step(self, asked: int | None) -> int | None:
        """The signal that asked any rank to stop, as `mean` brought it: at one step, all ranks get the same answer."""
        ...

    def stop_anywhere(self, asked: int | None) -> int | None:
        """The same, asked for where no `mean` is taken, as in an evaluation."""
        ...

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks of tensors on the CPU; bit for bit the same on all of them."""
        ...

    def from_first(self, value: Sent | None) -> Sent:
        """The value that rank 0 gives; what the others give is not looked at."""
        ...


class OneRank:
    """A process by itself."""

    rank, count = 0, 1

    def share(self, index_T: Tensor) -> Tensor:
        return index_T

    def mean(self, grads: Meta, aux: Aux, share: float, asked: int | None) -> tuple[Meta, Aux]:
        return grads, aux

    def stop_after_step(self, asked: int | None) -> int | None:
        return asked

    def stop_anywhere(self, asked: int | None) -> int | None:
        return asked

    def sum(self, values: Tensor) -> Tensor:
        return values

    def from_first(self, value: Sent | None) -> Sent:
        assert value is not None, "rank 0 gives no value"
        return value


class Work(Protocol):
    """A collective operation under way."""

    def wait(self) -> object: ...


class ProcessGroup(Protocol):
    """What is used of torch.distributed's groups; its type stubs do not name these methods."""

    def allreduce(self, values: Tensor, /) -> Work: ...

    def broadcast(self, values: Tensor, root: int, /) -> Work: ...


class Groups(NamedTuple):
    """The same ranks, for tensors on the CPU and on GPUs."""

    cpu: ProcessGroup
    cuda: ProcessGroup | None


class RankGroup:
    """One rank of several. `explained` says why an operation failed: another rank has ended."""

    def __init__(
        self,
        rank: int,
        count: int,
        device: torch.device,
        groups: Groups,
        explained: Callable[[RuntimeError], RunError],
    ) -> None:
        self.rank, self.count, self.device = rank, count, device
        self._groups, self._explained = groups, explained
        # Requests to stop that the host has not read yet, each with what waits until it can be read. On a GPU the host
        # reads those of the step before the last one, and so stays a step ahead of the device.
        self._requests: deque[tuple[Tensor, Callable[[], object]]] = deque()
        self._unread = 1 if device.type == "cuda" else 0
        self._stop: int | None = None

    def share(self, index_T: Tensor) -> Tensor:
        sizes = share_sizes(len(index_T), self.count)
        start = sum(sizes[: self.rank])
        return index_T[start : start + sizes[self.rank]]

    def mean(self, grads: Meta, aux: Aux, share: float, asked: int | None) -> tuple[Meta, Aux]:
        groups = [*grads.values(), aux.metrics, aux.buffers]
        tensors = [value for params in groups for value in params.values()]
        # A new tensor at each step: the results are views of it, and the outer step may keep them.
        flat = torch.cat([*(value.reshape(-1) for value in tensors), _stop_request(asked).to(tensors[0])]).mul_(share)
        self._all_reduce(flat)
        *pieces, request = torch.split(flat, [*(value.numel() for value in tensors), len(STOP_SIGNALS)])
        self._read_later(request)
        means = iter([piece.view_as(value).to(value.dtype) for piece, value in zip(pieces, tensors, strict=True)])
        *of_grads, metrics, buffers = [{name: next(means) for name in params} for params in groups]
        return dict(zip(grads, of_grads, strict=True)), Aux(metrics, buffers)

    def _read_later(self, request: Tensor) -> None:
        if not request.is_cuda:
            self._requests.append((request, lambda: None))
            return
        on_host = torch.empty(request.shape, dtype=request.dtype, pin_memory=True)
        on_host.copy_(request, non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        copied.record()
        self._requests.append((on_host, copied.synchronize))

    def stop_after_step(self, asked: int | None) -> int | None:
        while len(self._requests) > self._unread:
            request, wait = self._requests.popleft()
            wait()
            self._stop = self._stop or _requested(request)
        return self._stop

    def stop_anywhere(self, asked: int | None) -> int | None:
        self._stop = self._stop or _requested(self.sum(_stop_request(asked)))
        return self._stop

    def sum(self, values: Tensor) -> Tensor:
        found = values.clone()
        self._all_reduce(found)
        return found

    def from_first(self, value: Sent | None) -> Sent:
        content = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
        size = int(self.broadcast(torch.tensor(len(content))))
        received = self.broadcast(content if self.rank == 0 else content.new_empty(size))
        found: Sent = pickle.loads(received.numpy().tobytes())
        return found

    def broadcast(self, values: Tensor) -> Tensor:
        """Rank 0's values, written into those of the others; tensors on the CPU."""
        try:
            self._groups.cpu.broadcast(values, 0).wait()
        except RuntimeError as problem:
            raise self._explained(problem) from problem
        return values

    def _all_reduce(self, values: Tensor) -> None:
        group = self._groups.cuda if values.is_cuda else self._groups.cpu
        assert group is not None, f"ranks on {self.device} do not sum tensors on {values.device}"
        try:
            group.allreduce(values).wait()
        except RuntimeError as problem:
            raise self._explained(problem) from problem


def share_sizes(tasks: int, count: int) -> list[int]:
    """Tasks of each rank, as equal as can be. Rank 0 has other work too and never has the larger share."""
    least, over = divmod(tasks, count)
    return [least + (rank >= count - over) for rank in range(count)]


def _stop_request(asked: int | None) -> Tensor:
    """A signal as numbers that can be summed: 1 for the one that was sent."""
    return torch.tensor([float(asked == number) for number in STOP_SIGNALS])


def _requested(request: Tensor) -> int | None:
    """The strongest signal in a sum of requests."""
    sent = [number for number, times in zip(STOP_SIGNALS, request.tolist(), strict=True) if times > 0]
    return max(sent, default=None)
