"""What the cost model says of each measurement."""

from __future__ import annotations

from sarathi.simulator.calibration.measurements import (
    AttentionTime,
    IterationTime,
    LayerTime,
    MessageTime,
)
from sarathi.simulator.cost_model import BatchShape
from sarathi.simulator.deployment import Deployment
from sarathi.simulator.devices import Device
from sarathi.simulator.gpu import GpuCostModel
from sarathi.simulator.gpu import attention_cost as attention
from sarathi.simulator.gpu.communication_cost import ring_seconds
from sarathi.simulator.gpu.elementwise_cost import layer_seconds
from sarathi.simulator.gpu.gemm_cost import gemm_seconds
from sarathi.simulator.gpu.gpu_cost import layer_gemms
from sarathi.simulator.interconnect import Link


def gemm_shapes(time: LayerTime) -> tuple[tuple[int, int], ...]:
    """Outputs and depth of the four matrix products of a layer, on one worker."""
    shape, tp = time.shape, time.tp
    return layer_gemms(shape, shape.heads // tp, max(1, shape.kv_heads // tp), tp)


def linear(device: Device, time: LayerTime) -> float:
    """All four of a layer."""
    return sum(gemm_seconds(device, time.tokens, *shape) for shape in gemm_shapes(time))


def elementwise(device: Device, time: LayerTime) -> float:
    deployment = Deployment(model=time.shape, device=device, tp=time.tp)
    return layer_seconds(deployment, time.tokens, stores=False)


def prefill(device: Device, time: AttentionTime) -> float:
    fixed, each = attention.prefill(device, time.heads, time.head_dim, time.rows)
    return fixed + each * time.context


def decode(device: Device, time: AttentionTime) -> float:
    fixed, each = attention.decode(device, time.kv_heads, time.head_dim, 2)
    return fixed + each * time.batch * time.context


def all_reduce(link: Link, time: MessageTime) -> float:
    return ring_seconds(link, time.workers, time.size)


def send(link: Link, time: MessageTime) -> float:
    return link.seconds(time.size)


def iteration(cost: GpuCostModel, time: IterationTime, context: int) -> float:
    """
    Args:
        context: tokens in the cache of each decode.
    """
    chunks = ((0, time.prompt),) if time.prompt else ()
    shape = BatchShape(
        time.decodes,
        time.decodes * context,
        chunks,
        time.decodes + len(chunks),
        time.decodes + time.prompt,
    )
    return sum(cost.stages(shape)) + cost.overhead(shape)
