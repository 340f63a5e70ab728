"""What every route needs: the engine, the tokenizer and the name of the served model.

Tokenisation and chat templates run on threads, so that they do not block the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from sarathi.engine.messages import ModelInfo
from sarathi.fleet.fleet import Engines
from sarathi.models.tokenizers.chat_template import RENDER_SECONDS, WorkLimit
from sarathi.models.tokenizers.template_abilities import TemplateAbilities, template_abilities
from sarathi.models.tokenizers.tokenizer import Tokenizer
from sarathi.server.parsers.format_detection import OutputFormats
from sarathi.server.reply_headers import IGNORED
from sarathi.server.request_body import ModelRequest, decode
from sarathi.server.responses import ApiError, engine_failed, invalid, too_long, unavailable

_LOG = logging.getLogger(__name__)
_MAX_LOGGED = 200  # names of unknown fields

# Tokenising takes about a hundred times the memory of a text, so that long ones go one by one.
# They have a thread to themselves: a short text never waits for a long one.
_LONG = 64 * 2**10  # bytes of a request body
_TINY = 4096  # bytes, a millisecond of tokenising: less than a switch of threads would cost
_SHORT_THREADS, _LONG_THREADS = 2, 1
_MAX_SHORT_JOBS, _MAX_LONG_JOBS = 2048, 32  # waiting and running

_PIECE = 128 * 2**10  # characters that are tokenised at once, to count them
# A cut between two pieces may change a few tokens beside it; exactness beyond that is not needed.
_TOLERANCE = 1.1

Result = TypeVar("Result")
Body = TypeVar("Body", bound=ModelRequest)


class TokenizerPool:
    """Runs work on text, with limits on its time, its memory and how much of it may wait."""

    def __init__(self) -> None:
        self._short = _BoundedExecutor(_SHORT_THREADS, _MAX_SHORT_JOBS)
        self._long = _BoundedExecutor(_LONG_THREADS, _MAX_LONG_JOBS)

    async def run(
        self, num_bytes: int, work: Callable[[WorkLimit], Result], *, renders: bool = False
    ) -> Result:
        """Run `work` on a thread; raise `ApiError`, status 503, if too much of its size waits.

        Cancelling the awaiting task removes work that has not started, and ends started work when
        it next checks its limit.

        Args:
            num_bytes: size of the request body, which separates short from long work.
            work: gets a limit that it has to check often.
            renders: whether it renders a template, whose time its size does not bound. Other work
                on a few bytes is done at once.
        """
        limit = WorkLimit(RENDER_SECONDS)
        if num_bytes <= _TINY and not renders:
            return work(limit)
        executor = self._short if num_bytes <= _LONG else self._long
        future = executor.submit(work, limit)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            limit.cancel()
            raise


class _BoundedExecutor:
    def __init__(self, threads: int, max_jobs: int) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="tokenizer")
        self._max_jobs = max_jobs
        # Work that was cancelled while it ran counts until its thread is free.
        self._jobs: set[Future[Any]] = set()

    def submit(self, work: Callable[[WorkLimit], Result], limit: WorkLimit) -> Future[Result]:
        if len(self._jobs) >= self._max_jobs:
            message = "Too many texts are waiting to be tokenised."
            raise unavailable(message, "overloaded", retry_after=1)
        future = self._executor.submit(work, limit)
        self._jobs.add(future)
        future.add_done_callback(self._jobs.discard)  # on any thread, which a set allows
        return future


@dataclass(frozen=True)
class Service:
    """The engines and the tokenizer of one model, and the threads that tokenise."""

    fleet: Engines
    tokenizer: Tokenizer
    model: str  # the name that clients call it
    created: int  # seconds since 1970
    formats: OutputFormats  # of chat outputs
    strict: bool = False  # refuse unknown fields and unusual values
    pool: TokenizerPool = field(default_factory=TokenizerPool)
    _logged: set[str] = field(default_factory=set, init=False)  # unknown fields

    @cached_property
    def abilities(self) -> Mapping[bool, TemplateAbilities]:
        """What the chat template shows, in requests with tools (True) and without."""
        template = self.tokenizer.chat_template
        assert template is not None
        return {
            with_tools: template_abilities(template, with_tools) for with_tools in (False, True)
        }

    def ready(self) -> ModelInfo:
        """Return the description of the loaded model; raise `ApiError`, status 503, without one."""
        if self.fleet.error is not None:
            raise engine_failed(self.fleet.error)
        if self.fleet.info is None:
            raise unavailable("The model is still loading.", "model_loading", retry_after=2)
        return self.fleet.info

    def read(self, call: RequestContext, kind: type[Body]) -> tuple[ModelInfo, Body]:
        """Return the loaded model, and the request to it that a body holds, or raise `ApiError`."""
        info = self.ready()
        request, ignored = decode(call.body, kind, strict=self.strict)
        if ignored:
            call.reply_headers.append((IGNORED, ", ".join(ignored).encode()))
            self._log_ignored(ignored)
        self.check_model(request.model)
        return info, request

    def _log_ignored(self, names: Sequence[str]) -> None:
        """Log each unknown field once."""
        for name in names:
            if name not in self._logged and len(self._logged) < _MAX_LOGGED:
                self._logged.add(name)
                _LOG.info("requests have the unknown field %s, which is ignored", name)

    def check_model(self, name: str | None) -> None:
        """Raise `ApiError`, status 404, for any name but that of the served model."""
        if name and name != self.model:
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
    # Of the reply, whatever it will be; may be extended until it starts.
    reply_headers: list[tuple[bytes, bytes]] = field(default_factory=list)
