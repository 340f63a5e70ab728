"""The tokenizer of a model: text to token ids and, all at once or incrementally, back."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import tokenizers

from sarathi.errors import ModelError
from sarathi.models.tokenizers import grammar_tokenizer
from sarathi.models.tokenizers.chat_template import ChatTemplate

if TYPE_CHECKING:
    import llguidance

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

    @cached_property
    def added_tokens(self) -> Mapping[str, int]:
        """The ids of tokens beside the trained vocabulary, by text; some of them are special."""
        added = self._inner.get_added_tokens_decoder()
        return {token.content: id_ for id_, token in added.items()}

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included; the model's own vocabulary may be padded."""
        return int(self._inner.get_vocab_size(with_added_tokens=True))

    @property
    def special_ids(self) -> frozenset[int]:
        """The tokens that are not part of a text."""
        return self._special_ids

    def to_json(self) -> str:
        """Return the tokenizer as a tokenizer.json has it, with all added tokens."""
        return self._inner.to_str()

    @cached_property
    def bytes_for_grammars(self) -> llguidance.LLTokenizer:
        """What checks grammars; `ModelError` if the tokenizer is not supported."""
        return grammar_tokenizer.bytes_and_special_tokens(self)

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

    def special_id(self, text: str) -> int | None:
        """Return the id of the special token that is written `text`; None if there is none."""
        token = self._inner.token_to_id(text)
        return token if token in self._special_ids else None

    def stream(
        self,
        skip_special_tokens: bool = True,
        prompt_ids: Sequence[int] = (),
        visible_ids: frozenset[int] = frozenset(),
    ) -> TextStream:
        """Return a detokenizer for tokens that arrive one by one.

        With `prompt_ids`, the text continues theirs: the space before a first word is kept, and a
        character that the prompt began is completed. Without, the text stands alone, as in
        `decode`. Special tokens of `visible_ids` are never skipped.
        """
        token_bytes = self._visible_bytes if skip_special_tokens else self.token_bytes
        if skip_special_tokens and visible_ids:
            hidden = self._special_ids - visible_ids

            def token_bytes(token_id: int) -> bytes:
                return b"" if token_id in hidden else self.token_bytes(token_id)

        return TextStream(self._decoder, token_bytes, prompt_ids[-_PROMPT_TAIL:])

    def _visible_bytes(self, token_id: int) -> bytes:
        return b"" if token_id in self._special_ids else self.token_bytes(token_id)


_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_letters() -> tuple[str, ...]:
    """Return the letter that byte-level BPE vocabularies write for each byte (GPT-2, 2019).

    It is the byte itself where visible in Latin-1, otherwise a letter from U+0100 on.
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    stand_ins = {byte: chr(256 + index) for index, byte in enumerate(hidden)}
    return tuple(stand_ins.get(byte, chr(byte)) for byte in range(256))


@dataclass(frozen=True)
class TokenDecoder:
    """Decodes the tokens of a vocabulary to bytes.

    `leading_spaces` is how many spaces at the beginning of a text are dropped, because the
    tokenizer adds them when it encodes.
    """

    to_bytes: Callable[[str], bytes]
    leading_spaces: int

    @classmethod
    def from_json(cls, state: bytes | str | None) -> TokenDecoder:
        """Read the `decoder` of a tokenizer.json; `ModelError` for one that is not supported.

        Text is made from the bytes of all tokens, where the tokenizers library makes it from
        strings. They agree on all valid text; a run of byte tokens that is not valid UTF-8 has
        one replacement character for each invalid sequence here, for each byte there.
        """
        try:
            steps = _flatten(json.loads(state) if state else {"type": None})
            return _byte_level(steps) or _sentencepiece(steps)
        except (KeyError, TypeError, IndexError) as error:
            raise ModelError(f"the tokenizer's decoder is not supported: {state!r:.200}") from error

    def strip(self, text: str, leading_spaces: int) -> tuple[str, int]:
        """Return `text` without leading spaces, and how many may be dropped from the next text."""
        kept = text.lstrip(" ")
        dropped = min(len(text) - len(kept), leading_spaces)
        return text[dropped:], leading_spaces - dropped if dropped == len(text) else 0


def _flatten(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    if decoder["type"] == "Sequence":
        return [step for inner in decoder["decoders"] for step in _flatten(inner)]
    return [decoder]


def _byte_level(steps: list[dict[str, Any]]) -> TokenDecoder | None:
    if [step["type"] for step in steps] != ["ByteLevel"]:
        return None
    letters = {letter: byte for byte, letter in enumerate(byte_letters())}

    def to_bytes(token: str) -> bytes:
        try:
            return bytes([letters[letter] for letter in token])
        except KeyError:  # an added token, written as it is
            return token.encode()

    return TokenDecoder(to_bytes, 0)


def _sentencepiece(steps: list[dict[str, Any]]) -> TokenDecoder:
    replacements: list[tuple[str, str]] = []
    byte_fallback, leading_spaces = False, 0
    for index, step in enumerate(steps):
        match step["type"]:
            case "Replace":
                replacements.append((step["pattern"]["String"], step["content"]))
            case "Metaspace":
                replacements.append((step["replacement"], " "))
                leading_spaces = 0 if step.get("prepend_scheme") == "never" else 1
            case "ByteFallback":
                byte_fallback = True
            case "Fuse":
                pass
            case "Strip" if (
                step["content"] == " "
                and step["stop"] == 0
                and index == len(steps) - 1
                and steps[index - 1]["type"] == "Fuse"
            ):
                leading_spaces = step["start"]
            case _:
                raise KeyError(step["type"])

    def to_bytes(token: str) -> bytes:
        if byte_fallback and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes.fromhex(match[1])
        for old, new in replacements:
            token = token.replace(old, new)
        return token.encode()

    return TokenDecoder(to_bytes, leading_spaces)


class TextStream:
    """The text of one sequence of tokens, piece by piece.

    The pieces of `push` and `flush` together are exactly `Tokenizer.decode` of all the tokens. A
    piece ends with a whole character: bytes that may still become one are held back.
    """

    __slots__ = ("_decode", "_decoder", "_leading_spaces", "_token_bytes")

    def __init__(
        self,
        decoder: TokenDecoder,
        token_bytes: Callable[[int], bytes],
        prompt_ids: Iterable[int] = (),
    ) -> None:
        self._decoder = decoder
        self._token_bytes = token_bytes
        self._leading_spaces = decoder.leading_spaces
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self.push(prompt_ids)

    def push(self, ids: Iterable[int]) -> str:
        """Return the text that is certain with `ids`, often empty."""
        text = self._decode(b"".join(map(self._token_bytes, ids)))
        if self._leading_spaces and text:
            text, self._leading_spaces = self._decoder.strip(text, self._leading_spaces)
        return text

    def flush(self) -> str:
        """Return a replacement character if the last character is incomplete, otherwise nothing."""
        return self._decode(b"", True)
