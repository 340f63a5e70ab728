"""How well a model predicts a text, and how far its predictions are from a reference precision's.

Both ways of serving the model run in lock step: each batch of the scheduler is computed by both
executors, their rows of logits are compared, and only a few numbers of each token are kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from sarathi.backends import self_check
from sarathi.backends.executor import ExecutorPart
from sarathi.backends.model_instance import load_executor
from sarathi.backends.quantization import quantization_name, served_forms
from sarathi.backends.registry import KvPrecision, Precision, Quantization
from sarathi.backends.step import Step, build_step
from sarathi.engine.config import EngineConfig
from sarathi.engine.prompt_outputs import PromptOutputs
from sarathi.engine.startup.load import executor_options, with_quantization
from sarathi.errors import ConfigError, ExecutorError, ModelError
from sarathi.models.decoder import whole_model
from sarathi.models.model import Model
from sarathi.models.tokenizers.tokenizer import Tokenizer
from sarathi.sampling.params import SamplingParams
from sarathi.scheduler import BlockPool, FixedBudget, Request, Scheduler, StopCriteria
from sarathi.telemetry.percentiles import distribution

TOKEN_BUDGET = 128  # where the configuration has none; an iteration has as many scored rows
_CHUNK_ELEMENTS = 2**21  # of logits that are compared at a time
_SCORED = SamplingParams(max_tokens=0, prompt_logprobs=0)

Rows = NDArray[np.float32]  # of logits, [rows, vocabulary]
Values = NDArray[np.float64]


class ServedText(msgspec.Struct, frozen=True):
    """How one way of serving a model predicts a text."""

    precision: Precision
    quantization: Quantization  # of the weights; none if no matrix is served in integers
    kv_precision: KvPrecision
    perplexity: float
    tokens_per_second: float  # with a row of logits for each of them


class LogitsDivergence(msgspec.Struct, frozen=True):
    """How far predictions are from those of the reference, over all predicted tokens."""

    kl_mean: float  # nats, of the reference's distribution from the other
    kl_p99: float
    top1_agreement: float  # share of the tokens at which both have the same likeliest token


class Evaluation(msgspec.Struct, frozen=True):
    """What `evaluate` finds."""

    tokens: int  # that were predicted
    windows: int
    model: ServedText
    reference: ServedText | None = None
    divergence: LogitsDivergence | None = None


class TokenDistributions(NamedTuple):
    """The probabilities that rows of logits give to the tokens of the vocabulary."""

    relative: Rows  # logits, less the largest of their row
    weights: Rows  # exp(relative)
    log_totals: Values  # [rows], log(sum(weights))
    likeliest: NDArray[np.int64]  # [rows]

    @classmethod
    def of(cls, logits: Rows) -> TokenDistributions:
        """Return the distributions of rows of logits."""
        relative = logits - logits.max(axis=1, keepdims=True)
        weights = np.exp(relative)
        log_totals = np.log(weights.sum(axis=1, dtype=np.float64))
        return cls(relative, weights, log_totals, logits.argmax(axis=1))

    def losses(self, tokens: NDArray[np.int64]) -> Values:
        """Return the negative log probability of one token in each row, in nats."""
        chosen = self.relative[np.arange(len(tokens)), tokens].astype(np.float64)
        losses: Values = self.log_totals - chosen
        return losses

    def divergences_from(self, reference: TokenDistributions) -> Values:
        """Return the Kullback-Leibler divergence of each row from the reference's, in nats: the
        mean over the reference's probabilities of how much less likely a token is here."""
        # Of relative logits and, after the sum, of the totals: differences of small numbers.
        excess = reference.weights * (reference.relative - self.relative)
        means = excess.sum(axis=1, dtype=np.float64) / np.exp(reference.log_totals)
        # Rounding may bring that of nearly equal rows below zero.
        divergences: Values = np.maximum(means + self.log_totals - reference.log_totals, 0.0)
        return divergences


def builtin_text() -> str:
    """Return a short English text on several subjects, with some code and numbers."""
    return files(__package__).joinpath("evaluation_text.txt").read_text("utf-8")


