"""Our server and llama.cpp's on the same GGUF files, cores and requests, in turns.

Usage: python -m perf.versus_llama_cpp [MODEL ...] [--quick] [--json FILE]

A model is a name that `sarathi serve` knows, a GGUF file, or `random-1b`: random weights in Q4_0
with the sizes of Llama 3.2 1B. docs/performance.md describes what is measured.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from perf.bandwidth import read_bandwidth
from perf.batch_decodes import decode_seconds
from perf.contenders import Burst, Times, running
from perf.llama_cpp import SLOTS, LlamaCppError, build_server, command, find_server
from perf.random_gguf import tensor_bytes, write_random_llama
from perf.report import MODEL
from perf.server import free_port
from perf.versus_table import OTHER, OURS, PLAIN, Row, markdown, show_rows
from sarathi.bench.results import describe_machine
from sarathi.bench.target import Target, ending_on_signals
from sarathi.bench.workload.token_counter import LocalTokens
from sarathi.cli.arguments import parse_options
from sarathi.cli.capacity import CapacityOptions, CapacitySearches
from sarathi.engine.config import EngineConfig
from sarathi.errors import BenchmarkError, UserError
from sarathi.models.formats.gguf_config import read_config
from sarathi.models.formats.gguf_file import GgufFile
from sarathi.models.locate import locate
from sarathi.system.cache_folder import cache_folder
from sarathi.system.machine import usable_cores

RANDOM = "random-1b"
MODELS = (MODEL, "gemma3-270m", RANDOM)
PARTS = ("decode", "prefill", "streams", "capacity", "batch")
_DOCS = Path(__file__).parent.parent / "docs" / "performance.md"
_MARKS = ("<!-- against llama.cpp, by `make report` -->\n", "<!-- end -->")

_TBT_TARGET = 0.2  # seconds, of P99
_PROMPTS, _OUTPUTS = "lognormal:430,1400", "lognormal:60,130"  # tokens
_LONGEST = 6000  # tokens of a prompt, so that with its answer it fits into llama.cpp's slots
_BUSY = 0.5  # processes a core that make figures worthless
_CLIENT_LAG = 0.1  # seconds at P99: the client has no core of its own
_BATCH, _CONTEXT = 64, 1000  # requests that decode, and their tokens
_LARGE = 400e6  # bytes of weights, from which on a model is measured in fewer rounds
_SHORT = 100  # tokens of a prompt that hardly matters


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    parts: tuple[str, ...]
    decode: int  # rounds
    prefill: int
    streams: int
    outputs: int = 64  # tokens
    prompt: int = 2000
    requests: int = 24  # of a rate at least
    seconds: int = 60  # of a rate at least
    resolution: float = 0.15  # of the capacity
    start: float = 0.5  # requests a second, to begin with
    turns: int = 8
    warm_up: int = 1  # rounds that do not count


FULL = Sizes(PARTS, decode=11, prefill=7, streams=5)
QUICK = Sizes(PARTS[:3], decode=5, prefill=2, streams=2)
# Of models that take many times as long.
FULL_LARGE = Sizes(PARTS[:3], decode=5, prefill=2, streams=1, outputs=24, warm_up=0)
QUICK_LARGE = Sizes(PARTS[:2], decode=3, prefill=1, streams=1, outputs=24, warm_up=0)


@dataclass(frozen=True)
class Comparison:
    """One model on all servers."""

    model: str
    path: Path
    llama_server: Path
    quantization: str | None  # None: our default
    sizes: Sizes
    folder: Path  # for logs and results
    threads: int

    @property
    def has_plain(self) -> bool:
        """Whether there is something to compare with that is not quantised."""
        return "quantization" in EngineConfig.__struct_fields__ and self.quantization != "none"

    @property
    def context(self) -> int:
        """Tokens of the longest request."""
        return read_config(GgufFile(self.path)).max_position

    def targets(self, options: Sequence[str] = (), batch: int | None = None) -> list[Target]:
        """Return the servers to start: ours with these options, theirs also with small batches."""
        theirs = command(self.llama_server, self.path, self.context, self.threads)
        ours = [sys.executable, "-m", "sarathi.cli.main", "serve", str(self.path)]
        ours += ["--no-enable-prefix-caching", "--threads", str(self.threads), *options]
        chosen = [] if self.quantization is None else ["--quantization", self.quantization]
        commands = {OURS: [*ours, *chosen], OTHER: theirs}
        if batch is not None:
            small = command(self.llama_server, self.path, self.context, self.threads, batch)
            commands[f"{OTHER}, batches of {batch}"] = small
        if self.has_plain:
            commands[PLAIN] = [*ours, "--quantization", "none"]
        return [
            Target(label, command=shlex.join([*words, "--port", str(free_port())]))
            for label, words in commands.items()
        ]

    def rows(self) -> Iterator[Row]:
        """Measure all parts, and yield the rows of each at once: a later one may fail.

        Raises:
            UserError: a server cannot be measured.
        """
        sizes = self.sizes
        bursts = {
            "decode": (Burst(1, _SHORT, sizes.outputs), sizes.decode),
            "prefill": (Burst(1, sizes.prompt, 2), sizes.prefill),
            "streams": (Burst(SLOTS, _SHORT, sizes.outputs), sizes.streams),
        }
        if "capacity" in sizes.parts and "prefill" not in sizes.parts:
            bursts["prefill"] = bursts["prefill"][0], 1  # its batch size depends on it
            sizes = replace(sizes, parts=("prefill", *sizes.parts))
        times: dict[str, Times] = {}
        with running(self.targets(), LocalTokens(str(self.path), False), self.folder) as servers:
            for part, (burst, number) in bursts.items():
                if part in sizes.parts:
                    times[part] = servers.alternate(burst, number, sizes.warm_up)
        if "decode" in times:
            yield self._timed("decode of one stream", "ms", times["decode"]["tbt"], 0.95)
            if self.model == RANDOM:
                yield self._limited(times["decode"]["tbt"][OURS])
        if "prefill" in times:
            name = f"prefill of {sizes.prompt} tokens"
            yield self._timed(name, "s", times["prefill"]["ttft"], 0.2)
        if "streams" in times:
            name = f"{SLOTS} streams, {_SHORT} + {sizes.outputs} tokens each"
            yield self._timed(name, "s", times["streams"]["total"], 0.4)
            yield self._timed("  between tokens", "ms", times["streams"]["tbt"])
        if "batch" in sizes.parts and self.has_plain:
            yield self._batch()
        if "capacity" in sizes.parts:
            seconds = float(np.median(times["prefill"]["ttft"][OTHER]))
            yield from self._capacities(small_batch(sizes.prompt / seconds))

    def _timed(
        self, name: str, unit: str, times: dict[str, list[float]], goal: float | None = None
    ) -> Row:
        """Return a row of medians; the ratio is that of the rounds' ratios."""
        scale = 1000 if unit == "ms" else 1
        values: dict[str, float | None] = {
            label: scale * float(np.median(seconds)) for label, seconds in times.items()
        }
        # Tokens of a stream may come together where the client is slower than the servers.
        ratios = [
            ours / other for ours, other in zip(times[OURS], times[OTHER], strict=True) if other
        ]
        ratio = float(np.median(ratios)) if ratios else None
        return Row(self.model, name, unit, values, OTHER, ratio, goal)

    def _limited(self, seconds: Sequence[float]) -> Row:
        """Return the row that compares decoding with reading the weights once."""
        weights, bandwidth = tensor_bytes(self.path), read_bandwidth()
        limit, took = weights / bandwidth, float(np.median(seconds))
        over = f"{1000 * limit:.1f} ms: {weights / 1e6:.0f} MB at {bandwidth / 1e9:.1f} GB/s"
        name = "  against reading the weights"
        return Row(self.model, name, "ms", {OURS: 1000 * took}, over, took / limit, 1.5)

    def _capacities(self, batch: int) -> list[Row]:
        """Search all capacities, a rate of each server in turn."""
        sizes = self.sizes
        words = ["--prompt-lengths", _PROMPTS, "--output-lengths", _OUTPUTS]
        longest = min(_LONGEST, self.context * 3 // 4)
        words += ["--max-prompt", str(longest), "--tokenizer", str(self.path), "--warm-up", "4"]
        words += ["--tbt-target", f"{_TBT_TARGET}", "--point-duration", str(sizes.seconds)]
        words += ["--resolution", str(sizes.resolution), "--start-rate", str(sizes.start)]
        words += ["--max-client-lag", str(_CLIENT_LAG)]
        words += ["--results", str(self.folder / "capacities")]
        options = parse_options(CapacityOptions, words)
        found = CapacitySearches(
            options.servers,
            self.targets(["--tbt-target", f"{_TBT_TARGET}"], batch),
            tbt_target=_TBT_TARGET,
            requests_per_point=sizes.requests,
        ).run()
        rates = {one.capacity.label: one.capacity.capacity for one in found}
        return capacity_rows(self.model, rates)

    def _batch(self) -> Row:
        """Return the row of many decodes, of two engines in a process that ends afterwards."""
        common: dict[str, Any] = {"threads": self.threads}
        chosen = {} if self.quantization is None else {"quantization": self.quantization}
        engines = {OURS: common | chosen, PLAIN: common | {"quantization": "none"}}
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, spawn) as process:
            work = (self.path, engines, _BATCH, _CONTEXT, self.sizes.turns)
            seconds = process.submit(decode_seconds, *work).result()
        values: dict[str, float | None] = {name: 1000 * took for name, took in seconds.items()}
        name = f"{_BATCH} decodes at {_CONTEXT} tokens"
        return Row(self.model, name, "ms", values, PLAIN, seconds[OURS] / seconds[PLAIN], 0.75)


