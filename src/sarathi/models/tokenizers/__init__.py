"""Text to token ids and back: the `Tokenizer`, its chat template and incremental detokenization.

`huggingface_tokenizer.py` and `gguf_tokenizer.py` read it from a checkpoint; `models/model.py`
opens either. Server and engine import `tokenizer.py` and `chat_template.py`.
"""
