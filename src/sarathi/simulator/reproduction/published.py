"""The published values of the paper and its artifact, each with its source; and ours beside them.

The paper: Agrawal et al., OSDI 2024. Bars of figures whose heights are not printed are left out, as
are readings of them by others. The artifact is the branch `osdi-sarathi-serve` of
github.com/microsoft/sarathi-serve; its folders have the figure numbers of an earlier draft. Plots
that it holds without their data were read off here, to about 3 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sarathi.bench.report.table import MISSING, Cell, Column, ColumnOf, Table, number, table_of

FAR = 0.25  # relative difference above which the report gives a reason
UNKNOWN = "not known"

Medium = Literal["printed", "file", "plot"]
_MEDIUM = {
    "printed": "printed",
    "file": "a file of the artifact",
    "plot": "read off a plot of the artifact",
}


@dataclass(frozen=True)
class Published:
    """A value of the paper, or of the artifact that was published with it."""

    value: float
    where: str  # section, table or file
    medium: Medium = "printed"

    @property
    def source(self) -> str:
        return f"{self.where}, {_MEDIUM[self.medium]}"


@dataclass(frozen=True)
class Comparison:
    """A published value, and ours."""

    what: str
    published: Published
    unit: str  # "s", "ms", "x"
    why: str = ""  # the reason for a difference; empty: not known
    ours: float | None = None  # None: there is none, for instance because no rate met a target
    note: str = ""  # more about our value

    @property
    def ratio(self) -> float | None:
        """Our value divided by the published one."""
        return None if self.ours is None else self.ours / self.published.value

    @property
    def far(self) -> bool:
        return self.ratio is None or abs(self.ratio - 1) > FAR

    @property
    def reason(self) -> str:
        """The reason for the difference, where the values are far from each other."""
        return (self.why or UNKNOWN) if self.far else ""

    def fields(self) -> dict[str, Any]:
        """Return the JSON object of the comparison."""
        return {
            "what": self.what,
            "unit": self.unit,
            "ours": self.ours,
            "published": self.published.value,
            "ratio": self.ratio,
            "source": self.published.source,
            "remark": self.reason,
            "note": self.note,
        }


def comparison_table(title: str, caption: str, comparisons: Sequence[Comparison]) -> Table | None:
    """Tabulate ours beside theirs, with ratios, sources and reasons; None without any."""
    columns: list[ColumnOf[Comparison]] = [
        (Column("", prose=True), lambda one: Cell(one.what, one.note, prose=True)),
        (Column("ours"), lambda one: _quantity(one.ours, one.unit)),
        (Column("published"), lambda one: _quantity(one.published.value, one.unit)),
        (Column("ratio"), lambda one: Cell(number(one.ratio), tone="bad" if one.far else "good")),
        (Column("published where", prose=True), lambda one: one.published.source),
        (Column("why they differ", prose=True), lambda one: one.reason),
    ]
    return table_of(title, caption, comparisons, columns)


def _quantity(value: float | None, unit: str) -> str:
    text = number(value)
    return text if text == MISSING else text + (unit if unit == "x" else f" {unit}")


def gain(ours: float | None, theirs: float | None) -> float | None:
    """Return how many times as much ours is; None where a value is missing or theirs is 0."""
    return None if ours is None or not theirs else ours / theirs


# By model, or model and dataset and rival: how many times the rival's load Sarathi takes.
HEADLINE = {
    "mistral-7b": Published(2.6, "abstract, over vLLM"),
    "yi-34b": Published(3.7, "abstract, up to, over vLLM"),
    "falcon-180b": Published(5.6, "abstract, up to, over which system is not stated"),
}
GAINS = {  # model, dataset, target, rival; all of section 5.1 are "up to"
    ("yi-34b", "sharegpt", "strict", "Orca"): Published(4.0, "section 5.1"),
    ("yi-34b", "sharegpt", "strict", "vLLM"): Published(3.7, "section 5.1"),
    ("yi-34b", "sharegpt", "relaxed", "vLLM"): Published(1.65, "section 5.2"),
    ("mistral-7b", "sharegpt", "strict", "vLLM"): Published(
        3.5, "section 5.2; the caption of Figure 12 says it of Yi-34B"
    ),
    ("falcon-180b", "sharegpt", "strict", "vLLM"): Published(3.6, "section 5.3, Figure 13"),
    ("falcon-180b", "sharegpt", "relaxed", "vLLM"): Published(1.48, "section 5.3"),
}
LLAMA_GAINS = {  # on sharegpt, whichever target gives more
    "Orca": Published(6.3, "section 5.1"),
    "vLLM": Published(4.3, "section 5.1"),
}
TP8_GAIN = Published(4.3, "Figure 13, caption")  # strict, over vLLM with TP8
TP8_TBT = Published(2.0, "section 5.3: about; the caption says more than")  # over TP4-PP2, median

FALCON_PROMPT = Published(1.150, "section 3.3: about")  # seconds, 4k tokens
FALCON_DECODES = Published(0.200, "section 3.3: about")  # seconds, 32 decodes

# Seconds from the arrival of 128 requests to the last token, of which there were 28,500.
STALLS = "plot in figure-1/generation_stalls.ipynb"
STALLS_END = {"vLLM": Published(567, STALLS, "plot"), "Sarathi": Published(505, STALLS, "plot")}
# Seconds until the second token of any request under vLLM.
STALLS_FIRST = Published(66, STALLS, "plot")

TAIL = "plot in figure-1/high_tail_latency.ipynb"
TAILS = {  # P99 TBT in seconds, by rate and scheduler
    (0.55, "vLLM"): Published(1.39, TAIL, "plot"),
    (0.55, "Sarathi"): Published(0.52, TAIL, "plot"),
    (1.0, "vLLM"): Published(2.05, TAIL, "plot"),
    (1.0, "Sarathi"): Published(0.54, TAIL, "plot"),
}

# Yi-34B, TP2: seconds of iterations. The prompt of 256 tokens was the first that the process
# computed, and took longer than that of 512: it is left out.
DECODES = {
    batch: Published(seconds, "figure-2/decode.csv", "file")
    for batch, seconds in (
        (1, 0.0468), (2, 0.0475), (4, 0.0488), (8, 0.0697),
        (16, 0.0773), (32, 0.0879), (64, 0.1278), (128, 0.1893),
    )
}  # fmt: skip
PREFILLS = {
    tokens: Published(seconds, "figure-2/prefill.csv", "file")
    for tokens, seconds in (
        (128, 0.0481), (512, 0.1056), (1024, 0.2143), (2048, 0.3660),
        (4096, 0.7576), (8192, 1.8633), (16384, 4.4075),
    )
}  # fmt: skip
HYBRID = Published(0.2176, "table-2/results.csv", "file")  # 1021 tokens of a prompt, 3 decodes
TILE = Published(1.32, "section 4.3, in some cases")  # prompts in chunks of 257 to those of 256

# Yi-34B, TP2: time of a prompt in chunks, relative to that of the whole.
CHUNKED = {
    (length, chunk): Published(ratio, "figure-9/chunking-overhead.csv", "file")
    for length, ratios in (
        (2047, (1.152, 1.175, 0.999)),
        (4095, (1.189, 1.202, 1.024)),
        (8191, (1.117, 1.109, 0.937)),
        (16383, (0.995, 0.961, 0.805)),
    )
    for chunk, ratio in zip((512, 1024, 2048), ratios, strict=True)
}
CHUNKED_MOST = Published(1.25, "section 5.4.1, at most about, chunks of 512")

# Seconds: P50 TTFT and P99 TBT, by dataset and scheduler.
ABLATION = {
    (dataset, policy): (Published(ttft, "Table 4"), Published(tbt, "Table 4"))
    for dataset, policy, ttft, tbt in (
        ("sharegpt", "hybrid_only", 0.53, 0.68),
        ("sharegpt", "chunked_only", 1.04, 0.17),
        ("sharegpt", "sarathi", 0.76, 0.14),
        ("arxiv", "hybrid_only", 3.78, 1.38),
        ("arxiv", "chunked_only", 5.38, 0.20),
        ("arxiv", "sarathi", 3.90, 0.17),
    )
}
