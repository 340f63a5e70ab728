"""The paper's evaluation: all experiments by name, the function that runs them, and the report.

The report is a page with tables and figures, the figures, and all values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import msgspec

from sarathi.bench.report import check_reports_can_be_made
from sarathi.errors import BenchmarkError, SimulationError
from sarathi.simulator.cost_model import OVERHEADS
from sarathi.simulator.parallel import run_all
from sarathi.simulator.reproduction import capacity_experiments as capacities
from sarathi.simulator.reproduction import latency_experiments as latencies
from sarathi.simulator.reproduction.experiment import Experiment, ExperimentResult
from sarathi.simulator.reproduction.jobs import DATASETS, Dataset, Options, trace_file
from sarathi.simulator.reproduction.published import comparison_table

STUDIES: Mapping[str, Callable[[Options], Experiment]] = {
    "stalls": latencies.stalls,
    "throughput": latencies.throughput,
    "capacity": capacities.capacity,
    "latency-by-rate": latencies.latency_by_rate,
    "falcon-parallelism": capacities.falcon_parallelism,
    "chunking-overhead": latencies.chunking_overhead,
    "ablation": latencies.ablation,
}

OnProgress = Callable[[int, int, str], None]  # finished jobs, all jobs, title of the last one


def reproduce(
    names: Sequence[str],
    options: Options,
    *,
    on_progress: OnProgress = lambda finished, total, title: None,
    workers: int | None = None,
) -> list[ExperimentResult]:
    """Run experiments on all cores; what several of them need is simulated once.

    Args:
        names: keys of `STUDIES`.
        workers: processes; None: one for each core.

    Raises:
        SimulationError: a name is unknown.
        BenchmarkError: the trace cannot be read.
    """
    for name in names:
        if name not in STUDIES:
            raise SimulationError(f"{name} is no experiment, expected one of {', '.join(STUDIES)}")
    experiments = [STUDIES[name](options) for name in dict.fromkeys(names)]
    jobs = list(dict.fromkeys(job for experiment in experiments for job in experiment.jobs))
    finished = count(1)
    results = run_all(
        [job.run for job in jobs],
        on_result=lambda index, _: on_progress(next(finished), len(jobs), jobs[index].title),
        workers=workers,
    )
    found = dict(zip(jobs, results, strict=True))
    return [ExperimentResult(experiment, found) for experiment in experiments]


_TITLE = "The evaluation of Sarathi-Serve, simulated"
_PAPER = (
    "Agrawal et al., Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve, "
    "OSDI 2024"
)
_CAPTION = (
    "The ratio is ours to the published value. Where it is more than 25 % from 1, the last column "
    "says why, or that the reason is not known."
)
_GAINS = (
    "Gains in capacity that the abstract states: the largest of all targets and datasets, which is "
    "named below each."
)
_DEFINITIONS = {
    "TTFT": "Time from the arrival of a request to its first token.",
    "TBT": "Time between two consecutive tokens of an answer.",
    "P50, P99": "The least value that so many percent of all do not exceed.",
    "Scheduling delay": "Time from the arrival of a request to the iteration that first computes "
    "something of it.",
    "Capacity": "The highest rate at which P99 TBT is within the target and the median scheduling "
    "delay at most 2 s.",
    "Gain": "How many times as much load Sarathi takes as another scheduler, both within the "
    "target.",
    "Budget": "The most tokens that Sarathi computes in an iteration, decodes included.",
    "Accuracy": "The error of the cost model on measurements that nothing was fitted to: that of "
    "kernels. How far the paper's engine is from the sum of its kernels, the tables show.",
}


def fields(
    experiments: Sequence[ExperimentResult], options: Options, elapsed: float
) -> dict[str, Any]:
    """Return the JSON object of all experiments, which took `elapsed` seconds."""
    return {
        "paper": _PAPER,
        "requests": options.requests,
        "seed": options.seed,
        "workloads": {dataset.name: _source(dataset, options) for dataset in DATASETS},
        "took": elapsed,
        "experiments": {one.experiment.name: one.fields() for one in experiments},
    }


def write(
    folder: Path, experiments: Sequence[ExperimentResult], options: Options, elapsed: float
) -> list[Path]:
    """Write `index.html`, which needs nothing else, `results.json`, and figures as PNG.

    Files of the same names are replaced.

    Returns:
        What was written, the page first.

    Raises:
        BenchmarkError: matplotlib is missing, or a file cannot be written.
    """
    check_reports_can_be_made()
    # Imported here: matplotlib takes half a second and is an extra.
    from sarathi.bench.report.notes import Fact
    from sarathi.bench.report.page import Section, write_page
    from sarathi.simulator.reproduction.chart_drawing import drawing

    facts = [
        Fact("Paper", [("", _PAPER)]),
        Fact("Requests", [("", f"{options.requests:,} a point, seed {options.seed}")]),
        Fact("Workloads", [(d.name, _source(d, options)) for d in DATASETS]),
        Fact("Engine overhead", [("", OVERHEADS["paper"].source)]),
        Fact("Took", [("", f"{elapsed / 60:.1f} minutes")]),
    ]
    headline = [one for experiment in experiments for one in experiment.headline]
    gains = comparison_table("Gains", _CAPTION, headline)
    sections = [] if gains is None else [Section("Headline gains", [gains], texts=[_GAINS])]
    for result in experiments:
        words = result.experiment.words
        compared = comparison_table("Ours beside the published", _CAPTION, result.comparisons)
        first = [] if compared is None else [compared]
        notes = [*words.notes, *(f"Accuracy: {text}." for text in result.accuracy)]
        texts = [f"{words.source}. {words.text}"]
        figures = [drawing(one, result) for one in result.experiment.figures]
        sections.append(Section(words.title, first, figures, result.tables, texts, notes))
    values = folder / "results.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        content = msgspec.json.encode(fields(experiments, options, elapsed))
        values.write_bytes(msgspec.json.format(content, indent=1) + b"\n")
    except OSError as error:
        raise BenchmarkError(f"the report cannot be written to {folder}: {error}") from None
    page = folder / "index.html"
    written = write_page(page, folder / "figures", _TITLE, sections, _DEFINITIONS, facts)
    return [*written, values]


def _source(dataset: Dataset, options: Options) -> str:
    file = trace_file(dataset, options.traces)
    if file is not None:
        return f"the paper's trace {file.name}, of {dataset.title}"
    return f"lengths with the published statistics of {dataset.title}, as the preset has them"
