"""What every route needs: the engine, the tokenizer and the name of the served model."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from sarathi.engine.messages import ModelInfo
from sarathi.fleet.fleet import Engine
from sarathi.models.tokenizers.tokenizer import Tokenizer
from sarathi.models.tokenizers.work_limit import WorkLimit
from sarathi.server.parsers.output_parser import ParserFactory
from sarathi.server.responses import ApiError, engine_failed, invalid, too_long, unavailable
from sarathi.server.tokenizer_pool import TokenizerPool

_PIECE = 128 * 2**10  # characters that are tokenised at once, to count them
# A cut between two pieces may change a few tokens beside it; exactness beyond that is not needed.
_TOLERANCE = 1.1


@dataclass(frozen=True)
class Service:
    """The engine and the tokenizer of one model, and the threads that tokenise."""

    engine: Engine
    tokenizer: Tokenizer
    model: str  # the name that clients call it
    created: int  # seconds since 1970
    output_parser: ParserFactory | None = None  # of chat outputs; None: all text is content
    pool: TokenizerPool = field(default_factory=TokenizerPool)

    def ready(self) -> ModelInfo:
        """Return the description of the loaded model.

        Raises:
            ApiError: status 503, while the model is loading or after the engine has failed.
        """
        if self.engine.error is not None:
            raise engine_failed(self.engine.error)
        if self.engine.info is None:
            raise unavailable("The model is still loading.", "model_loading", retry_after=2)
        return self.engine.info

    def check_model(self, name: str | None) -> None:
        """Raise `ApiError`, status 404, for any name but that of the served model."""
        if name is not None and name != self.model:
            shown = name if len(name) <= 100 else name[:100] + "..."
            message = f"The model {shown!r} does not exist here; this server has {self.model!r}."
            raise ApiError(404, message, param="model", code="model_not_found")

    def encode(self, text: str, add_special_tokens: bool, limit: WorkLimit) -> list[int]:
        """Return the token ids of a prompt.

        Raises:
            ApiError: status 400, for text that is certainly too long. That is found without
                tokenising all of it: megabytes take seconds, and a hundred times their memory.
            WorkCancelledError: the client has disconnected.
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
                if count > _TOLERANCE * longest:
                    raise too_long(longest, f"the prompt has more than {longest}")
        try:
            return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)
        except ValueError as error:
            raise invalid(f"The prompt cannot be tokenised: {error}.") from None


@dataclass(frozen=True)
class RequestContext:
    """A POST request as its route gets it."""

    body: bytes
    key_name: str | None = None  # see `auth.key_name`


def new_id(prefix: str) -> str:
    """Return a random id for a response."""
    return f"{prefix}-{secrets.token_hex(12)}"
