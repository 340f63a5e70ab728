"""Communication between the ranks that share the layers of a stage."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Protocol

import psutil
import torch
from torch import distributed

from sarathi.errors import ExecutorError
from sarathi.system.sockets import bracketed, own_address


class ProcessGroup(Protocol):
    """Every rank calls the same operations in the same order."""

    rank: int
    size: int

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks, on every rank the same to the last bit; may be written into `x`.

        Raises:
            ExecutorError: another rank has ended or does not answer; likewise below.
        """

    def broadcast(self, x: torch.Tensor) -> torch.Tensor:
        """Return rank 0's tensor; on the others it is written into `x`."""

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """Return the columns of all ranks, in order, on rank 0; `x` on others. Equal sizes."""

    def close(self) -> None: ...


class SingleRank:
    """The group of a stage with one rank."""

    rank = 0
    size = 1

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        return x

    broadcast = gather = all_reduce

    def close(self) -> None:
        pass


class Rendezvous:
    """The TCP store through which the ranks of one stage connect. Rank 0 opens it."""

    def __init__(self, host: str, port: int, store: distributed.TCPStore) -> None:
        self.address = f"{bracketed(host)}:{port}"
        self.host = host
        self.store = store

    @classmethod
    def open(cls, host: str, timeout: float) -> Rendezvous:
        """Open it on rank 0, at the address under which the other ranks reach this process: it
        listens there only. They have `timeout` seconds for everything they wait for."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            # Torch itself would listen at every address of the machine.
            listener = socket.create_server((host, 0), family=family)
        except OSError as error:
            raise ExecutorError(
                f"this machine cannot be reached under the address {host} ({error.strerror})"
            ) from error
        port = listener.getsockname()[1]
        with _errors_as("rank 0 cannot open its store"):
            store = distributed.TCPStore(
                host,
                port,
                is_master=True,
                wait_for_workers=False,
                timeout=timedelta(seconds=timeout),
                master_listen_fd=listener.detach(),
            )
        return cls(host, port, store)

    @classmethod
    def join(cls, address: str, timeout: float) -> Rendezvous:
        """Connect, from another rank, to rank 0's store at `address` within `timeout` seconds."""
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        with _errors_as(f"rank 0 of this stage cannot be reached at {address}: is it running?"):
            store = distributed.TCPStore(
                host, int(port), is_master=False, timeout=timedelta(seconds=timeout)
            )
        return cls(host, int(port), store)


class DistributedGroup:
    """Ranks in separate processes, over NCCL on GPUs and gloo on CPUs.

    It is the process's default group of `torch.distributed`, so a process can have one at a time.
    """

    def __init__(
        self,
        rendezvous: Rendezvous,
        rank: int,
        size: int,
        device: torch.device,
        timeout: float,
    ) -> None:
        """Wait until all ranks have connected.

        Raises:
            ExecutorError: one does not within `timeout` seconds, as in every operation later on.
        """
        self.rank = rank
        self.size = size
        self._reduces = device.type == "cuda"
        if distributed.is_initialized():
            raise ExecutorError(
                "this process has a torch.distributed group already: tensor parallelism needs it"
            )

        # Ranks find each other under the number of groups that a process has made, which a failed
        # attempt increments and only the end of a group resets: the next group would wait for keys
        # that no other rank writes. No public function resets it.
        distributed.distributed_c10d._world.group_count = 0
        on_gpu = device.type == "cuda"
        with self._errors_while("connect to the other ranks"), _gloo_interface(rendezvous.host):
            distributed.init_process_group(
                "nccl" if on_gpu else "gloo",
                store=rendezvous.store,
                rank=rank,
                world_size=size,
                timeout=timedelta(seconds=timeout),
                device_id=device if on_gpu else None,
            )

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        if self._reduces:
            with self._errors_while("sum"):
                distributed.all_reduce(x)
            return x
        # Faster than gloo's own sum for a few ranks on one machine (measured: 0.7 to 0.9 of its
        # time at 1 token, 0.5 to 0.7 at 256), and in an order that does not depend on the size.
        parts = [torch.empty_like(x) for _ in range(self.size)]
        with self._errors_while("sum"):
            distributed.all_gather(parts, x)
        total = parts[0].float()
        for part in parts[1:]:
            total = total + part
        return total.to(x.dtype)

    def broadcast(self, x: torch.Tensor) -> torch.Tensor:
        with self._errors_while("receive from rank 0"):
            distributed.broadcast(x, src=0)
        return x

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(x) for _ in range(self.size)] if self.rank == 0 else None
        with self._errors_while("gather logits"):
            distributed.gather(x, parts, dst=0)
        return x if parts is None else torch.cat(parts, dim=-1)

    def close(self) -> None:
        """Leave the group. Harmless twice, and after other ranks have ended."""
        if distributed.is_initialized():
            distributed.destroy_process_group()

    def _errors_while(self, purpose: str) -> AbstractContextManager[None]:
        return _errors_as(
            f"rank {self.rank} of {self.size} could not {purpose}: another rank has ended or does "
            "not answer; see its own messages"
        )


@contextmanager
def _errors_as(message: str) -> Iterator[None]:
    """Raise `ExecutorError`s with a message; of torch's long one, only the first line is kept."""
    try:
        yield
    except (RuntimeError, ValueError, OSError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ExecutorError(f"{message} ({lines[0][:200]})") from error


@contextmanager
def _gloo_interface(host: str) -> Iterator[None]:
    """Make gloo use the interface that leads to `host`.

    By default it looks up the machine's own name, which may not resolve, or to an address that
    others do not reach. There is no other public way to configure it, and it reads the variable
    only when a group is made, so it is set just then.
    """
    name = "GLOO_SOCKET_IFNAME"
    found = None if name in os.environ else interface_towards(host)
    if found is None:
        yield
        return
    os.environ[name] = found
    try:
        yield
    finally:
        del os.environ[name]


def interface_towards(host: str) -> str | None:
    """Return the network interface through which this machine reaches an address, if known."""
    try:
        own = own_address(host)
    except OSError:
        return None
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address.split("%")[0] == own for address in addresses):
            return str(name)
    return None
