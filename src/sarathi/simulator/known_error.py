"""The known error of the cost model, which is printed beside every figure that comes from it."""

from __future__ import annotations

from dataclasses import dataclass

from sarathi.simulator.cost_model import BatchShape
from sarathi.simulator.deployment import Deployment
from sarathi.simulator.engine_overhead import OVERHEADS
from sarathi.simulator.gpu import GpuCostModel

# By device and term: median and 90th percentile of the absolute relative error on measurements that
# no constant was fitted to. The error table of `sarathi calibrate`, rows "held out".
HELD_OUT = {
    ("a100", "linear"): (0.027, 0.092),
    ("a100", "elementwise"): (0.052, 0.316),
    ("a100", "attention_prefill"): (0.031, 0.133),
    ("a100", "attention_decode"): (0.088, 0.202),
    ("a100", "all_reduce 4"): (0.143, 0.998),
    ("a100", "all_reduce 8"): (0.104, 0.347),
    ("a100", "all_reduce 16, two nodes"): (0.220, 1.115),
    ("a100-pairwise", "all_reduce 2"): (0.143, 0.293),
    ("a100-pairwise", "all_reduce 4"): (0.013, 0.051),
    ("a100-pairwise", "send_recv"): (0.065, 0.159),
    ("a100-pairwise", "send_recv, two nodes"): (0.141, 0.357),
    ("a40", "linear"): (0.032, 0.099),
    ("a40", "elementwise"): (0.040, 0.170),
    ("a40", "all_reduce 2"): (0.063, 0.164),
    ("a40", "all_reduce 4"): (0.044, 0.203),
    ("a40", "all_reduce 8"): (0.075, 0.290),
    ("a40", "send_recv"): (0.037, 0.089),
    ("a40", "send_recv, two nodes"): (0.114, 0.269),
    ("h100", "linear"): (0.045, 0.134),
    ("h100", "elementwise"): (0.070, 0.224),
    ("h100", "all_reduce 2"): (0.148, 2.367),
    ("h100", "all_reduce 4"): (0.065, 0.332),
    ("h100", "all_reduce 8"): (0.054, 0.218),
}
# The same chip, or the same pair, measured under the other name.
_MEASURED_AS = {
    ("a100-pairwise", "linear"): "a100",
    ("a100-pairwise", "elementwise"): "a100",
    ("a100-pairwise", "attention_prefill"): "a100",
    ("a100-pairwise", "attention_decode"): "a100",
    ("a100", "all_reduce 2"): "a100-pairwise",
}


@dataclass(frozen=True)
class KnownError:
    """Of the time of an iteration, the engine's overhead left out."""

    median: float  # of its measured terms, each by its share of the time
    p90: float
    unmeasured: float  # share of the time for which there is no measurement on the device

    def __str__(self) -> str:
        text = f"off by {self.median:.0%} in the median and {self.p90:.0%} at P90"
        if self.unmeasured >= 1:
            return "how far it is off is unknown, as nothing was measured on this device"
        if self.unmeasured >= 0.005:
            return f"{text}; unknown for {self.unmeasured:.0%} of the time"
        return text


def known_error(cost: GpuCostModel, shape: BatchShape) -> KnownError:
    """Return the error of one iteration, from the held-out errors of its terms.

    The errors of terms are added as if they always went the same way, which is the worst case.
    """
    seconds = unmeasured = median = p90 = 0.0
    for stage in cost.components(shape):
        for term, spent in vars(stage).items():
            seconds += spent
            error = _held_out(cost.deployment, term)
            if error is None:
                unmeasured += spent
            else:
                median += spent * error[0]
                p90 += spent * error[1]
    measured = seconds - unmeasured
    if measured <= 0:
        return KnownError(0.0, 0.0, 1.0)
    return KnownError(median / measured, p90 / measured, unmeasured / seconds)


def _held_out(deployment: Deployment, term: str) -> tuple[float, float] | None:
    name = deployment.device.name
    study = {"head": "linear", "embedding": "elementwise"}.get(term, term)
    if term == "all_reduce":
        study = f"all_reduce {deployment.tp}" + (", two nodes" if deployment.tp_crosses else "")
    elif term == "send_recv" and deployment.crossings:
        study = "send_recv, two nodes"
    return HELD_OUT.get((name, study)) or HELD_OUT.get((_MEASURED_AS.get((name, study), ""), study))


# A typical iteration under load: half of what the paper's larger budget allows.
_TYPICAL = BatchShape(32, 32 * 4096, ((2048, 992),), 32, 1024)


def describe_accuracy(deployment: Deployment) -> str:
    """Return what to print beside figures of a deployment: the error of a typical iteration."""
    cost = GpuCostModel(deployment, OVERHEADS["none"])
    return f"time on the GPU: {known_error(cost, _TYPICAL)}"
