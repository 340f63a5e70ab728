"""Before anyone is served: does the executor compute what the decoder says?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from sarathi.executors.errors import ExecutorError
from sarathi.executors.openvino import BLOCK_SIZE, OpenVinoExecutor
from sarathi.executors.precision import KvPrecision, Precision
from sarathi.executors.reference import reference_logits
from sarathi.executors.step import Step

# Largest accepted distance of the logits from the reference, relative to their length. Trained
# models stay below a tenth of it, random ones, which amplify rounding, below a half; logits of
# the wrong tokens are 1 or more away.
_TOLERANCE: Mapping[Precision | KvPrecision, float] = {
    "f32": 0.005,
    "f16": 0.05,
    "bf16": 0.25,
    "u8": 0.25,
}
# (tokens in the cache, new tokens) of three sequences, in three steps: a long chunk, then its
# rest together with a whole prompt, then two decodes beside another prompt.
_STEPS = (
    ((0, BLOCK_SIZE - 1),),
    ((BLOCK_SIZE - 1, 4), (0, 9)),
    ((BLOCK_SIZE + 3, 1), (9, 1), (0, 5)),
)
_LENGTHS = (BLOCK_SIZE + 4, 10, 5)
_TABLES = ((3, 0), (2,), (1,))  # permuted on purpose
NUM_BLOCKS = 4
MAX_POSITION = max(_LENGTHS)


def self_check(executor: OpenVinoExecutor) -> None:
    """Run a small hybrid batch and compare its logits with the plain reference.

    The operation behind paged attention is private to its library and changes between releases;
    a wrong guess about it gives fluent nonsense. Needs `NUM_BLOCKS` KV blocks, whose content is
    lost, and positions up to `MAX_POSITION`.

    Raises:
        ExecutorError: the logits differ by more than rounding explains.
    """
    config = executor.config
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, config.vocab_size, length).tolist() for length in _LENGTHS]
    expected = [reference_logits(config, executor.constants, tokens) for tokens in sequences]
    distances = []
    for parts in _STEPS:
        step, ends = _step(sequences, parts)
        logits = executor.execute(step)
        for row, (sequence, end) in enumerate(ends):
            distances.append(_distance(logits[row], expected[sequence][end - 1]))
    worst = np.max(distances)  # unlike max(), gives NaN if there is one
    tolerance = max(_TOLERANCE[executor.precision], _TOLERANCE[executor.kv_precision])
    if not worst <= tolerance:
        raise ExecutorError(
            f"self-check failed: logits are {worst:.3f} away from the reference, more than the "
            f"{tolerance} that {executor.precision} weights and a {executor.kv_precision} cache "
            "explain; not serving wrong answers. Is this the supported version of openvino?"
        )


def _distance(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def _step(
    sequences: list[list[int]], parts: tuple[tuple[int, int], ...]
) -> tuple[Step, list[tuple[int, int]]]:
    """A step that runs `parts`, sampling the last row of each, and where those rows end."""
    lengths = [new for _, new in parts]
    tables = [_TABLES[i][: -(-(past + new) // BLOCK_SIZE)] for i, (past, new) in enumerate(parts)]
    spans = [range(past, past + new) for past, new in parts]
    query_starts = np.cumsum([0, *lengths], dtype=np.int32)
    step = Step(
        token_ids=np.array([sequences[i][p] for i, span in enumerate(spans) for p in span]),
        positions=np.array([p for span in spans for p in span]),
        query_starts=query_starts,
        past_lens=np.array([past for past, _ in parts], np.int32),
        block_ids=np.array([block for table in tables for block in table], np.int32),
        block_starts=np.cumsum([0, *map(len, tables)], dtype=np.int32),
        sample_rows=query_starts[1:].astype(np.int64) - 1,
    )
    return step, [(i, past + new) for i, (past, new) in enumerate(parts)]
