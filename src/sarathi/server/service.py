"""What every route needs: the engine, the tokenizer and the name they are served under."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from sarathi.engine.engine import Engine
from sarathi.engine.messages import ModelInfo
from sarathi.models.tokenizer import Tokenizer
from sarathi.server.errors import engine_failed, loading, too_long, unknown_model

# About a millisecond of tokenising: more would be felt by the streams of others.
LONG_TEXT = 4096  # characters

Result = TypeVar("Result")


@dataclass(frozen=True)
class Service:
    engine: Engine
    tokenizer: Tokenizer
    model: str
    created: int  # seconds since 1970

    def ready(self) -> ModelInfo:
        """
        Raises:
            ApiError: status 503, while the model is loading or after the engine has failed.
        """
        if self.engine.error is not None:
            raise engine_failed(self.engine.error)
        if self.engine.info is None:
            raise loading()
        return self.engine.info

    def check_model(self, name: str | None) -> None:
        """
        Raises:
            ApiError: status 404, for any name but the one served.
        """
        if name is not None and name != self.model:
            raise unknown_model(name, self.model)

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Token ids of a prompt.

        Raises:
            ApiError: status 400, for text that is sure to be too long. That is found without
                tokenising it: megabytes would take seconds, and a hundred times their memory.
        """
        limit = self.ready().max_model_len
        least = self.tokenizer.least_tokens(text)
        if least > limit:
            raise too_long(limit, f"the prompt has at least {least}")
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)


@dataclass(frozen=True)
class Call:
    """A POST as a route gets it."""

    body: bytes
    key: str | None = None  # see `key_name`


async def off_loop(characters: int, work: Callable[[], Result]) -> Result:
    """Run `work` on so much text: in a thread when it would hold up the event loop."""
    return await asyncio.to_thread(work) if characters > LONG_TEXT else work()


def new_id(prefix: str) -> str:
    return f"{prefix}-{secrets.token_hex(12)}"
