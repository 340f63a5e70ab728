"""Reasoning that a model writes before its answer, between markers; the formats by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sarathi.server.parsers.output_parser import OutputParser, ParsedText
from sarathi.server.parsers.text_scanner import Reading, TextScanner


@dataclass(frozen=True)
class ReasoningFormat:
    """The markers of a family of models."""

    begin: str
    end: str

    @property
    def token_texts(self) -> frozenset[str]:
        """What may be a token of the model, which is then to be seen."""
        return frozenset({self.begin, self.end})


_THINK = ReasoningFormat("<think>", "</think>")
# Names as in vLLM, where one format has several.
REASONING_FORMATS: Mapping[str, ReasoningFormat] = {
    "deepseek_r1": _THINK,
    "qwen3": _THINK,
    "glm45": _THINK,
    "mistral": ReasoningFormat("[THINK]", "[/THINK]"),
    "granite": ReasoningFormat("Here is my thought process:", "Here is my response:"),
    "command_r": ReasoningFormat("<|START_THINKING|>", "<|END_THINKING|>"),
    "seed_oss": ReasoningFormat("<seed:think>", "</seed:think>"),
    "gemma4": ReasoningFormat("<|channel>thought\n", "<channel|>"),
}


class ReasoningParser:
    """Splits reasoning at the beginning of an output from the rest, which goes to `rest`.

    Whitespace beside the markers belongs to them. Later markers are text.
    """

    def __init__(
        self, markers: ReasoningFormat, begun: bool, rest: OutputParser | None = None
    ) -> None:
        """`begun` says that the prompt has the first marker already."""
        self.in_reasoning = begun
        self._markers = markers
        self._rest = rest
        self._scanner = TextScanner()
        self._reasoning: list[str] = []
        self._reading: Reading[None] | None = self._read()
        next(self._reading)

    def push(self, text: str, token_ids: Sequence[int], /) -> ParsedText:
        reasoning = ""
        if self._reading is not None:
            if not text:
                return ParsedText()
            reasoning, text = self._resume(text)
        return self._with_rest(reasoning, text, token_ids)

    def flush(self) -> ParsedText:
        reasoning = text = ""
        if self._reading is not None:
            self._scanner.ended = True
            reasoning, text = self._resume("")
        parsed = self._with_rest(reasoning, text, ())
        if self._rest is None:
            return parsed
        rest = self._rest.flush()
        for part in reversed(parsed.parts):
            rest = ParsedText(part.content, part.reasoning, part.tool_calls, then=rest)
        return rest

    def _with_rest(self, reasoning: str, text: str, token_ids: Sequence[int]) -> ParsedText:
        if self._rest is None or not text:
            return ParsedText(text, reasoning)
        parsed = self._rest.push(text, token_ids)
        return ParsedText(parsed.content, reasoning, parsed.tool_calls, parsed.then)

    def _resume(self, text: str) -> tuple[str, str]:
        """Return the reasoning that is certain now, and what comes after it."""
        assert self._reading is not None
        self._scanner.text += text
        after = ""
        if next(self._reading, self) is self:
            self._reading = None
            after = self._scanner.text
        reasoning = "".join(self._reasoning)
        self._reasoning.clear()
        return reasoning, after

    def _read(self) -> Reading[None]:
        scanner, begin, end = self._scanner, self._markers.begin, self._markers.end
        if not self.in_reasoning:
            yield from scanner.skip_space()
            if not (yield from scanner.take(begin)):
                return
            self.in_reasoning = True
        yield from scanner.skip_space()
        scanner.drop()
        yield from scanner.pass_until((f"\n{end}", end), self._reasoning.append)
        self.in_reasoning = False
        yield from scanner.skip_space()
        scanner.drop()
