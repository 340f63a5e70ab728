"""Fields, keys and tensors that cannot change what is computed, and need not be read.

Files describe more than the decoder has. Anything that is neither read nor listed here is refused
by name: it may be a switch that changes the model (a scale of its logits, a cap, a mixture of
experts).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Names, versions, labels of other tasks, code and numeric types for other programs. Tokenizers have
# the special tokens by text, and the ends of a turn are read with them. Nor does transformers read
# the last three, lengths.
_BOOKKEEPING = """
    model_type name_or_path transformers_version transformers.js_config auto_map tokenizer_class
    license is_llama_config dtype torch_dtype id2label label2id num_labels problem_type
    finetuning_task task_specific_params return_dict output_attentions output_hidden_states
    tie_last_hidden_states torchscript tf_legacy_loss pad_token_id sep_token_id cls_token_id
    mask_token_id unk_token_id decoder_start_token_id bos_token_id eos_token_id
    model_max_length max_sequence_length seq_length
"""
# Of training alone.
_TRAINING = """
    initializer_range attention_dropout hidden_dropout classifier_dropout resid_pdrop embd_pdrop
    attn_pdrop resid_dropout embedding_dropout dropout attention_probs_dropout_prob
    hidden_dropout_prob gradient_checkpointing neftune_noise_alpha
"""
# How another program computes the same.
_IMPLEMENTATION = """
    use_cache is_decoder chunk_size_feed_forward pretraining_tp use_bfloat16 attn_implementation
    use_flash_attn use_flash_attention use_flash_attention_2 cache_implementation
"""
# Defaults of sampling, which requests have themselves.
_GENERATION = """
    max_length max_new_tokens max_time min_length min_new_tokens do_sample early_stopping num_beams
    num_beam_groups diversity_penalty temperature top_k top_p min_p typical_p epsilon_cutoff
    eta_cutoff repetition_penalty encoder_repetition_penalty length_penalty penalty_alpha
    no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences
    output_scores output_logits return_dict_in_generate forced_bos_token_id forced_eos_token_id
    remove_invalid_values prefix exponential_decay_length_penalty suppress_tokens
    begin_suppress_tokens num_assistant_tokens num_assistant_tokens_schedule assistant_lookbehind
    assistant_confidence_threshold target_lookbehind
"""
_HARMLESS = frozenset((_BOOKKEEPING + _TRAINING + _IMPLEMENTATION + _GENERATION).split())
_PREFIXES = ("_", "unsloth_")

# What would change something with another value than this.
_NEUTRAL: Mapping[str, Any] = {
    **dict.fromkeys(("logit_scale", "logits_scaling", "residual_multiplier"), 1),
    **dict.fromkeys(("embedding_multiplier", "attention_factor", "rotary_pct"), 1),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 0),
    "num_nextn_predict_layers": 0,
    # These are as good as absent when they are true, not when they are false.
    **dict.fromkeys(("is_causal", "causal", "use_rope", "rotary", "scale_attn_weights"), True),
}


def is_harmless_field(name: str, value: Any) -> bool:
    """Return whether a field of config.json is harmless. Null, false and empty mean absence."""
    if name in _NEUTRAL:
        return value is None or value == _NEUTRAL[name]
    absent = value is None or value is False or value in ("", [], {})
    return absent or name in _HARMLESS or name.startswith(_PREFIXES)


def is_harmless_rotary_field(name: str, value: Any) -> bool:
    """Return the same of the object that describes the rotary embedding."""
    # The length before scaling, and whether training went on after it: for types that are refused.
    return name in ("original_max_position_embeddings", "finetuned") or (
        is_harmless_field(name, value) and name not in _HARMLESS
    )


# The same for the keys of a GGUF file that follow the name of the architecture.
_GGUF_HARMLESS = frozenset(
    {
        "vocab_size",  # follows from the embedding
        "pooling_type",  # of embeddings
        *("rope.scaling.original_context_length", "rope.scaling.finetuned"),
    }
)
_GGUF_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(("logit_scale", "embedding_scale", "residual_scale"), (1,)),
    **dict.fromkeys(("rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor"), (1,)),
    **dict.fromkeys(
        ("expert_used_count", "expert_shared_count", "leading_dense_block_count"), (0,)
    ),
    **dict.fromkeys(("attention.clamp_kqv", "attention.max_alibi_bias"), (0,)),
    "attention.causal": (True,),
    "falcon.use_parallel_residual": (True,),
    # How the converter has arranged rows, which is what is expected here.
    "tensor_data_layout": ("Meta AI original pth", "jploski"),
}


def is_harmless_key(architecture: str, name: str, value: Any) -> bool:
    """Return the same of a key of a GGUF file, without its prefix; `value` is None for a list."""
    neutral = _GGUF_NEUTRAL.get(name) or _GGUF_NEUTRAL.get(f"{architecture}.{name}")
    if neutral is not None:
        return value in neutral
    return name in _GGUF_HARMLESS or value is False or value == ""


# Buffers that old versions of transformers saved: frequencies, and causal masks.
_HARMLESS_TENSOR = re.compile(r"(.*\.)?(inv_freq|position_ids|masked_bias|attn_rot_embd\.weight)")


def is_harmless_tensor(name: str) -> bool:
    """Return whether a tensor, of any format, is computed from the configuration anyway."""
    return _HARMLESS_TENSOR.fullmatch(name) is not None
