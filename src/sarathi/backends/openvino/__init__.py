"""The OpenVINO backend, for CPUs: `openvino_backend.py` describes it to the registry,
`openvino_executor.py` runs steps, `decoder_graph.py` builds the decoder as a graph. Everything
imports the library from `library.py`. Nothing outside imports from here but tests and `perf`.
"""
