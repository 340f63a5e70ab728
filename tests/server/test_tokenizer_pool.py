"""Tokenisation and chat templates: bounded, off the event loop, cancelled with the client."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import pytest
from starlette.types import Message

from sarathi.models.tokenizers import template_abilities
from sarathi.models.tokenizers.chat_template import ChatTemplate, WorkCancelledError, WorkLimit
from sarathi.server import service
from tests.server.fake_engine import (
    INFO,
    LIMIT,
    MODEL,
    ByteTokenizer,
    FakeEngine,
    call,
    chat,
    error,
    fake_app,
)

ENDLESS = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}"
HI = {"messages": [{"role": "user", "content": "hi"}]}
LONG = "long " * 20_000  # characters beyond what counts as short


class SlowTokenizer(ByteTokenizer):
    """Waits in `encode` of long texts until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.started = threading.Event()
        self.go_on = threading.Event()
        self.lengths: list[int] = []

    def least_tokens(self, text: str) -> int:
        return 0

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        self.lengths.append(len(text))
        if len(text) > 4096:
            self.started.set()
            assert self.go_on.wait(20)
            return [1]
        return super().encode(text)


def run(tokenizer: ByteTokenizer, scenario: Callable[[httpx.AsyncClient], Any]) -> Any:
    app = fake_app(FakeEngine(), tokenizer)

    async def main() -> Any:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await scenario(client)

    return asyncio.run(asyncio.wait_for(main(), 30))


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


class TestTemplates:
    @pytest.fixture(autouse=True)
    def short_probes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(template_abilities, "_SECONDS", 0.05)

    def test_an_endless_template_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(service, "RENDER_SECONDS", 0.2)
        body = {"model": MODEL, **HI}
        tokenizer = ByteTokenizer(ChatTemplate(ENDLESS))
        response = call(FakeEngine(), "POST", "/v1/chat/completions", body, tokenizer=tokenizer)
        assert "more than 0.2 seconds" in error(response, 400, "messages")["message"]

    def test_other_requests_are_answered_meanwhile(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(service, "RENDER_SECONDS", 1.0)

        async def scenario(client: httpx.AsyncClient) -> None:
            slow = asyncio.create_task(client.post("/v1/chat/completions", json=HI))
            await asyncio.sleep(0.1)
            for _ in range(5):
                assert (await client.get("/health")).status_code == 200
            assert not slow.done()
            assert (await slow).status_code == 400

        run(ByteTokenizer(ChatTemplate(ENDLESS)), scenario)

    def test_a_refusal_is_not_repeated_in_the_message(self) -> None:
        template = ChatTemplate("{{ raise_exception('roles must alternate') }}")
        body = {"model": MODEL, **HI}
        tokenizer = ByteTokenizer(template)
        response = call(FakeEngine(), "POST", "/v1/chat/completions", body, tokenizer=tokenizer)
        message = error(response, 400, "messages")["message"]
        assert message == "The chat template refuses the messages: roles must alternate"

    @pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize"])
    def test_a_disconnect_ends_the_rendering(
        self, path: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(service, "RENDER_SECONDS", 1000.0)
        app = fake_app(FakeEngine(), ByteTokenizer(ChatTemplate(ENDLESS)))
        messages = [{"type": "http.request", "body": json.dumps(HI).encode()}]
        left = asyncio.Event()

        async def receive() -> Message:
            if messages:
                return messages.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            pytest.fail("the client has disconnected")

        async def scenario() -> None:
            scope = {"type": "http", "method": "POST", "path": path, "headers": []}
            answering = asyncio.ensure_future(app(scope, receive, send))
            await asyncio.sleep(0.1)
            assert not answering.done()
            left.set()
            await answering
            # The thread is free again, too.
            await until(lambda: not any(map(_renders, threading.enumerate())))

        asyncio.run(asyncio.wait_for(scenario(), 20))


def _renders(thread: threading.Thread) -> bool:
    import sys

    frame = sys._current_frames().get(thread.ident or 0)
    while frame is not None:
        if frame.f_code.co_name == "render_within":
            return True
        frame = frame.f_back
    return False


class TestLongTexts:
    @pytest.mark.parametrize("path", ["/tokenize", "/v1/completions"])
    def test_a_short_text_does_not_wait_for_them(self, path: str) -> None:
        tokenizer = SlowTokenizer()

        async def scenario(client: httpx.AsyncClient) -> None:
            long = [asyncio.create_task(client.post(path, json={"prompt": LONG})) for _ in range(5)]
            await until(tokenizer.started.is_set)
            chat = await client.post("/v1/chat/completions", json={**HI, "max_tokens": 3})
            assert chat.status_code == 200
            assert not any(task.done() for task in long)
            tokenizer.go_on.set()
            assert {(await task).status_code for task in long} == {200}

        run(tokenizer, scenario)

    def test_they_run_one_by_one_and_cancelled_ones_never_start(self) -> None:
        tokenizer = SlowTokenizer()

        async def scenario(client: httpx.AsyncClient) -> None:
            pool = service.TokenizerPool()

            def work(limit: Any) -> list[int]:
                limit.check_cancelled()
                return tokenizer.encode(LONG)

            tasks = [asyncio.create_task(pool.run(len(LONG), work)) for _ in range(6)]
            await until(tokenizer.started.is_set)
            await asyncio.sleep(0.05)
            assert len(tokenizer.lengths) == 1
            for task in tasks[1:]:
                task.cancel()
            await asyncio.wait(tasks[1:])
            tokenizer.go_on.set()
            assert await tasks[0] == [1]
            assert await pool.run(len(LONG), work) == [1]
            assert len(tokenizer.lengths) == 2

        run(tokenizer, scenario)

    def test_too_many_are_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(service, "_MAX_LONG_JOBS", 2)
        tokenizer = SlowTokenizer()

        async def scenario(client: httpx.AsyncClient) -> None:
            body = {"prompt": LONG}
            tasks = [asyncio.create_task(client.post("/tokenize", json=body)) for _ in range(2)]
            await until(tokenizer.started.is_set)
            refused = await client.post("/tokenize", json=body)
            assert error(refused, 503)["code"] == "overloaded"
            assert "retry-after" in refused.headers
            tokenizer.go_on.set()
            assert {(await task).status_code for task in tasks} == {200}
            assert (await client.post("/tokenize", json=body)).status_code == 200

        run(tokenizer, scenario)


class TestLengths:
    @pytest.mark.parametrize("path", ["/tokenize", "/v1/completions"])
    def test_a_text_that_is_too_long_is_detected_by_its_first_pieces(self, path: str) -> None:
        class Counting(ByteTokenizer):
            encoded = 0

            def least_tokens(self, text: str) -> int:
                return 0  # as where a normalizer may shorten a text without bound

            def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
                self.encoded += len(text)
                return list(text.encode())

        tokenizer = Counting()
        prompt = " " * (7 * 2**20)
        response = call(FakeEngine(), "POST", path, {"prompt": prompt}, tokenizer=tokenizer)
        assert error(response, 400)["code"] == "context_length_exceeded"
        assert tokenizer.encoded < len(prompt) / 10

    def test_the_limit_of_completions_holds_for_tokenize(self) -> None:
        response = call(FakeEngine(), "POST", "/tokenize", {"prompt": "a" * (LIMIT + 1)})
        assert error(response, 400)["code"] == "context_length_exceeded"
        response = call(FakeEngine(), "POST", "/tokenize", {"prompt": "a" * LIMIT})
        assert response.json()["count"] == LIMIT

    @pytest.mark.parametrize("extra", [0, 1])
    def test_and_for_detokenize(self, extra: int) -> None:
        response = call(FakeEngine(), "POST", "/detokenize", {"tokens": [65] * (LIMIT + extra)})
        if extra:
            assert error(response, 400)["code"] == "context_length_exceeded"
        else:
            assert response.json() == {"prompt": "A" * LIMIT}

    def test_a_text_of_several_pieces_that_fits_is_encoded_as_a_whole(self) -> None:
        text = "abc " * 50_000
        info = msgspec.structs.replace(INFO, max_model_len=len(text))
        response = call(FakeEngine(info=info), "POST", "/tokenize", {"prompt": text})
        assert response.json()["tokens"] == list(text.encode())

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("logit_bias", {str(token): 1 for token in range(1025)}),
            ("stop_token_ids", [1] * 1025),
        ],
    )
    def test_lists_that_are_checked_entry_by_entry_are_limited(self, field, value) -> None:
        info = msgspec.structs.replace(INFO, vocab_size=5000)
        response = chat(FakeEngine(info=info), **{field: value})
        assert "1025 entries" in error(response, 400, field)["message"]


