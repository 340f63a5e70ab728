"""The outputs of one HTTP request: n times its number of prompts, run together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from sarathi.engine.messages import TokenOutput
from sarathi.engine.output_processor import Delta, OutputText
from sarathi.fleet.generation import Generation
from sarathi.sampling.params import SamplingParams
from sarathi.scheduler import SchedulingParams
from sarathi.server.openai.response_bodies import PromptTokensDetails, Usage
from sarathi.server.service import Service

_BUSY = 0.005  # seconds of submitting between two pauses


@dataclass(frozen=True)
class GenerationJob:
    """What to generate: each prompt once for each of its n params."""

    prompts: Sequence[tuple[Sequence[int], Sequence[SamplingParams]]]
    terms: SchedulingParams

    @property
    def prompt_tokens(self) -> int:
        return sum(len(prompt) for prompt, _ in self.prompts)

    @property
    def choices(self) -> list[tuple[Sequence[int], SamplingParams]]:
        return [(prompt, one) for prompt, params in self.prompts for one in params]

    @property
    def firsts(self) -> frozenset[int]:
        """The indices of each prompt's first choice."""
        return frozenset(accumulate((len(params) for _, params in self.prompts[:-1]), initial=0))


class Choices:
    """Submits a job and yields what its choices gain; choice i is of prompt `i // n`.

    Whoever makes one closes it, whatever happens: that frees the KV blocks of what still runs.
    """

    def __init__(self, service: Service, job: GenerationJob) -> None:
        """Nothing is submitted yet; see `start`."""
        self.texts: list[OutputText] = []
        self._service = service
        self._job = job
        self.scheduling_delay = 0.0  # seconds; the longest of those that have had a token
        self._prompt_lengths = [len(prompt) for prompt, _ in job.choices]
        self._prompt_tokens = job.prompt_tokens
        self._cached_tokens = 0
        self._firsts = job.firsts
        self._running = len(self._prompt_lengths)
        self._generations: list[Generation] = []
        self._merged: Merged | None = None

    async def start(self) -> None:
        """Submit all choices, pausing now and then: there may be a thousand long ones.

        Raises:
            EngineError: the engine takes no requests.
        """
        service, terms = self._service, self._job.terms
        busy_until = time.monotonic() + _BUSY
        for prompt, params in self._job.choices:
            self.texts.append(OutputText(service.tokenizer, params, prompt))
            self._generations.append(service.engine.submit(prompt, params, terms))
            if time.monotonic() > busy_until:
                await asyncio.sleep(0)
                busy_until = time.monotonic() + _BUSY
        if len(self._generations) > 1:
            self._merged = Merged(self._generations)

    @property
    def running(self) -> bool:
        return self._running > 0

    @property
    def usage(self) -> Usage:
        prompt = self._prompt_tokens
        completion = sum(text.num_tokens for text in self.texts)
        details = PromptTokensDetails(self._cached_tokens)
        return Usage(prompt, completion, prompt + completion, details)

    def usage_of(self, index: int) -> Usage:
        """That of one choice and its prompt so far. Tokens whose text is held back count."""
        prompt, completion = self._prompt_lengths[index], self.texts[index].num_tokens
        return Usage(prompt, completion, prompt + completion)

    async def next(self) -> list[tuple[int, Delta]]:
        """Wait for tokens of any choice that runs.

        Raises:
            EngineError: see `Generation.next`.
        """
        if self._merged is None:
            ready = [(0, await self._generations[0].next())]
        else:
            ready = await self._merged.next()
        deltas = []
        for index, outputs in ready:
            text = self.texts[index]
            if text.finish_reason is not None:
                continue  # computed before the engine heard of the stop string
            if not text.num_tokens:
                self._begin(index, outputs[0])
            delta = text.push(outputs)
            if delta.finish_reason is not None:
                self._running -= 1
                self._generations[index].stop()
            deltas.append((index, delta))
        return deltas

    def _begin(self, index: int, output: TokenOutput) -> None:
        """Take what comes with a choice's first token."""
        if output.scheduling_delay is not None:
            self.scheduling_delay = max(self.scheduling_delay, output.scheduling_delay)
        if index in self._firsts:  # a prompt's other choices find what the first has computed
            self._cached_tokens += output.cached_tokens

    def close(self) -> None:
        for generation in self._generations:
            generation.cancel()
        if self._merged is not None:
            self._merged.close()


class Merged:
    """Waits for several generations at once."""

    def __init__(self, generations: Sequence[Generation]) -> None:
        self._ready: list[tuple[int, list[TokenOutput]]] = []
        self._error: BaseException | None = None
        self._wake = asyncio.Event()
        self._tasks = [
            asyncio.create_task(self._follow(index, generation))
            for index, generation in enumerate(generations)
        ]

    async def next(self) -> list[tuple[int, list[TokenOutput]]]:
        await self._wake.wait()
        self._wake.clear()
        if self._error is not None:
            raise self._error
        ready, self._ready = self._ready, []
        return ready

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _follow(self, index: int, generation: Generation) -> None:
        try:
            while True:
                outputs = await generation.next()
                self._ready.append((index, outputs))
                self._wake.set()
                if outputs[-1].finish_reason is not None:
                    return
        except Exception as error:  # for the one who waits: nobody looks at this task
            self._error = error
            self._wake.set()
