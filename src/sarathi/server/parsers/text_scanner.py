"""Reads text that comes in pieces as if all of it were there.

A reader is a generator. It asks a `TextScanner` for what it expects next, and is suspended where
that depends on text that has not come yet, so that what it returns does not depend on the pieces.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

T = TypeVar("T")
Reading = Generator[None, None, T]  # is resumed when there is more text, or no more to come
Emit = Callable[[str], object]

_SPACE = re.compile(r"\s*")
_SCALAR = re.compile(r"[\w.+-]*")
_BETWEEN = re.compile(r"[\s\w.,:+-]*")  # of strings and brackets, within a value
_PAIRS = {"{": "}", "[": "]", "(": ")"}


class TextScanner:
    """Text with a position. What is before the position stays until `drop`."""

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.ended = False  # no more text comes

    def drop(self) -> None:
        """Forget the text before the position."""
        self.text = self.text[self.at :]
        self.at = 0

    def more(self) -> Reading[bool]:
        """Wait for more text; return False if there is none to come."""
        if not self.ended:
            yield
        return not self.ended

    def peek(self) -> Reading[str]:
        """Return the next character; an empty string at the end."""
        if self.at == len(self.text):
            yield from self.more()
        return self.text[self.at : self.at + 1]

    def take(self, *literals: str) -> Reading[str]:
        """Consume the longest of `literals` that is next, and return it, or an empty string."""
        while True:
            rest = self.text[self.at : self.at + max(map(len, literals), default=0)]
            unclear = any(len(rest) < len(one) and one.startswith(rest) for one in literals)
            if unclear and (yield from self.more()):
                continue
            found = max((one for one in literals if rest.startswith(one)), key=len, default="")
            self.at += len(found)
            return found

    def take_run(self, pattern: re.Pattern[str]) -> Reading[str]:
        """Consume and return what `pattern`, any number of characters of a class, matches."""
        start = self.at
        while True:
            match = pattern.match(self.text, self.at)
            assert match is not None
            self.at = match.end()
            if self.at < len(self.text) or not (yield from self.more()):
                return self.text[start : self.at]

    def skip_space(self) -> Reading[None]:
        """Consume whitespace."""
        yield from self.take_run(_SPACE)

    def pass_until(self, markers: Sequence[str], emit: Emit) -> Reading[str]:
        """Hand on text up to the first of `markers`, which is consumed and returned.

        Everything but the marker is dropped. Returns an empty string where the text ends. A text
        that may be the beginning of a marker is kept until that is certain.
        """
        found = re.compile("|".join(map(re.escape, markers)))
        first = re.compile("|".join({re.escape(marker[0]) for marker in markers}))
        while True:
            match = found.search(self.text, self.at)
            keep = match.start() if match else self._possible_start(markers, first)
            if keep > self.at:
                emit(self.text[self.at : keep])
            self.at = keep
            self.drop()
            if match:
                self.at = len(match[0])
                return match[0]
            if not (yield from self.more()):
                if self.text:
                    emit(self.text)
                self.at = len(self.text)
                self.drop()
                return ""

    def _possible_start(self, markers: Sequence[str], first: re.Pattern[str]) -> int:
        """Return where the text may begin a marker that goes on beyond its end."""
        at = max(self.at, len(self.text) - max(map(len, markers)) + 1)
        while match := first.search(self.text, at):
            at = match.start()
            if any(marker.startswith(self.text[at:]) for marker in markers):
                return at
            at += 1
        return len(self.text)

    def value(self, emit: Emit | None = None, quotes: str = '"') -> Reading[str | None]:
        """Consume a value as JSON or Python write it: a string, brackets or a scalar.

        It is split from what follows, not validated. Returns its text, or None if it has no end:
        the text ends, or a character comes that cannot be in it. With `emit`, the value has to
        begin the text, and is handed on and dropped as it comes instead of being returned.
        """
        start = self.at
        closing: list[str] = []
        while True:
            if self.at == len(self.text) and not (yield from self._more_of_value(emit)):
                return None
            character = self.text[self.at]
            if character in quotes:
                self.at += 1
                if not (yield from self._string_rest(character, emit)):
                    return None
            elif character in _PAIRS:
                closing.append(_PAIRS[character])
                self.at += 1
            elif closing and character == closing[-1]:
                closing.pop()
                self.at += 1
            elif closing:
                match = _BETWEEN.match(self.text, self.at)
                assert match is not None
                if match.end() == self.at:
                    self._hand_on(emit)
                    return None
                self.at = match.end()
                continue
            elif not (yield from self.take_run(_SCALAR)):
                return None
            if not closing:
                value = self.text[start : self.at]
                self._hand_on(emit)
                return value

    def _string_rest(self, quote: str, emit: Emit | None) -> Reading[bool]:
        """Consume a string after its first quote; return whether it ends."""
        plain = re.compile(rf"[^{quote}\\]*")
        escaped = False
        while True:
            if self.at == len(self.text) and not (yield from self._more_of_value(emit)):
                return False
            if escaped:
                escaped = False
                self.at += 1
                continue
            match = plain.match(self.text, self.at)
            assert match is not None
            self.at = match.end()
            if self.at == len(self.text):
                continue
            escaped = self.text[self.at] == "\\"
            self.at += 1
            if not escaped:
                return True

    def _more_of_value(self, emit: Emit | None) -> Reading[bool]:
        self._hand_on(emit)
        return (yield from self.more())

    def _hand_on(self, emit: Emit | None) -> None:
        if emit is not None and self.at:
            emit(self.text[: self.at])
            self.drop()