@pytest.mark.parametrize("name", ["thinking", "logit_bias", "documents", "chat_template_kwargs"])
def test_fields_that_hold_anything_are_small(name: str) -> None:
    body = b'{"messages": [{"role": "user", "content": "%s"}], "%s": %s}'
    large = b'{"1": [' + b"1.2345678901234567890123456789e-300," * 9999 + b"1]}"
    response = call(
        FakeEngine(), "POST", "/v1/chat/completions", content=body % (b"hi", name.encode(), large)
    )
    assert "expected at most 65536" in error(response, 400, name)["message"]
    content = b"a" * 99 + b" " * 99_999  # which is not looked at
    response = call(
        FakeEngine(), "POST", "/v1/chat/completions", content=body % (content, name.encode(), b"{}")
    )
    assert "expected at most 65536" not in response.text


def test_work_on_a_few_bytes_is_done_at_once_unless_it_renders() -> None:
    async def scenario() -> None:
        pool = service.TokenizerPool()
        here = threading.get_ident()
        assert await pool.run(10, lambda limit: threading.get_ident()) == here
        assert await pool.run(10, lambda limit: threading.get_ident(), renders=True) != here
        assert await pool.run(10**6, lambda limit: threading.get_ident()) != here

    asyncio.run(scenario())


def test_cancelled_rendering_is_no_refusal() -> None:
    limit = WorkLimit(1.0)
    limit.cancel()
    with pytest.raises(WorkCancelledError):
        ChatTemplate("x").render_within(limit, [])
