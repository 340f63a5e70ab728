"""Counts the tokens of prompts, with a local tokenizer or by POST /tokenize."""

from __future__ import annotations

from typing import Protocol

import httpx
import msgspec

from sarathi.bench.client.endpoint import Endpoint
from sarathi.errors import BenchmarkError, ModelError
from sarathi.models.locate import locate
from sarathi.models.model import open_tokenizer

_MAX_SHOWN = 200  # characters of an answer


class TokenCounter(Protocol):
    """Counts the tokens of a prompt, with all that the server adds to its text."""

    def count(self, text: str) -> int: ...


class LocalTokens:
    """Counts with a tokenizer on this machine.

    Args:
        model: a folder, a .gguf file, a hub id or a known name.
        chat: whether texts are sent as messages, which the model's chat template wraps.

    Raises:
        BenchmarkError: there is no such model, or it has no chat template and `chat` needs one.
    """

    def __init__(self, model: str, chat: bool) -> None:
        try:
            self._tokenizer = open_tokenizer(locate(model).path)
        except ModelError as error:
            raise BenchmarkError(f"--tokenizer {model}: {error}") from error
        self._template = self._tokenizer.chat_template if chat else None
        if chat and self._template is None:
            raise BenchmarkError(f"--tokenizer {model} has no chat template")

    def count(self, text: str) -> int:
        if self._template is None:
            return len(self._tokenizer.encode(text))
        try:
            prompt = self._template.render([{"role": "user", "content": text}])
        except ValueError as error:
            raise BenchmarkError(f"--tokenizer: {error}") from error
        return len(self._tokenizer.encode(prompt, add_special_tokens=False))


class _Counted(msgspec.Struct):
    count: int


class ServerTokens:
    """Counts with the server itself, by POST /tokenize as in vLLM and Sarathi.

    The transport replaces the network.
    """

    def __init__(self, endpoint: Endpoint, transport: httpx.BaseTransport | None = None) -> None:
        self._endpoint = endpoint
        self._url = f"{endpoint.url}/tokenize"
        self._client = endpoint.http_client(30.0, transport)

    def count(self, text: str) -> int:
        """Count the tokens of a prompt; raise BenchmarkError where the server does not."""
        try:
            response = self._client.post(self._url, json=self._endpoint.named_prompt(text))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            raise BenchmarkError(f"{self._url} cannot be reached: {reason}") from error
        if response.status_code in (404, 405, 501):
            raise BenchmarkError(
                f"{self._url} answers {response.status_code}, so that the server cannot count "
                f"tokens of {self._endpoint.model}: {_shown(response)}. Where it has no such "
                "endpoint, --tokenizer PATH names a copy of the model's tokenizer to count with "
                "instead"
            )
        if response.status_code != 200:
            raise BenchmarkError(f"{self._url} answers {response.status_code}: {_shown(response)}")
        try:
            return msgspec.json.decode(response.content, type=_Counted).count
        except msgspec.DecodeError as error:
            raise BenchmarkError(
                f"{self._url} answers without a count of tokens: {_shown(response)}. Count with "
                "--tokenizer PATH instead"
            ) from error

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def _shown(response: httpx.Response) -> str:
    text = " ".join(response.text.split())
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."