def cut_into_windows(
    tokenizer: Tokenizer, text: str, window: int, max_tokens: int | None = None
) -> list[list[int]]:
    """Return the tokens of a text in pieces of `window` tokens, which are predicted separately.

    Each begins with the special tokens that the model expects at the beginning of a text, and has
    at least one token to predict. The list is empty if the text has none.

    Args:
        max_tokens: of the text, to use; None for all.

    Raises:
        ConfigError: `window` leaves no room beside the special tokens.
    """
    with_special, plain = tokenizer.encode("a"), tokenizer.encode("a", add_special_tokens=False)
    first = with_special[: with_special.index(plain[0])]
    least = max(2, len(first) + 1)
    if window < least:
        raise ConfigError(f"window is {window} tokens, expected at least {least}")
    ids = tokenizer.encode(text, add_special_tokens=False)[:max_tokens]
    stride = window - len(first)
    pieces = ([*first, *ids[start : start + stride]] for start in range(0, len(ids), stride))
    return [piece for piece in pieces if len(piece) > 1]


def reference_config(config: EngineConfig, precision: Precision) -> EngineConfig:
    """Return the configuration that serves the same weights unquantised, in another precision."""
    return msgspec.structs.replace(
        config, precision=precision, kv_precision=None, quantization="none"
    )


