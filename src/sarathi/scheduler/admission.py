"""Which requests can never run, however long they wait."""

from __future__ import annotations

from sarathi.scheduler.kv.block_pool import BlockPool
from sarathi.scheduler.request import Request


class AdmissionError(ValueError):
    """A request could never run, however long it waited."""


def check_admissible(request: Request, pool: BlockPool, max_model_len: int) -> None:
    """
    Raises:
        AdmissionError: the request is empty, malformed, or too long for the model or the KV cache.
    """
    if not request.prompt_ids:
        raise AdmissionError("the prompt is empty")
    if request.stop_criteria.max_tokens < 1:
        raise AdmissionError(
            f"max_tokens is {request.stop_criteria.max_tokens}, expected at least 1"
        )
    max_tokens = request.stop_criteria.max_tokens
    tokens = f"{len(request.prompt_ids)} prompt tokens and up to {max_tokens} output tokens"
    if request.max_num_tokens > max_model_len:
        raise AdmissionError(f"{tokens} exceed the model's length of {max_model_len} tokens")
    # The last output token is never computed, so it needs no room.
    if pool.blocks_for(request.max_num_tokens - 1) > pool.num_blocks:
        raise AdmissionError(
            f"{tokens} exceed the KV cache of {pool.num_blocks * pool.block_size} tokens"
        )
