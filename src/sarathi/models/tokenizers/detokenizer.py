"""Incremental detokenization: from tokens to bytes, and to text as soon as it is certain."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from sarathi.errors import ModelError

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