def evaluate(
    model: Model,
    windows: Sequence[Sequence[int]],
    config: EngineConfig,
    reference: EngineConfig | None = None,
    *,
    on_progress: Callable[[str], None] = lambda line: None,
) -> Evaluation:
    """Predict all but the first token of each window, in the scheduler's batches.

    Args:
        windows: token ids, at least 2 each.
        config: how the model is served. Its `token_budget`, or else 128, cuts windows into chunks,
            on which the result depends no more than on rounding.
        reference: how it is served to compare with; None to compare with nothing.
        on_progress: called with a line about each step.

    Raises:
        ConfigError: a window is longer than the model allows.
        ModelError: the tokens are not of this model, or it cannot be read.
        ExecutorError: the machine cannot run it, or runs it wrongly.
    """
    _check(model, windows)
    length, total = max(map(len, windows)), sum(map(len, windows))
    budget = min(config.token_budget or TOKEN_BUDGET, total)
    batch_size = min(-(-budget // length) + 1, len(windows))
    served = []
    for name, each in (("model", config), ("reference", reference)):
        if each is not None:
            on_progress(f"loading the {name}")
            sized = msgspec.structs.replace(each, token_budget=budget, max_batch_size=batch_size)
            served.append(_Served(model, sized, length))
    block_size = served[0].block_size
    # Admission leaves a block free for each request that runs.
    num_blocks = batch_size * (-(-length // block_size) + 1)
    for one in served:
        one.prepare(num_blocks)
    scheduler = Scheduler(
        BlockPool(num_blocks, block_size),
        FixedBudget(budget),
        max_batch_size=batch_size,
        max_model_len=length,
        deterministic_chunk=config.chunk,
        prefix_caching=False,
    )
    prompts = _submit(windows, scheduler)
    distances = _Distances()
    num_done = 0
    while batch := scheduler.schedule(time.monotonic()):
        step, scored = build_step(batch, block_size), prompts.scored_rows(batch)
        logits = [one.run(step) for one in served]
        for rows in _chunks(*logits[0].shape):
            assert scored is not None
            here, *there = [
                one.score(each[rows], scored.tokens[rows])
                for one, each in zip(served, logits, strict=True)
            ]
            for other in there:
                distances.add(here, other)
        scheduler.complete(batch, [], time.monotonic())
        num_done += batch.num_tokens
        on_progress(f"{num_done} of {total} tokens")
    found = Evaluation(total - len(windows), len(windows), served[0].result())
    if reference is None:
        return found
    return msgspec.structs.replace(
        found, reference=served[1].result(), divergence=distances.result()
    )


def _submit(windows: Sequence[Sequence[int]], scheduler: Scheduler) -> PromptOutputs:
    """Queue each window as a request for the log probabilities of its prompt."""
    prompts = PromptOutputs()
    for number, window in enumerate(windows):
        request = Request(number, window, StopCriteria(max_tokens=0), arrival=float(number))
        prompts.open(request, _SCORED, num_scored=0)
        scheduler.add(request)
    return prompts


class _Served:
    """One way of serving a model, and how it has predicted tokens so far."""

    def __init__(self, model: Model, config: EngineConfig, length: int) -> None:
        options = with_quantization(executor_options(config, length), model, engines_here=1)
        part = ExecutorPart(whole_model(model.config), threads=options.threads)
        self._executor = load_executor(model, options, part, lambda share: None)
        forms = served_forms(model, options.quantization)
        self._quantization = quantization_name(options.quantization, forms)
        self._losses: list[Values] = []
        self._times: list[tuple[int, float]] = []  # tokens and seconds of each step

    @property
    def block_size(self) -> int:
        return self._executor.block_size

    def prepare(self, num_blocks: int) -> None:
        """Allocate the KV cache, and check what the executor computes, as every engine does."""
        self._executor.allocate(max(num_blocks, self_check.NUM_BLOCKS))
        with self._executor.warming_up():
            self._executor.check()

    def run(self, step: Step) -> Rows:
        """Return the logits of a step; the next one overwrites them."""
        start = time.perf_counter()
        logits = np.asarray(self._executor.execute(step), np.float32)
        self._times.append((len(step.token_ids), time.perf_counter() - start))
        return logits

    def score(self, logits: Rows, tokens: NDArray[np.int64]) -> TokenDistributions:
        """Record how likely the tokens are, and return the distributions."""
        if not np.isfinite(logits).all():
            raise ExecutorError(
                f"the model gives logits that are not finite in {self._executor.precision}"
            )
        found = TokenDistributions.of(logits)
        self._losses.append(found.losses(tokens))
        return found

    def result(self) -> ServedText:
        # The first step prepares kernels.
        tokens, seconds = map(sum, zip(*(self._times[1:] or self._times), strict=True))
        with np.errstate(over="ignore"):
            perplexity = float(np.exp(np.concatenate(self._losses).mean()))
        return ServedText(
            self._executor.precision,
            self._quantization,
            self._executor.kv_precision,
            perplexity,
            tokens / seconds,
        )


class _Distances:
    """How far predictions are from those of the reference, token by token."""

    def __init__(self) -> None:
        self._divergences: list[Values] = []
        self._equal: list[NDArray[np.bool_]] = []

    def add(self, here: TokenDistributions, reference: TokenDistributions) -> None:
        self._divergences.append(here.divergences_from(reference))
        self._equal.append(here.likeliest == reference.likeliest)

    def result(self) -> LogitsDivergence:
        found = distribution([np.concatenate(self._divergences)])
        assert found.mean is not None
        assert found.p99 is not None
        return LogitsDivergence(found.mean, found.p99, float(np.concatenate(self._equal).mean()))


def _check(model: Model, windows: Sequence[Sequence[int]]) -> None:
    if not windows or min(map(len, windows)) < 2:
        raise ConfigError("there is no token to predict: a window needs at least 2 tokens")
    length, longest = max(map(len, windows)), model.config.max_position
    if length > longest:
        raise ConfigError(
            f"window is {length} tokens, but the model was made for at most {longest}"
        )
    largest = max(map(max, windows))
    if largest >= model.config.vocab_size:
        raise ModelError(
            f"the text has the token {largest}, but the model's vocabulary only 0 to "
            f"{model.config.vocab_size - 1}: the tokenizer is of another model"
        )


def _chunks(rows: int, vocab_size: int) -> Iterator[slice]:
    """Yield slices of rows, few enough to stay in the processor's cache."""
    size = max(1, _CHUNK_ELEMENTS // vocab_size)
    yield from (slice(start, start + size) for start in range(0, rows, size))
