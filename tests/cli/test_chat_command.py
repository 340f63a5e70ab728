from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence

import httpx
import pytest
from rich.console import Console

from sarathi.cli.chat import ChatClient, ChatError, converse
from sarathi.cli.main import main


class Terminal:
    """Scripted input: lines, or an exception caused by the user's keys; then Ctrl-D."""

    def __init__(self, *lines: str | type[BaseException]) -> None:
        self.output = io.StringIO()
        self.console = Console(file=self.output, width=80)
        self._lines = iter(lines)

    def read(self) -> str:
        line = next(self._lines, EOFError)
        if isinstance(line, str):
            return line
        raise line


def talk(terminal: Terminal, replies, system: str | None = None) -> str:
    converse(terminal.console, replies, system, terminal.read)
    return terminal.output.getvalue()


def test_the_conversation_so_far_is_sent_each_time():
    sent = []

    def replies(messages: Sequence[dict[str, str]]) -> Iterator[str]:
        sent.append([(message["role"], message["content"]) for message in messages])
        yield from ("an", f"swer {len(sent)}")

    shown = talk(Terminal("one", "  ", "two"), replies, system="be brief")
    assert "answer 1" in shown
    assert "answer 2" in shown
    first = [("system", "be brief"), ("user", "one")]
    assert sent == [first, [*first, ("assistant", "answer 1"), ("user", "two")]]


def test_ctrl_c_stops_an_answer_and_keeps_its_text():
    sent = []
    closed = []

    def replies(messages: Sequence[dict[str, str]]) -> Iterator[str]:
        sent.append([message["content"] for message in messages])
        try:
            yield "half"
            if len(sent) == 1:
                raise KeyboardInterrupt
        finally:
            closed.append(True)

    talk(Terminal("one", KeyboardInterrupt, "two"), replies)
    assert sent == [["one"], ["one", "half", "two"]]
    assert closed == [True, True]


def test_a_refused_question_is_forgotten():
    sent = []

    def replies(messages: Sequence[dict[str, str]]) -> Iterator[str]:
        sent.append([message["content"] for message in messages])
        if len(sent) == 1:
            raise ChatError("too [long]")
        yield "fine"

    shown = talk(Terminal("one", "two"), replies)
    assert "too [long]" in shown
    assert sent == [["one"], ["two"]]


def test_markup_in_an_answer_is_shown_as_it_is():
    def replies(messages: Sequence[dict[str, str]]) -> Iterator[str]:
        yield "[bold]x[/bold] [/]"

    assert "[bold]x[/bold] [/]" in talk(Terminal("q"), replies)


def server(handler) -> ChatClient:
    client = httpx.Client(base_url="http://test", transport=httpx.MockTransport(handler))
    return ChatClient("http://test", "tiny", client)


def test_a_streamed_answer_is_read_piece_by_piece():
    chunks = [
        {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
        {"choices": [{"delta": {"content": "é"}}]},
        {"choices": [{"delta": {}}]},
        {"choices": []},
    ]
    lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
    bodies = []

    def handler(request: httpx.Request) -> httpx.Response:
        bodies.append(json.loads(request.content))
        return httpx.Response(200, text="".join([*lines, "data: [DONE]\n\n"]))

    reply = server(handler).reply({"temperature": 0.5}, [{"role": "user", "content": "q"}])
    assert list(reply) == ["é"]
    assert bodies[0]["temperature"] == 0.5
    assert bodies[0]["stream"] is True


@pytest.mark.parametrize(
    "response",
    [
        httpx.Response(400, json={"error": {"message": "no such thing"}}),
        httpx.Response(200, text='data: {"error": {"message": "no such thing"}}\n\n'),
    ],
)
def test_the_errors_of_the_server_are_shown(response):
    reply = server(lambda request: response).reply({}, [{"role": "user", "content": "q"}])
    with pytest.raises(ChatError, match="no such thing"):
        list(reply)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--url", "http://127.0.0.1:9"],
        ["--url", "http://127.0.0.1:9", "--api-key", "schlüssel"],
        ["--url", "not an address"],
        ["--url", "ftp://x"],
        ["--url", "http://"],
        ["--url", "http://x:port"],
        ["smollm2-135m", "--url", "http://127.0.0.1:9"],
        ["smollm2-135m", "--temperature", "-1"],
    ],
)
def test_a_conversation_that_cannot_start_is_a_usage_error(arguments, capsys):
    assert main(["chat", *arguments]) == 2
    message = capsys.readouterr().err
    assert message.startswith("sarathi chat: error: ")
    assert len(message.splitlines()) == 1
