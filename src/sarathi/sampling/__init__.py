"""From logits to tokens: what a request asks for, and the sampler for logits in host memory.

`params.py` has the sampling parameters and their bounds, `logits_processors.py` the list of what
changes logits before sampling, `sampler.py` the protocols of samplers and the numpy sampler (that
of GPUs is `backends/torch/torch_sampler.py`). Backends and the packages above them may import all.
"""
