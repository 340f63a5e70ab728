"""The cost of an iteration on GPUs, in gpu_cost.py: kernels, messages, stages."""

from sarathi.simulator.gpu.gpu_cost import GpuCostModel

__all__ = ["GpuCostModel"]
