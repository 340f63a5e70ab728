"""The letters that byte-level BPE vocabularies write for bytes (Radford et al., GPT-2, 2019)."""

from __future__ import annotations

from collections.abc import Mapping


def byte_letters() -> tuple[str, ...]:
    """For each byte a printable letter: itself where visible in Latin-1, else from U+0100 on."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    stand_ins = {byte: chr(256 + index) for index, byte in enumerate(hidden)}
    return tuple(stand_ins.get(byte, chr(byte)) for byte in range(256))


def letter_bytes() -> Mapping[str, int]:
    """The inverse of `byte_letters`."""
    return {letter: byte for byte, letter in enumerate(byte_letters())}
