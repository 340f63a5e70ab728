"""Offline use: the same engine loop, in the caller's process."""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from sarathi.engine.config import EngineConfig
from sarathi.engine.messages import ModelInfo, TokenOutput
from sarathi.engine.output_processor import Delta, OutputText
from sarathi.engine.startup.load import load_engine
from sarathi.models.locate import RANDOM_WEIGHTS, locate, locate_config
from sarathi.models.model import open_tokenizer
from sarathi.sampling.logprobs import TokenLogprobs
from sarathi.sampling.params import Pooling, SamplingParams
from sarathi.scheduler import FinishReason

logger = logging.getLogger(__name__)

Prompt = str | Sequence[int]  # text, or token ids


class GenerationError(RuntimeError):
    """A running request cannot continue; the message has the reason."""


@dataclass
class CompletionOutput:
    """One of the n outputs of a prompt."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)  # one a token, if asked for
    finish_reason: FinishReason | None = None

    def add(self, delta: Delta) -> None:
        """Append what `delta` has added."""
        self.text += delta.text
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs
        self.finish_reason = delta.finish_reason


@dataclass
class RequestOutput:
    """A prompt with its outputs."""

    prompt: str | None  # None where token ids were given
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    # One a token of the prompt, None for the first, which nothing predicts; if asked for.
    prompt_logprobs: list[TokenLogprobs | None] | None = None


class LLM:
    """A model in this process.

    Example:
        llm = LLM("smollm2-135m")
        [output] = llm.generate(["The capital of France is"], SamplingParams(max_tokens=8))
        print(output.outputs[0].text)
    """

    def __init__(
        self,
        model: str,
        *,
        config: EngineConfig | None = None,
        on_progress: Callable[[str], None] = lambda line: None,
        **options: Any,
    ) -> None:
        """Load a model.

        Args:
            model: a folder in the Hugging Face layout, a .gguf file, a hub id, `smollm2-135m` or
                `gemma3-270m`; with `load_format="dummy"`, a config.json, a folder with one, or a
                hub id.
            config: how to run it; None for the defaults.
            on_progress: called with a line about each step. `report` is its former name.
            options: fields of `EngineConfig` that differ from `config`, such as `token_budget`.

        Raises:
            ModelError: the model does not exist or cannot be read.
            ConfigError: an option is out of range or does not fit the machine.
            ExecutorError: the processor cannot run the model.
        """
        on_progress = options.pop("report", on_progress)
        config = msgspec.structs.replace(config or EngineConfig(), **options)
        dummy = config.load_format == "dummy"
        located = locate_config(model) if dummy else locate(model)
        self.served_name = located.served_name
        self.tokenizer = open_tokenizer(located.path, config.load_format)
        for warning in (*((RANDOM_WEIGHTS,) if dummy else ()), *self.tokenizer.warnings):
            logger.warning("%s", warning)
        core, info = load_engine(located.path, config, on_progress)
        self.info: ModelInfo = info
        self._core = core
        weakref.finalize(self, core.close)
        self._next_id = 0

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        on_finish: Callable[[int, RequestOutput], None] = lambda index, output: None,
    ) -> list[RequestOutput]:
        """Complete all prompts together, in the order given.

        Args:
            prompts: texts or lists of token ids; a single prompt counts as a list of one.
            params: for all prompts, or one a prompt.
            on_finish: called with the index of a prompt when all of its outputs are complete.

        Raises:
            AdmissionError: a prompt can never run, such as one longer than the model allows.
                Nothing has been computed.
            GenerationError: the model gave no usable logits.
        """
        tasks = _tasks(prompts, params)
        results: list[RequestOutput] = []
        for prompt, task_params in tasks:
            text = prompt if isinstance(prompt, str) else None
            ids = self.tokenizer.encode(text) if text is not None else [*prompt]
            outputs = [CompletionOutput(index) for index in range(task_params.n)]
            results.append(RequestOutput(text, ids, outputs))
            if task_params.prompt_logprobs is not None:
                results[-1].prompt_logprobs = [None]
        jobs = [
            (result.prompt_token_ids, choice, (index, output))
            for index, (result, (_, task_params)) in enumerate(zip(results, tasks, strict=True))
            for output, choice in zip(result.outputs, task_params.choices(), strict=True)
        ]
        for (index, output), _, delta in self._run(jobs):
            output.add(delta)
            if delta.prompt_logprobs:
                results[index].prompt_logprobs = [None, *delta.prompt_logprobs]
            outputs = results[index].outputs
            if delta.finish_reason and all(one.finish_reason for one in outputs):
                on_finish(index, results[index])
        return results

    def embed(
        self, prompts: Prompt | Sequence[Prompt], pooling: Pooling = "last"
    ) -> list[list[float]]:
        """Return a vector of length 1 for each prompt: the final hidden state of its last token, or
        the mean of all. For prompts and errors see `generate`."""
        tasks = _tasks(prompts, SamplingParams(max_tokens=0, pooling=pooling))
        jobs = [
            (self.tokenizer.encode(prompt) if isinstance(prompt, str) else [*prompt], params, index)
            for index, (prompt, params) in enumerate(tasks)
        ]
        found: list[list[float]] = [[] for _ in jobs]
        for index, output, _ in self._run(jobs):
            if output.embedding is not None:
                found[index] = np.frombuffer(output.embedding, "<f4").tolist()
        return found

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        params: SamplingParams | None = None,
        **template: Any,
    ) -> RequestOutput:
        """Answer a conversation; `ValueError` as from `render`."""
        return self.generate([self.render(messages, **template)], params)[0]

    def stream_chat(
        self, messages: Sequence[Mapping[str, Any]], params: SamplingParams | None = None
    ) -> Iterator[str]:
        """Yield the answer of `chat` piece by piece. Closing the iterator cancels the request."""
        jobs = [(self.render(messages), params or SamplingParams(), None)]
        for _, _, delta in self._run(jobs):
            if delta.text:
                yield delta.text

    def render(self, messages: Sequence[Mapping[str, Any]], **template: Any) -> list[int]:
        """Return the token ids of a conversation up to where the model's answer begins.

        `ValueError` if the model has no chat template, or the template rejects the messages.
        """
        if self.tokenizer.chat_template is None:
            raise ValueError(f"{self.served_name} has no chat template")
        try:
            text = self.tokenizer.chat_template.render([dict(m) for m in messages], **template)
        except ValueError as error:
            raise ValueError(f"the chat template refuses the messages: {error}") from error
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _run(
        self, jobs: Sequence[tuple[list[int], SamplingParams, Any]]
    ) -> Iterator[tuple[Any, TokenOutput, Delta]]:
        """Run (prompt, params, label) jobs together; yield the label, output and delta of each
        token."""
        if self._core.has_work:
            raise RuntimeError("a stream of this LLM is still open: read it to its end or close it")
        open_jobs: dict[int, tuple[OutputText, Any]] = {}
        try:
            for ids, params, label in jobs:
                request_id = self._next_id
                self._next_id += 1
                self._core.submit(request_id, ids, params, time.monotonic())
                open_jobs[request_id] = (OutputText(self.tokenizer, params, ids), label)
            while open_jobs:
                outputs, failures = self._core.step()
                if failures:
                    raise GenerationError(failures[0].message)
                for output in outputs:
                    text, label = open_jobs[output.id]
                    delta = text.push([output])
                    if delta.finish_reason is not None:
                        self._core.cancel(output.id)  # in case a stop string ended it
                        del open_jobs[output.id]
                    yield label, output, delta
        finally:
            for request_id in open_jobs:
                self._core.cancel(request_id)
            while self._core.has_work:  # batches in flight still write to their blocks
                self._core.step()


def _tasks(
    prompts: Prompt | Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None
) -> list[tuple[Prompt, SamplingParams]]:
    many: Sequence[Any] = prompts
    if isinstance(prompts, str) or (prompts and isinstance(prompts[0], int)):
        many = [prompts]
    for index, prompt in enumerate(many):
        is_ids = isinstance(prompt, Sequence) and all(isinstance(token, int) for token in prompt)
        if not (isinstance(prompt, str) or is_ids):
            raise ValueError(f"prompt {index} is neither a text nor a list of token ids")
    if not isinstance(params, Sequence):
        params = [params or SamplingParams()] * len(many)
    if len(params) != len(many):
        raise ValueError(f"{len(many)} prompts with {len(params)} sampling parameters")
    return list(zip(many, params, strict=True))
