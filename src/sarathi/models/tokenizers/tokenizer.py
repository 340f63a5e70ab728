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

    `eos_ids` are all ids that complete a sequence; those of added tokens are not part of the text,
    even if they are not marked as special. `chat_template` is None if the model has none.
    `warnings` are about its files, for the operator.
    """

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        *,
        eos_ids: tuple[int, ...] = (),
        chat_template: ChatTemplate | None = None,
        warnings: tuple[str, ...] = (),
    ) -> None:
        # Some files have the truncation or padding of their training.
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
        """Return the token ids of `text`; special tokens written in it become their ids.

        `add_special_tokens` adds what the model expects around a text (often a first `<s>`). Pass
        False for the output of a chat template, which has written them. Raises `ValueError` for
        text that is not valid Unicode (lone surrogates).
        """
        try:
            # Unlike `encode`, this lets other threads run meanwhile, of use for long prompts.
            [encoding] = self._inner.encode_batch_fast(
                [text], add_special_tokens=add_special_tokens
            )
        except (UnicodeEncodeError, TypeError) as error:
            raise ValueError("the text is not valid Unicode: it has lone surrogates") from error
        return list(encoding.ids)

    def least_tokens(self, text: str) -> int:
        """Return a lower bound on the length of `encode(text)`, without encoding.

        No token is for more characters than it has. The bound is unknown, and 0, if the text is
        normalised before it is split, other than by composing characters.
        """
        normalizer = self._inner.normalizer
        kind = None if normalizer is None else json.loads(normalizer.__getstate__())["type"]
        shrinks = _SHRINKS.get(kind)
        return 0 if shrinks is None else len(text) // (shrinks * self._longest_token)

    @cached_property
    def _longest_token(self) -> int:
        return max(map(len, self._inner.get_vocab(with_added_tokens=True)), default=1)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Return the text of `ids`; invalid UTF-8 becomes U+FFFD, unknown ids nothing."""
        token_bytes = self._visible_bytes if skip_special_tokens else self.token_bytes
        text = b"".join(map(token_bytes, ids)).decode("utf-8", "replace")
        return self._decoder.strip(text, self._decoder.leading_spaces)[0]

    def token(self, token_id: int) -> str:
        """Return the text of one token, with U+FFFD for bytes that are no whole character."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of one token in a text; none for an id outside the vocabulary.

        Raises `ValueError` for anything that cannot be a token id.
        """
        known = self._bytes.get(token_id)
        if known is not None:
            return known
        try:
            token = self._inner.id_to_token(token_id)
        except (OverflowError, TypeError) as error:
            raise ValueError(f"{token_id!r} is no token id") from error
        found = b"" if token is None else self._decoder.to_bytes(token)
        if token is not None:  # there is no end of unknown ids, which must not fill the memory
            self._bytes[token_id] = found
        return found

    def stream(
        self, skip_special_tokens: bool = True, prompt_ids: Sequence[int] = ()
    ) -> TextStream:
        """Return a detokenizer for tokens that arrive one by one.

        With `prompt_ids`, the text continues theirs: the space before a first word is kept, and a
        character that the prompt began is completed. Without, the text stands alone, as in
        `decode`.
        """
        token_bytes = self._visible_bytes if skip_special_tokens else self.token_bytes
        return TextStream(self._decoder, token_bytes, prompt_ids[-_PROMPT_TAIL:])

    def _visible_bytes(self, token_id: int) -> bytes:
        return b"" if token_id in self._special_ids else self.token_bytes(token_id)
