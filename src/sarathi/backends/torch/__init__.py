"""The torch backend, for CPUs and NVIDIA GPUs; only processes that use it import this package.

`torch_executor.py` runs steps, with the decoder's `torch_operations.py` on the inputs of
`step_inputs.py`, and describes the backend to the registry. Attention: `attention_backend.py`, its
implementations for CPUs (`plain_attention`) and GPUs (`triton_attention`, `attention_plan`,
`kernels/`). Weights: `parameters.py`. Ranks: `process_group.py`. On GPUs `overlapped_runner.py`
runs steps ahead of `torch_sampler.py`, and `cuda_graphs.py` replays decodes. Only tests and `perf`
import from it.
"""

import os

# Read when the library is loaded. A thread that waits at the end of an operation must sleep, not
# spin: where other processes need the cores too, spinning made steps of 70 ms take seconds.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
