"""The share of an iteration outside the model: everything but `InferRequest.infer` counts.

The real loop of the engine process runs here, with a real socket and a process that reads at the
other end. The timed functions are wrapped from outside.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import zmq

import sarathi.backends.openvino.openvino_executor
import sarathi.engine.core
from perf.prompts import text_prompts
from perf.report import MODEL, Figure, rounds, show
from sarathi.engine.config import EngineConfig
from sarathi.engine.messages import FromEngine, Iteration, Shutdown, Submit
from sarathi.engine.process import EngineProcess
from sarathi.engine.startup.load import load_engine
from sarathi.models.locate import locate
from sarathi.sampling.params import SamplingParams
from sarathi.scheduler import Batch

TARGETS = {32: 0.05, 128: 0.10}  # by running requests
_PROMPT, _OUTPUT = 68, 65  # tokens: contexts of 69 to 132 while all decode
_ROUNDS = 3
_MODEL_PART, _OTHER, _ALL = "model", "other (loop, statistics)", "iteration"
_PARAMS = {
    "greedy": SamplingParams(max_tokens=_OUTPUT, temperature=0, ignore_eos=True),
    "temperature 0.8, top_p 0.95": SamplingParams(
        max_tokens=_OUTPUT, temperature=0.8, top_p=0.95, ignore_eos=True
    ),
}


class Stopwatch:
    """Seconds by part of an iteration, for the iterations in which all requests decode."""

    def __init__(self) -> None:
        self.iterations: list[dict[str, float]] = []
        self._parts: defaultdict[str, float] = defaultdict(float)
        self._inner = 0.0  # seconds in timed calls within the present one
        self._began = time.perf_counter()
        self._num_requests = 0
        self._decodes = 0

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `function` so that its time, without timed calls within it, is added to `part`."""

        def call(*args: Any, **kwargs: Any) -> Any:
            outer, self._inner = self._inner, 0.0
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                seconds = time.perf_counter() - began
                self._parts[part] += seconds - self._inner
                self._inner = outer + seconds

        return call

    def watch(self, num_requests: int) -> None:
        """Start again, and keep iterations with so many decodes and nothing else."""
        self.iterations = []
        self._num_requests = num_requests

    def on_batch(self, batch: Batch | None) -> Batch | None:
        """Note the batch of the present iteration."""
        full = batch is not None and len(batch.slices) == batch.num_decodes
        self._decodes = batch.num_decodes if batch is not None and full else 0
        return batch

    def lap(self) -> None:
        """End an iteration, which lasts from one message to the next."""
        now = time.perf_counter()
        if self._decodes == self._num_requests:
            seconds = now - self._began
            other = seconds - sum(self._parts.values())
            self.iterations.append({**self._parts, _OTHER: other, _ALL: seconds})
        self._decodes = 0
        self._parts.clear()
        self._began = now


class TimedRequest:
    """Replaces the executor's infer request."""

    def __init__(self, request: Any, watch: Stopwatch) -> None:
        self._request = request
        self.infer = watch.timed(_MODEL_PART, request.infer)
        self.set_tensor = watch.timed("set inputs", request.set_tensor)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)


class TimedProcess(EngineProcess):
    """The real loop; an iteration ends with each message sent."""

    def __init__(self, socket: Any, watch: Stopwatch) -> None:
        super().__init__(socket)
        self._watch = watch
        self._timed_send = watch.timed("publish", super().send)
        self._receive = watch.timed("receive", self._receive)  # type: ignore[method-assign]

    def send(self, message: FromEngine) -> None:
        self._timed_send(message)
        self._watch.lap()


def instrument(core: Any, watch: Stopwatch) -> None:
    """Wrap the parts of an iteration."""
    runner = core._runner
    scheduler, executor, sampler = core.scheduler, runner._executor, runner._sampler
    schedule = watch.timed("schedule", scheduler.schedule)
    scheduler.schedule = lambda now: watch.on_batch(schedule(now))
    scheduler.complete = watch.timed("complete", scheduler.complete)
    sampler.sample = watch.timed("sample", sampler.sample)
    core._token_outputs = watch.timed("publish", core._token_outputs)
    core._latency_observer.observe = watch.timed("learn", core._latency_observer.observe)
    executor._request = TimedRequest(executor._request, watch)
    executor.execute = watch.timed("set inputs", executor.execute)
    for module, name in (
        (sarathi.engine.core, "build_step"),
        (sarathi.backends.openvino.openvino_executor, "check_step_for"),
    ):
        setattr(module, name, watch.timed("build and check step", getattr(module, name)))


def other_end(endpoint: str, jobs: Any, finished: Any) -> None:
    """Act as the HTTP process: submit the requests of each job and read every message."""
    context = zmq.Context()
    socket = context.socket(zmq.PAIR)
    socket.bind(endpoint)
    decoder = msgspec.msgpack.Decoder(FromEngine)
    encoder = msgspec.msgpack.Encoder()
    next_id = 0
    while (job := jobs.get()) is not None:
        count, params = job
        # Every job has different prompts, so that none is in the prefix cache.
        for prompt in text_prompts(count, _PROMPT, seed=next_id):
            socket.send(encoder.encode(Submit(next_id, prompt, params, time.monotonic())))
            next_id += 1
        num_open = count
        while num_open:
            message = decoder.decode(socket.recv())
            if isinstance(message, Iteration):
                num_open -= sum(output.finish_reason is not None for output in message.outputs)
        finished.put(count)
        socket.send(encoder.encode(Shutdown()))
    context.destroy(linger=0)


def main() -> None:
    """Measure and print the shares."""
    # With the defaults: the latency model and the prefix cache are on. The target is long, so that
    # all prompts run in one iteration and the contexts of decodes are equal.
    config = EngineConfig(tbt_target=60.0)
    core, _ = load_engine(locate(MODEL).path, config, lambda line: None)
    watch = Stopwatch()
    instrument(core, watch)
    spawn = multiprocessing.get_context("spawn")
    jobs, finished = spawn.Queue(), spawn.Queue()
    collected: dict[tuple[int, str], list[dict[str, float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        endpoint = f"ipc://{folder}/engine"
        peer = spawn.Process(target=other_end, args=(endpoint, jobs, finished))
        peer.start()
        socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PAIR)
        socket.connect(endpoint)
        runs = [(count, kind) for _ in range(_ROUNDS + 1) for count in TARGETS for kind in _PARAMS]
        for number, (count, kind) in enumerate(rounds(runs, "engine overhead")):
            watch.watch(count)
            jobs.put((count, _PARAMS[kind]))
            TimedProcess(socket, watch).run(core)
            finished.get()
            if number >= len(runs) // (_ROUNDS + 1):  # the first of each warms up
                collected[count, kind] += watch.iterations
        jobs.put(None)
        peer.join()
        zmq.Context.instance().destroy(linger=0)
    for (count, kind), iterations in collected.items():
        _show(count, kind, iterations)


def _show(count: int, kind: str, iterations: list[dict[str, float]]) -> None:
    medians = {
        part: float(np.median([iteration.get(part, 0.0) for iteration in iterations]))
        for part in {part for iteration in iterations for part in iteration}
    }
    shares = [1 - iteration[_MODEL_PART] / iteration[_ALL] for iteration in iterations]
    target = TARGETS[count] if kind == "greedy" else None
    figures = [Figure("share that is not the model", float(np.median(shares)), "%", target)]
    for part in sorted(medians, key=lambda part: -medians[part]):
        figures.append(Figure(f"  {part}", 1000 * medians[part], "ms"))
    show(f"Engine overhead: {count} running requests, {kind}", figures)


if __name__ == "__main__":
    main()
