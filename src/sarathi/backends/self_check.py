"""Check at start-up that an executor computes what the decoder describes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from sarathi.backends.executor import Executor
from sarathi.backends.reference import F32, reference
from sarathi.backends.registry import KvPrecision, Precision
from sarathi.backends.step import StepPart, join_parts
from sarathi.errors import ExecutorError, ModelError
from sarathi.models.decoder import Stage
from sarathi.models.model_config import ModelConfig
from sarathi.models.tensor_layout import expected_shapes
from sarathi.models.weights import Array, Tensors

# Largest accepted distance of the logits from the reference, relative to their norm. Trained
# models stay below a tenth of it, random ones, which amplify rounding, below a half; logits of
# the wrong tokens are 1 or more away.
_TOLERANCE: Mapping[Precision | KvPrecision, float] = {
    "f32": 0.005,
    "f16": 0.05,
    "bf16": 0.25,
    "u8": 0.25,
}
# Rounded in groups of 64, they move logits of SmolLM2-135M by 0.07, those of random models by 0.3.
_INT8_ACTIVATIONS = 0.5
# (tokens in the cache, new tokens) of three sequences, in three steps: a long chunk; the
# remaining tokens of that prompt, in a second block of 32, with a whole prompt; two decodes with
# another prompt.
_LONG = 31
_STEPS = (
    ((0, _LONG),),
    ((_LONG, 4), (0, 9)),
    ((_LONG + 4, 1), (9, 1), (0, 5)),
)
_LENGTHS = (_LONG + 5, 10, 5)
_TABLES = ((3, 0), (2,), (1,))  # permuted on purpose
NUM_BLOCKS = 4
_MAX_WEIGHTS = 4 * 10**8  # of layers; numpy needs some seconds for them on a few cores
_ROWS = 4096  # of a tensor that are looked at together
_MAX_BLOCKS = 64  # half of them for a long context, half for a large batch
MAX_POSITION = max(_LENGTHS)


def check_model(executor: Executor, weights: Tensors) -> None:
    """Run a small hybrid batch and compare its output with the plain reference.

    The operation behind paged attention is private to its library and changes between releases;
    a wrong guess about it gives fluent nonsense. Needs `NUM_BLOCKS` KV blocks, whose content is
    lost, positions up to `MAX_POSITION`, and the weights as the executor serves them.
    `ExecutorError` if the logits differ by more than rounding explains.
    """
    config, stage, block_size = executor.config, executor.stage, executor.block_size
    rng = np.random.default_rng(0)
    starts = np.cumsum((0, *_LENGTHS))
    tokens = rng.integers(0, config.vocab_size, starts[-1])
    hidden = None if stage.first else _random_hidden(rng, len(tokens), config.hidden_size)
    # All at once: most of the time goes into reading and converting the weights.
    expected = reference(config, stage, weights, tokens.tolist(), hidden, _LENGTHS)
    distances: list[float] = []
    for parts in _STEPS:
        rows = [starts[i] + np.arange(past, past + new) for i, (past, new) in enumerate(parts)]
        step = join_parts(
            [
                StepPart(tokens[mine].tolist(), past, table, samples=True)
                for mine, (past, _), table in zip(rows, parts, _TABLES, strict=False)
            ],
            block_size,
        )
        output = executor.execute(step, None if hidden is None else hidden[np.concatenate(rows)])
        # Logits are those of the last token of each sequence, hidden states those of all.
        found = output if stage.last else output[step.query_starts[1:] - 1]
        right = expected[[mine[-1] for mine in rows]]
        distances += [_distance(*pair) for pair in zip(found, right, strict=True)]
    worst = np.max(distances)  # unlike max(), gives NaN if there is one
    if not np.isfinite(worst):
        _check_finite(weights, expected_shapes(config, stage))
    tolerance = max(
        _TOLERANCE[executor.precision],
        _TOLERANCE[executor.kv_precision],
        _INT8_ACTIVATIONS if executor.int8_activations else 0.0,
    )
    if not worst <= tolerance:
        kernels = f" (kernels: {executor.kernels})" if executor.kernels else ""
        raise ExecutorError(
            f"self-check failed: logits are {worst:.3f} away from the reference, more than the "
            f"{tolerance} that {executor.precision} weights and a {executor.kv_precision} cache "
            f"explain{kernels}; not serving wrong answers. Are these the supported versions of "
            "openvino and torch?"
        )


def _check_finite(weights: Tensors, names: Iterable[str]) -> None:
    """Raise `ModelError` with the first tensor that has values which are not finite."""
    for name in names:
        tensor = weights[name]
        for start in range(0, len(tensor), _ROWS):
            if not np.isfinite(tensor[start : start + _ROWS].astype(np.float32)).all():
                raise ModelError(f"tensor {name} has values that are not finite")


def checked_part(config: ModelConfig, stage: Stage) -> Stage:
    """Return the stage, or its first layers where numpy would be slow for all of them.

    The others run the same code on weights that were loaded by the same code.
    """
    layer = Stage(range(1), first=False, last=False)
    weights = sum(map(math.prod, expected_shapes(config, layer).values()))
    most = max(1, _MAX_WEIGHTS // weights)
    return stage if len(stage.layers) <= most else replace(stage, layers=stage.layers[:most])


def check_deterministic(executor: Executor) -> None:
    """Raise `ExecutorError` if a sequence's logits depend on what else is in its step.

    Uses KV blocks, whose content is lost: preferably many, since long contexts and large batches
    may be computed by other kernels.
    """
    num_blocks, block_size = min(executor.num_blocks, _MAX_BLOCKS), executor.block_size
    shared = min(num_blocks // 2, (executor.max_position - 1) // block_size)
    own = range(shared, num_blocks)
    context = shared * block_size
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, executor.config.vocab_size, context + 1).tolist()
    received = _random_hidden(rng, len(tokens), executor.config.hidden_size)

    def decode(block: int) -> StepPart:
        """Return one of several equal sequences, each with its own last block."""
        return StepPart(tokens[context:], context, [*range(shared), block], samples=True)

    def first_row(parts: list[StepPart]) -> Array:
        """Return the output of the first token of the first sequence."""
        hidden = None
        if not executor.stage.first:
            hidden = np.concatenate(
                [received[part.past : part.past + len(part.token_ids)] for part in parts]
            )
        output: Array = executor.execute(join_parts(parts, block_size), hidden)[0].copy()
        return output

    if shared:
        first_row([StepPart(tokens[:context], 0, range(shared), samples=True)])
    watched, *others = own
    alone = first_row([decode(watched)])
    chunk = StepPart(tokens[: len(others) * block_size], 0, others, samples=True)
    for mates in ([decode(b) for b in others[:1]], [decode(b) for b in others], [chunk]):
        if not np.array_equal(first_row([decode(watched), *mates]), alone):
            raise ExecutorError(
                "on this processor, with these weights, logits depend on what else is in an "
                "iteration: --deterministic is not possible (--executor torch may be, or "
                "--quantization none)"
            )


def _random_hidden(rng: np.random.Generator, length: int, hidden_size: int) -> F32:
    """Return hidden states as a previous stage could have computed them."""
    return rng.standard_normal((length, hidden_size), np.float32)


def _distance(a: Array, b: Array) -> float:
    return float(np.linalg.norm(np.subtract(a, b)) / np.linalg.norm(b))
