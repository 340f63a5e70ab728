"""How long messages between GPUs take."""

from __future__ import annotations

from sarathi.simulator.deployment import Deployment
from sarathi.simulator.gpu.kernel_cost import ELEMENT
from sarathi.simulator.interconnect import Link


def ring_seconds(link: Link, workers: int, size: float) -> float:
    """Return the time of an all-reduce: 2 (n - 1) / n times `size` bytes over each link."""
    return link.seconds(2 * (workers - 1) / workers * size)


def all_reduce_seconds(deployment: Deployment, tokens: int) -> float:
    """Return the time of one all-reduce of the rows of `tokens`; 0 with one worker a stage."""
    if deployment.tp == 1:
        return 0.0
    link = deployment.device.node.ring(deployment.tp, deployment.tp_crosses)
    return ring_seconds(link, deployment.tp, tokens * deployment.config.hidden_size * ELEMENT)


def all_reduces(deployment: Deployment) -> int:
    """Return how many a layer has: after attention and after the MLP, or one after both."""
    return 1 if deployment.config.parallel else 2


def hop_seconds(deployment: Deployment, tokens: int) -> float:
    """Return the time from one stage to the next, the mean of all boundaries; 0 with one stage.

    Every worker sends all rows to its counterpart, and those of a node share its port.
    """
    if deployment.pp == 1 or tokens == 0:
        return 0.0
    node = deployment.device.node
    size = tokens * deployment.config.hidden_size * ELEMENT
    streams = min(deployment.tp, node.gpus)
    outside = node.network.seconds(size, streams, node.port)
    inside = node.peer.seconds(size)
    boundaries, crossing = deployment.pp - 1, deployment.crossings
    return (crossing * outside + (boundaries - crossing) * inside) / boundaries
