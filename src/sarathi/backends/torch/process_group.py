"""The ranks that share the layers of a stage, and what they tell each other."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol, TypeVar

import psutil
import torch
from torch import distributed

from sarathi.errors import ExecutorError
from sarathi.system.sockets import bracketed, own_address

TIMEOUT = 120.0  # seconds until a rank that does not answer counts as lost

T = TypeVar("T")


class ProcessGroup(Protocol):
    """Every rank calls the same operations in the same order."""

    rank: int
    size: int

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """The sum over the ranks, everywhere, the same to the last bit; may be written into `x`.

        Raises:
            ExecutorError: another rank has gone or does not answer; likewise below.
        """

    def broadcast(self, x: torch.Tensor) -> torch.Tensor:
        """What rank 0 has; the others give room for it, which is written to."""

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """The columns of all ranks, in order, on rank 0; `x` on any other. Equal sizes."""

    def close(self) -> None: ...


class SingleRank:
    """A rank that has the layers for itself."""

    rank = 0
    size = 1

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def broadcast(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def close(self) -> None:
        pass


class Rendezvous:
    """Where the ranks of one stage find each other. Rank 0 keeps it."""

    def __init__(self, host: str, port: int, store: distributed.TCPStore) -> None:
        self.address = f"{bracketed(host)}:{port}"
        self.host = host
        self.tcp = store

    @classmethod
    def open(cls, host: str, timeout: float = TIMEOUT) -> Rendezvous:
        """For rank 0.

        Args:
            host: the address under which the other ranks reach this process; it listens there only.
            timeout: seconds.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            # Torch itself would listen at every address of the machine.
            listener = socket.create_server((host, 0), family=family)
        except OSError as error:
            raise ExecutorError(
                f"this machine cannot be reached under the address {host} ({error.strerror})"
            ) from error
        port = listener.getsockname()[1]

        def make() -> distributed.TCPStore:
            return distributed.TCPStore(
                host,
                port,
                is_master=True,
                wait_for_workers=False,
                timeout=timedelta(seconds=timeout),
                master_listen_fd=listener.detach(),
            )

        return cls(host, port, _translated("rank 0 cannot open its store", make))

    @classmethod
    def join(cls, address: str, timeout: float = TIMEOUT) -> Rendezvous:
        """For the other ranks.

        Args:
            address: that of rank 0's store.
            timeout: seconds.
        """
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        message = f"rank 0 of this stage cannot be reached at {address}: is it running?"

        def make() -> distributed.TCPStore:
            return distributed.TCPStore(
                host, int(port), is_master=False, timeout=timedelta(seconds=timeout)
            )

        return cls(host, int(port), _translated(message, make))


class DistributedGroup:
    """Ranks in processes of their own, over NCCL on GPUs and gloo on CPUs.

    It is the process's default group of `torch.distributed`, so a process can have one at a time.
    """

    def __init__(
        self,
        store: Rendezvous,
        rank: int,
        size: int,
        device: torch.device,
        timeout: float = TIMEOUT,
    ) -> None:
        """Meet the other ranks.

        Args:
            timeout: seconds to wait for them, now and in every operation.

        Raises:
            ExecutorError: they do not come.
        """
        self.rank = rank
        self.size = size
        self._reduces = device.type == "cuda"
        if distributed.is_initialized():
            raise ExecutorError(
                "this process has a torch.distributed group already: tensor parallelism needs it"
            )

        def make() -> None:
            with _gloo_interface(store.host):
                distributed.init_process_group(
                    "nccl" if device.type == "cuda" else "gloo",
                    store=store.tcp,
                    rank=rank,
                    world_size=size,
                    timeout=timedelta(seconds=timeout),
                    device_id=device if device.type == "cuda" else None,
                )

        self._run("meet the other ranks", make)

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        if self._reduces:
            self._run("add up", lambda: distributed.all_reduce(x))
            return x
        # Faster than gloo's own sum for a few ranks on one machine (measured: 0.7 to 0.9 of its
        # time at 1 token, 0.5 to 0.7 at 256), and in an order that does not depend on the size.
        parts = [torch.empty_like(x) for _ in range(self.size)]
        self._run("add up", lambda: distributed.all_gather(parts, x))
        total = parts[0].float()
        for part in parts[1:]:
            total = total + part
        return total.to(x.dtype)

    def broadcast(self, x: torch.Tensor) -> torch.Tensor:
        self._run("get what rank 0 has", lambda: distributed.broadcast(x, src=0))
        return x

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(x) for _ in range(self.size)] if self.rank == 0 else None
        self._run("collect logits", lambda: distributed.gather(x, parts, dst=0))
        return x if parts is None else torch.cat(parts, dim=-1)

    def close(self) -> None:
        """Harmless twice, and where other ranks are gone."""
        if distributed.is_initialized():
            distributed.destroy_process_group()

    def _run(self, purpose: str, operation: Callable[[], T]) -> T:
        message = (
            f"rank {self.rank} of {self.size} could not {purpose}: another rank has ended or does "
            "not answer; its own messages say why"
        )
        return _translated(message, operation)


def _translated(message: str, operation: Callable[[], T]) -> T:
    """Do it; what torch says of a failure, at length, goes into the cause and one line here."""
    try:
        return operation()
    except (RuntimeError, ValueError, OSError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ExecutorError(f"{message} ({lines[0][:200]})") from error


@contextmanager
def _gloo_interface(host: str) -> Iterator[None]:
    """Have gloo use the interface that leads to `host`.

    By itself it looks up the machine's own name, which may lead nowhere or to an address that
    others do not reach. There is no other public way to tell it, and it reads the variable only
    when a group is made, so nothing else gets to see it.
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
    """The network interface through which this machine reaches an address, None if unknown."""
    try:
        own = own_address(host)
    except OSError:
        return None
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address.split("%")[0] == own for address in addresses):
            return str(name)
    return None
