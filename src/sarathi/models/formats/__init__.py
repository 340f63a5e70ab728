"""The files of checkpoints: Hugging Face folders with safetensors, and GGUF files.

`huggingface_config.py` and `gguf_config.py` read the configuration, `safetensors_weights.py` and
`gguf_weights.py` the tensors; `harmless_fields.py` lists what files may have without being read.
Use `models/model.py` to open either format.
"""
