"""The messages between an engine and the processes that compute its stages.

Everything goes over one pair of sockets per process, so it arrives in the order in which it was
sent: a step never overtakes the call before it.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
import numpy as np

from sarathi.backends.model_instance import InstancePart
from sarathi.backends.parallel.rank_layout import ParallelLayout, RankId
from sarathi.backends.registry import ExecutorOptions
from sarathi.backends.step import Step
from sarathi.models.weights import Array


class WorkerSpec(msgspec.Struct, frozen=True):
    """The command-line argument of a worker process, as JSON."""

    model: str  # a path
    options: ExecutorOptions
    layout: ParallelLayout
    rank_id: RankId
    parent: int | None  # process id: the worker ends when that process does; None: no parent
    remote: bool  # whether the other processes may be on other machines


class Hello(msgspec.Struct, tag="hello", array_like=True, frozen=True):
    """A worker has opened the model and its sockets; no weights are loaded yet."""

    fingerprint: str  # of the model that it found; see `model_instance.fingerprint`
    versions: str  # see `model_instance.versions`
    host: str  # the name of its machine
    inbox: str | None  # where it receives hidden states; None: first stage, or not rank 0
    rendezvous: str | None  # of the ranks of its stage, if it is rank 0 of several


class Connect(msgspec.Struct, tag="connect", array_like=True, frozen=True):
    """Connect to the other processes, then load the weights."""

    next_stage: str | None  # the inbox of the next stage
    rendezvous: str | None  # of its stage; None for the rank that has opened it
    local_world_size: int  # processes of this engine on the same machine, itself included
    local_rank: int  # its number among them


class Loading(msgspec.Struct, tag="loading", array_like=True, frozen=True):
    """Progress of loading the weights."""

    share: float  # that has been read


class Loaded(msgspec.Struct, tag="loaded", array_like=True, frozen=True):
    """An executor is ready to be given a KV cache."""

    part: InstancePart


class MethodCall(msgspec.Struct, tag="call", array_like=True, frozen=True):
    """Have every process do the same at the same time; see `StageWorker.call`."""

    method: Literal["allocate", "check", "start_warming_up", "stop_warming_up"]
    arguments: list[int] = []


class RunStep(msgspec.Struct, tag="run", array_like=True, frozen=True):
    """Run a step."""

    id: int
    step: Step


class Stop(msgspec.Struct, tag="stop", array_like=True, frozen=True):
    """End the process."""


class Done(msgspec.Struct, tag="done", array_like=True, frozen=True):
    """A `MethodCall` has returned."""


class WorkerFailed(msgspec.Struct, tag="failed", array_like=True, frozen=True):
    """The last message of a worker that fails."""

    message: str


class FirstStageDone(msgspec.Struct, tag="passed", array_like=True, frozen=True):
    """The first stage has computed a step and is idle until the next one comes."""

    id: int


ToWorker = Connect | MethodCall | RunStep | Stop
FromWorker = Hello | Loading | Loaded | Done | FirstStageDone | WorkerFailed


def _encode_array(array: Any) -> tuple[str, bytes]:
    assert isinstance(array, np.ndarray)
    return array.dtype.str, array.tobytes()


def _decode_array(kind: Any, encoded: Any) -> Array:
    dtype, content = encoded
    # A copy, since torch warns of arrays that cannot be written to.
    return np.frombuffer(content, dtype).copy()


_to_worker: msgspec.msgpack.Decoder[ToWorker]
_to_worker = msgspec.msgpack.Decoder(ToWorker, dec_hook=_decode_array)
_from_worker: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)

# A message is one frame.
encode = msgspec.msgpack.Encoder(enc_hook=_encode_array).encode
decode_to_worker = _to_worker.decode
decode_from_worker = _from_worker.decode
