"""An engine with scripted output, and the HTTP calls that tests make."""

from __future__ import annotations

import asyncio
import codecs
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import httpx
import numpy as np
from starlette.types import ASGIApp

from sarathi.engine.messages import ModelInfo, TokenOutput
from sarathi.fleet.engine_client import EngineError
from sarathi.fleet.fleet import Engines, ReplicaStatus
from sarathi.models.tokenizers.chat_template import WorkLimit
from sarathi.models.tokenizers.grammar_tokenizer import bytes_and_special_tokens
from sarathi.models.tokenizers.tokenizer import Tokenizer
from sarathi.sampling.logprobs import TokenLogprobs
from sarathi.sampling.params import SamplingParams
from sarathi.sampling.sampler import NO_TOKEN
from sarathi.scheduler import SchedulingParams
from sarathi.scheduler.request import FinishReason
from sarathi.server.app import create_app
from sarathi.server.auth import AuthRules
from sarathi.telemetry.request_latencies import Latencies
from sarathi.telemetry.stats import Stats
from tests.model_info import model_info

MODEL = "tiny"
EOS = 256
VOCAB = 260
LIMIT = 100  # tokens, prompt and output together
INFO = model_info(max_model_len=LIMIT, vocab_size=VOCAB)


class ByteTokenizer:
    """A token is a byte; 256 and above are special and have a name."""

    vocab_size = VOCAB
    eos_ids = (EOS,)
    added_tokens: Mapping[str, int] = {}
    special_ids = frozenset(range(EOS, VOCAB))

    def __init__(self, chat_template: Any = None) -> None:
        self.chat_template = TaggedTemplate() if chat_template is None else chat_template

    @property
    def bytes_for_grammars(self) -> Any:
        return bytes_and_special_tokens(cast(Tokenizer, self))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode())

    def least_tokens(self, text: str) -> int:
        return len(text)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        stream = self.stream(skip_special_tokens)
        return stream.push(ids) + stream.flush()

    def token(self, token: int) -> str:
        return self.token_bytes(token).decode(errors="replace")

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else f"<{token}>".encode()

    def special_id(self, text: str) -> int | None:
        specials = {self.token(token): token for token in range(256, VOCAB)}
        return specials.get(text)

    def stream(
        self,
        skip_special_tokens: bool = True,
        prompt_ids: Sequence[int] = (),
        visible_ids: frozenset[int] = frozenset(),
    ) -> ByteStream:
        return ByteStream(self, skip_special_tokens, visible_ids)


class ByteStream:
    def __init__(
        self, tokenizer: ByteTokenizer, skip_special_tokens: bool, visible_ids: frozenset[int]
    ) -> None:
        self._tokenizer = tokenizer
        self._visible = visible_ids
        self._skip = skip_special_tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: Sequence[int]) -> str:
        shown = [t for t in ids if t < 256 or not self._skip or t in self._visible]
        return self._decoder.decode(b"".join(map(self._tokenizer.token_bytes, shown)))

    def flush(self) -> str:
        return self._decoder.decode(b"", True)


class TaggedTemplate:
    """`role:content|` for each message; the first may not be of the assistant."""

    tool_source = None
    source = "{{ messages }}"
    bos_token, eos_token = "", "<256>"

    def render_within(
        self,
        limit: WorkLimit,
        messages: Sequence[dict[str, str]],
        add_generation_prompt: bool = True,
        tools: Any = None,
        **extra: Any,
    ) -> str:
        if messages[0]["role"] == "assistant":
            raise ValueError("the user speaks first")
        text = "".join(f"{message['role']}:{message['content']}|" for message in messages)
        return text + str(extra.get("suffix", "")) + (">" if add_generation_prompt else "")


class FakeGeneration:
    def __init__(
        self,
        engine: FakeEngine,
        prompt: list[int],
        params: SamplingParams,
        scheduling: SchedulingParams,
    ) -> None:
        self.prompt = prompt
        self.params = params
        self.scheduling = scheduling
        self.cancelled = False
        self.stopped = False
        self._engine = engine
        self._steps = engine.script(prompt, params)
        self._sent = 0

    async def next(self) -> list[TokenOutput]:
        await asyncio.sleep(0)
        if self._engine.lost is not None:
            raise self._engine.lost
        if not self._steps and self._engine.on_silence is not None:
            raise EngineError(self._engine.on_silence)
        if not self._steps:
            self._engine.silent.set()
            await asyncio.Event().wait()
        outputs: list[TokenOutput] = []
        if self.params.prompt_logprobs is not None and not self._sent:
            outputs = [TokenOutput(0, prompt_logprobs=found) for found in self._scores()]
        if not self.params.max_tokens:
            first = self._engine.cached(self.prompt), self._engine.delay(self.prompt)
            end = TokenOutput(0, NO_TOKEN, "length", None, *first, embedding=self._embedding())
            return [*outputs, end]
        for token in self._steps.pop(0):
            self._sent += 1
            last = token == EOS and not self.params.ignore_eos
            reason: FinishReason | None
            reason = "stop" if last else "length" if self._sent == self.params.max_tokens else None
            cached, delay = 0, None
            if self._sent == 1:
                cached, delay = self._engine.cached(self.prompt), self._engine.delay(self.prompt)
            outputs.append(TokenOutput(0, token, reason, self._logprobs(token), cached, delay))
            if reason is not None:
                break
        return outputs

    def cancel(self) -> None:
        self.cancelled = True

    def stop(self) -> None:
        self.stopped = True

    def _embedding(self) -> bytes | None:
        """In the direction of the number of tokens, that of the pooling and zeros."""
        if self.params.pooling is None:
            return None
        vector = np.array([len(self.prompt), self.params.pooling == "mean", *[0] * 6])
        return (vector / np.linalg.norm(vector)).astype("<f4").tobytes()

    def _scores(self) -> list[list[TokenLogprobs]]:
        """Of each token but the first, in pieces of two tokens."""
        count = self.params.prompt_logprobs
        found = [
            TokenLogprobs(-token / 8, 2, [65, token][:count], [-0.25, -token / 8][:count])
            for token in self.prompt[1:]
        ]
        return [found[start : start + 2] for start in range(0, len(found), 2)]

    def _logprobs(self, token: int) -> TokenLogprobs | None:
        count = self.params.logprobs
        if count is None:
            return None
        return TokenLogprobs(-0.5, 1, [token, 65][:count], [-0.5, float("-inf")][:count])


