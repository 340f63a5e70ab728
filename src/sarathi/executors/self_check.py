"""Before anyone is served: does the executor compute what the decoder says?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from sarathi.executors.errors import ExecutorError
from sarathi.executors.openvino import BLOCK_SIZE, OpenVinoExecutor
from sarathi.executors.precision import KvPrecision, Precision
from sarathi.executors.reference import reference_logits
from sarathi.executors.step import Part, join_parts

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
_MANY = 64  # blocks: half of them for a long context, half for a large batch
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
        step = join_parts(
            [
                Part(sequences[i][past : past + new], past, _TABLES[i], samples=True)
                for i, (past, new) in enumerate(parts)
            ],
            BLOCK_SIZE,
        )
        logits = executor.execute(step)
        for i, (past, new) in enumerate(parts):
            distances.append(_distance(logits[i], expected[i][past + new - 1]))
    worst = np.max(distances)  # unlike max(), gives NaN if there is one
    tolerance = max(_TOLERANCE[executor.precision], _TOLERANCE[executor.kv_precision])
    if not worst <= tolerance:
        raise ExecutorError(
            f"self-check failed: logits are {worst:.3f} away from the reference, more than the "
            f"{tolerance} that {executor.precision} weights and a {executor.kv_precision} cache "
            "explain; not serving wrong answers. Is this the supported version of openvino?"
        )


def check_deterministic(executor: OpenVinoExecutor) -> None:
    """See whether a sequence's logits depend on what else is in its step.

    Uses KV blocks, whose content is lost: better many, since long contexts and large batches may
    take other kernels.

    Raises:
        ExecutorError: they do.
    """
    num_blocks = min(executor.num_blocks, _MANY)
    shared = min(num_blocks // 2, (executor.max_position - 1) // BLOCK_SIZE)
    own = range(shared, num_blocks)
    context = shared * BLOCK_SIZE
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, executor.config.vocab_size, context + 1).tolist()

    def decode(block: int) -> Part:
        """One of several equal sequences, each with a last block of its own."""
        return Part(tokens[context:], context, [*range(shared), block], samples=True)

    def first_row(parts: list[Part]) -> npt.NDArray[np.float32]:
        row: npt.NDArray[np.float32] = executor.execute(join_parts(parts, BLOCK_SIZE))[0].copy()
        return row

    executor.execute(join_parts([Part(tokens[:context], 0, range(shared), False)], BLOCK_SIZE))
    watched, *others = own
    alone = first_row([decode(watched)])
    chunk = Part(tokens[: len(others) * BLOCK_SIZE], 0, others, samples=True)
    for mates in ([decode(b) for b in others[:1]], [decode(b) for b in others], [chunk]):
        if not np.array_equal(first_row([decode(watched), *mates]), alone):
            raise ExecutorError(
                "on this processor logits depend on what else is in an iteration: "
                "--deterministic is not possible"
            )


def _distance(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))
