"""Log probabilities of prompts as vLLM writes them."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from sarathi.models.tokenizers.tokenizer import Tokenizer
from sarathi.sampling.logprobs import TokenLogprobs
from sarathi.server.openai.generation_reply import text_and_logprob


class PromptLogprob(Struct, frozen=True):
    """A token that might be at a position of the prompt."""

    logprob: float
    rank: int  # 1 is the most probable
    decoded_token: str


# One entry a token, by token id; None for the first, which nothing predicts.
PromptLogprobs = list[dict[str, PromptLogprob] | None]


def describe_prompt(
    tokenizer: Tokenizer, ids: Sequence[int], entries: Sequence[TokenLogprobs], count: int
) -> PromptLogprobs:
    """Return the log probabilities of a prompt, with up to `count` alternatives."""
    found: PromptLogprobs = [None]
    for token, at in zip(ids[1:], entries, strict=True):
        ranks = dict(zip(at.top_ids, range(1, count + 1), strict=False)) | {token: at.rank}
        position = {}
        for each, value in top_tokens(token, at, count).items():
            text, logprob = text_and_logprob(tokenizer, each, value)
            position[str(each)] = PromptLogprob(logprob, ranks[each], text)
        found.append(position)
    return found


def top_tokens(token: int, at: TokenLogprobs, count: int) -> dict[int, float]:
    """Return the `count` most probable tokens, and the actual one if it is not among them."""
    top = dict(zip(at.top_ids[:count], at.top_logprobs, strict=False))
    top.setdefault(token, at.logprob)
    return top
