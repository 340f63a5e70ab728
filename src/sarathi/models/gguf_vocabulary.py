"""The vocabulary metadata of a GGUF file."""

from __future__ import annotations

from sarathi.models.gguf_file import GgufFile

# Files name one end-of-sequence id, but chat models also end with these, as in their original
# generation configuration.
_END_TEXTS = frozenset(
    {
        "<|im_end|>",
        "<|endoftext|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end_of_text|>",
        "<|end▁of▁sentence|>",
    }
)


def end_of_generation_ids(file: GgufFile) -> tuple[int, ...]:
    """Ids after which generation ends: end of sequence, turn and message, named or well known."""
    ids = [file.integer(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    tokens = file.texts("tokenizer.ggml.tokens") or []
    known = [index for index, token in enumerate(tokens) if token in _END_TEXTS]
    return tuple(dict.fromkeys([*(i for i in ids if i is not None), *known]))
