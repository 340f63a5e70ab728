"""The cost of an iteration on GPUs, in gpu_cost.py: kernels and messages of kernel_cost.py."""

from sarathi.simulator.gpu.gpu_cost import GpuCostModel

__all__ = ["GpuCostModel"]