class FakeEngine:
    """Each request gets the tokens of `script`; after them silence, or an error."""

    def __init__(
        self,
        text: str = "Hello, world",
        *,
        script: Callable[[list[int], SamplingParams], list[list[int]]] | None = None,
        info: ModelInfo | None = INFO,
        cached: Callable[[list[int]], int] = lambda prompt: 0,
        delay: Callable[[list[int]], float] = lambda prompt: 0.0,
    ) -> None:
        self.info = info
        self.error: str | None = None
        self.stats: Stats | None = None
        self.latencies = Latencies()
        self.replicas = [ReplicaStatus(0, "ready" if info else "starting", 0, 0)]
        self.restarts = 0
        self.resumed = 0
        self.scaled: list[tuple[int, float | None]] = []
        self.cached = cached
        self.delay = delay
        self.on_silence: str | None = None
        self.lost: EngineError | None = None  # what comes instead of tokens
        self.silent = asyncio.Event()
        self.generations: list[FakeGeneration] = []
        self.script = script or (lambda prompt, params: [[b] for b in text.encode()] + [[EOS]])

    def submit(
        self, prompt_ids: Sequence[int], params: SamplingParams, scheduling: SchedulingParams
    ) -> FakeGeneration:
        if self.error is not None:
            raise EngineError(self.error)
        self.generations.append(FakeGeneration(self, list(prompt_ids), params, scheduling))
        return self.generations[-1]

    def scale(self, replicas: int, drain_seconds: float | None = None) -> None:
        if not 1 <= replicas <= 4:
            raise ValueError(f"replicas is {replicas}, expected 1 to 4")
        self.scaled.append((replicas, drain_seconds))
        self.replicas = [ReplicaStatus(n, "ready", 0, 0) for n in range(replicas)]

    @property
    def params(self) -> SamplingParams:
        """Of the only request."""
        (generation,) = self.generations
        return generation.params

    @property
    def scheduling(self) -> SchedulingParams:
        """Of the only request."""
        (generation,) = self.generations
        return generation.scheduling


def fake_app(engine: FakeEngine, tokenizer: ByteTokenizer | None = None, **options: Any) -> ASGIApp:
    """The server's application; what it uses of the two classes, the fakes have."""
    return create_app(
        cast("Engines", engine),
        cast("Tokenizer", tokenizer or ByteTokenizer()),
        **{"served_name": MODEL, **options},
    )


def call(
    engine: FakeEngine,
    method: str,
    path: str,
    body: Any = None,
    *,
    content: bytes | None = None,
    headers: dict[str, str] | None = None,
    tokenizer: ByteTokenizer | None = None,
    client: tuple[str, int] = ("127.0.0.1", 123),
    url: str = "http://localhost",
    api_keys: Sequence[str] = (),
    admin_keys: Sequence[str] = (),
    **options: Any,
) -> httpx.Response:
    """One request to a new app around `engine`; `body` is sent as JSON, `content` as it is.

    `client` is where it comes from, and `url` the server as the client calls it.
    """
    rules = AuthRules(tuple(api_keys), tuple(admin_keys))
    app = fake_app(engine, tokenizer, **{"auth": rules, **options})

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=client)
        async with httpx.AsyncClient(transport=transport, base_url=url) as http:
            if content is not None:
                return await http.request(method, path, content=content, headers=headers)
            return await http.request(method, path, json=body, headers=headers)

    return asyncio.run(asyncio.wait_for(send(), 20))


def complete(engine: FakeEngine, prompt: Any = "p", **fields: Any) -> httpx.Response:
    return call(engine, "POST", "/v1/completions", {"model": MODEL, "prompt": prompt, **fields})


def chat(engine: FakeEngine, messages: Any = None, **fields: Any) -> httpx.Response:
    messages = [{"role": "user", "content": "hi"}] if messages is None else messages
    body = {"model": MODEL, "messages": messages, **fields}
    return call(engine, "POST", "/v1/chat/completions", body)


def events(response: httpx.Response) -> list[Any]:
    """The JSON of a stream that ended as it should."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    *lines, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def error(response: httpx.Response, status: int, param: str | None = None) -> dict[str, Any]:
    """The error in OpenAI's form, after checking that it is one."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    assert body["error"]["param"] == param
    kind = "invalid_request_error" if status < 500 else "server_error"
    assert body["error"]["type"] == kind
    return body["error"]
