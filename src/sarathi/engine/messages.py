"""What the HTTP process and the engine process say to each other, as msgpack over ZeroMQ.

The engine sends at most one `Iteration` per scheduler iteration, however many requests took part.
"""

from __future__ import annotations

import msgspec

from sarathi.sampling.logprobs import TokenLogprobs
from sarathi.sampling.params import SamplingParams
from sarathi.scheduler import FinishReason, SchedulingParams
from sarathi.telemetry.stats import Stats


class Submit(msgspec.Struct, tag="submit", array_like=True, frozen=True):
    """A request: one prompt, one output (a caller that wants n outputs submits n)."""

    id: int
    prompt_ids: list[int]
    params: SamplingParams
    arrival: float  # seconds, time.monotonic of the engine's machine
    terms: SchedulingParams = SchedulingParams()
    output_ids: list[int] = []  # that another engine has given already; this one goes on


class Cancel(msgspec.Struct, tag="cancel", array_like=True, frozen=True):
    ids: list[int]


class Shutdown(msgspec.Struct, tag="shutdown", array_like=True, frozen=True):
    pass


class TokenOutput(msgspec.Struct, array_like=True, frozen=True):
    """One token of one request. A stop token that ends a request is included."""

    id: int
    token: int
    finish_reason: FinishReason | None = None
    logprobs: TokenLogprobs | None = None
    cached_tokens: int = 0  # of the prompt, found in the prefix cache; with the first token only
    scheduling_delay: float | None = None  # seconds; with the first token only


class Refusal(msgspec.Struct, array_like=True, frozen=True):
    """The engine cannot take a request that the caller has sent."""

    id: int
    message: str


class ModelInfo(msgspec.Struct, frozen=True):
    """What the caller must know to check requests before it sends them."""

    max_model_len: int  # tokens, prompt and output together
    vocab_size: int
    block_size: int
    num_blocks: int
    precision: str
    kv_precision: str
    policy: str
    token_budget: int | None  # None where a latency target takes its place, or nothing
    tbt_target: float | None  # seconds; None with a fixed budget or a policy without one
    max_batch_size: int
    order: str
    fair_by: str | None
    deterministic: bool
    prefix_caching: bool
    num_stages: int = 1  # of the pipeline
    random_weights: bool = False  # answers have no meaning
    tbt_target_reason: str = ""  # how a derived target has come about, in words


class Ready(msgspec.Struct, tag="ready", array_like=True, frozen=True):
    info: ModelInfo
    latency: tuple[float, float, float, float, float]  # coefficients of a `LatencyModel`


class ClockReading(msgspec.Struct, tag="clock", array_like=True, frozen=True):
    """From an engine on another machine, whose clock is not the caller's."""

    now: float  # seconds, time.monotonic of the engine's machine


class EngineFailed(msgspec.Struct, tag="failed", array_like=True, frozen=True):
    """The engine could not start, or died; the message is for the person who started it."""

    message: str
    bad_input: bool = False  # the model or an option is to blame, not the engine


class LoadProgress(msgspec.Struct, tag="progress", array_like=True, frozen=True):
    """A line about what the engine does: often while it loads, rarely afterwards."""

    message: str


class Iteration(msgspec.Struct, tag="iteration", array_like=True, frozen=True):
    outputs: list[TokenOutput]
    refusals: list[Refusal]
    stats: Stats


ToEngine = Submit | Cancel | Shutdown
FromEngine = Ready | ClockReading | EngineFailed | LoadProgress | Iteration
