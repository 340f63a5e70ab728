"""Outputs as blocks: reasoning, texts and tool calls, in the order in which they were generated.

Newer APIs reply with a list of such blocks, and their streams have events where each begins and
ends. `BlockTranslator` is what these APIs share.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import msgspec

from sarathi.engine.output_processor import Delta
from sarathi.scheduler import FinishReason
from sarathi.server.generation_core import Choices, TokenUsage, Translator
from sarathi.server.parsers.output_parser import ParsedDelta, ToolCallDelta

BlockKind = Literal["reasoning", "text", "call"]


@dataclass(slots=True)
class Block:
    """A part of an output, of one kind; of a tool call the text is the JSON of its arguments."""

    index: int  # among the blocks of the output
    kind: BlockKind
    call: ToolCallDelta | None = None  # the first piece of a call: its index, id and name
    pieces: list[str] = field(default_factory=list)
    scored: list[Delta] = field(default_factory=list)  # with the logprobs of a text

    @property
    def text(self) -> str:
        """All that has come so far."""
        return "".join(self.pieces)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of a call as an object; empty where the output was cut before their end."""
        try:
            return msgspec.json.decode(self.text or "{}", type=dict[str, Any])
        except (msgspec.DecodeError, RecursionError):
            return {}


class BlockPiece(NamedTuple):
    """What a delta adds to a block."""

    block: Block
    text: str
    scored: Sequence[Delta] = ()


class BlockReader:
    """Splits the deltas of one output into blocks."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self._unplaced: list[Delta] = []  # with logprobs of text that is held back

    def push(self, delta: Delta) -> list[BlockPiece]:
        """Return what a delta adds, in order. A block ends where a piece of another one follows."""
        pieces = []
        calls: Sequence[ToolCallDelta] = ()
        if type(delta) is ParsedDelta:
            calls = delta.tool_calls
            if delta.reasoning:
                pieces.append(BlockPiece(self._block("reasoning"), delta.reasoning))
        scored: Sequence[Delta] = ()
        if delta.logprobs:
            self._unplaced.append(delta)
            if delta.text:
                scored, self._unplaced = self._unplaced, []
            elif pieces or calls:
                self._unplaced = []
        if delta.text:
            block = self._block("text")
            block.scored.extend(scored)
            pieces.append(BlockPiece(block, delta.text, scored))
        pieces += [BlockPiece(self._call_block(call), call.arguments) for call in calls]
        for block, text, _ in pieces:
            block.pieces.append(text)
        return pieces

    def finish(self) -> list[BlockPiece]:
        """Return an empty text if the output has no block: clients rely on a first one."""
        return [] if self.blocks else [BlockPiece(self._block("text"), "")]

    @property
    def has_calls(self) -> bool:
        """Whether there is a tool call."""
        return any(block.kind == "call" for block in self.blocks)

    def _block(self, kind: BlockKind) -> Block:
        if not self.blocks or self.blocks[-1].kind != kind:
            self.blocks.append(Block(len(self.blocks), kind))
        return self.blocks[-1]

    def _call_block(self, piece: ToolCallDelta) -> Block:
        last = self.blocks[-1] if self.blocks else None
        if last is None or last.call is None or last.call.index != piece.index:
            last = Block(len(self.blocks), "call", piece)
            self.blocks.append(last)
        return last


class BlockTranslator(Translator):
    """Translates outputs for an API whose replies consist of blocks; a job has one choice.

    Subclasses write the events, and the whole reply.
    """

    def __init__(self) -> None:
        self.reader = BlockReader()
        self.finish_reason: FinishReason | None = None
        self.stop_string: str | None = None
        self._started = False
        self._open: Block | None = None

    @abstractmethod
    def start_events(self, usage: TokenUsage) -> bytes:
        """Return the events before all blocks."""

    @abstractmethod
    def block_start(self, block: Block) -> bytes:
        """Return the events for the beginning of a block."""

    @abstractmethod
    def block_delta(self, piece: BlockPiece) -> bytes:
        """Return the events for what is added to the block that began last."""

    @abstractmethod
    def block_end(self, block: Block) -> bytes:
        """Return the events for the end of a block."""

    @abstractmethod
    def end_events(self, usage: TokenUsage) -> bytes:
        """Return the events after all blocks."""

    @abstractmethod
    def whole(self, usage: TokenUsage) -> object:
        """Return the JSON of the reply with all blocks."""

    def events(self, index: int, delta: Delta, choices: Choices) -> bytes:
        events = b""
        if not self._started:
            self._started = True
            events = self.start_events(choices.usage)
        self._note_end(delta)
        return events + self._piece_events(self.reader.push(delta))

    def end(self, usage: TokenUsage) -> bytes:
        events = self._piece_events(self.reader.finish())
        if self._open is not None:
            events += self.block_end(self._open)
        return events + self.end_events(usage)

    def body(self, outputs: Sequence[Sequence[Delta]], usage: TokenUsage) -> object:
        for delta in outputs[0]:
            self.reader.push(delta)
            self._note_end(delta)
        self.reader.finish()
        return self.whole(usage)

    def _note_end(self, delta: Delta) -> None:
        if delta.finish_reason is not None:
            self.finish_reason = delta.finish_reason
            self.stop_string = delta.stop_string

    def _piece_events(self, pieces: Sequence[BlockPiece]) -> bytes:
        events = b""
        for piece in pieces:
            if piece.block is not self._open:
                if self._open is not None:
                    events += self.block_end(self._open)
                self._open = piece.block
                events += self.block_start(piece.block)
            if piece.text:
                events += self.block_delta(piece)
        return events
