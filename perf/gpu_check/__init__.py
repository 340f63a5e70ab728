"""Check the engine on a GPU: tests, speeds with their goals, the paper's experiment.

`python -m perf.gpu_check` runs all of it; docs/gpu.md explains every figure.
"""
