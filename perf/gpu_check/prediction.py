"""f. The simulator's predictions for the same iterations and requests, and their errors."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from statistics import median

import msgspec
import torch

from perf.gpu_check.ceilings import Ceilings, find_ceilings
from perf.gpu_check.context import Context, SkippedError
from perf.gpu_check.experiment import Point
from perf.gpu_check.loaded import LoadedEngine
from perf.gpu_check.speed import Speed
from perf.report import Figure
from sarathi.backends.torch.torch_devices import DTYPES, default_precision
from sarathi.engine.config import EngineConfig
from sarathi.simulator.cost_model import BatchShape, CostModel
from sarathi.simulator.deployment import Deployment
from sarathi.simulator.devices import DEVICES, Device
from sarathi.simulator.setup import Setup, gpu_setup
from sarathi.simulator.simulation import simulate
from sarathi.telemetry import Summary

# The names that GPUs give themselves, and those of the simulator. Cards of the same name with less
# bandwidth, such as the H100 PCIe, are not the one in the simulator's data.
_NAMES = (
    (r"H100 80GB HBM3", "h100"),
    (r"H200", "h200"),
    (r"A100.*PCI[Ee]", "a100-pairwise"),
    (r"A100.*80GB", "a100"),
    (r"B200", "b200"),
    (r"L40S", "l40s"),
    (r"\bL4\b", "l4"),
    (r"\bA40\b", "a40"),
    (r"RTX 4090", "rtx4090"),
)
FIGURES: Mapping[str, Callable[[Summary], float | None]] = {
    "P50 TBT": lambda summary: summary.tbt.p50,
    "P99 TBT": lambda summary: summary.tbt.p99,
    "longest gap": lambda summary: summary.max_gap.max,
    "P50 TTFT": lambda summary: summary.ttft.p50,
    "throughput": lambda summary: summary.output_tokens_per_second,
}


@dataclass(frozen=True)
class Prediction:
    """One figure, measured and predicted, in the same unit."""

    what: str
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """Relative; above 0 where the prediction is too high."""
        return self.predicted / self.measured - 1


def run(context: Context) -> None:
    """Predict what the parts before have measured.

    Raises:
        SkippedError: nothing was measured.
    """
    engine, speed = context.findings.engine, context.findings.speed
    if engine is None or speed is None:
        raise SkippedError("there is nothing to compare with: part d or e must run before")
    gpu, processors = _gpu(context)
    device = simulated_device(gpu, processors, find_ceilings(context))
    context.data("device", device.name)
    if device.name not in DEVICES:
        context.note(
            f"the simulator has no {gpu or 'such processor'}: constants of the H100, with the "
            "speeds measured here"
        )
    context.progress(f"simulating on {device.name}")
    setup = simulated_setup(context, engine, device, EngineConfig())
    iterations = predict_speed(setup.cost, speed)
    for prediction in iterations:
        context.figure(Figure(f"error of {prediction.what}", prediction.error, "%"))
    context.data("iterations", [_fields(prediction) for prediction in iterations])
    found: dict[str, list[Prediction]] = {name: [] for name in FIGURES}
    points = []
    for point in context.findings.points:
        context.deadline.require(0.0, "further simulations")
        predicted = predict_point(context, engine, device, point)
        compared = compare(point.summary, predicted)
        context.findings.predictions[point.policy, point.load.rate] = compared
        for prediction in compared:
            found[prediction.what].append(prediction)
        points.append(
            {
                "policy": point.policy,
                "rate": point.load.rate,
                "figures": [_fields(prediction) for prediction in compared],
                "summary": msgspec.to_builtins(predicted),
            }
        )
        context.data("points", points)
    for name, predictions in found.items():
        if predictions:
            error = median(abs(prediction.error) for prediction in predictions)
            context.figure(Figure(f"median error of {name}, {len(points)} points", error, "%"))


def simulated_device(gpu: str | None, processors: int, ceilings: Ceilings) -> Device:
    """Return the simulator's device of that name, or one with the speeds measured here.

    Args:
        gpu: the name that the driver gives it; None for a CPU.
        processors: streaming multiprocessors, or what computes a tile at a time.
    """
    for pattern, name in _NAMES:
        if gpu is not None and re.search(pattern, gpu):
            return DEVICES[name]
    like = DEVICES["h100"]
    return replace(
        like,
        name="measured",
        title=gpu or "this processor",
        peak_flops=ceilings.flops / like.achieved.gemm_compute,
        bandwidth=ceilings.bandwidth / like.achieved.gemm_bandwidth,
        processors=processors,
    )


def simulated_setup(
    context: Context, engine: LoadedEngine, device: Device, config: EngineConfig
) -> Setup:
    """Return what simulates the engine, with as many KV blocks as it has."""
    precision = default_precision("cuda" if context.device.type == "cuda" else "cpu")
    itemsize = DTYPES[precision].itemsize
    deployment = Deployment(
        model=context.settings.model,
        device=device,
        max_model_len=engine.max_model_len,
        bytes_per_weight=itemsize,
        bytes_per_kv=itemsize,
    )
    config = msgspec.structs.replace(config, max_batch_size=context.settings.max_batch_size)
    return replace(
        gpu_setup(deployment, config),
        num_blocks=engine.num_blocks,
        block_size=engine.block_size,
    )


def predict_speed(cost: CostModel, speed: Speed) -> list[Prediction]:
    """Predict iterations of decodes and the throughput of prompts."""
    found = []
    for decodes in speed.decodes:
        count = decodes.requests
        shape = BatchShape(count, count * decodes.context, (), count, count)
        what = f"iteration, decodes {count} x {decodes.context}"
        found.append(Prediction(what, decodes.seconds, _seconds(cost, shape)))
    for prompts in speed.prompts:
        seconds = 0.0
        for start in range(0, prompts.length, prompts.budget):
            chunk = min(prompts.budget, prompts.length - start)
            last = int(start + chunk == prompts.length)
            seconds += _seconds(cost, BatchShape(0, 0, ((start, chunk),), last, chunk))
        what = f"prompt tokens a second, budget {prompts.budget}"
        found.append(Prediction(what, prompts.tokens_per_second, prompts.length / seconds))
    return found


def predict_point(context: Context, engine: LoadedEngine, device: Device, point: Point) -> Summary:
    """Simulate the very requests of a point under its policy."""
    setup = simulated_setup(context, engine, device, point.config)
    return simulate(setup, point.load.plan).summary


def compare(measured: Summary, predicted: Summary) -> list[Prediction]:
    """Set the figures of both side by side, where both have them."""
    found = []
    for name, read in FIGURES.items():
        real, simulated = read(measured), read(predicted)
        if real and simulated:
            found.append(Prediction(name, real, simulated))
    return found


def _seconds(cost: CostModel, shape: BatchShape) -> float:
    return cost.overhead(shape) + sum(cost.stages(shape))


def _fields(prediction: Prediction) -> dict[str, object]:
    return asdict(prediction) | {"error": prediction.error}


def _gpu(context: Context) -> tuple[str | None, int]:
    """Its name and multiprocessors."""
    if context.device.type != "cuda":
        return None, 1
    properties = torch.cuda.get_device_properties(context.device)
    return properties.name, properties.multi_processor_count
