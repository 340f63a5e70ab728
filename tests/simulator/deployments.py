"""The paper's deployments, and shapes of iterations."""

from __future__ import annotations

from typing import Any

from sarathi.simulator.cost_model import OVERHEADS, BatchShape
from sarathi.simulator.deployment import Deployment
from sarathi.simulator.devices import DEVICES
from sarathi.simulator.gpu_cost import GpuCostModel
from sarathi.simulator.simulated_model import MODELS


def deployment(model: str = "mistral-7b", device: str = "a100", **fields: Any) -> Deployment:
    return Deployment(model=MODELS[model], device=DEVICES[device], **fields)


def cost(model: str = "mistral-7b", device: str = "a100", **fields: Any) -> GpuCostModel:
    return GpuCostModel(deployment(model, device, **fields), OVERHEADS["none"])


def prompt(length: int, start: int = 0, samples: int = 0) -> BatchShape:
    return BatchShape(0, 0, ((start, length),), samples, length)


def decodes(number: int, context: int) -> BatchShape:
    return BatchShape(number, number * context, (), number, number)
