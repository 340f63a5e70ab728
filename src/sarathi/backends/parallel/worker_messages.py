"""What an engine and the processes that compute its stages say to each other.

Everything goes over one pair of sockets a process, so it arrives in the order in which it was
sent: a step never overtakes the `Allocate` before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from sarathi.backends.model_instance import InstancePart
from sarathi.backends.parallel.rank_layout import ParallelLayout, RankId
from sarathi.backends.registry import ExecutorOptions
from sarathi.backends.step import Step

# Their element types are those of `Step`, which both ends know.
_ARRAYS: dict[str, type[np.generic]] = {
    "token_ids": np.int64,
    "positions": np.int64,
    "query_starts": np.int32,
    "past_lens": np.int32,
    "block_ids": np.int32,
    "block_starts": np.int32,
    "sample_rows": np.int64,
}


class Spec(msgspec.Struct, frozen=True):
    """What a process is told on its command line, as JSON."""

    model: str  # a path
    options: ExecutorOptions
    layout: ParallelLayout
    place: RankId
    parent: int | None  # process id: it ends when that process does; None where it has none
    remote: bool  # whether the others may be on other machines


class Hello(msgspec.Struct, tag="hello", array_like=True, frozen=True):
    """A process has read what there is to read before weights."""

    fingerprint: str  # of the model that it found; see `fingerprint`
    versions: str  # of what computes
    host: str  # the name of its machine
    inbox: str | None  # where it takes hidden states; None in the first stage, and for other ranks
    store: str | None  # where the ranks of its stage meet, if it is the first of several


class Connect(msgspec.Struct, tag="connect", array_like=True, frozen=True):
    """Where the others are."""

    following: str | None  # the inbox of the next stage
    store: str | None  # of its stage; None for the rank that has it
    neighbours: int  # processes of this engine on the same machine, itself included
    neighbour: int  # its number among them


class Loading(msgspec.Struct, tag="loading", array_like=True, frozen=True):
    share: float  # of the tensors that have been read


class Loaded(msgspec.Struct, tag="loaded", array_like=True, frozen=True):
    """An executor waits to be given a KV cache."""

    part: InstancePart


class Allocate(msgspec.Struct, tag="allocate", array_like=True, frozen=True):
    num_blocks: int


class Check(msgspec.Struct, tag="check", array_like=True, frozen=True):
    """Compare with plain arithmetic; all ranks of a stage together."""


class WarmUp(msgspec.Struct, tag="warm_up", array_like=True, frozen=True):
    """The first steps begin, or have ended."""

    begins: bool


class RunStep(msgspec.Struct, tag="run", array_like=True, frozen=True):
    """Followed by the arrays of a step, one after the other in a frame."""

    id: int
    lengths: list[int]  # elements of each array


class Stop(msgspec.Struct, tag="stop", array_like=True, frozen=True):
    pass


class Done(msgspec.Struct, tag="done", array_like=True, frozen=True):
    """Of an `Allocate`, a `Check` or a `WarmUp`."""


class WorkerFailed(msgspec.Struct, tag="failed", array_like=True, frozen=True):
    """Its last words."""

    message: str


class Passed(msgspec.Struct, tag="passed", array_like=True, frozen=True):
    """The first stage has computed a step and has nothing to do until the next one comes."""

    id: int


ToWorker = Connect | Allocate | Check | WarmUp | RunStep | Stop
FromWorker = Hello | Loading | Loaded | Done | Passed | WorkerFailed


class Hidden(msgspec.Struct, array_like=True, frozen=True):
    """Goes from a stage to the next, followed by the hidden states as a frame."""

    id: int  # of the step
    dtype: str
    shape: tuple[int, int]  # tokens, hidden size
    times: list[tuple[float, float]]  # `StageTime` of the stages before, in order


class Received(NamedTuple):
    """A message to a worker, and the step that came with it."""

    message: ToWorker
    step: Step | None


_encoder = msgspec.msgpack.Encoder()
_to_worker = msgspec.msgpack.Decoder(ToWorker)
_from_worker = msgspec.msgpack.Decoder(FromWorker)


def encode(message: ToWorker | FromWorker) -> bytes:
    return _encoder.encode(message)


def encode_run(step_id: int, step: Step) -> list[bytes]:
    """The frames of a step."""
    arrays = [np.asarray(getattr(step, name), dtype) for name, dtype in _ARRAYS.items()]
    run = RunStep(step_id, [len(array) for array in arrays])
    # In one frame, since each one more is one more message for ZeroMQ's threads.
    return [encode(run), b"".join(array.tobytes() for array in arrays)]


def decode_to_worker(frames: Sequence[bytes]) -> Received:
    message = _to_worker.decode(frames[0])
    if not isinstance(message, RunStep):
        return Received(message, None)
    content, offset = frames[1], 0
    arrays = {}
    for (name, dtype), length in zip(_ARRAYS.items(), message.lengths, strict=True):
        array = np.frombuffer(content, dtype, length, offset)
        offset += array.nbytes
        # A copy, since what is made of bytes cannot be written to and torch warns of that.
        arrays[name] = array.copy()
    return Received(message, Step(**arrays))


def decode_from_worker(frame: bytes) -> FromWorker:
    message: FromWorker = _from_worker.decode(frame)
    return message
