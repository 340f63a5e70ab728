"""What a model is: its configuration, the decoder, its weights and its tokenizer.

`model.py` opens a checkpoint, `locate.py` finds it; `decoder.py` is the forward pass, written once
over the operations of a backend, `model_config.py` its sizes and switches, `families/` what differs
between architectures. All packages above may import from here, `formats/` through `model.py`.
"""
