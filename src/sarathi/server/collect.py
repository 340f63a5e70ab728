"""Replies that are sent when all is generated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec
from starlette.types import Receive, Scope, Send

from sarathi.engine.output_processor import Delta
from sarathi.fleet.generation import EngineError
from sarathi.server.choices import Choices, GenerationJob
from sarathi.server.openai.api_errors import refused
from sarathi.server.openai.logprob_formats import joined
from sarathi.server.openai.response_bodies import Usage
from sarathi.server.reply import json_response, server_timing
from sarathi.server.service import Service


class Body(Protocol):
    """How one API words a whole reply."""

    def body(self, outputs: Sequence[Delta], usage: Usage) -> msgspec.Struct: ...


@dataclass(frozen=True)
class CollectedReply:
    """An ASGI application that generates everything and then sends it."""

    service: Service
    job: GenerationJob
    body: Body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, delay = await self._generate()
        headers = {"Server-Timing": server_timing(delay)}
        await json_response(body, headers=headers)(scope, receive, send)

    async def _generate(self) -> tuple[msgspec.Struct, float]:
        """The reply, and the scheduling delay of the job."""
        choices = Choices(self.service, self.job)
        try:
            await choices.start()
            deltas: list[list[Delta]] = [[] for _ in choices.texts]
            while choices.running:
                for index, delta in await choices.next():
                    deltas[index].append(delta)
            outputs = [joined(of_choice) for of_choice in deltas]
            return self.body.body(outputs, choices.usage), choices.scheduling_delay
        except EngineError as error:
            raise refused(error, self.service.engine.error) from error
        finally:
            choices.close()