def small_batch(speed: float) -> int:
    """Return the tokens that llama.cpp computes within the target, a quarter left for decodes.

    Args:
        speed: tokens of a prompt per second.
    """
    return int(min(2048, max(2 * SLOTS, 0.75 * _TBT_TARGET * speed // 16 * 16)))


def capacity_rows(model: str, rates: Mapping[str, float | None]) -> list[Row]:
    """Return the rows of capacities; that of llama.cpp is the best of its settings."""
    ours, plain = rates[OURS], rates.get(PLAIN)
    theirs = {label: rate for label, rate in rates.items() if label.startswith(OTHER)}
    best = max(theirs, key=lambda label: theirs[label] or 0.0)
    values = {OURS: ours, OTHER: theirs[best], PLAIN: plain}
    name = f"capacity within {1000 * _TBT_TARGET:.0f} ms at P99"
    rows = [Row(model, name, "/s", values, best, _ratio(ours, theirs[best]), 5.0, "at least")]
    if PLAIN in rates:
        ratio = _ratio(ours, plain)
        rows.append(Row(model, "  the same", "/s", {}, PLAIN, ratio, 1.25, "at least"))
    return rows


def _ratio(ours: float | None, other: float | None) -> float | None:
    """Divide; None where a server has no capacity at all."""
    return None if ours is None or other is None else ours / other


def measure(
    models: Sequence[str],
    llama_server: Path,
    *,
    quick: bool = False,
    parts: Sequence[str] | None = None,
    quantization: str | None = None,
    threads: int | None = None,
) -> tuple[list[Row], dict[str, str]]:
    """Return the rows of all models, and why models were not measured, by their names."""
    rows: list[Row] = []
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name, ending_on_signals():
        folder = Path(name)
        for model in models:
            try:
                path = folder / f"{RANDOM}.gguf"
                if model != RANDOM:
                    path = locate(model).path
                elif not path.exists():
                    write_random_llama(path, locate(MODEL).path)
                sizes = QUICK if quick else FULL
                if path.stat().st_size > _LARGE:
                    sizes = QUICK_LARGE if quick else FULL_LARGE
                sizes = replace(sizes, parts=tuple(parts or sizes.parts))
                logs = folder / path.stem
                shown = path.name if Path(model).is_file() else model
                comparison = Comparison(
                    shown, path, llama_server, quantization, sizes, logs, threads or usable_cores()
                )
                for row in comparison.rows():
                    rows.append(row)
            except UserError as error:
                failed[model] = str(error)
                print(f"{model}: not measured: {error}", file=sys.stderr, flush=True)
    return rows, failed


def note() -> str:
    """Return where and with what it was measured."""
    load = f"{os.getloadavg()[1]:.1f}"
    return f"Measured on {describe_machine()}, client included; load of the last 5 minutes: {load}."


def document(rows: Sequence[Row]) -> None:
    """Write the tables between the marks in the documentation."""
    text = _DOCS.read_text()
    begin, end = _MARKS
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise BenchmarkError(f"{_DOCS} has no marks for the table")
    _DOCS.write_text(f"{before}{begin}\n{markdown(rows, note())}{end}{after}")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; return 2 where there is no server to compare with."""
    parser = argparse.ArgumentParser(
        prog="python -m perf.versus_llama_cpp", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"default: {' '.join(MODELS)}")
    parser.add_argument("--llama-server", metavar="PATH", help="default: that on the PATH")
    parser.add_argument("--build", action="store_true", help="download and build it, once")
    parser.add_argument("--quick", action="store_true", help="without capacities, in few rounds")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="measure these parts")
    parser.add_argument("--quantization", metavar="FORM", help="of our server")
    parser.add_argument("--threads", type=int, metavar="N", help="of each; default: all cores")
    parser.add_argument("--json", metavar="FILE", help="write the rows")
    parser.add_argument("--document", action="store_true", help=f"write them to {_DOCS.name}")
    args = parser.parse_args(argv)
    if args.quantization is not None and "quantization" not in EngineConfig.__struct_fields__:
        parser.error("--quantization: this version of the engine has no such option")
    try:
        if args.build:
            program = build_server(cache_folder() / "llama.cpp")
        else:
            program = find_server(args.llama_server)
    except LlamaCppError as error:
        print(f"llama.cpp: not measured, {error}", file=sys.stderr)
        return 2
    if os.getloadavg()[0] > _BUSY * usable_cores():
        print(f"this machine is busy: load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    rows, failed = measure(
        args.models or MODELS,
        program,
        quick=args.quick,
        parts=args.only,
        quantization=args.quantization,
        threads=args.threads,
    )
    show_rows(rows, note())
    if args.json:
        content = {"machine": describe_machine(), "rows": list(map(asdict, rows)), "failed": failed}
        Path(args.json).write_bytes(msgspec.json.encode(content))
    if args.document:
        document(rows)
    return 1 if failed.keys() & set(args.models) or not rows else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
