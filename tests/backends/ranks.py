"""Ranks of one stage: the first in this process, as in an engine, the others in children."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sarathi.backends.step import Step
from sarathi.backends.torch.process_group import DistributedGroup, Rendezvous
from sarathi.backends.torch.torch_executor import TorchExecutor
from sarathi.models.sharding import Shard
from tests.backends.engines import load_torch

HOST = "127.0.0.1"
TIMEOUT = 60.0  # seconds
CPU = torch.device("cpu")


class Crew:
    """Children that wait for something to do, so that they start once for many groups."""

    def __init__(self, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        pipes = [context.Pipe() for _ in range(count)]
        self._children = [
            context.Process(target=_serve, args=(theirs,), daemon=True) for _, theirs in pipes
        ]
        for child in self._children:
            child.start()
        self.pipes = [ours for ours, _ in pipes]

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.send(None)
        for child in self._children:
            child.join(TIMEOUT)
            assert child.exitcode == 0


def _serve(pipe: Connection) -> None:
    """Calls what it is sent, with the pipe, until that is None."""
    torch.set_num_threads(1)
    while (call := pipe.recv()) is not None:
        function, arguments = call
        try:
            pipe.send(function(pipe, *arguments))
        except Exception as error:
            pipe.send(repr(error))


class Ranks:
    """Executors that share the layers, run as one."""

    def __init__(self, executor: TorchExecutor, pipes: list[Connection]) -> None:
        self._executor = executor
        self._pipes = pipes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executor, name)

    def execute(self, step: Step, received: np.ndarray | None = None) -> np.ndarray:
        for pipe in self._pipes:
            pipe.send(step)
        return self._executor.execute(step, received)

    def check(self) -> None:
        for pipe in self._pipes:
            pipe.send("check")
        self._executor.check()


@contextmanager
def ranks(crew: Crew, path: Path, count: int, **options: Any):
    """The model at `path`, shared by `count` ranks."""
    store = Rendezvous.open(HOST, TIMEOUT)
    pipes = crew.pipes[: count - 1]
    for rank, pipe in enumerate(pipes, 1):
        pipe.send((_execute, (path, store.address, rank, count, options)))
    group = DistributedGroup(store, 0, count, CPU, TIMEOUT)
    try:
        executor = load_torch(path, shard=Shard(0, count), group=group, **options)
        yield Ranks(executor, pipes)
    finally:
        for pipe in pipes:
            pipe.send(None)
            assert pipe.recv() is None
        group.close()


def _execute(
    pipe: Connection, path: Path, address: str, rank: int, count: int, options: dict[str, Any]
) -> None:
    group = DistributedGroup(Rendezvous.join(address, TIMEOUT), rank, count, CPU, TIMEOUT)
    try:
        executor = load_torch(path, shard=Shard(rank, count), group=group, **options)
        while (step := pipe.recv()) is not None:
            executor.check() if step == "check" else executor.execute(step)
    finally:
        group.close()


def everywhere(crew: Crew, count: int, function: Callable[..., Any]) -> list[Any]:
    """What `function(group)`, of a module, returns on each of `count` ranks."""
    store = Rendezvous.open(HOST, TIMEOUT)
    pipes = crew.pipes[: count - 1]
    for rank, pipe in enumerate(pipes, 1):
        pipe.send((_call, (function, store.address, rank, count)))
    group = DistributedGroup(store, 0, count, CPU, TIMEOUT)
    try:
        return [function(group), *(pipe.recv() for pipe in pipes)]
    finally:
        group.close()


def _call(
    pipe: Connection, function: Callable[..., Any], address: str, rank: int, count: int
) -> Any:
    group = DistributedGroup(Rendezvous.join(address, TIMEOUT), rank, count, CPU, TIMEOUT)
    try:
        return function(group)
    finally:
        group.close()
