"""The files of checkpoints: Hugging Face folders with safetensors, and GGUF files.

`huggingface_checkpoint.py` reads configuration and weights of the former; `gguf_file.py`,
`gguf_config.py` and `gguf_weights.py` those of the latter; `harmless_fields.py` lists what files
may have without being read. Use `models/model.py` to open either format.
"""
