"""Log probabilities in the two forms of the OpenAI API."""

from __future__ import annotations

from collections.abc import Sequence

from sarathi.engine.output_processor import Delta
from sarathi.models.tokenizers.tokenizer import Tokenizer
from sarathi.sampling.logprobs import TokenLogprobs
from sarathi.server.openai.response_bodies import (
    ChatLogprobs,
    CompletionLogprobs,
    TokenLogprob,
    TopLogprob,
)

# JSON has no minus infinity; OpenAI writes this for what cannot be sampled.
MIN_LOGPROB = -9999.0


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """A token's own text; one that is only a part of a character as OpenAI writes it."""
    data = tokenizer.token_bytes(token)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def chat_logprobs(tokenizer: Tokenizer, delta: Delta) -> ChatLogprobs:
    return ChatLogprobs(
        [
            TokenLogprob(
                token_text(tokenizer, token),
                _finite(at.logprob),
                list(tokenizer.token_bytes(token)),
                [
                    TopLogprob(
                        token_text(tokenizer, top),
                        _finite(logprob),
                        list(tokenizer.token_bytes(top)),
                    )
                    for top, logprob in zip(at.top_ids, at.top_logprobs, strict=True)
                ],
            )
            for token, at in zip(delta.token_ids, delta.logprobs, strict=True)
        ]
    )


def completion_logprobs(tokenizer: Tokenizer, delta: Delta) -> CompletionLogprobs:
    return CompletionLogprobs(
        tokens=[token_text(tokenizer, token) for token in delta.token_ids],
        token_logprobs=[_finite(at.logprob) for at in delta.logprobs],
        top_logprobs=[
            _alternatives(tokenizer, token, at)
            for token, at in zip(delta.token_ids, delta.logprobs, strict=True)
        ],
        text_offset=delta.offsets,
    )


def joined(deltas: Sequence[Delta]) -> Delta:
    """Consecutive deltas of one choice as one."""
    return Delta(
        "".join(delta.text for delta in deltas),
        [token for delta in deltas for token in delta.token_ids],
        [at for delta in deltas for at in delta.logprobs],
        [offset for delta in deltas for offset in delta.offsets],
        deltas[-1].finish_reason,
    )


def _alternatives(tokenizer: Tokenizer, token: int, at: TokenLogprobs) -> dict[str, float]:
    """The most probable tokens and the sampled one, which may not be among them."""
    top = dict(zip(at.top_ids, at.top_logprobs, strict=True))
    top.setdefault(token, at.logprob)
    return {token_text(tokenizer, other): _finite(logprob) for other, logprob in top.items()}


def _finite(logprob: float) -> float:
    return max(logprob, MIN_LOGPROB)
