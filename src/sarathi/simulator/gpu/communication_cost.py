"""How long GPUs take to tell one another what they computed."""

from __future__ import annotations

from sarathi.simulator.deployment import Deployment
from sarathi.simulator.interconnect import Link

ELEMENT = 2  # bytes of an activation


def ring_seconds(link: Link, workers: int, size: float) -> float:
    """All-reduce of `size` bytes among `workers`: 2 (n - 1) / n times as many over each link."""
    return link.seconds(2 * (workers - 1) / workers * size)


def all_reduce_seconds(deployment: Deployment, tokens: int) -> float:
    """One all-reduce of the rows of `tokens`; nothing with one worker a stage."""
    if deployment.tp == 1:
        return 0.0
    link = deployment.device.node.ring(deployment.tp, deployment.tp_crosses)
    return ring_seconds(link, deployment.tp, tokens * deployment.model.hidden * ELEMENT)


def all_reduces(deployment: Deployment) -> int:
    """In a layer: after attention and after the perceptron, or once after both side by side."""
    return 1 if deployment.model.parallel else 2


def hop_seconds(deployment: Deployment, tokens: int) -> float:
    """From one stage to the next, averaged over their boundaries; nothing with one stage.

    Every worker sends all rows to its counterpart, and those of a node share its port.
    """
    if deployment.pp == 1 or tokens == 0:
        return 0.0
    node = deployment.device.node
    size = tokens * deployment.model.hidden * ELEMENT
    streams = min(deployment.tp, node.gpus)
    outside = node.network.seconds(size, streams, node.port)
    inside = node.peer.seconds(size)
    boundaries, crossing = deployment.pp - 1, deployment.crossings
    return (crossing * outside + (boundaries - crossing) * inside) / boundaries
