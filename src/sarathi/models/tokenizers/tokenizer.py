"""The tokenizer of a model: text to token ids and back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property

import tokenizers

from sarathi.models.tokenizers.chat_template import ChatTemplate
from sarathi.models.tokenizers.detokenizer import TextStream, TokenDecoder

# A character has at most 4 bytes, so that older tokens of a prompt cannot matter to what follows,
# unless they are empty.
_PROMPT_TAIL = 16

# By what factor a normalizer can shorten a text at the most; others are not known.
_SHRINKS = {None: 1, "NFC": 4}


class Tokenizer:
    """Encodes with the `tokenizers` library; decodes through the bytes of each token.

    `eos_ids` are all ids after which a sequence is complete; those of added tokens are no part of
    the text, whether they are called special or not. `chat_template` is None if the model has none.
    `warnings` are remarks on its files for the operator.
    """

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        *,
        eos_ids: tuple[int, ...] = (),
        chat_template: ChatTemplate | None = None,
        warnings: tuple[str, ...] = (),
    ) -> None:
        # Some files ask for the truncation or padding that their training used.
        inner.no_truncation()
        inner.no_padding()
        self._inner = inner
        self._decoder = TokenDecoder.from_json(
            inner.decoder.__getstate__() if inner.decoder is not None else None
        )
        self._special_ids = frozenset(
            id_
            for id_, token in inner.get_added_tokens_decoder().items()
            if token.special or id_ in eos_ids
        )
        self._bytes: dict[int, bytes] = {}
        self.eos_ids = eos_ids
        self.chat_template = chat_template
        self.warnings = warnings

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included; the model's own vocabulary may be padded."""
        return int(self._inner.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`; special tokens written in it become their ids.

        `add_special_tokens` adds what the model expects around a text (often a first `<s>`). Pass
        False for the output of a chat template, which has written them. Raises `ValueError` for
        text that is not valid Unicode (lone surrogates).
        """
        try:
            # Unlike `encode`, this lets other threads run meanwhile: long prompts come in one.
            [encoding] = self._inner.encode_batch_fast(
                [text], add_special_tokens=add_special_tokens
            )
        except (UnicodeEncodeError, TypeError) as error:
            raise ValueError("the text is not valid Unicode: it has lone surrogates") from error
        ids: list[int] = encoding.ids
        return ids

    def least_tokens(self, text: str) -> int:
        """A lower bound on the length of `encode(text)`, found without encoding.

        No token stands for more characters than it has. Not known, and 0, where the text is
        rewritten before it is cut, other than by composing characters.
        """
        shrinks = _SHRINKS.get(_normalizer_type(self._inner))
        return 0 if shrinks is None else len(text) // (shrinks * self._longest_token)

    @cached_property
    def _longest_token(self) -> int:
        return max(map(len, self._inner.get_vocab(with_added_tokens=True)), default=1)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of `ids`; bytes that are no valid UTF-8 become U+FFFD, unknown ids nothing."""
        token_bytes = self._visible_bytes if skip_special_tokens else self.token_bytes
        text = b"".join(map(token_bytes, ids)).decode("utf-8", "replace")
        return self._decoder.strip(text, self._decoder.leading_spaces)[0]

    def token(self, token_id: int) -> str:
        """Text of one token, with U+FFFD for bytes that are no character by themselves."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Bytes one token contributes to a text; none for an id outside the vocabulary.

        Raises `ValueError` for what can be no token id.
        """
        known = self._bytes.get(token_id)
        if known is not None:
            return known
        try:
            token = self._inner.id_to_token(token_id)
        except (OverflowError, TypeError) as error:
            raise ValueError(f"{token_id!r} is no token id") from error
        found = b"" if token is None else self._decoder.to_bytes(token)
        if token is not None:  # unknown ids are endless and must not fill the memory
            self._bytes[token_id] = found
        return found

    def stream(
        self, skip_special_tokens: bool = True, prompt_ids: Sequence[int] = ()
    ) -> TextStream:
        """A detokeniser for tokens that arrive one by one.

        With `prompt_ids`, the text continues theirs: the space before a first word is kept, and a
        character that the prompt began is completed. Without, the text stands alone, as in
        `decode`.
        """
        token_bytes = self._visible_bytes if skip_special_tokens else self.token_bytes
        return TextStream(self._decoder, token_bytes, prompt_ids[-_PROMPT_TAIL:])

    def _visible_bytes(self, token_id: int) -> bytes:
        return b"" if token_id in self._special_ids else self.token_bytes(token_id)


def _normalizer_type(inner: tokenizers.Tokenizer) -> str | None:
    if inner.normalizer is None:
        return None
    return str(json.loads(inner.normalizer.__getstate__())["type"])
