"""What the HTTP process and the engine process say to each other, as msgpack over ZeroMQ.

The engine sends one `Iteration` per scheduler iteration, however many requests took part.
"""

from __future__ import annotations

import msgspec

from sarathi.engine.sampling import SamplingParams
from sarathi.scheduling import FinishReason


class Submit(msgspec.Struct, tag="submit", array_like=True, frozen=True):
    """A request: one prompt, one output (a caller that wants n outputs submits n)."""

    id: int
    prompt_ids: list[int]
    params: SamplingParams
    arrival: float  # seconds, time.monotonic of the caller; the clock is one per machine


class Cancel(msgspec.Struct, tag="cancel", array_like=True, frozen=True):
    ids: list[int]


class Shutdown(msgspec.Struct, tag="shutdown", array_like=True, frozen=True):
    pass


class TokenLogprobs(msgspec.Struct, array_like=True, frozen=True):
    """Natural logarithms of the model's own probabilities at one position."""

    logprob: float  # of the sampled token
    rank: int  # of the sampled token; 1 is the most probable
    top_ids: list[int]  # most probable first
    top_logprobs: list[float]


class TokenOutput(msgspec.Struct, array_like=True, frozen=True):
    """One token of one request. A stop token that ends a request is included."""

    id: int
    token: int
    finish_reason: FinishReason | None = None
    logprobs: TokenLogprobs | None = None


class Refusal(msgspec.Struct, array_like=True, frozen=True):
    """The engine cannot take a request that the caller has sent."""

    id: int
    message: str


class Stats(msgspec.Struct, array_like=True, frozen=True):
    """The scheduler's state after an iteration."""

    running: int
    waiting: int
    free_blocks: int
    total_blocks: int
    preemptions: int  # since start


class ModelInfo(msgspec.Struct, frozen=True):
    """What the caller must know to check requests before it sends them."""

    max_model_len: int  # tokens, prompt and output together
    vocab_size: int
    block_size: int
    num_blocks: int
    precision: str
    kv_precision: str
    policy: str
    token_budget: int | None  # None where the policy has none
    max_batch_size: int


class Ready(msgspec.Struct, tag="ready", array_like=True, frozen=True):
    info: ModelInfo


class Failed(msgspec.Struct, tag="failed", array_like=True, frozen=True):
    """The engine could not start, or died; the message is for the person who started it."""

    message: str
    bad_input: bool = False  # the model or an option is to blame, not the engine


class Progress(msgspec.Struct, tag="progress", array_like=True, frozen=True):
    """A line about what the engine does while it loads."""

    message: str


class Iteration(msgspec.Struct, tag="iteration", array_like=True, frozen=True):
    outputs: list[TokenOutput]
    refusals: list[Refusal]
    stats: Stats


ToEngine = Submit | Cancel | Shutdown
FromEngine = Ready | Failed | Progress | Iteration
