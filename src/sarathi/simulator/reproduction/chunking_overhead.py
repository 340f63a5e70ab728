"""Figure 14: how much longer a prompt takes in chunks."""

from __future__ import annotations

from sarathi.bench.number_format import number, seconds
from sarathi.bench.report.table import Cell, Column, Table
from sarathi.simulator.known_error import accuracy_in_words
from sarathi.simulator.reproduction import published
from sarathi.simulator.reproduction.chart import Bar, BarPanel, Chart
from sarathi.simulator.reproduction.experiment import Comparison, Experiment
from sarathi.simulator.reproduction.jobs import Job, Results
from sarathi.simulator.reproduction.settings import YI, Options
from sarathi.simulator.reproduction.throughput import chunked, cost_of

_LENGTHS = (2047, 4095, 8191, 16383)  # tokens, as in the artifact
_CHUNKS = (512, 1024, 2048)


def jobs(options: Options) -> list[Job]:
    """None: single iterations are asked of the cost model at once."""
    return []


def present(options: Options, results: Results) -> Experiment:
    cost = cost_of(YI)
    whole = {length: chunked(cost, length, length) for length in _LENGTHS}
    ratios = {
        (length, chunk): chunked(cost, length, chunk) / whole[length]
        for length in _LENGTHS
        for chunk in _CHUNKS
    }
    most = max(ratio for (_, chunk), ratio in ratios.items() if chunk == 512)
    return Experiment(
        name="chunking-overhead",
        title="Overhead of chunks",
        of="Figure 14",
        text=(
            "Yi-34B on two A100: the time of a prompt in chunks, relative to that of the whole "
            "prompt in one iteration. Each chunk reads what is in the cache before it again, and "
            "each iteration has the overhead of the engine."
        ),
        comparisons=(
            Comparison("most, chunks of 512", most, published.CHUNKED_MOST, "x"),
            *(
                Comparison(f"{length} tokens, chunks of {chunk}", ratio, value, "x")
                for (length, chunk), ratio in ratios.items()
                for value in [published.CHUNKED[length, chunk]]
            ),
        ),
        tables=(
            Table(
                "Time relative to the whole prompt",
                "Below the length: the time of the whole prompt.",
                (Column("prompt"), *(Column(f"{chunk}", "chunk") for chunk in _CHUNKS)),
                [
                    [
                        Cell(f"{length:,} tokens", seconds(whole[length])),
                        *(Cell(number(ratios[length, chunk])) for chunk in _CHUNKS),
                    ]
                    for length in _LENGTHS
                ],
            ),
        ),
        charts=(_chart(ratios),),
        remarks=(
            "Long prompts are quicker in chunks than whole, by the artifact's measurements and by "
            "the model, which took it from a profile of attention: to attend to a token of the "
            "chunk itself takes 2.5 times as long as to one that is in the cache.",
        ),
        accuracy=(f"Yi-34B: {accuracy_in_words(YI.deployment(16384))}",),
        values=tuple(
            {"prompt": length, "chunk": chunk, "ratio": ratio}
            for (length, chunk), ratio in ratios.items()
        ),
    )


def _chart(ratios: dict[tuple[int, int], float]) -> Chart:
    panel = BarPanel(
        "Times as long as the whole prompt",
        tuple(f"{length:,}" for length in _LENGTHS),
        tuple(f"chunks of {chunk}" for chunk in _CHUNKS),
        tuple(
            tuple(
                Bar(ratios[length, chunk], published.CHUNKED[length, chunk].value)
                for chunk in _CHUNKS
            )
            for length in _LENGTHS
        ),
    )
    told = "; ".join(
        f"{length} tokens in chunks of {chunk}: {number(ratio)}"
        for (length, chunk), ratio in ratios.items()
    )
    return Chart(
        "chunking-overhead",
        "Time of prompts in chunks",
        "By the length of the prompt in tokens; 1 is as quick as the whole prompt.",
        f"Time relative to the whole prompt. {told}.",
        (panel,),
    )
