"""The messages between an engine and the processes that compute its stages.

Everything goes over one pair of sockets per process, so it arrives in the order in which it was
sent: a step never overtakes the call before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import msgspec
import numpy as np

from sarathi.backends.model_instance import InstancePart
from sarathi.backends.parallel.rank_layout import ParallelLayout, RankId
from sarathi.backends.registry import ExecutorOptions
from sarathi.backends.step import Step

# The arrays of a step, with the element types of `Step`.
_ARRAYS: dict[str, type[np.generic]] = {
    "token_ids": np.int64,
    "positions": np.int64,
    "query_starts": np.int32,
    "past_lens": np.int32,
    "block_ids": np.int32,
    "block_starts": np.int32,
    "sample_rows": np.int64,
}


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
    """Call a method of `StageWorker`, which every process does at the same time."""

    method: Literal["allocate", "check", "start_warming_up", "stop_warming_up"]
    arguments: list[int] = []


class RunStep(msgspec.Struct, tag="run", array_like=True, frozen=True):
    """Run a step; followed by a frame with its arrays, one after the other."""

    id: int
    lengths: list[int]  # elements of each array


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


class DecodedMessage(NamedTuple):
    """A message to a worker, and the step that came with it."""

    message: ToWorker
    step: Step | None


_encoder = msgspec.msgpack.Encoder()
_to_worker = msgspec.msgpack.Decoder(ToWorker)
_from_worker = msgspec.msgpack.Decoder(FromWorker)


def encode(message: ToWorker | FromWorker) -> bytes:
    """Encode a message as one frame."""
    return _encoder.encode(message)


def encode_step(step_id: int, step: Step) -> list[bytes]:
    """Encode a `RunStep` with its step as two frames."""
    arrays = [np.asarray(getattr(step, name), dtype) for name, dtype in _ARRAYS.items()]
    run = RunStep(step_id, [len(array) for array in arrays])
    # All arrays in one frame, since every frame is one more message for ZeroMQ's threads.
    return [encode(run), b"".join(array.tobytes() for array in arrays)]


def decode_to_worker(frames: Sequence[bytes]) -> DecodedMessage:
    """Decode the frames of a message to a worker."""
    message = _to_worker.decode(frames[0])
    if not isinstance(message, RunStep):
        return DecodedMessage(message, None)
    content, offset = frames[1], 0
    arrays = {}
    for (name, dtype), length in zip(_ARRAYS.items(), message.lengths, strict=True):
        array = np.frombuffer(content, dtype, length, offset)
        offset += array.nbytes
        # A copy, since torch warns of arrays that cannot be written to.
        arrays[name] = array.copy()
    return DecodedMessage(message, Step(**arrays))


def decode_from_worker(frame: bytes) -> FromWorker:
    """Decode a message from a worker."""
    message: FromWorker = _from_worker.decode(frame)
    return message
