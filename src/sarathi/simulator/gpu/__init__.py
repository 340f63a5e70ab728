"""The cost of an iteration on GPUs: start with gpu_cost.py, which adds up kernels and messages.

`GpuCostModel` is what other packages use; kernel_cost.py has the kernels, communication_cost.py
all-reduces and messages between stages.
"""

from sarathi.simulator.gpu.gpu_cost import GpuCostModel, StageTimes

__all__ = ["GpuCostModel", "StageTimes"]
