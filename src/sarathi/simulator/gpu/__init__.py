"""The cost of an iteration on GPUs."""

from sarathi.simulator.gpu.gpu_cost import GpuCostModel, StageTimes

__all__ = ["GpuCostModel", "StageTimes"]
