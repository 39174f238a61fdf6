"""Several processes that train as one, each with its share of every batch's images: ranks.

Whatever is a sum over images (class sums, the statistics of batch normalisation, gradients) is
summed over all of them, so that N ranks are one. Sums are bitwise the same on every rank.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.distributed.rendezvous import rendezvous

BUCKET = 25 * 2**20  # bytes of gradients that are sent together, as DDP does
# One that died is noticed at once; this is for those that wait, for pictures of a validation say.
_TIMEOUT = timedelta(minutes=30)
_PATIENCE = timedelta(seconds=3)  # with a place where a rank is no more


class RankLost(ConnectionError):
    """Another rank ended, or the way to it."""


class Ranks:
    """This process and the others of its group, which is torch.distributed's default one.

    Args:
        rank: of this process, from 0.
        size: how many there are.
        images: of each domain in this rank's part of a batch; None: a batch is of one domain.

    Attributes:
        bytes: payload of all sums and broadcasts so far.
    """

    def __init__(self, rank: int, size: int, images: int | None = None) -> None:
        self.rank, self.size, self.images = rank, size, images
        self.bytes = 0

    @property
    def first(self) -> bool:
        """Whether this is rank 0, the one that writes."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Which of ``count`` items, in order, are this rank's."""
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all ranks; differentiable in any order."""
        return _Sum.apply(self, tensor)

    def total(self, tensor: Tensor) -> Tensor:
        """The same without a graph."""
        total = tensor.detach().clone(memory_format=torch.contiguous_format)
        self._wait(self._reduce(total))
        return total

    def totals(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Sums over all ranks of many tensors, such as gradients; sent in buckets, no graph."""
        buckets: list[list[int]] = []
        sizes: dict[torch.dtype, int] = {}
        last: dict[torch.dtype, list[int]] = {}
        for index, tensor in enumerate(tensors):
            dtype, size = tensor.dtype, tensor.numel() * tensor.element_size()
            if dtype not in last or sizes[dtype] + size > BUCKET:
                last[dtype], sizes[dtype] = [], 0
                buckets.append(last[dtype])
            last[dtype].append(index)
            sizes[dtype] += size
        sent = []
        for bucket in buckets:
            flat = torch.cat([tensors[index].detach().reshape(-1) for index in bucket])
            sent.append((flat, self._reduce(flat)))
        found = [torch.empty_like(tensor) for tensor in tensors]
        for bucket, (flat, work) in zip(buckets, sent, strict=True):
            self._wait(work)
            parts = flat.split([found[index].numel() for index in bucket])
            for index, part in zip(bucket, parts, strict=True):
                found[index].copy_(part.view(found[index].shape))
        return found

    def largest(self, number: int) -> int:
        """The largest of the ranks' numbers: what they agree on. Waits for no GPU."""
        value = torch.tensor(number)
        self._wait(self._call(dist.all_reduce, value, dist.ReduceOp.MAX))
        return int(value)

    def as_first(self, tensors: Sequence[Tensor]) -> None:
        """Put rank 0's values in place."""
        for tensor in tensors:
            flat = tensor.detach().contiguous()
            self._wait(self._call(dist.broadcast, flat, 0))
            if not self.first:
                tensor.detach().copy_(flat)

    def _reduce(self, tensor: Tensor) -> dist.Work:
        return self._call(dist.all_reduce, tensor)

    def _call(self, collective: Any, tensor: Tensor, *how: Any) -> dist.Work:
        self.bytes += tensor.numel() * tensor.element_size()
        try:
            return collective(tensor, *how, async_op=True)
        except RuntimeError as error:
            raise self._lost(error) from None

    def _wait(self, work: dist.Work) -> None:
        try:
            work.wait()
        except RuntimeError as error:
            raise self._lost(error) from None

    def _lost(self, error: RuntimeError) -> RankLost:
        return RankLost(f"rank {self.rank} lost another one: {_reason(error)}")


class _Sum(Function):
    """The gradient of a sum over ranks is the sum of their gradients: it is its own backward."""

    @staticmethod
    def forward(ctx: Any, ranks: Ranks, tensor: Tensor) -> Tensor:
        ctx.ranks = ranks
        return ranks.total(tensor)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        return None, _Sum.apply(ctx.ranks, cotangent)


# Those that are entered; not of a thread, since a GPU's backward pass runs in one of its own.
entered: list[Any] = []


def active() -> Ranks | None:
    """The ranks that share the pass that runs now, see :class:`pinmem.whole_batch.WholeBatch`."""
    return entered[-1].ranks if entered else None


@contextlib.contextmanager
def one_ahead(ranks: Ranks | None) -> Iterator[None]:
    """Each machine's first rank goes through alone, to fetch or make what the others find."""
    if ranks is None:
        yield
        return
    ahead = int(os.environ.get("LOCAL_RANK", ranks.rank)) == 0
    if not ahead:
        ranks.largest(0)
    yield
    if ahead:
        ranks.largest(0)


def started() -> int:
    """How many ranks torchrun started, or whatever sets RANK and WORLD_SIZE as it does; 1: none."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1


def join(device: torch.device, images: int) -> Ranks:
    """Meet the other ranks that were started.

    Args:
        device: this rank's; its tensors go through NCCL on a GPU, those of the CPU through gloo.
        images: of each domain in this rank's part of a batch.

    Raises:
        RankLost: they were not found.
    """
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        rank, size = int(os.environ["RANK"]), started()
        try:
            dist.init_process_group(
                backend, store=_store(rank, size), rank=rank, world_size=size, timeout=_TIMEOUT
            )
        except RuntimeError as error:
            raise RankLost(f"rank {rank} did not find the others: {_reason(error)}") from None
    return Ranks(dist.get_rank(), dist.get_world_size(), images)


def _store(rank: int, size: int) -> dist.Store:
    """Where the ranks find each other.

    torchrun's own outlives those that died: ranks that are started again would find their addresses
    in it. So it only says where the first rank has a new one.
    """
    torchruns, _, _ = next(rendezvous("env://", rank, size, timeout=_TIMEOUT))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return torchruns
    host, key = os.environ["MASTER_ADDR"], "pinmem/port"
    if rank == 0:
        store = dist.TCPStore(host, 0, size, is_master=True, wait_for_workers=False)
        torchruns.set(key, str(store.port))
        return store
    give_up = time.monotonic() + _TIMEOUT.total_seconds()
    while True:
        port = int(torchruns.get(key))  # waits for it
        try:
            return dist.TCPStore(host, port, size, is_master=False, timeout=_PATIENCE)
        except RuntimeError:  # that of a rank that died
            if time.monotonic() > give_up:
                raise


def _reason(error: RuntimeError) -> str:
    """What gloo or NCCL say, without a place in their code and advice."""
    return re.sub(r"\[[^ ]*\.cc:\d+\] ", "", str(error).splitlines()[0]).partition(". ")[0]


def leave() -> None:
    """Part from the other ranks, where there are any; at the end of a run that went well."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
