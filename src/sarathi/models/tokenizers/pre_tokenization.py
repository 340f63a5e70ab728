"""How byte-level BPE vocabularies of GGUF files split text into words.

A GGUF file only names its rule in `tokenizer.ggml.pre`; the expressions are those that the models'
own tokenizer.json files have. Each expression in turn splits every piece that the ones before left.
"""

from __future__ import annotations

from collections.abc import Mapping

from tokenizers import Regex, pre_tokenizers

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _words(digits: str) -> str:
    return (
        rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_REST}"
    )


_RULES: Mapping[tuple[str, ...], tuple[str, ...]] = {
    ("default",): (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
    ("falcon",): (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]"),
    ("gpt-2", "mpt", "olmo", "jais", "trillion"): (_GPT2,),
    ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"): (
        r"\p{N}",
        _GPT2,
    ),
    ("llama-bpe", "llama-v3", "llama3", "falcon3", "dbrx", "smaug-bpe"): (_words(r"\p{N}{1,3}"),),
    ("qwen2", "stablelm2", "hunyuan", "megrez", "deepseek-r1-qwen"): (_words(r"\p{N}"),),
    ("tekken",): (
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
        rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_REST}",
    ),
    ("deepseek-coder",): (
        r"[\r\n]",
        r"\s?\p{L}+",
        r"\s?\p{P}+",
        "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
        r"\p{N}",
    ),
}
_EXPRESSIONS = {name: rules for names, rules in _RULES.items() for name in names}
KNOWN_PRE_TOKENIZERS = tuple(_EXPRESSIONS)

# These look a whole word up in the vocabulary before they apply merges, and expect a first <s>.
WHOLE_WORDS_FIRST = frozenset({"llama-bpe", "llama-v3", "llama3", "falcon3", "tekken"})
BOS_BY_DEFAULT = WHOLE_WORDS_FIRST


def pre_tokenizer(name: str) -> pre_tokenizers.PreTokenizer | None:
    """The pre-tokenizer called `name` in GGUF files, or None if it is unknown."""
    expressions = _EXPRESSIONS.get(name)
    if expressions is None:
        return None
    splits = [pre_tokenizers.Split(Regex(each), "isolated") for each in expressions]
    to_letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*splits, to_letters])
