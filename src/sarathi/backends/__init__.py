"""Backends run the steps of a model: on CPUs through OpenVINO, on CPUs and GPUs through torch.

Open `executor.py` for the protocols, `registry.py` for the backends there are, `step.py` for the
input of a step, `runner.py` and `model_instance.py` for what the engine uses. `openvino/`,
`torch/` and `parallel/` (several processes) each have a docstring of their own. The engine imports
from the modules at this level, and of `parallel/` the layout and the pipeline; never a library's.
"""
