"""Three kinds of users at once: a reader, somebody with a long prompt, and an agent.

One client streams a long answer. An agent asks every second for a short JSON object by a schema.
Then somebody sends a prompt of 6000 tokens. What each of them waits for is measured on this engine,
with its own scheduling and with whole prompts first (`--policy vllm`), and on llama.cpp's server
where `llama-server` is installed.

Usage: python -m perf.agents
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import uvloop
from rich.console import Console
from rich.table import Table

from perf.prompts import text_prompts
from perf.report import MODEL, rounds
from perf.server import Server
from perf.streams import Stream, post_stream
from sarathi.models.locate import locate
from sarathi.models.model import open_tokenizer

_PROMPT = 6000  # tokens of the long prompt, about
_BEFORE = 3.0  # seconds until it is sent
_AFTER = 2.0  # seconds that the others go on after its first token
_EVERY = 1.0  # seconds between two requests of the agent
_TIMEOUT = 300.0  # seconds
_CHAT = "/v1/chat/completions"
_SCHEMA = {
    "type": "object",
    "properties": {
        "action": {"type": "string", "enum": ["read", "write", "search", "stop"]},
        "line": {"type": "integer", "minimum": 0, "maximum": 999},
        "sure": {"type": "boolean"},
    },
    "required": ["action", "line", "sure"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Subject:
    """A server to measure, by the command that starts it."""

    name: str
    options: Sequence[str]
    command: Sequence[str] | None = None  # None: this engine


@dataclass(frozen=True)
class Waits:
    """What one kind of client waited for, in seconds."""

    ttft: Sequence[float]
    gaps: Sequence[float]

    @classmethod
    def of(cls, streams: Sequence[Stream], until: float) -> Waits:
        """Collect the waits of streams that ended `until` then."""
        arrived = [[t for t in stream.arrivals if t <= until] for stream in streams]
        return cls(
            [times[0] - s.sent for times, s in zip(arrived, streams, strict=True) if times],
            [b - a for times in arrived for a, b in itertools.pairwise(times)],
        )


def subjects() -> list[Subject]:
    """Return the servers that can be measured here."""
    found = [
        Subject("sarathi", ["--max-model-len", "8192"]),
        Subject("sarathi --policy vllm", ["--max-model-len", "8192", "--policy", "vllm"]),
    ]
    if (llama := shutil.which("llama-server")) is not None:
        command = [llama, "-m", str(locate(MODEL).path)]
        options = ["-c", "32768", "-np", "4", "--no-webui"]
        found.append(Subject("llama.cpp", options, command))
    return found


def _chat(text: str, max_tokens: int, **more: object) -> dict[str, object]:
    message = {"role": "user", "content": text}
    return {"messages": [message], "max_tokens": max_tokens, "temperature": 0, **more}


async def measure(port: int, long_prompt: str) -> dict[str, Waits]:
    """Play the three clients; return what each waited for."""
    loop = asyncio.get_running_loop()
    question = "Tell me a long story about a ship, a storm and a lighthouse."
    reader = await post_stream(port, _CHAT, _chat(question, 4000, ignore_eos=True))
    structured = {"type": "json_schema", "json_schema": {"name": "step", "schema": _SCHEMA}}
    asked: list[Stream] = []

    async def ask_again_and_again() -> None:
        for number in itertools.count():
            text = f"Step {number}: what do you do next?"
            asked.append(
                await post_stream(port, _CHAT, _chat(text, 64, response_format=structured))
            )
            await asyncio.sleep(_EVERY)

    agent = loop.create_task(ask_again_and_again())
    await asyncio.sleep(_BEFORE)
    newcomer = await post_stream(port, _CHAT, _chat(long_prompt, 16))
    await asyncio.wait_for(newcomer.done, _TIMEOUT)
    await asyncio.sleep(_AFTER)
    agent.cancel()
    await asyncio.wait_for(asyncio.gather(*(one.done for one in asked)), _TIMEOUT)
    end = max(one.arrivals[-1] for one in asked)
    reader.close()
    return {
        "reader": Waits.of([reader], end),
        "long prompt": Waits.of([newcomer], end),
        "agent": Waits.of(asked, end),
    }


def main() -> None:
    """Print what each client waited for, by server."""
    table = Table(
        title="A reader, a long prompt and an agent at the same time",
        title_justify="left",
        caption=f"A prompt of {_PROMPT} tokens; JSON by a schema every {_EVERY:g} s.",
        caption_justify="left",
    )
    for column in ("server", "client"):
        table.add_column(column)
    for column in ("TTFT, median", "TTFT, longest", "gap, median", "gap, longest"):
        table.add_column(column, justify="right")
    [ids] = text_prompts(1, _PROMPT)
    long_prompt = open_tokenizer(locate(MODEL).path).decode(ids)
    for subject in rounds(subjects(), "three clients at once"):
        with Server(subject.options, subject.command) as server:
            server.wait_for_token()
            waits = uvloop.run(measure(server.port, long_prompt))
        for client, waited in waits.items():
            times = (np.median(waited.ttft), max(waited.ttft))
            gaps = (np.median(waited.gaps), max(waited.gaps))
            row = [f"{seconds:.2f} s" for seconds in times]
            row += [f"{1000 * seconds:.0f} ms" for seconds in gaps]
            table.add_row(subject.name, client, *row)
    Console().print(table)


if __name__ == "__main__":
    main()
