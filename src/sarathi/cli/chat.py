"""`sarathi chat`: talk to a model in the terminal, through a server or in this process."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import httpx
import msgspec
from rich.console import Console

from sarathi.cli.arguments import ConfigFile
from sarathi.cli.keys import ClientKey
from sarathi.cli.local_engine import LocalEngine
from sarathi.errors import UsageError, UserError
from sarathi.options import LAYERED, Option
from sarathi.sampling.params import SamplingParams

if TYPE_CHECKING:
    from sarathi.engine.llm import LLM

DEFAULT_URL = "http://localhost:8000"

Message = dict[str, str]
# The pieces of the answer to a conversation; closing the iterator stops the answer.
Replies = Callable[[Sequence[Message]], Generator[str]]


class ChatError(UserError):
    """The conversation cannot start or go on."""


class AnswerOptions(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is asked of each answer; None for what the model or the server chooses."""

    temperature: Annotated[float | None, Option("0 always takes the likeliest token")] = None
    max_tokens: Annotated[int | None, Option("the longest answer, in tokens")] = None


class ChatOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of the command."""

    model: Annotated[
        str | None,
        Option(
            "run this model here, without a server: a folder, a .gguf file, a hub id or a name",
            metavar="MODEL",
            positional=True,
        ),
    ] = None
    config: ConfigFile = None
    url: Annotated[
        str | None, Option("the server to talk to", default=DEFAULT_URL, metavar="URL")
    ] = None
    served_model: Annotated[
        str | None,
        Option(
            "the model's name at the server",
            default="the one it serves",
            name="model",
            metavar="NAME",
        ),
    ] = None
    system: Annotated[str | None, Option("instructions to the model, before the conversation")] = (
        None
    )
    answers: AnswerOptions
    key: Annotated[ClientKey, LAYERED]
    engine: LocalEngine


def run(options: ChatOptions) -> int:
    """Talk until the user ends the conversation; raise `UserError` if it cannot start."""
    if options.model is not None and options.url is not None:
        raise UsageError("give either a model to run here or --url, not both")
    answers = msgspec.to_builtins(options.answers)
    options.engine.log.configure()
    console = Console(highlight=False)
    if options.model is not None:
        # Checked before the model is loaded.
        params = SamplingParams(**{"max_tokens": None, **answers})
        llm, name = options.engine.load(options.model, console), options.model
        replies: Replies = partial(_local_reply, llm, params)
    else:
        key, url = options.key.read(), options.url or DEFAULT_URL
        server = ChatClient.connect(url, key, options.served_model)
        replies, name = partial(server.reply, answers), f"{server.model} at {server.url}"
    console.print(f"{name}. Ctrl-C stops an answer, Ctrl-D ends the conversation.", style="dim")
    converse(console, replies, options.system, lambda: console.input("[bold]> [/bold]"))
    return 0


def _local_reply(llm: LLM, params: SamplingParams, messages: Sequence[Message]) -> Generator[str]:
    """Compute an answer in this process."""
    # Imported here: talking to a server needs no engine.
    from sarathi.engine.llm import GenerationError

    try:
        yield from llm.stream_chat(messages, params)
    except (ValueError, GenerationError) as error:  # too long, or refused by the template
        raise ChatError(str(error)) from error


def converse(
    console: Console, replies: Replies, system: str | None, read: Callable[[], str]
) -> None:
    """Read questions, print answers, and remember both, until `read` raises EOFError."""
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    while True:
        try:
            text = read()
        except EOFError:
            console.print()
            return
        except KeyboardInterrupt:
            console.print()
            continue
        if not text.strip():
            continue
        question: Message = {"role": "user", "content": text}
        try:
            answer = _answer(console, replies([*messages, question]))
        except ChatError as error:
            # Forget the question: it may be what the server refuses.
            console.print(str(error), style="red", markup=False)
            continue
        messages += [question, {"role": "assistant", "content": answer}]


def _answer(console: Console, pieces: Generator[str]) -> str:
    """Print an answer as it arrives; what was printed until Ctrl-C is the answer."""
    printed: list[str] = []
    with closing(pieces):
        try:
            for piece in pieces:
                printed.append(piece)
                console.print(piece, end="", markup=False, soft_wrap=True)
        except KeyboardInterrupt:
            console.print(" [dim](stopped)[/dim]", end="")
    console.print()
    return "".join(printed)


@dataclass(frozen=True)
class ChatClient:
    """A client of an OpenAI-compatible server."""

    url: str
    model: str
    client: httpx.Client

    @classmethod
    def connect(cls, url: str, api_key: str | None, model: str | None) -> ChatClient:
        """Connect to a server and choose one of its models; raise `ChatError` without one."""
        url = url.rstrip("/").removesuffix("/v1")
        headers = {b"Authorization": f"Bearer {api_key}".encode()} if api_key else {}
        try:
            # An answer may take long to begin, a connection may not.
            timeout = httpx.Timeout(10, read=None)
            client = httpx.Client(base_url=url, headers=headers, timeout=timeout)
            response = client.get("/v1/models", timeout=10)
            names = [entry["id"] for entry in _json(response)["data"]]
        except (httpx.InvalidURL, httpx.UnsupportedProtocol):
            raise ChatError(f"{url!r} is no address; it looks like {DEFAULT_URL}") from None
        except httpx.HTTPError as error:
            raise ChatError(f"there is no server at {url} ({error})") from None
        except (KeyError, TypeError):
            raise ChatError(f"{url} answers, but not as an OpenAI-compatible server") from None
        if not names:
            raise ChatError(f"{url} serves no model")
        if model is not None and model not in names:
            raise ChatError(f"{url} has no model {model!r}, only {', '.join(names)}")
        return cls(url, model or names[0], client)

    def reply(self, options: dict[str, Any], messages: Sequence[Message]) -> Generator[str]:
        """Request an answer, with these options in the request."""
        body = {"model": self.model, "messages": messages, "stream": True, **options}
        try:
            with self.client.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.status_code != 200:
                    response.read()
                    _json(response)
                for line in response.iter_lines():
                    yield from _pieces(line)
        except httpx.HTTPError as error:
            raise ChatError(f"the connection to {self.url} failed ({error})") from None


def _pieces(line: str) -> Generator[str]:
    """Yield the text of one line of an event stream."""
    data = line.removeprefix("data:").strip()
    if not line.startswith("data:") or data == "[DONE]":
        return
    event = msgspec.json.decode(data)
    if "error" in event:
        raise ChatError(event["error"]["message"])
    for choice in event["choices"]:
        if text := choice["delta"].get("content"):
            yield text


def _json(response: httpx.Response) -> Any:
    """Return the body; raise `ChatError` with the server's message if it is an error."""
    body: Any = None
    with suppress(msgspec.DecodeError):
        body = msgspec.json.decode(response.content)
    if response.status_code == 200:
        return body
    message = f"the server answered with status {response.status_code}"
    with suppress(KeyError, TypeError):
        message = body["error"]["message"]
    raise ChatError(message)
