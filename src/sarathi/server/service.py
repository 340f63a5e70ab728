"""What every route needs: the engine, the tokenizer and the name they are served under."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from sarathi.engine.messages import ModelInfo
from sarathi.fleet.fleet import Engine
from sarathi.models.tokenizers.tokenizer import Tokenizer
from sarathi.models.tokenizers.work_limit import WorkLimit
from sarathi.server.openai.api_errors import (
    engine_failed,
    invalid,
    loading,
    too_long,
    unknown_model,
)
from sarathi.server.text_pool import TextPool

_PIECE = 128 * 2**10  # characters that are tokenised at once, to count them
# A cut between two pieces may change a few tokens beside it; more is not worth being exact about.
_SLACK = 1.1


@dataclass(frozen=True)
class Service:
    engine: Engine
    tokenizer: Tokenizer
    model: str
    created: int  # seconds since 1970
    pool: TextPool = field(default_factory=TextPool)

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

    def encode(self, text: str, add_special_tokens: bool, limit: WorkLimit) -> list[int]:
        """Token ids of a prompt.

        Raises:
            ApiError: status 400, for text that is sure to be too long. That is found without
                tokenising all of it: megabytes take seconds, and a hundred times their memory.
            WorkCancelledError: nobody waits for it any more.
        """
        longest = self.ready().max_model_len
        least = self.tokenizer.least_tokens(text)
        if least > longest:
            raise too_long(longest, f"the prompt has at least {least}")
        limit.check_cancelled()
        if len(text) > _PIECE:
            count = 0
            for start in range(0, len(text), _PIECE):
                limit.check_cancelled()
                piece = text[start : start + _PIECE]
                count += len(self.tokenizer.encode(piece, add_special_tokens=False))
                if count > _SLACK * longest:
                    raise too_long(longest, f"the prompt has more than {longest}")
        try:
            return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)
        except ValueError as error:
            raise invalid(f"The prompt cannot be tokenised: {error}.") from None


@dataclass(frozen=True)
class RequestContext:
    """A POST as a route gets it."""

    body: bytes
    key: str | None = None  # see `key_name`


def new_id(prefix: str) -> str:
    return f"{prefix}-{secrets.token_hex(12)}"
