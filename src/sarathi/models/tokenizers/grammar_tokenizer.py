"""A tokenizer in the form that llguidance needs to compile grammars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sarathi.errors import ModelError

if TYPE_CHECKING:
    import llguidance

    from sarathi.models.tokenizers.tokenizer import Tokenizer


def whole_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> llguidance.LLTokenizer:
    """Return the form with all tokens, for a model whose vocabulary may be padded.

    Takes up to a second, in which no other thread runs. `ModelError` if it is not supported.
    """
    import llguidance

    size = max(vocab_size, tokenizer.vocab_size)
    eos_ids = _eos_ids(tokenizer, vocab_size)
    try:
        return llguidance.LLTokenizer(tokenizer.to_json(), n_vocab=size, eos_token=eos_ids)
    except Exception as error:  # the library raises nothing more specific
        raise ModelError(
            f"grammars are not supported with this model's tokenizer: {error}"
        ) from error


def bytes_and_special_tokens(tokenizer: Tokenizer) -> llguidance.LLTokenizer:
    """Return a form that is made in an instant: the special tokens, and one token for each byte.

    That is enough to check a grammar. `ModelError` if the tokenizer is not supported.
    """
    import llguidance

    small = _BytesTokenizer(tokenizer)
    eos_ids = _eos_ids(tokenizer, tokenizer.vocab_size)
    wrapper = llguidance.TokenizerWrapper(small)
    return llguidance.LLTokenizer(wrapper, eos_token=eos_ids, slices=[])


def _eos_ids(tokenizer: Tokenizer, vocab_size: int) -> list[int]:
    eos_ids = [token for token in tokenizer.eos_ids if token < vocab_size]
    if not eos_ids:
        raise ModelError("grammars need a token that ends a sequence, which this model has not")
    return eos_ids


class _BytesTokenizer:
    """What llguidance reads of a tokenizer."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        special = tokenizer.special_ids
        self.eos_token_id = min(tokenizer.eos_ids, default=0)
        self.special_token_ids = sorted(special)
        ordinary = (token for token in range(len(special) + 256) if token not in special)
        self._ids = [next(ordinary) for _ in range(256)]
        self.tokens = [b""] * max(tokenizer.vocab_size, self._ids[-1] + 1)
        for token in special:
            self.tokens[token] = tokenizer.token_bytes(token)
        for byte, token in enumerate(self._ids):
            self.tokens[token] = bytes([byte])

    def __call__(self, text: bytes) -> Sequence[int]:
        return [self._ids[byte] for byte in text]
